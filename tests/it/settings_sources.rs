//! What must hold of settings wherever they are: each test runs with a file, a key of Redis, and LaunchDarkly.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir::settings::Source;

use crate::cli::{assert_ok, run};
use crate::fleet_settings::command;
use crate::support::house::{House, LONG, Plan, answer, eventually, held};
use crate::support::place::{Follower, Place, open};

/// A change applies within a second; a busy machine gets five.
const APPLIES_WITHIN: Duration = Duration::from_secs(5);

/// A source that is back is followed within five seconds, however long it was away; a busy machine gets ten.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(10);

/// What a worker's settings may leave in memory after many updates. Most of it is the allocator's.
const MAY_KEEP_BYTES: u64 = 64 << 20;

macro_rules! with_each_source {
    ($($test:ident),+ $(,)?) => {
        mod file {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Source::File).await;
            })+
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Source::Redis).await;
            })+
        }
        #[cfg(feature = "launchdarkly")]
        mod launchdarkly {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::Source::LaunchDarkly).await;
            })+
        }
    };
}

with_each_source!(
    n_goes_to_1_and_up_again,
    n_goes_to_1_and_up_again_under_300_tasks,
    bad_values_change_nothing,
    many_updates_in_a_row_end_with_the_last,
    a_source_that_dies_changes_nothing_and_is_followed_when_it_is_back,
);

async fn n_goes_to_1_and_up_again(source: Source) {
    let place = Place::start(source).await;
    let mut worker = Follower::start(&place.config(), "worker-1");
    for value in [300, 1, 300, 3_000, 0, 30] {
        let began = Instant::now();
        place.set(value).await;
        worker.becomes(value).await;
        println!("{source:?}: N = {value} applied in {:?}", began.elapsed());
        assert!(began.elapsed() < APPLIES_WITHIN, "{:?}", began.elapsed());
    }
    // A jump waits for a word, and the one who asks for it is told.
    place.set(30_001).await;
    eventually("the jump is refused", || worker.rejected("max_parallelism") == 1.0).await;
    assert_eq!(worker.now().max_parallelism, 30);
    worker.stop().await;
    place.close().await;
}

/// The file and the key are changed by the command, as people do; for LaunchDarkly there is its own page.
async fn n_goes_to_1_and_up_again_under_300_tasks(source: Source) {
    let place = Place::start(source).await;
    let launchdarkly = place.config().launchdarkly;
    let house = Plan { max_parallelism: 300, settings: source, launchdarkly, ..Plan::default() }.start().await;
    let callers: Vec<_> = (0..400).map(|n| house.submit(held(&format!("t-{n}")))).collect();
    house.until_in_flight(0, 300).await;
    for (value, in_flight) in [(1, 300), (400, 400)] {
        let began = Instant::now();
        match source {
            Source::LaunchDarkly => place.set(value).await,
            Source::File | Source::Redis => set(&house, source, value).await,
        }
        eventually("N is what was set", || house.load(0).target == value).await;
        println!("{source:?}: N = {value} applied in {:?} under load", began.elapsed());
        assert!(began.elapsed() < APPLIES_WITHIN, "{:?}", began.elapsed());
        if value == 1 {
            assert_eq!(house.load(0).in_flight, in_flight, "lowering N ends nothing");
        }
        house.until_in_flight(0, in_flight).await;
    }
    house.valve.open();
    for caller in callers {
        assert!(answer(caller).await.expect("an outcome").result.is_ok(), "none is lost");
    }
    house.close().await;
    place.close().await;
}

async fn set(house: &House, source: Source, value: u32) {
    let assignment = format!("max_parallelism={value}");
    let mut set = command(&house.redis.url(), &["set", &assignment, "--why", "a test"]);
    if source == Source::File {
        set.env("WEIR_SETTINGS__SOURCE", "file").env("WEIR_SETTINGS__FILE", house.settings_file(0));
    }
    // What is a jump is judged by the start value of the configuration, which is the workers'.
    assert_ok(&run(set.env("WEIR_SETTINGS__MAX_PARALLELISM", "300"), "").await);
}

