//! One `{{ expression }}` of a configuration: a plain path, or MiniJinja.
//!
//! A plain path, such as `steps.accounts.accounts[0].id`, is looked up in the JSON text itself and copied digit for
//! digit: no tree is built. All else is a MiniJinja expression (filters, `a if b else c`), with undefined names as
//! errors and at most [`FUEL`] instructions; `numbers.rs` says what happens to decimals, and `operators.rs` makes all
//! arithmetic exact. One language for requests,
//! conditions and results is one to learn. It is bounded, has no I/O, is kept by people who keep template engines for
//! a living, and its expressions are checked at boot: which names they use, and whether each is there.
//!
//! The names are `input`, `steps.NAME` (the value of an earlier step), `task.id`, `task.tenant` and `task.run`; in a loop
//! `item`; where an answer is looked at `body`, and `status` and `headers`, too. `uuid()` makes a random UUID.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::sync::LazyLock;

use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};

use super::lookup::{self, Key, Root};
use super::numbers::{self, SPELLINGS, Spellings};
use super::{arithmetic, operators};
use crate::task::{Json, RunId, Task};

/// Instructions that one expression may take; each item that a filter walks over is one.
const FUEL: u64 = 1_000_000;

/// Undefined names are errors.
static STRICT: LazyLock<Environment<'static>> = LazyLock::new(|| environment(UndefinedBehavior::Strict));

/// What is not there is undefined, also below what is not there; for conditions.
static LENIENT: LazyLock<Environment<'static>> = LazyLock::new(|| environment(UndefinedBehavior::Chainable));

fn environment(undefined: UndefinedBehavior) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(undefined);
    environment.set_fuel(Some(FUEL));
    arithmetic::add_to(&mut environment);
    environment.add_function("uuid", || uuid::Builder::from_random_bytes(rand::random()).into_uuid().to_string());
    environment
}

/// What an expression may use, by where it stands.
#[derive(Clone, Copy, Default)]
pub(super) struct Names<'a> {
    /// The earlier steps.
    pub(super) steps: &'a [String],
    /// `item`
    pub(super) item: bool,
    /// `body`
    pub(super) body: bool,
    /// `status` and `headers`
    pub(super) answer: bool,
}

/// What an expression sees.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) task: &'a Task,
    pub(super) run: RunId,
    /// The earlier steps' names and values.
    pub(super) steps: &'a [(String, Json)],
    /// The item of a loop, as JSON text.
    pub(super) item: Option<&'a str>,
    /// What was answered, as JSON text.
    pub(super) body: Option<&'a str>,
    /// Status and headers of an answer.
    pub(super) answer: Option<(u16, &'a [(String, String)])>,
}

/// A compiled expression.
pub(super) struct Expression {
    source: String,
    kind: Kind,
}

enum Kind {
    Path(Root, Vec<Key>),
    Compiled(minijinja::Expression<'static, 'static>),
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl Expression {
    /// Compiles what stands between the braces.
    pub(super) fn compile(source: &str, names: Names<'_>) -> Result<Self, String> {
        let kind = match lookup::parse(source) {
            Some((root, keys)) => {
                check_root(&root, source, names)?;
                Kind::Path(root, keys)
            }
            None => Kind::Compiled(compile(&STRICT, source, names)?),
        };
        Ok(Expression { source: source.to_owned(), kind })
    }

    /// The value as a JSON text.
    pub(super) fn json<'a>(&self, scope: &Scope<'a>) -> Result<Cow<'a, str>, String> {
        let found = match &self.kind {
            Kind::Path(root, keys) => scope.text(root).and_then(|text| match text {
                Cow::Borrowed(text) => lookup::find(text, keys),
                owned => Ok(owned),
            }),
            Kind::Compiled(expression) => match evaluate(expression, scope) {
                Ok(value) if value.is_undefined() => Err("cannot be evaluated: undefined value".into()),
                evaluated => evaluated.map(|value| Cow::Owned(value.json)).map_err(|failed| failed.problem),
            },
        };
        found.map_err(|problem| self.failed(&problem))
    }

    /// The value as a JSON text, `null` where it is not there.
    pub(super) fn lenient<'a>(&self, scope: &Scope<'a>) -> Result<Cow<'a, str>, String> {
        match &self.kind {
            Kind::Path(..) => Ok(self.json(scope).unwrap_or(Cow::Borrowed("null"))),
            Kind::Compiled(expression) => match evaluate(expression, scope) {
                Ok(value) if value.is_undefined() => Ok(Cow::Borrowed("null")),
                Ok(value) => Ok(Cow::Owned(value.json)),
                Err(failed) => Err(self.failed(&failed.problem)),
            },
        }
    }

    /// The values of the input that it uses, as far as it says so: `input.consent.token`.
    pub(super) fn inputs(&self) -> impl Iterator<Item = String> {
        let names = match &self.kind {
            Kind::Path(..) => HashSet::new(),
            Kind::Compiled(expression) => expression.undeclared_variables(true),
        };
        names.into_iter().filter_map(|name| name.strip_prefix("input.").map(str::to_owned))
    }

    /// What went wrong with it.
    pub(super) fn failed(&self, problem: &str) -> String {
        format!("{{{{ {} }}}} {problem}", self.source)
    }
}

