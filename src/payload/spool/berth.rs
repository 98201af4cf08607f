//! A process's own directory below the spool's: `berth-0`, `berth-1`, …, the first that no living process has.
//!
//! The lock is on the file `lock` in it and ends with the process, however that ends. So several processes share one
//! spool without a setting, and what a dead one left is found by the next that starts: it takes over the files of every
//! berth that nobody holds.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::file::UNFINISHED;
use super::index::{MAX_FILES, Name};

/// The most processes on one spool.
const MAX_BERTHS: usize = 64;

/// A directory that is this process's own while the value lives.
pub(super) struct Berth {
    pub path: PathBuf,
    number: usize,
    _lock: File,
}

/// What lies in a berth.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub payloads: Vec<(Name, u64)>,
    /// Files that are no payloads; they are left alone.
    pub foreign: u64,
}

impl Berth {
    /// Takes the first free berth, and into it what lies in the others that are free, as long as it is not more than
    /// `max_bytes` or [`MAX_FILES`]. The rest stays for others that start.
    pub fn claim(spool: &Path, max_bytes: u64) -> io::Result<(Self, Found)> {
        let mut numbers = 0..MAX_BERTHS;
        let berth = numbers.by_ref().find_map(|number| Berth::lock(spool, number, true).transpose());
        let berth = berth.unwrap_or_else(|| {
            let path = spool.display();
            Err(io::Error::other(format!("{MAX_BERTHS} processes use the spool {path} already")))
        })?;
        let mut found = berth.find()?;
        for number in numbers {
            if let Ok(Some(other)) = Berth::lock(spool, number, false) {
                other.move_to(&berth, &mut found, max_bytes);
            }
        }
        Ok((berth, found))
    }

    /// The same one again, after somebody has removed it; none when another process has it by now.
    pub fn made_anew(&self, spool: &Path) -> Option<Self> {
        Berth::lock(spool, self.number, true).ok().flatten()
    }

    /// None when another process has it, or when it is not there and is not to be made.
    fn lock(spool: &Path, number: usize, makes_it: bool) -> io::Result<Option<Self>> {
        let path = spool.join(format!("berth-{number}"));
        if makes_it {
            DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        } else if !path.is_dir() {
            return Ok(None);
        }
        let lock = path.join("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Berth { path, number, _lock: lock })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Moves the payloads over, the oldest first; one that cannot be moved, or does not fit, stays for a later start.
    fn move_to(&self, berth: &Berth, found: &mut Found, max_bytes: u64) {
        let Ok(mut own) = self.find() else { return };
        own.payloads.sort_unstable();
        let mut held: u64 = found.payloads.iter().map(|(_, bytes)| bytes).sum();
        for (name, bytes) in own.payloads {
            if held.saturating_add(bytes) > max_bytes || found.payloads.len() >= MAX_FILES {
                return;
            }
            let file = name.to_string();
            match std::fs::rename(self.path.join(&file), berth.path.join(&file)) {
                Ok(()) => {
                    held += bytes;
                    found.payloads.push((name, bytes));
                }
                Err(error) => {
                    tracing::warn!(file = %self.path.join(&file).display(), "a spooled payload stays behind: {error}");
                }
            }
        }
    }

    /// What lies in it. Removes what was not finished when its writer died.
    fn find(&self) -> io::Result<Found> {
        let mut found = Found::default();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let file = entry.file_name();
            let name = file.to_str().and_then(Name::parse);
            match (name, entry.metadata()) {
                (Some(name), Ok(metadata)) if metadata.is_file() => found.payloads.push((name, metadata.len())),
                _ if file == "lock" => {}
                _ if file.to_string_lossy().ends_with(UNFINISHED) => {
                    let _ = std::fs::remove_file(entry.path());
                }
                _ => found.foreign += 1,
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::payload::sample::Value;

    #[test]
    fn each_process_has_a_berth_of_its_own_and_takes_over_those_of_the_dead() {
        let spool = tempfile::tempdir().expect("a directory");
        let (first, _) = Berth::claim(spool.path(), 1 << 20).expect("a berth");
        let (second, _) = Berth::claim(spool.path(), 1 << 20).expect("another");
        assert!(first.path.ends_with("berth-0") && second.path.ends_with("berth-1"));
        let name = |id| Name::new(SystemTime::now(), Value::Slow, id);
        for (berth, id) in [(&first, 1), (&second, 2), (&second, 3)] {
            std::fs::write(berth.path.join(name(id).to_string()), "body").expect("written");
        }
        for other in [".x.payload.tmp", "README", "1-o-2.payload"] {
            std::fs::write(second.path.join(other), "?").expect("written");
        }
        drop(second);
        let (third, found) = Berth::claim(spool.path(), 1 << 20).expect("the second's");
        assert_eq!((third.path.ends_with("berth-1"), found.payloads.len(), found.foreign), (true, 2, 2));
        drop((first, third));
        let (alone, found) = Berth::claim(spool.path(), 1 << 20).expect("the first's");
        assert_eq!((alone.path.ends_with("berth-0"), found.payloads.len(), found.foreign), (true, 3, 0));
        assert_eq!(std::fs::read_dir(spool.path().join("berth-1")).expect("a directory").count(), 3);
    }

    #[test]
    fn a_spool_that_cannot_be_is_an_error() {
        let spool = tempfile::NamedTempFile::new().expect("a file in its place");
        assert!(Berth::claim(spool.path(), 1 << 20).is_err());
    }
}
