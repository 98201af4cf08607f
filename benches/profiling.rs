//! What a profile costs a busy worker while it is taken: processor time per task, with the profiler on and off.
//!
//! ```text
//! cargo bench --bench profiling
//! cargo bench --bench profiling -- --pairs 20 --seconds 5 --hz 50
//! ```
//!
//! A worker as a process of its own, and callers that keep 16 tasks under way in it: synthetic ones with a transcript of
//! 20 KB, whose payload is redacted, encoded and stored in a directory. It is busy with what a worker is busy with, and
//! nothing else. Phases with and without come in pairs, in changing order, so that what else happens on the machine
//! happens to both. Processor time is the kernel's account of the process, which has the handler's part in it. The first
//! profile, which reads the unwind tables, is not counted; nor is what comes after the samples, when names are
//! looked up.

#[expect(dead_code, reason = "other benches ask for more")]
#[path = "support/cores.rs"]
mod cores;
#[expect(dead_code, reason = "the tests ask for more")]
#[path = "../tests/it/support/processes.rs"]
mod processes;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use cores::processor_time;
use processes::Process;
use tokio::time::sleep;
use weir::client::operations::{Operations, ProfileForm};
use weir::client::{Client, Submission};
use weir::lifecycle::Lifecycle;
use weir::task::Json;

/// The target at 99 samples per second.
const MOST: f64 = 0.03;

/// Tasks under way.
const CALLERS: usize = 16;

/// A profile begins before what is measured, and ends after it.
const MARGIN: Duration = Duration::from_millis(500);

const INPUT: &str = r#"{"do": "noop", "transcript_bytes": 20000}"#;

#[derive(Parser)]
#[command(about = "What a profile costs a busy worker")]
struct Arguments {
    /// Pairs of phases.
    #[arg(long, default_value_t = 12)]
    pairs: usize,
    /// How long a phase is measured.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Samples per second.
    #[arg(long, default_value_t = 99)]
    hz: u32,
    /// Cargo says so.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(directory.path().join("payloads")).expect("a directory");
    let variables = [
        ("WEIR_LOG__FORMAT", "json"),
        ("WEIR_INTEGRATIONS__SYNTHETIC__KIND", "synthetic"),
        ("WEIR_PAYLOADS__STORE", "directory"),
        ("WEIR_PAYLOADS__DIRECTORY__PATH", "payloads"),
    ];
    let flags = ["worker", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--max-parallelism", "64"];
    let mut worker = Process::start("worker", directory.path(), &processes::weir(), &flags, &variables);
    let line = worker.wait_for_log("the worker serves");
    let address = line["listen"].as_str().expect("an address").to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(measure(&arguments, worker.id(), &address));
    worker.stop();
}

async fn measure(arguments: &Arguments, worker: u32, address: &str) {
    let (callers, done, stop) = (Lifecycle::new(), Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    for caller in 0..CALLERS {
        let client = Client::new(&format!("http://{address}")).expect("an address");
        let (done, stop) = (done.clone(), stop.clone());
        callers.spawn("caller", async move {
            let mut task = 0;
            while !stop.load(Ordering::Relaxed) {
                client.submit(&submission(&format!("t-{caller}-{task}"))).await.expect("an outcome");
                done.fetch_add(1, Ordering::Relaxed);
                task += 1;
            }
        });
    }
    let operations = Operations::new(address).expect("an address");
    let time = Duration::from_secs(arguments.seconds.into());
    let profile_seconds = arguments.seconds + 1;
    operations.profile(ProfileForm::Pprof, 1, arguments.hz).await.expect("the first profile");

    let (mut ratios, mut off_all, mut largest) = (Vec::new(), Vec::new(), 0);
    for pair in 0..arguments.pairs {
        let (mut on, mut off) = (0.0, 0.0);
        for with in if pair % 2 == 0 { [true, false] } else { [false, true] } {
            let measured = async {
                sleep(MARGIN).await;
                per_task(worker, &done, time).await
            };
            if with {
                let profile = operations.profile(ProfileForm::Pprof, profile_seconds, arguments.hz);
                let (per_task, profile) = tokio::join!(measured, profile);
                largest = largest.max(profile.expect("a profile").len());
                on = per_task;
            } else {
                off = measured.await;
            }
        }
        ratios.push(on / off);
        off_all.push(off);
        println!(
            "pair {:>2}: {:>7.1} µs per task without, {:>7.1} µs with: ratio {:.4}",
            pair + 1,
            off * 1e6,
            on * 1e6,
            on / off
        );
    }
    stop.store(true, Ordering::Relaxed);
    callers.wait(Duration::from_secs(30)).await.expect("each caller ends");

    let [low, median, high] = spread(&mut ratios);
    let [_, without, _] = spread(&mut off_all);
    println!(
        "\n{} pairs of {} s, {} samples per second of processor time",
        arguments.pairs, arguments.seconds, arguments.hz
    );
    println!("processor time per task without a profile: {:.1} µs (median)", without * 1e6);
    println!("ratio with a profile: median {median:.4}, p10 {low:.4}, p90 {high:.4}");
    println!("target: at most {:.2} ({})", 1.0 + MOST, if median <= 1.0 + MOST { "met" } else { "MISSED" });
    println!("the largest profile has {largest} bytes");
}

/// Seconds of processor time per task, measured for that long.
async fn per_task(worker: u32, done: &AtomicU64, time: Duration) -> f64 {
    let (tasks, used) = (done.load(Ordering::Relaxed), processor_time(worker));
    sleep(time).await;
    let (tasks, used) = (done.load(Ordering::Relaxed) - tasks, processor_time(worker) - used);
    used.as_secs_f64() / tasks.max(1) as f64
}

/// The tenth, the half and the nine tenths.
fn spread(values: &mut [f64]) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [0.1, 0.5, 0.9].map(|share| {
        let last = values.len().saturating_sub(1);
        values.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
    })
}

fn submission(id: &str) -> Submission {
    let input = Json::parse(INPUT.to_owned()).expect("JSON");
    Submission::new(id.parse().expect("an id"), "synthetic".parse().expect("a name"), input)
}
