//! A worker's admission: at most N tasks at a time, refused early and never queued.
//!
//! The gate is its own limiter rather than a semaphore: N changes while tasks run, and a semaphore can only forget
//! permits that nobody holds. Here shrinking ends nothing; while more is in flight than the target allows, the gate is
//! simply full. All numbers sit in one pure struct behind one short mutex, so they always agree with each other.
//!
//! A [`Permit`] is a value: dropping it, on any path, is the release. The gate has never heard of Redis, gRPC or
//! settings; others follow its [`State`] on a watch channel.

mod slots;

use std::sync::Arc;

use metrics::Counter;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::telemetry::Telemetry;
use slots::Slots;

/// Whether a gate takes tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There is room.
    Open,
    /// As many tasks are in flight as the target allows, or more after it was lowered.
    Full,
    /// There may be room, but the process must not take more.
    Overloaded,
    /// The worker is ending and takes nothing more.
    Draining,
}

/// A gate's numbers at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Tasks that hold a permit.
    pub in_flight: u32,
    /// N: how many may.
    pub target: u32,
    /// What follows from both.
    pub state: State,
}

/// Why a task was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// All permits are out.
    #[error("{in_flight} tasks are in flight and {target} may be")]
    Full {
        /// Tasks that hold a permit.
        in_flight: u32,
        /// How many may.
        target: u32,
    },
    /// The process must not take more, whatever room there is.
    #[error("the worker sheds load")]
    Overloaded,
    /// The worker is ending.
    #[error("the worker is draining")]
    Draining,
}

/// Admits tasks. Clones are the same gate.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    slots: Mutex<Slots>,
    state: watch::Sender<State>,
    admitted: Counter,
    refused_full: Counter,
    refused_overloaded: Counter,
    refused_draining: Counter,
}

/// A task's place in the gate; dropping it gives the place back.
pub struct Permit {
    gate: Arc<Inner>,
    admitted_at: Instant,
    slot_seconds_before: f64,
}

impl Gate {
    /// A gate for `target` tasks at a time.
    pub fn new(target: u32, telemetry: &Telemetry) -> Self {
        let inner = telemetry.register(|| {
            metrics::describe_counter!("weir_gate_admitted_total", "Tasks admitted.");
            metrics::describe_counter!("weir_gate_refused_total", "Tasks refused at the gate, by reason.");
            metrics::describe_gauge!("weir_gate_in_flight", "Tasks that hold a permit.");
            metrics::describe_gauge!("weir_gate_in_flight_peak", "The most tasks that ever held a permit at once.");
            metrics::describe_gauge!("weir_gate_target", "How many tasks may hold a permit.");
            metrics::describe_gauge!("weir_gate_open", "1 while the gate takes tasks, otherwise 0.");
            metrics::describe_gauge!("weir_gate_slot_seconds", "Integral of the tasks in flight over time.");
            let slots = Slots::new(target, Instant::now());
            Inner {
                state: watch::Sender::new(slots.state()),
                slots: Mutex::new(slots),
                admitted: metrics::counter!("weir_gate_admitted_total"),
                refused_full: metrics::counter!("weir_gate_refused_total", "reason" => "full"),
                refused_overloaded: metrics::counter!("weir_gate_refused_total", "reason" => "overloaded"),
                refused_draining: metrics::counter!("weir_gate_refused_total", "reason" => "draining"),
            }
        });
        let gate = Gate { inner: Arc::new(inner) };
        let read = gate.clone();
        telemetry.before_scrape(move || read.publish());
        gate
    }

    /// Takes one place, or says why there is none. Never waits.
    pub fn admit(&self) -> Result<Permit, Refused> {
        let now = Instant::now();
        let admitted = self.inner.change(|slots| slots.admit(now));
        match admitted {
            Ok(slot_seconds_before) => {
                self.inner.admitted.increment(1);
                Ok(Permit { gate: self.inner.clone(), admitted_at: now, slot_seconds_before })
            }
            Err(refused) => {
                match refused {
                    Refused::Full { .. } => self.inner.refused_full.increment(1),
                    Refused::Overloaded => self.inner.refused_overloaded.increment(1),
                    Refused::Draining => self.inner.refused_draining.increment(1),
                }
                Err(refused)
            }
        }
    }

    /// Changes N from now on. Ends nothing: a lower N is reached as tasks end.
    pub fn resize(&self, target: u32) {
        self.inner.change(|slots| slots.resize(target));
    }

    /// Takes nothing more while this is set; what is in flight goes on. Never waits for more than the gate's short lock,
    /// and may be called from any thread.
    pub fn set_overloaded(&self, overloaded: bool) {
        self.inner.change(|slots| slots.set_overloaded(overloaded));
    }

    /// Takes nothing more, for good.
    pub fn drain(&self) {
        self.inner.change(Slots::drain);
    }

