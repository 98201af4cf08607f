//! What a bank's refusals mean: configured rules from answers to remedies.
//!
//! The first rule that matches counts, a step's own before the integration's. Without a match, an answer of status 408,
//! 429 or 500 and above may be another one later, and every other one that is not 200 to 299 would come again.

use serde::{Deserialize, Serialize};

use super::expression::{Condition, Failed, Names, Scope};
use super::retry;
use crate::integration::{Error, Invalid};
use crate::task::{FailureReason, Remedy};

/// Rules of one list; a longer one is a mistake.
const MAX_RULES: usize = 64;

/// What answers of a kind mean.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The statuses that it is about; every one outside of 200 to 299 where it is left out.
    #[serde(default)]
    pub status: Vec<u16>,
    /// One `{{ expression }}` over `status`, `headers`, `body`, `input` and `task` that must hold; what is not there is
    /// undefined, and so is all of a body that is not JSON.
    #[serde(default)]
    pub when: Option<String>,
    /// What may help.
    pub remedy: Remedy,
    /// A word for programs, such as `consent_expired`.
    #[serde(default)]
    pub reason: Option<FailureReason>,
}

/// Compiled rules.
pub(super) struct Rules {
    rules: Vec<Compiled>,
}

struct Compiled {
    /// The condition's key.
    place: String,
    status: Vec<u16>,
    when: Option<Condition>,
    remedy: Remedy,
    reason: Option<FailureReason>,
}

impl Rules {
    /// Compiles the list `errors`.
    pub(super) fn compile(rules: &[Rule], names: Names<'_>) -> Result<Self, Invalid> {
        if rules.len() > MAX_RULES {
            return Err(Invalid::new(
                "errors",
                format!("{} rules are configured: use at most {MAX_RULES}", rules.len()),
            ));
        }
        let names = Names { body: true, answer: true, ..names };
        let compiled = rules.iter().enumerate().map(|(position, rule)| {
            let place = format!("errors[{position}]");
            Compiled::new(rule, names, format!("{place}.when")).map_err(|invalid| invalid.within(&place))
        });
        Ok(Rules { rules: compiled.collect::<Result<_, _>>()? })
    }

    fn first(&self, status: u16, scope: &Scope<'_>, unclear: &mut Vec<Unclear>) -> Option<&Compiled> {
        self.rules.iter().find(|rule| {
            rule.matches(status, scope).unwrap_or_else(|failed| {
                if !failed.is_missing {
                    unclear.push(Unclear { place: rule.place.clone(), problem: failed.problem });
                }
                false
            })
        })
    }
}

impl Compiled {
    fn new(rule: &Rule, names: Names<'_>, place: String) -> Result<Self, Invalid> {
        for status in &rule.status {
            let problem = match status {
                200..300 if rule.when.is_none() => "would make an error of every answer: add a when",
                100..600 => continue,
                _ => "is no status: use 100 to 599",
            };
            return Err(Invalid::new("status", format!("{status} {problem}")));
        }
        if rule.status.is_empty() && rule.when.is_none() {
            return Err(Invalid::new("status", "it is left out, and when, too: use one of them"));
        }
        let when = rule.when.as_ref().map(|when| Condition::compile(when, names)).transpose();
        let when = when.map_err(|problem| Invalid::new("when", problem))?;
        Ok(Compiled { place, status: rule.status.clone(), when, remedy: rule.remedy, reason: rule.reason.clone() })
    }

    /// A condition that cannot be evaluated, over a body of another shape, does not hold.
    fn matches(&self, status: u16, scope: &Scope<'_>) -> Result<bool, Failed> {
        let is_about = match self.status.is_empty() {
            true => !(200..300).contains(&status),
            false => self.status.contains(&status),
        };
        match &self.when {
            Some(when) if is_about => when.holds(scope),
            _ => Ok(is_about),
        }
    }
}

/// A rule whose condition could not be evaluated, for another reason than that something is not there.
#[derive(Debug)]
pub(super) struct Unclear {
    /// The condition's key.
    pub(super) place: String,
    /// What is wrong, without values.
    pub(super) problem: String,
}

/// An answer that is an error.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) error: Error,
    /// Another attempt within the step may help: the bank said so, or a rule does.
    pub(super) is_transient: bool,
}

