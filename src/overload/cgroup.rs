//! The limits of the cgroups that the process is in: version 2, memory and CPU quota.
//!
//! `/proc/self/cgroup` has the path in the hierarchy, `/proc/self/mountinfo` where that is mounted and which part of it
//! (in a container, often only the part below its own cgroup). From there on every cgroup up to the mount counts, for each
//! may have a limit: of several, the one of which most is used.
//!
//! What counts as used is the working set as Kubernetes counts it: `memory.current` less `inactive_file` of
//! `memory.stat`, the page cache that the kernel takes back first (cAdvisor, `setMemoryStats`). The limit is the smaller
//! of `memory.max`, beyond which the kernel kills, and `memory.high`, beyond which it slows the process down to a crawl.
//! Limits are read again and again, for they can change while a container runs; like `memory.stat`, which costs the kernel
//! a sum over all processors, less often than `memory.current`.

use std::path::{Path, PathBuf};

use super::Usage;
use super::meters::Text;
use super::throttle::Periods;

/// The cgroups of a process, its own first.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    levels: Vec<Level>,
    /// Whether there is a hierarchy of version 1 with the memory controller, which is not read.
    pub(super) has_version_1: bool,
}

/// One of them: what it has of memory and of CPU.
#[derive(Debug)]
struct Level {
    memory: Option<Memory>,
    cpu: Option<Cpu>,
}

#[derive(Debug)]
struct Memory {
    current: Text,
    stat: Text,
    max: Text,
    high: Option<Text>,
    /// What is read less often.
    known: Option<Known>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    limit: u64,
    inactive: u64,
}

#[derive(Debug)]
struct Cpu {
    max: Text,
    stat: Text,
}

impl Cgroups {
    /// Finds them below `proc`, which is `/proc`.
    pub(super) fn open(proc: &Path) -> Self {
        let read = |name: &str| std::fs::read_to_string(proc.join("self").join(name)).unwrap_or_default();
        let cgroup = read("cgroup");
        let has_version_1 = cgroup.lines().any(|line| {
            let controllers = line.split(':').nth(1).unwrap_or_default();
            controllers.split(',').any(|controller| controller == "memory")
        });
        let levels = match own(&cgroup, &read("mountinfo")) {
            Some((mount, own)) => {
                let levels = own.ancestors().take_while(|path| path.starts_with(&mount)).map(Level::open);
                levels.filter(|level| level.memory.is_some() || level.cpu.is_some()).collect()
            }
            None => Vec::new(),
        };
        Cgroups { levels, has_version_1 }
    }

    /// The memory of the cgroup with a limit of which most is used; none when none has a limit.
    pub(super) fn memory(&mut self) -> Option<Usage> {
        let levels = self.levels.iter_mut().filter_map(|level| level.memory.as_mut()?.usage());
        levels.max_by(|one, other| one.share().total_cmp(&other.share()))
    }

    /// Has the limits, and what else changes slowly, read anew with the next look at the memory.
    pub(super) fn refresh(&mut self) {
        self.levels.iter_mut().filter_map(|level| level.memory.as_mut()).for_each(|memory| memory.known = None);
    }

    /// The periods of the cgroup with a quota of which most were throttled; none when none has a quota.
    pub(super) fn periods(&mut self) -> Option<Periods> {
        let levels = self.levels.iter_mut().filter_map(|level| level.cpu.as_mut()?.periods());
        levels.max_by_key(|periods| periods.throttled)
    }

    /// The smallest quota, in cores.
    pub(super) fn cores(&mut self) -> Option<f64> {
        let levels = self.levels.iter_mut().filter_map(|level| level.cpu.as_mut()?.cores());
        levels.min_by(f64::total_cmp)
    }
}

