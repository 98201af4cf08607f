//! Settings that a rule can make different by integration, without a rule being evaluated while tasks run.
//!
//! The integrations of a worker are a closed list. So when settings are read, the flags of those that have entries by
//! integration ([`nothing_said`]) are evaluated for the worker as a whole and then once for each of its integrations, and
//! what differs becomes an entry by name: the snapshot has a table, and the gate looks names up as ever.
//!
//! Other settings are one value for the whole worker. Tenants are not known before their tasks come, so what holds for one
//! is said in `tenant_caps`; and what priorities differ by is `interactive_reserve`.

use serde_json::Value;

use super::flagd::{Evaluated, Flag};
use super::targeting::Context;
use super::{TABLE, brief};

/// What an entry of such a setting says where nothing is to hold for an integration; none for other settings.
fn nothing_said(key: &str) -> Option<Value> {
    match key {
        "integration_caps" => Some("100%".into()),
        "integration_weights" => Some(1.into()),
        _ => None,
    }
}

/// Holds for the names that an object does not list.
const OTHERS: &str = "*";

/// What a flag says to a worker, `evaluate` being what it says in one context. `mentions` is whether the flag may look at
/// the integration at all.
pub(super) fn evaluate(
    key: &str,
    context: &Context,
    mentions: bool,
    evaluate: impl Fn(&Context) -> Evaluated,
) -> Evaluated {
    let whole = evaluate(context)?;
    let Some(nothing) = nothing_said(key).filter(|_| mentions) else { return Ok(whole) };
    let mut merged = whole.clone();
    for integration in &context.integrations {
        let one = evaluate(&Context { integration: Some(integration.clone()), ..context.clone() })
            .map_err(|reason| format!("for the integration {integration}: {reason}"))?;
        if one == whole {
            continue;
        }
        let name = integration.as_str();
        let said = match &one {
            Some(Flag { value: Value::Object(entries), .. }) => entry(entries, name),
            Some(Flag { value, .. }) => {
                return Err(format!("for the integration {name} it is {}, use an object", brief(value)));
            }
            None => None,
        };
        let Some(Flag { value: Value::Object(entries), .. }) = &mut merged else {
            return Err(format!(
                "its targeting picks out the integration {name}, but there is no object that holds for all others: give it a \
                 default"
            ));
        };
        if entry(entries, name) != said {
            entries.insert(name.to_owned(), said.cloned().unwrap_or_else(|| nothing.clone()));
        }
    }
    Ok(merged)
}

fn entry<'a>(entries: &'a serde_json::Map<String, Value>, name: &str) -> Option<&'a Value> {
    entries.get(name).or_else(|| entries.get(OTHERS))
}

