//! The client of an OAuth2 token endpoint: RFC 6749, sections 4.4 (client credentials), 5 (answers) and 6 (refresh).
//!
//! The protocol is one form and one small JSON answer. What the `oauth2` crate would add to that is an adapter to the
//! recording transport of about this size, errors that quote what the bank answered, and older generations of eight
//! crates; so it is written down here.
//!
//! A request for a token runs on a task of its own: it goes on when the task that needed it is cancelled, for others
//! wait for it, and a refresh token that the bank has just replaced must reach its file. Each request is in the
//! transcript of the task that started it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::FutureExt;
use metrics::{Counter, counter, describe_counter};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use url::form_urlencoded::{Serializer, byte_serialize};

use super::super::base::holds_credential;
use super::cache::{Access, Cache, Denied, Granted};
use super::config::{ClientAuthentication, Grant, Oauth2Config, RefreshSource};
use super::refresh::RefreshToken;
use super::secret::{Lookup, MAX_SECRET_BYTES, Name, Secret, same, stand_in};
use crate::integration::transport::{Answer, Line, Request, Transport};
use crate::integration::{Context, Error, Invalid, Recorder};
use crate::task::Remedy;

/// A request for a token may take this long, waiting for a socket included; the transport's own limits come first.
const MAX_FETCH: Duration = Duration::from_secs(60);

/// What the form holds anyway.
const RESERVED: [&str; 5] = ["grant_type", "scope", "client_id", "client_secret", "refresh_token"];

/// The error codes of RFC 6749, section 5.2; no other text of an answer gets into a message.
const CODES: [&str; 6] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
];

/// A client and the token that it has.
pub(super) struct Oauth2 {
    transport: Transport,
    token_url: String,
    form: Vec<(String, String)>,
    id: Name,
    secret: Option<Secret>,
    in_header: bool,
    refresh: Option<RefreshToken>,
    cache: Cache,
    metrics: Metrics,
}

/// A successful answer (RFC 6749, section 5.1).
#[derive(Deserialize)]
struct Success {
    access_token: SecretString,
    token_type: Option<String>,
    /// A number of seconds; some banks write it as a text.
    expires_in: Option<Value>,
    refresh_token: Option<SecretString>,
}

impl Oauth2 {
    /// `label` is the integration in metrics.
    pub(super) fn new(
        label: &str,
        config: &Oauth2Config,
        transport: Transport,
        lookup: &impl Lookup,
    ) -> Result<Self, Invalid> {
        let token_url = check_url(&config.token_url)?;
        let id = Name::find("client_id", &config.client_id, lookup)?;
        let secret = config.client_secret.as_ref();
        let secret = secret.map(|source| Secret::find("client_secret", source, lookup)).transpose()?;
        let in_header = match config.client_authentication {
            Some(ClientAuthentication::Basic) if secret.is_none() => {
                let problem = "\"basic\" sends a secret, and there is none: set client_secret, or use \"body\"";
                return Err(Invalid::new("client_authentication", problem));
            }
            Some(authentication) => authentication == ClientAuthentication::Basic,
            None => secret.is_some(),
        };
        let refresh = match (config.grant, &config.refresh_token) {
            (Grant::ClientCredentials, None) => None,
            (Grant::RefreshToken, Some(_)) if lookup.offline().is_some() => Some(RefreshToken::stand_in()),
            (Grant::RefreshToken, Some(RefreshSource::File(path))) => Some(RefreshToken::find("refresh_token", path)?),
            (Grant::RefreshToken, None) => {
                let problem = "it is missing: grant = \"refresh_token\" needs { file = … }";
                return Err(Invalid::new("refresh_token", problem));
            }
            (Grant::ClientCredentials, Some(_)) => {
                let problem =
                    "grant = \"client_credentials\" uses none: leave it out, or set grant = \"refresh_token\"";
                return Err(Invalid::new("refresh_token", problem));
            }
        };
        let form = form(config)?;
        let has_token = lookup.offline().is_some_and(|offline| offline.has_token);
        let cache = if has_token { Cache::holding(stand_in()) } else { Cache::default() };
        let metrics = Metrics::new(label);
        Ok(Oauth2 { transport, token_url, form, id, secret, in_header, refresh, cache, metrics })
    }

