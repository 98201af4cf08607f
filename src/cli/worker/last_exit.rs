//! How the worker before this one on this host ended: it cannot say so itself when it was killed.
//!
//! Each worker leaves a note of its life in the state directory, and completes it when it ends by its own doing. The next
//! one of the same name finds the note. One that was never completed belongs to a process that was cut off: by a
//! restart of the host when the kernel's boot id is another one, by the kernel for want of memory when its count of such
//! kills has grown (<https://docs.kernel.org/admin-guide/cgroup-v2.html>, `memory.events`; `/proc/vmstat` counts for the
//! whole host), and else by SIGKILL or a crash.
//!
//! A note that cannot be read or written costs a warning and nothing else.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::telemetry::Telemetry;

/// Where systemd says that a service may keep what outlives it; several are separated by colons.
const STATE_DIRECTORY: &str = "STATE_DIRECTORY";

/// A note is a few hundred bytes; a larger file is none.
const NOTE_BYTES: u64 = 64 << 10;

/// The note that a worker leaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Note {
    process: u32,
    version: String,
    started: SystemTime,
    kernel: Kernel,
    ended: Option<End>,
}

/// What the kernel said when the worker started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kernel {
    /// Another one after each start of the host.
    boot: Option<String>,
    /// The control group, and how many of its processes were killed for want of memory.
    group: Option<(String, u64)>,
    /// The same count for the whole host.
    host: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct End {
    by: EndedBy,
    at: SystemTime,
}

/// How a worker ended that could say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum EndedBy {
    /// After the ordered stop.
    Drain,
    /// At once, by a second signal.
    SecondSignal,
    /// A part of the worker had failed; what ran was drained.
    Failure,
    /// A panic of the program itself.
    Panic,
}

/// How the one before ended: the label `how`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    First,
    Clean,
    SecondSignal,
    Failure,
    Panic,
    HostRestart,
    OutOfMemory,
    Killed,
    Unknown,
}

impl How {
    const ALL: [How; 9] = [
        How::First,
        How::Clean,
        How::SecondSignal,
        How::Failure,
        How::Panic,
        How::HostRestart,
        How::OutOfMemory,
        How::Killed,
        How::Unknown,
    ];

    fn label(self) -> &'static str {
        match self {
            How::First => "first",
            How::Clean => "clean",
            How::SecondSignal => "second_signal",
            How::Failure => "failure",
            How::Panic => "panic",
            How::HostRestart => "host_restart",
            How::OutOfMemory => "out_of_memory",
            How::Killed => "killed",
            How::Unknown => "unknown",
        }
    }

    fn in_words(self) -> &'static str {
        match self {
            How::First => "there was none",
            How::Clean => "it drained and ended in order",
            How::SecondSignal => "it was ended at once by a second signal",
            How::Failure => "a part of it had failed, and it drained",
            How::Panic => "it panicked",
            How::HostRestart => "it ran until the host was restarted",
            How::OutOfMemory => "it was cut off, and the kernel has killed for want of memory since it started",
            How::Killed => "it was cut off: killed, or crashed",
            How::Unknown => "what it noted cannot be read",
        }
    }

    /// What a note says, with what the kernel says now.
    fn of(note: &Note, kernel: &Kernel) -> Self {
        match note.ended.as_ref().map(|end| end.by) {
            Some(EndedBy::Drain) => return How::Clean,
            Some(EndedBy::SecondSignal) => return How::SecondSignal,
            Some(EndedBy::Failure) => return How::Failure,
            Some(EndedBy::Panic) => return How::Panic,
            None => {}
        }
        if note.kernel.boot.is_some() && note.kernel.boot != kernel.boot {
            return How::HostRestart;
        }
        let grown = |before: u64, now: u64| now > before;
        let in_group = match (&note.kernel.group, &kernel.group) {
            (Some((before, kills)), Some((now, more))) if before == now => Some(grown(*kills, *more)),
            _ => None,
        };
        // The host's count also grows when others are killed: it decides only where the group's cannot be compared.
        let on_host = || note.kernel.host.zip(kernel.host).is_some_and(|(before, now)| grown(before, now));
        if in_group.unwrap_or_else(on_host) { How::OutOfMemory } else { How::Killed }
    }
}

/// The life of this worker, as far as its note goes. Dropping it in a panic says so in the note.
pub(super) struct Life {
    kept: Option<Kept>,
}

struct Kept {
    note: Note,
    path: PathBuf,
    /// Held while this process lives, so that another one does not take it for dead.
    _lock: File,
}

