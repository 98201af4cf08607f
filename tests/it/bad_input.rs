//! What should never come in, and does: each gets a clear error, at once, and costs nothing that lasts.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::json;
use tonic::{Code, Request};
use weir::client::{Client, SubmitError};
use weir::task::{FailureCode, Json};
use weir::wire::{MAX_INPUT_BYTES, MAX_MESSAGE_BYTES, Reason, proto};

use crate::support::calls::{Sender, assert_rejected, exchange, http_get, message, plain_client, refusal};
use crate::support::house::{House, LONG, held, synthetic};

/// Whoever is refused must not wait for it.
const AT_ONCE: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_task_is_refused_by_both_roles_with_what_is_wrong() {
    let house = House::start().await;
    let valid = || message("t1", "synthetic", r#"{"do":"noop"}"#);
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let long_id = "x".repeat(129);
    for url in house.urls() {
        let mut plain = plain_client(&url).await;
        let cases = [
            (proto::Task { input: "{".into(), ..valid() }, Reason::InvalidTask, "input is not JSON"),
            (proto::Task { input: "{} {}".into(), ..valid() }, Reason::InvalidTask, "input is not JSON"),
            (proto::Task { id: String::new(), ..valid() }, Reason::InvalidTask, "task id"),
            (proto::Task { id: "../../etc/passwd".into(), ..valid() }, Reason::InvalidTask, "task id"),
            (proto::Task { id: long_id.clone(), ..valid() }, Reason::InvalidTask, "128"),
            (proto::Task { integration: String::new(), ..valid() }, Reason::InvalidTask, "integration"),
            (proto::Task { integration: "B@nk".into(), ..valid() }, Reason::InvalidTask, "B@nk"),
            (proto::Task { integration: "no-such".into(), ..valid() }, Reason::UnknownIntegration, "no-such"),
            (proto::Task { tenant: "a b".into(), ..valid() }, Reason::InvalidTask, "tenant"),
            (proto::Task { priority: 9, ..valid() }, Reason::InvalidTask, "priority 9"),
            (proto::Task { timeout: seconds(0), ..valid() }, Reason::DeadlineTooShort, "zero"),
            (proto::Task { timeout: seconds(-3), ..valid() }, Reason::DeadlineTooShort, "-3 s"),
            (proto::Task { input: " ".repeat(MAX_INPUT_BYTES + 1), ..valid() }, Reason::InvalidTask, "at most 1048576"),
        ];
        for (task, reason, mentions) in cases {
            let began = Instant::now();
            assert_rejected(&refusal(&mut plain, task).await, reason, mentions);
            assert!(began.elapsed() < AT_ONCE, "{mentions}: refused after {:?}", began.elapsed());
        }
        plain.submit(valid()).await.expect("a valid task still runs");
    }
    let ledgers = house.close().await;
    assert_eq!(ledgers[0].offered, 2, "what was refused has no payload");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_input_is_taken() {
    let house = House::start().await;
    let input = r#"{"do":"noop"}"#;
    let input = input.to_owned() + &" ".repeat(MAX_INPUT_BYTES - input.len());
    for (n, url) in house.urls().iter().enumerate() {
        let task = message(&format!("t-{n}"), "synthetic", &input);
        let outcome = plain_client(url).await.submit(task).await.expect("an outcome").into_inner();
        assert!(matches!(outcome.result, Some(proto::outcome::Result::Output(_))), "{outcome:?}");
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_is_refused_before_it_is_read() {
    let house = House::start().await;
    for url in house.urls() {
        let mut plain = plain_client(&url).await;
        let oversized = || message("big", "synthetic", &" ".repeat(MAX_MESSAGE_BYTES + 1));
        let status = refusal(&mut plain, oversized()).await;
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
        assert!(status.message().contains(&MAX_MESSAGE_BYTES.to_string()), "{status:?}");

        // In a stream it ends the stream, for what comes after it cannot be found.
        let tasks = stream::iter([message("good", "synthetic", r#"{"do":"noop"}"#), oversized()]);
        let replies = plain.submit_many(tasks).await.expect("a stream").into_inner();
        let replies: Vec<_> = replies.take(3).collect().await;
        assert!(replies.iter().any(|reply| reply.as_ref().is_err_and(|status| status.code() == Code::OutOfRange)));
        plain.submit(message("after", "synthetic", r#"{"do":"noop"}"#)).await.expect("the connection serves on");
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_does_not_send_what_nobody_would_take() {
    let house = House::start().await;
    for bytes in [MAX_INPUT_BYTES + 1, 2 * MAX_MESSAGE_BYTES] {
        let mut submission = synthetic("big", json!(null));
        submission.input = Json::of(&"x".repeat(bytes - 2)).expect("JSON");
        match house.client.submit(&submission).await {
            Err(SubmitError::NotStarted(error)) => assert_eq!(error.reason, Reason::InvalidTask, "{error}"),
            other => panic!("the task cannot have started: {other:?}"),
        }
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_calls_own_deadline_counts_when_it_is_the_shorter_one() {
    let house = House::start().await;
    for url in house.urls() {
        let mut plain = plain_client(&url).await;
        let mut request = Request::new(message("soon", "held", ""));
        request.set_timeout(Duration::from_secs(1));
        let outcome = plain.submit(request).await.expect("the server answers first").into_inner();
        let Some(proto::outcome::Result::Failure(failure)) = outcome.result else { panic!("{outcome:?}") };
        assert_eq!(failure.code(), proto::FailureCode::Deadline);

        // No server can be quick enough for this: what matters is that nothing is left of it.
        for too_short in ["1n", "0m", "1m"] {
            let mut request = Request::new(message("too-soon", "held", ""));
            request.metadata_mut().insert("grpc-timeout", too_short.parse().expect("ascii"));
            let began = Instant::now();
            let answered = tokio::time::timeout(LONG, plain.submit(request)).await.expect("an answer in time");
            if let Ok(outcome) = answered {
                let outcome = outcome.into_inner();
                assert!(matches!(outcome.result, Some(proto::outcome::Result::Failure(_))), "{outcome:?}");
            }
            assert!(began.elapsed() < AT_ONCE);
        }
        house.until_in_flight(0, 0).await;
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_nobody_has_room_for_in_its_time_never_started() {
    let house = House::start().await;
    let holders: Vec<_> = (0..4).map(|n| house.submit(held(&format!("holder-{n}")))).collect();
    house.until_in_flight(0, 4).await;
    let mut waits = held("waits");
    waits.timeout = Duration::from_millis(300);
    match house.client.submit(&waits).await {
        Err(SubmitError::NotStarted(error)) => {
            assert_eq!(error.reason, Reason::DeadlineTooShort);
            assert!(error.message.contains("no worker had room"), "{error}");
        }
        other => panic!("it cannot have started: {other:?}"),
    }
    house.valve.open();
    for holder in holders {
        let outcome = crate::support::house::answer(holder).await.expect("an outcome");
        assert_ne!(outcome.result.err().map(|failure| failure.code), Some(FailureCode::Deadline));
    }
    assert_eq!(house.valve.started().len(), 4);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_a_port_costs_its_connection_and_nothing_else() {
    let house = House::start().await;
    let noise: Vec<u8> = (0..20_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let garbage = [
        b"GET / HTTP/1.1\r\nHost: weir\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        noise.clone(),
        // An HTTP/2 connection that goes wrong after its first line, and one that announces an endless frame.
        [preface.as_slice(), &noise].concat(),
        [preface.as_slice(), &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
        Vec::new(),
    ];
    let grpc = house.urls().map(|url| url.trim_start_matches("http://").parse().expect("an address"));
    let admin = [house.router_admin(), house.worker(0).admin_address()];
    for address in grpc.into_iter().chain(admin) {
        for bytes in &garbage {
            let answer = exchange(address, bytes, Sender::Ends).await;
            assert!(!answer.contains("panic"), "{answer}");
        }
    }
    // Half a request, and no end of it: the connection stays open, and the drain must not wait for it.
    let mut half_open = Vec::new();
    for address in grpc.into_iter().chain(admin) {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
        tokio::io::AsyncWriteExt::write_all(&mut stream, &preface[..10]).await.expect("sent");
        half_open.push(stream);
    }
    for (n, url) in house.urls().iter().enumerate() {
        let client = Client::new(url).expect("an address");
        let outcome = client.submit(&synthetic(&format!("after-{n}"), json!({"do": "noop"}))).await;
        assert!(outcome.expect("an outcome").result.is_ok());
    }
    for address in admin {
        assert_eq!(http_get(address, "/live").await.status, 200);
    }
    house.close().await;
    drop(half_open);
}
