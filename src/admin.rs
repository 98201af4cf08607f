//! What operators and probes ask a role over HTTP: is it alive, is it ready, what does it count, what takes its time.
//!
//! It has an address of its own, loopback unless configured otherwise, since metrics tell more than strangers should
//! know. Connections are capped and a request must arrive in time, so that a stuck scraper costs a slot and not the
//! process; each connection is a task of the lifecycle, and a stop ends them within a second.

mod debug;

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::lifecycle::Lifecycle;
use crate::telemetry::{METRICS_TYPE, Telemetry};
use crate::wire::profiles::Profiles;

/// Connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;

/// How long a connection may take to send a request's head, an idle one included. Prometheus keeps its connections and
/// asks every 15 s or 30 s.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest life of a connection: one whose peer never reads its response gives its slot back. The longest profile takes
/// half of it.
const CONNECTION_LIFE: Duration = Duration::from_secs(600);

/// How long a response may still take after the stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait after a failed accept, which is mostly a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const INDEX: &str = "\
/live     200 while the process runs
/ready    200 when it can serve, else 503 and why
/metrics  metrics in Prometheus' text format
/debug/pprof/profile?seconds=30&hz=99     what takes processor time, for go tool pprof, Pyroscope, Parca
/debug/pprof/flamegraph?seconds=30&hz=99  the same as an SVG for a browser
/debug/pprof/heap                         what holds memory, for pprof
";

/// Where to listen.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// An address and port; port 0 takes any that is free.
    pub listen: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Config { listen: SocketAddr::from(([127, 0, 0, 1], 9464)) }
    }
}

/// Whether a role can serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It can.
    Ready,
    /// It cannot, and why.
    NotReady(Cow<'static, str>),
}

/// A running admin server. It ends with its lifecycle.
#[derive(Debug)]
pub struct Admin {
    /// Where it listens.
    pub local_addr: SocketAddr,
}

/// Why the admin server did not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be had.
    #[error("admin.listen = \"{listen}\" cannot be listened on: {source}; use a free port, or 0 for any")]
    Listen {
        /// What was configured.
        listen: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

struct Role {
    telemetry: Telemetry,
    ready: Box<dyn Fn() -> Readiness + Send + Sync>,
    profiles: Profiles,
}

/// Both ends of a connection.
#[derive(Clone, Copy)]
struct Peers {
    caller: SocketAddr,
    here: SocketAddr,
}

impl Admin {
    /// Listens, and answers until the lifecycle stops. `ready` is asked at each probe and must not block.
    pub async fn start(
        config: &Config,
        telemetry: &Telemetry,
        ready: impl Fn() -> Readiness + Send + Sync + 'static,
        profiles: Profiles,
        lifecycle: &Lifecycle,
    ) -> Result<Admin, AdminError> {
        let failed = |source| AdminError::Listen { listen: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        let routes = routes(Role { telemetry: telemetry.clone(), ready: Box::new(ready), profiles });
        lifecycle.spawn("admin", accept(listener, routes, lifecycle.clone()));
        Ok(Admin { local_addr })
    }
}

fn routes(role: Role) -> Router {
    Router::new()
        .route("/", get(|| async { INDEX }))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(answer_ready))
        .route("/metrics", get(answer_metrics))
        .route("/debug/pprof/profile", get(debug::profile))
        .route("/debug/pprof/flamegraph", get(debug::flame_graph))
        .route("/debug/pprof/heap", get(debug::heap))
        .fallback(|| async { (StatusCode::NOT_FOUND, format!("there is no such path; there are\n{INDEX}")) })
        .with_state(Arc::new(role))
}

async fn answer_ready(State(role): State<Arc<Role>>) -> impl IntoResponse {
    match (role.ready)() {
        Readiness::Ready => (StatusCode::OK, Cow::Borrowed("ready\n")),
        Readiness::NotReady(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n").into()),
    }
}

/// Rendering takes a millisecond or two for the 10,000 series that a worker may have; it needs no other thread.
async fn answer_metrics(State(role): State<Arc<Role>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], role.telemetry.render())
}