async fn bad_values_change_nothing(source: Source) {
    let place = Place::start(source).await;
    let mut worker = Follower::start(&place.config(), "worker-1");
    place.set(7).await;
    worker.becomes(7).await;
    let bad: [Value; 6] = [json!(-1), json!(1.5), json!("30"), json!(true), json!(100_001), json!({"a": 1})];
    for (index, bad) in bad.into_iter().enumerate() {
        place.set(bad).await;
        eventually("it is refused", || worker.rejected("max_parallelism") == (index + 1) as f64).await;
        assert_eq!(worker.now().max_parallelism, 7);
    }
    place.babble().await;
    if source != Source::LaunchDarkly {
        eventually("that is no document", || worker.rejected("document") > 0.0).await;
    }
    assert_eq!(worker.now().max_parallelism, 7);
    place.set(8).await;
    worker.becomes(8).await;
    worker.stop().await;
    place.close().await;
}

async fn many_updates_in_a_row_end_with_the_last(source: Source) {
    const UPDATES: u32 = 1_100;
    let place = Place::start(source).await;
    let mut worker = Follower::start(&place.config(), "worker-1");
    // Whatever the first is that is seen, the last is no jump from it.
    place.set(300).await;
    worker.becomes(300).await;
    let before = resident_bytes();
    for update in 1..=UPDATES {
        place.set(300 + update).await;
    }
    let began = Instant::now();
    worker.becomes(300 + UPDATES).await;
    assert!(began.elapsed() < APPLIES_WITHIN, "the last applies {:?} after it was written", began.elapsed());
    let kept = resident_bytes().saturating_sub(before);
    println!("{source:?}: the last of {UPDATES} applied after {:?}, {} KiB more", began.elapsed(), kept >> 10);
    assert!(kept < MAY_KEEP_BYTES, "{kept} bytes more than before");
    place.set(299).await;
    worker.becomes(299).await;
    worker.stop().await;
    place.close().await;
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default();
    pages * rustix::param::page_size() as u64
}

async fn a_source_that_dies_changes_nothing_and_is_followed_when_it_is_back(source: Source) {
    dies_for(source, Duration::ZERO).await;
}

async fn dies_for(source: Source, dead_for: Duration) {
    let mut place = Place::start(source).await;
    let mut worker = Follower::start(&place.config(), "worker-1");
    place.set(7).await;
    worker.becomes(7).await;
    assert!(worker.has("weir_settings_source_up 1"));
    place.take_away().await;
    eventually("that it is away is seen", || worker.has("weir_settings_source_up 0")).await;
    tokio::time::sleep(dead_for).await;
    let age = crate::support::calls::metric(&worker.telemetry.render(), "weir_settings_source_age_seconds");
    assert!(age > dead_for.as_secs_f64() && worker.now().max_parallelism == 7, "{age}");
    place.bring_back().await;
    place.set(8).await;
    let began = Instant::now();
    worker.becomes(8).await;
    println!("{source:?}: followed {:?} after it was back from {dead_for:?}", began.elapsed());
    assert!(began.elapsed() < FOLLOWS_WITHIN, "{:?}", began.elapsed());
    assert!(worker.has("weir_settings_source_up 1"));
    worker.stop().await;
    place.close().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a minute's outage: the full lane, tests/run --full"]
async fn each_source_is_dead_for_a_minute() {
    let minute = Duration::from_secs(60);
    tokio::join!(dies_for(Source::File, minute), dies_for(Source::Redis, minute));
    #[cfg(feature = "launchdarkly")]
    dies_for(Source::LaunchDarkly, minute).await;
}

/// A whole weir with a hundred workers, each with ports of its own. `cargo bench --bench settings` measures it.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_whole_workers_apply_one_write() {
    const WORKERS: usize = 100;
    let house = Plan { workers: WORKERS, settings: Source::Redis, ..Plan::default() }.start().await;
    let place = open(&crate::support::place::redis_config(&house.redis));
    let mut before: Option<String> = None;
    for value in [31, 40] {
        let document = weir::settings::flagd::document(&[("max_parallelism", json!(value))]);
        let why = format!("N = {value}");
        let edit = weir::settings::store::Edit { document: document.clone(), who: "me".into(), why };
        let began = Instant::now();
        place.write(before.as_deref().map(str::as_bytes), &edit).await.expect("written");
        let applied = || (0..WORKERS).all(|worker| house.load(worker).target == value);
        tokio::time::timeout(LONG, eventually("all have it", applied)).await.expect("in time");
        println!("{WORKERS} workers: N = {value} applied on all in {:?}", began.elapsed());
        assert!(began.elapsed() < APPLIES_WITHIN, "{:?}", began.elapsed());
        before = Some(document);
    }
    house.close().await;
}
