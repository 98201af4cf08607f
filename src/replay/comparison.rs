//! What came of a run then and now, and what is different.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;

use super::json::{Difference, differences};
use super::matching::{self, Entry, Found, after_origin, origin, text};
use super::pattern::Names;
use crate::payload::{Recorded, RecordedExchange};
use crate::task::transcript::{Exchange, Message};
use crate::task::{Failure, Json};

/// A run that was run again.
pub struct Replayed {
    /// The recorded run.
    pub then: Arc<Recorded>,
    /// The new one, redacted in the same way.
    pub now: Recorded,
    /// Whether the network was asked, instead of the recording.
    pub is_live: bool,
    /// How the outcomes differ; nothing when they are the same.
    pub outcome: Vec<Difference>,
    /// The requests of both runs, in the order of the recorded ones.
    pub requests: Vec<Request>,
    /// What to know about the recording and its use: gaps, and answers that are not quite the recorded ones.
    pub remarks: Vec<String>,
}

/// A request of one run or of both.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Request {
    /// Whose it is.
    pub change: Change,
    /// Such as `GET`.
    pub method: String,
    /// The redacted URL, of the recorded run where it has one.
    pub url: String,
    /// What was answered then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub then: Option<Said>,
    /// What was answered now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<Said>,
    /// How the bodies differ; the path begins with `request` or `response`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

/// Whose request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Both runs made it, and were answered alike.
    Same,
    /// Both made it, and something is different.
    Changed,
    /// Only the recorded run made it.
    ThenOnly,
    /// Only the new run made it.
    NowOnly,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Said {
    /// The status of the answer; none when there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why there was no whole answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Replayed {
    pub(super) fn new(then: Arc<Recorded>, now: Recorded, is_live: bool, remarks: Vec<String>) -> Self {
        let mut names = Names::after(then.last_placeholder());
        let pairs = pairs(&then.exchanges, &now.exchanges, &mut names);
        let mut remarks = remarks;
        if !is_live {
            remarks.extend(hosts(&pairs));
        }
        let request = |(then, now): (Option<&RecordedExchange>, Option<&RecordedExchange>)| {
            Request::of(&names, then, now, is_live)
        };
        let requests = pairs.into_iter().filter_map(request).collect();
        let outcome = outcomes(&names, &then.outcome.result, &now.outcome.result);
        Replayed { then, now, is_live, outcome, requests, remarks }
    }

    /// Whether the outcome is the same: the output, or the failure with code, message, remedy and reason.
    pub fn is_same(&self) -> bool {
        self.outcome.is_empty()
    }
}

type Pair<'e> = (Option<&'e RecordedExchange>, Option<&'e RecordedExchange>);

/// Each exchange of both runs once: in the recorded order, and what is new after what came before it.
fn pairs<'e>(then: &'e [RecordedExchange], now: &'e [RecordedExchange], names: &mut Names) -> Vec<Pair<'e>> {
    let mut entries: Vec<Entry<'e>> = then.iter().map(|recorded| Entry { recorded, is_used: false }).collect();
    let mut partners: Vec<Option<&RecordedExchange>> = vec![None; then.len()];
    // New ones, by the position after which they are shown; 0 is the beginning.
    let mut new: Vec<Vec<&RecordedExchange>> = vec![Vec::new(); then.len() + 1];
    let mut last = 0;
    for exchange in now {
        match matching::find(&entries, names, exchange) {
            Some(Found { position, learned }) => {
                entries[position].is_used = true;
                names.learn(learned);
                partners[position] = Some(exchange);
                last = position + 1;
            }
            None => new[last].push(exchange),
        }
    }
    let mut pairs: Vec<Pair<'e>> = new[0].iter().map(|now| (None, Some(*now))).collect();
    for (position, (then, partner)) in then.iter().zip(partners).enumerate() {
        pairs.push((Some(then), partner));
        pairs.extend(new[position + 1].iter().map(|now| (None, Some(*now))));
    }
    pairs
}

