//! The loop of the profiling mode: setting → lease → profile → payload store.
//!
//! While the setting `profiling` asks for it, one worker of the pool at a time samples what it spends its processor time
//! on: for the time that is set, or until it ends. It then stores one file, and gives the lease back for the next. The
//! lease lies in the registry and has to be renewed. A worker that has lost it stops at once and stores nothing: another
//! may profile by now. The key of what is stored has the lease's token in it, so that whatever a worker with an older token
//! still does, it cannot touch what one with a newer token has stored.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::announce::Identity;
use crate::payload::{Body, Object, Store};
use crate::registry::{LEASE_RENEWAL, LEASE_TTL, Registry, RegistryError};
use crate::settings::{Profiling, Settings};
use crate::telemetry::Telemetry;
use crate::telemetry::profile::{CpuProfile, Form, MAX_HZ, PPROF_TYPE, ProfileError, Profiler, Sampling};

/// What the lease is called.
const LEASE: &str = "profile";

/// What all keys of profiles start with.
const PREFIX: &str = "profiles";

/// How long samples are gathered before names are looked up: the sampler may write what does not fit into its memory to a
/// file, some 100 KB a second at worst.
const PART: Duration = Duration::from_secs(300);

/// How often a worker that waits looks whether it is its turn, or whether the profiler is free.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// How long storing a profile may take, further attempts included.
const STORE_WITHIN: Duration = Duration::from_secs(8);

/// Between two attempts to store it.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// How long a drain waits for the profile.
pub(super) const STOPS_WITHIN: Duration = Duration::from_secs(10);

/// Profiles a worker when it is told to.
pub(super) struct ProfilingMode {
    pub(super) identity: Identity,
    pub(super) registry: Arc<dyn Registry>,
    pub(super) settings: watch::Receiver<Arc<Settings>>,
    /// None where payloads are not kept.
    pub(super) store: Option<Arc<dyn Store>>,
    pub(super) profiler: Profiler,
    pub(super) metrics: Metrics,
}

/// What became of profiles that the setting asked for.
pub(super) struct Metrics {
    holds_lease: Gauge,
    stored: Counter,
    failed: Counter,
    lease_lost: Counter,
}

impl Metrics {
    pub(super) fn register(telemetry: &Telemetry) -> Self {
        const TOTAL: &str = "weir_profile_uploads_total";
        telemetry.register(|| {
            describe_gauge!("weir_profile_lease_held", "1 while it is this worker's turn to profile itself.");
            describe_counter!(
                TOTAL,
                "Profiles that the setting asked for: stored, not stored (failed), thrown away because the lease was lost."
            );
            let total = |outcome: &'static str| counter!(TOTAL, "outcome" => outcome);
            Metrics {
                holds_lease: gauge!("weir_profile_lease_held"),
                stored: total("stored"),
                failed: total("failed"),
                lease_lost: total("lease_lost"),
            }
        })
    }
}

/// The lease, as its holder knows it.
struct Held {
    token: u64,
    /// It holds at least until then, by this worker's clock.
    until: Instant,
    renew_at: Instant,
}

impl Held {
    /// By an answer to what was asked at `asked`: the registry's time began to run after that.
    fn since(asked: Instant, token: u64) -> Self {
        Held { token, until: asked + LEASE_TTL, renew_at: asked + LEASE_RENEWAL }
    }
}

/// Why a worker stops to sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// This part is long enough.
    PartIsOver,
    /// The time that was set is over.
    TimeIsOver,
    /// The setting asks for something else.
    SettingChanged,
    /// The worker ends.
    Stopping,
    LeaseLost,
}

