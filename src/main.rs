//! The `weir` program: parse, run one command, exit.

use std::process::ExitCode;

use clap::Parser;

use weir::cli::{Cli, fail};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return fail(&anyhow::anyhow!("the process has a TLS provider already"));
    }
    cli.run().unwrap_or_else(|error| fail(&error))
}
