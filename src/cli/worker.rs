//! `weir worker`.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::bail;

use super::{Signals, block_on, start_logs};
use crate::config::Config;
use crate::integration::Integrations;
use crate::task::{PoolName, WorkerId};
use crate::telemetry::logs::Logs;
use crate::telemetry::{Telemetry, process};
use crate::worker::{Parts, Worker};
use crate::{payload, registry};

/// Flags of `weir worker`; each overrides the configuration.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  weir worker --config weir.toml --listen 0.0.0.0:7401 --advertise http://10.0.0.7:7401"
)]
pub(super) struct Args {
    /// Where to serve gRPC.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where routers reach this worker.
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// Where to serve /live, /ready and /metrics.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// The worker's name in the registry.
    #[arg(long)]
    id: Option<WorkerId>,
    /// The pool to serve in.
    #[arg(long)]
    pool: Option<PoolName>,
    /// N at the start, until the settings file says otherwise.
    #[arg(long, value_name = "N")]
    max_parallelism: Option<u32>,
}

impl Args {
    fn override_in(self, config: &mut Config) {
        let worker = &mut config.worker;
        worker.listen = self.listen.unwrap_or(worker.listen);
        worker.advertise = self.advertise.or(worker.advertise.take());
        worker.admin.listen = self.admin.unwrap_or(worker.admin.listen);
        worker.id = self.id.or(worker.id.take());
        worker.pool = self.pool.unwrap_or(worker.pool.clone());
        config.settings.max_parallelism = self.max_parallelism.unwrap_or(config.settings.max_parallelism);
    }
}

pub(super) fn run(args: Args, mut config: Config) -> anyhow::Result<ExitCode> {
    args.override_in(&mut config);
    let logs = start_logs(&config)?;
    block_on(serve(config, &logs))
}

async fn serve(config: Config, logs: &Logs) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let telemetry = Telemetry::new()?;
    process::register(&telemetry);
    logs.register(&telemetry);
    if config.registry.url.is_none() {
        tracing::warn!("no registry.url is configured: no router will find this worker");
    }
    let parts = Parts {
        integrations: Integrations::from_config(&config.integrations, &telemetry)?,
        registry: registry::open(&config.registry, &config.worker.pool, &telemetry)?,
        store: payload::store::open(&config.payloads).await,
        payloads: config.payloads,
        settings: config.settings,
        log_level: logs.level(),
    };
    let worker = Worker::start(config.worker, parts, telemetry).await?;
    let has_failed = tokio::select! {
        () = signals.next() => false,
        () = worker.failed() => true,
    };
    signals.or_exit(worker.drain()).await;
    if has_failed {
        bail!("a part of the worker failed; the log names it");
    }
    Ok(ExitCode::SUCCESS)
}
