//! Changes to a document as `weir settings set` makes them. All of it is pure: what is read and written is elsewhere.
//!
//! A value for one pool, or for a share of the workers, becomes a rule in front of what was there:
//! `{"if": [CONDITION, VARIANT, REST]}`. A rule that weir wrote for the same workers before is replaced, so that a share
//! can be raised step by step; rules by other hands stay as they are.

mod difference;
mod rule;

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value, json};

pub use self::difference::{Difference, differences, is_same};
use self::rule::{Rule, put_in_front};
use super::flagd::{self, ALLOW_JUMP};
use super::mark::RAISE;
use super::store::version_of;
use super::{Context, Settings, brief, spec, strict_json};
use crate::task::PoolName;

/// One setting, for some workers.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The setting.
    pub key: String,
    /// Its value for them.
    pub value: Value,
    /// Who they are.
    pub scope: Scope,
    /// Whether it may be many times what it was.
    pub allow_jump: bool,
}

/// Which workers a value is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All for whom no rule says otherwise; an error where there are rules.
    Default,
    /// All: rules are removed.
    Everywhere,
    /// Those of a pool (all pools without one), or a share of them.
    Some {
        /// The pool.
        pool: Option<PoolName>,
        /// The share.
        share: Option<Share>,
    },
}

/// A share of the workers, above 0% and below 100%, in hundredths of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

/// The whole, in hundredths of a percent.
const WHOLE: u32 = 10_000;

impl Share {
    /// The smallest and the largest.
    pub const LEAST: Share = Share(1);
    /// See [`Share::LEAST`].
    pub const MOST: Share = Share(WHOLE - 1);

    /// One half-way between two; none when they are neighbours.
    pub fn between(low: Share, high: Share) -> Option<Share> {
        let middle = low.0.midpoint(high.0);
        (low.0 < middle && middle < high.0).then_some(Share(middle))
    }
}

impl FromStr for Share {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let percent = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
        let share =
            percent.map(|percent| percent * 100.0).filter(|hundredths| (1.0..f64::from(WHOLE)).contains(hundredths));
        let share = share.map(|hundredths| Share(hundredths.round() as u32)).filter(|share| share.0 < WHOLE);
        share.ok_or_else(|| format!("{text:?} is no share of the workers: use 0.01% to 99.99%, such as \"5%\""))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", f64::from(self.0) / 100.0)
    }
}

/// A value as it is written in a command: JSON, or a text that does not begin like some.
pub fn read_value(written: &str) -> Result<Value, String> {
    match strict_json::read(written.as_bytes()) {
        Err(strict_json::Error::Syntax(_)) if !written.trim_start().starts_with(['{', '[', '"']) => Ok(written.into()),
        read => read.map_err(|error| error.to_string()),
    }
}

/// The document after the changes, or what is wrong with one of them or with the document. `start` and `max_jump` are the
/// workers', which would refuse a jump too.
pub fn edit(document: Option<&[u8]>, changes: &[Change], start: &Settings, max_jump: f64) -> Result<String, String> {
    let mut edited = parse(document)?;
    for change in changes {
        let spec = spec(&change.key).ok_or_else(|| {
            let known: Vec<_> = super::TABLE.iter().map(|spec| spec.key).collect();
            format!("there is no setting {:?}; the settings are {}", change.key, known.join(", "))
        })?;
        if spec.is_of_routers() && matches!(change.scope, Scope::Some { .. }) {
            return Err(format!("{} is the routers', which are in no pool: leave --pool and --share out", change.key));
        }
        let mut next = start.clone();
        let wrong = |reason| format!("{} = {} is not valid: {reason}", change.key, brief(&change.value));
        spec.write(&mut next, &change.value).map_err(wrong)?;
        if let (Some(document), false) = (document, change.allow_jump) {
            let before = before(document, change, start)?;
            spec.check_jump(start, &before, &next, max_jump)
                .map_err(|jump| format!("{} = {}", change.key, jump.in_a_command()))?;
        }
        let flags = edited.entry("flags").or_insert_with(|| json!({}));
        let flags = flags.as_object_mut().ok_or("\"flags\" of the document is not an object")?;
        let flag = flags.entry(change.key.clone()).or_insert_with(|| json!({}));
        let flag = flag.as_object_mut().ok_or_else(|| format!("the document's {} is not an object", change.key))?;
        set(flag, change)?;
        edited = read_back(edited, change)?;
    }
    Ok(format!("{:#}\n", Value::Object(edited)))
}

