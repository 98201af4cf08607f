//! Who asks the bank how much at the same time, and what the bank did to them.
//!
//! What is counted here is what took effect: an error whose caller left before it was answered is none. So a test can
//! compare what was done to a client with what the client saw.
//!
//! In flight is what the bank lets in, from when it joins the line until just before its caller can see that it has ended,
//! or until the bank sees that the caller has left. So a caller that does `n` things at a time is never counted as more,
//! unless it leaves early and the bank has yet to hear of that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::lines::Place;

/// Client ids that are counted apart; the others are counted together under [`OTHERS`].
pub(super) const MAX_CLIENTS: usize = 1_024;

/// No client id is called this: it has a character that none can have.
const OTHERS: &str = "(others)";

/// What was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// All clients together.
    pub all: Counts,
    /// Each client id.
    pub clients: BTreeMap<String, Counts>,
    /// How much later than its latency answers were ready, all added up, in microseconds: what the bank itself is slow.
    #[serde(default)]
    pub late_us: u64,
}

/// Requests about accounts that bore a valid credential, and requests for tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Now: being worked on, or held by a caller that waits in line or for a hung request; not what is refused at once.
    pub in_flight: u64,
    /// The most that ever were at the same time.
    pub max_in_flight: u64,
    /// Ever.
    pub total: u64,
    /// Of them: answered 429.
    pub rate_limited: u64,
    /// Of them: answered 503, because there were too many at the same time.
    pub refused: u64,
    /// Of them: without an answer.
    pub hung: u64,
    /// Of them: ended by a reset of the connection.
    pub reset: u64,
    /// Of them: answered with an error status.
    pub errors: u64,
    /// Of them: answered with half a body.
    pub truncated: u64,
    /// Of them: answered with far too large a body.
    pub oversized: u64,
    /// Beside them: answered 401, because the token had expired or was revoked.
    pub unauthorized: u64,
    /// Requests to the token endpoint.
    pub tokens: TokenCounts,
}

/// Requests to the token endpoint by clients that said who they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenCounts {
    /// All.
    pub requests: u64,
    /// Of them: granted for a client's credentials.
    pub client_credentials: u64,
    /// Of them: granted for a refresh token.
    pub refresh_token: u64,
    /// Of them: refused, since something was wrong with them.
    pub refused: u64,
    /// Of them: failed on purpose.
    pub errors: u64,
}

#[derive(Default)]
pub(super) struct Clients {
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    stats: Stats,
    /// What all clients had come to at the last reset, since the start.
    before: Counts,
}

/// A request, which is in flight from its [`begin`](InFlight::begin) on; ends with this value, also when the caller went
/// away.
pub(super) struct InFlight {
    clients: Arc<Clients>,
    has_begun: bool,
    /// Where it is worked on. It is free after the request was counted out: who comes next is not one more.
    pub(super) place: Option<Place>,
    /// The client id, or [`OTHERS`].
    pub(super) client: String,
    /// Its number among the client's requests since the last reset, from 1.
    pub(super) number: u64,
}

impl Clients {
    pub(super) fn enter(self: &Arc<Self>, client: &str) -> InFlight {
        let (client, number) = self.count(client, |counts| {
            counts.total += 1;
            counts.total
        });
        InFlight { clients: self.clone(), has_begun: false, place: None, client, number }
    }

    /// Counts something for this client and for all; returns what it is counted as, and what `count` says of it.
    pub(super) fn count<T>(&self, client: &str, count: impl Fn(&mut Counts) -> T) -> (String, T) {
        let stats = &mut self.counted.lock().stats;
        let known = stats.clients.contains_key(client) || stats.clients.len() < MAX_CLIENTS;
        let counted_as = if known { client } else { OTHERS }.to_owned();
        count(&mut stats.all);
        let counted = count(stats.clients.entry(counted_as.clone()).or_default());
        (counted_as, counted)
    }

    /// An answer was ready so much later than its latency.
    pub(super) fn late(&self, late: Duration) {
        self.counted.lock().stats.late_us += u64::try_from(late.as_micros()).unwrap_or_default();
    }

    pub(super) fn stats(&self) -> Stats {
        self.counted.lock().stats.clone()
    }

    /// What all clients come to since the start, resets or not: what Prometheus counts never goes back.
    pub(super) fn since_start(&self) -> Counts {
        let Counted { stats, before } = &*self.counted.lock();
        stats.all.and(before)
    }

