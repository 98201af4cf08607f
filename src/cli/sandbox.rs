//! `weir sandbox`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use super::{Signals, block_on, start_logs};
use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::sandbox::{Latency, Sandbox};

const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Flags of `weir sandbox`; each overrides the configuration.
#[derive(Debug, clap::Args)]
#[command(after_help = r#"Examples:
  weir sandbox --latency 200ms
  curl -H 'Authorization: Bearer sandbox.me' 'http://127.0.0.1:7480/accounts?customer=c1'
  curl http://127.0.0.1:7480/stats"#)]
pub(super) struct Args {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// How long each answer takes; a distribution can be configured.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    latency: Option<Duration>,
    /// Another seed is another bank.
    #[arg(long)]
    seed: Option<u64>,
    /// About how large an account's transactions are.
    #[arg(long, value_name = "BYTES")]
    response_bytes: Option<usize>,
}

pub(super) fn run(args: Args, mut config: Config) -> anyhow::Result<ExitCode> {
    let sandbox = &mut config.sandbox;
    sandbox.listen = args.listen.unwrap_or(sandbox.listen);
    sandbox.seed = args.seed.unwrap_or(sandbox.seed);
    sandbox.response_bytes = args.response_bytes.unwrap_or(sandbox.response_bytes);
    if let Some(latency) = args.latency {
        sandbox.latency = Latency::Fixed(latency);
    }
    let _logs = start_logs(&config)?;
    block_on(async move {
        let mut signals = Signals::listen()?;
        let lifecycle = Lifecycle::new();
        let sandbox = Sandbox::start(config.sandbox, &lifecycle).await?;
        tracing::info!(listen = %sandbox.local_addr, "the sandbox bank answers");
        signals.next().await;
        if let Err(stragglers) = signals.or_exit(lifecycle.stop(STOP_WITHIN)).await {
            tracing::warn!("left behind: {stragglers}");
        }
        Ok(ExitCode::SUCCESS)
    })
}
