//! Payloads on disk, redacted and encoded, until the store can take them.
//!
//! What the store does not take now is written here and uploaded later, by this process or by the next: under the same
//! key, which lies beside the body, so that nothing is ever stored twice. The spool is bounded by bytes and by age. A
//! disk that is full, read-only or broken is no error for anybody: it is a counted loss, a gauge that says so, and the
//! spool is tried again with the next payload.

mod berth;
mod file;
mod index;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::berth::Berth;
pub(super) use self::file::ReadError;
pub(super) use self::index::Entry;
use self::index::{Index, Name};
use super::ConfigError;
use super::sample::Value;
use super::store::Object;

/// How often a spool that could not be opened is tried again.
const OPEN_INTERVAL: Duration = Duration::from_secs(5);

/// Payloads that are removed for their age at a time.
const MAX_EXPIRED: usize = 1_000;

/// Where the spool is and how much it may hold.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A directory, made when it is not there; none for no spool. Several workers may share one.
    pub path: Option<PathBuf>,
    /// The most bytes in it.
    pub max_bytes: u64,
    /// How long a payload stays in it at most.
    #[serde(with = "humantime_serde")]
    pub max_age: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config { path: None, max_bytes: 1 << 30, max_age: Duration::from_secs(24 * 3600) }
    }
}

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(ConfigError::new("spool.path", "empty", "name a directory, or leave it out for no spool"));
        }
        if !(1..=1 << 50).contains(&self.max_bytes) {
            return Err(ConfigError::new("spool.max_bytes", self.max_bytes, format!("use 1 to {}", 1u64 << 50)));
        }
        if self.max_age.is_zero() {
            return Err(ConfigError::new("spool.max_age", "0s", "use more than 0, such as \"24h\""));
        }
        Ok(())
    }
}

/// Why a payload was not spooled.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpoolError {
    /// There is no room for it.
    #[error("the spool is full")]
    Full,
    /// The disk did not take it.
    #[error("the spool cannot be written: {0}")]
    Disk(#[from] io::Error),
}

/// Payloads of an earlier life; they take room at once, and wait for their turn when they have been
/// [`Spool::admit`]ted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Left(Vec<(Name, u64)>);

impl Left {
    /// How many they are.
    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }
}

/// What came of writing one.
pub(super) struct Written {
    /// Payloads that gave way.
    pub evicted: u64,
    /// The payload, to be [`Spool::publish`]ed when it has been counted.
    pub entry: Result<(Name, u64), SpoolError>,
}

/// The spool of one process.
pub(super) struct Spool {
    path: PathBuf,
    max_bytes: u64,
    max_age: Duration,
    state: Mutex<State>,
}

struct State {
    berth: Option<Arc<Berth>>,
    index: Index,
    try_again: Option<Instant>,
    /// Nothing is read before then, for the disk failed.
    read_again: Option<Instant>,
    is_writable: bool,
    is_closed: bool,
}

/// Numbers for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    pub bytes: u64,
    pub is_writable: bool,
}

impl Spool {
    /// The spool that the settings name, if they name one. Touches nothing yet.
    pub fn new(config: &Config) -> Option<Self> {
        let state = State {
            berth: None,
            index: Index::new(config.max_bytes),
            try_again: None,
            read_again: None,
            is_writable: false,
            is_closed: false,
        };
        let path = config.path.clone()?;
        Some(Spool { path, max_bytes: config.max_bytes, max_age: config.max_age, state: Mutex::new(state) })
    }

