//! Which names guard a value that must not be kept, and which headers may be.

use std::array::from_fn;
use std::sync::LazyLock;

/// What ends the name of a credential, written without separators and in lowercase: `access_token`, `userPassword`. Digits
/// after it do not matter: `password2`.
const SENSITIVE_ENDINGS: &[&str] = &[
    "apikey",
    "apikeys",
    "authcode",
    "authorization",
    "assertion",
    "backupcode",
    "backupcodes",
    "connectionstring",
    "contrasena",
    "cookie",
    "cookies",
    "credential",
    "credentials",
    "encryptionkey",
    "kennwort",
    "magiclink",
    "mnemonic",
    "motdepasse",
    "passphrase",
    "passwd",
    "password",
    "passwords",
    "passwort",
    "privatekey",
    "pwd",
    "recoverycode",
    "recoverycodes",
    "secret",
    "secretanswer",
    "secrets",
    "secretkey",
    "seedphrase",
    "sessid",
    "sessionid",
    "signature",
    "signingkey",
    "smscode",
    "token",
    "tokens",
    "accesskey",
    "accesskeys",
    "subscriptionkey",
    "codeverifier",
    "csrf",
    "xsrf",
    "jwt",
    "cvv",
    "cvc",
    "cvvcode",
    "cvccode",
    "passcode",
    "pincode",
    "cardpin",
    "userpin",
    "otpcode",
    "totpcode",
    "mfacode",
    "securitycode",
    "verificationcode",
    "wachtwoord",
    "authorizationcode",
    "securityanswer",
    "passwordconfirm",
    "passwordconfirmation",
    "samlassertion",
    "samlresponse",
    "trackdata",
    "chiptan",
    "mtan",
    "phototan",
    "pushtan",
    "smstan",
    "accesscode",
    "activationcode",
    "authenticationcode",
    "authenticationdata",
    "authorisationcode",
    "confirmationcode",
    "devicecode",
    "masterkey",
    "memorableword",
    "mfaanswer",
    "onetimecode",
    "pinblock",
    "securityanswers",
    "sessionkey",
    "ssoticket",
    "tancode",
    "tannr",
    "tannumber",
];

/// What is the last word of a credential's name, after a separator or a capital, or all of it: `psu-pin`, `smsOtp`, but
/// not `shipping` or `titan`. Digits after it do not matter. `csc`, `cvv` and the like: PCI DSS forbids to keep them in any
/// form.
const SENSITIVE_LAST_WORDS: &[&str] = &["pin", "pass", "pw", "otp", "totp", "tan", "itan", "csc", "cvn", "puk"];

/// Names that are credentials only when they stand alone.
const SENSITIVE_WHOLE: &[&str] =
    &["auth", "key", "session", "sid", "sig", "saml", "bearer", "xauth", "track1", "track2"];

/// Headers whose values are kept. All others keep their name only.
const KEPT_HEADERS: &[&str] = &[
    "accept",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "cache-control",
    "connection",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expires",
    "host",
    "idempotency-key",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "keep-alive",
    "last-modified",
    "link",
    "location",
    "pragma",
    "range",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "retry-after",
    "server",
    "server-timing",
    "traceparent",
    "transfer-encoding",
    "user-agent",
    "vary",
    "via",
    "x-correlation-id",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-request-id",
];

/// Keys of a query whose values are kept: how much of what, in which order, of which time. All others keep their name
/// only.
const KEPT_QUERY_KEYS: &[&str] = &[
    "after_date",
    "api_version",
    "before_date",
    "booking_date_from",
    "booking_date_to",
    "booking_status",
    "count",
    "currency",
    "date",
    "date_from",
    "date_to",
    "direction",
    "end",
    "end_date",
    "expand",
    "fields",
    "format",
    "from",
    "from_date",
    "grant_type",
    "include",
    "lang",
    "language",
    "limit",
    "locale",
    "max_results",
    "offset",
    "order",
    "order_by",
    "page",
    "page_no",
    "page_number",
    "page_size",
    "per_page",
    "response_type",
    "scope",
    "since",
    "size",
    "sort",
    "sort_by",
    "start",
    "start_date",
    "status",
    "timezone",
    "to",
    "to_date",
    "type",
    "until",
    "version",
    "with_balance",
];

/// The longest name that is looked at; a longer run of letters is no name.
pub(super) const MAX_NAME_BYTES: usize = 128;

/// Whether a field, key or parameter of this name holds a credential. Case and separators do not matter.
pub(super) fn is_sensitive(name: &str) -> bool {
    let end = &name.as_bytes()[name.len().saturating_sub(MAX_NAME_BYTES)..];
    let mut buffer = [0; MAX_NAME_BYTES];
    let letters = (0..end.len()).filter_map(|at| match end[at] {
        letter if letter.is_ascii_alphanumeric() => Some(letter.to_ascii_lowercase()),
        // `contraseña`
        0xb1 | 0x91 if at > 0 && end[at - 1] == 0xc3 => Some(b'n'),
        _ => None,
    });
    let length = buffer.iter_mut().zip(letters).map(|(to, from)| *to = from).count();
    let plain = &buffer[..length];
    let digits = plain.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let letters = &plain[..length - digits];
    let base = without_version(letters);
    let last_word = match last_word(end) {
        (word, before) if TAILS.iter().any(|tail| word.eq_ignore_ascii_case(tail)) => last_word(before).0,
        (word, _) => word,
    };
    SENSITIVE_WHOLE.iter().any(|whole| plain == whole.as_bytes())
        || has_sensitive_ending(letters)
        || (base.len() < letters.len() && has_sensitive_ending(base))
        || SENSITIVE_LAST_WORDS.iter().any(|word| {
            let word = word.as_bytes();
            letters == word || last_word.eq_ignore_ascii_case(word)
        })
}

