//! Masks credentials in texts of any kind: JSON, nested JSON, forms, URLs, XML, log lines, and all of them cut short.
//!
//! It does not parse, because what is cut or malformed holds the same secrets. It looks at each `:`, `=` and `>` for
//! the name before it, and when that is a credential's, masks the value after it. Quotes inside quotes are told apart
//! by their backslashes: at nesting depth k a quote has 2^k − 1 of them. One pass, linear in the text.

use std::borrow::Cow;
use std::ops::Range;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::names::{MAX_NAME_BYTES, is_sensitive};

/// What stands where something was taken out. It needs no escaping in JSON, forms or XML.
pub const PLACEHOLDER: &str = "[redacted]";

/// The most secrets that a transcript may name; each costs a pass over every text.
const MAX_SECRETS: usize = 64;

/// The shortest start of a secret that tells something about it.
const MIN_CUT_BYTES: usize = 4;

/// What RFC 3986 lets stand.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The secrets of one run, in each form in which they may turn up.
pub(super) struct Mask {
    needles: Vec<String>,
}

impl Mask {
    /// None when there are more secrets than can be looked for.
    pub fn new(secrets: &[String]) -> Option<Self> {
        if secrets.len() > MAX_SECRETS {
            return None;
        }
        let mut needles: Vec<String> = secrets.iter().filter(|secret| !secret.is_empty()).flat_map(forms).collect();
        needles.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        needles.dedup();
        Some(Mask { needles })
    }

    /// Any text.
    pub fn text<'t>(&self, text: &'t str) -> Cow<'t, str> {
        match self.secrets(text) {
            Cow::Borrowed(text) => mask_named(text),
            Cow::Owned(text) => Cow::Owned(mask_named(&text).into_owned()),
        }
    }

    /// A URL: user info, query and fragment, and secrets anywhere.
    pub fn url(&self, url: &str) -> String {
        let (rest, fragment) = url.split_once('#').map_or((url, None), |(rest, fragment)| (rest, Some(fragment)));
        let (base, query) = rest.split_once('?').map_or((rest, None), |(base, query)| (base, Some(query)));
        let mut masked = self.text(base).into_owned();
        for (mark, part) in [('?', query), ('#', fragment)] {
            if let Some(part) = part {
                masked.push(mark);
                masked.push_str(&self.form(part));
            }
        }
        masked
    }

    /// A query or a form: pairs between `&`, percent-encoded.
    pub fn form(&self, form: &str) -> String {
        let pairs: Vec<String> = form.split('&').map(|pair| self.pair(pair)).collect();
        pairs.join("&")
    }

    /// A text without an end that may be the start of a secret: what a cut leaves of one.
    pub fn without_cut_secret<'t>(&self, text: &'t str) -> &'t str {
        let starts = |needle: &&String| {
            let lengths = (MIN_CUT_BYTES..needle.len()).rev();
            lengths.filter_map(|length| needle.get(..length)).find(|start| text.ends_with(start)).map(str::len)
        };
        let longest = self.needles.iter().filter_map(|needle| starts(&needle)).max().unwrap_or(0);
        &text[..text.len() - longest]
    }

    fn pair(&self, pair: &str) -> String {
        let (name, value) = pair.split_once('=').unwrap_or(("", pair));
        let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let value = decoded(value);
        if !is_sensitive(&decoded(name)) && matches!(self.text(&value), Cow::Borrowed(_)) {
            return self.secrets(pair).into_owned();
        }
        let name = self.secrets(name);
        if name.is_empty() { PLACEHOLDER.to_owned() } else { format!("{name}={PLACEHOLDER}") }
    }

    fn secrets<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        for needle in &self.needles {
            if text.contains(needle) {
                text = Cow::Owned(text.replace(needle, PLACEHOLDER));
            }
        }
        text
    }
}

/// A secret as it is, percent-encoded in the ways in use, and inside JSON strings down to the second level.
fn forms(secret: &String) -> [String; 7] {
    let upper = utf8_percent_encode(secret, ENCODED).to_string();
    let lower = percent_lowercase(&upper);
    let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let escaped = json_escaped(secret);
    let slashes = escaped.replace('/', "\\/");
    [secret.clone(), upper, lower, form, json_escaped(&escaped), escaped, slashes]
}