    /// The token to use now. Waits for one at most until the task's deadline.
    pub(super) async fn token(self: &Arc<Self>, context: &Context) -> Result<Arc<Access>, Error> {
        let (asked, starts) = (Instant::now(), AtomicBool::new(false));
        let mut token = pin!(self.cache.token(|flight| {
            starts.store(true, Ordering::Relaxed);
            let (this, line) = (self.clone(), context.line());
            context.lifecycle().spawn("token request", async move {
                let landed = this.fetch(&line).await;
                this.metrics.count(&landed);
                flight.land(landed);
            });
        }));
        if let Some(token) = token.as_mut().now_or_never() {
            return token;
        }
        let token = timeout_at(context.deadline(), token).await;
        if !starts.load(Ordering::Relaxed) {
            let waited_ms = asked.elapsed().as_millis();
            context.note(format!("waited {waited_ms} ms for the access token that another task has asked for"));
        }
        token.unwrap_or_else(|_| Err(Error::retryable("the task's deadline came before an access token")))
    }

    /// The bank has refused this token. Says whether to ask once more with another one.
    pub(super) fn refused(&self, access: &Arc<Access>) -> bool {
        self.cache.refused(access)
    }

    async fn fetch(&self, line: &Line) -> Result<Granted, Denied> {
        let Some(refresh) = &self.refresh else { return self.ask(line, None).await };
        let used = refresh.read().await?;
        let denied = match self.ask(line, Some(&used)).await {
            Err(denied) if denied.error.remedy == Remedy::UserAction => denied,
            asked => return asked,
        };
        // Somebody else may have written a newer one meanwhile: whoever obtained a new consent, or another worker.
        match refresh.read().await? {
            newer if same(&used, &newer) => Err(denied),
            newer => self.ask(line, Some(&newer)).await,
        }
    }

    async fn ask(&self, line: &Line, used: Option<&SecretString>) -> Result<Granted, Denied> {
        let recorder = &line.recorder;
        let request = self.request(recorder, used).await?;
        let client = line.client(&self.transport, Instant::now() + MAX_FETCH);
        let answer = client.send(request).await.map_err(Error::from)?;
        if !answer.is_success() {
            return Err(self.denied(&answer));
        }
        let success = self.read(&answer).map_err(|problem| {
            Error::permanent(format!("{} answered with status {}, but {problem}", self.shown(), answer.status))
        })?;
        recorder.secret(success.access_token.expose_secret());
        if let (Some(refresh), Some(used), Some(new)) = (&self.refresh, used, success.refresh_token) {
            recorder.secret(new.expose_secret());
            refresh.rotate(used, new).await;
        }
        Ok(Granted { token: success.access_token, lifetime: success.expires_in.as_ref().and_then(seconds) })
    }

    async fn request(&self, recorder: &Recorder, refresh: Option<&SecretString>) -> Result<Request, Error> {
        let id = self.id.read().await?;
        let secret = match &self.secret {
            Some(secret) => Some(secret.read().await?),
            None => None,
        };
        for secret in [secret.as_ref(), refresh].into_iter().flatten() {
            recorder.secret(secret.expose_secret());
        }
        let mut request = Request::post(&*self.token_url).header("accept", "application/json");
        let mut form = Serializer::new(String::new());
        form.extend_pairs(&self.form);
        if let Some(refresh) = refresh {
            form.append_pair("refresh_token", refresh.expose_secret());
        }
        match &secret {
            Some(secret) if self.in_header => {
                let encoded = |text: &SecretString| byte_serialize(text.expose_secret().as_bytes()).collect::<String>();
                let pair = BASE64_STANDARD.encode(format!("{}:{}", encoded(&id), encoded(secret)));
                recorder.secret(&*pair);
                request = request.header("authorization", format!("Basic {pair}"));
            }
            _ => {
                form.append_pair("client_id", id.expose_secret());
                if let Some(secret) = &secret {
                    form.append_pair("client_secret", secret.expose_secret());
                }
            }
        }
        Ok(request.body("application/x-www-form-urlencoded", form.finish()))
    }

