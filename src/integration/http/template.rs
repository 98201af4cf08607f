//! Templates in the configuration of [`super::Http`]: texts with `{{ expressions }}`, compiled once, at boot.
//!
//! A text that is exactly one `{{ expression }}` keeps its native value: a list, an object, a number. The names are
//! `input`, `steps.NAME` (the JSON body of an earlier step), `task.id` and `task.tenant`. A plain path, such as
//! `steps.accounts.accounts[0].id`, is looked up in the JSON text itself and copied digit for digit: no tree is built,
//! and no amount of money passes through a float. All else is a MiniJinja expression (filters, `a if b else c`), with
//! undefined names as errors and at most [`FUEL`] instructions.

use std::borrow::Cow;
use std::fmt;
use std::sync::LazyLock;

use minijinja::{Environment, UndefinedBehavior, Value};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::lookup::{self, Key, Root};
use crate::task::{Json, Task};

/// Instructions that one expression may take.
const FUEL: u64 = 100_000;

/// What stays as it is in a segment of a path: RFC 3986's unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment
});

/// What expressions can see.
pub(super) struct Scope<'a> {
    pub(super) task: &'a Task,
    /// The earlier steps' names and bodies.
    pub(super) steps: &'a [(String, Json)],
}

/// A text with expressions.
#[derive(Debug)]
pub(super) struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug)]
enum Piece {
    Text(String),
    Expression(Expression),
}

struct Expression {
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

impl Template {
    /// Compiles `source`, which may use the bodies of `steps`. The error says what is wrong and what would be right.
    pub(super) fn compile(source: &str, steps: &[String]) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = source;
        while let Some(start) = rest.find("{{") {
            push_text(&mut pieces, &rest[..start])?;
            let inside = &rest[start + 2..];
            let end =
                end_of_expression(inside).ok_or_else(|| format!("{source:?} has a \"{{{{\" without its \"}}}}\""))?;
            pieces.push(Piece::Expression(Expression::compile(inside[..end].trim(), steps)?));
            rest = &inside[end + 2..];
        }
        push_text(&mut pieces, rest)?;
        Ok(Template { pieces })
    }

    /// The value as a JSON text.
    pub(super) fn json<'a>(&self, scope: &Scope<'a>) -> Result<Cow<'a, str>, String> {
        match &self.pieces[..] {
            [Piece::Expression(expression)] => expression.json(scope),
            _ => {
                let text = self.text(scope)?;
                Ok(Cow::Owned(serde_json::Value::String(text).to_string()))
            }
        }
    }

    /// The value as a text: each expression must be a text, a number or a truth value.
    pub(super) fn text(&self, scope: &Scope<'_>) -> Result<String, String> {
        self.render(scope, Ok)
    }

    /// The value as a text, or nothing when the whole is one expression that is null.
    pub(super) fn optional_text(&self, scope: &Scope<'_>) -> Result<Option<String>, String> {
        if let [Piece::Expression(expression)] = &self.pieces[..]
            && expression.json(scope)? == "null"
        {
            return Ok(None);
        }
        self.text(scope).map(Some)
    }

    /// The value as the path of a URL: each expression fills a segment or a part of it, and cannot leave it.
    pub(super) fn path(&self, scope: &Scope<'_>) -> Result<String, String> {
        let path = self.render(scope, |value| match value.is_empty() {
            true => Err("is empty, which would change the path".to_owned()),
            false => Ok(utf8_percent_encode(&value, SEGMENT).to_string()),
        })?;
        match path.split('/').find(|segment| is_dots(segment)) {
            Some(segment) => Err(format!("the path would have a segment {segment:?}, which leads elsewhere")),
            None => Ok(path),
        }
    }

    /// The texts between the expressions.
    pub(super) fn literals(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(text) => Some(text.as_str()),
            Piece::Expression(_) => None,
        })
    }

    fn render(&self, scope: &Scope<'_>, fit: impl Fn(String) -> Result<String, String>) -> Result<String, String> {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(literal) => text.push_str(literal),
                Piece::Expression(expression) => {
                    let value = scalar(&expression.json(scope)?).and_then(&fit);
                    text.push_str(&value.map_err(|problem| format!("{{{{ {} }}}} {problem}", expression.source))?);
                }
            }
        }
        Ok(text)
    }
}

impl Expression {
    fn compile(source: &str, steps: &[String]) -> Result<Self, String> {
        let kind = match lookup::parse(source) {
            Some((root, keys)) => {
                if let Root::Step(name) = &root {
                    check_step(name, source, steps)?;
                }
                Kind::Path(root, keys)
            }
            None => Kind::Compiled(compile(source, steps)?),
        };
        Ok(Expression { source: source.to_owned(), kind })
    }

