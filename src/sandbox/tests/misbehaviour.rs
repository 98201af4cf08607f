//! Each misbehaviour as a caller sees it, and as the bank counts it.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::sandbox::{Beyond, Concurrency, Errors, Oversized, RateLimit};

/// Sends a request and reads all that comes, as bytes, with the error that ended it.
async fn raw(fixture: &Fixture) -> (Vec<u8>, Option<std::io::ErrorKind>) {
    let mut socket = TcpStream::connect(fixture.sandbox.local_addr).await.expect("it connects");
    let request = b"GET /accounts?customer=c1 HTTP/1.1\r\nHost: bank\r\nAuthorization: Bearer sandbox.a\r\n\r\n";
    socket.write_all(request).await.expect("sent");
    let mut received = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut received)).await;
    (received, read.expect("it ends").err().map(|error| error.kind()))
}

fn all(behaviour: Behaviour) -> Behaviour {
    Behaviour { latency: Some(Latency::Fixed(Duration::ZERO)), ..behaviour }
}

#[tokio::test]
async fn errors_come_in_their_share_and_a_retry_may_succeed() {
    let errors = Some(Errors { share: 0.5, status: 502 });
    let fixture = Fixture::behaving(Behaviour { errors, ..Behaviour::default() }).await;
    let pull =
        || async { join_all((0..200).map(|_| fixture.pull("a"))).await.into_iter().map(|it| it.expect("an answer")) };
    let failed = pull().await.filter(|status| *status == 502).count();
    let counts = fixture.counts("a");
    assert_eq!((counts.errors, counts.total), (failed as u64, 200));
    assert!((60..=140).contains(&failed), "{failed} of 200");
    fixture.sandbox.reset();
    assert_eq!(pull().await.filter(|status| *status == 502).count(), failed, "the same again after a reset");
    fixture.stop().await;
}

#[tokio::test]
async fn a_reset_is_a_reset_of_the_connection() {
    let fixture = Fixture::behaving(all(Behaviour { resets: Some(1.0), ..Behaviour::default() })).await;
    let (received, error) = raw(&fixture).await;
    assert_eq!((received.len(), error), (0, Some(std::io::ErrorKind::ConnectionReset)));
    let error = fixture.pull("a").await.expect_err("it breaks").to_string();
    assert!(error.contains("the connection broke"), "{error}");
    fixture.is_idle().await;
    let counts = fixture.counts("a");
    assert_eq!((counts.reset, counts.total), (2, 2));
    fixture.stop().await;
}

#[tokio::test]
async fn a_truncated_answer_has_half_of_the_length_that_it_announces() {
    let fixture = Fixture::behaving(Behaviour { truncated: Some(1.0), ..Behaviour::default() }).await;
    let (received, error) = raw(&fixture).await;
    let text = String::from_utf8(received).expect("text").to_lowercase();
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let announced: usize =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).expect("a length");
    assert_eq!((body.len(), error), (announced / 2, None), "{head}");
    let error = fixture.pull("a").await.expect_err("it is not whole").to_string();
    assert!(error.contains("the connection broke"), "{error}");
    fixture.is_idle().await;
    assert_eq!(fixture.counts("a").truncated, 2);
    fixture.stop().await;
}

#[tokio::test]
async fn an_oversized_answer_goes_on_and_on_and_is_still_json_for_who_reads_it_all() {
    let over = |bytes| all(Behaviour { oversized: Some(Oversized { share: 1.0, bytes }), ..Behaviour::default() });
    let fixture = Fixture::behaving(over(1_000_000)).await;
    let bearer =
        |base: String| Request::get(base + "/accounts?customer=c1").header("authorization", "Bearer sandbox.a");
    let answer = fixture.send(bearer).await;
    assert!(answer.body.len() > 1_000_000 && answer.header("content-length").is_none());
    serde_json::from_slice::<Value>(&answer.body).expect("JSON");
    fixture.sandbox.set_behaviour(over(1 << 40)).expect("valid");
    let error = fixture.pull("a").await.expect_err("too large");
    assert!(matches!(error, transport::Error::TooLarge { .. }), "{error}");
    fixture.is_idle().await;
    assert_eq!(fixture.counts("a").oversized, 2);
    fixture.stop().await;
}

#[tokio::test]
async fn an_endless_answer_does_not_hold_up_a_stop() {
    let oversized = Some(Oversized { share: 1.0, bytes: 1 << 40 });
    let fixture = Fixture::behaving(Behaviour { oversized, ..Behaviour::default() }).await;
    let mut socket = TcpStream::connect(fixture.sandbox.local_addr).await.expect("it connects");
    let request = b"GET /accounts?customer=c1 HTTP/1.1\r\nHost: bank\r\nAuthorization: Bearer sandbox.a\r\n\r\n";
    socket.write_all(request).await.expect("sent");
    socket.read_exact(&mut [0; 100_000]).await.expect("it has begun");
    fixture.stop().await;
}

#[tokio::test]
async fn a_hung_request_ends_when_its_caller_leaves_or_the_bank_stops() {
    let fixture = Fixture::behaving(Behaviour { hangs: Some(1.0), ..Behaviour::default() }).await;
    let hung = async {
        while fixture.sandbox.stats().all.hung < 1 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        answer = fixture.pull("a") => panic!("it answered: {answer:?}"),
        () = hung => {}
    }
    fixture.is_idle().await;
    let pull = fixture.pull("a");
    let stop = async {
        while fixture.sandbox.stats().all.in_flight == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        fixture.lifecycle.stop(Duration::from_secs(5)).await
    };
    let (answer, stopped) = tokio::join!(pull, stop);
    assert!(answer.is_err(), "it never answers");
    assert_eq!((stopped, fixture.sandbox.stats().all.in_flight, fixture.counts("a").hung), (Ok(()), 0, 2));
}

