//! Who is left alone, because it cannot be reached or because it fails, and when it comes back.

use proptest::prelude::*;

use super::*;
use crate::router::outlier::{Config, TRIAL_TASKS};

const SECOND: Duration = Duration::from_secs(1);

fn pool(workers: usize, target: u32) -> Vec<Presence> {
    (0..workers).map(|number| presence(&format!("w{number}"), 0, target, State::Open)).collect()
}

impl Bench {
    /// Ends one call at a worker so; false where that gets none.
    fn call(&mut self, worker: &str, learned: Learned) -> bool {
        let wanted = Wanted { integration: &self.bank, tenant: &self.acme, priority: Priority::Interactive };
        let Room::Found(placement) = self.view.reserve_at(&worker.parse().expect("an id"), &wanted, self.now) else {
            return false;
        };
        self.release(&placement, learned, None);
        true
    }

    fn calls(&mut self, worker: &str, learned: Learned, calls: usize) {
        (0..calls).for_each(|_| assert!(self.call(worker, learned)));
    }

    /// What is new, in words.
    fn judge(&mut self) -> Vec<String> {
        let word = |news| match news {
            News::Ejected(worker, ejection) => format!("{worker} out {}", ejection.saw.reason.as_str()),
            News::OnTrial(worker) => format!("{worker} on trial"),
            News::Needed(worker) => format!("{worker} needed"),
        };
        self.view.judge(self.now).into_iter().map(word).collect()
    }

    fn ejected(&self) -> usize {
        self.view.census(self.now).ejected
    }
}

#[test]
fn a_failed_connect_suspects_a_worker_at_once_and_its_tasks_go_elsewhere() {
    let mut bench = Bench::with(pool(2, 1_000));
    let out: Vec<_> = (0..20).map(|_| bench.reserve().expect("room")).collect();
    let dead = out[0].worker.clone();
    bench.release(&out[0], Learned::Unreachable, None);
    assert_eq!(bench.view.census(bench.now).suspected, 1);
    for _ in 0..100 {
        assert_ne!(bench.reserve().expect("the other one has room").worker, dead);
    }
    let again = bench.now + SUSPECTED;
    out[1..].iter().filter(|call| call.worker == dead).for_each(|call| {
        bench.release(call, Learned::Unreachable, None);
    });
    bench.now = again;
    assert!(bench.call(dead.as_str(), Learned::Answered), "what fails together is one failure, not nine");
}

#[test]
fn after_its_pause_one_call_tries_it_until_the_connection_stands_or_it_answers() {
    let mut bench = Bench::with(pool(1, 9));
    let first = bench.reserve().expect("room");
    bench.release(&first, Learned::Unreachable, None);
    bench.now += SUSPECTED;
    let tries = bench.reserve().expect("one tries it");
    assert!(bench.reserve().is_none(), "the others do not wait for a connection that may not be made");
    assert_eq!(bench.view.census(bench.now).suspected, 1);
    bench.release(&tries, Learned::Refused(Reason::TenantFull), None);
    assert_eq!(bench.view.census(bench.now).suspected, 0, "a refusal is an answer");
    let held = bench.held(Priority::Batch);
    assert!(held.contains("tenant") && !held.contains("did not reach it"), "{held}");

    let mut bench = Bench::with(pool(1, 9));
    let first = bench.reserve().expect("room");
    bench.release(&first, Learned::Unreachable, None);
    bench.now += SUSPECTED;
    let given_up = bench.reserve().expect("one tries it");
    bench.now += SECOND * 60;
    assert!(bench.reserve().is_none(), "however long it takes");
    bench.release(&given_up, Learned::Nothing, None);
    let runs_on = bench.reserve().expect("the next one tries it");
    assert!(runs_on.tries && bench.reserve().is_none());
    bench.view.connected(&runs_on);
    let others = [bench.reserve().expect("the connection stands"), bench.reserve().expect("so they all follow")];
    assert!(others.iter().all(|other| !other.tries));
    bench.release(&runs_on, Learned::Broke, None);
    bench.now += SECOND;
    assert!(bench.reserve().expect("it broke").tries);
}

