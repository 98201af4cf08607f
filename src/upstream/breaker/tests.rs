//! The breaker's rules, over time that the tests pass in.

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn breaker(now: Instant) -> Breaker {
    Breaker::new(Config::default(), now)
}

fn end(breaker: &mut Breaker, health: Health, now: Instant) -> Option<Change> {
    let pass = breaker.ask(now).expect("a pass");
    breaker.ended(pass, health, MS, now, || 0.5)
}

fn opened(now: Instant) -> Breaker {
    let mut breaker = breaker(now);
    let changes: Vec<_> = (0..20).filter_map(|_| end(&mut breaker, Health::Failing, now)).collect();
    let saw = Saw::Window(Counts { all: 20, failing: 20, slow: 0 });
    assert_eq!(changes, [Change::Opened { open_for: Duration::from_secs(5), saw }]);
    breaker
}

#[test]
fn a_share_of_enough_tasks_opens_it_and_not_one_less() {
    let now = Instant::now();
    let mut breaker = breaker(now);
    for health in [Health::Well; 5].into_iter().chain([Health::Failing; 19]) {
        assert_eq!(end(&mut breaker, health, now), None, "19 of 24 are less than 80%");
    }
    assert!(matches!(end(&mut breaker, Health::Failing, now), Some(Change::Opened { .. })), "20 of 25");
    let spared = breaker.ask(now + Duration::from_secs(2)).expect_err("open");
    let saw = Saw::Window(Counts { all: 25, failing: 20, slow: 0 });
    assert_eq!(spared, Spared { after: Duration::from_secs(3), saw, is_tried: false });
}

#[test]
fn what_is_older_than_the_window_is_forgotten() {
    let mut now = Instant::now();
    let mut breaker = breaker(now);
    for _ in 0..200 {
        assert_eq!(end(&mut breaker, Health::Failing, now), None, "never 20 within 30 s");
        now += MS * 1_800;
    }
    now += Duration::from_secs(1 << 40);
    (0..19).for_each(|_| assert_eq!(end(&mut breaker, Health::Failing, now), None));
}

#[test]
fn a_latency_quantile_opens_it() {
    let now = Instant::now();
    let config = Config { slow_after: MS * 100, slow: 0.5, ..Config::default() };
    let mut breaker = Breaker::new(config, now);
    let mut took = |milliseconds| {
        let pass = breaker.ask(now).expect("closed");
        breaker.ended(pass, Health::Well, MS * milliseconds, now, || 0.5)
    };
    (0..11).for_each(|_| assert_eq!(took(100), None));
    (0..10).for_each(|_| assert_eq!(took(101), None));
    let saw = Saw::Window(Counts { all: 22, failing: 0, slow: 11 });
    assert!(matches!(took(101), Some(Change::Opened { saw: found, .. }) if found == saw));
}

#[test]
fn probes_decide_as_soon_as_they_can() {
    let now = Instant::now();
    let later = now + Duration::from_secs(5);
    let mut breaker = opened(now);
    let saw = Saw::Window(Counts { all: 20, failing: 20, slow: 0 });
    assert_eq!(breaker.standing(later), Standing::HalfOpen(saw));
    let passes: Vec<_> = (0..3).map(|_| breaker.ask(later).expect("a probe")).collect();
    let spared = Spared { after: WHILE_PROBING, saw, is_tried: true };
    assert_eq!(breaker.ask(later), Err(spared), "three are under way");
    let mut ended = |pass, health| breaker.ended(pass, health, MS, later, || 0.5);
    assert_eq!(ended(passes[0], Health::Failing), None);
    assert_eq!(ended(passes[1], Health::Well), Some(Change::Closed), "two of three would not be 80%");
    assert_eq!(ended(passes[2], Health::Failing), None, "it belongs to the period before");
    assert_eq!(breaker.standing(later), Standing::Closed);
}

#[test]
fn a_probe_that_says_nothing_leaves_room_for_the_next() {
    let later = Instant::now() + Duration::from_secs(5);
    let mut breaker = opened(later - Duration::from_secs(5));
    for _ in 0..100 {
        let passes: Vec<_> = (0..3).map(|_| breaker.ask(later).expect("a probe")).collect();
        assert!(breaker.ask(later).is_err());
        passes.into_iter().for_each(|pass| breaker.released(pass));
    }
    assert_eq!(end(&mut breaker, Health::Well, later), Some(Change::Closed));
}

#[test]
fn openings_grow_to_a_limit_and_start_anew_after_a_healthy_window() {
    let mut now = Instant::now();
    let mut breaker = opened(now);
    let mut seconds = Vec::new();
    for _ in 0..6 {
        now += Duration::from_secs(60);
        let last = (0..3).find_map(|_| end(&mut breaker, Health::Failing, now));
        let Some(Change::Opened { open_for, saw: Saw::Probes(_) }) = last else { panic!("{last:?}") };
        seconds.push(open_for.as_secs());
    }
    assert_eq!(seconds, [10, 20, 40, 60, 60, 60]);
    now += Duration::from_secs(60);
    assert_eq!(end(&mut breaker, Health::Well, now), Some(Change::Closed));
    now += Duration::from_secs(31);
    let opened = (0..20).find_map(|_| end(&mut breaker, Health::Failing, now));
    assert!(matches!(opened, Some(Change::Opened { open_for, .. }) if open_for == Duration::from_secs(5)));
}

#[test]
fn what_hung_since_before_does_not_open_it_again() {
    let now = Instant::now();
    let mut breaker = breaker(now);
    let hanging: Vec<_> = (0..100).map(|_| breaker.ask(now).expect("closed")).collect();
    (0..20).for_each(|_| _ = end(&mut breaker, Health::Failing, now));
    let later = now + Duration::from_secs(5);
    assert_eq!(end(&mut breaker, Health::Well, later), Some(Change::Closed));
    for pass in hanging {
        assert_eq!(breaker.ended(pass, Health::Failing, MS, later, || 0.5), None);
    }
}

proptest! {
    #[test]
    fn a_bank_that_is_well_again_is_always_found(steps in proptest::collection::vec((0u8..5, 0.0f64..1.0), 0..400)) {
        let config = Config { min_tasks: 3, ..Config::default() };
        let (mut now, mut passes) = (Instant::now(), Vec::new());
        let (probes, longest) = (config.probes as usize, config.max_open_for.mul_f64(1.0 + JITTER));
        let mut breaker = Breaker::new(config, now);
        for (step, random) in steps {
            match (step, passes.pop()) {
                (0, pass) => { now += MS * 700; passes.extend(pass); }
                (1, pass) => { passes.extend(pass); passes.extend(breaker.ask(now)); }
                (2, Some(pass)) => breaker.released(pass),
                (step, Some(pass)) => {
                    let health = if step == 3 { Health::Well } else { Health::Failing };
                    breaker.ended(pass, health, MS, now, || random);
                }
                (_, None) => {}
            }
            if let Standing::Open { until, .. } = breaker.standing(now) {
                prop_assert!(until - now <= longest);
            }
        }
        passes.into_iter().for_each(|pass| breaker.released(pass));
        now += longest;
        for _ in 0..probes {
            end(&mut breaker, Health::Well, now);
        }
        prop_assert_eq!(breaker.standing(now), Standing::Closed);
    }
}