/// The document, if those who are meant take the flag of this change: something else in it may be wrong.
fn read_back(document: Map<String, Value>, change: &Change) -> Result<Map<String, Value>, String> {
    let pool = match &change.scope {
        Scope::Some { pool: Some(pool), .. } => pool.clone(),
        _ => PoolName::default(),
    };
    let document = Value::Object(document);
    let read = flagd::Document::read(document.to_string().as_bytes())?;
    if let Err(reason) = read.flag(&change.key, &Context { pool, ..Context::default() }) {
        return Err(format!(
            "workers would refuse {} = {}, for the flag has something else that is wrong: {reason}; mend it, or set a value for \
             all with --everywhere",
            change.key,
            brief(&change.value)
        ));
    }
    match document {
        Value::Object(document) => Ok(document),
        _ => Err("the document is not an object".into()),
    }
}

fn parse(document: Option<&[u8]>) -> Result<Map<String, Value>, String> {
    let new = || Map::from_iter([("$schema".to_owned(), "https://flagd.dev/schema/v0/flags.json".into())]);
    document.map_or_else(|| Ok(new()), read)
}

/// A document as it can be edited and compared, or what is wrong with it.
pub fn read(document: &[u8]) -> Result<Map<String, Value>, String> {
    match strict_json::read(document).map_err(|error| format!("the document {error}"))? {
        Value::Object(document) => Ok(document),
        _ => Err("the document is not an object".into()),
    }
}

/// What the workers that are meant have now, as far as a rule does not look at their ids.
fn before(document: &[u8], change: &Change, start: &Settings) -> Result<Settings, String> {
    let pool = match &change.scope {
        Scope::Some { pool: Some(pool), .. } => pool.clone(),
        _ => PoolName::default(),
    };
    let flags = flagd::evaluate(document, &Context { pool, ..Context::default() })?;
    let (before, _) = super::apply(&flags, start, start, version_of(document), f64::INFINITY);
    Ok(before)
}

fn set(flag: &mut Map<String, Value>, change: &Change) -> Result<(), String> {
    let is_new = flag.is_empty();
    let was = flag.insert("state".into(), "ENABLED".into()).unwrap_or_default();
    match was.as_str() {
        _ if is_new || !matches!(change.scope, Scope::Some { .. }) => {}
        Some("ENABLED") => {}
        // Those who are not meant have the start value, and keep it.
        Some("DISABLED") => {
            flag.insert("defaultVariant".into(), Value::Null);
            flag.remove("targeting");
        }
        // They keep the last good one, which is not known here.
        _ => {
            return Err(format!(
                "the state of {} in the document is {}, so that workers refuse its values, and nobody knows what the others would \
                 have: make it \"ENABLED\" or \"DISABLED\", or set a value for all with --everywhere",
                change.key,
                brief(&was)
            ));
        }
    }
    // Of a list that somebody has prepared, nothing is forgotten.
    let is_of_weir = unused(flag).is_empty();
    let variants = flag.entry("variants").or_insert_with(|| json!({}));
    let variants =
        variants.as_object_mut().ok_or_else(|| format!("the variants of {} are not an object", change.key))?;
    let name = variant(variants, &change.value);
    let targeting = flag.get("targeting").filter(|rule| !is_nothing(rule)).cloned();
    match &change.scope {
        Scope::Default if targeting.is_some() => {
            return Err(format!(
                "{} has rules that would still decide for some workers: name a --pool, or add --everywhere, which removes \
                 them",
                change.key
            ));
        }
        Scope::Default | Scope::Everywhere => {
            flag.remove("targeting");
            flag.insert("defaultVariant".into(), name.into());
        }
        Scope::Some { pool, share } => {
            let rule = Rule { pool: pool.clone(), share: *share, variant: name };
            flag.entry("defaultVariant").or_insert(Value::Null);
            flag.insert("targeting".into(), put_in_front(rule, targeting.unwrap_or(Value::Null)));
        }
    }
    let metadata = flag.entry("metadata").or_insert_with(|| json!({}));
    match metadata.as_object_mut() {
        Some(metadata) => {
            metadata.remove(ALLOW_JUMP);
            metadata.remove(RAISE);
            if change.allow_jump {
                metadata.insert(ALLOW_JUMP.into(), true.into());
            }
            if metadata.is_empty() {
                flag.remove("metadata");
            }
        }
        None if change.allow_jump => {
            return Err(format!(
                "the metadata of {} in the document are not an object, so that no jump can be allowed there",
                change.key
            ));
        }
        None => {}
    }
    if is_of_weir {
        let unused = unused(flag);
        if let Some(variants) = flag.get_mut("variants").and_then(Value::as_object_mut) {
            variants.retain(|name, value| *name != named_as(value) || !unused.contains(name));
        }
    }
    Ok(())
}

