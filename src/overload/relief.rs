//! Memory that was freed goes back to the system at once while memory is short.
//!
//! An allocator keeps what is freed for the next who asks, so that a worker whose tasks have ended may look as full as
//! before. jemalloc keeps it for some ten seconds (`dirty_decay_ms`), after which it comes back slowly; with a time of 0,
//! as its manual has it, at once. That is what it is told while memory is short, and costs whoever frees and allocates
//! meanwhile a system call and page faults. Without the feature `jemalloc` there is nothing that could be told without
//! unsafe code.

#[cfg(feature = "jemalloc")]
use std::collections::BTreeMap;

#[cfg(feature = "jemalloc")]
use tikv_jemalloc_ctl::{Access, AsName, Mib, arenas};

/// What has been told to the allocator.
#[derive(Debug, Default)]
pub(super) struct Relief {
    /// The arenas that keep nothing now, and for how many milliseconds each did before; less than 0 is for good.
    #[cfg(feature = "jemalloc")]
    kept_before: BTreeMap<usize, isize>,
}

#[cfg(feature = "jemalloc")]
impl Relief {
    /// Has the allocator keep nothing, or as much as before. To be told again and again while memory is short: each time
    /// it gives back, on the calling thread, what it has kept nevertheless, where several threads freed at the same time
    /// or one has begun an arena since.
    pub(super) fn set(&mut self, wanted: bool) {
        if !wanted && self.kept_before.is_empty() {
            return;
        }
        let Ok(mut decay) = b"arena.0.dirty_decay_ms\0".name().mib::<[usize; 3]>() else { return };
        let mut of = |arena| -> Mib<[usize; 3]> {
            decay[1] = arena;
            decay
        };
        for arena in 0..arenas::narenas::read().unwrap_or_default() as usize {
            // One that nobody uses yet is not there.
            if let Ok(decay_ms) = of(arena).update(0_isize) {
                self.kept_before.entry(arena).or_insert(decay_ms);
            }
        }
        if !wanted {
            for (arena, decay_ms) in std::mem::take(&mut self.kept_before) {
                // No arena is ever taken away: what could be set before can be set again.
                let _ = of(arena).write(decay_ms);
            }
        }
    }
}

#[cfg(not(feature = "jemalloc"))]
impl Relief {
    pub(super) fn set(&mut self, _wanted: bool) {}
}