/// Why an expression has no value.
#[derive(Debug)]
pub(super) struct Failed {
    /// In words, without values.
    pub(super) problem: String,
    /// It needs what is not there.
    pub(super) is_missing: bool,
}

impl From<String> for Failed {
    fn from(problem: String) -> Self {
        Failed { problem, is_missing: false }
    }
}

/// An expression that is asked whether it holds: what is not there is undefined, which is false.
pub(super) struct Condition {
    source: String,
    expression: minijinja::Expression<'static, 'static>,
}

impl Condition {
    /// Compiles one `{{ expression }}`.
    pub(super) fn compile(text: &str, names: Names<'_>) -> Result<Self, String> {
        let source = super::template::Template::compile(text, names)?.into_expression().map(|one| one.source);
        let source = source.ok_or_else(|| {
            format!("{text:?} is not one expression: use a form such as \"{{{{ body.error == 'expired' }}}}\"")
        })?;
        let expression = compile(&LENIENT, &source, names)?;
        Ok(Condition { source, expression })
    }

    /// Whether it holds.
    pub(super) fn holds(&self, scope: &Scope<'_>) -> Result<bool, Failed> {
        let evaluated = evaluate(&self.expression, scope).map(|value| value.is_true);
        evaluated
            .map_err(|failed| Failed { problem: format!("{{{{ {} }}}} {}", self.source, failed.problem), ..failed })
    }
}

impl<'a> Scope<'a> {
    /// The JSON text that a path starts in.
    fn text(&self, root: &Root) -> Result<Cow<'a, str>, String> {
        let missing = || "is not there yet".to_owned();
        Ok(match root {
            Root::Input => Cow::Borrowed(self.task.input.as_str()),
            Root::Step(name) => {
                let value = self.steps.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
                Cow::Borrowed(value.ok_or_else(missing)?)
            }
            Root::Item => Cow::Borrowed(self.item.ok_or_else(missing)?),
            Root::Body => Cow::Borrowed(self.body.ok_or_else(missing)?),
            Root::TaskId => Cow::Owned(quoted(self.task.id.as_str())),
            Root::TaskTenant => Cow::Owned(quoted(self.task.tenant.as_str())),
            Root::TaskRun => Cow::Owned(quoted(&self.run.to_string())),
        })
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn compile(
    environment: &'static Environment<'static>,
    source: &str,
    names: Names<'_>,
) -> Result<minijinja::Expression<'static, 'static>, String> {
    let exact = operators::exact(environment, source).map_err(|problem| format!("{{{{ {source} }}}} {problem}"))?;
    let expression = environment
        .compile_expression_owned(exact)
        .map_err(|error| format!("{{{{ {source} }}}} does not parse: {error}"))?;
    for name in expression.undeclared_variables(true) {
        let mut parts = name.split('.');
        match (parts.next().unwrap_or_default(), parts.next()) {
            ("uuid", None) | ("input", _) | ("task", None | Some("id" | "tenant" | "run")) | ("steps", None) => {}
            ("steps", Some(step)) => check_step(step, source, names.steps)?,
            ("item", _) if names.item => {}
            ("body", _) if names.body => {}
            ("status" | "headers", _) if names.answer => {}
            _ => return Err(not_there(&name, source, names)),
        }
    }
    Ok(expression)
}

fn check_root(root: &Root, source: &str, names: Names<'_>) -> Result<(), String> {
    match root {
        Root::Step(name) => check_step(name, source, names.steps),
        Root::Item if !names.item => Err(not_there("item", source, names)),
        Root::Body if !names.body => Err(not_there("body", source, names)),
        _ => Ok(()),
    }
}

fn not_there(name: &str, source: &str, names: Names<'_>) -> String {
    let known = [("item", names.item), ("body", names.body), ("status", names.answer), ("headers", names.answer)];
    let known: String =
        known.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| format!("{name}, ")).collect();
    let known = format!("use input, steps.NAME, {known}task.id, task.tenant or task.run");
    format!("{{{{ {source} }}}} uses {name:?}, which is not there: {known}")
}

