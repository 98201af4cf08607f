//! What holds the process's memory: jemalloc's sample of the allocations that are not freed, for pprof's readers.
//!
//! It takes a build with jemalloc, and a process that was started with `_RJEM_MALLOC_CONF=prof:true`: jemalloc decides at
//! its first allocation whether it will ever sample, and then does it once per 512 KiB that are allocated.

use super::{ProfileError, Profiler};
use crate::telemetry::Counted;

/// Why there is no heap profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeapError {
    /// Another allocator.
    #[error(
        "this program's allocator has no heap profiles: build it with --features jemalloc (a program of your own must also \
         choose jemalloc as its allocator), and start it with _RJEM_MALLOC_CONF=prof:true"
    )]
    NotBuilt,
    /// Jemalloc, not told to sample.
    #[error("the process was started without heap profiles: start it with _RJEM_MALLOC_CONF=prof:true")]
    Off,
    /// Anything else.
    #[error(transparent)]
    Failed(#[from] ProfileError),
}

impl Profiler {
    /// The allocations that live, by the stacks that made them, in pprof's format: objects and bytes.
    pub async fn heap(&self) -> Result<Vec<u8>, HeapError> {
        let counted = Counted::new(&self.metrics.sampling);
        let taking = self.lifecycle.blocking("heap profile", move || {
            let _counted = counted;
            imp::take()
        });
        let taken = taking.await.unwrap_or_else(|error| Err(ProfileError::Failed(error.to_string()).into()));
        let outcome = if taken.is_ok() { &self.metrics.taken } else { &self.metrics.failed };
        outcome.increment(1);
        taken
    }
}

#[cfg(not(feature = "jemalloc"))]
mod imp {
    pub(super) fn take() -> Result<Vec<u8>, super::HeapError> {
        Err(super::HeapError::NotBuilt)
    }
}

#[cfg(feature = "jemalloc")]
mod imp {
    use std::collections::HashMap;
    use std::fs;
    use std::os::unix::fs::DirBuilderExt;
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::time::{Duration, SystemTime};

    use parking_lot::Mutex;
    use tikv_jemalloc_ctl::{profiling, raw};

    use super::super::encode::{self, Head, Sample};
    use super::super::{Function, ProfileError};
    use super::HeapError;

    /// What a dump of jemalloc's says of one stack.
    #[derive(Debug, PartialEq)]
    pub(super) struct Held {
        /// Return addresses, innermost first.
        pub addresses: Vec<usize>,
        pub objects: u64,
        pub bytes: u64,
    }

    pub(super) fn take() -> Result<Vec<u8>, HeapError> {
        if !profiling::prof::read().unwrap_or(false) {
            return Err(HeapError::Off);
        }
        let failed = |error: String| ProfileError::Failed(error);
        let text = dump().map_err(failed)?;
        let (interval_bytes, held) = parse(&text).ok_or_else(|| failed("jemalloc's dump is not readable".into()))?;
        let mut names = HashMap::new();
        let stacks: Vec<_> = held
            .iter()
            .map(|held| {
                let frames: Vec<_> = held.addresses.iter().map(|at| resolve(*at, &mut names)).collect();
                (frames, whole(held, interval_bytes))
            })
            .collect();
        let head = Head {
            kinds: [("inuse_objects", "count"), ("inuse_space", "bytes")],
            period: ("space", "bytes", interval_bytes),
            started: SystemTime::now(),
            took: Duration::ZERO,
        };
        let samples = stacks.iter().map(|(stack, values)| Sample { stack, thread: None, values: *values });
        Ok(encode::pprof(&head, samples))
    }

    /// Has jemalloc write its dump into a directory that nobody else can enter, and reads it.
    fn dump() -> Result<String, String> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        // A name that lives as long as the process, as jemalloc's interface wants it, and that nobody can guess.
        static PLACE: OnceLock<(PathBuf, &'static [u8])> = OnceLock::new();
        let _one = ONE_AT_A_TIME.lock();
        let (directory, path) = PLACE.get_or_init(|| {
            let directory = std::env::temp_dir().join(format!("weir-heap-{}", uuid::Uuid::now_v7()));
            let mut path = directory.join("heap").into_os_string().into_encoded_bytes();
            path.push(0);
            (directory, path.leak())
        });
        let place = |error: std::io::Error| format!("{}: {error}", directory.display());
        fs::DirBuilder::new().mode(0o700).create(directory).map_err(place)?;
        let dumped = raw::write_str(b"prof.dump\0", path).map_err(|error| format!("jemalloc's dump: {error}"));
        let text = dumped.and_then(|()| fs::read_to_string(directory.join("heap")).map_err(place));
        fs::remove_dir_all(directory).map_err(place)?;
        text
    }

