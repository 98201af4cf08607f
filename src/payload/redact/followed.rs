//! Values that are known to be secrets for what stands around them, followed to where nothing does.
//!
//! The password that the input has under that name is in the URL and the form that an integration made of it, and the
//! account that a JSON path takes out of an answer is in the path of the next request. What names and paths lead to is
//! remembered while a payload is redacted, and looked for in all that is left, in each form that `secrets.rs` knows.
//!
//! What is short or a word may stand somewhere else by chance. So it is followed only where it stands alone, or not at
//! all ([`how`]); a run that knows better names its secrets itself.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::budget::Stop;
use super::decoded::plain;
use super::detect::Kind;
use super::named::ends_bare;
use super::names::is_sensitive;
use super::placeholder::{is_placeholder, secret_of};
use super::prose::{AFTER_NAME, is_one_of};
use super::secrets::{Secret, Secrets};

/// The most values of one payload that are followed because of names, and because of paths. The first ones are.
const MAX_NAMED: usize = 256;
const MAX_AT_PATHS: usize = 1_000;

/// A longer value, such as a whole document, is not followed; nothing repeats it as it is.
const MAX_BYTES: usize = 8 * 1024;

/// The shortest value that is followed.
const MIN_CHARS: usize = 4;

/// From here on a value with digits or signs in it is no word or number by chance.
const MIN_SURE_CHARS: usize = 8;

/// From here on a number is no count by chance.
const MIN_NUMBER_DIGITS: usize = 5;

/// What says that a value is a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    /// The name of something that a person chose and that may be a word: a password, a PIN.
    Password,
    /// The name of something that a machine made: a token, a key, a session. A word in its place is none.
    Token,
    /// What carries several of them, with attributes: `Cookie`, `Set-Cookie`.
    Cookies,
    /// Its place in a URL: user and password before the `@`.
    UserInfo,
    /// A JSON path of the configuration.
    Path,
}

impl Guard {
    /// Of a credential's name.
    pub fn of(name: &str) -> Self {
        const MADE: &[&str] = &[
            "assertion",
            "auth",
            "authorization",
            "bearer",
            "credential",
            "credentials",
            "csrf",
            "jwt",
            "key",
            "link",
            "saml",
            "samlresponse",
            "sessid",
            "session",
            "sessionid",
            "sid",
            "sig",
            "signature",
            "string",
            "token",
            "tokens",
            "value",
            "xsrf",
        ];
        let letters = |it: &char| it.is_ascii_alphabetic();
        let plain: String = name.chars().filter(letters).map(|it| it.to_ascii_lowercase()).collect();
        let ends_with = |endings: &[&str]| endings.iter().any(|ending| plain.ends_with(ending));
        match () {
            () if ends_with(&["cookie", "cookies"]) => Guard::Cookies,
            () if ends_with(MADE) => Guard::Token,
            () => Guard::Password,
        }
    }
}

/// What has been found so far.
#[derive(Default)]
pub(super) struct Followed {
    named: HashSet<String>,
    at_paths: HashSet<String>,
    secrets: Vec<Secret>,
}

impl Followed {
    /// A value as it stands in a text, in whatever encoding.
    pub fn add(&mut self, value: &str, guard: Guard) {
        if value.len() > MAX_BYTES || is_placeholder(value) {
            return;
        }
        let is_document = value.trim_start().starts_with(['{', '[']);
        match guard {
            Guard::Path if is_document => self.add_all_in(value, guard),
            _ if is_document => self.add_all_in(value, Guard::Token),
            Guard::Cookies => self.add_cookies(&plain(value)),
            Guard::UserInfo => self.add_password(&plain(value)),
            Guard::Token => {
                let secret = secret_of(value);
                let decoded = STANDARD.decode(&secret).ok().and_then(|decoded| String::from_utf8(decoded).ok());
                self.add_password(decoded.as_deref().unwrap_or_default());
                self.add_one(&secret, guard);
            }
            Guard::Password | Guard::Path => self.add_one(&secret_of(value), guard),
        }
    }

    /// The values of a `Cookie` or `Set-Cookie` header (RFC 6265).
    fn add_cookies(&mut self, header: &str) {
        const ATTRIBUTES: &[&str] = &["domain", "expires", "max-age", "path", "samesite"];
        for (name, value) in header.split(';').filter_map(|pair| pair.trim().split_once('=')) {
            if !ATTRIBUTES.iter().any(|attribute| name.eq_ignore_ascii_case(attribute)) {
                self.add_one(value.trim_matches('"'), Guard::Token);
            }
        }
    }

    /// Of a user and a password with a colon between them (RFC 7617), the password.
    fn add_password(&mut self, user_info: &str) {
        if let Some((_, password)) = user_info.split_once(':') {
            self.add_one(password, Guard::Password);
        }
    }

    /// All of them, ready to be looked for; none when there are none.
    pub fn secrets(self) -> Result<Option<Secrets>, Stop> {
        if self.secrets.is_empty() { Ok(None) } else { Secrets::of(self.secrets).map(Some) }
    }

