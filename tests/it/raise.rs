//! `weir settings raise` on real workers, a real Redis and a bank with a knee.
//!
//! Windows are short, and where a test is about what is done and not about what is judged, its bounds are wide: the machine
//! may be a busy one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use weir::lifecycle::Lifecycle;
use weir::sandbox::{Behaviour, Concurrency};
use weir::settings::{Source, mark};

use crate::cli::{assert_failed, assert_ok, lines, run, stdout, weir};
use crate::settings_refused::by_hand;
use crate::support::house::{House, LONG, Plan, eventually, pull, synthetic};
use crate::support::processes::{self, Process};

/// For what is not about the verdict: everything is good.
const WIDE: [&str; 10] = [
    "--max-slower",
    "400%",
    "--max-failures",
    "50%",
    "--max-lag",
    "10s",
    "--max-memory",
    "1000%",
    "--max-growth",
    "1000%",
];

/// N before the raise.
const FROM: u32 = 12;

/// When a task ended, where, and how long it ran.
type Ran = Vec<(Instant, String, Duration)>;

/// Callers that always have the next task ready.
struct Load {
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<Option<()>>>,
    ran: Arc<Mutex<Ran>>,
}

impl Load {
    fn start(
        house: &House,
        callers: usize,
        task: impl Fn(&str) -> weir::client::Submission + Clone + Send + Sync + 'static,
    ) -> Self {
        let (stop, ran) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (lifecycle, next) = (Lifecycle::new(), Arc::new(AtomicU64::new(0)));
        let caller = |_| {
            let (client, stop, ran, next, task) =
                (house.client.clone(), stop.clone(), ran.clone(), next.clone(), task.clone());
            lifecycle.spawn("load", async move {
                while !stop.load(Ordering::Relaxed) {
                    let id = format!("load-{}", next.fetch_add(1, Ordering::Relaxed));
                    if let Ok(outcome) = client.submit(&task(&id)).await {
                        ran.lock().push((Instant::now(), outcome.worker.to_string(), outcome.timings.ran));
                    }
                }
            })
        };
        Load { callers: (0..callers).map(caller).collect(), stop, ran }
    }

    async fn end(self) -> Ran {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            tokio::time::timeout(LONG, caller).await.expect("in time").expect("it did not panic");
        }
        std::mem::take(&mut *self.ran.lock())
    }
}

fn variables(house: &House) -> Vec<(&'static str, String)> {
    vec![
        ("WEIR_REGISTRY__URL", house.redis.url()),
        ("WEIR_SETTINGS__SOURCE", "redis".into()),
        ("WEIR_SETTINGS__MAX_PARALLELISM", FROM.to_string()),
        ("USER", "me".into()),
    ]
}

async fn settings(house: &House, arguments: &[&str]) -> std::process::Output {
    let mut command = weir();
    command.arg("settings").args(arguments).envs(variables(house));
    run(&mut command, "").await
}

async fn history(house: &House) -> Vec<Value> {
    lines(&settings(house, &["history", "--json"]).await)
}

/// A raise as a process of its own, with JSON lines.
fn raise(house: &House, directory: &TempDir, name: &str, arguments: &[&str]) -> Process {
    let variables = variables(house);
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let arguments = [&["settings", "raise", "max_parallelism", "--json"], arguments].concat();
    Process::start(name, directory.path(), &processes::weir(), &arguments, &variables)
}

fn ended(mut process: Process, within: Duration) -> (Option<i32>, Vec<Value>, String) {
    let code = tokio::task::block_in_place(|| process.exit_code(within));
    let events = process.out().lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    (code, events, process.log())
}

fn events<'a>(all: &'a [Value], event: &str) -> Vec<&'a Value> {
    all.iter().filter(|line| line["event"] == event).collect()
}

fn targets(house: &House, workers: usize) -> Vec<u32> {
    let mut targets: Vec<_> = (0..workers).map(|worker| house.load(worker).target).collect();
    targets.sort_unstable();
    targets
}