    fn json<'a>(&self, scope: &Scope<'a>) -> Result<Cow<'a, str>, String> {
        let failed = |problem: String| format!("{{{{ {} }}}} {problem}", self.source);
        match &self.kind {
            Kind::Path(Root::TaskId, _) => Ok(Cow::Owned(quoted(scope.task.id.as_str()))),
            Kind::Path(Root::TaskTenant, _) => Ok(Cow::Owned(quoted(scope.task.tenant.as_str()))),
            Kind::Path(Root::Input, keys) => lookup::find(scope.task.input.as_str(), keys).map_err(failed),
            Kind::Path(Root::Step(name), keys) => {
                let body = scope.steps.iter().find(|(known, _)| known == name).map(|(_, body)| body.as_str());
                body.ok_or_else(|| "is not there yet".to_owned())
                    .and_then(|body| lookup::find(body, keys))
                    .map_err(failed)
            }
            Kind::Compiled(expression) => evaluate(expression, scope).map(Cow::Owned).map_err(failed),
        }
    }
}

fn push_text(pieces: &mut Vec<Piece>, text: &str) -> Result<(), String> {
    for block in ["{%", "{#"] {
        if text.contains(block) {
            return Err(format!(
                "{text:?} has a {block:?}: only {{{{ expressions }}}} can be used, such as {{{{ a if b else c }}}}"
            ));
        }
    }
    if text.contains("}}") {
        return Err(format!("{text:?} has a \"}}}}\" without its \"{{{{\""));
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
    Ok(())
}

/// Where the closing braces are, outside of quotes and of an object's own braces.
fn end_of_expression(inside: &str) -> Option<usize> {
    let (mut quote, mut depth, mut escaped) = (None, 0_usize, false);
    let bytes = inside.as_bytes();
    for (position, byte) in bytes.iter().copied().enumerate() {
        match (quote, byte) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(open), _) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'{') => depth += 1,
            (None, b'}') if depth > 0 => depth -= 1,
            (None, b'}') if bytes.get(position + 1) == Some(&b'}') => return Some(position),
            (None, _) => {}
        }
    }
    None
}

fn compile(source: &str, steps: &[String]) -> Result<minijinja::Expression<'static, 'static>, String> {
    let environment: &'static Environment<'static> = &ENVIRONMENT;
    let expression = environment
        .compile_expression_owned(source.to_owned())
        .map_err(|error| format!("{{{{ {source} }}}} does not parse: {error}"))?;
    for name in expression.undeclared_variables(true) {
        let mut parts = name.split('.');
        match (parts.next().unwrap_or_default(), parts.next()) {
            ("input", _) | ("task", None | Some("id" | "tenant")) | ("steps", None) => {}
            ("steps", Some(step)) => check_step(step, source, steps)?,
            _ => {
                let problem = "use input, steps.NAME, task.id or task.tenant";
                return Err(format!("{{{{ {source} }}}} uses {name:?}, which is not there: {problem}"));
            }
        }
    }
    Ok(expression)
}

fn check_step(name: &str, source: &str, steps: &[String]) -> Result<(), String> {
    if steps.iter().any(|known| known == name) {
        return Ok(());
    }
    let earlier =
        if steps.is_empty() { "there is none".to_owned() } else { format!("use one of {}", steps.join(", ")) };
    Err(format!("{{{{ {source} }}}} uses step {name:?}, which is no earlier step: {earlier}"))
}

fn evaluate(expression: &minijinja::Expression<'static, 'static>, scope: &Scope<'_>) -> Result<String, String> {
    let names = expression.undeclared_variables(true);
    let uses = |path: &str| names.iter().any(|name| name == path || name.starts_with(&format!("{path}.")));
    let parsed = |json: &Json| json.read::<Value>().map_err(|_| "cannot be evaluated: a body is too deep".to_owned());
    let input = if uses("input") { parsed(&scope.task.input)? } else { Value::UNDEFINED };
    let mut steps = Vec::new();
    for (name, body) in scope.steps {
        if names.contains("steps") || uses(&format!("steps.{name}")) {
            steps.push((name.clone(), parsed(body)?));
        }
    }
    let task = minijinja::context! { id => scope.task.id.as_str(), tenant => scope.task.tenant.as_str() };
    let steps = Value::from_pairs(steps);
    // Only the kind of error: its details may hold what a bank answered.
    let value = expression
        .eval(minijinja::context! { input, steps, task })
        .map_err(|error| format!("cannot be evaluated: {}", error.kind()))?;
    if value.is_undefined() {
        return Err("cannot be evaluated: undefined value".into());
    }
    serde_json::to_string(&value).map_err(|_| "is no JSON value".into())
}

/// A JSON text that is a text, a number or a truth value, as plain text.
fn scalar(json: &str) -> Result<String, String> {
    match json.as_bytes().first() {
        Some(b'"') => serde_json::from_str(json).map_err(|_| "is not a valid text".to_owned()),
        Some(b'{') => Err("is an object: a text, a number or a truth value is needed here".into()),
        Some(b'[') => Err("is a list: a text, a number or a truth value is needed here".into()),
        Some(b'n') => Err("is null: a text, a number or a truth value is needed here".into()),
        _ => Ok(json.to_owned()),
    }
}

