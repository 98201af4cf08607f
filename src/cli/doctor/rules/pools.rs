//! Limits that tasks wait at: sockets, processes, blocking threads, and slots.

use super::super::judge::Seen;
use super::super::observation::{Line, Observation};
use super::standing::refusals;
use super::words::{amount, cap, percent, time};

/// Fewer than this at a time, on average, are chance.
const LEAST_WAITING: f64 = 0.5;

/// The share of those who want a place and wait for it.
fn waiting_share(line: &Line) -> Option<f64> {
    (line.waiting >= LEAST_WAITING).then(|| line.waiting / (line.waiting + line.busy))
}

/// The sockets of `http` integrations.
pub(super) fn sockets(seen: &Observation) -> Vec<Seen> {
    let lines =
        seen.integrations.iter().filter_map(|(name, of)| Some((name, of.sockets?, waiting_share(&of.sockets?)?)));
    let says = |(name, line, share): (&String, Line, f64)| {
        let waits = seen.socket_waits;
        let waited = waits.mean_seconds().map(|mean| {
            format!(
                "a request waited {} on average, those of all integrations together ({:.0} in {})",
                time(mean),
                waits.count,
                time(seen.seconds)
            )
        });
        let now = format!(
            "{} requests waited and {} had a socket, on average; {:.0} sockets may be busy for each host",
            amount(line.waiting),
            amount(line.busy),
            line.places
        );
        Seen {
            about: Some(name.clone()),
            measured: share,
            says: format!("requests of integration {name} wait for a socket: {} of them at a time", percent(share)),
            evidence: std::iter::once(now).chain(waited).collect(),
            change: vec![
                format!(
                    "raise integrations.{name}.max_connections_per_host (it is {:.0}) if the host can take more",
                    line.places
                ),
                format!("or let no more tasks of it run than it has sockets: {}", cap(name, line.places)),
            ],
        }
    };
    lines.map(says).collect()
}

/// The processes of `exec` integrations.
pub(super) fn processes(seen: &Observation) -> Vec<Seen> {
    let lines =
        seen.integrations.iter().filter_map(|(name, of)| Some((name, of.processes?, waiting_share(&of.processes?)?)));
    let says = |(name, line, share): (&String, Line, f64)| Seen {
        about: Some(name.clone()),
        measured: share,
        says: format!("tasks of integration {name} wait for a process: {} of them at a time", percent(share)),
        evidence: vec![format!(
            "{} tasks waited and {} were in a process, on average; the processes have {:.0} places (weir_exec_waiting)",
            amount(line.waiting),
            amount(line.busy),
            line.places
        )],
        change: vec![
            format!("raise integrations.{name}.processes, if the machine can take more"),
            format!(
                "or have each process run more at a time: as many as the program announces (concurrency in its ready line, 1 where it \
                 says none), but at most integrations.{name}.max_concurrency_per_process; raise the smaller of the two"
            ),
            format!("or let no more tasks of it run than there are places: {}", cap(name, line.places.max(1.0))),
        ],
    };
    lines.map(says).collect()
}

/// The blocking threads that integrations share.
pub(super) fn blocking(seen: &Observation) -> Vec<Seen> {
    let line = seen.blocking;
    let says = |share| Seen {
        about: None,
        measured: share,
        says: format!("closures of integrations wait for a blocking thread: {} of them at a time", percent(share)),
        evidence: vec![format!(
            "{} waited and {} of {:.0} ran, on average (weir_blocking_waiting)",
            amount(line.waiting),
            amount(line.busy),
            line.places
        )],
        change: vec![
            "raise worker.environment.blocking_threads if they wait, or give the worker more cores if they compute"
                .into(),
        ],
    };
    waiting_share(&line).map(says).into_iter().collect()
}

/// A limit on slots is what binds, while the processors are idle.
pub(super) fn slots(seen: &Observation) -> Vec<Seen> {
    let limits = seen.gate.limited_by.iter();
    let limits: Vec<_> = limits.filter_map(|(constraint, share)| Some((limit(seen, constraint)?, *share))).collect();
    let bound: f64 = limits.iter().map(|(_, share)| share).sum();
    // Between a task and the next one there is room for a moment, in which a reading may fall.
    let held = if bound > 0.0 && seen.gate.target > 0.0 { seen.gate.held.mean / seen.gate.target } else { 0.0 };
    // Of several, what the one that bound for longest says.
    let longest = limits.into_iter().max_by(|(_, one), (_, other)| one.total_cmp(other));
    let says = |((says, change), _)| {
        let measured = bound.max(held.min(1.0)) * seen.runtime.idle();
        Seen { about: None, measured, says, evidence: full(seen), change }
    };
    longest.map(says).into_iter().collect()
}

/// What a binding constraint says, and what to change; none where it is no limit on slots.
fn limit(seen: &Observation, constraint: &str) -> Option<(String, Vec<String>)> {
    let target = seen.gate.target;
    let at_cap = || {
        let most = seen.integrations.iter().max_by(|(_, one), (_, other)| one.held.total_cmp(&other.held));
        most.map_or_else(String::new, |(name, of)| format!("; {name} holds the most, {} slots", amount(of.held)))
    };
    let pool = &seen.pool;
    let (says, change) = match constraint {
        // Another rule says so.
        "slots" if target <= 0.0 => return None,
        "slots" => (
            format!("all {target:.0} slots are held by work that waits, and the processors are idle: N can be larger"),
            vec![
                format!(
                    "raise max_parallelism: weir settings raise max_parallelism --to {:.0} --pool {pool}",
                    2.0 * target
                ),
                format!(
                    "or by hand, watching the dashboard Rollout: weir settings set max_parallelism={:.0} --pool {pool} --why \
                     'slots are full while idle'",
                    (1.25 * target).ceil()
                ),
            ],
        ),
        "reserve" => (
            "batch tasks hold all slots that they may, the rest is reserved, and the processors are idle".into(),
            vec!["lower the setting interactive_reserve, or raise max_parallelism".into()],
        ),
        "integration_cap" => (
            format!("an integration is at its cap, and the processors are idle{}", at_cap()),
            vec![
                "raise its integration_caps if its bank can take more (weir describe WORKER says whose cap is reached)"
                    .into(),
            ],
        ),
        "adaptive_limit" => (
            format!(
                "an integration is at the limit that was found for its bank, and the processors are idle{}",
                at_cap()
            ),
            vec![
                "that is what the limit is for; if the bank bears more, see [worker.upstream] and docs/upstream.md"
                    .into(),
            ],
        ),
        "tenant_cap" => (
            "a tenant is at its cap, and the processors are idle".into(),
            vec!["raise its tenant_caps (weir describe WORKER names the tenants at their cap)".into()],
        ),
        _ => return None,
    };
    Some((says, change))
}

fn full(seen: &Observation) -> Vec<String> {
    let (gate, runtime) = (&seen.gate, &seen.runtime);
    let shares = gate.limited_by.iter().map(|(name, share)| format!("{name} {}", percent(*share)));
    let mut evidence = vec![
        format!(
            "{} of {:.0} slots were held on average over {}",
            amount(gate.held.mean),
            gate.target,
            time(seen.seconds)
        ),
        format!(
            "the worker used {} of {:.0} processors, {} were idle",
            amount(runtime.processors),
            runtime.places(),
            percent(runtime.idle())
        ),
        format!(
            "what bound, by share of the readings: {} (weir_binding_constraint)",
            shares.collect::<Vec<_>>().join(", ")
        ),
    ];
    evidence.extend(refusals(seen));
    evidence
}