/// Where the hierarchy of version 2 is mounted, and the directory of the process' own cgroup in it.
fn own(cgroup: &str, mountinfo: &str) -> Option<(PathBuf, PathBuf)> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    let (root, mount) = mountinfo.lines().find_map(|line| {
        // id, parent, device, root of the mount, mount point, options and more, " - ", type
        let (mounted, kind) = line.split_once(" - ")?;
        let mut fields = mounted.split(' ').skip(3);
        let (root, mount) = (fields.next()?, fields.next()?);
        (kind.split(' ').next() == Some("cgroup2")).then_some((root, mount))
    })?;
    // A path outside of what is mounted (the process was put elsewhere, or sees another namespace) has no directory here.
    let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    let is_plain = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let mount = PathBuf::from(mount);
    let own = if is_plain { mount.join(below) } else { mount.clone() };
    Some((mount, own))
}

impl Level {
    fn open(directory: &Path) -> Self {
        let text = |name: &str| Text::open(&directory.join(name));
        let memory = || {
            let (current, stat) = (text("memory.current")?, text("memory.stat")?);
            Some(Memory { current, stat, max: text("memory.max")?, high: text("memory.high"), known: None })
        };
        let cpu = || Some(Cpu { max: text("cpu.max")?, stat: text("cpu.stat")? });
        Level { memory: memory(), cpu: cpu() }
    }
}

impl Memory {
    fn usage(&mut self) -> Option<Usage> {
        let Known { limit, inactive } = self.known.or_else(|| self.read())?;
        if limit == u64::MAX {
            return None;
        }
        let current: u64 = self.current.read()?.trim().parse().ok()?;
        Some(Usage { used: current.saturating_sub(inactive), limit })
    }

    fn read(&mut self) -> Option<Known> {
        let limit = |text: &str| text.trim().parse().unwrap_or(u64::MAX);
        let high = self.high.as_mut().and_then(Text::read).map_or(u64::MAX, limit);
        let limit = self.max.read().map_or(u64::MAX, limit).min(high);
        let inactive = value(self.stat.read()?, "inactive_file").unwrap_or_default();
        self.known = Some(Known { limit, inactive });
        self.known
    }
}

impl Cpu {
    /// `max 100000` or, with a quota, `50000 100000`: microseconds in each period of so many.
    fn cores(&mut self) -> Option<f64> {
        let (quota, period) = self.max.read()?.trim().split_once(' ')?;
        let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
        Some(quota / period)
    }

    fn periods(&mut self) -> Option<Periods> {
        self.cores()?;
        let stat = self.stat.read()?;
        Some(Periods { all: value(stat, "nr_periods")?, throttled: value(stat, "nr_throttled")? })
    }
}

