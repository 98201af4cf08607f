//! `weir worker`, and the same for a program with integrations of its own.

mod last_exit;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Parser, Subcommand};
use rustix::process::{Resource, getrlimit};

pub(super) use self::last_exit::private_directory;
use self::last_exit::{EndedBy, Life};
use super::{ConfigFile, Signals, block_on, check, fail, payload, start_logs};
use crate::config::{self, Config};
use crate::integration::Integrations;
use crate::payload::store;
use crate::registry;
use crate::task::{PoolName, WorkerId};
use crate::telemetry::logs::Logs;
use crate::telemetry::{Telemetry, process};
use crate::worker::descriptors::Need;
use crate::worker::{Parts, Worker};

/// Flags of `weir worker`; each overrides the configuration.
#[derive(Debug, clap::Args)]
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

/// The command line of a worker that is a program of its own.
#[derive(Debug, Parser)]
#[command(about = "Serves integrations: admits up to N tasks at a time and refuses the rest early")]
struct Program {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    args: Args,
    #[command(subcommand)]
    command: Option<OwnCommand>,
}

/// What such a program does instead of serving.
#[derive(Debug, Subcommand)]
enum OwnCommand {
    /// Reads debug payloads back, and runs them again with this program's integrations.
    Payload(payload::Args),
    /// Checks the configuration, with this program's integrations.
    Check(check::Args),
}

/// The whole `main` of a worker with integrations of its own.
///
/// It is `weir worker` in every respect (configuration, flags, logs, metrics, signals, the ordered stop), and serves
/// `own` beside what is configured. A name that is both configured and among `own` is an error at the start. As
/// `payload` it reads payloads back and runs them again, with `own`, as `weir payload` does, and as `check` it checks the
/// configuration, as `weir check` does, and knows the names of `own`. One thing only a program itself can choose is its
/// allocator: with the feature `jemalloc`, weir's own has that, which keeps memory flat under many tasks, and the
/// allocator's metrics are jemalloc's.
///
/// ```no_run
/// # use weir::integration::{Context, Error, Integration, Integrations};
/// # use weir::task::Json;
/// struct Greeting;
///
/// #[async_trait::async_trait]
/// impl Integration for Greeting {
///     async fn run(&self, context: &Context) -> Result<Json, Error> {
///         let name: String = context.input()?;
///         Json::of(&format!("hello {name}")).map_err(|error| Error::permanent(error.to_string()))
///     }
/// }
///
/// fn main() -> std::process::ExitCode {
///     weir::cli::serve_worker(Integrations::new().with("greeting".parse().expect("a name"), Greeting))
/// }
/// ```
pub fn serve_worker(own: Integrations) -> ExitCode {
    let Program { config, args, command } = Program::parse();
    // Fails only where the program has chosen a provider already, and then that one serves.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = config.named();
    let load = || config::load(file.as_deref(), std::env::vars());
    let ended = match command {
        None => load().map_err(anyhow::Error::from).and_then(|config| run(args, config, own)),
        Some(OwnCommand::Payload(args)) => payload::run(args, load, &own),
        Some(OwnCommand::Check(args)) => check::run(&args, file.as_deref(), own),
    };
    ended.unwrap_or_else(|error| fail(&error))
}

/// Runs a worker to its end; `own` is served beside the configured integrations.
pub(super) fn run(args: Args, mut config: Config, own: Integrations) -> anyhow::Result<ExitCode> {
    args.override_in(&mut config);
    let logs = start_logs(&config, "worker")?;
    block_on(serve(config, own, &logs))
}

async fn serve(mut config: Config, own: Integrations, logs: &Logs) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let telemetry = Telemetry::new()?;
    process::register(&telemetry);
    logs.register(&telemetry);
    if config.registry.url.is_none() {
        tracing::warn!("no registry.url is configured: no router will find this worker");
    }
    descriptors_needed(&config).check(descriptors_allowed())?;
    let parts = Parts {
        integrations: Integrations::from_config(&config.integrations, &telemetry)?.merge(own)?,
        registry: registry::open(&config.registry, &config.worker.pool, &telemetry)?,
        store: store::open(&config.payloads).await?,
        payloads: config.payloads,
        overload: config.overload,
        settings: config.settings,
        log_level: logs.level(),
    };
    let (state_dir, name) = (config.worker.state_dir.take(), config.worker.known_as());
    config.worker.state_dir = private_directory(state_dir.as_deref());
    if let Some(id) = &config.worker.id {
        logs.set_node(id.to_string());
    }
    let worker = Worker::start(config.worker, parts, telemetry.clone()).await?;
    logs.set_node(worker.id().to_string());
    let mut life = Life::begin(state_dir.as_deref(), name.as_deref(), &telemetry);
    let has_failed = tokio::select! {
        () = signals.next() => false,
        () = worker.asked_to_drain() => false,
        () = worker.failed() => true,
    };
    signals.or_exit(worker.drain(), Some(logs), || life.end(EndedBy::SecondSignal)).await;
    life.end(if has_failed { EndedBy::Failure } else { EndedBy::Drain });
    if has_failed {
        bail!("a part of the worker failed; the log names it");
    }
    Ok(ExitCode::SUCCESS)
}

/// What a worker of this configuration may have open, from its start on.
pub(super) fn descriptors_needed(config: &Config) -> Need {
    let uploads = if config.payloads.store == store::Kind::None { 0 } else { config.payloads.uploads as u64 };
    Need { max_parallelism: config.settings.max_parallelism.into(), uploads }
}

/// What a process may have open at most; none is no limit. The soft limit is raised to it at the start.
pub(super) fn descriptors_allowed() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}