#[test]
fn the_pause_is_any_part_of_the_longest() {
    let wanted_by = |chance: f64| {
        let mut bench = Bench::with(pool(1, 9));
        let call = bench.reserve().expect("room");
        let wanted = Wanted { integration: &bench.bank, tenant: &bench.acme, priority: Priority::Batch };
        bench.view.release(&call, &wanted, Learned::Unreachable, None, chance, bench.now);
        let began = bench.now;
        while bench.reserve().is_none() {
            bench.now += Duration::from_millis(10);
        }
        bench.now - began
    };
    assert_eq!(wanted_by(0.5), SUSPECTED / 2);
    assert_eq!(wanted_by(0.0), Duration::from_millis(100), "but it is one");
}

#[test]
fn fresh_news_of_a_worker_take_back_the_suspicion_once_until_it_was_reached() {
    let worker = presence("w1", 0, 9, State::Open);
    let mut bench = Bench::with([worker.clone()]);
    bench.calls("w1", Learned::Unreachable, 1);
    assert!(bench.reserve().is_none());
    bench.view.apply(Change::Present(worker.clone()), bench.now);
    bench.calls("w1", Learned::Unreachable, 1);
    bench.view.apply(Change::Present(worker.clone()), bench.now);
    assert!(bench.reserve().is_none(), "it lives, and cannot be reached from here");
    bench.now += SUSPECTED * 2;
    bench.calls("w1", Learned::Answered, 1);
    bench.calls("w1", Learned::Unreachable, 1);
    bench.view.apply(Change::Present(worker.clone()), bench.now);
    bench.calls("w1", Learned::Unreachable, 1);
    let next = Presence { incarnation: Incarnation::mint(), ..worker };
    bench.view.apply(Change::Present(next), bench.now);
    assert!(bench.reserve().is_some(), "another life is another worker");
}

#[test]
fn who_fails_what_others_do_not_is_ejected_and_comes_back_by_itself() {
    let mut bench = Bench::with(pool(2, 9));
    bench.calls("w0", Learned::Failed, 20);
    bench.calls("w1", Learned::Succeeded, 20);
    assert_eq!(bench.judge(), ["w0 out failing"]);
    assert_eq!((bench.ejected(), bench.view.ejections()), (1, [0, 1, 0]));
    assert!((0..5).all(|_| bench.reserve().expect("room").worker.as_str() == "w1"));
    bench.view.set_stale();
    assert!(!bench.call("w0", Learned::Succeeded), "the registry has no say in it");
    bench.view.set_fresh(bench.now);

    bench.now += Config::default().base_time - SECOND / 100;
    assert!(bench.judge().is_empty() && !bench.call("w0", Learned::Succeeded));
    bench.now += SECOND / 100;
    assert_eq!(bench.judge(), ["w0 on trial"]);
    bench.calls("w0", Learned::Failed, TRIAL_TASKS as usize);
    assert!(!bench.call("w0", Learned::Failed), "a few and no more");
    bench.calls("w1", Learned::Succeeded, 10);
    bench.now += SECOND;
    assert_eq!(bench.judge(), ["w0 out failing"]);
    bench.now += Config::default().base_time;
    assert!(bench.judge().is_empty(), "it is the second time");
    bench.now += Config::default().base_time;
    assert_eq!(bench.judge(), ["w0 on trial"]);
    bench.calls("w0", Learned::Succeeded, 1);
    bench.calls("w0", Learned::Succeeded, 100);
    assert_eq!(bench.ejected(), 0);
}

