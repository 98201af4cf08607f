//! How many uploads at a time a store wants: payloads of 20 KB over `payloads.uploads` from 1 to 1,000, with and
//! without keeping sockets.
//!
//! ```text
//! cargo bench --bench uploads                     # an S3 server in this process: without latency, and with 25 ms
//! WEIR_BENCH_S3=http://127.0.0.1:9000 cargo bench --bench uploads     # your own, with a bucket called weir
//! ```
//!
//! For a store of your own, credentials come from where the AWS tools look for them; WEIR_BENCH_BUCKET,
//! WEIR_BENCH_REGION and WEIR_BENCH_PAYLOADS (10,000) change the rest. The right number is the smallest whose
//! payloads/s no longer grow: beyond it only the time of each upload does.

#[expect(dead_code, reason = "the tests start it in their own way")]
#[path = "../tests/it/support/s3.rs"]
mod s3;
#[path = "support/spread.rs"]
mod spread;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use spread::Spread;
use tokio::net::TcpListener;
use weir::lifecycle::Lifecycle;
use weir::payload::store::s3::{Config, Credentials, S3};
use weir::payload::{Object, Store};

const PARALLELISM: [usize; 6] = [1, 8, 50, 64, 256, 1_000];
const PAYLOAD_BYTES: usize = 20_000;
const PAYLOADS: usize = 10_000;

/// Where nothing is gained any more by measuring a slow one for long.
const LONGEST: Duration = Duration::from_secs(15);

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    match variable("WEIR_BENCH_S3") {
        Some(endpoint) => runtime.block_on(table(&endpoint, None)),
        None => {
            // The server has a runtime of its own.
            let server = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
            for latency in [Duration::ZERO, Duration::from_millis(25)] {
                println!("\nan S3 server in this process that takes {latency:?} longer than it needs");
                let (lifecycle, root) = (Lifecycle::new(), root());
                std::fs::create_dir(root.path().join("weir")).expect("a bucket");
                let endpoint = server.block_on(serve(root.path(), latency, &lifecycle));
                runtime.block_on(table(&endpoint, Some(Credentials::fixed(s3::ACCESS_KEY, s3::SECRET_KEY))));
                server.block_on(lifecycle.stop(Duration::from_secs(10))).expect("the server ends");
            }
        }
    }
}

/// In memory where there is a place for that: otherwise the disk is what is measured.
fn root() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

async fn serve(root: &std::path::Path, latency: Duration, lifecycle: &Lifecycle) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let (service, connections) = (s3::service(root), lifecycle.clone());
    lifecycle.spawn("s3 server", async move {
        let token = connections.token();
        while let Some(Ok((socket, _))) = token.run_until_cancelled(listener.accept()).await {
            let _ = socket.set_nodelay(true);
            let (service, token) = (service.clone(), token.clone());
            let late = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let service = service.clone();
                async move {
                    tokio::time::sleep(latency).await;
                    hyper::service::Service::call(&service, request).await
                }
            });
            connections.spawn("s3 connection", async move {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = token.run_until_cancelled(server.serve_connection(TokioIo::new(socket), late)).await;
            });
        }
    });
    format!("http://{address}")
}

async fn table(endpoint: &str, credentials: Option<Credentials>) {
    let payloads = variable("WEIR_BENCH_PAYLOADS").and_then(|count| count.parse().ok()).unwrap_or(PAYLOADS);
    println!("up to {payloads} payloads of {PAYLOAD_BYTES} bytes to {endpoint}\n");
    println!(
        "{:>8}  {:<10}{:>12}{:>10}{:>10}{:>10}{:>10}",
        "uploads", "sockets", "payloads/s", "p50 ms", "p99 ms", "failed", "open"
    );
    for parallelism in PARALLELISM {
        for keeps in [true, false] {
            let idle_timeout = if keeps { Config::default().idle_timeout } else { Duration::ZERO };
            let config = Config {
                bucket: variable("WEIR_BENCH_BUCKET").unwrap_or("weir".into()),
                region: variable("WEIR_BENCH_REGION").unwrap_or(Config::default().region),
                endpoint: Some(endpoint.to_owned()),
                path_style: true,
                idle_timeout,
                ..Config::default()
            };
            let store = S3::connect_with(&config, parallelism, credentials.clone()).await.expect("valid settings");
            row(Arc::new(store), parallelism, keeps, payloads).await;
        }
    }
}

async fn row(store: Arc<S3>, parallelism: usize, keeps: bool, payloads: usize) {
    // Like base64 of zlib, it does not compress.
    let body: Bytes = (0..PAYLOAD_BYTES as u64).map(|n| b'A' + (n.wrapping_mul(n) >> 5) as u8 % 26).collect();
    let object = |n: usize| Object {
        key: format!("bench/{:x}/{n}.b64", n % 16),
        body: body.clone().into(),
        media_type: "text/plain".into(),
        metadata: Vec::new(),
    };
    let started = Instant::now();
    let (mut spread, mut failed, mut done, mut open) = (Spread::default(), 0, 0u32, 0);
    let puts = (0..payloads).take_while(|_| started.elapsed() < LONGEST).map(|n| {
        let (store, object) = (store.clone(), object(n));
        async move {
            let started = Instant::now();
            (store.put(&object).await.is_ok(), started.elapsed())
        }
    });
    let mut puts = futures_util::stream::iter(puts).buffer_unordered(parallelism);
    while let Some((is_ok, took)) = puts.next().await {
        done += 1;
        failed += u32::from(!is_ok);
        open = open.max(store.open_sockets());
        spread.add(took);
    }
    let rate = f64::from(done) / started.elapsed().as_secs_f64();
    let ms = |spread: &mut Spread, share| spread.quantile(share).as_secs_f64() * 1e3;
    let (p50, p99) = (ms(&mut spread, 0.5), ms(&mut spread, 0.99));
    let sockets = if keeps { "kept" } else { "new each" };
    println!("{parallelism:>8}  {sockets:<10}{rate:>12.0}{p50:>10.1}{p99:>10.1}{failed:>10}{open:>10}");
}