/// What an answer means by `lists` of rules, nothing when it is no error; and the rules before that which are unclear.
/// `shown` is the request in words.
pub(super) fn judge(
    lists: [&Rules; 2],
    status: u16,
    scope: &Scope<'_>,
    shown: &str,
) -> (Option<Refusal>, Vec<Unclear>) {
    let (mut unclear, mut message) = (Vec::new(), format!("{shown} answered with status {status}"));
    let found = lists.into_iter().find_map(|rules| rules.first(status, scope, &mut unclear));
    if (300..400).contains(&status) {
        message.push_str(", and redirects are not followed");
    }
    let refusal = match (found, status) {
        (Some(rule), _) => {
            let error = Error { message, remedy: rule.remedy, reason: rule.reason.clone() };
            Some(Refusal { error, is_transient: rule.remedy == Remedy::Retry })
        }
        (None, 200..300) => None,
        (None, 408 | 429 | 500..) => {
            Some(Refusal { error: Error::retryable(message), is_transient: retry::is_transient(status) })
        }
        (None, _) => Some(Refusal { error: Error::permanent(message), is_transient: false }),
    };
    (refusal, unclear)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::integration::testing;
    use crate::task::RunId;

    fn compiled(rules: serde_json::Value) -> Result<Rules, Invalid> {
        let rules: Vec<Rule> = serde_json::from_value(rules).expect("rules");
        Rules::compile(&rules, Names::default())
    }

    #[test]
    fn the_first_rule_that_matches_counts_and_a_steps_own_come_first() {
        let shared = compiled(serde_json::json!([
            { "status": [401, 403], "when": "{{ body.error.code == 'consent' }}", "remedy": "user_action", "reason": "consent_expired" },
            { "status": [401, 403], "remedy": "none", "reason": "forbidden" },
            { "when": "{{ headers['x-maintenance'] == 'yes' }}", "remedy": "retry", "reason": "maintenance" },
            { "status": [200], "when": "{{ body.errors }}", "remedy": "none", "reason": "error_inside" },
            { "status": [503], "when": "{{ body.code + 0 > 3 }}", "remedy": "none" },
        ]))
        .expect("valid");
        let own =
            compiled(serde_json::json!([{ "status": [409], "remedy": "retry", "reason": "busy" }])).expect("valid");
        let task = testing::task("{}");
        for (status, headers, body, expected) in [
            (403, "no", r#"{"error": {"code": "consent"}}"#, Some((Remedy::UserAction, "consent_expired", false))),
            (403, "no", r#"{"error": {}}"#, Some((Remedy::None, "forbidden", false))),
            (403, "no", "{}", Some((Remedy::None, "forbidden", false))),
            (401, "no", "null", Some((Remedy::None, "forbidden", false))),
            (418, "yes", "null", Some((Remedy::Retry, "maintenance", true))),
            (418, "no", "null", Some((Remedy::None, "", false))),
            (409, "no", "null", Some((Remedy::Retry, "busy", true))),
            (200, "yes", "{}", None),
            (200, "no", r#"{"errors": [1]}"#, Some((Remedy::None, "error_inside", false))),
            (200, "no", r#"{"errors": []}"#, None),
            (503, "no", r#"{"code": 4}"#, Some((Remedy::None, "", false))),
            (503, "no", r#"{"code": "4"}"#, Some((Remedy::Retry, "", true))),
            (501, "no", "null", Some((Remedy::Retry, "", false))),
            (302, "no", "null", Some((Remedy::None, "", false))),
        ] {
            let headers = [("x-maintenance".to_owned(), headers.to_owned())];
            let (body, answer) = (Some(body), Some((status, &headers[..])));
            let scope = Scope { task: &task, run: RunId::mint(), steps: &[], item: None, body, answer };
            let (refusal, unclear) = judge([&own, &shared], status, &scope, "GET /x");
            let expected = expected.map(|(remedy, reason, is_transient)| {
                let redirect = if status == 302 { ", and redirects are not followed" } else { "" };
                let message = format!("GET /x answered with status {status}{redirect}");
                Refusal { error: Error { message, remedy, reason: reason.parse().ok() }, is_transient }
            });
            assert_eq!(refusal, expected, "{status} {body:?}");
            let unclear: Vec<_> = unclear.iter().map(|rule| (rule.place.as_str(), rule.problem.as_str())).collect();
            let says = "{{ body.code + 0 > 3 }} cannot be evaluated: + needs numbers and met a text, which plus, minus, times and float would read";
            let is_text = body.is_some_and(|body| body.contains("\"4\""));
            assert_eq!(unclear, if is_text { vec![("errors[4].when", says)] } else { vec![] });
        }
    }

    #[test]
    fn wrong_rules_are_refused() {
        for (rules, says) in [
            (serde_json::json!([{ "remedy": "none" }]), "errors[0].status: it is left out"),
            (serde_json::json!([{ "status": [200], "remedy": "none" }]), "200 would make an error of every answer"),
            (serde_json::json!([{ "status": [1000], "remedy": "none" }]), "1000 is no status"),
            (serde_json::json!([{ "when": "body.x", "remedy": "none" }]), "errors[0].when: \"body.x\" is not one"),
            (serde_json::json!([{ "when": "{{ body.x }} ", "remedy": "none" }]), "is not one expression"),
            (serde_json::json!([{ "when": "{{ steps.a.x }}", "remedy": "none" }]), "no earlier step"),
            (
                serde_json::json!([{ "when": "{{ body.error | strng == 'x' }}", "remedy": "none" }]),
                "errors[0].when: {{ body.error | strng == 'x' }} uses the filter \"strng\", which does not exist",
            ),
            (
                serde_json::json!([{ "when": "{{ body.error is strng }}", "remedy": "none" }]),
                "uses the test \"strng\", which does not exist",
            ),
            (
                serde_json::json!([{ "when": "{{ body.error.startswith('x') }}", "remedy": "none" }]),
                "calls \"startswith\": values have no methods",
            ),
            (
                serde_json::json!([{ "when": "{{ body.errors | map('uper') | list }}", "remedy": "none" }]),
                "uses the filter \"uper\"",
            ),
            (
                serde_json::json!([{ "when": "{{ body.errors | selectattr('a', 'equal', 1) }}", "remedy": "none" }]),
                "uses the test \"equal\"",
            ),
            (serde_json::json!([{ "when": "{{ body.x | __add(1) }}", "remedy": "none" }]), "uses the filter \"__add\""),
            (serde_json::json!([{ "when": "{{ item }}", "remedy": "none" }]), "use input, steps.NAME, body, status"),
        ] {
            let error = compiled(rules).err().expect(says).to_string();
            assert!(error.contains(says), "{error}");
        }
        for rule in [
            serde_json::json!({ "status": [400] }),
            serde_json::json!({ "status": [400], "remedy": "maybe" }),
            serde_json::json!({ "status": [400], "remedy": "none", "reason": "Two Words" }),
            serde_json::json!({ "statuses": [400], "remedy": "none" }),
        ] {
            serde_json::from_value::<Rule>(rule.clone()).expect_err(&rule.to_string());
        }
    }
}
