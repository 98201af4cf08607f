//! A recording in place of the network.
//!
//! Each request is redacted by the same rules as the recorded ones were, and then compared with them
//! (`replay/matching.rs`): whatever was taken out of those is taken out of it, too, so that nothing has to be guessed. It
//! is answered as it was then, without the waiting: with the same answer, or with the same failure, and of what is asked
//! at the same time, first what was answered first. For an exchange that had no end, because the run ended first, there
//! is none now: the replayed run ends as the recorded one did, or is left waiting for as long as that took and then told
//! so.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::matching::{self, Entry, Found};
use super::pattern::Names;
use crate::integration::transport::{Answer, Reply, StandIn};
use crate::payload::redact::{Placeholders, Redactor};
use crate::payload::{Recorded, RecordedExchange};
use crate::task::transcript::{Exchange, Fault};
use crate::task::{Failure, FailureCode};

/// How long other requests of a run may still come after one that was cut off.
const CUT_OFF_GRACE: Duration = Duration::from_secs(1);

/// How often an answer lets others go first: those may be in the hands of code that does not ask for them now.
const MAX_YIELDS: usize = 64;

pub(super) struct Tape {
    recorded: Arc<Recorded>,
    redactor: Redactor,
    /// Whether the nearest exchange answers a request that is not in the recording.
    takes_similar: bool,
    state: Mutex<State>,
    cut_off: CancellationToken,
}

struct State {
    used: Vec<bool>,
    names: Names,
    placeholders: Placeholders,
    remarks: Vec<String>,
    /// Whether something was asked that is not in the recording.
    has_gaps: bool,
    /// Those that are to be answered now.
    waiting: BTreeSet<Place>,
    last_turn: u64,
}

/// Whether it is not in the recording, when it ended then, and a number of its own.
type Place = (bool, SystemTime, u64);

/// A place among those that are to be answered; dropping it gives it up.
struct Turn<'t> {
    tape: &'t Tape,
    place: Place,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.tape.state.lock().waiting.remove(&self.place);
    }
}

impl Tape {
    pub(super) fn new(recorded: Arc<Recorded>, redactor: Redactor, takes_similar: bool) -> Self {
        let last = recorded.last_placeholder();
        let state = State {
            used: vec![false; recorded.exchanges.len()],
            names: Names::after(last),
            placeholders: Placeholders::after(last),
            remarks: Vec::new(),
            has_gaps: false,
            waiting: BTreeSet::new(),
            last_turn: 0,
        };
        Tape { recorded, redactor, takes_similar, state: Mutex::new(state), cut_off: CancellationToken::new() }
    }

    /// Waits until the run has come to where the recorded one was ended from outside.
    pub(super) async fn cut_off(&self) {
        self.cut_off.cancelled().await;
    }

    /// The numbers that secrets have in what was said of requests. Whatever is redacted after the run goes on with them, so
    /// that a secret has one number in all that is shown.
    pub(super) fn placeholders(&self) -> Placeholders {
        std::mem::take(&mut self.state.lock().placeholders)
    }

    /// Whether there was a request that is not in the recording.
    pub(super) fn has_gaps(&self) -> bool {
        self.state.lock().has_gaps
    }

    /// What a person should know of the answers that were given.
    pub(super) fn remarks(&self) -> Vec<String> {
        self.state.lock().remarks.clone()
    }

    /// The recorded exchange for a request, or why there is none.
    fn find(&self, asked: &Exchange) -> Result<&RecordedExchange, String> {
        let mut state = self.state.lock();
        let State { used, names, placeholders, remarks, has_gaps, .. } = &mut *state;
        let now = self.redactor.exchange(asked, &self.recorded.task.integration, placeholders);
        let now = now.ok_or("the request could not be redacted, and so not be compared with the recorded ones")?;
        let pair = |(recorded, is_used): (_, &bool)| Entry { recorded, is_used: *is_used };
        let entries: Vec<Entry<'_>> = self.recorded.exchanges.iter().zip(&*used).map(pair).collect();
        let Some(Found { position, learned, is_nearest }) = matching::answer(&entries, names, &now, self.takes_similar)
        else {
            let missing = matching::missing(&entries, names, &now);
            *has_gaps = true;
            let left_out = self.recorded.exchanges_left_out;
            let more = (left_out > 0).then(|| format!("; {left_out} more exchanges had no room in it"));
            return Err(missing + &more.unwrap_or_default());
        };
        if is_nearest {
            let Exchange { method, url, .. } = &self.recorded.exchanges[position].exchange;
            let answered = format!("{method} {}", matching::after_origin(url));
            let asked = matching::shown(&entries, names, &now);
            let asked = matching::after_origin(&asked);
            remarks.push(format!("{asked} was answered with what was recorded for {answered}, the nearest"));
        }
        used[position] = true;
        names.learn(learned);
        let recorded = &self.recorded.exchanges[position];
        remarks.extend(gap(recorded));
        Ok(recorded)
    }

