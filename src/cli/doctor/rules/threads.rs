//! Async threads that are blocked or late, and tasks that do not stop.

use super::super::judge::Seen;
use super::super::observation::{Integration, Observation};
use super::words::{amount, cap, percent, time};

/// Each integration that blocked async threads; an unnamed one where a poll that still lasts is all there is.
pub(super) fn blocked(seen: &Observation) -> Vec<Seen> {
    let named = seen.integrations.iter().filter(|(_, integration)| integration.blocked_seconds > 0.0);
    let mut all: Vec<_> = named.map(|(name, integration)| blocks(seen, name, integration)).collect();
    // What lasts is counted only when it ends; until then only the threads are seen.
    let counted: f64 = all.iter().map(|seen| seen.measured).sum();
    let uncounted = seen.runtime.blocked_threads - counted;
    if all.is_empty() && uncounted > 0.0 {
        all.push(Seen {
            about: None,
            measured: uncounted,
            says: "an integration blocks async threads, and has not let go of one since".into(),
            evidence: threads(seen),
            change: vec![
                "the log names the integration and the task, every 10 s while it lasts: move what computes or waits into \
                 Context::blocking"
                    .into(),
            ],
        });
    }
    all
}

fn blocks(seen: &Observation, name: &str, integration: &Integration) -> Seen {
    let Integration { blocked_seconds, blocked_times, .. } = integration;
    let each = time(blocked_seconds / blocked_times.max(1.0));
    // Several threads at a time, or a poll that began before, make more than there is.
    let of = if *blocked_seconds > seen.seconds { "of threads within" } else { "of" };
    let mut evidence = vec![format!(
        "for {} {of} {}, in {} polls of {each} on average (weir_integration_blocked_seconds)",
        time(*blocked_seconds),
        time(seen.seconds),
        amount(*blocked_times)
    )];
    evidence.extend(threads(seen));
    Seen {
        about: Some(name.to_owned()),
        measured: seen.per_second(*blocked_seconds),
        says: format!("integration {name} blocks async threads: every other task of the worker waits meanwhile"),
        evidence,
        change: vec![
            format!("in {name}, move what computes or waits into Context::blocking, or the integration into exec"),
            format!("until then, let few of them run: {}", cap(name, 1.0)),
        ],
    }
}

fn threads(seen: &Observation) -> Vec<String> {
    let runtime = &seen.runtime;
    let mut evidence = vec![format!(
        "{} of {:.0} async threads were blocked when they were looked at, on average (weir_blocked_threads)",
        amount(runtime.blocked_threads),
        runtime.threads
    )];
    evidence.extend(lateness(seen));
    evidence.extend(unanswered(seen));
    evidence.extend(seen.shedding.iter().map(|why| format!("it sheds load: {why}")));
    evidence
}

fn lateness(seen: &Observation) -> Option<String> {
    let lag = seen.runtime.lag_seconds;
    let said = || {
        let (mean, most) = (time(lag.mean), time(lag.max));
        format!("tasks of the runtime woke up {mean} late on average, {most} at the most (weir_overload_lag_seconds)")
    };
    (lag.max >= 0.001).then(said)
}

fn unanswered(seen: &Observation) -> Option<String> {
    let asked = seen.readings + seen.unanswered;
    (seen.unanswered > 0).then(|| format!("{} of {asked} readings of its metrics were not answered", seen.unanswered))
}

/// The runtime is late, by what no other rule explains.
pub(super) fn lag(seen: &Observation) -> Vec<Seen> {
    let runtime = &seen.runtime;
    // Of a runtime that stands still nothing can be read but that.
    let stands_still = seen.unanswered as f64 / (seen.readings + seen.unanswered).max(1) as f64;
    let mut evidence: Vec<_> = lateness(seen).into_iter().chain(unanswered(seen)).collect();
    evidence.push(format!(
        "{} of {:.0} async threads were busy, and the process used {} processors",
        amount(runtime.busy_threads),
        runtime.threads,
        amount(runtime.processors)
    ));
    // A busy thread that uses no processor either waits in a poll or for a processor.
    let starved = runtime.busy_threads - runtime.processors > 0.2 * runtime.threads;
    let change = if starved {
        "its threads wait: either for a processor, since others on this machine use them, or in polls that block for less than \
         overload.blocked_thread.after; lower that to have them named"
    } else {
        "its own threads are not busy, so it waits for a processor: give it cores of its own, or see who uses them (top)"
    };
    vec![Seen {
        about: None,
        measured: runtime.lag_seconds.mean.max(stands_still),
        says: "the async threads are late: everything that the worker does waits for them".into(),
        evidence,
        change: vec![change.into()],
    }]
}

/// Tasks that were answered for and go on.
pub(super) fn stuck(seen: &Observation) -> Vec<Seen> {
    let (overdue, in_flight) = (seen.gate.overdue, seen.gate.in_flight.mean);
    if overdue <= 0.0 {
        return Vec::new();
    }
    let share = overdue / in_flight.max(overdue);
    vec![Seen {
        about: None,
        measured: share,
        says: "tasks do not stop: they were answered for, and keep their slots".into(),
        evidence: vec![
            format!("{} of {} tasks in flight, {}", amount(overdue), amount(in_flight), percent(share)),
            format!("the oldest should have stopped {} ago", time(seen.gate.overdue_oldest_seconds)),
        ],
        change: vec![
            "weir describe WORKER names them (OVERDUE): their integration ignores that it is cancelled, or waits without a timeout"
                .into(),
        ],
    }]
}
