mod rates;

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::{Value, json};

use super::*;
use crate::registry::{Incarnation, Presence, State};
use crate::router::queue::Run;
use crate::settings::{self, Settings};
use crate::task::Priority;
use crate::task::testing::task;
use crate::wire::Reason;
use crate::wire::metadata::{Share, Shares};

const SECOND: Duration = Duration::from_secs(1);

fn presence(worker: &str, pool: &str, target: u32) -> Presence {
    Presence {
        worker: worker.parse().expect("a worker id"),
        address: format!("http://{worker}:7401"),
        incarnation: Incarnation::mint(),
        pool: name(pool),
        target,
        in_flight: 0,
        reserved: 0,
        state: if target == 0 { State::Full } else { State::Open },
        integrations: vec!["bank".parse().expect("an integration")],
        full: vec![],
        broken: vec![],
        half_open: vec![],
        settings_version: "start".into(),
        settings_rejected: None,
        jump_limit: None,
    }
}

fn name(pool: &str) -> PoolName {
    pool.parse().expect("a pool")
}

fn split(pools: Value, overflow: Value) -> Split {
    let settings = Settings {
        pools: pools.try_into().expect("weights"),
        pool_overflow: overflow.try_into().expect("pools"),
        ..settings::Config::default().start()
    };
    Split::new(&settings, &PoolName::default())
}

/// The pools, tasks that wait in them by number, and calls that are out.
struct Bench {
    pools: Pools<u32>,
    random: SmallRng,
    now: Instant,
    out: BTreeMap<u32, (Place, Grant)>,
    tasks: u32,
}

impl Bench {
    fn new(pools: Value, overflow: Value) -> Self {
        let now = Instant::now();
        let pools = Pools::new(queue::Config::default(), outlier::Config::default(), split(pools, overflow), now);
        Bench { pools, random: SmallRng::seed_from_u64(1), now, out: BTreeMap::new(), tasks: 0 }
    }

    /// The workers of a pool, and those who are served by them.
    fn workers(&mut self, pool: &str, workers: &[(&str, u32)]) -> Vec<u32> {
        let workers = workers.iter().map(|(worker, target)| Change::Present(presence(worker, pool, *target))).collect();
        self.pools.apply(&name(pool), workers, self.now);
        self.serve(Touched::Pool(&name(pool)))
    }

    fn tune(&mut self, pools: Value, overflow: Value) -> Vec<u32> {
        self.pools.tune(split(pools, overflow), 0.1, self.now, |_| ());
        self.serve(Touched::All)
    }

    fn serve(&mut self, touched: Touched<'_>) -> Vec<u32> {
        let ready = self.pools.serve(touched, &mut self.random, self.now);
        let mut served = Vec::new();
        for Ready { place, waiter, grant } in ready {
            served.push(waiter);
            self.out.insert(waiter, (place, grant));
        }
        served
    }

    fn place(&mut self, tenant: &str, priority: Priority) -> (u32, Place) {
        self.tasks += 1;
        let task = Task {
            tenant: tenant.parse().expect("a tenant"),
            priority,
            deadline: self.now + SECOND * 60,
            ..task(&format!("t-{}", self.tasks))
        };
        (self.tasks, self.pools.place(&task, self.now))
    }

    /// Submits a task: where it is called, or none where it waits.
    fn submit(&mut self, tenant: &str) -> (u32, Option<(String, Option<Lack>)>) {
        let (task, place) = self.place(tenant, Priority::Batch);
        let called = match self.pools.reserve(&place, &mut self.random, self.now) {
            Ok(grant) => {
                let called = (grant.pool.to_string(), grant.lack);
                self.out.insert(task, (place, grant));
                Some(called)
            }
            Err(room) => {
                let (now, queue) = (self.now, self.pools.queue(&place));
                queue.push(place.clone(), task, now).expect("room to wait");
                if let Some(room) = room {
                    queue.found(&place, room, now);
                }
                None
            }
        };
        (task, called)
    }

    fn end(&mut self, task: u32) -> Vec<u32> {
        self.end_with(task, Learned::Answered, None, true)
    }

