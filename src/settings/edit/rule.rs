//! Rules as weir writes them: for a pool, a share of the workers, or both.

use serde_json::{Value, json};

use super::{Share, WHOLE};
use crate::task::PoolName;

/// A rule as weir writes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub pool: Option<PoolName>,
    pub share: Option<Share>,
    pub variant: String,
}

impl Rule {
    /// Whether nobody is left for `other` behind this one, or it is another step of the same rollout.
    fn replaces(&self, other: &Rule) -> bool {
        self.pool == other.pool && (self.share.is_none() || other.share.is_some())
    }

    fn write(&self, rest: Value) -> Value {
        let pool = self.pool.as_ref().map(|pool| json!({"===": [{"var": "pool"}, pool.as_str()]}));
        let share = self.share.map(|Share(share)| {
            let whole = if share % 100 == 0 { 100 } else { 1 };
            json!({"===": [{"fractional": [["in", share / whole], ["out", (WHOLE - share) / whole]]}, "in"]})
        });
        let condition = match (pool, share) {
            (Some(pool), Some(share)) => json!({"and": [pool, share]}),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => true.into(),
        };
        json!({"if": [condition, self.variant, rest]})
    }

    /// The rule and the rest, where the rule is exactly one that weir writes.
    fn read(rule: &Value) -> Option<(Rule, Value)> {
        let [condition, Value::String(variant), rest] = rule.get("if")?.as_array()?.as_slice() else { return None };
        let parts = condition.get("and").and_then(Value::as_array);
        let parts = parts.map_or(std::slice::from_ref(condition), Vec::as_slice);
        let pool = parts.iter().find_map(|part| {
            part.pointer("/===/0/var")?;
            part.pointer("/===/1")?.as_str()?.parse().ok()
        });
        let share = parts.iter().find_map(|part| {
            let weight = |at: &str| part.pointer(at)?.as_u64();
            let (within, out) = (weight("/===/0/fractional/0/1")?, weight("/===/0/fractional/1/1")?);
            let hundredths = within.checked_mul(u64::from(WHOLE))?.checked_div(within.checked_add(out)?)?;
            u32::try_from(hundredths).ok().filter(|share| (1..WHOLE).contains(share)).map(Share)
        });
        let read = Rule { pool, share, variant: variant.clone() };
        (read.write(rest.clone()) == *rule).then(|| (read, rest.clone()))
    }
}

/// Puts it before the others, of which those that it replaces are gone.
pub fn put_in_front(rule: Rule, mut rest: Value) -> Value {
    let mut kept = Vec::new();
    while let Some((before, after)) = Rule::read(&rest) {
        if !rule.replaces(&before) {
            kept.push(before);
        }
        rest = after;
    }
    let rest = kept.iter().rfold(rest, |rest, before| before.write(rest));
    rule.write(rest)
}
