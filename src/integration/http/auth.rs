//! What is added to a request so that the bank knows who asks.
//!
//! Every secret that is added is named to the transcript first, so that it is stored nowhere.

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use tokio::io::AsyncReadExt;

use super::config::{Config, TokenSource};
use crate::integration::transport::Request;
use crate::integration::{Context, Error, Invalid};

/// The longest token; HTTP servers take about this much in all headers.
const MAX_TOKEN_BYTES: u64 = 16 * 1024;

/// The credentials of one integration, shared by its tasks.
pub(super) struct Auth {
    token: Token,
}

/// What one request was sent with.
pub(super) struct Used {
    token: Option<SecretString>,
}

enum Token {
    None,
    Fixed(SecretString),
    File(PathBuf),
}

impl Auth {
    /// Looks up what the configuration names; `variable` reads the environment.
    pub(super) fn new(config: &Config, variable: impl Fn(&str) -> Option<String>) -> Result<Self, Invalid> {
        Ok(Auth { token: Token::find(config.token.as_ref(), variable)? })
    }

    /// The request with credentials, and what they were.
    pub(super) async fn authorize(&self, context: &Context, request: Request) -> Result<(Request, Used), Error> {
        let Some(token) = self.token.read().await? else { return Ok((request, Used { token: None })) };
        context.secret(token.expose_secret());
        let request = request.header("authorization", format!("Bearer {}", token.expose_secret()));
        Ok((request, Used { token: Some(token) }))
    }

    /// Whether there are newer credentials than those that were used, after the bank has refused them with 401.
    pub(super) async fn renew(&self, _context: &Context, used: &Used) -> Result<bool, Error> {
        let now = self.token.read().await?;
        let exposed = |token: &Option<SecretString>| token.as_ref().map(|token| token.expose_secret().to_owned());
        Ok(exposed(&now) != exposed(&used.token))
    }
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
mod tests {
    use super::*;

    #[test]
    fn tokens_from_the_environment_are_looked_up_at_boot() {
        let source = TokenSource::Env("BANK_TOKEN".into());
        let found =
            Token::find(Some(&source), |name| (name == "BANK_TOKEN").then(|| " t\n".into())).expect("it is set");
        assert!(matches!(found, Token::Fixed(token) if token.expose_secret() == "t"));
        let error = Token::find(Some(&source), |_| None).err().expect("it is not set").to_string();
        assert_eq!(error, "token.env: the environment has no \"BANK_TOKEN\": set it to the token");
    }
}
