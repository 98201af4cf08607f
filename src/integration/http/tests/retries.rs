//! Attempts: what is sent again, when, and what the transcript says about it.

use std::collections::HashMap;

use axum::http::Method;
use axum::response::Response;
use axum::routing::any;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::*;
use crate::integration::{Environment, environment};
use crate::task::RunId;

/// A bank that refuses the first request to each path in some way, and takes the second.
fn api() -> Router {
    let seen: Arc<Mutex<HashMap<String, u32>>> = Arc::default();
    let take = move |method: Method, Path(kind): Path<String>, headers: HeaderMap| async move {
        let count = {
            let mut seen = seen.lock();
            let count = seen.entry(format!("{method} {kind}")).or_default();
            *count += 1;
            *count
        };
        let refused = |status: u16, name: &'static str, value: String| -> Response {
            (StatusCode::from_u16(status).expect("a status"), [(name, value)], "busy").into_response()
        };
        match (kind.as_str(), count) {
            ("seconds", 1) => refused(429, "retry-after", "1".into()),
            ("date", 1) => {
                let now = std::time::SystemTime::now();
                let later = httpdate::fmt_http_date(now + Duration::from_secs(2));
                refused(503, "retry-after", later)
            }
            ("ages", _) => refused(503, "retry-after", "3600".into()),
            ("down", _) => refused(503, "x-none", String::new()),
            (status, 1) if status.parse::<u16>().is_ok() => {
                refused(status.parse().expect("a status"), "x-none", String::new())
            }
            _ => Body(json!({ "id": headers.get("x-id").and_then(|id| id.to_str().ok()) })).into_response(),
        }
    };
    Router::new().route("/take/{kind}", any(take))
}

const QUICK: &str = "retries = { attempts = 2, first_pause = \"1ms\", max_pause = \"1ms\" }";

fn step(path: &str, more: &str) -> String {
    format!("{QUICK}\nsteps = [{{ name = \"s\", path = \"{path}\", {more} }}]")
}

/// A run of a task with this much time.
fn context_within(time: Duration) -> Context {
    let (mut task, telemetry) = (testing::task("{}"), Telemetry::new().expect("a recorder"));
    task.deadline = Instant::now() + time;
    let environment = Environment::new(&environment::Config::default(), "run", &Lifecycle::new(), &telemetry);
    let environment = environment.expect("valid");
    let recorder = environment.recorder();
    Context::new(task, RunId::mint(), CancellationToken::new(), recorder, environment, Arc::new(()))
}

#[tokio::test]
async fn what_may_pass_and_may_be_repeated_is_sent_again_and_noted() {
    let bank = Bank::serving(api()).await;
    for status in [408, 429, 500, 502, 503, 504] {
        let context = testing::context("{}");
        let path = format!("/take/{status}");
        let output = bank.run_in(&step(&path, "headers = { x-id = \"{{ uuid() }}\" }"), &context).await;
        assert!(output.expect("the second attempt").contains("-4"), "a random UUID");
        let transcript = context.recorder().take();
        let ids: Vec<_> = transcript.exchanges.iter().map(|exchange| &exchange.request.headers).collect();
        assert!(ids.len() == 2 && ids[0] == ids[1], "the same request twice");
        let note = format!("step s: GET {path} answered with status {status}; attempt 1 of 2, the next after ");
        assert!(transcript.notes.len() == 1 && transcript.notes[0].text.starts_with(&note));
    }
    bank.stop().await;
}

#[tokio::test]
async fn what_may_not_be_repeated_or_would_come_again_is_sent_once() {
    let bank = Bank::serving(api()).await;
    let once = "retries = { attempts = 1 }";
    let mapped = "errors = [{ status = [502], remedy = \"none\", reason = \"closed\" }]";
    let busy = "errors = [{ status = [409], remedy = \"retry\", reason = \"busy\" }]";
    for (path, more, requests, says) in [
        ("/take/500", "method = \"POST\"", 1, Some("POST /take/500 answered with status 500")),
        ("/take/503", "method = \"PATCH\"", 1, Some("status 503")),
        ("/take/404", "method = \"GET\"", 1, Some("status 404")),
        ("/take/501", "method = \"GET\"", 1, Some("status 501")),
        ("/take/502", mapped, 1, Some("status 502")),
        ("/take/504", once, 1, Some("status 504")),
        ("/take/down", "method = \"PUT\"", 2, Some("status 503, the last of 2 attempts")),
        ("/take/429", "method = \"POST\", idempotent = true", 2, None),
        ("/take/408", "method = \"DELETE\"", 2, None),
        ("/take/409", busy, 2, None),
    ] {
        let context = testing::context("{}");
        let result = bank.run_in(&step(path, more), &context).await;
        match says {
            Some(says) => assert!(result.expect_err(says).message.ends_with(says), "{path}"),
            None => drop(result.expect(path)),
        }
        assert_eq!(said(&context).0.len(), requests, "{path} {more}");
    }
    bank.stop().await;
}

