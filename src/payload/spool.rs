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
pub(super) use self::file::{ReadError, body};
pub(super) use self::index::Entry;
use self::index::{Index, Name};
use super::ConfigError;
use super::sample::Value;
use super::store::Object;
use crate::telemetry::notice::Notice;

/// How often a spool that could not be opened is tried again, and how often that is said.
const OPEN_INTERVAL: Duration = Duration::from_secs(5);
const NOTICE_INTERVAL: Duration = Duration::from_secs(60);

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
    unopened: Notice,
    /// Held while its directory is opened, which may take long: nobody waits for `state` meanwhile.
    opening: Mutex<()>,
    state: Mutex<State>,
}

struct State {
    berth: Option<Arc<Berth>>,
    index: Index,
    try_again: Option<Instant>,
    /// Nothing is read before then, for the disk failed.
    read_again: Option<Instant>,
    /// The last payload was written.
    is_writable: bool,
    /// The last file that was to be read or removed was not.
    is_failing: bool,
    /// The last payload found no room, or others gave way to it.
    is_full: bool,
    is_closed: bool,
}

/// How it is, for metrics and for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    pub bytes: u64,
    pub limit_bytes: u64,
    pub is_open: bool,
    /// The disk took the last payload, and does not fail otherwise.
    pub is_writable: bool,
    /// The last payload found no room, or others gave way to it.
    pub is_full: bool,
}

