//! The command line: one file per command.

mod check;
mod completion;
mod demo;
mod describe;
mod doctor;
mod drain;
mod explain;
mod fleet;
mod output;
mod payload;
mod profile;
mod router;
mod sandbox;
mod scrape;
mod settings;
mod submit;
mod table;
mod worker;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::causes::with_causes;
use crate::config::{self, Config, FILE_VARIABLE};
use crate::integration::{Integrations, Owner, exec};
use crate::lifecycle::Lifecycle;
use crate::telemetry::logs::Logs;
pub use worker::serve_worker;

/// How long blocking threads may take to end when the program does.
const RUNTIME_STOP_WITHIN: Duration = Duration::from_secs(1);

/// How long a last word on stderr may take, on a machine on which everything does.
const SAY_WITHIN: Duration = Duration::from_secs(2);

/// The exit code after a second signal.
const EXIT_INTERRUPTED: i32 = 130;

/// The flag that names the configuration file. Its variable is not clap's to read: the usage in clap's errors would show the
/// flag as one that must be there, wherever the variable is set.
#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file [env: WEIR_CONFIG] [default: weir.toml, where there is one].
    #[arg(long = "config", short = 'c', global = true, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl ConfigFile {
    /// The file that was named, by the flag or else by the variable.
    fn named(self) -> Option<PathBuf> {
        let variable = || std::env::var_os(FILE_VARIABLE).filter(|path| !path.is_empty());
        self.file.or_else(|| variable().map(PathBuf::from))
    }
}

/// Runs slow, network-bound integrations many at a time, without letting the parallelism hurt them.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = "Start here:\n  weir demo")]
pub struct Cli {
    #[command(flatten)]
    config: ConfigFile,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows in under a minute what parallelism buys: a whole weir in one process, against a sandbox bank.
    Demo(demo::Args),
    /// Runs tasks: admits up to N at a time and refuses the rest early.
    #[command(
        after_help = "Example:\n  weir worker --config weir.toml --listen 0.0.0.0:7401 --advertise http://10.0.0.7:7401"
    )]
    Worker(worker::Args),
    /// Takes tasks from callers and finds workers with room for them.
    Router(router::Args),
    /// Submits tasks, one JSON object per line, and prints their outcomes as JSON lines.
    Submit(submit::Args),
    /// Shows the workers of a pool, live.
    Fleet(fleet::Args),
    /// Changes the workers' live settings, and shows whether a change has arrived.
    Settings(settings::Args),
    /// Shows what a worker or router is and does now.
    Describe(describe::Args),
    /// Says where a task is and what holds it, or why it was refused.
    Explain(explain::Args),
    /// Shows what a worker or router spends its processor time on, as a flame graph or for pprof.
    Profile(profile::Args),
    /// Says what is the matter with a worker, in order of likelihood, and what to change.
    Doctor(doctor::Args),
    /// Has a worker or router end in order.
    Drain(drain::Args),
    /// Checks the configuration, and on request whether all that it names can be reached.
    Check(check::Args),
    /// Reads debug payloads back.
    Payload(payload::Args),
    /// A bank over HTTP to run integrations against.
    Sandbox(sandbox::Args),
    /// Writes a script with which a shell completes weir's commands.
    Completion(completion::Args),
}

impl Cli {
    /// Runs the command to its end.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let file = self.config.named();
        let config = || config::load(file.as_deref(), std::env::vars());
        match self.command {
            Command::Demo(args) => demo::run(args),
            Command::Worker(args) => worker::run(args, config()?, Integrations::new()),
            Command::Router(args) => router::run(args, config()?),
            Command::Submit(args) => submit::run(args),
            Command::Fleet(args) => fleet::run(args, config()?),
            Command::Settings(args) => settings::run(args, config()?),
            Command::Describe(args) => describe::run(args),
            Command::Explain(args) => explain::run(&args),
            Command::Profile(args) => profile::run(&args),
            Command::Doctor(args) => doctor::run(args),
            Command::Drain(args) => drain::run(args),
            Command::Check(args) => check::run(&args, file.as_deref(), Integrations::new()),
            Command::Payload(args) => payload::run(args, config, &Integrations::new()),
            Command::Sandbox(args) => sandbox::run(args, config()?),
            Command::Completion(args) => completion::run(&args),
        }
    }
}

