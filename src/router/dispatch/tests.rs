mod fleet;

use tokio::task::JoinSet;

use super::*;
use crate::registry::{Incarnation, Presence, State as WorkerState};
use crate::settings;
use crate::task::testing::task;
use crate::wire::Reason;
use crate::wire::metadata::{LoadReport, Share, Shares};

fn presence(worker: &str, target: u32) -> Presence {
    Presence {
        worker: worker.parse().expect("a worker id"),
        address: format!("http://{worker}:7401"),
        incarnation: Incarnation::mint(),
        pool: "default".parse().expect("a pool"),
        target,
        in_flight: 0,
        reserved: 0,
        state: if target == 0 { WorkerState::Full } else { WorkerState::Open },
        integrations: vec!["bank".parse().expect("an integration")],
        full: vec![],
        broken: vec![],
        half_open: vec![],
        settings_version: "start".into(),
        settings_rejected: None,
        jump_limit: None,
    }
}

fn pool() -> PoolName {
    PoolName::default()
}

fn empty(config: queue::Config) -> Dispatcher {
    Dispatcher::new(config, outlier::Config::default(), Split::new(&settings::Config::default().start(), &pool()), 1)
}

fn dispatcher(capacity: usize, workers: impl IntoIterator<Item = Presence>) -> Dispatcher {
    let dispatcher = empty(queue::Config { tasks: capacity, ..queue::Config::default() });
    dispatcher.apply(&pool(), workers.into_iter().map(Change::Present).collect());
    dispatcher
}

fn place(dispatcher: &Dispatcher, priority: Priority, integration: &str) -> Place {
    place_for(dispatcher, priority, integration, "acme")
}

fn place_for(dispatcher: &Dispatcher, priority: Priority, integration: &str, tenant: &str) -> Place {
    dispatcher.place(&Task {
        integration: integration.parse().expect("a name"),
        tenant: tenant.parse().expect("a tenant"),
        priority,
        ..task("t")
    })
}

fn reason(answer: Result<Reservation, TurnedAway>) -> Reason {
    match answer.err().expect("it is turned away") {
        TurnedAway::Hopeless(error) => error.reason,
        other => panic!("{other:?}"),
    }
}

fn answered(load: Option<LoadReport>) -> Ended {
    Ended { learned: Learned::Answered, load, ran: Ran { run: Run::Ended, ..Ran::default() } }
}

fn refused(reason: Reason, load: Option<LoadReport>) -> Ended {
    Ended { learned: Learned::Refused(reason), load, ran: Ran::default() }
}

fn waiting(dispatcher: &Dispatcher) -> usize {
    dispatcher.numbers()[0].classes.iter().map(|class| class.waiting).sum()
}

