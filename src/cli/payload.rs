//! `weir payload`: debug payloads, read back.

mod get;
mod replay;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;

use super::block_on;
use crate::config::{Config, ConfigError};
use crate::integration::Integrations;
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
    Get(get::Args),
    /// Runs a stored run again on this machine, with the recorded answers in place of the network, and compares.
    Replay(replay::Args),
}

/// Runs the action to its end; `own` are the integrations that the program brings itself.
pub(super) fn run(
    args: Args,
    config: impl Fn() -> Result<Config, ConfigError>,
    own: &Integrations,
) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Get(args) => get::run(&args, config),
        Action::Replay(args) => replay::run(&args, config, own),
    }
}

/// A payload that was read back.
struct Loaded {
    /// Its document, a JSON object of this version's schema. Text, for it may hold what no tree can: numbers without
    /// bounds, lists without depth.
    json: String,
}

/// Reads and decodes one payload: a file, or else a key in the configured store. The configuration is only looked at
/// where there is no such file.
fn load(which: &str, config: impl Fn() -> Result<Config, ConfigError>) -> anyhow::Result<Loaded> {
    let limits = Limits::default();
    let stored = if Path::new(which).is_file() {
        read_file(Path::new(which), limits.stored_bytes)?
    } else {
        let config = config()?;
        block_on(async move {
            let Some(store) = payload::store::open(&config.payloads).await? else {
                bail!("there is no file {which}, and no store is configured to look for a key: set payloads.store");
            };
            Ok(store.get(which, limits.stored_bytes).await?.body.to_vec())
        })?
    };
    Ok(Loaded { json: payload::decode(&stored, limits)? })
}

fn read_file(path: &Path, limit_bytes: u64) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let bytes = path.metadata().with_context(|| format!("cannot read {shown}"))?.len();
    if bytes > limit_bytes {
        bail!("{shown} has {bytes} bytes, more than the {limit_bytes} that a payload may have");
    }
    std::fs::read(path).with_context(|| format!("cannot read {shown}"))
}
