//! Everything that the demo runs, put together as the separate programs would be.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use crate::client::Client;
use crate::config::{self, Config};
use crate::integration::Integrations;
use crate::lifecycle::Lifecycle;
use crate::payload::{self, Ledger};
use crate::registry::Registries;
use crate::router::{self, Router};
use crate::sandbox::Sandbox;
use crate::settings::flagd;
use crate::telemetry::logs::Logs;
use crate::telemetry::{Telemetry, process};
use crate::worker::{Parts, Worker};

/// The demo's `weir.toml`.
const CONFIGURATION: &str = include_str!("demo.toml");

/// How long the worker may take to apply a setting before the demo gives up; a quarter of a second is usual.
const SETTING_WITHIN: Duration = Duration::from_secs(5);

pub(super) struct House {
    pub(super) client: Client,
    pub(super) worker: Worker,
    router: Router,
    upstream: Lifecycle,
    worker_telemetry: Telemetry,
    router_telemetry: Telemetry,
    settings_file: PathBuf,
}

impl House {
    pub(super) async fn open(directory: &Path, parallelism: u32, logs: &Logs) -> anyhow::Result<Self> {
        let upstream = Lifecycle::new();
        let mut config = config::from_text(CONFIGURATION)?;
        let sandbox = Sandbox::start(config.sandbox.clone(), &upstream).await?;
        point_at(&mut config, directory, &format!("http://{}", sandbox.local_addr))?;
        let settings_file = directory.join("settings.json");
        write_setting(&settings_file, parallelism)?;

        let registries = Registries::in_memory();
        let (worker_telemetry, router_telemetry) = (Telemetry::new()?, Telemetry::new()?);
        process::register(&worker_telemetry);
        logs.register(&worker_telemetry);
        config.settings.file = Some(settings_file.clone());
        let parts = Parts {
            integrations: Integrations::from_config(&config.integrations, &worker_telemetry)?,
            registry: registries.of(&config.worker.pool)?,
            store: payload::store::open(&config.payloads).await?,
            payloads: config.payloads,
            overload: config.overload,
            settings: config.settings.clone(),
            log_level: logs.level(),
        };
        let worker = Worker::start(config.worker, parts, worker_telemetry.clone()).await?;
        let parts = router::Parts { registries, settings: config.settings, log_level: logs.level() };
        let router = Router::start(config.router, parts, router_telemetry.clone()).await?;
        let client = Client::new(&format!("http://{}", router.address()))?;
        Ok(House { client, worker, router, upstream, worker_telemetry, router_telemetry, settings_file })
    }

    /// Changes the settings file, as an operator would, and waits until the worker has applied it.
    pub(super) async fn set_parallelism(&self, parallelism: u32) -> anyhow::Result<()> {
        write_setting(&self.settings_file, parallelism)?;
        let applied = async {
            while self.worker.load().target != parallelism {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SETTING_WITHIN, applied).await.context("the worker did not apply the new parallelism")
    }

    pub(super) fn ledger(&self) -> Ledger {
        self.worker.ledger().unwrap_or_default()
    }

    /// Leaves both roles' metrics as files, for the ports end with the demo.
    pub(super) fn save_metrics(&self, directory: &Path) -> anyhow::Result<PathBuf> {
        let metrics = directory.join("metrics");
        std::fs::create_dir_all(&metrics)?;
        std::fs::write(metrics.join("worker.txt"), self.worker_telemetry.render())?;
        std::fs::write(metrics.join("router.txt"), self.router_telemetry.render())?;
        Ok(metrics)
    }

    /// Stops everything in order; returns what became of the payloads.
    pub(super) async fn close(self) -> Ledger {
        self.router.drain().await;
        let ended = self.worker.drain().await;
        if let Err(stragglers) = self.upstream.stop(Duration::from_secs(2)).await {
            tracing::warn!("left behind: {stragglers}");
        }
        ended.payloads.unwrap_or_default()
    }
}

fn point_at(config: &mut Config, directory: &Path, bank: &str) -> anyhow::Result<()> {
    let token = directory.join("token");
    std::fs::write(&token, "sandbox.demo")?;
    for integration in config.integrations.values_mut() {
        if let crate::integration::Config::Http(http) = integration {
            http.base_url = bank.to_owned();
            http.token = Some(crate::integration::http::SecretSource::File(token.clone()));
        }
    }
    config.payloads.directory.path = directory.join("payloads");
    Ok(())
}

fn write_setting(file: &Path, parallelism: u32) -> anyhow::Result<()> {
    let document = flagd::document(&[("max_parallelism", parallelism.into())]);
    crate::settings::file::write_file(file, &document).with_context(|| format!("cannot write {}", file.display()))
}
