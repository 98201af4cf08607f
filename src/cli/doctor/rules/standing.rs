//! A worker that ended, or takes no tasks.

use super::super::judge::Seen;
use super::super::observation::Observation;
use super::super::observe::DRAINING;
use super::words::{bytes, percent, time};
use crate::cli::table::counted;

/// An end in order is told, and is no trouble by itself.
const IN_ORDER: f64 = 0.5;

/// What `weir_last_exit` says of an end in order.
const CLEAN: &str = "clean";

/// From this share of the limit on, memory may be why it ended.
const MUCH_MEMORY: f64 = 0.75;

/// The process ended while it was watched.
pub(super) fn ended(seen: &Observation) -> Vec<Seen> {
    let is_gone = seen.gone_seconds > 0.0;
    let how = seen.last_exit.as_deref();
    let (says, measured) = match (seen.is_absent(), seen.restarts) {
        (false, 0) => return Vec::new(),
        (true, _) if seen.gate.drains => ("the worker drained, and ended in order".to_owned(), IN_ORDER),
        (true, _) if is_gone => ("the worker went away while it was watched: nobody is there any more".to_owned(), 1.0),
        (true, _) => ("the worker went away, or answers nobody: its metrics are read no more".to_owned(), 1.0),
        (false, restarts) => {
            let times = counted(restarts as u64, "time");
            let measured = if restarts == 1 && how == Some(CLEAN) { IN_ORDER } else { restarts as f64 };
            (format!("the worker was started anew {times} while it was watched{}", ended_how(how)), measured)
        }
    };
    let mut evidence = Vec::new();
    if is_gone {
        evidence.push(format!("for the last {} no connection was possible", time(seen.gone_seconds)));
    }
    if seen.unread_seconds > 0.0 {
        evidence.push(format!("for the last {} Prometheus asked for them in vain (up)", time(seen.unread_seconds)));
    }
    if seen.restarts > 0 {
        let life = time(seen.seconds);
        evidence.push(format!(
            "process_start_time_seconds changed {}; what follows is of the {life} of one life",
            counted(seen.restarts as u64, "time")
        ));
    }
    let memory = &seen.memory;
    let share = memory.used.max / memory.limit;
    if share >= MUCH_MEMORY {
        evidence.push(format!(
            "its memory was at {} of the limit of {} at the most",
            percent(share),
            bytes(memory.limit)
        ));
    }
    let change = match how {
        _ if seen.is_absent() && seen.gate.drains => "nothing, if it was meant to: its log says who asked for it",
        Some("out_of_memory") => {
            "a larger container, or a lower max_parallelism or payloads.queue_bytes: the kernel killed it for its memory"
        }
        Some("panic" | "failure") => "the last lines of the log of the life before say why it ended",
        Some("killed") => "see who killed it: a liveness probe that failed, or the orchestrator (kubectl describe pod)",
        _ => {
            "the last lines of its log, weir_last_exit of the next life, and the orchestrator's events say why it ended"
        }
    };
    vec![Seen { about: None, measured, says, evidence, change: vec![change.into()] }]
}

fn ended_how(how: Option<&str>) -> String {
    how.map_or_else(String::new, |how| {
        format!("; before the last start it ended by: {} (weir_last_exit)", how.replace('_', " "))
    })
}

/// It takes no tasks, and is not meant to.
pub(super) fn takes_none(seen: &Observation) -> Vec<Seen> {
    let (gate, pool) = (&seen.gate, &seen.pool);
    // That it ended says it all.
    if seen.is_absent() {
        return Vec::new();
    }
    let draining = gate.limited_by.get(DRAINING).copied().unwrap_or_default();
    let (measured, says, change) = if draining >= gate.closed {
        (
            draining,
            "the worker drains: it ends what it has, and takes no more tasks",
            vec![
                "that cannot be taken back: others of the pool take its tasks, or start another one in its place"
                    .to_owned(),
            ],
        )
    } else {
        (
            gate.closed,
            "the worker takes no tasks: the setting max_parallelism is 0",
            vec![
                "see who made it 0, and what it was: weir settings history".into(),
                format!(
                    "have it take tasks again: weir settings set max_parallelism=1 --pool {pool} --why 'it took nothing'"
                ),
            ],
        )
    };
    if measured <= 0.0 {
        return Vec::new();
    }
    let mut evidence = vec![format!(
        "in {} of the readings; {:.0} tasks in flight at the end",
        percent(measured),
        gate.in_flight.last
    )];
    evidence.extend(refusals(seen));
    vec![Seen { about: None, measured, says: says.into(), evidence, change }]
}

/// What was refused, by reason.
pub(super) fn refusals(seen: &Observation) -> Option<String> {
    let refused = seen.gate.refused.iter();
    let refused: Vec<_> =
        refused.map(|(reason, count)| format!("{reason} {}", super::amount(seen.per_second(*count)))).collect();
    (!refused.is_empty()).then(|| format!("refusals per second: {}", refused.join(", ")))
}
