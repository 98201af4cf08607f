//! The loop that carries what is learned of the upstreams to the gate: adaptive limits. It also says when a breaker may
//! be tried again, which time alone decides.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::gate::Gate;
use crate::task::IntegrationName;
use crate::upstream::Upstreams;

/// A limit is in tasks and the gate counts slots: what a task weighs may change with the settings.
const AT_LEAST_EVERY: Duration = Duration::from_secs(5);

/// Carries until the token is cancelled.
pub(super) async fn adapt(upstreams: Upstreams, gate: Gate, token: CancellationToken) {
    let mut narrowed: BTreeMap<IntegrationName, u32> = BTreeMap::new();
    loop {
        let limits = upstreams.limits();
        if !limits.is_empty() {
            let loads = gate.by_integration().into_iter();
            let weights: BTreeMap<_, _> = loads.map(|load| (load.integration, load.weight)).collect();
            for (integration, tasks) in limits {
                let slots = tasks.saturating_mul(weights.get(&integration).copied().unwrap_or(1));
                if narrowed.get(&integration) != Some(&slots) {
                    gate.narrow(&integration, Some(slots));
                    narrowed.insert(integration, slots);
                }
            }
        }
        let until = Instant::now() + AT_LEAST_EVERY;
        let until = upstreams.refresh().map_or(until, |next| next.min(until));
        let changed = async {
            tokio::select! {
                () = upstreams.changed() => {}
                () = sleep_until(until) => {}
            }
        };
        if token.run_until_cancelled(changed).await.is_none() {
            return;
        }
    }
}
