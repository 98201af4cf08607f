//! The document, and what the workers of a pool say of it: who has applied it, who rejects what of it, who has not read it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::super::table::counted;
use super::super::{BACK, found};
use crate::registry::{Presence, Rejected};
use crate::settings::store::{ReadError, Revision, Store, version_of};
use crate::settings::{Context, START_VERSION, WHOLE_DOCUMENT};
use crate::task::{PoolName, WorkerId};

/// Workers that are named for each thing that others are not.
const NAMED: usize = 3;

/// What there is to be applied.
pub(super) struct Document {
    source: String,
    /// None where there is no document.
    pub(super) version: Option<String>,
    /// Why nobody takes it, where that is so.
    refused: Option<String>,
    revisions: Vec<Revision>,
}

impl Document {
    pub(super) async fn read(store: &dyn Store) -> anyhow::Result<Self> {
        let (version, refused) = match store.read().await {
            Ok(document) if store.has_document() => {
                (Some(version_of(&document)), store.evaluate(&document, &Context::default()).err())
            }
            Err(ReadError::TooLarge(document)) => {
                (Some(version_of(&document.beginning)), Some(format!("it {document}")))
            }
            reading => (found(reading, store)?.map(|listing| version_of(&listing)), None),
        };
        Ok(Document { source: store.name(), version, refused, revisions: store.history().await? })
    }

    /// What it is, since when, and by whom.
    pub(super) fn line(&self) -> String {
        let Document { source, version, refused, .. } = self;
        let Some(version) = version else { return format!("{source}: no document") };
        let said = match self.revision(version) {
            Some(revision) => {
                let at = humantime::format_rfc3339_seconds(revision.at);
                format!("by {} at {at}: {}", revision.edit.who, revision.edit.why)
            }
            None => "set without weir".into(),
        };
        let refused = refused
            .as_ref()
            .map(|reason| format!("; NOBODY TAKES IT: {reason}; put the last good one back with {BACK}"))
            .unwrap_or_default();
        format!("{source}: {}, {said}{refused}", self.name(version))
    }

    fn json(&self) -> Value {
        let Some(version) = &self.version else { return Value::Null };
        match self.revision(version) {
            Some(Revision { number, at, edit }) => json!({"version": version, "revision": number,
                "at": humantime::format_rfc3339_seconds(*at).to_string(), "who": edit.who, "why": edit.why}),
            None => json!({"version": version}),
        }
    }

    /// What is still to happen, for whoever waits for it.
    fn awaited(&self) -> String {
        match &self.version {
            Some(version) => format!("read {}", self.number(version)),
            None => "read a document, and there is none now".into(),
        }
    }

    fn revision(&self, version: &str) -> Option<&Revision> {
        self.revisions.iter().rev().find(|revision| revision.version() == version)
    }

    /// `v41 (3b1c…)`, or what is known of it.
    fn name(&self, version: &str) -> String {
        match self.revision(version) {
            Some(revision) => format!("v{} ({version})", revision.number),
            None => version.to_owned(),
        }
    }

    /// `v41`, or the version where the history has no number of it.
    fn number(&self, version: &str) -> String {
        self.revision(version).map_or_else(|| version.to_owned(), |revision| format!("v{}", revision.number))
    }
}

/// How far a document has come with the workers of a pool, each of whom counts once.
pub(super) struct Arrived<'a> {
    pub(super) document: &'a Document,
    pool: &'a PoolName,
    /// How many run it and reject nothing of it.
    applied: usize,
    /// Those who have read it and reject values of it, or all of it.
    pub(super) rejecting: Vec<(&'a Presence, &'a Rejected)>,
    /// Those who run another one and have said nothing of this one.
    behind: Vec<&'a Presence>,
}

impl<'a> Arrived<'a> {
    pub(super) fn of(
        document: &'a Document,
        pool: &'a PoolName,
        workers: impl IntoIterator<Item = &'a Presence>,
    ) -> Self {
        let mut arrived = Arrived { document, pool, applied: 0, rejecting: Vec::new(), behind: Vec::new() };
        for worker in workers {
            let is_this = |version: &String| Some(version) == document.version.as_ref();
            match worker.settings_rejected.as_deref() {
                Some(rejected) if is_this(&rejected.version) => arrived.rejecting.push((worker, rejected)),
                _ if is_this(&worker.settings_version) => arrived.applied += 1,
                _ => arrived.behind.push(worker),
            }
        }
        arrived
    }