#[test]
fn who_is_back_is_found_among_the_others() {
    let mut bench = Bench::with(pool(2, 9));
    let is_found = |bench: &mut Bench| {
        // One more than the other has slots.
        let calls: Vec<_> = (0..10).filter_map(|_| bench.reserve()).collect();
        calls.iter().for_each(|call| bench.release(call, Learned::Nothing, None));
        calls.iter().any(|call| call.worker.as_str() == "w0")
    };
    bench.calls("w0", Learned::Failed, 20);
    bench.calls("w1", Learned::Succeeded, 20);
    assert_eq!(bench.judge(), ["w0 out failing"]);
    assert!(!is_found(&mut bench));
    bench.now += Config::default().base_time;
    assert_eq!(bench.judge(), ["w0 on trial"]);
    assert!(is_found(&mut bench));
    bench.calls("w0", Learned::Failed, TRIAL_TASKS as usize);
    assert!(!is_found(&mut bench), "its trial is over");
    bench.now += Config::default().window * 12;
    assert_eq!(bench.judge(), [""; 0], "nobody knows any more how others did");
    assert!(is_found(&mut bench));
}

#[test]
fn refusals_and_cancelled_tasks_eject_nobody() {
    for learned in [
        Learned::Refused(Reason::WorkerFull),
        Learned::Refused(Reason::TenantFull),
        Learned::Refused(Reason::BreakerOpen),
        Learned::Answered,
        Learned::Nothing,
    ] {
        let mut bench = Bench::with(pool(2, 9));
        for _ in 0..500 {
            bench.call("w0", learned);
            bench.call("w1", Learned::Succeeded);
        }
        bench.now += SECOND;
        assert_eq!(bench.judge(), [""; 0], "{learned:?}");
    }
}

#[test]
fn calls_that_break_one_after_the_other_eject_and_those_that_break_together_are_one() {
    let mut bench = Bench::with(pool(2, 1_000));
    let out: Vec<_> = (0..100).map(|_| bench.reserve().expect("room")).collect();
    let of = |worker: &str| out.iter().filter(move |call| call.worker.as_str() == worker).cloned().collect::<Vec<_>>();
    of("w0").iter().for_each(|call| bench.release(call, Learned::Broke, None));
    assert_eq!(bench.judge(), [""; 0], "one connection broke");
    for _ in 1..Config::default().consecutive_errors {
        assert_eq!(bench.ejected(), 0);
        bench.now += SECOND * 8;
        bench.calls("w0", Learned::Broke, 1);
    }
    assert_eq!(bench.judge(), ["w0 out consecutive_errors"]);
}

#[test]
fn the_last_that_serves_an_integration_is_never_ejected() {
    let mut bench = Bench::with(pool(1, 9));
    bench.calls("w0", Learned::Failed, 100);
    assert!(bench.judge().is_empty() && bench.ejected() == 0);

    // The other one ends, or drains: the ejected one comes back at once.
    for is_gone in [true, false] {
        let workers = pool(2, 9);
        let mut bench = Bench::with(workers.clone());
        bench.calls("w0", Learned::Failed, 20);
        bench.calls("w1", Learned::Succeeded, 20);
        assert_eq!(bench.judge(), ["w0 out failing"]);
        let other = workers[1].clone();
        let change = match is_gone {
            true => Change::Gone(other.worker, other.incarnation),
            false => Change::Present(Presence { state: State::Draining, ..other }),
        };
        bench.view.apply(change, bench.now);
        assert_eq!(bench.judge(), ["w0 needed"]);
        assert_eq!(bench.reserve().expect("it is all there is").worker.as_str(), "w0");
    }

    // Another pool member does not help where it does not run all that this one does.
    let mut workers = pool(2, 9);
    workers[0].integrations.push("only-here".parse().expect("a name"));
    let mut bench = Bench::with(workers);
    bench.calls("w0", Learned::Failed, 20);
    bench.calls("w1", Learned::Succeeded, 20);
    assert!(bench.judge().is_empty());
}

