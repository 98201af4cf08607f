//! `weir sandbox`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::{Signals, block_on, start_logs};
use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::sandbox::{Latency, Sandbox};
use crate::telemetry::process;

const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Flags of `weir sandbox`; each overrides the configuration.
#[derive(Debug, clap::Args)]
#[command(after_help = r#"Examples:
  weir sandbox --latency 200ms
  weir sandbox --latency 1s --latency-p99 10s --token-lifetime 30s
  weir sandbox --script examples/sandbox_script.toml

  curl -H 'Authorization: Bearer sandbox.me' 'http://127.0.0.1:7480/accounts?customer=c1'
  curl -d grant_type=client_credentials -u me:secret http://127.0.0.1:7480/oauth/token
  curl -X PUT -d '{"errors": {"share": 0.5}}' http://127.0.0.1:7480/behaviour/me
  curl http://127.0.0.1:7480/stats
  curl http://127.0.0.1:7480/metrics

What it can do to its clients is in [sandbox.behaviour] of deploy/weir.example.toml."#)]
pub(super) struct Args {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// How long each answer takes.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, allow_hyphen_values = true)]
    latency: Option<Duration>,
    /// How long one in a hundred takes, --latency being the median.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, allow_hyphen_values = true, requires = "latency")]
    latency_p99: Option<Duration>,
    /// Another seed is another bank.
    #[arg(long)]
    seed: Option<u64>,
    /// About how large an account's transactions are.
    #[arg(long, value_name = "BYTES")]
    response_bytes: Option<usize>,
    /// How long tokens from /oauth/token are good for.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, allow_hyphen_values = true)]
    token_lifetime: Option<Duration>,
    /// What changes over time: a TOML file of steps.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
}

pub(super) fn run(args: Args, mut config: Config) -> anyhow::Result<ExitCode> {
    let sandbox = &mut config.sandbox;
    sandbox.listen = args.listen.unwrap_or(sandbox.listen);
    sandbox.seed = args.seed.unwrap_or(sandbox.seed);
    sandbox.response_bytes = args.response_bytes.unwrap_or(sandbox.response_bytes);
    sandbox.token_lifetime = args.token_lifetime.unwrap_or(sandbox.token_lifetime);
    sandbox.script = args.script.or(sandbox.script.take());
    if let Some(median) = args.latency {
        sandbox.latency = args.latency_p99.map_or(Latency::Fixed(median), |p99| Latency::LogNormal { median, p99 });
        sandbox.behaviour.latency = None;
    }
    let logs = start_logs(&config, "sandbox")?;
    block_on(async move {
        let mut signals = Signals::listen()?;
        let lifecycle = Lifecycle::new();
        let sandbox = Sandbox::start(config.sandbox, &lifecycle).await?;
        process::register(sandbox.telemetry());
        tracing::info!(listen = %sandbox.local_addr, "the sandbox bank answers");
        signals.next().await;
        if let Err(stragglers) = signals.or_exit(lifecycle.stop(STOP_WITHIN), Some(&logs), || ()).await {
            tracing::warn!("left behind: {stragglers}");
        }
        Ok(ExitCode::SUCCESS)
    })
}
