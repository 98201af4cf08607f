//! Targeting: which variant of a flag a worker or a router gets.
//!
//! A rule is [JSONLogic](https://jsonlogic.com) with flagd's own operations: `fractional`
//! (<https://flagd.dev/reference/custom-operations/fractional-operation/>), `sem_ver`
//! (<https://flagd.dev/reference/custom-operations/semver-operation/>), `starts_with` and `ends_with`, and `$ref` to a
//! shared rule of the document (<https://flagd.dev/reference/flag-definitions/#shared-evaluators>). `fractional` hashes
//! with MurmurHash3 (x86, 32 bits, seed 0) and takes `hash × weights >> 32` for the place among the summed weights, as
//! flagd does from 2026 on; without a value to hash by, that is the flag's key and `targetingKey`, the worker's id. So a
//! worker stays on its side while a share grows.
//!
//! Rules are evaluated when a document arrives, never while tasks run. What a rule can only get wrong (an operation or a
//! property that there is not, a weight that is no integer) is refused before that, because JSONLogic would quietly
//! make it null.

use std::sync::LazyLock;
use std::time::SystemTime;

use datalogic_rs::Engine;
use serde_json::{Map, Value, json};

use super::{brief, by_integration};
use crate::task::{IntegrationName, PoolName, WorkerId};

/// Who a document is evaluated for.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// What it does.
    pub role: Role,
    /// The pool that the worker serves in. A router is in none, and rules see none of it.
    pub pool: PoolName,
    /// The worker's name; none where nobody runs yet, and then nothing can be shared out by it.
    pub worker: Option<WorkerId>,
    /// Where it runs, as the configuration says.
    pub zone: Option<String>,
    /// What it runs: settings that can differ by integration are evaluated for each.
    pub integrations: Vec<IntegrationName>,
    /// The one that a setting is evaluated for; none for the worker as a whole.
    pub integration: Option<IntegrationName>,
}

/// A program that has settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// A worker.
    #[default]
    Worker,
    /// A router.
    Router,
}

impl Role {
    /// Its name in rules.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Worker => "worker",
            Role::Router => "router",
        }
    }
}

/// The properties that `var` may name.
const PROPERTIES: [&str; 8] =
    ["role", "pool", "worker", "zone", "integration", "targetingKey", "$flagd.flagKey", "$flagd.timestamp"];

/// The operations that flagd documents.
const OPERATIONS: [&str; 37] = [
    "var",
    "missing",
    "missing_some",
    "if",
    "==",
    "===",
    "!=",
    "!==",
    "!",
    "!!",
    "or",
    "and",
    ">",
    ">=",
    "<",
    "<=",
    "max",
    "min",
    "+",
    "-",
    "*",
    "/",
    "%",
    "map",
    "reduce",
    "filter",
    "all",
    "none",
    "some",
    "merge",
    "in",
    "cat",
    "substr",
    "fractional",
    "sem_ver",
    "starts_with",
    "ends_with",
];

/// Those in which `var` names parts of a list's item.
const OVER_ITEMS: [&str; 6] = ["map", "reduce", "filter", "all", "none", "some"];

/// Those that would let each step of a `reduce` double what it has.
const GROWING: [&str; 2] = ["cat", "merge"];

/// Values in a rule, references resolved. Lists in lists make their product of steps, which this bounds.
const MAX_VALUES: usize = 2_000;

/// References in references.
const MAX_REFERENCES_DEEP: usize = 16;

static ENGINE: LazyLock<Engine> = LazyLock::new(Engine::new);