    /// Those of one line with a character that ends a value behind a name without quotes: they have to be looked for
    /// before names are, for a name takes a part of them. Not one at whose end another secret is announced: that would not be
    /// seen any more.
    pub fn with_ends(&mut self) -> Vec<Secret> {
        let has_end = |it: &mut Secret| {
            it.in_base64 && !it.text.contains('\n') && it.text.contains(ends_bare) && !announces(&it.text)
        };
        self.secrets.extract_if(.., has_end).collect()
    }

    /// What a document holds, as far as it is one.
    fn add_all_in(&mut self, document: &str, guard: Guard) {
        let mut values: Vec<Value> = serde_json::from_str(document).into_iter().collect();
        while let Some(value) = values.pop() {
            match value {
                Value::Array(inner) => values.extend(inner.into_iter().rev()),
                Value::Object(inner) => values.extend(inner.into_iter().rev().map(|(_, value)| value)),
                Value::String(text) => self.add_one(&secret_of(&text), guard),
                Value::Number(number) => self.add_one(&number.to_string(), guard),
                Value::Bool(_) | Value::Null => {}
            }
        }
    }

    fn add_one(&mut self, value: &str, guard: Guard) {
        let (known, most) = match guard {
            Guard::Path => (&mut self.at_paths, MAX_AT_PATHS),
            _ => (&mut self.named, MAX_NAMED),
        };
        if known.len() >= most || known.contains(value) {
            return;
        }
        let Some(stands_alone) = how(value, guard) else { return };
        known.insert(value.to_owned());
        self.secrets.push(Secret { text: value.to_owned(), stands_alone, in_base64: guard != Guard::Path });
    }
}

/// Whether a text ends as what stands before a secret does: with a credential's name, or the scheme of a token.
fn announces(text: &str) -> bool {
    let is_of_word = |character: char| character.is_alphanumeric() || matches!(character, '-' | '_');
    let word = text.trim_end_matches(|character| !is_of_word(character));
    let word = word.rsplit(|character| !is_of_word(character)).next().unwrap_or_default();
    is_sensitive(word) || ["bearer", "basic"].iter().any(|scheme| word.eq_ignore_ascii_case(scheme))
}

/// Whether a value is followed, and whether only to where it stands alone, between characters that are neither letters
/// nor digits.
fn how(value: &str, guard: Guard) -> Option<bool> {
    let length = value.chars().count();
    if length < MIN_CHARS
        || is_date(value)
        || is_one_of(AFTER_NAME, value)
        || Kind::ALL.iter().any(|it| value.eq_ignore_ascii_case(it.as_str()))
    {
        return None;
    }
    // What was taken out already stands for a secret, and is none.
    if is_placeholder(value) {
        return None;
    }
    let digits = value.chars().filter(char::is_ascii_digit).count();
    let is_number = value.chars().all(|it| it.is_ascii_digit() || matches!(it, '.' | ',' | '-' | '+'));
    let is_word = value.chars().all(|it| it.is_alphabetic() || matches!(it, ' ' | '-' | '_' | '.'));
    match guard {
        Guard::Token if is_word || length < MIN_SURE_CHARS => None,
        Guard::Path if is_number && digits < MIN_NUMBER_DIGITS => None,
        _ => Some(is_word || length < MIN_SURE_CHARS),
    }
}

/// `2026-11-27`, as a line of a log has it behind the name of its logger.
fn is_date(value: &str) -> bool {
    const FORM: &[u8] = b"0000-00-00";
    let is_of_form = |(byte, form): (u8, &u8)| if *form == b'0' { byte.is_ascii_digit() } else { byte == *form };
    value.len() == FORM.len() && value.bytes().zip(FORM).all(is_of_form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_stand_somewhere_by_chance_is_followed_with_care_or_not() {
        use Guard::{Password, Path, Token};
        for (value, guard, expected) in [
            ("s3cr3t-pass", Password, Some(false)),
            ("geheim", Password, Some(true)),
            ("correct horse battery", Password, Some(true)),
            ("1234", Password, Some(true)),
            ("123", Password, None),
            ("None", Password, None),
            ("Expired", Password, None),
            ("2026-11-27", Token, None),
            ("2026-11-277", Token, Some(false)),
            ("redacted", Password, None),
            ("[redacted-17]", Token, None),
            ("9f8e7d6c5b4a", Token, Some(false)),
            ("transactions", Token, None),
            ("v2", Token, None),
            ("Erika Mustermann", Path, Some(true)),
            ("123456", Path, Some(true)),
            ("12.50", Path, None),
            ("acc-0042-7781", Path, Some(false)),
        ] {
            assert_eq!(how(value, guard), expected, "{value} by {guard:?}");
        }
    }

    #[test]
    fn a_name_tells_what_is_chosen_and_what_is_made() {
        for (name, guard) in [
            ("password", Guard::Password),
            ("userPin", Guard::Password),
            ("client_secret", Guard::Password),
            ("access_token", Guard::Token),
            ("X-Api-Key", Guard::Token),
            ("password2", Guard::Password),
            ("Set-Cookie", Guard::Cookies),
        ] {
            assert_eq!(Guard::of(name), guard, "{name}");
        }
    }
}
