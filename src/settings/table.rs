//! The one list of the settings: what each is called, may be, and affects, and where in [`Settings`] it is.

use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::flagd::ALLOW_JUMP;
use super::pools::{MAX_POOLS, MAX_WEIGHT};
use super::shares::Range;
use super::{Config, Overflow, Profiling, START_VERSION, Settings, Shares, Sticky, Weights, brief};
use crate::limits::{ByName, Cap, MAX_SLOTS, Weight, integer};
use crate::task::{IntegrationName, InvalidName, Tenant};
use crate::telemetry::logs;

/// One setting: what it is called, what it may be, and what it affects.
pub struct Spec {
    /// Its name in documents, in the configuration and in metrics.
    pub key: &'static str,
    /// What its number counts; empty for texts.
    pub unit: &'static str,
    /// What it can be different for.
    pub scope: &'static str,
    /// What changes with it, and when.
    pub affects: &'static str,
    kind: Kind,
}

/// A setting's type and range, and where in [`Settings`] it is.
enum Kind {
    Integer(RangeInclusive<u32>, fn(&mut Settings) -> &mut u32),
    Number(RangeInclusive<f64>, fn(&mut Settings) -> &mut f64),
    IntegrationCaps(fn(&mut Settings) -> &mut ByName<IntegrationName, Cap>),
    TenantCaps(fn(&mut Settings) -> &mut ByName<Tenant, Cap>),
    IntegrationWeights(fn(&mut Settings) -> &mut ByName<IntegrationName, Weight>),
    Shares(Range, fn(&mut Settings) -> &mut Shares),
    Weights(fn(&mut Settings) -> &mut Weights),
    Sticky(fn(&mut Settings) -> &mut Sticky),
    Overflow(fn(&mut Settings) -> &mut Overflow),
    LogFilter(fn(&mut Settings) -> &mut String),
    Profiling(fn(&mut Settings) -> &mut Profiling),
}

/// Every setting.
pub const TABLE: &[Spec] = &[
    Spec {
        key: "max_parallelism",
        unit: "slots",
        scope: "worker",
        affects: "how many slots the worker's tasks hold at a time; lowering it ends nothing, 0 takes nothing new",
        kind: Kind::Integer(0..=MAX_SLOTS, |settings| &mut settings.max_parallelism),
    },
    Spec {
        key: "interactive_reserve",
        unit: "share of N",
        scope: "worker",
        affects: "how much of N batch tasks may not hold; interactive tasks may hold all of N",
        kind: Kind::Number(0.0..=1.0, |settings| &mut settings.interactive_reserve),
    },
    Spec {
        key: "integration_caps",
        unit: "slots by integration",
        scope: "worker, integration",
        affects: "how much of N the tasks of one integration may hold; 0 takes nothing new of it",
        kind: Kind::IntegrationCaps(|settings| &mut settings.integration_caps),
    },
    Spec {
        key: "tenant_caps",
        unit: "slots by tenant",
        scope: "worker, tenant",
        affects: "how much of N the tasks of one tenant may hold; 0 takes nothing new of it",
        kind: Kind::TenantCaps(|settings| &mut settings.tenant_caps),
    },
    Spec {
        key: "integration_weights",
        unit: "slots by integration",
        scope: "worker, integration",
        affects: "how many slots a task of an integration holds, fixed at its admission; 1 where nothing is said",
        kind: Kind::IntegrationWeights(|settings| &mut settings.integration_weights),
    },
    Spec {
        key: "payload_sampling",
        unit: "share of tasks",
        scope: "worker, integration",
        affects: "which tasks' payloads are kept; failures and the slowest are always kept, unless it is 0",
        kind: Kind::Shares(Range::Closed, |settings| &mut settings.payload_sampling),
    },
    Spec {
        key: "payload_slow_quantile",
        unit: "quantile of run times",
        scope: "worker, integration",
        affects: "beyond which of an integration's run times a run is one of the slowest, whose payloads are kept",
        kind: Kind::Shares(Range::Open, |settings| &mut settings.payload_slow_quantile),
    },
    Spec {
        key: "batch_share",
        unit: "share of slot-seconds",
        scope: "router",
        affects: "how much of what a router starts is batch while it waits behind interactive; 0 lets people always go first",
        kind: Kind::Number(0.0..=1.0, |settings| &mut settings.batch_share),
    },
    Spec {
        key: "pools",
        unit: "weight by pool",
        scope: "router",
        affects: "to which pools a router sends, waiting tasks included; 0 sends nothing new; `{}` is `router.pool` alone",
        kind: Kind::Weights(|settings| &mut settings.pools),
    },
    Spec {
        key: "pool_sticky",
        unit: "",
        scope: "router",
        affects: "whether all tasks of a tenant go to one pool, or each task by its id",
        kind: Kind::Sticky(|settings| &mut settings.pool_sticky),
    },
    Spec {
        key: "pool_overflow",
        unit: "pool by pool",
        scope: "router",
        affects: "which pool takes the tasks of another that is full or has no workers; none unless it is named",
        kind: Kind::Overflow(|settings| &mut settings.pool_overflow),
    },
    Spec {
        key: "log_level",
        unit: "",
        scope: "worker, router",
        affects: "what is logged from then on",
        kind: Kind::LogFilter(|settings| &mut settings.log_level),
    },
    Spec {
        key: "profiling",
        unit: "",
        scope: "worker",
        affects: "whether one worker of the pool at a time profiles itself, and stores the profile when it ends (docs/profiling.md)",
        kind: Kind::Profiling(|settings| &mut settings.profiling),
    },
];