/// Raises the soft limit on descriptors to the hard one: each task may hold a socket or more, and the usual soft limit
/// of 1,024 is a leftover of `select`.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!("the limit on descriptors stays as it is: {error}");
    }
}

/// Prints a command's result. A reader that has gone, such as `head`, has what it wanted.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    match writeln!(io::stdout().lock(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot write the result"),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Says something to people beside the result. Where nobody hears that any more, it is not said: the result is what counts.
fn remark(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints an error with its causes, for people, and returns the exit code.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    say(&format!("weir: {}", with_causes(error.as_ref())));
    ExitCode::FAILURE
}

/// Says a last word on stderr. One that is closed, or that nobody reads, keeps no program from its end.
fn say(text: &str) {
    let (line, (done, is_done)) = (format!("{text}\n"), mpsc::channel());
    let said = Lifecycle::new().thread("last word", move |_| {
        let _ = io::stderr().write_all(line.as_bytes());
        let _ = done.send(());
    });
    if said.is_ok() {
        let _ = is_done.recv_timeout(SAY_WITHIN);
    }
}

/// Starts the logger of a process that is a `role`, and has panics logged like everything else.
fn start_logs(config: &Config, role: &str) -> anyhow::Result<Logs> {
    let logs = Logs::start(&config.log, role)?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        // A message that was put together may quote what the code was working on. An integration's is in its outcome,
        // and the loops of weir log theirs.
        let message =
            panic.payload().downcast_ref::<&'static str>().copied().unwrap_or("(its message is not shown here)");
        let Some(owner) = Owner::now() else { return tracing::error!(place, "panic: {message}") };
        let Owner { task, run, integration, tenant } = &*owner;
        tracing::error!(
            %task, %run, %integration, %tenant, place,
            "an integration panicked, and its task fails: {message}"
        );
    }));
    Ok(logs)
}

/// Async threads on one core, too: an integration that blocks one of them must not stop all the others.
const LEAST_THREADS: usize = 2;

/// Runs a program on a runtime of its own, and does not wait for ever for its blocking threads.
fn block_on<T>(program: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().thread_name("weir");
    // tokio's own choice is one thread per core, or what TOKIO_WORKER_THREADS says.
    if std::thread::available_parallelism().map_or(1, usize::from) < LEAST_THREADS
        && std::env::var_os("TOKIO_WORKER_THREADS").is_none()
    {
        builder.worker_threads(LEAST_THREADS);
    }
    let runtime: Runtime = builder.build().context("cannot start the runtime")?;
    raise_descriptor_limit();
    let result = runtime.block_on(program);
    runtime.shutdown_timeout(RUNTIME_STOP_WITHIN);
    result
}

/// SIGTERM, SIGINT and SIGHUP: the first asks to stop in order, and one of the first two after it ends the process at once.
/// A terminal that is closed sends SIGHUP, often twice: a second one of those says nothing new.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// None where the process was told to outlive its terminal, as by `nohup`.
    hangup: Option<Signal>,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: (!ignores_hangup()).then(|| listen(SignalKind::hangup())).transpose()?,
        })
    }

    /// Waits for one.
    async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = hangup => {}
        }
    }

    /// Runs an ordered stop; another signal meanwhile ends the process, after a last word.
    async fn or_exit<T>(&mut self, stop: impl Future<Output = T>, logs: Option<&Logs>, last_word: impl FnOnce()) -> T {
        // Not a second SIGHUP: a terminal that closes may send two.
        let again = async {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
        };
        tokio::select! {
            result = stop => result,
            () = again => {
                last_word();
                // They are in groups of their own, and this signal was not for them.
                exec::end_all();
                if logs.is_none_or(Logs::flush) {
                    say("weir: a second signal: ending at once");
                }
                std::process::exit(EXIT_INTERRUPTED)
            }
        }
    }
}

/// Whether whoever started this process has it ignore SIGHUP, by the kernel's word (`proc_pid_status(5)`).
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    ignored & (1 << (SignalKind::hangup().as_raw_value() - 1)) != 0
}