    pub(super) fn workers(&self) -> usize {
        self.applied + self.rejecting.len() + self.behind.len()
    }

    /// Whether there are workers, and each has applied or rejected it: nothing more will happen by itself.
    pub(super) fn is_read_by_all(&self) -> bool {
        self.workers() > 0 && self.behind.is_empty()
    }

    /// What `--watch` waits for.
    pub(super) fn awaited(&self) -> String {
        let (what, pool) = (self.document.awaited(), self.pool);
        match (self.behind.len(), self.workers()) {
            (_, 0) => format!("waiting for a worker of pool {pool} to {what}"),
            (behind, all) => {
                format!("waiting for {behind} of {} of pool {pool} to {what}", counted(all as u64, "worker"))
            }
        }
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        let routers =
            "routers: not counted, for they are not in the registry; weir describe ROUTER shows what one runs";
        let routers = self.document.version.as_ref().map(|_| routers.to_owned());
        [Some(self.document.line()), routers, Some(self.applied()), self.advice()].into_iter().flatten().collect()
    }

    /// `pool parallel: applied on 96 of 100 (1 rejects max_parallelism: worker-3; 3 on v41: worker-7, worker-8, worker-9)`.
    fn applied(&self) -> String {
        let (pool, all, mut others) = (self.pool, self.workers(), Vec::new());
        for (what, workers) in grouped(self.rejecting.iter().map(|(worker, rejected)| (in_words(rejected), *worker))) {
            let rejects = if workers.len() == 1 { "rejects" } else { "reject" };
            others.push(format!("{} {rejects} {what}: {}", workers.len(), named(&workers)));
        }
        for (version, workers) in grouped(self.behind.iter().map(|worker| (worker.settings_version.clone(), *worker))) {
            others.push(format!("{} on {}: {}", workers.len(), self.document.number(&version), named(&workers)));
        }
        let others = if others.is_empty() { String::new() } else { format!(" ({})", others.join("; ")) };
        match (all, &self.document.version) {
            (0, _) => format!("pool {pool}: no workers"),
            (_, Some(_)) => format!("pool {pool}: applied on {} of {all}{others}", self.applied),
            (_, None) => format!("pool {pool}: nothing to apply on {all}{others}"),
        }
    }

    /// What to do where workers reject values, or run a document that is gone.
    fn advice(&self) -> Option<String> {
        if let Some((worker, _)) = self.rejecting.first() {
            let address = &worker.address;
            return Some(format!("why a value is rejected, and what holds in its place: weir describe {address}"));
        }
        let runs_one = |worker: &&Presence| worker.settings_version != START_VERSION;
        let is_lost = self.document.version.is_none() && self.behind.iter().any(runs_one);
        let is_file = self.document.source.starts_with("file ");
        let lost = if is_file { "where they read this file, its document is gone" } else { "the document is gone" };
        is_lost.then(|| {
            format!(
                "{lost}, and workers go on with what they have, after a new start, too: put it back with \
                 \"weir settings rollback\", or, if its history is gone as well, with --kept and the file that one of them \
                 keeps (settings-ID.json in its worker.state_dir)"
            )
        })
    }

    /// For programs: all workers that have not applied it, by name.
    pub(super) fn json(&self) -> Value {
        let rejecting = self.rejecting.iter().map(|(worker, rejected)| {
            json!({"worker": worker.worker.as_str(), "address": worker.address, "version": worker.settings_version,
                "keys": rejected.keys, "more": rejected.more})
        });
        let behind = self.behind.iter().map(|worker| {
            let version = &worker.settings_version;
            let revision = self.document.revision(version).map(|revision| revision.number);
            json!({"worker": worker.worker.as_str(), "version": version, "revision": revision})
        });
        json!({"source": self.document.source, "document": self.document.json(), "pool": self.pool.as_str(),
            "workers": self.workers(), "applied": self.applied, "rejecting": rejecting.collect::<Vec<_>>(),
            "behind": behind.collect::<Vec<_>>(), "routers": null})
    }
}

