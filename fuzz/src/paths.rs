//! JSON paths over JSON: what a path leads to is taken out, by the word of a second implementation of paths that works on
//! the parsed document; JSON stays JSON; what is no path is refused and what is no JSON is withheld.
//!
//! The first line is the path, the rest the document.

use serde_json::Value;
use weir::payload::redact::Config;

use super::sample::{message, record, stored};

/// Panics when something does not hold.
pub fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Some((path, document)) = text.split_once('\n') else { return };
    let payloads = weir::payload::Config { redaction: configuration(path), ..Default::default() };
    if let Err(error) = payloads.check() {
        assert!(error.to_string().contains(" at character "), "{error}");
        return;
    }
    for is_cut in [false, true] {
        let mut record = record();
        record.transcript.exchanges[0].request = message("application/json", document.to_owned(), is_cut);
        let (_, payload) = stored(&payloads.redaction, record);
        if is_cut || payload.get("_redaction").is_some() {
            continue;
        }
        let post_data = &payload["transcript"]["log"]["entries"][0]["request"]["postData"];
        let Ok(whole) = serde_json::from_str::<Value>(document) else { continue };
        let redacted = post_data["text"].as_str().expect("a text");
        if redacted.is_empty() {
            // Deeper than paths are followed.
            assert!(post_data["comment"].is_string(), "{post_data}");
            continue;
        }
        let redacted: Value = serde_json::from_str(redacted).expect("JSON stays JSON");
        for found in select(&steps(path), &redacted) {
            let is_gone = found.is_null() || found.as_str().is_some_and(|it| it.is_empty() || is_placeholder(it));
            assert!(is_gone, "{path} still leads to {found} in {redacted}, which was {whole}");
        }
    }
}

fn configuration(path: &str) -> Config {
    let mut config = Config { detect: Vec::new(), ..Config::default() };
    config.paths.insert("*".into(), vec![path.to_owned()]);
    config
}

fn is_placeholder(text: &str) -> bool {
    let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).and_then(|it| it.split_once('-'));
    inside.is_some_and(|(_, number)| number.parse::<u32>().is_ok())
}

enum Step {
    Name(String),
    Index(usize),
    Any,
}

/// The steps of a path that is known to be right; each with whether it descends.
fn steps(path: &str) -> Vec<(bool, Step)> {
    let (mut rest, mut steps) = (&path[1..], Vec::new());
    while !rest.is_empty() {
        let descends = rest.starts_with("..");
        rest = rest.trim_start_matches('.');
        let Some(inside) = rest.strip_prefix('[') else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            let step = if &rest[..end] == "*" { Step::Any } else { Step::Name(rest[..end].to_owned()) };
            steps.push((descends, step));
            rest = &rest[end..];
            continue;
        };
        let quote = inside.chars().next().filter(|it| matches!(it, '\'' | '"'));
        let Some(quote) = quote else {
            let end = inside.find(']').expect("a right path");
            steps.push((descends, inside[..end].parse().map_or(Step::Any, Step::Index)));
            rest = &inside[end + 1..];
            continue;
        };
        let (mut name, mut characters) = (String::new(), inside[1..].char_indices());
        while let Some((at, character)) = characters.next() {
            match character {
                '\\' => name.extend(characters.next().map(|(_, escaped)| escaped)),
                _ if character == quote => {
                    rest = &inside[1 + at + 2..];
                    break;
                }
                _ => name.push(character),
            }
        }
        steps.push((descends, Step::Name(name)));
    }
    steps
}

fn select<'v>(steps: &[(bool, Step)], value: &'v Value) -> Vec<&'v Value> {
    let Some(((descends, step), rest)) = steps.split_first() else { return vec![value] };
    let mut found = Vec::new();
    match (step, value) {
        (Step::Name(name), Value::Object(object)) => {
            found.extend(object.get(name).into_iter().flat_map(|it| select(rest, it)));
        }
        (Step::Index(index), Value::Array(values)) => {
            found.extend(values.get(*index).into_iter().flat_map(|it| select(rest, it)));
        }
        (Step::Any, Value::Object(object)) => found.extend(object.values().flat_map(|it| select(rest, it))),
        (Step::Any, Value::Array(values)) => found.extend(values.iter().flat_map(|it| select(rest, it))),
        _ => {}
    }
    if *descends {
        match value {
            Value::Object(object) => found.extend(object.values().flat_map(|it| select(steps, it))),
            Value::Array(values) => found.extend(values.iter().flat_map(|it| select(steps, it))),
            _ => {}
        }
    }
    found
}
