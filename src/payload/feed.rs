//! The loop that carries spooled payloads to the store, oldest first, while it takes them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::health::Leave;
use super::ledger::Reason;
use super::queue::End;
use super::spool::{Entry, ReadError, Spool};
use super::store::Object;
use super::upload::{PendingPayload, Uploader};
use crate::lifecycle::Lifecycle;

/// How often the spool is searched for payloads that are too old.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(30);

/// How often a spool that has nothing to give is looked into all the same: what it has may rest, or its disk may have failed.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Feeds spooled payloads to the store.
pub(super) struct Feed {
    pub uploader: Arc<Uploader>,
    pub lifecycle: Lifecycle,
}

impl Feed {
    /// Until the token is cancelled or the process is about to end.
    pub async fn run(self, token: CancellationToken) {
        token.run_until_cancelled(self.feed()).await;
    }

    async fn feed(&self) {
        let Some(spool) = &self.uploader.spool else { return };
        let mut expire_at = Instant::now();
        loop {
            if expire_at <= Instant::now() {
                expire_at = Instant::now() + EXPIRE_INTERVAL;
                self.expire().await;
            }
            if self.uploader.health.is_away() {
                let _ = timeout_at(expire_at, self.uploader.health.back()).await;
                continue;
            }
            let Some(entry) = spool.take() else {
                let _ = timeout(LOOK_INTERVAL, self.uploader.spooled.notified()).await;
                continue;
            };
            let Some(leave) = self.uploader.health.leave(entry.refusals) else {
                spool.untake(entry);
                continue;
            };
            let Some(pending) = self.uploader.queue.unspool(entry.bytes).await else { return };
            let (uploader, lifecycle) = (self.uploader.clone(), self.lifecycle.clone());
            self.lifecycle.spawn("payload upload from the spool", async move {
                let stop = lifecycle.token();
                // Letting go of `pending` at a stop counts it as spooled, for the file is there.
                stop.run_until_cancelled(upload(uploader, &lifecycle, entry, pending, leave)).await;
            });
        }
    }

    async fn expire(&self) {
        let uploader = self.uploader.clone();
        let expire = move || uploader.spool.as_ref().map_or(0, Spool::expire);
        let expired = self.lifecycle.blocking("payload spool", expire).await.unwrap_or_default();
        if expired > 0 {
            self.uploader.queue.forget_spooled(expired, Reason::SpoolAge);
        }
    }
}

async fn upload(
    uploader: Arc<Uploader>,
    lifecycle: &Lifecycle,
    mut entry: Entry,
    pending: PendingPayload,
    leave: Leave,
) {
    let reader = uploader.clone();
    let read = move || reader.spool.as_ref().map(|spool| spool.read(&entry));
    let Ok(Some(read)) = lifecycle.blocking("payload spool", read).await else { return };
    let object: Object = match read {
        Ok(object) => object,
        Err(ReadError::Io(error)) => {
            tracing::warn!(file = %entry.name, "a spooled payload cannot be read for now: {error}");
            pending.end(End::Spooled);
            uploader.spool.iter().for_each(|spool| spool.untake(entry));
            return;
        }
        Err(error) => {
            remove(&uploader, lifecycle, entry).await;
            let name = entry.name;
            return uploader.lost(pending, Reason::SpoolCorrupt, &format!("{name} in the spool is given up: {error}"));
        }
    };
    match uploader.put(&object, leave).await {
        Ok(()) => {
            remove(&uploader, lifecycle, entry).await;
            pending.end(End::Stored);
        }
        Err(error) if error.is_its_own() => {
            remove(&uploader, lifecycle, entry).await;
            uploader.lost(pending, Reason::Store, &error.to_string());
        }
        Err(_) => {
            entry.refusals.add(uploader.health.taken());
            // Counted first: what can be taken out of the spool is in its column.
            pending.end(End::Spooled);
            if let Some(spool) = &uploader.spool {
                spool.put_back(entry);
                uploader.spooled.notify_one();
            }
        }
    }
}

/// Removes the file of one that is done with. A process that is killed before that uploads it once more, under the same
/// key.
async fn remove(uploader: &Arc<Uploader>, lifecycle: &Lifecycle, entry: Entry) {
    let uploader = uploader.clone();
    let remove = move || uploader.spool.as_ref().map(|spool| spool.remove(entry));
    let _ = lifecycle.blocking("payload spool", remove).await;
}
