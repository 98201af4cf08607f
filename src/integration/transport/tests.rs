//! The transport against servers that behave and servers that do not.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::*;
use crate::integration::recorder;
use crate::lifecycle::Lifecycle;

fn transport(config: &Config) -> (Transport, Telemetry) {
    let telemetry = Telemetry::new().expect("a recorder");
    (Transport::new("bank", "integrations.bank", config, &telemetry).expect("valid"), telemetry)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Answers each connection's first request with these bytes, then holds the connection until the lifecycle stops.
async fn answering(lifecycle: &Lifecycle, bytes: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (owner, token) = (lifecycle.clone(), lifecycle.token());
    lifecycle.spawn("server", async move {
        while let Some(Ok((mut socket, _))) = token.run_until_cancelled(listener.accept()).await {
            let (bytes, token) = (bytes.clone(), token.clone());
            owner.spawn("connection", async move {
                let mut head = [0; 4096];
                let _ = socket.read(&mut head).await;
                let _ = socket.write_all(&bytes).await;
                token.cancelled().await;
            });
        }
    });
    address
}

#[tokio::test]
async fn an_exchange_is_answered_recorded_and_counted() {
    let lifecycle = Lifecycle::new();
    let address =
        answering(&lifecycle, b"HTTP/1.1 201 Created\r\nX-A: b\r\nContent-Length: 5\r\n\r\nhello".into()).await;
    let (transport, telemetry) = transport(&Config::default());
    let recorder = Recorder::new(&recorder::Config { max_body_bytes: 3, ..Default::default() });
    let request = Request::post(format!("http://{address}/x?y=1")).header("x-c", "d").body("text/plain", "question");
    let answer = transport.client(&recorder, soon()).send(request).await.expect("an answer");
    assert_eq!((answer.status, &answer.body[..], answer.header("x-a")), (201, &b"hello"[..], Some("b")));

    let transcript = recorder.take();
    let exchange = &transcript.exchanges[0];
    assert_eq!(
        (&*exchange.method, &*exchange.url, &exchange.error),
        ("POST", &*format!("http://{address}/x?y=1"), &None)
    );
    assert_eq!((&exchange.request.body[..], exchange.request.body_bytes), (&b"que"[..], 8));
    assert!(exchange.request.headers.contains(&("x-c".into(), "d".into())));
    let response = exchange.response.as_ref().expect("a response");
    assert_eq!((response.status, &response.message.body[..], response.message.body_bytes), (201, &b"hel"[..], 5));
    assert!(exchange.phases.waiting > Duration::ZERO);
    let metrics = telemetry.render();
    assert!(metrics.contains(r#"weir_http_exchanges_total{integration="bank",result="2xx"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"weir_http_sockets_busy{integration="bank"} 0"#), "{metrics}");
    lifecycle.stop(Duration::from_secs(5)).await.expect("it stops");
}

/// Sends a GET under `config` to a server that answers `bytes`; returns the error and what was recorded of it.
async fn failing(config: Config, bytes: &[u8]) -> (Error, crate::task::transcript::Exchange) {
    let lifecycle = Lifecycle::new();
    let address = answering(&lifecycle, bytes.into()).await;
    let (transport, _telemetry) = transport(&config);
    let recorder = Recorder::new(&recorder::Config::default());
    let url = format!("http://{address}/?customer=secret-name");
    let result = transport.client(&recorder, soon()).send(Request::get(url)).await;
    let error = result.err().expect("it fails");
    assert!(!error.to_string().contains("secret-name"), "{error}");
    lifecycle.stop(Duration::from_secs(5)).await.expect("it stops");
    let exchange = recorder.take().exchanges.remove(0);
    assert_eq!(exchange.error, Some(error.to_string()));
    (error, exchange)
}

#[tokio::test]
async fn too_large_an_answer_is_refused_with_the_key_to_raise() {
    let config = Config { max_response_bytes: 4, ..Config::default() };
    let announced = b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n";
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n";
    for answer in [&announced[..], &chunked[..]] {
        let (error, exchange) = failing(config.clone(), answer).await;
        assert!(matches!(error, Error::TooLarge { limit_bytes: 4, .. }) && !error.is_retryable());
        assert!(error.to_string().contains("raise integrations.bank.max_response_bytes"), "{error}");
        assert_eq!(exchange.response.map(|response| response.status), Some(200));
    }
}

#[tokio::test]
async fn a_slow_answer_times_out_and_what_came_of_it_is_kept() {
    let config = Config { request_timeout: Duration::from_millis(200), ..Config::default() };
    let (error, exchange) = failing(config, b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    assert!(matches!(error, Error::Timeout { .. }) && error.is_retryable(), "{error}");
    assert!(error.to_string().contains("within 200ms; raise integrations.bank.request_timeout"), "{error}");
    assert_eq!(&exchange.response.expect("headers came").message.body[..], b"half");
}

#[tokio::test]
async fn what_is_not_http_is_a_broken_connection() {
    let (error, _) = failing(Config::default(), b"220 mail.example ESMTP\r\n").await;
    assert!(matches!(error, Error::Broken { .. }), "{error}");
}

#[tokio::test]
async fn a_refused_connection_is_retryable_and_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let (transport, telemetry) = transport(&Config::default());
    let recorder = Recorder::new(&recorder::Config::default());
    let result = transport.client(&recorder, soon()).send(Request::get(format!("http://{address}/"))).await;
    let error = result.err().expect("nobody listens");
    assert!(matches!(error, Error::Connect { .. }) && error.is_retryable(), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(telemetry.render().contains(r#"result="connect"} 1"#));
}

#[tokio::test]
async fn the_tasks_deadline_ends_waiting_for_an_answer_and_for_a_socket() {
    let lifecycle = Lifecycle::new();
    let address = answering(&lifecycle, Vec::new()).await;
    let (transport, telemetry) = transport(&Config { max_connections_per_host: 1, ..Config::default() });
    let recorder = Recorder::new(&recorder::Config::default());
    let client = transport.client(&recorder, Instant::now() + Duration::from_millis(200));
    let url = format!("http://{address}/");
    let both = join_all([client.send(Request::get(&*url)), client.send(Request::get(&*url))]).await;
    assert!(both.iter().all(|result| matches!(result, Err(Error::Deadline { .. }))));
    let blocked: Vec<bool> =
        recorder.take().exchanges.iter().map(|exchange| exchange.phases.blocked > Duration::from_millis(150)).collect();
    assert_eq!(blocked.iter().filter(|blocked| **blocked).count(), 1, "one waited for the socket");
    assert!(telemetry.render().contains(r#"weir_http_sockets_waiting{integration="bank"} 0"#));
    lifecycle.stop(Duration::from_secs(5)).await.expect("it stops");
}

#[tokio::test]
async fn a_dropped_exchange_is_recorded_as_cancelled_and_frees_its_socket() {
    let lifecycle = Lifecycle::new();
    let address = answering(&lifecycle, Vec::new()).await;
    let (transport, telemetry) = transport(&Config::default());
    let recorder = Recorder::new(&recorder::Config::default());
    {
        let client = transport.client(&recorder, soon());
        let exchange = client.send(Request::get(format!("http://{address}/")));
        tokio::pin!(exchange);
        assert!(exchange.as_mut().now_or_never().is_none());
    }
    let transcript = recorder.take();
    assert_eq!(transcript.exchanges[0].error.as_deref(), Some("cancelled"));
    let metrics = telemetry.render();
    assert!(metrics.contains(r#"result="cancelled"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"weir_http_sockets_busy{integration="bank"} 0"#), "{metrics}");
    lifecycle.stop(Duration::from_secs(5)).await.expect("it stops");
}

#[tokio::test]
async fn redirects_are_answers() {
    let lifecycle = Lifecycle::new();
    let bytes = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
    let address = answering(&lifecycle, bytes.into()).await;
    let (transport, _telemetry) = transport(&Config::default());
    let recorder = Recorder::new(&recorder::Config::default());
    let answer = transport.client(&recorder, soon()).send(Request::get(format!("http://{address}/"))).await;
    assert_eq!(answer.expect("an answer").status, 302);
    lifecycle.stop(Duration::from_secs(5)).await.expect("it stops");
}

#[tokio::test]
async fn requests_that_cannot_be_made_are_permanent_errors() {
    let (transport, _telemetry) = transport(&Config::default());
    let recorder = Recorder::new(&recorder::Config::default());
    let client = transport.client(&recorder, soon());
    for (request, says) in [
        (Request::get("not a url"), "the URL is not valid"),
        (Request::get("file:///etc/passwd"), "use http or https"),
        (Request::new("GE T", "http://127.0.0.1/"), "the method is not valid"),
        (Request::get("http://127.0.0.1/").header("x", "a\r\nb"), "the value of header x is not valid"),
    ] {
        let error = client.send(request).await.err().expect(says);
        assert!(error.to_string().contains(says) && !error.is_retryable(), "{error}");
    }
}

#[test]
fn wrong_limits_are_refused_with_key_value_and_range() {
    let zero = Config { request_timeout: Duration::ZERO, ..Config::default() };
    let error = zero.check().expect_err("zero").to_string();
    assert_eq!(error, "request_timeout: 0s is out of range: use more than 0s and at most 1h");
    let none = Config { max_connections_per_host: 0, ..Config::default() };
    assert!(none.check().expect_err("none").to_string().contains("use 1 to 20000"));
}