#[tokio::test]
async fn requests_over_the_rate_are_told_when_to_come_again() {
    let rate_limit = Some(RateLimit { per_second: 0.01, burst: 3 });
    let fixture = Fixture::behaving(Behaviour { rate_limit, ..Behaviour::default() }).await;
    for _ in 0..3 {
        assert_eq!(fixture.pull("a").await.expect("an answer"), 200);
    }
    let bearer =
        |base: String| Request::get(base + "/accounts?customer=c1").header("authorization", "Bearer sandbox.a");
    let answer = fixture.send(bearer).await;
    let retry_after: u64 = answer.header("retry-after").expect("a header").parse().expect("seconds");
    assert_eq!(answer.status, 429);
    assert!((1..=100).contains(&retry_after), "{retry_after}");
    assert_eq!(fixture.pull("b").await.expect("an answer"), 200, "each client has its own");
    let counts = fixture.counts("a");
    assert_eq!((counts.rate_limited, counts.total), (1, 4));
    fixture.stop().await;
}

#[tokio::test]
async fn beyond_the_concurrency_limit_requests_wait() {
    let rule = |limit, beyond| Some(Concurrency { limit, beyond });
    let latency = Some(Latency::Fixed(Duration::from_millis(40)));
    let behaviour = |concurrency| Behaviour { latency, concurrency, ..Behaviour::default() };
    let fixture = Fixture::behaving(behaviour(rule(2, Beyond::Wait))).await;
    let began = Instant::now();
    let all = join_all((0..10).map(|_| fixture.pull("a"))).await;
    assert!(all.iter().all(|status| matches!(status, Ok(200))));
    assert!(began.elapsed() >= Duration::from_millis(200), "five rounds of two: {:?}", began.elapsed());
    assert_eq!(fixture.counts("a").max_in_flight, 10, "they are in flight while they wait");
    fixture.stop().await;
}

#[tokio::test]
async fn beyond_the_concurrency_limit_requests_may_be_refused() {
    let concurrency = Some(Concurrency { limit: 2, beyond: Beyond::Refuse });
    let latency = Some(Latency::Fixed(Duration::from_secs(1)));
    let fixture = Fixture::behaving(Behaviour { latency, concurrency, ..Behaviour::default() }).await;
    let mut all: Vec<_> = join_all((0..6).map(|_| fixture.pull("a"))).await.into_iter().map(Result::unwrap).collect();
    all.sort();
    assert_eq!((all, fixture.counts("a").refused), (vec![200, 200, 503, 503, 503, 503], 4));
    fixture.stop().await;
}

#[tokio::test]
async fn one_slow_bank_among_ten_is_slow_alone() {
    let slow = Behaviour { slowdown: Some(50.0), ..Behaviour::default() };
    let latency = Latency::Fixed(Duration::from_millis(20));
    let clients = [("bank-3".to_owned(), slow)].into();
    let fixture = Fixture::with(Config { latency, clients, ..Config::default() }, 64).await;
    let timed = |number| {
        let fixture = &fixture;
        async move {
            let began = Instant::now();
            assert_eq!(fixture.pull(&format!("bank-{number}")).await.expect("an answer"), 200);
            began.elapsed()
        }
    };
    let took = join_all((0..10).map(timed)).await;
    let slow = took.iter().enumerate().max_by_key(|(_, took)| **took).map(|(number, _)| number);
    assert_eq!(slow, Some(3), "{took:?}");
    assert!(took[3] >= Duration::from_secs(1), "{took:?}");
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_in_flight_is_never_more_than_was_asked_at_a_time_or_let_in() {
    let errors = Some(Errors { share: 0.2, status: 500 });
    let oversized = Some(Oversized { share: 0.2, bytes: 200_000 });
    let faulty = Behaviour { resets: Some(0.2), truncated: Some(0.2), errors, oversized, ..Behaviour::default() };
    let fixture = Fixture::behaving(faulty).await;
    let caller = || async {
        for _ in 0..40 {
            // Whatever comes of it.
            drop(fixture.pull("a").await);
        }
    };
    join_all((0..8).map(|_| caller())).await;
    let counts = fixture.counts("a");
    assert!(counts.total >= 320 && counts.reset > 0 && counts.truncated > 0, "{counts:?}");
    assert!(counts.max_in_flight <= 8, "{counts:?}");

    let concurrency = Some(Concurrency { limit: 2, beyond: Beyond::Refuse });
    let nothing = Some(0.0);
    let refuses = Behaviour { concurrency, resets: nothing, truncated: nothing, errors: None, ..Behaviour::default() };
    fixture.sandbox.set_behaviour(refuses).expect("valid");
    fixture.sandbox.reset();
    join_all((0..8).map(|_| caller())).await;
    let counts = fixture.counts("a");
    assert!(counts.refused > 0, "{counts:?}");
    assert!(counts.max_in_flight <= 2, "{counts:?}");
    fixture.is_idle().await;
    fixture.stop().await;
}
