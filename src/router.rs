//! A router: callers submit to it, and it knows who has room.
//!
//! [`Router::start`] puts the parts together: the gRPC edge, the dispatcher (views and queues), the loops that follow the
//! pools and the settings, and the admin port. [`Router::drain`] takes them apart in order.

pub mod channels;
mod dispatch;
mod explain;
mod follow;
#[doc(hidden)]
pub mod measured;
mod metrics;
mod operations;
pub mod outlier;
mod pick;
mod pools;
pub mod queue;
pub mod retry;
mod service;
mod split;
mod tune;
mod view;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::admin::{self, Admin, Readiness};
use crate::lifecycle::Lifecycle;
use crate::registry::{Registries, RegistryError};
use crate::settings::{self, Followed};
use crate::task::PoolName;
use crate::telemetry::lag::Lag;
use crate::telemetry::logs::Level;
use crate::telemetry::profile::Profiler;
use crate::telemetry::{Telemetry, process};
use crate::wire::callers::Callers;
use crate::wire::operations::{DrainRequest, Operations};
use crate::wire::profiles::Profiles;
use crate::wire::server::{Port, RunningServer, ServeError};
use crate::wire::{Start, Timeouts};
use channels::Channels;
use dispatch::Dispatcher;
use explain::Book;
use metrics::Metrics;
use operations::RouterOperations;
use retry::Budget;
use service::{Inner, RouterService};
use split::Split;
use tune::{Following, Tuned};

/// How long connections may take to end after the last task.
const SERVER_STOP_WITHIN: Duration = Duration::from_secs(5);

/// How long background loops may take to end.
const LOOPS_STOP_WITHIN: Duration = Duration::from_secs(2);

/// A router's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to serve gRPC.
    pub listen: SocketAddr,
    /// Where to serve `/live`, `/ready` and `/metrics`.
    pub admin: admin::Config,
    /// The pool to route to, where the setting `pools` names none.
    pub pool: PoolName,
    /// Where the router runs, such as an availability zone. Settings can be targeted by it.
    pub zone: Option<String>,
    /// Where the router keeps its last good settings for the next one on this host. Without one, `weir router` takes
    /// `$STATE_DIRECTORY`, which systemd sets, or else a directory among the temporary ones.
    pub state_dir: Option<PathBuf>,
    /// How many tasks may wait for a worker, and who of them is next.
    pub queue: queue::Config,
    /// How often refused tasks are tried again.
    pub retry: retry::Config,
    /// Connections to workers.
    pub channels: channels::Config,
    /// Which workers are left alone because they fail.
    pub outlier: outlier::Config,
    /// The timeout of tasks that have none.
    #[serde(with = "humantime_serde")]
    pub default_timeout: Duration,
    /// The longest timeout.
    #[serde(with = "humantime_serde")]
    pub max_timeout: Duration,
    /// How long tasks may take to end after SIGTERM.
    #[serde(with = "humantime_serde")]
    pub drain_within: Duration,
    /// Who may drain the router through its gRPC port.
    pub drain_from: Callers,
    /// Who may profile the router, through its gRPC port or its admin port.
    pub profile_from: Callers,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: ([127, 0, 0, 1], 7400).into(),
            admin: admin::Config { listen: ([127, 0, 0, 1], 9400).into() },
            pool: PoolName::default(),
            zone: None,
            state_dir: None,
            queue: queue::Config::default(),
            retry: retry::Config::default(),
            channels: channels::Config::default(),
            outlier: outlier::Config::default(),
            default_timeout: Duration::from_secs(60),
            max_timeout: Duration::from_secs(600),
            drain_within: Duration::from_secs(60),
            drain_from: Callers::Loopback,
            profile_from: Callers::Loopback,
        }
    }
}

impl Config {
    /// The longest that a drain takes, when every step runs into its deadline: what ends the process for good, such as
    /// systemd's TimeoutStopSec, must wait longer.
    pub fn stops_within(&self) -> Duration {
        self.drain_within + SERVER_STOP_WITHIN + LOOPS_STOP_WITHIN
    }

    /// Who a router of this configuration is to whoever targets settings.
    pub fn settings_context(&self) -> settings::Context {
        settings::Context { role: settings::Role::Router, zone: self.zone.clone(), ..settings::Context::default() }
    }

    /// The file that keeps the last good settings for the next start; none for a router without a place or a port of its
    /// own.
    fn kept_settings(&self) -> Option<PathBuf> {
        let directory = self.state_dir.as_ref().filter(|_| self.listen.port() != 0)?;
        Some(directory.join(format!("settings-router-{}.json", self.listen.port())))
    }
}

/// What a router is made of, beside its own configuration.
pub struct Parts {
    /// Where the workers of each pool announce themselves.
    pub registries: Registries,
    /// The start values of the settings, and where the live ones are.
    pub settings: settings::Config,
    /// What the `log_level` setting changes.
    pub log_level: Level,
}

