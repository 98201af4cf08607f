//! Real threads at one gate, whose tasks return, panic and are cancelled while the limits change under them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use rand::RngExt;

use super::*;

const THREADS: usize = 4;
const TASKS_PER_THREAD: usize = 2_000;

/// The widest of the limits that the test sets: what is counted never exceeds them, whichever hold at the moment.
const MOST: u32 = 12;
const MOST_OF_BANK: u32 = 6;
/// Of 12 slots, a fifth is reserved at least: 3.
const MOST_OF_BATCH: u32 = 9;

/// What runs, counted by the tasks themselves. A task counts itself after its admission and takes itself off before its
/// permit is dropped, so that what is counted is never more than what the gate has given.
#[derive(Default)]
struct Seen {
    all: AtomicU32,
    bank: AtomicU32,
    batch: AtomicU32,
}

struct Counted<'a> {
    seen: &'a Seen,
    is_bank: bool,
    is_batch: bool,
    weight: u32,
    _permit: Permit,
}

impl<'a> Counted<'a> {
    fn new(seen: &'a Seen, is_bank: bool, is_batch: bool, permit: Permit) -> Self {
        let weight = permit.place.weight();
        for (count, most, counts) in
            [(&seen.all, MOST, true), (&seen.bank, MOST_OF_BANK, is_bank), (&seen.batch, MOST_OF_BATCH, is_batch)]
        {
            if counts {
                let now = count.fetch_add(weight, Ordering::SeqCst) + weight;
                assert!(now <= most, "{now} slots are held where {most} may be");
            }
        }
        Counted { seen, is_bank, is_batch, weight, _permit: permit }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        for (count, counts) in
            [(&self.seen.all, true), (&self.seen.bank, self.is_bank), (&self.seen.batch, self.is_batch)]
        {
            if counts {
                count.fetch_sub(self.weight, Ordering::SeqCst);
            }
        }
    }
}

fn random_limits() -> Limits {
    let mut random = rand::rng();
    Limits {
        interactive_reserve: random.random_range(0.2..1.0),
        integration_caps: capped("bank", Cap::Slots(random.random_range(0..=MOST_OF_BANK))),
        tenant_caps: capped("tenant-0", Cap::Share(0.5)),
        weights: capped("scraper", Weight::new(random.random_range(1..4))),
        ..Limits::of(random.random_range(0..=MOST))
    }
}

/// Returns, panics or is cancelled, as chance has it.
fn run(task: Counted<'_>) {
    match rand::random_range(0..3) {
        0 => drop(task),
        1 => {
            let panicked = catch_unwind(AssertUnwindSafe(move || {
                let _task = task;
                // Past the hook, which would print each of them.
                std::panic::resume_unwind(Box::new("on purpose"));
            }));
            assert!(panicked.is_err());
        }
        _ => {
            let mut waiting = Box::pin(async move {
                let _task = task;
                std::future::pending::<()>().await;
            });
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(waiting.as_mut().poll(&mut context).is_pending());
        }
    }
}

#[test]
fn threads_never_hold_more_than_the_limits_and_leave_nothing_behind() {
    let gate = gate(random_limits());
    let (seen, ended) = (Seen::default(), AtomicBool::new(false));
    let mut standing = gate.standing();
    thread::scope(|scope| {
        let operator = scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) {
                gate.set_limits(random_limits());
                gate.set_overloaded(rand::random_bool(0.2));
                gate.narrow(&name("bank"), rand::random_bool(0.5).then_some(2));
                thread::yield_now();
            }
        });
        let task = |n: usize| {
            let (is_bank, is_batch) = (rand::random_bool(0.5), rand::random_bool(0.5));
            let (integration, priority) =
                (if is_bank { "bank" } else { "scraper" }, if is_batch { "batch" } else { "interactive" });
            if let Ok(permit) = ask(&gate, &format!("{priority} {integration} tenant-{}", n % 3)) {
                run(Counted::new(&seen, is_bank, is_batch, permit));
            }
        };
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(move || (0..TASKS_PER_THREAD).for_each(task))).collect();
        workers.into_iter().for_each(|worker| worker.join().expect("no limit was exceeded"));
        ended.store(true, Ordering::SeqCst);
        operator.join().expect("limits were set");
    });

    gate.set_overloaded(false);
    gate.narrow(&name("bank"), None);
    gate.set_limits(Limits::of(MOST));
    let load = gate.load();
    assert_eq!((load.held(), load.in_flight, load.state), (0, 0, State::Open));
    assert!(gate.inner.slots.lock().holds_nothing());
    let expected = Standing { state: State::Open, takes_batch: true, full: [].into() };
    assert_eq!(standing.now(), expected);
}