    fn end_with(&mut self, task: u32, learned: Learned, load: Option<LoadReport>, ran: bool) -> Vec<u32> {
        let (place, grant) = self.out.remove(&task).expect("it is out");
        let run = if ran { Run::Ended } else { Run::NotBegun };
        let ran = Ran { run, slots: None, succeeded_in: ran.then_some(SECOND) };
        self.pools.end(&grant, &place, Ended { learned, load, ran }, 1.0, self.now);
        self.serve(Touched::Worker(&grant.pool, &grant.placement.worker))
    }

    fn pool_of(&self, task: u32) -> &str {
        self.out[&task].1.pool.as_str()
    }

    fn waiting(&self, pool: &str) -> usize {
        let numbers = self.pools.numbers(self.now);
        let pool = numbers.iter().find(|numbers| numbers.name.as_str() == pool);
        pool.map_or(0, |pool| pool.classes.iter().map(|class| class.waiting).sum())
    }

    fn condition(&self, pool: &str) -> Condition {
        let numbers = self.pools.numbers(self.now);
        numbers.iter().find(|numbers| numbers.name.as_str() == pool).expect("it is there").condition
    }
}

fn called(pool: &str) -> Option<(String, Option<Lack>)> {
    Some((pool.to_owned(), None))
}

fn elsewhere(pool: &str, lack: Lack) -> Option<(String, Option<Lack>)> {
    Some((pool.to_owned(), Some(lack)))
}

#[test]
fn who_waits_moves_when_the_weights_do_and_keeps_its_place() {
    let mut bench = Bench::new(json!({"slow": 1, "fast": 0}), json!({}));
    bench.workers("slow", &[("s", 1)]);
    bench.workers("fast", &[("f", 1)]);
    assert_eq!(bench.submit("acme").1, called("slow"));
    let waits: Vec<_> = (0..3).map(|_| bench.submit("acme").0).collect();
    assert_eq!((bench.waiting("slow"), bench.waiting("fast")), (3, 0));
    bench.now += SECOND;
    // One that came later, with a later deadline, and is there already.
    let served = bench.tune(json!({"slow": 0, "fast": 1}), json!({}));
    assert_eq!((served, bench.pool_of(waits[0])), (vec![waits[0]], "fast"));
    let later = bench.submit("acme").0;
    assert_eq!((bench.waiting("slow"), bench.waiting("fast")), (0, 3));
    let mut order = Vec::new();
    let mut next = waits[0];
    while let [served] = bench.end(next)[..] {
        order.push(served);
        next = served;
    }
    assert_eq!(order, [waits[1], waits[2], later]);
    assert_eq!(bench.end(1), [0; 0], "the slow one's worker is free, and nobody is at home there");
}

#[test]
fn a_refused_task_goes_where_the_weights_say_by_then() {
    let mut bench = Bench::new(json!({"slow": 1}), json!({}));
    bench.workers("slow", &[("s", 1)]);
    let (task, _) = bench.submit("acme");
    bench.tune(json!({"fast": 1}), json!({}));
    bench.workers("fast", &[("f", 1)]);
    let place = bench.out[&task].0.clone();
    bench.end_with(task, Learned::Refused(Reason::WorkerFull), None, false);
    let grant = bench.pools.reserve(&place, &mut bench.random, bench.now).expect("room");
    assert_eq!(grant.pool, name("fast"));
}

#[test]
fn nothing_overflows_unasked() {
    let mut bench = Bench::new(json!({"small": 1, "large": 0}), json!({}));
    bench.workers("small", &[("s", 1)]);
    bench.workers("large", &[("l", 9)]);
    assert_eq!(bench.submit("acme").1, called("small"));
    assert_eq!(bench.submit("acme").1, None);
    assert_eq!(bench.serve(Touched::All), [0; 0]);
    let second = 2;
    assert_eq!(bench.end(1), [second]);
}

