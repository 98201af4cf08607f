//! What holds whatever happens.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Push { interactive: bool, integration: usize, tenant: usize, seconds: u64 },
    Leave(usize),
    End { which: usize, refused: bool },
    Pass(u64),
    Cap { tenant: usize, most: usize },
    CapIntegration { integration: usize, most: usize },
    UnparkAll,
}

fn step() -> impl Strategy<Value = Step> {
    let small = 0usize..4;
    prop_oneof![
        6 => (any::<bool>(), small.clone(), small.clone(), 1u64..90).prop_map(|(interactive, integration, tenant, seconds)| {
            Step::Push { interactive, integration, tenant, seconds }
        }),
        1 => (0usize..64).prop_map(Step::Leave),
        4 => (0usize..64, any::<bool>()).prop_map(|(which, refused)| Step::End { which, refused }),
        2 => (1u64..5_000).prop_map(Step::Pass),
        1 => (small.clone(), 0usize..4).prop_map(|(tenant, most)| Step::Cap { tenant, most }),
        1 => (small, 0usize..4).prop_map(|(integration, most)| Step::CapIntegration { integration, most }),
        1 => Just(Step::UnparkAll),
    ]
}

const TENANTS: [&str; 4] = ["acme", "brown", "clark", "davis"];
const INTEGRATIONS: [&str; 4] = ["bank", "broker", "card", "scraper"];

/// The queue beside a plain list of who waits.
struct Model {
    bench: Bench,
    waiting: HashMap<u32, Place>,
    next: u32,
}

impl Model {
    fn take(&mut self, step: Step) {
        match step {
            Step::Push { interactive, integration, tenant, seconds } => {
                let class = if interactive { "interactive" } else { "batch" };
                let what = format!("{class} {} {}", INTEGRATIONS[integration], TENANTS[tenant]);
                let place = self.bench.place(&what, Duration::from_secs(seconds));
                self.next += 1;
                let of = |mine: bool| {
                    let same =
                        |other: &&Place| other.priority == place.priority && (!mine || other.tenant == place.tenant);
                    self.waiting.values().filter(same).count()
                };
                let fits = of(false) < 8 && of(true) < 4;
                let pushed = self.bench.queue.push(place.clone(), self.next, self.bench.now);
                let is_slow = matches!(&pushed, Err(full) if full.bound == Bound::WaitOverDeadline);
                assert!(pushed.is_ok() == fits || is_slow, "{pushed:?}");
                if pushed.is_ok() {
                    self.waiting.insert(self.next, place);
                }
            }
            Step::Leave(which) => {
                let mut all: Vec<_> = self.waiting.keys().copied().collect();
                all.sort_unstable();
                if let Some(waiter) = all.get(which % all.len().max(1)).copied() {
                    let place = self.waiting.remove(&waiter).expect("it waits");
                    assert_eq!(self.bench.queue.remove(&place, self.bench.now), Some(waiter));
                }
            }
            Step::End { which, refused } => {
                let call = self.bench.out.keys().nth(which % self.bench.out.len().max(1)).copied();
                let Some(call) = call else { return };
                if !refused {
                    return self.bench.end(call);
                }
                let place = self.bench.out.remove(&call).expect("it is out");
                self.bench.queue.end(call, Ran::default(), self.bench.now);
                self.next += 1;
                self.bench.queue.resume(place.clone(), self.next, self.bench.now);
                self.waiting.insert(self.next, place);
            }
            Step::Pass(milliseconds) => {
                self.bench.now += Duration::from_millis(milliseconds);
                self.bench.queue.pass(self.bench.now);
            }
            Step::Cap { tenant, most } => {
                self.bench.fleet.tenant_caps.insert(TENANTS[tenant].parse().expect("a tenant"), most);
                self.bench.queue.unpark_all();
            }
            Step::CapIntegration { integration, most } => {
                self.bench.fleet.integration_caps.insert(INTEGRATIONS[integration].parse().expect("a name"), most);
            }
            Step::UnparkAll => self.bench.queue.unpark_all(),
        }
    }

