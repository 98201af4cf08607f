//! A diagnosis for people: what is most likely the matter comes first, and what was watched last.

use super::judge::{Finding, Verdict};
use super::observation::{Memory, Observation};
use super::rules::{amount, bytes, percent, time};
use crate::cli::table::{counted, printable};

/// What introduces the lines below a finding.
const WIDTH: usize = 10;

pub(super) fn text(verdict: Verdict, findings: &[Finding], observations: &[Observation]) -> String {
    let mut lines = match verdict {
        Verdict::Findings => Vec::new(),
        Verdict::Healthy => vec!["nothing stands out".to_owned()],
        Verdict::TooLittleTraffic => {
            let seconds = observations.iter().map(|seen| seen.seconds).fold(0.0, f64::max);
            let refused = observations.iter().map(Observation::refused).sum::<f64>();
            let refused = if refused > 0.0 { format!(", and {refused:.0} were refused") } else { String::new() };
            vec![format!(
                "not enough traffic to judge: {} in {}{refused}; watch for longer, or while there is more to do",
                counted(observations.iter().map(Observation::ended).sum::<f64>() as u64, "task"),
                time(seconds)
            )]
        }
    };
    for (index, finding) in findings.iter().enumerate() {
        lines.extend(of_finding(index + 1, finding, observations.len()));
        lines.push(String::new());
    }
    if findings.is_empty() {
        lines.push(String::new());
    }
    lines.extend(observations.iter().flat_map(watched));
    lines.iter().map(|line| printable(line).trim_end().to_owned() + "\n").collect()
}

fn of_finding(number: usize, finding: &Finding, workers: usize) -> Vec<String> {
    let Finding { score, says, evidence, change, read, instances, .. } = finding;
    let mut lines = vec![format!("{number}. {says} (score {score:.2})")];
    if workers > 1 {
        let (worst, of) = (instances.first().map_or("", String::as_str), instances.len());
        lines.extend(block(
            "where",
            &[format!("{of} of {workers} workers: {}; the numbers are of {worst}", instances.join(", "))],
        ));
    }
    lines.extend(block("evidence", evidence));
    lines.extend(block("change", change));
    lines.extend(block("read", &[(*read).to_owned()]));
    lines
}

fn block<'a>(title: &'a str, lines: &'a [String]) -> impl Iterator<Item = String> + 'a {
    let titles = std::iter::once(title).chain(std::iter::repeat(""));
    titles.zip(lines).map(|(title, line)| format!("   {title:<WIDTH$}{line}"))
}

/// The main numbers of a worker, whether or not anything is the matter.
fn watched(seen: &Observation) -> Vec<String> {
    let Observation { instance, pool, readings, gate, runtime, memory, .. } = seen;
    let ended = seen.ended();
    let failed = seen.integrations.values().fold(0.0, |sum, of| sum + of.failed());
    let took: (f64, f64) =
        seen.integrations.values().fold((0.0, 0.0), |sum, of| (sum.0 + of.took.seconds, sum.1 + of.took.count));
    let mut numbers = vec![
        format!(
            "{ended:.0} ended, {} per second, {failed:.0} failed, {} each",
            amount(seen.per_second(ended)),
            if took.1 > 0.0 { time(took.0 / took.1) } else { "-".into() }
        ),
        format!(
            "{} of {:.0} held on average, {:.0} tasks in flight at the end{}",
            amount(gate.held.mean),
            gate.target,
            gate.in_flight.last,
            if seen.refused() > 0.0 { format!("; {:.0} refused", seen.refused()) } else { String::new() }
        ),
        format!(
            "{} of {:.0} processors, {} async threads busy, {} late on average",
            amount(runtime.processors),
            runtime.places(),
            amount(runtime.busy_threads),
            time(runtime.lag_seconds.mean)
        ),
        memory_used(memory),
        limit(
            format!("{:.0} open", seen.descriptors.open.last),
            format!("{:.0}", seen.descriptors.limit),
            seen.descriptors.open.last,
            seen.descriptors.limit,
        ),
    ];
    let mut names = vec!["tasks", "slots", "runtime", "memory", "descriptors"];
    if let Some(payloads) = &seen.payloads {
        names.push("payloads");
        numbers.push(format!(
            "{:.0} came, {:.0} were stored, {:.0} lost; {:.0} of {:.0} pending at the most",
            payloads.offered,
            payloads.stored,
            payloads.dropped.values().fold(0.0, |sum, count| sum + count),
            payloads.pending.max,
            payloads.pending_limit
        ));
    }
    let seconds = time(seen.seconds);
    let head =
        format!("watched: worker {instance} in pool {pool} for {seconds}, {readings} readings{}", meanwhile(seen));
    let numbers = names.iter().zip(&numbers).map(|(name, line)| format!("   {name:<13}{line}"));
    std::iter::once(head).chain(numbers).collect()
}

/// What the numbers are to be read with.
fn meanwhile(seen: &Observation) -> String {
    let mut also = String::new();
    if seen.restarts > 0 {
        also.push_str("; of its longest life, for it was started anew");
    }
    if seen.profiles > 0.0 {
        let taken = counted(seen.profiles as u64, "profile");
        also.push_str(&format!("; {taken} taken meanwhile, whose memory and processor time is not counted as its own"));
    }
    also
}

/// The process and whatever has the limit are two: a machine has other programs, too.
fn memory_used(memory: &Memory) -> String {
    let process = format!("{} in this process", bytes(memory.resident.last));
    if memory.limit <= 0.0 {
        return format!("{process}; no limit");
    }
    let whose = match memory.limit_of.as_deref() {
        Some("configuration") => "of overload.memory.limit_bytes",
        Some("cgroup") => "in its cgroup",
        Some("machine") => "on the machine",
        _ => "of the nearest limit: its own, its cgroup's or its machine's",
    };
    let (used, limit) = (bytes(memory.used.last), bytes(memory.limit));
    format!("{process}; {used} of {limit} ({}) used {whose}", percent(memory.used.last / memory.limit))
}

fn limit(is: String, of: String, used: f64, limit: f64) -> String {
    if limit > 0.0 {
        format!("{is}; {} of the limit of {of}", percent(used / limit))
    } else {
        format!("{is}; no limit")
    }
}

#[cfg(test)]
mod tests {
    use super::super::observation::Level;
    use super::*;

    #[test]
    fn memory_of_the_process_is_told_from_what_counts_against_the_limit() {
        let of = |bytes: f64| Level { last: bytes * f64::from(1 << 20), ..Level::default() };
        let shown = |limit: f64, limit_of: Option<&str>| {
            let limit = of(limit).last;
            memory_used(&Memory {
                resident: of(68.0),
                used: of(1024.0),
                limit,
                limit_of: limit_of.map(str::to_owned),
                allocator: None,
            })
        };
        let process = "68 MiB in this process; 1.0 GiB of 4.0 GiB (25%) used ";
        for (whose, says) in [
            (Some("configuration"), "of overload.memory.limit_bytes"),
            (Some("cgroup"), "in its cgroup"),
            (Some("machine"), "on the machine"),
            (None, "of the nearest limit: its own, its cgroup's or its machine's"),
        ] {
            assert_eq!(shown(4096.0, whose), format!("{process}{says}"));
        }
        assert_eq!(shown(0.0, None), "68 MiB in this process; no limit");
    }
}