    /// The mean number of bytes between two samples, and what the dump has by stack.
    pub(super) fn parse(text: &str) -> Option<(u64, Vec<Held>)> {
        let mut lines = text.lines().take_while(|line| !line.starts_with("MAPPED_LIBRARIES"));
        let interval = lines.next()?.strip_prefix("heap_v2/")?.trim().parse().ok()?;
        let (mut held, mut stack) = (Vec::new(), None);
        for line in lines {
            if let Some(addresses) = line.strip_prefix('@') {
                let address = |text: &str| usize::from_str_radix(text.trim_start_matches("0x"), 16).ok();
                stack = Some(addresses.split_whitespace().map(address).collect::<Option<Vec<_>>>()?);
            } else if let Some(of_all_threads) = line.trim().strip_prefix("t*:")
                && let Some(addresses) = stack.take()
            {
                let (objects, rest) = of_all_threads.split_once(':')?;
                let bytes = rest.split_whitespace().next()?;
                held.push(Held { addresses, objects: objects.trim().parse().ok()?, bytes: bytes.parse().ok()? });
            }
        }
        Some((interval, held))
    }

    /// What the sampled allocations stand for: one of `size` bytes is sampled with the probability 1 - e^(-size/interval).
    /// That is how jeprof scales a dump.
    pub(super) fn whole(held: &Held, interval_bytes: u64) -> [u64; 2] {
        let size = held.bytes as f64 / held.objects.max(1) as f64;
        let share = 1.0 - (-size / interval_bytes.max(1) as f64).exp();
        let scale = if share > 0.0 { 1.0 / share } else { 1.0 };
        [held.objects, held.bytes].map(|sampled| (sampled as f64 * scale).round() as u64)
    }

    fn resolve(address: usize, names: &mut HashMap<usize, Vec<Function>>) -> Vec<Function> {
        let look_up = || {
            let mut functions = Vec::new();
            backtrace::resolve(std::ptr::without_provenance_mut(address), |symbol| {
                let name = symbol.name();
                functions.push(Function {
                    name: name.as_ref().map_or_else(|| format!("{address:#x}"), |name| format!("{name:#}")),
                    symbol: name.and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default(),
                    file: symbol.filename().map(|file| file.display().to_string()).unwrap_or_default(),
                    line: symbol.lineno().unwrap_or(0),
                });
            });
            if functions.is_empty() {
                let name = format!("{address:#x}");
                functions.push(Function { symbol: name.clone(), name, file: String::new(), line: 0 });
            }
            functions
        };
        names.entry(address).or_insert_with(look_up).clone()
    }
}

#[cfg(all(test, feature = "jemalloc"))]
mod tests {
    use super::imp::{Held, parse, whole};

    const DUMP: &str = "heap_v2/524288
  t*: 3: 2000 [0: 0]
  t0: 3: 2000 [0: 0]
@ 0x55d0 0x55d8
  t*: 2: 1048576 [0: 0]
  t0: 2: 1048576 [0: 0]
@ 0xabc
  t*: 1: 1024 [0: 0]

MAPPED_LIBRARIES:
55d0-55ff r-xp 00000000 00:00 0 /bin/weir
";

    #[test]
    fn a_dump_is_read_by_stack() {
        let (interval, held) = parse(DUMP).expect("a dump");
        assert_eq!(interval, 524_288);
        let expected = [
            Held { addresses: vec![0x55d0, 0x55d8], objects: 2, bytes: 1_048_576 },
            Held { addresses: vec![0xabc], objects: 1, bytes: 1_024 },
        ];
        assert_eq!(held, expected);
        assert!(parse("heap_v1/1\n").is_none() && parse("").is_none() && parse("heap_v2/5\n@ zz\n").is_none());
    }

    #[test]
    fn small_allocations_stand_for_many() {
        let (interval, held) = parse(DUMP).expect("a dump");
        // 1 / (1 - 1/e) times, and about 524288 / 1024 times.
        assert_eq!(whole(&held[0], interval), [3, 1_658_823]);
        assert_eq!(whole(&held[1], interval)[0], 513);
    }
}
