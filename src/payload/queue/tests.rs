//! What the queue promises to those who wait: for room, for a slot, for work, for its end.

use super::*;

const LIMITS: Limits = Limits { items: 4, bytes: 100, uploads: 2 };

#[test]
fn what_is_taken_out_counts_until_it_is_settled() {
    let queue = Queue::new(LIMITS);
    queue.offer("first", 90, Value::Ordinary);
    let (_, mut pending) = queue.next(Crew::Background).expect("one waits");
    queue.offer("second", 20, Value::Ordinary);
    assert_eq!(queue.ledger().dropped(Reason::QueueBytes), 1);
    assert!(pending.resize(10, Value::Ordinary));
    queue.offer("third", 20, Value::Ordinary);
    assert_eq!((queue.ledger().pending, queue.ledger().pending_bytes), (2, 30));
    pending.end(End::Stored);
    assert_eq!((queue.ledger().stored, queue.ledger().pending_bytes), (1, 20));
}

#[test]
fn an_item_let_go_of_is_counted_as_lost() {
    let queue = Queue::new(LIMITS);
    queue.offer("it", 1, Value::Ordinary);
    drop(queue.next(Crew::Background));
    assert_eq!(queue.ledger().dropped(Reason::Shutdown), 1);
    assert!(queue.ledger().balanced());
}

#[test]
fn abandoning_counts_all_that_is_pending_once() {
    let queue = Queue::new(LIMITS);
    for _ in 0..3 {
        queue.offer("it", 1, Value::Ordinary);
    }
    let (_, pending) = queue.next(Crew::Background).expect("one waits");
    queue.abandon();
    pending.end(End::Stored);
    queue.offer("late", 1, Value::Failure);
    let ledger = queue.ledger();
    assert_eq!((ledger.stored, ledger.pending, ledger.dropped(Reason::Shutdown)), (0, 0, 4));
    assert!(queue.next(Crew::Background).is_none());
}

#[test]
fn an_encoder_without_work_finds_what_comes_though_nobody_wakes_it() {
    let (queue, lifecycle) = (Queue::new(LIMITS), crate::lifecycle::Lifecycle::new());
    let (encoder, taken) = (queue.clone(), Arc::new(Mutex::new(0)));
    let count = taken.clone();
    let work = move |_| {
        while let Some((_, pending)) = encoder.next(Crew::Background) {
            pending.end(End::Stored);
            *count.lock() += 1;
        }
    };
    lifecycle.thread("encoder", work).expect("a thread");
    let until = |holds: &dyn Fn() -> bool| {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < Duration::from_secs(20));
            std::thread::yield_now();
        }
    };
    for round in 1..=20 {
        queue.offer("it", 1, Value::Ordinary);
        until(&|| *taken.lock() == round);
    }
    queue.abandon();
    until(&|| lifecycle.running() == 0);
}

#[test]
fn once_relieved_only_the_other_crew_gets_work() {
    let queue = Queue::new(LIMITS);
    queue.offer("it", 1, Value::Ordinary);
    queue.relieve();
    assert!(queue.next(Crew::Background).is_none());
    queue.next(Crew::Flush).expect("one waits").1.end(End::Stored);
    queue.abandon();
    assert!(queue.next(Crew::Flush).is_none());
}

#[test]
fn an_encoder_looks_often_for_a_second_and_then_now_and_then() {
    let often: Duration = (0..LOOKS_IN_A_SECOND).map(pause_before_look).sum();
    assert_eq!(often, Duration::from_secs(1));
    assert_eq!(pause_before_look(LOOKS_IN_A_SECOND), LOOK_NOW_AND_THEN);
    assert_eq!(pause_before_look(u32::MAX), LOOK_NOW_AND_THEN);
}

#[test]
fn with_a_spool_a_pressed_queue_does_not_wait_for_a_slot() {
    let queue = Queue::new(Limits { uploads: 1, ..LIMITS });
    for _ in 0..3 {
        queue.offer("it", 1, Value::Ordinary);
    }
    let mut out: Vec<_> = (0..3).map(|_| queue.next(Crew::Background).expect("one waits").1).collect();
    assert_eq!(out[0].wait_for_slot(true), Next::Upload);
    assert_eq!(out[1].wait_for_slot(true), Next::Spool);
    out.remove(0).end(End::Stored);
    assert_eq!(out[0].wait_for_slot(true), Next::Upload);
    queue.hurry();
    assert_eq!(out[1].wait_for_slot(true), Next::Spool);
    out.into_iter().for_each(|pending| pending.end(End::Spooled));
    assert_eq!((queue.ledger().spooled, queue.slots()), (2, (0, 0)));
}

#[test]
fn while_the_store_is_away_nothing_waits_for_a_slot_that_can_be_spooled() {
    let queue = Queue::new(Limits { items: 100, uploads: 1, ..LIMITS });
    (0..3).for_each(|_| queue.offer("it", 1, Value::Ordinary));
    let mut out: Vec<_> = (0..3).map(|_| queue.next(Crew::Background).expect("one waits").1).collect();
    assert_eq!(out[0].wait_for_slot(true), Next::Upload);
    queue.store_is_away(true);
    assert_eq!(out[1].wait_for_slot(true), Next::Spool);
    queue.store_is_away(false);
    out.remove(0).end(End::Stored);
    assert_eq!(out[1].wait_for_slot(true), Next::Upload);
}

#[tokio::test]
async fn one_from_the_spool_waits_for_room_and_goes_back_when_it_is_let_go_of() {
    let queue = Queue::new(LIMITS);
    queue.recover(2);
    queue.offer("it", 95, Value::Ordinary);
    let unspooling = tokio::time::timeout(Duration::from_millis(20), queue.unspool(10));
    assert!(unspooling.await.is_err(), "there is no room");
    assert_eq!(queue.slots(), (0, 0), "whoever has given up does not wait");
    queue.next(Crew::Background).expect("one waits").1.end(End::Stored);
    let pending = queue.unspool(10).await.expect("there is room");
    assert_eq!((queue.ledger().spooled, queue.ledger().pending, queue.slots()), (1, 1, (1, 0)));
    drop(pending);
    assert_eq!((queue.ledger().spooled, queue.ledger().pending, queue.slots()), (2, 0, (0, 0)));
    queue.drain();
    assert!(queue.unspool(10).await.is_none());
}

#[tokio::test]
async fn one_from_the_spool_that_waits_for_room_keeps_no_slot_from_the_others() {
    let queue = Queue::new(Limits { items: 10, uploads: 1, ..LIMITS });
    queue.recover(1);
    (0..2).for_each(|_| queue.offer("it", 40, Value::Ordinary));
    let mut out: Vec<_> = (0..2).map(|_| queue.next(Crew::Background).expect("one waits").1).collect();
    let mut unspooled = std::pin::pin!(queue.unspool(60));
    tokio::select! {
        biased;
        _ = &mut unspooled => panic!("there is no room for it"),
        () = std::future::ready(()) => {}
    }
    for mut pending in out.drain(..) {
        assert_eq!(queue.slots(), (0, 0));
        assert_eq!(pending.wait_for_slot(false), Next::Upload);
        pending.end(End::Stored);
    }
    unspooled.await.expect("there is room").end(End::Stored);
    assert_eq!((queue.ledger().stored, queue.slots()), (3, (0, 0)));
}
