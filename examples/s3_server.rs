//! An S3 server for trying weir out and for its tests: verifies signatures, keeps each bucket as a directory.
//!
//! ```text
//! cargo run --example s3_server -- --listen 127.0.0.1:9000 --directory /tmp/s3 --bucket weir
//! ```
//!
//! Prints its URL once it listens. The access key is `weir-tests`, the secret `weir-tests-secret`. Not for production.

#[expect(dead_code, reason = "the tests start it in their own way")]
#[path = "../tests/it/support/s3.rs"]
mod s3;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use tokio::net::TcpListener;
use weir::lifecycle::Lifecycle;

#[derive(Parser)]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Where the buckets go.
    #[arg(long)]
    directory: PathBuf,
    /// A bucket to make.
    #[arg(long, default_value = "weir")]
    bucket: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let bucket = arguments.directory.join(&arguments.bucket);
    std::fs::create_dir_all(&bucket).with_context(|| format!("could not make {}", bucket.display()))?;
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("could not listen on {}", arguments.listen))?;
    println!("http://{}", listener.local_addr()?);
    let lifecycle = Lifecycle::new();
    lifecycle.spawn("s3 server", s3::serve(listener, s3::service(&arguments.directory), None, lifecycle.clone()));
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminated.recv() => {}
    }
    lifecycle.stop(Duration::from_secs(5)).await?;
    Ok(())
}
