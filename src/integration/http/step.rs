//! Runs one step: its iterations, the pages of each, and the attempts at each page.
//!
//! All of a run is one future: nothing is spawned, and dropping it ends whatever is in flight. An iteration that fails
//! fails the step and so drops the others. Errors name step, item, method, configured path and status, never what was
//! sent or answered; the exchanges themselves are in the transcript, with a note for each pause between attempts.

use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::time::{Instant, timeout_at};

use super::budget::Budget;
use super::errors::judge;
use super::expression::Scope;
use super::lookup;
use super::pages::{At, Pages, Position};
use super::plan::{CompiledStep, ForEach};
use super::retry::{Failed, Next, retry_after};
use super::{Http, Unanswered};
use crate::integration::transport::{self, Answer};
use crate::integration::{Context, Error};
use crate::task::Json;
use crate::task::transcript::Fault;

/// Encodings that a bank may send although no request asks for one.
const ENCODINGS: [&str; 6] = ["gzip", "x-gzip", "deflate", "br", "zstd", "compress"];

/// One step of one run.
#[derive(Clone, Copy)]
pub(super) struct Walk<'a> {
    pub(super) http: &'a Http,
    pub(super) context: &'a Context,
    pub(super) budget: &'a Budget<'a>,
    pub(super) step: &'a CompiledStep,
    /// When the step's time is over, the task's included.
    until: Instant,
}

/// An answer that is no error.
struct Answered {
    status: u16,
    headers: Vec<(String, String)>,
    body: Json,
}

impl Answered {
    fn seen<'a>(&'a self, scope: &Scope<'a>) -> Scope<'a> {
        Scope { body: Some(self.body.as_str()), answer: Some((self.status, &self.headers)), ..*scope }
    }
}

impl<'a> Walk<'a> {
    pub(super) fn new(http: &'a Http, context: &'a Context, budget: &'a Budget<'a>, step: &'a CompiledStep) -> Self {
        let end = step.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let until = end.map_or(context.deadline(), |end| end.min(context.deadline()));
        Walk { http, context, budget, step, until }
    }

    /// The step's value.
    pub(super) async fn value(self, scope: Scope<'a>) -> Result<Json, Error> {
        let place = format!("step {}", self.step.name);
        if let Some(when) = &self.step.when {
            let holds = when.holds(&scope);
            let holds = holds.map_err(|failed| invalid(&place, &format!("when: {}", failed.problem)))?;
            if !holds {
                return Ok(Json::null());
            }
        }
        let work = async {
            match &self.step.for_each {
                None => self.once(scope, place.clone()).await,
                Some(for_each) => self.each(for_each, scope, &place).await,
            }
        };
        let Some(timeout) = self.step.timeout.filter(|_| self.until < self.context.deadline()) else {
            return work.await;
        };
        let answer = timeout_at(self.until, work).await;
        answer.unwrap_or_else(|_| {
            let timeout = humantime::format_duration(timeout);
            Err(Error::retryable(format!("{place}: it took longer than {timeout}; raise its timeout if it may")))
        })
    }

    /// The list of the values of all items, in their order.
    async fn each(self, for_each: &ForEach, scope: Scope<'a>, place: &str) -> Result<Json, Error> {
        let list = for_each.list.json(&scope);
        let list = list.map_err(|problem| invalid(place, &format!("for_each: {problem}")))?;
        let items = lookup::items(&list).ok_or_else(|| invalid(place, "for_each: a list is needed here"))?;
        let max_items = for_each.max_items;
        if items.len() > max_items {
            let problem = format!("for_each has {} items; raise max_items, which is {max_items}", items.len());
            return Err(invalid(place, &problem));
        }
        let iteration = |index: usize| {
            let (scope, place) = (Scope { item: Some(items[index].get()), ..scope }, format!("{place}: item {index}"));
            async move { self.once(scope, place).await.map(|value| (index, value)) }
        };
        // Not in order, so that the first failure is known at once.
        let iterations = stream::iter(0..items.len()).map(iteration).buffer_unordered(for_each.parallel);
        let mut values: Vec<(usize, Json)> = iterations.try_collect().await?;
        values.sort_by_key(|(index, _)| *index);
        let mut list = List::default();
        values.iter().for_each(|(_, value)| list.push(value.as_str()));
        list.finish()
    }

    /// The value without a loop, or of one iteration.
    async fn once(self, scope: Scope<'_>, place: String) -> Result<Json, Error> {
        let body = match &self.step.pages {
            None => {
                let url = self.url(&scope, &At::Start, &place)?;
                self.answered(&url, scope, &place).await?.body
            }
            Some(pages) => self.all(pages, scope, &place).await?,
        };
        let Some(value) = &self.step.value else { return Ok(body) };
        let (scope, mut text) = (Scope { body: Some(body.as_str()), ..scope }, String::new());
        value.write(&scope, &mut text).map_err(|problem| invalid(&place, &format!("value: {problem}")))?;
        Json::parse(text).map_err(|_| invalid(&place, "the value is not JSON"))
    }

    /// The items of all pages.
    async fn all(self, pages: &Pages, scope: Scope<'_>, place: &str) -> Result<Json, Error> {
        let (mut position, mut list) = (Position::first(pages), List::default());
        loop {
            let url = self.url(&scope, &position.at, place)?;
            let page = self.answered(&url, scope, place).await?;
            let seen = page.seen(&scope);
            let items = pages.items.json(&seen);
            let items = items.map_err(|problem| invalid(place, &format!("pagination.items: {problem}")))?;
            let items =
                lookup::items(&items).ok_or_else(|| invalid(place, "pagination.items: a list is needed here"))?;
            items.iter().for_each(|item| list.push(item.get()));
            let next = position.advance(&self.http.plan.base, &url, &seen, items.len());
            if !next.map_err(|problem| invalid(place, &problem))? {
                return list.finish();
            }
        }
    }

