//! The token endpoint: `POST /oauth/token` (RFC 6749), and `DELETE /oauth/tokens/{client}` to revoke.
//!
//! | grant | the form | the answer |
//! |---|---|---|
//! | `client_credentials` | the client's id and secret, in the form or as basic `Authorization` | `access_token`, `expires_in` |
//! | `refresh_token` | the same, and `refresh_token` | the same, and a new `refresh_token` where they rotate |
//!
//! Any secret is good but an empty one and `wrong`; with a client certificate none is needed (RFC 8705). A client's
//! first refresh token is `sandbox-refresh.<client id>`. Errors are `{"error", "error_description"}` as in section 5.2.
//! `token_latency` and `token_errors` of the client's behaviour apply, nothing else of it does.

use std::sync::Arc;

use axum::extract::rejection::RawFormRejection;
use axum::extract::{Extension, Path, RawForm, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde_json::json;
use tokio::time::Instant;

use super::clients::TokenCounts;
use super::connections::Peer;
use super::credentials::{basic, is_good};
use super::routes::Bank;
use super::tokens::{Issued, NotRefreshed};
use super::{CLIENT_ID_RULE, is_client_id};

/// The one error whose status is 401.
const INVALID_CLIENT: &str = "invalid_client";

pub(super) fn routes() -> Router<Arc<Bank>> {
    use axum::routing::{delete, post};
    Router::new().route("/oauth/token", post(token)).route("/oauth/tokens/{client}", delete(revoke))
}

#[derive(Default)]
struct Form {
    grant_type: String,
    client_id: Option<String>,
    client_secret: Option<String>,
    refresh_token: Option<String>,
}

/// An error of section 5.2.
struct Refusal {
    error: &'static str,
    description: String,
}

impl Refusal {
    fn new(error: &'static str, description: impl Into<String>) -> Self {
        Refusal { error, description: description.into() }
    }
}

async fn token(
    State(bank): State<Arc<Bank>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    form: Result<RawForm, RawFormRejection>,
) -> Response {
    let form = match form {
        Ok(RawForm(form)) => Form::read(&form),
        Err(rejection) => {
            let problem = json!({ "error": "invalid_request", "error_description": rejection.body_text() });
            return (rejection.status(), Json(problem)).into_response();
        }
    };
    let authorization = headers.get(AUTHORIZATION).map(|value| value.to_str().unwrap_or_default());
    let client = match authenticate(&form, authorization, peer.certificate.as_deref()) {
        Ok(client) => client,
        Err(refusal) => {
            if let Some(client) = form.client_id.filter(|client| is_client_id(client)) {
                count(&bank, &client, |tokens| {
                    (tokens.requests, tokens.refused) = (tokens.requests + 1, tokens.refused + 1)
                });
            }
            let challenged = authorization.is_some() && refusal.error == INVALID_CLIENT;
            let challenge = challenged.then_some([(WWW_AUTHENTICATE, "Basic realm=\"sandbox\"")]);
            return (challenge, refusal).into_response();
        }
    };
    let (counted_as, number) = bank.clients.count(&client, |counts| {
        counts.tokens.requests += 1;
        counts.tokens.requests
    });
    let behaviour = bank.conduct.towards(&client, Instant::now());
    let latency = behaviour.token_latency.unwrap_or_default();
    if bank.stopping.run_until_cancelled(tokio::time::sleep(latency)).await.is_none() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if let Some(status) = behaviour.token_fault(bank.config.seed, &counted_as, number) {
        count(&bank, &client, |tokens| tokens.errors += 1);
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return (status, Json(json!({ "error": "server_error", "error_description": "on purpose" }))).into_response();
    }
    match grant(&bank, &form, &client) {
        Ok(issued) => granted(issued),
        Err(refusal) => {
            count(&bank, &client, |tokens| tokens.refused += 1);
            refusal.into_response()
        }
    }
}

fn count(bank: &Bank, client: &str, count: impl Fn(&mut TokenCounts)) {
    bank.clients.count(client, |counts| count(&mut counts.tokens));
}

/// Which client this is: by `Authorization`, by the form, or by its certificate.
fn authenticate(form: &Form, authorization: Option<&str>, certificate: Option<&str>) -> Result<String, Refusal> {
    let invalid = |problem: &str| Err(Refusal::new(INVALID_CLIENT, problem));
    let (client, secret) = match authorization {
        Some(_) if form.client_secret.is_some() => {
            return Err(Refusal::new("invalid_request", "the client's secret is there twice: header and form"));
        }
        Some(authorization) => basic(authorization).unwrap_or_default(),
        None => match (&form.client_id, &form.client_secret, certificate) {
            (id, None, Some(certified)) if id.as_deref().is_none_or(|id| id == certified) => {
                return Ok(certified.to_owned());
            }
            (id, secret, _) => (id.clone().unwrap_or_default(), secret.clone().unwrap_or_default()),
        },
    };
    if !is_client_id(&client) {
        return invalid(&format!("the client_id is missing or wrong: use {CLIENT_ID_RULE}"));
    }
    if !is_good(&client, &secret) {
        return invalid("the client_secret is missing or wrong");
    }
    Ok(client)
}

fn grant(bank: &Bank, form: &Form, client: &str) -> Result<Issued, Refusal> {
    let now = Instant::now();
    match form.grant_type.as_str() {
        "client_credentials" => {
            count(bank, client, |tokens| tokens.client_credentials += 1);
            Ok(bank.tokens.issue(client, now))
        }
        "refresh_token" => {
            let token = form.refresh_token.as_deref();
            let token = token.ok_or_else(|| Refusal::new("invalid_request", "the refresh_token is missing"))?;
            let issued = bank.tokens.refresh(client, token, now).map_err(|error| match error {
                NotRefreshed::Invalid => Refusal::new("invalid_grant", "the refresh token is wrong, revoked or used"),
                NotRefreshed::TooManyClients => Refusal::new("invalid_request", "too many clients have refreshed"),
            })?;
            count(bank, client, |tokens| tokens.refresh_token += 1);
            Ok(issued)
        }
        other => {
            let problem = format!("{other:?} is not known: use client_credentials or refresh_token");
            Err(Refusal::new("unsupported_grant_type", problem))
        }
    }
}

fn granted(Issued { access_token, expires_in, refresh_token }: Issued) -> Response {
    let mut body = json!({
        "access_token": access_token, "token_type": "Bearer", "expires_in": expires_in.as_secs(),
    });
    if let Some(refresh_token) = refresh_token {
        body["refresh_token"] = refresh_token.into();
    }
    ([(CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

async fn revoke(State(bank): State<Arc<Bank>>, Path(client): Path<String>) -> StatusCode {
    if !is_client_id(&client) {
        return StatusCode::NOT_FOUND;
    }
    if bank.tokens.revoke(&client) { StatusCode::NO_CONTENT } else { StatusCode::INSUFFICIENT_STORAGE }
}

impl Form {
    fn read(text: &[u8]) -> Self {
        let mut form = Form::default();
        for (name, value) in url::form_urlencoded::parse(text) {
            match &*name {
                "grant_type" => form.grant_type = value.into_owned(),
                "client_id" => form.client_id = Some(value.into_owned()),
                "client_secret" => form.client_secret = Some(value.into_owned()),
                "refresh_token" => form.refresh_token = Some(value.into_owned()),
                _ => {}
            }
        }
        form
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = if self.error == INVALID_CLIENT { StatusCode::UNAUTHORIZED } else { StatusCode::BAD_REQUEST };
        (status, Json(json!({ "error": self.error, "error_description": self.description }))).into_response()
    }
}
