//! What a worker has learned of each integration's upstream: whether its tasks fail, how long they take, how many at once
//! it bears; and what follows from it for the next task.
//!
//! Each integration is on its own: a [`breaker`] spares one that fails, the [`door`] refuses what cannot end in time,
//! and an [`adaptive`] limit, where it is wanted, follows its latency. All three are pure; here they share a short lock
//! per integration. A task that may start is an [`Asked`]: it is told how the run ended, and dropping it without that,
//! because the gate refused or the run was lost, gives a half-open breaker's probe back.

pub mod adaptive;
pub mod breaker;
pub mod config;
pub mod door;
mod metrics;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::task::{FailureCode, FailureReason, IntegrationName, Outcome, Remedy};
use crate::telemetry::Telemetry;
use adaptive::{Adaptive, Mode, Sample};
use breaker::{Breaker, Change, Counts, Health, Pass, Saw, Spared, Standing};
pub use config::{Config, Rules};
use door::{Door, Needs};
use metrics::Metrics;

/// All upstreams of a worker. Clones are the same.
#[derive(Clone)]
pub struct Upstreams {
    inner: Arc<Inner>,
}

struct Inner {
    by_name: BTreeMap<IntegrationName, Arc<Upstream>>,
    spared: watch::Sender<Spares>,
    /// Held from reading the breakers until what they say is published, so that the last word is the newest.
    publishing: Mutex<()>,
    changed: Notify,
}

struct Upstream {
    name: IntegrationName,
    rules: Rules,
    state: Mutex<State>,
    metrics: Metrics,
}

struct State {
    breaker: Breaker,
    door: Door,
    adaptive: Option<Adaptive>,
    in_flight: u32,
    /// The integral of what is in flight over time, up to `at`.
    task_seconds: f64,
    at: Instant,
    /// How the last run that spoke against the bank ended.
    last_failure: Option<Failed>,
}

/// A failure without its message, which may hold anything.
#[derive(Debug, Clone)]
struct Failed {
    code: FailureCode,
    reason: Option<FailureReason>,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.as_str())?;
        self.reason.as_ref().map_or(Ok(()), |reason| write!(f, " ({reason})"))
    }
}

/// Why a task is not worth starting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The integration is spared.
    #[error("{integration} is spared{}: {saw}", while_tried(.is_tried))]
    BreakerOpen {
        /// Which.
        integration: IntegrationName,
        /// What opened its breaker.
        saw: String,
        /// Whether that is half open: as many tasks as may try the integration are under way.
        is_tried: bool,
        /// Until it is tried again.
        after: Duration,
    },
    /// It would not end in time.
    #[error("{integration} takes at least {needs}; {} remain", rounded(.remaining))]
    DeadlineTooShort {
        /// Which.
        integration: IntegrationName,
        /// What a task of it needs, and how that is known.
        needs: String,
        /// What this one has.
        remaining: Duration,
    },
}

/// A task that may start.
pub struct Asked {
    upstream: Option<Arc<Upstream>>,
    inner: Arc<Inner>,
    pass: Pass,
    started: Instant,
    task_seconds_before: f64,
}

/// What is known of one integration.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// Which.
    pub integration: IntegrationName,
    /// Its breaker, unless that is off.
    pub breaker: Option<BreakerIs>,
    /// What opened it; none while it is closed.
    pub saw: Option<String>,
    /// What a task needs at least, as far as it is known.
    pub needs_at_least: Option<Duration>,
    /// Its adaptive limit in tasks, unless that is off.
    pub limit: Option<Limit>,
}

/// Which integrations are spared; both sorted. One that may be tried again is not among `open`, or nobody would.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spares {
    /// Those of which no task starts.
    pub open: Vec<IntegrationName>,
    /// Those of which a few may start, to try them.
    pub half_open: Vec<IntegrationName>,
}

/// The state of a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerIs {
    /// All tasks start.
    Closed,
    /// A few start, to try it.
    HalfOpen,
    /// None starts for so long.
    Open(Duration),
}

/// An adaptive limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Tasks at once.
    pub tasks: u32,
    /// Whether it is in force.
    pub mode: Mode,
    /// How long a run takes on a bank that is not pressed.
    pub baseline: Option<Duration>,
}

