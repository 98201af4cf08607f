//! What is added to a request so that the bank knows who asks.
//!
//! Every secret that is added is named to the transcript first, so that it is stored nowhere. Where the bank refuses a
//! request with 401 and there are newer credentials than those that it was sent with (a file was renewed, a token can be
//! asked for), it is sent once more with those. No other status means that: 403 says that the credentials are good.
//!
//! - `secret.rs`: where secrets come from
//! - `oauth2.rs`: the token endpoint; `refresh.rs`: the refresh token and its file
//! - `cache.rs`: the token that tasks share, pure but for the clock

mod cache;
mod config;
mod oauth2;
mod refresh;
mod secret;

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::config::Config;
use super::expression::Names;
use super::template::Template;
use crate::integration::transport::{Request, Transport};
use crate::integration::{Context, Error, Invalid};
use cache::Access;
use oauth2::Oauth2;
use secret::{Lookup, Name, Secret, same};

pub(super) use secret::Offline;

pub use config::{
    ApiKeyConfig, AuthConfig, BasicConfig, BearerConfig, ClientAuthentication, Grant, Oauth2Config, RefreshSource,
    SecretSource, Text,
};

/// The credentials of one integration, shared by its tasks.
pub(super) struct Auth {
    kind: Kind,
}

enum Kind {
    None,
    Bearer(Secret),
    /// A token that comes with the task.
    OfTask(Template),
    Basic {
        username: Name,
        password: Secret,
    },
    ApiKey {
        place: Place,
        key: Secret,
    },
    Oauth2(Arc<Oauth2>),
}

enum Place {
    Header(String),
    Query(String),
}

/// What one request was sent with.
pub(super) struct Used {
    credentials: Credentials,
}

enum Credentials {
    Nothing,
    Secret(SecretString),
    Access(Arc<Access>),
}

impl Auth {
    /// Looks up what the configuration names. Tokens are asked for over `transport`;
    /// `label` is the integration in metrics.
    pub(super) fn new(
        label: &str,
        config: &Config,
        transport: &Transport,
        lookup: &impl Lookup,
    ) -> Result<Self, Invalid> {
        let kind = match (&config.token, &config.auth) {
            (None, None) => return Ok(Auth { kind: Kind::None }),
            (Some(_), Some(_)) => {
                return Err(Invalid::new("token", "there is auth, too: use one of both; token is short for a bearer"));
            }
            (Some(source), None) => Kind::Bearer(Secret::find("token", source, lookup)?),
            (None, Some(auth)) => {
                Kind::find(label, auth, transport, lookup).map_err(|invalid| invalid.within("auth"))?
            }
        };
        let header = kind.header();
        match config.headers.keys().find(|name| header.is_some_and(|header| name.eq_ignore_ascii_case(header))) {
            Some(name) => Err(Invalid::new(format!("headers.{name}"), "it is what auth sends: leave it out here")),
            None => Ok(Auth { kind }),
        }
    }

    /// Names the credentials that come with the task as secrets, for a run may end before it sends any.
    pub(super) fn name_secrets(&self, context: &Context) {
        /// A part of a token that is shorter stands in other places by chance.
        const MIN_PART_BYTES: usize = 4;
        let Kind::OfTask(template) = &self.kind else { return };
        if let Ok(token) = template.text(&super::scope(context, &[]))
            && !token.trim().is_empty()
        {
            context.secret(token);
        }
        let mut paths = template.inputs().peekable();
        if paths.peek().is_none() {
            return;
        }
        let Ok(input) = serde_json::from_str::<Value>(context.task().input.as_str()) else { return };
        for path in paths {
            let part = path.split('.').try_fold(&input, |value, key| value.get(key)).and_then(Value::as_str);
            if let Some(part) = part.filter(|part| part.len() >= MIN_PART_BYTES) {
                context.secret(part);
            }
        }
    }

    /// The request with credentials, and what they were.
    pub(super) async fn authorize(&self, context: &Context, request: Request) -> Result<(Request, Used), Error> {
        let credentials = self.kind.credentials(context).await.map_err(|error| error.within("auth"))?;
        let secret = match &credentials {
            Credentials::Nothing => return Ok((request, Used { credentials })),
            Credentials::Secret(secret) => secret.expose_secret(),
            Credentials::Access(access) => access.token.expose_secret(),
        };
        if secret.trim().is_empty() {
            return Err(Error::permanent("auth: the token is empty, so nothing was sent with it"));
        }
        context.secret(secret);
        let request = match &self.kind {
            Kind::ApiKey { place: Place::Header(name), .. } => request.header(&**name, secret),
            Kind::ApiKey { place: Place::Query(name), .. } => request.query(name, secret),
            Kind::Basic { .. } => request.header("authorization", format!("Basic {secret}")),
            _ => request.header("authorization", format!("Bearer {secret}")),
        };
        Ok((request, Used { credentials }))
    }

