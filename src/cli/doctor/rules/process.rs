//! What the process may use: processors, descriptors, and its log.

use super::super::judge::Seen;
use super::super::observation::Observation;
use super::words::{amount, counts, percent, time};

/// The CPU quota is used up.
pub(super) fn throttled(seen: &Observation) -> Vec<Seen> {
    let ratio = seen.throttled_ratio;
    if ratio <= 0.0 {
        return Vec::new();
    }
    let runtime = &seen.runtime;
    vec![Seen {
        about: None,
        measured: ratio,
        says: "the CPU quota is used up: the kernel stops all of the worker's threads until the next period".into(),
        evidence: vec![
            format!("it was used up in {} of the periods (weir_overload_throttled_ratio)", percent(ratio)),
            format!("the worker used {} processors over {}", amount(runtime.processors), time(seen.seconds)),
            format!("tasks of the runtime woke up {} late on average", time(runtime.lag_seconds.mean)),
        ],
        change: vec![
            "raise the container's CPU limit (cpu.max, resources.limits.cpu), or take it away and keep the request"
                .into(),
            "or lower the setting max_parallelism, or payload_sampling if the encoders are what computes (weir profile WORKER \
             -o flame.svg shows it)"
                .into(),
        ],
    }]
}

/// All processors are used, by the worker itself.
pub(super) fn busy(seen: &Observation) -> Vec<Seen> {
    let runtime = &seen.runtime;
    if runtime.threads <= 0.0 {
        return Vec::new();
    }
    let encoding = seen.payloads.as_ref().map_or(0.0, |payloads| seen.per_second(payloads.encoding.seconds));
    vec![Seen {
        about: None,
        measured: runtime.processors / runtime.places(),
        says: "the processors are busy: the worker computes, and a larger N would only slow its tasks".into(),
        evidence: vec![
            format!("{} of {:.0} processors over {}", amount(runtime.processors), runtime.places(), time(seen.seconds)),
            format!(
                "{} async threads were busy; encoding payloads took {} processors at the most",
                amount(runtime.busy_threads),
                amount(encoding)
            ),
        ],
        change: vec![
            "more cores or more workers; or see what computes (weir profile WORKER -o flame.svg): an integration that does \
             belongs into another process (exec)"
                .into(),
            "where it is the encoders, lower the setting payload_sampling or payloads.level".into(),
        ],
    }]
}

/// Few descriptors are left.
pub(super) fn descriptors(seen: &Observation) -> Vec<Seen> {
    let (open, limit) = (seen.descriptors.open, seen.descriptors.limit);
    if limit <= 0.0 {
        return Vec::new();
    }
    let share = open.max / limit;
    let of_integration = seen.integrations.iter().filter_map(|(name, of)| Some((name, of.sockets?.busy)));
    let most = of_integration.filter(|(_, busy)| *busy >= 1.0).max_by(|(_, one), (_, other)| one.total_cmp(other));
    let mut evidence = vec![format!(
        "{:.0} of {limit:.0} were open at the most, {:.0} at the beginning and {:.0} at the end",
        open.max, open.first, open.last
    )];
    evidence.extend(most.map(|(name, busy)| format!("integration {name} has the most sockets: {} busy", amount(busy))));
    vec![Seen {
        about: None,
        measured: share,
        says: format!("descriptors run out: {} are open, and without any nothing can connect", percent(share)),
        evidence,
        change: vec![
            "raise the hard limit of the process (LimitNOFILE of the unit, ulimit -Hn)".into(),
            "or open fewer: max_connections_per_host of the integrations, payloads.uploads, and callers that keep their \
             connections (weir_grpc_connections)"
                .into(),
        ],
    }]
}

/// Lines per second that cost a sixth of a processor; from a fifth of them on, they cost what logging may, and are told.
const MANY_LINES_PER_SECOND: f64 = 10_000.0;

/// More is logged than is taken, or than is worth its cost.
pub(super) fn noisy(seen: &Observation) -> Vec<Seen> {
    let logs = &seen.logs;
    let (lost, said) = (logs.lost.values().sum::<f64>(), logs.said.values().sum::<f64>());
    let failed = logs.lost.get("failed").copied().unwrap_or_default();
    let measured = seen.per_second(lost).max(seen.per_second(said) / MANY_LINES_PER_SECOND);
    if measured <= 0.0 {
        return Vec::new();
    }
    let mut evidence = Vec::new();
    if lost > 0.0 {
        evidence.push(format!(
            "{lost:.0} lines lost in {}, {} per second: {} (weir_log_lines_dropped_total)",
            time(seen.seconds),
            amount(seen.per_second(lost)),
            counts(&logs.lost)
        ));
    }
    if said > 0.0 {
        let per_second = amount(seen.per_second(said));
        evidence.push(format!("{per_second} lines said per second: {} (weir_log_lines_total)", counts(&logs.said)));
    }
    if logs.left_out > 0.0 {
        evidence.push(format!("{:.0} more were left out because their like was said too often", logs.left_out));
    }
    let (of, ended) = (if lost > 0.0 { (lost, "lost") } else { (said, "said") }, seen.ended());
    if ended > 0.0 {
        evidence.push(format!("{} lines {} for each task that ended", amount(of.0 / ended), of.1));
    }
    evidence.extend(seen.log_level.as_ref().map(|level| format!("the setting log_level is {level}")));
    let less = "log less (info, warn, or only some targets: info,weir::router=debug): weir settings set log_level=info --why 'the \
                log is noisy'";
    let (says, change) = if failed > lost / 2.0 {
        (
            "log lines cannot be written, and are lost: whoever read stderr is gone, or its disk is full",
            vec!["see where stderr goes: the collector, or the disk behind it".into()],
        )
    } else if lost > 0.0 {
        (
            "more is logged than whoever reads stderr takes: lines are lost",
            vec![less.into(), "or make the reader of stderr faster".into()],
        )
    } else {
        ("the log is noisy: lines cost processor time and room", vec![less.into()])
    };
    vec![Seen { about: None, measured, says: says.into(), evidence, change }]
}
