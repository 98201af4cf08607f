//! The loop that carries the gate's state to the registry.
//!
//! Each announcement is the worker's whole state, so that a registry that lost everything is whole again after one
//! heartbeat. A change of state is announced within [`COALESCE`]; a gate at the edge of its target flips with every
//! task, so changes in a row are paid from a small budget, and the load on each reply does the rest.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::gate::{self, Gate};
use crate::registry::{
    COALESCE, HEARTBEAT, HEARTBEAT_JITTER, Incarnation, Presence, Registry, RegistryError, Rejected, State,
};
use crate::settings::Arrival;
use crate::task::{IntegrationName, PoolName, WorkerId};
use crate::upstream::Spares;

/// Announced changes per second, on average.
const CHANGES_PER_SECOND: f64 = 2.0;

/// Changes that may be announced in a row before the average counts.
const CHANGES_BURST: f64 = 10.0;

/// The pause after a failed announcement at first; doubled up to the heartbeat.
const RETRY_FIRST: Duration = Duration::from_millis(100);

/// Who the worker is: what stays the same in all its announcements.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) worker: WorkerId,
    pub(super) address: String,
    pub(super) incarnation: Incarnation,
    pub(super) pool: PoolName,
    pub(super) integrations: Vec<IntegrationName>,
}

/// Announces a worker.
pub(super) struct Announcer {
    pub(super) identity: Identity,
    pub(super) registry: Arc<dyn Registry>,
    pub(super) gate: Gate,
    /// The integrations that the worker spares.
    pub(super) spared: watch::Receiver<Spares>,
    /// Which settings it runs with, and what of the last document it rejected.
    pub(super) arrival: watch::Receiver<Arc<Arrival>>,
}

impl Announcer {
    /// Announces until the token is cancelled, and then withdraws.
    pub(super) async fn run(mut self, token: CancellationToken) {
        token.run_until_cancelled(self.announce()).await;
        let Identity { worker, incarnation, .. } = &self.identity;
        if let Err(error) = self.registry.withdraw(worker, *incarnation).await {
            tracing::warn!("the worker's presence ends only by its age: {error}");
        }
    }

    async fn announce(&mut self) {
        let mut standing = self.gate.standing();
        let (mut spared, mut arrival) = (self.spared.clone(), self.arrival.clone());
        let mut budget = Budget::new(Instant::now());
        let mut announced: Option<Presence> = None;
        let (mut failures, mut silent): (u32, Option<Silent>) = (0, None);
        loop {
            let full = standing.now().full.to_vec();
            let spares = spared.borrow_and_update().clone();
            let arrived = arrival.borrow_and_update().clone();
            let presence = self.presence(full, spares, &arrived);
            let changed = announced.as_ref().is_none_or(|announced| differs(announced, &presence));
            let before = if announced.is_none() { self.another().await } else { None };
            let next = match self.registry.announce(&presence, changed).await {
                Ok(()) => {
                    if let Some(address) = before {
                        let worker = &presence.worker;
                        tracing::warn!(
                            "another worker of the id {worker} lives at {address}: routers see this one alone from now on, \
                             and that one gets no tasks; give each worker an id of its own"
                        );
                    }
                    match silent.take() {
                        Some(Silent::Superseded) => {
                            tracing::info!("the other worker of this id is gone: routers see this one")
                        }
                        Some(Silent::Away) => tracing::info!("the registry answers again"),
                        None => {}
                    }
                    (announced, failures) = (Some(presence), 0);
                    jittered(HEARTBEAT)
                }
                Err(error) => {
                    let why = Silent::of(&error);
                    if silent.replace(why) != Some(why) {
                        self.report(&error).await;
                    }
                    failures += 1;
                    jittered((RETRY_FIRST * 2u32.saturating_pow(failures.min(10))).min(HEARTBEAT))
                }
            };
            let next = Instant::now() + next;
            let now_or_later = async {
                tokio::select! {
                    () = standing.changed() => {}
                    _ = spared.changed() => {}
                    _ = arrival.changed() => {}
                }
                sleep_until(budget.take(Instant::now()) + COALESCE).await;
            };
            let _ = tokio::time::timeout_at(next, now_or_later).await;
        }
    }

