//! Real redis-servers of a test's own, which can be restarted, stopped in their tracks and emptied, and Sentinels.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use weir::registry::{Config, Incarnation, Presence, Sentinel, State};

use super::waiting::eventually;

/// How long a server may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Ports that are tried; one may be taken between the choice and the start.
const START_ATTEMPTS: usize = 5;

/// Stands for one more free port in arguments.
pub const FREE_PORT: &str = "(a free port)";

/// A worker of a pool as it announces itself: open, with room for 30 tasks of "bank".
pub fn presence(worker: &str, pool: &str) -> Presence {
    Presence {
        worker: worker.parse().expect("a worker id"),
        address: "http://127.0.0.1:7000".into(),
        incarnation: Incarnation::mint(),
        pool: pool.parse().expect("a pool"),
        target: 30,
        in_flight: 0,
        reserved: 0,
        state: State::Open,
        integrations: vec!["bank".parse().expect("an integration")],
        full: vec![],
        broken: vec![],
        half_open: vec![],
        settings_version: "start".into(),
        settings_rejected: None,
        jump_limit: None,
    }
}

/// A running server; dropping it ends it.
pub struct RedisServer {
    child: Child,
    port: u16,
    password: Option<&'static str>,
    arguments: Vec<String>,
}

impl RedisServer {
    /// A server on a free port that answers.
    pub fn start() -> Self {
        Self::start_with(&[], None)
    }

    /// The same, with a password for the default user.
    pub fn start_with_password(password: &'static str) -> Self {
        Self::start_with(&["--requirepass", password], Some(password))
    }

    /// A server with arguments of its own.
    pub fn start_as(arguments: &[&str]) -> Self {
        Self::start_with(arguments, None)
    }

    fn start_with(arguments: &[&str], password: Option<&'static str>) -> Self {
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        for _ in 0..START_ATTEMPTS {
            let chosen = |argument: &String| {
                if argument == FREE_PORT { free_port().to_string() } else { argument.clone() }
            };
            let (port, arguments) = (free_port(), arguments.iter().map(chosen).collect::<Vec<_>>());
            let mut server = RedisServer { child: spawn(port, &arguments), port, password, arguments };
            if server.answers() {
                return server;
            }
        }
        panic!("redis-server did not start; is it installed and not older than 7.0?");
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it is, without a password.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Where else it listens: the value of one of its arguments.
    pub fn argument(&self, name: &str) -> &str {
        let at = self.arguments.iter().position(|argument| argument == name).expect("the argument was given");
        &self.arguments[at + 1]
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends the server as a crash does. What it held is lost.
    pub fn kill(&mut self) {
        self.child.kill().expect("the server runs");
        self.child.wait().expect("the server ended");
    }

    /// Starts an empty server in the place of a killed one.
    pub fn start_again(&mut self) {
        self.child = spawn(self.port, &self.arguments);
        assert!(self.answers(), "redis-server did not start again");
    }

    /// Stops the server in its tracks: connections stay open and nothing is answered.
    pub fn pause(&self) {
        kill_process(self.pid(), Signal::STOP).expect("the server runs");
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        kill_process(self.pid(), Signal::CONT).expect("the server runs");
    }

    /// Empties the server.
    pub fn flush(&self) {
        assert_eq!(self.ask("FLUSHALL"), "+OK\r\n");
    }

    /// The raw answer to an inline command; answers up to 64 KiB that arrive in one piece.
    pub fn ask(&self, command: &str) -> String {
        self.try_ask(command).expect("the server answers")
    }

    /// Sends an inline command and leaves the answer to the caller.
    pub fn send(&self, command: &str) -> TcpStream {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).expect("it listens");
        stream.set_read_timeout(Some(START_TIMEOUT)).expect("a timeout");
        write!(stream, "{command}\r\n").expect("sent");
        stream
    }

    /// As [`RedisServer::ask`], for one that may be dead.
    pub fn try_ask(&self, command: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        if let Some(password) = self.password {
            write!(stream, "AUTH {password}\r\n")?;
            stream.read_exact(&mut [0; "+OK\r\n".len()])?;
        }
        write!(stream, "{command}\r\n")?;
        let mut answer = vec![0; 64 * 1024];
        let bytes = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..bytes]).into_owned())
    }

    /// Whether it is this very process that answers: another test's server may have taken the port.
    fn answers(&mut self) -> bool {
        let (start, process) = (Instant::now(), format!("process_id:{}\r\n", self.id()));
        while start.elapsed() < START_TIMEOUT && self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if self.try_ask("INFO server").is_ok_and(|answer| answer.contains(&process)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("bound").port()
}

fn spawn(port: u16, arguments: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    // A configuration file comes first.
    let (file, arguments) = arguments.split_at(arguments.iter().take_while(|first| !first.starts_with("--")).count());
    command.args(file).args(["--bind", "127.0.0.1", "--port", &port.to_string()]).args(arguments);
    if file.is_empty() {
        command.args(["--save", "", "--appendonly", "no"]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server is on the PATH; on Debian: apt-get install redis-server")
}

/// A primary, its replica, and a Sentinel that makes the one the other, as the primary `weir`.
pub struct Watched {
    /// Both servers; the first one is the primary at first.
    pub servers: [RedisServer; 2],
    /// Declares a server dead after 300 ms.
    pub sentinel: RedisServer,
    _directory: TempDir,
}

impl Watched {
    /// Ready to fail over.
    pub async fn start() -> Self {
        // Neither leaves a file where the tests run.
        let in_memory = ["--repl-diskless-load", "swapdb", "--repl-diskless-sync-delay", "0"];
        let primary = RedisServer::start_as(&in_memory);
        let of_primary = format!("127.0.0.1 {}", primary.port);
        let replica = RedisServer::start_as(&[&in_memory[..], &["--replicaof", &of_primary]].concat());
        eventually("the replica is in step", || replica.ask("INFO replication").contains("master_link_status:up"))
            .await;
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("sentinel.conf");
        let text = format!(
            "sentinel monitor weir 127.0.0.1 {} 1\nsentinel down-after-milliseconds weir 300\nsentinel failover-timeout weir 2000\n",
            primary.port,
        );
        std::fs::write(&file, text).expect("written");
        let sentinel = RedisServer::start_as(&[file.to_str().expect("UTF-8"), "--sentinel"]);
        let watched = Watched { servers: [primary, replica], sentinel, _directory: directory };
        let knows = || watched.sentinel.ask("SENTINEL REPLICAS weir").contains("\r\nok\r\n");
        eventually("the Sentinel knows the replica", knows).await;
        watched
    }

    /// What leads to the primary through the Sentinel.
    pub fn config(&self) -> Config {
        let (master, addresses) = (Some("weir".into()), vec![format!("127.0.0.1:{}", self.sentinel.port)]);
        let sentinel = Sentinel { master, addresses, ..Sentinel::default() };
        Config { url: Some("redis://found-by-sentinel".into()), sentinel, ..Config::default() }
    }

    /// Waits until this server is the primary.
    pub async fn until_primary(&self, index: usize) {
        let server = &self.servers[index];
        // The Sentinel ends all connections of a server whose role it changes, this question's among them.
        let is_primary = || server.try_ask("INFO replication").is_ok_and(|answer| answer.contains("role:master"));
        eventually("it is the primary", is_primary).await;
    }
}
