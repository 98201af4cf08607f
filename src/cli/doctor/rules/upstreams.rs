//! Banks that fail or have become slow.

use super::super::judge::Seen;
use super::super::observation::{Integration, Mean, Observation};
use super::words::{amount, percent, time};

/// Fewer tasks of an integration say nothing about it; what is compared with needs twice as many.
const LEAST: f64 = 10.0;

/// A change of less is noise, whatever it is of.
const LEAST_SLOWER_SECONDS: f64 = 0.02;

/// Each integration whose tasks fail.
pub(super) fn failing(seen: &Observation) -> Vec<Seen> {
    let fails = |(name, of): (&String, &Integration)| {
        let (ended, failed) = (of.ended(), of.failed());
        let share = if ended >= LEAST { failed / ended } else { 0.0 };
        let measured = share.max(of.breaker_open);
        if measured <= 0.0 {
            return None;
        }
        let mut evidence = vec![format!(
            "{failed:.0} of {ended:.0} tasks failed in {}, {}: {}",
            time(seen.seconds),
            percent(share),
            counts(&of.outcomes)
        )];
        if !of.exchanges.is_empty() {
            evidence.push(format!("HTTP exchanges: {}", counts(&of.exchanges)));
        }
        if of.breaker_open > 0.0 {
            evidence.push(format!("its breaker was open in {} of the readings", percent(of.breaker_open)));
        }
        Some(Seen {
            about: Some(name.clone()),
            measured,
            says: if of.breaker_open > share {
                format!("integration {name} is spared, because it fails: its breaker is open")
            } else {
                format!("tasks of integration {name} fail: {} of those that ended", percent(share))
            },
            evidence,
            change: vec![
                format!("see what it says: weir payload list --integration {name} --outcome failed --limit 5"),
                "connect, timeout and 5xx are the bank's; 401 and 403 a credential's; 429 asks for fewer at a time \
                 (integration_caps); deadline for a longer timeout or a faster bank"
                    .into(),
            ],
        })
    };
    seen.integrations.iter().filter_map(fails).collect()
}

/// Each integration that takes longer than it did, or than it does elsewhere.
pub(super) fn slow(seen: &Observation) -> Vec<Seen> {
    seen.integrations.iter().filter_map(|(name, of)| slower(seen, name, of)).collect()
}

fn slower(seen: &Observation, name: &str, of: &Integration) -> Option<Seen> {
    // A bank that hangs ends nothing; those that run say at least how long they have run so far.
    let (now, how) = match (of.took, of.running) {
        (took, _) if took.count >= LEAST => (took, "took"),
        (_, running) if running.count >= LEAST / 2.0 => (running, "that have not ended have run for"),
        _ => return None,
    };
    let now_seconds = now.mean_seconds()?;
    let ratio = |other: &Mean| {
        let mean = other.mean_seconds().filter(|_| other.count >= 2.0 * LEAST)?;
        (now_seconds - mean >= LEAST_SLOWER_SECONDS).then_some(now_seconds / mean)
    };
    let ratios = [(ratio(&of.before), of.before, "before"), (ratio(&of.peers), of.peers, "on the other workers")];
    let (times, other, when) = ratios
        .into_iter()
        .filter_map(|(ratio, other, when)| Some((ratio?, other, when)))
        .max_by(|(one, ..), (other, ..)| one.total_cmp(other))?;
    let mut evidence = vec![
        format!("{:.0} runs {how} {} on average, over {}", now.count, time(now_seconds), time(seen.seconds)),
        format!("{:.0} runs took {} on average {when}", other.count, time(other.mean_seconds()?)),
    ];
    if let Some(sockets) = of.sockets {
        let (busy, waiting) = (amount(sockets.busy), amount(sockets.waiting));
        evidence.push(format!("{busy} of its sockets were busy on average, and {waiting} requests waited for one"));
    }
    evidence.push(format!("it held {} of {:.0} slots on average", amount(of.held), seen.gate.target));
    Some(Seen {
        about: Some(name.to_owned()),
        measured: times,
        says: format!("the upstream of integration {name} is slow: {} times as slow as {when}", amount(times)),
        evidence,
        change: vec![
            format!("ask whoever runs what {name} asks; what it answered: weir payload list --integration {name}"),
            format!(
                "so that it does not take the others' slots, an adaptive limit ([worker.upstream]) or a cap: weir settings set \
                 'integration_caps={{\"{name}\": \"50%\"}}' --why 'it is slow'"
            ),
        ],
    })
}

fn counts(of: &std::collections::BTreeMap<String, f64>) -> String {
    let counts: Vec<_> = of.iter().map(|(name, count)| format!("{name} {count:.0}")).collect();
    if counts.is_empty() { "none".into() } else { counts.join(", ") }
}