#[test]
fn what_lacks_slots_overflows_at_once_and_from_the_queue_and_own_tasks_come_first() {
    let overflow = || json!({"small": "large"});
    let mut bench = Bench::new(json!({"small": 1, "large": 0}), overflow());
    bench.workers("small", &[("s", 1)]);
    bench.workers("large", &[("l", 1)]);
    assert_eq!(bench.submit("acme").1, called("small"));
    assert_eq!(bench.submit("acme").1, elsewhere("large", Lack::Full));
    let waits = bench.submit("acme").0;
    assert_eq!(bench.waiting("small"), 1, "it waits at home");
    assert_eq!(bench.end(2), [waits], "room at the other pool is for it, too");
    assert_eq!(bench.pool_of(waits), "large");

    // From now on tasks are at home in the large one, and two wait in each.
    let at_small: Vec<_> = (0..2).map(|_| bench.submit("acme").0).collect();
    let mut mixed = Bench::new(json!({"small": 1, "large": 1}), overflow());
    mixed.workers("small", &[("s", 0)]);
    mixed.workers("large", &[("l", 1)]);
    let tasks: Vec<_> = (0..40).map(|_| mixed.submit("acme").0).collect();
    let (small, large) = (mixed.waiting("small"), mixed.waiting("large"));
    assert!(small > 5 && large > 5, "{small} {large}");
    let mut order = Vec::new();
    let mut next = *mixed.out.keys().next().expect("one is out");
    while let [served] = mixed.end(next)[..] {
        order.push(mixed.out[&served].1.home.to_string());
        next = served;
    }
    assert_eq!(order.len(), tasks.len() - 1);
    assert!(order[..large].iter().all(|home| home == "large") && order[large..].iter().all(|home| home == "small"));
    assert_eq!(at_small.len(), bench.waiting("small"));
}

#[test]
fn a_cap_is_no_lack() {
    let mut bench = Bench::new(json!({"home": 1, "other": 0}), json!({"home": "other"}));
    bench.workers("home", &[("h", 9)]);
    bench.workers("other", &[("o", 9)]);
    let (first, _) = bench.submit("acme");
    let share = |most| Share { held: 1, most };
    let shares = Some(Shares { weight: 1, integration: share(None), tenant: share(Some(1)) });
    let load = LoadReport { in_flight: 1, target: 9, reserved: 0, keeps_out: false, shares };
    let (second, _) = bench.submit("acme");
    bench.end_with(second, Learned::Refused(Reason::TenantFull), Some(load), false);
    assert_eq!(bench.submit("acme").1, None, "its tenant is at its cap at home");
    assert_eq!(bench.submit("other").1, called("home"), "and nobody else is");
    bench.end(first);
    assert_eq!(bench.pool_of(3), "home");
}

#[test]
fn no_workers_is_another_lack_and_is_known_only_when_the_registry_was_heard() {
    let mut bench = Bench::new(json!({"empty": 1}), json!({"empty": "other"}));
    bench.workers("other", &[("o", 9)]);
    assert_eq!(bench.condition("empty"), Condition::Unheard);
    assert_eq!(bench.submit("acme").1, None, "its workers may be there, and were only not heard of yet");
    assert_eq!(bench.workers("empty", &[]), [1]);
    assert_eq!(bench.out[&1].1.lack, Some(Lack::NoWorkers));
    assert_eq!(
        (bench.submit("acme").1, bench.condition("empty")),
        (elsewhere("other", Lack::NoWorkers), Condition::NeverSeen)
    );
    bench.workers("empty", &[("e", 1)]);
    assert_eq!((bench.submit("acme").1, bench.condition("empty")), (called("empty"), Condition::Serving));
}

#[test]
fn the_error_for_a_pool_without_workers_names_it_and_who_sends_there() {
    let told = |bench: &mut Bench| {
        let (task, place) = bench.place("acme", Priority::Batch);
        let now = bench.now;
        bench.pools.queue(&place).push(place.clone(), task, now).expect("room to wait");
        let passed = bench.pools.pass(|_| true, bench.now);
        let [(told, error)] = &passed.told[..] else { panic!("one is told") };
        assert_eq!((*told, error.reason), (task, Reason::NoWorkers));
        error.message.clone()
    };
    let mut bench = Bench::new(json!({"parralel": 5}), json!({}));
    assert!(told(&mut bench).starts_with("the router has not heard yet who is in pool \"parralel\""));
    bench.workers("parralel", &[]);
    assert_eq!(
        told(&mut bench),
        "the router knows no worker that is alive in pool \"parralel\", and never knew one there, to which the setting \
         pools sends this task; and none takes over from it (the setting pool_overflow)"
    );
    let mut bench = Bench::new(json!({"a": 5}), json!({"a": "b"}));
    bench.workers("a", &[]);
    assert!(told(&mut bench).ends_with("nor in pool \"b\", which takes over from it (the setting pool_overflow)"));
    bench.workers("b", &[("b", 1)]);
    assert!(bench.pools.pass(|_| true, bench.now).told.is_empty(), "pool b is there for them");
    let mut own = Bench::new(json!({}), json!({}));
    own.workers("default", &[]);
    assert!(told(&mut own).contains("in pool \"default\", and never knew one there, to which router.pool sends"));
}

