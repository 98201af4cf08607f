//! The refresh token of a person's consent, in the file that keeps it.
//!
//! A bank may answer each use with another refresh token, and the old one is void from then on (RFC 6749, section 6): to
//! lose the new one is to lose the consent. So it is written back before anything else happens: to a file beside the old
//! one, synced, which then takes its place. Where that fails, the new one is kept in memory and written at the next
//! occasion, and the log says so.

use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::AsyncWriteExt;

use super::secret::{check_file, read_file, same, stand_in};
use crate::integration::{Error, Invalid};

pub(super) struct RefreshToken {
    /// None for one that is not kept.
    path: Option<PathBuf>,
    /// One that could not be written.
    unwritten: Mutex<Option<SecretString>>,
}

impl RefreshToken {
    /// For the configuration's key `key`; that its directory can be written is tried out now.
    pub(super) fn find(key: &str, path: &Path) -> Result<Self, Invalid> {
        check_file(key, path)?;
        let unwritable = |error: io::Error| {
            let problem = format!(
                "the directory of {path:?} cannot be written: {error}; a new refresh token is written there, so use one \
                 that can"
            );
            Invalid::new(format!("{key}.file"), problem)
        };
        // The file itself, not a link to it, is what is replaced.
        let path = path.canonicalize().map_err(unwritable)?;
        let trial = beside(&path);
        std::fs::write(&trial, "").and_then(|()| std::fs::remove_file(&trial)).map_err(unwritable)?;
        Ok(RefreshToken { path: Some(path), unwritten: Mutex::default() })
    }

    /// One that stands for another, and is written nowhere.
    pub(super) fn stand_in() -> Self {
        RefreshToken { path: None, unwritten: Mutex::default() }
    }

    /// The latest one.
    pub(super) async fn read(&self) -> Result<SecretString, Error> {
        let unwritten = self.unwritten.lock().clone();
        match (unwritten, &self.path) {
            (Some(token), _) => {
                self.replace(token.clone()).await;
                Ok(token)
            }
            (None, Some(path)) => read_file(path).await,
            (None, None) => Ok(stand_in()),
        }
    }

    /// Keeps `new` in place of `used`, if it is another one.
    pub(super) async fn rotate(&self, used: &SecretString, new: SecretString) {
        if !same(used, &new) {
            self.replace(new).await;
        }
    }

    async fn replace(&self, token: SecretString) {
        let Some(path) = &self.path else { return };
        let written = write(path, token.expose_secret()).await;
        if let Err(error) = &written {
            let path = path.display();
            tracing::error!(
                %path,
                "the new refresh token cannot be written: {error}; it is lost when the worker stops before it can be"
            );
        }
        *self.unwritten.lock() = written.is_err().then_some(token);
    }
}

async fn write(path: &Path, token: &str) -> io::Result<()> {
    let new = beside(path);
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    options.mode(0o600);
    let mut file = options.open(&new).await?;
    file.write_all(token.as_bytes()).await?;
    file.sync_all().await?;
    tokio::fs::set_permissions(&new, tokio::fs::metadata(path).await?.permissions()).await?;
    tokio::fs::rename(&new, path).await?;
    match path.parent() {
        Some(directory) => tokio::fs::File::open(directory).await?.sync_all().await,
        None => Ok(()),
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(token: &SecretString) -> &str {
        token.expose_secret()
    }

    #[tokio::test]
    async fn a_new_token_takes_the_files_place_and_its_permissions() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, link) = (directory.path().join("token"), directory.path().join("link"));
        std::fs::write(&path, "one\n").expect("written");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        let refresh = RefreshToken::find("auth.refresh_token", &link).expect("it is there");
        let used = refresh.read().await.expect("readable");
        assert_eq!(text(&used), "one");
        refresh.rotate(&used, "two".into()).await;
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "two");
        assert!(link.is_symlink(), "the link stays");
        assert_eq!(text(&refresh.read().await.expect("readable")), "two");
        assert_eq!(std::fs::read_dir(directory.path()).expect("listed").count(), 2, "nothing is left beside it");
    }

    #[tokio::test]
    async fn a_token_that_cannot_be_written_is_kept_and_written_later() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        std::fs::write(&path, "one").expect("written");
        let refresh = RefreshToken::find("auth.refresh_token", &path).expect("it is there");
        let blocker = beside(&path.canonicalize().expect("a path"));
        std::fs::create_dir(&blocker).expect("in the way");
        refresh.rotate(&"one".into(), "two".into()).await;
        assert_eq!(text(&refresh.read().await.expect("kept")), "two");
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "one");
        std::fs::remove_dir(&blocker).expect("out of the way");
        assert_eq!(text(&refresh.read().await.expect("kept")), "two");
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "two", "written at the next occasion");
    }

    #[test]
    fn what_cannot_be_written_is_refused_at_boot() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("token");
        let error = |path: &Path| RefreshToken::find("auth.refresh_token", path).err().expect("refused").to_string();
        assert!(error(&path).starts_with("auth.refresh_token.file: "), "{}", error(&path));
        std::fs::write(&path, "one").expect("written");
        std::fs::create_dir(beside(&path.canonicalize().expect("a path"))).expect("in the way");
        assert!(error(&path).contains("cannot be written"), "{}", error(&path));
    }
}