    /// Says once why the worker is not announced.
    async fn report(&self, error: &RegistryError) {
        let other = match Silent::of(error) {
            Silent::Superseded => self.another().await,
            Silent::Away => return tracing::warn!("the worker serves on without being announced: {error}"),
        };
        let worker = &self.identity.worker;
        match other {
            Some(address) => tracing::error!(
                "this worker is not announced and gets no tasks: another one of the id {worker} lives at {address}, and \
                 routers see that one alone; give each worker an id of its own"
            ),
            None => tracing::error!("this worker is not announced: {error}"),
        }
    }

    /// Where another worker of this id was at its last heartbeat, as far as the registry says it. One at the same address is
    /// the life before this one: it is gone, or this one could not listen there.
    async fn another(&self) -> Option<String> {
        let Identity { worker, address, incarnation, .. } = &self.identity;
        let known = self.registry.look(std::slice::from_ref(worker)).await.ok()?.pop()?;
        (known.incarnation != *incarnation && known.address != *address).then_some(known.address)
    }

    fn presence(&self, full: Vec<IntegrationName>, spares: Spares, arrival: &Arrival) -> Presence {
        let (load, Spares { open, half_open }) = (self.gate.load(), spares);
        let Identity { worker, address, incarnation, pool, integrations } = self.identity.clone();
        Presence {
            worker,
            address,
            incarnation,
            pool,
            target: load.target,
            in_flight: load.held(),
            reserved: load.reserved(),
            state: match load.state {
                gate::State::Open => State::Open,
                gate::State::Full => State::Full,
                gate::State::Overloaded => State::Overloaded,
                gate::State::Draining => State::Draining,
            },
            integrations,
            full,
            broken: open,
            half_open,
            settings_version: arrival.version.clone(),
            settings_rejected: rejected(arrival),
            jump_limit: Some(arrival.jump_limit),
        }
    }
}

fn rejected(Arrival { rejected, .. }: &Arrival) -> Option<Box<Rejected>> {
    let rejected = rejected.as_ref()?;
    let keys = rejected.values.iter().map(|rejection| rejection.key.as_str());
    Some(Box::new(Rejected::new(&rejected.version, keys, rejected.more)))
}

/// Whether followers must hear of it; the number in flight alone is no news.
fn differs(announced: &Presence, now: &Presence) -> bool {
    let standing = |presence: &Presence| (presence.state, presence.target, presence.takes_batch());
    let kept_out = |presence: &Presence| {
        let Presence { full, broken, half_open, .. } = presence.clone();
        (full, broken, half_open)
    };
    let settings = |presence: &Presence| {
        let Presence { settings_version, settings_rejected, jump_limit, .. } = presence.clone();
        (settings_version, settings_rejected, jump_limit)
    };
    standing(announced) != standing(now) || kept_out(announced) != kept_out(now) || settings(announced) != settings(now)
}

/// Why the worker is not announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silent {
    /// The registry does not take it.
    Away,
    /// Another process has its id.
    Superseded,
}

impl Silent {
    fn of(error: &RegistryError) -> Self {
        match error {
            RegistryError::Superseded { .. } => Silent::Superseded,
            _ => Silent::Away,
        }
    }
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(1.0 - HEARTBEAT_JITTER..1.0 + HEARTBEAT_JITTER))
}

