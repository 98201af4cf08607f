//! Where overload and gate meet. Not a loop: the watchdog's own thread tells the gate, for it must work while the runtime
//! stands still. From the gate's state the rest follows: `announce` leaves the open index, `service` refuses.

use std::io;

use crate::gate::Gate;
use crate::lifecycle::Lifecycle;
use crate::overload::{Config, Overload, Pressure, Sources};
use crate::task::IntegrationName;
use crate::telemetry::Telemetry;
use crate::telemetry::lag::Lag;
use crate::wire::TaskError;

/// Starts the watchdog over a worker's gate.
pub(super) fn start(
    config: &Config,
    integrations: &[IntegrationName],
    lag: Lag,
    gate: Gate,
    telemetry: &Telemetry,
    lifecycle: &Lifecycle,
) -> io::Result<Overload> {
    let lag = std::sync::Arc::new(move || lag.now());
    let tell = move |pressure| gate.set_overloaded(pressure != Pressure::Calm);
    Overload::start(config, &Sources::system(), integrations, lag, tell, telemetry, lifecycle)
}

/// What a caller is told whom the gate has refused for it.
pub(super) fn refusal(overload: &Overload) -> TaskError {
    match overload.why() {
        Some(why) => TaskError::overloaded(format!("the worker sheds load: {why}")),
        // It is over in this moment.
        None => TaskError::overloaded("the worker has just shed load"),
    }
}
