use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn name(text: &str) -> IntegrationName {
    text.parse().expect("a name")
}

/// Workers whose calls end as a test says.
struct Pool {
    config: Config,
    workers: Vec<(WorkerId, Conduct)>,
    watch: Watch,
    tenant: Tenant,
    now: Instant,
}

impl Pool {
    fn of(workers: usize) -> Self {
        let worker = |number| (format!("w{number}").parse().expect("an id"), Conduct::default());
        let (config, watch, tenant) = (Config::default(), Watch::default(), "acme".parse().expect("a tenant"));
        Pool { config, workers: (0..workers).map(worker).collect(), watch, tenant, now: Instant::now() }
    }

    fn end(&mut self, worker: usize, integration: &str, says: Says, calls: usize) {
        for _ in 0..calls {
            self.send(worker, integration);
            self.answer(worker, integration, says, self.now);
        }
    }

    fn send(&mut self, worker: usize, integration: &str) {
        let (integration, Pool { workers, watch, tenant, now, .. }) = (name(integration), self);
        let (worker, conduct) = &mut workers[worker];
        conduct.take(&integration, *now);
        watch.sent(worker, &Sent { integration: &integration, tenant, at: *now });
    }

    /// The end of a call that was sent then.
    fn answer(&mut self, worker: usize, integration: &str, says: Says, at: Instant) {
        let (integration, Pool { config, workers, watch, tenant, now }) = (name(integration), self);
        let (worker, conduct) = &mut workers[worker];
        let sent = Sent { integration: &integration, tenant, at };
        watch.ended(worker, &sent);
        if conduct.counts(at) {
            watch.saw(worker, &sent, says, config, *now);
            assert_eq!(conduct.learn(&sent, says, config, *now), None);
        }
    }

    fn sweep(&mut self) -> Vec<(usize, Reason)> {
        let pool = self.workers.iter_mut().map(|(worker, conduct)| (&*worker, conduct));
        let found = self.watch.sweep(pool, &self.config, self.now);
        let index = |worker: &WorkerId| worker.as_str()[1..].parse().expect("its number");
        found.into_iter().map(|(worker, saw)| (index(&worker), saw.reason)).collect()
    }

    fn eject(&mut self, worker: usize) -> Duration {
        let saw = Saw { reason: Reason::Failing, tasks: 20.0, failed: 1.0, expected: 0.0 };
        let (worker, conduct) = &mut self.workers[worker];
        self.watch.forget(worker);
        conduct.eject(saw, &self.config, self.now).until - self.now
    }

    fn try_again(&mut self, worker: usize) {
        self.workers[worker].1.try_again(self.now);
    }

    fn conduct(&mut self, worker: usize) -> &mut Conduct {
        &mut self.workers[worker].1
    }
}

#[test]
fn of_two_workers_the_one_that_fails_everything_stands_out() {
    let mut pool = Pool::of(2);
    pool.end(0, "bank", Says::Badly, 20);
    assert_eq!(pool.sweep(), [], "nobody knows how it should go");
    pool.end(1, "bank", Says::Well, 5);
    assert_eq!(pool.sweep(), [(0, Reason::Failing)]);
}

#[test]
fn one_that_draws_everything_is_not_what_the_others_are_compared_with() {
    let mut pool = Pool::of(4);
    pool.end(0, "bank", Says::Badly, 100_000);
    pool.end(1, "bank", Says::Badly, 20);
    pool.end(2, "bank", Says::Well, 20);
    pool.end(3, "bank", Says::Well, 20);
    let both = [(0, Reason::Failing), (1, Reason::Failing)];
    assert_eq!(pool.sweep(), both, "of the others a third failed, for the first counts as twenty tasks");
    pool.eject(0);
    assert_eq!(pool.sweep(), [(1, Reason::Failing)]);
}

#[test]
fn a_bank_that_is_down_is_no_workers_fault() {
    let mut pool = Pool::of(10);
    for worker in 0..10 {
        pool.end(worker, "down", Says::Badly, 200);
    }
    assert_eq!(pool.sweep(), []);
    // Nor is it the fault of those that have more of its tasks.
    for worker in 1..10 {
        pool.end(worker, "up", Says::Well, 2_000);
    }
    assert_eq!(pool.sweep(), []);
}

