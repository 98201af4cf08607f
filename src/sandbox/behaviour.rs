//! How the bank behaves towards a client: what takes long, what is refused, what breaks, and how often.
//!
//! A [`Behaviour`] is partial: what it leaves out is as it was. The whole is laid over one another from below: the
//! configuration for everyone, the configuration for one client, the script's steps, what was set live (`conduct.rs`).
//!
//! Faults are drawn repeatably, from the seed, the client, and the number of its request; see [`Behaviour::fault`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bank::Random;
use super::latency::{Latency, MAX_LATENCY};

const MAX_SLOWDOWN: f64 = 1_000_000.0;
const MAX_PER_SECOND: f64 = 1_000_000.0;
const MAX_LIMIT: usize = 1_000_000;
const MAX_OVERSIZED_BYTES: u64 = 1 << 40;

/// By so much a sum of shares may be over 1: ten times 0.1 is.
const ROUNDING: f64 = 1e-9;

/// What the bank does to a client's requests. Keys that are left out stay as they were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Behaviour {
    /// How long an answer takes once it is being worked on.
    pub latency: Option<Latency>,
    /// A factor on the latency; 50 is fifty times slower.
    pub slowdown: Option<f64>,
    /// Requests over it are answered 429 with `Retry-After`, at once.
    pub rate_limit: Option<RateLimit>,
    /// How many requests are worked on at the same time, and what happens to the others.
    pub concurrency: Option<Concurrency>,
    /// The share of requests that never get an answer: until the caller leaves, or the bank stops.
    pub hangs: Option<f64>,
    /// The share whose connection is reset (TCP RST) instead of an answer, after the latency.
    pub resets: Option<f64>,
    /// The share that is answered with an error status, after the latency.
    pub errors: Option<Errors>,
    /// The share whose body ends after its first half, with the connection, though its length was announced.
    pub truncated: Option<f64>,
    /// The share whose body goes on for much longer than it should.
    pub oversized: Option<Oversized>,
    /// How long the token endpoint takes to answer.
    #[serde(with = "humantime_serde")]
    pub token_latency: Option<Duration>,
    /// The share of token requests that are answered with an error status.
    pub token_errors: Option<Errors>,
}

/// A share of errors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Errors {
    /// 0.0 to 1.0.
    pub share: f64,
    /// 400 to 599.
    #[serde(default = "internal_error")]
    pub status: u16,
}

/// Requests over time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// On average.
    pub per_second: f64,
    /// As many may come at once after a pause.
    #[serde(default = "one")]
    pub burst: u32,
}

/// Requests at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Concurrency {
    /// As many are worked on at the same time.
    pub limit: usize,
    /// What becomes of the others.
    #[serde(default)]
    pub beyond: Beyond,
}

/// What becomes of requests beyond the limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Beyond {
    /// They wait for their turn, first come, first served: throughput ends at limit / latency, and waiting grows.
    #[default]
    Wait,
    /// They are answered 503 at once.
    Refuse,
}

/// A share of endless bodies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oversized {
    /// 0.0 to 1.0.
    pub share: f64,
    /// As many bytes of white space follow the body, which stays valid JSON.
    pub bytes: u64,
}

fn internal_error() -> u16 {
    500
}

fn one() -> u32 {
    1
}

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Hang,
    Reset,
    Error(u16),
    Truncate,
    Oversize(u64),
}

/// A key of a behaviour whose value cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct Wrong {
    /// Which key, with dots between the levels.
    pub key: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl Wrong {
    pub(super) fn new(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Wrong { key: key.into(), problem: problem.into() }
    }
}

impl Behaviour {
    /// This behaviour, and `below` where this one says nothing.
    #[must_use]
    pub fn over(self, below: Behaviour) -> Behaviour {
        Behaviour {
            latency: self.latency.or(below.latency),
            slowdown: self.slowdown.or(below.slowdown),
            rate_limit: self.rate_limit.or(below.rate_limit),
            concurrency: self.concurrency.or(below.concurrency),
            hangs: self.hangs.or(below.hangs),
            resets: self.resets.or(below.resets),
            errors: self.errors.or(below.errors),
            truncated: self.truncated.or(below.truncated),
            oversized: self.oversized.or(below.oversized),
            token_latency: self.token_latency.or(below.token_latency),
            token_errors: self.token_errors.or(below.token_errors),
        }
    }

    /// Checks the values.
    pub fn check(&self) -> Result<(), Wrong> {
        if let Some(latency) = self.latency {
            latency.check().map_err(|problem| Wrong::new("latency", problem))?;
        }
        if let Some(latency) = self.token_latency.filter(|latency| *latency > MAX_LATENCY) {
            let problem = format!("{} is out of range: use at most 10m", humantime::format_duration(latency));
            return Err(Wrong::new("token_latency", problem));
        }
        if let Some(slowdown) = self.slowdown.filter(|slowdown| !(0.0..=MAX_SLOWDOWN).contains(slowdown)) {
            return Err(Wrong::new("slowdown", format!("{slowdown} is out of range: use 0 to {MAX_SLOWDOWN}")));
        }
        self.check_limits()?;
        self.check_shares()?;
        self.check_sum()
    }

