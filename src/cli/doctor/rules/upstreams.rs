//! Banks that fail or have become slow.

use super::super::judge::Seen;
use super::super::observation::{Integration, Mean, Observation, Runs, Spread};
use super::words::{amount, counts, percent, time};

/// Fewer tasks of an integration say nothing about it; what is compared with needs twice as many.
const LEAST: f64 = 10.0;

pub(in super::super) const LEAST_COMPARED: f64 = 2.0 * LEAST;

/// From this share of runs on that took longer than half of those before, more is different than their mixture.
const NEARLY_ALL: f64 = 0.9;

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

/// Runs that took longer than others.
struct Slower {
    times: f64,
    evidence: [String; 2],
    than: &'static str,
}

fn slower(seen: &Observation, name: &str, of: &Integration) -> Option<Seen> {
    let before = [Known { runs: of.before, spread: of.spread, when: "before" }, Known::of_peers(of.peers)];
    let all =
        before.iter().flat_map(|known| [known.of_ended(seen, of), known.of_all(seen, of), known.of_running(seen, of)]);
    let Slower { times, evidence, than } = all.flatten().max_by(|one, other| one.times.total_cmp(&other.times))?;
    let mut evidence: Vec<_> = evidence.into();
    if let Some(sockets) = of.sockets {
        let (busy, waiting) = (amount(sockets.busy), amount(sockets.waiting));
        evidence.push(format!("{busy} of its sockets were busy on average, and {waiting} requests waited for one"));
    }
    evidence.push(format!("it held {} of {:.0} slots on average", amount(of.held), seen.gate.target));
    Some(Seen {
        about: Some(name.to_owned()),
        measured: times,
        says: format!("the upstream of integration {name} is slow: {} times as slow as {than}", amount(times)),
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

/// What is compared with: runs, how their times were spread, and when they were.
struct Known {
    runs: Runs,
    spread: Option<Spread>,
    when: &'static str,
}

impl Known {
    fn of_peers(runs: Runs) -> Self {
        Known { runs, spread: None, when: "on the other workers" }
    }

    /// Those that ended in ok with such: what fails may do so at once.
    fn of_ended(&self, seen: &Observation, of: &Integration) -> Option<Slower> {
        self.compared(seen, of.took.ok(), self.runs.ok(), "that ended in ok took")
    }

    /// All that ended: what fails may do so by its deadline. Where failures were fast, they are no measure.
    fn of_all(&self, seen: &Observation, of: &Integration) -> Option<Slower> {
        let (all, ok) = (self.runs.all(), self.runs.ok());
        let known = if ok.mean_seconds() > all.mean_seconds() { ok } else { all };
        self.compared(seen, of.took.all(), known, "took")
    }

    fn compared(&self, seen: &Observation, now: Mean, known: Mean, how: &str) -> Option<Slower> {
        if now.count < LEAST {
            return None;
        }
        let mean = known.mean_seconds()?;
        // A time since the start may have an incident in it, which must not hide the next one.
        let half = self.spread.filter(|spread| spread.above_half >= NEARLY_ALL && spread.half_within < mean);
        let said = match half {
            Some(spread) => format!(
                "half of the runs {} took no longer than {}, and {} of these did; on average they took {}",
                self.when,
                time(spread.half_within),
                percent(spread.above_half),
                time(mean)
            ),
            None => format!("{:.0} runs took {} on average {}", known.count, time(mean), self.when),
        };
        self.slower(seen, now, how, known, half.map_or(mean, |spread| spread.half_within), said)
    }

    /// A bank that hangs ends nothing: those that run say at least for how long they have run so far.
    fn of_running(&self, seen: &Observation, of: &Integration) -> Option<Slower> {
        let (known, held) = (self.runs.ok(), of.held);
        let mean = known.mean_seconds()?;
        let said = format!("{:.0} runs took {} on average {}", known.count, time(mean), self.when);
        let ends_none = of.took.count <= 0.0 && held >= LEAST / 2.0;
        let (running, how) = match of.running {
            running if running.count >= LEAST / 2.0 => (running, "that have not ended have run for"),
            // Who is not asked for them shows that slots are held all the time, and that nothing ends.
            _ if ends_none => {
                (Mean { count: held, seconds: held * seen.seconds }, "held their slots and ended nothing for")
            }
            _ => return None,
        };
        // Those that take long are most of what runs at a time, also where most that end are short.
        let is_usual = self.spread.is_some_and(|spread| running.mean_seconds() <= Some(spread.most_within));
        if is_usual { None } else { self.slower(seen, running, how, known, mean, said) }
    }

    fn slower(&self, seen: &Observation, now: Mean, how: &str, known: Mean, mean: f64, said: String) -> Option<Slower> {
        let seconds = now.mean_seconds()?;
        let is_slower = known.count >= LEAST_COMPARED && seconds - mean >= LEAST_SLOWER_SECONDS;
        let now = format!("{:.0} runs {how} {} on average, over {}", now.count, time(seconds), time(seen.seconds));
        is_slower.then(|| Slower { times: seconds / mean, evidence: [now, said], than: self.when })
    }
}