#[test]
fn a_bank_that_goes_down_when_a_worker_has_just_come_is_not_its_fault() {
    let mut pool = Pool::of(2);
    let before = pool.now;
    pool.end(1, "bank", Says::Well, 100);
    (0..50).for_each(|_| pool.send(1, "bank"));
    pool.now += SECOND;
    pool.end(0, "bank", Says::Badly, 50);
    assert_eq!(pool.sweep(), [], "nobody has tried since");
    (0..50).for_each(|_| pool.answer(1, "bank", Says::Well, before));
    assert_eq!(pool.sweep(), [], "those were sent in better times");
    pool.now += SECOND;
    pool.end(1, "bank", Says::Well, 3);
    assert_eq!(pool.sweep(), [(0, Reason::Failing)]);
}

#[test]
fn while_slow_tasks_run_elsewhere_they_are_believed_to_go_well() {
    let mut pool = Pool::of(2);
    pool.end(1, "bank", Says::Well, 100);
    pool.now += SECOND;
    pool.end(0, "bank", Says::Badly, 50);
    (0..3).for_each(|_| pool.send(1, "bank"));
    assert_eq!(pool.sweep(), [], "they may fail as quickly");
    pool.now += SECOND;
    assert_eq!(pool.sweep(), [(0, Reason::Failing)]);
    let sent = pool.now - SECOND;
    pool.answer(1, "bank", Says::Nothing, sent);
    assert_eq!(pool.sweep(), [], "one was cancelled, and two are too few");
}

#[test]
fn what_one_tenant_submits_is_not_the_fault_of_the_one_worker_that_has_room_for_it() {
    let mut pool = Pool::of(2);
    pool.end(0, "bank", Says::Well, 5);
    pool.tenant = "nonsense".parse().expect("a tenant");
    pool.end(0, "bank", Says::Badly, 1_000);
    pool.tenant = "acme".parse().expect("a tenant");
    pool.end(1, "bank", Says::Well, 100);
    assert_eq!(pool.sweep(), [], "others do well what others submit");
    pool.tenant = "nonsense".parse().expect("a tenant");
    pool.end(1, "bank", Says::Well, 3);
    assert_eq!(pool.sweep(), [(0, Reason::Failing)], "it was no nonsense");

    let mut pool = Pool::of(2);
    for number in 0..20 {
        pool.tenant = format!("tenant-{number}").parse().expect("a tenant");
        pool.end(0, "bank", Says::Badly, 1);
    }
    pool.tenant = "acme".parse().expect("a tenant");
    pool.end(1, "bank", Says::Well, 20);
    assert_eq!(pool.sweep(), [(0, Reason::Failing)], "it is not one tenant's");
}

#[test]
fn quick_failures_of_slow_tasks_are_compared_with_all_that_were_sent() {
    let mut pool = Pool::of(2);
    (0..250).for_each(|_| pool.send(0, "bank"));
    let now = pool.now;
    (0..25).for_each(|_| pool.answer(0, "bank", Says::Badly, now));
    pool.end(1, "bank", Says::Well, 20);
    assert_eq!(pool.sweep(), [], "it is one in ten");
    (0..225).for_each(|_| pool.answer(0, "bank", Says::Badly, now));
    assert_eq!(pool.sweep(), [(0, Reason::Failing)]);
}

#[test]
fn what_was_sent_before_an_ejection_says_nothing_after_it() {
    let mut pool = Pool::of(2);
    (0..100).for_each(|_| pool.send(0, "bank"));
    let sent = pool.now;
    pool.now += SECOND;
    pool.eject(0);
    pool.now += pool.config.base_time;
    pool.try_again(0);
    (0..100).for_each(|_| pool.answer(0, "bank", Says::Badly, sent));
    pool.end(1, "bank", Says::Well, 20);
    assert_eq!((pool.sweep(), pool.conduct(0).admits()), (vec![], true));
}

#[test]
fn a_trial_goes_on_until_it_is_known_how_others_do() {
    let mut pool = Pool::of(2);
    pool.eject(0);
    pool.try_again(0);
    pool.end(0, "bank", Says::Badly, TRIAL_TASKS as usize);
    pool.now += SECOND;
    assert_eq!((pool.sweep(), pool.conduct(0).admits()), (vec![], false));
    pool.now += pool.config.base_time;
    assert_eq!((pool.sweep(), pool.conduct(0).admits()), (vec![], true), "it will not be known");
}

#[test]
fn what_a_worker_alone_runs_is_compared_with_nothing() {
    let mut pool = Pool::of(2);
    pool.end(0, "only-here", Says::Badly, 1_000);
    pool.end(1, "only-there", Says::Well, 1_000);
    assert_eq!(pool.sweep(), []);
}

