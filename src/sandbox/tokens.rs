//! The bank's tokens: who they are for, when they end, and what ends them early.
//!
//! An access token says all about itself (client, revocation, expiry, serial number) and is signed with a key that is
//! new at each start, so that none is kept and a restart ends all of them. What is kept is one small record for each
//! client whose tokens were revoked or whose refresh token rotated. The signature guards against mistakes, not against
//! attackers: the bank's tokens are worth nothing.
//!
//! Two texts stand beside them, for tests and shells: `sandbox.<client id>` is an access token that never ends, and
//! `sandbox-refresh.<client id>` the first refresh token, the one that a customer's consent would have brought.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::clients::MAX_CLIENTS;
use super::is_client_id;

/// An access token without an end is this and a client id.
pub(super) const ETERNAL_ACCESS: &str = "sandbox.";
/// A client's first refresh token is this and its id.
pub(super) const FIRST_REFRESH: &str = "sandbox-refresh.";

const ACCESS: &str = "access";
const REFRESH: &str = "refresh";

/// Bytes of a signature.
const SIGNATURE_BYTES: usize = 12;

pub(super) struct Tokens {
    key: [u8; 32],
    started: Instant,
    lifetime: Duration,
    rotate: bool,
    serial: AtomicU64,
    records: Mutex<BTreeMap<String, Record>>,
}

/// What is kept of a client.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    /// Tokens of earlier generations are revoked.
    generation: u64,
    /// How often the refresh token rotated in this generation; only the last one counts.
    rotations: u64,
}

/// What a client gets.
#[derive(Debug)]
pub(super) struct Issued {
    pub(super) access_token: String,
    pub(super) expires_in: Duration,
    /// The refresh token to use from now on, where it rotated.
    pub(super) refresh_token: Option<String>,
}

/// Why an access token is not taken; the client is known where the token was once the bank's own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotTaken {
    pub(super) client: Option<String>,
    pub(super) problem: &'static str,
}

/// Why there is no new access token.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotRefreshed {
    /// The refresh token is wrong, was revoked, or was used before.
    Invalid,
    /// Too many clients' refresh tokens have rotated.
    TooManyClients,
}

impl Tokens {
    pub(super) fn new(seed: u64, lifetime: Duration, rotate: bool, now: Instant) -> Self {
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let key = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(start.to_le_bytes()).finalize().into();
        Tokens { key, started: now, lifetime, rotate, serial: AtomicU64::new(0), records: Mutex::default() }
    }

    /// An access token for this client.
    pub(super) fn issue(&self, client: &str, now: Instant) -> Issued {
        let expires = (now.saturating_duration_since(self.started) + self.lifetime).as_millis();
        let (generation, serial) = (self.record(client).generation, self.serial.fetch_add(1, Ordering::Relaxed));
        let access_token = self.signed(&format!("{ACCESS}.{client}.{generation}.{expires}.{serial}"));
        Issued { access_token, expires_in: self.lifetime, refresh_token: None }
    }

    /// Whose access token this is.
    pub(super) fn check(&self, token: &str, now: Instant) -> Result<String, NotTaken> {
        if let Some(client) = token.strip_prefix(ETERNAL_ACCESS).filter(|client| is_client_id(client)) {
            return Ok(client.to_owned());
        }
        let unknown = NotTaken { client: None, problem: "the token is not one of this bank" };
        let Some((client, [generation, expires, _serial])) = self.verified(ACCESS, token) else {
            return Err(unknown);
        };
        let problem = if generation != self.record(&client).generation {
            "the token was revoked"
        } else if now.saturating_duration_since(self.started) >= Duration::from_millis(expires) {
            "the token has expired"
        } else {
            return Ok(client);
        };
        Err(NotTaken { client: Some(client), problem })
    }

    /// An access token for a refresh token, and the next refresh token where they rotate.
    pub(super) fn refresh(&self, client: &str, token: &str, now: Instant) -> Result<Issued, NotRefreshed> {
        let mut rotated = None;
        {
            let mut records = self.records.lock();
            let record = records.get(client).copied().unwrap_or_default();
            if token != self.refresh_token(client, record) {
                return Err(NotRefreshed::Invalid);
            }
            if self.rotate {
                if records.len() >= MAX_CLIENTS && !records.contains_key(client) {
                    return Err(NotRefreshed::TooManyClients);
                }
                let next = Record { rotations: record.rotations + 1, ..record };
                records.insert(client.to_owned(), next);
                rotated = Some(self.refresh_token(client, next));
            }
        }
        Ok(Issued { refresh_token: rotated, ..self.issue(client, now) })
    }

    /// Ends all tokens that were issued to this client, and makes its first refresh token valid again, as a new consent
    /// would. False when too many clients have been revoked.
    pub(super) fn revoke(&self, client: &str) -> bool {
        let mut records = self.records.lock();
        if records.len() >= MAX_CLIENTS && !records.contains_key(client) {
            return false;
        }
        let record = records.entry(client.to_owned()).or_default();
        *record = Record { generation: record.generation + 1, rotations: 0 };
        true
    }

    fn record(&self, client: &str) -> Record {
        self.records.lock().get(client).copied().unwrap_or_default()
    }

