//! What the queue of a pool learns of its own workers, and nothing of another's.

use super::*;

/// More departures than a rate needs.
const MANY: usize = 40;

fn per_second(bench: &Bench, pool: &str) -> Option<f64> {
    let numbers = bench.pools.numbers(bench.now);
    numbers.iter().find(|numbers| numbers.name.as_str() == pool).expect("it is there").classes[1].per_second
}

/// To within a twentieth.
fn is_about(value: Option<f64>, expected: f64) -> bool {
    value.is_some_and(|value| (value / expected - 1.0).abs() < 0.05)
}

/// How many seconds a run takes, as the queue of a pool knows it.
fn needs(bench: &mut Bench, pool: &str) -> Option<f64> {
    let (now, bank) = (bench.now, "bank".parse().expect("a name"));
    let needs = bench.pools.pool_mut(&name(pool)).expect("it is there").queue.needs(&bank, now);
    needs.map(|needs| needs.as_secs_f64())
}

/// A task ends, and one that waits takes its place.
fn next_after(bench: &mut Bench, task: u32) -> u32 {
    let [next] = bench.end(task)[..] else { panic!("one is served") };
    next
}

/// One slot in each of two pools, one of which overflows into the other; a task in each, and a hundred that wait.
fn overflowing() -> (Bench, u32, u32) {
    let mut bench = Bench::new(json!({"home": 1, "other": 0}), json!({"home": "other"}));
    bench.workers("home", &[("h", 1)]);
    bench.workers("other", &[("o", 1)]);
    let [(at_home, _), (away, called)] = [bench.submit("acme"), bench.submit("acme")];
    assert_eq!(called, elsewhere("other", Lack::Full));
    (0..100).for_each(|_| assert_eq!(bench.submit("acme").1, None));
    (bench, at_home, away)
}

#[test]
fn who_leaves_for_another_pool_says_nothing_of_how_fast_its_own_drains_or_how_long_runs_take_there() {
    let (mut bench, at_home, mut away) = overflowing();
    for _ in 0..MANY {
        bench.now += SECOND;
        away = next_after(&mut bench, away);
    }
    assert_eq!((per_second(&bench, "home"), needs(&mut bench, "home")), (None, None), "nobody has left it yet");
    assert_eq!(per_second(&bench, "other"), None, "nobody waited there");
    assert!(is_about(needs(&mut bench, "other"), 1.0), "{:?}", needs(&mut bench, "other"));
    assert_eq!(bench.pool_of(at_home), "home");
}

#[test]
fn the_rate_of_a_pool_that_overflows_is_that_of_its_own_workers() {
    let (mut bench, mut at_home, mut away) = overflowing();
    for _ in 0..MANY {
        bench.now += SECOND;
        at_home = next_after(&mut bench, at_home);
        away = next_after(&mut bench, away);
        assert_eq!((bench.pool_of(at_home), bench.pool_of(away)), ("home", "other"));
    }
    assert!(is_about(per_second(&bench, "home"), 1.0), "{:?}", per_second(&bench, "home"));
    assert!(is_about(needs(&mut bench, "home"), 1.0), "{:?}", needs(&mut bench, "home"));
}

#[test]
fn the_rate_of_a_pool_follows_its_own_slots_at_once() {
    let mut bench = Bench::new(json!({"a": 1, "b": 1}), json!({}));
    for pool in ["a", "b"] {
        bench.workers(pool, &[(pool, 1)]);
    }
    for _ in 0..300 {
        bench.submit("acme");
    }
    let mut out: Vec<_> = bench.out.keys().copied().collect();
    assert_eq!(out.len(), 2, "one in each");
    for _ in 0..MANY {
        bench.now += SECOND;
        out = out.into_iter().map(|task| next_after(&mut bench, task)).collect();
    }
    let rates = |bench: &Bench| ["a", "b"].map(|pool| per_second(bench, pool));
    let [a, b] = rates(&bench);
    assert!(is_about(a, 1.0) && is_about(b, 1.0), "{a:?} {b:?}");
    assert_eq!(bench.workers("a", &[("a", 4)]).len(), 4, "a new life of it");
    let [a, b] = rates(&bench);
    assert!(is_about(a, 4.0) && is_about(b, 1.0), "{a:?} {b:?}");
    bench.workers("a", &[("a", 0)]);
    let [a, b] = rates(&bench);
    assert!(a.is_none() && is_about(b, 1.0), "{a:?} {b:?}");
}
