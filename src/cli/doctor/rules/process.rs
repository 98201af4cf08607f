//! What the process may use: processors, descriptors, and its log.

use super::super::judge::Seen;
use super::super::observation::Observation;
use super::words::{amount, percent, time};

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
        measured: runtime.processors / runtime.threads,
        says: "the processors are busy: the worker computes, and a larger N would only slow its tasks".into(),
        evidence: vec![
            format!("{} of {:.0} processors over {}", amount(runtime.processors), runtime.threads, time(seen.seconds)),
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

/// More is logged than is taken.
pub(super) fn noisy(seen: &Observation) -> Vec<Seen> {
    let (lost, ended) = (seen.log_lines_dropped, seen.ended());
    if lost <= 0.0 {
        return Vec::new();
    }
    let level = seen.log_level.as_ref().map(|level| format!("the setting log_level is {level}"));
    let of_task = (ended > 0.0).then(|| format!("{} lines lost for each task that ended", amount(lost / ended)));
    let lines = format!(
        "{lost:.0} lines lost in {}, {} per second (weir_log_lines_dropped_total)",
        time(seen.seconds),
        amount(seen.per_second(lost))
    );
    vec![Seen {
        about: None,
        measured: seen.per_second(lost),
        says: "more is logged than whoever reads stderr takes: lines are lost".into(),
        evidence: [Some(lines), of_task, level].into_iter().flatten().collect(),
        change: vec![
            "log less (info, warn, or only some targets: info,weir::router=debug): weir settings set log_level=info --why 'lines \
             are lost'"
                .into(),
            "or make the reader of stderr faster".into(),
        ],
    }]
}
