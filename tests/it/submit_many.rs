//! The client's stream of many tasks: one answer for each, whatever breaks, and nothing left when the caller goes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, Stream};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use weir::client::{Answer, Client, Options, Submission, SubmitError};
use weir::lifecycle::Lifecycle;
use weir::task::{Json, Outcome};
use weir::wire::proto::tasks_server::TasksServer;
use weir::wire::{MAX_INPUT_BYTES, Reason, Started, TaskError, proto};

use crate::support::cable::Cable;
use crate::support::house::{House, LONG, Plan, eventually, held, submission, synthetic};

fn client(url: &str, max_in_flight: usize) -> Client {
    Client::with_options(url, Options { max_in_flight, ..Options::default() }).expect("an address")
}

fn noop(id: &str) -> Submission {
    synthetic(id, json!({"do": "noop"}))
}

/// The next answer, which must come.
async fn next(answers: &mut (impl Stream<Item = Answer> + Unpin)) -> Answer {
    tokio::time::timeout(LONG, answers.next()).await.expect("an answer in time").expect("one more")
}

/// All answers by their ids; no task may have two.
async fn all(mut answers: impl Stream<Item = Answer> + Unpin, count: &AtomicUsize) -> HashMap<String, Told> {
    let mut told = HashMap::new();
    while let Some((id, answer)) = tokio::time::timeout(LONG, answers.next()).await.expect("an answer in time") {
        if let Ok(outcome) = &answer {
            assert_eq!(outcome.task, id, "the answer of another task");
        }
        assert!(told.insert(id.to_string(), word(answer)).is_none(), "two answers for {id}");
        count.fetch_add(1, Ordering::Relaxed);
    }
    told
}

/// `ok`, the failure's code, or the error's reason.
type Told = &'static str;

fn word(answer: Result<Outcome, SubmitError>) -> Told {
    answer.map_or_else(|error| error.reason(), |outcome| outcome.label())
}

