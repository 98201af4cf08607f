//! A configuration, checked and compiled: what is wrong shows at boot, with its key.
//!
//! Names are sent in alphabetical order: a table of a configuration has none of its own, and a request should look the
//! same after each start.

use serde_json::{Map, Value};
use url::Url;
use url::form_urlencoded::Serializer;

use super::config::{Config, Step};
use super::template::{Scope, Template};
use crate::integration::Invalid;
use crate::integration::transport::Request;

/// Steps of one integration.
const MAX_STEPS: usize = 32;

/// The methods that a step may use.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

/// Levels of lists and objects in a templated body or result.
const MAX_DEPTH: usize = 32;

pub(super) struct Plan {
    base: String,
    headers: Vec<(String, String)>,
    pub(super) steps: Vec<CompiledStep>,
    pub(super) result: Option<Node>,
}

pub(super) struct CompiledStep {
    pub(super) name: String,
    pub(super) method: &'static str,
    /// The path as configured, for messages: it holds no personal data.
    pub(super) shown_path: String,
    path: Template,
    query: Vec<(String, Template)>,
    body: Body,
}

enum Body {
    None,
    Json(Node),
    Form(Vec<(String, Template)>),
}

/// A JSON value whose texts are templates.
pub(super) enum Node {
    Literal(String),
    Text(Template),
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl Plan {
    pub(super) fn compile(config: &Config) -> Result<Self, Invalid> {
        let base = check_base(&config.base_url)?;
        if !(1..=MAX_STEPS).contains(&config.steps.len()) {
            let problem = format!("{} steps are configured: use 1 to {MAX_STEPS}", config.steps.len());
            return Err(Invalid::new("steps", problem));
        }
        let (mut names, mut steps) = (Vec::new(), Vec::new());
        for (position, step) in config.steps.iter().enumerate() {
            let compiled = CompiledStep::compile(step, &names);
            steps.push(compiled.map_err(|invalid| invalid.within(&format!("steps[{position}]")))?);
            names.push(step.name.clone());
        }
        let result = config.result.as_ref().map(|result| Node::compile(result, &names, 0)).transpose();
        let result = result.map_err(|problem| Invalid::new("result", problem))?;
        let headers = config.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let plan = Plan { base, headers, steps, result };
        match plan.with_headers(Request::get(plan.base.as_str())).check() {
            Ok(()) => Ok(plan),
            Err(problem) => Err(Invalid::new("headers", problem)),
        }
    }

    /// What the paths of the steps are added to.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    pub(super) fn request(&self, step: &CompiledStep, scope: &Scope<'_>) -> Result<Request, String> {
        let path = step.path.path(scope).map_err(|problem| format!("path: {problem}"))?;
        let mut url = format!("{}{path}", self.base);
        let query = pairs(&step.query, scope).map_err(|problem| format!("query.{problem}"))?;
        if !query.is_empty() {
            url.push('?');
            url.push_str(&query);
        }
        let request = self.with_headers(Request::new(step.method, url)).header("accept", "application/json");
        Ok(match &step.body {
            Body::None => request,
            Body::Json(node) => {
                let mut body = String::new();
                node.write(scope, &mut body).map_err(|problem| format!("body: {problem}"))?;
                request.body("application/json", body)
            }
            Body::Form(form) => {
                let body = pairs(form, scope).map_err(|problem| format!("form.{problem}"))?;
                request.body("application/x-www-form-urlencoded", body)
            }
        })
    }

    fn with_headers(&self, request: Request) -> Request {
        self.headers.iter().fold(request, |request, (name, value)| request.header(name, value))
    }
}