/// What is asked somewhere else than it was, each host once.
fn hosts(pairs: &[Pair<'_>]) -> BTreeSet<String> {
    let both = pairs.iter().filter_map(|(then, now)| Some((&(*then)?.exchange.url, &(*now)?.exchange.url)));
    let moved = both.map(|(then, now)| (origin(then), origin(now))).filter(|(then, now)| then != now);
    moved.map(|(then, now)| format!("{now} is asked here, and was {then} then: hosts are not compared")).collect()
}

impl Request {
    fn of(
        names: &Names,
        then: Option<&RecordedExchange>,
        now: Option<&RecordedExchange>,
        is_live: bool,
    ) -> Option<Request> {
        let shown = then.or(now)?;
        let Exchange { method, url, .. } = &shown.exchange;
        let (mut differences, mut change) = (Vec::new(), Change::Same);
        match (then, now) {
            (Some(then), Some(now)) => {
                let (was, is) = (&then.exchange, &now.exchange);
                if !matching::same_body(names, then, now) {
                    differences.extend(bodies("request", names, &was.request, &is.request));
                }
                if let (true, Some(was), Some(is)) = (is_live, &was.response, &is.response) {
                    let is_known = then.response_withheld.is_none() && now.response_withheld.is_none();
                    if is_known && !matching::is_cut(&was.message) && !matching::is_cut(&is.message) {
                        differences.extend(bodies("response", names, &was.message, &is.message));
                    }
                }
                let (was, is) = (Said::of(names, was), Said::of(names, is));
                if !differences.is_empty() || !was.is_like(names, &is) {
                    change = Change::Changed;
                }
            }
            (Some(_), None) => change = Change::ThenOnly,
            (None, _) => change = Change::NowOnly,
        }
        Some(Request {
            change,
            method: method.clone(),
            url: names.as_then(url).into_owned(),
            then: then.map(|then| Said::of(names, &then.exchange)),
            now: now.map(|now| Said::of(names, &now.exchange)),
            differences,
        })
    }

    /// Whether one run alone made it, and had ended, or turned to something else, before it was answered: where several
    /// are made at the same time, it is a matter of chance which of them are made before the first one fails.
    pub fn is_given_up(&self) -> bool {
        let said = match (&self.then, &self.now) {
            (Some(said), None) | (None, Some(said)) => said,
            _ => return false,
        };
        said.status.is_none() && said.error.as_deref() == Some("cancelled")
    }

    /// The URL without scheme and host.
    pub fn target(&self) -> &str {
        after_origin(&self.url)
    }
}

impl Said {
    fn of(names: &Names, exchange: &Exchange) -> Said {
        let error = exchange.error.as_deref().map(|error| names.as_then(error).into_owned());
        Said { status: exchange.response.as_ref().map(|response| response.status), error }
    }

    fn is_like(&self, names: &Names, other: &Said) -> bool {
        let errors = match (&self.error, &other.error) {
            (Some(then), Some(now)) => names.same(then, now),
            (then, now) => then == now,
        };
        self.status == other.status && errors
    }
}

fn texts(path: &str, then: &str, now: &str) -> Difference {
    let quoted = |text: &str| Some(serde_json::Value::from(text).to_string());
    Difference { path: path.to_owned(), then: quoted(then), now: quoted(now) }
}

/// How two bodies differ: by paths where both are JSON.
fn bodies(place: &str, names: &Names, then: &Message, now: &Message) -> Vec<Difference> {
    let (was, is) = (text(then), text(now));
    let is = names.as_then(&is);
    match differences(&was, &is, &|then, now| names.same(then, now)) {
        Some(found) => found.into_iter().map(|it| Difference { path: it.path.replacen('$', place, 1), ..it }).collect(),
        None if names.same(&was, &is) => Vec::new(),
        None => vec![texts(place, &was, &is)],
    }
}

fn outcomes(names: &Names, then: &Result<Json, Failure>, now: &Result<Json, Failure>) -> Vec<Difference> {
    let text = |text: &str| Some(serde_json::Value::from(text).to_string());
    match (then, now) {
        (Ok(then), Ok(now)) => {
            let now = names.as_then(now.as_str());
            let found = differences(then.as_str(), &now, &|then, now| names.same(then, now));
            let found = found.unwrap_or_else(|| vec![texts("$", then.as_str(), &now)]);
            found.into_iter().map(|it| Difference { path: it.path.replacen('$', "output", 1), ..it }).collect()
        }
        (Err(then), Err(now)) => {
            let message: Cow<'_, str> = names.as_then(&now.message);
            let reason = |failure: &Failure| failure.reason.as_ref().map(ToString::to_string);
            let parts = [
                ("code", Some(then.code.as_str().to_owned()), Some(now.code.as_str().to_owned())),
                ("message", Some(then.message.clone()), Some(message.into_owned())),
                ("remedy", Some(then.remedy.as_str().to_owned()), Some(now.remedy.as_str().to_owned())),
                ("reason", reason(then), reason(now)),
            ];
            let is_different = |(_, then, now): &(&str, Option<String>, Option<String>)| match (then, now) {
                (Some(then), Some(now)) => !names.same(then, now),
                (then, now) => then != now,
            };
            let difference = |(part, then, now): (&str, Option<String>, Option<String>)| Difference {
                path: format!("failure.{part}"),
                then: then.as_deref().and_then(text),
                now: now.as_deref().and_then(text),
            };
            parts.into_iter().filter(is_different).map(difference).collect()
        }
        (Ok(output), Err(failure)) => vec![
            Difference { path: "output".into(), then: Some(output.as_str().to_owned()), now: None },
            Difference { path: "failure".into(), then: None, now: text(&failure.to_string()) },
        ],
        (Err(failure), Ok(output)) => vec![
            Difference { path: "failure".into(), then: text(&failure.to_string()), now: None },
            Difference { path: "output".into(), then: None, now: Some(names.as_then(output.as_str()).into_owned()) },
        ],
    }
}