fn counted(told: &HashMap<String, Told>) -> BTreeMap<Told, usize> {
    told.values().fold(BTreeMap::new(), |mut counts, word| {
        *counts.entry(*word).or_default() += 1;
        counts
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_a_thousand_tasks_gets_its_own_answer() {
    let house = Plan { workers: 2, max_parallelism: 16, ..Plan::default() }.start().await;
    let too_long = Json::of(&"x".repeat(MAX_INPUT_BYTES)).expect("JSON");
    let submission = |n: usize| {
        let id = format!("t-{n}");
        match n % 10 {
            0 => synthetic(&id, json!({"do": "fail"})),
            1 => synthetic(&id, json!({"do": "allocate", "bytes": 1024})),
            2 => submission(&id, "nobody-has-this", json!(null)),
            3 => Submission { input: too_long.clone(), ..noop(&id) },
            4 => Submission { timeout: Duration::ZERO, ..noop(&id) },
            5 => synthetic(&id, json!({"do": "sleep", "ms": 5})),
            _ => noop(&id),
        }
    };
    let expected = |n: usize| match n % 10 {
        0 => "integration_error",
        2 => "UNKNOWN_INTEGRATION",
        3 => "INVALID_TASK",
        4 => "DEADLINE_TOO_SHORT",
        _ => "ok",
    };
    let [router, worker] = house.urls();
    for (url, at_once, tasks) in [(&router, 300, 1_000), (&worker, 16, 200)] {
        let answers = client(url, at_once).submit_many(stream::iter((0..tasks).map(submission)));
        let told = all(answers, &AtomicUsize::new(0)).await;
        assert_eq!(told.len(), tasks);
        for n in 0..tasks {
            assert_eq!(told[&format!("t-{n}")], expected(n), "t-{n} of {at_once} at {url}");
        }
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_is_read_as_far_as_tasks_may_be_under_way_and_no_further() {
    let house = Plan { max_parallelism: 3, ..Plan::default() }.start().await;
    let read = AtomicUsize::new(0);
    let source = stream::iter((0..20).map(|n| held(&format!("t-{n}")))).inspect(|_| {
        read.fetch_add(1, Ordering::Relaxed);
    });
    let mut answers = client(&house.router_url(), 5).submit_many(source);
    assert_eq!(read.load(Ordering::Relaxed), 0, "nothing happens before it is polled");
    let waits = async {
        house.until_in_flight(0, 3).await;
        house.until_waiting("batch", 2).await;
    };
    tokio::select! {
        answer = answers.next() => panic!("nobody was let go: {answer:?}"),
        () = waits => {}
    }
    assert_eq!(read.load(Ordering::Relaxed), 5);
    for answered in 1..=15 {
        house.valve.release(1);
        next(&mut answers).await.1.expect("an outcome");
        assert!(read.load(Ordering::Relaxed) <= 5 + answered);
    }
    house.valve.release(5);
    assert_eq!(answers.by_ref().count().await, 5);
    assert!(answers.next().await.is_none(), "it stays at its end");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_answers_cancels_what_runs_and_what_waits() {
    let house = Plan { max_parallelism: 6, ..Plan::default() }.start().await;
    let cancelled = || house.worker_metric(0, "weir_tasks_total{integration=\"held\",outcome=\"cancelled\"}");
    for (round, url) in house.urls().iter().enumerate() {
        let mut answers = client(url, 6).submit_many(stream::iter((0..20).map(|n| held(&format!("t-{n}")))));
        tokio::select! {
            answer = answers.next() => panic!("nobody was let go: {answer:?}"),
            () = house.until_in_flight(0, 6) => {}
        }
        drop(answers);
        house.until_in_flight(0, 0).await;
        eventually("they are counted", || cancelled() == (6 * (round + 1)) as f64).await;
    }
    assert_eq!(house.valve.started().len(), 12, "what was not under way has never started");
    house.close().await;
}

/// Tasks of a stream in whose middle something happens.
const TASKS: usize = 400;

/// Runs a long stream and does something in the middle of it; every task must end well.
async fn all_end_well(house: &mut House, tasks: usize, disturb: impl AsyncFnOnce(&mut House, &AtomicUsize)) {
    let (client, done) = (client(&house.router_url(), 24), AtomicUsize::new(0));
    let sleeps = |n: usize| synthetic(&format!("t-{n}"), json!({"do": "sleep", "ms": 30}));
    let answers = client.submit_many(stream::iter((0..tasks).map(sleeps)));
    let (told, ()) = tokio::join!(all(answers, &done), disturb(house, &done));
    assert_eq!(counted(&told), BTreeMap::from([("ok", tasks)]), "{told:?}");
}

async fn until_done(done: &AtomicUsize, tasks: usize) {
    eventually("the stream goes on", || done.load(Ordering::Relaxed) >= tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_notices_that_a_worker_drains_and_another_one_joins() {
    let mut house = Plan { workers: 2, max_parallelism: 8, ..Plan::default() }.start().await;
    all_end_well(&mut house, TASKS, async |house, done| {
        until_done(done, 100).await;
        house.stop_worker(0).await;
        assert!(done.load(Ordering::Relaxed) < TASKS, "the drain was over under load");
        house.add_worker().await;
    })
    .await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_task_notices_that_the_router_is_restarted_in_order() {
    let mut house = Plan { workers: 2, max_parallelism: 8, ..Plan::default() }.start().await;
    all_end_well(&mut house, TASKS, async |house, done| {
        for round in 1..=2 {
            until_done(done, TASKS / 4 * round).await;
            house.restart_router().await;
        }
        assert!(done.load(Ordering::Relaxed) < TASKS, "the restarts were over under load");
    })
    .await;
    house.until_known(2).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_leaves_each_task_with_one_answer_and_nothing_runs_twice() {
    const TASKS: usize = 40;
    const RUNNING: usize = 4;
    let house = Plan { max_parallelism: 8, ..Plan::default() }.start().await;
    let mut cable = Cable::to(house.router_address()).await;
    let mut source: VecDeque<_> = (0..RUNNING).map(|n| held(&format!("held-{n}"))).collect();
    source.extend((0..TASKS).map(|n| noop(&format!("t-{n}"))));
    let client = client(&cable.url(), RUNNING);
    let mut answers = client.submit_many(stream::iter(source));
    tokio::select! {
        answer = answers.next() => panic!("nobody was let go: {answer:?}"),
        () = house.until_in_flight(0, RUNNING as u32) => {}
    }
    cable.unplug().await;
    for _ in 0..RUNNING {
        let (id, answer) = next(&mut answers).await;
        let error = answer.expect_err("nobody knows");
        assert!(id.as_str().starts_with("held-") && error.started() == Started::Unknown, "{id}: {error}");
        assert!(error.message().contains("the stream broke after the task was sent"), "{error}");
    }
    house.until_in_flight(0, 0).await;
    // Whoever is read while nobody can be reached never starts, and waits for the cable.
    assert!(tokio::time::timeout(Duration::from_millis(300), answers.next()).await.is_err());
    cable.plug().await;
    let told = all(answers, &AtomicUsize::new(0)).await;
    assert_eq!(counted(&told), BTreeMap::from([("ok", TASKS)]));
    assert_eq!(house.worker_metric(0, "weir_tasks_total{integration=\"synthetic\",outcome=\"ok\"}"), TASKS as f64);
    cable.unplug().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_again_and_again_lose_no_answer_and_run_nothing_twice() {
    const TASKS: usize = 800;
    const BREAKS: usize = 4;
    const AT_ONCE: usize = 48;
    let house = Plan { max_parallelism: 32, ..Plan::default() }.start().await;
    let mut cable = Cable::to(house.router_address()).await;
    let done = AtomicUsize::new(0);
    let sleeps = |n: usize| synthetic(&format!("t-{n}"), json!({"do": "sleep", "ms": 5}));
    let answers = client(&cable.url(), AT_ONCE).submit_many(stream::iter((0..TASKS).map(sleeps)));
    let breaks = async {
        for round in 1..=BREAKS {
            until_done(&done, round * TASKS / (BREAKS + 1)).await;
            cable.unplug().await;
            cable.plug().await;
        }
    };
    let (told, ()) = tokio::join!(all(answers, &done), breaks);
    let counts = counted(&told);
    let of = |word: &str| counts.get(word).copied().unwrap_or_default();
    let (ok, unknown) = (of("ok"), of("OUTCOME_UNKNOWN"));
    assert_eq!(ok + unknown, TASKS, "{counts:?}");
    assert!(unknown <= BREAKS * AT_ONCE, "only what was under way is unknown: {counts:?}");
    house.until_in_flight(0, 0).await;
    let runs = |outcome: &str| {
        house.worker_metric(0, &format!("weir_tasks_total{{integration=\"synthetic\",outcome=\"{outcome}\"}}"))
    };
    assert!(runs("ok") + runs("cancelled") <= TASKS as f64, "a task ran twice");
    cable.unplug().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_nobody_could_be_reached_for_never_started() {
    let hurried = Submission { timeout: Duration::from_millis(300), ..noop("hurried") };
    let mut answers = client("http://127.0.0.1:9", 4).submit_many(stream::iter([hurried]));
    let (_, answer) = next(&mut answers).await;
    let error = answer.expect_err("nobody is there");
    assert!(matches!(error, SubmitError::Unreachable { .. }) && error.started() == Started::No, "{error}");
    assert!(answers.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_is_under_way_is_refused_and_may_be_used_again_later() {
    let house = House::start().await;
    let (source, submissions) = mpsc::channel(4);
    let submissions = stream::unfold(submissions, async |mut rest| Some((rest.recv().await?, rest)));
    let mut answers = client(&house.router_url(), 4).submit_many(submissions);
    source.send(held("same")).await.expect("open");
    source.send(noop("same")).await.expect("open");
    let (id, answer) = next(&mut answers).await;
    match answer {
        Err(SubmitError::NotStarted(error)) => {
            assert_eq!((id.as_str(), error.reason), ("same", Reason::InvalidTask));
            assert!(error.message.contains("\"same\" is under way"), "{error}");
        }
        other => panic!("the second is refused: {other:?}"),
    }
    house.valve.release(1);
    next(&mut answers).await.1.expect("the first is as it was");
    source.send(noop("same")).await.expect("open");
    next(&mut answers).await.1.expect("the id is free");
    drop(source);
    assert!(answers.next().await.is_none());
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_was_in_time_is_no_time_out_however_late_it_is_read() {
    let house = House::start().await;
    let hurried = Submission { timeout: Duration::from_secs(3), ..held("hurried") };
    let over = Instant::now() + Duration::from_millis(4_500);
    let mut answers = client(&house.router_url(), 4).submit_many(stream::iter([hurried]));
    tokio::select! {
        answer = answers.next() => panic!("nobody was let go: {answer:?}"),
        () = house.until_in_flight(0, 1) => {}
    }
    // From here on nobody polls until the task's time is over, and the margin for its answer.
    house.valve.release(1);
    house.until_in_flight(0, 0).await;
    let ran = || house.worker_metric(0, "weir_tasks_total{integration=\"held\",outcome=\"ok\"}");
    assert_eq!(ran(), 1.0, "it was not let go in time");
    tokio::time::sleep_until(over).await;
    let (id, answer) = next(&mut answers).await;
    answer.unwrap_or_else(|error| panic!("{id}: {error}"));
    drop(answers);
    house.close().await;
}

/// A server that never answers what comes over its first call, and refuses the rest.
#[derive(Clone, Default)]
struct Forgetful {
    calls: Arc<AtomicUsize>,
    first_is_over: Arc<AtomicBool>,
}

struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tonic::async_trait]
impl proto::tasks_server::Tasks for Forgetful {
    async fn submit(&self, _: Request<proto::Task>) -> Result<Response<proto::Outcome>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    type SubmitManyStream = BoxStream<'static, Result<proto::Reply, Status>>;

    async fn submit_many(
        &self,
        request: Request<Streaming<proto::Task>>,
    ) -> Result<Response<Self::SubmitManyStream>, Status> {
        let is_first = self.calls.fetch_add(1, Ordering::Relaxed) == 0;
        let over = is_first.then(|| Over(self.first_is_over.clone()));
        let replies = weir::wire::stream::reply_to_each(request.into_inner(), 10, move |_| async move {
            if is_first { std::future::pending().await } else { Err(TaskError::invalid("refused")) }
        });
        let replies = replies.inspect(move |_| {
            let _ = &over;
        });
        Ok(Response::new(replies.boxed()))
    }
}

/// Serves without all that a role has beside it.
fn serve(server: Forgetful, lifecycle: &Lifecycle) -> SocketAddr {
    let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let (address, token) = (incoming.local_addr().expect("it is bound"), lifecycle.token());
    let served = Server::builder().add_service(TasksServer::new(server));
    lifecycle.spawn("server", served.serve_with_incoming_shutdown(incoming, token.cancelled_owned()));
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_never_answered_ends_at_its_timeout_and_its_call_takes_no_other() {
    let (server, lifecycle) = (Forgetful::default(), Lifecycle::new());
    let address = serve(server.clone(), &lifecycle);
    let hurried = |id: &str| Submission { timeout: Duration::from_millis(200), ..noop(id) };
    let source = [hurried("same"), hurried("same"), hurried("other")];
    let mut answers = client(&format!("http://{address}"), 1).submit_many(stream::iter(source));
    let (_, answer) = next(&mut answers).await;
    let error = answer.expect_err("nobody knows");
    assert_eq!((error.reason(), error.started()), ("OUTCOME_UNKNOWN", Started::Unknown));
    assert!(error.message().contains("did not answer within the task's timeout"), "{error}");
    for id in ["same", "other"] {
        let (told, answer) = next(&mut answers).await;
        assert_eq!((told.as_str(), word(answer)), (id, "INVALID_TASK"));
    }
    assert_eq!(server.calls.load(Ordering::Relaxed), 2);
    eventually("the first call is over at the server", || server.first_is_over.load(Ordering::Relaxed)).await;
    drop(answers);
    lifecycle.stop(LONG).await.expect("the server ends");
}