impl Upstreams {
    /// For these integrations, of which nothing is known yet. An error names the key that is wrong.
    pub fn new<'a>(
        config: &Config,
        integrations: impl Iterator<Item = &'a IntegrationName>,
        telemetry: &Telemetry,
    ) -> Result<Self, String> {
        let (now, integrations): (_, Vec<_>) = (Instant::now(), integrations.collect());
        if let Some(unknown) = config.unknown(&integrations).first() {
            return Err(format!("integrations.{}: {unknown}", unknown.name));
        }
        let upstream = |name: &IntegrationName| {
            let rules = config.rules(name)?;
            let metrics = Metrics::new(name, rules.adaptive.mode, telemetry);
            let state = Mutex::new(State::new(&rules, now));
            Ok((name.clone(), Arc::new(Upstream { name: name.clone(), rules, state, metrics })))
        };
        let by_name = integrations.into_iter().map(upstream).collect::<Result<_, String>>()?;
        let spared = watch::Sender::new(Spares::default());
        let inner = Arc::new(Inner { by_name, spared, publishing: Mutex::new(()), changed: Notify::new() });
        let read = Arc::downgrade(&inner);
        telemetry.before_scrape(move || {
            let Some(inner) = read.upgrade() else { return };
            inner.by_name.values().for_each(|upstream| upstream.metrics.publish(&upstream.known(Instant::now())));
        });
        Ok(Upstreams { inner })
    }

    /// Asks whether a task to which so much time remains is worth starting.
    pub fn ask(&self, integration: &IntegrationName, remaining: Duration) -> Result<Asked, Refused> {
        let now = Instant::now();
        let Some(upstream) = self.inner.by_name.get(integration) else {
            let (inner, pass) = (self.inner.clone(), Pass::default());
            return Ok(Asked { upstream: None, inner, pass, started: now, task_seconds_before: 0.0 });
        };
        let mut state = upstream.state.lock();
        // First what may keep nothing: a probe that cannot end in time would tell nothing.
        if let Err(needs) = state.door.ask(remaining, now) {
            drop(state);
            upstream.metrics.too_short.increment(1);
            return Err(Refused::DeadlineTooShort { integration: integration.clone(), needs: text(needs), remaining });
        }
        let pass = match state.breaker.ask(now) {
            Ok(pass) => pass,
            Err(Spared { after, saw, is_tried }) => {
                let saw = state.saw(&upstream.rules, saw);
                drop(state);
                upstream.metrics.spared.increment(1);
                return Err(Refused::BreakerOpen { integration: integration.clone(), saw, is_tried, after });
            }
        };
        let task_seconds_before = state.advance(now);
        state.in_flight += 1;
        drop(state);
        let (inner, upstream) = (self.inner.clone(), Some(upstream.clone()));
        Ok(Asked { upstream, inner, pass, started: now, task_seconds_before })
    }

    /// Follows which integrations are spared.
    pub fn spared(&self) -> watch::Receiver<Spares> {
        self.inner.spared.subscribe()
    }

    /// What is known of each integration, by name.
    pub fn known(&self) -> Vec<Known> {
        let now = Instant::now();
        self.inner.by_name.values().map(|upstream| upstream.known(now)).collect()
    }

    /// The adaptive limits that are in force, in tasks.
    pub fn limits(&self) -> Vec<(IntegrationName, u32)> {
        let limit = |upstream: &Arc<Upstream>| {
            let state = upstream.state.lock();
            let adaptive = state.adaptive.as_ref().filter(|adaptive| adaptive.mode() == Mode::On)?;
            Some((upstream.name.clone(), adaptive.limit()))
        };
        self.inner.by_name.values().filter_map(limit).collect()
    }

    /// Publishes what time alone has changed: breakers that may be tried again. When the next one may be.
    pub fn refresh(&self) -> Option<Instant> {
        self.inner.publish(Instant::now())
    }

    /// Waits until a limit or a breaker has changed since the last wait; for one waiter.
    pub async fn changed(&self) {
        self.inner.changed.notified().await;
    }
}

impl Inner {
    fn publish(&self, now: Instant) -> Option<Instant> {
        let _publishing = self.publishing.lock();
        let (mut spared, mut next) = (Spares::default(), None);
        for upstream in self.by_name.values() {
            match upstream.state.lock().breaker.standing(now) {
                Standing::Closed => {}
                Standing::HalfOpen(_) => spared.half_open.push(upstream.name.clone()),
                Standing::Open { until, .. } => {
                    spared.open.push(upstream.name.clone());
                    next = Some(next.map_or(until, |next: Instant| next.min(until)));
                }
            }
        }
        self.spared.send_if_modified(|known| {
            let differs = *known != spared;
            *known = spared;
            differs
        });
        next
    }
}

impl Asked {
    /// The run came to this, whether or not its code has stopped.
    pub fn ended(mut self, outcome: &Outcome) {
        let Some(upstream) = self.upstream.take() else { return };
        let (now, took) = (Instant::now(), outcome.timings.ran);
        let mut state = upstream.state.lock();
        let beside = state.leave(now, self.started, self.task_seconds_before);
        let Some(health) = state.health(outcome) else {
            state.breaker.released(self.pass);
            return;
        };
        let is_ok = outcome.result.is_ok();
        if let Err(failure) = &outcome.result
            && health == Health::Failing
        {
            state.last_failure = Some(Failed { code: failure.code, reason: failure.reason.clone() });
        }
        if is_ok {
            state.door.learn(took, now);
        }
        let limit = state.adaptive.as_mut().filter(|_| is_ok || health == Health::Failing).is_some_and(|adaptive| {
            let before = adaptive.limit();
            adaptive.add(Sample { took, beside, is_ok }, now);
            before != adaptive.limit()
        });
        let change = state.breaker.ended(self.pass, health, took, now, rand::random);
        let saw = match change {
            Some(Change::Opened { saw, .. }) => state.saw(&upstream.rules, saw),
            _ => String::new(),
        };
        drop(state);
        if let Some(change) = change {
            upstream.report(change, &saw);
            self.inner.publish(now);
        }
        if limit || change.is_some() {
            self.inner.changed.notify_one();
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let Some(upstream) = &self.upstream else { return };
        let mut state = upstream.state.lock();
        state.leave(Instant::now(), self.started, self.task_seconds_before);
        state.breaker.released(self.pass);
    }
}

impl Upstream {
    fn report(&self, change: Change, saw: &str) {
        let integration = &self.name;
        match change {
            Change::Opened { open_for, .. } => {
                self.metrics.opened.increment(1);
                tracing::warn!(%integration, "an integration is spared for {}: {saw}", rounded(&open_for));
            }
            Change::Closed => tracing::info!(%integration, "an integration is well again"),
        }
    }

