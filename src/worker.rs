//! A worker: it admits up to N tasks, runs them side by side, and says in the registry while it has room.
//!
//! [`Worker::start`] is the only place where a worker's organs meet: the gate, the integrations, the payloads, the
//! registry, the settings and the admin port. [`Worker::drain`] takes them apart in order.

mod adapt;
mod announce;
mod constraint;
pub mod descriptors;
mod drain;
pub(crate) mod end;
mod metrics;
mod operations;
mod outcomes;
mod profiling;
mod roster;
mod run;
mod service;
mod shed;
mod stuck;
mod tune;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::admin::{self, Admin, Readiness};
use crate::gate::{self, Gate};
use crate::integration::{self, Environment, Integrations};
use crate::lifecycle::Lifecycle;
use crate::overload::{self, Overload};
use crate::payload::{self, Ledger, Payloads};
use crate::registry::{Incarnation, Registry};
use crate::settings::{self, Followed};
use crate::task::{IntegrationName, PoolName, UnknownIntegration, WorkerId};
use crate::telemetry::lag::Lag;
use crate::telemetry::logs::Level;
use crate::telemetry::profile::Profiler;
use crate::telemetry::{Telemetry, process};
use crate::upstream::{self, Upstreams};
use crate::wire::callers::Callers;
use crate::wire::operations::{DrainRequest, Operations};
use crate::wire::profiles::Profiles;
use crate::wire::server::{Port, RunningServer, ServeError};
use crate::wire::{Start, Timeouts};
use announce::{Announcer, Identity};
pub use drain::Ended;
use operations::WorkerOperations;
use profiling::ProfilingMode;
use roster::Roster;
use run::Runner;
use service::{Inner, WorkerService};

/// A worker's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to serve gRPC.
    pub listen: SocketAddr,
    /// Where routers reach this worker, such as `http://10.0.0.7:7401`. Without one: `listen`, which must then be an
    /// address that routers can reach, not `0.0.0.0`.
    pub advertise: Option<String>,
    /// Where to serve `/live`, `/ready` and `/metrics`.
    pub admin: admin::Config,
    /// The worker's name in the registry. Without one: a new one for each start.
    pub id: Option<WorkerId>,
    /// Where the worker notes how it ends and keeps its last good settings, for the next one on this host. Without one,
    /// `weir worker` takes `$STATE_DIRECTORY`, which systemd sets, or else a directory among the temporary ones.
    pub state_dir: Option<PathBuf>,
    /// The pool to serve in.
    pub pool: PoolName,
    /// Where the worker runs, such as an availability zone. Settings can be targeted by it.
    pub zone: Option<String>,
    /// The timeout of tasks that have none.
    #[serde(with = "humantime_serde")]
    pub default_timeout: Duration,
    /// The longest timeout.
    #[serde(with = "humantime_serde")]
    pub max_timeout: Duration,
    /// How long tasks may take to end after SIGTERM, before they are cancelled.
    #[serde(with = "humantime_serde")]
    pub drain_within: Duration,
    /// Who may drain the worker through its gRPC port.
    pub drain_from: Callers,
    /// Who may profile the worker, through its gRPC port or its admin port.
    pub profile_from: Callers,
    /// What all runs share: blocking threads, transcript limits, the HTTP client of integrations written in Rust.
    pub environment: integration::environment::Config,
    /// What follows from how integrations do: breakers, deadlines at the door, adaptive limits.
    pub upstream: upstream::Config,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: ([127, 0, 0, 1], 7401).into(),
            advertise: None,
            admin: admin::Config { listen: ([127, 0, 0, 1], 9401).into() },
            id: None,
            state_dir: None,
            pool: PoolName::default(),
            zone: None,
            default_timeout: Duration::from_secs(60),
            max_timeout: Duration::from_secs(600),
            drain_within: Duration::from_secs(60),
            drain_from: Callers::Loopback,
            profile_from: Callers::Loopback,
            environment: integration::environment::Config::default(),
            upstream: upstream::Config::default(),
        }
    }
}

