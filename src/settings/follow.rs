//! The loop that turns what a source holds into settings.
//!
//! Until the source answers, the last good settings of the disk hold, or else the start values; nothing waits for it. A
//! source that is away, or a document that is none, changes no value: the metrics show that a worker is cut off from whoever
//! sets its values, and its [`Arrival`] which document it does not take.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use tokio::sync::watch;

use super::contact::{Contact, Heard};
use super::flagd::Evaluated;
use super::kept::Kept;
use super::store::{ReadError, Reading, Store, open, version_of};
use super::targeting::{Context, Role};
use super::{
    Arrival, Config, Rejected, Rejection, START_VERSION, Settings, SettingsError, Spec, TABLE, WHOLE_DOCUMENT, apply,
    brief,
};
use crate::lifecycle::Lifecycle;
use crate::telemetry::Telemetry;

/// What is followed, and how far it has come.
#[derive(Debug, Clone)]
pub struct Followed {
    /// The settings that hold.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// Whether the last document is what they are. It is published before them: whoever has read settings finds here what of
    /// their document was rejected.
    pub arrival: watch::Receiver<Arc<Arrival>>,
    /// How the source stands; none where the start values stay.
    pub source: Option<Contact>,
}

/// Follows the configured source until the lifecycle stops; without one, the start values stay.
///
/// `kept` names the file for the last good settings. A source that is away or bad is no error: what was good last holds
/// until it is there. A file is read before this returns.
pub fn watch(
    config: &Config,
    context: Context,
    kept: Option<&Path>,
    telemetry: &Telemetry,
    lifecycle: &Lifecycle,
) -> Result<Followed, SettingsError> {
    let store = open(config, lifecycle)?;
    let start = config.start();
    let (sender, settings) = watch::channel(Arc::new(start.clone()));
    let (arrivals, arrival) = watch::channel(Arc::new(Arrival::of(&start, &start, config.max_jump, None)));
    let metrics = Metrics::new(context.role, telemetry);
    metrics.show(&start);
    let token = lifecycle.token();
    let Some(store) = store else {
        lifecycle.spawn("settings", async move {
            token.cancelled().await;
            drop((sender, arrivals));
        });
        return Ok(Followed { settings, arrival, source: None });
    };
    let kept = kept.map(|path| Kept::new(path, store.name()));
    let heard = Heard::new(store.name(), telemetry);
    let followed = Followed { settings, arrival, source: Some(heard.contact()) };
    let mut follower = Follower {
        start,
        context,
        max_jump: config.max_jump,
        sender,
        arrivals,
        store,
        kept,
        seen: None,
        settled: false,
        logged: Vec::new(),
        rejected: None,
        heard,
        metrics,
    };
    follower.restore();
    if let Some(reading) = follower.store.read_at_start() {
        follower.look(reading);
        follower.settle();
        follower.keep_now();
    }
    let work = lifecycle.clone();
    lifecycle.spawn("settings source", async move {
        token.run_until_cancelled(follower.run(work)).await;
    });
    Ok(followed)
}

struct Follower {
    start: Settings,
    context: Context,
    max_jump: f64,
    sender: watch::Sender<Arc<Settings>>,
    arrivals: watch::Sender<Arc<Arrival>>,
    store: Arc<dyn Store>,
    kept: Option<Kept>,
    /// What the last look found.
    seen: Option<Reading>,
    /// Whether that has been judged.
    settled: bool,
    /// What of the last document that parsed did not take effect, as it was logged.
    logged: Vec<Rejection>,
    /// What is told of the last document.
    rejected: Option<Rejected>,
    heard: Heard,
    metrics: Metrics,
}

impl Follower {
    async fn run(mut self, lifecycle: Lifecycle) {
        let mut kept = self.sender.borrow().version.clone();
        loop {
            self.store.wait().await;
            let reading = self.store.read().await;
            self.look(reading);
            let settings = self.sender.borrow().clone();
            if let Some(to) = self.kept.clone().filter(|_| settings.version != kept) {
                kept.clone_from(&settings.version);
                let (rejected, document) = (self.rejected.clone(), self.document());
                let save = move || to.save(&settings, rejected.as_ref(), document.as_deref());
                let saved = lifecycle.blocking("settings kept", save).await;
                report(saved.map_err(std::io::Error::other).flatten());
            }
        }
    }

    /// Starts with what was good when the worker before this one ended.
    fn restore(&mut self) {
        match self.kept.as_ref().map(|kept| kept.load(&self.start)) {
            Some(Ok(Some((settings, rejected)))) => {
                let (source, version) = (self.store.name(), &settings.version);
                tracing::info!(version, "starting with the last good settings of {source}");
                self.metrics.took_effect(&settings);
                self.rejected = rejected;
                self.tell(&settings);
                self.sender.send_replace(Arc::new(settings));
            }
            Some(Err(reason)) => tracing::warn!("the last good settings are not used: {reason}"),
            Some(Ok(None)) | None => {}
        }
    }

