mod properties;

use std::collections::{BTreeMap, HashMap};

use super::*;
use crate::task::testing::task;

const SECOND: Duration = Duration::from_secs(1);

/// A deadline that nothing runs into.
const FAR: Duration = Duration::from_secs(1_000_000);

/// A queue, and a fleet of workers that are alike.
struct Bench {
    queue: Queue<u32>,
    fleet: Fleet,
    now: Instant,
    /// Whom the calls are for that are out.
    out: BTreeMap<Call, Place>,
    /// How often the fleet was asked for room.
    asked: usize,
    tickets: u64,
}

struct Fleet {
    slots: usize,
    integration_caps: HashMap<IntegrationName, usize>,
    tenant_caps: HashMap<Tenant, usize>,
    /// Slots that batch may not have.
    reserve: usize,
}

impl Fleet {
    fn of(slots: usize) -> Self {
        Fleet { slots, integration_caps: HashMap::new(), tenant_caps: HashMap::new(), reserve: 0 }
    }

    fn room<'a>(&self, place: &Place, out: impl Iterator<Item = &'a Place> + Clone, now: Instant) -> Room<()> {
        let count = |is: &dyn Fn(&Place) -> bool| out.clone().filter(|place| is(place)).count();
        let over = |cap: Option<&usize>, is: &dyn Fn(&Place) -> bool| cap.is_some_and(|cap| count(is) >= *cap);
        let most = if place.priority == Priority::Batch { self.slots - self.reserve } else { self.slots };
        if count(&|_| true) >= most {
            Room::NotForClass
        } else if over(self.integration_caps.get(&place.integration), &|out| out.integration == place.integration) {
            Room::NotForIntegration
        } else if over(self.tenant_caps.get(&place.tenant), &|out| out.tenant == place.tenant) {
            Room::NotForTenant { again: Some(now + SECOND) }
        } else {
            Room::Found(())
        }
    }
}

impl Bench {
    fn new(config: Config, fleet: Fleet) -> Self {
        let now = Instant::now();
        let mut queue = Queue::new(config, now);
        queue.set_slots(fleet.slots as u64, now);
        Bench { queue, fleet, now, out: BTreeMap::new(), asked: 0, tickets: 0 }
    }

    /// `batch bank acme`
    fn place(&mut self, what: &str, deadline: Duration) -> Place {
        let words: Vec<_> = what.split(' ').collect();
        let task = Task {
            integration: words[1].parse().expect("a name"),
            tenant: words[2].parse().expect("a tenant"),
            priority: if words[0] == "batch" { Priority::Batch } else { Priority::Interactive },
            deadline: self.now + deadline,
            ..task("t")
        };
        self.tickets += 1;
        Place::new(&task, self.tickets, self.now)
    }

    fn push(&mut self, what: &str, waiter: u32) -> Place {
        let place = self.place(what, FAR);
        self.queue.push(place.clone(), waiter, self.now).expect("room");
        place
    }

    /// Serves those for whom there is room, and returns who they were.
    fn serve(&mut self) -> Vec<u32> {
        let Bench { queue, fleet, now, out, asked, .. } = self;
        let mut begun: Vec<Place> = out.values().cloned().collect();
        let served = queue.serve(*now, |place| {
            *asked += 1;
            let room = fleet.room(place, begun.iter(), *now);
            if let Room::Found(()) = room {
                begun.push(place.clone());
            }
            room
        });
        out.extend(served.iter().map(|served| (served.call, served.place.clone())));
        served.into_iter().map(|served| served.waiter).collect()
    }

    /// As the dispatcher does it: who is first asks, and each event serves.
    fn submit(&mut self, what: &str, waiter: u32) -> Option<Place> {
        let place = self.place(what, FAR);
        let room = self.queue.is_first(&place).then(|| self.fleet.room(&place, self.out.values(), self.now));
        if let Some(Room::Found(())) = room {
            let call = self.queue.start(&place, self.now);
            self.out.insert(call, place);
            return None;
        }
        self.queue.push(place.clone(), waiter, self.now).expect("room");
        if let Some(room) = room {
            self.queue.found(&place, room, self.now);
        }
        Some(place)
    }

