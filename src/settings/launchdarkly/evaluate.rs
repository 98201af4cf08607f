//! What the flags say to a worker or a router: the contexts that LaunchDarkly's rules see, and its values as settings.
//!
//! A worker is a multi-kind context: the kinds `role`, `worker` (its id, with the attributes `pool` and `zone`), `pool` and
//! `zone`, and, for settings that can differ by it, `integration`. A router, which is in no pool, has `role` and `zone`. They
//! are what `var` names in flagd's rules.

use std::collections::BTreeMap;

use launchdarkly_server_sdk::{
    Client, Context as Contexts, ContextBuilder, EvalError, FlagValue, MultiContextBuilder, Reason,
};
use serde_json::Value;

use super::ALLOW_JUMP;
use super::items::Items;
use crate::settings::by_integration;
use crate::settings::flagd::{Evaluated, Flag};
use crate::settings::{Context, Role, TABLE};

/// A flag whose JSON has none of these says the same for all integrations.
const PERHAPS_BY_INTEGRATION: [&str; 3] = ["\"integration\"", "segmentMatch", "\"prerequisites\":[{"];

/// Each setting that has a flag.
pub(super) fn evaluate(
    client: &Client,
    items: &Items,
    context: &Context,
) -> Result<BTreeMap<String, Evaluated>, String> {
    let allow_jump = match items.flag(ALLOW_JUMP) {
        Some(_) => value(client, ALLOW_JUMP, &contexts(context)?)? == Some(Value::Bool(true)),
        None => false,
    };
    let mut flags = BTreeMap::new();
    for spec in TABLE {
        let Some(flag) = items.flag(spec.key) else { continue };
        let mentions = PERHAPS_BY_INTEGRATION.iter().any(|part| flag.contains(part));
        let evaluated = by_integration::evaluate(spec.key, context, mentions, |context| {
            let value = value(client, spec.key, &contexts(context)?)?;
            Ok(value.map(|value| Flag { value, allow_jump }))
        });
        flags.insert(spec.key.to_owned(), evaluated);
    }
    Ok(flags)
}

/// A flag's value; none where it leaves it to the program.
fn value(client: &Client, key: &str, contexts: &Contexts) -> Result<Option<Value>, String> {
    let detail = client.variation_detail(contexts, key, Value::Null);
    let why = match detail.reason {
        Reason::Error { error } => error,
        _ => return Ok(detail.value.map(json).filter(|value| !value.is_null())),
    };
    match why {
        // It has just been deleted.
        EvalError::FlagNotFound => Ok(None),
        EvalError::MalformedFlag => {
            Err("LaunchDarkly's rules for it name what it does not have, such as a variation that is gone".into())
        }
        other => Err(format!("LaunchDarkly's SDK cannot evaluate it: {other:?}")),
    }
}

fn json(value: FlagValue) -> Value {
    match value {
        FlagValue::Bool(value) => value.into(),
        FlagValue::Str(value) => value.into(),
        // The SDK has one kind of number; people write 40, and that is how it should read.
        FlagValue::Number(value) if value.fract() == 0.0 && value.abs() < 1e15 => (value as i64).into(),
        FlagValue::Number(value) => value.into(),
        FlagValue::Json(value) => value,
    }
}

fn contexts(context: &Context) -> Result<Contexts, String> {
    let Context { role, pool, worker, zone, integration, .. } = context;
    let kind = |kind: &str, key: &str| {
        let mut builder = ContextBuilder::new(key);
        builder.kind(kind);
        builder
    };
    let mut all = MultiContextBuilder::new();
    all.add_context(kind("role", role.as_str()).build()?);
    if let Some(id) = worker {
        let mut worker = kind("worker", id.as_str());
        worker.set_string("pool", pool.as_str());
        if let Some(zone) = zone {
            worker.set_string("zone", zone);
        }
        all.add_context(worker.build()?);
    }
    if *role == Role::Worker {
        all.add_context(kind("pool", pool.as_str()).build()?);
    }
    if let Some(zone) = zone.as_deref().filter(|zone| !zone.is_empty()) {
        all.add_context(kind("zone", zone).build()?);
    }
    if let Some(integration) = integration {
        all.add_context(kind("integration", integration.as_str()).build()?);
    }
    all.build()
}