#[test]
fn a_pool_with_a_weight_and_without_workers_is_news_once_each_way() {
    let mut bench = Bench::new(json!({"a": 5, "idle": 0}), json!({}));
    bench.workers("a", &[]);
    bench.workers("idle", &[]);
    let news = |bench: &mut Bench, later: Duration| {
        bench.now += later;
        bench.pools.pass(|_| false, bench.now).news
    };
    assert_eq!(news(&mut bench, Duration::ZERO), []);
    assert_eq!(news(&mut bench, NO_WORKERS_PATIENCE), [News::Missed(name("a"), Condition::NeverSeen, Origin::Setting)]);
    assert_eq!(news(&mut bench, NO_WORKERS_PATIENCE * 9), []);
    bench.workers("a", &[("a", 1)]);
    assert_eq!(news(&mut bench, SECOND), [News::Back(name("a"))]);
    assert_eq!(news(&mut bench, SECOND), []);
}

#[test]
fn a_pool_that_is_named_no_more_is_forgotten_when_its_last_call_has_ended() {
    let mut bench = Bench::new(json!({"old": 1}), json!({}));
    bench.workers("old", &[("o", 1)]);
    let (task, _) = bench.submit("acme");
    bench.tune(json!({"new": 1}), json!({}));
    assert_eq!(bench.pools.pass(|_| false, bench.now).ended, []);
    assert!(bench.pools.are_several());
    bench.end(task);
    let ended = bench.pools.pass(|_| false, bench.now).ended;
    assert_eq!(ended.iter().map(|ended| ended.worker.as_str()).collect::<Vec<_>>(), ["o"]);
    assert!(!bench.pools.are_several());
}

#[test]
fn a_pool_whose_registry_is_away_is_not_forgotten_with_its_workers() {
    let mut bench = Bench::new(json!({"old": 1}), json!({}));
    bench.workers("old", &[("o", 1)]);
    bench.pools.follows(&name("old"));
    bench.pools.set_stale(&name("old"));
    bench.tune(json!({"new": 1}), json!({}));
    assert!(!bench.pools.let_go(&name("old")));
    assert_eq!(bench.pools.pass(|_| false, bench.now).ended, []);
    bench.tune(json!({"old": 1}), json!({}));
    let (task, called) = bench.submit("acme");
    assert!(called.is_some(), "its worker is known still");
    bench.end(task);

    bench.tune(json!({"new": 1}), json!({}));
    bench.workers("old", &[("o", 1)]);
    assert!(bench.pools.let_go(&name("old")), "it was heard again");
    assert_eq!(bench.pools.pass(|_| false, bench.now).ended.len(), 1);
    assert!(!bench.pools.are_several());
}

#[test]
fn one_pool_that_is_stuck_fills_no_other_ones_queue() {
    let mut bench = Bench::new(json!({"stuck": 1, "fine": 1}), json!({}));
    bench.workers("stuck", &[("s", 0)]);
    bench.workers("fine", &[("f", 1000)]);
    let called: Vec<_> = (0..500).filter_map(|_| bench.submit("acme").1).collect();
    assert!(called.iter().all(|(pool, _)| pool == "fine"));
    assert_eq!(called.len() + bench.waiting("stuck"), 500);
    assert_eq!(bench.waiting("fine"), 0);
}

/// What may happen.
#[derive(Debug, Clone)]
enum Step {
    Submit(u8),
    End(u8),
    Refuse(u8),
    Tune { weights: [u8; 3], overflow: [Option<u8>; 3] },
    Resize { pool: u8, target: u8 },
    Vanish(u8),
    Tick,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let weights = [0u8..4, 0u8..4, 0u8..4];
    let overflow = [proptest::option::of(0u8..3), proptest::option::of(0u8..3), proptest::option::of(0u8..3)];
    let step = prop_oneof![
        6 => (0u8..6).prop_map(Step::Submit),
        4 => any::<u8>().prop_map(Step::End),
        1 => any::<u8>().prop_map(Step::Refuse),
        1 => (weights, overflow).prop_map(|(weights, overflow)| Step::Tune { weights, overflow }),
        1 => (0u8..3, 0u8..5).prop_map(|(pool, target)| Step::Resize { pool, target }),
        1 => (0u8..3).prop_map(Step::Vanish),
        1 => Just(Step::Tick),
    ];
    proptest::collection::vec(step, 1..200)
}

