//! Whatever happens, who is found is who a look at each of them would find.

use std::time::Duration;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::registry::{Change, Incarnation, State};
use crate::router::outlier::Config;
use crate::router::queue::Room;
use crate::router::view::{Learned, Placement, View};
use crate::task::Tenant;
use crate::wire::Reason;
use crate::wire::metadata::{LoadReport, Share, Shares};

/// More than one word of a set.
const WORKERS: usize = 70;
const INTEGRATIONS: [&str; 3] = ["bank", "broker", "card"];
const TENANTS: [&str; 2] = ["acme", "globex"];

#[derive(Debug, Clone, Copy)]
struct Kind {
    integration: usize,
    tenant: usize,
    priority: Priority,
}

#[derive(Debug, Clone)]
enum Step {
    /// Tasks of a kind ask for a worker, one after the other.
    Ask(Kind, usize),
    Connects(usize),
    Ends(usize, Learned, Option<LoadReport>),
    /// A worker says what it is; as another life, or as the one before.
    Says(Presence, bool),
    Goes(usize),
    /// A snapshot without one of so many workers.
    Snapshot(usize),
    Stale(bool),
    /// Milliseconds.
    Passes(u64),
    Ticks,
}

fn kind() -> impl Strategy<Value = Kind> {
    let priority = prop_oneof![Just(Priority::Interactive), Just(Priority::Batch)];
    let kind = (0..INTEGRATIONS.len(), 0..TENANTS.len(), priority);
    kind.prop_map(|(integration, tenant, priority)| Kind { integration, tenant, priority })
}

fn names(chosen: &[bool]) -> Vec<IntegrationName> {
    let chosen = INTEGRATIONS.iter().zip(chosen).filter(|(_, chosen)| **chosen);
    chosen.map(|(name, _)| name.parse().expect("a name")).collect()
}

fn presence() -> impl Strategy<Value = Presence> {
    let state = prop_oneof![4 => Just(State::Open), 3 => Just(State::Full), 1 => Just(State::Overloaded), 1 => Just(State::Draining)];
    let some = |share| prop::collection::vec(prop::bool::weighted(share), INTEGRATIONS.len());
    let lists = (some(0.8), some(0.1), some(0.1));
    (0..WORKERS, state, 0..4u32, 0..4u32, 0..2u32, lists, 0..2u8).prop_map(
        |(worker, state, in_flight, target, reserved, (integrations, full, broken), settings)| Presence {
            worker: format!("w{worker}").parse().expect("a worker id"),
            address: format!("http://w{worker}:7401"),
            incarnation: Incarnation::mint(),
            pool: "default".parse().expect("a pool"),
            target,
            in_flight,
            reserved,
            state,
            integrations: names(&integrations),
            full: names(&full),
            broken: names(&broken),
            half_open: vec![],
            settings_version: settings.to_string(),
            settings_rejected: None,
            jump_limit: None,
        },
    )
}

fn load() -> impl Strategy<Value = Option<LoadReport>> {
    let share = || (0..4u32, prop::option::of(0..4u32)).prop_map(|(held, most)| Share { held, most });
    let shares = (share(), share()).prop_map(|(integration, tenant)| Shares { weight: 1, integration, tenant });
    let load = (0..4u32, 0..4u32, 0..2u32, any::<bool>(), prop::option::of(shares));
    prop::option::of(load.prop_map(|(in_flight, target, reserved, keeps_out, shares)| LoadReport {
        in_flight,
        target,
        reserved,
        keeps_out,
        shares,
    }))
}

fn learned() -> impl Strategy<Value = Learned> {
    prop_oneof![
        Just(Learned::Answered),
        Just(Learned::Succeeded),
        Just(Learned::Failed),
        Just(Learned::Unreachable),
        Just(Learned::Broke),
        Just(Learned::Nothing),
        Just(Learned::Refused(Reason::WorkerFull)),
        Just(Learned::Refused(Reason::IntegrationFull)),
        Just(Learned::Refused(Reason::TenantFull)),
        Just(Learned::Refused(Reason::Overloaded)),
        Just(Learned::Refused(Reason::Draining)),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (kind(), 1..20usize).prop_map(|(kind, times)| Step::Ask(kind, times)),
        1 => any::<usize>().prop_map(Step::Connects),
        8 => (any::<usize>(), learned(), load()).prop_map(|(call, learned, load)| Step::Ends(call, learned, load)),
        8 => (presence(), prop::bool::weighted(0.2)).prop_map(|(presence, is_new)| Step::Says(presence, is_new)),
        1 => (0..WORKERS).prop_map(Step::Goes),
        1 => (1..4usize).prop_map(Step::Snapshot),
        1 => any::<bool>().prop_map(Step::Stale),
        4 => prop_oneof![0..400u64, 0..8_000u64, Just(30_000)].prop_map(Step::Passes),
        2 => Just(Step::Ticks),
    ];
    prop::collection::vec(step, 1..80)
}

