//! Bounded channels to workers, one per life of a worker.
//!
//! `tonic`'s own balancing channel hides which worker answered, so the router keeps its own map:
//!
//! - **Connected first.** A channel is connected before its first call is sent, and all calls that come meanwhile share
//!   that one attempt. A lazy channel of tonic's makes one for each call that waits, one after the other: of fifty calls to
//!   a host that swallows packets the last would wait for fifty timeouts. The timeout is short, because another worker is
//!   always the better answer.
//! - **Bounded.** As many as are configured; one more closes the one that has been unused for the longest. One with calls
//!   on it is never closed for that: when all have some, there is no channel, and the task goes elsewhere.
//! - **Idle ones are closed** after a while.
//! - **Dead ones are left**: keep-alive pings find a peer that is gone while nothing is being said, and the call after a
//!   broken connection makes a new one. When a worker is asked again that could not be reached is the view's matter
//!   (`view/known.rs`), for until then its tasks must go elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use super::view::Placement;
use crate::registry::Incarnation;
use crate::wire::MAX_MESSAGE_BYTES;
use crate::wire::error::describe;
use crate::wire::proto::tasks_client::TasksClient;

/// Another worker is the better answer: see above.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Replies of many calls share a connection: room for all of them, so that one slow reader holds up no other.
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// `[router.channels]`: connections to workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The most at once, 1 to 100000.
    pub max: usize,
    /// How long one is kept without a call, at least 1 s.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How often the peer is asked whether it is there, at least 100 ms.
    #[serde(with = "humantime_serde")]
    pub keep_alive_interval: Duration,
    /// How long it may take to answer that, at least 100 ms; then the connection is dead, and so are all calls on it.
    #[serde(with = "humantime_serde")]
    pub keep_alive_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            // Twice the largest fleet that a router is measured with.
            max: 8192,
            idle_timeout: Duration::from_secs(300),
            keep_alive_interval: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(5),
        }
    }
}

impl Config {
    /// What is wrong with it, by key.
    pub fn check(&self) -> Result<(), String> {
        let Config { max, idle_timeout, keep_alive_interval, keep_alive_timeout } = *self;
        if !(1..=100_000).contains(&max) {
            return Err(format!("max: {max} is not 1 to 100000"));
        }
        let tenth = Duration::from_millis(100);
        for (key, value, least) in [
            ("idle_timeout", idle_timeout, tenth * 10),
            ("keep_alive_interval", keep_alive_interval, tenth),
            ("keep_alive_timeout", keep_alive_timeout, tenth),
        ] {
            if value < least {
                let (value, least) = (humantime::format_duration(value), humantime::format_duration(least));
                return Err(format!("{key}: {value} is less than {least}"));
            }
        }
        Ok(())
    }
}

/// Why a channel was closed: the label `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// That life of its worker has ended.
    Gone,
    /// It was unused for too long.
    Idle,
    /// Another worker needed its place.
    Evicted,
    /// It could not be connected, or its connection broke.
    Failed,
}

impl Closed {
    pub(super) const ALL: [Closed; 4] = [Closed::Gone, Closed::Idle, Closed::Evicted, Closed::Failed];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Closed::Gone => "gone",
            Closed::Idle => "idle",
            Closed::Evicted => "evicted",
            Closed::Failed => "failed",
        }
    }
}

/// Why there is no channel to a worker: nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoChannel {
    #[error("no connection to {address}: {reason}")]
    Connect { address: String, reason: String },
    #[error("a worker advertises the address {address:?}, which is no URI: {reason}")]
    Address { address: String, reason: String },
    #[error("all of the router's {max} channels have calls on them (router.channels.max)")]
    Limit { max: usize },
}

/// The channels of one router.
pub(super) struct Channels {
    config: Config,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: HashMap<Incarnation, Open>,
    /// Those without a call, the one that is unused for the longest first.
    idle: BTreeMap<u64, (Instant, Incarnation)>,
    /// Numbers channels, and the moments since which they are idle.
    next: u64,
    closed: [u64; Closed::ALL.len()],
    connect_failures: u64,
}

struct Open {
    /// Tells it from others to the same worker.
    number: u64,
    client: Connecting,
    calls: usize,
    /// Its key among the idle ones.
    idle: Option<u64>,
    /// Closed when the last call has ended.
    worker_is_gone: bool,
}

/// A connection in the making, or made: all who want it await the same one, and whoever does drives it.
type Connecting = Shared<BoxFuture<'static, Result<TasksClient<Channel>, NoChannel>>>;

/// A client for one call. While there is one, its channel is in use.
pub(super) struct Lease {
    pub(super) client: TasksClient<Channel>,
    hold: Hold,
}

struct Hold {
    channels: Arc<Channels>,
    incarnation: Incarnation,
    number: u64,
}

/// The channels in numbers; totals since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) open: usize,
    pub(super) closed: [u64; Closed::ALL.len()],
    pub(super) connect_failures: u64,
}

impl Channels {
    pub(super) fn new(config: Config) -> Arc<Self> {
        Arc::new(Channels { config, state: Mutex::default() })
    }

