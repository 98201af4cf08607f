//! A process and its children, as one process group: seen to its end, signalled as a whole, measured as a whole.
//!
//! The group is swept with SIGKILL before its first process is reaped: until then its id cannot be another's. A child
//! that makes a session of its own leaves the group and is not weir's any more.

use std::collections::HashMap;
use std::io;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

/// A process group by its first process, which is not reaped while this lives. Dropping it ends the group.
pub(super) struct Group {
    pid: Pid,
    is_over: bool,
}

impl Group {
    /// The group of a child that was started as the first of its own.
    pub(super) fn of(child: &Child) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(child.id()?).ok()?)?;
        Some(Group { pid, is_over: false })
    }

    /// The id of the group and of its first process.
    pub(super) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits until the first process has ended; it stays to be reaped.
    pub(super) async fn ended(&self) {
        // It listens before it looks, so that no end is missed.
        let Ok(mut children) = signal(SignalKind::child()) else { return std::future::pending().await };
        while !self.has_ended() {
            children.recv().await;
        }
    }

    fn has_ended(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        !matches!(waitid(WaitId::Pid(self.pid), look), Ok(None))
    }

    /// Asks all of the group to end.
    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends all of the group.
    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if !self.is_over {
            // It fails only where nobody is left.
            let _ = kill_process_group(self.pid, signal);
        }
    }

    /// Its first process was reaped: the id may soon be another's.
    pub(super) fn over(&mut self) {
        self.is_over = true;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Resident bytes by process group, from one look at `/proc`; empty on a system that has none.
pub(super) fn resident_by_group() -> HashMap<u32, u64> {
    let page = rustix::param::page_size() as u64;
    let mut groups = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        if !entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        let stat = std::fs::read_to_string(entry.path().join("stat"));
        if let Some((group, pages)) = group_and_pages(stat) {
            *groups.entry(group).or_default() += pages * page;
        }
    }
    groups
}

/// Fields 5 and 24 of proc(5)'s `stat`. Field 2 is the program's name in parentheses, and may hold anything.
fn group_and_pages(stat: io::Result<String>) -> Option<(u32, u64)> {
    let stat = stat.ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let group = fields.nth(2)?.parse().ok()?;
    let pages = fields.nth(18)?.parse().ok()?;
    Some((group, pages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_this_very_group_is_seen() {
        let group = rustix::process::getpgrp().as_raw_nonzero().get().unsigned_abs();
        let resident = resident_by_group()[&group];
        assert!((1 << 20..1 << 40).contains(&resident), "{resident}");
        let odd = "7 (a) b) c) S 1 42 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5 1000 77 18446744073709551615";
        assert_eq!(group_and_pages(Ok(odd.into())), Some((42, 77)));
    }
}