#[test]
fn one_that_fails_more_than_the_others_by_more_than_chance_stands_out() {
    let mut pool = Pool::of(6);
    for worker in 0..6 {
        pool.end(worker, "bank", Says::Badly, if worker == 3 { 40 } else { 5 });
        pool.end(worker, "bank", Says::Well, if worker == 3 { 60 } else { 95 });
    }
    assert_eq!(pool.sweep(), [(3, Reason::SuccessRate)]);
    pool.config.success_rate_workers = 7;
    assert_eq!(pool.sweep(), [], "too few to say what is usual");

    let mut pool = Pool::of(6);
    for worker in 0..6 {
        pool.end(worker, "bank", Says::Badly, if worker == 3 { 9 } else { 0 });
        pool.end(worker, "bank", Says::Well, 100);
    }
    assert_eq!(pool.sweep(), [], "nearly all goes well, and the deviation is next to nothing");
}

#[test]
fn chance_alone_ejects_nobody() {
    let mut random = SmallRng::seed_from_u64(1);
    for failing in [0.0, 0.02, 0.1, 0.3, 0.5, 0.8, 0.97] {
        let mut pool = Pool::of(200);
        for round in 0..20 {
            for worker in 0..200 {
                // Some get many more tasks than others, and of another mix.
                for _ in 0..random.random_range(0..3 + worker / 8) {
                    let bank = if random.random_bool(0.9 / (1.0 + worker as f64 / 50.0)) { "one" } else { "other" };
                    let fails = random.random_bool(if bank == "one" { failing } else { failing / 3.0 });
                    pool.end(worker, bank, if fails { Says::Badly } else { Says::Well }, 1);
                }
            }
            pool.now += SECOND;
            assert_eq!(pool.sweep(), [], "in round {round}, where {failing} fail");
        }
    }
}

#[test]
fn calls_that_break_in_a_row_are_enough_and_anything_else_ends_the_row() {
    let (config, now, bank, tenant) = (Config::default(), Instant::now(), name("bank"), "acme".parse().expect("one"));
    let bank = Sent { integration: &bank, tenant: &tenant, at: now };
    for between in [Says::Answers, Says::Well, Says::Badly] {
        let mut conduct = Conduct::default();
        for _ in 1..config.consecutive_errors {
            assert_eq!(conduct.learn(&bank, Says::Broke, &config, now), None);
        }
        assert_eq!(conduct.learn(&bank, between, &config, now), None);
        for _ in 1..config.consecutive_errors {
            assert_eq!(conduct.learn(&bank, Says::Broke, &config, now), None);
        }
        assert_eq!(conduct.learn(&bank, Says::Nothing, &config, now), None, "it says nothing, and ends nothing");
        let saw = conduct.learn(&bank, Says::Broke, &config, now).expect("one too many");
        assert_eq!(saw.to_string(), "5 calls in a row broke after they were sent");
        conduct.eject(saw, &config, now);
        assert_eq!(conduct.learn(&bank, Says::Broke, &config, now), None, "it is out already");
    }
}

#[test]
fn the_more_often_the_longer_and_what_it_makes_good_is_taken_off() {
    let mut pool = Pool::of(1);
    let base = pool.config.base_time;
    let times = |pool: &mut Pool| {
        let time = pool.eject(0);
        pool.now += time;
        pool.try_again(0);
        let now = pool.now;
        pool.conduct(0).readmit(now);
        time
    };
    for number in 1..=10 {
        assert_eq!(times(&mut pool), base * number);
    }
    assert_eq!(times(&mut pool), pool.config.max_time);
    for _ in 0..9 {
        pool.now += base;
        pool.sweep();
    }
    assert_eq!(times(&mut pool), base * 3, "eleven less nine, and this one");
    pool.now += base * 2;
    pool.sweep();
    assert_eq!(pool.eject(0), base * 3, "one sweep takes off one, however late it is");
}

