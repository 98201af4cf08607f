//! What came of a run then and now, and what is different.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;

use super::json::{Difference, differences};
use super::matching::{self, Entry, Found, after_origin, origin, text};
use super::pattern::Names;
use crate::payload::redact::placeholders;
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
    /// How the bodies differ; the path begins with `request` or `response`. It is `url` for the request itself, where it was
    /// answered with what was recorded for another one.
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
    /// `takes_similar` says whether the nearest exchange answered a request that is not in the recording.
    pub(super) fn new(
        then: Arc<Recorded>,
        mut now: Recorded,
        is_live: bool,
        takes_similar: bool,
        remarks: Vec<String>,
    ) -> Self {
        let mut names = Names::after(then.last_placeholder());
        let mut entries: Vec<_> = then.exchanges.iter().map(|recorded| Entry { recorded, is_used: false }).collect();
        let pairs = pairs(&mut entries, &now.exchanges, &mut names, takes_similar);
        // What stands for what is known from here on.
        let mut remarks: Vec<_> = remarks.iter().map(|remark| names.as_then(remark).into_owned()).collect();
        if !is_live {
            remarks.extend(hosts(&pairs));
        }
        let requests = pairs.iter().filter_map(|pair| Request::of(&entries, &names, pair, is_live)).collect();
        now.outcome.result = as_then(&names, now.outcome.result);
        let outcome = outcomes(&names, &then.outcome.result, &now.outcome.result);
        let hidden = if is_live { 0 } else { redacted_answers(&then.exchanges) };
        if hidden > 0 && !outcome.is_empty() {
            remarks.push(format!(
                "{hidden} recorded answers have placeholders for what was redacted: code that reads such a value may go \
                 another way than the run did"
            ));
        }
        Replayed { then, now, is_live, outcome, requests, remarks }
    }

    /// Whether the outcome is the same: the output, or the failure with code, message, remedy and reason.
    pub fn is_same(&self) -> bool {
        self.outcome.is_empty()
    }
}

/// Of so many exchanges the answer is not quite what the run saw.
fn redacted_answers(exchanges: &[RecordedExchange]) -> usize {
    let bodies = exchanges.iter().filter_map(|it| it.exchange.response.as_ref()).map(|it| &it.message.body);
    bodies.filter(|body| placeholders(&String::from_utf8_lossy(body)).next().is_some()).count()
}

/// The result with the recording's placeholders, as far as they are known.
fn as_then(names: &Names, result: Result<Json, Failure>) -> Result<Json, Failure> {
    match result {
        // In place of one placeholder there is another one, and so the text is JSON still.
        Ok(output) => Ok(Json::parse(names.as_then(output.as_str()).into_owned()).unwrap_or(output)),
        Err(failure) => Err(Failure { message: names.as_then(&failure.message).into_owned(), ..failure }),
    }
}

/// An exchange of one run or of both.
struct Pair<'e> {
    then: Option<&'e RecordedExchange>,
    now: Option<&'e RecordedExchange>,
    /// Whether these are two requests, of which one was answered with what the other was.
    is_nearest: bool,
}

/// Each exchange of both runs once: in the recorded order, and what is new after what came before it.
fn pairs<'e>(
    entries: &mut [Entry<'e>],
    now: &'e [RecordedExchange],
    names: &mut Names,
    takes_similar: bool,
) -> Vec<Pair<'e>> {
    let mut pairs: Vec<Pair<'e>> =
        entries.iter().map(|it| Pair { then: Some(it.recorded), now: None, is_nearest: false }).collect();
    // New ones, by the position after which they are shown; 0 is the beginning.
    let mut new: Vec<Vec<Pair<'e>>> = std::iter::repeat_with(Vec::new).take(entries.len() + 1).collect();
    let mut last = 0;
    for exchange in now {
        match matching::answer(entries, names, exchange, takes_similar) {
            Some(Found { position, learned, is_nearest }) => {
                entries[position].is_used = true;
                names.learn(learned);
                pairs[position] = Pair { now: Some(exchange), is_nearest, ..pairs[position] };
                last = position + 1;
            }
            None => new[last].push(Pair { then: None, now: Some(exchange), is_nearest: false }),
        }
    }
    let mut new = new.into_iter();
    let mut all = new.next().unwrap_or_default();
    for (pair, after) in pairs.into_iter().zip(new) {
        all.push(pair);
        all.extend(after);
    }
    all
}

/// What is asked somewhere else than it was, each host once.
fn hosts(pairs: &[Pair<'_>]) -> BTreeSet<String> {
    let both = pairs.iter().filter_map(|pair| Some((&pair.then?.exchange.url, &pair.now?.exchange.url)));
    let moved = both.map(|(then, now)| (origin(then), origin(now))).filter(|(then, now)| then != now);
    moved.map(|(then, now)| format!("{now} is asked here, and was {then} then: hosts are not compared")).collect()
}

impl Request {
    fn of(entries: &[Entry<'_>], names: &Names, pair: &Pair<'_>, is_live: bool) -> Option<Request> {
        let Pair { then, now, is_nearest } = *pair;
        let method = &then.or(now)?.exchange.method;
        let url_now = now.map(|now| matching::shown(entries, names, now)).unwrap_or_default();
        let (mut differences, mut change) = (Vec::new(), Change::Same);
        match (then, now) {
            (Some(then), Some(now)) => {
                let (was, is) = (&then.exchange, &now.exchange);
                if is_nearest {
                    differences.push(texts("url", after_origin(&was.url), after_origin(&url_now)));
                }
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
            url: then.map_or(url_now, |then| then.exchange.url.clone()),
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