    /// All that is out takes so long, and so on until nothing is.
    fn run(&mut self, each: Duration) {
        while !self.out.is_empty() {
            self.now += each;
            let calls: Vec<_> = self.out.keys().copied().collect();
            for call in calls {
                self.end(call);
                self.serve();
            }
        }
    }

    /// Nothing happens for so long, and time is looked at now and then.
    fn idle(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += SECOND / 4;
            self.queue.pass(self.now);
            self.serve();
        }
    }

    fn rate(&self) -> f64 {
        self.queue.numbers(self.now)[1].per_second.expect("enough was seen")
    }

    fn end(&mut self, call: Call) {
        self.end_as(call, Run::Ended);
    }

    fn end_as(&mut self, call: Call, run: Run) {
        let place = self.out.remove(&call).expect("it is out");
        let ran = Ran { run, slots: None, succeeded_in: None };
        let took = self.queue.end(call, ran, self.now).expect("it was out");
        self.queue.learn(&place.integration, took, ran, self.now);
        self.queue.departed(&place, took, ran);
    }

    fn end_all(&mut self) {
        let calls: Vec<_> = self.out.keys().copied().collect();
        calls.into_iter().for_each(|call| self.end(call));
    }
}

/// Bounds that no test runs into.
fn patient() -> Config {
    Config { wait: FAR, ..Config::default() }
}

#[test]
fn people_first_then_the_earliest_deadline_over_all_integrations() {
    let mut bench = Bench::new(Config::default(), Fleet::of(3));
    bench.push("batch a acme", 1);
    bench.push("batch b acme", 2);
    bench.push("interactive b acme", 3);
    bench.push("interactive a acme", 4);
    let hurried = bench.place("batch b acme", SECOND);
    bench.queue.push(hurried, 5, bench.now).expect("room");
    assert_eq!(bench.serve(), [3, 4, 5]);
    bench.end_all();
    assert_eq!(bench.serve(), [1, 2]);
    assert!(bench.queue.is_empty());
}

#[test]
fn an_integration_at_its_cap_holds_up_only_itself() {
    let mut fleet = Fleet::of(9);
    fleet.integration_caps.insert("full".parse().expect("a name"), 0);
    let mut bench = Bench::new(Config::default(), fleet);
    bench.push("interactive full acme", 1);
    bench.push("batch free acme", 2);
    assert_eq!(bench.serve(), [2]);
    assert_eq!(bench.queue.numbers(bench.now)[0].waiting, 1);
}

#[test]
fn a_refused_task_keeps_its_old_place() {
    let mut bench = Bench::new(Config::default(), Fleet::of(1));
    let first = bench.push("batch a acme", 1);
    bench.push("batch a acme", 2);
    assert_eq!(bench.serve(), [1]);
    let (call, _) = bench.out.pop_first().expect("it is out");
    bench.queue.end(call, Ran::default(), bench.now);
    bench.queue.resume(first, 1, bench.now);
    assert_eq!(bench.serve(), [1]);
}

#[test]
fn the_bounds_hold_for_each_class_and_each_tenant_by_itself() {
    let config = Config { tasks: 4, tenant_share: 0.5, ..Config::default() };
    let mut bench = Bench::new(config, Fleet::of(0));
    let mut bound = |what: &str| {
        let place = bench.place(what, SECOND);
        bench.queue.push(place, 0, bench.now).err().map(|full| (full.bound, full.message))
    };
    assert_eq!([bound("batch a acme"), bound("batch b acme")], [None, None]);
    let (tenant, says) = bound("batch a acme").expect("half of four");
    assert!(tenant == Bound::TenantTasks && says.starts_with("2 batch tasks of this tenant"), "{says}");
    assert_eq!([bound("batch a other"), bound("batch a third")], [None, None]);
    let (class, says) = bound("batch a fourth").expect("four");
    assert!(class == Bound::Tasks && says.starts_with("4 batch tasks are waiting already"), "{says}");
    assert_eq!(bound("interactive a acme"), None);
}

