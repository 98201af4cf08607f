//! Private keys as texts (RFC 7468): what stands between `-----BEGIN … PRIVATE KEY-----` and its end, or a cut.

use std::ops::Range;

use memchr::memmem;

/// The longest kind of key: `ENCRYPTED`, `OPENSSH`, …
const MAX_KIND_BYTES: usize = 32;

/// The key whose header's word `BEGIN` is at `at`. It does not reach out of the string or element in which it stands.
pub fn at(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    const END: &[u8] = b"PRIVATE KEY-----";
    let header = bytes[at..].strip_prefix(b"BEGIN ")?;
    let header = &header[..header.len().min(MAX_KIND_BYTES + END.len())];
    let start = at + b"BEGIN ".len() + memmem::find(header, END)? + END.len();
    let text = &bytes[start..];
    // A single dash is none: an encrypted key begins with headers such as `Proc-Type: 4,ENCRYPTED`.
    let end = memchr::memchr2(b'"', b'<', text).unwrap_or(text.len());
    let end = memmem::find(&text[..end], b"-----").unwrap_or(end);
    (end > 0).then_some(start..start + end)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for other in ["BEGIN CERTIFICATE-----\nMIIE", "BEGIN PUBLIC KEY-----\nMIIE", "BEGIN", "BEGIN PRIVATE KEY-----"]
        {
            assert_eq!(found(other), None, "{other}");
        }
    }
}
