//! Any order of events, against a model that works everything out anew each time.

use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::slots::{Place, Slots};
use super::*;

const INTEGRATIONS: [&str; 3] = ["bank", "broker", "scraper"];
const TENANTS: [&str; 3] = ["acme", "beta", "corp"];

#[derive(Debug, Clone)]
enum Step {
    /// Integration, tenant, priority.
    Admit(usize, usize, Priority),
    Release(Index),
    SetLimits(Limits),
    Narrow(usize, Option<u32>),
    Overloaded(bool),
    Drain,
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let priority = prop_oneof![Just(Priority::Interactive), Just(Priority::Batch)];
    let step = prop_oneof![
        40 => (0..INTEGRATIONS.len(), 0..TENANTS.len(), priority).prop_map(|(of, by, priority)| Step::Admit(of, by, priority)),
        25 => any::<Index>().prop_map(Step::Release),
        8 => limits().prop_map(Step::SetLimits),
        6 => (0..INTEGRATIONS.len(), proptest::option::of(0u32..8)).prop_map(|(of, most)| Step::Narrow(of, most)),
        4 => any::<bool>().prop_map(Step::Overloaded),
        // Seldom: nothing is admitted afterwards.
        1 => proptest::bool::weighted(0.1).prop_map(|drain| if drain { Step::Drain } else { Step::Overloaded(false) }),
        10 => (0u64..1000).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 0..150)
}

fn limits() -> impl Strategy<Value = Limits> {
    let cap = || {
        prop_oneof![(0u32..8).prop_map(Cap::Slots), (1u32..=100).prop_map(|part| Cap::Share(f64::from(part) / 100.0))]
    };
    let reserve = prop_oneof![2 => Just(0.0), 3 => (0u32..=100).prop_map(|part| f64::from(part) / 100.0)];
    (
        0u32..14,
        reserve,
        by_name(&INTEGRATIONS, cap()),
        by_name(&TENANTS, cap()),
        by_name(&INTEGRATIONS, (1u32..7).prop_map(Weight::new)),
    )
        .prop_map(|(target, interactive_reserve, integration_caps, tenant_caps, weights)| Limits {
            target,
            interactive_reserve,
            integration_caps,
            tenant_caps,
            weights,
        })
}

