//! A process and its children, as one process group: seen to its end, signalled as a whole, measured as a whole.
//!
//! The group is swept with SIGKILL before its first process is reaped: until then its id cannot be another's. A child
//! that makes a session of its own leaves the group and is not weir's any more.
//!
//! All groups are in one list, so that [`end_all`] can end them when the worker ends without dropping anything.

use std::collections::{HashMap, HashSet};
use std::io;

use parking_lot::{Mutex, const_mutex};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// All groups that were not swept yet.
static GROUPS: Mutex<Groups> = const_mutex(Groups { alive: None, is_closed: false });

struct Groups {
    alive: Option<HashSet<Pid>>,
    is_closed: bool,
}

/// Ends all processes of all programs at once, and has no more started: for a worker that does not end in order.
pub fn end_all() {
    let mut groups = GROUPS.lock();
    groups.is_closed = true;
    for pid in groups.alive.take().into_iter().flatten() {
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

/// A process group by its first process, which is not reaped while this lives. Dropping it ends the group.
pub(super) struct Group {
    pid: Pid,
    is_over: bool,
}

impl Group {
    /// Starts a command as the first process of a group of its own.
    pub(super) fn start(command: &mut Command) -> io::Result<(Child, Self)> {
        // No process is started that `end_all` does not know of.
        let mut groups = GROUPS.lock();
        if groups.is_closed {
            return Err(io::Error::other("the worker ends"));
        }
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let pid = pid.ok_or_else(|| io::Error::other("it has no id"))?;
        groups.alive.get_or_insert_default().insert(pid);
        Ok((child, Group { pid, is_over: false }))
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

    /// Ends all of the group. Nothing is left of it then that [`end_all`] would have to end.
    pub(super) fn kill(&self) {
        if self.is_over {
            return;
        }
        self.signal(Signal::KILL);
        if let Some(alive) = &mut GROUPS.lock().alive {
            alive.remove(&self.pid);
        }
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
