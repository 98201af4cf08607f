//! Private keys as texts (RFC 7468, and RFC 9580, 6.2): what stands between `-----BEGIN … PRIVATE KEY-----`, or of PGP
//! `-----BEGIN PGP PRIVATE KEY BLOCK-----`, and its end, or a cut.

use std::ops::Range;

use memchr::memmem;

/// The longest kind of key: `ENCRYPTED`, `OPENSSH`, …
const MAX_KIND_BYTES: usize = 32;

/// What stands before the header's word `BEGIN`.
pub const DASHES: &[u8] = b"-----";

/// The key whose header's word `BEGIN` is at `at`. It does not reach out of the string or element in which it stands, unless
/// its lines are strings or elements of their own.
pub fn at(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    const BEGIN: &[u8] = b"BEGIN ";
    const KEY: &[u8] = b"PRIVATE KEY";
    let header = bytes[at..].strip_prefix(BEGIN)?;
    let header = &header[..header.len().min(MAX_KIND_BYTES + KEY.len())];
    let end = at + BEGIN.len() + memmem::find(header, KEY)? + KEY.len();
    let end = if bytes[end..].starts_with(b" BLOCK") { end + b" BLOCK".len() } else { end };
    let start = end + bytes[end..].starts_with(DASHES).then_some(DASHES.len())?;
    let text = &bytes[start..];
    // A single dash is none: an encrypted key begins with headers such as `Proc-Type: 4,ENCRYPTED`. They are looked for
    // first, so that of many keys each is read once.
    let dashes = memmem::find(text, DASHES).unwrap_or(text.len());
    let is_whole = text[dashes..].starts_with(b"-----END ") && text[..dashes].iter().all(|&byte| is_between(byte));
    let end = if is_whole { dashes } else { memchr::memchr2(b'"', b'<', &text[..dashes]).unwrap_or(dashes) };
    (end > 0).then_some(start..start + end)
}

/// Whether it is base64, or stands between the lines of a key in a program, a list or a page.
fn is_between(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte.is_ascii_whitespace() || b"+/=\\\"',<>&;.()#".contains(&byte)
}

/// Whether a private key begins in a text and goes on behind its end, where one began before it or none did.
pub fn goes_on(text: &str, began: bool) -> bool {
    let is_begin = |text: &str| text.contains("PRIVATE KEY-----") || text.contains("PRIVATE KEY BLOCK-----");
    match (text.rfind("-----BEGIN "), text.rfind("-----END ")) {
        (Some(begin), end) if is_begin(&text[begin..]) => end.is_none_or(|end| end < begin),
        (_, Some(_)) => false,
        _ => began && is_line(text),
    }
}

/// Whether a text may be a line of a private key, with something before it.
fn is_line(text: &str) -> bool {
    const MAX_LINE_BYTES: usize = 128;
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    let last = undecorated(text.trim_end().rsplit(' ').next().unwrap_or_default());
    let is_header = ["Proc-Type:", "DEK-Info:"].iter().any(|header| text.contains(header));
    text.len() <= MAX_LINE_BYTES && (is_header || last.bytes().all(is_base64))
}

/// A word without colours, quotes and an escaped newline around it.
fn undecorated(mut word: &str) -> &str {
    const QUOTES: [char; 3] = ['"', '\'', ','];
    if let Some((_, colour)) = word.split_once('\u{1b}').filter(|(before, _)| before.is_empty()) {
        word = colour.split_once('m').map_or(colour, |(_, behind)| behind);
    }
    word = word.split('\u{1b}').next().unwrap_or_default();
    word.trim_matches(QUOTES).trim_end_matches("\\n").trim_end_matches("\\r")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_over_several_texts_goes_on_until_its_end() {
        let mut began = false;
        for (text, expected) in [
            ("before", false),
            ("-----BEGIN PGP PRIVATE KEY BLOCK-----", true),
            ("lQVYBGNhbmFyeQ==", true),
            ("-----END PGP PRIVATE KEY BLOCK-----", false),
            ("stderr: -----BEGIN RSA PRIVATE KEY-----", true),
            ("stderr: Proc-Type: 4,ENCRYPTED", true),
            ("stderr: MIIEpAIBAAKCAQEA", true),
            ("\u{1b}[33mMIIEpAIBAAKCAQEA\u{1b}[0m", true),
            ("'MIIEpAIBAAKCAQEA\\n'", true),
            ("line 3: \"MIIEpAIBAAKCAQEA\",", true),
            ("stderr: -----END RSA PRIVATE KEY-----", false),
            ("after", false),
            ("-----BEGIN PRIVATE KEY----- MII -----END PRIVATE KEY-----", false),
            ("-----BEGIN CERTIFICATE-----", false),
            ("-----BEGIN PRIVATE KEY-----", true),
            ("but then something else, it was cut.", false),
        ] {
            began = goes_on(text, began);
            assert_eq!(began, expected, "{text}");
        }
    }

    #[test]
    fn private_keys_are_found_and_public_ones_are_none() {
        let found = |text: &'static str| at(text.as_bytes(), 0).map(|range| &text[range]);
        assert_eq!(found("BEGIN PRIVATE KEY-----\nMIIE\nab==\n-----END"), Some("\nMIIE\nab==\n"));
        assert_eq!(found(r"BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END"), Some(r"\nMIIE\n"));
        assert_eq!(found("BEGIN ENCRYPTED PRIVATE KEY-----\nMII"), Some("\nMII"));
        assert_eq!(found(r#"BEGIN EC PRIVATE KEY-----\nMI", "n": 1"#), Some(r"\nMI"));
        let encrypted =
            "BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,0F\n\nMIIE\n-----END RSA";
        assert_eq!(found(encrypted).map(|it| it.ends_with("MIIE\n")), Some(true));
        assert_eq!(found("BEGIN PRIVATE KEY-----[redacted-1]-----END"), Some("[redacted-1]"));
        for between in [r#"\n" + "#, r#"", ""#, "<br>", "</p><p class='x'>"] {
            let text = format!("BEGIN PRIVATE KEY-----{between}MIIE{between}ab=={between}-----END PRIVATE KEY-----");
            let range = at(text.as_bytes(), 0).expect("a key");
            assert_eq!(&text[range.end..], "-----END PRIVATE KEY-----", "{text}");
        }
        let other = r#"BEGIN PRIVATE KEY-----MIIE", "n": "x-----END"#;
        assert_eq!(found(other), Some("MIIE"), "of another member it says nothing");
        for other in ["BEGIN CERTIFICATE-----\nMIIE", "BEGIN PUBLIC KEY-----\nMIIE", "BEGIN", "BEGIN PRIVATE KEY-----"]
        {
            assert_eq!(found(other), None, "{other}");
        }
    }
}
