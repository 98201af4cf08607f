//! The document in a file.
//!
//! The file's content is read four times a second and compared. That is a few microseconds of work, and it sees every
//! way in which files change: an atomic rename, a symlink swapped under it (Kubernetes' ConfigMaps), a rewrite in
//! place, a network file system. Notifications of the kernel follow inodes and miss some of these.
//!
//! A document that does not parse, or a file that is away, counts only when it is still so at the next look: a writer
//! may be half-way. Who changes it with weir holds a lock beside it (`settings.json.lock`) and leaves the change in a
//! history beside it (`settings.json.history`, a JSON object a line).

use std::fmt;
use std::fs::{self, Metadata, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::flagd::Document;
use super::store::{
    Edit, FOUND, HISTORY, MAX_DOCUMENT_BYTES, ReadError, Reading, Revision, Store, UNKNOWN, WriteError, within_limit,
};
use super::targeting::Context;
use super::{Rejection, Settings};
use crate::lifecycle::Lifecycle;

/// Time between two looks. With one more for a document that was half-written, a change applies within a second.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How long a change waits for another one, which takes no longer than a write to the disk.
const LOCKED_WITHIN: Duration = Duration::from_secs(10);

/// A document in a file.
pub struct File {
    path: PathBuf,
    lifecycle: Lifecycle,
}

impl File {
    /// The document at that path; reads and writes run on `lifecycle`.
    pub fn new(path: PathBuf, lifecycle: Lifecycle) -> Self {
        File { path, lifecycle }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> T + Send + 'static,
        failed: impl FnOnce(String) -> T,
    ) -> T {
        let path = self.path.clone();
        let done = self.lifecycle.blocking("settings file", move || work(&path)).await;
        done.unwrap_or_else(|error| failed(error.to_string()))
    }
}

#[async_trait]
impl Store for File {
    fn name(&self) -> String {
        format!("file {}", std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone()).display())
    }

    fn read_at_start(&self) -> Option<Reading> {
        Some(read(&self.path))
    }

    async fn read(&self) -> Reading {
        self.blocking(read, |reason| Err(ReadError::Failed(reason))).await
    }

    async fn wait(&self) {
        tokio::time::sleep(POLL_INTERVAL).await;
    }

    fn may_be_partial(&self) -> bool {
        true
    }

    async fn write(&self, expected: Option<&[u8]>, edit: &Edit) -> Result<u64, WriteError> {
        let (expected, edit) = (expected.map(<[u8]>::to_vec), edit.clone());
        self.blocking(move |path| write(path, expected.as_deref(), edit), |reason| Err(WriteError::Failed(reason)))
            .await
    }

    async fn history(&self) -> Result<Vec<Revision>, ReadError> {
        self.blocking(|path| read_history(path).map_err(ReadError::Failed), |reason| Err(ReadError::Failed(reason)))
            .await
    }
}

/// Reads the file once, and [examines](super::examine) the document in it.
pub fn examine(path: &Path, start: &Settings, context: &Context) -> Result<(Settings, Vec<Rejection>), String> {
    let document = Document::read(&read(path).map_err(|error| error.to_string())?)?;
    Ok(super::examine(&document, start, context))
}

/// Replaces a file's content in one step, so that no reader sees half of it, and none is left after a loss of power. Who
/// could read what was there can read what takes its place.
pub fn write_file(path: &Path, text: &str) -> io::Result<()> {
    write_like(path, path, text)
}