    /// A client for a worker, over a connection that stands. Waits for that, at most for [`CONNECT_TIMEOUT`].
    pub(super) async fn lease(self: &Arc<Self>, placement: &Placement) -> Result<Lease, NoChannel> {
        let (hold, connecting) = self.hold(placement)?;
        match connecting.await {
            Ok(client) => Ok(Lease { client, hold }),
            Err(error) => {
                self.state.lock().discard(&hold, true);
                Err(error)
            }
        }
    }

    fn hold(self: &Arc<Self>, placement: &Placement) -> Result<(Hold, Connecting), NoChannel> {
        let incarnation = placement.incarnation;
        let mut state = self.state.lock();
        if !state.open.contains_key(&incarnation) {
            let connecting = connecting(&self.config, &placement.address)?;
            state.make_room(self.config.max)?;
            let number = state.number();
            state
                .open
                .insert(incarnation, Open { number, client: connecting, calls: 0, idle: None, worker_is_gone: false });
        }
        let State { open, idle, .. } = &mut *state;
        let channel = open.get_mut(&incarnation).expect("it was there, or was just made");
        if let Some(key) = channel.idle.take() {
            idle.remove(&key);
        }
        channel.calls += 1;
        let hold = Hold { channels: self.clone(), incarnation, number: channel.number };
        Ok((hold, channel.client.clone()))
    }

    /// Closes those of workers that are no more; one with calls when the last of them has ended.
    pub(super) fn close(&self, ended: &[Placement]) {
        if ended.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        for Placement { incarnation, .. } in ended {
            match state.open.get_mut(incarnation) {
                Some(channel) if channel.calls > 0 => channel.worker_is_gone = true,
                Some(_) => state.close(incarnation, Closed::Gone),
                None => {}
            }
        }
    }

    /// Closes those that have been unused for too long.
    pub(super) fn close_idle(&self, now: Instant) {
        let mut state = self.state.lock();
        while let Some((since, incarnation)) = state.idle.first_key_value().map(|(_, idle)| *idle) {
            if now.saturating_duration_since(since) < self.config.idle_timeout {
                return;
            }
            state.close(&incarnation, Closed::Idle);
        }
    }

    /// The numbers now.
    pub(super) fn numbers(&self) -> Numbers {
        let state = self.state.lock();
        Numbers { open: state.open.len(), closed: state.closed, connect_failures: state.connect_failures }
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Makes room for one more.
    fn make_room(&mut self, max: usize) -> Result<(), NoChannel> {
        if self.open.len() < max {
            return Ok(());
        }
        let unused = self.idle.first_key_value().map(|(_, (_, incarnation))| *incarnation);
        self.close(&unused.ok_or(NoChannel::Limit { max })?, Closed::Evicted);
        Ok(())
    }

    /// Calls that are under way keep their connection until they end.
    fn close(&mut self, incarnation: &Incarnation, why: Closed) {
        let Some(channel) = self.open.remove(incarnation) else { return };
        if let Some(key) = channel.idle {
            self.idle.remove(&key);
        }
        self.closed[why as usize] += 1;
    }

    /// It is of no more use: the next call makes another one. Of many calls on it the first one says so.
    fn discard(&mut self, hold: &Hold, was_never_connected: bool) {
        if self.open.get(&hold.incarnation).is_some_and(|channel| channel.number == hold.number) {
            self.connect_failures += u64::from(was_never_connected);
            self.close(&hold.incarnation, Closed::Failed);
        }
    }

    /// A call has ended.
    fn release(&mut self, hold: &Hold, now: Instant) {
        let key = self.number();
        let Some(channel) = self.open.get_mut(&hold.incarnation).filter(|channel| channel.number == hold.number) else {
            return;
        };
        channel.calls -= 1;
        match () {
            () if channel.calls > 0 => {}
            () if channel.worker_is_gone => self.close(&hold.incarnation, Closed::Gone),
            // Nobody drives the attempt any more, and its timeout would run on.
            () if channel.client.peek().is_none() => drop(self.open.remove(&hold.incarnation)),
            () => {
                channel.idle = Some(key);
                self.idle.insert(key, (now, hold.incarnation));
            }
        }
    }
}

impl Lease {
    /// Its connection is broken: calls to come go over another one.
    pub(super) fn broke(&self) {
        self.hold.channels.state.lock().discard(&self.hold, false);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.channels.state.lock().release(self, Instant::now());
    }
}

fn connecting(config: &Config, address: &str) -> Result<Connecting, NoChannel> {
    let no_uri =
        |error: &dyn std::error::Error| NoChannel::Address { address: address.to_owned(), reason: error.to_string() };
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|error| no_uri(&error))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(config.keep_alive_interval)
        .keep_alive_timeout(config.keep_alive_timeout)
        .keep_alive_while_idle(true)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        // Cancelled calls are normal here; a connection must not end because of their number.
        .http2_max_local_error_reset_streams(None);
    let address = address.to_owned();
    let connect = async move {
        match endpoint.connect().await {
            Ok(channel) => Ok(TasksClient::new(channel)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES)),
            Err(error) => Err(NoChannel::Connect { address, reason: describe(&Status::from_error(Box::new(error))) }),
        }
    };
    Ok(connect.boxed().shared())
}

#[cfg(test)]
mod tests;
