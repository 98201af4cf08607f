//! Declarative pulls over HTTP: a base URL, a token, and steps with templated path, query and body.
//!
//! Each step's answer must be JSON; later steps and the result use it by name (`template.rs`). What a template fills in
//! is encoded for its place, so that an input cannot lead a request elsewhere. Messages name step, method, configured
//! path and status, never what was sent or answered.

mod config;
mod lookup;
mod plan;
mod template;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::AsyncReadExt;

use super::transport::{Answer, Client, Transport};
use super::{Context, Error, Integration, Invalid};
use crate::task::{IntegrationName, Json};
use crate::telemetry::Telemetry;
use plan::{CompiledStep, Plan};
use template::Scope;

pub use config::{Config, Step, TokenSource};

/// The longest token; HTTP servers take about this much in all headers.
const MAX_TOKEN_BYTES: u64 = 16 * 1024;

/// The integration.
pub struct Http {
    transport: Transport,
    plan: Plan,
    token: Token,
}

enum Token {
    None,
    Fixed(SecretString),
    File(PathBuf),
}

impl Http {
    /// Checks and compiles the configuration of `[integrations.NAME]`.
    pub fn new(name: &IntegrationName, config: &Config, telemetry: &Telemetry) -> Result<Self, Invalid> {
        let plan = Plan::compile(config)?;
        let token = Token::find(config.token.as_ref(), |name| std::env::var(name).ok())?;
        let transport = Transport::new(name.as_str(), &format!("integrations.{name}"), &config.limits(), telemetry)?;
        Ok(Http { transport, plan, token })
    }

    async fn perform(&self, context: &Context) -> Result<Json, Error> {
        let token = self.token.read().await?;
        if let Some(token) = &token {
            context.secret(token.expose_secret());
        }
        let client = context.client(&self.transport);
        let mut bodies: Vec<(String, Json)> = Vec::with_capacity(self.plan.steps.len());
        for step in &self.plan.steps {
            let scope = Scope { task: context.task(), steps: &bodies };
            let body = self.step(step, &scope, client, token.as_ref()).await?;
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

    async fn step(
        &self,
        step: &CompiledStep,
        scope: &Scope<'_>,
        client: Client<'_>,
        token: Option<&SecretString>,
    ) -> Result<Json, Error> {
        let name = &step.name;
        let request = self.plan.request(step, scope);
        let mut request = request.map_err(|problem| Error::permanent(format!("step {name}: {problem}")))?;
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {}", token.expose_secret()));
        }
        let answer = client.send(request).await.map_err(|error| {
            let Error { message, retryable } = Error::from(error);
            Error { message: format!("step {name}: {message}"), retryable }
        })?;
        check_status(step, &answer)?;
        let what = || format!("step {name}: {} {} answered", step.method, step.shown_path);
        let text = String::from_utf8(answer.body.into())
            .map_err(|_| Error::permanent(format!("{} with a body that is not UTF-8: JSON is needed", what())))?;
        Json::parse(text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            Error::permanent(format!("{} with a body that is not JSON at line {line} column {column}", what()))
        })
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
    let retryable = matches!(answer.status, 408 | 429 | 500..);
    let message = format!("step {name}: {method} {shown_path} answered with status {}", answer.status);
    Err(Error { message, retryable })
}

impl Token {
    fn find(source: Option<&TokenSource>, variable: impl Fn(&str) -> Option<String>) -> Result<Self, Invalid> {
        match source {
            None => Ok(Token::None),
            Some(TokenSource::Env(name)) => match variable(name).map(|value| value.trim().to_owned()) {
                Some(value) if !value.is_empty() => Ok(Token::Fixed(value.into())),
                _ => Err(Invalid::new("token.env", format!("the environment has no {name:?}: set it to the token"))),
            },
            Some(TokenSource::File(path)) => match std::fs::metadata(path) {
                Ok(metadata) if metadata.is_file() => Ok(Token::File(path.clone())),
                Ok(_) => Err(Invalid::new("token.file", format!("{path:?} is no file: name one with the token"))),
                Err(error) => Err(Invalid::new(
                    "token.file",
                    format!("{path:?} cannot be read: {error}; name a file with the token"),
                )),
            },
        }
    }

    async fn read(&self) -> Result<Option<SecretString>, Error> {
        match self {
            Token::None => Ok(None),
            Token::Fixed(token) => Ok(Some(token.clone())),
            Token::File(path) => match read_limited(path).await {
                Ok(text) if !text.trim().is_empty() => Ok(Some(text.trim().into())),
                Ok(_) => Err(Error::retryable(format!("the token's file {path:?} is empty"))),
                Err(error) => Err(Error::retryable(format!("the token's file {path:?} cannot be read: {error}"))),
            },
        }
    }
}

async fn read_limited(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text).await?;
    if text.len() as u64 > MAX_TOKEN_BYTES {
        return Err(std::io::Error::other(format!("it has more than {MAX_TOKEN_BYTES} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