#[test]
fn who_comes_back_gets_a_few_tasks_until_one_goes_well() {
    let mut pool = Pool::of(2);
    pool.eject(0);
    assert!(!pool.conduct(0).admits());
    pool.try_again(0);
    for _ in 0..TRIAL_TASKS {
        assert!(pool.conduct(0).admits());
        pool.send(0, "bank");
    }
    assert!(!pool.conduct(0).admits());
    let now = pool.now;
    pool.answer(0, "bank", Says::Nothing, now);
    assert!(pool.conduct(0).admits(), "a refused one does not count");
    pool.send(0, "bank");
    pool.answer(0, "bank", Says::Badly, now);
    assert!(!pool.conduct(0).admits());
    pool.answer(0, "bank", Says::Well, now);
    assert!(pool.conduct(0).admits());
    (0..3).for_each(|_| pool.answer(0, "bank", Says::Nothing, now));
    pool.end(0, "bank", Says::Badly, 19);
    pool.end(1, "bank", Says::Well, 19);
    assert_eq!(pool.sweep(), [(0, Reason::Failing)], "one of twenty-one went well");
}

#[test]
fn a_trial_of_which_all_fail_is_an_ejection_unless_others_fail_too() {
    for others in [Says::Well, Says::Badly] {
        let mut pool = Pool::of(2);
        pool.eject(0);
        pool.try_again(0);
        for _ in 0..TRIAL_TASKS {
            // However slowly they come.
            pool.now += pool.config.window;
            pool.end(0, "bank", Says::Badly, 1);
        }
        assert!(!pool.conduct(0).admits());
        pool.end(1, "bank", others, 20);
        let found = pool.sweep();
        if others == Says::Well {
            assert_eq!(found, [(0, Reason::Failing)]);
        } else {
            assert_eq!((found, pool.conduct(0).admits()), (vec![], true));
        }
    }
}

#[test]
fn what_is_old_counts_less_and_is_forgotten() {
    let mut pool = Pool::of(2);
    pool.end(0, "bank", Says::Badly, 100);
    pool.now += pool.config.window * 5;
    pool.end(1, "bank", Says::Well, 100);
    assert_eq!(pool.sweep(), [], "about three tasks are left of a hundred");
    pool.now += pool.config.window * 20;
    pool.sweep();
    assert!(pool.workers.iter().all(|(_, conduct)| conduct.tallies.is_empty()));
}

#[test]
fn one_may_always_be_ejected_and_never_all() {
    let config = Config { max_ejected: 0.3, ..Config::default() };
    let most: Vec<_> = [0, 1, 2, 3, 9, 10, 100].map(|workers| config.most_of(workers)).into();
    assert_eq!(most, [0, 0, 1, 1, 2, 3, 30]);
    let all = Config { max_ejected: 1.0, ..config };
    assert_eq!([1, 2, 100].map(|workers| all.most_of(workers)), [0, 1, 99]);
}

#[test]
fn the_pool_is_looked_at_once_a_second_while_something_fails() {
    let (config, mut now) = (Config::default(), Instant::now());
    let (mut watch, bank) = (Watch::default(), name("bank"));
    let (worker, tenant) = ("w0".parse().expect("an id"), "acme".parse().expect("a tenant"));
    let sent = Sent { integration: &bank, tenant: &tenant, at: now };
    watch.saw(&worker, &sent, Says::Well, &config, now);
    assert!(!watch.is_due(&config, now));
    watch.saw(&worker, &sent, Says::Badly, &config, now);
    assert!(watch.is_due(&config, now) && !watch.is_due(&config, now));
    now += SWEEP;
    assert!(watch.is_due(&config, now));
    now += Duration::from_secs(3600);
    assert!(!watch.is_due(&config, now), "nothing has failed for a long time");
}

#[test]
fn each_mistake_in_the_configuration_is_named() {
    let good = Config::default();
    assert_eq!(good.check(), Ok(()));
    for (bad, says) in [
        (Config { consecutive_errors: 0, ..good.clone() }, "consecutive_errors: 0 is not 1 to 1000"),
        (Config { min_tasks: 4, ..good.clone() }, "min_tasks: 4 is not 5 to"),
        (Config { success_rate_workers: 2, ..good.clone() }, "success_rate_workers: 2"),
        (Config { failing: 0.5, ..good.clone() }, "failing: 0.5"),
        (Config { failing: f64::NAN, ..good.clone() }, "failing: NaN"),
        (Config { max_ejected: 0.0, ..good.clone() }, "max_ejected: 0"),
        (Config { success_rate_stdev: 0.1, ..good.clone() }, "success_rate_stdev: 0.1"),
        (Config { base_time: SECOND * 301, ..good.clone() }, "base_time: 5m 1s is not 1s to 5m"),
        (Config { window: Duration::ZERO, ..good }, "window: 0s is not 1s to 1h"),
    ] {
        let told = bad.check().expect_err(says);
        assert!(told.contains(says), "{told}");
    }
}
