//! `weir doctor`: what is the matter with a worker, in order of likelihood, each with evidence and what to change.
//!
//! It watches one worker for some seconds (`watch.rs`), or reads a time of some workers from a Prometheus (`history.rs`).
//! Either way the readings become an [`Observation`](observation::Observation) of each, from which pure rules make the
//! findings (`judge.rs`, `rules.rs`). docs/doctor.md has the rules with their numbers.

mod history;
mod judge;
mod lives;
mod observation;
mod observe;
mod profiled;
mod rules;
mod show;
mod track;
mod watch;

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::bail;
use serde_json::json;

use super::{block_on, print};
use crate::task::PoolName;
use judge::Verdict;

/// What errors and the client's metrics call it.
const COMMAND: &str = "doctor";

/// Exit codes.
const FINDINGS: u8 = 3;
const TOO_LITTLE_TRAFFIC: u8 = 4;

/// The longest range of a Prometheus: it is read in steps of a hundredth of it.
const LONGEST_RANGE: Duration = Duration::from_secs(31 * 24 * 60 * 60);

/// Flags of `weir doctor`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The first line is what is most likely the matter. Scores are from 0 to 1; the rules, with all their numbers: \
docs/doctor.md.

Exit codes: 0 nothing stands out; 3 there are findings; 4 nothing stands out, and there was too little to do to judge; 1 it failed.

Examples:
  weir doctor 127.0.0.1:7401
  weir doctor 127.0.0.1:7401 --seconds 60 --json
  weir doctor --prometheus http://127.0.0.1:9090 --pool parallel --range 30m
  weir doctor --prometheus http://127.0.0.1:9090 --instance 10.0.0.7:9401 --from 2026-01-31T09:00:00Z --range 1h"
)]
pub(super) struct Args {
    /// The gRPC address of a worker: HOST:PORT or http://HOST:PORT.
    #[arg(required_unless_present = "prometheus", conflicts_with = "prometheus")]
    address: Option<String>,
    /// For how long it watches.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(3..=3_600))]
    #[arg(conflicts_with = "prometheus")]
    seconds: u32,
    /// Where the worker's metrics are, where it is not where it says itself: HOST:PORT.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "prometheus")]
    admin: Option<String>,
    /// Reads from a Prometheus that scrapes the workers, instead of watching one.
    #[arg(long, value_name = "URL")]
    prometheus: Option<String>,
    /// Which workers of the Prometheus: HOST:PORT as its label instance has them. Can be given several times.
    #[arg(long, value_name = "INSTANCE", requires = "prometheus")]
    instance: Vec<String>,
    /// The workers of this pool.
    #[arg(long, requires = "prometheus")]
    pool: Option<PoolName>,
    /// When it begins, in RFC 3339; without it, the range ends now.
    #[arg(long, value_name = "TIME", requires = "prometheus", value_parser = humantime::parse_rfc3339)]
    from: Option<std::time::SystemTime>,
    /// How long it is. What came before, as long again, is what it is compared with.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    range: Duration,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let observations = block_on(async {
        match (&args.prometheus, &args.address) {
            (Some(url), _) => history::read(url, &args).await,
            (None, Some(address)) => Ok(vec![watch::watch(address, &args).await?]),
            (None, None) => bail!("name a worker, such as 127.0.0.1:7401, or a --prometheus"),
        }
    })?;
    let findings = judge::merge(observations.iter().map(judge::judge).collect());
    let verdict = judge::verdict(&findings, &observations);
    if args.json {
        print(&json!({"verdict": verdict, "findings": findings, "observations": observations}).to_string())?;
    } else {
        print(show::text(verdict, &findings, &observations).trim_end())?;
    }
    Ok(match verdict {
        Verdict::Healthy => ExitCode::SUCCESS,
        Verdict::Findings => FINDINGS.into(),
        Verdict::TooLittleTraffic => TOO_LITTLE_TRAFFIC.into(),
    })
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
