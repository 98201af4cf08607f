//! What limits a worker now: the one thing that would have to change for it to run more.
//!
//! Of several that bind at the same time, the one is named that raising the others would not help against: a worker whose
//! processors are busy gains nothing from a larger N, and one whose slots are all held gains nothing from a higher cap.
//! That something binds does not say that anybody waits for it; the refusals and the router's queue say that. But a limit of
//! one integration that nothing runs up against limits nobody: it binds while tasks hold all of it, for a few seconds after
//! it has refused one, or where no other integration has room either.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use metrics::gauge;
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use crate::gate::{Gate, IntegrationLoad, Load, Standing, State, TenantLoad};
use crate::integration::Environment;
use crate::integration::environment::BlockingFull;
use crate::overload::{Overload, Pressure, Signal};
use crate::task::{IntegrationName, Tenant};
use crate::telemetry::Telemetry;
use crate::upstream::Upstreams;

/// From this share of its processors on, a worker's own computing is what limits it.
const BUSY: f64 = 0.9;

/// The processors' use is a mean over at least this long.
const MEASURED_OVER: Duration = Duration::from_secs(1);

/// So long after it has refused a task, a limit that nothing holds still counts as one that is felt.
const FELT_FOR: Duration = Duration::from_secs(10);

/// The one thing that limits a worker.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Constraint {
    /// It is ending.
    Draining,
    /// It sheds load.
    Overload(Signal),
    /// Its processors are busy; the share of them that is used.
    Processor(f64),
    /// All places for blocking work are taken, and closures wait for one.
    BlockingPool(BlockingFull),
    /// All slots are held.
    Slots {
        /// So many.
        held: u32,
        /// N.
        target: u32,
    },
    /// What is left is for interactive tasks; so many slots.
    Reserve(u32),
    /// An integration is at its cap.
    IntegrationCap(IntegrationName),
    /// An integration is at the limit that was found for it.
    AdaptiveLimit(IntegrationName),
    /// A tenant is at its cap.
    TenantCap(Tenant),
    /// An integration is spared, because it fails.
    Upstream(IntegrationName),
    /// There is room.
    Nothing,
}

impl Constraint {
    const LABELS: [&str; 15] = [
        "draining",
        "memory",
        "descriptors",
        "blocked_thread",
        "cpu_quota",
        "lag",
        "cpu",
        "blocking_pool",
        "slots",
        "reserve",
        "integration_cap",
        "adaptive_limit",
        "tenant_cap",
        "upstream",
        "nothing",
    ];

    /// The label in metrics.
    fn label(&self) -> &'static str {
        match self {
            Constraint::Draining => "draining",
            Constraint::Overload(signal) => signal.as_str(),
            Constraint::Processor(_) => "cpu",
            Constraint::BlockingPool(_) => "blocking_pool",
            Constraint::Slots { .. } => "slots",
            Constraint::Reserve(_) => "reserve",
            Constraint::IntegrationCap(_) => "integration_cap",
            Constraint::AdaptiveLimit(_) => "adaptive_limit",
            Constraint::TenantCap(_) => "tenant_cap",
            Constraint::Upstream(_) => "upstream",
            Constraint::Nothing => "nothing",
        }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Constraint::Draining => write!(f, "it is draining"),
            Constraint::Overload(signal) => write!(f, "it sheds load ({signal})"),
            Constraint::Processor(share) => write!(f, "cpu: {:.0}% of its processors are used", share * 100.0),
            Constraint::BlockingPool(BlockingFull { running, waiting }) => {
                write!(f, "blocking threads: all {running} places are taken, and {waiting} closures wait for one")
            }
            Constraint::Slots { target: 0, .. } => write!(f, "max_parallelism, which is 0: it takes nothing"),
            Constraint::Slots { held, target } => write!(f, "slots: {held} of {target} are held"),
            Constraint::Reserve(slots) => write!(f, "reserve: the {slots} slots left are for interactive tasks"),
            Constraint::IntegrationCap(name) => write!(f, "integration_caps: {name} is at its cap"),
            Constraint::AdaptiveLimit(name) => write!(f, "adaptive limit: {name} is at the limit found for it"),
            Constraint::TenantCap(tenant) => write!(f, "tenant_caps: tenant {tenant} is at its cap"),
            Constraint::Upstream(name) => write!(f, "upstream: {name} is spared, because it fails"),
            Constraint::Nothing => write!(f, "nothing: there is room"),
        }
    }
}