impl Load {
    /// Whether another payload is likely to find a place, without others giving way.
    pub fn takes_more(&self) -> bool {
        self.is_writable && !self.is_full
    }
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
            is_failing: false,
            is_full: false,
            is_closed: false,
        };
        let (path, unopened) = (config.path.clone()?, Notice::every(NOTICE_INTERVAL));
        let Config { max_bytes, max_age, .. } = *config;
        Some(Spool { path, max_bytes, max_age, unopened, opening: Mutex::default(), state: Mutex::new(state) })
    }

    /// Whether it is time to [`Spool::open`] it.
    pub fn is_to_be_opened(&self) -> bool {
        self.state.lock().is_to_be_opened(Instant::now())
    }

    /// Opens it, unless it is open; returns what an earlier life has left in it. One that cannot be opened is tried again
    /// every now and then.
    pub fn open(&self) -> Left {
        let _opening = self.opening.lock();
        let is_another_try = {
            let (mut state, now) = (self.state.lock(), Instant::now());
            if !state.is_to_be_opened(now) {
                return Left::default();
            }
            state.try_again.replace(now + OPEN_INTERVAL).is_some()
        };
        let (berth, found) = match Berth::claim(&self.path, self.max_bytes) {
            Ok(claimed) => claimed,
            Err(error) => {
                if let Some(tries) = self.unopened.due() {
                    tracing::warn!(tries, spool = %self.path.display(), "payloads cannot be spooled: {error}");
                }
                return Left::default();
            }
        };
        if found.foreign > 0 {
            let (foreign, directory) = (found.foreign, berth.path.display());
            tracing::warn!(%directory, foreign, "there are files in the spool that are not weir's; they stay");
        }
        if is_another_try {
            tracing::info!(directory = %berth.path.display(), "the spool could be opened: payloads can be spooled");
        }
        let mut state = self.state.lock();
        if state.is_closed {
            return Left::default();
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
        let reserved = {
            let mut state = self.state.lock();
            let reserved = state.index.reserve(bytes, value);
            // One that never fits says nothing of the room for others.
            if bytes <= self.max_bytes {
                state.is_full = reserved.as_ref().is_none_or(|evicted| !evicted.is_empty());
            }
            reserved
        };
        let Some(evicted) = reserved else { return written };
        written.evicted = evicted.len() as u64;
        for name in evicted {
            self.unlink(&berth, name);
        }
        let name = Name::new(SystemTime::now(), value, id(&object.key));
        let write = |berth: &Berth| file::write(&berth.path, &name.to_string(), &head, &object.body);
        let result = write(&berth).or_else(|error| match self.made_anew(&berth, &error) {
            Some(berth) => write(&berth),
            None => Err(error),
        });
        let mut state = self.state.lock();
        let was_writable = std::mem::replace(&mut state.is_writable, result.is_ok());
        if result.is_err() {
            state.index.release(bytes);
        }
        drop(state);
        if result.is_ok() && !was_writable {
            tracing::info!(directory = %berth.path.display(), "the spool can be written again");
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
        let (mut state, now) = (self.state.lock(), Instant::now());
        if state.read_again.is_some_and(|at| now < at) {
            return None;
        }
        state.index.take(now)
    }

    /// Reads one that was taken out. An error of the disk is no loss: the payload may be read later.
    pub fn read(&self, entry: &Entry) -> Result<Object, ReadError> {
        let berth = self.berth()?;
        let read = match file::read(&berth.path.join(entry.name.to_string()), entry.bytes) {
            Err(ReadError::Io(error))
                if error.kind() == io::ErrorKind::NotFound
                    && (berth.path.is_dir() || self.made_anew(&berth, &error).is_some()) =>
            {
                Err(ReadError::Damaged("it is gone"))
            }
            read => read,
        };
        let mut state = self.state.lock();
        state.is_failing = matches!(read, Err(ReadError::Io(_)));
        if state.is_failing {
            state.read_again = Some(Instant::now() + OPEN_INTERVAL);
        }
        drop(state);
        read
    }

    /// One that was taken out waits again, in its old place.
    pub fn untake(&self, entry: Entry) {
        self.state.lock().index.untake(entry);
    }

    /// One that was taken out waits again, at the end of the line; it may have to rest first.
    pub fn put_back(&self, entry: Entry) {
        self.state.lock().index.put_back(entry, Instant::now());
    }

    /// One that was taken out is done with.
    pub fn remove(&self, entry: Entry) {
        if let Ok(berth) = self.berth() {
            self.unlink(&berth, entry.name);
        }
        let mut state = self.state.lock();
        state.index.release(entry.bytes);
        state.is_full = false;
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
        Load {
            bytes: state.index.bytes(),
            limit_bytes: self.max_bytes,
            is_open: state.berth.is_some(),
            is_writable: state.is_writable && !state.is_failing,
            is_full: state.is_full,
        }
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

    /// The directory again, where a file was not to be had because somebody removed the whole spool. What lay in it is
    /// lost, and counted when its turn comes.
    fn made_anew(&self, berth: &Arc<Berth>, error: &io::Error) -> Option<Arc<Berth>> {
        // A berth alone that is not there may come back, with a disk.
        if error.kind() != io::ErrorKind::NotFound || self.path.is_dir() {
            return None;
        }
        let _opening = self.opening.lock();
        let current = self.berth().ok()?;
        if !Arc::ptr_eq(&current, berth) {
            return Some(current);
        }
        let anew = Arc::new(berth.made_anew(&self.path)?);
        tracing::warn!(directory = %anew.path.display(), "the spool's directory was removed, and is made again");
        let mut state = self.state.lock();
        if state.is_closed {
            return None;
        }
        state.read_again = None;
        state.berth = Some(anew.clone());
        Some(anew)
    }

    fn unlink(&self, berth: &Berth, name: Name) {
        let path = berth.path.join(name.to_string());
        let error = std::fs::remove_file(&path).err().filter(|error| error.kind() != io::ErrorKind::NotFound);
        self.state.lock().is_failing = error.is_some();
        if let Some(error) = error {
            tracing::warn!(file = %path.display(), "a spooled payload could not be removed: {error}");
        }
    }
}

impl State {
    fn is_to_be_opened(&self, now: Instant) -> bool {
        self.berth.is_none() && !self.is_closed && self.try_again.is_none_or(|at| now >= at)
    }
}

/// A part of a name that tells two keys apart.
fn id(key: &str) -> u64 {
    use sha2::{Digest, Sha256};
    Sha256::digest(key)[..8].iter().fold(0, |id, byte| id << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests;