    /// Hears the status of what was sent with `used`. Says whether the same should be sent once more, because there are
    /// newer credentials than those.
    pub(super) async fn answered(&self, context: &Context, used: &Used, status: u16) -> bool {
        match (&self.kind, &used.credentials) {
            (_, Credentials::Access(access)) if status != 401 => {
                access.accepted();
                false
            }
            (Kind::Oauth2(oauth2), Credentials::Access(access)) => oauth2.refused(access),
            (_, Credentials::Secret(secret)) if status == 401 => match self.kind.credentials(context).await {
                Ok(Credentials::Secret(now)) => !same(&now, secret),
                _ => false,
            },
            _ => false,
        }
    }
}

impl Kind {
    fn find(label: &str, config: &AuthConfig, transport: &Transport, lookup: &impl Lookup) -> Result<Self, Invalid> {
        match config {
            AuthConfig::Bearer(BearerConfig { token: Text::From(source) }) => {
                Secret::find("token", source, lookup).map(Kind::Bearer)
            }
            AuthConfig::Bearer(BearerConfig { token: Text::Plain(text) }) => token_of_task(text).map(Kind::OfTask),
            AuthConfig::Basic(BasicConfig { username, password }) => {
                if matches!(username, Text::Plain(name) if name.contains(':')) {
                    return Err(Invalid::new("username", "it has a colon, which no user of RFC 7617 can have"));
                }
                let username = Name::find("username", username, lookup)?;
                Ok(Kind::Basic { username, password: Secret::find("password", password, lookup)? })
            }
            AuthConfig::ApiKey(ApiKeyConfig { header, query, key }) => {
                let place = match (header, query) {
                    (Some(header), None) => Place::Header(check_header(header)?),
                    (None, Some(query)) if !query.is_empty() => Place::Query(query.clone()),
                    _ => {
                        let problem =
                            "say where the key is sent: use one of header = \"x-api-key\" and query = \"api_key\"";
                        return Err(Invalid::new("header", problem));
                    }
                };
                Ok(Kind::ApiKey { place, key: Secret::find("key", key, lookup)? })
            }
            AuthConfig::Oauth2(config) => {
                Oauth2::new(label, config, transport.clone(), lookup).map(|oauth2| Kind::Oauth2(Arc::new(oauth2)))
            }
        }
    }

    /// The header that it sends.
    fn header(&self) -> Option<&str> {
        match self {
            Kind::None | Kind::ApiKey { place: Place::Query(_), .. } => None,
            Kind::ApiKey { place: Place::Header(name), .. } => Some(name),
            Kind::Bearer(_) | Kind::OfTask(_) | Kind::Basic { .. } | Kind::Oauth2(_) => Some("authorization"),
        }
    }

    async fn credentials(&self, context: &Context) -> Result<Credentials, Error> {
        match self {
            Kind::None => Ok(Credentials::Nothing),
            Kind::Bearer(secret) | Kind::ApiKey { key: secret, .. } => secret.read().await.map(Credentials::Secret),
            Kind::OfTask(template) => {
                let token = template.text(&super::scope(context, &[]));
                let token = token.map_err(|problem| Error::permanent(format!("token: {problem}")))?;
                Ok(Credentials::Secret(token.into()))
            }
            Kind::Basic { username, password } => {
                let (username, password) = (username.read().await?, password.read().await?);
                context.secret(password.expose_secret());
                let pair = format!("{}:{}", username.expose_secret(), password.expose_secret());
                Ok(Credentials::Secret(BASE64_STANDARD.encode(pair).into()))
            }
            Kind::Oauth2(oauth2) => oauth2.token(context).await.map(Credentials::Access),
        }
    }
}

/// A token that comes with the task: a template, for the configuration itself holds no secrets.
fn token_of_task(text: &str) -> Result<Template, Invalid> {
    let refused = |problem: String| Invalid::new("token", problem);
    let template = Template::compile(text, Names::default()).map_err(refused)?;
    let is_one = text.trim().starts_with("{{") && template.literals().next().is_none();
    // A text without an expression is a token, and so is not shown.
    let example = "use { env = … }, { file = … }, or \"{{ input.access_token }}\" for one that comes with the task";
    if is_one { Ok(template) } else { Err(refused(format!("it is not one expression: {example}"))) }
}

fn check_header(name: &str) -> Result<String, Invalid> {
    match Request::get("http://localhost/").header(name, "x").check() {
        Ok(()) => Ok(name.to_ascii_lowercase()),
        Err(problem) => Err(Invalid::new("header", format!("{problem}: use one such as \"x-api-key\""))),
    }
}

#[cfg(test)]
mod tests;