#[tokio::test(start_paused = true)]
async fn a_call_that_ends_serves_the_next_who_waits_people_first() {
    let dispatcher = dispatcher(10, [presence("w1", 1)]);
    let first = place(&dispatcher, Priority::Batch, "bank");
    let held = dispatcher.reserve(&first, false).await.expect("room");

    let mut waits = JoinSet::new();
    for (who, priority) in [("batch", Priority::Batch), ("person", Priority::Interactive)] {
        let (dispatcher, place) = (dispatcher.clone(), place(&dispatcher, priority, "bank"));
        waits.spawn(async move { (who, dispatcher.reserve(&place, false).await) });
        tokio::task::yield_now().await;
    }
    assert_eq!(waiting(&dispatcher), 2);
    drop(held);
    let (who, reservation) = waits.join_next().await.expect("one is served").expect("no panic");
    assert_eq!(who, "person");
    drop(reservation);
    assert_eq!(waits.join_next().await.expect("the other is served").expect("no panic").0, "batch");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_turns_away_at_once_and_says_when_to_come_back() {
    let dispatcher = dispatcher(1, [presence("w1", 0)]);
    let (first, second) = (place(&dispatcher, Priority::Batch, "bank"), place(&dispatcher, Priority::Batch, "bank"));
    let waiter = dispatcher.clone();
    let mut waits = JoinSet::new();
    waits.spawn(async move { waiter.reserve(&first, false).await.is_ok() });
    tokio::task::yield_now().await;
    let Some(TurnedAway::Full(full)) = dispatcher.reserve(&second, false).await.err() else { panic!("it is full") };
    assert_eq!((full.bound, full.retry_after), (queue::Bound::Tasks, Duration::from_secs(1)));
    dispatcher.apply(&pool(), vec![Change::Present(presence("w2", 1))]);
    assert!(waits.join_next().await.expect("served").expect("no panic"));
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_leaves_the_queue_and_takes_no_place() {
    let dispatcher = dispatcher(10, [presence("w1", 1)]);
    let held = dispatcher.reserve(&place(&dispatcher, Priority::Batch, "bank"), false).await.expect("room");
    let gone = place(&dispatcher, Priority::Interactive, "bank");
    let timed_out = tokio::time::timeout(Duration::from_secs(1), dispatcher.reserve(&gone, false)).await;
    assert!(timed_out.is_err());
    assert_eq!(waiting(&dispatcher), 0);
    drop(held);
    dispatcher.reserve(&place(&dispatcher, Priority::Batch, "bank"), false).await.expect("the place is free");
}

#[tokio::test(start_paused = true)]
async fn an_unknown_integration_is_told_at_once_and_an_empty_pool_after_some_patience() {
    let empty = empty(queue::Config::default());
    let started = Instant::now();
    let wait = place(&empty, Priority::Batch, "bank");
    let ticking = async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            empty.tick();
        }
    };
    let answer = tokio::select! { answer = empty.reserve(&wait, false) => answer, () = ticking => unreachable!() };
    assert_eq!(reason(answer), Reason::NoWorkers);
    assert!(started.elapsed() >= NO_WORKERS_PATIENCE);

    let dispatcher = dispatcher(10, [presence("w1", 1)]);
    let unknown = place(&dispatcher, Priority::Batch, "nobody-has-it");
    assert_eq!(reason(dispatcher.reserve(&unknown, false).await), Reason::UnknownIntegration);
}

