//! What a bank's refusals mean: configured rules from answers to remedies.
//!
//! The first rule that matches counts, a step's own before the integration's. Without a match, an answer of status 408,
//! 429 or 500 and above may be another one later, and every other one that is not 200 to 299 would come again.

use serde::{Deserialize, Serialize};

use super::expression::{Condition, Names, Scope};
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
            Compiled::new(rule, names).map_err(|invalid| invalid.within(&format!("errors[{position}]")))
        });
        Ok(Rules { rules: compiled.collect::<Result<_, _>>()? })
    }

    fn first(&self, status: u16, scope: &Scope<'_>) -> Option<&Compiled> {
        self.rules.iter().find(|rule| rule.matches(status, scope))
    }
}

impl Compiled {
    fn new(rule: &Rule, names: Names<'_>) -> Result<Self, Invalid> {
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
        Ok(Compiled { status: rule.status.clone(), when, remedy: rule.remedy, reason: rule.reason.clone() })
    }

    fn matches(&self, status: u16, scope: &Scope<'_>) -> bool {
        let is_about = match self.status.is_empty() {
            true => !(200..300).contains(&status),
            false => self.status.contains(&status),
        };
        // A condition that cannot be evaluated, over a body of another shape, does not hold.
        is_about && self.when.as_ref().is_none_or(|when| when.holds(scope).unwrap_or(false))
    }
}

/// An answer that is an error.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) error: Error,
    /// Another attempt within the step may help: the bank said so, or a rule does.
    pub(super) is_transient: bool,
}

/// What an answer means by `lists` of rules; nothing when it is no error. `shown` is the request in words.
pub(super) fn judge(lists: [&Rules; 2], status: u16, scope: &Scope<'_>, shown: &str) -> Option<Refusal> {
    let message = format!("{shown} answered with status {status}");
    if let Some(rule) = lists.into_iter().find_map(|rules| rules.first(status, scope)) {
        let error = Error { message, remedy: rule.remedy, reason: rule.reason.clone() };
        return Some(Refusal { error, is_transient: rule.remedy == Remedy::Retry });
    }
    let error = match status {
        200..300 => return None,
        408 | 429 | 500.. => Error::retryable(message),
        _ => Error::permanent(message),
    };
    Some(Refusal { error, is_transient: retry::is_transient(status) })
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
            let refusal = judge([&own, &shared], status, &scope, "GET /x");
            let expected = expected.map(|(remedy, reason, is_transient)| {
                let message = format!("GET /x answered with status {status}");
                Refusal { error: Error { message, remedy, reason: reason.parse().ok() }, is_transient }
            });
            assert_eq!(refusal, expected, "{status} {body:?}");
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
