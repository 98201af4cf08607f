//! The programs as they run in production: each a process of its own, configured by file, variables and flags.
//!
//! Servers take port 0 and say in their logs where they are. Each process is a group of its own, which is ended by its
//! id when the value is dropped; what it wrote lies in the fleet's directory and is shown when a wait fails.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};
use serde_json::Value;

/// Long enough for anything on a busy machine; nothing waits for it when all is well.
pub const LONG: Duration = Duration::from_secs(60);

/// On a machine that is busy with tests a worker may lag, and a poll be long that only waits for a core. Tests of what a
/// worker does then say so with a variable of their own.
const SHEDS_FOR_NO_LACK_OF_CORES: [(&str, &str); 2] =
    [("WEIR_OVERLOAD__LAG__ENABLED", "false"), ("WEIR_OVERLOAD__BLOCKED_THREAD__ENABLED", "false")];

/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(10);

/// The program under test: the one built with the tests, unless a variable names another, such as a distributed one.
pub fn weir() -> PathBuf {
    std::env::var_os("WEIR_TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_weir").into(), PathBuf::from)
}

/// An example that was built beside the tests, or that a variable names.
pub fn example(name: &str, variable: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_weir")).with_file_name("examples").join(name);
    let path = std::env::var_os(variable).map_or(built, PathBuf::from);
    assert!(path.exists(), "{} is missing: run cargo build --examples first", path.display());
    path
}

/// Waits until something is there, and fails with what was awaited when it never comes.
pub fn wait_for<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < within, "not within {within:?}: {what}");
        std::thread::sleep(LOOK);
    }
}

/// The body of a successful answer, or nothing.
pub fn try_get(address: SocketAddr, path: &str) -> Option<String> {
    ask(address, "GET", path, "")
}

/// Whether a request without a body was answered with success.
pub fn post(address: SocketAddr, path: &str) -> bool {
    ask(address, "POST", path, "").is_some()
}

/// Puts JSON somewhere, which must be taken.
pub fn put(address: SocketAddr, path: &str, json: &Value) {
    let taken = ask(address, "PUT", path, &json.to_string());
    assert!(taken.is_some(), "http://{address}{path} takes {json}");
}

fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(LONG)).ok()?;
    // HTTP/1.0: no server answers it in chunks.
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n{body}").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.get(..10).is_some_and(|line| line.starts_with("HTTP/1.") && line.ends_with(" 2")).then(|| body.to_owned())
}

/// The same, where it must be there.
pub fn get(address: SocketAddr, path: &str) -> String {
    try_get(address, path).unwrap_or_else(|| panic!("http://{address}{path} answers"))
}

/// The sum over all series of a metric that carry `label`; an empty label matches each.
pub fn metric(metrics: &str, name: &str, label: &str) -> f64 {
    let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
    let values = metrics.lines().filter(of_name).filter(|line| line.contains(label));
    let values: Vec<f64> = values.filter_map(|line| line.rsplit_once(' ')?.1.parse().ok()).collect();
    assert!(!values.is_empty(), "there is no {name} with {label}");
    values.iter().sum()
}

/// A running program.
pub struct Process {
    name: String,
    child: Child,
    out: PathBuf,
    log: PathBuf,
    ended: bool,
}

