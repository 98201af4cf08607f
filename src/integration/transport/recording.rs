//! One exchange on its way into the transcript.
//!
//! It is recorded when this value is dropped, whatever happened until then: answered, failed, or left in the middle
//! because the run was dropped (then its error is `cancelled`).

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use metrics::Counter;
use tokio::time::Instant;

use super::Error;
use crate::integration::recorder::Recorder;
use crate::task::transcript::{Exchange, Fault, Message, Phases, Response};

/// What an exchange came to, as counted: a class of status codes, or what went wrong.
const RESULTS: [&str; 9] = ["2xx", "3xx", "4xx", "5xx", "connect", "timeout", "too_large", "broken", "cancelled"];

pub(super) struct Recording<'a> {
    recorder: &'a Recorder,
    metrics: &'a Metrics,
    exchange: Option<Exchange>,
    result: &'static str,
    began: Instant,
    sent: Option<Instant>,
    answered: Option<Instant>,
    /// What has been received of the body.
    pub(super) body: Vec<u8>,
}

impl<'a> Recording<'a> {
    pub(super) fn new(
        recorder: &'a Recorder,
        metrics: &'a Metrics,
        request: &hyper::Request<Full<Bytes>>,
        body: Bytes,
    ) -> Self {
        let exchange = Exchange {
            started: SystemTime::now(),
            method: request.method().to_string(),
            url: request.uri().to_string(),
            request: Message { headers: headers(request.headers()), body_bytes: body.len() as u64, body },
            response: None,
            error: None,
            fault: None,
            phases: Phases::default(),
        };
        Recording {
            recorder,
            metrics,
            exchange: Some(exchange),
            result: "cancelled",
            began: Instant::now(),
            sent: None,
            answered: None,
            body: Vec::new(),
        }
    }

    /// The request, with nothing answered yet.
    pub(super) fn asked(&self) -> &Exchange {
        self.exchange.as_ref().expect("it is taken only when this value is dropped")
    }

    /// A socket is free: the request is sent now.
    pub(super) fn sent(&mut self) {
        self.sent = Some(Instant::now());
    }

    /// The response's headers are here.
    pub(super) fn answered(&mut self, status: u16, headers: Vec<(String, String)>) {
        self.answered = Some(Instant::now());
        if let Some(exchange) = &mut self.exchange {
            exchange.response = Some(Response { status, message: Message { headers, ..Message::default() } });
        }
    }

    /// The whole body is here.
    pub(super) fn received(mut self) -> Bytes {
        let body = Bytes::from(std::mem::take(&mut self.body));
        if let Some(response) = self.exchange.as_mut().and_then(|exchange| exchange.response.as_mut()) {
            response.message.body = body.clone();
            response.message.body_bytes = body.len() as u64;
            self.result = match response.status {
                ..300 => "2xx",
                300..400 => "3xx",
                400..500 => "4xx",
                500.. => "5xx",
            };
        }
        body
    }

    /// There will be no whole answer.
    pub(super) fn failed(mut self, error: &Error) {
        self.result = match error.fault() {
            Some(Fault::Connect) => "connect",
            Some(Fault::Timeout | Fault::Deadline) => "timeout",
            Some(Fault::TooLarge) => "too_large",
            Some(Fault::Cancelled) => "cancelled",
            Some(Fault::Broken | Fault::Hosts) | None => "broken",
        };
        if let Some(exchange) = &mut self.exchange {
            (exchange.error, exchange.fault) = (Some(error.to_string()), error.fault());
        }
    }

    fn phases(&self, now: Instant) -> Phases {
        let sent = self.sent.unwrap_or(now);
        let answered = self.answered.unwrap_or(now);
        Phases {
            blocked: sent.duration_since(self.began),
            waiting: answered.saturating_duration_since(sent),
            receiving: self.answered.map_or(Duration::ZERO, |answered| now.duration_since(answered)),
        }
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        let phases = self.phases(Instant::now());
        let Some(mut exchange) = self.exchange.take() else { return };
        exchange.phases = phases;
        if self.result == "cancelled" && exchange.error.is_none() {
            (exchange.error, exchange.fault) = (Some("cancelled".into()), Some(Fault::Cancelled));
        }
        if let Some(response) = exchange.response.as_mut().filter(|_| !self.body.is_empty()) {
            // The part that came before it went wrong.
            response.message.body_bytes = self.body.len() as u64;
            response.message.body = std::mem::take(&mut self.body).into();
        }
        self.metrics.count(self.result);
        self.recorder.record(exchange);
    }
}

pub(super) fn headers(map: &hyper::header::HeaderMap) -> Vec<(String, String)> {
    let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    map.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
}

/// Exchanges in numbers.
pub(super) struct Metrics {
    exchanges: [Counter; RESULTS.len()],
}

impl Metrics {
    pub(super) fn new(label: &str) -> Self {
        const NAME: &str = "weir_http_exchanges_total";
        metrics::describe_counter!(NAME, "HTTP exchanges of integrations, by status class or by what went wrong.");
        let exchanges =
            RESULTS.map(|result| metrics::counter!(NAME, "integration" => label.to_owned(), "result" => result));
        Metrics { exchanges }
    }

    fn count(&self, result: &str) {
        if let Some(position) = RESULTS.iter().position(|known| *known == result) {
            self.exchanges[position].increment(1);
        }
    }
}