/// What says that a name is of a version, the value or the hash of something.
const TAILS: [&[u8]; 8] = [b"value", b"hash", b"v", b"encrypted", b"new", b"old", b"neu", b"alt"];

/// Of a name in small letters, what it is the version, the value or the hash of: `secretvalue`, `tokenv`.
fn without_version(letters: &[u8]) -> &[u8] {
    TAILS.iter().find_map(|tail| letters.strip_suffix(*tail)).unwrap_or(letters)
}

/// Compares only with the endings that have the last letter of a name: every name in a payload is looked at.
fn has_sensitive_ending(letters: &[u8]) -> bool {
    static BY_LAST_LETTER: LazyLock<[Vec<&str>; 26]> = LazyLock::new(|| {
        from_fn(|nth| {
            let last = char::from(b'a' + nth as u8);
            SENSITIVE_ENDINGS.iter().copied().filter(|ending| ending.ends_with(last)).collect()
        })
    });
    let nth = letters.last().and_then(|last| last.checked_sub(b'a'));
    let endings = nth.and_then(|nth| BY_LAST_LETTER.get(usize::from(nth)));
    endings.is_some_and(|endings| endings.iter().any(|ending| letters.ends_with(ending.as_bytes())))
}

/// The last word of a name, without digits after it, and what stands before. A word begins after a separator, with a capital after a small letter
/// or a digit, and with the last capital before a small letter: `SMSPin`.
fn last_word(name: &[u8]) -> (&[u8], &[u8]) {
    let end = name.iter().rposition(u8::is_ascii_alphabetic).map_or(0, |last| last + 1);
    let begins = |at: usize| {
        let before = name[at - 1];
        let is_separator = before.is_ascii() && !before.is_ascii_alphanumeric();
        let is_last_capital = || name.get(at + 1).is_some_and(u8::is_ascii_lowercase);
        is_separator || (name[at].is_ascii_uppercase() && (!before.is_ascii_uppercase() || is_last_capital()))
    };
    let start = (1..end).rev().find(|&at| begins(at)).unwrap_or(0);
    (&name[start..end], &name[..start])
}

/// Whether a query key's value may be kept. Case and separators do not matter: `dateFrom`, `date_from`, `date-from`.
pub(super) fn is_kept_query_key(name: &str) -> bool {
    let letters =
        |name: &str| name.bytes().filter(u8::is_ascii_alphanumeric).map(|it| it.to_ascii_lowercase()).collect();
    let plain: Vec<u8> = letters(name);
    KEPT_QUERY_KEYS.iter().any(|kept| letters(kept) == plain)
}

/// Whether a header's value may be kept.
pub(super) fn is_kept_header(name: &str) -> bool {
    KEPT_HEADERS.iter().any(|kept| name.eq_ignore_ascii_case(kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_names_are_these() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/payloads.md"));
        let listed = |names: &[&str]| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        for names in [SENSITIVE_ENDINGS, SENSITIVE_LAST_WORDS, SENSITIVE_WHOLE] {
            let (page, names) = (page.split_whitespace().collect::<Vec<_>>().join(" "), listed(names));
            assert!(page.contains(&names), "docs/payloads.md does not list {names}");
        }
    }

    #[test]
    fn credentials_are_known_by_name() {
        for name in [
            "token",
            "access_token",
            "refreshToken",
            "X-API-Key",
            "client_secret",
            "PASSWORD",
            "pin",
            "id.token",
            "password2",
            "card_cvv",
            "CVV2",
            "cvvCode",
            "securityCode",
            "track2",
            "PHPSESSID",
            "authCode",
            "mTAN",
            "backup_codes",
            "X-Auth",
            "psu-pin",
            "onlinePin",
            "login_tan",
            "smsOtp",
            "smsOTP",
            "SMSPin",
            "PSUPin2",
            "ONLINE_PIN",
            "psu.pin2",
            "auth[tan]",
            "db-pw",
            "iTAN",
            "pIN",
            "TAN_1",
            "login_pass",
            "clientSecretValue",
            "refresh_token_v2",
            "password.value",
            "api_keys",
            "pin_v2",
            "pinValue",
            "psuPinHash",
            "login-tan.value",
            "contraseña",
            "CONTRASEÑA",
            "scaAuthenticationData",
            "passwort_neu",
            "passwordEncrypted",
            "tan_nr",
            "sim_puk",
        ] {
            assert!(is_sensitive(name), "{name}");
        }
        for name in [
            "token_type",
            "expires_in",
            "account",
            "shipping",
            "scope",
            "name",
            "",
            "tokens_used",
            "7",
            "code",
            "titan",
            "spin",
            "user_spin",
            "orderShipping",
            "SHIPPING",
            "pin_tries",
            "tanMedium",
            "Titan",
            "desktop",
            "éspin",
            "café_épin",
            "value",
            "hash2",
            "bypass",
            "pinv",
            "spinValue",
            "v2",
            "shipping_v2",
        ] {
            assert!(!is_sensitive(name), "{name}");
        }
        assert!(is_kept_header("Content-Type"));
        for name in ["authorization", "cookie", "set-cookie", "x-api-key", "x-anything"] {
            assert!(!is_kept_header(name), "{name}");
        }
    }
}
