//! Whether the source of the settings can be read: since when, and why not. For metrics, and for whoever asks a process what
//! it is.

use std::sync::Arc;

use metrics::{Gauge, describe_gauge, gauge};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::store::{ReadError, Reading};
use crate::telemetry::Telemetry;

/// Shows how a source stands now. Clones show the same.
#[derive(Debug, Clone)]
pub struct Contact(Arc<Mutex<SourceStatus>>);

/// How a source stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceStatus {
    /// What it is and where: `file /etc/weir/settings.json`.
    pub name: String,
    /// Whether it could be read when it was last looked at. A Redis to which nobody has written a document yet can.
    pub is_reachable: bool,
    /// Since when that is so, or since the start.
    pub since: Instant,
    /// When it was last read; none since the start.
    pub last_read: Option<Instant>,
    /// Why it is not reachable.
    pub why: Option<String>,
}

impl Contact {
    /// How it stands now.
    pub fn now(&self) -> SourceStatus {
        self.0.lock().clone()
    }
}

/// Notes what each look at the source finds.
pub(super) struct Heard {
    status: Arc<Mutex<SourceStatus>>,
    up: Gauge,
}

impl Heard {
    pub(super) fn new(name: String, telemetry: &Telemetry) -> Self {
        const AGE: &str = "weir_settings_source_age_seconds";
        let since = Instant::now();
        let why = Some("it has not answered since the start".into());
        let status = SourceStatus { name, is_reachable: false, since, last_read: None, why };
        let status = Arc::new(Mutex::new(status));
        let (up, age) = telemetry.register(|| {
            describe_gauge!(
                "weir_settings_source_up",
                "1 while the source of the settings can be read, else 0; a Redis without a document can."
            );
            describe_gauge!(AGE, "Time since the source of the settings was last read, or since the start.");
            (gauge!("weir_settings_source_up"), gauge!(AGE))
        });
        let seen = status.clone();
        telemetry.before_scrape(move || age.set(seen.lock().last_read.unwrap_or(since).elapsed().as_secs_f64()));
        Heard { status, up }
    }

    pub(super) fn contact(&self) -> Contact {
        Contact(self.status.clone())
    }

    /// `may_be_missing` says that there need not be a document yet.
    pub(super) fn note(&self, reading: &Reading, may_be_missing: bool) {
        let why = match reading {
            Ok(_) | Err(ReadError::TooLarge(_)) => None,
            Err(ReadError::Missing) if may_be_missing => None,
            Err(error @ ReadError::Missing) => Some(error.to_string()),
            Err(ReadError::Failed(reason)) => Some(reason.clone()),
        };
        let (now, is_reachable) = (Instant::now(), why.is_none());
        self.up.set(if is_reachable { 1.0 } else { 0.0 });
        let mut status = self.status.lock();
        if status.is_reachable != is_reachable {
            (status.is_reachable, status.since) = (is_reachable, now);
        }
        if is_reachable {
            status.last_read = Some(now);
        }
        status.why = why;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_source_is_away_since_the_first_look_that_did_not_find_it() {
        let start = Instant::now();
        let heard = Heard::new("redis here".into(), &Telemetry::new().expect("a recorder"));
        let contact = heard.contact();
        let first = contact.now();
        assert_eq!((first.is_reachable, first.since, first.last_read), (false, start, None));
        assert_eq!(first.why.as_deref(), Some("it has not answered since the start"));
        let status = async |reading: Reading, may_be_missing| {
            tokio::time::advance(Duration::from_secs(1)).await;
            heard.note(&reading, may_be_missing);
            let SourceStatus { is_reachable, since, last_read, why, .. } = contact.now();
            let seconds = |then: Instant| then.duration_since(start).as_secs();
            (is_reachable, seconds(since), last_read.map(seconds), why)
        };
        let failed = |why: &str| Err(ReadError::Failed(why.into()));
        assert_eq!(status(Err(ReadError::Missing), true).await, (true, 1, Some(1), None));
        assert_eq!(status(Ok(vec![]), false).await, (true, 1, Some(2), None));
        assert_eq!(status(failed("refused"), false).await, (false, 3, Some(2), Some("refused".into())));
        assert_eq!(status(failed("timed out"), false).await, (false, 3, Some(2), Some("timed out".into())));
        assert_eq!(status(Err(ReadError::Missing), false).await.3, Some("it is not there".into()));
        let large = vec![b' '; crate::settings::store::MAX_DOCUMENT_BYTES + 1];
        let large = crate::settings::store::within_limit(large, None);
        assert_eq!(status(large, false).await, (true, 6, Some(6), None), "what is refused was read");
    }
}