/// Why a flag's rule may not ask for a property of tasks; none where it may.
pub(super) fn why_not(key: &str, property: &str) -> Option<String> {
    match property {
        "integration" if nothing_said(key).is_none() => {
            let can: Vec<_> = TABLE.iter().map(|spec| spec.key).filter(|key| nothing_said(key).is_some()).collect();
            let can = can.join(" and ");
            Some(format!("{key} is one value for the whole worker; {can} can differ by it"))
        }
        "tenant" => Some(
            "tenants are not known before their tasks come: name them in tenant_caps, where \"*\" is for all others"
                .into(),
        ),
        "priority" => Some("what priorities differ by is interactive_reserve".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::settings::{Config, Context, apply, flagd};

    fn context(integrations: &[&str]) -> Context {
        let integrations = integrations.iter().map(|name| name.parse().expect("a name")).collect();
        Context { worker: Some("worker-1".parse().expect("a worker id")), integrations, ..Context::default() }
    }

    fn flag(variants: serde_json::Value, default: serde_json::Value, rule: serde_json::Value) -> serde_json::Value {
        json!({"state": "ENABLED", "variants": variants, "defaultVariant": default, "targeting": rule})
    }

    fn said(key: &str, flag: serde_json::Value, integrations: &[&str]) -> Result<serde_json::Value, String> {
        let document = json!({"flags": {key: flag}}).to_string();
        let mut flags = flagd::evaluate(document.as_bytes(), &context(integrations)).expect("a document");
        let start = Config::default().start();
        let (_, rejections) = apply(&flags, &start, &start, "v1".into(), 10.0);
        match rejections.into_iter().next() {
            Some(rejection) => Err(rejection.reason),
            None => flags.remove(key).expect("it is there").map(|flag| flag.map_or(json!(null), |flag| flag.value)),
        }
    }

    #[test]
    fn a_rule_by_integration_becomes_entries_by_name() {
        let scrapers = json!({"if": [{"starts_with": [{"var": "integration"}, "scraper-"]}, "tight", null]});
        let variants = json!({"none": {"*": "50%"}, "tight": {"*": 2, "scraper-b": 1}});
        let caps = flag(variants, json!("none"), scrapers.clone());
        let names = ["bank", "scraper-a", "scraper-b"];
        assert_eq!(
            said("integration_caps", caps.clone(), &names),
            Ok(json!({"*": "50%", "scraper-a": 2, "scraper-b": 1}))
        );
        assert_eq!(said("integration_caps", caps, &["bank"]), Ok(json!({"*": "50%"})));

        let lifted = flag(json!({"half": {"*": "50%"}, "all": {}}), json!("half"), {
            json!({"if": [{"===": [{"var": "integration"}, "bank"]}, "all", null]})
        });
        assert_eq!(said("integration_caps", lifted, &names), Ok(json!({"*": "50%", "bank": "100%"})));
        let weights = flag(json!({"none": {}, "heavy": {"*": 3}}), json!("none"), {
            json!({"if": [{"$ref": "x"}, "heavy", null]})
        });
        let document = json!({"flags": {"integration_weights": weights},
            "$evaluators": {"x": {"===": [{"var": "integration"}, "bank"]}}});
        let flags = flagd::evaluate(document.to_string().as_bytes(), &context(&names)).expect("a document");
        let value = flags["integration_weights"].clone().expect("good").expect("a value").value;
        assert_eq!(value, json!({"bank": 3}), "shared rules count");
    }

    #[test]
    fn half_of_the_integrations_stay_the_same_half() {
        let rule = json!({"fractional": [{"var": "integration"}, ["tight", 50], ["none", 50]]});
        let caps = flag(json!({"none": {}, "tight": {"*": 1}}), json!("none"), rule);
        let names: Vec<_> = (0..100).map(|n| format!("bank-{n}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let of = |names: &[&str]| said("integration_caps", caps.clone(), names).expect("good");
        let tight = of(&names).as_object().expect("an object").len();
        assert!((30..70).contains(&tight), "{tight}");
        assert_eq!(of(&names[..10]).as_object().expect("an object").keys().filter(|key| *key == "bank-1").count(), {
            of(&names).get("bank-1").iter().len()
        });
    }

    #[test]
    fn what_cannot_differ_by_a_task_says_why() {
        let by = |property: &str| json!({"if": [{"===": [{"var": property}, "x"]}, "a", null]});
        let numbers = json!({"a": 0.5, "b": 1});
        for (key, property, why) in [
            (
                "payload_sampling",
                "integration",
                "payload_sampling is one value for the whole worker; integration_caps and",
            ),
            ("payload_sampling", "priority", "what priorities differ by is interactive_reserve"),
            ("payload_sampling", "tenant", "name them in tenant_caps, where \"*\" is for all others"),
        ] {
            let reason = said(key, flag(numbers.clone(), json!("b"), by(property)), &["x"]).expect_err(why);
            assert!(reason.contains(why) && reason.contains(&format!("asks for {property:?}")), "{reason}");
        }
        let caps = flag(json!({"a": 1, "b": {}}), json!("b"), by("integration"));
        let reason = said("integration_caps", caps, &["x"]).expect_err("no object");
        assert!(reason.starts_with("for the integration x it is 1, use an object"), "{reason}");
        let caps = flag(json!({"a": {"*": 1}}), json!(null), by("integration"));
        let reason = said("integration_caps", caps, &["x"]).expect_err("no default");
        assert!(reason.contains("give it a default"), "{reason}");
        let caps = flag(json!({"a": {"*": -1}, "b": {}}), json!("b"), by("integration"));
        let reason = said("integration_caps", caps, &["x"]).expect_err("out of range");
        assert!(reason.contains("its entry \"x\" is -1"), "{reason}");
    }
}
