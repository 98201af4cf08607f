//! The account of what became of every payload.
//!
//! In each snapshot, `offered + recovered = stored + spooled + dropped + pending`: a snapshot is taken under the
//! queue's one lock, so no payload is ever between two columns. Nothing leaves `pending` without a reason. A payload
//! comes in once, as offered or as recovered; `spooled` is what lies on disk now, and one that is taken from there to be
//! uploaded is pending until it is stored, or lies on disk again.

use std::fmt;

/// Why a payload was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// As many payloads were pending as may be, and this one was the least wanted.
    QueueItems,
    /// The pending payloads would have held more bytes than they may, and this one was the least wanted.
    QueueBytes,
    /// It could not be redacted or encoded.
    Encode,
    /// The store did not take it, retries included, or was known to be away, and there was no spool for it.
    Store,
    /// The process stopped before it was stored.
    Shutdown,
    /// The spool held as much as it may, and this one was the least wanted.
    SpoolFull,
    /// It had been in the spool for as long as it may.
    SpoolAge,
    /// The disk did not take it: it is full, read-only or broken.
    SpoolDisk,
    /// What was read back from the spool was not what had been written.
    SpoolCorrupt,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 9] = [
        Reason::QueueItems,
        Reason::QueueBytes,
        Reason::Encode,
        Reason::Store,
        Reason::Shutdown,
        Reason::SpoolFull,
        Reason::SpoolAge,
        Reason::SpoolDisk,
        Reason::SpoolCorrupt,
    ];

    /// The name used in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::QueueItems => "queue_items",
            Reason::QueueBytes => "queue_bytes",
            Reason::Encode => "encode",
            Reason::Store => "store",
            Reason::Shutdown => "shutdown",
            Reason::SpoolFull => "spool_full",
            Reason::SpoolAge => "spool_age",
            Reason::SpoolDisk => "spool_disk",
            Reason::SpoolCorrupt => "spool_corrupt",
        }
    }
}

/// One consistent snapshot, counted since the process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Payloads that came in.
    pub offered: u64,
    /// Payloads that an earlier life of the process had left in the spool.
    pub recovered: u64,
    /// Payloads that the store has confirmed.
    pub stored: u64,
    /// Payloads that lie in the spool now, to be uploaded later or by a later life of the process.
    pub spooled: u64,
    /// Payloads that wait, are being encoded, or are being uploaded.
    pub pending: u64,
    /// The bytes that those hold.
    pub pending_bytes: u64,
    dropped: [u64; Reason::ALL.len()],
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ledger { offered, recovered, stored, spooled, pending, .. } = self;
        write!(f, "{offered} offered, ")?;
        if *recovered > 0 {
            write!(f, "{recovered} recovered, ")?;
        }
        write!(f, "{stored} stored, ")?;
        if *spooled > 0 {
            write!(f, "{spooled} spooled, ")?;
        }
        write!(f, "{} dropped", self.dropped_in_all())?;
        let losses: Vec<_> = Reason::ALL.into_iter().filter(|reason| self.dropped(*reason) > 0).collect();
        for (index, reason) in losses.iter().enumerate() {
            let before = if index == 0 { " (" } else { ", " };
            write!(f, "{before}{} {}", reason.as_str(), self.dropped(*reason))?;
        }
        let after = if losses.is_empty() { "" } else { ")" };
        write!(f, "{after}, {pending} pending")
    }
}

impl Ledger {
    /// Payloads lost for `reason`.
    pub fn dropped(&self, reason: Reason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Payloads lost for any reason.
    pub fn dropped_in_all(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// Whether every payload is in exactly one column.
    pub fn balanced(&self) -> bool {
        self.offered + self.recovered == self.stored + self.spooled + self.dropped_in_all() + self.pending
    }

    pub(super) fn drop_for(&mut self, reason: Reason, count: u64) {
        self.dropped[reason as usize] += count;
    }
}
