//! Values are found where names say so, in texts whole and cut.

use std::time::Duration;

use proptest::prelude::*;

use super::super::edit::{Edit, apply};
use super::*;

fn masked(text: &str) -> String {
    let found = named(text, &mut Budget::new(Duration::from_secs(60))).expect("in time");
    let edit = |Found { range, quote, .. }: Found| Edit { range, with: format!("{quote}[redacted]{quote}") };
    apply(text.into(), &found.into_iter().map(edit).collect::<Vec<_>>()).into_owned()
}

#[test]
fn values_after_a_credentials_name_are_found() {
    for (raw, expected) in [
        (r#"{"access_token": "CANARY", "n": 1}"#, r#"{"access_token": "[redacted]", "n": 1}"#),
        (r#"{"a":{"PASSWORD":"CAN\"ARY"}}"#, r#"{"a":{"PASSWORD":"[redacted]"}}"#),
        (r#"{"secret":"CANARY\\","n":"x"}"#, r#"{"secret":"[redacted]","n":"x"}"#),
        (r#"{"pin": 1234, "n": 1}"#, r#"{"pin": "[redacted]", "n": 1}"#),
        (r#"{"token": null, "pwd": "", "secret": true}"#, r#"{"token": null, "pwd": "", "secret": true}"#),
        (r#"{"credentials": {"a": ["}", 1]}, "n": 1}"#, r#"{"credentials": "[redacted]", "n": 1}"#),
        (r#"{"acce\u0073s_token":"CANARY"}"#, r#"{"acce\u0073s_token":"[redacted]"}"#),
        (r#"{"body":"{\"token\":\"CAN\\\"ARY\",\"n\":1}"}"#, r#"{"body":"{\"token\":\"[redacted]\",\"n\":1}"}"#),
        (r#"{"body":"{\"pin\":12,\"n\":1}"}"#, r#"{"body":"{\"pin\":\"[redacted]\",\"n\":1}"}"#),
        (r#"{"body":"{\"token\":\"CANA","n":1}"#, r#"{"body":"{\"token\":\"[redacted]","n":1}"#),
        (r#"{"token":"CANA"#, r#"{"token":"[redacted]"#),
        (r#"cut"} {"token":"CANARY"}"#, r#"cut"} {"token":"[redacted]"}"#),
        (
            "got https://u:CANARY@bank/x?a=1&access_token=CANARY&b=2",
            "got https://[redacted]@bank/x?a=1&access_token=[redacted]&b=2",
        ),
        ("Authorization: Bearer CANARY, next", "Authorization: [redacted], next"),
        ("Set-Cookie: a=CANARY; Path=/\nnext", "Set-Cookie: [redacted]\nnext"),
        ("password=CANARY; x", "password=[redacted]; x"),
        (
            r#"{"next":"https:\/\/b\/?token=CA\/NARY\u0026x=1"}"#,
            r#"{"next":"https:\/\/b\/?token=[redacted]\u0026x=1"}"#,
        ),
        ("<s:Password>CANARY</s:Password><n>1</n>", "<s:Password>[redacted]</s:Password><n>1</n>"),
        ("<pin a='1'>CANARY</pin><token/><n>1</n>", "<pin a='1'>[redacted]</pin><token/><n>1</n>"),
        ("<pin><a>CANARY</a> CANARY</pin><n>1</n>", "<pin>[redacted]</pin><n>1</n>"),
        ("<pin><![CDATA[CAN", "<pin>[redacted]"),
        ("{token: 'CANARY', n: 1}", "{token: '[redacted]', n: 1}"),
        (
            r#"[{"name":"api_key","value":"CANARY"}, {"name":"n","value":"x"}]"#,
            r#"[{"name":"api_key","value":"[redacted]"}, {"name":"n","value":"x"}]"#,
        ),
        (
            r#"[{"key":"api_key","value":"CANARY"}, {"key":"n","value":"x"}]"#,
            r#"[{"key":"[redacted]","value":"[redacted]"}, {"key":"[redacted]","value":"x"}]"#,
        ),
        (
            r#"{"value":"CANARY","name":"pin"}, {"value":"x","name":"n"}"#,
            r#"{"value":"[redacted]","name":"pin"}, {"value":"x","name":"n"}"#,
        ),
        (
            r#"{"a":"{\"value\":\"CANARY\",\"name\":\"pin\"}"}"#,
            r#"{"a":"{\"value\":\"[redacted]\",\"name\":\"pin\"}"}"#,
        ),
        ("<input value='CANARY' name=\"csrf_token\">", "<input value='[redacted]' name=\"csrf_token\">"),
        ("Authorization: ApiKey CANARY, next", "Authorization: [redacted], next"),
        (r#"{"m":"password=CAN\u00e9ARY\u0026x=1"}"#, r#"{"m":"password=[redacted]\u0026x=1"}"#),
        (r#"{"m":"{\"m\":\"password=CAN\\u00e9ARY\\/\"}"}"#, r#"{"m":"{\"m\":\"password=[redacted]\"}"}"#),
        ("café: naïve = 1 > 0, account: 5", "café: naïve = 1 > 0, account: 5"),
    ] {
        assert_eq!(masked(raw), expected);
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in r#"([a-z"'\\:=<>{}\[\],&/@ é]|token|password|name|value|://|\\u00){0,60}"#) {
        masked(&text);
    }

    #[test]
    fn masked_json_is_json(value in "[ -~é]{0,30}", other in "[ -~é]{0,30}", depth in 0usize..3) {
        let mut text = serde_json::json!({"token": format!("CANARY{value}"), "other": other}).to_string();
        for _ in 0..depth {
            text = serde_json::json!({"inner": text}).to_string();
        }
        let text = masked(&text);
        prop_assert!(!text.contains("CANARY"), "{}", text);
        prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
    }
}