#[test]
fn a_wait_that_is_estimated_too_long_is_refused_with_when_to_come_again() {
    let mut bench = Bench::new(Config { wait: SECOND * 10, ..Config::default() }, Fleet::of(1));
    (0..30).for_each(|waiter| drop(bench.push("batch a acme", waiter)));
    for _ in 0..25 {
        bench.now += SECOND;
        bench.end_all();
        assert_eq!(bench.serve().len(), 1);
    }
    // Five wait, and one leaves each second.
    let place = bench.place("batch a acme", FAR);
    bench.queue.push(place.clone(), 99, bench.now).expect("six seconds");
    let standing = bench.queue.standing(&place, bench.now).expect("it waits");
    assert_eq!((standing.own_ahead, standing.ahead), (5, 5));
    let estimate = standing.estimated_wait.expect("measured").as_secs_f64();
    assert!((5.0..7.0).contains(&estimate), "{estimate}");
    (0..4).for_each(|waiter| drop(bench.push("batch a acme", waiter)));
    let place = bench.place("batch a acme", FAR);
    let full = bench.queue.push(place, 0, bench.now).expect_err("eleven seconds");
    assert_eq!(full.bound, Bound::Wait);
    assert!(full.retry_after < SECOND * 3, "{full:?}");
}

#[test]
fn time_in_which_only_those_at_a_cap_wait_says_nothing_of_how_fast_the_others_leave() {
    let mut fleet = Fleet::of(4);
    fleet.tenant_caps.insert("shut".parse().expect("a tenant"), 0);
    fleet.integration_caps.insert("shut".parse().expect("a name"), 0);
    let mut bench = Bench::new(patient(), fleet);
    for what in ["batch bank shut", "batch shut acme"] {
        bench.submit(what, 0).expect("it waits");
    }
    for _ in 0..10 {
        (0..28).for_each(|waiter| drop(bench.submit("batch bank acme", waiter)));
        bench.run(SECOND / 2);
        bench.idle(SECOND * 20);
    }
    let rate = bench.rate();
    assert!((7.0..9.0).contains(&rate), "four slots, half a second each: {rate}");
    // Neither of the two that wait comes before anybody else.
    (0..4).for_each(|waiter| assert!(bench.submit("batch bank acme", waiter).is_none()));
    let place = bench.submit("batch bank acme", 4).expect("all slots are held");
    let standing = bench.queue.standing(&place, bench.now).expect("it waits");
    assert_eq!((standing.ahead, standing.own_ahead), (0, 0));
    assert!(standing.estimated_wait.expect("measured") < SECOND, "{standing:?}");
}

#[test]
fn callers_that_come_and_go_say_nothing_of_how_fast_the_others_leave() {
    let mut bench = Bench::new(patient(), Fleet::of(4));
    (0..44).for_each(|waiter| drop(bench.submit("batch bank acme", waiter)));
    bench.run(SECOND * 3);
    (0..16).for_each(|waiter| drop(bench.submit("batch bank acme", waiter)));
    for run in [Run::Aborted, Run::NotBegun] {
        for _ in 0..80 {
            bench.now += SECOND / 20;
            let calls: Vec<_> = bench.out.keys().copied().collect();
            for call in calls {
                bench.end_as(call, run);
                bench.submit("batch bank acme", 0).expect("sixteen are before it");
                bench.serve();
            }
        }
        let rate = bench.rate();
        assert!((0.9..1.8).contains(&rate), "four slots, three seconds each: {rate}");
    }
    let place = bench.place("batch bank acme", SECOND * 8);
    let full = bench.queue.push(place.clone(), 0, bench.now).map(|()| bench.queue.standing(&place, bench.now));
    assert!(full.is_ok(), "the first deadline: {full:?}");
    let place = bench.place("batch bank other", SECOND * 2);
    assert_eq!(
        bench.queue.push(place, 0, bench.now).expect_err("two seconds for three").bound,
        Bound::WaitOverDeadline
    );
}

