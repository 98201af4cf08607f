//! The loop that carries settings to what they tune: the gate's limits and the log level. (Payload sampling is read
//! from the snapshot by each run, for its integration.)

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::gate::Gate;
use crate::settings::Settings;
use crate::telemetry::logs::Level;

/// Applies each snapshot until the token is cancelled.
pub(super) async fn tune(
    mut settings: watch::Receiver<Arc<Settings>>,
    gate: Gate,
    level: Level,
    token: CancellationToken,
) {
    let mut applied: Option<Arc<Settings>> = None;
    loop {
        let next = settings.borrow_and_update().clone();
        let before = applied.as_deref();
        let limits = next.limits();
        if before.is_none_or(|before| before.limits() != limits) {
            gate.set_limits(limits);
        }
        if before.is_none_or(|before| before.log_level != next.log_level)
            && let Err(error) = level.set(&next.log_level)
        {
            tracing::warn!("the log level stays as it is: {error}");
        }
        applied = Some(next);
        match token.run_until_cancelled(settings.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => return,
        }
    }
}
