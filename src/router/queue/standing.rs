//! Where a place stands, for those who ask: who comes first, and for how long it is likely to wait.

use std::time::Duration;

use tokio::time::Instant;

use super::class::Class;
use super::{Place, Queue};
use crate::task::Priority;

/// Where a place stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::router) struct Standing {
    /// The tenant's own tasks before it, for the same integration.
    pub(in crate::router) own_ahead: usize,
    /// All tasks of its class that come first, at the most.
    pub(in crate::router) ahead: usize,
    /// Of those that wait now, the interactive tasks that come before a batch task, at the most.
    pub(in crate::router) interactive_ahead: usize,
    /// Whether its lane waits for a call of its tenant to end.
    pub(in crate::router) is_parked: bool,
    pub(in crate::router) estimated_wait: Option<Duration>,
}

impl<T> Queue<T> {
    /// Where a place stands; none when it is not taken.
    pub(in crate::router) fn standing(&self, place: &Place, now: Instant) -> Option<Standing> {
        let class = self.class(place.priority);
        let (own_ahead, is_parked) = class.stands(place)?;
        let ahead = class.ahead(place, own_ahead);
        let interactive_ahead = self.interactive_ahead(place, ahead);
        let of_class = class.estimate(place, own_ahead, now);
        let estimated_wait = of_class.map(|wait| match interactive_ahead {
            0 => wait,
            _ => wait.max(self.shared_wait(place, ahead + interactive_ahead, now).unwrap_or_default()),
        });
        Some(Standing { own_ahead, ahead, interactive_ahead, is_parked, estimated_wait })
    }

    /// Batch has its share of what is started: the others of that are interactive.
    fn interactive_ahead(&self, place: &Place, ahead: usize) -> usize {
        if place.priority == Priority::Interactive {
            return 0;
        }
        let share = self.turns.share();
        let waiting = self.class(Priority::Interactive).may_precede(place);
        let turns = ((ahead + 1) as f64 * (1.0 - share) / share).ceil();
        // Infinite without a share.
        if turns < waiting as f64 { turns as usize } else { waiting }
    }

    /// The wait behind so many of both classes, by the class that leaves faster: what each was measured at beside the other
    /// is less than both together.
    fn shared_wait(&self, place: &Place, ahead: usize, now: Instant) -> Option<Duration> {
        let rate_of = |class: &Class<T>| class.rate_for(place, now);
        let rate = self.classes.iter().filter_map(rate_of).reduce(f64::max)?;
        Some(Duration::try_from_secs_f64((ahead + 1) as f64 / rate).unwrap_or(Duration::MAX))
    }
}
