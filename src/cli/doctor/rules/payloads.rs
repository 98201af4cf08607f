//! Payloads that are not encoded or not stored as fast as they come.

use super::super::judge::Seen;
use super::super::observation::{Observation, Payloads};
use super::words::{amount, bytes, percent, time};

/// From this share of the uploads on that are busy, it is they who are waited for.
const UPLOADS_BUSY: f64 = 0.9;

/// Reasons for which a queue that is full loses payloads.
const FULL: [&str; 2] = ["queue_items", "queue_bytes"];

impl Payloads {
    /// Lost because the queue was full.
    fn lost(&self) -> f64 {
        FULL.iter().filter_map(|reason| self.dropped.get(*reason)).sum()
    }

    /// How full the queue was: 1 where something was lost for it.
    fn full(&self) -> f64 {
        if self.lost() > 0.0 {
            return 1.0;
        }
        let share = |pending: f64, limit: f64| if limit > 0.0 { pending / limit } else { 0.0 };
        share(self.pending.max, self.pending_limit).max(share(self.pending_bytes.max, self.pending_bytes_limit))
    }

    /// Whether the store, and not the encoders, is what is waited for.
    fn waits_for_store(&self) -> bool {
        self.store_away > 0.5 || (self.uploads.places > 0.0 && self.uploads.busy / self.uploads.places >= UPLOADS_BUSY)
    }
}

/// The encoders are behind.
pub(super) fn encoding(seen: &Observation) -> Vec<Seen> {
    let Some(payloads) = seen.payloads.as_ref().filter(|payloads| !payloads.waits_for_store()) else {
        return Vec::new();
    };
    let (encoding, pauses) = (payloads.encoding, payloads.pauses);
    let mut evidence = queue(seen, payloads);
    evidence.push(format!(
        "{:.0} payloads were encoded, {} each; the encoders worked for {} of {} (weir_payload_encode_duration_seconds)",
        encoding.count,
        time(encoding.mean_seconds().unwrap_or_default()),
        time(encoding.seconds),
        time(seen.seconds)
    ));
    let mut change = vec![
        "raise payloads.encoder_threads if there are idle cores (never more are started than there are cores)".to_owned(),
        "or keep fewer (failures and the slowest are kept all the same): weir settings set payload_sampling=0.1 --why 'encoding \
         is behind'"
            .into(),
        "or make them cheaper: payloads.level, payloads.compression = \"zstd\", smaller attachments".into(),
    ];
    if seen.per_second(pauses.seconds) >= 0.1 {
        let paused = time(pauses.seconds);
        evidence.push(format!("they paused for {paused} of {}, because the runtime lagged", time(seen.seconds)));
        change.insert(0, "find out first why the runtime lags: the encoders step aside for it".into());
    }
    vec![Seen {
        about: None,
        measured: payloads.full(),
        says: "encoding is behind: payloads come faster than the encoders take them".into(),
        evidence,
        change,
    }]
}

/// The store is behind, or away.
pub(super) fn store(seen: &Observation) -> Vec<Seen> {
    let Some(payloads) = seen.payloads.as_ref().filter(|payloads| payloads.waits_for_store()) else {
        return Vec::new();
    };
    let (uploads, uploading) = (payloads.uploads, payloads.uploading);
    let mut evidence = queue(seen, payloads);
    evidence.push(format!(
        "{} of {:.0} uploads were busy on average, and {} encoders waited for one; an upload took {}",
        amount(uploads.busy),
        uploads.places,
        amount(uploads.waiting),
        time(uploading.mean_seconds().unwrap_or_default())
    ));
    let is_away = payloads.store_away > 0.5;
    if is_away {
        evidence.push(format!("the store was away in {} of the readings", percent(payloads.store_away)));
    }
    let (says, change) = if is_away {
        (
            "the payloads' store is away: uploads fail, and are held back apart from a probe now and then",
            vec![
                "bring the store back, or renew the credentials: the log has its own words (docs/payloads.md)"
                    .to_owned(),
            ],
        )
    } else {
        (
            "storing payloads is behind: all uploads are busy",
            vec![
                format!(
                    "raise payloads.uploads (it is {:.0}) if the store can take more: cargo bench --bench uploads",
                    uploads.places
                ),
                "or keep fewer: weir settings set payload_sampling=0.1 --why 'the store is behind'".into(),
            ],
        )
    };
    vec![Seen { about: None, measured: payloads.full(), says: says.into(), evidence, change }]
}

fn queue(seen: &Observation, payloads: &Payloads) -> Vec<String> {
    let Payloads { offered, stored, pending, pending_bytes, .. } = payloads;
    let mut evidence = vec![
        format!(
            "{} payloads came per second, and {} were stored",
            amount(seen.per_second(*offered)),
            amount(seen.per_second(*stored))
        ),
        format!(
            "{:.0} of {:.0} payloads and {} of {} were pending at the most",
            pending.max,
            payloads.pending_limit,
            bytes(pending_bytes.max),
            bytes(payloads.pending_bytes_limit)
        ),
    ];
    if payloads.lost() > 0.0 {
        let (lost, share) = (payloads.lost(), (payloads.lost() / offered.max(1.0)).min(1.0));
        evidence.push(format!("{lost:.0} were lost because the queue was full, {} of those that came", percent(share)));
    }
    evidence
}
