//! The router's side of the `Operations` service: what it knows and has waiting now, as a message.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::Intake;
use super::channels::Channels;
use super::dispatch::{Dispatcher, Numbers, Stands};
use super::explain::{Book, Entry, Found, Progress, Refused, Stage};
use super::outlier::Ejection;
use super::queue::{ClassNumbers, Place};
use crate::task::{PoolName, TaskId, WorkerId};
use crate::wire::Start;
use crate::wire::operations::{Operated, Remaining};
use crate::wire::proto::{Description, Explanation, description};

/// The most tenants of each priority in a description.
const MAX_TENANTS: usize = 10;

/// The most ejected workers in a description.
const MAX_EJECTED: usize = 20;

/// Describes a router.
pub(super) struct RouterOperations {
    pub(super) pool: PoolName,
    pub(super) start: Start,
    pub(super) stops_within: Duration,
    pub(super) queue_tasks: usize,
    pub(super) dispatcher: Dispatcher,
    pub(super) channels: Arc<Channels>,
    pub(super) intake: Intake,
    pub(super) book: Book,
}

#[async_trait]
impl Operated for RouterOperations {
    fn describe(&self, _max_tasks: usize) -> Description {
        let numbers = self.dispatcher.numbers();
        let queue = |class: &ClassNumbers| description::Queue {
            priority: class.priority.as_str().into(),
            waiting: count(class.waiting),
            capacity: count(self.queue_tasks),
            bytes: class.bytes as u64,
            oldest_seconds: class.oldest.map(|oldest| oldest.as_secs_f64()),
            per_second: class.per_second,
        };
        let tenants = self.dispatcher.top_tenants(MAX_TENANTS).into_iter().flat_map(|(priority, tenants)| {
            tenants.into_iter().map(move |of| description::WaitingTenant {
                name: of.tenant.to_string(),
                priority: priority.as_str().into(),
                waiting: count(of.waiting),
                running: of.running,
                at_cap: of.is_parked,
            })
        });
        let router = description::Router {
            queues: numbers.classes.iter().map(queue).collect(),
            tenants: tenants.collect(),
            view: Some(view_out(&numbers, self.dispatcher.ejected(MAX_EJECTED))),
            channels: count(self.channels.numbers().open),
        };
        let role = Some(description::Role::Router(router));
        Description { role, ..self.start.describe(&self.pool, self.remaining()) }
    }

    fn explain(&self, task: &TaskId) -> Explanation {
        match self.book.find(task) {
            Found::UnderWay(entry) => self.under_way(task, &entry),
            Found::Refused(refused) => refused_out(&refused),
            Found::Nothing => Explanation {
                task_id: task.to_string(),
                state: "unknown".into(),
                why: "it is not under way here, and was not refused here lately: it has ended, or never came".into(),
                ..Explanation::default()
            },
        }
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

impl RouterOperations {
    fn under_way(&self, task: &TaskId, entry: &Entry) -> Explanation {
        let now = Instant::now();
        let since = |then: Instant| now.saturating_duration_since(then).as_secs_f64();
        let Progress { stage, attempts, last_refusal } = entry.progress();
        let common = Explanation {
            age_seconds: Some(since(entry.since)),
            remaining_seconds: Some(entry.place.deadline.saturating_duration_since(now).as_secs_f64()),
            attempts: Some(attempts),
            last_refusal,
            ..about(task, &entry.place)
        };
        if let Stage::Calling { worker, since: called } = stage {
            let why = format!("worker {worker} has it: ask that one whether it runs");
            let (state, worker, ago) = ("calling".into(), Some(worker.to_string()), Some(since(called)));
            return Explanation { state, why, worker, called_seconds_ago: ago, ..common };
        }
        let Stands { standing, held, waiting } = self.dispatcher.stands(&entry.place);
        let pauses = matches!(stage, Stage::Pausing);
        let why =
            if pauses { format!("it was refused and is tried again in a moment; {held}") } else { held.to_string() };
        Explanation {
            state: if pauses { "pausing" } else { "waiting" }.into(),
            why,
            held_by: held.main().into(),
            waiting: Some(count(waiting)),
            ahead: standing.map(|standing| count(standing.ahead)),
            own_ahead: standing.map(|standing| count(standing.own_ahead)),
            estimated_wait_seconds: standing.and_then(|it| it.estimated_wait).map(|wait| wait.as_secs_f64()),
            ..common
        }
    }
}

fn about(task: &TaskId, place: &Place) -> Explanation {
    Explanation {
        task_id: task.to_string(),
        integration: place.integration.to_string(),
        tenant: place.tenant.to_string(),
        priority: place.priority.as_str().into(),
        ..Explanation::default()
    }
}

fn refused_out(refused: &Refused) -> Explanation {
    Explanation {
        state: "refused".into(),
        why: refused.message.clone(),
        held_by: refused.reason.as_str().into(),
        refused_seconds_ago: Some(refused.at.elapsed().as_secs_f64()),
        ..about(&refused.task, &refused.place)
    }
}

fn view_out(numbers: &Numbers, ejected: Vec<(WorkerId, Ejection)>) -> description::View {
    let now = Instant::now();
    let ejected_out = |(worker, Ejection { saw, until, times }): (WorkerId, Ejection)| description::Ejected {
        worker: worker.to_string(),
        reason: saw.reason.as_str().into(),
        why: saw.to_string(),
        for_seconds: until.saturating_duration_since(now).as_secs_f64(),
        times,
    };
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
        ejected: count(census.ejected),
        ejected_workers: ejected.into_iter().map(ejected_out).collect(),
        with_room: count(census.with_room),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
