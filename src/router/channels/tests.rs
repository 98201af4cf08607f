use futures_util::future::join_all;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::*;
use crate::wire::proto;

/// Long enough for a machine that does other things, too.
const LONG: Duration = Duration::from_secs(20);

/// A port that takes connections and says nothing.
struct Peer {
    _listener: TcpListener,
    placement: Placement,
}

impl Peer {
    async fn new(worker: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let placement = placement(worker, listener.local_addr().expect("bound").port());
        Peer { _listener: listener, placement }
    }
}

fn placement(worker: &str, port: u16) -> Placement {
    let address = format!("http://127.0.0.1:{port}");
    Placement {
        worker: worker.parse().expect("an id"),
        incarnation: Incarnation::mint(),
        address,
        at: Instant::now(),
        tries: false,
    }
}

fn channels(max: usize) -> Arc<Channels> {
    Channels::new(Config { max, ..Config::default() })
}

fn closed(channels: &Channels, why: Closed) -> u64 {
    channels.numbers().closed[why as usize]
}

async fn lease(channels: &Arc<Channels>, peer: &Peer) -> Lease {
    channels.lease(&peer.placement).await.expect("it listens")
}

#[tokio::test]
async fn as_many_as_configured_and_one_more_closes_the_one_that_is_unused_for_longest() {
    let channels = channels(2);
    let (a, b, c) = (Peer::new("a").await, Peer::new("b").await, Peer::new("c").await);
    drop(lease(&channels, &a).await);
    drop(lease(&channels, &b).await);
    drop(lease(&channels, &a).await);
    let on_c = lease(&channels, &c).await;
    assert_eq!((channels.numbers().open, closed(&channels, Closed::Evicted)), (2, 1));
    let on_a = lease(&channels, &a).await;
    assert_eq!(closed(&channels, Closed::Evicted), 1, "it was b that had to go");
    let refused = channels.lease(&b.placement).await.err().expect("both have calls");
    assert_eq!(refused, NoChannel::Limit { max: 2 });
    drop(on_c);
    drop(lease(&channels, &b).await);
    assert_eq!(closed(&channels, Closed::Evicted), 2);
    drop(on_a);
    assert_eq!(channels.numbers().open, 2);
}

#[tokio::test]
async fn what_is_unused_for_a_while_is_closed_and_what_is_used_is_not() {
    let channels = channels(9);
    let (idle, used) = (Peer::new("idle").await, Peer::new("used").await);
    drop(lease(&channels, &idle).await);
    let call = lease(&channels, &used).await;
    let now = Instant::now();
    channels.close_idle(now + Config::default().idle_timeout / 2);
    assert_eq!(channels.numbers().open, 2);
    channels.close_idle(now + Config::default().idle_timeout);
    assert_eq!((channels.numbers().open, closed(&channels, Closed::Idle)), (1, 1));
    drop(call);
    channels.close_idle(Instant::now() + Config::default().idle_timeout);
    assert_eq!((channels.numbers().open, closed(&channels, Closed::Idle)), (0, 2));
}

#[tokio::test]
async fn the_channel_of_a_worker_that_is_gone_is_closed_when_its_last_call_has_ended() {
    let channels = channels(9);
    let (idle, used) = (Peer::new("idle").await, Peer::new("used").await);
    drop(lease(&channels, &idle).await);
    let (one, other) = (lease(&channels, &used).await, lease(&channels, &used).await);
    channels.close(&[idle.placement.clone(), used.placement.clone()]);
    assert_eq!((channels.numbers().open, closed(&channels, Closed::Gone)), (1, 1));
    drop(one);
    assert_eq!(channels.numbers().open, 1);
    drop(other);
    assert_eq!((channels.numbers().open, closed(&channels, Closed::Gone)), (0, 2));
}

#[tokio::test]
async fn a_connection_that_cannot_be_made_leaves_no_channel_and_the_next_call_tries_again() {
    let channels = channels(9);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let placement = placement("w1", address.port());
    drop(listener);
    let NoChannel::Connect { address: at, reason } = channels.lease(&placement).await.err().expect("nobody listens")
    else {
        panic!("it is no other error")
    };
    assert!(at == placement.address && reason.to_lowercase().contains("refused"), "{reason}");
    let numbers = channels.numbers();
    assert_eq!((numbers.open, numbers.connect_failures), (0, 1));
    let _listener = TcpListener::bind(address).await.expect("the port is still free");
    drop(channels.lease(&placement).await.expect("somebody listens again"));
    let broken = Placement { address: "no uri".into(), incarnation: Incarnation::mint(), ..placement };
    assert!(matches!(channels.lease(&broken).await, Err(NoChannel::Address { .. })));
}

/// A host that answers no packet: its queue of connections that nobody accepts is full.
async fn swallowing(worker: &str) -> (TcpListener, Vec<TcpStream>, Placement) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let listener = socket.listen(1).expect("it listens");
    let address = listener.local_addr().expect("bound");
    let mut waiting = Vec::new();
    while let Ok(connected) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        waiting.push(connected.expect("it is taken"));
    }
    (listener, waiting, placement(worker, address.port()))
}

#[tokio::test]
async fn fifty_calls_to_a_host_that_swallows_packets_wait_for_one_timeout_and_not_for_fifty() {
    let channels = channels(9);
    let (_listener, _waiting, placement) = swallowing("w1").await;
    let began = Instant::now();
    let ended = join_all((0..50).map(|_| channels.lease(&placement))).await;
    assert!(ended.iter().all(|lease| matches!(lease, Err(NoChannel::Connect { .. }))));
    assert!(began.elapsed() < CONNECT_TIMEOUT * 5, "{:?}", began.elapsed());
    let numbers = channels.numbers();
    assert_eq!((numbers.open, numbers.connect_failures), (0, 1));
}

#[tokio::test]
async fn a_connection_that_all_have_given_up_is_forgotten() {
    let channels = channels(9);
    let (_listener, _waiting, placement) = swallowing("w1").await;
    let moment = Duration::from_millis(50);
    let given_up = tokio::time::timeout(moment, join_all((0..3).map(|_| channels.lease(&placement)))).await;
    assert!(given_up.is_err());
    let numbers = channels.numbers();
    assert_eq!((numbers.open, numbers.connect_failures), (0, 0), "nobody waits for it");
}

#[tokio::test]
async fn pings_find_a_peer_that_says_nothing_any_more_and_the_next_call_has_another_connection() {
    let soon = Duration::from_millis(100);
    let config = Config { keep_alive_interval: soon, keep_alive_timeout: soon, ..Config::default() };
    let channels = Channels::new(config);
    let silent = Peer::new("silent").await;
    let (mut one, other) = (lease(&channels, &silent).await, lease(&channels, &silent).await);
    let ended = tokio::time::timeout(LONG, one.client.submit(proto::Task::default())).await;
    let status = ended.expect("a ping is not answered").expect_err("nor is the call");
    assert!(describe(&status).contains("keep-alive"), "{}", describe(&status));
    one.broke();
    other.broke();
    assert_eq!((channels.numbers().open, closed(&channels, Closed::Failed)), (0, 1), "it is one connection");
    let next = lease(&channels, &silent).await;
    drop((one, other));
    assert_eq!(channels.numbers().open, 1, "the calls on the former one do not count here");
    drop(next);
    assert_eq!(channels.numbers().connect_failures, 0);
}
