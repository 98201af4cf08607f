//! What `auth` in `[integrations.NAME]` holds. Secrets are never in the configuration itself, only where they are.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::integration::keyed;

/// How the bank knows who asks.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum AuthConfig {
    /// `Authorization: Bearer …` (RFC 6750).
    Bearer(BearerConfig),
    /// `Authorization: Basic …` (RFC 7617).
    Basic(BasicConfig),
    /// A key in a header or in the query.
    ApiKey(ApiKeyConfig),
    /// A bearer token from a token endpoint (RFC 6749).
    Oauth2(Box<Oauth2Config>),
}

impl<'de> Deserialize<'de> for AuthConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let kinds: &[(_, keyed::Read<AuthConfig>)] = &[
            ("bearer", |rest| keyed::part(rest).map(AuthConfig::Bearer)),
            ("basic", |rest| keyed::part(rest).map(AuthConfig::Basic)),
            ("api_key", |rest| keyed::part(rest).map(AuthConfig::ApiKey)),
            ("oauth2", |rest| keyed::part(rest).map(AuthConfig::Oauth2)),
        ];
        keyed::by_kind(deserializer, kinds)
    }
}

/// A token that somebody else obtains and renews.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BearerConfig {
    /// From a variable or a file, or a template for a token that comes with the task: `"{{ input.access_token }}"`.
    pub token: Text,
}

/// A user and a password.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasicConfig {
    /// Without a colon.
    pub username: Text,
    /// From a variable or a file.
    pub password: SecretSource,
}

/// A key; exactly one of `header` and `query` says where it is sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKeyConfig {
    /// The header's name, such as `x-api-key`.
    #[serde(default)]
    pub header: Option<String>,
    /// The query parameter's name, such as `api_key`.
    #[serde(default)]
    pub query: Option<String>,
    /// From a variable or a file.
    pub key: SecretSource,
}

/// A client of an OAuth2 server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oauth2Config {
    /// The token endpoint.
    pub token_url: String,
    /// How a token is asked for.
    #[serde(default)]
    pub grant: Grant,
    /// The client's identifier.
    pub client_id: Text,
    /// Left out for clients that the TLS certificate identifies (RFC 8705), and for public ones.
    #[serde(default)]
    pub client_secret: Option<SecretSource>,
    /// How identifier and secret are sent; `basic` where there is a secret, or else `body`.
    #[serde(default)]
    pub client_authentication: Option<ClientAuthentication>,
    /// Names with spaces between them.
    #[serde(default)]
    pub scope: Option<String>,
    /// For `grant = "refresh_token"`: the file that holds the refresh token. A new one is written back to it.
    #[serde(default)]
    pub refresh_token: Option<RefreshSource>,
    /// More of the request's form, such as `audience`.
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
}

/// The ways to ask for a token that need no person.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grant {
    /// The client for itself (RFC 6749, section 4.4).
    #[default]
    ClientCredentials,
    /// For a person who has consented once (section 6).
    RefreshToken,
}

/// How a client says who it is (RFC 6749, section 2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuthentication {
    /// In the `Authorization` header.
    Basic,
    /// In the form.
    Body,
}

/// Where a secret comes from; never from the configuration itself.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretSource {
    /// An environment variable, read at boot.
    Env(String),
    /// A file, read when it is used, so that it can be renewed; the space around it is ignored.
    File(PathBuf),
}

/// Where a refresh token is kept. Only a file can be: the bank may hand out another one with each use.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RefreshSource {
    /// Its directory must be writable, and no other worker may use the same one.
    File(PathBuf),
}

/// A text as it is, or from where secrets come from.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Text {
    /// Written in the configuration.
    Plain(String),
    /// From elsewhere.
    From(SecretSource),
}

/// Read by hand: whatever is wrong, the value is in no message, since it may be the secret itself.
impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Object(table) => source(table).map_err(D::Error::custom),
            _ => Err(D::Error::custom(format!("a secret does not belong in the configuration: {USE_ONE}"))),
        }
    }
}

impl<'de> Deserialize<'de> for RefreshSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let problem = match Value::deserialize(deserializer)? {
            Value::Object(mut table) => match (table.remove("file"), table.is_empty()) {
                (Some(Value::String(path)), true) => return Ok(RefreshSource::File(path.into())),
                _ => "a new refresh token is written back, and only a file can be written",
            },
            _ => "a secret does not belong in the configuration",
        };
        Err(D::Error::custom(format!("{problem}: use {{ file = \"PATH\" }}")))
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Text::Plain(text)),
            Value::Object(table) => source(table).map(Text::From).map_err(D::Error::custom),
            _ => Err(D::Error::custom(format!("it is no text: use a text, or else {USE_ONE}"))),
        }
    }
}

const USE_ONE: &str = "use { env = \"NAME\" } or { file = \"PATH\" }";

/// What a table says; a problem begins with the key inside it, if there is one.
fn source(table: Map<String, Value>) -> Result<SecretSource, String> {
    if let Some(key) = table.keys().find(|key| !matches!(key.as_str(), "env" | "file")) {
        return Err(format!("there is no key {key:?} here: {USE_ONE}"));
    }
    match (table.get("env"), table.get("file")) {
        (Some(Value::String(name)), None) => Ok(SecretSource::Env(name.clone())),
        (None, Some(Value::String(path))) => Ok(SecretSource::File(path.into())),
        (Some(_), Some(_)) => Err("env and file are both there: use one of them".into()),
        (Some(_), None) => Err("env: it is no text: use a variable's name".into()),
        (None, Some(_)) => Err("file: it is no text: use a path".into()),
        (None, None) => Err(format!("it is empty: {USE_ONE}")),
    }
}