    fn serve(&mut self) {
        for waiter in self.bench.serve() {
            let served = self.waiting.remove(&waiter).expect("it waited, and was not served before");
            let earlier = self.waiting.values().filter(|other| {
                let Place { priority, integration, tenant, .. } = &served;
                (&other.priority, &other.integration, &other.tenant) == (priority, integration, tenant)
            });
            let hurried = earlier.filter(|other| other.order() < served.order()).count();
            assert_eq!(hurried, 0, "the earliest deadline is first");
        }
        let Bench { fleet, out, now, queue, .. } = &self.bench;
        for place in self.waiting.values() {
            let room = fleet.room(place, out.values(), *now);
            assert!(!matches!(room, Room::Found(())), "there is room, and {place:?} waits");
        }
        for (class, priority) in queue.numbers(*now).into_iter().zip(Priority::ALL) {
            let waiting: Vec<_> = self.waiting.values().filter(|place| place.priority == priority).collect();
            assert_eq!(class.waiting, waiting.len());
            assert_eq!(class.bytes, waiting.iter().map(|place| place.bytes).sum::<usize>());
            assert_eq!(class.oldest, waiting.iter().map(|place| *now - place.since).max());
        }
    }
}

/// What two tenants use of some slots after a head start of the first, always with more waiting; the calls of each take its
/// lengths in turn.
fn used_by_two(slots: usize, lengths: &[(u64, u64)], head_start: usize, rounds: usize) -> [u64; 2] {
    let mut bench = Bench::new(patient(), Fleet::of(slots));
    let names = ["batch a one", "batch a two"];
    let mut ends: BTreeMap<(Instant, Call), usize> = BTreeMap::new();
    let (mut used, mut drawn, mut number) = ([0u64; 2], [0usize; 2], 0);
    // The first has the fleet to itself for a while, which the second cannot ask back.
    for round in 0..rounds {
        for (index, what) in names.iter().enumerate() {
            if index == 0 || round >= head_start {
                while bench.queue.class(Priority::Batch).total_of(&what[8..].parse().expect("a tenant")).tasks < 15 {
                    number += 1;
                    bench.push(what, number);
                }
            }
        }
        let before: Vec<_> = bench.out.keys().copied().collect();
        bench.serve();
        for (call, place) in bench.out.iter().filter(|(call, _)| !before.contains(call)) {
            let index = usize::from(place.tenant.as_str() == "two");
            let (one, two) = lengths[drawn[index] % lengths.len()];
            drawn[index] += 1;
            let seconds = if index == 0 { one } else { two };
            ends.insert((bench.now + SECOND * seconds as u32, *call), index);
            if round >= head_start {
                used[index] += seconds;
            }
        }
        let ((at, call), _) = ends.pop_first().expect("something runs");
        bench.now = at;
        bench.queue.pass(at);
        bench.end(call);
    }
    used
}

#[test]
fn what_two_tenants_use_does_not_drift_apart() {
    // Found by the property below: with each round one of the two lost what it had been charged with too much.
    let lengths = [(52, 36), (35, 55)];
    for rounds in [400, 4_000, 40_000] {
        let used = used_by_two(2, &lengths, 26, rounds);
        assert!(used[0].abs_diff(used[1]) <= 4 * 2 * 55, "{used:?} in {rounds} rounds");
    }
}

#[test]
fn who_could_not_be_served_for_long_has_no_credit_for_it() {
    let mut bench = Bench::new(patient(), Fleet::of(2));
    let bank: IntegrationName = "b".parse().expect("a name");
    bench.fleet.integration_caps.insert(bank.clone(), 0);
    let mut used = [0u32; 2];
    for round in 0..400 {
        if round == 200 {
            bench.fleet.integration_caps.remove(&bank);
            used = [0; 2];
        }
        for what in ["batch a one", "batch b two"] {
            bench.push(what, round);
        }
        bench.serve();
        bench.now += SECOND * 10;
        bench.queue.pass(bench.now);
        bench.out.values().for_each(|place| used[usize::from(place.tenant.as_str() == "two")] += 10);
        bench.end_all();
    }
    assert!(used[0].abs_diff(used[1]) <= 4 * 2 * 10, "{used:?}");
}