struct Bench {
    view: View,
    random: SmallRng,
    now: Instant,
    integrations: Vec<IntegrationName>,
    tenants: Vec<Tenant>,
    calls: Vec<(Placement, Kind)>,
}

impl Bench {
    fn new(seed: u64, workers: Vec<Presence>) -> Self {
        // So that ejections, and the trials after them, are no rarity.
        let second = Duration::from_secs(1);
        let config = Config {
            consecutive_errors: 2,
            base_time: second,
            max_time: second * 5,
            max_ejected: 0.5,
            ..Config::default()
        };
        let (view, random, now) = (View::new(config), SmallRng::seed_from_u64(seed), Instant::now());
        let integrations = names(&[true; INTEGRATIONS.len()]);
        let tenants = TENANTS.map(|name| name.parse().expect("a tenant")).into();
        let mut bench = Bench { view, random, now, integrations, tenants, calls: Vec::new() };
        bench.view.replace(workers, now);
        bench
    }

    fn does(&mut self, step: Step) -> Result<(), TestCaseError> {
        let Bench { view, now, calls, .. } = self;
        match step {
            Step::Ask(kind, times) => (0..times).try_for_each(|_| self.asks(kind))?,
            Step::Connects(call) if !calls.is_empty() => view.connected(&calls[call % calls.len()].0),
            Step::Ends(call, learned, load) if !calls.is_empty() => {
                let (placement, kind) = calls.swap_remove(call % calls.len());
                let (integration, tenant) = (&self.integrations[kind.integration], &self.tenants[kind.tenant]);
                let wanted = Wanted { integration, tenant, priority: kind.priority };
                view.release(&placement, &wanted, learned, load, 0.5, *now);
            }
            Step::Connects(_) | Step::Ends(..) => {}
            Step::Says(presence, is_new) => {
                let before = view.workers.get(&presence.worker).filter(|_| !is_new);
                let incarnation = before.map_or(presence.incarnation, |known| known.presence.incarnation);
                view.apply(Change::Present(Presence { incarnation, ..presence }), *now);
            }
            Step::Goes(worker) => {
                let worker: WorkerId = format!("w{worker}").parse().expect("an id");
                if let Some(incarnation) = view.workers.get(&worker).map(|known| known.presence.incarnation) {
                    view.apply(Change::Gone(worker, incarnation), *now);
                }
            }
            Step::Snapshot(without) => {
                let known = view.workers.values().enumerate().filter(|(number, _)| !number.is_multiple_of(without));
                let workers = known.map(|(_, known)| known.presence.clone()).collect();
                view.replace(workers, *now);
            }
            Step::Stale(true) => view.set_stale(),
            Step::Stale(false) => view.set_fresh(*now),
            Step::Passes(milliseconds) => *now += Duration::from_millis(milliseconds),
            Step::Ticks => {
                view.expire_missing(*now);
                view.forget(*now);
                view.judge(*now);
            }
        }
        self.is_right()
    }

