//! Texts of the configuration with `{{ expressions }}` in them, compiled once, at boot.
//!
//! A text that is exactly one `{{ expression }}` keeps its native value: a list, an object, a number. Between other
//! text, an expression must be a text, a number or a truth value. What fills a path is encoded for its segment.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::expression::{Expression, Names, Scope};

/// What stays as it is in a segment of a path: RFC 3986's unreserved characters.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

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

impl Template {
    /// Compiles `source`, which may use `names`. The error says what is wrong and what would be right.
    pub(super) fn compile(source: &str, names: Names<'_>) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut rest = source;
        while let Some(start) = rest.find("{{") {
            push_text(&mut pieces, &rest[..start])?;
            let inside = &rest[start + 2..];
            let end =
                end_of_expression(inside).ok_or_else(|| format!("{source:?} has a \"{{{{\" without its \"}}}}\""))?;
            pieces.push(Piece::Expression(Expression::compile(inside[..end].trim(), names)?));
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

    /// The value as a JSON text, or nothing where it is null, an empty text, or not there.
    pub(super) fn present<'a>(&self, scope: &Scope<'a>) -> Result<Option<Cow<'a, str>>, String> {
        let json = match &self.pieces[..] {
            [Piece::Expression(expression)] => expression.lenient(scope)?,
            _ => self.json(scope)?,
        };
        Ok(Some(json).filter(|json| !matches!(&**json, "null" | "\"\"")))
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

    /// Compiles one `{{ expression }}`.
    pub(super) fn compile_one(source: &str, names: Names<'_>) -> Result<Self, String> {
        let template = Template::compile(source, names)?;
        match &template.pieces[..] {
            [Piece::Expression(_)] => Ok(template),
            _ => Err(format!("{source:?} is not one expression: use a form such as \"{{{{ body.items }}}}\"")),
        }
    }

    /// The one expression that this is; nothing when there is more.
    pub(super) fn into_expression(mut self) -> Option<Expression> {
        match (self.pieces.pop(), self.pieces.is_empty()) {
            (Some(Piece::Expression(expression)), true) => Some(expression),
            _ => None,
        }
    }

    /// The texts between the expressions.
    pub(super) fn literals(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(text) => Some(text.as_str()),
            Piece::Expression(_) => None,
        })
    }

    /// The values of the input that its expressions use beside those that they are.
    pub(super) fn inputs(&self) -> impl Iterator<Item = String> {
        self.pieces
            .iter()
            .flat_map(|piece| match piece {
                Piece::Text(_) => None,
                Piece::Expression(expression) => Some(expression.inputs()),
            })
            .flatten()
    }

    fn render(&self, scope: &Scope<'_>, fit: impl Fn(String) -> Result<String, String>) -> Result<String, String> {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(literal) => text.push_str(literal),
                Piece::Expression(expression) => {
                    let value = scalar(&expression.json(scope)?).and_then(&fit);
                    text.push_str(&value.map_err(|problem| expression.failed(&problem))?);
                }
            }
        }
        Ok(text)
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

/// A JSON text that is a text, a number or a truth value, as plain text.
pub(super) fn scalar(json: &str) -> Result<String, String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::integration::testing;
    use crate::task::{Json, RunId};

    fn with<T>(input: &str, check: impl FnOnce(&Scope<'_>) -> T) -> T {
        let task = testing::task(input);
        let body = r#"{"accounts": [{"id": "a/1", "balance": 12345678901234567.10}], "more": null}"#;
        let steps = [("accounts".to_owned(), Json::parse(body.to_owned()).expect("JSON"))];
        let item = Some(r#"{"id": 7.70}"#);
        check(&Scope { task: &task, run: RunId::mint(), steps: &steps, item, body: None, answer: None })
    }

    fn compiled(source: &str) -> Template {
        let names = Names { steps: &["accounts".to_owned()], item: true, ..Names::default() };
        Template::compile(source, names).expect(source)
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
                ("{{ item.id }}", "7.70"),
                ("{{ steps.accounts.accounts | map(attribute='balance') }}", "[12345678901234567.10]"),
                ("{{ steps.accounts.accounts[0].balance > 5.5 }}", "true"),
                ("{{ [item.id, input.count] }}", "[7.70,2]"),
                ("{{ [[1, 2], [], [item.id]] | flatten }}", "[1,2,7.70]"),
                ("{{ [0.1, 0.2, item.id] | sum }}", "8.0"),
                ("{{ [{'a': {'b': '0.10'}}] | sum(attribute='a.b') }}", r#""0.10""#),
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
            ("{{ item.id }}", "use input, steps.NAME, task.id"),
            ("{{ body }}", "use input, steps.NAME, task.id"),
            ("{{ status }}", "use input, steps.NAME, task.id"),
            ("{{ range(100000000) | length }}", "use input, steps.NAME"),
            ("{{ input.x | roud(2) }}", "uses the filter \"roud\", which does not exist"),
            ("{{ input.x is nul }}", "uses the test \"nul\", which does not exist"),
            ("{{ input.x.upper() }}", "calls \"upper\": values have no methods"),
            ("{{ input.x | format(1) }}", "uses the filter \"format\""),
            ("{{ }}", "does not parse"),
        ] {
            let names = Names { steps: &["accounts".to_owned()], ..Names::default() };
            let error = Template::compile(source, names).expect_err(source);
            assert!(error.contains(says), "{source}: {error}");
        }
    }
}
