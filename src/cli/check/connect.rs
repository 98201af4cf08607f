//! `weir check --connect`: each thing outside that the configuration names, tried once.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use super::{Parts, Report, Role};
use crate::cli::table::counted;
use crate::cli::worker::{descriptors_allowed, descriptors_needed};
use crate::client::operations::Operations;
use crate::config::Config;
use crate::integration::{Error, Integrations};
use crate::lifecycle::Lifecycle;
use crate::payload;
use crate::registry;
use crate::settings::flagd::Document;
use crate::settings::store::{self, ReadError};
use crate::settings::{self, Source};
use crate::task::{IntegrationName, PoolName};
use crate::telemetry::Telemetry;
use crate::wire::proto::description;
use crate::worker::descriptors::Need;

/// How long any one of them may take; each has shorter limits of its own.
const WITHIN: Duration = Duration::from_secs(60);

/// How long what was tried may take to end.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Integrations tried at the same time.
const AT_ONCE: usize = 16;

pub(super) async fn check(role: Role, config: &Config, parts: &Parts, report: &mut Report) -> anyhow::Result<()> {
    let (worker, router) = (&config.worker, &config.router);
    if role.is(Role::Worker) && !report.is_wrong("worker") {
        ports("worker", worker.listen, worker.admin.listen, report).await?;
    }
    if role.is(Role::Worker) {
        descriptors(config, parts, report)?;
        integrations(&parts.integrations, report).await?;
        payloads(config, report).await?;
        launchdarkly(config, report).await?;
    }
    if role.is(Role::Router) && !report.is_wrong("router") {
        ports("router", router.listen, router.admin.listen, report).await?;
    }
    if role.is(Role::Sandbox) && !report.is_wrong("sandbox") {
        port("sandbox.listen", config.sandbox.listen, None, report).await?;
    }
    let mut pools: Vec<&PoolName> = Vec::new();
    pools.extend(role.is(Role::Worker).then_some(&worker.pool));
    pools.extend(role.is(Role::Router).then(|| parts.pools(config)).into_iter().flatten());
    pools.sort_unstable();
    pools.dedup();
    for pool in pools {
        redis(config, pool, report).await?;
    }
    if role.is(Role::Worker) { document(config, report).await } else { Ok(()) }
}

/// Of a worker or router. Where one runs already, its ports are not free, and that is no mistake.
async fn ports(role: &str, listen: SocketAddr, admin: SocketAddr, report: &mut Report) -> anyhow::Result<()> {
    let is_free = TcpListener::bind(listen).await.is_ok();
    let runs = if is_free { None } else { running(listen).await.filter(|runs| *runs == role) };
    port(&format!("{role}.listen"), listen, runs, report).await?;
    port(&format!("{role}.admin.listen"), admin, runs, report).await
}

/// Which role answers at an address.
async fn running(listen: SocketAddr) -> Option<&'static str> {
    let description = Operations::new(&listen.to_string()).ok()?.describe(1).await.ok()?;
    Some(match description.role? {
        description::Role::Worker(_) => "worker",
        description::Role::Router(_) => "router",
    })
}

/// `runs` is the role that runs with these ports already, if it does.
async fn port(key: &str, address: SocketAddr, runs: Option<&str>, report: &mut Report) -> anyhow::Result<()> {
    match (TcpListener::bind(address).await, runs) {
        (Ok(_), _) => report.fine(key, format!("{address} is free")),
        (Err(error), Some(role)) if error.kind() == io::ErrorKind::AddrInUse => {
            report.note(key, format!("{address} is taken: a {role} runs there already"))
        }
        (Err(error), _) => report.wrong(key, format!("cannot listen on {address}: {error}")),
    }
}

/// For the N of the settings file, where there is one.
fn descriptors(config: &Config, parts: &Parts, report: &mut Report) -> anyhow::Result<()> {
    if report.is_wrong("settings") {
        return Ok(());
    }
    let need = Need { max_parallelism: parts.settings.max_parallelism.into(), ..descriptors_needed(config) };
    let limit = descriptors_allowed();
    let allowed = limit.map_or("any number of".to_owned(), |limit| limit.to_string());
    match need.check(limit) {
        Ok(()) => {
            let sum = format!("this process may open {allowed} descriptors, {} may be needed", need.in_all());
            report.fine("settings.max_parallelism", sum)
        }
        Err(too_few) => report.wrong("settings.max_parallelism", too_few),
    }
}

