//! Who asks the bank how much at the same time.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Client ids that are counted apart; the others are counted together under [`OTHERS`].
const MAX_CLIENTS: usize = 1_024;

/// No client id is called this: it has a character that none can have.
const OTHERS: &str = "(others)";

/// What was counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// All clients together.
    pub all: Counts,
    /// Each client id.
    pub clients: BTreeMap<String, Counts>,
}

/// Requests about accounts that bore a valid token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Now.
    pub in_flight: u64,
    /// The most that ever were at the same time.
    pub max_in_flight: u64,
    /// Ever.
    pub total: u64,
}

#[derive(Default)]
pub(super) struct Clients {
    stats: Mutex<Stats>,
}

/// A request in flight; ends with this value, also when the caller went away.
pub(super) struct InFlight {
    clients: Arc<Clients>,
    counted_as: String,
}

impl Clients {
    pub(super) fn enter(self: &Arc<Self>, client: &str) -> InFlight {
        let mut stats = self.stats.lock();
        let known = stats.clients.contains_key(client) || stats.clients.len() < MAX_CLIENTS;
        let counted_as = if known { client } else { OTHERS }.to_owned();
        stats.all.enter();
        stats.clients.entry(counted_as.clone()).or_default().enter();
        InFlight { clients: self.clone(), counted_as }
    }

    pub(super) fn stats(&self) -> Stats {
        self.stats.lock().clone()
    }

    pub(super) fn reset(&self) {
        let mut stats = self.stats.lock();
        stats.all.reset();
        stats.clients.retain(|_, counts| {
            counts.reset();
            counts.in_flight > 0
        });
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut stats = self.clients.stats.lock();
        stats.all.in_flight -= 1;
        if let Some(counts) = stats.clients.get_mut(&self.counted_as) {
            counts.in_flight -= 1;
        }
    }
}

impl Counts {
    fn enter(&mut self) {
        self.in_flight += 1;
        self.max_in_flight = self.max_in_flight.max(self.in_flight);
        self.total += 1;
    }

    fn reset(&mut self) {
        *self = Counts { in_flight: self.in_flight, max_in_flight: self.in_flight, total: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_counted_apart_and_a_reset_keeps_what_is_in_flight() {
        let clients = Arc::new(Clients::default());
        let (first, second) = (clients.enter("a"), clients.enter("a"));
        drop(clients.enter("b"));
        drop(first);
        let stats = clients.stats();
        assert_eq!(stats.clients["a"], Counts { in_flight: 1, max_in_flight: 2, total: 2 });
        assert_eq!(stats.all, Counts { in_flight: 1, max_in_flight: 3, total: 3 });
        clients.reset();
        let stats = clients.stats();
        assert_eq!(stats.clients.len(), 1);
        assert_eq!(stats.clients["a"], Counts { in_flight: 1, max_in_flight: 1, total: 0 });
        drop(second);
        assert_eq!(clients.stats().all.in_flight, 0);
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
