//! Who is asking: a bearer token, an API key, a name and password, or a client certificate.
//!
//! | credential | where | the client id is |
//! |---|---|---|
//! | bearer token | `Authorization: Bearer TOKEN` | that of the token (`tokens.rs`) |
//! | basic | `Authorization: Basic base64(NAME:PASSWORD)` | the name; any password but an empty one and `wrong` |
//! | API key | `x-api-key: sandbox.NAME`, or `api_key=sandbox.NAME` in the query | the name |
//! | certificate | the TLS connection (`tls.rs`) | the first DNS name in it |
//!
//! The first that is there counts, in this order: a wrong one is not made good by a right one.

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Uri};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::time::Instant;

use super::is_client_id;
use super::tokens::{ETERNAL_ACCESS, NotTaken, Tokens};

/// The one password that the bank knows to be wrong, so that wrong ones can be tested.
const WRONG_SECRET: &str = "wrong";

/// Why the bank does not know who is asking.
pub(super) struct Unknown {
    /// The value of `WWW-Authenticate`.
    pub(super) challenge: String,
    /// For people.
    pub(super) problem: &'static str,
    /// Whose token it was, where it once was good.
    pub(super) client: Option<String>,
}

/// Who makes this request.
pub(super) fn client(
    headers: &HeaderMap,
    uri: &Uri,
    certificate: Option<&str>,
    tokens: &Tokens,
    now: Instant,
) -> Result<String, Unknown> {
    let unknown = |challenge: &str, problem| Unknown { challenge: challenge.to_owned(), problem, client: None };
    if let Some(value) = headers.get(AUTHORIZATION) {
        let value = value.to_str().unwrap_or_default();
        if let Some(token) = value.strip_prefix("Bearer ") {
            return tokens.check(token.trim(), now).map_err(|NotTaken { client, problem }| {
                let challenge = format!("Bearer error=\"invalid_token\", error_description=\"{problem}\"");
                Unknown { challenge, problem, client }
            });
        }
        return match basic(value) {
            Some((client, secret)) if is_good(&client, &secret) => Ok(client),
            _ => Err(unknown("Basic realm=\"sandbox\"", "the name or the password is wrong")),
        };
    }
    let key = match headers.get("x-api-key") {
        Some(key) => Some(key.to_str().unwrap_or_default().to_owned()),
        None => from_query(uri, "api_key"),
    };
    if let Some(key) = key {
        let client = key.strip_prefix(ETERNAL_ACCESS).filter(|client| is_client_id(client)).map(str::to_owned);
        return client.ok_or_else(|| unknown("Bearer", "the API key is wrong: use sandbox. and a client id"));
    }
    let certified = certificate.map(str::to_owned);
    certified.ok_or_else(|| unknown("Bearer", "a token from POST /oauth/token is needed, or another credential"))
}

/// Name and password of a basic `Authorization`.
pub(super) fn basic(authorization: &str) -> Option<(String, String)> {
    let encoded = authorization.strip_prefix("Basic ")?;
    let text = String::from_utf8(BASE64_STANDARD.decode(encoded.trim()).ok()?).ok()?;
    text.split_once(':').map(|(client, secret)| (client.to_owned(), secret.to_owned()))
}

/// Whether the bank lets this client in with this secret.
pub(super) fn is_good(client: &str, secret: &str) -> bool {
    is_client_id(client) && !secret.is_empty() && secret != WRONG_SECRET
}

/// The first value of this name in the query.
pub(super) fn from_query(uri: &Uri, name: &str) -> Option<String> {
    let query = uri.query()?.as_bytes();
    url::form_urlencoded::parse(query).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}