/// The name of the variant of this value: one that there is, or a new one that is called as it is written.
fn variant(variants: &mut Map<String, Value>, value: &Value) -> String {
    if let Some((name, _)) = variants.iter().find(|(_, known)| *known == value) {
        return name.clone();
    }
    let (written, mut count) = (named_as(value), 1);
    let mut name = written.clone();
    while variants.contains_key(&name) {
        count += 1;
        name = format!("{written} ({count})");
    }
    variants.insert(name.clone(), value.clone());
    name
}

fn named_as(value: &Value) -> String {
    value.as_str().map_or_else(|| brief(value), str::to_owned)
}

/// The variants to which nothing refers by their names. A rule may make a name of others.
fn unused(flag: &Map<String, Value>) -> Vec<String> {
    let part = |key: &str| flag.get(key).unwrap_or(&Value::Null);
    let is_used = |name: &&String| *part("defaultVariant") == **name || mentions(part("targeting"), name);
    let names = part("variants").as_object().into_iter().flat_map(Map::keys);
    names.filter(|name| !is_used(name)).cloned().collect()
}

fn mentions(rule: &Value, name: &str) -> bool {
    match rule {
        Value::Array(items) => items.iter().any(|item| mentions(item, name)),
        Value::Object(operation) => {
            operation.contains_key("$ref") || operation.values().any(|item| mentions(item, name))
        }
        // A rule may name the variant "40" by a number.
        other => named_as(other) == name,
    }
}