/// What the one who waits is told.
async fn told(dispatcher: &Dispatcher, integration: &str) -> TaskError {
    let place = place(dispatcher, Priority::Batch, integration);
    let ticking = async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            dispatcher.tick();
        }
    };
    let answer =
        tokio::select! { answer = dispatcher.reserve(&place, false) => answer, () = ticking => unreachable!() };
    match answer.err() {
        Some(TurnedAway::Hopeless(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_view_says_whether_it_is_fresh_stale_or_was_never_heard() {
    let made = || empty(queue::Config::default());
    let (never, fresh, stale) = (made(), made(), made());
    fresh.apply(&pool(), Vec::new());
    stale.apply(&pool(), Vec::new());
    stale.set_stale(&pool());
    for (dispatcher, says) in
        [(never, "has not heard yet"), (fresh, "and never knew one there"), (stale, "cannot reach the registry")]
    {
        let error = told(&dispatcher, "bank").await;
        assert!(error.reason == Reason::NoWorkers && error.message.contains(says), "{says}: {error}");
        assert_eq!(dispatcher.no_workers(&place(&dispatcher, Priority::Batch, "bank")), Some(error));
    }
    let dispatcher = dispatcher(10, [presence("w1", 1)]);
    dispatcher.set_stale(&pool());
    let error = told(&dispatcher, "nobody-known-has-it").await;
    assert!(error.reason == Reason::NoWorkers && error.message.contains("cannot reach the registry"), "{error}");
    let hurried = place(&dispatcher, Priority::Batch, "nobody-known-has-it");
    assert_eq!(dispatcher.no_workers(&hurried), Some(error), "also where the deadline comes first");
    assert_eq!(dispatcher.no_workers(&place(&dispatcher, Priority::Batch, "bank")), None);
}

#[tokio::test(start_paused = true)]
async fn full_is_neither_empty_nor_stale() {
    let census = |dispatcher: &Dispatcher| {
        let numbers = dispatcher.numbers().remove(0);
        (numbers.census.workers, numbers.census.with_room, numbers.stale)
    };
    let full = dispatcher(10, [presence("w1", 0)]);
    assert_eq!(census(&full), (1, 0, false));
    full.set_stale(&pool());
    assert_eq!(census(&full), (1, 0, true));
    full.apply(&pool(), vec![Change::Present(presence("w2", 1))]);
    assert_eq!(census(&full), (2, 1, false));
    let _held = full.reserve(&place(&full, Priority::Batch, "bank"), false).await.expect("room");
    assert_eq!(census(&full), (2, 0, false), "what is sent counts at once");
}

#[tokio::test(start_paused = true)]
async fn a_refused_task_is_served_before_those_who_came_later() {
    let dispatcher = dispatcher(10, [presence("w1", 1)]);
    let early = place(&dispatcher, Priority::Batch, "bank");
    let reservation = dispatcher.reserve(&early, false).await.expect("room");
    let mut waits = JoinSet::new();
    let (later, waiter) = (place(&dispatcher, Priority::Batch, "bank"), dispatcher.clone());
    waits.spawn(async move { ("later", waiter.reserve(&later, false).await) });
    tokio::task::yield_now().await;
    let load = LoadReport { in_flight: 1, target: 1, reserved: 0, keeps_out: false, shares: None };
    reservation.end(refused(Reason::WorkerFull, Some(load)));
    let waiter = dispatcher.clone();
    waits.spawn(async move { ("early", waiter.reserve(&early, true).await) });
    tokio::task::yield_now().await;
    dispatcher.apply(&pool(), vec![Change::Present(presence("w2", 1))]);
    assert_eq!(waits.join_next().await.expect("served").expect("no panic").0, "early");
}

#[tokio::test]
async fn a_storm_of_calls_and_cancellations_leaves_nothing_behind() {
    let dispatcher = dispatcher(10_000, [presence("w1", 3), presence("w2", 5)]);
    let mut calls = JoinSet::new();
    for number in 0..500u32 {
        let dispatcher = dispatcher.clone();
        calls.spawn(async move {
            let priority = Priority::ALL[number as usize % 2];
            let place = place(&dispatcher, priority, "bank");
            let patience = Duration::from_micros(u64::from(number) * 20);
            let call = async {
                let reservation = dispatcher.reserve(&place, false).await.expect("a worker");
                tokio::task::yield_now().await;
                if number.is_multiple_of(3) {
                    reservation.end(answered(None));
                }
            };
            if number.is_multiple_of(2) {
                call.await;
            } else {
                let _ = tokio::time::timeout(patience, call).await;
            }
        });
    }
    while let Some(ended) = calls.join_next().await {
        ended.expect("no panic");
    }
    assert_eq!(waiting(&dispatcher), 0);
    assert_eq!(dispatcher.numbers()[0].census.in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn the_view_is_fresh_again_when_the_registry_answers_even_if_nothing_has_changed() {
    let dispatcher = dispatcher(10, [presence("w1", 1)]);
    dispatcher.set_stale(&pool());
    assert!(dispatcher.numbers()[0].stale);
    dispatcher.apply(&pool(), Vec::new());
    assert!(!dispatcher.numbers()[0].stale);
}

/// A worker that takes five tasks of any tenant at a time and has room for many more.
fn capped(held: u32) -> Option<LoadReport> {
    let (integration, tenant) = (Share { held, most: None }, Share { held, most: Some(5) });
    let shares = Some(Shares { weight: 1, integration, tenant });
    Some(LoadReport { in_flight: held, target: 100, reserved: 0, keeps_out: false, shares })
}

#[tokio::test(start_paused = true)]
async fn a_tenant_at_its_cap_waits_for_its_own_and_holds_up_nobody() {
    let dispatcher = dispatcher(1_000, [presence("w1", 100)]);
    let mut out = Vec::new();
    for _ in 0..5 {
        let place = place_for(&dispatcher, Priority::Batch, "bank", "greedy");
        out.push(dispatcher.reserve(&place, false).await.expect("room"));
    }
    let sixth = place_for(&dispatcher, Priority::Batch, "bank", "greedy");
    dispatcher.reserve(&sixth, false).await.expect("nothing is known").end(refused(Reason::TenantFull, capped(5)));
    let mut waits = JoinSet::new();
    for _ in 0..500 {
        let (dispatcher, place) = (dispatcher.clone(), place_for(&dispatcher, Priority::Batch, "bank", "greedy"));
        waits.spawn(async move { dispatcher.reserve(&place, false).await });
    }
    // The runtime polls some of them at a time.
    for _ in 0..500 {
        tokio::task::yield_now().await;
    }
    assert_eq!(waiting(&dispatcher), 500);
    let other = place_for(&dispatcher, Priority::Batch, "bank", "other");
    dispatcher.reserve(&other, false).await.expect("at once").end(answered(capped(5)));
    assert_eq!(waiting(&dispatcher), 500, "what another's call ends makes no room for the greedy one");
    out.pop().expect("five").end(answered(capped(4)));
    assert_eq!(waiting(&dispatcher), 499, "its own does, for one");
    waits.join_next().await.expect("served").expect("no panic").expect("a worker").end(answered(capped(4)));
    assert_eq!(waiting(&dispatcher), 498);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_estimated_of_a_task_that_no_worker_takes_whatever_ends() {
    let dispatcher = dispatcher(100, [presence("w1", 1)]);
    let places: Vec<_> = (0..32).map(|_| place(&dispatcher, Priority::Batch, "bank")).collect();
    let held = dispatcher.reserve(&places[0], false).await.expect("room");
    let mut waits = JoinSet::new();
    for place in &places[1..] {
        let (dispatcher, place) = (dispatcher.clone(), place.clone());
        waits.spawn(async move { dispatcher.reserve(&place, false).await });
        tokio::task::yield_now().await;
    }
    let mut out = Some(held);
    for _ in 0..30 {
        tokio::time::advance(Duration::from_secs(1)).await;
        out.take().expect("it runs").end(answered(None));
        out = Some(waits.join_next().await.expect("served").expect("no panic").expect("a worker"));
    }
    let estimate = || dispatcher.stands(&places[31]).standing.expect("it waits").estimated_wait;
    assert!(estimate().is_some_and(|wait| wait <= Duration::from_secs(2)), "{:?}", estimate());
    let reserved = Presence { reserved: 1, ..presence("w1", 1) };
    dispatcher.apply(&PoolName::default(), vec![Change::Present(reserved)]);
    drop(out);
    assert_eq!((estimate(), dispatcher.stands(&places[31]).held.main()), (None, "interactive_reserve"));
}

#[tokio::test(start_paused = true)]
async fn what_hardly_any_run_would_still_make_is_dropped_while_it_waits() {
    let dispatcher = dispatcher(10, [presence("w1", 1)]);
    let second = Duration::from_secs(1);
    for _ in 0..40 {
        let reservation = dispatcher.reserve(&place(&dispatcher, Priority::Batch, "bank"), false).await.expect("room");
        tokio::time::advance(second).await;
        let ran = Ran { run: Run::Ended, slots: None, succeeded_in: Some(second) };
        reservation.end(Ended { learned: Learned::Answered, load: None, ran });
    }
    let _held = dispatcher.reserve(&place(&dispatcher, Priority::Batch, "bank"), false).await.expect("room");
    let (began, late) = (Instant::now(), place(&dispatcher, Priority::Batch, "bank"));
    let away = dispatcher.reserve(&late, false).await.err().expect("nobody ends");
    assert!(matches!(away, TurnedAway::OutOfTime { needs: Some(_) }), "{away:?}");
    let waited = began.elapsed().as_secs_f64();
    assert!((58.9..59.1).contains(&waited), "a minute less a second: {waited}");
    tokio::time::advance(Duration::from_secs(60)).await;
    let away = dispatcher.reserve(&late, true).await.err().expect("its deadline has passed");
    assert!(matches!(away, TurnedAway::OutOfTime { needs: None }), "{away:?}");
}
