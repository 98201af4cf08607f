//! What a raise prints: a line for each window, a table for each look, and the same as JSON lines.

use std::fmt::Write as _;
use std::time::Instant;

use serde_json::{Value, json};

use super::super::super::table::{Table, duration, printable};
use super::super::super::{print, remark};
use super::{End, Ended};
use crate::settings::raise::{Group, How, Look, Next, Says, Tasks, Verdict, Window};

/// Integrations in a line: those with the most tasks.
const IN_LINE: usize = 3;

/// Where it goes, and how.
pub(super) struct Output {
    json: bool,
    started: Instant,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Output { json, started: Instant::now() }
    }

    /// Says something to people; JSON lines have it in their own words.
    pub(super) fn say(&self, text: &str) -> anyhow::Result<()> {
        if !self.json {
            print(&format!("{:>7}  {}", duration(self.started.elapsed().as_secs_f64()), printable(text)))?;
        }
        Ok(())
    }

    /// Something that is in the way of a good signal.
    pub(super) fn warn(&self, text: &str) {
        remark(format_args!("weir: {}", printable(text)));
    }

    pub(super) fn plan(&self, text: &str, plan: Value) -> anyhow::Result<()> {
        if self.json { self.line("plan", plan) } else { self.say(text) }
    }

    pub(super) fn window(&self, window: &Window, look: &Look, n: u32, on_trial: Option<u32>) -> anyhow::Result<()> {
        if self.json {
            let verdicts: Vec<_> = look.verdicts.iter().map(verdict_json).collect();
            let next = match look.next {
                Next::Hold => "hold",
                Next::Step(_) => "step",
                Next::Promote(_) => "promote",
                Next::Stop(_) => "stop",
            };
            let fields = json!({"n": n, "on_trial": on_trial, "windows": look.windows, "note": look.note,
                "canaries": group_json(&window.canaries), "controls": group_json(&window.controls),
                "lost": window.lost, "verdicts": verdicts, "next": next});
            return self.line("window", fields);
        }
        self.say(&format!("{}; {}", look.note, numbers(window)))?;
        if !look.verdicts.is_empty() {
            print(&verdicts_table(&look.verdicts))?;
        }
        Ok(())
    }

    pub(super) fn observation(&self, window: &Window) -> anyhow::Result<()> {
        match self.json {
            true => {
                let (canaries, controls) = (group_json(&window.canaries), group_json(&window.controls));
                self.line("observation", json!({"canaries": canaries, "controls": controls}))
            }
            false => print(&observation_table(window)).map(drop),
        }
    }

    /// A change of the document.
    pub(super) fn change(&self, revision: u64, n: u32, whom: &str, why: &str) -> anyhow::Result<()> {
        match self.json {
            true => self.line("change", json!({"revision": revision, "n": n, "for": whom, "why": why})),
            false => self.say(&format!("→ v{revision}: N = {n} for {whom}")),
        }
    }

    pub(super) fn end(&self, Ended { how, stays, why }: &Ended, what_remains: &str) -> anyhow::Result<()> {
        let (how, word) = match how {
            End::Decided(How::Reached) => ("reached", "reached: "),
            End::Decided(How::Worse) => ("worse", "the next step is worse: "),
            End::Decided(How::Weak) => ("weak", "the signal is too weak: "),
            End::Interrupted => ("interrupted", ""),
            End::Failed => ("failed", ""),
        };
        match self.json {
            true => self.line("end", json!({"how": how, "n": stays, "why": why, "remains": what_remains})),
            false => self.say(&format!("N = {stays} stays, {word}{why}. {what_remains}")),
        }
    }

    fn line(&self, event: &str, mut fields: Value) -> anyhow::Result<()> {
        if let Some(fields) = fields.as_object_mut() {
            fields.insert("event".into(), event.into());
            fields.insert("elapsed_seconds".into(), self.started.elapsed().as_secs_f64().into());
        }
        print(&fields.to_string()).map(drop)
    }
}

