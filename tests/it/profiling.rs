//! Profiles of a running worker: that they name what is hot, what is refused, and that one worker at a time profiles itself.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use flate2::read::GzDecoder;
use prost::Message;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};
use weir::client::operations::{Operations, ProfileForm};
use weir::config;
use weir::integration::{Context, Error, Integration, Integrations};
use weir::lifecycle::Lifecycle;
use weir::registry::redis::RedisRegistry;
use weir::registry::{self, Registry};
use weir::task::Json;
use weir::telemetry::Telemetry;
use weir::telemetry::profile::proto::Profile;

use crate::support::calls::http_get;
use crate::support::house::{House, LONG, Plan, answer, eventually, submission};
use crate::support::lone;
use crate::support::processes::{self, Process};
use crate::support::redis::RedisServer;

/// The profiler is the process's: where tests share one, they take turns.
async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// Burns processor time for as long as its input says, in a function that calls no other.
struct Hot;

#[async_trait]
impl Integration for Hot {
    async fn run(&self, context: &Context) -> Result<Json, Error> {
        let milliseconds: u64 = context.input()?;
        let burnt = context.blocking(move || {
            let end = Instant::now() + Duration::from_millis(milliseconds);
            let mut burnt = 1;
            while Instant::now() < end {
                burnt = a_deliberately_hot_function(burnt);
            }
            burnt
        });
        Json::of(&burnt.await?.to_string()).map_err(|error| Error::permanent(error.to_string()))
    }
}

#[inline(never)]
fn a_deliberately_hot_function(mut state: u64) -> u64 {
    let mut round = 0_u32;
    while round < 2_000_000 {
        state = (state >> 1) ^ ((state & 1) * 0xD800_0000_0000_0000);
        round += 1;
    }
    std::hint::black_box(state)
}

const HOT: &str = "a_deliberately_hot_function";

fn hot_plan() -> Plan {
    let own = || Integrations::new().with("hot".parse().expect("a name"), Hot);
    Plan { own: Arc::new(move |_| own()), ..Plan::default() }
}

fn decoded(gzipped: &[u8]) -> Profile {
    let mut bytes = Vec::new();
    GzDecoder::new(gzipped).read_to_end(&mut bytes).expect("gzip");
    Profile::decode(&bytes[..]).expect("a profile")
}