async fn integrations(integrations: &Integrations, report: &mut Report) -> anyhow::Result<()> {
    let probes = integrations.names().map(|name| async move {
        let Some(integration) = integrations.get(name) else { return (name, Ok(None)) };
        let probed = timeout(WITHIN, integration.probe()).await;
        (name, probed.unwrap_or_else(|_| Err(Error::retryable("no end within a minute"))))
    });
    let mut probes: stream::Buffered<_> = stream::iter(probes).buffered(AT_ONCE);
    while let Some((name, probed)) = probes.next().await {
        let key = |name: &IntegrationName| format!("integrations.{name}");
        match probed {
            Ok(Some(reached)) => report.fine(&key(name), reached)?,
            Ok(None) => report.fine(&key(name), "nothing to reach")?,
            Err(error) => report.wrong(&key(name), error)?,
        }
    }
    Ok(())
}

async fn payloads(config: &Config, report: &mut Report) -> anyhow::Result<()> {
    if report.is_wrong("payloads") {
        return Ok(());
    }
    let store = match payload::store::open(&config.payloads).await {
        Ok(Some(store)) => store,
        Ok(None) => return Ok(()),
        Err(error) => return report.wrong("payloads", error),
    };
    let object = config.payloads.probe();
    let started = Instant::now();
    match timeout(WITHIN, store.put(&object)).await {
        Ok(Ok(())) => {
            let (place, took) = (store.location(&object.key), started.elapsed().as_secs_f64() * 1000.0);
            report.fine("payloads", format!("stored {place}, {took:.1} ms"))
        }
        Ok(Err(error)) => report.wrong("payloads", error),
        Err(_) => report.wrong("payloads", "the store did not answer within a minute"),
    }
}

/// The settings of the other sources are read without this.
async fn launchdarkly(config: &Config, report: &mut Report) -> anyhow::Result<()> {
    if config.settings.source != settings::Source::LaunchDarkly || report.is_wrong("settings") {
        return Ok(());
    }
    let lifecycle = Lifecycle::new();
    let context = config.worker.settings_context(None, config.integrations.keys().cloned().collect());
    let read = match settings::store::open(&config.settings, &lifecycle) {
        Ok(Some(store)) => store.read().await.map_err(anyhow::Error::from).and_then(|listing| {
            let flags = store.evaluate(&listing, &context).map_err(anyhow::Error::msg)?;
            Ok(format!("{}: flags for {} of {} settings", store.name(), flags.len(), settings::TABLE.len()))
        }),
        Ok(None) => return Ok(()),
        Err(error) => Err(error.into()),
    };
    // What is left is a name that is being looked up, which ends by itself.
    let _ = lifecycle.stop(STOP_WITHIN).await;
    match read {
        Ok(found) => report.fine("settings.launchdarkly", found),
        Err(error) => report.wrong("settings.launchdarkly", error),
    }
}

async fn redis(config: &Config, pool: &PoolName, report: &mut Report) -> anyhow::Result<()> {
    if config.registry.url.is_none() || report.is_wrong("registry") {
        return Ok(());
    }
    let reached = async {
        let registry = registry::open(&config.registry, pool, &Telemetry::new()?)?;
        let server = registry.probe().await?;
        let workers = registry.snapshot().await?.workers.len();
        anyhow::Ok(format!("{server}, {} in pool {pool}", counted(workers as u64, "worker")))
    };
    match timeout(WITHIN, reached).await {
        Ok(Ok(reached)) => report.fine("registry", reached),
        Ok(Err(error)) => report.wrong("registry", error),
        Err(_) => report.wrong("registry", "no answer within a minute"),
    }
}

/// The document in Redis, which in a Cluster may be on another node than the pool.
async fn document(config: &Config, report: &mut Report) -> anyhow::Result<()> {
    const KEY: &str = "settings.source";
    if config.settings.source != Source::Redis || report.is_wrong("settings") || report.is_wrong("registry") {
        return Ok(());
    }
    let Some(store) = store::open(&config.settings, &Lifecycle::new())? else { return Ok(()) };
    let name = store.name();
    let (context, start) =
        (config.worker.settings_context(None, config.integrations.keys().cloned().collect()), config.settings.start());
    match timeout(WITHIN, store.read()).await {
        Ok(Ok(document)) => match Document::read(&document) {
            Ok(document) => {
                let (settings, rejections) = settings::examine(&document, &start, &context);
                report.document(KEY, name, &settings, &rejections)
            }
            Err(reason) => report.wrong(KEY, format!("{name}: {reason}")),
        },
        Ok(Err(ReadError::Missing)) => report.note(KEY, format!("{name} has no document: the start values hold")),
        Ok(Err(error)) => report.wrong(KEY, format!("{name}: {error}")),
        Err(_) => report.wrong(KEY, format!("{name} did not answer within a minute")),
    }
}