#[test]
fn no_more_than_a_share_of_the_pool_and_the_worst_first() {
    let mut bench = Bench::with(pool(30, 9));
    for worker in 0..30 {
        bench.calls(&format!("w{worker}"), Learned::Failed, if worker < 6 { 100 } else { 0 });
        bench.calls(&format!("w{worker}"), Learned::Succeeded, if worker < 6 { worker } else { 20 });
    }
    assert_eq!(bench.judge(), ["w0 out failing", "w1 out failing", "w2 out failing"]);
    bench.now += SECOND;
    assert!(bench.judge().is_empty(), "three of thirty are a tenth");
    // The pool becomes smaller: so does a tenth of it.
    for worker in 11..30 {
        let worker: WorkerId = format!("w{worker}").parse().expect("an id");
        let incarnation = bench.view.workers.get(&worker).expect("it is known").presence.incarnation;
        bench.view.apply(Change::Gone(worker, incarnation), bench.now);
    }
    assert_eq!(bench.judge(), ["w0 needed", "w1 needed"]);
    assert_eq!(bench.ejected(), 1);
}

#[test]
fn another_life_of_a_worker_begins_without_a_past() {
    let workers = pool(2, 9);
    let mut bench = Bench::with(workers.clone());
    bench.calls("w0", Learned::Failed, 20);
    bench.calls("w1", Learned::Succeeded, 20);
    assert_eq!(bench.judge(), ["w0 out failing"]);
    let next = Presence { incarnation: Incarnation::mint(), ..workers[0].clone() };
    bench.view.apply(Change::Present(next), bench.now);
    bench.calls("w0", Learned::Succeeded, 10);
    assert!(bench.judge().is_empty() && bench.ejected() == 0);
}

#[test]
fn it_is_told_that_a_worker_is_ejected_and_that_the_view_is_stale() {
    let mut bench = Bench::with(pool(2, 9));
    bench.calls("w0", Learned::Failed, 20);
    bench.calls("w1", Learned::Succeeded, 20);
    bench.judge();
    bench.view.set_stale();
    let held = bench.held(Priority::Batch);
    assert!(held.contains("1 is ejected for a while: its tasks fail"), "{held}");
    assert!(held.ends_with("by the last word of a registry that cannot be reached"), "{held}");
}

#[test]
fn who_is_left_must_be_one_to_rely_on() {
    let workers = pool(2, 9);
    let closed = Presence { target: 0, ..workers[1].clone() };
    let spares = Presence { broken: vec!["bank".parse().expect("a name")], ..workers[1].clone() };
    for other in [None, Some(closed), Some(spares)] {
        let unfit = |bench: &mut Bench| match other.clone() {
            Some(presence) => drop(bench.view.apply(Change::Present(presence), bench.now)),
            None => bench.calls("w1", Learned::Unreachable, 1),
        };
        let mut bench = Bench::with(workers.clone());
        bench.calls("w0", Learned::Failed, 20);
        bench.calls("w1", Learned::Succeeded, 20);
        unfit(&mut bench);
        assert!(bench.judge().is_empty() && bench.ejected() == 0, "it would be the last");

        let mut bench = Bench::with(workers.clone());
        bench.calls("w0", Learned::Failed, 20);
        bench.calls("w1", Learned::Succeeded, 20);
        assert_eq!(bench.judge(), ["w0 out failing"]);
        assert_eq!(bench.view.slots(), 9, "the slots of the other one");
        unfit(&mut bench);
        assert_eq!(bench.judge(), ["w0 needed"]);
        assert!(bench.call("w0", Learned::Succeeded));
    }
}

#[test]
fn those_on_trial_count_as_those_that_are_out() {
    let mut bench = Bench::with(pool(3, 9));
    bench.calls("w0", Learned::Failed, 20);
    bench.calls("w2", Learned::Succeeded, 20);
    assert_eq!(bench.judge(), ["w0 out failing"]);
    bench.now += Config::default().base_time;
    bench.calls("w1", Learned::Failed, 40);
    bench.calls("w2", Learned::Succeeded, 20);
    assert_eq!(bench.judge(), ["w0 on trial"]);
    bench.now += SECOND;
    assert_eq!((bench.judge(), bench.view.slots()), (vec![], 27));
    bench.calls("w0", Learned::Succeeded, 1);
    bench.now += SECOND;
    assert_eq!(bench.judge(), ["w1 out failing"]);
}

