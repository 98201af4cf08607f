//! Bounded channels to workers, one per life of a worker.
//!
//! `tonic`'s own balancing channel hides which worker answered, so the router keeps its own map. Channels connect at
//! the first call and reconnect by themselves. Keep-alive finds dead peers while nothing is being said; the connect
//! timeout is short because another worker is always the better answer.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use super::view::Placement;
use crate::registry::Incarnation;
use crate::wire::proto::tasks_client::TasksClient;
use crate::wire::{MAX_MESSAGE_BYTES, TaskError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Replies of many calls share a connection: room for all of them, so that one slow reader holds up no other.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// Channels kept at the most: twice the largest fleet that a router is measured with.
const MAX_CHANNELS: usize = 8192;

/// The channels of one router.
#[derive(Default)]
pub(super) struct Channels {
    open: Mutex<HashMap<Incarnation, TasksClient<Channel>>>,
}

impl Channels {
    /// The client for a worker, made at the first call.
    pub(super) fn client(&self, placement: &Placement) -> Result<TasksClient<Channel>, TaskError> {
        let mut open = self.open.lock();
        if let Some(client) = open.get(&placement.incarnation) {
            return Ok(client.clone());
        }
        if open.len() >= MAX_CHANNELS {
            return Err(TaskError::no_workers(format!(
                "the router has {MAX_CHANNELS} channels open, as many as may be"
            )));
        }
        let client = TasksClient::new(endpoint(&placement.address)?.connect_lazy())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        open.insert(placement.incarnation, client.clone());
        Ok(client)
    }

    /// Forgets workers that are no more. Calls that are under way keep their connection until they end.
    pub(super) fn close(&self, ended: &[Placement]) {
        let mut open = self.open.lock();
        for placement in ended {
            open.remove(&placement.incarnation);
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.open.lock().len()
    }
}

fn endpoint(address: &str) -> Result<Endpoint, TaskError> {
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| {
        TaskError::no_workers(format!("a worker advertises the address {address:?}, which is no URI: {error}"))
    })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        // Cancelled calls are normal here; a connection must not end because of their number.
        .http2_max_local_error_reset_streams(None))
}