    /// The numbers now.
    pub fn load(&self) -> Load {
        self.inner.slots.lock().load()
    }

    /// Follows the state.
    pub fn state(&self) -> watch::Receiver<State> {
        self.inner.state.subscribe()
    }

    fn publish(&self) {
        let (load, peak, slot_seconds) = {
            let mut slots = self.inner.slots.lock();
            (slots.load(), slots.peak(), slots.slot_seconds(Instant::now()))
        };
        metrics::gauge!("weir_gate_in_flight").set(load.in_flight);
        metrics::gauge!("weir_gate_in_flight_peak").set(peak);
        metrics::gauge!("weir_gate_target").set(load.target);
        metrics::gauge!("weir_gate_open").set(if load.state == State::Open { 1.0 } else { 0.0 });
        metrics::gauge!("weir_gate_slot_seconds").set(slot_seconds);
    }
}

impl Inner {
    /// Applies a change and, still under the lock so that states are published in their order, tells the followers.
    fn change<T>(&self, change: impl FnOnce(&mut Slots) -> T) -> T {
        let mut slots = self.slots.lock();
        let before = slots.state();
        let result = change(&mut slots);
        let after = slots.state();
        if before != after {
            self.state.send_replace(after);
        }
        result
    }
}

impl Permit {
    /// The mean number of tasks in flight since this one was admitted, weighted by time: the parallelism that the task
    /// has lived through. The number at admission would misjudge long tasks.
    pub fn mean_in_flight(&self) -> f64 {
        let now = Instant::now();
        let mut slots = self.gate.slots.lock();
        let lived = now.saturating_duration_since(self.admitted_at).as_secs_f64();
        if lived == 0.0 {
            return f64::from(slots.load().in_flight);
        }
        (slots.slot_seconds(now) - self.slot_seconds_before) / lived
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = Instant::now();
        self.gate.change(|slots| slots.release(now));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn gate(target: u32) -> Gate {
        Gate::new(target, &Telemetry::new().expect("recorder"))
    }

    #[test]
    fn it_admits_up_to_the_target_and_a_dropped_permit_is_a_place() {
        let gate = gate(2);
        let first = gate.admit().expect("room");
        let _second = gate.admit().expect("room");
        assert_eq!(gate.admit().err(), Some(Refused::Full { in_flight: 2, target: 2 }));
        drop(first);
        gate.admit().expect("room again");
    }

    #[test]
    fn lowering_the_target_ends_nothing_and_zero_takes_nothing() {
        let gate = gate(3);
        let permits: Vec<_> = (0..3).map(|_| gate.admit().expect("room")).collect();
        gate.resize(0);
        assert_eq!(gate.load(), Load { in_flight: 3, target: 0, state: State::Full });
        drop(permits);
        assert!(gate.admit().is_err());
        gate.resize(1);
        gate.admit().expect("room");
    }

    #[test]
    fn an_overloaded_gate_refuses_whatever_room_it_has_and_recovers() {
        let gate = gate(2);
        let mut state = gate.state();
        let held = gate.admit().expect("room");
        gate.set_overloaded(true);
        assert_eq!(*state.borrow_and_update(), State::Overloaded);
        assert_eq!(gate.admit().err(), Some(Refused::Overloaded));
        assert_eq!(gate.load().in_flight, 1);
        drop(held);
        gate.set_overloaded(false);
        assert_eq!(*state.borrow_and_update(), State::Open);
        gate.admit().expect("room again");
        gate.drain();
        gate.set_overloaded(true);
        assert_eq!(gate.admit().err(), Some(Refused::Draining));
    }

    #[test]
    fn a_permit_is_released_by_a_panic() {
        let gate = gate(1);
        let held = gate.admit().expect("room");
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = held;
            panic!("on purpose");
        }));
        assert!(result.is_err());
        assert_eq!(gate.load().in_flight, 0);
    }

    #[test]
    fn followers_see_each_change_of_state() {
        let gate = gate(1);
        let mut state = gate.state();
        let permit = gate.admit().expect("room");
        assert_eq!(*state.borrow_and_update(), State::Full);
        drop(permit);
        assert_eq!(*state.borrow_and_update(), State::Open);
        gate.drain();
        assert_eq!(*state.borrow_and_update(), State::Draining);
        assert_eq!(gate.admit().err(), Some(Refused::Draining));
    }

    #[tokio::test(start_paused = true)]
    async fn the_parallelism_a_task_lived_through_is_weighted_by_time() {
        let gate = gate(10);
        let long = gate.admit().expect("room");
        tokio::time::advance(Duration::from_secs(9)).await;
        let others: Vec<_> = (0..9).map(|_| gate.admit().expect("room")).collect();
        tokio::time::advance(Duration::from_secs(1)).await;
        drop(others);
        let mean = long.mean_in_flight();
        assert!((mean - 1.9).abs() < 1e-9, "9 s alone and 1 s with nine others: {mean}");
    }
}
