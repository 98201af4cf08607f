//! Why load is shed, in words, with the numbers that were judged.
//!
//! A signal stays high for a while after its value has fallen: then the number of now is below the threshold, and would
//! explain nothing. So what is said is the last reading that reached the threshold, as something of the past.

use std::fmt::{self, Display, Formatter};

use super::{Readings, Signal, Usage, Whose, bytes_text};

/// A signal that is high, and what made it so.
#[derive(Debug, Clone)]
pub(super) struct Why {
    pub(super) signal: Signal,
    /// The last readings that reached the threshold.
    pub(super) judged: Readings,
    /// Whether these are the readings of now.
    pub(super) is_now: bool,
}

impl Display for Why {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Why { signal, judged, is_now } = self;
        let (are, just_now) = if *is_now { ("are", "") } else { ("were", " just now") };
        match signal {
            Signal::Memory => match judged.memory {
                Some((Usage { used, limit }, whose)) => {
                    let (used, limit, whose) = (bytes_text(used), bytes_text(limit), limit_of(whose));
                    write!(out, "{used} of {limit} of memory {are} used{just_now} ({whose})")?;
                    match judged.memory_expected.map(bytes_text).filter(|expected| *expected != used) {
                        Some(expected) => {
                            write!(out, ", and it {} about to grow to {expected}", if *is_now { "is" } else { "was" })
                        }
                        None => Ok(()),
                    }
                }
                None => out.write_str("nearly all memory was used just now"),
            },
            Signal::Descriptors => match judged.descriptors {
                Some(Usage { used, limit }) => write!(out, "{used} of {limit} descriptors {are} open{just_now}"),
                None => out.write_str("nearly all descriptors were open just now"),
            },
            Signal::BlockedThread => match &judged.blocked_by {
                Some((integration, time)) => {
                    let (seconds, until) = (time.as_secs_f64(), if *is_now { "" } else { ", until just now" });
                    write!(out, "integration {integration} has blocked an async thread for {seconds:.1} s{until}")
                }
                None => out.write_str("an integration blocked an async thread just now"),
            },
            Signal::CpuQuota => {
                let percent = judged.throttled.unwrap_or_default() * 100.0;
                write!(out, "the CPU quota was used up in {percent:.0}% of the last periods{just_now}")
            }
            Signal::Lag => {
                let wake = if *is_now { "wake" } else { "woke" };
                write!(out, "its tasks {wake} up {} ms late{just_now}", judged.lag.as_millis())
            }
        }
    }
}

fn limit_of(whose: Whose) -> &'static str {
    match whose {
        Whose::Configuration => "overload.memory.limit_bytes",
        Whose::Cgroup => "the cgroup's limit",
        Whose::Machine => "the machine's memory",
    }
}
