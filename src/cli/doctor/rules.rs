//! The rules of a diagnosis: what each measures, from which value on it counts, and what would explain it.
//!
//! docs/doctor.md has this table; a test compares them.

mod memory;
mod payloads;
mod pools;
mod process;
mod standing;
mod threads;
mod upstreams;
mod words;

use super::judge::{Cause, Seen};
use super::observation::Observation;
pub(super) use upstreams::LEAST_COMPARED;
pub(super) use words::{amount, bytes, percent, time};

/// One rule.
pub(super) struct Rule {
    pub cause: Cause,
    /// What is measured, with its unit.
    pub measures: &'static str,
    /// The value at which it means nothing, and the one from which on it is beyond doubt.
    pub nothing: f64,
    pub sure: f64,
    /// What would bring the same about, and how much of it: from 0, none, to 1, all.
    pub explained_by: &'static [(Cause, f64)],
    /// The page that says more.
    pub read: &'static str,
    pub look: fn(&Observation) -> Vec<Seen>,
}

impl Rule {
    /// From 0 to 1.
    pub fn strength(&self, measured: f64) -> f64 {
        let strength = (measured - self.nothing) / (self.sure - self.nothing);
        // What was divided by nothing is no sign of anything.
        if strength.is_nan() { 0.0 } else { strength.clamp(0.0, 1.0) }
    }
}

use Cause::{
    BlockedThreads, BlockingWait, CpuBusy, CpuThrottled, Descriptors, EncodingBehind, Ended, FailingUpstream,
    MemoryGrowth, MemoryLimit, NoisyLogs, ProcessesWait, RuntimeLag, SlotsFull, SlowUpstream, SocketsWait, StoreBehind,
    StuckTasks, TakesNone,
};

