//! Compiles `proto/` with a compiler written in Rust, so that no machine needs `protoc`.

use std::path::PathBuf;

use prost::Message;

/// What `weir describe --json` prints, as it is: the field names of the `.proto` are its keys.
const DESCRIPTION: &str = ".weir.v1.Description";

/// The same for `weir explain --json`.
const EXPLANATION: &str = ".weir.v1.Explanation";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    // The details of errors too: reflection tells them to callers such as grpcurl, which then print what they say.
    let files = ["weir/v1/tasks.proto", "weir/v1/operations.proto", "google/rpc/error_details.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("weir.v1.descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .btree_map(DESCRIPTION)
        .type_attribute(DESCRIPTION, "#[derive(::serde::Serialize)]")
        .type_attribute(EXPLANATION, "#[derive(::serde::Serialize)]")
        .type_attribute(format!("{DESCRIPTION}.role"), "#[serde(rename_all = \"snake_case\")]")
        .compile_fds(descriptors)?;
    // Not part of the wire contract, and so of no descriptor that reflection tells of.
    tonic_prost_build::configure().compile_fds(protox::compile(["pprof/profile.proto"], ["proto"])?)?;
    Ok(())
}