impl CompiledStep {
    fn compile(step: &Step, earlier: &[String]) -> Result<Self, Invalid> {
        let plain = step.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        let starts_well = step.name.starts_with(|first: char| first.is_ascii_lowercase());
        if !plain || !starts_well || step.name.len() > 64 {
            let problem = format!("{:?} is not valid: use 1 to 64 of a-z 0-9 _, the first a letter", step.name);
            return Err(Invalid::new("name", problem));
        }
        if earlier.contains(&step.name) {
            return Err(Invalid::new("name", format!("{:?} is there twice: each step needs its own", step.name)));
        }
        let method = METHODS.into_iter().find(|known| *known == step.method).ok_or_else(|| {
            Invalid::new("method", format!("{:?} is not valid: use one of {}", step.method, METHODS.join(", ")))
        })?;
        let path = Template::compile(&step.path, earlier)
            .and_then(|path| check_path(&step.path, &path).map(|()| path))
            .map_err(|problem| Invalid::new("path", problem))?;
        let query = compile_pairs("query", &step.query, earlier)?;
        let body = match (&step.body, &step.form) {
            (Some(_), Some(_)) => return Err(Invalid::new("form", "there is a body, too: use one of both")),
            (Some(_), None) | (None, Some(_)) if matches!(method, "GET" | "HEAD") => {
                return Err(Invalid::new("method", format!("{method} has no body: use POST, PUT, PATCH or DELETE")));
            }
            (Some(body), None) => {
                let node = Node::compile(body, earlier, 0).map_err(|problem| Invalid::new("body", problem))?;
                Body::Json(node)
            }
            (None, Some(form)) => Body::Form(compile_pairs("form", form, earlier)?),
            (None, None) => Body::None,
        };
        Ok(CompiledStep { name: step.name.clone(), method, shown_path: step.path.clone(), path, query, body })
    }
}

impl Node {
    fn compile(value: &Value, steps: &[String], depth: usize) -> Result<Self, String> {
        if depth > MAX_DEPTH {
            return Err(format!("it is nested too deep: use at most {MAX_DEPTH} levels"));
        }
        let deeper = |value| Node::compile(value, steps, depth + 1);
        Ok(match value {
            Value::String(text) => Node::Text(Template::compile(text, steps)?),
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

fn check_base(base_url: &str) -> Result<String, Invalid> {
    let problem = match Url::parse(base_url) {
        Err(error) => error.to_string(),
        Ok(url) if !matches!(url.scheme(), "http" | "https") => "its scheme is neither http nor https".into(),
        Ok(url) if url.query().is_some() || url.fragment().is_some() => "it has a query or a fragment".into(),
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            // Not shown: it holds a credential.
            return Err(Invalid::new("base_url", "it holds a credential: use token = { env = \"NAME\" }"));
        }
        Ok(url) => return Ok(url.as_str().trim_end_matches('/').to_owned()),
    };
    Err(Invalid::new(
        "base_url",
        format!("{base_url:?} is not valid: {problem}; use one such as \"https://api.bank.example/v1\""),
    ))
}

fn check_path(source: &str, path: &Template) -> Result<(), String> {
    if !source.starts_with('/') {
        return Err(format!("{source:?} is not valid: start it with /"));
    }
    let outside = |c: char| matches!(c, '?' | '#' | '\\') || c.is_whitespace() || c.is_control();
    if path.literals().any(|text| text.contains(outside)) {
        return Err(format!("{source:?} is not valid: leave out spaces, \\, ? and #, and use query = {{ … }}"));
    }
    Ok(())
}

fn compile_pairs(key: &str, map: &Map<String, Value>, steps: &[String]) -> Result<Vec<(String, Template)>, Invalid> {
    let compile = |(name, value): (&String, &Value)| {
        let text = match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
            _ => Err("use a text, a number or a truth value".to_owned()),
        };
        let template = text.and_then(|text| Template::compile(&text, steps));
        template
            .map(|template| (name.clone(), template))
            .map_err(|problem| Invalid::new(format!("{key}.{name}"), problem))
    };
    let mut pairs = map.iter().map(compile).collect::<Result<Vec<_>, _>>()?;
    pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(pairs)
}

fn pairs(templates: &[(String, Template)], scope: &Scope<'_>) -> Result<String, String> {
    let mut pairs = Serializer::new(String::new());
    for (name, template) in templates {
        if let Some(value) = template.optional_text(scope).map_err(|problem| format!("{name}: {problem}"))? {
            pairs.append_pair(name, &value);
        }
    }
    Ok(pairs.finish())
}