/// Workers, and more to do than they take: few long tasks, which hold their slots on a busy machine, too.
async fn busy(workers: usize, milliseconds: u32) -> (House, Load) {
    let plan = Plan { workers, max_parallelism: FROM, settings: Source::Redis, ..Plan::default() };
    let house = plan.start().await;
    let load = Load::start(&house, workers * 30, move |id| synthetic(id, json!({"do": "sleep", "ms": milliseconds})));
    (house, load)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raise_goes_all_the_way_and_its_numbers_are_in_the_history() {
    let (house, load) = busy(2, 800).await;
    let set = settings(&house, &["set", "payload_sampling=0", "--why", "less to do"]).await;
    assert_ok(&set);
    let directory = tempfile::tempdir().expect("a directory");
    let arguments =
        [&["--to", "16", "--step", "40%", "--window", "600ms", "--watch", "1s", "--min-tasks", "20"][..], &WIDE]
            .concat();
    let (code, all, log) = ended(raise(&house, &directory, "raise", &arguments), 3 * LONG);
    assert_eq!(code, Some(0), "{all:#?}\n{log}");
    assert_eq!(targets(&house, 2), [16, 16]);
    let changes: Vec<_> =
        events(&all, "change").iter().map(|change| (change["n"].as_u64(), change["revision"].as_u64())).collect();
    assert_eq!(
        changes,
        [(Some(16), Some(2)), (Some(16), Some(3)), (Some(16), Some(4))],
        "on trial, for all, and without the mark"
    );
    let looks: Vec<_> = events(&all, "window").into_iter().filter(|window| window["verdicts"] != json!([])).collect();
    assert!(looks.iter().any(|look| look["on_trial"] == 16) && looks.iter().any(|look| look["on_trial"].is_null()));
    let end = events(&all, "end")[0];
    assert_eq!((&end["how"], &end["n"]), (&json!("reached"), &json!(16)));
    assert!(end["remains"].as_str().is_some_and(|text| text.contains("weir settings rollback 1 --why")), "{end}");

    let history = history(&house).await;
    let why = |revision: usize| history[4 - revision]["why"].as_str().expect("a reason").to_owned();
    assert!(why(2).starts_with("raise to 16: N = 16 for ") && why(2).contains("on trial"), "{}", why(2));
    assert!(why(3).contains("good after 12 windows: ") && why(3).contains("time of synthetic "), "{}", why(3));
    let document = |revision: usize| history[4 - revision]["document"].as_str().expect("a document").to_owned();
    let marked = |revision| mark::marked(document(revision).as_bytes(), "max_parallelism");
    assert!(marked(2).expect("under way").contains("take it back: weir settings rollback 1"));
    assert!(marked(3).is_some() && marked(4).is_none());

    // The way back leads to before the raise, and not to one of its steps.
    let back = settings(&house, &["rollback", "--why", "the bank slows down"]).await;
    assert_eq!(stdout(&back), "v5: the document of v1\n");
    eventually("it is put back", || targets(&house, 2) == [FROM, FROM]).await;
    assert_ok(&settings(&house, &["rollback", "3", "--why", "it was good"]).await);
    eventually("a step is", || targets(&house, 2) == [16, 16]).await;
    let dry = settings(&house, &["raise", "max_parallelism", "--to", "18", "--dry-run", "--window", "300ms"]).await;
    assert_ok(&dry);
    load.end().await;
    house.close().await;
}

/// A raise whose trial lasts until the test is done with it.
const ENDLESS: [&str; 8] = ["--to", "18", "--step", "50%", "--window", "500ms", "--min-tasks", "1000000"];

async fn until_trial(house: &House, process: &Process) {
    let until = Instant::now() + LONG;
    while targets(house, 2) != [FROM, 18] {
        assert!(Instant::now() < until, "no canary has its N:\n{}", process.out());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_raise_puts_back_what_was_there() {
    let (house, load) = busy(2, 1_000).await;
    let directory = tempfile::tempdir().expect("a directory");
    let process = raise(&house, &directory, "raise", &[&ENDLESS[..], &WIDE].concat());
    until_trial(&house, &process).await;
    process.signal(Signal::INT);
    let (code, all, log) = ended(process, LONG);
    assert_eq!(code, Some(130), "{log}");
    let end = events(&all, "end")[0];
    assert_eq!(
        (&end["how"], &end["n"], &end["why"]),
        (&json!("interrupted"), &json!(FROM), &json!("it was interrupted"))
    );
    let remains = end["remains"].as_str().expect("a text");
    assert!(remains.starts_with("All is as it was before: v") && remains.ends_with(" put it back"), "{remains}");
    eventually("it is put back", || targets(&house, 2) == [FROM, FROM]).await;
    let history = history(&house).await;
    assert!(history[0]["why"].as_str().is_some_and(|why| why.ends_with("it was interrupted")), "{}", history[0]);
    load.end().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_change_ends_a_raise_and_stays() {
    let (house, load) = busy(2, 1_000).await;
    let directory = tempfile::tempdir().expect("a directory");
    let process = raise(&house, &directory, "raise", &[&ENDLESS[..], &WIDE].concat());
    until_trial(&house, &process).await;
    assert_ok(&settings(&house, &["set", "payload_sampling=0.5", "--why", "mine"]).await);
    let (code, all, log) = ended(process, LONG);
    assert_eq!(code, Some(1));
    let expected = "weir: the raise has ended, for somebody else has changed the settings meanwhile (weir settings history and \
                    weir settings diff show what); what this raise wrote last (v1) may be a part of the document that is \
                    there; to end it: weir settings set max_parallelism=12 --pool default --why 'the raise is taken back'\n";
    assert!(log.ends_with(expected), "{log}");
    assert!(events(&all, "end").is_empty(), "{all:?}");
    assert_eq!(history(&house).await[0]["why"], "mine");
    let command = ["set", "max_parallelism=12", "--pool", "default", "--why", "the raise is taken back"];
    assert_ok(&settings(&house, &command).await);
    eventually("it is put back", || targets(&house, 2) == [FROM, FROM]).await;
    let document = history(&house).await[0]["document"].as_str().expect("a document").to_owned();
    assert_eq!(mark::marked(document.as_bytes(), "max_parallelism"), None, "the mark goes with it");
    assert!(document.contains("payload_sampling"));
    load.end().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_raise_is_found_by_the_next_one_and_undone_by_the_command_that_it_names() {
    let (house, load) = busy(2, 1_000).await;
    assert_ok(&settings(&house, &["set", "max_parallelism=12", "--why", "a document"]).await);
    let directory = tempfile::tempdir().expect("a directory");
    let process = raise(&house, &directory, "raise", &[&ENDLESS[..], &WIDE].concat());
    until_trial(&house, &process).await;
    process.signal(Signal::KILL);
    let (code, ..) = ended(process, LONG);
    assert_eq!(code, None);
    let again = settings(&house, &["raise", "max_parallelism", "--to", "18"]).await;
    assert_failed(
        &again,
        &[
            "another raise is under way: me@",
            "take it back: weir settings rollback 1 --why",
            "weir settings set max_parallelism=",
        ],
    );
    assert_ok(&settings(&house, &["rollback", "1", "--why", "the raise is taken back"]).await);
    eventually("it is put back", || targets(&house, 2) == [FROM, FROM]).await;
    let dry = settings(&house, &["raise", "max_parallelism", "--to", "18", "--dry-run", "--window", "300ms"]).await;
    assert_ok(&dry);
    load.end().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raise_begins_with_a_flag_that_is_off_at_what_workers_were_started_with() {
    let (house, load) = busy(2, 300).await;
    let off = json!({"flags": {"max_parallelism": {"state": "DISABLED", "variants": {"none": 0},
        "defaultVariant": "none"}}});
    by_hand(&house.redis, &off.to_string());
    assert_ok(&settings(&house, &["status", "--watch"]).await);
    let arguments = ["raise", "max_parallelism", "--to", "18", "--dry-run", "--window", "300ms"];
    assert_ok(&settings(&house, &arguments).await);
    assert_eq!(targets(&house, 2), [FROM, FROM]);
    load.end().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_compared_is_refused_and_a_dry_run_changes_nothing() {
    let plan = Plan { max_parallelism: FROM, settings: Source::Redis, ..Plan::default() };
    let mut house = plan.start().await;
    let alone = settings(&house, &["raise", "max_parallelism", "--to", "60"]).await;
    assert_failed(&alone, &["pool default has one worker", "start another one"]);
    house.add_worker().await;
    house.until_known(2).await;
    for (arguments, why) in [
        (&["--to", "12"][..], "--to 12: pool default has N = 12 already"),
        (&["--to", "60", "--pool", "nobody"], "pool nobody has no worker"),
        (&["--to", "60", "--window", "1ms"], "--window 1ms is not 100ms to 1h"),
        (&["--to", "60", "--prometheus", "x"], "is no URL"),
        // The port of nobody: nothing is begun that nothing can be seen of.
        (&["--to", "60", "--prometheus", "http://127.0.0.1:1"], "the metrics of no canary can be read, such as of "),
        (&["--to", "60", "--prometheus", "http://127.0.0.1:1", "--dry-run"], "the metrics of no canary can be read"),
    ] {
        let arguments = [&["raise", "max_parallelism"], arguments].concat();
        assert_failed(&settings(&house, &arguments).await, &[why]);
    }
    let other_key = settings(&house, &["raise", "payload_sampling", "--to", "60"]).await;
    assert_eq!(other_key.status.code(), Some(2));

    let dry = settings(&house, &["raise", "max_parallelism", "--to", "24", "--dry-run", "--window", "200ms"]).await;
    assert_ok(&dry);
    let text = stdout(&dry);
    for part in ["max_parallelism of pool default: 12 → 15 → 18 → 22 → 24", "slots held by each", "nothing was changed"]
    {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    assert!(history(&house).await.is_empty());

    let mut jumps = weir();
    jumps.args(["settings", "raise", "max_parallelism", "--to", "60", "--step", "100%"]).envs(variables(&house));
    let jumps = run(jumps.env("WEIR_SETTINGS__MAX_JUMP", "1.5"), "").await;
    assert_failed(&jumps, &["the step from N = 12 to 24", "more than 1.5 times", "use a smaller --step"]);

    // All have one N, and by a rule that the first step would replace.
    let nearly_all = ["set", "max_parallelism=12", "--pool", "default", "--share", "99.99%", "--why", "nearly all"];
    assert_ok(&settings(&house, &nearly_all).await);
    let ruled = settings(&house, &["raise", "max_parallelism", "--to", "60"]).await;
    assert_failed(
        &ruled,
        &["a rule for a share of the workers", "weir settings set max_parallelism=12 --pool default"],
    );
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prometheus_that_scrapes_the_workers_is_as_good_as_their_ports() {
    let (house, load) = busy(2, 400).await;
    let directory = tempfile::tempdir().expect("a directory");
    let targets: Vec<_> = (0..2).map(|worker| house.worker(worker).admin_address().to_string()).collect();
    let configuration = json!({"global": {"scrape_interval": "500ms"},
        "scrape_configs": [{"job_name": "weir", "static_configs": [{"targets": targets}]}]});
    std::fs::write(directory.path().join("prometheus.yml"), configuration.to_string()).expect("written");
    // A port that is free now; nobody else is told of it.
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let program = std::path::Path::new("/usr/bin/prometheus");
    if !program.exists() {
        eprintln!("skipped: there is no prometheus here");
        load.end().await;
        return drop(house.close().await);
    }
    let listen = format!("--web.listen-address={free}");
    let prometheus = Process::start(
        "prometheus",
        directory.path(),
        program,
        &["--config.file=prometheus.yml", "--storage.tsdb.path=data", &listen],
        &[],
    );
    let url = format!("http://{free}");
    let query = "/api/v1/query?query=weir_gate_task_seconds";
    let both = || processes::try_get(free, query).is_some_and(|text| text.matches("\"instance\"").count() == 2);
    eventually("both workers are scraped", || tokio::task::block_in_place(both)).await;
    let arguments =
        ["raise", "max_parallelism", "--to", "24", "--dry-run", "--window", "3s", "--json", "--prometheus", &url];
    let output = settings(&house, &arguments).await;
    assert_ok(&output);
    let seen = lines(&output).into_iter().find(|line| line["event"] == "observation").expect("an observation");
    for group in ["canaries", "controls"] {
        let of = &seen[group];
        assert_eq!(of["workers"], 1, "{seen}");
        // 12 slots, each a task of 0.4 s after the other, for about 3 s; a busy machine does less.
        assert!((6.0..=12.5).contains(&of["slots"].as_f64().expect("a number")), "{seen}");
        assert!(of["integrations"]["synthetic"]["ended"].as_u64() > Some(20), "{seen}");
        assert!(of["integrations"]["synthetic"]["mean_seconds"].as_f64() >= Some(0.4), "{seen}");
        assert!(of["memory_bytes"].as_f64() > Some(1e6), "{seen}");
    }

    // When it goes, the raise does not wait for windows that will tell nothing.
    let arguments = [&["--prometheus", url.as_str()], &ENDLESS[..]].concat();
    let blinded = raise(&house, &directory, "blinded", &arguments);
    let has_begun = || blinded.out().contains("\"event\":\"window\"");
    eventually("the first window has ended", || tokio::task::block_in_place(has_begun)).await;
    prometheus.signal(Signal::KILL);
    let (code, all, log) = ended(blinded, LONG);
    assert_eq!(code, Some(1), "{all:#?}\n{log}");
    assert_eq!(events(&all, "end")[0]["how"], "failed");
    assert!(log.contains("3 windows in a row told nothing: the metrics of no canary can be read"), "{log}");
    load.end().await;
    house.close().await;
}

/// A bank that works on so many requests of a worker at a time.
const KNEE: usize = 16;

fn quantile(of: &mut [Duration], at: f64) -> f64 {
    of.sort_unstable();
    of.get((of.len() as f64 * at) as usize).map_or(0.0, Duration::as_secs_f64)
}

/// What a worker does per second at this N.
async fn throughput(house: &House, load: &Load, n: u32) -> f64 {
    let assignment = format!("max_parallelism={n}");
    assert_ok(&settings(house, &["set", &assignment, "--why", "a sweep"]).await);
    eventually("it applies", || targets(house, 3) == [n; 3]).await;
    // Those that began before it end.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (from, lasts) = (Instant::now(), Duration::from_secs(5));
    tokio::time::sleep(lasts).await;
    let ended = load.ran.lock().iter().filter(|(at, ..)| (from..from + lasts).contains(at)).count();
    ended as f64 / lasts.as_secs_f64() / 3.0
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "three minutes: the full lane, tests/run --full"]
async fn a_raise_ends_at_the_knee_that_a_sweep_finds_and_others_never_notice() {
    let (workers, before) = (3, 10);
    let plan = Plan {
        workers,
        max_parallelism: before,
        settings: Source::Redis,
        sandbox_latency: Duration::from_millis(250),
        ..Plan::default()
    };
    let house = plan.start().await;
    let concurrency = Some(Concurrency { limit: KNEE, beyond: Default::default() });
    house.sandbox.set_behaviour(Behaviour { concurrency, ..Behaviour::default() }).expect("valid");
    assert_ok(&settings(&house, &["set", "payload_sampling=0", "--why", "less to do"]).await);
    let load = Load::start(&house, workers * 40, pull);

    // Throughput grows with N up to the knee, and stays: there its two lines meet.
    let low = throughput(&house, &load, before / 2).await / f64::from(before / 2);
    let high = throughput(&house, &load, 2 * KNEE as u32).await;
    let knee = high / low;
    println!("the sweep: {low:.2}/s for each slot, {high:.2}/s at most: a knee at {knee:.1}");
    throughput(&house, &load, before).await;

    let (began, directory) = (Instant::now(), tempfile::tempdir().expect("a directory"));
    // A third more: 10, 13, 16, 20. Memory and lag are the whole test's, with all that runs in it,
    // and that not one more in a hundred fails would take a thousand tasks to prove.
    let arguments = [
        "--to",
        "40",
        "--step",
        "30%",
        "--window",
        "1s",
        "--watch",
        "16s",
        "--min-tasks",
        "100",
        "--max-failures",
        "5%",
        "--max-lag",
        "1s",
        "--max-memory",
        "1000%",
        "--max-growth",
        "1000%",
        "--share",
        "30%",
    ];
    let (code, all, log) = ended(raise(&house, &directory, "raise", &arguments), 10 * LONG);
    let ran = load.end().await;
    let end = events(&all, "end")[0].clone();
    println!("the raise: {end}");
    for look in events(&all, "window").into_iter().filter(|window| window["verdicts"] != json!([])) {
        println!("  N = {}, on trial {}: {}", look["n"], look["on_trial"], look["verdicts"][0]);
    }
    let at = end["n"].as_f64().expect("a number");
    assert!(matches!(code, Some(3 | 4)), "it ends at the knee, not by a failure: {code:?}\n{log}");
    assert!((0.8 * knee..=1.2 * knee).contains(&at), "{at} and not {knee:.1}");

    // Each control, before and during the raise: the canaries are those that ran more than N at a time.
    let canaries: Vec<String> = events(&all, "plan")[0]["canaries"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|it| it.as_str().map(str::to_owned))
        .collect();
    let p99 = |during: bool| {
        let of = ran.iter().filter(|(at, worker, _)| !canaries.contains(worker) && (*at >= began) == during);
        // The sweep beyond the knee is not what was before.
        let mut times: Vec<_> =
            of.filter(|(at, ..)| during || *at + Duration::from_secs(5) > began).map(|(.., took)| *took).collect();
        quantile(&mut times, 0.99)
    };
    let (then, now) = (p99(false), p99(true));
    println!("p99 of the others: {:.0} ms before, {:.0} ms during the raise", then * 1e3, now * 1e3);
    // Its bound is 10% of the mean; a busy machine moves a p99 by itself.
    assert!(now <= 1.1 * 1.25 * then, "p99 outside of the share: {then:.3} s, then {now:.3} s");
    house.close().await;
}