impl Life {
    /// Reads how the worker before this one ended, says so in the log and as a metric, and begins a note of its own.
    ///
    /// `name` tells the workers of a host apart; without one (a port of the system's choice) there is no one before.
    pub(super) fn begin(directory: Option<&Path>, name: Option<&str>, telemetry: &Telemetry) -> Self {
        let Some(name) = name else {
            publish(How::First, telemetry);
            return Life { kept: None };
        };
        let directory = directory.map_or_else(default_directory, Path::to_owned);
        let begun = Kept::begin(&directory, name);
        match begun {
            Ok((kept, before)) => {
                let how = before.as_ref().map_or(How::First, |note| match note {
                    Some(note) => How::of(note, &kept.note.kernel),
                    None => How::Unknown,
                });
                report(how, before.flatten().as_ref(), &kept.path);
                publish(how, telemetry);
                Life { kept: Some(kept) }
            }
            Err(error) => {
                let directory = directory.display();
                tracing::warn!(
                    "how the worker before this one ended is not known (worker.state_dir {directory}): {error:#}"
                );
                publish(How::Unknown, telemetry);
                Life { kept: None }
            }
        }
    }

    /// Completes the note.
    pub(super) fn end(&mut self, by: EndedBy) {
        let Some(kept) = &mut self.kept else { return };
        kept.note.ended = Some(End { by, at: SystemTime::now() });
        if let Err(error) = kept.write() {
            tracing::warn!("the note of this worker's end cannot be written: {error:#}");
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.end(EndedBy::Panic);
        }
    }
}

impl Kept {
    /// The note of the one before, unreadable ones as the inner `None`, and a new one in its place.
    fn begin(directory: &Path, name: &str) -> anyhow::Result<(Self, Option<Option<Note>>)> {
        make_private(directory)?;
        let (path, lock) = (directory.join(format!("{name}.json")), directory.join(format!("{name}.lock")));
        let lock = File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("a worker with the name {name:?} is alive; give each a state_dir of its own");
        }
        let before = match read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
            Ok(text) => Some(serde_json::from_str(&text).ok()),
        };
        let note = Note {
            process: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            started: SystemTime::now(),
            kernel: Kernel::now(),
            ended: None,
        };
        let kept = Kept { note, path, _lock: lock };
        kept.write()?;
        Ok((kept, before))
    }

    fn write(&self) -> anyhow::Result<()> {
        let new = self.path.with_extension("new");
        let text = serde_json::to_string(&self.note).context("cannot write a note")?;
        fs::write(&new, text).and_then(|()| fs::rename(&new, &self.path)).context("cannot write a note")
    }
}

fn read(path: &Path) -> io::Result<String> {
    let bytes = path.metadata()?.len();
    if bytes > NOTE_BYTES {
        Ok(String::new())
    } else {
        fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into())
    }
}

fn report(how: How, before: Option<&Note>, path: &Path) {
    // Of a note that cannot be read neither is known, and then neither is said.
    let process = before.map(|note| note.process);
    let started = before.map(|note| humantime::format_rfc3339_seconds(note.started).to_string());
    match how {
        How::First => tracing::info!("the worker before this one: {}", how.in_words()),
        How::Clean | How::SecondSignal => {
            tracing::info!(process, started, "the worker before this one: {}", how.in_words());
        }
        How::Unknown => {
            let note = path.display();
            tracing::warn!(%note, "the worker before this one: {}, and is replaced", how.in_words());
        }
        _ => tracing::warn!(process, started, "the worker before this one: {}", how.in_words()),
    }
}

fn publish(how: How, telemetry: &Telemetry) {
    telemetry.register(|| {
        metrics::describe_gauge!(
            "weir_last_exit",
            "How the worker before this one on this host ended: 1 at one label."
        );
        for known in How::ALL {
            metrics::gauge!("weir_last_exit", "how" => known.label()).set(if known == how { 1.0 } else { 0.0 });
        }
    });
}

/// What systemd gives the service, or else a directory of this user's among the temporary ones.
fn default_directory() -> PathBuf {
    let given = std::env::var_os(STATE_DIRECTORY);
    let first = given.as_ref().and_then(|given| std::env::split_paths(given).next());
    let own = || std::env::temp_dir().join(format!("weir-{}", rustix::process::getuid().as_raw()));
    first.filter(|first| first.is_absolute()).unwrap_or_else(own)
}

/// The state directory, where it can be used and nobody else can have put something there.
pub(in crate::cli) fn private_directory(directory: Option<&Path>) -> Option<PathBuf> {
    let directory = directory.map_or_else(default_directory, Path::to_owned);
    make_private(&directory).ok().map(|()| directory)
}