    fn known(&self, now: Instant) -> Known {
        let state = self.state.lock();
        let (breaker, saw) = match state.breaker.standing(now) {
            Standing::Closed => (BreakerIs::Closed, None),
            Standing::HalfOpen(saw) => (BreakerIs::HalfOpen, Some(saw)),
            Standing::Open { until, saw } => (BreakerIs::Open(until - now), Some(saw)),
        };
        let limit = |adaptive: &Adaptive| Limit {
            tasks: adaptive.limit(),
            mode: adaptive.mode(),
            baseline: adaptive.baseline(),
        };
        Known {
            integration: self.name.clone(),
            breaker: self.rules.breaker.enabled.then_some(breaker),
            saw: saw.map(|saw| state.saw(&self.rules, saw)),
            needs_at_least: state.door.needs().map(|needs| needs.at_least),
            limit: state.adaptive.as_ref().map(limit),
        }
    }
}

impl State {
    fn new(rules: &Rules, now: Instant) -> Self {
        let Rules { breaker, deadline, adaptive } = rules.clone();
        State {
            breaker: Breaker::new(breaker, now),
            door: Door::new(deadline, now),
            adaptive: (adaptive.mode != Mode::Off).then(|| Adaptive::new(adaptive, now)),
            in_flight: 0,
            task_seconds: 0.0,
            at: now,
            last_failure: None,
        }
    }

    fn advance(&mut self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.task_seconds += f64::from(self.in_flight) * passed;
        self.at = self.at.max(now);
        self.task_seconds
    }

    /// A task goes; the mean number of tasks over its life.
    fn leave(&mut self, now: Instant, started: Instant, task_seconds_before: f64) -> f64 {
        let during = self.advance(now) - task_seconds_before;
        let beside = f64::from(self.in_flight);
        self.in_flight -= 1;
        let lived = now.saturating_duration_since(started).as_secs_f64();
        if lived > 0.0 { during / lived } else { beside }
    }

    /// What a run's end says of the bank, if anything. That a person must act is the bank's own answer; a failure that
    /// would come again is the task's fault or the integration's, and may not have reached the bank at all.
    fn health(&self, outcome: &Outcome) -> Option<Health> {
        let Err(failure) = &outcome.result else { return Some(Health::Well) };
        match (failure.code, failure.remedy) {
            (FailureCode::Integration, Remedy::Retry) => Some(Health::Failing),
            (FailureCode::Integration, Remedy::UserAction) => Some(Health::Well),
            (FailureCode::Deadline, _) => self.door.was_fair(outcome.timings.ran).then_some(Health::Failing),
            (FailureCode::OutputTooLarge, _) => Some(Health::Well),
            (FailureCode::Integration | FailureCode::Panic | FailureCode::Cancelled, _) => None,
        }
    }

    /// What opened the breaker, in words.
    fn saw(&self, rules: &Rules, saw: Saw) -> String {
        let (Counts { all, failing, slow }, of, within) = match saw {
            Saw::Window(counts) => {
                (counts, "tasks", format!(" within {}", humantime::format_duration(rules.breaker.window)))
            }
            Saw::Probes(counts) => (counts, if counts.all == 1 { "probe" } else { "probes" }, String::new()),
        };
        let slow = match slow {
            0 => String::new(),
            slow => format!(", {slow} took longer than {}", humantime::format_duration(rules.breaker.slow_after)),
        };
        let last = self.last_failure.as_ref().map(|last| format!(", last: {last}")).unwrap_or_default();
        format!("{failing} of {all} {of} failed{within}{slow}{last}")
    }
}

fn while_tried(is_tried: &bool) -> &'static str {
    if *is_tried { " until the tasks that try it have ended" } else { "" }
}

fn text(needs: Needs) -> String {
    let Needs { at_least, quantile, runs } = needs;
    let percent = (quantile * 1000.0).round() / 10.0;
    format!("{} ({percent}% of the last {runs} tasks or so were faster)", rounded(&at_least))
}

/// For people: to the millisecond, and from a second on to the tenth of one.
fn rounded(duration: &Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds < 0.9995 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{seconds:.1} s"),
    }
}

#[cfg(test)]
mod tests;