/// What was judged, with its numbers, for the history.
pub(super) fn summary(verdicts: &[Verdict]) -> String {
    let of = |verdict: &Verdict| {
        let Verdict { signal, change, .. } = verdict;
        let change = (*change)?;
        let [estimate, low, high] = [change.estimate, change.low, change.high].map(|value| signal.shown(value));
        Some(format!("{signal} {estimate} ({low} to {high})"))
    };
    verdicts.iter().filter_map(of).collect::<Vec<_>>().join(", ")
}

fn numbers(window: &Window) -> String {
    let (canaries, controls) = (&window.canaries, &window.controls);
    let mut text = format!("slots held {:.1} | {:.1}", canaries.slots, controls.slots);
    for (integration, own, theirs) in by_integration(window).into_iter().take(IN_LINE) {
        // Writing to a text cannot fail.
        let _ = write!(
            text,
            ", {integration} {} | {} ({} | {} tasks, {} | {} failed)",
            mean(&own),
            mean(&theirs),
            own.ended,
            theirs.ended,
            own.failed,
            theirs.failed
        );
    }
    text
}

/// Of the canaries and the controls; those with the most tasks first.
fn by_integration(window: &Window) -> Vec<(&str, Tasks, Tasks)> {
    let mut names: Vec<_> = window.canaries.tasks.keys().chain(window.controls.tasks.keys()).collect();
    names.sort();
    names.dedup();
    let of = |group: &Group, name: &String| group.tasks.get(name).copied().unwrap_or_default();
    let mut rows: Vec<_> = names
        .into_iter()
        .map(|name| (name.as_str(), of(&window.canaries, name), of(&window.controls, name)))
        .filter(|(_, own, theirs)| own.ended + theirs.ended > 0)
        .collect();
    rows.sort_by_key(|(_, own, theirs)| std::cmp::Reverse(own.ended + theirs.ended));
    rows
}

fn observation_table(window: &Window) -> String {
    let (canaries, controls) = (&window.canaries, &window.controls);
    let mut table = Table::new(&["", "canaries#", "controls#"]);
    let mut row = |name: String, [own, theirs]: [String; 2]| table.row([name, own, theirs]);
    let groups = [canaries, controls];
    row("workers observed".into(), groups.map(|group| group.workers.to_string()));
    row("slots held by each".into(), groups.map(|group| format!("{:.1}", group.slots)));
    for (integration, own, theirs) in by_integration(window) {
        let both = [own, theirs];
        row(format!("tasks of {integration}"), both.map(|tasks| tasks.ended.to_string()));
        row(format!("time of {integration}"), both.map(|tasks| mean(&tasks)));
        row(format!("failures of {integration}"), both.map(|tasks| format!("{:.2}%", tasks.failing() * 100.0)));
    }
    let unknown = || "unknown".to_owned();
    let lag = |group: &Group| group.lag_seconds.map_or_else(unknown, |lag| format!("{:.1} ms", lag * 1e3));
    row("runtime lag".into(), groups.map(lag));
    let memory =
        |group: &Group| group.memory_bytes.map_or_else(unknown, |bytes| format!("{:.1} MiB", bytes / 1_048_576.0));
    row("memory".into(), groups.map(memory));
    indented(&table)
}

fn verdicts_table(verdicts: &[Verdict]) -> String {
    let mut table = Table::new(&["signal", "change#", "at least#", "at most#", "may be#", "verdict"]);
    for verdict in verdicts {
        let signal = &verdict.signal;
        let [change, low, high] = match verdict.change {
            Some(change) => [change.estimate, change.low, change.high].map(|value| signal.shown(value)),
            None => ["", "", ""].map(str::to_owned),
        };
        table.row([signal.to_string(), change, low, high, signal.shown(verdict.bound), says(verdict).to_owned()]);
    }
    indented(&table)
}

fn indented(table: &Table) -> String {
    table.lines().iter().map(|line| format!("         {line}")).collect::<Vec<_>>().join("\n")
}