/// Makes the directory where it is missing. Among the temporary ones anybody could have made it before.
fn make_private(directory: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).context("cannot make the directory")?;
    let owner = fs::metadata(directory).context("cannot look at the directory")?.uid();
    let user = rustix::process::geteuid().as_raw();
    if owner != user && user != 0 {
        bail!("it belongs to user {owner} and not to {user}");
    }
    Ok(())
}

impl Kernel {
    fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok();
        let boot = read("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned());
        let path = read("/proc/self/cgroup").and_then(|text| group_of(&text).map(str::to_owned));
        let group = path.and_then(|path| {
            let events = read(&format!("/sys/fs/cgroup{path}/memory.events"))?;
            Some((path, number(&events, "oom_kill")?))
        });
        let host = read("/proc/vmstat").and_then(|text| number(&text, "oom_kill"));
        Kernel { boot, group, host }
    }
}

/// The path of a process' group in the one hierarchy of version 2: the line `0::/path`.
fn group_of(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

fn number(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(boot: &str, group: Option<(&str, u64)>, host: u64) -> Kernel {
        let group = group.map(|(path, kills)| (path.to_owned(), kills));
        Kernel { boot: Some(boot.into()), group, host: Some(host) }
    }

    fn note(ended: Option<EndedBy>, kernel: Kernel) -> Note {
        let ended = ended.map(|by| End { by, at: SystemTime::UNIX_EPOCH });
        Note { process: 7, version: "0.1.0".into(), started: SystemTime::UNIX_EPOCH, kernel, ended }
    }

    #[test]
    fn a_note_that_was_completed_says_it_itself() {
        let now = kernel("b", None, 9);
        for (by, how) in [
            (EndedBy::Drain, How::Clean),
            (EndedBy::SecondSignal, How::SecondSignal),
            (EndedBy::Failure, How::Failure),
            (EndedBy::Panic, How::Panic),
        ] {
            assert_eq!(How::of(&note(Some(by), kernel("a", None, 0)), &now), how);
        }
    }

    #[test]
    fn the_kernel_says_what_cut_a_worker_off() {
        for (before, now, how) in [
            (kernel("a", Some(("/w", 1)), 5), kernel("b", Some(("/w", 0)), 0), How::HostRestart),
            (kernel("a", Some(("/w", 1)), 5), kernel("a", Some(("/w", 2)), 6), How::OutOfMemory),
            (kernel("a", Some(("/w", 1)), 5), kernel("a", Some(("/w", 1)), 6), How::Killed),
            (kernel("a", Some(("/w", 1)), 5), kernel("a", Some(("/new", 0)), 6), How::OutOfMemory),
            (kernel("a", None, 5), kernel("a", None, 5), How::Killed),
            (Kernel::default(), Kernel::default(), How::Killed),
        ] {
            assert_eq!(How::of(&note(None, before.clone()), &now), how, "{before:?} and then {now:?}");
        }
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(group_of("1:name=systemd:/\n0::/system.slice/weir.service\n"), Some("/system.slice/weir.service"));
        assert_eq!(number("low 0\noom 3\noom_kill 2\noom_group_kill 1\n", "oom_kill"), Some(2));
        assert_eq!(number("oom_kill_disable 0\n", "oom_kill"), None);
    }

    #[test]
    fn one_life_after_the_other_and_never_two_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let begin = || Kept::begin(directory.path(), "worker-7401");
        let (first, before) = begin().expect("a note");
        assert!(before.is_none());
        let error = begin().err().expect("it is alive").to_string();
        assert!(error.contains("is alive; give each a state_dir of its own"), "{error}");
        let mut life = Life { kept: Some(first) };
        life.end(EndedBy::Drain);
        drop(life);

        let (second, before) = begin().expect("a note");
        let before = before.flatten().expect("the first one's");
        assert_eq!(How::of(&before, &second.note.kernel), How::Clean);
        drop(second);
        let (third, before) = begin().expect("a note");
        assert_eq!(How::of(&before.flatten().expect("the second one's"), &third.note.kernel), How::Killed);
        drop(third);

        fs::write(directory.path().join("worker-7401.json"), "{").expect("written");
        assert_eq!(begin().expect("a note").1, Some(None), "an unreadable note");
    }

    #[test]
    fn a_panic_is_noted() {
        let directory = tempfile::tempdir().expect("a directory");
        let (kept, _) = Kept::begin(directory.path(), "w").expect("a note");
        let life = Life { kept: Some(kept) };
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _life = life;
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        let note: Note = serde_json::from_str(&read(&directory.path().join("w.json")).expect("a note")).expect("JSON");
        assert_eq!(note.ended.expect("an end").by, EndedBy::Panic);
    }
}
