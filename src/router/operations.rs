//! The router's side of the `Operations` service: what it knows and has waiting now, as a message.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Intake;
use super::channels::Channels;
use super::dispatch::{Dispatcher, Stands};
use super::explain::{Book, Entry, Found, Progress, Refused, Stage};
use super::outlier::Ejection;
use super::pools::{MAX_EJECTED, PoolNumbers};
use super::queue::{ClassNumbers, Place};
use super::view::Census;
use crate::settings::{self, Arrival, Contact, Settings, SourceStatus};
use crate::task::{Priority, TaskId, WorkerId};
use crate::wire::Start;
use crate::wire::operations::{Operated, Remaining};
use crate::wire::proto::{Description, Explanation, description};

/// The most tenants of each priority in a description.
const MAX_TENANTS: usize = 10;

/// Describes a router.
pub(super) struct RouterOperations {
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    pub(super) arrival: watch::Receiver<Arc<Arrival>>,
    pub(super) source: Option<Contact>,
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
        let settings = self.settings.borrow().clone();
        let arrival = self.arrival.borrow().clone();
        let tenants = self.dispatcher.top_tenants(MAX_TENANTS).into_iter().flat_map(|(priority, tenants)| {
            tenants.into_iter().map(move |(pool, of)| description::WaitingTenant {
                name: of.tenant.to_string(),
                priority: priority.as_str().into(),
                waiting: count(of.waiting),
                running: of.running,
                at_cap: of.is_parked,
                pool: pool.to_string(),
            })
        });
        let pools: Vec<_> = numbers.iter().map(|pool| pool_out(pool, self.queue_tasks)).collect();
        let router = description::Router {
            queues: Priority::ALL.map(|of| all_queues(of, &numbers, self.queue_tasks)).into(),
            tenants: tenants.collect(),
            view: Some(whole_view(&numbers)),
            channels: count(self.channels.numbers().open),
            pools,
            settings: Some(settings_out(&settings, &arrival, self.source.as_ref())),
        };
        let role = Some(description::Role::Router(router));
        let to: Vec<_> = numbers.iter().filter(|pool| pool.weight > 0).map(|pool| pool.name.as_str()).collect();
        Description { role, ..self.start.describe(&to.join(", "), self.remaining()) }
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
        let Progress { stage, attempts, last_refusal, other_refused, .. } = entry.progress();
        let remark = other_refused.map(|why| format!("; another task with this id was refused meanwhile: {why}"));
        let remark = remark.unwrap_or_default();
        let common = Explanation {
            age_seconds: Some(since(entry.since)),
            remaining_seconds: Some(entry.place.deadline.saturating_duration_since(now).as_secs_f64()),
            attempts: Some(attempts),
            last_refusal,
            ..about(task, &entry.place)
        };
        if let Stage::Calling { pool, worker, since: called } = stage {
            let why = format!("worker {worker} has it: ask that one whether it runs{remark}");
            let (state, worker, ago) = ("calling".into(), Some(worker.to_string()), Some(since(called)));
            return Explanation { state, why, worker, called_seconds_ago: ago, pool: pool.to_string(), ..common };
        }
        let Stands { pool, standing, held, elsewhere, waiting } = self.dispatcher.stands(&entry.place);
        let pauses = matches!(stage, Stage::Pausing);
        let paused = if pauses { "it was refused and is tried again in a moment; " } else { "" };
        let elsewhere =
            elsewhere.map(|(pool, held)| format!("; in pool {:?}, which takes over, {held}", pool.as_str()));
        let why = format!("{paused}{held}{}{remark}", elsewhere.unwrap_or_default());
        Explanation {
            state: if pauses { "pausing" } else { "waiting" }.into(),
            why,
            held_by: held.main().into(),
            pool: pool.to_string(),
            waiting: Some(count(waiting)),
            ahead: standing.map(|standing| count(standing.ahead)),
            interactive_ahead: standing.map(|standing| count(standing.interactive_ahead)),
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
        pool: refused.pool.to_string(),
        refused_seconds_ago: Some(refused.at.elapsed().as_secs_f64()),
        ..about(&refused.task, &refused.place)
    }
}

fn pool_out(numbers: &PoolNumbers, queue_tasks: usize) -> description::Pool {
    let PoolNumbers { name, weight, share, overflows_into, condition, classes, .. } = numbers;
    description::Pool {
        name: name.to_string(),
        weight: *weight,
        share: *share,
        overflows_into: overflows_into.as_ref().map(ToString::to_string),
        state: condition.as_str().into(),
        view: Some(view_out(&numbers.census, numbers.stale, numbers.view_age, &numbers.ejected)),
        queues: classes.iter().map(|class| queue_out(class, queue_tasks)).collect(),
    }
}