#[test]
fn where_calls_to_more_workers_break_than_may_be_ejected_it_is_no_fault_of_theirs() {
    let mut bench = Bench::with(pool(3, 9));
    for _ in 0..Config::default().consecutive_errors * 2 {
        bench.now += SECOND * 9;
        bench.calls("w0", Learned::Broke, 1);
        bench.calls("w1", Learned::Broke, 1);
    }
    assert!(bench.judge().is_empty());
    bench.now += SECOND * 9;
    bench.calls("w1", Learned::Succeeded, 1);
    bench.calls("w0", Learned::Broke, 1);
    assert_eq!(bench.judge(), ["w0 out consecutive_errors"]);
}

#[test]
fn who_does_not_answer_in_time_while_others_do_is_ejected_and_not_suspected() {
    let mut bench = Bench::with(pool(2, 9));
    bench.calls("w0", Learned::Silent, 20);
    bench.calls("w1", Learned::Succeeded, 20);
    assert_eq!(bench.view.census(bench.now).suspected, 0);
    assert_eq!(bench.judge(), ["w0 out failing"]);
}

#[derive(Debug, Clone)]
enum Step {
    Calls(usize, Learned, usize),
    Comes(usize, State),
    Goes(usize),
    Passes(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let learned = prop_oneof![
        Just(Learned::Succeeded),
        Just(Learned::Failed),
        Just(Learned::Broke),
        Just(Learned::Unreachable),
        Just(Learned::Refused(Reason::WorkerFull)),
        Just(Learned::Nothing),
    ];
    let state = prop_oneof![Just(State::Open), Just(State::Full), Just(State::Draining)];
    let step = prop_oneof![
        4 => (0..8usize, learned, 1..40usize).prop_map(|(worker, learned, calls)| Step::Calls(worker, learned, calls)),
        1 => (0..8usize, state).prop_map(|(worker, state)| Step::Comes(worker, state)),
        1 => (0..8usize).prop_map(Step::Goes),
        2 => (1..40_000u64).prop_map(Step::Passes),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    /// Whatever happens, the ejected are never more than their share, nor all that serve an integration, and all come back.
    #[test]
    fn a_pool_is_never_emptied(steps in steps(), share in 0.05..1.0f64) {
        let mut bench = Bench::with(pool(6, 50));
        bench.view.ejections = Ejections::new(Config { max_ejected: share, ..Config::default() });
        let config = Config { max_ejected: share, ..Config::default() };
        for step in steps {
            match step {
                Step::Calls(worker, learned, calls) => (0..calls).for_each(|_| {
                    bench.call(&format!("w{worker}"), learned);
                }),
                Step::Comes(worker, state) => {
                    bench.view.apply(Change::Present(presence(&format!("w{worker}"), 0, 50, state)), bench.now);
                }
                Step::Goes(worker) => {
                    let worker: WorkerId = format!("w{worker}").parse().expect("an id");
                    if let Some(incarnation) = bench.view.workers.get(&worker).map(|it| it.presence.incarnation) {
                        bench.view.apply(Change::Gone(worker, incarnation), bench.now);
                    }
                }
                Step::Passes(milliseconds) => bench.now += Duration::from_millis(milliseconds),
            }
            bench.judge();
            let (known, ejected) = (bench.view.len(), bench.ejected());
            prop_assert!(ejected <= config.most_of(known), "{ejected} of {known}");
            let is_there = |known: &Known| known.conduct.ejection().is_none() && known.presence.state != State::Draining;
            prop_assert!(ejected == 0 || bench.view.workers.values().any(is_there));
        }
        bench.now += config.max_time;
        bench.judge();
        prop_assert_eq!(bench.ejected(), 0);
    }
}
