//! What changes over time, from a file: "at 10 s this bank turns 50 times slower".
//!
//! ```toml
//! [[step]]
//! at = "10s"              # since the start, or since POST /script/restart
//! for = "30s"             # then back to what was before; without it, for good
//! client = "bank-3"       # without it, everyone
//! set = { slowdown = 50 }
//! ```
//!
//! A pure function from the time to the behaviour. Of steps in force that set the same key the later one wins, in the
//! file's order where they begin together; what is set for one client wins over what is set for everyone.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::behaviour::{Behaviour, Wrong};
use super::{Error, is_client_id};

/// Steps in one file: each request looks at all of them.
const MAX_STEPS: usize = 1_000;

/// A script, its steps in the order in which they begin.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Script {
    steps: Vec<Step>,
}

/// A change of behaviour.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    #[serde(with = "humantime_serde")]
    at: Duration,
    #[serde(rename = "for", with = "humantime_serde", default)]
    lasts: Option<Duration>,
    client: Option<String>,
    set: Behaviour,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    step: Vec<toml::Value>,
}

impl Script {
    /// Reads a file; an error names it, and the step and the key that are wrong.
    pub fn read(file: &Path) -> Result<Script, Error> {
        let wrong = |problem: String| Error::Script { file: file.to_owned(), problem };
        let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
        Script::parse(&text).map_err(wrong)
    }

    /// Reads a script's text; an error names the step and the key that are wrong.
    pub fn parse(text: &str) -> Result<Script, String> {
        let document: Document =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().replace('\n', " "))?;
        if document.step.len() > MAX_STEPS {
            return Err(format!("it has {} steps: use at most {MAX_STEPS}", document.step.len()));
        }
        let read = |(index, step)| Step::read(step).map_err(|wrong| format!("step {}: {wrong}", index + 1));
        let mut steps = document.step.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
        steps.sort_by_key(|step| step.at);
        Ok(Script { steps })
    }

    /// What is set for `client` at this time, for everyone and for it alone.
    pub(super) fn behaviour(&self, client: &str, elapsed: Duration) -> Behaviour {
        let (mut everyone, mut own) = (Behaviour::default(), Behaviour::default());
        for step in self.steps.iter().filter(|step| step.is_in_force(elapsed)) {
            match step.client.as_deref() {
                None => everyone = step.set.over(everyone),
                Some(name) if name == client => own = step.set.over(own),
                Some(_) => {}
            }
        }
        own.over(everyone)
    }

    /// The clients that it names.
    pub(super) fn clients(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().filter_map(|step| step.client.as_deref())
    }
}

impl Step {
    fn read(step: toml::Value) -> Result<Step, Wrong> {
        let step: Step = serde_path_to_error::deserialize(step).map_err(|error| {
            let key = error.path().to_string();
            let problem = error.into_inner().to_string();
            Wrong::new(key, problem.trim_end().replace('\n', " "))
        })?;
        if let Some(client) = step.client.as_deref().filter(|client| !is_client_id(client)) {
            return Err(Wrong::new("client", format!("{client:?} is no client id: use {}", super::CLIENT_ID_RULE)));
        }
        if step.lasts.is_some_and(|lasts| lasts.is_zero()) {
            return Err(Wrong::new("for", "0s would change nothing: use more, or leave it out for good"));
        }
        step.set.check().map_err(|wrong| Wrong::new(format!("set.{}", wrong.key), wrong.problem))?;
        Ok(step)
    }

    fn is_in_force(&self, elapsed: Duration) -> bool {
        elapsed >= self.at && self.lasts.is_none_or(|lasts| elapsed - self.at < lasts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = r#"
        [[step]]
        at = "20s"
        for = "10s"
        set = { slowdown = 3.5, hangs = 0.5 }

        [[step]]
        at = "10s"
        set = { slowdown = 2 }

        [[step]]
        at = "15s"
        for = "10s"
        client = "bank-3"
        set = { slowdown = 50, rate_limit = { per_second = 5 } }
    "#;

    #[test]
    fn a_bank_turns_slow_at_its_time_and_back_again() {
        let script = Script::parse(SCRIPT).expect("valid");
        let slowdown = |client, seconds| script.behaviour(client, Duration::from_secs(seconds)).slowdown;
        let others: Vec<_> = [0, 9, 10, 15, 20, 29, 30, 1_000].map(|seconds| slowdown("bank-1", seconds)).into();
        assert_eq!(others, [None, None, Some(2.0), Some(2.0), Some(3.5), Some(3.5), Some(2.0), Some(2.0)]);
        let third: Vec<_> = [9, 10, 15, 20, 24, 25, 30].map(|seconds| slowdown("bank-3", seconds)).into();
        let fifty = Some(50.0);
        assert_eq!(third, [None, Some(2.0), fifty, fifty, fifty, Some(3.5), Some(2.0)]);
        let both = script.behaviour("bank-3", Duration::from_secs(22));
        assert_eq!((both.hangs, both.rate_limit.map(|limit| limit.burst)), (Some(0.5), Some(1)), "keys are apart");
        assert_eq!(Script::parse("").expect("no steps").behaviour("a", Duration::MAX), Behaviour::default());
    }

    #[test]
    fn a_bad_script_is_refused_with_its_step_and_key() {
        for (text, expected) in [
            ("[[step]]\nset = {}", "step 1: "),
            ("[[step]]\nat = \"1s\"\nset = {}\n[[step]]\nat = \"soon\"\nset = {}", "step 2: at"),
            ("[[step]]\nat = \"1s\"\nset = { slowdwon = 2 }", "step 1: set.slowdwon: unknown field `slowdwon`"),
            ("[[step]]\nat = \"1s\"\nset = { slowdown = \"fast\" }", "step 1: set.slowdown"),
            ("[[step]]\nat = \"1s\"\nset = { hangs = 2 }", "step 1: set.hangs: 2 is out of range"),
            ("[[step]]\nat = \"1s\"\nset = { errors = { share = 1, status = 200 } }", "step 1: set.errors.status"),
            ("[[step]]\nat = \"1s\"\nfor = \"0s\"\nset = {}", "step 1: for: 0s would change nothing"),
            ("[[step]]\nat = \"1s\"\nclient = \"a b\"\nset = {}", "step 1: client: \"a b\" is no client id"),
            ("[[steps]]\nat = \"1s\"", "steps"),
            ("[[step]", "line 1"),
        ] {
            let error = Script::parse(text).expect_err(text);
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        let error = Script::read(Path::new("/nowhere/script.toml")).expect_err("missing").to_string();
        assert!(error.contains("/nowhere/script.toml"), "{error}");
        let many = "[[step]]\nat = \"1s\"\nset = {}\n".repeat(MAX_STEPS + 1);
        assert!(Script::parse(&many).expect_err("too many").contains("at most"));
    }
}
