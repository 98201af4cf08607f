//! A JSON value of the configuration whose texts are templates: a body, a step's value, the result.
//!
//! Names are written in alphabetical order: a table of a configuration has none of its own, and a request should look
//! the same after each start.

use serde_json::Value;

use super::expression::{Names, Scope};
use super::template::Template;

/// Levels of lists and objects.
const MAX_DEPTH: usize = 32;

/// A JSON value whose texts are templates.
pub(super) enum Node {
    Literal(String),
    Text(Template),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl Node {
    /// Compiles the templates in `value`.
    pub(super) fn compile(value: &Value, names: Names<'_>) -> Result<Self, String> {
        Node::compile_at(value, names, 0)
    }

    fn compile_at(value: &Value, names: Names<'_>, depth: usize) -> Result<Self, String> {
        if depth > MAX_DEPTH {
            return Err(format!("it is nested too deep: use at most {MAX_DEPTH} levels"));
        }
        let deeper = |value| Node::compile_at(value, names, depth + 1);
        Ok(match value {
            Value::String(text) => Node::Text(Template::compile(text, names)?),
            Value::Array(values) => Node::List(values.iter().map(deeper).collect::<Result<_, _>>()?),
            Value::Object(map) => {
                let entries = map.iter().map(|(name, value)| {
                    let node = deeper(value).map_err(|problem| format!("{name}: {problem}"))?;
                    Ok((Value::from(name.as_str()).to_string(), node))
                });
                let mut entries = entries.collect::<Result<Vec<_>, String>>()?;
                entries.sort_by(|(one, _), (other, _)| one.cmp(other));
                Node::Object(entries)
            }
            literal => Node::Literal(literal.to_string()),
        })
    }

    /// Appends the JSON text.
    pub(super) fn write(&self, scope: &Scope<'_>, out: &mut String) -> Result<(), String> {
        match self {
            Node::Literal(json) => out.push_str(json),
            Node::Text(template) => out.push_str(&template.json(scope)?),
            Node::List(nodes) => {
                let mut before = '[';
                for node in nodes {
                    out.push(before);
                    before = ',';
                    node.write(scope, out)?;
                }
                out.push_str(if nodes.is_empty() { "[]" } else { "]" });
            }
            Node::Object(entries) => {
                let mut before = '{';
                for (name, node) in entries {
                    out.push(before);
                    before = ',';
                    out.push_str(name);
                    out.push(':');
                    node.write(scope, out).map_err(|problem| format!("{name}: {problem}"))?;
                }
                out.push_str(if entries.is_empty() { "{}" } else { "}" });
            }
        }
        Ok(())
    }
}
