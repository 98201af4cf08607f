//! What HTTP/2 itself proves: a request that a server says it has not looked at never started, and may be sent again.
//!
//! The server here is made of bytes, for no real one can be told when to say what.

use std::net::SocketAddr;

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weir::client::{Client, Options, SubmitError};
use weir::lifecycle::Lifecycle;
use weir::wire::Started;

use crate::support::house::{LONG, synthetic};

const PREFACE_BYTES: usize = 24;
const DATA: u8 = 0;
const SETTINGS_FRAME: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// "I refuse stream 1": REFUSED_STREAM is 7.
const REFUSED: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7];
/// The same with another reason: CANCEL is 8.
const CANCELLED: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];
/// "I end in order, and have looked at no stream."
const FAREWELL: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// "I end in order, and have looked at stream 1."
const FAREWELL_AFTER_1: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
/// "I end for an internal error, and have looked at no stream."
const FAILURE: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

/// What the server does when it has answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    HangsUp,
    Stays,
}

/// Answers the first message of each connection with these bytes.
async fn server(bytes: &'static [u8], then: Then, lifecycle: &Lifecycle) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let token = lifecycle.token();
    lifecycle.spawn("server of bytes", async move {
        while let Some(accepted) = token.run_until_cancelled(listener.accept()).await {
            let (mut socket, _) = accepted.expect("a connection");
            let served = serve(&mut socket, bytes, then);
            token.run_until_cancelled(served).await;
        }
    });
    address
}

async fn serve(socket: &mut TcpStream, bytes: &[u8], then: Then) {
    let _ = socket.write_all(SETTINGS_FRAME).await;
    let mut preface = [0; PREFACE_BYTES];
    let _ = socket.read_exact(&mut preface).await;
    loop {
        let mut head = [0; 9];
        if socket.read_exact(&mut head).await.is_err() {
            return;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        let _ = socket.read_exact(&mut payload).await;
        if head[3] == DATA {
            break;
        }
    }
    let _ = socket.write_all(bytes).await;
    if then == Then::HangsUp {
        let _ = socket.shutdown().await;
    }
    // Reading on keeps the system from taking back what was written.
    let _ = socket.read_to_end(&mut Vec::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_server_has_not_looked_at_never_started() {
    let cases = [
        (REFUSED, Then::Stays, Started::No),
        (CANCELLED, Then::Stays, Started::Unknown),
        (FAREWELL, Then::Stays, Started::No),
        (FAREWELL_AFTER_1, Then::HangsUp, Started::Unknown),
        (FAILURE, Then::Stays, Started::Unknown),
        (b"".as_slice(), Then::HangsUp, Started::Unknown),
    ];
    for (bytes, then, started) in cases {
        let lifecycle = Lifecycle::new();
        let address = format!("http://{}", server(bytes, then, &lifecycle).await);
        let options = Options { backoff: None, ..Options::default() };
        // A connection of its own for each call.
        let client = || Client::with_options(&address, options.clone()).expect("an address");
        let task = synthetic("t-1", json!({"do": "noop"}));
        let one = tokio::time::timeout(LONG, client().submit(&task)).await.expect("an answer in time");
        let mut answers = client().submit_many(stream::iter([task]));
        let many = tokio::time::timeout(LONG, answers.next()).await.expect("an answer in time").expect("one");
        for error in [one.expect_err("no outcome"), many.1.expect_err("no outcome")] {
            assert_eq!(error.started(), started, "{bytes:?}: {error}");
            assert_eq!(matches!(error, SubmitError::Unreachable { .. }), started == Started::No, "{bytes:?}: {error}");
        }
        drop(answers);
        lifecycle.stop(LONG).await.expect("the server ends");
    }
}
