//! The registry within one process: for the demo, for tests, and for a worker that is called without a router.
//!
//! It keeps the same promises as the one in Redis (expiry, incarnations, a bounded sequence of changes), on tokio's
//! clock, so that what is built on a registry can be tested without sockets.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    CHANGES_KEPT, CHANGES_PER_READ, CHANGES_WAIT, Change, Changes, Cursor, Incarnation, LEASE_TTL, LOOK_LIMIT,
    Presence, Registry, RegistryError, Snapshot, TTL,
};
use crate::task::WorkerId;

/// A pool's registry in memory. Share it by an `Arc`.
pub struct MemoryRegistry {
    pool: Mutex<Pool>,
    /// The number of changes so far; followers wait on it.
    written: watch::Sender<u64>,
}

#[derive(Default)]
struct Pool {
    members: BTreeMap<WorkerId, (Presence, Instant)>,
    /// The latest changes; the last one's number is `written`.
    kept: VecDeque<Change>,
    written: u64,
    /// By name: the token, and until when it holds.
    leases: BTreeMap<String, (u64, Instant)>,
    /// Begins at the Unix time in milliseconds: tokens are larger than those of the process before, too.
    last_token: u64,
}

impl MemoryRegistry {
    /// An empty pool.
    pub fn new() -> Self {
        Self::since(SystemTime::now())
    }

    /// An empty pool that begins then.
    fn since(start: SystemTime) -> Self {
        let milliseconds = start.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let last_token = u64::try_from(milliseconds).unwrap_or_default();
        MemoryRegistry { pool: Mutex::new(Pool { last_token, ..Pool::default() }), written: watch::Sender::new(0) }
    }

    /// Forgets who expired, then does `work`, and wakes the followers if anything happened.
    fn with_pool<T>(&self, work: impl FnOnce(&mut Pool) -> T) -> T {
        let mut pool = self.pool.lock();
        pool.prune(Instant::now());
        let result = work(&mut pool);
        self.written.send_if_modified(|written| std::mem::replace(written, pool.written) != pool.written);
        result
    }
}

impl Default for MemoryRegistry {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Registry for MemoryRegistry {
    async fn announce(&self, presence: &Presence, changed: bool) -> Result<(), RegistryError> {
        self.with_pool(|pool| {
            let known = pool.members.get(&presence.worker).map(|(known, _)| known.incarnation);
            if known > Some(presence.incarnation) {
                return Err(RegistryError::Superseded { worker: presence.worker.clone() });
            }
            pool.members.insert(presence.worker.clone(), (presence.clone(), Instant::now() + TTL));
            if changed || known != Some(presence.incarnation) {
                pool.push(Change::Present(presence.clone()));
            }
            Ok(())
        })
    }

    async fn withdraw(&self, worker: &WorkerId, incarnation: Incarnation) -> Result<(), RegistryError> {
        self.with_pool(|pool| {
            if pool.members.get(worker).is_some_and(|(known, _)| known.incarnation == incarnation) {
                pool.members.remove(worker);
                pool.push(Change::Gone(worker.clone(), incarnation));
            }
        });
        Ok(())
    }

    async fn snapshot(&self) -> Result<Snapshot, RegistryError> {
        Ok(self.with_pool(|pool| Snapshot {
            workers: pool.members.values().map(|(presence, _)| presence.clone()).collect(),
            cursor: cursor(pool.written),
        }))
    }

    async fn changes(&self, after: &Cursor) -> Result<Changes, RegistryError> {
        let mut written = self.written.subscribe();
        let deadline = Instant::now() + CHANGES_WAIT;
        loop {
            written.mark_unchanged();
            let (found, next_expiry) = self.with_pool(|pool| (pool.after(after), pool.next_expiry()));
            let found = found?;
            if !found.changes.is_empty() || Instant::now() >= deadline {
                return Ok(found);
            }
            let wake = next_expiry.map_or(deadline, |expiry| expiry.min(deadline));
            // Whether it was a change, an expiry or the deadline shows at the next look.
            let _ = tokio::time::timeout_at(wake, written.changed()).await;
        }
    }

