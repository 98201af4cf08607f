//! The loop that looks after the payload path: whether the store hangs, whether the spool can be opened by now, and what
//! people are told.
//!
//! Those who lose a payload or detour it only count; the lines are written here, so that what was lost last is told,
//! too, though nothing follows. At the stop of the process, which counts what is pending as lost, it tells the rest.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::losses::Tally;
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
    detours: Tally,
    /// It was said that payloads go to the spool, and not yet that all of them have left it.
    is_spool_told: bool,
    opening: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn new(uploader: &Arc<Uploader>, lifecycle: &Lifecycle) -> Self {
        Watch {
            uploader: uploader.clone(),
            lifecycle: lifecycle.clone(),
            detours: Tally::every(DETOUR_INTERVAL),
            is_spool_told: false,
            opening: None,
        }
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
            tracing::warn!(lost, reason, "payloads are being lost: {why}");
        }
        let Some(spool) = &self.uploader.spool else { return };
        let (total, why) = self.uploader.detoured();
        if let Some(spooled) = self.detours.due(total, now, is_last) {
            self.is_spool_told = true;
            tracing::warn!(spooled, spool = spool.location(), "payloads go to the spool for now: {why}");
        }
        if self.is_spool_told && spool.load().bytes == 0 {
            self.is_spool_told = false;
            tracing::info!(spool = spool.location(), "the spool is empty again: nothing waits for the store in it");
        }
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