/// What the parts of a worker say of themselves.
struct Seen {
    standing: Standing,
    load: Load,
    pressure: Pressure,
    processor: f64,
    blocking: Option<BlockingFull>,
    integrations: Vec<IntegrationLoad>,
    full_tenant: Option<TenantLoad>,
    broken: Option<IntegrationName>,
}

impl Seen {
    fn constraint(self, now: Instant) -> Constraint {
        let Load { target, .. } = self.load;
        match (self.standing.state, self.pressure, self.blocking) {
            (State::Draining, _, _) => return Constraint::Draining,
            (_, Pressure::Shedding(signal), _) => return Constraint::Overload(signal),
            _ if self.processor >= BUSY => return Constraint::Processor(self.processor),
            (_, _, Some(full)) => return Constraint::BlockingPool(full),
            (State::Full, _, _) => return Constraint::Slots { held: self.load.held(), target },
            _ if !self.standing.takes_batch => return Constraint::Reserve(self.load.reserved()),
            _ => {}
        }
        let at_own_limit = |of: &&IntegrationLoad| of.most < target && of.most.saturating_sub(of.held) < of.weight;
        let is_felt = |of: &IntegrationLoad| {
            of.held > 0 || of.refused_at.is_some_and(|at| now.saturating_duration_since(at) < FELT_FOR)
        };
        let has_others = !self.integrations.iter().all(|of| at_own_limit(&of));
        let binds = |of: &&IntegrationLoad| at_own_limit(of) && (is_felt(of) || !has_others);
        if let Some(of) = self.integrations.iter().find(binds) {
            let is_cap = of.cap == Some(of.most);
            let name = of.integration.clone();
            return if is_cap { Constraint::IntegrationCap(name) } else { Constraint::AdaptiveLimit(name) };
        }
        match (self.full_tenant, self.broken) {
            (Some(of), _) => Constraint::TenantCap(of.tenant),
            (None, Some(integration)) => Constraint::Upstream(integration),
            (None, None) => Constraint::Nothing,
        }
    }
}

/// Looks at the parts of a worker.
pub(super) struct Look {
    gate: Gate,
    overload: Overload,
    upstreams: Upstreams,
    environment: Arc<Environment>,
    processor: Mutex<Processor>,
}

impl Look {
    /// At each scrape, too.
    pub(super) fn new(
        gate: Gate,
        overload: Overload,
        upstreams: Upstreams,
        environment: Arc<Environment>,
        telemetry: &Telemetry,
    ) -> Arc<Self> {
        const NAME: &str = "weir_binding_constraint";
        telemetry.register(|| {
            metrics::describe_gauge!(
                NAME,
                "What limits the worker now: 1 at one label, what would have to change first."
            );
        });
        let processor = Mutex::new(Processor::now());
        let look = Arc::new(Look { gate, overload, upstreams, environment, processor });
        let at_scrape = look.clone();
        telemetry.before_scrape(move || {
            let binding = at_scrape.now().label();
            for label in Constraint::LABELS {
                gauge!(NAME, "constraint" => label).set(if label == binding { 1.0 } else { 0.0 });
            }
        });
        look
    }

    /// What limits the worker now.
    pub(super) fn now(&self) -> Constraint {
        // One after the other: what one part lends is given back before the next is asked.
        let pressure = *self.overload.pressure().borrow();
        let broken = self.upstreams.spared().borrow().open.first().cloned();
        let processor = self.processor.lock().share();
        let (standing, load) = (self.gate.stands(), self.gate.load());
        let (integrations, full_tenant) = (self.gate.by_integration(), self.gate.full_tenants(1).pop());
        let blocking = self.environment.blocking_full();
        let seen = Seen { standing, load, pressure, processor, blocking, integrations, full_tenant, broken };
        seen.constraint(Instant::now())
    }
}

/// How much of its processors the process uses, as a mean since some time ago.
struct Processor {
    at: Instant,
    used: Duration,
    share: f64,
}

impl Processor {
    fn now() -> Self {
        Processor { at: Instant::now(), used: used(), share: 0.0 }
    }

