//! Words of sentences and logs that stand where a secret would: `--password is required`, `Bearer tokens`, `PIN: expired`.
//!
//! The lists differ because what is at stake does. A word behind a flag or a scheme is left as it is; one behind a name is
//! taken out all the same, and only not looked for elsewhere.

/// Behind the name of a flag.
pub const AFTER_FLAG: &[&str] = &[
    "and", "are", "argument", "as", "but", "can", "cannot", "flag", "flags", "for", "from", "has", "if", "in",
    "instead", "is", "may", "must", "needs", "not", "on", "option", "options", "or", "requires", "should", "the", "to",
    "was", "when", "which", "will", "with", "without",
];

/// Behind `Bearer`.
pub const AFTER_BEARER: &[&str] = &[
    "access",
    "auth",
    "authentication",
    "authorization",
    "authorizations",
    "bond",
    "bonds",
    "certificate",
    "certificates",
    "cheque",
    "cheques",
    "credential",
    "credentials",
    "errors",
    "expired",
    "format",
    "header",
    "headers",
    "instrument",
    "instruments",
    "invalid",
    "method",
    "missing",
    "prefix",
    "required",
    "scheme",
    "schemes",
    "securities",
    "security",
    "share",
    "shares",
    "should",
    "string",
    "token",
    "tokens",
    "without",
];

/// Behind a name, in a log or a program: constants, and how something is.
pub const AFTER_NAME: &[&str] = &[
    "empty",
    "expired",
    "false",
    "invalid",
    "missing",
    "mobile",
    "none",
    "null",
    "optional",
    "required",
    "true",
    "undefined",
    "valid",
    "wrong",
];

/// Whether a word is in a list, whatever its case.
pub fn is_one_of(words: &[&str], word: &str) -> bool {
    words.iter().any(|it| word.eq_ignore_ascii_case(it))
}
