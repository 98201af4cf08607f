//! A whole weir under random faults: tasks that panic, hang, ignore their end, block a thread or fail; callers that go
//! away; limits that change all the time. What must hold, holds at each moment:
//!
//! - no task is admitted over N, over a cap, or into the reserve: the integration itself counts what runs;
//! - each submitted task ends in one outcome or one typed error, and no task runs twice;
//! - when all is over, no place is taken and no payload is unaccounted for.
//!
//! Three seconds of it run with all other tests; `WEIR_SOAK_SECONDS` says how long the one of the full lane runs.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use weir::client::{Client, Submission, SubmitError};
use weir::integration::{Context, Error, Integration, Integrations, OnCancel};
use weir::lifecycle::Lifecycle;
use weir::task::{FailureCode, Json, Priority};
use weir::wire::Started;

use crate::support::house::{House, LONG, Plan, answer, submission, synthetic};

const WORKERS: usize = 2;
const CALLERS: u64 = 48;
const INTEGRATIONS: [&str; 3] = ["north", "south", "west"];
const TENANTS: [&str; 4] = ["a", "b", "c", "d"];

/// A change of the settings has arrived by then: they are looked at each 250 ms, and this machine may be busy.
const ARRIVES_WITHIN: Duration = Duration::from_secs(3);

/// The limits that one worker was given, and what its integrations see of them.
#[derive(Default)]
struct Watch {
    given: VecDeque<(Instant, Limits)>,
    running: Vec<Running>,
    starts: HashMap<String, u32>,
    violations: Vec<String>,
}

#[derive(Debug, Clone)]
struct Limits {
    max_parallelism: usize,
    reserve: f64,
    of_integration: usize,
    of_tenant: usize,
}

#[derive(Clone, PartialEq)]
struct Running {
    task: String,
    integration: &'static str,
    tenant: String,
    priority: Priority,
}

impl Watch {
    fn give(&mut self, limits: Limits) {
        self.given.push_back((Instant::now(), limits));
    }

    /// The limits that may hold for a task that was admitted a moment ago.
    fn in_force(&mut self) -> impl Iterator<Item = &Limits> {
        let now = Instant::now();
        // The one that was given last before that time may hold still.
        while self.given.len() > 1 && now.duration_since(self.given[1].0) > ARRIVES_WITHIN {
            self.given.pop_front();
        }
        self.given.iter().map(|(_, limits)| limits)
    }

    fn start(&mut self, run: &Running) {
        self.running.push(run.clone());
        *self.starts.entry(run.task.clone()).or_default() += 1;
        let count = |alike: &dyn Fn(&Running) -> bool| self.running.iter().filter(|other| alike(other)).count();
        let all = self.running.len();
        let of_integration = count(&|other| other.integration == run.integration);
        let of_tenant = count(&|other| other.tenant == run.tenant);
        let batch = count(&|other| other.priority == Priority::Batch);
        let is_batch = run.priority == Priority::Batch;
        // Several changes may be on their way, and runs that were admitted under one start under the next: each number
        // fits one that may be in force.
        let limits: Vec<_> = self.in_force().cloned().collect();
        let fits = |within: &dyn Fn(&Limits) -> bool| limits.iter().any(within);
        // It leaves batch one slot.
        let reserve = |limits: &Limits| {
            let share = (limits.reserve * limits.max_parallelism as f64).ceil() as usize;
            share.min(limits.max_parallelism.saturating_sub(1))
        };
        let fit = fits(&|limits| all <= limits.max_parallelism)
            && fits(&|limits| of_integration <= limits.of_integration)
            && fits(&|limits| of_tenant <= limits.of_tenant)
            && (!is_batch || fits(&|limits| batch + reserve(limits).max(all - batch) <= limits.max_parallelism));
        if !fit {
            let name = run.integration;
            let seen = format!("{all} run, {of_integration} {name}, {of_tenant} of a tenant, {batch} batch");
            self.violations.push(format!("{seen}: {limits:?}"));
        }
    }

    fn end(&mut self, run: &Running) {
        let at = self.running.iter().position(|other| other == run).expect("it was started");
        self.running.swap_remove(at);
    }
}

/// Does what the task says, and tells the watch.
struct Watched {
    name: &'static str,
    watch: Arc<Mutex<Watch>>,
}

/// Tells the watch that a run has stopped, whatever ends it.
struct Stops {
    watch: Arc<Mutex<Watch>>,
    run: Running,
}

