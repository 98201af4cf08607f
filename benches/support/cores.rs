//! Which cores a thread and what it starts may use, and what a process has used of them and of memory. For Linux.

use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Cores by their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores(Vec<usize>);

impl Cores {
    /// Those that this thread may use.
    pub fn available() -> Self {
        let set = sched_getaffinity(None).expect("Linux says which");
        Cores((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
    }

    /// The first of them.
    pub fn first(&self, count: usize) -> Self {
        Cores(self.0.iter().copied().take(count).collect())
    }

    /// The others, or all of them where there are no others.
    pub fn beside(&self, taken: &Self) -> Self {
        let others: Vec<_> = self.0.iter().copied().filter(|core| !taken.0.contains(core)).collect();
        if others.is_empty() { self.clone() } else { Cores(others) }
    }

    /// Binds this thread, and what it starts from now on, to them.
    pub fn bind(&self) {
        let mut set = CpuSet::new();
        self.0.iter().for_each(|core| set.set(*core));
        sched_setaffinity(None, &set).expect("these cores may be used");
    }
}

/// The processor time that a process has used so far, in steps of 10 ms.
pub fn processor_time(process: u32) -> Duration {
    // The fields after the name, which is in parentheses and may hold anything: the 12th and the 13th are the ticks in
    // user and in system mode.
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    let fields = stat.rsplit_once(')').expect("a name").1.split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("ticks")).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// The memory that a process has now.
pub fn resident_bytes(process: u32) -> u64 {
    let pages = std::fs::read_to_string(format!("/proc/{process}/statm")).expect("it runs");
    let pages: u64 = pages.split(' ').nth(1).expect("the second").parse().expect("pages");
    pages * rustix::param::page_size() as u64
}