    fn wanted(&self, kind: Kind) -> Wanted<'_> {
        let (integration, tenant) = (&self.integrations[kind.integration], &self.tenants[kind.tenant]);
        Wanted { integration, tenant, priority: kind.priority }
    }

    fn asks(&mut self, kind: Kind) -> Result<(), TestCaseError> {
        let expected = self.by_a_look_at_each(kind);
        let (integration, tenant) = (&self.integrations[kind.integration], &self.tenants[kind.tenant]);
        let wanted = Wanted { integration, tenant, priority: kind.priority };
        let found = self.view.reserve(&wanted, &mut self.random, self.now);
        match (found, expected) {
            (Room::Found(placement), Room::Found(worker)) => {
                prop_assert_eq!(&placement.worker, &worker);
                self.calls.push((placement, kind));
            }
            (Room::NotForClass, Room::NotForClass) | (Room::NotForIntegration, Room::NotForIntegration) => {}
            (Room::NotForTenant { again }, Room::NotForTenant { again: expected }) => prop_assert_eq!(again, expected),
            (found, expected) => prop_assert!(false, "{found:?}, and {expected:?} is right"),
        }
        Ok(())
    }

    /// The same choice, with nothing kept.
    fn by_a_look_at_each(&self, kind: Kind) -> Room<WorkerId> {
        let (wanted, workers, now, stale) = (self.wanted(kind), &self.view.workers, self.now, self.view.is_stale());
        let at = |row: Row| workers.known[row].as_ref().expect("it is known");
        let rows: Vec<Row> = self.serving(kind);
        let takes = |row: &Row| at(*row).load_for(&wanted, stale, now).is_some();
        let load =
            |row: Row| at(row).load_for(&wanted, stale, now).filter(|_| at(row).takes_of_tenant(wanted.tenant, now));
        let around = |from: Row| {
            let first = rows.binary_search(&from).expect("one of them");
            rows[first..].iter().chain(&rows[..first]).copied()
        };
        let again = || rows.iter().map(|row| at(*row).again_for_tenant(wanted.tenant, now)).collect::<Option<Vec<_>>>();
        match pick(&rows, &mut self.random.clone(), load, around) {
            Some(row) => Room::Found(at(row).presence.worker.clone()),
            None if rows.is_empty() => Room::NotForIntegration,
            None if !workers.values().any(|known| known.load(kind.priority, stale, now).is_some()) => Room::NotForClass,
            None if rows.iter().any(takes) => Room::NotForTenant { again: again().into_iter().flatten().min() },
            None => Room::NotForIntegration,
        }
    }

    fn serving(&self, kind: Kind) -> Vec<Row> {
        let known = self.view.workers.known.iter().enumerate();
        let runs = |known: &Known| known.presence.integrations.contains(&self.integrations[kind.integration]);
        known.filter(|(_, known)| known.as_ref().is_some_and(runs)).map(|(row, _)| row).collect()
    }

    /// Whether what is asked without a call to follow is right, too.
    fn is_right(&self) -> Result<(), TestCaseError> {
        let (workers, now, stale) = (&self.view.workers, self.now, self.view.is_stale());
        prop_assert_eq!(workers.slots(), workers.values().map(Known::slots).sum::<u64>());
        for priority in Priority::ALL {
            let has_slot = |known: &Known| known.load(priority, stale, now).is_some();
            prop_assert_eq!(workers.any_has_slot(priority, now), workers.values().any(has_slot));
            for integration in 0..INTEGRATIONS.len() {
                let kind = Kind { integration, tenant: 0, priority };
                let (wanted, rows) = (self.wanted(kind), self.serving(kind));
                let known = || rows.iter().filter_map(|row| workers.at(*row));
                prop_assert_eq!(workers.any_has_slot_for(&wanted, now), known().any(has_slot));
                let takes = |known: &Known| known.load_for(&wanted, stale, now).is_some();
                prop_assert_eq!(workers.any_takes(&wanted, now), known().any(takes));
                prop_assert_eq!(workers.serving(wanted.integration).map_or(0, |serving| serving.len()), rows.len());
            }
        }
        Ok(())
    }

    /// How many are looked at in vain before one is found, or none is.
    fn looked_at_in_vain(&mut self, kind: Kind) -> usize {
        let (now, stale) = (self.now, self.view.is_stale());
        let integration = self.integrations[kind.integration].clone();
        let tenant = self.tenants[kind.tenant].clone();
        let wanted = Wanted { integration: &integration, tenant: &tenant, priority: kind.priority };
        let workers = &mut self.view.workers;
        workers.pick(&wanted, &mut self.random, now);
        let Some(serving) = workers.serving.get(&integration) else { return 0 };
        let rows = Rows::around([workers.with_slot[kind.priority as usize].open(), serving.taking.open()], 0);
        rows.filter(|row| workers.at(*row).is_none_or(|known| known.load_for(&wanted, stale, now).is_none())).count()
    }
}

proptest! {
    #[test]
    fn who_is_found_is_who_a_look_at_each_would_find(
        seed in any::<u64>(),
        workers in prop::collection::vec(presence(), WORKERS),
        steps in steps(),
        last in kind(),
    ) {
        let mut bench = Bench::new(seed, workers);
        steps.into_iter().try_for_each(|step| bench.does(step))?;
        prop_assert_eq!(bench.looked_at_in_vain(last), 0);
    }
}