/// In an order in which causes come before what they bring about.
pub(super) const RULES: [Rule; 19] = [
    Rule {
        cause: Ended,
        measures: "times that the process ended, half as much for an end in order",
        nothing: 0.0,
        sure: 1.0,
        explained_by: &[],
        read: "docs/runbooks.md",
        look: standing::ended,
    },
    Rule {
        cause: CpuThrottled,
        measures: "share of the CPU quota's periods in which it was used up",
        nothing: 0.05,
        sure: 0.5,
        explained_by: &[],
        read: "docs/overload.md",
        look: process::throttled,
    },
    Rule {
        cause: BlockedThreads,
        measures: "async threads that an integration blocks, on average",
        nothing: 0.02,
        sure: 0.3,
        explained_by: &[],
        read: "docs/overload.md#who-blocks-a-thread",
        look: threads::blocked,
    },
    Rule {
        cause: Descriptors,
        measures: "share of the descriptors that are open, at the most",
        nothing: 0.7,
        sure: 0.9,
        explained_by: &[],
        read: "docs/runbooks.md#weirdescriptorsnearlimit",
        look: process::descriptors,
    },
    Rule {
        cause: MemoryLimit,
        measures: "share of the memory limit that is used, at the most",
        nothing: 0.75,
        sure: 0.9,
        explained_by: &[],
        read: "docs/runbooks.md#weirmemorynearlimit",
        look: memory::near_limit,
    },
    Rule {
        cause: StuckTasks,
        measures: "share of the tasks in flight that should have stopped and have not",
        nothing: 0.0,
        sure: 0.25,
        explained_by: &[(BlockedThreads, 0.9)],
        read: "docs/runbooks.md#weirtasksstuck",
        look: threads::stuck,
    },
    Rule {
        cause: FailingUpstream,
        measures: "share of an integration's tasks that fail, or of the time in which its breaker was open",
        nothing: 0.05,
        sure: 0.5,
        explained_by: &[(BlockedThreads, 0.5), (CpuThrottled, 0.5)],
        read: "docs/runbooks.md#weirtasksfail",
        look: upstreams::failing,
    },
    Rule {
        cause: SocketsWait,
        measures: "share of an integration's requests that wait for a socket",
        nothing: 0.05,
        sure: 0.4,
        explained_by: &[(BlockedThreads, 0.5)],
        read: "docs/http.md",
        look: pools::sockets,
    },
    Rule {
        cause: ProcessesWait,
        measures: "share of an exec integration's tasks that wait for a process",
        nothing: 0.05,
        sure: 0.4,
        explained_by: &[],
        read: "docs/exec.md",
        look: pools::processes,
    },
    Rule {
        cause: BlockingWait,
        measures: "share of the integrations' closures that wait for a blocking thread",
        nothing: 0.05,
        sure: 0.4,
        explained_by: &[],
        read: "docs/overload.md#who-blocks-a-thread",
        look: pools::blocking,
    },
    Rule {
        cause: CpuBusy,
        measures: "share of the processors that is used",
        nothing: 0.8,
        sure: 1.0,
        explained_by: &[(CpuThrottled, 0.9)],
        read: "docs/performance.md",
        look: process::busy,
    },
    Rule {
        cause: RuntimeLag,
        measures: "how late the async threads are, in seconds, on average, and 0.5 at the least where the worker sheds load for it",
        nothing: 0.02,
        sure: 0.5,
        explained_by: &[(BlockedThreads, 0.9), (CpuThrottled, 0.9), (CpuBusy, 0.9)],
        read: "docs/runbooks.md#weirruntimelags",
        look: threads::lag,
    },
    Rule {
        cause: SlowUpstream,
        measures: "mean time of an integration's runs over that before, or that on the other workers",
        nothing: 1.25,
        sure: 2.0,
        explained_by: &[
            (BlockedThreads, 0.9),
            (CpuThrottled, 0.9),
            (CpuBusy, 0.9),
            (RuntimeLag, 0.9),
            (SocketsWait, 0.9),
            (ProcessesWait, 0.9),
            (BlockingWait, 0.9),
        ],
        read: "docs/upstream.md",
        look: upstreams::slow,
    },
    Rule {
        cause: StoreBehind,
        measures: "share of the payloads' queue that is full while the uploads are what it waits for",
        nothing: 0.5,
        sure: 0.9,
        explained_by: &[],
        read: "docs/payloads.md",
        look: payloads::store,
    },
    Rule {
        cause: EncodingBehind,
        measures: "share of the payloads' queue that is full while the encoders are what it waits for",
        nothing: 0.5,
        sure: 0.9,
        explained_by: &[(CpuThrottled, 0.5), (BlockedThreads, 0.5)],
        read: "docs/payloads.md",
        look: payloads::encoding,
    },
    Rule {
        cause: TakesNone,
        measures: "share of the readings in which the worker drained, or N was 0",
        nothing: 0.05,
        sure: 0.5,
        explained_by: &[(Ended, 0.9)],
        read: "docs/settings.md",
        look: standing::takes_none,
    },
    Rule {
        cause: SlotsFull,
        measures: "share of the time in which a limit on slots was what binds, or of N that is held where it ever was, times \
                   the share of the processors that is idle",
        nothing: 0.5,
        sure: 0.8,
        explained_by: &[
            (BlockedThreads, 0.9),
            (CpuThrottled, 0.9),
            (RuntimeLag, 0.9),
            (StuckTasks, 0.9),
            (SocketsWait, 0.9),
            (ProcessesWait, 0.9),
            (BlockingWait, 0.9),
            (SlowUpstream, 0.9),
        ],
        read: "docs/raise.md",
        look: pools::slots,
    },
    Rule {
        cause: MemoryGrowth,
        measures: "growth of the memory in the window over what it was, from 8 MiB on",
        nothing: 0.05,
        sure: 0.3,
        explained_by: &[(EncodingBehind, 0.6), (StoreBehind, 0.6)],
        read: "docs/runbooks.md#weirmemorynearlimit",
        look: memory::growth,
    },
    Rule {
        cause: NoisyLogs,
        measures: "log lines lost per second, or 1/10000 of those said in it",
        nothing: 0.0,
        sure: 1.0,
        explained_by: &[],
        read: "docs/runbooks.md#weirloglineslost",
        look: process::noisy,
    },
];