/// The variant that the rule names for this context; none where it leaves the default, or what is wrong with the rule.
pub(super) fn variant(
    flag: &str,
    rule: &Value,
    shared: &Map<String, Value>,
    context: &Context,
) -> Result<Option<String>, String> {
    let mut values = 0;
    let mut rule = resolve(rule, shared, 0, &mut values)?;
    check(flag, &rule, Place::default())?;
    name_variants(&mut rule);
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let data = json!({
        "role": context.role.as_str(),
        "pool": (context.role == Role::Worker).then(|| context.pool.as_str()),
        "worker": context.worker.as_ref().map(WorkerId::as_str),
        "zone": context.zone,
        "integration": context.integration.as_ref().map(IntegrationName::as_str),
        "targetingKey": context.worker.as_ref().map(WorkerId::as_str),
        "$flagd": { "flagKey": flag, "timestamp": seconds },
    });
    let text = ENGINE.eval_str(rule.to_string().as_str(), data.to_string().as_str());
    let text = text.map_err(|error| format!("its targeting cannot be evaluated: {error}"))?;
    match serde_json::from_str(&text) {
        Ok(Value::Null) => Ok(None),
        Ok(Value::String(name)) => Ok(Some(name)),
        // flagd takes the variants "true" and "1" for these.
        Ok(value @ (Value::Bool(_) | Value::Number(_))) => Ok(Some(value.to_string())),
        _ => Err(format!("its targeting gives {text}, use a variant's name or null")),
    }
}

/// The rule with each `{"$ref": "name"}` replaced.
fn resolve(rule: &Value, shared: &Map<String, Value>, deep: usize, values: &mut usize) -> Result<Value, String> {
    *values += 1;
    if *values > MAX_VALUES {
        return Err(format!("its targeting has more than {MAX_VALUES} values, references resolved"));
    }
    match rule {
        Value::Object(operation) => match operation.get("$ref") {
            Some(_) if deep == MAX_REFERENCES_DEEP => {
                Err(format!("its targeting refers to rules that refer to others, more than {MAX_REFERENCES_DEEP} deep"))
            }
            Some(Value::String(name)) if operation.len() == 1 => match shared.get(name) {
                Some(rule) => resolve(rule, shared, deep + 1, values),
                None => Err(format!("its targeting refers to {name:?}, which \"$evaluators\" does not have")),
            },
            Some(name) => Err(format!("its targeting has \"$ref\": {}, use {{\"$ref\": \"name\"}} alone", brief(name))),
            None => {
                let resolved = operation.iter().map(|(name, arguments)| {
                    resolve(arguments, shared, deep, values).map(|arguments| (name.clone(), arguments))
                });
                resolved.collect::<Result<Map<_, _>, _>>().map(Value::Object)
            }
        },
        Value::Array(items) => {
            let resolved = items.iter().map(|item| resolve(item, shared, deep, values));
            resolved.collect::<Result<Vec<_>, _>>().map(Value::Array)
        }
        other => Ok(other.clone()),
    }
}

/// Where in a rule a part of it stands.
#[derive(Clone, Copy, Default)]
struct Place {
    over_items: usize,
    in_reduce: bool,
}

/// Refuses what evaluates to something that its author cannot have meant.
fn check(flag: &str, rule: &Value, place: Place) -> Result<(), String> {
    let (name, arguments) = match rule {
        Value::Array(items) => return items.iter().try_for_each(|item| check(flag, item, place)),
        Value::Object(operation) => match operation.iter().next() {
            Some(single) if operation.len() == 1 => single,
            _ => return Err(format!("its targeting has {}, use one operation in each object", brief(rule))),
        },
        _ => return Ok(()),
    };
    if !OPERATIONS.contains(&name.as_str()) {
        return Err(format!("its targeting has the operation {name:?}, use one of flagd's: {}", OPERATIONS.join(", ")));
    }
    let mut inside = place;
    if OVER_ITEMS.contains(&name.as_str()) {
        inside.over_items += 1;
        inside.in_reduce |= name == "reduce";
        if inside.over_items > 2 {
            return Err(format!("its targeting has {name:?} in two others of its kind, use two at most"));
        }
    }
    if place.in_reduce && GROWING.contains(&name.as_str()) {
        return Err(format!("its targeting has {name:?} in \"reduce\", where it may grow without end"));
    }
    match name.as_str() {
        "var" if place.over_items == 0 => check_property(flag, arguments)?,
        "fractional" => check_fractional(arguments)?,
        _ => {}
    }
    check(flag, arguments, inside)
}

