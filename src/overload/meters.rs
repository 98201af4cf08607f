//! What the process uses, and what it may: read from files that stay open, for a process that has run out of
//! descriptors must still be able to tell.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

use super::cgroup::Cgroups;
use super::throttle::Periods;
use super::{Usage, Whose, bytes_text};

/// The largest of the files has some 2 KiB.
const MOST_BYTES: usize = 64 * 1024;

/// Where the kernel's numbers are.
#[derive(Debug, Clone)]
pub struct Sources {
    proc: PathBuf,
}

impl Sources {
    /// `/proc`, and the cgroups that it names.
    pub fn system() -> Self {
        Sources::at("/proc")
    }

    /// Something that looks like `/proc`.
    pub fn at(proc: impl Into<PathBuf>) -> Self {
        Sources { proc: proc.into() }
    }
}

/// A small file that is read again and again.
#[derive(Debug)]
pub(super) struct Text {
    file: File,
    text: String,
}

impl Text {
    /// None when it cannot be opened.
    pub(super) fn open(path: &Path) -> Option<Self> {
        Some(Text { file: File::open(path).ok()?, text: String::new() })
    }

    /// The text now; none when it cannot be read, as when a cgroup is gone.
    pub(super) fn read(&mut self) -> Option<&str> {
        let mut bytes = std::mem::take(&mut self.text).into_bytes();
        bytes.clear();
        loop {
            let begin = bytes.len();
            bytes.resize(begin + 4096, 0);
            let read = self.file.read_at(&mut bytes[begin..], begin as u64).ok()?;
            bytes.truncate(begin + read);
            if read == 0 || bytes.len() >= MOST_BYTES {
                break;
            }
        }
        self.text = String::from_utf8(bytes).ok()?;
        Some(&self.text)
    }
}

/// All that is measured but for time.
#[derive(Debug)]
pub(super) struct Meters {
    configured: Option<u64>,
    cgroups: Cgroups,
    resident: Option<Text>,
    machine: Option<Text>,
    descriptors: PathBuf,
}

impl Meters {
    /// Opens everything; what is not there is not measured. `limit` is a configured limit on the resident memory.
    pub(super) fn open(sources: &Sources, limit: Option<u64>) -> Self {
        let proc = &sources.proc;
        Meters {
            configured: limit,
            cgroups: Cgroups::open(proc),
            resident: Text::open(&proc.join("self/statm")),
            machine: Text::open(&proc.join("meminfo")),
            descriptors: proc.join("self/fd"),
        }
    }

    /// Memory against the configured limit and the cgroups', whichever is used more; the machine's where there is neither.
    pub(super) fn memory(&mut self) -> Option<(Usage, Whose)> {
        let configured = self.configured.and_then(|limit| Some(Usage { used: self.resident()?, limit }));
        let configured = configured.map(|usage| (usage, Whose::Configuration));
        let cgroup = self.cgroups.memory().map(|usage| (usage, Whose::Cgroup));
        let limited = configured.into_iter().chain(cgroup);
        let fullest = limited.max_by(|(one, _), (other, _)| one.share().total_cmp(&other.share()));
        fullest.or_else(|| Some((self.machine()?, Whose::Machine)))
    }

    /// Has limits read anew with the next look at the memory.
    pub(super) fn refresh(&mut self) {
        self.cgroups.refresh();
    }

    /// The periods of the CPU quota, where there is one.
    pub(super) fn periods(&mut self) -> Option<Periods> {
        self.cgroups.periods()
    }

    /// Open descriptors against the soft limit. Since Linux 6.2 their number is the size of `/proc/self/fd`; before, they
    /// are counted, which takes a descriptor and about a millisecond for 10,000.
    pub(super) fn descriptors(&self) -> Option<Usage> {
        let limit = getrlimit(Resource::Nofile).current?;
        let used = match std::fs::metadata(&self.descriptors).ok()?.len() {
            0 => std::fs::read_dir(&self.descriptors).ok()?.count() as u64,
            known => known,
        };
        Some(Usage { used, limit })
    }

