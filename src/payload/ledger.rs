//! The account of what became of every payload.
//!
//! In each snapshot, `offered + recovered = stored + spooled + dropped + pending`: a snapshot is taken under the
//! queue's one lock, so no payload is ever between two columns. Nothing leaves `pending` without a reason.

use std::fmt;

/// Why a payload was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// As many payloads were pending as may be.
    QueueItems,
    /// With it, the pending payloads would have held more bytes than they may.
    QueueBytes,
    /// It could not be redacted or encoded.
    Encode,
    /// The store did not take it, retries included.
    Store,
    /// The process stopped before it was stored.
    Shutdown,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 5] =
        [Reason::QueueItems, Reason::QueueBytes, Reason::Encode, Reason::Store, Reason::Shutdown];

    /// The name used in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::QueueItems => "queue_items",
            Reason::QueueBytes => "queue_bytes",
            Reason::Encode => "encode",
            Reason::Store => "store",
            Reason::Shutdown => "shutdown",
        }
    }
}

/// One consistent snapshot, counted since the process started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Payloads that came in.
    pub offered: u64,
    /// Payloads that came back from an earlier life of the process.
    pub recovered: u64,
    /// Payloads that the store has confirmed.
    pub stored: u64,
    /// Payloads left on disk for a later life.
    pub spooled: u64,
    /// Payloads that wait, are being encoded, or are being uploaded.
    pub pending: u64,
    /// The bytes that those hold.
    pub pending_bytes: u64,
    dropped: [u64; Reason::ALL.len()],
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ledger { offered, stored, pending, .. } = self;
        write!(f, "{offered} offered, {stored} stored, {} dropped", self.dropped_in_all())?;
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