impl Drop for Stops {
    fn drop(&mut self) {
        self.watch.lock().end(&self.run);
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Behaviour {
    Sleep(u64),
    Hang,
    Panic,
    IgnoreCancellation(u64),
    Block(u64),
    Fail,
}

#[async_trait]
impl Integration for Watched {
    async fn run(&self, context: &Context) -> Result<Json, Error> {
        let task = context.task();
        let (id, tenant) = (task.id.to_string(), task.tenant.to_string());
        let run = Running { task: id, integration: self.name, tenant, priority: task.priority };
        self.watch.lock().start(&run);
        let stops = Stops { watch: self.watch.clone(), run };
        let behaviour: Behaviour = context.input()?;
        match behaviour {
            Behaviour::Sleep(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Behaviour::Hang => context.cancelled().await,
            // As `panic!`, without a backtrace on stderr for each of a thousand.
            Behaviour::Panic => std::panic::resume_unwind(Box::new("a task of the soak was told to panic")),
            Behaviour::IgnoreCancellation(ms) => {
                let work = move || {
                    std::thread::sleep(Duration::from_millis(ms));
                    drop(stops);
                };
                return context.blocking(work).await.map(|()| Json::null());
            }
            Behaviour::Block(ms) => std::thread::sleep(Duration::from_millis(ms)),
            Behaviour::Fail => return Err(Error::permanent("a task of the soak was told to fail")),
        }
        drop(stops);
        Ok(Json::null())
    }

    fn on_cancel(&self) -> OnCancel {
        OnCancel::Stop { grace: Duration::from_millis(20) }
    }
}

/// What became of the tasks.
#[derive(Debug, Default)]
struct Tally {
    submitted: u64,
    outcomes: BTreeMap<&'static str, u64>,
    errors: BTreeMap<&'static str, u64>,
    /// The words of those that say that nobody knows.
    unknown: BTreeMap<String, u64>,
    gone: u64,
    wrong: Vec<String>,
}

/// What one task came to, as far as its caller knows.
enum Came {
    To(Result<(), FailureCode>),
    Error(SubmitError),
    CallerLeft,
}

struct Soak {
    watches: Vec<Arc<Mutex<Watch>>>,
    tally: Mutex<Tally>,
    is_over: AtomicBool,
    router: Client,
    workers: Vec<Client>,
}

impl Soak {
    /// One caller: one random task after the other.
    async fn call(&self, caller: u64) {
        let mut random = SmallRng::seed_from_u64(caller);
        for number in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let (id, task) = (format!("s-{caller}-{number}"), random_task(&mut random));
            let task = Submission { id: id.parse().expect("an id"), ..task };
            let client = match random.random_range(0..10) {
                0 => &self.workers[random.random_range(0..WORKERS)],
                _ => &self.router,
            };
            let patience = match random.random_range(0..100) {
                0..8 => Duration::from_millis(random.random_range(0..60)),
                _ => LONG,
            };
            let came = match tokio::time::timeout(patience, client.submit(&task)).await {
                Ok(Ok(outcome)) => Came::To(outcome.result.map(drop).map_err(|failure| failure.code)),
                Ok(Err(error)) => Came::Error(error),
                Err(_) => Came::CallerLeft,
            };
            self.check(&id, came, patience == LONG);
        }
    }

    fn check(&self, id: &str, came: Came, patient: bool) {
        let starts: u32 = self.watches.iter().map(|watch| watch.lock().starts.remove(id).unwrap_or_default()).sum();
        let mut tally = self.tally.lock();
        tally.submitted += 1;
        if starts > 1 {
            tally.wrong.push(format!("{id} ran {starts} times"));
        }
        match came {
            Came::To(result) => {
                // A task can be cancelled or late before its code has begun.
                let may_not_have_begun = matches!(result, Err(FailureCode::Deadline | FailureCode::Cancelled));
                if starts == 0 && !may_not_have_begun {
                    tally.wrong.push(format!("{id} has an outcome and never ran: {result:?}"));
                }
                let outcome = result.map_or_else(|code| code.as_str(), |()| "ok");
                *tally.outcomes.entry(outcome).or_default() += 1;
            }
            Came::Error(error) => {
                if error.started() == Started::No && starts > 0 {
                    tally.wrong.push(format!("{id} ran, and its caller was told that it never did: {error}"));
                }
                if error.started() == Started::Unknown {
                    *tally.unknown.entry(error.message()).or_default() += 1;
                }
                *tally.errors.entry(error.reason()).or_default() += 1;
            }
            Came::CallerLeft if patient => tally.wrong.push(format!("{id} has no answer")),
            Came::CallerLeft => tally.gone += 1,
        }
    }

    /// Changes the limits of a worker at random, again and again: of the first one seldom, so that what it runs can
    /// be held against one state of them, of the others all the time.
    async fn turn(&self, house: &House, index: usize) -> Infallible {
        let pauses = if index == 0 { 4_000..8_000 } else { 20..700 };
        let mut random = SmallRng::seed_from_u64(1000 + index as u64);
        loop {
            let limits = Limits {
                max_parallelism: random.random_range(0..13),
                reserve: [0.0, 0.25, 0.5][random.random_range(0..3)],
                of_integration: random.random_range(1..9),
                of_tenant: random.random_range(1..9),
            };
            self.watches[index].lock().give(limits.clone());
            set(house, index, &limits);
            tokio::time::sleep(Duration::from_millis(random.random_range(pauses.clone()))).await;
        }
    }
}

fn set(house: &House, index: usize, limits: &Limits) {
    house.set(
        index,
        &[
            ("max_parallelism", json!(limits.max_parallelism)),
            ("interactive_reserve", json!(limits.reserve)),
            ("integration_caps", json!({"*": limits.of_integration})),
            ("tenant_caps", json!({"*": limits.of_tenant})),
        ],
    );
}

fn random_task(random: &mut SmallRng) -> Submission {
    let ms = random.random_range(0..30);
    let behaviour = match random.random_range(0..100) {
        0..5 => Behaviour::Panic,
        5..10 => Behaviour::Hang,
        10..15 => Behaviour::IgnoreCancellation(ms * 4),
        15..17 => Behaviour::Block(ms / 4),
        17..22 => Behaviour::Fail,
        _ => Behaviour::Sleep(ms),
    };
    let timeout = if matches!(behaviour, Behaviour::Sleep(_)) { LONG } else { Duration::from_millis(20 + ms * 2) };
    let integration = INTEGRATIONS[random.random_range(0..INTEGRATIONS.len())];
    let tenant = TENANTS[random.random_range(0..TENANTS.len())].parse().expect("a tenant");
    let priority = if random.random_bool(0.3) { Priority::Interactive } else { Priority::Batch };
    let task = submission("task", integration, serde_json::to_value(behaviour).expect("JSON"));
    Submission { tenant, priority, timeout, ..task }
}

async fn soak(time: Duration) {
    let watches: Vec<_> = (0..WORKERS).map(|_| Arc::new(Mutex::new(Watch::default()))).collect();
    let own = watches.clone();
    let watched = move |index: usize| {
        INTEGRATIONS.iter().fold(Integrations::new(), |integrations, name| {
            let watched = Watched { name, watch: own[index].clone() };
            integrations.with(name.parse().expect("a name"), watched)
        })
    };
    let house = Plan { workers: WORKERS, own: Arc::new(watched), ..Plan::default() }.start().await;
    for watch in &watches {
        let start = Limits { max_parallelism: 4, reserve: 0.0, of_integration: 4, of_tenant: 4 };
        watch.lock().give(start);
    }
    let workers = (0..WORKERS).map(|index| Client::new(&house.worker_url(index)).expect("an address")).collect();
    let soak = Arc::new(Soak {
        watches,
        tally: Mutex::default(),
        is_over: AtomicBool::new(false),
        router: Client::new(&house.router_url()).expect("an address"),
        workers,
    });

    let callers = Lifecycle::new();
    for caller in 0..CALLERS {
        let soak = soak.clone();
        callers.spawn("caller", async move { soak.call(caller).await });
    }
    let turned = async { tokio::join!(soak.turn(&house, 0), soak.turn(&house, 1)) };
    let _ = tokio::time::timeout(time, turned).await;
    soak.is_over.store(true, Ordering::Relaxed);
    // Whoever still waits needs a worker that takes tasks.
    for index in 0..WORKERS {
        let limits = Limits { max_parallelism: 12, reserve: 0.0, of_integration: 12, of_tenant: 12 };
        soak.watches[index].lock().give(limits.clone());
        set(&house, index, &limits);
    }
    callers.wait(LONG * 2).await.expect("each caller has its answer");

    let tally = std::mem::take(&mut *soak.tally.lock());
    let wrong = &tally.wrong;
    let violations: Vec<_> = soak.watches.iter().flat_map(|watch| watch.lock().violations.clone()).collect();
    let answered: u64 = tally.outcomes.values().chain(tally.errors.values()).sum();
    println!(
        "{} tasks submitted in {} s: {answered} answered, {} callers left; over-admissions {}, lost or doubled {}",
        tally.submitted,
        time.as_secs(),
        tally.gone,
        violations.len(),
        wrong.len(),
    );
    println!("  outcomes {:?}\n  errors   {:?} {:?}", tally.outcomes, tally.errors, tally.unknown);
    assert!(violations.is_empty(), "admitted over a limit: {violations:#?}");
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(tally.outcomes.contains_key("ok") && answered + tally.gone == tally.submitted, "{tally:?}");

    for index in 0..WORKERS {
        house.until_in_flight(index, 0).await;
        assert!(soak.watches[index].lock().running.is_empty(), "a run has not stopped, and its place is free");
        answer(house.submit_to_worker(index, synthetic("last", json!({"do": "noop"})))).await.expect("it takes tasks");
    }
    println!("  leaked permits 0 (closing proves that nothing else is left)");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_or_admitted_over_a_limit_under_random_faults() {
    soak(Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "a minute, or WEIR_SOAK_SECONDS: the full lane, tests/run --full"]
async fn nothing_is_lost_or_admitted_over_a_limit_for_a_minute() {
    let seconds =
        std::env::var("WEIR_SOAK_SECONDS").map_or(60, |text| text.parse().expect("WEIR_SOAK_SECONDS is a number"));
    soak(Duration::from_secs(seconds)).await;
}