proptest! {
    #[test]
    fn nobody_is_lost_or_served_twice_and_nobody_waits_while_there_is_room(
        steps in proptest::collection::vec(step(), 1..300), reserve in 0usize..3, share in select(vec![0.0, 0.1, 0.5, 1.0]),
    ) {
        let config = Config { tasks: 8, tenant_share: 0.5, batch_share: share, ..patient() };
        let bench = Bench::new(config, Fleet { reserve, ..Fleet::of(5) });
        let mut model = Model { bench, waiting: HashMap::new(), next: 0 };
        for step in steps {
            model.take(step);
            model.serve();
        }
        // What is left goes, and nothing stays behind.
        let left: Vec<_> = model.waiting.drain().map(|(_, place)| place).collect();
        for place in left {
            prop_assert!(model.bench.queue.remove(&place, model.bench.now).is_some());
        }
        model.bench.end_all();
        prop_assert!(model.bench.queue.is_empty());
        prop_assert!(model.bench.queue.classes.iter().all(Class::holds_nothing));
    }

    /// Two tenants, always with more waiting; whose calls take what is drawn for them.
    #[test]
    fn what_two_tenants_use_differs_by_no_more_than_four_times_slots_times_the_longest(
        slots in 1usize..12,
        lengths in proptest::collection::vec((1u64..60, 1u64..60), 1..20),
        head_start in 0usize..30,
    ) {
        let used = used_by_two(slots, &lengths, head_start, 400);
        let longest = lengths.iter().flat_map(|(one, two)| [*one, *two]).max().expect("some");
        let most = 4 * slots as u64 * longest;
        prop_assert!(used[0].abs_diff(used[1]) <= most, "{used:?}, {slots} slots, {longest} s at the most");
    }

    /// Both classes always have more waiting.
    #[test]
    fn batch_has_its_share_of_what_is_started_while_it_waits(
        share in 0.0f64..0.9, interactive_seconds in 1u32..20, batch_seconds in 1u32..20,
    ) {
        let mut bench = Bench::new(Config { batch_share: share, ..patient() }, Fleet::of(1));
        let mut seconds = [0.0f64; 2];
        for number in 0..600 {
            if number % 100 == 0 {
                (0..200).for_each(|_| drop((bench.push("interactive a acme", 0), bench.push("batch b acme", 1))));
            }
            let class = bench.serve()[0] as usize;
            let took = [interactive_seconds, batch_seconds][class];
            seconds[class] += f64::from(took);
            bench.now += SECOND * took;
            bench.queue.pass(bench.now);
            bench.end_all();
        }
        // What calls take is not known at first.
        let (all, unknown) = (seconds[0] + seconds[1], 60.0 * 20.0);
        prop_assert!(seconds[1] >= share * all - unknown, "{seconds:?} {share}");
        prop_assert!(seconds[1] <= share * all + unknown, "people first: {seconds:?} {share}");
    }
}

#[test]
fn a_tenant_that_was_away_neither_has_credit_nor_is_it_held_up() {
    let mut bench = Bench::new(patient(), Fleet::of(1));
    (0..100).for_each(|_| drop(bench.push("batch a busy", 0)));
    for _ in 0..50 {
        bench.serve();
        bench.now += SECOND;
        bench.end_all();
    }
    (0..20).for_each(|_| drop(bench.push("batch a back", 1)));
    let mut served = Vec::new();
    for _ in 0..20 {
        served.extend(bench.serve());
        bench.now += SECOND;
        bench.end_all();
    }
    let back = served.iter().filter(|waiter| **waiter == 1).count();
    assert!((9..=11).contains(&back), "half of twenty: {back}");
}

#[test]
fn what_runs_counts_while_it_runs() {
    let mut bench = Bench::new(patient(), Fleet::of(20));
    (0..40).for_each(|_| drop(bench.push("batch a many", 0)));
    assert_eq!(bench.serve().len(), 20);
    bench.now += SECOND * 600;
    bench.queue.pass(bench.now);
    (0..40).for_each(|_| drop(bench.push("batch a few", 1)));
    let calls: Vec<_> = bench.out.keys().copied().collect();
    let mut served = Vec::new();
    for call in calls.into_iter().take(10) {
        bench.end(call);
        served.extend(bench.serve());
    }
    assert_eq!(served, [1; 10], "who holds twenty slots waits for who holds none");
}

#[test]
fn a_tenant_whose_cap_is_lifted_does_not_ask_back_what_it_could_not_use() {
    let mut fleet = Fleet::of(4);
    fleet.tenant_caps.insert("capped".parse().expect("a tenant"), 1);
    let mut bench = Bench::new(patient(), fleet);
    let mut number = 0;
    let mut round = |bench: &mut Bench| {
        for what in ["batch a capped", "batch a other"] {
            (0..4).for_each(|_| drop(bench.push(what, number % 2)));
            number += 1;
        }
        let served = bench.serve();
        bench.now += SECOND;
        bench.queue.pass(bench.now);
        bench.end_all();
        served.iter().filter(|waiter| **waiter == 0).count()
    };
    let capped: usize = (0..200).map(|_| round(&mut bench)).sum();
    assert_eq!(capped, 200, "one of four slots");
    bench.fleet.tenant_caps.clear();
    bench.queue.unpark_all();
    let lifted: usize = (0..20).map(|_| round(&mut bench)).sum();
    assert!((35..=45).contains(&lifted), "two of four slots: {lifted}");
}