    fn share(&mut self) -> f64 {
        let (now, used) = (Instant::now(), used());
        let passed = now.duration_since(self.at);
        if passed >= MEASURED_OVER {
            // What this process may use: affinity and the cgroup's quota count.
            let processors = std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
            self.share = used.saturating_sub(self.used).as_secs_f64() / (passed.as_secs_f64() * processors);
            (self.at, self.used) = (now, used);
        }
        self.share
    }
}

/// The processor time that the process has used so far.
fn used() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> IntegrationName {
        name.parse().expect("a name")
    }

    fn integration(held: u32, cap: Option<u32>, limit: Option<u32>) -> IntegrationLoad {
        let most = [cap, limit].into_iter().flatten().fold(10, u32::min);
        let integration = name("bank");
        IntegrationLoad { integration, in_flight: held, held, most, cap, limit, weight: 1, refused_at: None }
    }

    fn idle() -> Seen {
        let (state, none) = (State::Open, [].into());
        Seen {
            standing: Standing { state, takes_batch: true, full: none },
            load: Load { state, target: 10, reserve: 4, in_flight: 6, held_by_interactive: 0, held_by_batch: 6 },
            pressure: Pressure::Calm,
            processor: 0.2,
            blocking: None,
            integrations: vec![integration(6, None, None)],
            full_tenant: None,
            broken: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cap_that_nothing_runs_up_against_limits_nobody() {
        let label =
            |integrations: Vec<IntegrationLoad>| Seen { integrations, ..idle() }.constraint(Instant::now()).label();
        let (shut, other) = (integration(0, Some(0), None), integration(0, None, None));
        assert_eq!(label(vec![shut.clone(), other.clone()]), "nothing");
        assert_eq!(
            label(vec![shut.clone(), integration(3, Some(3), None)]),
            "integration_cap",
            "nothing else is served"
        );
        let refused = IntegrationLoad { refused_at: Some(Instant::now()), ..shut };
        assert_eq!(label(vec![refused.clone(), other.clone()]), "integration_cap", "it refused a task");
        tokio::time::advance(FELT_FOR).await;
        assert_eq!(label(vec![refused, other]), "nothing", "long ago");
    }

    #[test]
    fn one_thing_is_named_for_each_state() {
        let tenant = || TenantLoad { tenant: "acme".parse().expect("a tenant"), held: 2, most: 2 };
        let blocking = Some(BlockingFull { running: 4, waiting: 4 });
        let standing = |state, takes_batch| Standing { state, takes_batch, full: [].into() };
        for (seen, label) in [
            (idle(), "nothing"),
            (Seen { broken: Some(name("bank")), ..idle() }, "upstream"),
            (Seen { full_tenant: Some(tenant()), broken: Some(name("bank")), ..idle() }, "tenant_cap"),
            (Seen { integrations: vec![integration(6, Some(6), Some(8))], ..idle() }, "integration_cap"),
            (Seen { integrations: vec![integration(6, Some(8), Some(6))], ..idle() }, "adaptive_limit"),
            (Seen { integrations: vec![integration(5, Some(6), None)], ..idle() }, "nothing"),
            (Seen { standing: standing(State::Open, false), ..idle() }, "reserve"),
            (Seen { standing: standing(State::Full, false), ..idle() }, "slots"),
            (Seen { standing: standing(State::Full, false), blocking, ..idle() }, "blocking_pool"),
            (Seen { standing: standing(State::Full, false), blocking, processor: 0.95, ..idle() }, "cpu"),
            (Seen { pressure: Pressure::Shedding(Signal::Memory), processor: 0.95, ..idle() }, "memory"),
            (Seen { standing: standing(State::Draining, false), blocking, ..idle() }, "draining"),
        ] {
            let constraint = seen.constraint(Instant::now());
            assert_eq!(constraint.label(), label);
            assert!(Constraint::LABELS.contains(&label) && !constraint.to_string().is_empty());
        }
        assert!(Signal::ALL.iter().all(|signal| Constraint::LABELS.contains(&signal.as_str())));
    }

    #[test]
    fn the_processors_use_is_measured() {
        let mut processor = Processor::now();
        processor.at -= MEASURED_OVER;
        processor.used = processor.used.saturating_sub(Duration::from_millis(500));
        assert!(processor.share() > 0.0);
    }
}
