//! `weir payload`.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;

use super::block_on;
use crate::config::{Config, ConfigError};
use crate::payload::{self, Limits};

/// Flags of `weir payload`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Prints a payload's JSON.
    #[command(after_help = "Examples:\n  weir payload get ./t1.0192….json.zlib.b64 | jq .outcome\n  \
        weir payload get payloads/7/2026/11/22/17/bank/ok/t1.0192….json.zlib.b64")]
    Get {
        /// A file, or else a key in the configured store.
        #[arg(value_name = "KEY|FILE")]
        which: String,
        /// Prints the text as it was stored, instead of indented.
        #[arg(long)]
        raw: bool,
    },
}

pub(super) fn run(args: Args, config: impl Fn() -> Result<Config, ConfigError>) -> anyhow::Result<ExitCode> {
    let Action::Get { which, raw } = args.action;
    let limits = Limits::default();
    let stored = if Path::new(&which).is_file() {
        read_file(Path::new(&which), limits.stored_bytes)?
    } else {
        let config = config()?;
        block_on(async move {
            let Some(store) = payload::store::open(&config.payloads).await else {
                bail!("there is no file {which}, and no store is configured to look for a key: set payloads.store");
            };
            Ok(store.get(&which, limits.stored_bytes).await?.body.to_vec())
        })?
    };
    let mut json = payload::decode(&stored, limits)?;
    if !raw {
        let value: serde_json::Value = serde_json::from_str(&json)?;
        json = serde_json::to_string_pretty(&value)?;
    }
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{json}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot write the payload"),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn read_file(path: &Path, limit_bytes: u64) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let bytes = path.metadata().with_context(|| format!("cannot read {shown}"))?.len();
    if bytes > limit_bytes {
        bail!("{shown} has {bytes} bytes, more than the {limit_bytes} that a payload may have");
    }
    std::fs::read(path).with_context(|| format!("cannot read {shown}"))
}
