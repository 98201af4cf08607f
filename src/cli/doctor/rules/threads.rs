//! Async threads that are blocked or late, and tasks that do not stop.

use super::super::judge::Seen;
use super::super::observation::{Integration, Observation};
use super::words::{amount, cap, percent, time};

/// How late a runtime counts as at the least where the worker sheds load for it: beyond doubt.
const LATE_ENOUGH_TO_SHED_SECONDS: f64 = 0.5;

/// Each integration that blocked async threads; where a poll that still lasts is all there is, the one that the worker names,
/// or an unnamed one.
pub(super) fn blocked(seen: &Observation) -> Vec<Seen> {
    let named = seen.integrations.iter().filter(|(_, integration)| integration.blocked_seconds > 0.0);
    let mut all: Vec<_> = named.map(|(name, integration)| blocks(seen, name, integration)).collect();
    // What lasts is counted only when it ends; until then only the threads are seen.
    let counted: f64 = all.iter().map(|seen| seen.measured).sum();
    let uncounted = seen.runtime.blocked_threads - counted;
    if all.is_empty() && uncounted > 0.0 {
        let about = seen.blocked_by.clone();
        let (who, change) = match &about {
            Some(name) => (format!("integration {name}"), vec![until_then(name)]),
            None => ("an integration".into(), Vec::new()),
        };
        let task = "the log names the integration and the task, every 10 s while it lasts: move what computes or waits into \
                    Context::blocking";
        all.push(Seen {
            about,
            measured: uncounted,
            says: format!("{who} blocks async threads, and has not let go of one since"),
            evidence: threads(seen),
            change: std::iter::once(task.to_owned()).chain(change).collect(),
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
            until_then(name),
        ],
    }
}

fn until_then(name: &str) -> String {
    format!("until then, let few of them run: {}", cap(name, 1.0))
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

/// That the worker sheds load because the runtime is late.
fn sheds_for_lag(seen: &Observation) -> Option<String> {
    let runtime = &seen.runtime;
    let refused = seen.gate.refused.get("overloaded").copied().unwrap_or_default();
    let said = || {
        format!(
            "the worker began to shed load for it {:.0} times and did so in {} of the readings; {refused:.0} tasks were refused as \
             overloaded (weir_overload_sheds_total, weir_gate_refused_total)",
            runtime.lag_sheds,
            percent(runtime.lag_shedding)
        )
    };
    (runtime.lag_sheds > 0.0 || runtime.lag_shedding > 0.0).then(said)
}

/// The runtime is late, by what no other rule explains.
pub(super) fn lag(seen: &Observation) -> Vec<Seen> {
    let runtime = &seen.runtime;
    // Of a runtime that stands still nothing can be read but that.
    let stands_still = seen.unanswered as f64 / (seen.readings + seen.unanswered).max(1) as f64;
    let shedding = sheds_for_lag(seen);
    let least = if shedding.is_some() { LATE_ENOUGH_TO_SHED_SECONDS } else { 0.0 };
    let mut evidence: Vec<_> = [shedding, lateness(seen), unanswered(seen)].into_iter().flatten().collect();
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
        measured: runtime.lag_seconds.mean.max(stands_still).max(least),
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