    /// The share of each fault, by its key.
    fn fault_shares(&self) -> [(&'static str, Option<f64>); 5] {
        [
            ("hangs", self.hangs),
            ("resets", self.resets),
            ("errors.share", self.errors.map(|errors| errors.share)),
            ("truncated", self.truncated),
            ("oversized.share", self.oversized.map(|oversized| oversized.share)),
        ]
    }

    /// The faults of which a request has at most one; together they cannot be more than all requests.
    fn check_sum(&self) -> Result<(), Wrong> {
        let shares: Vec<_> = self.fault_shares().into_iter().filter_map(|(key, share)| Some((key, share?))).collect();
        let sum: f64 = shares.iter().map(|(_, share)| share).sum();
        let named: Vec<_> = shares.iter().filter(|(_, share)| *share > 0.0).collect();
        match named.last() {
            Some((key, _)) if sum > 1.0 + ROUNDING => {
                let named: Vec<_> = named.iter().map(|(key, share)| format!("{key} = {share}")).collect();
                let problem = format!("the shares of faults, {}, add up to more than 1: lower one", named.join(", "));
                Err(Wrong::new(*key, problem))
            }
            _ => Ok(()),
        }
    }

    fn check_limits(&self) -> Result<(), Wrong> {
        if let Some(RateLimit { per_second, burst }) = self.rate_limit {
            if !(per_second > 0.0 && per_second <= MAX_PER_SECOND) {
                let problem = format!("{per_second} is out of range: use more than 0 and at most {MAX_PER_SECOND}");
                return Err(Wrong::new("rate_limit.per_second", problem));
            }
            if burst == 0 {
                return Err(Wrong::new("rate_limit.burst", "0 would let nothing through: use at least 1"));
            }
        }
        if let Some(limit) = self.concurrency.map(|concurrency| concurrency.limit)
            && !(1..=MAX_LIMIT).contains(&limit)
        {
            return Err(Wrong::new("concurrency.limit", format!("{limit} is out of range: use 1 to {MAX_LIMIT}")));
        }
        Ok(())
    }

    fn check_shares(&self) -> Result<(), Wrong> {
        let of_tokens = ("token_errors.share", self.token_errors.map(|errors| errors.share));
        for (key, share) in self.fault_shares().into_iter().chain([of_tokens]) {
            if let Some(share) = share.filter(|share| !(0.0..=1.0).contains(share)) {
                return Err(Wrong::new(key, format!("{share} is out of range: use 0.0 to 1.0")));
            }
        }
        for (key, errors) in [("errors.status", self.errors), ("token_errors.status", self.token_errors)] {
            if let Some(Errors { status, .. }) = errors.filter(|errors| !(400..=599).contains(&errors.status)) {
                return Err(Wrong::new(key, format!("{status} is no error status: use 400 to 599")));
            }
        }
        if let Some(Oversized { bytes, .. }) = self.oversized.filter(|oversized| oversized.bytes > MAX_OVERSIZED_BYTES)
        {
            let problem = format!("{bytes} is out of range: use at most {MAX_OVERSIZED_BYTES}");
            return Err(Wrong::new("oversized.bytes", problem));
        }
        Ok(())
    }

    /// What happens to the `number`th request of `client`, if anything: one number is drawn from the seed, the client
    /// and the request's number, and the shares divide the range from 0 to 1 in the order hangs, resets, errors,
    /// truncated, oversized. So the same of a client's first thousand requests fail in each run, whatever is in them,
    /// and a retry, which is another request, is drawn anew. Where a script's steps add up to more than 1, the last ones get
    /// less.
    pub(super) fn fault(&self, seed: u64, client: &str, number: u64) -> Option<Fault> {
        let shares = [
            (self.hangs.unwrap_or(0.0), Fault::Hang),
            (self.resets.unwrap_or(0.0), Fault::Reset),
            self.errors.map_or((0.0, Fault::Error(500)), |errors| (errors.share, Fault::Error(errors.status))),
            (self.truncated.unwrap_or(0.0), Fault::Truncate),
            self.oversized.map_or((0.0, Fault::Oversize(0)), |it| (it.share, Fault::Oversize(it.bytes))),
        ];
        let drawn = Random::new(seed, &["fault", client, &number.to_string()]).unit();
        let mut upper = 0.0;
        shares.into_iter().find_map(|(share, fault)| {
            upper += share;
            (drawn < upper).then_some(fault)
        })
    }

    /// The status that the `number`th token request of `client` fails with, if it does.
    pub(super) fn token_fault(&self, seed: u64, client: &str, number: u64) -> Option<u16> {
        let drawn = || Random::new(seed, &["token fault", client, &number.to_string()]).unit();
        self.token_errors.filter(|errors| drawn() < errors.share).map(|errors| errors.status)
    }

    /// How long the answer to what `random` was seeded with takes.
    pub(super) fn draw_latency(&self, random: &mut Random) -> Duration {
        let latency = self.latency.unwrap_or_default().draw(random);
        let slower = latency.as_secs_f64() * self.slowdown.unwrap_or(1.0);
        Duration::from_secs_f64(slower.min(MAX_LATENCY.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_stays_as_it_was() {
        let below = Behaviour { slowdown: Some(2.0), hangs: Some(0.1), ..Behaviour::default() };
        let over = Behaviour { slowdown: Some(50.0), resets: Some(0.2), ..Behaviour::default() };
        let expected = Behaviour { slowdown: Some(50.0), hangs: Some(0.1), resets: Some(0.2), ..Behaviour::default() };
        assert_eq!(over.over(below), expected);
        assert_eq!(Behaviour::default().over(below), below);
    }

    #[test]
    fn faults_come_in_their_shares_repeatably_and_a_retry_is_drawn_anew() {
        let behaviour = Behaviour {
            hangs: Some(0.1),
            resets: Some(0.2),
            errors: Some(Errors { share: 0.3, status: 502 }),
            oversized: Some(Oversized { share: 0.1, bytes: 7 }),
            ..Behaviour::default()
        };
        let drawn: Vec<_> = (0..10_000).map(|number| behaviour.fault(1, "a", number)).collect();
        let share = |fault| drawn.iter().filter(|drawn| **drawn == fault).count() as f64 / 10_000.0;
        for (fault, expected) in [
            (Some(Fault::Hang), 0.1),
            (Some(Fault::Reset), 0.2),
            (Some(Fault::Error(502)), 0.3),
            (Some(Fault::Truncate), 0.0),
            (Some(Fault::Oversize(7)), 0.1),
            (None, 0.3),
        ] {
            assert!((share(fault) - expected).abs() < 0.02, "{fault:?}: {}", share(fault));
        }
        assert!((0..100).all(|number| behaviour.fault(1, "a", number) == drawn[number as usize]));
        assert!((0..100).any(|number| behaviour.fault(1, "b", number) != drawn[number as usize]));
        let certain = Behaviour { truncated: Some(1.0), ..Behaviour::default() };
        assert!((0..1_000).all(|number| certain.fault(1, "a", number) == Some(Fault::Truncate)));
        assert!((0..1_000).all(|number| Behaviour::default().fault(1, "a", number).is_none()));
    }

    #[test]
    fn a_slow_bank_is_slower_by_its_factor_but_never_without_end() {
        let latency = Some(Latency::Fixed(Duration::from_millis(20)));
        let slow = |slowdown| Behaviour { latency, slowdown: Some(slowdown), ..Behaviour::default() };
        let draw = |behaviour: Behaviour| behaviour.draw_latency(&mut Random::new(1, &[]));
        assert_eq!(draw(slow(50.0)), Duration::from_secs(1));
        assert_eq!(draw(slow(0.0)), Duration::ZERO);
        assert_eq!(draw(slow(MAX_SLOWDOWN)), MAX_LATENCY);
    }

    #[test]
    fn values_that_cannot_be_are_refused_with_their_key() {
        for (json, expected) in [
            (r#"{"slowdown":-1}"#, "slowdown: -1 is out of range"),
            (r#"{"hangs":1.5}"#, "hangs: 1.5 is out of range: use 0.0 to 1.0"),
            (r#"{"errors":{"share":2}}"#, "errors.share"),
            (r#"{"errors":{"share":1,"status":200}}"#, "errors.status: 200 is no error status"),
            (r#"{"rate_limit":{"per_second":0}}"#, "rate_limit.per_second"),
            (r#"{"rate_limit":{"per_second":1,"burst":0}}"#, "rate_limit.burst"),
            (r#"{"concurrency":{"limit":0}}"#, "concurrency.limit"),
            (r#"{"oversized":{"share":0.1,"bytes":9000000000000}}"#, "oversized.bytes"),
            (r#"{"latency":{"fixed":"1h"}}"#, "latency: fixed is 1h"),
            (r#"{"token_latency":"1h"}"#, "token_latency: 1h is out of range"),
            (r#"{"token_errors":{"share":-0.5}}"#, "token_errors.share"),
            (
                r#"{"hangs":0.5,"truncated":0,"errors":{"share":0.6}}"#,
                "errors.share: the shares of faults, hangs = 0.5, errors.share = 0.6, add up to more than 1",
            ),
        ] {
            let behaviour: Behaviour = serde_json::from_str(json).expect(json);
            let error = behaviour.check().expect_err(json).to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
        serde_json::from_str::<Behaviour>(r#"{"slowdwon":1}"#).expect_err("unknown");
        let whole = r#"{"hangs":0.1,"resets":0.2,"errors":{"share":0.7},"token_errors":{"share":1}}"#;
        serde_json::from_str::<Behaviour>(whole).expect("it parses").check().expect("all, and no more");
    }
}