/// The same of a file that is new, for those who can read `model`.
fn write_like(model: &Path, path: &Path, text: &str) -> io::Result<()> {
    let temporary = beside(path, &format!(".{}.tmp", std::process::id()))?;
    let mut file = fs::File::create(&temporary)?;
    if let Ok(model) = fs::metadata(path).or_else(|_| fs::metadata(model)) {
        make_like(&file, &model);
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(temporary, path)
}

/// Gives a file the owner, the group and the mode of another, as far as that may be.
fn make_like(file: &fs::File, model: &Metadata) {
    // Only root can give a file away; the group can be kept by its members.
    if fchown(file, Some(model.uid()), Some(model.gid())).is_err() {
        let _ = fchown(file, None, Some(model.gid()));
    }
    // Not all file systems have modes.
    let _ = file.set_permissions(Permissions::from_mode(model.mode() & 0o7777));
}

/// Takes the lock of a document, for those who can read it, when whoever holds it lets go `within` that time.
fn lock(path: &Path, within: Duration) -> Result<fs::File, String> {
    let of = |path: &Path, error: &dyn fmt::Display| format!("its lock {}: {error}", path.display());
    let lock = beside(path, ".lock").map_err(|error| of(path, &error))?;
    let failed = |error: io::Error| of(&lock, &error);
    let writable = || fs::File::options().write(true).open(&lock);
    let file = match writable() {
        // Most file systems lock what is only read, too.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => fs::File::open(&lock).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let file = fs::File::options().write(true).create(true).truncate(false).open(&lock).map_err(failed)?;
            if let Ok(model) = fs::metadata(path) {
                make_like(&file, &model);
            }
            file
        }
        opened => opened.map_err(failed)?,
    };
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if began.elapsed() < within => std::thread::sleep(POLL_INTERVAL / 10),
            Err(TryLockError::WouldBlock) => {
                let within = humantime::format_duration(within);
                return Err(format!("somebody else holds {} for longer than {within}", lock.display()));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

/// Where a chain of links ends, also where nothing is there.
fn behind_links(path: &Path) -> PathBuf {
    // As many as the kernel follows.
    const MOST: usize = 40;
    let mut end = path.to_owned();
    for _ in 0..MOST {
        let Ok(next) = fs::read_link(&end) else { break };
        end = end.parent().map_or_else(|| next.clone(), |directory| directory.join(&next));
    }
    end
}

fn beside(path: &Path, ending: &str) -> io::Result<PathBuf> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(ending);
    Ok(path.with_file_name(name))
}

fn read(path: &Path) -> Reading {
    let reading = || -> io::Result<(Vec<u8>, Option<u64>)> {
        // Opening a pipe would wait for its writer.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        let (file, mut document) = (fs::File::open(path)?, Vec::new());
        let bytes = file.metadata()?.len();
        file.take(MAX_DOCUMENT_BYTES as u64 + 1).read_to_end(&mut document)?;
        // It may have grown since.
        Ok((document, Some(bytes).filter(|bytes| *bytes > MAX_DOCUMENT_BYTES as u64)))
    };
    match reading() {
        Ok((document, bytes)) => within_limit(document, bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ReadError::Missing),
        Err(error) => Err(ReadError::Failed(error.to_string())),
    }
}

/// A line of the history.
#[derive(Serialize, Deserialize)]
struct Line {
    revision: u64,
    /// Unix time in milliseconds.
    at_ms: u64,
    who: String,
    why: String,
    document: String,
}

fn write(path: &Path, expected: Option<&[u8]>, edit: Edit) -> Result<u64, WriteError> {
    edit.check()?;
    let failed = |error: io::Error| WriteError::Failed(format!("{}: {error}", path.display()));
    // A link is kept, and what it leads to is replaced.
    let path = behind_links(path);
    let _lock = lock(&path, LOCKED_WITHIN).map_err(WriteError::Failed)?;
    let current = match read(&path) {
        Ok(document) => Some(document),
        Err(ReadError::Missing) => None,
        Err(ReadError::TooLarge(found)) => Some(found.beginning),
        Err(error) => return Err(WriteError::Failed(error.to_string())),
    };
    if current.as_deref() != expected {
        return Err(WriteError::Conflict);
    }
    let mut history = read_history(&path).map_err(WriteError::Failed)?;
    let known = history.last().map(|last| last.edit.document.clone());
    let mut note = |edit: Edit| {
        let number = history.last().map_or(1, |last| last.number + 1);
        history.push(Revision { number, at: SystemTime::now(), edit });
        number
    };
    // What somebody else has put there can be gone back to, if anybody would take it.
    let is_known = |document: &[u8]| known.as_deref().is_some_and(|known| known.as_bytes() == document);
    let is_new = |document: &Vec<u8>| document.len() <= MAX_DOCUMENT_BYTES && !is_known(document);
    if let Some(document) = current.filter(is_new) {
        let document = String::from_utf8_lossy(&document).into_owned();
        note(Edit { document, who: UNKNOWN.into(), why: FOUND.into() });
    }
    write_file(&path, &edit.document).map_err(failed)?;
    let number = note(edit);
    write_history(&path, &history[history.len().saturating_sub(HISTORY)..]).map_err(failed)?;
    Ok(number)
}

fn read_history(path: &Path) -> Result<Vec<Revision>, String> {
    let path = beside(&behind_links(path), ".history");
    let path = path.map_err(|error| error.to_string())?;
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    let revision = |line: &str| {
        let Line { revision, at_ms, who, why, document } = serde_json::from_str(line)?;
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms);
        Ok(Revision { number: revision, at, edit: Edit { document, who, why } })
    };
    let lines = text.lines().map(revision).collect::<Result<_, serde_json::Error>>();
    lines.map_err(|error| format!("{} is damaged; move it away: {error}", path.display()))
}

