//! What a step sends: method, URL, headers and body, from templates.

use serde_json::{Map, Value};
use url::form_urlencoded::Serializer;

use super::config::{Config, Step};
use super::expression::{Names, Scope};
use super::node::Node;
use super::pages::At;
use super::template::Template;
use crate::integration::Invalid;
use crate::integration::transport::Request;

/// The methods that a step may use.
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

/// A step's request, to be filled in.
pub(super) struct RequestPlan {
    pub(super) method: &'static str,
    /// The path as configured, for messages: it holds no personal data.
    pub(super) shown_path: String,
    path: Template,
    query: Vec<(String, Template)>,
    headers: Vec<(String, Template)>,
    body: Body,
}

enum Body {
    None,
    Json(Node),
    Form(Vec<(String, Template)>),
}

impl RequestPlan {
    /// Compiles what `step` says about its request.
    pub(super) fn compile(config: &Config, step: &Step, names: Names<'_>) -> Result<Self, Invalid> {
        let method = METHODS.into_iter().find(|known| *known == step.method).ok_or_else(|| {
            Invalid::new("method", format!("{:?} is not valid: use one of {}", step.method, METHODS.join(", ")))
        })?;
        let path = Template::compile(&step.path, names)
            .and_then(|path| check_path(&step.path, &path).map(|()| path))
            .map_err(|problem| Invalid::new("path", problem))?;
        let query = compile_pairs("query", &step.query, names)?;
        let mut headers = compile_pairs("headers", &step.headers, names)?;
        check_headers(&headers).map_err(|problem| Invalid::new("headers", problem))?;
        for (name, template) in shared_headers(config)? {
            if !headers.iter().any(|(own, _)| own.eq_ignore_ascii_case(&name)) {
                headers.push((name, template));
            }
        }
        let body = Body::compile(step, method, names)?;
        Ok(RequestPlan { method, shown_path: step.path.clone(), path, query, headers, body })
    }

    /// The URL of the page at `at`.
    pub(super) fn url(&self, base: &str, scope: &Scope<'_>, at: &At<'_>) -> Result<String, String> {
        if let At::Link(url) = at {
            return Ok(url.clone());
        }
        let path = self.path.path(scope).map_err(|problem| format!("path: {problem}"))?;
        let mut query = Serializer::new(String::new());
        append(&mut query, &self.query, scope).map_err(|problem| format!("query.{problem}"))?;
        if let At::Parameter(name, value) = at {
            query.append_pair(name, value);
        }
        let query = query.finish();
        Ok(if query.is_empty() { format!("{base}{path}") } else { format!("{base}{path}?{query}") })
    }

    /// The request to `url`.
    pub(super) fn request(&self, url: &str, scope: &Scope<'_>) -> Result<Request, String> {
        let mut request = Request::new(self.method, url);
        for (name, template) in &self.headers {
            let value = template.optional_text(scope).map_err(|problem| format!("headers.{name}: {problem}"))?;
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("accept")) {
            request = request.header("accept", "application/json");
        }
        Ok(match &self.body {
            Body::None => request,
            Body::Json(node) => {
                let mut body = String::new();
                node.write(scope, &mut body).map_err(|problem| format!("body: {problem}"))?;
                request.body("application/json", body)
            }
            Body::Form(form) => {
                let mut body = Serializer::new(String::new());
                append(&mut body, form, scope).map_err(|problem| format!("form.{problem}"))?;
                request.body("application/x-www-form-urlencoded", body.finish())
            }
        })
    }

    /// Whether the query has a parameter of this name.
    pub(super) fn sets(&self, parameter: &str) -> bool {
        self.query.iter().any(|(name, _)| name == parameter)
    }
}

impl Body {
    fn compile(step: &Step, method: &str, names: Names<'_>) -> Result<Self, Invalid> {
        match (&step.body, &step.form) {
            (Some(_), Some(_)) => Err(Invalid::new("form", "there is a body, too: use one of both")),
            (Some(_), None) | (None, Some(_)) if matches!(method, "GET" | "HEAD") => {
                Err(Invalid::new("method", format!("{method} has no body: use POST, PUT, PATCH or DELETE")))
            }
            (Some(body), None) => {
                Node::compile(body, names).map(Body::Json).map_err(|problem| Invalid::new("body", problem))
            }
            (None, Some(form)) => compile_pairs("form", form, names).map(Body::Form),
            (None, None) => Ok(Body::None),
        }
    }
}

/// The headers that each step sends; a step's own of the same name comes instead.
pub(super) fn shared_headers(config: &Config) -> Result<Vec<(String, Template)>, Invalid> {
    let texts = config.headers.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
    let headers = compile_pairs("headers", &texts, Names::default())?;
    check_headers(&headers).map_err(|problem| Invalid::new("headers", problem))?;
    Ok(headers)
}

/// Checks names, and values as far as they are fixed.
fn check_headers(headers: &[(String, Template)]) -> Result<(), String> {
    let request = Request::get("http://host/");
    let fixed = |template: &Template| template.literals().collect::<String>();
    headers.iter().fold(request, |request, (name, template)| request.header(name, fixed(template))).check()
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

fn compile_pairs(key: &str, map: &Map<String, Value>, names: Names<'_>) -> Result<Vec<(String, Template)>, Invalid> {
    let compile = |(name, value): (&String, &Value)| {
        let text = match value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
            _ => Err("use a text, a number or a truth value".to_owned()),
        };
        let template = text.and_then(|text| Template::compile(&text, names));
        template
            .map(|template| (name.clone(), template))
            .map_err(|problem| Invalid::new(format!("{key}.{name}"), problem))
    };
    let mut pairs = map.iter().map(compile).collect::<Result<Vec<_>, _>>()?;
    pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(pairs)
}

fn append(
    pairs: &mut Serializer<'_, String>,
    templates: &[(String, Template)],
    scope: &Scope<'_>,
) -> Result<(), String> {
    for (name, template) in templates {
        if let Some(value) = template.optional_text(scope).map_err(|problem| format!("{name}: {problem}"))? {
            pairs.append_pair(name, &value);
        }
    }
    Ok(())
}