fn is_nothing(rule: &Value) -> bool {
    rule.is_null() || rule.as_object().is_some_and(Map::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Config;

    fn change(value: impl Into<Value>, pool: &str, share: &str) -> Change {
        let pool = (!pool.is_empty()).then(|| pool.parse().expect("a pool"));
        let share = (!share.is_empty()).then(|| share.parse().expect("a share"));
        let scope = if pool.is_none() && share.is_none() { Scope::Default } else { Scope::Some { pool, share } };
        Change { key: "max_parallelism".into(), value: value.into(), scope, allow_jump: false }
    }

    fn after(document: Option<&str>, changes: &[Change]) -> Result<String, String> {
        edit(document.map(str::as_bytes), changes, &Config::default().start(), 10.0)
    }

    fn value(document: &str, pool: &str, worker: &str) -> Value {
        let (pool, worker) = (pool.parse().expect("a pool"), Some(worker.parse().expect("a worker id")));
        let flags =
            flagd::evaluate(document.as_bytes(), &Context { pool, worker, ..Context::default() }).expect("a document");
        flags["max_parallelism"].clone().expect("good").map_or(Value::Null, |flag| flag.value)
    }

    #[test]
    fn a_value_for_all_is_the_default_and_rules_are_not_passed_over_in_silence() {
        let first = after(None, &[change(40, "", "")]).expect("good");
        assert_eq!(value(&first, "any", "w"), json!(40));
        let second = after(Some(&first), &[change(50, "", "")]).expect("good");
        assert_eq!(
            serde_json::from_str::<Value>(&second).expect("JSON")["flags"]["max_parallelism"],
            json!({"state": "ENABLED", "variants": {"50": 50}, "defaultVariant": "50"}),
            "what is not used is gone"
        );
        let ruled = after(Some(&second), &[change(60, "parallel", "")]).expect("good");
        assert!(after(Some(&ruled), &[change(70, "", "")]).expect_err("rules").contains("add --everywhere"));
        let everywhere = Change { scope: Scope::Everywhere, ..change(70, "", "") };
        let all = after(Some(&ruled), &[everywhere]).expect("good");
        assert_eq!([value(&all, "parallel", "w"), value(&all, "other", "w")], [json!(70), json!(70)]);
    }

    #[test]
    fn a_rollout_is_raised_step_by_step_in_one_rule() {
        let mut document = after(None, &[change(30, "", "")]).expect("good");
        let mut sizes = Vec::new();
        for share in ["5%", "12.5%", "50%"] {
            document = after(Some(&document), &[change(40, "parallel", share)]).expect("good");
            let has_it = |worker: &u32| value(&document, "parallel", &format!("worker-{worker}")) == json!(40);
            sizes.push((0..400).filter(has_it).count());
            assert_eq!(document.matches("fractional").count(), 1, "{document}");
            assert_eq!(value(&document, "single", "worker-1"), json!(30));
        }
        assert!(sizes.is_sorted() && sizes[0] < 45 && (150..250).contains(&sizes[2]), "{sizes:?}");
        document = after(Some(&document), &[change(20, "single", "")]).expect("good");
        document = after(Some(&document), &[change(40, "parallel", "")]).expect("good");
        assert!(!document.contains("fractional"), "{document}");
        assert_eq!([value(&document, "parallel", "w"), value(&document, "single", "w")], [json!(40), json!(20)]);
    }

    #[test]
    fn rules_and_variants_by_other_hands_stay() {
        let theirs = json!({"flags": {"max_parallelism": {"state": "ENABLED", "variants": {"low": 1, "usual": 30},
            "defaultVariant": "usual", "targeting": {"if": [{"===": [{"var": "zone"}, "b"]}, "low", null]}}}, "note": 1});
        let document = after(Some(&theirs.to_string()), &[change(40, "", "5%")]).expect("good");
        let parsed: Value = serde_json::from_str(&document).expect("JSON");
        let flag = &parsed["flags"]["max_parallelism"];
        assert_eq!(flag["targeting"]["if"][2], theirs["flags"]["max_parallelism"]["targeting"]);
        assert_eq!((&flag["variants"], &flag["state"]), (&json!({"low": 1, "usual": 30, "40": 40}), &json!("ENABLED")));
        assert_eq!(parsed["note"], 1);
        let again = after(Some(&document), &[change(1, "", "5%")]).expect("good");
        assert!(again.contains("\"low\"") && !again.contains("\"40\""), "{again}");
    }

    #[test]
    fn who_is_not_meant_keeps_the_start_value_of_a_disabled_flag() {
        let rule = json!({"if": [{"===": [{"var": "pool"}, "single"]}, "night", null]});
        for targeting in [json!(null), json!({}), rule] {
            let disabled = json!({"flags": {"max_parallelism": {"state": "DISABLED", "variants": {"night": 0},
                "defaultVariant": "night", "targeting": targeting}}});
            for share in ["", "60%"] {
                let changes = [change(40, "parallel", share)];
                let document = after(Some(&disabled.to_string()), &changes).expect("good");
                assert_eq!(value(&document, "single", "w"), Value::Null, "{document}");
            }
        }
    }

    #[test]
    fn prepared_variants_stay_and_what_is_wrong_beside_a_value_is_an_error() {
        let flag = |targeting: Value, default: &str| {
            json!({"flags": {"max_parallelism": {"state": "ENABLED", "variants": {"20": 20, "30": 30, "40": 40},
                "defaultVariant": default, "targeting": targeting, "metadata": "theirs"}}})
            .to_string()
        };
        let made = json!({"if": [{"===": [{"var": "worker"}, "w3"]}, {"cat": ["4", "0"]}, null]});
        for targeting in [made, Value::Null] {
            let document = after(Some(&flag(targeting, "30")), &[change(25, "other", "")]).expect("good");
            let parsed: Value = serde_json::from_str(&document).expect("JSON");
            let variants = &parsed["flags"]["max_parallelism"]["variants"];
            assert_eq!(*variants, json!({"20": 20, "30": 30, "40": 40, "25": 25}));
        }
        for (targeting, default, why) in [
            (json!({"nonsense": [1]}), "30", "its targeting has the operation"),
            (Value::Null, "zz", "its defaultVariant is"),
        ] {
            let wrong = flag(targeting, default);
            let reason = after(Some(&wrong), &[change(25, "default", "")]).expect_err(why);
            assert!(
                reason.starts_with("workers would refuse max_parallelism = 25") && reason.contains(why),
                "{reason}"
            );
            let everywhere = Change { scope: Scope::Everywhere, ..change(25, "", "") };
            assert!(after(Some(&wrong), &[everywhere]).is_ok());
        }
        let jump = Change { allow_jump: true, ..change(300, "", "") };
        let reason = after(Some(&flag(Value::Null, "30")), &[jump]).expect_err("nowhere to say so");
        assert!(reason.contains("not an object"), "{reason}");
    }

    #[test]
    fn a_flag_of_no_known_state_is_not_set_for_some_alone() {
        for state in [json!("enabled"), json!(null)] {
            let wrong = json!({"flags": {"max_parallelism": {"state": state, "variants": {"few": 3},
                "defaultVariant": "few"}}});
            let reason = after(Some(&wrong.to_string()), &[change(40, "parallel", "")]).expect_err("a wrong state");
            assert!(reason.contains(&format!("is {state}, so that workers refuse")), "{reason}");
            assert!(reason.contains("--everywhere"), "{reason}");
            let everywhere = Change { scope: Scope::Everywhere, ..change(40, "", "") };
            let document = after(Some(&wrong.to_string()), &[everywhere]).expect("good");
            assert_eq!(value(&document, "single", "w"), json!(40));
        }
    }

    #[test]
    fn what_workers_would_refuse_is_refused_here() {
        let document = after(None, &[change(30, "", "")]).expect("good");
        for (wrong, why) in [
            (change(-1, "", ""), "max_parallelism = -1 is not valid: use an integer from 0 to 100000"),
            (
                change(301, "", ""),
                "max_parallelism = 301 is more than 10 times the 30 that it was or started with; set 300 at the most and raise it in \
                 steps, or add --allow-jump",
            ),
            (
                Change { key: "n".into(), ..change(1, "", "") },
                "there is no setting \"n\"; the settings are max_parallelism",
            ),
        ] {
            let reason = after(Some(&document), &[wrong]).expect_err(why);
            assert!(reason.starts_with(why), "{reason}");
        }
        let allowed = Change { allow_jump: true, ..change(301, "", "") };
        let jumped = after(Some(&document), &[allowed]).expect("allowed");
        assert!(jumped.contains("\"allow_jump\": true"), "{jumped}");
        let next = after(Some(&jumped), &[change(302, "", "")]).expect("good");
        assert!(!next.contains("allow_jump"), "the word counts for one change");
        assert!(after(Some("[]"), &[change(1, "", "")]).is_err() && after(Some("{"), &[change(1, "", "")]).is_err());
        for share in ["0%", "100%", "5", "x%", "NaN%", "-1%"] {
            assert!(share.parse::<Share>().is_err(), "{share}");
        }
        let all = "\"100%\" is no share of the workers: use 0.01% to 99.99%, such as \"5%\"";
        assert_eq!("100%".parse::<Share>(), Err(all.into()));
    }

    #[test]
    fn what_begins_like_json_is_not_taken_for_a_text() {
        assert_eq!(read_value("40"), Ok(json!(40)));
        assert_eq!([read_value("debug"), read_value("\"debug\"")], [Ok(json!("debug")), Ok(json!("debug"))]);
        assert_eq!(read_value(" {\"bank\": 5}"), Ok(json!({"bank": 5})));
        let reason = read_value("{\"bank\": 5").expect_err("it has no end");
        assert_eq!(reason, "is not JSON: EOF while parsing an object at line 1 column 10");
        assert!(read_value("{\"bank\": 5, \"bank\": 6}").expect_err("twice").starts_with("has the key \"bank\" twice"));
    }

    #[test]
    fn differences_are_by_setting() {
        let first = after(None, &[change(30, "", "")]).expect("good");
        let more = Change { key: "log_level".into(), value: json!("debug"), ..change(0, "", "") };
        let second = after(Some(&first), &[change(40, "", ""), more]).expect("good");
        let read = |document: &str| read(document.as_bytes()).expect("a document");
        let found = differences(&read(&first), &read(&second));
        let said: Vec<_> = found.iter().map(|it| (it.key.as_str(), it.before.is_some(), it.after.is_some())).collect();
        assert_eq!(said, [("max_parallelism", true, true), ("log_level", false, true)]);
        assert_eq!(differences(&read(&first), &read(&first)), []);
    }
}