    /// Unless the document that was read is none that holds: then what was restored is there, with its own.
    fn keep_now(&self) {
        let settings = self.sender.borrow().clone();
        let document = self.document().filter(|document| version_of(document) == settings.version);
        if let (Some(kept), Some(document)) = (&self.kept, document) {
            report(kept.save(&settings, self.rejected.as_ref(), Some(&document)));
        }
    }

    /// What was read last, if it was a document that can be put back.
    fn document(&self) -> Option<Vec<u8>> {
        self.seen.clone().and_then(Result::ok).filter(|_| self.store.has_document())
    }

    fn look(&mut self, reading: Reading) {
        self.heard.note(&reading, self.is_new());
        if self.seen.as_ref() == Some(&reading) {
            self.settle();
            return;
        }
        let was_away = matches!(&self.seen, Some(Err(ReadError::Missing | ReadError::Failed(_))));
        let returns = was_away && self.settled && matches!(reading, Ok(_) | Err(ReadError::TooLarge(_)));
        self.settled = match &reading {
            Ok(document) => self.take(document),
            Err(_) => false,
        };
        self.seen = Some(reading);
        if returns {
            tracing::info!("the settings' source is back: {}", self.store.name());
        }
        if !self.store.may_be_partial() {
            self.settle();
        }
    }

    /// Whether nothing is amiss though there is no document: there never was one, and the start values hold.
    fn is_new(&self) -> bool {
        let starts = self.sender.borrow().version == START_VERSION;
        starts && self.store.may_be_empty()
    }

    /// Applies a document that parses.
    fn take(&mut self, document: &[u8]) -> bool {
        let Ok(flags) = self.store.evaluate(document, &self.context) else { return false };
        let last = self.sender.borrow().clone();
        let (next, rejections) = apply(&flags, &self.start, &last, version_of(document), self.max_jump);
        for rejection in &rejections {
            // What was wrong before and still is, is no news of this document.
            if !self.logged.contains(rejection) {
                tracing::warn!(version = next.version, "setting rejected: {rejection}");
            }
            self.metrics.reject(rejection);
        }
        self.rejected = Rejected::of(&next.version, &rejections);
        let (took_effect, changes) = (takes_effect(&flags, &rejections), changes(&last, &next));
        // The values are still those of the document before, and so is the version.
        let stays = changes.is_empty() && !took_effect && !rejections.is_empty();
        self.tell(if stays { &last } else { &next });
        if stays {
            let version = next.version;
            tracing::warn!(version, "settings stay as they are: no value of this document took effect");
        } else if *last != next {
            tracing::info!(
                version = next.version,
                max_parallelism = next.max_parallelism,
                payload_sampling = next.payload_sampling.others(),
                log_level = next.log_level,
                rejected = rejections.len(),
                "settings applied{changes}",
            );
            self.metrics.apply(&next);
            self.sender.send_replace(Arc::new(next));
        }
        self.logged = rejections;
        true
    }

    /// Says how the settings that hold, or are about to, stand to the last document.
    fn tell(&self, settings: &Settings) {
        let arrival = Arrival::of(settings, &self.start, self.max_jump, self.rejected.clone());
        self.metrics.refused_values.set(self.rejected.as_ref().map_or(0, Rejected::count) as f64);
        self.arrivals.send_if_modified(|told| {
            let is_news = **told != arrival;
            if is_news {
                *told = Arc::new(arrival);
            }
            is_news
        });
    }

    /// Judges what is no document; once. One that may be half-written is judged at the second look.
    fn settle(&mut self) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        let holds = self.sender.borrow().clone();
        let (source, version) = (self.store.name(), &holds.version);
        let refused = match &self.seen {
            Some(Ok(document)) => match self.store.evaluate(document, &self.context) {
                Ok(_) => return,
                Err(reason) => Some((version_of(document), reason)),
            },
            Some(Err(ReadError::TooLarge(document))) => {
                Some((version_of(&document.beginning), format!("it {document}")))
            }
            Some(Err(ReadError::Missing)) if self.is_new() => {
                tracing::info!(source, "no settings there yet: the start values hold");
                None
            }
            Some(Err(ReadError::Missing)) => {
                tracing::warn!(source, version, "no settings there, keeping what holds");
                None
            }
            Some(Err(ReadError::Failed(reason))) => {
                tracing::warn!(source, version, "the settings' source is away, keeping what holds: {reason}");
                None
            }
            None => return,
        };
        if let Some((refused, reason)) = refused {
            tracing::warn!(source, version, "settings rejected, keeping what holds: {reason}");
            self.rejected = Some(Rejected::whole(&refused, reason));
            self.metrics.rejected_documents.increment(1);
        }
        self.tell(&holds);
    }
}