/// What a worker is made of, beside its own configuration.
pub struct Parts {
    /// What it runs.
    pub integrations: Integrations,
    /// Where it announces itself.
    pub registry: Arc<dyn Registry>,
    /// Where payloads go; none when they are not kept.
    pub store: Option<Arc<dyn payload::Store>>,
    /// How payloads are queued and encoded.
    pub payloads: payload::Config,
    /// When load is shed.
    pub overload: overload::Config,
    /// The start values of the settings, and the file to watch.
    pub settings: settings::Config,
    /// What the `log_level` setting changes.
    pub log_level: Level,
}

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nobody could reach the worker.
    #[error("worker.advertise: {0}")]
    Advertise(String),
    /// A worker without integrations.
    #[error("no integration is configured: add a section [integrations.NAME] with kind = \"http\"")]
    NoIntegrations,
    /// The gRPC port.
    #[error("worker.listen: {0}")]
    Serve(#[from] ServeError),
    /// The admin port.
    #[error("worker.admin: {0}")]
    Admin(#[from] admin::AdminError),
    /// The settings' start values.
    #[error(transparent)]
    Settings(#[from] settings::SettingsError),
    /// What runs share.
    #[error("worker.environment.{0}")]
    Environment(#[from] integration::Invalid),
    /// The watchdog's thread.
    #[error("cannot start the overload watchdog: {0}")]
    Overload(std::io::Error),
    /// What follows from how integrations do.
    #[error("worker.upstream.{0}")]
    Upstream(String),
    /// Paths of an integration that there is not: what they lead to would be stored.
    #[error("payloads.redaction.paths.{name}: {0}", name = .0.name)]
    Redaction(UnknownIntegration),
    /// The payload path.
    #[error(transparent)]
    Payloads(#[from] payload::StartError),
}

/// A running worker.
pub struct Worker {
    config: Config,
    id: WorkerId,
    server: RunningServer,
    admin: Admin,
    gate: Gate,
    overload: Overload,
    payloads: Option<Payloads>,
    flush_within: Duration,
    drain_request: DrainRequest,
    runs: Lifecycle,
    background: Lifecycle,
    serving: Lifecycle,
    announcing: Lifecycle,
    profiling: Lifecycle,
    loops: Lifecycle,
}

impl Worker {
    /// Starts a worker. Ports are open when this returns; the registry may be away.
    pub async fn start(config: Config, parts: Parts, telemetry: Telemetry) -> Result<Self, StartError> {
        if parts.integrations.is_empty() {
            return Err(StartError::NoIntegrations);
        }
        let names: Vec<_> = parts.integrations.names().collect();
        if let Some(unknown) = parts.payloads.redaction.unknown(&names).into_iter().next() {
            return Err(StartError::Redaction(unknown));
        }
        let (runs, background, serving) = (Lifecycle::new(), Lifecycle::new(), Lifecycle::new());
        let (announcing, profiling, loops) = (Lifecycle::new(), Lifecycle::new(), Lifecycle::new());
        let incarnation = Incarnation::mint();
        let id = config.id.clone().unwrap_or_else(|| generated_id(incarnation));

        let integrations: Vec<_> = parts.integrations.names().cloned().collect();
        let context = config.settings_context(Some(id.clone()), integrations.clone());
        let Followed { settings, arrival, source } =
            settings::watch(&parts.settings, context, config.kept_settings().as_deref(), &telemetry, &loops)?;
        let limits = settings.borrow().limits();
        let gate = Gate::new(limits, integrations.iter().cloned(), &telemetry);
        let environment = Environment::new(&config.environment, "worker.environment", &runs, &telemetry)?;
        let lag = Lag::watch(&telemetry, &loops);
        let overload = shed::start(&parts.overload, &integrations, lag.clone(), gate.clone(), &telemetry, &loops);
        let overload = overload.map_err(StartError::Overload)?;
        let start = |store| Payloads::start(&parts.payloads, store, Arc::new(move || lag.now()), &telemetry, &loops);
        let store = parts.store.clone();
        let payloads = parts.store.map(start).transpose()?;
        let profiles = Profiles {
            profiler: Profiler::new(&telemetry, &loops),
            callers: config.profile_from,
            key: "worker.profile_from",
            name: format!("worker {id} of pool {}", config.pool),
        };
        telemetry.run_upkeep(&loops);
        process::register_pool("worker", &config.pool, &telemetry);
        loops.spawn("tune", tune::tune(settings.clone(), gate.clone(), parts.log_level, loops.token()));

        parts.integrations.start(&background);
        let upstreams =
            Upstreams::new(&config.upstream, integrations.iter(), &telemetry).map_err(StartError::Upstream)?;
        loops.spawn("adapt", adapt::adapt(upstreams.clone(), gate.clone(), loops.token()));
        let roster = Arc::new(Roster::default());
        stuck::register(&roster, &telemetry);
        loops.spawn("stuck", stuck::watch(roster.clone(), loops.token()));
        let runner = Arc::new(Runner {
            worker: id.clone(),
            pool: config.pool.clone(),
            environment,
            payloads: payloads.clone(),
            settings: settings.clone(),
            metrics: metrics::Metrics::new(&telemetry, &config.pool, integrations.iter()),
            roster,
            polls: overload.polls().clone(),
            runs: runs.clone(),
        });
        let inner = Inner {
            gate: gate.clone(),
            overload: overload.clone(),
            upstreams: upstreams.clone(),
            integrations: parts.integrations,
            incarnation,
            timeouts: Timeouts { default: config.default_timeout, max: config.max_timeout },
            runner: runner.clone(),
            errors: service::Errors::new(&telemetry),
        };
        let port = Port::listen(config.listen, &telemetry).await?;
        let address = config.advertised(port.local_address)?;
        let identity = Identity { worker: id.clone(), address, incarnation, pool: config.pool.clone(), integrations };

        let (drain_request, flush_within) = (DrainRequest::default(), parts.payloads.flush_within);
        let spared = upstreams.spared();
        let (overloads, environment) = (overload.clone(), runner.environment.clone());
        let look = constraint::Look::new(gate.clone(), overloads, upstreams.clone(), environment, &telemetry);
        let profiling_metrics = profiling::Metrics::register(&telemetry);
        // Once it listens and counts everything: nobody is told that it is ready before.
        let admin = Admin::start(&config.admin, &telemetry, readiness(&gate), profiles.clone(), &loops).await?;
        let operated = WorkerOperations {
            identity: identity.clone(),
            start: Start::now(port.local_address, admin.local_addr),
            stops_within: config.stops_within(flush_within),
            gate: gate.clone(),
            overload: overload.clone(),
            upstreams,
            look,
            arrival: arrival.clone(),
            source,
            runner,
        };
        let operations = Operations::new(
            operated,
            config.drain_from,
            "worker.drain_from",
            drain_request.clone(),
            profiles.on(&serving),
        );
        let server = port.serve(WorkerService { inner: Arc::new(inner) }, operations, &serving).await?;
        log_start(&identity, &server, &admin, &gate);
        let mode = ProfilingMode {
            identity: identity.clone(),
            registry: parts.registry.clone(),
            settings,
            store,
            profiler: profiles.profiler,
            metrics: profiling_metrics,
        };
        profiling.spawn("profiling mode", mode.run(profiling.token()));
        let announcer = Announcer { identity, registry: parts.registry, gate: gate.clone(), spared, arrival };
        announcing.spawn("announce", announcer.run(announcing.token()));
        Ok(Worker {
            config,
            id,
            server,
            admin,
            gate,
            overload,
            payloads,
            flush_within,
            drain_request,
            runs,
            background,
            serving,
            announcing,
            profiling,
            loops,
        })
    }

    /// Its name in the registry.
    pub fn id(&self) -> &WorkerId {
        &self.id
    }

    /// Where it serves gRPC.
    pub fn address(&self) -> SocketAddr {
        self.server.local_address
    }

    /// Where it serves `/metrics` and health.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.local_addr
    }

    /// The gate's numbers now.
    pub fn load(&self) -> gate::Load {
        self.gate.load()
    }

    /// What the watchdog has found out.
    pub fn overload(&self) -> &Overload {
        &self.overload
    }

    /// The payloads' ledger now; none when payloads are not kept.
    pub fn ledger(&self) -> Option<Ledger> {
        self.payloads.as_ref().map(Payloads::ledger)
    }

    /// Waits until somebody asks through the gRPC port that the worker drain: do it then.
    pub async fn asked_to_drain(&self) {
        self.drain_request.asked().await;
    }

    /// Waits until a part of the worker has failed for good: drain it then.
    pub async fn failed(&self) {
        Lifecycle::any_cancelled(self.lifecycles()).await;
    }

    fn lifecycles(&self) -> [&Lifecycle; 6] {
        [&self.runs, &self.background, &self.serving, &self.announcing, &self.profiling, &self.loops]
    }
}

fn log_start(identity: &Identity, server: &RunningServer, admin: &Admin, gate: &Gate) {
    let Identity { worker, address, pool, .. } = identity;
    tracing::info!(
        %worker, listen = %server.local_address, advertise = address, admin = %admin.local_addr, %pool,
        max_parallelism = gate.load().target, "the worker serves"
    );
}

/// A worker can serve unless it is ending. That it is full or overloaded, or the registry away, is no reason to restart it.
fn readiness(gate: &Gate) -> impl Fn() -> Readiness + Send + Sync + 'static {
    let gate = gate.clone();
    move || match gate.stands().state {
        gate::State::Open | gate::State::Full | gate::State::Overloaded => Readiness::Ready,
        gate::State::Draining => Readiness::NotReady("draining".into()),
    }
}

/// Unique per start, and readable in a list: the host's name, if it can be part of a key, and the incarnation.
fn generated_id(incarnation: Incarnation) -> WorkerId {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let simple = incarnation.0.simple().to_string();
    let unique = &simple[simple.len() - 8..];
    let named = format!("{host}-{unique}").parse();
    named.unwrap_or_else(|_| format!("worker-{unique}").parse().expect("hex digits behind a letter are a worker id"))
}

fn reachable(host: url::Host<&str>) -> bool {
    match host {
        url::Host::Domain(_) => true,
        url::Host::Ipv4(ip) => !ip.is_unspecified(),
        url::Host::Ipv6(ip) => !ip.is_unspecified(),
    }
}

impl Config {
    /// What tells this worker from others on the host, from one start to the next; none when it has neither an id nor a
    /// port of its own.
    pub fn known_as(&self) -> Option<String> {
        let by_port = || (self.listen.port() != 0).then(|| format!("worker-{}", self.listen.port()));
        self.id.as_ref().map(ToString::to_string).or_else(by_port)
    }

    /// Who a worker of this configuration is to whoever targets settings, and what it runs.
    pub fn settings_context(&self, worker: Option<WorkerId>, integrations: Vec<IntegrationName>) -> settings::Context {
        let (pool, worker, zone) = (self.pool.clone(), worker.or(self.id.clone()), self.zone.clone());
        settings::Context { role: settings::Role::Worker, pool, worker, zone, integrations, integration: None }
    }

    /// The file that keeps the last good settings for the next start; none for a worker without a place or a name.
    fn kept_settings(&self) -> Option<PathBuf> {
        let directory = self.state_dir.as_ref()?;
        Some(directory.join(format!("settings-{}.json", self.known_as()?)))
    }

    /// Where routers reach a worker of this configuration that listens on `local`.
    pub fn advertised(&self, local: SocketAddr) -> Result<String, StartError> {
        match &self.advertise {
            Some(address) => match url::Url::parse(address) {
                Ok(url) if url.scheme() == "http" && url.host().is_some_and(reachable) => Ok(address.clone()),
                _ => Err(StartError::Advertise(format!(
                    "{address:?} is not an address that routers can reach: use a form such as \"http://10.0.0.7:7401\""
                ))),
            },
            None if local.ip().is_unspecified() => Err(StartError::Advertise(format!(
                "the worker listens on {local}, which routers cannot reach: set the address that they can, \
                 such as \"http://10.0.0.7:{}\"",
                local.port()
            ))),
            None => Ok(format!("http://{local}")),
        }
    }
}
