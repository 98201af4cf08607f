//! No exchange, however it ends, keeps a socket or a place: counted at both ends.

use std::net::SocketAddr;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::super::{Config, Error, Request, Transport};
use super::*;
use crate::integration::recorder::{self, Recorder};
use crate::lifecycle::Lifecycle;
use crate::telemetry::Telemetry;

/// What comes by itself, sooner or later.
const EVENTUALLY: Duration = Duration::from_secs(20);

/// A server that counts its connections and does to a request what its path says.
struct Server {
    lifecycle: Lifecycle,
    address: SocketAddr,
    open: Arc<AtomicUsize>,
    transport: Transport,
    telemetry: Telemetry,
}

impl Server {
    async fn start(config: Config) -> Self {
        let (lifecycle, open) = (Lifecycle::new(), Arc::new(AtomicUsize::new(0)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (owner, token, count) = (lifecycle.clone(), lifecycle.token(), open.clone());
        lifecycle.spawn("server", async move {
            while let Some(Ok((socket, _))) = token.run_until_cancelled(listener.accept()).await {
                let (open, token) = (Held::new(&count), token.clone());
                owner.spawn("connection", async move {
                    let _open = open;
                    token.run_until_cancelled(answer(socket)).await;
                });
            }
        });
        let telemetry = Telemetry::new().expect("a recorder");
        let transport = Transport::new("bank", "integrations.bank", &config, &telemetry).expect("valid");
        Server { lifecycle, address, open, transport, telemetry }
    }

    async fn get(&self, path: &str) -> Result<u16, Error> {
        let recorder = Recorder::new(&recorder::Config::default());
        let client = self.transport.client(&recorder, Instant::now() + EVENTUALLY);
        client.send(Request::get(format!("http://{}/{path}", self.address))).await.map(|answer| answer.status)
    }

    /// A metric's value now.
    fn metric(&self, name: &str) -> usize {
        let (text, starts) =
            (self.telemetry.render(), [format!("{name}{{integration=\"bank\"}} "), format!("{name} ")]);
        let value = text.lines().find_map(|line| starts.iter().find_map(|start| line.strip_prefix(start)));
        value.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().expect("a number")
    }

    /// Waits until so many sockets are open, all of them idle, as both ends count them.
    async fn settles_at(&self, sockets: usize) {
        let numbers = || {
            let metric = |name: &str| self.metric(&format!("weir_http_sockets_{name}"));
            [self.open.load(Ordering::Relaxed), metric("idle"), metric("busy"), metric("waiting")]
        };
        let settled = async {
            while numbers() != [sockets, sockets, 0, 0] {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(EVENTUALLY, settled).await;
        assert!(in_time.is_ok(), "open at the server, idle, busy, waiting: {:?}, not {sockets}", numbers());
    }

    async fn stop(self) {
        self.lifecycle.stop(Duration::from_secs(5)).await.expect("it stops");
    }
}

async fn answer(mut socket: TcpStream) {
    let mut head = [0; 4096];
    while let Ok(1..) = socket.read(&mut head).await {
        let path = String::from_utf8_lossy(&head[5..10]).into_owned();
        let (start, then) = match path.split([' ', '/']).next().unwrap_or_default() {
            "ok" => ("Content-Length: 2\r\n\r\n[]", None),
            "large" => ("Content-Length: 999999999\r\n\r\n", Some("more")),
            "chunk" => ("Transfer-Encoding: chunked\r\n\r\n", Some("4\r\nmore\r\n")),
            "half" => ("Content-Length: 9\r\n\r\nhalf", None),
            "reset" => {
                let _ = socket.set_zero_linger();
                return;
            }
            _ => continue,
        };
        let start = format!("HTTP/1.1 200 OK\r\n{start}");
        let mut written = socket.write_all(start.as_bytes()).await;
        while let (Ok(()), Some(more)) = (&written, then) {
            written = socket.write_all(more.as_bytes()).await;
        }
    }
}

fn small() -> Config {
    Config { max_connections_per_host: 8, max_response_bytes: 64, ..Config::default() }
}

#[tokio::test]
async fn a_hundred_exchanges_that_fail_leave_no_socket_open_and_no_place_taken() {
    let server = Server::start(small()).await;
    for path in ["large", "chunk", "reset"] {
        let results = join_all((0..100).map(|_| server.get(path))).await;
        let as_expected = |result: &Result<u16, Error>| match result {
            Err(Error::TooLarge { .. }) => path != "reset",
            Err(Error::Broken { .. }) => path == "reset",
            _ => false,
        };
        assert_eq!(results.iter().find(|result| !as_expected(result)).map(|it| format!("{it:?}")), None, "{path}");
        server.settles_at(0).await;
    }
    assert_eq!(server.get("ok").await.expect("all is well again"), 200);
    server.settles_at(1).await;
    server.stop().await;
}

#[tokio::test]
async fn a_hundred_exchanges_that_are_dropped_leave_no_socket_open_and_no_place_taken() {
    let server = Server::start(small()).await;
    for path in ["hang", "half"] {
        let mut exchanges: Vec<_> = (0..100).map(|_| Box::pin(server.get(path))).collect();
        let all_busy = async {
            while server.open.load(Ordering::Relaxed) < 8 {
                assert!(exchanges.iter_mut().all(|exchange| exchange.as_mut().now_or_never().is_none()));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(EVENTUALLY, all_busy).await.expect("eight are on their way, and the others wait");
        assert_eq!(server.metric("weir_http_sockets_busy"), 8);
        assert_eq!(server.metric("weir_http_sockets_waiting"), 92);
        drop(exchanges);
        server.settles_at(0).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_hundred_exchanges_that_time_out_leave_no_socket_open_and_no_place_taken() {
    let server = Server::start(Config { request_timeout: Duration::from_millis(20), ..small() }).await;
    for path in ["hang", "half"] {
        let results = join_all((0..100).map(|_| server.get(path))).await;
        let other = results.iter().find(|result| !matches!(result, Err(Error::Timeout { .. })));
        assert!(other.is_none(), "{path}: {other:?}");
        server.settles_at(0).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn sockets_are_used_again_counted_while_idle_and_closed_after_their_time() {
    let server = Server::start(Config { idle_timeout: Duration::from_millis(300), ..Config::default() }).await;
    for _ in 0..20 {
        server.get("ok").await.expect("an answer");
    }
    let opened = server.metric("weir_http_sockets_opened_total");
    assert!((1..10).contains(&opened), "{opened} were opened for 20 exchanges");
    assert_eq!(server.metric("weir_http_socket_wait_seconds_count"), 20);
    server.settles_at(0).await;
    server.stop().await;
}
