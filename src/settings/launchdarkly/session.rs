//! The SDK's life: a thread with a runtime of its own, which ends with the lifecycle.
//!
//! The SDK spawns detached tasks (its stream, and connections below it) on the runtime that it is started on. On one that
//! is dropped with its thread, nothing of that outlives the lifecycle: the stream ends with the runtime, and only a name
//! that is being looked up may take up to [`LOOKUPS_WITHIN`]. With `events`, the SDK also starts a thread with five more,
//! for reports. It ends when the SDK is closed, which sends the last report first: for at most [`CLOSE_WITHIN`].
//!
//! A session ends when the SDK gives up: after an answer that it takes for final, on flags that it cannot read, or when
//! it has stopped to try. Then a new one is made, after a pause: a key that is refused now may be a Relay Proxy that is
//! starting, or a key that somebody is about to replace.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use launchdarkly_server_sdk::{
    ApplicationInfo, Client, ConfigBuilder, EventProcessorBuilder, NullEventProcessorBuilder,
    PersistentDataStoreBuilder, ServiceEndpointsBuilder, StreamingDataSourceBuilder,
};
use parking_lot::Mutex;
use rand::RngExt;
use secrecy::ExposeSecret;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::evaluate;
use super::items::Items;
use super::link::{GRACE, Link, Reports, Watched, transport};
use super::{CHANGED_THERE, Config};
use crate::lifecycle::Lifecycle;
use crate::settings::flagd::Evaluated;
use crate::settings::store::{Edit, ReadError, Reading, Revision, Store, WriteError};
use crate::settings::{Context, SettingsError};

/// How often the connection is looked at when nothing happens.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The SDK, or who carries its requests, tries every 30 s at the latest: one that has not for this long has given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(90);

/// How long the SDK may take to say that it has flags, before it is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// The pause of the SDK after its stream broke, or an answer that was an error; it doubles it, up to 30 s.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);

/// How long names that are being looked up may hold up a stop.
const LOOKUPS_WITHIN: Duration = Duration::from_millis(500);

/// How long the last report may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// LaunchDarkly as a store that is read.
struct LaunchDarkly {
    place: String,
    link: Arc<Link>,
    ready: Arc<Mutex<Option<Ready>>>,
}

/// An SDK that has received flags.
#[derive(Clone)]
struct Ready {
    client: Arc<Client>,
    items: Items,
}

/// What makes one session after the other.
struct Sessions {
    config: Config,
    link: Arc<Link>,
    ready: Arc<Mutex<Option<Ready>>>,
}

/// Starts the SDK's thread on `lifecycle`. That LaunchDarkly is away is no error.
pub(in crate::settings) fn open(config: &Config, lifecycle: &Lifecycle) -> Result<Arc<dyn Store>, SettingsError> {
    config.sdk_key()?;
    config.authorities()?;
    let (link, ready) = (Arc::<Link>::default(), Arc::default());
    let sessions = Sessions { config: config.clone(), link: Arc::clone(&link), ready: Arc::clone(&ready) };
    let started = lifecycle.thread("launchdarkly", move |token| sessions.run(&token));
    started.map_err(|error| SettingsError::LaunchDarkly {
        key: "source",
        reason: format!("no thread can be started: {error}"),
    })?;
    link.changed();
    Ok(Arc::new(LaunchDarkly { place: config.stream_url.trim_end_matches('/').to_owned(), link, ready }))
}