fn json_escaped(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn percent_lowercase(encoded: &str) -> String {
    let mut after_percent = 0;
    let lower = |it: char| {
        after_percent = if it == '%' { 2 } else { i32::max(after_percent - 1, -1) };
        if it != '%' && after_percent >= 0 { it.to_ascii_lowercase() } else { it }
    };
    encoded.chars().map(lower).collect()
}

/// Masks the values that follow a credential's name.
fn mask_named(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let (mut masked, mut copied, mut at) = (String::new(), 0, 0);
    while let Some(found) = bytes[at..].iter().position(|byte| matches!(byte, b':' | b'=' | b'>')) {
        let mark = at + found;
        at = mark + 1;
        if let Some((value, replacement)) = value_to_mask(text, copied, mark) {
            masked.push_str(&text[copied..value.start]);
            masked.push_str(&replacement);
            copied = value.end;
            at = value.end.max(at);
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    masked.push_str(&text[copied..]);
    Cow::Owned(masked)
}

/// The value after the mark at `mark`, if the name before it says so, and what to put in its place.
fn value_to_mask(text: &str, from: usize, mark: usize) -> Option<(Range<usize>, String)> {
    let bytes = text.as_bytes();
    if bytes[mark..].starts_with(b"://") {
        return user_info(text, mark + 3).map(|range| (range, PLACEHOLDER.to_owned()));
    }
    let name = name_before(text, from, mark)?;
    if !is_sensitive(&plain_name(name.text)) {
        return None;
    }
    if bytes[mark] == b'>' {
        let end = find(bytes, mark + 1, |byte| byte == b'<');
        return (name.in_tag && end > mark + 1).then(|| (mark + 1..end, PLACEHOLDER.to_owned()));
    }
    let start = find(bytes, mark + 1, |byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
    let backslashes = find(bytes, start, |byte| byte != b'\\') - start;
    match bytes.get(start + backslashes)? {
        b'"' | b'\'' => {
            let inside = start + backslashes + 1;
            let end = quoted_end(bytes, inside, bytes[inside - 1], backslashes);
            Some((inside..end, PLACEHOLDER.to_owned()))
        }
        b'{' | b'[' if name.quoted => {
            let quote = format!("{}\"", "\\".repeat(name.backslashes));
            Some((start..bracketed_end(bytes, start, name.backslashes), format!("{quote}{PLACEHOLDER}{quote}")))
        }
        _ if name.quoted => {
            let end =
                find(bytes, start, |byte| matches!(byte, b',' | b'}' | b']' | b'"') || byte.is_ascii_whitespace());
            let quote = format!("{}\"", "\\".repeat(name.backslashes));
            let constant = matches!(&text[start..end], "null" | "true" | "false" | "");
            (!constant).then(|| (start..end, format!("{quote}{PLACEHOLDER}{quote}")))
        }
        _ => {
            let end = bare_end(text, start);
            (end > start).then(|| (start..end, PLACEHOLDER.to_owned()))
        }
    }
}

/// What stands between `://` and the last `@` before the path.
fn user_info(text: &str, start: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let end =
        find(bytes, start, |byte| matches!(byte, b'/' | b'?' | b'#' | b'"' | b'\'' | b'<' | b'\\') || byte <= b' ');
    let at = text.get(start..end)?.rfind('@')?;
    (at > 0).then_some(start..start + at)
}

struct Name<'t> {
    text: &'t str,
    quoted: bool,
    backslashes: usize,
    in_tag: bool,
}

/// The name that ends at `mark`: quoted, or a run of name characters.
fn name_before(text: &str, from: usize, mark: usize) -> Option<Name<'_>> {
    let bytes = text.as_bytes();
    let floor = from.max(mark.saturating_sub(MAX_NAME_BYTES));
    let mut end = mark;
    while end > floor && bytes[end - 1].is_ascii_whitespace() {
        end -= 1;
    }
    if end > floor && matches!(bytes[end - 1], b'"' | b'\'') {
        let quote = bytes[end - 1];
        let mut inside_end = end - 1;
        while inside_end > floor && bytes[inside_end - 1] == b'\\' {
            inside_end -= 1;
        }
        let start = bytes[floor..inside_end].iter().rposition(|&byte| byte == quote)? + floor + 1;
        let backslashes = end - 1 - inside_end;
        return Some(Name { text: text.get(start..inside_end)?, quoted: quote == b'"', backslashes, in_tag: false });
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'%' | b'[' | b']');
    let start = bytes[floor..end].iter().rposition(|&byte| !is_name(byte)).map_or(floor, |it| floor + it + 1);
    let in_tag = start > 0 && matches!(bytes[start - 1], b'<' | b':');
    (start < end).then(|| Name { text: &text[start..end], quoted: false, backslashes: 0, in_tag })
}

/// A name without percent-encoding and `\u` escapes.
fn plain_name(name: &str) -> Cow<'_, str> {
    if !name.contains(['%', '\\']) {
        return Cow::Borrowed(name);
    }
    let mut plain = String::new();
    let mut rest = name;
    while let Some(at) = rest.find("\\u") {
        plain.push_str(&rest[..at]);
        let code = rest.get(at + 2..at + 6).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        plain.extend(code.and_then(char::from_u32));
        rest = rest.get(at + 2 + 4 * usize::from(code.is_some())..).unwrap_or_default();
    }
    plain.push_str(rest);
    Cow::Owned(percent_decode_str(&plain).decode_utf8_lossy().into_owned())
}

/// The first place from `start` on where `stop` holds, or the end. Stops only ever at ASCII, so at a character's
/// border.
fn find(bytes: &[u8], start: usize, stop: impl Fn(u8) -> bool) -> usize {
    bytes[start..].iter().position(|&byte| stop(byte)).map_or(bytes.len(), |found| start + found)
}

/// Where the string that began before `inside` ends: at its closing quote's first backslash, or the text's end.
fn quoted_end(bytes: &[u8], inside: usize, quote: u8, backslashes: usize) -> usize {
    let mut run = 0;
    for (at, &byte) in bytes.iter().enumerate().skip(inside) {
        if byte == quote && run % (2 * (backslashes + 1)) == backslashes {
            return at - backslashes;
        }
        run = if byte == b'\\' { run + 1 } else { 0 };
    }
    bytes.len()
}

/// Where the object or array at `start` ends, strings in it skipped.
fn bracketed_end(bytes: &[u8], start: usize, backslashes: usize) -> usize {
    let (mut depth, mut at) = (0usize, start);
    while at < bytes.len() {
        match bytes[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            b'"' => at = quoted_end(bytes, at + 1, b'"', backslashes) + backslashes,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return at;
        }
    }
    bytes.len()
}

/// Where an unquoted value ends. An authentication scheme before it belongs to it, and so does an escaped slash.
fn bare_end(text: &str, start: usize) -> usize {
    let bytes = text.as_bytes();
    let scheme = ["bearer ", "basic ", "digest ", "token "]
        .iter()
        .find(|scheme| bytes[start..].get(..scheme.len()).is_some_and(|it| it.eq_ignore_ascii_case(scheme.as_bytes())));
    let mut end = start + scheme.map_or(0, |scheme| scheme.len());
    loop {
        let stops = |byte: u8| {
            byte <= b' ' || matches!(byte, b'&' | b'"' | b'\'' | b'<' | b'>' | b',' | b';' | b')' | b'}' | b'\\')
        };
        end = find(bytes, end, stops);
        if !bytes[end..].starts_with(b"\\/") {
            return end;
        }
        end += 2;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn masked(text: &str) -> String {
        Mask::new(&[]).expect("few secrets").text(text).into_owned()
    }

    #[test]
    fn values_after_a_credentials_name_are_masked() {
        for (raw, expected) in [
            (r#"{"access_token": "CANARY", "n": 1}"#, r#"{"access_token": "[redacted]", "n": 1}"#),
            (r#"{"a":{"PASSWORD":"CAN\"ARY"}}"#, r#"{"a":{"PASSWORD":"[redacted]"}}"#),
            (r#"{"secret":"CANARY\\","n":"x"}"#, r#"{"secret":"[redacted]","n":"x"}"#),
            (r#"{"pin": 1234, "n": 1}"#, r#"{"pin": "[redacted]", "n": 1}"#),
            (r#"{"token": null}"#, r#"{"token": null}"#),
            (r#"{"credentials": {"a": ["}", 1]}, "n": 1}"#, r#"{"credentials": "[redacted]", "n": 1}"#),
            (r#"{"acce\u0073s_token":"CANARY"}"#, r#"{"acce\u0073s_token":"[redacted]"}"#),
            (r#"{"body":"{\"token\":\"CAN\\\"ARY\",\"n\":1}"}"#, r#"{"body":"{\"token\":\"[redacted]\",\"n\":1}"}"#),
            (r#"{"body":"{\"pin\":12,\"n\":1}"}"#, r#"{"body":"{\"pin\":\"[redacted]\",\"n\":1}"}"#),
            (r#"{"token":"CANA"#, r#"{"token":"[redacted]"#),
            (r#"cut"} {"token":"CANARY"}"#, r#"cut"} {"token":"[redacted]"}"#),
            (
                "got https://u:CANARY@bank/x?a=1&access_token=CANARY&b=2",
                "got https://[redacted]@bank/x?a=1&access_token=[redacted]&b=2",
            ),
            ("Authorization: Bearer CANARY, next", "Authorization: [redacted], next"),
            ("password=CANARY; x", "password=[redacted]; x"),
            (
                r#"{"next":"https:\/\/b\/?token=CA\/NARY\u0026x=1"}"#,
                r#"{"next":"https:\/\/b\/?token=[redacted]\u0026x=1"}"#,
            ),
            ("<s:Password>CANARY</s:Password><n>1</n>", "<s:Password>[redacted]</s:Password><n>1</n>"),
            ("{token: 'CANARY', n: 1}", "{token: '[redacted]', n: 1}"),
            ("café: naïve = 1 > 0, account: 5", "café: naïve = 1 > 0, account: 5"),
        ] {
            assert_eq!(masked(raw), expected);
        }
    }

    #[test]
    fn forms_and_urls_are_masked_by_name_and_by_what_they_carry() {
        let mask = Mask::new(&[]).expect("few secrets");
        assert_eq!(mask.form("a=1&client%5Fsecret=CAN%26ARY;'&b="), "a=1&client%5Fsecret=[redacted]&b=");
        assert_eq!(mask.form("json=%7B%22token%22%3A%22CANARY%22%7D"), "json=[redacted]");
        assert_eq!(
            mask.url("https://u:CANARY@b/p?q=1&sig=CANARY#id_token=CANARY"),
            "https://[redacted]@b/p?q=1&sig=[redacted]#id_token=[redacted]"
        );
        assert_eq!(mask.url("https://bank/accounts?page=2"), "https://bank/accounts?page=2");
    }

    #[test]
    fn a_named_secret_is_masked_in_each_of_its_forms() {
        let secret = "p/q\" é+1";
        let mask = Mask::new(&[secret.to_owned(), String::new()]).expect("few secrets");
        for form in forms(&secret.to_owned()) {
            assert_eq!(mask.text(&format!("<{form}>")), "<[redacted]>", "{form}");
        }
        assert_eq!(mask.url("https://b/p%2fq%22%20%c3%a9%2b1/x"), "https://b/[redacted]/x");
        assert!(Mask::new(&vec!["s".to_owned(); MAX_SECRETS + 1]).is_none());
    }

    #[test]
    fn what_a_cut_leaves_of_a_secret_is_masked() {
        let mask = Mask::new(&["CANARY-named".to_owned()]).expect("few secrets");
        assert_eq!(mask.without_cut_secret("bearer CANARY-na"), "bearer ");
        assert_eq!(mask.without_cut_secret("CANARY and more"), "CANARY and more");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in r#"([a-z"'\\:=>{}\[\],&/@ é]|token|password|://|\\u00){0,60}"#) {
            let once = masked(&text);
            Mask::new(&["tok".to_owned()]).expect("one").url(&once);
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
}
