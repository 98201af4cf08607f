//! The loop that carries settings to what they tune: the split, batch's share, which pools are followed, the log level.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::channels::Channels;
use super::dispatch::Dispatcher;
use super::follow::follow;
use super::metrics::Metrics;
use super::split::Split;
use crate::lifecycle::Lifecycle;
use crate::registry::{Registries, Registry, RegistryError};
use crate::settings::Settings;
use crate::task::PoolName;
use crate::telemetry::logs::Level;

/// When a pool that could not be followed is tried again, and one that could not be let go.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What the settings change.
pub(super) struct Tuned {
    /// The pool of the configuration.
    pub(super) own: PoolName,
    pub(super) metrics: Arc<Metrics>,
    pub(super) level: Level,
    pub(super) following: Following,
}

/// The loops that follow pools.
pub(super) struct Following {
    registries: Registries,
    dispatcher: Dispatcher,
    channels: Arc<Channels>,
    loops: Lifecycle,
    running: BTreeMap<PoolName, CancellationToken>,
}

impl Tuned {
    /// Whether all is done is in the result: else it is to be applied again, for which there is no hurry.
    pub(super) fn apply(&mut self, settings: &Settings) -> Result<bool, RegistryError> {
        let split = Split::new(settings, &self.own);
        let pools: Vec<_> = split.pools().cloned().collect();
        pools.iter().for_each(|pool| self.metrics.open(pool));
        self.following.dispatcher.tune(split, settings.batch_share);
        if let Err(error) = self.level.set(&settings.log_level) {
            tracing::warn!("the log level stays as it is: {error}");
        }
        self.following.follow(&pools)
    }
}

impl Following {
    pub(super) fn new(
        registries: Registries,
        dispatcher: Dispatcher,
        channels: Arc<Channels>,
        loops: Lifecycle,
    ) -> Self {
        Following { registries, dispatcher, channels, loops, running: BTreeMap::new() }
    }

    /// Follows these pools, and others as long as they cannot be let go; false while there are such.
    fn follow(&mut self, pools: &[PoolName]) -> Result<bool, RegistryError> {
        self.running.retain(|pool, token| {
            let stays = pools.contains(pool) || !self.dispatcher.let_go(pool);
            if !stays {
                token.cancel();
            }
            stays
        });
        let mut failed = None;
        for pool in pools {
            if !self.running.contains_key(pool) {
                match self.registries.of(pool) {
                    Ok(registry) => self.start(pool, registry),
                    Err(error) => failed = Some(error),
                }
            }
        }
        failed.map_or_else(|| Ok(self.running.len() == pools.len()), Err)
    }

    fn start(&mut self, pool: &PoolName, registry: Arc<dyn Registry>) {
        let token = self.loops.token().child_token();
        let (dispatcher, channels) = (self.dispatcher.clone(), self.channels.clone());
        dispatcher.follows(pool);
        self.loops.spawn("follow", follow(pool.clone(), registry, dispatcher, channels, token.clone()));
        self.running.insert(pool.clone(), token);
    }
}

/// Applies each snapshot after the first until the token is cancelled.
pub(super) async fn tune(
    mut settings: watch::Receiver<Arc<Settings>>,
    mut tuned: Tuned,
    mut applied: Arc<Settings>,
    token: CancellationToken,
) {
    let mut retry = false;
    loop {
        let next = settings.borrow_and_update().clone();
        if retry || next != applied {
            let done = tuned.apply(&next);
            if let Err(error) = &done {
                tracing::warn!("not every pool is followed yet: {error}");
            }
            (applied, retry) = (next, !done.is_ok_and(|is_all| is_all));
        }
        let changed = async {
            match retry {
                false => settings.changed().await.is_ok(),
                true => !matches!(timeout(RETRY_AFTER, settings.changed()).await, Ok(Err(_))),
            }
        };
        if token.run_until_cancelled(changed).await != Some(true) {
            return;
        }
    }
}
