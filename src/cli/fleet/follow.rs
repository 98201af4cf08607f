//! The loops between the registry and the table.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::lifecycle::Lifecycle;
use crate::registry::{Change, Cursor, HEARTBEAT, Presence, Registry, RegistryError};
use crate::task::WorkerId;

/// Updates that may wait for the screen; the loops wait beyond that.
const UPDATES: usize = 16;

/// The pause after a failed read.
const RETRY: Duration = Duration::from_millis(500);

/// What the registry said, or that it did not.
pub(super) enum Update {
    /// Everyone.
    Snapshot(Vec<Presence>),
    /// What has changed since; empty when nothing did.
    Changes(Vec<Change>),
    /// What the workers on the screen said last.
    Seen(Vec<Presence>),
    /// It cannot be read.
    Away(RegistryError),
}

/// The running loops.
pub(super) struct Following {
    pub(super) updates: mpsc::Receiver<Update>,
    watched: watch::Sender<Vec<WorkerId>>,
}

impl Following {
    /// They end with the lifecycle.
    pub(super) fn start(registry: Arc<dyn Registry>, lifecycle: &Lifecycle) -> Self {
        let (sender, updates) = mpsc::channel(UPDATES);
        let (watched, watching) = watch::channel(Vec::new());
        let token = lifecycle.token();
        let (follow, look) = (follow(registry.clone(), sender.clone()), look(registry, sender, watching));
        lifecycle.spawn("follow", async move {
            token.run_until_cancelled(async { tokio::join!(follow, look) }).await;
        });
        Following { updates, watched }
    }

    /// Says who is on the screen.
    pub(super) fn watch(&self, workers: Vec<WorkerId>) {
        self.watched.send_replace(workers);
    }
}

/// A snapshot, then changes; again a snapshot when changes were missed.
async fn follow(registry: Arc<dyn Registry>, updates: mpsc::Sender<Update>) {
    let mut cursor: Option<Cursor> = None;
    loop {
        let update = match &cursor {
            None => registry.snapshot().await.map(|snapshot| (Update::Snapshot(snapshot.workers), snapshot.cursor)),
            Some(after) => {
                registry.changes(after).await.map(|changes| (Update::Changes(changes.changes), changes.cursor))
            }
        };
        let sent = match update {
            Ok((update, next)) => {
                cursor = Some(next);
                updates.send(update).await
            }
            Err(RegistryError::Lagged) => {
                cursor = None;
                continue;
            }
            Err(error) => {
                tokio::time::sleep(RETRY).await;
                updates.send(Update::Away(error)).await
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Looks up who is on the screen, once per heartbeat. That the registry is away, the other loop says.
async fn look(registry: Arc<dyn Registry>, updates: mpsc::Sender<Update>, watching: watch::Receiver<Vec<WorkerId>>) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        let workers = watching.borrow().clone();
        if workers.is_empty() {
            continue;
        }
        if let Ok(seen) = registry.look(&workers).await
            && updates.send(Update::Seen(seen)).await.is_err()
        {
            return;
        }
    }
}