fn says(verdict: &Verdict) -> &'static str {
    match (verdict.says(), verdict.required) {
        (Says::Good, _) => "good",
        (Says::Bad, _) => "worse",
        (Says::Open, true) => "open",
        (Says::Open, false) => "open, not waited for",
    }
}

fn verdict_json(verdict: &Verdict) -> Value {
    let change =
        verdict.change.map(|change| json!({"estimate": change.estimate, "low": change.low, "high": change.high}));
    let says = match verdict.says() {
        Says::Good => "good",
        Says::Bad => "worse",
        Says::Open => "open",
    };
    json!({"signal": verdict.signal.to_string(), "change": change, "bound": verdict.bound, "says": says,
        "required": verdict.required})
}

fn group_json(group: &Group) -> Value {
    let tasks = |(name, tasks): (&String, &Tasks)| {
        let mean = (tasks.timed > 0).then(|| tasks.mean_seconds());
        (name.clone(), json!({"ended": tasks.ended, "failed": tasks.failed, "mean_seconds": mean}))
    };
    let integrations: serde_json::Map<_, _> = group.tasks.iter().map(tasks).collect();
    json!({"workers": group.workers, "slots": group.slots, "integrations": integrations,
        "memory_bytes": group.memory_bytes, "lag_seconds": group.lag_seconds})
}

/// The mean time of a run; where none ended, there is none.
fn mean(tasks: &Tasks) -> String {
    match tasks.mean_seconds() {
        _ if tasks.timed == 0 => "none".to_owned(),
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1000.0),
        seconds => format!("{seconds:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::raise::{Interval, Signal};

    fn verdict(signal: Signal, [low, estimate, high]: [f64; 3], bound: f64) -> Verdict {
        Verdict { signal, change: Some(Interval { low, estimate, high }), bound, required: true, enough: true }
    }

    #[test]
    fn a_look_is_a_table_with_its_numbers() {
        let verdicts = [
            verdict(Signal::Time("bank".into()), [-0.01, 0.0, 0.02], 0.1f64.ln_1p()),
            verdict(Signal::Failures("bank".into()), [0.02, 0.03, 0.04], 0.01),
            Verdict { change: None, required: false, ..verdict(Signal::Leak, [0.0; 3], 0.02f64.ln_1p()) },
        ];
        let table = verdicts_table(&verdicts);
        let rows: Vec<Vec<&str>> =
            table.lines().map(|line| line.split("  ").map(str::trim).filter(|it| !it.is_empty()).collect()).collect();
        assert_eq!(rows[1], ["time of bank", "+0.0%", "-1.0%", "+2.0%", "+10.0%", "good"]);
        assert_eq!(
            rows[2],
            ["failures of bank", "+3.00 points", "+2.00 points", "+4.00 points", "+1.00 points", "worse"]
        );
        assert_eq!(rows[3], ["growth of memory", "+2.0%", "open, not waited for"]);
        assert_eq!(
            summary(&verdicts),
            "time of bank +0.0% (-1.0% to +2.0%), failures of bank +3.00 points (+2.00 points to +4.00 points)"
        );
    }

    #[test]
    fn an_observation_has_both_groups_side_by_side() {
        let tasks = Tasks { ended: 200, failed: 1, timed: 200, seconds: 300.0 };
        let group = |workers, slots| Group {
            workers,
            slots,
            tasks: [("bank".to_owned(), tasks)].into(),
            memory_bytes: Some(104_857_600.0),
            lag_seconds: None,
        };
        let window = Window { canaries: group(1, 37.0), controls: group(9, 29.5), lost: None };
        let table = observation_table(&window);
        let rows: Vec<_> = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for row in [
            "slots held by each 37.0 29.5",
            "time of bank 1.50 s 1.50 s",
            "failures of bank 0.50% 0.50%",
            "memory 100.0 MiB 100.0 MiB",
            "runtime lag unknown unknown",
        ] {
            assert!(rows.iter().any(|line| line == row), "{row}\n{table}");
        }
        assert_eq!(numbers(&window), "slots held 37.0 | 29.5, bank 1.50 s | 1.50 s (200 | 200 tasks, 1 | 1 failed)");
    }
}