#[test]
fn what_waits_for_its_integrations_cap_has_the_rate_of_that_alone() {
    let mut fleet = Fleet::of(10);
    fleet.integration_caps.insert("slow".parse().expect("a name"), 1);
    let mut bench = Bench::new(patient(), fleet);
    (0..60).for_each(|waiter| drop(bench.submit("batch slow acme", waiter)));
    for _ in 0..30 {
        (0..9).for_each(|waiter| assert!(bench.submit("batch bank other", waiter).is_none(), "nine slots are free"));
        bench.now += SECOND;
        let calls: Vec<_> = bench.out.keys().copied().collect();
        for call in calls {
            bench.end(call);
            bench.serve();
        }
    }
    // 30 have run, one runs and 29 wait.
    let place = bench.submit("batch slow acme", 0).expect("one runs at a time");
    let estimate = bench.queue.standing(&place, bench.now).expect("it waits").estimated_wait.expect("measured");
    assert!((25.0..35.0).contains(&estimate.as_secs_f64()), "{estimate:?}");
    assert_eq!(bench.queue.numbers(bench.now)[1].per_second, None, "nobody has waited for a slot");
}

#[test]
fn where_a_place_stands_counts_who_may_come_first_of_both_classes_and_not_itself() {
    let mut bench = Bench::new(Config { batch_share: 0.2, ..patient() }, Fleet::of(4));
    (0..44).for_each(|waiter| drop(bench.submit("batch bank acme", waiter)));
    bench.run(SECOND);
    (0..4).for_each(|waiter| assert!(bench.submit("interactive bank acme", waiter).is_none()));
    let place = bench.submit("batch bank acme", 0).expect("all slots are held");
    let of = |bench: &Bench, place: &Place| bench.queue.standing(place, bench.now).expect("it waits");
    assert_eq!((of(&bench, &place).ahead, of(&bench, &place).interactive_ahead), (0, 0));
    for (waits, first) in [(3, 3), (12, 4)] {
        while bench.queue.numbers(bench.now)[0].waiting < waits {
            bench.submit("interactive bank acme", 0).expect("all slots are held");
        }
        let standing = of(&bench, &place);
        assert_eq!((standing.ahead, standing.interactive_ahead), (0, first), "batch has a fifth");
        let estimate = standing.estimated_wait.expect("measured").as_secs_f64();
        assert!((estimate * 4.0 - (first + 1) as f64).abs() < 0.5, "four leave each second: {estimate}");
    }
    (0..5).for_each(|waiter| drop(bench.submit("batch bank other", waiter)));
    let last = (0..6).filter_map(|waiter| bench.submit("batch bank acme", waiter)).last().expect("they wait");
    let standing = of(&bench, &last);
    assert_eq!((standing.own_ahead, standing.ahead), (6, 11), "of twelve");
}

#[test]
fn a_worker_that_comes_or_goes_changes_the_estimate_at_once() {
    let mut bench = Bench::new(patient(), Fleet::of(4));
    (0..100).for_each(|waiter| drop(bench.submit("batch bank acme", waiter)));
    bench.run(SECOND);
    assert!((bench.rate() - 4.0).abs() < 0.3, "{}", bench.rate());
    for (slots, rate) in [(40, 40.0), (2, 2.0)] {
        bench.queue.set_slots(slots, bench.now);
        assert!((bench.rate() / rate - 1.0).abs() < 0.1, "{} of {slots} slots", bench.rate());
    }
    bench.queue.set_slots(0, bench.now);
    assert_eq!(bench.queue.numbers(bench.now)[1].per_second, None, "it says nothing while there are no slots");
}

