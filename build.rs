//! Compiles `proto/` with a compiler written in Rust, so that no machine needs `protoc`.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    // The details of errors too: reflection tells them to callers such as grpcurl, which then print what they say.
    let descriptors = protox::compile(["weir/v1/tasks.proto", "google/rpc/error_details.proto"], ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("weir.v1.descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .compile_fds(descriptors)?;
    Ok(())
}