impl Sessions {
    fn run(&self, token: &CancellationToken) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return self.link.refused(format!("the SDK cannot be started: {error}")),
        };
        runtime.block_on(async {
            while let Some(why) = self.session(token).await {
                let pause = self.config.retry_refused_after.mul_f64(rand::rng().random_range(0.8..1.2));
                let seconds = pause.as_secs();
                tracing::error!("LaunchDarkly's flags are not followed for now, next attempt in {seconds} s: {why}");
                self.link.refused(why);
                if token.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                    return;
                }
            }
        });
        runtime.shutdown_timeout(LOOKUPS_WITHIN);
    }

    /// Follows the flags until the SDK has given up, and returns why; or until the stop.
    async fn session(&self, token: &CancellationToken) -> Option<String> {
        let (refused, mut is_refused) = watch::channel(None);
        let (close, closing) = watch::channel(None);
        let items = Items::new(Arc::clone(&self.link));
        let client = match self.client(&items, refused, closing) {
            Ok(client) => Arc::new(client),
            Err(why) => return Some(why),
        };
        client.start_with_default_executor();
        let refusal = async {
            let refusal = is_refused.wait_for(Option::is_some).await;
            refusal.ok().and_then(|refusal| refusal.clone()).unwrap_or_default()
        };
        let ended = tokio::select! {
            biased;
            () = token.cancelled() => None,
            why = refusal => Some(why),
            why = self.follow(&client, &items) => Some(why),
        };
        *self.ready.lock() = None;
        if self.config.events {
            close.send_replace(Some(Instant::now() + CLOSE_WITHIN));
            client.close();
        }
        ended
    }

    /// Returns when the SDK goes on no longer.
    async fn follow(&self, client: &Arc<Client>, items: &Items) -> String {
        loop {
            match client.wait_for_initialization(ASK_AGAIN_AFTER).await {
                Some(true) => break,
                Some(false) => return "it sent flags that the SDK cannot read; what the SDK logged names them".into(),
                None if self.link.idle() >= GIVEN_UP_AFTER => return "the SDK has given up connecting".into(),
                None => {}
            }
        }
        *self.ready.lock() = Some(Ready { client: Arc::clone(client), items: items.clone() });
        self.link.changed();
        while self.link.idle() < GIVEN_UP_AFTER {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        "the SDK has given up connecting".into()
    }

    fn client(
        &self,
        items: &Items,
        refused: watch::Sender<Option<String>>,
        closing: watch::Receiver<Option<Instant>>,
    ) -> Result<Client, String> {
        let key = self.config.sdk_key().map_err(|error| error.to_string())?;
        let authorities = self.config.authorities().map_err(|error| error.to_string())?;
        let mut endpoints = ServiceEndpointsBuilder::new();
        endpoints.streaming_base_url(&self.config.stream_url).events_base_url(&self.config.events_url);
        // Nothing is polled, but the SDK takes all of them or none.
        endpoints.polling_base_url(&self.config.stream_url);
        let mut source = StreamingDataSourceBuilder::new();
        source.initial_reconnect_delay(RECONNECT_AFTER);
        source.transport(Watched::new(transport(authorities.clone())?, Arc::clone(&self.link), refused));
        let mut store = PersistentDataStoreBuilder::new(Arc::new(items.clone()));
        store.no_caching();
        let mut application = ApplicationInfo::new();
        application.application_identifier("weir").application_version(env!("CARGO_PKG_VERSION"));
        let config = ConfigBuilder::new(key.expose_secret())
            .service_endpoints(&endpoints)
            .data_source(&source)
            .data_store(&store)
            .application_info(application);
        let config = if self.config.events {
            let mut reports = EventProcessorBuilder::new();
            reports.transport(Reports::new(transport(authorities)?, closing));
            config.event_processor(&reports)
        } else {
            config.event_processor(&NullEventProcessorBuilder::new())
        };
        let config = config.build().map_err(|error| error.to_string())?;
        Client::build(config).map_err(|error| error.to_string())
    }
}

impl LaunchDarkly {
    /// What can be said now; nothing while a young connection may still bring flags.
    fn now(&self) -> Option<Reading> {
        if let Some(why) = self.link.away() {
            return Some(Err(ReadError::Failed(why)));
        }
        let ready = self.ready.lock().clone()?;
        Some(Ok(ready.items.document()))
    }
}

#[async_trait]
impl Store for LaunchDarkly {
    fn name(&self) -> String {
        format!("launchdarkly {}", self.place)
    }

    async fn read(&self) -> Reading {
        let until = Instant::now() + GRACE + GRACE;
        loop {
            if let Some(reading) = self.now() {
                return reading;
            }
            let next = self.link.grace_ends().unwrap_or(until).min(until);
            if tokio::time::timeout_at(next, self.link.news()).await.is_err() && next == until {
                let seconds = (GRACE + GRACE).as_secs();
                return Err(ReadError::Failed(format!("it has sent no flags within {seconds} s")));
            }
        }
    }

    async fn wait(&self) {
        let looked = Instant::now() + POLL_INTERVAL;
        let next = self.link.grace_ends().map_or(looked, |ends| ends.min(looked));
        // Whether there is news or not, it is time to look.
        let _ = tokio::time::timeout_at(next, self.link.news()).await;
    }

    fn has_document(&self) -> bool {
        false
    }

    fn evaluate(&self, _listing: &[u8], context: &Context) -> Result<BTreeMap<String, Evaluated>, String> {
        let ready = self.ready.lock().clone().ok_or("the connection has just ended")?;
        evaluate::evaluate(&ready.client, &ready.items, context)
    }

    async fn write(&self, _expected: Option<&[u8]>, _edit: &Edit) -> Result<u64, WriteError> {
        Err(WriteError::Failed(CHANGED_THERE.into()))
    }

    async fn history(&self) -> Result<Vec<Revision>, ReadError> {
        Ok(Vec::new())
    }
}
