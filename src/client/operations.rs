//! The client for operating: what a worker or router is and does now, where a task is, what takes its time, and a drain
//! from afar.
//!
//! Each call is made once and has ten seconds; an operator looks at the error and calls again.

use std::time::Duration;

use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::{InvalidAddress, Options};
use crate::task::TaskId;
use crate::wire::error::{describe, never_arrived};
pub use crate::wire::proto::ProfileForm;
use crate::wire::proto::operations_client::OperationsClient;
use crate::wire::proto::{
    DescribeRequest, Description, DrainReply, DrainRequest, ExplainRequest, Explanation, ProfileRequest,
};

/// How long an answer may take. A drain is answered when it has begun, not when it is over.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How much longer than the sampling a profile may take: names are looked up, and it is sent.
const PROFILE_MARGIN: Duration = Duration::from_secs(60);

/// The largest profile that is taken in: a few hundred times one of a busy worker.
const MAX_PROFILE_BYTES: usize = 256 << 20;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperationsError {
    /// Nobody could be reached.
    #[error("cannot reach {endpoint}: {cause}")]
    Unreachable {
        /// Where.
        endpoint: String,
        /// What the system says.
        cause: String,
    },
    /// Somebody else is there, an older weir, or one that has just ended.
    #[error(
        "{endpoint} does not answer as a worker or router of weir does ({cause}): give the address of its gRPC port, \
         worker.listen or router.listen, not of its admin port"
    )]
    NotWeir {
        /// Where.
        endpoint: String,
        /// How it showed.
        cause: String,
    },
    /// The server does not let this caller.
    #[error("{endpoint} refuses: {reason}")]
    Refused {
        /// Where.
        endpoint: String,
        /// The server's words: who may, and what to do.
        reason: String,
    },
    /// The server could not do it, or did not answer in time.
    #[error("{endpoint} did not answer as it should: {reason}")]
    Failed {
        /// Where.
        endpoint: String,
        /// What happened.
        reason: String,
    },
}

/// Operates one worker or router. Clones share its connection, which is made at the first call.
#[derive(Clone)]
pub struct Operations {
    endpoint: String,
    client: OperationsClient<Channel>,
}

impl Operations {
    /// For the server at `address`: `http://host:port`, or `host:port` alone. Does not connect yet.
    pub fn new(address: &str) -> Result<Self, InvalidAddress> {
        let endpoint = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let invalid = || InvalidAddress { address: address.to_owned() };
        let url = url::Url::parse(&endpoint).map_err(|_| invalid())?;
        if url.scheme() != "http" || url.host().is_none() || url.port().is_none() {
            return Err(invalid());
        }
        let channel = Endpoint::from_shared(endpoint.clone()).map_err(|_| invalid())?;
        let channel = channel.connect_timeout(Options::default().connect_timeout).tcp_nodelay(true).connect_lazy();
        Ok(Operations { endpoint, client: OperationsClient::new(channel) })
    }

    /// Where it leads.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What the process is and does now, with at most so many running tasks; 0 leaves the number to the server.
    pub async fn describe(&self, max_tasks: u32) -> Result<Description, OperationsError> {
        let mut client = self.client.clone();
        self.answer(client.describe(Request::new(DescribeRequest { max_tasks }))).await
    }

    /// Where a task is, and what holds it.
    pub async fn explain(&self, task: &TaskId) -> Result<Explanation, OperationsError> {
        let mut client = self.client.clone();
        self.answer(client.explain(Request::new(ExplainRequest { task_id: task.to_string() }))).await
    }

    /// Has the process end in order, as SIGTERM does; returns when that has begun.
    pub async fn drain(&self) -> Result<DrainReply, OperationsError> {
        let mut client = self.client.clone();
        self.answer(client.drain(Request::new(DrainRequest {}))).await
    }

    /// A profile of the process as a file in that form; takes as long as it is to sample, or is of the moment where the form
    /// is [`ProfileForm::Heap`]. Dropping the call ends it there too.
    pub async fn profile(&self, form: ProfileForm, seconds: u32, hz: u32) -> Result<Vec<u8>, OperationsError> {
        let mut client = self.client.clone();
        let request = ProfileRequest { form: form.into(), seconds: Some(seconds), hz: Some(hz) };
        let within = Duration::from_secs(seconds.into()) + PROFILE_MARGIN;
        let whole = async {
            let mut parts = client.profile(Request::new(request)).await?.into_inner();
            let mut bytes = Vec::new();
            while let Some(part) = parts.message().await.map_err(broken)? {
                if bytes.len() + part.data.len() > MAX_PROFILE_BYTES {
                    let reason = format!("the profile has more than {MAX_PROFILE_BYTES} bytes");
                    return Err(Status::failed_precondition(reason));
                }
                bytes.extend_from_slice(&part.data);
            }
            Ok(tonic::Response::new(bytes))
        };
        self.answer_within(within, whole).await
    }

    async fn answer<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, OperationsError> {
        self.answer_within(CALL_TIMEOUT, call).await
    }

    async fn answer_within<T>(
        &self,
        within: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, OperationsError> {
        match timeout(within, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failed(&status)),
            Err(_) => {
                let reason = format!("no answer within {}", humantime::format_duration(within));
                Err(OperationsError::Failed { endpoint: self.endpoint.clone(), reason })
            }
        }
    }

    fn failed(&self, status: &Status) -> OperationsError {
        let endpoint = self.endpoint.clone();
        if never_arrived(status) {
            return OperationsError::Unreachable { endpoint, cause: describe(status) };
        }
        match status.code() {
            Code::PermissionDenied => OperationsError::Refused { endpoint, reason: status.message().to_owned() },
            Code::Unimplemented => OperationsError::NotWeir { endpoint, cause: "it has no weir.v1.Operations".into() },
            Code::FailedPrecondition | Code::InvalidArgument => {
                OperationsError::Failed { endpoint, reason: status.message().to_owned() }
            }
            // No other status is weir's own: what answers speaks something else.
            _ => OperationsError::NotWeir { endpoint, cause: describe(status) },
        }
    }
}

/// Of an answer that has begun: what else goes wrong is no other server.
fn broken(status: Status) -> Status {
    match status.code() {
        Code::PermissionDenied | Code::FailedPrecondition | Code::InvalidArgument => status,
        _ => Status::failed_precondition(format!(
            "it was being profiled, and the connection broke ({}): the process has ended, or cannot be reached any more",
            describe(&status)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_needs_no_scheme_and_always_a_port() {
        for (good, endpoint) in [
            ("127.0.0.1:7401", "http://127.0.0.1:7401"),
            ("worker-1:7401", "http://worker-1:7401"),
            ("http://[::1]:7401", "http://[::1]:7401"),
        ] {
            assert_eq!(Operations::new(good).expect(good).endpoint(), endpoint);
        }
        for bad in ["", "worker-1", "7401", ":7401", "ftp://x:1", "https://x:1", "http://"] {
            let error = Operations::new(bad).err().expect(bad).to_string();
            assert!(error.contains("http://127.0.0.1:7400"), "{error}");
        }
    }
}