    /// Lets others ask, and waits until it is this exchange's turn to be answered. What is not in the recording comes
    /// last: where several are asked at the same time, another one's answer may have ended the run before it was asked.
    async fn turn(&self, exchange: Option<&Exchange>) {
        let phases =
            |it: &Exchange| it.phases.blocked.saturating_add(it.phases.waiting).saturating_add(it.phases.receiving);
        let ended = exchange.map(|it| it.started.checked_add(phases(it)).unwrap_or(it.started));
        let place = {
            let mut state = self.state.lock();
            state.last_turn += 1;
            let place = (ended.is_none(), ended.unwrap_or(SystemTime::UNIX_EPOCH), state.last_turn);
            state.waiting.insert(place);
            place
        };
        let turn = Turn { tape: self, place };
        for _ in 0..MAX_YIELDS {
            tokio::task::yield_now().await;
            if self.state.lock().waiting.first() == Some(&turn.place) {
                return;
            }
        }
    }

    /// For a request that the recorded run never had an answer to.
    async fn unanswered(&self) -> Reply {
        let Recorded { outcome, .. } = &*self.recorded;
        if let Err(Failure { code: FailureCode::Deadline | FailureCode::Cancelled, .. }) = outcome.result {
            tokio::time::sleep(CUT_OFF_GRACE).await;
            self.cut_off.cancel();
            return std::future::pending().await;
        }
        // Whatever ended the run, or a part of it, may have been a time limit of the integration's own.
        tokio::time::sleep(outcome.timings.ran.saturating_add(CUT_OFF_GRACE)).await;
        let message = "the recording has no answer: the run stopped waiting for it".to_owned();
        Reply::Failed { part: None, fault: Some(Fault::Cancelled), message }
    }
}

#[async_trait]
impl StandIn for Tape {
    async fn answer(&self, asked: &Exchange) -> Reply {
        let recorded = match self.find(asked) {
            Ok(recorded) => recorded,
            Err(message) => {
                self.turn(None).await;
                return Reply::Failed { part: None, fault: None, message };
            }
        };
        let exchange = &recorded.exchange;
        let missing = withheld(recorded);
        let part = exchange.response.as_ref().map(|response| Answer {
            status: response.status,
            headers: response.message.headers.clone(),
            body: response.message.body.clone(),
        });
        if matches!(exchange.fault, Some(Fault::Cancelled | Fault::Deadline)) {
            return self.unanswered().await;
        }
        self.turn(Some(exchange)).await;
        if let Some(message) = missing {
            return Reply::Failed { part, fault: None, message };
        }
        match (part, exchange.fault, &exchange.error) {
            (part, fault @ Some(_), error) => Reply::Failed { part, fault, message: error.clone().unwrap_or_default() },
            // An exchange that somebody else recorded, or an older version: what broke may be whole another time.
            (part, None, Some(error)) => Reply::Failed { part, fault: Some(Fault::Broken), message: error.clone() },
            (Some(answer), None, None) => Reply::Whole(answer),
            (None, None, None) => self.unanswered().await,
        }
    }
}

/// Why a run cannot go on with the recorded answer: it was a success, and its body is not there. What a bank says with a
/// failure is seldom needed, and the status alone replays it.
fn withheld(recorded: &RecordedExchange) -> Option<String> {
    let response = recorded.exchange.response.as_ref().filter(|_| recorded.exchange.error.is_none())?;
    without_body(recorded).filter(|_| (200..300).contains(&response.status))
}

fn without_body(recorded: &RecordedExchange) -> Option<String> {
    let Exchange { method, url, .. } = &recorded.exchange;
    let why = recorded.response_withheld.as_ref()?;
    let place = format!("{method} {}", matching::after_origin(url));
    Some(format!("{place}: the body of the answer is not in the recording: {why}"))
}

/// What is missing in the recorded answer.
fn gap(recorded: &RecordedExchange) -> Option<String> {
    let Exchange { method, url, response, error, .. } = &recorded.exchange;
    let message = &response.as_ref().filter(|_| error.is_none())?.message;
    let missing = without_body(recorded);
    if missing.is_some() {
        return missing;
    }
    matching::is_cut(message).then(|| {
        let (place, kept, whole) = (matching::after_origin(url), message.body.len(), message.body_bytes);
        format!(
            "{method} {place}: the recording has the first {kept} of the answer's {whole} bytes, so what follows from the \
             rest is not the code's doing; worker.environment.recorder.max_body_bytes is the limit"
        )
    })
}