fn check_step(name: &str, source: &str, steps: &[String]) -> Result<(), String> {
    if steps.iter().any(|known| known == name) {
        return Ok(());
    }
    let earlier =
        if steps.is_empty() { "there is none".to_owned() } else { format!("use one of {}", steps.join(", ")) };
    Err(format!("{{{{ {source} }}}} uses step {name:?}, which is no earlier step: {earlier}"))
}

struct Evaluated {
    /// Nothing where the value is undefined.
    json: String,
    is_true: bool,
}

impl Evaluated {
    fn is_undefined(&self) -> bool {
        self.json.is_empty()
    }
}

fn evaluate(expression: &minijinja::Expression<'static, 'static>, scope: &Scope<'_>) -> Result<Evaluated, Failed> {
    let names = expression.undeclared_variables(true);
    let uses = |path: &str| names.iter().any(|name| name == path || name.starts_with(&format!("{path}.")));
    let mut spellings = Spellings::default();
    let mut value = |is_used: bool, json: Option<_>| {
        let Some(json) = json.filter(|_| is_used) else { return Ok(Value::UNDEFINED) };
        spellings.learn(json);
        numbers::read(json)
    };
    let input = value(uses("input"), Some(scope.task.input.as_str()))?;
    let item = value(uses("item"), scope.item)?;
    let body = value(uses("body"), scope.body)?;
    let mut steps = Vec::new();
    for (name, json) in scope.steps {
        if names.contains("steps") || uses(&format!("steps.{name}")) {
            steps.push((name.clone(), value(true, Some(json.as_str()))?));
        }
    }
    let task = minijinja::context! {
        id => scope.task.id.as_str(), tenant => scope.task.tenant.as_str(), run => scope.run.to_string()
    };
    let (status, headers) = scope.answer.unwrap_or_default();
    // Of several headers of one name the first counts, which the pairs hold last.
    let headers = Value::from_pairs(headers.iter().rev().map(|(name, value)| (name.clone(), value.clone())));
    let steps = Value::from_pairs(steps);
    let spellings = Value::from_object(spellings);
    let mut names = vec![(SPELLINGS, spellings.clone())];
    names.extend([("input", input), ("item", item), ("body", body), ("steps", steps), ("task", task)]);
    names.extend([("status", Value::from(status)), ("headers", headers)]);
    let value = expression.eval(Value::from_pairs(names)).map_err(|error| Failed {
        problem: format!("cannot be evaluated: {}", arithmetic::words(&error)),
        is_missing: error.kind() == ErrorKind::UndefinedError,
    })?;
    let mut json = String::new();
    if value.is_undefined() {
        return Ok(Evaluated { json, is_true: false });
    }
    let spellings = spellings.downcast_object_ref::<Spellings>();
    spellings.map_or(Ok(()), |spellings| spellings.write(&value, &mut json))?;
    Ok(Evaluated { json, is_true: value.is_true() })
}