const NAMES: [&str; 3] = ["a", "b", "c"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Nobody is lost, nobody is called where no weight and no overflow sends it, and in the end nothing is held.
    #[test]
    fn whatever_happens_each_task_is_out_or_waits_at_home(steps in steps()) {
        let mut bench = Bench::new(json!({"a": 1}), json!({}));
        for pool in NAMES {
            bench.workers(pool, &[(pool, 2)]);
        }
        let (mut submitted, mut ended, mut told) = (0usize, 0usize, 0usize);
        for step in steps {
            bench.now += Duration::from_millis(20);
            let before: Vec<u32> = bench.out.keys().copied().collect();
            let nth = |n: u8| before.get(usize::from(n) % before.len().max(1)).copied();
            match step {
                Step::Submit(tenant) => {
                    submitted += 1;
                    bench.submit(&format!("tenant-{tenant}"));
                }
                Step::End(n) => if let Some(task) = nth(n) {
                    ended += 1;
                    bench.end(task);
                },
                Step::Refuse(n) => if let Some(task) = nth(n) {
                    let place = bench.out[&task].0.clone();
                    bench.end_with(task, Learned::Refused(Reason::WorkerFull), None, false);
                    let now = bench.now;
                    bench.pools.queue(&place).resume(place.clone(), task, now);
                    bench.serve(Touched::Pool(&bench.pools.home(&place).clone()));
                },
                Step::Tune { weights, overflow } => {
                    let pools: Value = NAMES.iter().zip(weights).map(|(name, weight)| (*name, weight)).collect();
                    let into = NAMES.iter().zip(overflow).filter_map(|(name, into)| Some((*name, NAMES[usize::from(into?)])));
                    let overflow: Value = into.filter(|(name, into)| name != into).collect();
                    if weights.iter().any(|weight| *weight > 0) {
                        bench.tune(pools, overflow);
                        // As the loop that follows a pool does when it begins.
                        for pool in NAMES {
                            bench.workers(pool, &[]);
                        }
                    }
                }
                Step::Resize { pool, target } => {
                    let pool = NAMES[usize::from(pool)];
                    bench.workers(pool, &[(pool, target.into())]);
                }
                Step::Vanish(pool) => {
                    let pool = name(NAMES[usize::from(pool)]);
                    let snapshot = bench.pools.numbers(bench.now);
                    prop_assert!(snapshot.len() <= NAMES.len());
                    let gone = bench.pools.pool_mut(&pool).map(|pool| pool.view.placements(bench.now)).unwrap_or_default();
                    let gone = gone.into_iter().map(|placement| Change::Gone(placement.worker, placement.incarnation));
                    bench.pools.apply(&pool, gone.collect(), bench.now);
                    bench.serve(Touched::Pool(&pool));
                }
                Step::Tick => {
                    told += bench.pools.pass(|_| true, bench.now).told.len();
                    bench.serve(Touched::All);
                }
            }
            let waiting: usize = NAMES.iter().map(|pool| bench.waiting(pool)).sum();
            prop_assert_eq!(waiting + bench.out.len() + ended + told, submitted);
            for (task, (place, grant)) in &bench.out {
                if !before.contains(task) {
                    prop_assert_eq!(&grant.home, bench.pools.home(place));
                    let elsewhere = bench.pools.split.overflow_of(&grant.home);
                    prop_assert!(grant.pool == grant.home || (grant.lack.is_some() && elsewhere == Some(&grant.pool)));
                }
            }
            let Pools { split, pools, .. } = &mut bench.pools;
            for Pool { name, queue, .. } in pools {
                prop_assert_eq!(queue.take_out(|place| split.home(&place.keys) != name, bench.now).len(), 0);
            }
        }
        for task in bench.out.keys().copied().collect::<Vec<_>>() {
            if bench.out.contains_key(&task) {
                bench.end(task);
            }
        }
        while let Some(task) = bench.out.keys().next().copied() {
            bench.end(task);
        }
        prop_assert!(bench.pools.numbers(bench.now).iter().all(|pool| pool.census.in_flight == 0));
    }
}
