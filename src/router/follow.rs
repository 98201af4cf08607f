//! The loop that joins a pool's registry and its view: a snapshot, then the changes after it.
//!
//! While the registry is away the router goes on from its last view. It resumes where it was; only when the registry no
//! longer holds the changes in between does it take a snapshot again.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::channels::Channels;
use super::dispatch::Dispatcher;
use crate::registry::{Cursor, Registry, RegistryError};
use crate::task::PoolName;

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// How often what only time can end is looked at.
const TICK: Duration = Duration::from_millis(50);

/// Follows the registry of a pool until the token is cancelled.
pub(super) async fn follow(
    pool: PoolName,
    registry: Arc<dyn Registry>,
    dispatcher: Dispatcher,
    channels: Arc<Channels>,
    token: CancellationToken,
) {
    token
        .run_until_cancelled(async {
            let mut cursor = None;
            let mut failures = 0;
            loop {
                match step(&pool, &*registry, &dispatcher, &channels, cursor.as_ref()).await {
                    Ok(next) => {
                        if failures > 0 {
                            tracing::info!(%pool, "the registry answers again");
                        }
                        (cursor, failures) = (Some(next), 0);
                    }
                    Err(RegistryError::Lagged) => cursor = None,
                    Err(error) => {
                        if failures == 0 {
                            tracing::warn!(%pool, "routing goes on from the last view: {error}");
                        }
                        dispatcher.set_stale(&pool);
                        tokio::time::sleep(backoff(failures)).await;
                        failures += 1;
                    }
                }
            }
        })
        .await;
}

async fn step(
    pool: &PoolName,
    registry: &dyn Registry,
    dispatcher: &Dispatcher,
    channels: &Channels,
    cursor: Option<&Cursor>,
) -> Result<Cursor, RegistryError> {
    match cursor {
        None => {
            let snapshot = registry.snapshot().await?;
            let cursor = snapshot.cursor.clone();
            dispatcher.replace(pool, snapshot);
            Ok(cursor)
        }
        Some(cursor) => {
            let changes = registry.changes(cursor).await?;
            channels.close(&dispatcher.apply(pool, changes.changes));
            Ok(changes.cursor)
        }
    }
}

/// Lets the dispatcher see that time passes, until the token is cancelled.
pub(super) async fn tick(dispatcher: Dispatcher, channels: Arc<Channels>, token: CancellationToken) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while token.run_until_cancelled(ticks.tick()).await.is_some() {
        channels.close(&dispatcher.tick());
        channels.close_idle(Instant::now());
    }
}

/// Doubles with each failure; moved at random so that routers that lost the registry together come back apart.
fn backoff(failures: u32) -> Duration {
    let pause = RETRY_FIRST.saturating_mul(2u32.saturating_pow(failures.min(10))).min(RETRY_MAX);
    pause.mul_f64(rand::rng().random_range(0.8..1.2))
}