impl ProfilingMode {
    /// Follows the setting until the token is cancelled; what has been sampled is stored before it returns.
    pub(super) async fn run(mut self, token: CancellationToken) {
        let mut done = Profiling::Off;
        while !token.is_cancelled() {
            let wanted = self.settings.borrow_and_update().profiling;
            let has_changed = if wanted == Profiling::Off || wanted == done {
                done = wanted;
                token.run_until_cancelled(self.settings.changed()).await
            } else if self.can_store() {
                if self.turn(wanted, &token).await == Some(Why::TimeIsOver) {
                    done = wanted;
                    continue;
                }
                let waited = tokio::time::timeout(LOOK_INTERVAL, self.settings.changed());
                token.run_until_cancelled(waited).await.map(|waited| waited.unwrap_or(Ok(())))
            } else {
                done = wanted;
                continue;
            };
            // The settings end with the worker.
            if !matches!(has_changed, Some(Ok(()))) {
                return;
            }
        }
    }

    fn can_store(&self) -> bool {
        if self.store.is_none() {
            tracing::warn!(
                "the setting \"profiling\" has no effect: a profile goes where payloads do, and payloads.store is \"none\""
            );
        }
        self.store.is_some()
    }

    /// Profiles, if the lease is to be had. None if not.
    async fn turn(&mut self, wanted: Profiling, token: &CancellationToken) -> Option<Why> {
        let asked = Instant::now();
        let taken = token.run_until_cancelled(self.registry.lease(LEASE, None)).await?;
        let mut held = match taken {
            Ok(taken) => Held::since(asked, taken?),
            Err(error) => {
                tracing::warn!("whose turn it is to profile is not known: {error}");
                return None;
            }
        };
        self.metrics.holds_lease.set(1.0);
        tracing::info!(profiling = %wanted, lease = held.token, "profiling this worker");
        let (profile, why) = self.sample(wanted, &mut held, token).await;
        if let Some(profile) = profile.filter(|_| why != Why::LeaseLost) {
            self.keep(profile, &held).await;
        }
        if let Err(error) = self.registry.release(LEASE, held.token).await {
            tracing::warn!("the lease to profile ends by itself: {error}");
        }
        self.metrics.holds_lease.set(0.0);
        Some(why)
    }

    /// Samples part by part, and makes one profile of them. None when nothing came of it.
    async fn sample(
        &mut self,
        wanted: Profiling,
        held: &mut Held,
        token: &CancellationToken,
    ) -> (Option<CpuProfile>, Why) {
        let end = match wanted {
            Profiling::For(time) => Some(Instant::now() + time),
            Profiling::Off | Profiling::UntilExit => None,
        };
        let mut whole: Option<CpuProfile> = None;
        loop {
            let why = match self.start(wanted, end, held, token).await {
                Ok(sampling) => {
                    let why = self.until(wanted, end, Some(Instant::now() + PART), held, token).await;
                    if why == Why::LeaseLost {
                        self.lost(held);
                        return (None, why);
                    }
                    match sampling.finish().await {
                        Ok(part) => match &mut whole {
                            Some(whole) => whole.append(part),
                            None => whole = Some(part),
                        },
                        Err(error) => tracing::warn!("a part of the profile is missing: {error}"),
                    }
                    why
                }
                Err(why) => why,
            };
            if why != Why::PartIsOver {
                return (whole, why);
            }
        }
    }

    /// Begins to sample, as soon as nobody else has the process profiled.
    async fn start(
        &mut self,
        wanted: Profiling,
        end: Option<Instant>,
        held: &mut Held,
        token: &CancellationToken,
    ) -> Result<Sampling, Why> {
        loop {
            let time = end.map(|end| end.saturating_duration_since(Instant::now()));
            match self.profiler.start(MAX_HZ, time).await {
                Ok(sampling) => return Ok(sampling),
                Err(ProfileError::Busy { .. }) => {}
                Err(error) => tracing::warn!("{error}; trying again"),
            }
            match self.until(wanted, end, Some(Instant::now() + LOOK_INTERVAL), held, token).await {
                Why::PartIsOver => {}
                Why::LeaseLost => {
                    self.lost(held);
                    return Err(Why::LeaseLost);
                }
                why => return Err(why),
            }
        }
    }