#[test]
fn who_would_wait_for_longer_than_it_has_is_turned_away_at_once() {
    let mut bench = Bench::new(patient(), Fleet::of(1));
    for waiter in 0..200 {
        let place = bench.place("batch a acme", SECOND * 80);
        bench.queue.push(place, waiter, bench.now).expect("nothing is measured");
    }
    for _ in 0..25 {
        bench.now += SECOND;
        bench.end_all();
        assert_eq!(bench.serve().len(), 1);
    }
    // 175 wait, and one leaves each second.
    let mut push = |seconds: u32| {
        let place = bench.place("batch a acme", SECOND * seconds);
        bench.queue.push(place, 0, bench.now)
    };
    push(3).expect("its deadline is the earliest, so none comes before it");
    push(300).expect("five minutes for three");
    let full = push(70).expect_err("one minute for three");
    assert_eq!(full.bound, Bound::WaitOverDeadline);
    assert!(full.message.ends_with("and this one has 70 s, its run included"), "{full:?}");
    assert_eq!(full.retry_after, SECOND * 60);
}

#[test]
fn who_left_is_not_served_and_who_waits_in_vain_is_told() {
    let mut bench = Bench::new(Config::default(), Fleet::of(9));
    let left = bench.push("batch a acme", 1);
    bench.push("batch a acme", 2);
    bench.push("batch b acme", 3);
    assert_eq!(bench.queue.remove(&left, bench.now), Some(1));
    assert_eq!(bench.queue.remove(&left, bench.now), None);
    let hopeless = |integration: &IntegrationName| (integration.as_str() == "a").then_some("unknown");
    assert_eq!(bench.queue.give_up(hopeless, |_| true, bench.now), [(2, "unknown")]);
    assert_eq!(bench.serve(), [3]);
}

#[test]
fn a_parked_tenant_is_not_asked_for_again_until_one_of_its_own_calls_ends_or_its_time_has_come() {
    let mut fleet = Fleet::of(100);
    fleet.tenant_caps.insert("greedy".parse().expect("a tenant"), 1);
    let mut bench = Bench::new(Config::default(), fleet);
    (0..50).for_each(|waiter| drop(bench.push("batch a greedy", waiter)));
    assert_eq!(bench.serve(), [0]);
    bench.push("batch a other", 99);
    let asked = bench.asked;
    assert_eq!(bench.serve(), [99]);
    assert_eq!(bench.asked, asked + 1);
    assert!(bench.serve().is_empty());
    assert_eq!(bench.asked, asked + 1, "nobody is asked for");
    bench.now += SECOND;
    bench.queue.pass(bench.now);
    assert!(bench.serve().is_empty());
    assert_eq!(bench.asked, asked + 2, "its time has come, and it is parked again");
    bench.end_all();
    assert_eq!(bench.serve(), [1]);
}

#[test]
fn ten_thousand_tenants_cost_each_event_one_look() {
    let config = Config { tasks: 100_000, ..patient() };
    let mut bench = Bench::new(config, Fleet::of(1));
    for number in 0..100_000 {
        bench.push(&format!("batch a t{}", number % 10_000), number);
    }
    let mut served = Vec::new();
    for _ in 0..1_000 {
        bench.now += SECOND / 10;
        bench.end_all();
        served.extend(bench.serve());
    }
    assert_eq!(served.len(), 1_000);
    assert!(bench.asked <= 2_001, "one that is served, and one that finds no room: {}", bench.asked);
    let tenants: std::collections::BTreeSet<_> = served.iter().map(|waiter| waiter % 10_000).collect();
    assert_eq!(tenants.len(), 1_000, "no tenant has two before all have one");
}
