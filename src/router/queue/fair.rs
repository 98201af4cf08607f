//! How much of the fleet each tenant has used, in busy slot-seconds: pure, with the time passed in.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, 1996) over slot-seconds. A tenant's *virtual time* is what its ended
//! calls used plus what its running ones are charged with; who has the lowest is served next. A call is charged with an
//! estimate when it starts; its charge doubles each time that it has run for as long as it was charged with, and gives way
//! to what it did use when it ends. So what runs counts while it runs, and is off by half of itself at the most.
//!
//! While two tenants wait for what both may have, what they use differs by at most four times S × L: S slots that calls of
//! the class hold at once, none of which took longer than L. It is 1 × S × L where estimates are right: nobody can tell
//! how long a call will take when it starts, and none is ever taken back.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::task::{Priority, Tenant};

/// Busy slot-seconds, in millionths: integers neither drift nor fail to compare.
pub(super) type Usage = u64;

/// What holding some slots for some time comes to.
pub(super) fn usage(slots: u32, time: Duration) -> Usage {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).saturating_mul(u64::from(slots))
}

/// What a tenant has used and uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Account {
    settled: Usage,
    charged: Usage,
    running: u32,
}

impl Account {
    /// Who has the lowest is served next.
    pub(super) fn virtual_time(&self) -> Usage {
        self.settled.saturating_add(self.charged)
    }

    /// What is used up for good.
    pub(super) fn settled(&self) -> Usage {
        self.settled
    }

    /// The calls that run.
    pub(super) fn running(&self) -> u32 {
        self.running
    }

    /// Who was away, or could not be served, comes back level with the others: what was not used is no credit.
    pub(super) fn lift(&mut self, floor: Usage) {
        self.settled += floor.saturating_sub(self.virtual_time());
    }

    pub(super) fn start(&mut self, charge: Usage) {
        self.running += 1;
        self.charge(charge);
    }

    pub(super) fn charge(&mut self, more: Usage) {
        self.charged = self.charged.saturating_add(more);
    }

    pub(super) fn end(&mut self, charged: Usage, used: Usage) {
        self.running = self.running.saturating_sub(1);
        self.charged = self.charged.saturating_sub(charged);
        self.settled = self.settled.saturating_add(used);
    }
}

/// How far somebody who could always be served may be behind the others: each that runs may have been charged with twice what
/// it takes at the most. Who is further behind could not be served, and has no credit for that.
#[derive(Debug)]
pub(super) struct Lag {
    running: u64,
    /// The most that a call has used in this span and in the one before.
    most: [Usage; 2],
    since: Instant,
}

impl Lag {
    /// For how long the longest calls are remembered, once or twice.
    const SPAN: Duration = Duration::from_secs(600);

    pub(super) fn new(now: Instant) -> Self {
        Lag { running: 0, most: [0; 2], since: now }
    }

    pub(super) fn start(&mut self, charge: Usage, now: Instant) {
        self.running += 1;
        self.note(charge, now);
    }

    /// A call has used so much by now.
    pub(super) fn note(&mut self, used: Usage, now: Instant) {
        let spans = now.saturating_duration_since(self.since).as_secs() / Self::SPAN.as_secs();
        if spans > 0 {
            self.most = [0, if spans == 1 { self.most[0] } else { 0 }];
            self.since = now;
        }
        self.most[0] = self.most[0].max(used);
    }

    pub(super) fn end(&mut self, used: Usage, now: Instant) {
        self.running = self.running.saturating_sub(1);
        self.note(used, now);
    }

    /// How far, when one more starts.
    pub(super) fn at_most(&self) -> Usage {
        self.most[0].max(self.most[1]).saturating_mul(2 * (self.running + 1))
    }
}

/// A call that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::router) struct Call(u64);

/// What a call is charged with.
#[derive(Debug)]
pub(super) struct Charge {
    pub(super) priority: Priority,
    pub(super) tenant: Tenant,
    pub(super) slots: u32,
    pub(super) since: Instant,
    pub(super) charged: Usage,
}

impl Charge {
    /// When it has used what it is charged with.
    fn is_used_up_at(&self) -> Instant {
        self.since + Duration::from_micros(self.charged / u64::from(self.slots.max(1)))
    }
}

/// The calls that are under way.
#[derive(Debug, Default)]
pub(super) struct Calls {
    next: u64,
    charges: HashMap<Call, Charge>,
    used_up: BTreeSet<(Instant, Call)>,
}

impl Calls {
    pub(super) fn start(&mut self, charge: Charge) -> Call {
        self.next += 1;
        let call = Call(self.next);
        self.used_up.insert((charge.is_used_up_at(), call));
        self.charges.insert(call, charge);
        call
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.charges.is_empty()
    }

    pub(super) fn end(&mut self, call: Call) -> Option<Charge> {
        let charge = self.charges.remove(&call)?;
        self.used_up.remove(&(charge.is_used_up_at(), call));
        Some(charge)
    }

    /// Doubles the charge of one call that has used its own up; returns whose, and by how much.
    pub(super) fn overrun(&mut self, now: Instant) -> Option<(Priority, Tenant, Usage)> {
        let (at, call) = *self.used_up.first()?;
        if at > now {
            return None;
        }
        self.used_up.remove(&(at, call));
        let charge = self.charges.get_mut(&call)?;
        let more = charge.charged;
        charge.charged = charge.charged.saturating_mul(2);
        self.used_up.insert((charge.is_used_up_at(), call));
        Some((charge.priority, charge.tenant.clone(), more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_call_is_never_charged_with_less_than_it_has_used_nor_with_more_than_twice_that() {
        let began = Instant::now();
        let mut calls = Calls::default();
        let charge =
            |charged| Charge { priority: Priority::Batch, tenant: Tenant::default(), slots: 3, since: began, charged };
        let call = calls.start(charge(usage(3, SECOND)));
        let mut charged = usage(3, SECOND);
        for seconds in 1..100u32 {
            let now = began + SECOND * seconds;
            while let Some((_, _, more)) = calls.overrun(now) {
                charged += more;
            }
            let used = usage(3, SECOND * seconds);
            assert!(charged > used && charged <= used * 2, "{charged} {used}");
        }
        assert_eq!(calls.end(call).expect("it runs").charged, charged);
        assert!(calls.end(call).is_none());
        assert!(calls.overrun(began + SECOND * 10_000).is_none());
    }

    #[test]
    fn the_longest_calls_of_the_last_spans_say_how_far_one_may_be_behind() {
        let (began, mut spans) = (Instant::now(), Lag::new(Instant::now()));
        let at = |span: u32| began + Lag::SPAN * span + SECOND;
        spans.start(5, at(0));
        spans.start(3, at(0));
        assert_eq!(spans.at_most(), 2 * 3 * 5);
        spans.end(40, at(1));
        assert_eq!(spans.at_most(), 2 * 2 * 40);
        spans.note(1, at(2));
        assert_eq!(spans.at_most(), 2 * 2 * 40);
        spans.note(2, at(3));
        assert_eq!(spans.at_most(), 2 * 2 * 2);
    }

    #[test]
    fn who_was_away_has_no_credit_and_keeps_its_debt() {
        let mut account = Account::default();
        account.lift(50);
        assert_eq!(account.virtual_time(), 50);
        account.start(100);
        account.lift(120);
        assert_eq!(account.virtual_time(), 150, "what runs counts");
        account.end(100, 7);
        assert_eq!((account.virtual_time(), account.running()), (57, 0));
    }
}
