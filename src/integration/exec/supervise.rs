//! Keeps one process of the pool running: starts it, sees to its end, and starts the next after a pause that grows.
//!
//! One task does all of that for one slot, so that nothing of a process outlives it: the pipes, the watch over its
//! runs, and the end. An end is always the same: SIGTERM to the group, a second, SIGKILL to the group, and only when
//! the process is reaped do its runs fail and give their places back.

use std::cmp::Reverse;
use std::future::Future;
use std::os::fd::AsFd;
use std::pin::{Pin, pin};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{MaybeDone, join, maybe_done};
use tokio::io::BufReader;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::cause::{Cause, NotReady};
use super::config::Config;
use super::group::Group;
use super::pool::Pool;
use super::process::{Limits, Process, read_line, write_lines};
use super::protocol::{self, Message};

/// From SIGTERM to SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(1);

/// What has ended may still have something in its pipes, and what has closed its pipes may be about to end.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

/// The pause before a restart: doubled from the first to the most, ± 20%.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A process that has lived this long has worked: the next pause is the first again.
const WORKED_AFTER: Duration = Duration::from_secs(10);

/// Characters of a last line on stderr that are logged when a process could not be started.
const LAST_LINE_CHARS: usize = 300;

/// What each process is started as.
pub(super) struct Launch {
    pub(super) integration: String,
    pub(super) config: Config,
    /// The whole environment.
    pub(super) variables: Vec<(String, String)>,
}

/// One slot of a pool.
pub(super) struct Supervisor {
    pub(super) slot: usize,
    pub(super) pool: Arc<Pool>,
    pub(super) launch: Arc<Launch>,
}

/// A process with its pipes.
struct Started {
    child: Child,
    group: Group,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    stderr: BufReader<ChildStderr>,
}