/// What a worker rejects: `max_parallelism`, `pools, "typo" and 3 more`, `the document`.
fn in_words(rejected: &Rejected) -> String {
    let Rejected { keys, more, .. } = rejected;
    let keys = if *keys == [WHOLE_DOCUMENT] { "the document".into() } else { keys.join(", ") };
    if *more > 0 { format!("{keys} and {more} more") } else { keys }
}

/// The workers of each name, in order.
fn grouped<'a>(named: impl Iterator<Item = (String, &'a Presence)>) -> BTreeMap<String, Vec<&'a WorkerId>> {
    let mut groups: BTreeMap<String, Vec<&WorkerId>> = BTreeMap::new();
    named.for_each(|(name, worker)| groups.entry(name).or_default().push(&worker.worker));
    groups
}

fn named(workers: &[&WorkerId]) -> String {
    let more = if workers.len() > NAMED { ", …" } else { "" };
    let ids: Vec<_> = workers.iter().take(NAMED).map(ToString::to_string).collect();
    format!("{}{more}", ids.join(", "))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::settings::store::Edit;

    fn presence(worker: &str, version: &str) -> Presence {
        Presence { settings_version: version.into(), ..Presence::of_a_test(worker) }
    }

    fn rejecting(worker: &str, runs: &str, of: &str, keys: &[&str], more: usize) -> Presence {
        let rejected = Box::new(Rejected::new(of, keys.iter().copied(), more));
        Presence { settings_rejected: Some(rejected), ..presence(worker, runs) }
    }

    fn revision(number: u64, text: &str) -> Revision {
        let edit = Edit { document: text.into(), who: "me".into(), why: "a test".into() };
        Revision { number, at: SystemTime::UNIX_EPOCH, edit }
    }

    /// What is there is `new`, after `old`.
    fn changed() -> (Document, String, String) {
        let (old, new) = (version_of(b"old"), version_of(b"new"));
        let revisions = vec![revision(41, "old"), revision(42, "new")];
        (Document { source: "file x".into(), version: Some(new.clone()), refused: None, revisions }, old, new)
    }

    fn applied(document: &Document, workers: &[Presence]) -> String {
        Arrived::of(document, &PoolName::default(), workers).applied()
    }

    fn is_read_by_all(document: &Document, workers: &[Presence]) -> bool {
        Arrived::of(document, &PoolName::default(), workers).is_read_by_all()
    }

    fn advice(document: &Document, workers: &[Presence]) -> Option<String> {
        Arrived::of(document, &PoolName::default(), workers).advice()
    }

    #[test]
    fn who_is_behind_is_counted_and_named_by_the_revision_that_they_run() {
        let (document, old, new) = changed();
        let mut workers: Vec<_> = (0..6).map(|n| presence(&format!("new-{n}"), &new)).collect();
        assert_eq!(applied(&document, &workers), "pool default: applied on 6 of 6");
        assert!(is_read_by_all(&document, &workers));
        workers.extend((0..4).map(|n| presence(&format!("old-{n}"), &old)));
        workers.push(presence("young", "start"));
        assert_eq!(
            applied(&document, &workers),
            "pool default: applied on 6 of 11 (4 on v41: old-0, old-1, old-2, …; 1 on start: young)"
        );
        assert!(!is_read_by_all(&document, &workers) && !is_read_by_all(&document, &[]));
        let awaited =
            |document: &Document, workers: &[Presence]| Arrived::of(document, &PoolName::default(), workers).awaited();
        assert_eq!(awaited(&document, &workers), "waiting for 5 of 11 workers of pool default to read v42");
        assert_eq!(awaited(&document, &[]), "waiting for a worker of pool default to read v42");
        let none = Document { source: "file x".into(), version: None, refused: None, revisions: Vec::new() };
        assert_eq!(
            awaited(&none, &[presence("young", "start")]),
            "waiting for 1 of 1 worker of pool default to read a document, and there is none now"
        );
        assert_eq!(applied(&document, &[]), "pool default: no workers");
        assert_eq!(advice(&document, &workers), None);
    }

    #[test]
    fn who_rejects_a_value_has_not_applied_the_document_whatever_version_it_runs() {
        let (document, old, new) = changed();
        let mut workers = vec![rejecting("w1", &new, &new, &["max_parallelism"], 0)];
        assert_eq!(applied(&document, &workers), "pool default: applied on 0 of 1 (1 rejects max_parallelism: w1)");
        assert!(is_read_by_all(&document, &workers), "nothing more will happen by itself");
        assert!(advice(&document, &workers).expect("some").ends_with("weir describe http://127.0.0.1:1"));
        workers.extend([
            rejecting("w2", &old, &new, &["max_parallelism"], 0),
            rejecting("w3", &new, &new, &["pools", "\"typo\""], 3),
            rejecting("w4", &old, &new, &["document"], 0),
            // It has come over what it rejected of the document before, and the other is still there.
            rejecting("w5", &new, &old, &["max_parallelism"], 0),
            rejecting("w6", &old, &old, &["max_parallelism"], 0),
        ]);
        assert_eq!(
            applied(&document, &workers),
            "pool default: applied on 1 of 6 (2 reject max_parallelism: w1, w2; 1 rejects pools, \"typo\" and 3 more: w3; \
             1 rejects the document: w4; 1 on v41: w6)"
        );
        assert!(!is_read_by_all(&document, &workers));
    }

    #[test]
    fn programs_get_the_same_with_every_worker() {
        let (document, old, new) = changed();
        let workers = [
            presence("w1", &new),
            rejecting("w2", &new, &new, &["max_parallelism"], 2),
            presence("w3", &old),
            presence("w4", "start"),
        ];
        let pool = PoolName::default();
        let expected = json!({
            "source": "file x",
            "document": {"version": new, "revision": 42, "at": "1970-01-01T00:00:00Z", "who": "me", "why": "a test"},
            "pool": "default", "workers": 4, "applied": 1,
            "rejecting": [{"worker": "w2", "address": "http://127.0.0.1:1", "version": new, "keys": ["max_parallelism"],
                "more": 2}],
            "behind": [{"worker": "w3", "version": old, "revision": 41}, {"worker": "w4", "version": "start", "revision": null}],
            "routers": null,
        });
        assert_eq!(Arrived::of(&document, &pool, &workers).json(), expected);
        let none = Document { source: "file x".into(), version: None, refused: None, revisions: Vec::new() };
        assert_eq!(Arrived::of(&none, &pool, []).json()["document"], Value::Null);
    }

    #[test]
    fn that_routers_are_not_counted_is_said_where_there_is_something_to_apply() {
        let (document, _, new) = changed();
        let (pool, workers) = (PoolName::default(), [presence("w1", &new)]);
        let lines = Arrived::of(&document, &pool, &workers).lines();
        assert_eq!(lines[0], format!("file x: v42 ({new}), by me at 1970-01-01T00:00:00Z: a test"));
        assert!(lines[1].starts_with("routers: not counted") && lines[1].contains("weir describe"), "{lines:?}");
        assert_eq!(lines[2..], ["pool default: applied on 1 of 1"]);
        let refused = Document { refused: Some("it is not JSON: x".into()), ..changed().0 }.line();
        assert!(refused.ends_with(": a test; NOBODY TAKES IT: it is not JSON: x; put the last good one back with \"weir settings rollback\""), "{refused}");
    }

    #[test]
    fn a_document_that_is_gone_is_no_document_that_was_never_there() {
        let gone = Document { source: "redis x".into(), version: None, refused: None, revisions: Vec::new() };
        let mut workers = vec![presence("young", "start")];
        assert_eq!(applied(&gone, &workers), "pool default: nothing to apply on 1 (1 on start: young)");
        assert_eq!(advice(&gone, &workers), None);
        workers.insert(0, presence("old", "3b1c"));
        assert_eq!(applied(&gone, &workers), "pool default: nothing to apply on 2 (1 on 3b1c: old; 1 on start: young)");
        let advice = advice(&gone, &workers).expect("one runs what is gone");
        assert!(advice.contains("weir settings rollback"), "{advice}");
    }
}