async fn accept(listener: TcpListener, routes: Router, lifecycle: Lifecycle) {
    let (token, slots) = (lifecycle.token(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    let accepting = async {
        // The semaphore is never closed.
        while let Ok(slot) = slots.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, caller)) => {
                    // Without its own end, the connection is gone already.
                    let Ok(here) = stream.local_addr() else { continue };
                    let routes = routes.clone().layer(Extension(Peers { caller, here }));
                    let token = lifecycle.token();
                    lifecycle.spawn("admin connection", async move {
                        serve(stream, routes, token).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin port could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    token.run_until_cancelled(accepting).await;
}

async fn serve(stream: TcpStream, routes: Router, token: CancellationToken) {
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut connection =
        pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes.into_service())));
    let serving = tokio::time::timeout(CONNECTION_LIFE, connection.as_mut());
    // A peer that goes away is no concern of ours: nothing is logged.
    if !matches!(token.run_until_cancelled(serving).await, Some(Ok(_))) {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(STOP_TIMEOUT, connection).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::telemetry::profile::Profiler;
    use crate::wire::callers::Callers;

    fn profiles(telemetry: &Telemetry, lifecycle: &Lifecycle) -> Profiles {
        let profiler = Profiler::new(telemetry, lifecycle);
        Profiles { profiler, callers: Callers::Loopback, key: "worker.profile_from", name: "a test".into() }
    }

    struct Bench {
        admin: Admin,
        lifecycle: Lifecycle,
        can_serve: Arc<AtomicBool>,
    }

    impl Bench {
        async fn start() -> Self {
            let (telemetry, lifecycle) = (Telemetry::new().expect("recorder"), Lifecycle::new());
            telemetry.register(|| metrics::counter!("weir_example_total")).increment(3);
            let can_serve = Arc::new(AtomicBool::new(true));
            let asked = can_serve.clone();
            let ready = move || match asked.load(Ordering::Relaxed) {
                true => Readiness::Ready,
                false => Readiness::NotReady("draining".into()),
            };
            let config = Config { listen: SocketAddr::from(([127, 0, 0, 1], 0)) };
            let admin = Admin::start(&config, &telemetry, ready, profiles(&telemetry, &lifecycle), &lifecycle)
                .await
                .expect("listens");
            Bench { admin, lifecycle, can_serve }
        }

        async fn get(&self, path: &str) -> String {
            let mut stream = TcpStream::connect(self.admin.local_addr).await.expect("connects");
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut response = String::new();
            stream.read_to_string(&mut response).await.expect("answered");
            response
        }
    }

    #[tokio::test]
    async fn probes_and_metrics_are_answered() {
        let bench = Bench::start().await;
        assert!(bench.get("/live").await.starts_with("HTTP/1.1 200"));
        assert!(bench.get("/ready").await.starts_with("HTTP/1.1 200"));
        bench.can_serve.store(false, Ordering::Relaxed);
        let response = bench.get("/ready").await;
        assert!(response.starts_with("HTTP/1.1 503") && response.ends_with("not ready: draining\n"), "{response}");
        let response = bench.get("/metrics").await;
        assert!(response.contains("weir_example_total 3") && response.contains(METRICS_TYPE), "{response}");
        let response = bench.get("/nothing").await;
        assert!(response.starts_with("HTTP/1.1 404") && response.contains("/metrics"), "{response}");
        assert!(bench.get("/").await.contains("/ready"));
        bench.lifecycle.stop(Duration::from_secs(5)).await.expect("nothing is left");
    }

    #[tokio::test]
    async fn garbage_and_silent_connections_do_not_hold_up_a_stop() {
        let bench = Bench::start().await;
        let mut garbage = TcpStream::connect(bench.admin.local_addr).await.expect("connects");
        garbage.write_all(b"\x16\x03\x01 not http\r\n\r\n").await.expect("sent");
        let silent = TcpStream::connect(bench.admin.local_addr).await.expect("connects");
        assert!(bench.get("/live").await.starts_with("HTTP/1.1 200"));
        bench.lifecycle.stop(Duration::from_secs(5)).await.expect("nothing is left");
        drop(silent);
        TcpStream::connect(bench.admin.local_addr).await.expect_err("no longer listens");
    }

    #[tokio::test]
    async fn an_address_in_use_is_a_clear_error() {
        let bench = Bench::start().await;
        let config = Config { listen: bench.admin.local_addr };
        let telemetry = Telemetry::new().expect("recorder");
        let profiles = profiles(&telemetry, &bench.lifecycle);
        let started = Admin::start(&config, &telemetry, || Readiness::Ready, profiles, &bench.lifecycle).await;
        let error = started.expect_err("in use");
        assert!(error.to_string().contains("use a free port, or 0 for any"), "{error}");
        bench.lifecycle.stop(Duration::from_secs(5)).await.expect("nothing is left");
    }
}