/// A token bucket over changes.
struct Budget {
    tokens: f64,
    at: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Budget { tokens: CHANGES_BURST, at: now }
    }

    /// Takes one change; returns when it may be announced.
    fn take(&mut self, now: Instant) -> Instant {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * CHANGES_PER_SECOND).min(CHANGES_BURST) - 1.0;
        self.at = now;
        now + Duration::from_secs_f64((-self.tokens).max(0.0) / CHANGES_PER_SECOND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::Lifecycle;
    use crate::registry::memory::MemoryRegistry;
    use crate::registry::{Change, NAME_BYTES};
    use crate::settings::{self, Rejection};
    use crate::telemetry::Telemetry;

    /// The most that rejections add to a presence, in bytes: a presence is written at each heartbeat and has some 400.
    const MOST: usize = 640;

    #[test]
    fn whatever_is_rejected_a_presence_stays_small_and_settings_are_named_whole() {
        let said = |key: &str, count: usize| {
            let rejection = Rejection::new(key, "r".repeat(10_000));
            let values = vec![rejection; count.min(settings::TOLD)];
            let more = count - values.len();
            let told = settings::Rejected { version: "1c5e6f3a9b07".into(), values, more };
            let arrival = Arrival { version: "1c5e6f3a9b07".into(), rejected: Some(told), jump_limit: 30 };
            serde_json::to_string(&rejected(&arrival)).expect("it serializes")
        };
        // What JSON writes as more than it is.
        for name in ["n", "\"", "\\", "é", "\u{1f600}"] {
            let text = said(&name.repeat(500), usize::MAX);
            assert!(text.len() <= MOST, "{} bytes: {text}", text.len());
        }
        let usual = said("max_parallelism", 1);
        assert_eq!(usual, r#"{"version":"1c5e6f3a9b07","keys":["max_parallelism"]}"#);
        let longest = settings::TABLE.iter().map(|spec| spec.key.len()).max();
        assert!(longest.is_some_and(|longest| longest <= NAME_BYTES), "{longest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_rejected_is_announced_at_once_and_with_the_version() {
        let (telemetry, lifecycle) = (Telemetry::new().expect("a recorder"), Lifecycle::new());
        let gate = Gate::new(settings::Config::default().start().limits(), [], &telemetry);
        let arrived =
            |version: &str, rejected| Arc::new(Arrival { version: version.into(), rejected, jump_limit: 300 });
        let (arrivals, arrival) = watch::channel(arrived("v1", None));
        let (_spares, spared) = watch::channel(Spares::default());
        let identity = Identity {
            worker: "w1".parse().expect("a worker id"),
            address: "http://127.0.0.1:1".into(),
            incarnation: Incarnation::mint(),
            pool: PoolName::default(),
            integrations: vec![],
        };
        let registry = Arc::new(MemoryRegistry::new());
        let announcer = Announcer { identity, registry: registry.clone(), gate, spared, arrival };
        lifecycle.spawn("announce", announcer.run(lifecycle.token()));
        tokio::time::sleep(COALESCE).await;
        let snapshot = registry.snapshot().await.expect("in memory");
        let first = &snapshot.workers[0];
        assert_eq!(
            (first.settings_version.as_str(), &first.settings_rejected, first.jump_limit),
            ("v1", &None, Some(300))
        );

        let rejection = Rejection::new("max_parallelism", "a test");
        let told = settings::Rejected { version: "v2".into(), values: vec![rejection], more: 0 };
        let began = Instant::now();
        // Nothing of it held, so the version is as before.
        arrivals.send_replace(arrived("v1", Some(told)));
        let news = registry.changes(&snapshot.cursor).await.expect("in memory").changes;
        let [Change::Present(presence)] = news.as_slice() else { panic!("{news:?}") };
        let expected = Some(Box::new(Rejected::new("v2", ["max_parallelism"], 0)));
        assert_eq!((presence.settings_version.as_str(), &presence.settings_rejected), ("v1", &expected));
        assert!(began.elapsed() <= COALESCE * 2, "{:?}", began.elapsed());
        lifecycle.stop(Duration::from_secs(1)).await.expect("nothing is left");
    }

    #[test]
    fn a_burst_of_changes_is_announced_at_once_and_then_two_a_second() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..14 {
            let at = budget.take(now);
            waits.push((at - now).as_millis());
            now = at;
        }
        assert_eq!(waits[..10], [0; 10]);
        assert_eq!(waits[10..], [500; 4]);
    }
}