    async fn look(&self, workers: &[WorkerId]) -> Result<Vec<Presence>, RegistryError> {
        let some = workers.iter().take(LOOK_LIMIT);
        Ok(self.with_pool(|pool| {
            some.filter_map(|worker| pool.members.get(worker)).map(|(presence, _)| presence.clone()).collect()
        }))
    }

    async fn lease(&self, name: &str, held: Option<u64>) -> Result<Option<u64>, RegistryError> {
        Ok(self.with_pool(|pool| {
            let now = Instant::now();
            let holds = pool.leases.get(name).filter(|(_, until)| now < *until).map(|(token, _)| *token);
            let token = match (held, holds) {
                (None, None) => {
                    pool.last_token += 1;
                    pool.last_token
                }
                (Some(held), Some(holds)) if held == holds => held,
                _ => return None,
            };
            pool.leases.insert(name.to_owned(), (token, now + LEASE_TTL));
            Some(token)
        }))
    }

    async fn release(&self, name: &str, token: u64) -> Result<(), RegistryError> {
        self.with_pool(|pool| {
            if pool.leases.get(name).is_some_and(|(holds, _)| *holds == token) {
                pool.leases.remove(name);
            }
        });
        Ok(())
    }

    async fn probe(&self) -> Result<String, RegistryError> {
        Ok("in this process".into())
    }
}

impl Pool {
    fn push(&mut self, change: Change) {
        if self.kept.len() == CHANGES_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(change);
        self.written += 1;
    }

    fn prune(&mut self, now: Instant) {
        let expired = self.members.extract_if(.., |_, (_, expiry)| *expiry <= now);
        let expired: Vec<_> = expired.map(|(worker, (presence, _))| (worker, presence.incarnation)).collect();
        for (worker, incarnation) in expired {
            self.push(Change::Gone(worker, incarnation));
        }
    }

    fn next_expiry(&self) -> Option<Instant> {
        self.members.values().map(|(_, expiry)| *expiry).min()
    }

