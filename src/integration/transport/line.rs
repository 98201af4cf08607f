//! A run's line to the outside: what goes over it is recorded, and answered by the network or by what stands in for it.
//!
//! A stand-in belongs to a run, not to a transport: whatever an integration asks through its context is answered by it,
//! over whichever transport, and no integration can tell the difference.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Answer, Client, Transport};
use crate::integration::recorder::Recorder;
use crate::task::transcript::{Exchange, Fault};

/// Answers a run's requests in place of the network.
#[async_trait]
pub trait StandIn: Send + Sync {
    /// What the network would answer to a request: `asked` has its method, URL, headers and body.
    async fn answer(&self, asked: &Exchange) -> Reply;
}

/// What came of a request.
pub enum Reply {
    /// A whole answer.
    Whole(Answer),
    /// No whole answer.
    Failed {
        /// What came before it failed.
        part: Option<Answer>,
        /// The kind of what went wrong. None is for what no other attempt could mend.
        fault: Option<Fault>,
        /// For people.
        message: String,
    },
}

/// A run's line to the outside. Clones share it.
#[derive(Clone)]
pub(in crate::integration) struct Line {
    pub(in crate::integration) recorder: Recorder,
    pub(in crate::integration) stand_in: Option<Arc<dyn StandIn>>,
}

impl Line {
    /// A client over `transport` that gives up at `deadline`.
    pub(in crate::integration) fn client<'a>(&'a self, transport: &'a Transport, deadline: Instant) -> Client<'a> {
        Client { stand_in: self.stand_in.as_deref(), ..transport.client(&self.recorder, deadline) }
    }
}
