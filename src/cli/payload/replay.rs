//! `weir payload replay`: a stored run, run again on this machine.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::json;
use url::Url;

use super::load;
use crate::cli::{RUNTIME_STOP_WITHIN, Signals, fail, print};
use crate::config::{Config, ConfigError};
use crate::integration::{Config as Configured, Integration, Integrations, exec};
use crate::payload::Recorded;
use crate::replay::{Replay, Replayed};
use crate::task::{Failure, Json};
use crate::telemetry::Telemetry;
use crate::telemetry::logs::Logs;

/// The exit code when the outcome is another one, and when there is none to compare.
const EXIT_DIFFERENT: u8 = 1;
const EXIT_ERROR: u8 = 2;

/// Flags of `weir payload replay`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "weir payload replay [OPTIONS] <KEY|FILE>",
    after_help = "The integration is the one of this name in the configuration here. It needs no credentials: what is sent to \
nobody is sent with stand-ins, and the file of a refresh token is neither read nor written.

The exit code is 0 when the outcome is the same, 1 when it is another one, 2 when there is none.

Examples:
  weir payload replay ./t1.0192….json.zlib.b64
  weir payload replay ./t1.0192….json.zlib.b64 --live http://127.0.0.1:7480
  rust-gdb --args my-worker payload replay ./t1.0192….json.zlib.b64"
)]
pub(super) struct Args {
    /// A file, or else a key in the configured store.
    #[arg(value_name = "KEY|FILE", required_unless_present = "live")]
    which: Option<String>,
    /// Really sends the requests, with the configured credentials: of an http integration to this URL instead of its
    /// base_url.
    #[arg(long, value_name = "BASE_URL", num_args = 0..=1)]
    live: Option<Option<String>>,
    /// JSON, or @FILE with it, instead of the recorded input, in which secrets are placeholders.
    #[arg(long, value_name = "JSON|@FILE")]
    input: Option<String>,
    /// Answers a request that is not in the recording with the next one of the same method and path.
    #[arg(long, conflicts_with = "live")]
    nearest: bool,
    /// How long it may take. The deadline of the recorded run does not count.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = timeout)]
    timeout: Duration,
    /// Prints the comparison as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(
    args: &Args,
    config: impl Fn() -> Result<Config, ConfigError>,
    own: &Integrations,
) -> anyhow::Result<ExitCode> {
    let told = replay(args, config, own).and_then(|replayed| {
        print(&if args.json { document(&replayed) } else { replayed.to_string() })?;
        Ok(replayed.is_same())
    });
    match told {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::from(EXIT_DIFFERENT)),
        Err(error) => {
            fail(&error);
            Ok(ExitCode::from(EXIT_ERROR))
        }
    }
}

fn replay(
    args: &Args,
    config: impl Fn() -> Result<Config, ConfigError>,
    own: &Integrations,
) -> anyhow::Result<Replayed> {
    let (which, base_url) = args.target()?;
    let recorded = Recorded::parse(&load(which, &config)?.json);
    let recorded = recorded.with_context(|| format!("the payload {which} cannot be read"))?;
    let config = config()?;
    let mut replay = Replay::new(recorded)?
        .configured(config.worker.environment.clone(), config.payloads.redaction.clone())
        .within(args.timeout);
    if let Some(input) = &args.input {
        replay = replay.with_input(read_input(input)?);
    }
    if args.nearest {
        replay = replay.taking_the_nearest();
    }
    if args.live.is_some() {
        replay = replay.live();
    }
    let integration = integration(args.live.is_some(), base_url, &config, own, &replay)?;
    // A panic's message and place are what one is looking for here: its hook stays the usual one.
    let _logs = Logs::start(&config.log, "replay")?;
    // One thread: a debugger's steps stay on it.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let replayed = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        tokio::select! {
            replayed = replay.run_shared(integration) => Ok(replayed?),
            () = signals.next() => bail!("interrupted"),
        }
    });
    // Programs are in groups of their own: none outlives this one.
    exec::end_all();
    runtime.shutdown_timeout(RUNTIME_STOP_WITHIN);
    replayed
}