    /// What is measured, and against what, in one line.
    pub(super) fn describe(&mut self) -> String {
        let memory = match self.memory() {
            Some((usage, Whose::Configuration)) => {
                format!("memory against overload.memory.limit_bytes, {}", bytes_text(usage.limit))
            }
            Some((usage, Whose::Cgroup)) => format!("memory against the cgroup's limit, {}", bytes_text(usage.limit)),
            Some((usage, Whose::Machine)) if self.cgroups.has_version_1 => {
                let limit = bytes_text(usage.limit);
                format!("memory against the machine's, {limit} (limits of cgroup version 1 are not read)")
            }
            Some((usage, Whose::Machine)) => {
                format!("memory against the machine's, {}, for no cgroup limits it", bytes_text(usage.limit))
            }
            None => "memory is not known on this system".into(),
        };
        let quota = match self.cgroups.cores() {
            Some(cores) => format!("a CPU quota of {cores:.2} cores"),
            None => "no CPU quota".into(),
        };
        let descriptors = match self.descriptors() {
            Some(Usage { limit, .. }) => format!("{limit} descriptors"),
            None => "descriptors without a limit".into(),
        };
        format!("{memory}; {quota}; {descriptors}")
    }

    /// The resident memory in bytes: the second number of `statm`, which counts pages.
    fn resident(&mut self) -> Option<u64> {
        let pages: u64 = self.resident.as_mut()?.read()?.split(' ').nth(1)?.parse().ok()?;
        Some(pages * rustix::param::page_size() as u64)
    }

    /// What the machine has less what the kernel estimates to be available without swapping (`MemAvailable`).
    fn machine(&mut self) -> Option<Usage> {
        let text = self.machine.as_mut()?.read()?;
        let kibibytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        };
        let (total, available) = (kibibytes("MemTotal")?, kibibytes("MemAvailable")?);
        Some(Usage { used: total.saturating_sub(available) << 10, limit: total << 10 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `/proc` without cgroups: 1,000 resident pages on a machine of 8 GiB, of which 2 are available.
    fn machine() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(directory.path().join("self")).expect("a directory");
        std::fs::write(directory.path().join("self/statm"), "5000 1000 900 1 0 300 0\n").expect("written");
        let meminfo = "MemTotal:        8388608 kB\nMemFree:          131072 kB\nMemAvailable:    2097152 kB\n";
        std::fs::write(directory.path().join("meminfo"), meminfo).expect("written");
        directory
    }

    #[test]
    fn without_a_limit_the_machines_memory_counts_and_a_configured_limit_is_on_the_process() {
        let directory = machine();
        let sources = Sources::at(directory.path());
        let all = Usage { used: 6 << 30, limit: 8 << 30 };
        assert_eq!(Meters::open(&sources, None).memory(), Some((all, Whose::Machine)));
        let own = Usage { used: 1_000 * rustix::param::page_size() as u64, limit: 5 << 20 };
        assert_eq!(Meters::open(&sources, Some(5 << 20)).memory(), Some((own, Whose::Configuration)));
        let said = Meters::open(&sources, None).describe();
        assert!(
            said.starts_with("memory against the machine's, 8.0 GiB, for no cgroup limits it; no CPU quota"),
            "{said}"
        );
    }

    #[test]
    fn a_system_without_proc_is_not_measured() {
        let nothing = tempfile::tempdir().expect("a directory");
        let mut meters = Meters::open(&Sources::at(nothing.path()), Some(1));
        assert_eq!((meters.memory(), meters.periods(), meters.descriptors()), (None, None, None));
        assert!(meters.describe().starts_with("memory is not known on this system"));
    }

    #[test]
    fn this_process_is_measured() {
        let mut meters = Meters::open(&Sources::system(), Some(1 << 40));
        let (memory, whose) = meters.memory().expect("measured");
        // The machine's cgroup may be fuller than this huge limit.
        assert!(memory.used > 1 << 20 && whose != Whose::Machine, "{memory:?}");
        let before = meters.descriptors().expect("counted").used;
        let open: Vec<_> = (0..20).map(|_| File::open("/dev/null").expect("opened")).collect();
        assert!(meters.descriptors().expect("counted").used >= before + 20);
        drop(open);
    }
}
