//! Memory that was freed goes back to the system at once while memory is short.
//!
//! An allocator keeps what is freed for the next who asks, so that a worker whose tasks have ended may look as full as
//! before. jemalloc keeps it for some ten seconds (`dirty_decay_ms`, and a curve on which it gives back less and less
//! late); while memory is short here it keeps nothing, which its manual says of a time of 0, and afterwards as before.
//! That costs whoever frees and allocates meanwhile a system call and page faults. Without the feature `jemalloc` there is
//! nothing to be told: the C library has `malloc_trim`, which no library wraps without unsafe code.

/// What has been told to the allocator.
#[derive(Debug, Default)]
pub(super) struct Relief {
    /// For how long each arena kept memory before; none while it does.
    #[cfg(feature = "jemalloc")]
    kept_before: Option<Vec<arenas::Kept>>,
}

#[cfg(feature = "jemalloc")]
impl Relief {
    /// Begins or ends it. The first time frees what is kept, some 0.1 ms per MiB on the calling thread.
    pub(super) fn set(&mut self, wanted: bool) {
        match (wanted, self.kept_before.take()) {
            (true, None) => self.kept_before = Some(arenas::keep_nothing()),
            (false, Some(before)) => arenas::keep_as(before),
            (_, as_is) => self.kept_before = as_is,
        }
    }
}

#[cfg(not(feature = "jemalloc"))]
impl Relief {
    pub(super) fn set(&mut self, _wanted: bool) {}
}

#[cfg(feature = "jemalloc")]
mod arenas {
    use tikv_jemalloc_ctl::{Access, AsName, Mib, arenas};

    /// An arena, and for how many milliseconds it keeps what was freed; less than 0 is for good.
    #[derive(Debug)]
    pub(super) struct Kept {
        arena: usize,
        decay_ms: isize,
    }

    pub(super) fn keep_nothing() -> Vec<Kept> {
        let Some(decay) = decay() else { return Vec::new() };
        let count = arenas::narenas::read().unwrap_or_default() as usize;
        let keep_nothing = |arena| {
            // An arena that nobody uses yet is not there.
            let decay_ms = of(decay, arena).update(0_isize).ok()?;
            // The arena of large allocations always gives back at once.
            (decay_ms != 0).then_some(Kept { arena, decay_ms })
        };
        (0..count).filter_map(keep_nothing).collect()
    }

    pub(super) fn keep_as(before: Vec<Kept>) {
        let Some(decay) = decay() else { return };
        for Kept { arena, decay_ms } in before {
            // An arena is never taken away: what could be set before can be set again.
            let _ = of(decay, arena).write(decay_ms);
        }
    }

    fn decay() -> Option<Mib<[usize; 3]>> {
        b"arena.0.dirty_decay_ms\0".name().mib().ok()
    }

    fn of(mut decay: Mib<[usize; 3]>, arena: usize) -> Mib<[usize; 3]> {
        decay[1] = arena;
        decay
    }
}