    /// Renews the lease until there is a reason to stop.
    async fn until(
        &mut self,
        wanted: Profiling,
        end: Option<Instant>,
        part_end: Option<Instant>,
        held: &mut Held,
        token: &CancellationToken,
    ) -> Why {
        let at = async |when: Option<Instant>| match when {
            Some(when) => tokio::time::sleep_until(when).await,
            None => std::future::pending().await,
        };
        loop {
            tokio::select! {
                () = token.cancelled() => return Why::Stopping,
                () = at(end) => return Why::TimeIsOver,
                () = at(part_end) => return Why::PartIsOver,
                () = tokio::time::sleep_until(held.renew_at) => {
                    if !self.renew(held).await {
                        return Why::LeaseLost;
                    }
                }
                changed = self.settings.changed() => {
                    let now = self.settings.borrow_and_update().profiling;
                    match changed {
                        Ok(()) if now == wanted => {}
                        Ok(()) => return Why::SettingChanged,
                        Err(_) => return Why::Stopping,
                    }
                }
            }
        }
    }

    /// Whether the lease still holds. While the registry is away, it holds for as long as it was last given.
    async fn renew(&self, held: &mut Held) -> bool {
        let asked = Instant::now();
        match tokio::time::timeout_at(held.until, self.registry.lease(LEASE, Some(held.token))).await {
            Ok(Ok(Some(token))) => {
                *held = Held::since(asked, token);
                true
            }
            Ok(Ok(None)) => false,
            Ok(Err(error)) => self.is_spared(held, &error),
            Err(_) => false,
        }
    }

    fn is_spared(&self, held: &mut Held, error: &RegistryError) -> bool {
        tracing::debug!("the lease to profile was not renewed: {error}");
        held.renew_at = (Instant::now() + STORE_PAUSE).min(held.until);
        Instant::now() < held.until
    }

    fn lost(&self, held: &Held) {
        self.metrics.lease_lost.increment(1);
        tracing::warn!(lease = held.token, "the lease to profile is lost: what was sampled is thrown away");
    }

    /// Stores a profile, if the lease still holds.
    async fn keep(&self, profile: CpuProfile, held: &Held) {
        let Some(store) = &self.store else { return };
        let (samples, seconds) = (profile.samples(), profile.took().as_secs_f64());
        let mut now_held = Held { ..*held };
        let kept = async {
            if !self.renew(&mut now_held).await {
                self.lost(held);
                return Ok(());
            }
            let bytes = self.profiler.write(profile, Form::Pprof, String::new()).await?;
            let object = self.object(held.token, bytes.into());
            let mut last = store.put(&object).await;
            while last.is_err() {
                tokio::time::sleep(STORE_PAUSE).await;
                last = store.put(&object).await;
            }
            self.metrics.stored.increment(1);
            let location = store.location(&object.key);
            tracing::info!(%location, samples, seconds, lease = held.token, "the profile of this worker is stored");
            Ok::<(), ProfileError>(())
        };
        let reason = match tokio::time::timeout(STORE_WITHIN, kept).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the store did not take it within {} s", STORE_WITHIN.as_secs()),
        };
        self.metrics.failed.increment(1);
        tracing::error!(samples, seconds, "the profile of this worker is not stored: {reason}");
    }

    fn object(&self, token: u64, bytes: Bytes) -> Object {
        let Identity { worker, pool, incarnation, .. } = &self.identity;
        let day = Timestamp::now().strftime("%Y/%m/%d");
        let body = Body::from(bytes);
        Object {
            key: format!("{PREFIX}/{pool}/{day}/{token}-{worker}.pb.gz"),
            media_type: PPROF_TYPE.into(),
            metadata: vec![
                ("sha256".into(), body.sha256_hex()),
                ("worker".into(), worker.to_string()),
                ("incarnation".into(), incarnation.to_string()),
            ],
            body,
        }
    }
}
