//! The loop that looks after the payload path: whether the store hangs or is back, whether the spool can be opened by now,
//! and what people are told.
//!
//! Those who lose a payload or detour it only count; the lines are written here, so that what was lost last is told,
//! too, though nothing follows. At the stop of the process, which counts what is pending as lost, it tells the rest.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::upload::Uploader;
use crate::lifecycle::Lifecycle;

/// How often it looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// At most one line about spooled payloads in this time.
const DETOUR_INTERVAL: Duration = Duration::from_secs(60);

/// Looks after what an uploader does.
pub(super) struct Watch {
    uploader: Arc<Uploader>,
    lifecycle: Lifecycle,
    spooling: Spooling,
    opening: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn new(uploader: &Arc<Uploader>, lifecycle: &Lifecycle) -> Self {
        Watch { uploader: uploader.clone(), lifecycle: lifecycle.clone(), spooling: Spooling::default(), opening: None }
    }

    /// Until the token is cancelled. Then, or when the runtime ends without it, nothing is pending any more: encoder
    /// threads must not wait for ever.
    pub fn run(self, token: CancellationToken) -> impl Future<Output = ()> + Send {
        let mut ending = Ending(self);
        async move {
            let looks = async {
                loop {
                    sleep(LOOK_INTERVAL).await;
                    ending.0.look();
                }
            };
            token.run_until_cancelled(looks).await;
        }
    }

    fn look(&mut self) {
        let now = Instant::now();
        self.uploader.look_for_a_stall(now);
        self.uploader.probe();
        self.open_spool();
        self.tell(now, false);
    }

    /// Opens a spool that could not be opened, if it can be by now.
    fn open_spool(&mut self) {
        let is_opening = self.opening.as_ref().is_some_and(|opening| !opening.is_finished());
        if !is_opening && self.uploader.spool.as_ref().is_some_and(|spool| spool.is_to_be_opened()) {
            let uploader = self.uploader.clone();
            self.opening = Some(self.lifecycle.blocking("payload spool", move || uploader.open_spool()));
        }
    }

    fn tell(&mut self, now: Instant, is_last: bool) {
        for loss in self.uploader.losses.due(&self.uploader.queue.ledger(), now, is_last) {
            let (lost, reason, why) = (loss.lost, loss.reason.as_str(), loss.why);
            let are = if loss.goes_on { "are being" } else { "were" };
            tracing::warn!(lost, reason, "payloads {are} lost: {why}");
        }
        let Some(spool) = &self.uploader.spool else { return };
        let (total, why) = self.uploader.detoured();
        match self.spooling.due(total, spool.load().bytes == 0, now, is_last) {
            Some(Told::Goes(spooled)) => {
                tracing::warn!(spooled, spool = spool.location(), "payloads go to the spool for now: {why}");
            }
            Some(Told::IsEmpty(spooled)) => tracing::info!(
                spooled,
                spool = spool.location(),
                "the spool is empty again: nothing of what went there waits for the store any more"
            ),
            None => {}
        }
    }
}

/// What is to be told of payloads that go to the spool. Each number is of those since it was last empty: an outage's own.
#[derive(Debug, Default)]
struct Spooling {
    /// How many had gone there when it was last empty.
    before: u64,
    /// How many had at the last line.
    told: u64,
    last_line: Option<Instant>,
    /// It was said that payloads go there, and not yet that all of them have left it.
    is_told: bool,
}

/// What one line says, and of how many payloads.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Goes(u64),
    IsEmpty(u64),
}

impl Spooling {
    /// The line that is due at a look, `total` payloads having gone there so far. One that would come when they have left
    /// it again does not: it would say what is over.
    fn due(&mut self, total: u64, is_empty: bool, now: Instant, is_last: bool) -> Option<Told> {
        let spooled = total - self.before;
        if is_empty {
            (self.before, self.told) = (total, total);
            return std::mem::take(&mut self.is_told).then_some(Told::IsEmpty(spooled));
        }
        let is_early = self.last_line.is_some_and(|last| now.saturating_duration_since(last) < DETOUR_INTERVAL);
        if total == self.told || is_early && !is_last {
            return None;
        }
        (self.told, self.last_line, self.is_told) = (total, Some(now), true);
        Some(Told::Goes(spooled))
    }
}

/// Ends the payload path when it is dropped.
struct Ending(Watch);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.uploader.queue.abandon();
        self.0.uploader.close_spool();
        self.0.tell(Instant::now(), true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_an_outage_is_its_own() {
        let (mut spooling, start) = (Spooling::default(), Instant::now());
        let mut due =
            |total, is_empty, seconds| spooling.due(total, is_empty, start + Duration::from_secs(seconds), false);
        assert_eq!(due(0, true, 0), None);
        assert_eq!(due(5, false, 1), Some(Told::Goes(5)));
        assert_eq!(due(21, false, 30), None, "it was said within the minute");
        assert_eq!(due(25, false, 61), Some(Told::Goes(25)), "all of this outage");
        assert_eq!(due(29, true, 70), Some(Told::IsEmpty(29)));
        assert_eq!(due(31, false, 80), None, "it was said within the minute");
        assert_eq!(due(37, false, 130), Some(Told::Goes(8)), "of the second one");
        assert_eq!(due(37, true, 131), Some(Told::IsEmpty(8)));
        assert_eq!(due(40, false, 140), None);
        assert_eq!(due(40, true, 150), None, "that they went there was never said");
        assert_eq!(due(40, true, 999), None, "and is no more to be said");
    }

    #[test]
    fn what_a_stop_spools_is_told_at_once() {
        let (mut spooling, now) = (Spooling::default(), Instant::now());
        assert_eq!(spooling.due(1, false, now, false), Some(Told::Goes(1)));
        assert_eq!(spooling.due(9, false, now, true), Some(Told::Goes(9)));
        assert_eq!(spooling.due(9, false, now, true), None);
    }
}
