//! A replay for people: the outcome then and now, and the requests line by line.
//!
//! ```text
//! task t-1 of bank, run 0192…, attempt 1 on worker-1
//!
//! then  failure integration_error (remedy retry) after 1.204s
//!       step accounts: GET /accounts answered with status 503, the last of 2 attempts
//! now   the same, after 0.003s
//!
//! requests to http://127.0.0.1:7480: 2 then, 2 now, all alike
//!     GET /accounts?customer=[redacted-1]  503
//!     GET /accounts?customer=[redacted-1]  503
//! ```

use std::fmt::{self, Display, Formatter, Write};

use super::comparison::{Change, Replayed, Request, Said};
use super::json::Difference;
use super::matching::origin;
use crate::task::{Failure, Outcome};

/// With more requests than these, those that are alike are counted instead of listed.
const MAX_REQUESTS: usize = 40;

/// Of requests that only the recorded run made, in a row; a run that has failed makes none of the rest.
const MAX_THEN_ONLY: usize = 3;

/// Differences in one place; further ones are counted.
const MAX_DIFFERENCES: usize = 20;

/// Where a value is cut.
const MAX_VALUE_CHARS: usize = 160;

/// Where a URL no longer makes others' columns wider.
const MAX_TARGET_CHARS: usize = 72;

impl Display for Replayed {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Outcome { run, worker, attempt, .. } = &self.then.outcome;
        let (task, integration) = (&self.then.task.id, &self.then.task.integration);
        writeln!(out, "task {task} of {integration}, run {run}, attempt {attempt} on {worker}\n")?;
        for remark in &self.remarks {
            writeln!(out, "note: {}", plain(remark))?;
        }
        if !self.remarks.is_empty() {
            writeln!(out)?;
        }
        let (then, now) = (&self.then.outcome, &self.now.outcome);
        result(out, "then", then)?;
        if self.is_same() {
            writeln!(out, "now   the same, after {}", seconds(now))?;
        } else {
            result(out, "now", now)?;
        }
        match (&then.result, &now.result) {
            (Ok(_), Ok(_)) if !self.is_same() => {
                writeln!(out, "\nwhat is different, then → now")?;
                differences(out, "  ", &self.outcome)?;
            }
            // Of a failure, all is said already; what there is in its place is not.
            (Err(_), Ok(output)) => writeln!(out, "      {}", brief(output.as_str()))?,
            _ => {}
        }
        writeln!(out)?;
        self.requests(out)
    }
}

impl Replayed {
    fn requests(&self, out: &mut Formatter<'_>) -> fmt::Result {
        if self.requests.is_empty() {
            return write!(out, "no requests, then or now");
        }
        let count = |here: fn(&Request) -> bool| self.requests.iter().filter(|it| here(it)).count();
        let (then, now) = (count(|it| it.then.is_some()), count(|it| it.now.is_some()));
        let same = count(|it| it.change == Change::Same);
        let all_at = self.requests.first().map(|it| origin(&it.url));
        let all_at = all_at.filter(|first| self.requests.iter().all(|it| origin(&it.url) == *first));
        let place = all_at.map(|origin| format!(" to {origin}")).unwrap_or_default();
        let alike = if same == self.requests.len() { ", all alike" } else { "" };
        write!(out, "requests{place}: {then} then, {now} now{alike}")?;
        let is_brief = self.requests.len() > MAX_REQUESTS;
        let shown = |request: &Request| {
            let target = if all_at.is_some() { request.target() } else { &request.url };
            plain(&format!("{} {target}", request.method))
        };
        let width = self.requests.iter().map(|it| shown(it).chars().count().min(MAX_TARGET_CHARS)).max().unwrap_or(0);
        let (mut skipped, mut then_only) = (None, 0);
        for request in &self.requests {
            then_only = if request.change == Change::ThenOnly { then_only + 1 } else { 0 };
            let is_alike = is_brief && request.change == Change::Same;
            if is_alike || then_only > MAX_THEN_ONLY {
                match &mut skipped {
                    Some((change, count)) if *change == request.change => *count += 1,
                    other => {
                        skip(out, other)?;
                        *other = Some((request.change, 1));
                    }
                }
                continue;
            }
            skip(out, &mut skipped)?;
            let mark = match request.change {
                Change::Same => ' ',
                Change::Changed => '~',
                Change::ThenOnly => '-',
                Change::NowOnly => '+',
            };
            let said = match request.change {
                Change::NowOnly if request.is_given_up() => "given up before there was an answer".to_owned(),
                // Why is in the failure, or the code has passed over it.
                Change::NowOnly if !self.is_live => "not in the recording".to_owned(),
                _ => said(request),
            };
            write!(out, "\n  {mark} {:<width$}  {said}", shown(request))?;
            if !request.differences.is_empty() {
                writeln!(out)?;
                let mut lines = String::new();
                differences(&mut lines, "        ", &request.differences)?;
                out.write_str(lines.trim_end())?;
            }
        }
        skip(out, &mut skipped)?;
        let marks =
            [(Change::Changed, "~ changed"), (Change::ThenOnly, "- then only"), (Change::NowOnly, "+ now only")];
        let used = marks.iter().filter(|(change, _)| self.requests.iter().any(|it| it.change == *change));
        let used: Vec<_> = used.map(|(_, mark)| *mark).collect();
        if used.is_empty() { Ok(()) } else { write!(out, "\n    ({})", used.join(", ")) }
    }
}