    /// Opens it, unless it is open; returns what an earlier life has left in it. One that cannot be opened is tried again
    /// every now and then.
    pub fn open(&self) -> Left {
        let (mut state, now) = (self.state.lock(), Instant::now());
        if state.berth.is_some() || state.is_closed || state.try_again.is_some_and(|at| now < at) {
            return Left::default();
        }
        state.try_again = Some(now + OPEN_INTERVAL);
        let (berth, found) = match Berth::claim(&self.path, self.max_bytes) {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::warn!(spool = %self.path.display(), "payloads cannot be spooled: {error}");
                return Left::default();
            }
        };
        if found.foreign > 0 {
            let (foreign, directory) = (found.foreign, berth.path.display());
            tracing::warn!(%directory, foreign, "there are files in the spool that are not weir's; they stay");
        }
        found.payloads.iter().for_each(|(_, bytes)| state.index.hold(*bytes));
        state.berth = Some(Arc::new(berth));
        state.is_writable = true;
        Left(found.payloads)
    }

    /// What an earlier life left has been counted: it can be taken out from now on. Returns how many of them are given
    /// up, because they are more than the spool may hold.
    pub fn admit(&self, left: Left) -> u64 {
        let (too_many, berth) = {
            let mut state = self.state.lock();
            left.0.into_iter().for_each(|(name, bytes)| state.index.admit(name, bytes));
            (state.index.trim(), state.berth.clone())
        };
        for name in &too_many {
            berth.iter().for_each(|berth| self.unlink(berth, *name));
        }
        too_many.len() as u64
    }

    /// Writes one, if there is room for it.
    pub fn write(&self, object: &Object, value: Value) -> Written {
        let berth = match self.berth() {
            Ok(berth) => berth,
            Err(error) => return Written { evicted: 0, entry: Err(error.into()) },
        };
        let mut written = Written { evicted: 0, entry: Err(SpoolError::Full) };
        let head = match file::head(object) {
            Ok(head) => head,
            Err(error) => return Written { entry: Err(io::Error::from(error).into()), ..written },
        };
        let bytes = head.len() as u64 + object.body.len();
        let Some(evicted) = self.state.lock().index.reserve(bytes, value) else { return written };
        written.evicted = evicted.len() as u64;
        for name in evicted {
            self.unlink(&berth, name);
        }
        let name = Name::new(SystemTime::now(), value, id(&object.key));
        let result = file::write(&berth.path, &name.to_string(), &head, &object.body);
        let mut state = self.state.lock();
        state.is_writable = result.is_ok();
        if result.is_err() {
            state.index.release(bytes);
        }
        written.entry = result.map(|()| (name, bytes)).map_err(SpoolError::from);
        written
    }

    /// What was written can be taken out from now on.
    pub fn publish(&self, (name, bytes): (Name, u64)) {
        self.state.lock().index.add(name, bytes);
    }

    /// Takes out the one whose turn it is. Its file stays until [`Spool::remove`]. None for a while when the disk fails.
    pub fn take(&self) -> Option<Entry> {
        let mut state = self.state.lock();
        if state.read_again.is_some_and(|at| Instant::now() < at) {
            return None;
        }
        state.index.take()
    }

    /// Reads one that was taken out. An error of the disk is no loss: the payload may be read later.
    pub fn read(&self, entry: &Entry) -> Result<Object, ReadError> {
        let berth = self.berth()?;
        let read = match file::read(&berth.path.join(entry.name.to_string()), entry.bytes) {
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound && berth.path.is_dir() => {
                Err(ReadError::Damaged("it is gone"))
            }
            read => read,
        };
        if let Err(ReadError::Io(_)) = read {
            let mut state = self.state.lock();
            state.is_writable = false;
            state.read_again = Some(Instant::now() + OPEN_INTERVAL);
        }
        read
    }

    /// One that was taken out waits again, in its old place.
    pub fn untake(&self, entry: Entry) {
        self.state.lock().index.untake(entry);
    }

    /// One that was taken out waits again, at the end of the line.
    pub fn put_back(&self, entry: Entry) {
        self.state.lock().index.put_back(entry);
    }

    /// One that was taken out is done with.
    pub fn remove(&self, entry: Entry) {
        if let Ok(berth) = self.berth() {
            self.unlink(&berth, entry.name);
        }
        self.state.lock().index.release(entry.bytes);
    }

    /// Takes out and removes those that are too old; returns how many they were.
    pub fn expire(&self) -> u64 {
        let mut count = 0;
        loop {
            let expired = self.state.lock().index.expired(SystemTime::now(), self.max_age, MAX_EXPIRED);
            if expired.is_empty() {
                return count;
            }
            count += expired.len() as u64;
            expired.into_iter().for_each(|entry| self.remove(entry));
        }
    }

    /// Leaves it to the next life: nothing is written or read any more.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.berth = None;
    }

    /// What it holds, and whether it works.
    pub fn load(&self) -> Load {
        let state = self.state.lock();
        Load { bytes: state.index.bytes(), is_writable: state.is_writable }
    }

    /// The directory, for people.
    pub fn location(&self) -> String {
        self.path.display().to_string()
    }

    /// This process's directory, where it is open.
    fn berth(&self) -> io::Result<Arc<Berth>> {
        let state = self.state.lock();
        state.berth.clone().ok_or_else(|| {
            let why = if state.is_closed { "is left to the next life" } else { "could not be opened" };
            io::Error::other(format!("{} {why}", self.path.display()))
        })
    }

    fn unlink(&self, berth: &Berth, name: Name) {
        let path = berth.path.join(name.to_string());
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file = %path.display(), "a spooled payload could not be removed: {error}");
                self.state.lock().is_writable = false;
            }
            _ => {}
        }
    }
}

