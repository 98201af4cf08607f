//! `weir demo`: what parallelism buys, shown in under a minute on a machine that has nothing but this program.
//!
//! A whole weir in one process, over real sockets: a router, one worker, a registry in memory, payloads in a directory,
//! and the sandbox bank as the upstream. The same tasks run for the same time at one parallelism after the other, and
//! each step is taken the way one takes it in production: by changing the settings file under load.

mod house;
mod level;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use super::{block_on, print, remark};
use crate::telemetry::logs::{self, Logs};
use house::House;
use level::{Level, Measured};

/// Flags of `weir demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  weir demo\n  weir demo --levels 1,10,100 --seconds 5")]
pub(super) struct Args {
    /// The parallelisms to compare with the first.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', default_values_t = [1, 30, 300],
          value_parser = clap::value_parser!(u32).range(1..=2000))]
    levels: Vec<u32>,
    /// How long to measure each.
    #[arg(long, value_name = "SECONDS", default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Where to leave payloads, settings and metrics [default: a new directory below .weir].
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = logs::Config { level: "warn".into(), ..logs::Config::default() };
    let logs = Logs::start(&config, "demo")?;
    block_on(compare(args, &logs))
}

async fn compare(args: Args, logs: &Logs) -> anyhow::Result<ExitCode> {
    let directory =
        args.directory.unwrap_or_else(|| PathBuf::from(".weir").join(format!("demo-{}", std::process::id())));
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let directory = directory.canonicalize()?;
    let house = House::open(&directory, args.levels.first().copied().unwrap_or(1), logs).await?;
    remark(format_args!(
        "A router, a worker, a registry in memory, payloads in a directory, and a sandbox bank: all in this process.\n\
         Each task makes four requests of about 150 ms. Watch: http://{}/metrics\n",
        house.worker.admin_address()
    ));
    let mut measured: Vec<Measured> = Vec::new();
    for parallelism in args.levels {
        let level = Level { parallelism, lasts: Duration::from_secs(args.seconds) };
        let bar = progress_bar(level);
        let result = level.measure(&house, &bar).await;
        bar.finish_and_clear();
        measured.push(result?);
        remark(format_args!("  {parallelism:>4} at a time: done"));
    }
    let metrics = house.save_metrics(&directory)?;
    let ledger = house.close().await;

    print(&format!("\n{}", level::table(&measured)))?;
    print(&format!("payloads  {ledger}"))?;
    print(&format!("          {}", directory.join("payloads").display()))?;
    if let Some(example) = first_file(&directory.join("payloads")) {
        print(&format!("          read one:  weir payload get {}", example.display()))?;
    }
    print(&format!("metrics   {}", metrics.display()))?;
    print("\nMemory is that of the whole process: worker, router, bank and callers together.")?;
    let complete = measured.iter().all(|level| level.failed == 0) && ledger.balanced();
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn progress_bar(level: Level) -> ProgressBar {
    let parallelism = level.parallelism;
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(level.lasts.as_millis() as u64).with_message(format!("{parallelism} at a time"));
    match ProgressStyle::with_template("  {msg:>14} {bar:40} {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Any file below a directory, to have a command to show.
fn first_file(directory: &std::path::Path) -> Option<PathBuf> {
    let entries: Vec<_> = std::fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).collect();
    let file = entries.iter().find(|path| path.is_file()).cloned();
    file.or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|path| first_file(path)))
}
