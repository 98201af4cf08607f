//! What travels beside the messages, in gRPC metadata: the attempt and the expected incarnation towards a worker, the
//! worker's load on each of its replies, and the standard `grpc-timeout` and `traceparent`.

use std::time::Duration;

use tonic::metadata::{MetadataMap, MetadataValue};
use uuid::Uuid;

use super::trace::TraceParent;

const ATTEMPT: &str = "weir-attempt";
const INCARNATION: &str = "weir-incarnation";
const QUEUED: &str = "weir-queued-us";
const LOAD: &str = "weir-load";
const NO_CAP: &str = "-";
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// What a router tells a worker about a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Which call to a worker this is, for the task; 1 for the first.
    pub attempt: u32,
    /// The life of the worker that the call is meant for; none when a caller speaks to the worker directly.
    pub incarnation: Option<Uuid>,
    /// How long the task has waited in the router; in microseconds on the wire.
    pub queued: Duration,
    /// The trace that the caller's call belongs to, where it has said so.
    pub trace: Option<TraceParent>,
}

impl Call {
    /// Reads a call's metadata; what is missing or unreadable counts as absent.
    pub fn read(metadata: &MetadataMap) -> Self {
        let text = |key| metadata.get(key).and_then(|value| value.to_str().ok());
        Call {
            attempt: text(ATTEMPT).and_then(|text| text.parse().ok()).unwrap_or(1),
            incarnation: text(INCARNATION).and_then(|text| text.parse().ok()),
            queued: Duration::from_micros(text(QUEUED).and_then(|text| text.parse().ok()).unwrap_or_default()),
            trace: TraceParent::read(metadata),
        }
    }

    /// Adds it to a call's metadata.
    pub fn write(self, metadata: &mut MetadataMap) {
        metadata.insert(ATTEMPT, MetadataValue::from(self.attempt));
        metadata.insert(QUEUED, MetadataValue::from(self.queued.as_micros() as u64));
        if let Some(incarnation) = self.incarnation
            && let Ok(value) = incarnation.to_string().parse()
        {
            metadata.insert(INCARNATION, value);
        }
        if let Some(trace) = self.trace {
            trace.write(metadata);
        }
    }
}

/// A worker's load, on each of its replies, refusals included:
/// `weir-load: in_flight/target/reserved/keeps_out/weight/integration_held/integration_most/tenant_held/tenant_most`, where
/// `keeps_out` is 0 or 1 and a `most` is `-` where there is no cap. Readers take the first four for enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadReport {
    /// Slots that are held.
    pub in_flight: u32,
    /// How many may be.
    pub target: u32,
    /// How many of those that are free only interactive tasks may take.
    pub reserved: u32,
    /// Whether it takes no further task of the integration that the reply is about, whatever room it has for others.
    pub keeps_out: bool,
    /// What the reply's integration and tenant hold; none where the worker does not say.
    pub shares: Option<Shares>,
}

/// What the integration and the tenant that a reply is about hold of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// The slots that a task of the integration holds.
    pub weight: u32,
    /// In tasks of that weight.
    pub integration: Share,
    /// In tasks of that weight, too.
    pub tenant: Share,
}

/// What is held, and the most that may be, where there is a cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the struct says what they are")]
pub struct Share {
    pub held: u32,
    pub most: Option<u32>,
}

impl LoadReport {
    /// Reads a reply's metadata.
    pub fn read(metadata: &MetadataMap) -> Option<Self> {
        let text = metadata.get(LOAD)?.to_str().ok()?;
        let mut numbers = text.split('/').map(|number| number.parse().ok());
        let mut next = || numbers.next().flatten();
        Some(LoadReport {
            in_flight: next()?,
            target: next()?,
            reserved: next()?,
            keeps_out: next()? != 0,
            shares: Shares::read(text),
        })
    }

    /// Adds it to a reply's metadata.
    pub fn write(self, metadata: &mut MetadataMap) {
        let LoadReport { in_flight, target, reserved, keeps_out, shares } = self;
        let mut text = format!("{in_flight}/{target}/{reserved}/{}", u8::from(keeps_out));
        if let Some(Shares { weight, integration, tenant }) = shares {
            text.push_str(&format!("/{weight}"));
            for Share { held, most } in [integration, tenant] {
                let most = most.map_or_else(|| NO_CAP.to_owned(), |most| most.to_string());
                text.push_str(&format!("/{held}/{most}"));
            }
        }
        if let Ok(value) = text.parse() {
            metadata.insert(LOAD, value);
        }
    }
}

impl Shares {
    /// Reads what follows after the first four numbers.
    fn read(text: &str) -> Option<Self> {
        let mut fields = text.split('/').skip(4);
        let weight = fields.next()?.parse().ok()?;
        let mut share = || {
            let held = fields.next()?.parse().ok()?;
            let most = match fields.next()? {
                NO_CAP => None,
                most => Some(most.parse().ok()?),
            };
            Some(Share { held, most })
        };
        Some(Shares { weight, integration: share()?, tenant: share()? })
    }
}

/// The call's own deadline, as the gRPC protocol states it: up to 8 digits and a unit.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests>
pub fn grpc_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_loads_survive_the_wire() {
        let mut metadata = MetadataMap::new();
        let direct = Call { attempt: 1, incarnation: None, queued: Duration::ZERO, trace: None };
        assert_eq!(Call::read(&metadata), direct);
        let (incarnation, queued) = (Some(Uuid::now_v7()), Duration::from_millis(7));
        let call = Call { attempt: 3, incarnation, queued, trace: None };
        call.write(&mut metadata);
        assert_eq!(Call::read(&metadata), call);
        let (integration, tenant) = (Share { held: 3, most: Some(3) }, Share { held: 1, most: None });
        for shares in [None, Some(Shares { weight: 2, integration, tenant })] {
            let load = LoadReport { in_flight: 7, target: 30, reserved: 6, keeps_out: true, shares };
            load.write(&mut metadata);
            assert_eq!(LoadReport::read(&metadata), Some(load));
        }
    }

    #[test]
    fn grpc_timeouts_are_read_and_nonsense_is_ignored() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert(GRPC_TIMEOUT, text.parse().expect("ascii"));
            grpc_timeout(&metadata)
        };
        assert_eq!(read("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        for nonsense in ["", "m", "x", "12", "-1S", "999999999S", "1.5S"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
