//! Declarative pulls over HTTP: a base URL, a token, and steps with templated path, query and body.
//!
//! Each step's answer must be JSON; later steps and the result use it by name (`template.rs`). What a template fills in
//! is encoded for its place, so that an input cannot lead a request elsewhere. Messages name step, method, configured
//! path and status, never what was sent or answered.

pub mod auth;
mod config;
mod lookup;
mod plan;
mod template;

use async_trait::async_trait;

use super::transport::{Answer, Request, Transport};
use super::{Context, Error, Integration, Invalid};
use crate::task::{IntegrationName, Json};
use crate::telemetry::Telemetry;
use auth::Auth;
use plan::{CompiledStep, Plan};
use template::Scope;

pub use auth::{AuthConfig, SecretSource};
pub use config::{Config, Step};

/// The integration.
pub struct Http {
    transport: Transport,
    plan: Plan,
    auth: Auth,
}

impl Http {
    /// Checks and compiles the configuration of `[integrations.NAME]`.
    pub fn new(name: &IntegrationName, config: &Config, telemetry: &Telemetry) -> Result<Self, Invalid> {
        let plan = Plan::compile(config)?;
        let transport = Transport::new(name.as_str(), &format!("integrations.{name}"), &config.limits(), telemetry)?;
        let variable = |name: &str| std::env::var(name).ok();
        let auth = telemetry.register(|| Auth::new(name.as_str(), config, &transport, variable))?;
        Ok(Http { transport, plan, auth })
    }

    async fn perform(&self, context: &Context) -> Result<Json, Error> {
        let mut bodies: Vec<(String, Json)> = Vec::with_capacity(self.plan.steps.len());
        for step in &self.plan.steps {
            let scope = Scope { task: context.task(), steps: &bodies };
            let body = self.step(step, &scope, context).await?;
            bodies.push((step.name.clone(), body));
        }
        let Some(result) = &self.plan.result else {
            return Ok(bodies.pop().map_or_else(Json::null, |(_, body)| body));
        };
        let mut text = String::new();
        let scope = Scope { task: context.task(), steps: &bodies };
        result.write(&scope, &mut text).map_err(|problem| Error::permanent(format!("result: {problem}")))?;
        Json::parse(text).map_err(|_| Error::permanent("the result is not JSON"))
    }

    async fn step(&self, step: &CompiledStep, scope: &Scope<'_>, context: &Context) -> Result<Json, Error> {
        let name = &step.name;
        let request = self.plan.request(step, scope);
        let request = request.map_err(|problem| Error::permanent(format!("step {name}: {problem}")))?;
        let answer = self.send(request, context).await.map_err(|error| error.within(&format!("step {name}")))?;
        check_status(step, &answer)?;
        let what = || format!("step {name}: {} {} answered", step.method, step.shown_path);
        let text = String::from_utf8(answer.body.into())
            .map_err(|_| Error::permanent(format!("{} with a body that is not UTF-8: JSON is needed", what())))?;
        Json::parse(text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            Error::permanent(format!("{} with a body that is not JSON at line {line} column {column}", what()))
        })
    }

    /// Sends with credentials, and once more with newer ones where those are refused.
    async fn send(&self, request: Request, context: &Context) -> Result<Answer, Error> {
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
}

fn check_status(step: &CompiledStep, answer: &Answer) -> Result<(), Error> {
    if answer.is_success() {
        return Ok(());
    }
    let CompiledStep { name, method, shown_path, .. } = step;
    let message = format!("step {name}: {method} {shown_path} answered with status {}", answer.status);
    match answer.status {
        408 | 429 | 500.. => Err(Error::retryable(message)),
        _ => Err(Error::permanent(message)),
    }
}

#[cfg(test)]
mod tests;