fn check_property(flag: &str, arguments: &Value) -> Result<(), String> {
    let property = arguments.as_array().map_or(Some(arguments), |arguments| arguments.first());
    let Some(Value::String(property)) = property else { return Ok(()) };
    match by_integration::why_not(flag, property) {
        Some(reason) => Err(format!("its targeting asks for {property:?}: {reason}")),
        None if PROPERTIES.contains(&property.as_str()) => Ok(()),
        None => Err(format!("its targeting asks for {property:?}, use one of {}", PROPERTIES.join(", "))),
    }
}

/// `fractional` of the engine takes texts alone, and flagd the variant "true" for true, and "1" for 1.
fn name_variants(rule: &mut Value) {
    match rule {
        Value::Array(items) => items.iter_mut().for_each(name_variants),
        Value::Object(operation) => {
            let shares = operation.get_mut("fractional").and_then(Value::as_array_mut);
            for share in shares.into_iter().flatten().filter_map(Value::as_array_mut) {
                if let Some(name @ (Value::Bool(_) | Value::Number(_))) = share.first_mut() {
                    *name = Value::String(name.to_string());
                }
            }
            operation.values_mut().for_each(name_variants);
        }
        _ => {}
    }
}

/// Weights that can be told without evaluating them are integers, and not too many.
fn check_fractional(arguments: &Value) -> Result<(), String> {
    let wrong = |what: &Value| {
        let form = "use [\"variant\", WEIGHT] with an integer from 0 to 2147483647, also in sum";
        Err(format!("its targeting has {} in \"fractional\", {form}", brief(what)))
    };
    let Some(arguments) = arguments.as_array() else { return wrong(arguments) };
    let shares: Vec<_> = arguments.iter().filter(|argument| argument.is_array()).collect();
    if shares.is_empty() || shares.len() + 1 < arguments.len() {
        return wrong(&Value::Array(arguments.clone()));
    }
    let mut sum = 0u64;
    for share in shares {
        let parts = share.as_array().map(Vec::as_slice).unwrap_or_default();
        let weight = match parts {
            [Value::Null | Value::Array(_), ..] => None,
            [_] => Some(1),
            [_, Value::Object(_)] => Some(0),
            [_, weight] => weight.as_u64(),
            _ => None,
        };
        sum = sum.saturating_add(weight.unwrap_or(u64::MAX));
        if sum > i32::MAX as u64 {
            return wrong(share);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(worker: &str) -> Context {
        Context {
            role: Role::Worker,
            pool: "parallel".parse().expect("a pool"),
            worker: Some(worker.parse().expect("a worker id")),
            zone: Some("eu-west-1a".into()),
            ..Context::default()
        }
    }

    fn given(flag: &str, rule: Value, worker: &str) -> Result<Option<String>, String> {
        let shared = json!({
            "abroad": {"!": [{"starts_with": [{"var": "zone"}, "eu-"]}]},
            "loop": {"!": {"$ref": "loop"}},
        });
        variant(flag, &rule, shared.as_object().expect("an object"), &context(worker))
    }

    fn gives(rule: Value) -> Option<String> {
        given("max_parallelism", rule, "worker-1").expect("a rule")
    }

    /// The vectors of flagd's own test bed: evaluator/gherkin/fractional.feature (`@fractional-v2`) and the flags in
    /// evaluator/flags/testkit-flags.json of <https://github.com/open-feature/flagd-testbed>.
    #[test]
    fn shares_are_flagds() {
        let suits =
            |key: Value| json!({"fractional": [key, ["clubs", 25], ["diamonds", 25], ["hearts", 25], ["spades", 25]]});
        let by_flag = |name: &str| suits(json!({"cat": [{"var": "$flagd.flagKey"}, name]}));
        for (name, suit) in
            [("jack", "hearts"), ("queen", "spades"), ("ten", "clubs"), ("nine", "diamonds"), ("3", "clubs")]
        {
            assert_eq!(given("fractional-flag", by_flag(name), "w"), Ok(Some(suit.into())), "{name}");
        }
        for (name, suit) in [("seven", "hearts"), ("eight", "diamonds"), ("nine", "clubs"), ("two", "spades")] {
            assert_eq!(gives(suits(json!({"cat": ["shared-seed", name]}))), Some(suit.into()), "{name}");
        }
        // Hashes at both ends, around the middle and around the sign.
        for (key, side) in
            [("ejOoVL", "lower"), ("bY9fO-", "lower"), ("SI7p-", "lower"), ("6LvT0", "upper"), ("ceQdGm", "upper")]
        {
            let rule = json!({"fractional": [{"var": "targetingKey"}, ["lower", 50], ["upper", 50]]});
            assert_eq!(given("fractional-hash-edge-flag", rule, key), Ok(Some(side.into())), "{key}");
        }
        let nested = |first: Value| json!({"fractional": ["jon@company.com", [first, 50], ["standard", 50]]});
        assert_eq!(gives(nested(json!({"var": "pool"}))), Some("parallel".into()));
        assert_eq!(gives(nested(json!({"if": [false, "premium", "other"]}))), Some("other".into()));
        let weight = |worth: bool| json!({"fractional": ["user1", ["red", {"if": [worth, 100, 0]}], ["blue", 10]]});
        assert_eq!([gives(weight(true)), gives(weight(false))], [Some("red".into()), Some("blue".into())]);
    }

    #[test]
    fn a_share_by_worker_is_as_large_as_it_says_and_only_grows() {
        let canaries = |percent: u32| -> Vec<bool> {
            let rule = json!({"fractional": [["canary", percent], ["rest", 100 - percent]]});
            let of = |worker: u32| given("max_parallelism", rule.clone(), &format!("worker-{worker}"));
            (0..2_000).map(|worker| of(worker) == Ok(Some("canary".into()))).collect()
        };
        let (few, more) = (canaries(5), canaries(20));
        let count = |workers: &[bool]| workers.iter().filter(|canary| **canary).count();
        assert!(
            (60..=140).contains(&count(&few)) && (340..=460).contains(&count(&more)),
            "{} {}",
            count(&few),
            count(&more)
        );
        assert!(few.iter().zip(&more).all(|(few, more)| !few || *more), "who was in stays in");
        let nobody = Context::default();
        let rule = json!({"fractional": [["canary", 50], ["rest", 50]]});
        assert_eq!(variant("key", &rule, &Map::new(), &nobody), Ok(None), "nothing to share out by");
    }

    #[test]
    fn versions_and_texts_are_compared_as_flagd_does() {
        let holds = |condition: Value| gives(json!({"if": [condition, "yes", "no"]})) == Some("yes".into());
        for (one, operator, other, is) in [
            ("2.0.0", "=", "2.0.0", true),
            ("2.1.0", ">", "2.0.0", true),
            ("1.9.0", "<", "2.0.0", true),
            ("2.0.0-alpha", "<", "2.0.0", true),
            ("2.0.0.0", "=", "2.0.0", false),
            ("3.0.1", "~", "3.0.0", true),
            ("3.1.0", "~", "3.0.0", false),
            ("3.1.0", "^", "3.0.0", true),
            ("4.0.0", "^", "3.0.0", false),
            ("v1.0.0", "=", "1.0.0", true),
            ("1.5.0", "^", "1", true),
            ("1.0.0+other", "=", "1.0.0+build", true),
            ("not-a-version", "=", "1.0.0", false),
        ] {
            assert_eq!(holds(json!({"sem_ver": [one, operator, other]})), is, "{one} {operator} {other}");
        }
        assert!(holds(json!({"starts_with": [{"var": "zone"}, "eu-"]})));
        assert!(holds(json!({"ends_with": [{"var": "worker"}, "-1"]})) && !holds(json!({"ends_with": ["abc", "xyz"]})));
        assert!(holds(json!({"in": [{"var": "pool"}, ["single", "parallel"]]})));
        assert!(!holds(json!({"$ref": "abroad"})));
        assert!(holds(json!({"some": [["a", "b"], {"===": [{"var": ""}, "b"]}]})));
    }

    #[test]
    fn a_rule_may_leave_the_default_and_name_variants_by_values() {
        assert_eq!(gives(json!({"if": [{"===": [{"var": "pool"}, "single"]}, "low", null]})), None);
        assert_eq!(gives(json!({"===": [{"var": "pool"}, "parallel"]})), Some("true".into()));
        assert_eq!(gives(json!({"+": [1, 1]})), Some("2".into()));
    }

    #[test]
    fn a_share_may_name_the_variant_true_by_a_boolean_and_1_by_a_number() {
        for (shares, texts) in [
            (json!([[true, 50], [false, 50]]), json!([["true", 50], ["false", 50]])),
            (json!([{"var": "worker"}, [1, 50], [2.5]]), json!([{"var": "worker"}, ["1", 50], ["2.5"]])),
            (json!([[{"if": [false, "x", {"fractional": [[true, 1]]}]}]]), json!([["true"]])),
        ] {
            for worker in 0..20 {
                let of = |shares: &Value| given("k", json!({"fractional": shares}), &format!("worker-{worker}"));
                assert_eq!(of(&shares), of(&texts), "{shares}");
                assert!(of(&shares).is_ok_and(|variant| variant.is_some()), "{shares}");
            }
        }
    }

    #[test]
    fn what_a_rule_can_only_get_wrong_is_said() {
        let many = vec![1; MAX_VALUES];
        for (rule, why) in [
            (json!({"iff": [true, "a"]}), "has the operation \"iff\", use one of flagd's: var"),
            (json!({"if": [true, "a"], "or": []}), "use one operation in each object"),
            (json!({"var": "pol"}), "asks for \"pol\", use one of role, pool, worker, zone"),
            (json!({"var": ["integration", "bank"]}), "asks for \"integration\""),
            (json!({"$ref": "nowhere"}), "refers to \"nowhere\", which \"$evaluators\" does not have"),
            (json!({"$ref": "loop"}), "more than 16 deep"),
            (json!({"$ref": 1}), "\"$ref\": 1, use {\"$ref\": \"name\"}"),
            (
                json!({"fractional": [["a", 0.5], ["b", 0.5]]}),
                "has [\"a\",0.5] in \"fractional\", use [\"variant\", WEIGHT]",
            ),
            (json!({"fractional": [["a", -1]]}), "in \"fractional\""),
            (json!({"fractional": [["a", 2_000_000_000], ["b", 2_000_000_000]]}), "also in sum"),
            (json!({"fractional": [[null, 1]]}), "[null,1]"),
            (json!({"fractional": "a"}), "\"a\" in \"fractional\""),
            (json!({"map": [[1], {"map": [[1], {"all": [[1], true]}]}]}), "two at most"),
            (json!({"reduce": [[1, 2], {"merge": [{"var": "accumulator"}, {"var": "accumulator"}]}, [1]]}), "grow"),
            (json!({"in": [1, many]}), "more than 2000 values"),
            (json!(["a"]), "gives [\"a\"], use a variant's name or null"),
        ] {
            let reason = given("key", rule, "worker-1").expect_err(why);
            assert!(reason.contains(why), "{reason}");
        }
    }
}