/// The setting of that name.
pub fn spec(key: &str) -> Option<&'static Spec> {
    TABLE.iter().find(|spec| spec.key == key)
}

impl Spec {
    /// What it may be, in words.
    pub fn expected(&self) -> String {
        match &self.kind {
            Kind::Integer(range, _) => format!("an integer from {} to {}", range.start(), range.end()),
            Kind::Number(range, _) => format!("a number from {} to {}", range.start(), range.end()),
            Kind::IntegrationCaps(_) | Kind::TenantCaps(_) => format!(
                "an object of integers from 0 to {MAX_SLOTS} or shares of N, such as {{\"bank\": 10, \"*\": \"50%\"}}"
            ),
            Kind::IntegrationWeights(_) => {
                format!("an object of integers from 1 to {MAX_SLOTS}, such as {{\"scraper\": 5}}")
            }
            Kind::Shares(range, _) => range.expected(),
            Kind::Weights(_) => Weights::expected(),
            Kind::Sticky(_) => Sticky::EXPECTED.into(),
            Kind::Overflow(_) => Overflow::expected(),
            Kind::Profiling(_) => Profiling::EXPECTED.into(),
            Kind::LogFilter(_) => "a level such as \"info\" or a filter such as \"info,weir::router=debug\"".into(),
        }
    }

