//! `weir router`.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::bail;

use super::worker::private_directory;
use super::{Signals, block_on, start_logs};
use crate::config::Config;
use crate::registry::Registries;
use crate::router::{Parts, Router};
use crate::task::PoolName;
use crate::telemetry::logs::Logs;
use crate::telemetry::{Telemetry, process};

/// Flags of `weir router`; each overrides the configuration.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weir router --config weir.toml --listen 0.0.0.0:7400")]
pub(super) struct Args {
    /// Where to serve gRPC.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where to serve /live, /ready and /metrics.
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
    /// The pool to route to, where the setting pools names none.
    #[arg(long)]
    pool: Option<PoolName>,
}

pub(super) fn run(args: Args, mut config: Config) -> anyhow::Result<ExitCode> {
    let router = &mut config.router;
    router.listen = args.listen.unwrap_or(router.listen);
    router.admin.listen = args.admin.unwrap_or(router.admin.listen);
    router.pool = args.pool.unwrap_or(router.pool.clone());
    if config.registry.url.is_none() {
        bail!(
            "registry.url: a router needs the Redis that its workers announce themselves in, such as \"redis://127.0.0.1:6379\""
        );
    }
    let logs = start_logs(&config, "router")?;
    block_on(serve(config, &logs))
}

async fn serve(mut config: Config, logs: &Logs) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let telemetry = Telemetry::new()?;
    process::register(&telemetry);
    logs.register(&telemetry);
    let parts = Parts {
        registries: Registries::open(&config.registry, &telemetry)?,
        settings: config.settings,
        log_level: logs.level(),
    };
    config.router.state_dir = private_directory(config.router.state_dir.as_deref());
    let router = Router::start(config.router, parts, telemetry).await?;
    logs.set_node(format!("{}:{}", rustix::system::uname().nodename().to_string_lossy(), router.address().port()));
    let has_failed = tokio::select! {
        () = signals.next() => false,
        () = router.asked_to_drain() => false,
        () = router.failed() => true,
    };
    signals.or_exit(router.drain(), Some(logs), || ()).await;
    if has_failed {
        bail!("a part of the router failed; the log names it");
    }
    Ok(ExitCode::SUCCESS)
}