/// Samples by the innermost function.
fn by_innermost(gzipped: &[u8]) -> BTreeMap<String, i64> {
    let profile = decoded(gzipped);
    let text = |index: i64| profile.string_table[index as usize].clone();
    assert_eq!(text(profile.sample_type[0].r#type), "samples");
    let locations: BTreeMap<_, _> = profile.location.iter().map(|location| (location.id, location)).collect();
    let functions: BTreeMap<_, _> = profile.function.iter().map(|function| (function.id, function)).collect();
    let mut samples = BTreeMap::new();
    for sample in &profile.sample {
        let Some(innermost) = sample.location_id.first() else { continue };
        let line = locations[innermost].line.first().expect("a function");
        *samples.entry(text(functions[&line.function_id].name)).or_default() += sample.value[0];
    }
    samples
}

/// The most frequent, and its share of all.
fn hottest(samples: &BTreeMap<String, i64>) -> (&str, f64) {
    let all: i64 = samples.values().sum();
    let (name, count) = samples.iter().max_by_key(|(_, count)| **count).expect("samples");
    (name, *count as f64 / all as f64)
}

async fn get_bytes(address: std::net::SocketAddr, path: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut bytes = Vec::new();
    tokio::time::timeout(4 * LONG, stream.read_to_end(&mut bytes)).await.expect("in time").expect("an answer");
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    (String::from_utf8_lossy(&bytes[..end]).into_owned(), bytes[end + 4..].to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_shows_the_hot_function_on_top_in_each_form() {
    let _turn = turn().await;
    let house = hot_plan().start().await;
    let hot = |n: usize| house.submit(submission(&format!("t-{n}"), "hot", json!(6_000)));
    let admin = house.worker(0).admin_address();

    let burning = hot(1);
    house.until_in_flight(0, 1).await;
    let (head, profile) = get_bytes(admin, "/debug/pprof/profile?seconds=2").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/octet-stream"), "{head}");
    let samples = by_innermost(&profile);
    let (name, share) = hottest(&samples);
    assert!(name.contains(HOT) && share > 0.5, "{share:.2} of the samples are in {name}: {samples:?}");
    answer(burning).await.expect("an outcome");

    let burning = hot(2);
    house.until_in_flight(0, 1).await;
    let operations = Operations::new(&house.worker_url(0)).expect("an address");
    let graph = operations.profile(ProfileForm::FlameGraph, 2, 99).await.expect("a flame graph");
    let graph = String::from_utf8(graph).expect("text");
    assert!(graph.contains(HOT) && graph.contains("<svg") && graph.contains("search"), "{graph}");
    assert!(graph.contains(house.worker(0).id().as_str()), "it says whose it is");
    answer(burning).await.expect("an outcome");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_asked_for_is_refused_with_what_can() {
    let _turn = turn().await;
    let house = House::start().await;
    for address in [house.router_admin(), house.worker(0).admin_address()] {
        for (query, says) in [
            ("seconds=0", "seconds is 0: use an integer from 1 to 300"),
            ("seconds=301", "seconds is 301: use an integer from 1 to 300"),
            ("hz=100", "hz is 100: use an integer from 1 to 99"),
            ("hz=0&seconds=1", "hz is 0: use an integer from 1 to 99"),
            ("seconds=soon", "seconds, an integer from 1 to 300"),
            ("seconds=-1", "seconds, an integer from 1 to 300"),
            ("secs=1", "the parameters are seconds"),
        ] {
            for path in ["profile", "flamegraph"] {
                let refusal = http_get(address, &format!("/debug/pprof/{path}?{query}")).await;
                assert_eq!(refusal.status, 400, "{query}: {}", refusal.body);
                assert!(refusal.body.contains(says), "{query}: {}", refusal.body);
            }
        }
    }
    house.close().await;

    let text = lone::WORKER.replace("[worker]", "[worker]\nprofile_from = \"nowhere\"");
    let mut config = config::from_text(&text).expect("a configuration");
    let directory = tempfile::tempdir().expect("a directory");
    config.payloads.directory.path = directory.path().into();
    let own = Integrations::new().with("hot".parse().expect("a name"), Hot);
    let (worker, _) = lone::start(config, own, Telemetry::new().expect("a recorder")).await;
    for path in ["profile?seconds=1", "flamegraph", "heap"] {
        let refusal = http_get(worker.admin_address(), &format!("/debug/pprof/{path}")).await;
        assert_eq!(refusal.status, 403, "{}", refusal.body);
        assert!(refusal.body.contains("worker.profile_from = \"anywhere\""), "{}", refusal.body);
    }
    let operations = Operations::new(&worker.address().to_string()).expect("an address");
    let error = operations.profile(ProfileForm::Pprof, 1, 99).await.expect_err("refused").to_string();
    assert!(error.contains("nobody may profile this process"), "{error}");
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_profile_at_a_time_and_a_caller_that_goes_away_ends_it() {
    let _turn = turn().await;
    let mut house = House::start().await;
    let admin = house.worker(0).admin_address();
    let sampling = |house: &House| house.worker_metric(0, "weir_profile_sampling");
    let mut first = TcpStream::connect(admin).await.expect("it listens");
    first.write_all(b"GET /debug/pprof/profile?seconds=300 HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
    eventually("it samples", || sampling(&house) == 1.0).await;

    // The first is of the process, which the router is part of here.
    for address in [admin, house.router_admin()] {
        let second = http_get(address, "/debug/pprof/flamegraph?seconds=1").await;
        assert_eq!(second.status, 429, "{}", second.body);
        assert!(second.body.contains("being profiled already, until 20"), "{}", second.body);
        assert!(second.head.to_lowercase().contains("retry-after: "), "{}", second.head);
    }
    let operations = Operations::new(&house.worker_url(0)).expect("an address");
    let error = operations.profile(ProfileForm::Pprof, 1, 99).await.expect_err("busy").to_string();
    assert!(error.contains("being profiled already"), "{error}");
    drop(first);
    eventually("it no longer samples", || sampling(&house) == 0.0).await;

    // The same over gRPC.
    let callers = Lifecycle::new();
    let caller = callers.spawn("caller", async move { operations.profile(ProfileForm::Pprof, 300, 99).await });
    eventually("it samples again", || sampling(&house) == 1.0).await;
    caller.abort();
    eventually("it no longer samples", || sampling(&house) == 0.0).await;

    // And a stop ends it with an answer.
    let (ended, _) = tokio::join!(http_get(admin, "/debug/pprof/profile?seconds=300"), async {
        eventually("it samples once more", || sampling(&house) == 1.0).await;
        house.stop_worker(0).await
    });
    assert_eq!(ended.status, 503, "{}", ended.body);
    house.close().await;
}

/// A router as a process of its own, which is all that a profile needs; with jemalloc where the tests have it.
fn router(directory: &Path, variables: &[(&str, &str)]) -> (Process, String) {
    let usual = [("WEIR_REGISTRY__URL", "redis://127.0.0.1:9"), ("WEIR_LOG__FORMAT", "json")];
    let variables = [&usual[..], variables].concat();
    let flags = ["router", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let mut router = Process::start("router", directory, &processes::weir(), &flags, &variables);
    let line = router.wait_for_log("the router serves");
    let address = line["listen"].as_str().expect("an address").to_owned();
    (router, address)
}

fn profile_to_end(directory: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let flags = [&["profile"], flags].concat();
    let mut command = Process::start("profile", directory, &processes::weir(), &flags, &[]);
    (command.exit_code(4 * processes::LONG), command.log())
}

#[test]
fn the_command_writes_files_that_appear_whole_or_not_at_all() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut router, address) = router(directory.path(), &[]);
    let file = |name: &str| directory.path().join(name).display().to_string();
    for (name, begins) in [("flame.svg", &b"<?xml"[..]), ("router.pb.gz", &[0x1f, 0x8b])] {
        let (code, log) = profile_to_end(directory.path(), &[&address, "--seconds", "1", "-o", &file(name)]);
        assert_eq!(code, Some(0), "{log}");
        assert!(std::fs::read(file(name)).expect("written").starts_with(begins), "{name}");
        let (code, log) = profile_to_end(directory.path(), &[&address, "--seconds", "1", "-o", &file(name)]);
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("exists already; --force replaces it"), "{log}");
    }
    let (code, log) = profile_to_end(directory.path(), &["127.0.0.1:9", "--seconds", "1", "-o", &file("none.svg")]);
    assert_eq!(code, Some(1));
    assert!(log.contains("cannot reach http://127.0.0.1:9") && !directory.path().join("none.svg").exists(), "{log}");
    let (code, log) = profile_to_end(directory.path(), &[&address, "--heap", "-o", &file("heap.pb.gz")]);
    assert_eq!(code, Some(1));
    assert!(log.contains("_RJEM_MALLOC_CONF=prof:true"), "{log}");
    router.stop();
}

#[test]
fn a_process_that_ends_while_it_is_profiled_is_said_to_have_ended() {
    let directory = tempfile::tempdir().expect("a directory");
    let (router, address) = router(directory.path(), &[]);
    let lines = router.lines_logged();
    let admin = lines.iter().find_map(|line| line["admin"].as_str()).expect("an address").parse().expect("an address");
    let file = directory.path().join("flame.svg").display().to_string();
    let flags = ["profile", &address, "--seconds", "60", "-o", &file];
    let mut command = Process::start("profile", directory.path(), &processes::weir(), &flags, &[]);
    let samples = || processes::metric(&processes::get(admin, "/metrics"), "weir_profile_sampling", "") == 1.0;
    processes::wait_for("it samples", processes::LONG, || samples().then_some(()));
    router.signal(rustix::process::Signal::KILL);
    let (code, log) = (command.exit_code(processes::LONG), command.log());
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("did not answer as it should: it was being profiled, and the connection broke"), "{log}");
    assert!(!std::path::Path::new(&file).exists());
}

#[cfg(feature = "jemalloc")]
#[test]
fn a_heap_profile_names_who_allocated_what_is_held() {
    let directory = tempfile::tempdir().expect("a directory");
    // A sample each 4 KiB, for a small process.
    let (mut router, address) = router(directory.path(), &[("_RJEM_MALLOC_CONF", "prof:true,lg_prof_sample:12")]);
    let file = directory.path().join("heap.pb.gz").display().to_string();
    let (code, log) = profile_to_end(directory.path(), &[&address, "--heap", "-o", &file]);
    assert_eq!(code, Some(0), "{log}");
    let profile = decoded(&std::fs::read(&file).expect("written"));
    let text = |index: i64| profile.string_table[index as usize].as_str();
    let kinds: Vec<_> = profile.sample_type.iter().map(|kind| (text(kind.r#type), text(kind.unit))).collect();
    assert_eq!(kinds, [("inuse_objects", "count"), ("inuse_space", "bytes")]);
    let bytes: i64 = profile.sample.iter().map(|sample| sample.value[1]).sum();
    assert!(bytes > 10_000, "{bytes} bytes are held");
    assert!(profile.function.iter().any(|function| text(function.name).contains("weir::")), "it has names");
    router.stop();
}

/// Files below `profiles/` in the house's bucket.
fn profiles(house: &House) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![house.bucket().join("profiles")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "gz") {
                files.push(path);
            }
        }
    }
    files
}

const LEASE: &str = "weir:{default}:lease:profile";

#[tokio::test(flavor = "multi_thread")]
async fn one_worker_of_a_pool_profiles_itself_and_stores_the_profile_when_it_ends() {
    let _turn = turn().await;
    let mut house = Plan { workers: 2, ..hot_plan() }.start().await;
    // The first one of a process reads its unwind tables, and on a busy machine that takes as long as the task below.
    get_bytes(house.worker(0).admin_address(), "/debug/pprof/profile?seconds=1").await;
    let holds = |house: &House, index| house.worker_metric(index, "weir_profile_lease_held") == 1.0;
    for index in [0, 1] {
        house.set(index, &[("profiling", json!("until_exit"))]);
    }
    eventually("one holds the lease", || holds(&house, 0) || holds(&house, 1)).await;
    let (first, second) = if holds(&house, 0) { (0, 1) } else { (1, 0) };
    let token = house.redis.ask(&format!("GET {LEASE}"));
    eventually("it samples", || house.worker_metric(first, "weir_profile_sampling") == 1.0).await;
    let task = house.submit_to_worker(first, submission("t-1", "hot", json!(3_000)));
    answer(task).await.expect("an outcome");
    assert!(!holds(&house, second) && profiles(&house).is_empty());

    let id = house.worker(first).id().clone();
    house.stop_worker(first).await;
    let [stored] = &profiles(&house)[..] else { panic!("one profile is stored: {:?}", profiles(&house)) };
    let name = stored.file_name().expect("a name").to_string_lossy().into_owned();
    let token = token.lines().last().expect("a token").to_owned();
    assert_eq!(name, format!("{token}-{id}.pb.gz"));
    let samples = by_innermost(&std::fs::read(stored).expect("readable"));
    assert!(hottest(&samples).0.contains(HOT), "{samples:?}");

    eventually("it is the other one's turn", || holds(&house, second)).await;
    house.set(second, &[("profiling", json!("off"))]);
    eventually("it has stored what it has", || profiles(&house).len() == 2).await;
    eventually("and gave the lease back", || !holds(&house, second)).await;
    assert_eq!(house.redis.ask(&format!("EXISTS {LEASE}")), ":0\r\n");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_has_lost_the_lease_stores_nothing() {
    let _turn = turn().await;
    let house = House::start().await;
    house.set(0, &[("profiling", json!("until_exit"))]);
    eventually("it samples", || house.worker_metric(0, "weir_profile_sampling") == 1.0).await;
    let own = house.redis.ask(&format!("GET {LEASE}"));
    house.redis.ask(&format!("SET {LEASE} 9999999999999 PX 60000"));
    let lost = || house.worker_metric(0, "weir_profile_uploads_total{outcome=\"lease_lost\"}") == 1.0;
    eventually("it hears of that", lost).await;
    eventually("it no longer samples", || house.worker_metric(0, "weir_profile_sampling") == 0.0).await;
    assert!(profiles(&house).is_empty());

    // When that one is gone, it takes its turn again, by a larger token.
    house.redis.ask(&format!("DEL {LEASE}"));
    eventually("it samples again", || house.worker_metric(0, "weir_profile_sampling") == 1.0).await;
    let token = |reply: String| reply.lines().last().expect("a token").parse::<u64>().expect("a number");
    assert!(token(house.redis.ask(&format!("GET {LEASE}"))) > token(own));
    house.set(0, &[("profiling", json!("off"))]);
    eventually("what it has now is stored", || profiles(&house).len() == 1).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_one_holders_until_its_time_is_over_in_redis() {
    let server = RedisServer::start();
    let registry = || {
        let config = registry::Config { url: Some(server.url().into()), ..registry::Config::default() };
        let telemetry = Telemetry::new().expect("a recorder");
        RedisRegistry::new(&config, &"default".parse().expect("a pool"), &telemetry).expect("a valid config")
    };
    let (one, other) = (registry(), registry());
    let (taken, refused) = tokio::join!(one.lease("profile", None), other.lease("profile", None));
    let (taken, refused) = (taken.expect("it answers"), refused.expect("it answers"));
    assert!(taken.is_some() != refused.is_some(), "exactly one has it: {taken:?}, {refused:?}");
    let (holder, waiter) = if taken.is_some() { (&one, &other) } else { (&other, &one) };
    let first = taken.or(refused).expect("one has it");
    assert_eq!(holder.lease("profile", Some(first)).await, Ok(Some(first)), "renewed");
    assert_eq!(waiter.lease("profile", None).await, Ok(None));

    // The holder was killed: nobody renews.
    server.ask(&format!("PEXPIRE {LEASE} 1"));
    tokio::time::sleep(Duration::from_millis(20)).await;
    let second = waiter.lease("profile", None).await.expect("it answers").expect("it is free");
    assert!(second > first);
    assert_eq!(holder.lease("profile", Some(first)).await, Ok(None), "an old token renews nothing");
    holder.release("profile", first).await.expect("and gives nothing back");
    assert_eq!(waiter.lease("profile", Some(second)).await, Ok(Some(second)));

    // A server that has forgotten all gives no smaller token.
    server.ask("FLUSHALL");
    assert_eq!(waiter.lease("profile", Some(second)).await, Ok(None));
    let third = holder.lease("profile", None).await.expect("it answers").expect("it is free");
    assert!(third > second, "{third} comes after {second}");
    holder.release("profile", third).await.expect("given back");
    assert!(waiter.lease("profile", None).await.expect("it answers").expect("it is free") > third);
}
