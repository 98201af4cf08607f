//! `weir payload`: debug payloads, found and read back.

mod get;
mod list;
mod moment;
mod near;
mod replay;

use std::fs::{self, File};
use std::io::{self, Read};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use clap::Subcommand;

use super::block_on;
use super::output::STANDARD_STREAM;
use crate::config::{Config, ConfigError};
use crate::integration::Integrations;
use crate::payload::store::{self, Kind};
use crate::payload::{self, Limits, Store, StoreError, search};

/// Flags of `weir payload`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lists stored payloads, the newest first.
    List(list::Args),
    /// Prints a payload's JSON, or writes its HTTP exchanges as a HAR file.
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
        Action::List(args) => list::run(&args, &config()?),
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

/// Reads and decodes one payload: a file (`-` is standard input), or else a key in the configured store, or the URL
/// `s3://BUCKET/KEY` of one. The configuration is only looked at where there is no such file.
fn load(which: &str, config: impl Fn() -> Result<Config, ConfigError>) -> anyhow::Result<Loaded> {
    let limits = Limits::default();
    let stored = match (which, fs::metadata(which)) {
        (STANDARD_STREAM, _) => read_all(io::stdin().lock(), "standard input", limits.stored_bytes)?,
        (path, Ok(metadata)) if metadata.is_dir() => {
            bail!("{path} is a directory: name a file in it, or the key of a payload in the store")
        }
        (path, Ok(metadata)) => {
            fits(metadata.len(), path, limits.stored_bytes)?;
            let file = File::open(path).with_context(|| format!("cannot read {path}"))?;
            read_all(file, path, limits.stored_bytes)?
        }
        (path, Err(error)) if is_path(path) => return Err(error).with_context(|| format!("cannot read {path}")),
        (key, Err(_)) => from_store(key, &config()?, limits)?,
    };
    let json = payload::decode(&stored, limits).with_context(|| format!("cannot read {which}"))?;
    Ok(Loaded { json })
}

/// Whether that can only be meant as a path: no key begins so.
fn is_path(text: &str) -> bool {
    text.starts_with(['.', '/'])
}

fn read_all(from: impl Read, name: &str, limit_bytes: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut bounded = from.take(limit_bytes.saturating_add(1));
    bounded.read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    fits(bytes.len() as u64, name, limit_bytes)?;
    Ok(bytes)
}

fn fits(bytes: u64, name: &str, limit_bytes: u64) -> anyhow::Result<()> {
    ensure!(bytes <= limit_bytes, "{name} has more than the {limit_bytes} bytes that a payload may have");
    Ok(())
}

fn from_store(which: &str, config: &Config, limits: Limits) -> anyhow::Result<Vec<u8>> {
    block_on(async {
        let store = open(&config.payloads).await.with_context(|| format!("there is no file {which}"))?;
        let key = key_of(which, &config.payloads)?;
        match store.get(key, limits.stored_bytes).await {
            Ok(stored) => Ok(stored.body.to_vec()),
            Err(error @ StoreError::NotFound { .. }) => Err(near::explain(error, key, &*store, config).await),
            Err(error) => Err(error.into()),
        }
    })
}

/// The key that a text names: itself, or what follows the bucket in a URL.
fn key_of<'w>(which: &'w str, config: &payload::Config) -> anyhow::Result<&'w str> {
    let Some((bucket, key)) = which.strip_prefix("s3://").and_then(|rest| rest.split_once('/')) else {
        return Ok(which);
    };
    match config.store {
        Kind::S3 if config.s3.bucket == bucket => Ok(key),
        Kind::S3 => bail!("{which} is in another bucket than payloads.s3.bucket, which is {:?}", config.s3.bucket),
        _ => bail!("{which} is in a bucket, and payloads.store is not \"s3\""),
    }
}

/// The configured store, with as many connections as reading takes.
async fn open(config: &payload::Config) -> anyhow::Result<Arc<dyn Store>> {
    let uploads = config.uploads.max(search::PARALLEL_REQUESTS);
    let store = store::open(&payload::Config { uploads, ..config.clone() }).await?;
    if config.store == Kind::Directory {
        let path = config.directory.path.display();
        match fs::metadata(&config.directory.path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => bail!("payloads.directory.path: {path} is no directory"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!("payloads.directory.path: there is no directory {path}")
            }
            Err(error) => bail!("payloads.directory.path: {path}: {error}"),
        }
    }
    store.context(
        "no store is configured: set payloads.store to \"s3\" or \"directory\" (in weir.toml, or as WEIR_PAYLOADS__STORE)",
    )
}