impl Supervisor {
    /// One process after the other, until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        while !stop.is_cancelled() {
            let began = Instant::now();
            let cause = self.one_life(&stop).await;
            self.pool.metrics.ended(&cause);
            let failed = matches!(cause, Cause::NotReady(_)).then(|| self.failure(&cause));
            if matches!(cause, Cause::Stopping) {
                break;
            }
            self.pool.leave(self.slot, failed);
            if matches!(cause, Cause::Replaced) {
                pause = FIRST_PAUSE;
                continue;
            }
            if began.elapsed() >= WORKED_AFTER {
                pause = FIRST_PAUSE;
            }
            let jittered = pause.mul_f64(rand::random_range(0.8..1.2));
            stop.run_until_cancelled(tokio::time::sleep(jittered)).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
        self.pool.leave(self.slot, Some("the worker stops".into()));
    }

    fn failure(&self, cause: &Cause) -> String {
        format!("{:?} {}", self.launch.config.command[0], cause.says())
    }

    /// One process from its start to its end.
    async fn one_life(&self, stop: &CancellationToken) -> Cause {
        let Started { mut child, mut group, stdin, mut stdout, stderr } = match self.launch.start() {
            Ok(started) => started,
            Err(problem) => {
                let cause = Cause::NotReady(NotReady::Spawn(problem));
                self.log(None, &cause, None);
                return cause;
            }
        };
        let config = &self.launch.config;
        let (sender, lines) = mpsc::channel(2 * config.max_concurrency_per_process);
        let unread = unread(&stderr);
        let process = Process::new(group.id(), self.launch.limits(), sender);
        let mut errors = pin!(maybe_done(process.read_errors(stderr)));

        let ready = beside(self.until_ready(&group, &mut stdout, stop), errors.as_mut()).await;
        let mut output = pin!(maybe_done(process.read_output(stdout, unread)));
        let mut input = pin!(maybe_done(write_lines(stdin, lines)));
        let mut cause = match ready {
            Ok(places) => {
                self.pool.enter(self.slot, process.clone(), places);
                tracing::debug!(
                    integration = self.launch.integration,
                    pid = process.id(),
                    places,
                    "a process is ready"
                );
                let served = serve(&process, &group, stop, output.as_mut(), input.as_mut());
                let cause = beside(served, errors.as_mut()).await;
                self.pool.leave(self.slot, None);
                cause
            }
            Err(cause) => cause,
        };
        // Nobody is given to it any more.
        process.close();
        if matches!(cause, Cause::Stopping | Cause::Replaced) {
            let ending = async {
                let talking = join(output.as_mut(), input.as_mut());
                tokio::select! {
                    () = group.ended() => {}
                    _ = talking => group.ended().await,
                }
            };
            let _ = timeout(config.stop_grace, beside(ending, errors.as_mut())).await;
        }
        let status = end(&mut child, &mut group, async {
            join(output.as_mut(), errors.as_mut()).await;
        })
        .await;
        match &mut cause {
            Cause::Crashed(ended) | Cause::NotReady(NotReady::Exited(ended)) => *ended = status,
            _ => {}
        }
        process.end(&cause);
        self.log(Some(process.id()), &cause, process.last_error_line());
        cause
    }

    fn log(&self, pid: Option<u32>, cause: &Cause, last_error_line: Option<String>) {
        let (integration, says) = (&self.launch.integration, cause.says());
        match (cause, last_error_line) {
            (Cause::Stopping, _) => tracing::debug!(integration, pid, "a process {says}"),
            (Cause::Replaced, _) => tracing::info!(integration, pid, "a process {says}"),
            // No task's data can be in this line: the process has had none.
            (Cause::NotReady(_), Some(line)) => {
                let stderr: String = self.launch.by_names(line).chars().take(LAST_LINE_CHARS).collect();
                tracing::warn!(integration, pid, stderr, "a process {says}");
            }
            _ => tracing::warn!(integration, pid, "a process {says}"),
        }
    }

    /// Waits for its `ready`; returns how many places it has.
    async fn until_ready(
        &self,
        group: &Group,
        stdout: &mut BufReader<ChildStdout>,
        stop: &CancellationToken,
    ) -> Result<usize, Cause> {
        let config = &self.launch.config;
        let mut line = Vec::new();
        let first_line = timeout(config.start_timeout, read_line(stdout, &mut line, config.max_line_bytes));
        let read = tokio::select! {
            biased;
            () = stop.cancelled() => return Err(Cause::Stopping),
            read = first_line => read,
            () = group.ended() => return Err(Cause::NotReady(NotReady::Exited(None))),
        };
        let said = |problem: String| Err(Cause::NotReady(NotReady::Said(problem)));
        match read {
            Err(_) => return Err(Cause::NotReady(NotReady::Timeout(config.start_timeout))),
            Ok(Ok(true)) => {}
            Ok(end) => {
                // It has closed its stdout: most likely because it ends.
                return match (timeout(LAST_WORDS_WITHIN, group.ended()).await, end) {
                    (Ok(()), _) => Err(Cause::NotReady(NotReady::Exited(None))),
                    (_, Err(Cause::BadOutput(problem) | Cause::Flood(problem))) => said(problem),
                    _ => said("it closed its stdout".into()),
                };
            }
        }
        match protocol::parse(&line) {
            Ok(Message::Ready { protocol: protocol::VERSION, concurrency: 0 }) => said("its concurrency is 0".into()),
            Ok(Message::Ready { protocol: protocol::VERSION, concurrency }) => {
                Ok(concurrency.min(config.max_concurrency_per_process))
            }
            Ok(Message::Ready { protocol, .. }) => {
                said(format!("it speaks version {protocol} of the protocol, and weir version {}", protocol::VERSION))
            }
            Ok(_) => said("its first message is another".into()),
            Err(problem) => said(format!("its first line is no message: {problem}")),
        }
    }
}

/// Waits until there is a cause to end it.
async fn serve(
    process: &Process,
    group: &Group,
    stop: &CancellationToken,
    mut output: Pin<&mut MaybeDone<impl Future<Output = Cause>>>,
    mut input: Pin<&mut MaybeDone<impl Future<Output = std::io::Result<()>>>>,
) -> Cause {
    let mut pipes = pin!(async {
        tokio::select! {
            () = output.as_mut() => output.as_mut().output_mut().cloned().unwrap_or(Cause::Crashed(None)),
            () = input.as_mut() => Cause::Crashed(None),
        }
    });
    tokio::select! {
        biased;
        () = stop.cancelled() => Cause::Stopping,
        cause = process.doomed() => cause,
        cause = &mut pipes => match cause {
            // A pipe is closed: by its end, if that comes now.
            Cause::Crashed(_) if timeout(LAST_WORDS_WITHIN, group.ended()).await.is_err() => {
                Cause::BadOutput("it closed its stdout or its stdin".into())
            }
            cause => cause,
        },
        () = group.ended() => Cause::Crashed(None),
        () = process.emptied() => Cause::Replaced,
    }
}

