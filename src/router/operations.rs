//! The router's side of the `Operations` service: what it knows and has waiting now, as a message.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::Intake;
use super::channels::Channels;
use super::dispatch::{Dispatcher, Numbers};
use crate::task::{PoolName, Priority};
use crate::wire::Start;
use crate::wire::operations::{Operated, Remaining};
use crate::wire::proto::{Description, description};

/// Describes a router.
pub(super) struct RouterOperations {
    pub(super) pool: PoolName,
    pub(super) start: Start,
    pub(super) stops_within: Duration,
    pub(super) queue_tasks: usize,
    pub(super) dispatcher: Dispatcher,
    pub(super) channels: Arc<Channels>,
    pub(super) intake: Intake,
}

#[async_trait]
impl Operated for RouterOperations {
    fn describe(&self, _max_tasks: usize) -> Description {
        let numbers = self.dispatcher.numbers();
        let queue = |(priority, waiting): (Priority, usize)| description::Queue {
            priority: priority.as_str().into(),
            waiting: count(waiting),
            capacity: count(self.queue_tasks),
        };
        let router = description::Router {
            queues: numbers.waiting.into_iter().map(queue).collect(),
            view: Some(view_out(&numbers)),
            channels: count(self.channels.count()),
        };
        let role = Some(description::Role::Router(router));
        Description { role, ..self.start.describe(&self.pool, self.remaining()) }
    }

    fn remaining(&self) -> Remaining {
        Remaining {
            in_flight: count(self.intake.calls.len()),
            at_most: self.stops_within,
            is_draining: self.intake.draining.is_cancelled(),
        }
    }

    async fn draining(&self) {
        self.intake.draining.cancelled().await;
    }
}

fn view_out(numbers: &Numbers) -> description::View {
    let Numbers { census, stale, view_age, .. } = numbers;
    description::View {
        workers: count(census.workers),
        full: count(census.full),
        draining: count(census.draining),
        suspected: count(census.suspected),
        slots: census.slots,
        slots_held: census.in_flight,
        stale: *stale,
        age_seconds: view_age.map(|age| age.as_secs_f64()),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
