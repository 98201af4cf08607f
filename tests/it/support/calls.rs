//! Speaking to a role past weir's own client: plain gRPC, plain HTTP, and metrics as a scraper sees them.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use weir::wire::proto::{self, tasks_client::TasksClient};
use weir::wire::{Reason, Retry, Started, TaskError};

use super::house::LONG;

/// More than the servers take, so that it is they who refuse.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

pub async fn channel(url: &str) -> Channel {
    let endpoint = Endpoint::from_shared(url.to_owned()).expect("a URL");
    endpoint.connect().await.expect("it listens")
}

/// A generated client, with no retries and no checks of its own.
pub async fn plain_client(url: &str) -> TasksClient<Channel> {
    let client = TasksClient::new(channel(url).await);
    client.max_encoding_message_size(MAX_MESSAGE_BYTES).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

/// A task as a message: valid, and to be made invalid.
pub fn message(id: &str, integration: &str, input: &str) -> proto::Task {
    let timeout = Some(LONG.try_into().expect("in range"));
    proto::Task { id: id.into(), integration: integration.into(), input: input.into(), timeout, ..Default::default() }
}

/// Submits a message once and returns the error that must come of it.
pub async fn refusal(client: &mut TasksClient<Channel>, task: proto::Task) -> Status {
    let answered = tokio::time::timeout(LONG, client.submit(task)).await;
    answered.expect("an answer in time").expect_err("it must be refused")
}

/// The error as weir typed it; it must be typed.
pub fn typed(status: &Status) -> TaskError {
    TaskError::from_status(status).unwrap_or_else(|| panic!("this error says nothing about the task: {status:?}"))
}

/// Checks what each refusal of a bad task must say.
pub fn assert_rejected(status: &Status, reason: Reason, mentions: &str) {
    let error = typed(status);
    assert_eq!((error.reason, error.started), (reason, Started::No), "{error}");
    assert!(error.message.contains(mentions), "{mentions:?} is missing in {error}");
    if reason == Reason::InvalidTask {
        assert_eq!(error.retry, Retry::Never);
    }
}

/// One answer over HTTP/1.1.
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: String,
}

pub async fn http_get(address: SocketAddr, path: &str) -> Response {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let text = exchange(address, request.as_bytes(), Sender::StaysOpen).await;
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Response { status, head: head.into(), body: body.into() }
}

/// What a sender does when it has sent all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    StaysOpen,
    Ends,
}

/// Sends bytes and reads what comes until the other side ends.
pub async fn exchange(address: SocketAddr, bytes: &[u8], sender: Sender) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        // Whoever gets nonsense may hang up at any time.
        let _ = stream.write_all(bytes).await;
        if sender == Sender::Ends {
            let _ = stream.shutdown().await;
        }
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::time::timeout(LONG, exchange).await.expect("the connection ends")
}

/// The sum of the series of this name that have the labels given with it, in a text of metrics; 0 where there is none.
pub fn metric(text: &str, series: &str) -> f64 {
    let labels = |text: &str| text.trim_end_matches('}').split(',').map(str::to_owned).collect::<Vec<_>>();
    let (name, wanted) = series.split_once('{').unwrap_or((series, ""));
    let wanted = labels(wanted);
    let value = |line: &str| -> Option<f64> {
        let (of, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        let has = labels(of.strip_prefix('{').or(of.is_empty().then_some(""))?);
        let is_wanted = wanted.iter().all(|label| label.is_empty() || has.contains(label));
        is_wanted.then(|| value.parse().expect("a number"))
    };
    text.lines().filter_map(value).sum()
}
