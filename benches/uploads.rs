//! How many uploads at a time a store wants: 10,000 payloads of 20 KB over `payloads.uploads` from 1 to 1,000, with and
//! without keeping sockets.
//!
//! ```text
//! cargo bench --bench uploads              # an S3 server in a process of its own: without latency, and with 25 ms
//! cargo bench --bench uploads -- --endpoint https://s3.eu-central-1.amazonaws.com --region eu-central-1 --bucket my-bucket
//! ```
//!
//! For a store of your own, credentials come from where the AWS tools look for them. What is stored is below `bench/` and
//! stays there. The right number is the smallest whose payloads/s no longer grow: beyond it only the time of each upload
//! does. A row ends after `--longest`, whatever is left then: slow ones are told apart soon enough.

#[expect(dead_code, reason = "the tests ask for more")]
#[path = "../tests/it/support/processes.rs"]
mod processes;
#[expect(dead_code, reason = "the tests start it in their own way")]
#[path = "../tests/it/support/s3.rs"]
mod s3;
#[path = "support/spread.rs"]
mod spread;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use futures_util::StreamExt;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use processes::{LONG, Process, wait_for};
use spread::Spread;
use tokio::net::TcpListener;
use weir::lifecycle::Lifecycle;
use weir::payload::store::s3::{Config, Credentials, S3};
use weir::payload::{Object, Store};

const PAYLOAD_BYTES: usize = 20_000;

#[derive(Parser)]
#[command(about = "How many uploads at a time a store wants")]
struct Arguments {
    /// Your own store's URL. Without one, a server is started here.
    #[arg(long, env = "WEIR_BENCH_S3", value_name = "URL")]
    endpoint: Option<String>,
    /// A bucket that is there.
    #[arg(long, env = "WEIR_BENCH_BUCKET", default_value = "weir")]
    bucket: String,
    /// Its region.
    #[arg(long, env = "WEIR_BENCH_REGION", default_value = "us-east-1")]
    region: String,
    /// Payloads in each row.
    #[arg(long, env = "WEIR_BENCH_PAYLOADS", default_value_t = 10_000)]
    payloads: usize,
    /// Uploads at once, a row with and one without keeping sockets for each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 50, 64, 256, 1_000])]
    uploads: Vec<usize>,
    /// When a row ends at the latest.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "20s", value_name = "DURATION")]
    longest: Duration,
    /// The bucket is in the URL's path, as most stores but AWS need it.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    path_style: bool,
    #[arg(long, hide = true, requires = "latency")]
    serve_s3: Option<PathBuf>,
    #[arg(long, hide = true, value_parser = humantime::parse_duration)]
    latency: Option<Duration>,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if let (Some(directory), Some(latency)) = (&arguments.serve_s3, arguments.latency) {
        return runtime.block_on(serve(directory, latency));
    }
    if let Some(endpoint) = &arguments.endpoint {
        return runtime.block_on(table(endpoint, None, &arguments));
    }
    for latency in [Duration::ZERO, Duration::from_millis(25)] {
        println!("\nan S3 server on this machine that takes {latency:?} longer than it needs");
        let root = root();
        std::fs::create_dir_all(root.path().join("s3/weir")).expect("a bucket");
        let (this, latency) = (std::env::current_exe().expect("this program"), format!("{latency:?}"));
        let flags = ["--serve-s3", "s3", "--latency", latency.as_str()];
        let mut server = Process::start("s3", root.path(), &this, &flags, &[]);
        let endpoint = wait_for("the server's address", LONG, || server.out().lines().next().map(str::to_owned));
        runtime.block_on(table(&endpoint, Some(Credentials::fixed(s3::ACCESS_KEY, s3::SECRET_KEY)), &arguments));
        server.stop();
    }
}

/// In memory where there is a place for that: otherwise the disk is what is measured.
fn root() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// The server, as a process of its own.
async fn serve(root: &Path, latency: Duration) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    println!("http://{}", listener.local_addr().expect("it is bound"));
    let (service, lifecycle) = (s3::service(root), Lifecycle::new());
    let connections = lifecycle.clone();
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
    let terminate = tokio::signal::unix::SignalKind::terminate();
    tokio::signal::unix::signal(terminate).expect("a handler").recv().await;
    lifecycle.stop(Duration::from_secs(5)).await.expect("the server ends");
}

async fn table(endpoint: &str, credentials: Option<Credentials>, arguments: &Arguments) {
    let Arguments { payloads, longest, .. } = arguments;
    println!("{payloads} payloads of {PAYLOAD_BYTES} bytes to {endpoint}, or as many as are done in {longest:?}\n");
    println!(
        "{:>8}  {:<10}{:>12}{:>12}{:>10}{:>10}{:>10}{:>10}",
        "uploads", "sockets", "payloads", "payloads/s", "p50 ms", "p99 ms", "failed", "open"
    );
    for uploads in &arguments.uploads {
        for keeps in [true, false] {
            let idle_timeout = if keeps { Config::default().idle_timeout } else { Duration::ZERO };
            let config = Config {
                bucket: arguments.bucket.clone(),
                region: arguments.region.clone(),
                endpoint: Some(endpoint.to_owned()),
                path_style: arguments.path_style,
                idle_timeout,
                ..Config::default()
            };
            let store = S3::connect_with(&config, *uploads, credentials.clone()).await.expect("valid settings");
            row(Arc::new(store), *uploads, keeps, arguments).await;
        }
    }
}

async fn row(store: Arc<S3>, uploads: usize, keeps: bool, arguments: &Arguments) {
    // Like base64 of zlib, it does not compress.
    let body: Bytes = (0..PAYLOAD_BYTES as u64).map(|n| b'A' + (n.wrapping_mul(n) >> 5) as u8 % 26).collect();
    let object = |n: usize| Object {
        key: format!("bench/{:x}/{n}.b64", n % 16),
        body: body.clone().into(),
        media_type: "text/plain".into(),
        metadata: Vec::new(),
    };
    let started = Instant::now();
    let (mut spread, mut failed, mut done, mut open, mut why) = (Spread::default(), 0, 0u32, 0, None);
    let puts = (0..arguments.payloads).take_while(|_| started.elapsed() < arguments.longest).map(|n| {
        let (store, object) = (store.clone(), object(n));
        async move {
            let started = Instant::now();
            (store.put(&object).await, started.elapsed())
        }
    });
    let mut puts = futures_util::stream::iter(puts).buffer_unordered(uploads);
    while let Some((stored, took)) = puts.next().await {
        done += 1;
        failed += u32::from(stored.is_err());
        why = why.or(stored.err());
        open = open.max(store.open_sockets());
        spread.add(took);
    }
    let rate = f64::from(done) / started.elapsed().as_secs_f64();
    let ms = |spread: &mut Spread, share| spread.quantile(share).as_secs_f64() * 1e3;
    let (p50, p99) = (ms(&mut spread, 0.5), ms(&mut spread, 0.99));
    let sockets = if keeps { "kept" } else { "new each" };
    println!("{uploads:>8}  {sockets:<10}{done:>12}{rate:>12.0}{p50:>10.1}{p99:>10.1}{failed:>10}{open:>10}");
    if let Some(error) = why {
        println!("{:>10}the first that failed: {error}", "");
    }
}