/// Why a router did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The gRPC port.
    #[error("router.listen: {0}")]
    Serve(#[from] ServeError),
    /// The admin port.
    #[error("router.admin: {0}")]
    Admin(#[from] admin::AdminError),
    /// The settings' start values.
    #[error(transparent)]
    Settings(#[from] settings::SettingsError),
    /// A pool's registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// A running router.
pub struct Router {
    config: Config,
    server: RunningServer,
    admin: Admin,
    intake: Intake,
    drain_request: DrainRequest,
    serving: Lifecycle,
    loops: Lifecycle,
}

/// Counts the calls that are under way, and lets no more in once the router drains.
#[derive(Clone)]
struct Intake {
    draining: CancellationToken,
    calls: TaskTracker,
}

impl Intake {
    fn enter(&self) -> Option<TaskTrackerToken> {
        (!self.draining.is_cancelled()).then(|| self.calls.token())
    }
}

impl Router {
    /// Starts a router. Ports are open when this returns; the registry may be away.
    pub async fn start(config: Config, parts: Parts, telemetry: Telemetry) -> Result<Self, StartError> {
        let (serving, loops) = (Lifecycle::new(), Lifecycle::new());
        let Parts { registries, settings, log_level: level } = parts;
        let kept = config.kept_settings();
        let Followed { settings, arrival, source } =
            settings::watch(&settings, config.settings_context(), kept.as_deref(), &telemetry, &loops)?;
        let first = settings.borrow().clone();
        let split = Split::new(&first, &config.pool);
        let pools = split.pools().map(PoolName::as_str).collect::<Vec<_>>().join(", ");
        let dispatcher = Dispatcher::new(config.queue.clone(), config.outlier.clone(), split, rand::random());
        let channels = Channels::new(config.channels.clone());
        let intake = Intake { draining: CancellationToken::new(), calls: TaskTracker::new() };

        let ready = {
            let (dispatcher, intake) = (dispatcher.clone(), intake.clone());
            move || readiness(&dispatcher, &intake)
        };
        let profiles = Profiles {
            profiler: Profiler::new(&telemetry, &loops),
            callers: config.profile_from,
            key: "router.profile_from",
            name: format!("router of pool {}", config.pool),
        };
        telemetry.run_upkeep(&loops);
        process::register_pool("router", &config.pool, &telemetry);
        Lag::watch(&telemetry, &loops);
        Metrics::follow(&telemetry, dispatcher.clone(), channels.clone());
        let metrics = Arc::new(Metrics::new(&telemetry));
        let following = Following::new(registries, dispatcher.clone(), channels.clone(), loops.clone());
        let mut tuned = Tuned { own: config.pool.clone(), metrics: metrics.clone(), level, following };
        tuned.apply(&first)?;
        loops.spawn("tune", tune::tune(settings.clone(), tuned, first, loops.token()));
        loops.spawn("tick", follow::tick(dispatcher.clone(), channels.clone(), loops.token()));

        let timeouts = Timeouts { default: config.default_timeout, max: config.max_timeout };
        let book = Book::default();
        let port = Port::listen(config.listen, &telemetry).await?;
        // Once it listens and counts everything: nobody is told that it is ready before.
        let admin = Admin::start(&config.admin, &telemetry, ready, profiles.clone(), &loops).await?;
        let drain_request = DrainRequest::default();
        let operated = RouterOperations {
            settings,
            arrival,
            source,
            start: Start::now(port.local_address, admin.local_addr),
            stops_within: config.stops_within(),
            queue_tasks: config.queue.tasks,
            book: book.clone(),
            dispatcher: dispatcher.clone(),
            channels: channels.clone(),
            intake: intake.clone(),
        };
        let operations = Operations::new(
            operated,
            config.drain_from,
            "router.drain_from",
            drain_request.clone(),
            profiles.on(&serving),
        );
        let inner = Inner {
            dispatcher,
            channels,
            metrics,
            timeouts,
            intake: intake.clone(),
            budget: Mutex::new(Budget::new(config.retry.clone(), Instant::now())),
            book,
            tenant_tasks: config.queue.tenant_tasks(),
        };
        let server = port.serve(RouterService { inner: Arc::new(inner) }, operations, &serving).await?;
        tracing::info!(listen = %server.local_address, admin = %admin.local_addr, pools, "the router serves");
        Ok(Router { config, server, admin, intake, drain_request, serving, loops })
    }

    /// Where it serves gRPC.
    pub fn address(&self) -> SocketAddr {
        self.server.local_address
    }

    /// Where it serves `/metrics` and health.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.local_addr
    }

    /// Waits until somebody asks through the gRPC port that the router drain: do it then.
    pub async fn asked_to_drain(&self) {
        self.drain_request.asked().await;
    }

    /// Waits until a part of the router has failed for good: drain it then.
    pub async fn failed(&self) {
        Lifecycle::any_cancelled([&self.serving, &self.loops]).await;
    }

    /// Stops in order; returns how many of the router's tasks had not ended: 0 when all went well.
    ///
    /// 1. Take no more tasks: refuse them as `DRAINING`, and say so to health checks.
    /// 2. Wait for the tasks that wait or run, at most for `drain_within`.
    /// 3. Stop the server, hard after a while: clients with open streams may never leave by themselves.
    /// 4. Stop following the registry, and the admin port last, so that the drain could be watched.
    pub async fn drain(self) -> usize {
        let at_most_seconds = self.config.stops_within().as_secs_f64();
        tracing::info!(under_way = self.intake.calls.len(), at_most_seconds, "draining");
        self.intake.draining.cancel();
        self.server.set_not_serving::<RouterService>().await;
        self.intake.calls.close();
        if tokio::time::timeout(self.config.drain_within, self.intake.calls.wait()).await.is_err() {
            tracing::warn!("{} tasks had not ended when the time to drain was over", self.intake.calls.len());
        }
        for (lifecycle, within) in [(&self.serving, SERVER_STOP_WITHIN), (&self.loops, LOOPS_STOP_WITHIN)] {
            if let Err(stragglers) = lifecycle.stop(within).await {
                tracing::warn!("stopped hard: {stragglers}");
            }
        }
        tracing::info!("the router has stopped");
        self.intake.calls.len() + self.serving.running() + self.loops.running()
    }
}

fn readiness(dispatcher: &Dispatcher, intake: &Intake) -> Readiness {
    if intake.draining.is_cancelled() {
        Readiness::NotReady("draining".into())
    } else if !dispatcher.has_view() {
        Readiness::NotReady("the registry has not been heard yet".into())
    } else {
        Readiness::Ready
    }
}
