//! A real redis-server, one per test, that can be restarted, stopped in its tracks and emptied.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Ports that are tried; one may be taken between the choice and the start.
const START_ATTEMPTS: usize = 5;

/// A running server; dropping it ends it.
pub struct RedisServer {
    child: Child,
    port: u16,
    password: Option<&'static str>,
}

impl RedisServer {
    /// A server on a free port that answers.
    pub fn start() -> Self {
        Self::start_with(None)
    }

    /// The same, with a password for the default user.
    pub fn start_with_password(password: &'static str) -> Self {
        Self::start_with(Some(password))
    }

    fn start_with(password: Option<&'static str>) -> Self {
        for _ in 0..START_ATTEMPTS {
            let port = free_port();
            let mut server = RedisServer { child: spawn(port, password), port, password };
            if server.answers() {
                return server;
            }
        }
        panic!("redis-server did not start; is it installed and not older than 7.0?");
    }

    /// Where it is, without a password.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
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
        self.child = spawn(self.port, self.password);
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

    fn try_ask(&self, command: &str) -> std::io::Result<String> {
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

fn spawn(port: u16, password: Option<&str>) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
    if let Some(password) = password {
        command.args(["--requirepass", password]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("redis-server is on the PATH; on Debian: apt-get install redis-server")
}