    pub(super) fn reset(&self) {
        let Counted { stats, before } = &mut *self.counted.lock();
        *before = stats.all.and(before);
        stats.all.reset();
        stats.late_us = 0;
        stats.clients.retain(|_, counts| {
            counts.reset();
            counts.in_flight > 0
        });
    }
}

impl InFlight {
    /// It is let in.
    pub(super) fn begin(&mut self) {
        self.has_begun = true;
        self.count(|counts| {
            counts.in_flight += 1;
            counts.max_in_flight = counts.max_in_flight.max(counts.in_flight);
        });
    }

    pub(super) fn count(&self, count: impl Fn(&mut Counts)) {
        self.clients.count(&self.client, count);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if !self.has_begun {
            return;
        }
        let stats = &mut self.clients.counted.lock().stats;
        stats.all.in_flight -= 1;
        if let Some(counts) = stats.clients.get_mut(&self.client) {
            counts.in_flight -= 1;
        }
    }
}

impl Counts {
    fn reset(&mut self) {
        *self = Counts { in_flight: self.in_flight, max_in_flight: self.in_flight, ..Counts::default() };
    }

    /// With what was counted before; what is in flight is as it is now.
    fn and(&self, before: &Counts) -> Counts {
        let (tokens, earlier) = (&self.tokens, &before.tokens);
        Counts {
            in_flight: self.in_flight,
            max_in_flight: self.max_in_flight.max(before.max_in_flight),
            total: self.total + before.total,
            rate_limited: self.rate_limited + before.rate_limited,
            refused: self.refused + before.refused,
            hung: self.hung + before.hung,
            reset: self.reset + before.reset,
            errors: self.errors + before.errors,
            truncated: self.truncated + before.truncated,
            oversized: self.oversized + before.oversized,
            unauthorized: self.unauthorized + before.unauthorized,
            tokens: TokenCounts {
                requests: tokens.requests + earlier.requests,
                client_credentials: tokens.client_credentials + earlier.client_credentials,
                refresh_token: tokens.refresh_token + earlier.refresh_token,
                refused: tokens.refused + earlier.refused,
                errors: tokens.errors + earlier.errors,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_counted_apart_and_a_reset_keeps_what_is_in_flight() {
        let clients = Arc::new(Clients::default());
        let enter = |client| {
            let mut entered = clients.enter(client);
            entered.begin();
            entered
        };
        let (first, second) = (enter("a"), enter("a"));
        assert_eq!((first.number, second.number), (1, 2));
        drop(enter("b"));
        first.count(|counts| counts.errors += 1);
        drop(first);
        let stats = clients.stats();
        let expected = Counts { in_flight: 1, max_in_flight: 2, total: 2, errors: 1, ..Counts::default() };
        assert_eq!(stats.clients["a"], expected);
        assert_eq!(stats.all, Counts { max_in_flight: 3, total: 3, ..expected });
        drop(clients.enter("a"));
        assert_eq!(clients.stats().clients["a"], Counts { total: 3, ..expected }, "what is refused is not in flight");
        clients.late(Duration::from_millis(2));
        clients.late(Duration::from_micros(3));
        assert_eq!(clients.stats().late_us, 2_003);
        clients.reset();
        let since_start = Counts { in_flight: 1, max_in_flight: 3, total: 4, errors: 1, ..Counts::default() };
        assert_eq!(clients.since_start(), since_start);
        let stats = clients.stats();
        assert_eq!((stats.clients.len(), stats.late_us), (1, 0));
        assert_eq!(stats.clients["a"], Counts { in_flight: 1, max_in_flight: 1, ..Counts::default() });
        drop(second);
        assert_eq!(clients.stats().all.in_flight, 0);
        assert_eq!(clients.enter("a").number, 1, "numbers, and with them faults, begin anew");
    }

    #[test]
    fn client_ids_without_end_are_counted_together() {
        let clients = Arc::new(Clients::default());
        for client in 0..2 * MAX_CLIENTS {
            drop(clients.enter(&client.to_string()));
        }
        let stats = clients.stats();
        assert_eq!(stats.clients.len(), MAX_CLIENTS + 1);
        assert_eq!(stats.clients[OTHERS].total, MAX_CLIENTS as u64);
    }
}