fn queue_out(class: &ClassNumbers, capacity: usize) -> description::Queue {
    description::Queue {
        priority: class.priority.as_str().into(),
        waiting: count(class.waiting),
        capacity: count(capacity),
        bytes: class.bytes as u64,
        oldest_seconds: class.oldest.map(|oldest| oldest.as_secs_f64()),
        per_second: class.per_second,
    }
}

/// Of all pools together.
fn all_queues(of: Priority, pools: &[PoolNumbers], queue_tasks: usize) -> description::Queue {
    let classes: Vec<_> = pools.iter().flat_map(|pool| &pool.classes).filter(|class| class.priority == of).collect();
    let all = ClassNumbers {
        priority: of,
        waiting: classes.iter().map(|class| class.waiting).sum(),
        bytes: classes.iter().map(|class| class.bytes).sum(),
        oldest: classes.iter().filter_map(|class| class.oldest).max(),
        per_second: classes.iter().filter_map(|class| class.per_second).reduce(|one, other| one + other),
    };
    queue_out(&all, queue_tasks * pools.len())
}

/// Of all pools together: as old and as stale as the worst.
fn whole_view(pools: &[PoolNumbers]) -> description::View {
    let sum = |of: fn(&Census) -> usize| pools.iter().map(|pool| of(&pool.census)).sum();
    let census = Census {
        workers: sum(|census| census.workers),
        full: sum(|census| census.full),
        draining: sum(|census| census.draining),
        suspected: sum(|census| census.suspected),
        ejected: sum(|census| census.ejected),
        with_room: sum(|census| census.with_room),
        slots: pools.iter().map(|pool| pool.census.slots).sum(),
        in_flight: pools.iter().map(|pool| pool.census.in_flight).sum(),
    };
    let ages: Option<Vec<_>> = pools.iter().map(|pool| pool.view_age).collect();
    let age = ages.and_then(|ages| ages.into_iter().max());
    let ejected: Vec<_> = pools.iter().flat_map(|pool| pool.ejected.iter().cloned()).take(MAX_EJECTED).collect();
    view_out(&census, pools.iter().any(|pool| pool.stale), age, &ejected)
}

fn view_out(
    census: &Census,
    stale: bool,
    age: Option<Duration>,
    ejected: &[(WorkerId, Ejection)],
) -> description::View {
    let now = Instant::now();
    let ejected_out = |(worker, Ejection { saw, until, times }): &(WorkerId, Ejection)| description::Ejected {
        worker: worker.to_string(),
        reason: saw.reason.as_str().into(),
        why: saw.to_string(),
        for_seconds: until.saturating_duration_since(now).as_secs_f64(),
        times: *times,
    };
    description::View {
        workers: count(census.workers),
        full: count(census.full),
        draining: count(census.draining),
        suspected: count(census.suspected),
        slots: census.slots,
        slots_held: census.in_flight,
        stale,
        age_seconds: age.map(|age| age.as_secs_f64()),
        ejected: count(census.ejected),
        ejected_workers: ejected.iter().map(ejected_out).collect(),
        with_room: count(census.with_room),
    }
}

fn settings_out(settings: &Settings, arrival: &Arrival, source: Option<&Contact>) -> description::Settings {
    let value = |spec: &settings::Spec| (spec.key.to_owned(), spec.value(settings).to_string());
    let own = settings::TABLE.iter().filter(|spec| spec.is_read_by_routers());
    description::Settings {
        version: settings.version.clone(),
        values: own.map(value).collect(),
        rejected: arrival.rejected.as_ref().map(rejected_out),
        source: source.map(|source| source_out(source.now())),
        unserved: Vec::new(),
    }
}

fn source_out(source: SourceStatus) -> description::SettingsSource {
    description::SettingsSource {
        name: source.name,
        reachable: source.is_reachable,
        since_seconds: source.since.elapsed().as_secs_f64(),
        last_read_seconds: source.last_read.map(|then| then.elapsed().as_secs_f64()),
        why: source.why,
    }
}

fn rejected_out(rejected: &settings::Rejected) -> description::Rejected {
    let settings::Rejected { version, values, more } = rejected.clone();
    let values = values
        .into_iter()
        .map(|it| description::RejectedValue { reason: it.reason_and_value(), key: it.key })
        .collect();
    description::Rejected { version, values, more: count(more) }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