/// The number behind a name in lines such as `nr_periods 12`.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const GIB: u64 = 1 << 30;

    /// A `/proc` and a hierarchy of cgroups, as files.
    struct Machine {
        directory: TempDir,
    }

    impl Machine {
        /// With the process in `path`, and the hierarchy mounted from `root` on.
        fn new(path: &str, root: &str) -> Self {
            let machine = Machine { directory: tempfile::tempdir().expect("a directory") };
            let mount = machine.path("cgroup");
            machine.write("proc/self/cgroup", &format!("0::{path}\n"));
            machine.write(
                "proc/self/mountinfo",
                &format!(
                    "24 1 0:22 / /proc rw,nosuid - proc proc rw\n\
                     31 24 0:27 {root} {} ro,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
                    mount.display()
                ),
            );
            machine
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.path(name);
            std::fs::create_dir_all(path.parent().expect("below")).expect("a directory");
            // Written in place, as the kernel's are: an open file must see it.
            std::fs::write(path, text).expect("written");
        }

        fn memory(&self, cgroup: &str, current: u64, inactive: u64, max: &str, high: &str) {
            self.write(&format!("{cgroup}/memory.current"), &format!("{current}\n"));
            let stat = format!("anon 1\nfile 7\nactive_file 5\ninactive_file {inactive}\ninactive_file_x 9\n");
            self.write(&format!("{cgroup}/memory.stat"), &stat);
            self.write(&format!("{cgroup}/memory.max"), &format!("{max}\n"));
            self.write(&format!("{cgroup}/memory.high"), &format!("{high}\n"));
        }

        fn cpu(&self, cgroup: &str, max: &str, periods: u64, throttled: u64) {
            self.write(&format!("{cgroup}/cpu.max"), &format!("{max}\n"));
            let stat = format!("usage_usec 5\nnr_periods {periods}\nnr_throttled {throttled}\nthrottled_usec 7\n");
            self.write(&format!("{cgroup}/cpu.stat"), &stat);
        }

        fn open(&self) -> Cgroups {
            Cgroups::open(&self.path("proc"))
        }
    }

    #[test]
    fn a_container_that_sees_only_its_own_cgroup() {
        let machine = Machine::new("/", "/");
        machine.memory("cgroup", 900, 100, &GIB.to_string(), "max");
        machine.cpu("cgroup", "50000 100000", 40, 10);
        let mut cgroups = machine.open();
        assert_eq!(cgroups.memory(), Some(Usage { used: 800, limit: GIB }));
        assert_eq!(cgroups.periods(), Some(Periods { all: 40, throttled: 10 }));
        assert_eq!(cgroups.cores(), Some(0.5));
        machine.memory("cgroup", 950, 60, "2048", "1024");
        assert_eq!(cgroups.memory(), Some(Usage { used: 850, limit: GIB }), "what is in use is read each time");
        cgroups.refresh();
        assert_eq!(cgroups.memory(), Some(Usage { used: 890, limit: 1024 }), "and the rest now and then");
        machine.memory("cgroup", 50, 60, "2048", "1024");
        assert_eq!(cgroups.memory(), Some(Usage { used: 0, limit: 1024 }), "less than nothing is nothing");
    }

    #[test]
    fn of_all_cgroups_above_the_fullest_counts() {
        let machine = Machine::new("/system.slice/weir.service", "/");
        machine.memory("cgroup/system.slice/weir.service", 500, 0, "max", "max");
        machine.memory("cgroup/system.slice", 800, 0, "1000", "max");
        machine.cpu("cgroup/system.slice", "max 100000", 0, 0);
        machine.memory("cgroup", 900, 0, "2000", "max");
        let mut cgroups = machine.open();
        assert_eq!(cgroups.memory(), Some(Usage { used: 800, limit: 1000 }));
        assert_eq!((cgroups.periods(), cgroups.cores()), (None, None));
        machine.memory("cgroup/system.slice/weir.service", 500, 0, "510", "max");
        cgroups.refresh();
        assert_eq!(cgroups.memory(), Some(Usage { used: 500, limit: 510 }));
    }

    #[test]
    fn a_container_in_the_hosts_namespace_finds_itself_below_what_is_mounted() {
        let machine = Machine::new("/docker/abc/worker", "/docker/abc");
        machine.memory("cgroup/worker", 1, 0, "10", "max");
        assert_eq!(machine.open().memory(), Some(Usage { used: 1, limit: 10 }));
    }

    #[test]
    fn one_that_was_put_elsewhere_looks_at_what_is_mounted_and_at_nothing_outside() {
        for path in ["/elsewhere", "/../outside"] {
            let machine = Machine::new(path, "/docker/abc");
            machine.memory("outside", 9, 0, "10", "max");
            machine.memory("cgroup", 1, 0, "10", "max");
            assert_eq!(machine.open().memory(), Some(Usage { used: 1, limit: 10 }), "{path}");
        }
    }

    #[test]
    fn version_1_and_no_cgroup_at_all_have_no_limit() {
        let machine = Machine::new("/", "/");
        machine.write("proc/self/cgroup", "4:memory:/abc\n3:cpu,cpuacct:/\n0::/\n");
        let mut cgroups = machine.open();
        assert!(cgroups.has_version_1 && cgroups.memory().is_none() && cgroups.periods().is_none());
        let nothing = tempfile::tempdir().expect("a directory");
        assert!(Cgroups::open(nothing.path()).memory().is_none());
    }

    #[test]
    fn a_cgroup_that_is_gone_has_nothing_to_say() {
        let machine = Machine::new("/", "/");
        machine.memory("cgroup", 900, 100, "1000", "max");
        let mut cgroups = machine.open();
        machine.write("cgroup/memory.current", "");
        assert_eq!(cgroups.memory(), None);
    }
}
