//! What happens to a request before and after it is answered: the one place where the bank misbehaves.
//!
//! In this order: who is it (401); is it too soon (429); does it hang; is there a place for it (wait, or 503); the
//! latency; the fault that was drawn for it; is the consent good (403); its answer. A hung request takes no place, so
//! that shares and limits can be reasoned about apart; another one keeps its place until its body is sent. Limits and faults are those at its arrival, the
//! latency and the slowdown those of when it gets its place; a change does not touch what is being worked on.

use std::sync::Arc;

use axum::extract::{Extension, Request, State};
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;
use uuid::Uuid;

use super::asked::{ClientId, customer};
use super::bank::Random;
use super::behaviour::{Concurrency, Fault};
use super::clients::InFlight;
use super::connections::Peer;
use super::refusals::{Dialect, Refusal};
use super::routes::Bank;
use super::{answers, credentials, meter};

/// Customers whose id starts like this have taken their consent back.
const EXPIRED_CUSTOMERS: &str = "expired-";

/// Sent back as it came, or made up, in the dialects of the two standards.
const INTERACTION_ID: HeaderName = HeaderName::from_static("x-fapi-interaction-id");

pub(super) async fn pass(
    State(bank): State<Arc<Bank>>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let dialect = Dialect::of(request.uri().path());
    let interaction = request.headers().get(INTERACTION_ID).cloned();
    let certificate = peer.certificate.as_deref();
    let who = credentials::client(request.headers(), request.uri(), certificate, &bank.tokens, Instant::now());
    let mut answer = match who {
        Err(unknown) => {
            if let Some(client) = unknown.client {
                bank.clients.count(&client, |counts| counts.unauthorized += 1);
            }
            let refusal = dialect.refuse(Refusal::Unauthorized(unknown.problem));
            ([(WWW_AUTHENTICATE, unknown.challenge)], refusal).into_response()
        }
        Ok(client) => {
            request.extensions_mut().insert(ClientId(client.clone()));
            let visit = Visit { in_flight: bank.clients.enter(&client), client, dialect, bank, peer };
            visit.answer(request, next).await
        }
    };
    if dialect != Dialect::Own {
        let made_up = || HeaderValue::try_from(Uuid::now_v7().to_string()).ok();
        if let Some(id) = interaction.or_else(made_up) {
            answer.headers_mut().insert(INTERACTION_ID, id);
        }
    }
    answer
}

/// A request by a known client.
struct Visit {
    bank: Arc<Bank>,
    peer: Peer,
    dialect: Dialect,
    client: String,
    in_flight: InFlight,
}

impl Visit {
    async fn answer(mut self, request: Request, next: Next) -> Response {
        let bank = self.bank.clone();
        let behaviour = bank.conduct.towards(&self.client, Instant::now());
        if let Some(limit) = behaviour.rate_limit
            && let Err(wait) = bank.meters.take(&self.in_flight.client, limit, Instant::now())
        {
            self.in_flight.count(|counts| counts.rate_limited += 1);
            let seconds = meter::retry_after_seconds(wait).to_string();
            return ([(RETRY_AFTER, seconds)], self.dialect.refuse(Refusal::RateLimited)).into_response();
        }
        let fault = behaviour.fault(bank.config.seed, &self.in_flight.client, self.in_flight.number);
        if fault == Some(Fault::Hang) {
            self.in_flight.begin();
            self.in_flight.count(|counts| counts.hung += 1);
            bank.stopping.cancelled().await;
            return self.reset().await;
        }
        let stopping = bank.stopping.clone();
        let dialect = self.dialect;
        tokio::select! {
            biased;
            () = stopping.cancelled() => dialect.refuse(Refusal::Closing),
            answer = self.work(behaviour.concurrency, fault, request, next) => answer,
        }
    }

    /// Waits for a place and for as long as the answer takes; then answers, or not.
    async fn work(mut self, rule: Option<Concurrency>, fault: Option<Fault>, request: Request, next: Next) -> Response {
        let bank = self.bank.clone();
        let Some(turn) = bank.lines.join(&self.in_flight.client, rule) else {
            self.in_flight.count(|counts| counts.refused += 1);
            return self.dialect.refuse(Refusal::Busy);
        };
        self.in_flight.begin();
        self.in_flight.place = turn.place().await;
        let behaviour = bank.conduct.towards(&self.client, Instant::now());
        let random = &mut Random::new(bank.config.seed, &["latency", &request.uri().to_string()]);
        let due = Instant::now() + behaviour.draw_latency(random);
        tokio::time::sleep_until(due).await;
        match fault {
            Some(Fault::Reset) => {
                self.in_flight.count(|counts| counts.reset += 1);
                self.reset().await
            }
            Some(Fault::Error(status)) => {
                self.in_flight.count(|counts| counts.errors += 1);
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                self.dialect.refuse(Refusal::Failed(status))
            }
            Some(Fault::Truncate) => {
                let answer = self.respond(request, next).await;
                self.in_flight.count(|counts| counts.truncated += 1);
                answers::truncated(answer, self.peer.fate, self.in_flight).await
            }
            Some(Fault::Oversize(bytes)) => {
                let answer = self.respond(request, next).await;
                self.in_flight.count(|counts| counts.oversized += 1);
                answers::oversized(answer, bytes, self.in_flight).await
            }
            Some(Fault::Hang) | None => {
                let answer = self.respond(request, next).await;
                bank.clients.late(due.elapsed());
                answer
            }
        }
    }

    async fn respond(&self, request: Request, next: Next) -> Response {
        let customer = customer(request.headers(), request.uri());
        if customer.is_some_and(|customer| customer.starts_with(EXPIRED_CUSTOMERS)) {
            return self.dialect.refuse(Refusal::ConsentExpired);
        }
        next.run(request).await
    }

    /// Ends the connection, and this future with it. The caller may know before this future does: it is counted out first.
    async fn reset(self) -> Response {
        drop(self.in_flight);
        self.peer.fate.reset();
        std::future::pending().await
    }
}
