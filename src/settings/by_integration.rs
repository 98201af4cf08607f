//! Settings that a rule can make different by integration, without a rule being evaluated while tasks run.
//!
//! The integrations of a worker are a closed list. So when settings are read, the flags of those that have entries by
//! integration ([`Form`]) are evaluated for the worker as a whole and then once for each of its integrations, and
//! what differs becomes an entry by name: the snapshot has a table, and whoever asks it looks a name up.
//!
//! Other settings are one value for the whole worker. Tenants are not known before their tasks come, so what holds for one
//! is said in `tenant_caps`; and what priorities differ by is `interactive_reserve`.

use serde_json::{Map, Value, json};

use super::flagd::{Evaluated, Flag};
use super::targeting::Context;
use super::{TABLE, brief};
use crate::limits::OTHERS;

/// How a setting says what holds for an integration.
enum Form {
    /// In an object of entries, of which this is as good as none.
    Entries { nothing: Value },
    /// As a number for all, or in an object of numbers.
    Number,
}

/// None for a setting that cannot differ by it.
fn form(key: &str) -> Option<Form> {
    match key {
        "integration_caps" => Some(Form::Entries { nothing: "100%".into() }),
        "integration_weights" => Some(Form::Entries { nothing: 1.into() }),
        "payload_sampling" | "payload_slow_quantile" => Some(Form::Number),
        _ => None,
    }
}

/// What a flag says to a worker, `evaluate` being what it says in one context. `mentions` is whether the flag may look at
/// the integration at all.
pub(super) fn evaluate(
    key: &str,
    context: &Context,
    mentions: bool,
    evaluate: impl Fn(&Context) -> Evaluated,
) -> Evaluated {
    let whole = evaluate(context)?;
    let Some(form) = form(key).filter(|_| mentions) else { return Ok(whole) };
    let mut merged = whole.clone();
    for integration in &context.integrations {
        let one = evaluate(&Context { integration: Some(integration.clone()), ..context.clone() })
            .map_err(|reason| format!("for the integration {integration}: {reason}"))?;
        if one == whole {
            continue;
        }
        let name = integration.as_str();
        let said = form.said(one, name).map_err(|why| format!("for the integration {name} it {why}"))?;
        let Some(entries) = merged.as_mut().and_then(|flag| form.entries(&mut flag.value)) else {
            return Err(format!(
                "its targeting picks out the integration {name}, but there is no {} that holds for all others: give it a \
                 default",
                form.name()
            ));
        };
        if entry(entries, name) != said.as_ref() {
            entries.insert(name.to_owned(), said.unwrap_or_else(|| form.nothing()));
        }
    }
    Ok(merged)
}

impl Form {
    fn name(&self) -> &'static str {
        match self {
            Form::Entries { .. } => "object",
            Form::Number => "number",
        }
    }

    /// What a value says of an integration; or what is wrong with it.
    fn said(&self, flag: Option<Flag>, integration: &str) -> Result<Option<Value>, String> {
        let said = match (self, flag.map(|flag| flag.value)) {
            (_, Some(Value::Object(entries))) => entry(&entries, integration).cloned(),
            (Form::Number, value) => value,
            (Form::Entries { .. }, Some(value)) => return Err(format!("is {}, use an object", brief(&value))),
            (Form::Entries { .. }, None) => None,
        };
        match (self, said) {
            (Form::Number, None) => Err("has no value: give it a default".into()),
            (_, said) => Ok(said),
        }
    }

    /// A value as the entries that it stands for; none where it cannot be such.
    fn entries<'a>(&self, value: &'a mut Value) -> Option<&'a mut Map<String, Value>> {
        if matches!(self, Form::Number) && !value.is_object() {
            *value = json!({OTHERS: value.take()});
        }
        value.as_object_mut()
    }

    /// The entry that is as good as none.
    fn nothing(&self) -> Value {
        match self {
            Form::Entries { nothing } => nothing.clone(),
            Form::Number => Value::Null,
        }
    }
}

fn entry<'a>(entries: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    entries.get(name).or_else(|| entries.get(OTHERS))
}

/// Why a flag's rule may not ask for a property of tasks; none where it may.
pub(super) fn why_not(key: &str, property: &str) -> Option<String> {
    match property {
        "integration" if form(key).is_none() => {
            let can: Vec<_> = TABLE.iter().map(|spec| spec.key).filter(|key| form(key).is_some()).collect();
            let can = can.join(", ");
            Some(format!("{key} is one value for the whole worker; what can differ by it is {can}"))
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
    fn a_number_by_integration_becomes_an_entry_beside_the_one_for_all_others() {
        let scrapers = json!({"if": [{"starts_with": [{"var": "integration"}, "scraper-"]}, "few", null]});
        let names = ["bank", "scraper-a", "scraper-b"];
        let sampled = flag(json!({"most": 0.9, "few": 0.01}), json!("most"), scrapers.clone());
        let few = json!({"*": 0.9, "scraper-a": 0.01, "scraper-b": 0.01});
        assert_eq!(said("payload_sampling", sampled.clone(), &names), Ok(few));
        assert_eq!(said("payload_sampling", sampled.clone(), &["bank"]), Ok(json!(0.9)));
        assert_eq!(said("payload_sampling", sampled, &[]), Ok(json!(0.9)), "a router serves none");
        let by_name = json!({"most": {"*": 0.9, "bank": 1}, "few": {"*": 0.01, "scraper-b": 0}});
        let sampled = flag(by_name, json!("most"), scrapers.clone());
        let few = json!({"*": 0.9, "bank": 1, "scraper-a": 0.01, "scraper-b": 0});
        assert_eq!(said("payload_sampling", sampled, &names), Ok(few));
        let slow = flag(json!({"usual": 0.99, "half": 0.5}), json!("usual"), {
            json!({"if": [{"===": [{"var": "integration"}, "bank"]}, "half", null]})
        });
        assert_eq!(said("payload_slow_quantile", slow, &names), Ok(json!({"*": 0.99, "bank": 0.5})));
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
                "interactive_reserve",
                "integration",
                "interactive_reserve is one value for the whole worker; what can differ by it is integration_caps, \
                 integration_weights, payload_sampling, payload_slow_quantile",
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
        let sampled = flag(json!({"a": 0.5}), json!(null), by("integration"));
        let reason = said("payload_sampling", sampled, &["x"]).expect_err("no default");
        assert!(reason.contains("there is no number that holds for all others: give it a default"), "{reason}");
        let rule = json!({"if": [{"===": [{"var": "integration"}, "x"]}, null, "a"]});
        let reason = said("payload_sampling", flag(json!({"a": 0.5}), json!(null), rule), &["x"]).expect_err("nothing");
        assert!(reason.contains("for the integration x it has no value: give it a default"), "{reason}");
        let sampled = flag(json!({"a": 1.5, "b": 1}), json!("b"), by("integration"));
        let reason = said("payload_sampling", sampled, &["x"]).expect_err("out of range");
        assert!(reason.contains("its entry \"x\" is 1.5: use a number from 0 to 1"), "{reason}");
        let caps = flag(json!({"a": {"*": -1}, "b": {}}), json!("b"), by("integration"));
        let reason = said("integration_caps", caps, &["x"]).expect_err("out of range");
        assert!(reason.contains("its entry \"x\" is -1"), "{reason}");
    }
}
