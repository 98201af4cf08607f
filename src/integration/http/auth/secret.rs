//! Secrets from where they are kept: the environment, or a file.
//!
//! A variable is read at boot. A file is read when it is used, so that whoever keeps it can renew it; that it is there is
//! checked at boot. Where nothing is sent to anybody, no secret is looked up at all: [`Offline`].

use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};
use tokio::io::AsyncReadExt;

use super::config::{SecretSource, Text};
use crate::integration::{Error, Invalid};

/// The longest secret; HTTP servers take about this much in all headers.
pub(super) const MAX_SECRET_BYTES: usize = 16 * 1024;

/// What is sent in place of each secret that was not looked up.
const STAND_IN: &str = "stand-in";

/// Where secrets are looked up: by their names in the environment, or not at all.
pub(in crate::integration::http) trait Lookup {
    /// The value of a variable.
    fn variable(&self, name: &str) -> Option<String>;

    /// Whether, and how, no secret is looked up.
    fn offline(&self) -> Option<Offline> {
        None
    }
}

impl<F: Fn(&str) -> Option<String>> Lookup for F {
    fn variable(&self, name: &str) -> Option<String> {
        self(name)
    }
}

/// No secret is looked up, no file of one is read or written.
#[derive(Debug, Clone, Copy)]
pub(in crate::integration::http) struct Offline {
    /// Whether there is an access token from the start, instead of one that is to be asked for.
    pub(in crate::integration::http) has_token: bool,
}

impl Lookup for Offline {
    fn variable(&self, _: &str) -> Option<String> {
        Some(STAND_IN.to_owned())
    }

    fn offline(&self) -> Option<Offline> {
        Some(*self)
    }
}

/// What is sent in place of a secret.
pub(super) fn stand_in() -> SecretString {
    STAND_IN.into()
}

pub(super) enum Secret {
    Fixed(SecretString),
    File(PathBuf),
}

/// A name that may be kept like a secret, such as a user's.
pub(super) enum Name {
    Plain(String),
    Kept(Secret),
}

impl Secret {
    /// Looks it up for the configuration's key `key`.
    pub(super) fn find(key: &str, source: &SecretSource, lookup: &impl Lookup) -> Result<Self, Invalid> {
        match source {
            _ if lookup.offline().is_some() => Ok(Secret::Fixed(stand_in())),
            SecretSource::Env(name) => match lookup.variable(name).map(|value| value.trim().to_owned()) {
                Some(value) if !value.is_empty() => Ok(Secret::Fixed(value.into())),
                _ => {
                    let problem = format!("the environment has no {name:?}: set it to the {}", noun(key));
                    Err(Invalid::new(format!("{key}.env"), problem))
                }
            },
            SecretSource::File(path) => check_file(key, path).map(|()| Secret::File(path.clone())),
        }
    }

    pub(super) async fn read(&self) -> Result<SecretString, Error> {
        match self {
            Secret::Fixed(secret) => Ok(secret.clone()),
            Secret::File(path) => read_file(path).await,
        }
    }
}

impl Name {
    pub(super) fn find(key: &str, text: &Text, lookup: &impl Lookup) -> Result<Self, Invalid> {
        match text {
            Text::Plain(text) if text.is_empty() => {
                Err(Invalid::new(key, format!("it is empty: use the {}, {{ env = … }} or {{ file = … }}", noun(key))))
            }
            Text::Plain(text) => Ok(Name::Plain(text.clone())),
            Text::From(source) => Secret::find(key, source, lookup).map(Name::Kept),
        }
    }

    pub(super) async fn read(&self) -> Result<SecretString, Error> {
        match self {
            Name::Plain(text) => Ok(text.as_str().into()),
            Name::Kept(secret) => secret.read().await,
        }
    }
}

/// That a file is there, for the configuration's key `key`.
pub(super) fn check_file(key: &str, path: &Path) -> Result<(), Invalid> {
    let problem = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => return Ok(()),
        Ok(_) => format!("{path:?} is no file: name one with the {}", noun(key)),
        Err(error) => format!("{path:?} cannot be read: {error}; name a file with the {}", noun(key)),
    };
    Err(Invalid::new(format!("{key}.file"), problem))
}

/// A file's text, without the space around it.
pub(super) async fn read_file(path: &Path) -> Result<SecretString, Error> {
    let unreadable = |problem: String| Error::retryable(format!("the file {path:?} {problem}"));
    let mut text = String::new();
    let read = async {
        let file = tokio::fs::File::open(path).await?;
        file.take(MAX_SECRET_BYTES as u64 + 1).read_to_string(&mut text).await
    };
    read.await.map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    match text.trim() {
        "" => Err(unreadable("is empty".into())),
        _ if text.len() > MAX_SECRET_BYTES => Err(unreadable(format!("has more than {MAX_SECRET_BYTES} bytes"))),
        secret => Ok(secret.into()),
    }
}

/// What a key asks for, in words: `auth.client_secret` asks for a client secret.
fn noun(key: &str) -> String {
    key.rsplit('.').next().unwrap_or(key).replace('_', " ")
}

/// Whether two secrets are the same.
pub(super) fn same(one: &SecretString, other: &SecretString) -> bool {
    one.expose_secret() == other.expose_secret()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn secrets_from_the_environment_are_looked_up_at_boot() {
        let source = SecretSource::Env("BANK_TOKEN".into());
        let found = Secret::find("token", &source, &|name: &str| (name == "BANK_TOKEN").then(|| " t\n".into()));
        assert_eq!(found.expect("it is set").read().await.expect("it is fixed").expose_secret(), "t");
        let error =
            Secret::find("auth.client_secret", &source, &|_: &str| None).err().expect("it is not set").to_string();
        assert_eq!(error, "auth.client_secret.env: the environment has no \"BANK_TOKEN\": set it to the client secret");
    }

    #[tokio::test]
    async fn offline_nothing_is_looked_up() {
        let offline = Offline { has_token: false };
        for source in [SecretSource::Env("NOT_SET".into()), SecretSource::File("/not/there".into())] {
            let secret = Secret::find("token", &source, &offline).expect("no secret is needed");
            assert_eq!(secret.read().await.expect("it is fixed").expose_secret(), STAND_IN);
        }
    }

    #[tokio::test]
    async fn files_are_read_when_they_are_used_up_to_a_limit() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let secret =
            Secret::find("token", &SecretSource::File(file.path().into()), &|_: &str| None).expect("it is there");
        for (text, result) in [(" one \n", Ok("one")), ("two", Ok("two")), (" ", Err("is empty"))] {
            std::fs::write(file.path(), text).expect("written");
            match (secret.read().await, result) {
                (Ok(secret), Ok(expected)) => assert_eq!(secret.expose_secret(), expected),
                (Err(error), Err(says)) => assert!(error.message.contains(says), "{error}"),
                _ => panic!("{text:?}"),
            }
        }
        std::fs::write(file.path(), "x".repeat(MAX_SECRET_BYTES + 1)).expect("written");
        assert!(secret.read().await.expect_err("too long").message.contains("more than 16384 bytes"));
    }
}