    /// What it is in JSON: `integer`, `number`, `object`, `text`, or `number or object`.
    pub fn type_name(&self) -> &'static str {
        match &self.kind {
            Kind::Integer(..) => "integer",
            Kind::Number(..) => "number",
            Kind::Shares(..) => "number or object",
            Kind::IntegrationCaps(_) | Kind::TenantCaps(_) | Kind::IntegrationWeights(_) => "object",
            Kind::Weights(_) | Kind::Overflow(_) => "object",
            Kind::Sticky(_) | Kind::LogFilter(_) | Kind::Profiling(_) => "text",
        }
    }

    /// Where it lies, or its values do.
    pub fn range(&self) -> String {
        match &self.kind {
            Kind::Integer(range, _) => format!("{} to {}", range.start(), range.end()),
            Kind::Number(range, _) => format!("{} to {}", range.start(), range.end()),
            Kind::IntegrationCaps(_) | Kind::TenantCaps(_) => format!("0 to {MAX_SLOTS}, or above 0% to 100% of N"),
            Kind::IntegrationWeights(_) => format!("1 to {MAX_SLOTS}"),
            Kind::Shares(range, _) => range.words().into(),
            Kind::Weights(_) => format!("0 to {MAX_WEIGHT}, one above 0; {MAX_POOLS} pools"),
            Kind::Sticky(_) => Sticky::EXPECTED.into(),
            Kind::Overflow(_) => format!("another pool; {MAX_POOLS} pools"),
            Kind::LogFilter(_) => "a level or filter".into(),
            Kind::Profiling(_) => "off, until_exit, or 1s to 24h".into(),
        }
    }

    /// Whether routers alone have it, so that it cannot be different for pools or workers.
    pub fn is_of_routers(&self) -> bool {
        self.scope == "router"
    }

    /// Whether a router has it, be it alone.
    pub fn is_read_by_routers(&self) -> bool {
        self.scope.contains("router")
    }

    /// Whether it may have this value; what would be right, if not.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        self.write(&mut Config::default().start(), value)
    }

    /// The most that an integer may become after `last`: `max_jump` times the larger of what it is and was at the start.
    /// None for what is no integer, and before the first document: whatever a process is started with, nothing was there to
    /// jump from.
    pub(super) fn jump_limit(&self, start: &Settings, last: &Settings, max_jump: f64) -> Option<u32> {
        let Kind::Integer(range, at) = &self.kind else { return None };
        let most = f64::from(jump_base(*at, start, last)) * max_jump;
        // An integer is not larger than this when it is not larger than its whole part.
        (last.version != START_VERSION).then(|| most.min(f64::from(*range.end())) as u32)
    }

    /// Refuses an integer of more than its [`Spec::jump_limit`], with both numbers.
    pub(super) fn check_jump(
        &self,
        start: &Settings,
        last: &Settings,
        next: &Settings,
        max_jump: f64,
    ) -> Result<(), Jump> {
        let (Kind::Integer(_, at), Some(limit)) = (&self.kind, self.jump_limit(start, last, max_jump)) else {
            return Ok(());
        };
        let (next, before) = (*at(&mut next.clone()), jump_base(*at, start, last));
        if next <= limit {
            return Ok(());
        }
        Err(Jump { next, before, limit, max_jump })
    }

    /// What it is when neither the configuration nor a document says otherwise.
    pub fn default(&self) -> Value {
        self.read(&mut Config::default().start())
    }

    /// What it is in a snapshot.
    pub fn value(&self, settings: &Settings) -> Value {
        self.read(&mut settings.clone())
    }

    pub(super) fn read(&self, settings: &mut Settings) -> Value {
        match &self.kind {
            Kind::Integer(_, at) => (*at(settings)).into(),
            Kind::Number(_, at) => (*at(settings)).into(),
            Kind::IntegrationCaps(at) => at(settings).write().into(),
            Kind::TenantCaps(at) => at(settings).write().into(),
            Kind::IntegrationWeights(at) => at(settings).write().into(),
            Kind::Shares(_, at) => at(settings).clone().into(),
            Kind::Weights(at) => at(settings).clone().into(),
            Kind::Sticky(at) => (*at(settings)).into(),
            Kind::Overflow(at) => at(settings).clone().into(),
            Kind::LogFilter(at) => at(settings).clone().into(),
            Kind::Profiling(at) => at(settings).to_string().into(),
        }
    }

    /// Changes nothing when the value is not right, and says what would be.
    pub(super) fn write(&self, settings: &mut Settings, value: &Value) -> Result<(), String> {
        let wrong = || format!("use {}", self.expected());
        match &self.kind {
            Kind::Integer(range, at) => {
                *at(settings) = integer(value).filter(|integer| range.contains(integer)).ok_or_else(wrong)?;
            }
            Kind::Number(range, at) => {
                *at(settings) = value.as_f64().filter(|number| range.contains(number)).ok_or_else(wrong)?;
            }
            Kind::IntegrationCaps(at) => *at(settings) = entries(value).ok_or_else(wrong)??,
            Kind::TenantCaps(at) => *at(settings) = entries(value).ok_or_else(wrong)??,
            Kind::IntegrationWeights(at) => *at(settings) = entries(value).ok_or_else(wrong)??,
            Kind::Shares(range, at) => *at(settings) = Shares::read(value, *range)?,
            Kind::Weights(at) => *at(settings) = value.clone().try_into()?,
            Kind::Sticky(at) => *at(settings) = value.clone().try_into()?,
            Kind::Overflow(at) => *at(settings) = value.clone().try_into()?,
            Kind::LogFilter(at) => {
                let filter = value.as_str().ok_or_else(wrong)?;
                logs::check(filter).map_err(|error| match error {
                    logs::LogsError::Level { reason, .. } => format!("{reason}; {}", wrong()),
                    other => other.to_string(),
                })?;
                *at(settings) = filter.to_owned();
            }
            Kind::Profiling(at) => *at(settings) = value.as_str().ok_or_else(wrong)?.parse()?,
        }
        Ok(())
    }
}

/// An integer that would become too many times what it was.
pub(super) struct Jump {
    next: u32,
    before: u32,
    limit: u32,
    max_jump: f64,
}

impl Jump {
    /// For whoever writes documents.
    pub(super) fn in_a_document(&self) -> String {
        let Jump { next, before, max_jump, .. } = self;
        format!(
            "{next} is more than {max_jump} times {before}; raise it in steps, or set \"metadata\": {{\"{ALLOW_JUMP}\": \
             true}} in the flag (in LaunchDarkly, a flag {ALLOW_JUMP} that is true)"
        )
    }

    /// For whoever sets one value.
    pub(super) fn in_a_command(&self) -> String {
        let Jump { next, before, limit, max_jump } = self;
        format!(
            "{next} is more than {max_jump} times the {before} that it was or started with; set {limit} at the most and raise it \
             in steps, or add --allow-jump"
        )
    }
}

/// What a jump of an integer is measured by.
fn jump_base(at: fn(&mut Settings) -> &mut u32, start: &Settings, last: &Settings) -> u32 {
    let of = |settings: &Settings| *at(&mut settings.clone());
    of(last).max(of(start)).max(1)
}

/// The entries of an object, or which of them is wrong; none where it is no object.
fn entries<N, V>(value: &Value) -> Option<Result<ByName<N, V>, String>>
where
    N: Ord + FromStr<Err = InvalidName>,
    V: DeserializeOwned,
{
    let read = ByName::read(value.as_object()?);
    Some(read.map_err(|wrong| format!("its entry {:?} is {}: {}", wrong.name, brief(&wrong.value), wrong.reason)))
}
