//! Tokens: JSON web tokens (RFC 7519), and what follows `Bearer` (RFC 6750) and `Basic` (RFC 7617).

use std::ops::Range;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::super::decoded::plain;
use super::super::prose::{AFTER_BEARER, is_one_of};
use super::run;

/// A JWT's first part is at least `{"alg":"…"}`.
const MIN_JWT_HEADER_BYTES: usize = 12;

/// A signed token has three parts, an encrypted one five.
const MAX_JWT_PARTS: usize = 5;

/// Shorter words after `Bearer` are prose.
const MIN_TOKEN_BYTES: usize = 6;

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The JSON web token that begins with the word at `at`; a cut one needs at least a part of its second part. `searched`
/// is how far earlier calls have looked in vain, so that no run is looked through twice.
pub fn jwt(bytes: &[u8], at: usize, searched: &mut usize) -> Option<Range<usize>> {
    if at < *searched || !bytes[at..].starts_with(b"eyJ") {
        return None;
    }
    let part = |at| run(bytes, at, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    let mut end = part(at);
    *searched = end;
    if end - at < MIN_JWT_HEADER_BYTES {
        return None;
    }
    let mut parts = 1;
    while parts < MAX_JWT_PARTS && bytes.get(end) == Some(&b'.') {
        let next = part(end + 1);
        // Only an encrypted token's second part may be empty; a dot at a sentence's end is none of the token.
        if next == end + 1 && bytes.get(next) != Some(&b'.') {
            break;
        }
        (end, parts) = (next, parts + 1);
    }
    (parts > 1).then_some(at..end)
}

/// An authentication scheme whose credentials are one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Bearer,
    Basic,
}

impl Scheme {
    const ALL: [Self; 2] = [Scheme::Bearer, Scheme::Basic];

    /// The one that a word is.
    pub fn of(word: &[u8]) -> Option<Self> {
        Scheme::ALL.into_iter().find(|scheme| word.eq_ignore_ascii_case(scheme.word().as_bytes()))
    }

    fn word(self) -> &'static str {
        match self {
            Scheme::Bearer => "bearer",
            Scheme::Basic => "basic",
        }
    }
}

/// The token behind a scheme that ends at `end`.
pub fn behind(scheme: Scheme, text: &str, end: usize) -> Option<Range<usize>> {
    match scheme {
        Scheme::Bearer => bearer(text, end),
        Scheme::Basic => basic(text, end),
    }
}

fn bearer(text: &str, end: usize) -> Option<Range<usize>> {
    let token = behind_scheme(text, end, Scheme::Bearer)?;
    let value = &text[token.clone()];
    let is_prose = is_one_of(AFTER_BEARER, value.trim_end_matches(['.', '=']));
    (value.len() >= MIN_TOKEN_BYTES && !is_prose).then_some(token)
}

/// User and password.
fn basic(text: &str, end: usize) -> Option<Range<usize>> {
    let token = behind_scheme(text, end, Scheme::Basic)?;
    let plain = plain(&text[token.clone()]).replace('-', "+").replace('_', "/");
    let has_colon = LENIENT.decode(plain.as_bytes()).is_ok_and(|decoded| decoded.contains(&b':'));
    let has = |kind: fn(&u8) -> bool| plain.as_bytes().iter().any(kind);
    let is_mixed =
        plain.len() >= 8 && has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit);
    (plain.len() >= 4 && (has_colon || is_mixed || plain.ends_with('='))).then_some(token)
}

/// What may be a token behind a scheme. Escapes belong to it; an attribute such as `realm="…"` is none.
fn behind_scheme(text: &str, end: usize, scheme: Scheme) -> Option<Range<usize>> {
    let (bytes, at) = (text.as_bytes(), end - scheme.word().len());
    let colon = end + usize::from(bytes.get(end) == Some(&b':'));
    // A form's space is a `+`, which a token may hold too: of words between many, the first may be a scheme.
    let colon = colon + usize::from(bytes.get(colon) == Some(&b'+') && (at == 0 || bytes[at - 1] != b'+'));
    let start = run(bytes, colon, |byte| matches!(byte, b' ' | b'\t'));
    if start == end {
        return None;
    }
    let mut end = start;
    loop {
        end = run(bytes, end, |byte| byte.is_ascii_alphanumeric() || b"-._~+/=%".contains(&byte));
        let backslashes = run(bytes, end, |byte| byte == b'\\');
        if backslashes == end {
            break;
        }
        match bytes.get(backslashes) {
            Some(b'/') => end = backslashes + 1,
            Some(b'u') if text.get(backslashes + 1..backslashes + 3) == Some("00") => end = backslashes + 1,
            _ => break,
        }
    }
    let is_attribute = bytes[start..end].ends_with(b"=") && matches!(bytes.get(end), Some(b'"' | b'\'' | b'\\'));
    let is_attribute = is_attribute
        && text[start..end].bytes().filter(|&byte| byte == b'=').count() == 1
        && end - start < 24
        && text[start..end - 1].bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    // In a path, the next segment may begin with a scheme of its own.
    let mut words = Scheme::ALL.into_iter().map(Scheme::word);
    let next = words.find(|it| text[start..end].to_ascii_lowercase().ends_with(it));
    end -= next.filter(|it| start + it.len() < end && bytes.get(end) == Some(&b' ')).map_or(0, str::len);
    while end > start && bytes[end - 1] == b'.' {
        end -= 1;
    }
    (end > start && !is_attribute).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Option<&str> {
        let end = run(text.as_bytes(), 0, |byte| byte.is_ascii_alphabetic());
        behind(Scheme::of(&text.as_bytes()[..end])?, text, end).map(|range| &text[range])
    }

    #[test]
    fn web_tokens_are_known_by_their_form() {
        for (text, length) in [
            ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", Some(41)),
            ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIi", Some(29)),
            ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIi. Next", Some(29)),
            ("eyJhbGciOiJkaXIifQ..aXY.Y3Q.dGFn", Some(32)),
            ("eyJhbGciOiJIUzI1NiJ9", None),
            ("eyJh.eyJz", None),
        ] {
            assert_eq!(jwt(text.as_bytes(), 0, &mut 0), length.map(|length| 0..length), "{text}");
        }
    }

    #[test]
    fn what_follows_a_scheme_is_a_token_unless_it_is_prose() {
        assert_eq!(token("bearer  abc.def~1=="), Some("abc.def~1=="));
        assert_eq!(token("Bearer: secretword"), Some("secretword"));
        assert_eq!(token(r"Bearer ab\/cd\u002bef\n"), Some(r"ab\/cd\u002bef"));
        assert_eq!(token("Basic dXNlcjpwYXNz,"), Some("dXNlcjpwYXNz"));
        assert_eq!(token(r"Basic dXNlcjo\/YX=="), Some(r"dXNlcjo\/YX=="));
        for prose in [
            "Bearer authentication.",
            "Bearer realm=\"x\"",
            "bearer of",
            "Bearerabcdefgh",
            "Bearer",
            "Basic authentication",
            "basic plan",
            "Basic realm=\"x\"",
        ] {
            assert_eq!(token(prose), None, "{prose}");
        }
    }
}