/// A part of a name that tells two keys apart.
fn id(key: &str) -> u64 {
    use sha2::{Digest, Sha256};
    Sha256::digest(key)[..8].iter().fold(0, |id, byte| id << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::body::Body;

    fn spool(path: &std::path::Path, max_bytes: u64) -> Spool {
        Spool::new(&Config { path: Some(path.into()), max_bytes, ..Config::default() }).expect("a spool")
    }

    fn object(key: &str) -> Object {
        Object { key: key.into(), body: Body::from("body"), media_type: "text/plain".into(), metadata: Vec::new() }
    }

    /// Opens it; returns how many were left in it, and how many of them were given up.
    fn open(spool: &Spool) -> (u64, u64) {
        let left = spool.open();
        (left.count(), spool.admit(left))
    }

    fn put(spool: &Spool, key: &str) {
        let entry = spool.write(&object(key), Value::Ordinary).entry.expect("written");
        spool.publish(entry);
    }

    fn keys(spool: &Spool) -> Vec<String> {
        std::iter::from_fn(|| spool.take()).map(|entry| spool.read(&entry).expect("readable").key).collect()
    }

    #[test]
    fn the_next_life_finds_what_was_spooled_in_its_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = spool(directory.path(), 1 << 20);
        assert_eq!(open(&first), (0, 0));
        for key in ["a", "b", "c"] {
            put(&first, key);
            std::thread::sleep(Duration::from_millis(2));
        }
        let taken = first.take().expect("the oldest");
        first.remove(taken);
        let bytes = first.load().bytes;
        drop(first);
        let second = spool(directory.path(), 1 << 20);
        assert_eq!(open(&second), (2, 0));
        assert_eq!(second.load(), Load { bytes, is_writable: true });
        assert_eq!(keys(&second), ["b", "c"]);
    }

    #[test]
    fn a_full_spool_gives_up_the_oldest() {
        let directory = tempfile::tempdir().expect("a directory");
        let spool = spool(directory.path(), 700);
        open(&spool);
        let evicted: u64 = (0..9)
            .map(|n| {
                let written = spool.write(&object(&n.to_string()), Value::Ordinary);
                spool.publish(written.entry.expect("written"));
                written.evicted
            })
            .sum();
        assert!(evicted > 5 && spool.load().bytes <= 700, "{evicted} {:?}", spool.load());
        let files = std::fs::read_dir(directory.path().join("berth-0")).expect("a directory").count();
        assert_eq!(files as u64, 9 - evicted + 1, "and the lock");
        assert!(matches!(spool.write(&object(&"x".repeat(900)), Value::Failure).entry, Err(SpoolError::Full)));
    }

    #[test]
    fn damaged_files_are_told_from_whole_ones() {
        let directory = tempfile::tempdir().expect("a directory");
        let spool = spool(directory.path(), 1 << 20);
        open(&spool);
        put(&spool, "a");
        let entry = spool.take().expect("it");
        let path = directory.path().join("berth-0").join(entry.name.to_string());
        std::fs::write(&path, "weir.spool.v1 0\n{}\n").expect("written");
        assert!(matches!(spool.read(&entry), Err(ReadError::Damaged(_))));
        std::fs::remove_file(&path).expect("removed");
        assert!(matches!(spool.read(&entry), Err(ReadError::Damaged("it is gone"))));
        spool.remove(entry);
        assert_eq!(spool.load(), Load { bytes: 0, is_writable: true });
    }

    #[test]
    fn a_disk_that_cannot_be_read_for_a_while_costs_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let spool = spool(directory.path(), 1 << 20);
        open(&spool);
        put(&spool, "a");
        let (berth, aside) = (directory.path().join("berth-0"), directory.path().join("aside"));
        std::fs::rename(&berth, &aside).expect("moved");
        let entry = spool.take().expect("it");
        assert!(matches!(spool.read(&entry), Err(ReadError::Io(_))));
        spool.untake(entry);
        assert_eq!((spool.take(), spool.load().is_writable), (None, false));
        std::fs::rename(&aside, &berth).expect("moved back");
        spool.state.lock().read_again = None;
        assert_eq!(keys(&spool), ["a"]);
    }

    #[test]
    fn old_ones_are_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let config =
            Config { path: Some(directory.path().into()), max_age: Duration::from_millis(1), ..Config::default() };
        let spool = Spool::new(&config).expect("a spool");
        open(&spool);
        put(&spool, "a");
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!((spool.expire(), spool.load().bytes, spool.take()), (1, 0, None));
    }

    #[test]
    fn what_was_left_is_not_taken_out_before_it_has_been_counted() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = spool(directory.path(), 1 << 20);
        open(&first);
        put(&first, "a");
        let bytes = first.load().bytes;
        drop(first);
        let second = spool(directory.path(), bytes);
        let left = second.open();
        assert_eq!((left.count(), second.take(), second.load().bytes), (1, None, bytes));
        assert!(matches!(second.write(&object("b"), Value::Failure).entry, Err(SpoolError::Full)), "it takes its room");
        assert_eq!((second.open(), second.admit(left)), (Left::default(), 0));
        assert_eq!(keys(&second), ["a"]);
    }

    #[test]
    fn what_was_left_is_bounded_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let (first, other) = (spool(directory.path(), 1 << 20), spool(directory.path(), 1 << 20));
        open(&first);
        open(&other);
        for key in ["a", "b", "c"] {
            put(&first, key);
            put(&other, &format!("other {key}"));
            std::thread::sleep(Duration::from_millis(2));
        }
        let bytes = first.load().bytes;
        drop((first, other));
        let files = |berth| std::fs::read_dir(directory.path().join(berth)).expect("a directory").count() - 1;
        // One more than it may hold, so the oldest is given up and the other berth is left to the next that starts.
        let second = spool(directory.path(), bytes - 1);
        assert_eq!(open(&second), (3, 1));
        assert_eq!((files("berth-0"), files("berth-1"), second.load().bytes), (2, 3, bytes / 3 * 2));
        assert_eq!(open(&spool(directory.path(), bytes * 2)), (3, 0), "the next has the other berth");
        drop(second);
        assert_eq!(open(&spool(directory.path(), bytes * 2)), (5, 0), "there is room for both");
    }

    #[test]
    fn a_spool_that_cannot_be_opened_is_a_loss_and_is_tried_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("spool");
        std::fs::write(&path, "a file in its place").expect("written");
        let spool = spool(&path, 1 << 20);
        assert_eq!(open(&spool), (0, 0));
        assert!(matches!(spool.write(&object("a"), Value::Failure).entry, Err(SpoolError::Disk(_))));
        assert!(!spool.load().is_writable);
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(open(&spool), (0, 0));
        assert!(matches!(spool.write(&object("a"), Value::Failure).entry, Err(SpoolError::Disk(_))), "not at once");
        spool.state.lock().try_again = None;
        open(&spool);
        put(&spool, "a");
        assert!(spool.load().is_writable);
    }
}
