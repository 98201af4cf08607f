//! The gate's arithmetic: pure, with the time passed in.

use tokio::time::Instant;

use super::{Load, Refused, State};

/// What a gate knows. In flight may exceed the target, after the target was lowered.
#[derive(Debug)]
pub(super) struct Slots {
    target: u32,
    in_flight: u32,
    peak: u32,
    overloaded: bool,
    draining: bool,
    slot_seconds: f64,
    integrated_until: Instant,
}

impl Slots {
    pub(super) fn new(target: u32, now: Instant) -> Self {
        Slots {
            target,
            in_flight: 0,
            peak: 0,
            overloaded: false,
            draining: false,
            slot_seconds: 0.0,
            integrated_until: now,
        }
    }

    /// Takes a place; returns the slot-seconds spent before it.
    pub(super) fn admit(&mut self, now: Instant) -> Result<f64, Refused> {
        match self.state() {
            State::Draining => Err(Refused::Draining),
            State::Overloaded => Err(Refused::Overloaded),
            State::Full => Err(Refused::Full { in_flight: self.in_flight, target: self.target }),
            State::Open => {
                let before = self.slot_seconds(now);
                self.in_flight += 1;
                self.peak = self.peak.max(self.in_flight);
                Ok(before)
            }
        }
    }

    pub(super) fn release(&mut self, now: Instant) {
        self.slot_seconds(now);
        self.in_flight -= 1;
    }

    pub(super) fn resize(&mut self, target: u32) {
        self.target = target;
    }

    pub(super) fn set_overloaded(&mut self, overloaded: bool) {
        self.overloaded = overloaded;
    }

    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    pub(super) fn state(&self) -> State {
        if self.draining {
            State::Draining
        } else if self.overloaded {
            State::Overloaded
        } else if self.in_flight >= self.target {
            State::Full
        } else {
            State::Open
        }
    }

    pub(super) fn load(&self) -> Load {
        Load { in_flight: self.in_flight, target: self.target, state: self.state() }
    }

    pub(super) fn peak(&self) -> u32 {
        self.peak
    }

    /// The integral of the places taken over time, until `now`.
    pub(super) fn slot_seconds(&mut self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.integrated_until).as_secs_f64();
        self.slot_seconds += elapsed * f64::from(self.in_flight);
        self.integrated_until = self.integrated_until.max(now);
        self.slot_seconds
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Admit,
        Release,
        Resize(u32),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Admit),
            3 => Just(Step::Release),
            1 => (0u32..6).prop_map(Step::Resize),
            2 => (0u64..1000).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn no_task_is_admitted_over_the_target_and_no_place_is_lost(steps in steps(), target in 0u32..6) {
            let mut now = Instant::now();
            let mut slots = Slots::new(target, now);
            let (mut held, mut target, mut expected_slot_seconds) = (0u32, target, 0.0);
            for step in steps {
                match step {
                    Step::Admit => {
                        let admitted = slots.admit(now).is_ok();
                        prop_assert_eq!(admitted, held < target);
                        held += u32::from(admitted);
                    }
                    Step::Release if held > 0 => {
                        slots.release(now);
                        held -= 1;
                    }
                    Step::Release => {}
                    Step::Resize(to) => {
                        slots.resize(to);
                        target = to;
                    }
                    Step::Wait(milliseconds) => {
                        now += Duration::from_millis(milliseconds);
                        expected_slot_seconds += f64::from(held) * milliseconds as f64 / 1000.0;
                    }
                }
                prop_assert_eq!(slots.load().in_flight, held);
                prop_assert_eq!(slots.state() == State::Open, held < target);
            }
            prop_assert!((slots.slot_seconds(now) - expected_slot_seconds).abs() < 1e-6);
        }
    }
}
