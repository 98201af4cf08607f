//! What holds for any text.

use super::*;

fn pass_text(redactor: &Redactor, secrets: &[String], text: &str) -> String {
    let integration = "bank".parse().expect("a name");
    let mut pass = Pass::new(&redactor.rules, &integration, secrets).expect("few secrets");
    pass.text(text).expect("in time").into_owned()
}

/// Any text of the characters that mean something to one rule or the other.
const ANY: &str = r#"([a-z0-9"'\\:=<>{}\[\],&/@ é%+.-]|token|password|://|\\u00|\\u003d|\\u0022|\\u003c|%22|%7B|&quot;|Bearer |--pin |pin: \||\n  |=>|:=|Authorization: Digest |4111 1111 1111 1111|DE89370400440532013000|eyJhbGciOiJIUzI1NiJ9\.eyJ){0,50}"#;

/// Words that are no secrets and begin none, and numbers that together are no card's.
const HARMLESS: &str = r"([g-z]{1,8}|0[0-9]{0,4}[g-z]|é|[ ,;.!?()]){0,30}";

fn value() -> impl Strategy<Value = Value> {
    let number = prop_oneof![Just(4111111111111111u64), 0u64..1000, Just(5555555555554444)].prop_map(Value::from);
    let leaf = prop_oneof![number, ANY.prop_map(Value::from), Just(Value::Null), any::<bool>().prop_map(Value::from)];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let key = prop_oneof![
            Just("token".to_owned()),
            Just("name".to_owned()),
            Just("value".to_owned()),
            ANY.prop_map(String::from)
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner.clone()), 0..4).prop_map(|it| Value::Object(it.into_iter().collect())),
            // JSON in a string in JSON.
            inner.prop_map(|it| Value::from(it.to_string())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_text_makes_it_panic(text in ANY) {
        let redactor = redactor(r#"{"detect": ["card", "iban", "jwt", "bearer", "basic", "email"], "paths": {"*": ["$..a", "$[1]"]}}"#);
        let integration = "bank".parse().expect("a name");
        let mut pass = Pass::new(&redactor.rules, &integration, &["tok".to_owned(), "é".to_owned()]).expect("few");
        pass.text(&text).expect("in time");
        pass.url(&text).expect("in time");
        pass.form(&text).expect("in time");
        let _ = pass.document(&text).expect("in time");
        let _ = pass.without_cut(&text);
        for media_type in ["multipart/form-data; boundary=a", "application/json", "application/x-www-form-urlencoded", ""] {
            message::body(&mut pass, media_type, &Bytes::from(text.clone()), true).expect("in time");
        }
    }

    #[test]
    fn json_stays_json(value in value()) {
        let redactor = redactor(r#"{"paths": {"*": ["$..name"]}}"#);
        let integration = "bank".parse().expect("a name");
        let mut pass = Pass::new(&redactor.rules, &integration, &["11".to_owned(), "okn".to_owned()]).expect("few");
        let text = value.to_string();
        let redacted = pass.document(&text).expect("in time").expect("it is JSON");
        prop_assert!(serde_json::from_str::<Value>(&redacted).is_ok(), "{} became {}", text, redacted);
        for secret in ["5555555555554444", "4111111111111111"] {
            prop_assert!(!redacted.contains(secret), "{}", redacted);
        }
    }

    #[test]
    fn a_text_without_secrets_is_the_same_byte_for_byte(text in HARMLESS) {
        let redactor = Redactor::default();
        prop_assert_eq!(pass_text(&redactor, &["CANARY".to_owned()], &text), text);
    }

    #[test]
    fn a_secret_in_any_surroundings_is_found(before in ANY, after in ANY) {
        let redactor = Redactor::default();
        for secret in ["4111 1111 1111 1111", "5555555555554444", "DE89370400440532013000", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIi"] {
            let text = pass_text(&redactor, &[], &format!("{before}, {secret}, {after}"));
            prop_assert!(!text.contains(&format!(", {secret}, ")), "{}", text);
        }
    }
}
