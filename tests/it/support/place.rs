//! The places that settings can be in, as one: each is written, broken, taken away and brought back in its own way.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;
use weir::lifecycle::Lifecycle;
use weir::settings::store::{self, Edit, Store};
use weir::settings::{self, Config, Contact, Context, Followed, Settings, Source, file, flagd};
use weir::telemetry::Telemetry;

use super::redis::RedisServer;
use super::waiting::LONG;
#[cfg(feature = "launchdarkly")]
use super::{cable::Cable, launchdarkly};

/// It must be closed before the test ends.
pub enum Place {
    File(TempDir),
    Redis(RedisServer, Arc<dyn Store>),
    #[cfg(feature = "launchdarkly")]
    LaunchDarkly(launchdarkly::LaunchDarkly, Cable),
}

impl Place {
    pub async fn start(source: Source) -> Self {
        match source {
            Source::File => Place::File(tempfile::tempdir().expect("a directory")),
            Source::Redis => {
                let server = RedisServer::start();
                let store = open(&redis_config(&server));
                Place::Redis(server, store)
            }
            #[cfg(feature = "launchdarkly")]
            Source::LaunchDarkly => {
                let server = launchdarkly::LaunchDarkly::start().await;
                let cable = Cable::to(server.address).await;
                Place::LaunchDarkly(server, cable)
            }
            #[cfg(not(feature = "launchdarkly"))]
            Source::LaunchDarkly => unreachable!("its tests are built with it"),
        }
    }

    pub fn config(&self) -> Config {
        match self {
            Place::File(_) => Config { file: Some(self.file()), ..Config::default() },
            Place::Redis(server, _) => redis_config(server),
            #[cfg(feature = "launchdarkly")]
            Place::LaunchDarkly(_, cable) => launchdarkly::config(&cable.url()),
        }
    }

    /// Sets `max_parallelism`, and nothing else, for all.
    pub async fn set(&self, value: impl Into<Value>) {
        let value = value.into();
        match self {
            Place::File(_) | Place::Redis(..) => self.write(&flagd::document(&[("max_parallelism", value)])).await,
            #[cfg(feature = "launchdarkly")]
            Place::LaunchDarkly(server, _) => server.set("max_parallelism", launchdarkly::always(value)),
        }
    }

    /// Puts there what is no document.
    pub async fn babble(&self) {
        match self {
            Place::File(_) | Place::Redis(..) => self.write("{\"flags\": {\"max_par").await,
            #[cfg(feature = "launchdarkly")]
            Place::LaunchDarkly(server, _) => server.babble(),
        }
    }

    async fn write(&self, document: &str) {
        match self {
            Place::File(_) => file::write_file(&self.file(), document).expect("written"),
            Place::Redis(_, store) => {
                let before = store.read().await.ok();
                let edit = Edit { document: document.into(), who: "me".into(), why: "a test".into() };
                store.write(before.as_deref(), &edit).await.expect("written");
            }
            #[cfg(feature = "launchdarkly")]
            Place::LaunchDarkly(..) => unreachable!("it has no document"),
        }
    }

    /// Takes it away: it can be neither read nor written.
    pub async fn take_away(&mut self) {
        match self {
            Place::File(_) => {
                std::fs::remove_file(self.file()).expect("removed");
                std::fs::create_dir(self.file()).expect("created");
            }
            Place::Redis(server, _) => server.kill(),
            #[cfg(feature = "launchdarkly")]
            Place::LaunchDarkly(_, cable) => cable.unplug().await,
        }
    }

    /// Brings it back. What was there may be lost.
    pub async fn bring_back(&mut self) {
        match self {
            Place::File(_) => std::fs::remove_dir(self.file()).expect("removed"),
            Place::Redis(server, _) => server.start_again(),
            #[cfg(feature = "launchdarkly")]
            Place::LaunchDarkly(_, cable) => cable.plug().await,
        }
    }

    fn file(&self) -> PathBuf {
        match self {
            Place::File(directory) => directory.path().join("settings.json"),
            _ => unreachable!("it is no file"),
        }
    }

    pub async fn close(self) {
        #[cfg(feature = "launchdarkly")]
        if let Place::LaunchDarkly(server, mut cable) = self {
            cable.unplug().await;
            server.stop().await;
        }
    }
}

/// The settings from a key of that server.
pub fn redis_config(redis: &RedisServer) -> Config {
    let redis = weir::redis::Config { url: Some(redis.url().into()), ..Default::default() };
    Config { source: Source::Redis, redis, ..Config::default() }
}

pub fn open(config: &Config) -> Arc<dyn Store> {
    store::open(config, &Lifecycle::new()).expect("valid").expect("a store")
}

/// A worker's settings alone, without the worker.
pub struct Follower {
    pub settings: watch::Receiver<Arc<Settings>>,
    pub telemetry: Telemetry,
    source: Contact,
    lifecycle: Lifecycle,
}

impl Follower {
    pub fn start(config: &Config, worker: &str) -> Self {
        let context = Context { worker: Some(worker.parse().expect("a worker id")), ..Context::default() };
        Self::start_as(config, context, None)
    }

    /// With a file that keeps the last good settings.
    pub fn start_as(config: &Config, context: Context, kept: Option<&std::path::Path>) -> Self {
        let (telemetry, lifecycle) = (Telemetry::new().expect("a recorder"), Lifecycle::new());
        let followed = settings::watch(config, context, kept, &telemetry, &lifecycle).expect("valid");
        let Followed { settings, source, .. } = followed;
        Follower { settings, telemetry, source: source.expect("there is one"), lifecycle }
    }

    pub fn now(&self) -> Arc<Settings> {
        self.settings.borrow().clone()
    }

    /// Whether the source was looked at, and could not be read for a reason that has these words.
    pub fn is_cut_off(&self, by: &str) -> bool {
        let why = self.source.now().why.filter(|why| why != "it has not answered since the start");
        why.is_some_and(|why| why.contains(by))
    }

    pub async fn becomes(&mut self, max_parallelism: u32) {
        let changed = self.settings.wait_for(|settings| settings.max_parallelism == max_parallelism);
        let changed = tokio::time::timeout(LONG, changed).await.map(|changed| changed.map(drop));
        changed.unwrap_or_else(|_| panic!("N never became {max_parallelism}")).expect("watched");
    }

    pub fn has(&self, line: &str) -> bool {
        self.telemetry.render().lines().any(|rendered| rendered == line)
    }

    /// How many values of a key, or documents, were refused.
    pub fn rejected(&self, key: &str) -> f64 {
        super::calls::metric(&self.telemetry.render(), &format!("weir_settings_rejected_total{{key=\"{key}\"}}"))
    }

    pub async fn stop(self) {
        self.lifecycle.stop(std::time::Duration::from_secs(5)).await.expect("nothing is left");
    }
}