impl Process {
    /// Starts `program`; what it writes goes to files in `directory` that are named after `name`. It gets no variable
    /// of the test's own except `PATH`.
    pub fn start(
        name: &str,
        directory: &Path,
        program: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Process {
        let (out, log) = (directory.join(format!("{name}.out")), directory.join(format!("{name}.log")));
        let file = |path| File::create(path).expect("a file in the fleet's directory");
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        // Each notes its end in its own directory: others have the same names.
        command.env("STATE_DIRECTORY", directory);
        command
            .envs(SHEDS_FOR_NO_LACK_OF_CORES)
            .envs(variables.iter().copied())
            .current_dir(directory)
            .process_group(0);
        command.stdin(Stdio::null()).stdout(file(&out)).stderr(file(&log));
        let child = command.spawn().unwrap_or_else(|error| panic!("{} starts: {error}", program.display()));
        Process { name: name.to_owned(), child, out, log, ended: false }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stdout.
    pub fn out(&self) -> String {
        std::fs::read_to_string(&self.out).expect("its output")
    }

    /// How many whole lines it has written to stdout.
    pub fn lines_out(&self) -> usize {
        std::fs::read(&self.out).expect("its output").iter().filter(|byte| **byte == b'\n').count()
    }

    /// What it has written to stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("its log")
    }

    /// Its log lines of a level, in JSON.
    pub fn logged(&self, levels: &[&str]) -> Vec<String> {
        let levels: Vec<_> = levels.iter().map(|level| format!(r#""log.level":"{}""#, level.to_lowercase())).collect();
        let of_level = |line: &&str| levels.iter().any(|level| line.contains(level));
        self.log().lines().filter(of_level).map(str::to_owned).collect()
    }

    /// What it has warned of, but for what is true of the machine alone.
    ///
    /// Where others take the cores, a runtime lags, a poll lasts that only waits for a core, and requests take longer, so
    /// that more of them want a socket at once. Those warnings are right, and say nothing of the program.
    pub fn warned(&self) -> Vec<String> {
        const LAGS: [&str; 2] = ["shedding load: lag", "an integration blocked an async thread: "];
        const WAITS_FOR_SOCKETS: [&str; 2] = ["requests wait for a socket: ", "payloads wait to be uploaded: all "];
        let of_the_machine = |line: &str| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let message = line["message"].as_str().unwrap_or_default();
            let is_warning = line["log.level"] == "warn";
            is_warning && LAGS.iter().chain(&WAITS_FOR_SOCKETS).any(|what| message.contains(what))
        };
        self.logged(&["WARN", "ERROR"]).into_iter().filter(|line| !of_the_machine(line)).collect()
    }

    /// Its log lines, in JSON. Of fields that are weir's own, the names have no prefix.
    pub fn lines_logged(&self) -> Vec<Value> {
        let log = self.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Map<_, _>>(line).ok());
        let plain = |name: String| name.strip_prefix("weir.").map(str::to_owned).unwrap_or(name);
        lines.map(|line| line.into_iter().map(|(name, value)| (plain(name), value)).collect()).collect()
    }

    /// Waits for a log line with this message, as [`Process::lines_logged`] has it.
    pub fn wait_for_log(&mut self, message: &str) -> Value {
        let started = Instant::now();
        loop {
            if let Some(line) = self.lines_logged().into_iter().find(|line| line["message"] == message) {
                return line;
            }
            let ended = self.child.try_wait().expect("its state");
            let (name, log) = (&self.name, self.log());
            assert!(ended.is_none() && started.elapsed() < LONG, "{name} never said {message:?} ({ended:?}):\n{log}");
            std::thread::sleep(LOOK);
        }
    }

    pub fn signal(&self, signal: Signal) {
        assert!(!self.ended, "{} has ended", self.name);
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Waits for its end; nothing of its group may be left. The code is `None` when a signal ended it.
    pub fn exit_code(&mut self, within: Duration) -> Option<i32> {
        let started = Instant::now();
        let group = Pid::from_child(&self.child);
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                break status;
            }
            let (name, log) = (&self.name, self.log());
            assert!(started.elapsed() < within, "{name} did not end within {within:?}:\n{log}");
            std::thread::sleep(LOOK);
        };
        self.ended = true;
        assert!(test_kill_process_group(group).is_err(), "{} left processes behind", self.name);
        status.code()
    }

    /// Asks it to stop in order, which must succeed.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.exit_code(LONG), Some(0), "{}:\n{}", self.name, self.log());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended {
            // It may have ended in this moment; its id is its own until it has been waited for.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("── {} said at the end:\n{}", self.name, lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}
