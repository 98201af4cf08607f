//! A server that speaks LaunchDarkly's streaming protocol, as much of it as the SDK asks for: `/all` streams a `put`, then a
//! `patch` or a `delete` for each change, and `/bulk` takes the reports of evaluations.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use futures_util::stream;
use parking_lot::Mutex;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use weir::lifecycle::Lifecycle;
use weir::settings::{Config, Source, launchdarkly};

use super::house::LONG;

pub const SDK_KEY: &str = "sdk-00000000-0000-4000-8000-000000000000";

/// It must be stopped before the test ends.
pub struct LaunchDarkly {
    pub address: SocketAddr,
    scheme: &'static str,
    held: Arc<Mutex<Held>>,
    serving: Lifecycle,
}

/// What `/all` answers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Answer {
    #[default]
    Flags,
    /// A stream on which nothing comes.
    Nothing,
    Status(u16),
}

#[derive(Default)]
struct Held {
    answer: Answer,
    /// The last version given out; every change has one of its own.
    version: u64,
    flags: BTreeMap<String, Value>,
    segments: BTreeMap<String, Value>,
    streams: Vec<mpsc::UnboundedSender<String>>,
    asked: usize,
    reports: Vec<Value>,
    hangs_on_reports: bool,
}

impl LaunchDarkly {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        Self::with("http", address, listener)
    }

    /// The same over TLS, as a Relay Proxy may be.
    pub async fn start_tls(tls: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        Self::with("https", address, TlsListener { listener, acceptor: Arc::new(tls).into() })
    }

    fn with<L: Listener<Addr: Debug>>(scheme: &'static str, address: SocketAddr, listener: L) -> Self {
        let (held, serving) = (Arc::<Mutex<Held>>::default(), Lifecycle::new());
        let routes = axum::Router::new().route("/all", get(all)).route("/bulk", post(bulk)).with_state(held.clone());
        let token = serving.token();
        serving.spawn("launchdarkly", async move {
            token.run_until_cancelled(async { axum::serve(listener, routes).await }).await;
        });
        LaunchDarkly { address, scheme, held, serving }
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub fn answer(&self, answer: Answer) {
        self.held.lock().answer = answer;
    }

    /// Sets a flag, or changes it.
    pub fn set(&self, key: &str, flag: Value) {
        self.put(key, flag, "flags");
    }

    pub fn set_segment(&self, key: &str, segment: Value) {
        self.put(key, segment, "segments");
    }

    fn put(&self, key: &str, mut item: Value, kind: &str) {
        let mut held = self.held.lock();
        held.version += 1;
        (item["key"], item["version"]) = (key.into(), held.version.into());
        let items = if kind == "flags" { &mut held.flags } else { &mut held.segments };
        items.insert(key.to_owned(), item.clone());
        held.say("patch", &json!({"path": format!("/{kind}/{key}"), "data": item}));
    }

    pub fn delete(&self, key: &str) {
        let mut held = self.held.lock();
        held.version += 1;
        held.flags.remove(key).expect("it is there");
        let version = held.version;
        held.say("delete", &json!({"path": format!("/flags/{key}"), "version": version}));
    }

    /// Sends to all that follow what is no message.
    pub fn babble(&self) {
        self.held.lock().say("patch", &json!({"path": "/flags/max_parallelism", "data": {"version": "x"}}));
    }

    /// Ends all streams; whoever followed may come again.
    pub fn hang_up(&self) {
        self.held.lock().streams.clear();
    }

    /// How often somebody asked for the stream.
    pub fn asked(&self) -> usize {
        self.held.lock().asked
    }

    /// What was reported of evaluations.
    pub fn reports(&self) -> Vec<Value> {
        self.held.lock().reports.clone()
    }

    /// Whether reports are never answered.
    pub fn hang_on_reports(&self) {
        self.held.lock().hangs_on_reports = true;
    }

    pub async fn stop(self) {
        self.hang_up();
        self.serving.stop(LONG).await.expect("the server ends");
    }
}

/// Shakes hands with one client after the other; whom the client does not trust gets no further.
struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (socket, address) = Listener::accept(&mut self.listener).await;
            if let Ok(socket) = self.acceptor.accept(socket).await {
                return (socket, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The settings from the flags at that URL.
pub fn config(url: &str) -> Config {
    let (stream_url, events_url, sdk_key) = (url.to_owned(), url.to_owned(), Some(SDK_KEY.into()));
    let launchdarkly = launchdarkly::Config { stream_url, events_url, sdk_key, ..launchdarkly::Config::default() };
    Config { source: Source::LaunchDarkly, launchdarkly, ..Config::default() }
}

/// A flag that is on: `variations`, of which `fallthrough` names one, or shares of them.
pub fn flag(variations: &[Value], fallthrough: Value, rules: Value) -> Value {
    json!({"on": true, "targets": [], "contextTargets": [], "rules": rules, "prerequisites": [], "fallthrough": fallthrough,
        "offVariation": null, "variations": variations, "salt": "salt", "trackEvents": false,
        "clientSideAvailability": {"usingEnvironmentId": false, "usingMobileKey": false}, "clientSide": false})
}

/// A flag that is this for all.
pub fn always(value: impl Into<Value>) -> Value {
    flag(&[value.into()], json!({"variation": 0}), json!([]))
}

/// A rule: whoever's attribute has the value gets the variation of that index.
pub fn rule(kind: &str, attribute: &str, value: &str, variation: usize) -> Value {
    let clause = json!({"contextKind": kind, "attribute": attribute, "op": "in", "values": [value], "negate": false});
    json!({"id": "a-rule", "variation": variation, "clauses": [clause], "trackEvents": false})
}

impl Held {
    fn say(&mut self, event: &str, data: &Value) {
        self.streams.retain(|stream| stream.send(message(event, data)).is_ok());
    }
}

fn message(event: &str, data: &Value) -> String {
    format!("event: {event}\ndata: {data}\n\n")
}

fn is_authorized(headers: &HeaderMap) -> bool {
    headers.get(header::AUTHORIZATION).is_some_and(|key| key == SDK_KEY)
}

async fn all(State(held): State<Arc<Mutex<Held>>>, headers: HeaderMap) -> Response {
    let mut held = held.lock();
    held.asked += 1;
    match held.answer {
        Answer::Status(status) => return StatusCode::from_u16(status).expect("a status").into_response(),
        _ if !is_authorized(&headers) => return StatusCode::UNAUTHORIZED.into_response(),
        Answer::Flags | Answer::Nothing => {}
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    // A comment, as LaunchDarkly sends now and then.
    let _ = sender.send(":\n".to_owned());
    if held.answer == Answer::Flags {
        let data = json!({"path": "/", "data": {"flags": held.flags, "segments": held.segments}});
        let _ = sender.send(message("put", &data));
        held.streams.push(sender);
    } else {
        // Held open, and told nothing.
        held.streams.push(sender);
    }
    let messages = stream::unfold(receiver, |mut receiver| async move {
        let message = receiver.recv().await?;
        Some((Ok::<_, Infallible>(message), receiver))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(messages)).into_response()
}

async fn bulk(State(held): State<Arc<Mutex<Held>>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if !is_authorized(&headers) {
        return StatusCode::UNAUTHORIZED;
    }
    let hangs = {
        let mut held = held.lock();
        held.reports.push(serde_json::from_slice(&body).expect("JSON"));
        held.hangs_on_reports
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    StatusCode::ACCEPTED
}