fn skip(out: &mut Formatter<'_>, skipped: &mut Option<(Change, usize)>) -> fmt::Result {
    match skipped.take() {
        None => Ok(()),
        Some((Change::ThenOnly, count)) => write!(out, "\n  - … {count} more"),
        Some((_, count)) => write!(out, "\n    … {count} alike"),
    }
}

/// The length of JSON without the blanks that do not matter: a file that people read has more of them.
fn compact_bytes(json: &str) -> usize {
    let (mut in_string, mut is_escaped, mut bytes) = (false, false, 0);
    for byte in json.bytes() {
        bytes += usize::from(in_string || !byte.is_ascii_whitespace());
        in_string ^= byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
    }
    bytes
}

fn result(out: &mut Formatter<'_>, when: &str, outcome: &Outcome) -> fmt::Result {
    let took = seconds(outcome);
    match &outcome.result {
        Ok(output) => {
            let bytes = compact_bytes(output.as_str());
            writeln!(out, "{when:<4}  ok after {took}: an output of {bytes} bytes")
        }
        Err(Failure { code, message, remedy, reason }) => {
            let reason = reason.as_ref().map(|reason| format!(", reason {reason}")).unwrap_or_default();
            writeln!(out, "{when:<4}  {} (remedy {}{reason}) after {took}", code.as_str(), remedy.as_str())?;
            writeln!(out, "      {}", plain(message))
        }
    }
}

/// What came of a request, then and now.
fn said(request: &Request) -> String {
    let shown = |said: &Said| {
        let target = format!("{} {}: ", request.method, origin(&request.url));
        let error = said.error.as_deref().map(|error| plain(error.strip_prefix(&target).unwrap_or(error)));
        match (said.status, error) {
            (Some(status), None) => status.to_string(),
            (Some(status), Some(error)) => format!("{status}, then no whole answer: {error}"),
            (None, Some(error)) => format!("no answer: {error}"),
            (None, None) => "no answer".to_owned(),
        }
    };
    match (&request.then, &request.now) {
        (Some(then), Some(now)) if shown(then) != shown(now) => format!("{} → {}", shown(then), shown(now)),
        (Some(said), _) | (None, Some(said)) => shown(said),
        (None, None) => String::new(),
    }
}

fn differences(out: &mut dyn Write, indent: &str, differences: &[Difference]) -> fmt::Result {
    let listed = &differences[..differences.len().min(MAX_DIFFERENCES)];
    let width = listed.iter().map(|it| it.path.chars().count()).max().unwrap_or(0);
    for Difference { path, then, now } in listed {
        let path = plain(path);
        let change = match (then, now) {
            (Some(then), Some(now)) => format!("{} → {}", brief(then), brief(now)),
            (Some(then), None) => format!("{} → nothing", brief(then)),
            (None, Some(now)) => format!("nothing → {}", brief(now)),
            (None, None) => String::new(),
        };
        writeln!(out, "{indent}{path:<width$}  {change}")?;
    }
    match differences.len() - listed.len() {
        0 => Ok(()),
        more => writeln!(out, "{indent}and {more} more"),
    }
}

fn seconds(outcome: &Outcome) -> String {
    format!("{:.3}s", outcome.timings.ran.as_secs_f64())
}

fn brief(value: &str) -> String {
    match value.char_indices().nth(MAX_VALUE_CHARS) {
        Some((end, _)) => format!("{}… ({} bytes)", plain(&value[..end]), value.len()),
        None => plain(value),
    }
}

/// The text without characters that a terminal acts on.
fn plain(text: &str) -> String {
    text.chars().map(|it| if it.is_control() { ' ' } else { it }).collect()
}