/// Something for some of the names, and perhaps for all others.
fn by_name<N, V>(names: &'static [&str], value: impl Strategy<Value = V> + Clone) -> impl Strategy<Value = ByName<N, V>>
where
    N: Ord + std::fmt::Debug + std::str::FromStr<Err: std::fmt::Debug>,
    V: std::fmt::Debug,
{
    let each = proptest::collection::vec(proptest::option::weighted(0.4, value.clone()), names.len());
    (proptest::option::weighted(0.3, value), each).prop_map(|(others, each)| {
        let listed = names.iter().zip(each).filter_map(|(name, value)| Some((name.parse().expect("a name"), value?)));
        ByName { others, named: listed.collect() }
    })
}

/// A task that runs.
struct Running {
    integration: IntegrationName,
    tenant: Tenant,
    priority: Priority,
    weight: u32,
    place: Place,
}

/// What there is, without any number that is kept: each is worked out from what runs.
struct Model {
    limits: Limits,
    narrowed: [Option<u32>; INTEGRATIONS.len()],
    overloaded: bool,
    draining: bool,
    running: Vec<Running>,
}

impl Model {
    fn held(&self, which: impl Fn(&Running) -> bool) -> u32 {
        self.running.iter().filter(|task| which(task)).map(|task| task.weight).sum()
    }

    fn most(&self, integration: &IntegrationName) -> u32 {
        let index = INTEGRATIONS.iter().position(|known| *known == integration.as_str()).expect("known");
        let cap = self.limits.integration_caps.get(integration).map_or(u32::MAX, |cap| cap.of(self.limits.target));
        self.limits.target.min(cap).min(self.narrowed[index].unwrap_or(u32::MAX))
    }

    fn tenant_most(&self, tenant: &Tenant) -> u32 {
        self.limits.tenant_caps.get(tenant).map_or(u32::MAX, |cap| cap.of(self.limits.target))
    }

    fn weight(&self, integration: &IntegrationName) -> u32 {
        self.limits.weights.get(integration).unwrap_or_default().slots().min(self.most(integration)).max(1)
    }

    /// As the requirement has it: what interactive tasks hold is not reserved a second time.
    fn fits(&self, weight: u32, priority: Priority) -> bool {
        let interactive = self.held(|task| task.priority == Priority::Interactive);
        let kept = match priority {
            Priority::Interactive => 0,
            Priority::Batch => self.limits.reserve().saturating_sub(interactive),
        };
        self.held(|_| true) + weight + kept <= self.limits.target
    }

    /// The weight that a task is admitted with, or the label of the reason why it is not.
    fn admits(&self, want: &Want<'_>) -> Result<u32, &'static str> {
        let Limits { target, .. } = self.limits;
        let for_priority = if want.priority == Priority::Batch { target - self.limits.reserve() } else { target };
        let tenant_most = self.tenant_most(want.tenant);
        let weight = self.weight(want.integration).min(for_priority).min(tenant_most).max(1);
        match () {
            () if self.draining => Err("draining"),
            () if self.overloaded => Err("overloaded"),
            () if !self.fits(weight, Priority::Interactive) => Err("full"),
            () if !self.fits(weight, want.priority) => Err("reserve"),
            () if self.held(|task| task.integration == *want.integration) + weight > self.most(want.integration) => {
                Err("integration_full")
            }
            () if self.held(|task| task.tenant == *want.tenant) + weight > tenant_most => Err("tenant_full"),
            () => Ok(weight),
        }
    }

    fn standing(&self) -> Standing {
        let room = self.limits.target.saturating_sub(self.held(|_| true));
        let state = match () {
            () if self.draining => State::Draining,
            () if self.overloaded => State::Overloaded,
            () if room == 0 => State::Full,
            () => State::Open,
        };
        let is_full = |integration: &IntegrationName| {
            let weight = self.weight(integration);
            let held = self.held(|task| task.integration == *integration);
            held + weight > self.most(integration) || weight > room.max(1)
        };
        let takes_batch = state == State::Open && self.fits(1, Priority::Batch);
        Standing { state, takes_batch, full: INTEGRATIONS.map(name).into_iter().filter(is_full).collect() }
    }
}

fn label(refused: &Refused) -> &'static str {
    match refused {
        Refused::Full { .. } => "full",
        Refused::Reserve { .. } => "reserve",
        Refused::IntegrationFull { .. } => "integration_full",
        Refused::TenantFull { .. } => "tenant_full",
        Refused::Overloaded => "overloaded",
        Refused::Draining => "draining",
    }
}

/// A gate's arithmetic and its model, side by side.
struct Pair {
    slots: Slots,
    model: Model,
    now: Instant,
    /// What a follower knows.
    heard: Standing,
    task_seconds: f64,
}

impl Pair {
    fn new(limits: Limits) -> Self {
        let now = Instant::now();
        let slots = Slots::new(limits.clone(), INTEGRATIONS.map(name), now);
        let heard = slots.told().clone();
        let narrowed = [None; INTEGRATIONS.len()];
        let model = Model { limits, narrowed, overloaded: false, draining: false, running: Vec::new() };
        Pair { slots, model, now, heard, task_seconds: 0.0 }
    }

    fn apply(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Admit(integration, tenant, priority) => self.admit(integration, tenant, priority)?,
            Step::Release(which) if !self.model.running.is_empty() => {
                let task = self.model.running.swap_remove(which.index(self.model.running.len()));
                self.slots.release(&task.place, self.now);
            }
            Step::Release(_) => {}
            Step::SetLimits(limits) => {
                self.slots.set_limits(limits.clone());
                self.model.limits = limits;
            }
            Step::Narrow(integration, most) => {
                self.slots.narrow(&name(INTEGRATIONS[integration]), most);
                self.model.narrowed[integration] = most;
            }
            Step::Overloaded(overloaded) => {
                self.slots.set_overloaded(overloaded);
                self.model.overloaded = overloaded;
            }
            Step::Drain => {
                self.slots.drain();
                self.model.draining = true;
            }
            Step::Wait(milliseconds) => {
                self.now += Duration::from_millis(milliseconds);
                self.task_seconds += self.model.running.len() as f64 * milliseconds as f64 / 1000.0;
            }
        }
        self.check()
    }

    fn admit(&mut self, integration: usize, tenant: usize, priority: Priority) -> Result<(), TestCaseError> {
        let (integration, tenant) = (name(INTEGRATIONS[integration]), TENANTS[tenant].parse().expect("a tenant"));
        let want = Want { integration: &integration, tenant: &tenant, priority };
        let expected = self.model.admits(&want);
        match self.slots.admit(&want, self.now) {
            Ok(place) => {
                let before = self.model.held(|_| true);
                let weight = self.slots.load().held() - before;
                prop_assert_eq!(Ok(weight), expected);
                self.model.running.push(Running { integration, tenant, priority, weight, place });
            }
            Err(refused) => prop_assert_eq!(Err(label(&refused)), expected, "{}", refused),
        }
        Ok(())
    }

    /// All numbers are what runs, and the follower knows where it stands.
    fn check(&mut self) -> Result<(), TestCaseError> {
        let (model, load) = (&self.model, self.slots.load());
        prop_assert_eq!(load.in_flight as usize, model.running.len());
        prop_assert_eq!(load.held(), model.held(|_| true));
        prop_assert_eq!(load.held_by_batch, model.held(|task| task.priority == Priority::Batch));
        for of in self.slots.by_integration() {
            prop_assert_eq!(of.held, model.held(|task| task.integration == of.integration));
            prop_assert_eq!((of.most, of.weight), (model.most(&of.integration), model.weight(&of.integration)));
        }
        for full in self.slots.full_tenants(TENANTS.len()) {
            prop_assert_eq!(full.held, model.held(|task| task.tenant == full.tenant));
            prop_assert!(full.held >= full.most && full.most == model.tenant_most(&full.tenant));
        }
        let expected = model.standing();
        let news = self.slots.news();
        prop_assert_eq!(news.is_some(), expected != self.heard, "told only when it has changed, and then always");
        self.heard = news.unwrap_or_else(|| self.heard.clone());
        prop_assert_eq!(&self.heard, &expected);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_events_keeps_every_limit_and_loses_no_slot(steps in steps(), limits in limits()) {
        let mut pair = Pair::new(limits);
        for step in steps {
            pair.apply(step)?;
        }
        let task_seconds = pair.slots.task_seconds(pair.now);
        prop_assert!((task_seconds - pair.task_seconds).abs() < 1e-6);
        while let Some(task) = pair.model.running.pop() {
            pair.slots.release(&task.place, pair.now);
            pair.check()?;
        }
        let load = pair.slots.load();
        prop_assert_eq!((load.held(), load.in_flight), (0, 0));
        prop_assert!(pair.slots.holds_nothing());
    }
}