fn write_history(path: &Path, history: &[Revision]) -> io::Result<()> {
    let mut text = String::new();
    for Revision { number, at, edit: Edit { document, who, why } } in history {
        let at_ms = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let (who, why, document) = (who.clone(), why.clone(), document.clone());
        text.push_str(&serde_json::to_string(&Line { revision: *number, at_ms, who, why, document })?);
        text.push('\n');
    }
    write_like(path, &beside(path, ".history")?, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(document: &str) -> Edit {
        Edit { document: document.into(), who: "me".into(), why: "a test".into() }
    }

    #[test]
    fn who_writes_at_once_waits_for_the_other_and_nothing_is_lost() {
        const WRITERS: usize = 4;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("settings.json");
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let path = &path;
                scope.spawn(move || {
                    loop {
                        let found = read(path).ok();
                        match write(path, found.as_deref(), edit(&writer.to_string())) {
                            Err(WriteError::Conflict) => {}
                            written => break assert!(written.is_ok(), "{written:?}"),
                        }
                    }
                });
            }
        });
        let history = read_history(&path).expect("readable");
        assert_eq!(history.iter().map(|it| it.number).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let mut documents: Vec<_> = history.into_iter().map(|it| it.edit.document).collect();
        documents.sort();
        assert_eq!(documents, ["0", "1", "2", "3"]);
    }

    #[test]
    fn a_lock_that_is_held_for_too_long_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("settings.json");
        let held = lock(&path, Duration::ZERO).expect("nobody has it");
        let error = lock(&path, Duration::from_millis(50)).expect_err("it is held");
        assert!(error.contains("settings.json.lock for longer than 50ms"), "{error}");
        drop(held);
        lock(&path, Duration::ZERO).expect("nobody has it");
    }

    #[test]
    fn a_write_takes_the_place_of_what_was_expected_and_leaves_a_history() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("settings.json");
        std::fs::write(&path, "found").expect("written");
        assert_eq!(write(&path, None, edit("first")), Err(WriteError::Conflict));
        assert_eq!(write(&path, Some(b"other"), edit("first")), Err(WriteError::Conflict));
        assert_eq!(write(&path, Some(b"found"), edit("first")), Ok(2));
        assert_eq!(write(&path, Some(b"first"), edit("second")), Ok(3));
        assert_eq!(read(&path), Ok(b"second".to_vec()));
        let history = read_history(&path).expect("readable");
        let said: Vec<_> =
            history.iter().map(|it| (it.number, it.edit.document.as_str(), it.edit.who.as_str())).collect();
        assert_eq!(said, [(1, "found", UNKNOWN), (2, "first", "me"), (3, "second", "me")]);

        // By hand, and then with weir again: both are there.
        std::fs::write(&path, "by hand").expect("written");
        assert_eq!(write(&path, Some(b"by hand"), edit("third")), Ok(5));
        let last = read_history(&path).expect("readable").split_off(3);
        let said: Vec<_> = last.iter().map(|it| (it.edit.document.as_str(), it.edit.who.as_str())).collect();
        assert_eq!(said, [("by hand", UNKNOWN), ("third", "me")]);
    }

    #[test]
    fn a_link_is_kept_and_leads_to_the_history_also_when_its_target_is_gone() {
        let directory = tempfile::tempdir().expect("a directory");
        let (link, middle) = (directory.path().join("settings.json"), directory.path().join("..data"));
        let target = directory.path().join("v1/settings.json");
        std::fs::create_dir(directory.path().join("v1")).expect("made");
        std::os::unix::fs::symlink("v1", &middle).expect("linked");
        std::os::unix::fs::symlink("..data/settings.json", &link).expect("linked");
        assert_eq!(write(&link, None, edit("first")), Ok(1));
        std::fs::remove_file(&target).expect("gone");
        assert_eq!(read_history(&link).expect("readable").len(), 1);
        assert_eq!(write(&link, None, edit("second")), Ok(2));
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&target).expect("there"), "second");
    }

    #[test]
    fn what_takes_the_place_of_a_file_can_be_read_by_whom_it_could() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("settings.json");
        assert_eq!(write(&path, None, edit("first")), Ok(1));
        for mode in [0o644, 0o640, 0o600, 0o666] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("set");
            let before = std::fs::read(&path).expect("there");
            write(&path, Some(&before), edit(&format!("{mode}"))).expect("written");
            for file in [path.clone(), beside(&path, ".history").expect("a name")] {
                assert_eq!(std::fs::metadata(&file).expect("there").mode() & 0o7777, mode, "{}", file.display());
            }
            // Who may read it may hold it.
            let lock = beside(&path, ".lock").expect("a name");
            std::fs::set_permissions(&lock, Permissions::from_mode(0o444)).expect("set");
            std::fs::remove_file(beside(&path, ".history").expect("a name")).expect("removed");
        }
    }

    #[test]
    fn a_history_has_an_end_and_a_damaged_one_stops_the_write() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("settings.json");
        for number in 1..=HISTORY as u64 + 5 {
            let before = (number > 1).then(|| format!("{}", number - 1));
            assert_eq!(write(&path, before.as_ref().map(String::as_bytes), edit(&number.to_string())), Ok(number));
        }
        let history = read_history(&path).expect("readable");
        assert_eq!((history.len(), history[0].number), (HISTORY, 6));
        std::fs::write(directory.path().join("settings.json.history"), "{").expect("written");
        let error = write(&path, Some(b"55"), edit("next")).expect_err("damaged").to_string();
        assert!(error.contains("is damaged; move it away"), "{error}");
    }

    #[test]
    fn what_is_too_large_is_not_written_and_is_replaced_by_what_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("settings.json");
        let large = " ".repeat(MAX_DOCUMENT_BYTES + 1);
        let refused = write(&path, None, edit(&large)).expect_err("too large").to_string();
        assert_eq!(refused, "nothing was written: the document has 1048577 bytes, and may have at most 1048576");
        assert_eq!(read(&path), Err(ReadError::Missing));
        std::fs::write(&path, format!("{large}, and more")).expect("written");
        let error = read(&path).expect_err("too large");
        assert_eq!(error.to_string(), "it has 1048587 bytes, and may have at most 1048576");
        let ReadError::TooLarge(found) = error else { panic!("{error}") };
        assert_eq!(write(&path, Some(&large.as_bytes()[1..]), edit("small")), Err(WriteError::Conflict));
        assert_eq!(write(&path, Some(&found.beginning), edit("small")), Ok(1), "it is not in the history");
        assert_eq!(read(&path), Ok(b"small".to_vec()));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link() {
        let directory = tempfile::tempdir().expect("a directory");
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        std::fs::write(&file, "before").expect("written");
        std::os::unix::fs::symlink("file", &link).expect("linked");
        assert_eq!(write(&link, Some(b"before"), edit("after")), Ok(2));
        assert!(std::fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(read(&file), Ok(b"after".to_vec()));
        assert_eq!(read_history(&link).expect("readable").len(), 2);
    }
}
