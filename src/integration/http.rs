//! Declarative pulls over HTTP: a base URL, credentials, and steps with templated path, query, headers and body.
//!
//! A configuration is compiled at boot (`plan.rs`). A run is its steps one after the other (`step.rs`): a step may loop
//! over the items of an earlier one, each iteration reads all pages (`pages.rs`), each page has a number of attempts
//! (`retry.rs`), each answer is judged (`errors.rs`), and all of it stays within the task's `budget.rs`. Answers must
//! be JSON; later steps and the result use them by name (`expression.rs`). What a template fills in is encoded for its
//! place, so that an input cannot lead a request elsewhere. Messages name step, method, configured path and status,
//! never what was sent or answered.

mod arithmetic;
pub mod auth;
mod base;
mod budget;
mod config;
mod decimal;
mod errors;
mod expression;
mod link;
mod lookup;
mod node;
mod numbers;
mod operators;
mod pages;
mod plan;
mod request;
mod retry;
mod step;
mod template;

use async_trait::async_trait;

use super::transport::{self, Answer, Request, TlsConfig, Transport};
use super::{Context, Error, Integration, Invalid};
use crate::task::{IntegrationName, Json};
use crate::telemetry::Telemetry;
use auth::{Auth, Offline};
use budget::Budget;
use expression::Scope;
use plan::Plan;
use step::Walk;

pub use auth::{AuthConfig, SecretSource};
pub use config::{Config, Step};
pub use errors::Rule;
pub use pages::Pagination;
pub use retry::Config as Retries;

/// The integration.
pub struct Http {
    transport: Transport,
    plan: Plan,
    auth: Auth,
}

impl Http {
    /// Checks and compiles the configuration of `[integrations.NAME]`.
    pub fn new(name: &IntegrationName, config: &Config, telemetry: &Telemetry) -> Result<Self, Invalid> {
        let section = format!("integrations.{name}");
        let plan = Plan::compile(config, &section)?;
        let transport = Transport::new(name.as_str(), &section, &config.limits(), telemetry)?;
        let variable = |name: &str| std::env::var(name).ok();
        let auth = telemetry.register(|| Auth::new(name.as_str(), config, &transport, &variable))?;
        Ok(Http { transport, plan, auth })
    }

    /// The same for runs that something else than the network answers: no secret and no certificate of the client is
    /// looked up. `has_token` says whether an OAuth2 token is there from the start, instead of being asked for.
    pub(super) fn offline(
        name: &IntegrationName,
        config: &Config,
        telemetry: &Telemetry,
        has_token: bool,
    ) -> Result<Self, Invalid> {
        let section = format!("integrations.{name}");
        let plan = Plan::compile(config, &section)?;
        let limits = transport::Config { tls: TlsConfig::default(), ..config.limits() };
        let transport = Transport::new(name.as_str(), &section, &limits, telemetry)?;
        let offline = Offline { has_token };
        let auth = telemetry.register(|| Auth::new(name.as_str(), config, &transport, &offline))?;
        Ok(Http { transport, plan, auth })
    }

    async fn perform(&self, context: &Context) -> Result<Json, Error> {
        self.auth.name_secrets(context);
        let budget = Budget::new(&self.plan.limits);
        let mut values: Vec<(String, Json)> = Vec::with_capacity(self.plan.steps.len());
        for step in &self.plan.steps {
            let value = Walk::new(self, context, &budget, step).value(scope(context, &values)).await?;
            values.push((step.name.clone(), value));
        }
        let Some(result) = &self.plan.result else {
            return Ok(values.pop().map_or_else(Json::null, |(_, value)| value));
        };
        let mut text = String::new();
        let written = result.write(&scope(context, &values), &mut text);
        written.map_err(|problem| Error::permanent(format!("result: {problem}")))?;
        Json::parse(text).map_err(|_| Error::permanent("the result is not JSON"))
    }

    /// Sends with credentials, and once more with newer ones where those are refused.
    async fn send(&self, request: Request, context: &Context) -> Result<Answer, Unanswered> {
        let client = context.client(&self.transport);
        let (authorized, used) = self.auth.authorize(context, request.clone()).await?;
        let answer = client.send(authorized).await?;
        if !self.auth.answered(context, &used, answer.status).await {
            return Ok(answer);
        }
        context.note("the credentials were refused with status 401: sending once more with newer ones");
        let (authorized, used) = self.auth.authorize(context, request).await?;
        let answer = client.send(authorized).await?;
        self.auth.answered(context, &used, answer.status).await;
        Ok(answer)
    }
}

#[async_trait]
impl Integration for Http {
    async fn run(&self, context: &Context) -> Result<Json, Error> {
        tokio::select! {
            biased;
            () = context.cancelled() => Err(Error::retryable("cancelled")),
            result = self.perform(context) => result,
        }
    }

    async fn probe(&self) -> Result<Option<String>, Error> {
        Ok(Some(self.transport.probe(self.plan.base.as_str()).await?))
    }
}

fn scope<'a>(context: &'a Context, steps: &'a [(String, Json)]) -> Scope<'a> {
    Scope { task: context.task(), run: context.run(), steps, item: None, body: None, answer: None }
}

/// Why a request has no answer.
enum Unanswered {
    /// There are no credentials to send it with.
    Credentials(Error),
    /// It was sent, or could not be.
    Exchange(transport::Error),
}

impl From<Error> for Unanswered {
    fn from(error: Error) -> Self {
        Unanswered::Credentials(error)
    }
}

impl From<transport::Error> for Unanswered {
    fn from(error: transport::Error) -> Self {
        Unanswered::Exchange(error)
    }
}

#[cfg(test)]
mod tests;
