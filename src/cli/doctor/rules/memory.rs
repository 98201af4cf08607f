//! Memory that grows or runs out, and what holds it.

use super::super::judge::Seen;
use super::super::observation::Observation;
use super::words::{amount, bytes, percent, time};

/// Less than this is noise.
const LEAST_GROWTH_BYTES: f64 = (8 << 20) as f64;

/// A process that has just been started fills its pools and its caches, by more than that.
const YOUNG_SECONDS: f64 = 120.0;
const LEAST_GROWTH_WHILE_YOUNG_BYTES: f64 = (64 << 20) as f64;

/// What holds memory that was added, from the numbers that name a holder.
struct Holder {
    grown: f64,
    who: String,
    change: String,
}

/// Memory grows.
pub(super) fn growth(seen: &Observation) -> Vec<Seen> {
    let resident = &seen.memory.resident;
    let is_young = seen.age_seconds.is_some_and(|age| age < YOUNG_SECONDS);
    let least = if is_young { LEAST_GROWTH_WHILE_YOUNG_BYTES } else { LEAST_GROWTH_BYTES };
    if resident.grown < least || resident.first <= 0.0 {
        return Vec::new();
    }
    let holders = holders(seen);
    let most = holders.iter().max_by(|one, other| one.grown.total_cmp(&other.grown));
    let most = most.filter(|holder| holder.grown >= resident.grown / 2.0);
    let (who, change) = match most {
        Some(Holder { who, change, .. }) => (who.clone(), change.clone()),
        None => (
            "what holds it is not known".into(),
            "a build with the feature jemalloc shows what the program holds".into(),
        ),
    };
    let per_second = seen.per_second(resident.grown);
    let mut evidence = vec![format!(
        "{} after {} in {}: {} per minute (process_resident_memory_bytes)",
        bytes(resident.last),
        bytes(resident.first),
        time(seen.seconds),
        bytes(60.0 * per_second)
    )];
    evidence.extend(split(seen));
    let left = seen.memory.limit - seen.memory.used.last;
    if seen.memory.limit > 0.0 && left > 0.0 {
        evidence.push(format!(
            "at that rate the limit of {} is reached in {}",
            bytes(seen.memory.limit),
            time(left / per_second)
        ));
    }
    vec![Seen {
        about: None,
        measured: resident.grown / resident.first,
        says: format!("memory grows: {who}"),
        evidence,
        change: vec![change],
    }]
}

fn holders(seen: &Observation) -> Vec<Holder> {
    let mut holders = Vec::new();
    let queue = seen.payloads.as_ref().map_or(0.0, |payloads| payloads.pending_bytes.grown);
    holders.push(Holder {
        grown: queue,
        who: format!("the queue of payloads holds it, {} more", bytes(queue)),
        change: "lower payloads.queue_bytes or the setting payload_sampling, and see why payloads are not stored"
            .into(),
    });
    let resident = seen.memory.resident.grown;
    let allocated = seen.memory.allocator.map(|allocator| allocator.allocated.grown);
    if let Some(allocated) = allocated {
        holders.push(Holder {
            grown: resident - allocated,
            who: "the allocator holds it, not the program: pages that were freed and not yet given back".into(),
            change: "it goes back within some ten seconds of calm; where it does not, small objects that stay pin pages: fewer tasks \
                     at a time, or a restart now and then"
                .into(),
        });
    }
    let (tasks, of_program) = (&seen.gate.in_flight, allocated.unwrap_or(resident) - queue);
    if tasks.grown >= 1.0 {
        let each = of_program / tasks.grown;
        holders.push(Holder {
            grown: of_program,
            who: format!("the tasks in flight hold it, {} more of about {} each", amount(tasks.grown), bytes(each)),
            change: "lower max_parallelism, or give those that take much a weight (integration_weights), so that fewer run at a time"
                .into(),
        });
    } else {
        let integrations = seen.integrations.iter().filter(|(_, of)| of.ended() > 0.0);
        let ended: Vec<_> = integrations.map(|(name, of)| format!("{name} {:.0}", of.ended())).collect();
        holders.push(Holder {
            grown: of_program,
            who: "the program keeps it, though no more tasks run than before: something leaks".into(),
            change: format!(
                "look in the integrations for what is kept after a task: a cache without a bound, a list that only grows; \
                 tasks that ended: {}",
                if ended.is_empty() { "none".into() } else { ended.join(", ") }
            ),
        });
    }
    holders
}

/// What the numbers say of who holds what.
fn split(seen: &Observation) -> Vec<String> {
    let mut evidence = Vec::new();
    if let Some(allocator) = &seen.memory.allocator {
        evidence.push(format!(
            "allocated {} more, to {}; the allocator's pages {} more, to {}; {} of address space kept without memory",
            bytes(allocator.allocated.grown),
            bytes(allocator.allocated.last),
            bytes(allocator.resident.grown),
            bytes(allocator.resident.last),
            bytes(allocator.retained.last)
        ));
    }
    let tasks = &seen.gate.in_flight;
    let tasks = format!("tasks in flight: {:.0}, then {:.0}", tasks.first, tasks.last);
    let queue = seen.payloads.as_ref().map(|payloads| {
        format!(
            "the payloads' queue: {}, then {}",
            bytes(payloads.pending_bytes.first),
            bytes(payloads.pending_bytes.last)
        )
    });
    evidence.extend([Some(tasks), queue].into_iter().flatten());
    evidence
}

/// Memory is nearly used up.
pub(super) fn near_limit(seen: &Observation) -> Vec<Seen> {
    let memory = &seen.memory;
    if memory.limit <= 0.0 {
        return Vec::new();
    }
    let share = memory.used.max / memory.limit;
    let mut evidence = vec![format!(
        "{} of {} at the most, {} at the end",
        bytes(memory.used.max),
        bytes(memory.limit),
        bytes(memory.used.last)
    )];
    evidence.push(format!("{} of it are this process' own", bytes(memory.resident.last)));
    evidence.extend(split(seen));
    vec![Seen {
        about: None,
        measured: share,
        says: format!("memory is nearly used up, {} of its limit: at 90% the worker takes no tasks", percent(share)),
        evidence,
        change: vec![
            "a larger container, or a lower max_parallelism, payloads.queue_bytes or payload_sampling".into(),
            "weir describe WORKER says whose limit it is: where it is the machine's, other programs count, and \
             overload.memory.limit_bytes is the way to count this one alone"
                .into(),
        ],
    }]
}
