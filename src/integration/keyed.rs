//! Reads parts of a configuration by hand where serde would forget at which key it was.
//!
//! A choice by `kind` makes serde put the whole table aside and read it again, and an error in it no longer knows where
//! it happened. Here each such part says its key at the beginning of its message, and whoever is above puts its own before
//! it ([`join`]), up to the full key.

use serde::de::{DeserializeOwned, Deserializer, Error};
use serde_json::Value;

/// Reads a table of one of several kinds from the rest of it.
pub(super) type Read<T> = fn(Value) -> Result<T, String>;

/// What is wrong at `path`, as one text that begins with the full key.
pub(crate) fn join(path: &str, message: &str) -> String {
    let path = if path == "." { "" } else { path };
    match message.split_once(": ").is_some_and(|(key, _)| is_key(key)) {
        _ if path.is_empty() => message.to_owned(),
        true => format!("{path}.{message}"),
        false => format!("{path}: {message}"),
    }
}

/// Whether a word is a key, with dots and positions: `steps[0].retries.attempts`. A message that begins otherwise has
/// spaces before its first colon.
pub(crate) fn is_key(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.[]".contains(&byte))
}

/// Reads a value; an error begins with the key inside it.
pub(super) fn part<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error: serde_path_to_error::Error<serde_json::Error>| {
        let path = error.path().to_string();
        join(&path, &error.into_inner().to_string())
    })
}

/// Reads a table by its `kind`. What is wrong with another kind of value does not show it: it may be a secret.
pub(super) fn by_kind<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    kinds: &[(&'static str, Read<T>)],
) -> Result<T, D::Error> {
    let names = || kinds.iter().map(|(name, _)| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    let Value::Object(mut table) = serde::Deserialize::deserialize(deserializer)? else {
        return Err(D::Error::custom(format!("it is no table: use one whose kind is one of {}", names())));
    };
    let wrong = |problem: &str| D::Error::custom(format!("kind: {problem}: use one of {}", names()));
    match table.remove("kind") {
        None => Err(wrong("it is missing")),
        Some(Value::String(kind)) => match kinds.iter().find(|(name, _)| *name == kind) {
            Some((_, read)) => read(Value::Object(table)).map_err(D::Error::custom),
            None => Err(wrong(&format!("there is no {kind:?}"))),
        },
        Some(_) => Err(wrong("it is no text")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;

    fn error(table: serde_json::Value) -> String {
        serde_json::from_value::<Config>(table).expect_err("wrong").to_string()
    }

    #[test]
    fn what_is_wrong_inside_a_choice_begins_with_its_full_key() {
        use serde_json::json;
        let kinds = r#"use one of "http", "exec", "synthetic""#;
        let auth = |auth| json!({ "kind": "http", "base_url": "https://bank.example", "auth": auth });
        for (table, expected) in [
            (json!({ "kind": "smtp" }), format!("kind: there is no \"smtp\": {kinds}")),
            (json!({ "base_url": "x" }), format!("kind: it is missing: {kinds}")),
            (json!({ "kind": 1 }), format!("kind: it is no text: {kinds}")),
            (json!("S3CRET"), "it is no table".into()),
            (json!({ "kind": "http", "retries": { "attempts": "2" } }), "retries.attempts: invalid type".into()),
            (json!({ "kind": "exec", "command": "node x" }), "command: invalid type".into()),
            (json!({ "kind": "http", "steps": [{}, { "methd": "GET" }] }), "steps[1].methd: unknown field".into()),
            (json!({ "kind": "http", "errors": [{ "status": "x" }] }), "errors[0].status: ".into()),
            (auth(json!({ "kind": "digest" })), "auth.kind: there is no \"digest\": use one of \"bearer\"".into()),
            (auth(json!("S3CRET")), "auth: it is no table".into()),
            (
                auth(json!({ "kind": "oauth2", "token_url": "x", "client_id": "x", "grant": "password" })),
                "auth.grant: unknown variant `password`".into(),
            ),
        ] {
            let error = error(table);
            assert!(error.starts_with(&expected) && !error.contains("S3CRET"), "{expected}: {error}");
        }
    }

    #[test]
    fn a_secret_written_into_the_configuration_is_in_no_message() {
        use serde_json::{Value, json};
        let auth = |kind: &str, key: &str, secret: &Value| json!({ "kind": "http", "auth": { "kind": kind, key: secret, "token_url": "x", "client_id": "x" } });
        let inline = json!("abc-S3CRET");
        for secret in [inline.clone(), json!(["S3CRET"]), json!({ "value": "S3CRET" }), json!({ "env": ["S3CRET"] })] {
            for (table, key) in [
                (json!({ "kind": "http", "token": secret }), "token"),
                (auth("oauth2", "client_secret", &secret), "auth.client_secret"),
                (auth("oauth2", "refresh_token", &secret), "auth.refresh_token"),
            ] {
                let error = error(table);
                assert!(error.starts_with(key) && !error.contains("S3CRET"), "{key}: {error}");
            }
        }
        for (kind, key) in [("basic", "password"), ("api_key", "key")] {
            let table = json!({ "kind": "http", "auth": { "kind": kind, key: inline } });
            let error = error(table);
            assert_eq!(
                error,
                format!(
                    "auth.{key}: a secret does not belong in the configuration: use {{ env = \"NAME\" }} or \
                     {{ file = \"PATH\" }}"
                )
            );
        }
        let both = json!({ "kind": "http", "token": { "env": "A", "file": "b" } });
        assert_eq!(error(both), "token: env and file are both there: use one of them");
    }
}