/// How many bytes its stderr holds that were not read yet.
fn unread(stderr: &BufReader<ChildStderr>) -> impl Fn() -> u64 + use<> {
    // A descriptor of its own, since the reader has the other. Without one nothing is waited for.
    let pipe = stderr.get_ref().as_fd().try_clone_to_owned().ok();
    move || pipe.as_ref().and_then(|pipe| rustix::io::ioctl_fionread(pipe).ok()).unwrap_or_default()
}

/// Ends what is left of a process and its children, and reaps it. `last_words` reads what is still in its pipes.
async fn end(
    child: &mut Child,
    group: &mut Group,
    last_words: impl Future<Output = ()>,
) -> Option<std::process::ExitStatus> {
    let mut last_words = pin!(maybe_done(last_words));
    group.terminate();
    let _ = timeout(TERM_GRACE, beside(group.ended(), last_words.as_mut())).await;
    group.kill();
    // The group is waited for by its first process; the others die of the same signal.
    let status = beside(child.wait(), last_words.as_mut()).await;
    group.over();
    let _ = timeout(LAST_WORDS_WITHIN, last_words).await;
    status.ok()
}

/// Does `work` while `background` goes on.
async fn beside<T>(work: impl Future<Output = T>, mut background: Pin<&mut MaybeDone<impl Future>>) -> T {
    let forever = async {
        background.as_mut().await;
        std::future::pending().await
    };
    tokio::select! {
        biased;
        done = work => done,
        never = forever => never,
    }
}

impl Launch {
    fn limits(&self) -> Limits {
        let Config { max_line_bytes, max_run_bytes, cancel_grace, shared_stderr, .. } = self.config;
        Limits { line_bytes: max_line_bytes, run_bytes: max_run_bytes, cancel_grace, shared_stderr }
    }

    /// The text with the names of the variables in place of what the program was given in them, for they may be secrets.
    fn by_names(&self, text: String) -> String {
        let Config { variables, pass_variables, .. } = &self.config;
        let is_given = |name: &String| variables.contains_key(name) || pass_variables.contains(name);
        let mut given: Vec<_> =
            self.variables.iter().filter(|(name, value)| is_given(name) && !value.is_empty()).collect();
        // One may be a part of another.
        given.sort_by_key(|(_, value)| Reverse(value.len()));
        given.into_iter().fold(text, |text, (name, value)| text.replace(value, &format!("${name}")))
    }

    fn start(&self) -> Result<Started, String> {
        let mut command = Command::new(&self.config.command[0]);
        command.args(&self.config.command[1..]).env_clear().envs(self.variables.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(directory) = &self.config.working_directory {
            command.current_dir(directory);
        }
        let (mut child, group) = Group::start(&mut command).map_err(|error| error.to_string())?;
        let parts = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = parts else {
            return Err("it has no pipes".into());
        };
        Ok(Started { child, group, stdin, stdout: BufReader::new(stdout), stderr: BufReader::new(stderr) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_a_program_was_given_the_log_has_the_names() {
        let text = |it: &str| it.to_owned();
        let config = Config {
            variables: [(text("MODE"), text("")), (text("URL"), text("https://me:s3cret@bank"))].into(),
            pass_variables: vec![text("TOKEN")],
            ..Config::default()
        };
        let variables = [("PATH", "/bin"), ("MODE", ""), ("TOKEN", "s3cret"), ("URL", "https://me:s3cret@bank")];
        let variables = variables.map(|(name, value)| (text(name), text(value))).into();
        let launch = Launch { integration: text("bank"), config, variables };
        let line = text("/bin/x: https://me:s3cret@bank refused s3cret");
        assert_eq!(launch.by_names(line), "/bin/x: $URL refused $TOKEN");
    }
}