    fn refresh_token(&self, client: &str, Record { generation, rotations }: Record) -> String {
        match rotations {
            0 => format!("{FIRST_REFRESH}{client}"),
            rotations => self.signed(&format!("{REFRESH}.{client}.{generation}.{rotations}.0")),
        }
    }

    fn signed(&self, text: &str) -> String {
        format!("{text}.{}", self.signature(text))
    }

    fn signature(&self, text: &str) -> String {
        let digest = Sha256::new().chain_update(self.key).chain_update(text.as_bytes()).finalize();
        digest.iter().take(SIGNATURE_BYTES).map(|byte| format!("{byte:02x}")).collect()
    }

    /// The client and the three numbers of a token of this kind with a right signature. Read from its end: a client id
    /// may have dots.
    fn verified(&self, kind: &str, token: &str) -> Option<(String, [u64; 3])> {
        let (text, signature) = token.rsplit_once('.')?;
        if signature != self.signature(text) {
            return None;
        }
        let mut parts = text.rsplitn(4, '.');
        let mut number = || parts.next()?.parse().ok();
        let (third, second, first) = (number()?, number()?, number()?);
        let client = parts.next()?.strip_prefix(kind)?.strip_prefix('.')?;
        Some((client.to_owned(), [first, second, third]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(rotate: bool) -> Tokens {
        Tokens::new(1, Duration::from_secs(60), rotate, Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_ends_when_its_life_does() {
        let tokens = tokens(false);
        let issued = tokens.issue("a.b", Instant::now());
        assert_eq!(issued.expires_in, Duration::from_secs(60));
        assert_ne!(issued.access_token, tokens.issue("a.b", Instant::now()).access_token);
        let check = || tokens.check(&issued.access_token, Instant::now());
        assert_eq!(check(), Ok("a.b".to_owned()));
        tokio::time::advance(Duration::from_millis(59_999)).await;
        assert_eq!(check(), Ok("a.b".to_owned()));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(check(), Err(NotTaken { client: Some("a.b".into()), problem: "the token has expired" }));
        assert_eq!(tokens.check("sandbox.a.b", Instant::now()), Ok("a.b".to_owned()), "this one never does");
    }

    #[tokio::test(start_paused = true)]
    async fn a_revocation_ends_what_was_issued_to_one_client() {
        let tokens = tokens(false);
        let (one, other) = (tokens.issue("a", Instant::now()), tokens.issue("b", Instant::now()));
        assert!(tokens.revoke("a"));
        let problem = tokens.check(&one.access_token, Instant::now()).expect_err("revoked").problem;
        assert_eq!(problem, "the token was revoked");
        tokens.check(&other.access_token, Instant::now()).expect("the other's");
        let again = tokens.issue("a", Instant::now());
        tokens.check(&again.access_token, Instant::now()).expect("a new one");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rotating_refresh_token_is_good_once() {
        let (tokens, now) = (tokens(true), Instant::now());
        let refresh = |token: &str| tokens.refresh("a", token, now);
        let second = refresh("sandbox-refresh.a").expect("the first").refresh_token.expect("it rotates");
        assert_eq!(refresh("sandbox-refresh.a").expect_err("used"), NotRefreshed::Invalid);
        let third = refresh(&second).expect("the second").refresh_token.expect("it rotates");
        assert_eq!(refresh(&second).expect_err("used"), NotRefreshed::Invalid);
        assert_eq!(tokens.refresh("b", &third, now).expect_err("another's"), NotRefreshed::Invalid);
        assert!(tokens.check(&third, now).is_err(), "a refresh token is no access token");
        assert!(tokens.revoke("a"));
        assert_eq!(refresh(&third).expect_err("revoked"), NotRefreshed::Invalid);
        refresh("sandbox-refresh.a").expect("a new consent");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refresh_token_that_does_not_rotate_stays_good() {
        let (tokens, now) = (tokens(false), Instant::now());
        for _ in 0..3 {
            let issued = tokens.refresh("a", "sandbox-refresh.a", now).expect("good");
            assert_eq!(issued.refresh_token, None);
        }
        assert_eq!(tokens.refresh("a", "sandbox-refresh.b", now).expect_err("another's"), NotRefreshed::Invalid);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_bank_did_not_sign_is_not_taken() {
        let tokens = tokens(false);
        let token = tokens.issue("a", Instant::now()).access_token;
        let forged = token.replace("access.a.", "access.b.");
        let foreign = Tokens::new(2, Duration::from_secs(60), false, Instant::now()).issue("a", Instant::now());
        for token in ["", "sandbox.", "sandbox.a b", "access.a", &forged, &foreign.access_token] {
            assert_eq!(tokens.check(token, Instant::now()).expect_err(token).client, None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn records_are_bounded() {
        let tokens = tokens(true);
        assert!((0..MAX_CLIENTS).all(|client| tokens.revoke(&client.to_string())));
        assert!(!tokens.revoke("one-more") && tokens.revoke("0"));
        let refreshed = tokens.refresh("one-more", "sandbox-refresh.one-more", Instant::now());
        assert_eq!(refreshed.expect_err("full"), NotRefreshed::TooManyClients);
    }
}