/// A time that can be added to any other.
fn timeout(text: &str) -> Result<Duration, String> {
    const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
    match humantime::parse_duration(text) {
        Ok(timeout) if timeout <= LONGEST => Ok(timeout),
        Ok(_) => Err("use at most 30days".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The integration of the recorded task: the program's own, or the configured one.
fn integration(
    is_live: bool,
    base_url: Option<&str>,
    config: &Config,
    own: &Integrations,
    replay: &Replay,
) -> anyhow::Result<Arc<dyn Integration>> {
    let name = &replay.recorded().task.integration;
    if let Some(own) = own.get(name) {
        if base_url.is_some() {
            bail!("{name} is this program's own: it knows its base URL itself, so use --live without one");
        }
        return Ok(own);
    }
    let Some(configured) = config.integrations.get(name) else {
        let known: Vec<_> = own.names().chain(config.integrations.keys()).map(|name| name.as_str()).collect();
        let known = if known.is_empty() { "none is".to_owned() } else { format!("there is {}", known.join(", ")) };
        bail!("the payload is one of {name}, which is not configured here ({known}): use that worker's configuration");
    };
    let telemetry = Telemetry::new()?;
    let invalid = |error: crate::integration::Invalid| anyhow::anyhow!("integrations.{name}.{error}");
    if !is_live {
        let offline = configured.offline(name, &telemetry, replay.has_token()).map_err(invalid)?;
        return offline.with_context(|| {
            format!(
                "{name} is a program that speaks to the network itself, so a recording cannot answer it: use --live to run \
                 it with the recorded input"
            )
        });
    }
    let mut configured = configured.clone();
    match (&mut configured, base_url) {
        (_, None) => {}
        (Configured::Http(http), Some(url)) => http.base_url = url.to_owned(),
        (_, Some(_)) => bail!("{name} is no http integration and has no base URL: use --live without one"),
    }
    configured.build(name, &telemetry).map_err(invalid)
}

impl Args {
    /// What to replay, and the URL to replay it against. In `--live KEY` the key stands where a URL may.
    fn target(&self) -> anyhow::Result<(&str, Option<&str>)> {
        match (self.which.as_deref(), self.live.as_ref().and_then(Option::as_deref)) {
            (Some(which), None) => Ok((which, None)),
            (Some(which), Some(url)) if is_url(url) => Ok((which, Some(url))),
            (Some(_), Some(url)) => bail!("--live {url}: this is no http URL; use one such as http://127.0.0.1:7480"),
            (None, Some(which)) if !is_url(which) => Ok((which, None)),
            (None, _) => bail!("name a key or a file to replay"),
        }
    }
}

fn is_url(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
}

fn read_input(input: &str) -> anyhow::Result<Json> {
    let text = match input.strip_prefix('@') {
        None if input.trim().is_empty() => bail!("--input is empty: use JSON, null where there is none, or @FILE"),
        Some("") => bail!("--input @ names no file"),
        Some(path) => {
            let path = PathBuf::from(path);
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?
        }
        None => input.to_owned(),
    };
    Json::parse(text).context("--input is not JSON")
}

/// The comparison for programs.
fn document(replayed: &Replayed) -> String {
    let outcome = |recorded: &Recorded| {
        let result = match &recorded.outcome.result {
            Ok(output) => json!({ "ok": output }),
            Err(Failure { code, message, remedy, reason }) => json!({ "failure": {
                "code": code.as_str(), "message": message, "remedy": remedy.as_str(), "reason": reason,
            } }),
        };
        json!({ "result": result, "ran_seconds": recorded.outcome.timings.ran.as_secs_f64() })
    };
    let task = &replayed.then.task;
    json!({
        "task_id": task.id,
        "integration": task.integration,
        "run_id": replayed.then.outcome.run.to_string(),
        "live": replayed.is_live,
        "same": replayed.is_same(),
        "then": outcome(&replayed.then),
        "now": outcome(&replayed.now),
        "differences": replayed.outcome,
        "requests": replayed.requests,
        "remarks": replayed.remarks,
    })
    .to_string()
}