    fn after(&self, after: &Cursor) -> Result<Changes, RegistryError> {
        let forgotten = self.written - self.kept.len() as u64;
        let position = after.position.0;
        if !(forgotten..=self.written).contains(&position) {
            return Err(RegistryError::Lagged);
        }
        let changes: Vec<_> =
            self.kept.iter().skip((position - forgotten) as usize).take(CHANGES_PER_READ).cloned().collect();
        let cursor = cursor(position + changes.len() as u64);
        Ok(Changes { changes, cursor })
    }
}

fn cursor(position: u64) -> Cursor {
    Cursor { epoch: Arc::from(""), position: (position, 0) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::State;
    use super::super::tests::presence;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn followers_hear_what_changed_and_not_each_heartbeat() {
        let registry = MemoryRegistry::new();
        let mut worker = presence("w1", State::Open);
        registry.announce(&worker, false).await.expect("announced");
        let snapshot = registry.snapshot().await.expect("snapshot");
        assert_eq!(snapshot.workers, [worker.clone()]);

        registry.announce(&worker, false).await.expect("a heartbeat");
        worker.state = State::Full;
        registry.announce(&worker, true).await.expect("a change");
        let read = registry.changes(&snapshot.cursor).await.expect("changes");
        assert_eq!(read.changes, [Change::Present(worker.clone())]);

        registry.withdraw(&worker.worker, worker.incarnation).await.expect("withdrawn");
        let read = registry.changes(&read.cursor).await.expect("changes");
        assert_eq!(read.changes, [Change::Gone(worker.worker, worker.incarnation)]);
        assert!(registry.snapshot().await.expect("snapshot").workers.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_worker_is_gone_after_its_ttl() {
        let registry = MemoryRegistry::new();
        let worker = presence("w1", State::Open);
        registry.announce(&worker, true).await.expect("announced");
        let (start, mut cursor) = (Instant::now(), registry.snapshot().await.expect("snapshot").cursor);
        let gone = loop {
            let read = registry.changes(&cursor).await.expect("changes");
            cursor = read.cursor;
            if let Some(change) = read.changes.into_iter().next() {
                break change;
            }
            assert!(start.elapsed() < TTL + CHANGES_WAIT);
        };
        assert_eq!(gone, Change::Gone(worker.worker, worker.incarnation));
        assert!(start.elapsed() < TTL + Duration::from_millis(5), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_incarnation_neither_overwrites_nor_removes_a_newer_one() {
        let registry = MemoryRegistry::new();
        let (old, new) = (presence("w1", State::Open), presence("w1", State::Full));
        registry.announce(&old, true).await.expect("the first life");
        registry.announce(&new, false).await.expect("the second life");
        let error = registry.announce(&old, true).await.expect_err("superseded");
        assert_eq!(error, RegistryError::Superseded { worker: old.worker.clone() });
        registry.withdraw(&old.worker, old.incarnation).await.expect("nothing to do");
        assert_eq!(registry.snapshot().await.expect("snapshot").workers, [new]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_that_missed_too_much_is_told_so() {
        let registry = MemoryRegistry::new();
        let start = registry.snapshot().await.expect("snapshot").cursor;
        let worker = presence("w1", State::Open);
        for _ in 0..CHANGES_KEPT {
            registry.announce(&worker, true).await.expect("announced");
        }
        let read = registry.changes(&start).await.expect("all of it is kept");
        assert_eq!(read.changes.len(), CHANGES_PER_READ);
        registry.announce(&worker, true).await.expect("announced");
        assert_eq!(registry.changes(&start).await.expect_err("one too many"), RegistryError::Lagged);
        registry.changes(&read.cursor).await.expect("later places are still known");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_one_holders_until_it_is_given_back_or_not_renewed() {
        let registry = MemoryRegistry::new();
        let lease = async |held| registry.lease("profile", held).await.expect("it answers");
        let first = lease(None).await.expect("nobody has it");
        assert_eq!(lease(None).await, None);
        registry.lease("other", None).await.expect("it answers").expect("another one");
        tokio::time::advance(LEASE_TTL - Duration::from_secs(1)).await;
        assert_eq!(lease(Some(first)).await, Some(first));
        tokio::time::advance(LEASE_TTL).await;
        assert_eq!(lease(Some(first)).await, None, "its time is over");
        let second = lease(None).await.expect("nobody has it");
        assert!(second > first);
        registry.release("profile", first).await.expect("nothing to do");
        assert_eq!((lease(None).await, lease(Some(first)).await), (None, None));
        registry.release("profile", second).await.expect("released");
        assert!(lease(None).await.expect("nobody has it") > second);
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_process_gives_larger_tokens() {
        let lives = [1_700_000_000_000, 1_700_000_000_500].map(|at| UNIX_EPOCH + Duration::from_millis(at));
        let [before, after] = lives.map(MemoryRegistry::since);
        let mut last = 0;
        for _ in 0..3 {
            last = before.lease("profile", None).await.expect("it answers").expect("nobody has it");
            before.release("profile", last).await.expect("released");
        }
        let next = after.lease("profile", None).await.expect("it answers").expect("nobody has it");
        assert!(next > last, "{next} after {last}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_pool_answers_within_a_second() {
        let registry = MemoryRegistry::new();
        let cursor = registry.snapshot().await.expect("snapshot").cursor;
        let start = Instant::now();
        let read = registry.changes(&cursor).await.expect("changes");
        assert!(read.changes.is_empty() && read.cursor == cursor);
        assert!(start.elapsed() >= CHANGES_WAIT && start.elapsed() < CHANGES_WAIT + Duration::from_millis(5));
    }
}