    /// The problem tells nothing of the answer.
    fn read(&self, answer: &Answer) -> Result<Success, &'static str> {
        let success: Success =
            serde_json::from_slice(&answer.body).map_err(|_| "it is not the JSON of RFC 6749, section 5.1")?;
        let is_bearer = success.token_type.as_deref().is_none_or(|kind| kind.eq_ignore_ascii_case("bearer"));
        let token = success.access_token.expose_secret();
        match () {
            () if !is_bearer => Err("its token_type is not bearer, which is the only one that can be used"),
            () if token.is_empty() || token.len() > MAX_SECRET_BYTES => Err("its token is empty or too long"),
            () if !token.bytes().all(|byte| byte.is_ascii_graphic()) => Err("its token does not fit into a header"),
            () => Ok(success),
        }
    }

    /// What an answer of section 5.2, or another one, means.
    fn denied(&self, answer: &Answer) -> Denied {
        let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let code = CODES.into_iter().find(|code| body["error"] == *code);
        let message = format!("{} answered with status {}", self.shown(), answer.status);
        let message = code.map_or(message.clone(), |code| format!("{message} and {code}"));
        let because = |error: Error, reason: &str| error.because(reason.parse().expect("it is a reason"));
        let error = match (answer.status, code) {
            (408 | 429 | 500.., _) => Error::retryable(message),
            (_, Some("invalid_grant")) if self.refresh.is_some() => {
                let message = format!("{message}: the consent is no longer valid, and the person must give a new one");
                because(Error::user_action(message), "consent_expired")
            }
            (_, Some(code @ ("invalid_client" | "unauthorized_client"))) => {
                let message =
                    format!("{message}: check client_id, its secret or certificate, and what the bank allows");
                because(Error::permanent(message), code)
            }
            _ => Error::permanent(message),
        };
        let retry_after = answer.header("retry-after").and_then(|value| value.trim().parse().ok());
        Denied { error, retry_after: Duration::from_secs(retry_after.unwrap_or(0)) }
    }

    fn shown(&self) -> String {
        format!("POST {}", self.token_url)
    }
}

/// Requests for tokens in numbers.
struct Metrics {
    granted: Counter,
    denied: Counter,
}

impl Metrics {
    fn new(label: &str) -> Self {
        const NAME: &str = "weir_http_token_requests_total";
        describe_counter!(NAME, "Requests for OAuth2 access tokens, by whether one was granted.");
        let counter = |result: &'static str| counter!(NAME, "integration" => label.to_owned(), "result" => result);
        Metrics { granted: counter("granted"), denied: counter("denied") }
    }

    fn count(&self, landed: &Result<Granted, Denied>) {
        if landed.is_ok() { self.granted.increment(1) } else { self.denied.increment(1) }
    }
}

impl From<Error> for Denied {
    fn from(error: Error) -> Self {
        Denied { error, retry_after: Duration::ZERO }
    }
}

fn check_url(token_url: &str) -> Result<String, Invalid> {
    if holds_credential(token_url) {
        // Not shown.
        return Err(Invalid::new("token_url", "it holds a credential: use client_id and client_secret"));
    }
    let problem = match url::Url::parse(token_url) {
        Err(error) => error.to_string(),
        Ok(url) if !matches!(url.scheme(), "http" | "https") => "its scheme is neither http nor https".into(),
        Ok(url) if url.fragment().is_some() => "it has a fragment".into(),
        Ok(url) => return Ok(url.into()),
    };
    let example = "use one such as \"https://auth.bank.example/token\"";
    let shown = token_url.split(['?', '#']).next().unwrap_or_default();
    Err(Invalid::new("token_url", format!("{shown:?} is not valid: {problem}; {example}")))
}

/// What each request says.
fn form(config: &Oauth2Config) -> Result<Vec<(String, String)>, Invalid> {
    if let Some(name) = config.parameters.keys().find(|name| RESERVED.contains(&name.as_str())) {
        let problem = "it has a key of its own: leave it out here, and use that";
        return Err(Invalid::new(format!("parameters.{name}"), problem));
    }
    let grant = match config.grant {
        Grant::ClientCredentials => "client_credentials",
        Grant::RefreshToken => "refresh_token",
    };
    let mut form = vec![("grant_type".to_owned(), grant.to_owned())];
    form.extend(config.scope.iter().map(|scope| ("scope".to_owned(), scope.clone())));
    form.extend(config.parameters.clone());
    Ok(form)
}

/// A lifetime; nothing where it is no number.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    Duration::try_from_secs_f64(seconds.max(0.0)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_numbers_or_texts_of_numbers() {
        for (value, lifetime) in [
            (Value::from(3600), Some(3600)),
            (Value::from("300"), Some(300)),
            (Value::from(-1), Some(0)),
            (Value::from("soon"), None),
            (Value::Null, None),
        ] {
            assert_eq!(seconds(&value), lifetime.map(Duration::from_secs), "{value}");
        }
    }
}