fn report(saved: std::io::Result<()>) {
    if let Err(error) = saved {
        tracing::warn!("the last good settings cannot be kept for the next start: {error}");
    }
}

/// Whether a document has a value for a setting, and that is a good one.
fn takes_effect(flags: &BTreeMap<String, Evaluated>, rejections: &[Rejection]) -> bool {
    TABLE.iter().any(|Spec { key, .. }| {
        matches!(flags.get(*key), Some(Ok(Some(_)))) && !rejections.iter().any(|rejection| rejection.key == *key)
    })
}

/// The values that a document changed, in words.
fn changes(last: &Settings, next: &Settings) -> String {
    let change = |spec: &Spec| {
        let (before, after) = (spec.value(last), spec.value(next));
        (before != after).then(|| format!("{} = {}", spec.key, brief(&after)))
    };
    let changes: Vec<_> = TABLE.iter().filter_map(change).collect();
    if changes.is_empty() { String::new() } else { format!(": {}", changes.join(", ")) }
}

struct Metrics {
    applied: Counter,
    applied_timestamp: Gauge,
    refused_values: Gauge,
    rejected_documents: Counter,
    rejected_unknown: Counter,
    rejected_keys: Vec<(&'static str, Counter)>,
    version: Gauge,
    of_worker: Option<OfWorker>,
}

/// What a router has no part in.
struct OfWorker {
    max_parallelism: Gauge,
    payload_sampling: Gauge,
}

impl Metrics {
    fn new(role: Role, telemetry: &Telemetry) -> Self {
        const REJECTED: &str = "weir_settings_rejected_total";
        telemetry.register(|| {
            describe_counter!("weir_settings_applied_total", "Documents whose settings took effect.");
            describe_gauge!("weir_settings_applied_timestamp_seconds", "When settings last took effect, Unix time.");
            describe_counter!(REJECTED, "Values that did not take effect, by key; `document` for a whole document.");
            describe_gauge!(
                "weir_settings_refused_values",
                "Values of the document that was read last that do not hold; 1 where it is none."
            );
            describe_gauge!(
                "weir_settings_version",
                "The version of the settings as a number, to compare processes by; 0 for the start values."
            );
            Metrics {
                applied: counter!("weir_settings_applied_total"),
                applied_timestamp: gauge!("weir_settings_applied_timestamp_seconds"),
                refused_values: gauge!("weir_settings_refused_values"),
                rejected_documents: counter!(REJECTED, "key" => WHOLE_DOCUMENT),
                rejected_unknown: counter!(REJECTED, "key" => "unknown"),
                rejected_keys: TABLE.iter().map(|spec| (spec.key, counter!(REJECTED, "key" => spec.key))).collect(),
                version: gauge!("weir_settings_version"),
                of_worker: (role == Role::Worker).then(OfWorker::new),
            }
        })
    }

    fn show(&self, settings: &Settings) {
        // 48 bits of a hash, which a float holds exactly. The start values' version is no such number.
        self.version.set(u64::from_str_radix(&settings.version, 16).unwrap_or_default() as f64);
        if let Some(OfWorker { max_parallelism, payload_sampling }) = &self.of_worker {
            max_parallelism.set(settings.max_parallelism);
            payload_sampling.set(settings.payload_sampling.others());
        }
    }

    fn apply(&self, settings: &Settings) {
        self.applied.increment(1);
        self.took_effect(settings);
    }

    fn took_effect(&self, settings: &Settings) {
        self.show(settings);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.applied_timestamp.set(now.as_secs_f64());
    }

    fn reject(&self, rejection: &Rejection) {
        let known = self.rejected_keys.iter().find(|(key, _)| *key == rejection.key);
        known.map_or(&self.rejected_unknown, |(_, counter)| counter).increment(1);
    }
}

impl OfWorker {
    fn new() -> Self {
        describe_gauge!("weir_settings_max_parallelism", "The setting max_parallelism, in slots.");
        describe_gauge!(
            "weir_settings_payload_sampling_ratio",
            "The setting payload_sampling, from 0 to 1, for the integrations that it does not name."
        );
        OfWorker {
            max_parallelism: gauge!("weir_settings_max_parallelism"),
            payload_sampling: gauge!("weir_settings_payload_sampling_ratio"),
        }
    }
}

#[cfg(test)]
mod tests;