fn is_dots(segment: &str) -> bool {
    let plain = segment.to_ascii_lowercase().replace("%2e", ".");
    plain == "." || plain == ".."
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::integration::testing;

    fn with<T>(input: &str, check: impl FnOnce(&Scope<'_>) -> T) -> T {
        let task = testing::task(input);
        let body = r#"{"accounts": [{"id": "a/1", "balance": 12345678901234567.10}], "more": null}"#;
        let steps = [("accounts".to_owned(), Json::parse(body.to_owned()).expect("JSON"))];
        check(&Scope { task: &task, steps: &steps })
    }

    fn compiled(source: &str) -> Template {
        Template::compile(source, &["accounts".to_owned()]).expect(source)
    }

    #[test]
    fn one_expression_keeps_its_native_value() {
        with(r#"{"customer": "c1", "count": 2}"#, |scope| {
            for (source, json) in [
                ("{{ input.customer }}", r#""c1""#),
                ("{{ steps.accounts.accounts[0].balance }}", "12345678901234567.10"),
                ("{{ steps.accounts.accounts }}", r#"[{"id": "a/1", "balance": 12345678901234567.10}]"#),
                (r#"{{ steps["accounts"]["more"] }}"#, "null"),
                ("{{ input.count + 1 }}", "3"),
                ("{{ steps.accounts.accounts | length }}", "1"),
                ("{{ {'a': {'b': input.count}} }}", r#"{"a":{"b":2}}"#),
                ("{{ '}}' }}", r#""}}""#),
                ("{{ task.id }}", r#""task-1""#),
                ("{{ task.tenant | upper }}", r#""DEFAULT""#),
                ("n={{ input.count }}, {{ task.tenant }}", r#""n=2, default""#),
                ("plain", r#""plain""#),
            ] {
                assert_eq!(compiled(source).json(scope).expect(source), json, "{source}");
            }
        });
    }

    #[test]
    fn paths_are_encoded_and_cannot_lead_elsewhere() {
        let path = compiled("/customers/{{ input.customer }}/x");
        for (customer, expected) in [
            ("a b", "/customers/a%20b/x"),
            ("a/b", "/customers/a%2Fb/x"),
            ("../x", "/customers/..%2Fx/x"),
            ("%2e%2e", "/customers/%252e%252e/x"),
            ("a?b#c", "/customers/a%3Fb%23c/x"),
            ("ü", "/customers/%C3%BC/x"),
        ] {
            let input = serde_json::json!({ "customer": customer }).to_string();
            assert_eq!(with(&input, |scope| path.path(scope)).as_deref(), Ok(expected));
        }
        for customer in ["", ".", ".."] {
            let input = serde_json::json!({ "customer": customer }).to_string();
            with(&input, |scope| path.path(scope)).expect_err(customer);
        }
        let halves = compiled("/{{ input.a }}{{ input.a }}");
        with(r#"{"a": "."}"#, |scope| halves.path(scope)).expect_err("two halves of a traversal");
    }

    #[test]
    fn what_is_missing_or_of_the_wrong_kind_is_named_without_values() {
        with(r#"{"customer": "secret-name"}"#, |scope| {
            for (source, says) in [
                ("x{{ input.nobody }}", "{{ input.nobody }} is not there: \"nobody\""),
                ("x{{ steps.accounts.accounts[7].id }}", "7"),
                ("x{{ steps.accounts.accounts }}", "is a list"),
                ("x{{ steps.accounts.more }}", "is null"),
                ("x{{ input.customer + 1 }}", "cannot be evaluated"),
                ("x{{ input.nobody | upper }}", "undefined value"),
            ] {
                let error = compiled(source).text(scope).expect_err(source);
                assert!(error.contains(says), "{source}: {error}");
                assert!(!error.contains("secret-name"), "{error}");
            }
        });
    }

    #[test]
    fn wrong_templates_are_refused_at_boot() {
        for (source, says) in [
            ("{{ input.x", "without its"),
            ("a }} b", "without its"),
            ("{% if x %}{% endif %}", "only {{ expressions }}"),
            ("{{ 1 + }}", "does not parse"),
            ("{{ steps.later.x }}", "use one of accounts"),
            ("{{ steps.later | length }}", "use one of accounts"),
            ("{{ env.PATH }}", "use input, steps.NAME"),
            ("{{ task.deadline }}", "use input, steps.NAME"),
            ("{{ range(100000000) | length }}", "use input, steps.NAME"),
            ("{{ }}", "does not parse"),
        ] {
            let error = Template::compile(source, &["accounts".to_owned()]).expect_err(source);
            assert!(error.contains(says), "{source}: {error}");
        }
    }
}