    /// One page, at the first attempt that is answered well.
    async fn answered(self, url: &str, scope: Scope<'_>, place: &str) -> Result<Answered, Error> {
        let request = self.step.request.request(url, &scope).map_err(|problem| invalid(place, &problem))?;
        let (attempts, mut attempt) = (self.step.retries.attempts, 0);
        loop {
            attempt += 1;
            self.budget.request().map_err(|error| error.within(place))?;
            let (error, failed) = match self.http.send(request.clone(), self.context).await {
                Ok(answer) => {
                    self.budget.answer(answer.body.len()).map_err(|error| error.within(place))?;
                    match self.judge(answer, scope) {
                        Ok(answered) => return Ok(answered),
                        Err(failed) => failed,
                    }
                }
                Err(Unanswered::Credentials(error)) => return Err(error.within(place)),
                Err(Unanswered::Exchange(error)) => self.broken(error),
            };
            let mut error = error.within(place);
            let remaining = self.until.saturating_duration_since(Instant::now());
            match self.step.retries.after(attempt, &failed, remaining, rand::random()) {
                Next::Again { pause } => {
                    let (message, shown) = (&error.message, shown(pause));
                    self.context.note(format!("{message}; attempt {attempt} of {attempts}, the next after {shown}"));
                    self.context.pause(pause).await;
                }
                Next::Fail => return Err(error),
                Next::TriedAll => {
                    if attempt > 1 {
                        error.message.push_str(&format!(", the last of {attempt} attempts"));
                    }
                    return Err(error);
                }
                Next::TooLate { pause } => {
                    let pause = shown(pause);
                    error.message.push_str(&format!("; not sent again: no time is left after a pause of {pause}"));
                    return Err(error);
                }
            }
        }
    }

    fn url(self, scope: &Scope<'_>, at: &At<'_>, place: &str) -> Result<String, Error> {
        let url = self.step.request.url(self.http.plan.base.as_str(), scope, at);
        url.map_err(|problem| invalid(place, &problem))
    }

    /// The answer, or what is wrong with it.
    fn judge(self, answer: Answer, scope: Scope<'_>) -> Result<Answered, (Error, Failed)> {
        let (request, status) = (&self.step.request, answer.status);
        let shown = format!("{} {}", request.method, request.shown_path);
        let retry_after = retry_after(answer.header("retry-after"), answer.header("date"), SystemTime::now());
        let encoding = answer.header("content-encoding").map(str::to_owned);
        let body = parse(answer.body.into(), encoding.as_deref());
        let known = Json::null();
        let json = body.as_ref().unwrap_or(&known).as_str();
        let seen = Scope { body: Some(json), answer: Some((status, &answer.headers)), ..scope };
        let (refusal, unclear) = judge([&self.step.errors, &self.http.plan.errors], status, &seen, &shown);
        for rule in unclear {
            let place = format!("step {}: {}", self.step.name, rule.place);
            if self.budget.is_first_note(&place) {
                self.context.note(format!("{place}: {}: the rule does not match", rule.problem));
            }
        }
        if let Some(refusal) = refusal {
            let (is_transient, may_repeat) = (refusal.is_transient, self.step.may_repeat);
            return Err((refusal.error, Failed { is_transient, may_repeat, retry_after }));
        }
        match body {
            Ok(body) => Ok(Answered { status, headers: answer.headers, body }),
            Err(problem) => {
                let error = Error::permanent(format!("{shown} answered with a body that is not {problem}"));
                Err((error, Failed::default()))
            }
        }
    }

    /// An exchange without an answer.
    fn broken(self, error: transport::Error) -> (Error, Failed) {
        let fault = error.fault();
        let is_transient = matches!(fault, Some(Fault::Connect | Fault::Timeout | Fault::Broken));
        // What never left can be sent, whatever it is.
        let may_repeat = self.step.may_repeat || fault == Some(Fault::Connect);
        (error.into(), Failed { is_transient, may_repeat, retry_after: None })
    }
}

/// An empty body is null.
fn parse(body: Vec<u8>, encoding: Option<&str>) -> Result<Json, String> {
    let problem = match String::from_utf8(body) {
        Err(_) => "UTF-8: JSON is needed".to_owned(),
        Ok(text) => match Json::parse(text) {
            Ok(json) => return Ok(json),
            Err(error) => format!("JSON at line {} column {}", error.line(), error.column()),
        },
    };
    let encoding = encoding.unwrap_or_default().trim().to_ascii_lowercase();
    match ENCODINGS.iter().find(|known| **known == encoding) {
        Some(known) => Err(format!("JSON: its content-encoding is {known}, and none was asked for")),
        None => Err(problem),
    }
}

fn invalid(place: &str, problem: &str) -> Error {
    Error::permanent(problem).within(place)
}

fn shown(pause: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_millis(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX)))
}

/// A JSON list in the making, from the texts of its items.
#[derive(Default)]
struct List {
    text: String,
}

impl List {
    fn push(&mut self, item: &str) {
        self.text.push(if self.text.is_empty() { '[' } else { ',' });
        self.text.push_str(item);
    }

    fn finish(mut self) -> Result<Json, Error> {
        self.text.push_str(if self.text.is_empty() { "[]" } else { "]" });
        Json::parse(self.text).map_err(|_| Error::permanent("the list is not JSON"))
    }
}