#[tokio::test]
async fn retry_after_is_honoured_in_both_forms() {
    let bank = Bank::serving(api()).await;
    // A date has whole seconds, so two seconds from now may be little more than one.
    for kind in ["seconds", "date"] {
        let (context, began) = (testing::context("{}"), Instant::now());
        bank.run_in(&step(&format!("/take/{kind}"), ""), &context).await.expect("the second attempt");
        assert!(began.elapsed() >= Duration::from_secs(1), "{kind}: {:?}", began.elapsed());
        let (exchanges, notes) = said(&context);
        assert!(exchanges.len() == 2 && notes.len() == 1, "{exchanges:?} {notes:?}");
    }
    bank.stop().await;
}

#[tokio::test]
async fn a_pause_that_would_pass_the_deadline_is_not_begun() {
    let bank = Bank::serving(api()).await;
    let began = Instant::now();
    for (more, time) in [("", 30), ("timeout = \"30s\"", 7_200)] {
        let context = context_within(Duration::from_secs(time));
        let error = bank.run_in(&step("/take/ages", more), &context).await.expect_err("no time");
        let says =
            "step s: GET /take/ages answered with status 503; not sent again: no time is left after a pause of 1h";
        assert_eq!(error, Error::retryable(says));
        assert_eq!(said(&context).0.len(), 1);
    }
    assert!(began.elapsed() < Duration::from_secs(20), "at once");
    bank.stop().await;
}

#[tokio::test]
async fn a_cancelled_run_does_not_wait_for_the_end_of_a_pause() {
    let bank = Bank::serving(api()).await;
    let cancel = CancellationToken::new();
    let context = testing::context_on(&bank.lifecycle, "{}", 1, Arc::new(()), cancel.clone());
    let long = "retries = { attempts = 2, first_pause = \"1m\", max_pause = \"1m\" }";
    let down = bank.integration(&step("/take/down", long)).expect("valid");
    let (mut run, began) = (down.run(&context), Instant::now());
    let (mut exchanges, mut notes) = (Vec::new(), Vec::new());
    while notes.is_empty() {
        tokio::time::timeout(Duration::from_millis(10), &mut run).await.expect_err("it pauses");
        let (more_exchanges, more_notes) = said(&context);
        exchanges.extend(more_exchanges);
        notes.extend(more_notes);
    }
    cancel.cancel();
    assert_eq!(run.await.expect_err("cancelled"), Error::retryable("cancelled"));
    assert!(began.elapsed() < Duration::from_secs(20), "at once");
    assert_eq!(exchanges, ["GET /take/down 503"]);
    drop(down);
    bank.stop().await;
}

#[tokio::test]
async fn broken_and_refused_connections_are_tried_again_and_a_post_only_when_it_never_left() {
    let lifecycle = Lifecycle::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    // Reads a request and hangs up; answers the next; hangs up on the third.
    let served = lifecycle.spawn("listener", async move {
        for answers in [false, true, false] {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            let _ = socket.read(&mut [0; 4096]).await;
            if answers {
                let answer = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\ntrue";
                socket.write_all(answer.as_bytes()).await.expect("written");
            }
        }
    });
    let run = async |method: &str| {
        let context = testing::context("{}");
        let mut config = parse(&step("/", &format!("method = \"{method}\"")));
        config.base_url = format!("http://{address}/v1");
        let http = Http::new(&"bank".parse().expect("a name"), &config, &Telemetry::new().expect("a recorder"));
        let output = http.expect("valid").run(&context).await.map(|output| output.as_str().to_owned());
        (output, said(&context).0.len())
    };
    assert_eq!(run("GET").await, (Ok("true".into()), 2));
    let (error, requests) = run("POST").await;
    assert!(error.expect_err("broken").message.contains("the connection broke") && requests == 1);
    served.await.expect("it ends, and nothing listens");
    let (error, requests) = run("POST").await;
    let error = error.expect_err("refused");
    assert!(error.message.contains("no connection") && error.message.ends_with("the last of 2 attempts"), "{error}");
    assert!(requests == 2 && error.remedy == Remedy::Retry);
}
