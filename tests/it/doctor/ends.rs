//! Workers that end while the doctor watches them, or take nothing: admin ports that tell as much as such a worker does.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use weir::lifecycle::Lifecycle;

use super::{FINDINGS, doctor, first_line};
use crate::cli::{assert_failed, stdout};

/// What an admin port answers at its n-th reading; from none on, nobody is there.
async fn admin(lifecycle: &Lifecycle, answer: impl Fn(usize) -> Option<String> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    lifecycle.spawn("admin port", async move {
        for text in (0..).map_while(answer) {
            let (mut stream, _) = listener.accept().await.expect("a reader");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut request).await.expect("a request");
            }
            let length = text.len();
            let answer = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{text}");
            stream.write_all(answer.as_bytes()).await.expect("sent");
        }
    });
    address
}

fn metrics(start: u32, more: &str) -> String {
    format!(
        "weir_pool_info{{role=\"worker\",pool=\"default\"}} 1\nweir_gate_in_flight 3\nweir_runtime_threads 2\n\
         process_start_time_seconds {start}\n{more}"
    )
}

#[tokio::test]
async fn a_worker_that_goes_away_is_said_to_have_gone_away() {
    let lifecycle = Lifecycle::new();
    let admin =
        admin(&lifecycle, |reading| (reading < 4).then(|| metrics(1_700_000_000, "weir_gate_target 30\n"))).await;
    let output = doctor(&["127.0.0.1:9", "--admin", &admin, "--seconds", "6"]).await;
    assert_eq!(
        first_line(&output),
        "1. the worker went away while it was watched: nobody is there any more (score 1.00)"
    );
    assert_eq!(output.status.code(), FINDINGS);
    assert!(!stdout(&output).contains("2. "), "and nothing else: {}", stdout(&output));
}

#[tokio::test]
async fn a_worker_that_goes_away_at_once_leaves_nothing_to_judge() {
    let lifecycle = Lifecycle::new();
    let admin = admin(&lifecycle, |reading| (reading < 2).then(|| metrics(1_700_000_000, ""))).await;
    let output = doctor(&["127.0.0.1:9", "--admin", &format!("http://{admin}/"), "--seconds", "3"]).await;
    assert_failed(&output, &["were read 2 times in 3s, and then nobody was there any more", "weir_last_exit"]);
}

#[tokio::test]
async fn an_address_of_two_workers_is_refused() {
    let lifecycle = Lifecycle::new();
    let admin = admin(&lifecycle, |reading| Some(metrics(1_700_000_000 + 60 * (reading as u32 % 2), ""))).await;
    let output = doctor(&["127.0.0.1:9", "--admin", &admin, "--seconds", "3"]).await;
    assert_failed(
        &output,
        &["leads to 2 processes in turn, as behind a load balancer: give the address of one worker"],
    );
}

#[tokio::test]
async fn a_worker_that_takes_nothing_is_not_one_that_has_nothing_to_do() {
    let lifecycle = Lifecycle::new();
    let more = "weir_gate_target 0\nweir_binding_constraint{constraint=\"slots\"} 1\n";
    let admin = admin(&lifecycle, |_| Some(metrics(1_700_000_000, more))).await;
    let output = doctor(&["127.0.0.1:9", "--admin", &admin, "--seconds", "3"]).await;
    assert_eq!(first_line(&output), "1. the worker takes no tasks: the setting max_parallelism is 0 (score 1.00)");
    assert!(!stdout(&output).contains("all 0 slots"), "{}", stdout(&output));
}
