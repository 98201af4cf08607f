//! Programs that behave and programs that do not: each is a few lines of Python or of the shell.

use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::integration::testing;
use crate::task::{Remedy, Transcript};

/// Long enough for anything on a busy machine; nothing waits for it when all is well.
const LONG: Duration = Duration::from_secs(30);

/// Speaks the protocol with a thread per run. An input is a list: what to do, and with what.
const PROGRAM: &str = r#"
import json, os, subprocess, sys, threading, time
lock, cancelled = threading.Lock(), {}
def say(**message):
    with lock:
        os.write(1, (json.dumps(message) + "\n").encode())
def run(run, what, value):
    if what == "echo": say(type="outcome", run=run, output=value)
    elif what == "pid": say(type="outcome", run=run, output=os.getpid())
    elif what == "environment": say(type="outcome", run=run, output=sorted(os.environ))
    elif what == "wait":
        cancelled[run].wait()
        say(type="outcome", run=run, error={"message": "stopped: " + cancelled[run].reason, "remedy": "retry"})
    elif what == "raw": os.write(1, value.encode())
    elif what == "flood":
        while True: os.write(1, b"x" * 65536)
    elif what == "notes":
        while True: say(type="note", run=run, text="n")
    elif what == "exit": os._exit(value)
    elif what == "stderr":
        print(value, file=sys.stderr, flush=True)
        time.sleep(0.2)
        say(type="outcome", run=run)
    elif what == "child":
        child = subprocess.Popen(["sleep", "1000"])
        say(type="outcome", run=run, output=[os.getpid(), child.pid])
    elif what == "memory":
        hog = bytearray(value)
        for at in range(0, value, 4096): hog[at] = 1
        cancelled[run].wait()
        say(type="outcome", run=run, output=len(hog))
say(type="ready", protocol=1, concurrency=4)
for line in sys.stdin:
    message = json.loads(line)
    if message["type"] == "cancel":
        cancelled[message["run"]].reason = message["reason"]
        cancelled[message["run"]].set()
    else:
        cancelled[message["run"]] = threading.Event()
        threading.Thread(target=run, args=[message["run"], *message["task"]["input"]], daemon=True).start()
"#;

struct Programs {
    exec: Exec,
    telemetry: Telemetry,
    background: Lifecycle,
}

fn python(program: &str) -> Config {
    let command = ["python3", "-c", program].map(str::to_owned).into();
    Config { command, processes: 1, start_timeout: LONG, ..Config::default() }
}

fn shell(script: &str) -> Config {
    Config { command: ["sh", "-c", script].map(str::to_owned).into(), ..python("") }
}

impl Programs {
    fn start(config: &Config) -> Self {
        let telemetry = Telemetry::new().expect("a recorder");
        let exec = Exec::new(&"bank".parse().expect("a name"), config, &telemetry).expect("valid");
        let background = Lifecycle::new();
        exec.start(&background);
        Programs { exec, telemetry, background }
    }

    async fn run(&self, input: &str) -> Result<Json, Error> {
        self.run_with(input, &CancellationToken::new()).await.0
    }

    async fn run_with(&self, input: &str, cancel: &CancellationToken) -> (Result<Json, Error>, Transcript) {
        let context = testing::context_on(&Lifecycle::new(), input, 1, Arc::new(()), cancel.clone());
        let result = tokio::time::timeout(LONG, self.exec.run(&context)).await.expect("it ends in time");
        (result, context.recorder().take())
    }

    async fn pid(&self) -> i32 {
        self.run(r#"["pid", null]"#).await.expect("a pid").as_str().parse().expect("a number")
    }

    fn metric(&self, series: &str) -> f64 {
        let text = self.telemetry.render();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        line.unwrap_or_else(|| panic!("{series} is not in {text}"))
    }

    fn restarts(&self, cause: &str) -> f64 {
        self.metric(&format!("weir_exec_restarts_total{{integration=\"bank\",cause=\"{cause}\"}}"))
    }

    async fn stop(self) {
        self.background.stop(LONG).await.expect("all processes end");
        assert_eq!(self.metric("weir_exec_processes{integration=\"bank\"}"), 0.0);
        assert_eq!(self.metric("weir_exec_busy{integration=\"bank\"}"), 0.0);
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // What is joined with this sees it, too, before it is acted on.
        tokio::task::yield_now().await;
    };
    tokio::time::timeout(LONG, waited).await.unwrap_or_else(|_| panic!("it never came true: {what}"));
}

fn lives(pid: i32) -> bool {
    // A zombie still has a pid: it has ended all the same.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_zombie = stat.rsplit(')').next().is_some_and(|fields| fields.trim_start().starts_with('Z'));
    test_kill_process(Pid::from_raw(pid).expect("a pid")).is_ok() && !is_zombie
}

fn word(error: &Error) -> &str {
    assert_eq!(error.remedy, Remedy::Retry, "{error}");
    error.reason.as_ref().expect("a reason").as_str()
}

/// Twelve tasks for eight places: each task's context is costly to make.
#[tokio::test]
async fn tasks_are_run_several_at_a_time_and_texts_stay_as_they_were() {
    let programs = Programs::start(&Config { processes: 2, ..python(PROGRAM) });
    let inputs: Vec<_> = (0..12).map(|n| format!(r#"["echo", {{"n": {n}, "text": "ü\n"}}]"#)).collect();
    let outputs = join_all(inputs.iter().map(|input| programs.run(input))).await;
    for (n, output) in outputs.into_iter().enumerate() {
        assert_eq!(output.expect("an output").as_str(), format!(r#"{{"n": {n}, "text": "\u00fc\n"}}"#));
    }
    eventually("both are ready", || programs.metric("weir_exec_places{integration=\"bank\"}") == 8.0).await;
    programs.stop().await;
}

#[tokio::test]
async fn a_cancelled_run_ends_when_the_program_says_so_and_hears_why() {
    let programs = Programs::start(&Config { cancel_grace: LONG, ..python(PROGRAM) });
    let cancel = CancellationToken::new();
    let running = programs.run_with(r#"["wait", null]"#, &cancel);
    let cancelling = async {
        let busy = || programs.metric("weir_exec_busy{integration=\"bank\"}") == 1.0;
        eventually("the task runs", busy).await;
        cancel.cancel();
    };
    let ((result, _), ()) = tokio::join!(running, cancelling);
    assert_eq!(result.expect_err("stopped").message, "stopped: cancelled");
    programs.stop().await;
}

#[tokio::test]
async fn a_dropped_run_keeps_its_hold_until_the_program_has_answered() {
    let programs = Programs::start(&python(PROGRAM));
    let hold: Arc<dyn std::any::Any + Send + Sync> = Arc::new(());
    let input = r#"["wait", null]"#;
    let context = testing::context_on(&Lifecycle::new(), input, 1, hold.clone(), CancellationToken::new());
    {
        let run = programs.exec.run(&context);
        let busy = || programs.metric("weir_exec_busy{integration=\"bank\"}") == 1.0;
        tokio::select! {
            _ = run => panic!("it runs until it is told to stop"),
            () = eventually("the task runs", busy) => {}
        }
        assert!(Arc::strong_count(&hold) >= 3, "the process has it too");
    }
    drop(context);
    eventually("the program has answered", || Arc::strong_count(&hold) == 1).await;
    assert_eq!(programs.restarts("hung"), 0.0);
    programs.stop().await;
}

#[tokio::test]
async fn a_crash_fails_what_was_in_the_process_and_the_next_one_works() {
    let programs = Programs::start(&python(PROGRAM));
    let cancel = CancellationToken::new();
    let (exits, (waits, _)) =
        tokio::join!(programs.run(r#"["exit", 3]"#), programs.run_with(r#"["wait", null]"#, &cancel));
    for error in [exits.expect_err("crashed"), waits.expect_err("crashed")] {
        assert_eq!((word(&error), &*error.message), ("process_crashed", "the process exited with status 3"));
    }
    let pid = programs.pid().await;
    let killing = async {
        eventually("the task runs", || programs.metric("weir_exec_busy{integration=\"bank\"}") == 1.0).await;
        kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL).expect("it runs");
    };
    let ((killed, _), ()) = tokio::join!(programs.run_with(r#"["wait", null]"#, &cancel), killing);
    assert_eq!(killed.expect_err("killed").message, "the process was ended by signal 9");
    assert_ne!(programs.pid().await, pid);
    assert_eq!(programs.restarts("crashed"), 2.0);
    programs.stop().await;
}

#[tokio::test]
async fn a_hung_task_ends_its_process_and_the_others_in_it_can_be_run_again() {
    let ignores = PROGRAM.replace(
        r#"if what == "echo""#,
        r#"if what == "hang": time.sleep(1000)
    elif what == "echo""#,
    );
    let programs = Programs::start(&Config { cancel_grace: Duration::from_millis(50), ..python(&ignores) });
    let (told, not_told) = (CancellationToken::new(), CancellationToken::new());
    let cancelling = async {
        eventually("both run", || programs.metric("weir_exec_busy{integration=\"bank\"}") == 2.0).await;
        told.cancel();
    };
    let ((hung, _), (other, _), ()) = tokio::join!(
        programs.run_with(r#"["hang", null]"#, &told),
        programs.run_with(r#"["wait", null]"#, &not_told),
        cancelling
    );
    assert_eq!(word(&hung.expect_err("hung")), "process_hung");
    let other = other.expect_err("stopped");
    assert_eq!(word(&other), "process_stopped");
    assert_eq!(other.message, "the process was stopped because another task hung in it");
    programs.pid().await;
    assert_eq!(programs.restarts("hung"), 1.0);
    programs.stop().await;
}

#[tokio::test]
async fn garbage_and_floods_fail_the_task_and_the_next_process_works() {
    let programs = Programs::start(&Config { max_line_bytes: 100_000, max_run_bytes: 200_000, ..python(PROGRAM) });
    let strange = r#"{\"type\":\"outcome\",\"run\":\"01890a5d-ac96-774b-bcce-b302099a8057\"}\n"#;
    for (input, reason, says) in [
        (r#"["raw", "CANARY\n"]"#.to_owned(), "bad_output", "it is not a JSON object"),
        (format!(r#"["raw", "{strange}"]"#), "bad_output", "a run that it does not have"),
        (r#"["raw", "{\"type\":\"ready\",\"protocol\":1}\n"]"#.to_owned(), "bad_output", "a second time"),
        (r#"["flood", null]"#.to_owned(), "output_flood", "a line is longer than 100000 bytes"),
        (r#"["notes", null]"#.to_owned(), "output_flood", "about one run"),
    ] {
        let error = programs.run(&input).await.expect_err(&input);
        assert_eq!(word(&error), reason, "{error}");
        assert!(error.message.contains(says) && !error.message.contains("CANARY"), "{error}");
    }
    programs.pid().await;
    assert_eq!(programs.restarts("bad_output"), 5.0);
    programs.stop().await;
}

#[tokio::test]
async fn stderr_is_in_the_transcript_of_what_runs_and_cut() {
    let programs = Programs::start(&python(PROGRAM));
    let long = "x".repeat(2 * 4096);
    let (result, transcript) = programs.run_with(&format!(r#"["stderr", "{long}"]"#), &CancellationToken::new()).await;
    assert_eq!(result.expect("null").as_str(), "null");
    let notes: Vec<_> = transcript.notes.iter().map(|note| note.text.len()).collect();
    assert_eq!(notes, ["stderr: ".len() + 4096]);
    assert!(transcript.notes[0].is_cut, "so that no secret's beginning is left at its end");
    programs.stop().await;
}

/// One run's secret has no place in what is stored of another.
#[tokio::test]
async fn stderr_of_several_runs_is_counted_and_kept_only_where_that_is_wanted() {
    for shared_stderr in [false, true] {
        let programs = Programs::start(&Config { processes: 1, shared_stderr, cancel_grace: LONG, ..python(PROGRAM) });
        let cancel = CancellationToken::new();
        let writing = async {
            eventually("the other runs", || programs.metric(r#"weir_exec_busy{integration="bank"}"#) == 1.0).await;
            let (_, transcript) = programs.run_with(r#"["stderr", "CANARY"]"#, &CancellationToken::new()).await;
            cancel.cancel();
            transcript
        };
        let ((_, other), writer) = tokio::join!(programs.run_with(r#"["wait", null]"#, &cancel), writing);
        for transcript in [writer, other] {
            let notes: Vec<_> = transcript.notes.iter().map(|note| &*note.text).collect();
            let [note] = notes[..] else { panic!("{notes:?}") };
            let expected = if shared_stderr { "stderr: CANARY" } else { "stderr: lines left out: 1 (several runs" };
            assert!(note.starts_with(expected), "{note}");
        }
        programs.stop().await;
    }
}

/// What a line holds may be another run's as long as it began before this one.
#[tokio::test]
async fn a_line_on_stderr_that_another_run_began_is_left_out() {
    let program = PROGRAM.replace("print(value, file=sys.stderr, flush=True)", "os.write(2, value.encode())");
    let programs = Programs::start(&python(&program));
    let (_, first) = programs.run_with(r#"["stderr", "CANARY "]"#, &CancellationToken::new()).await;
    assert!(first.notes.is_empty(), "{:?}", first.notes.len());
    let (_, second) = programs.run_with(r#"["stderr", "ok\nits own\n"]"#, &CancellationToken::new()).await;
    let notes: Vec<_> = second.notes.iter().map(|note| &*note.text).collect();
    assert!(notes.len() == 2 && notes[0] == "stderr: its own" && notes[1].starts_with("stderr: lines left out: 1"));
    programs.stop().await;
}

#[tokio::test]
async fn a_command_that_cannot_be_started_fails_tasks_at_once_and_says_why() {
    let unready = Duration::from_millis(200);
    let directory = tempfile::tempdir().expect("a directory");
    let unusable = directory.path().join("program").to_str().expect("a text").to_owned();
    std::fs::write(&unusable, "#!/no/such/interpreter\n").expect("written");
    std::fs::set_permissions(&unusable, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
    for (config, says) in [
        (Config { command: vec![unusable.clone()], ..python("") }, "could not be started: No such file"),
        (shell("echo CANARY >&2; exit 2"), "exited with status 2 before it was ready"),
        (Config { start_timeout: unready, ..shell("sleep 1000") }, "was not ready within 200ms"),
        (shell("echo hello; sleep 1000"), "its first line is no message"),
        (shell(r#"echo '{"type":"ready","protocol":2}'; sleep 1000"#), "it speaks version 2"),
        (shell(r#"echo '{"type":"ready","protocol":1,"concurrency":0}'; sleep 1000"#), "its concurrency is 0"),
    ] {
        let programs = Programs::start(&config);
        let error = programs.run("null").await.expect_err(says);
        assert_eq!(word(&error), "no_process");
        assert!(error.message.contains(says) && error.message.contains(&config.command[0]), "{error}");
        assert!(!error.message.contains("CANARY"), "{error}");
        programs.stop().await;
    }
}

#[tokio::test]
async fn a_command_that_is_not_there_is_refused_with_its_key() {
    let at_boot = |config: &Config| {
        let exec = Exec::new(&"bank".parse().expect("a name"), config, &Telemetry::new().expect("a recorder"));
        exec.err().expect("it is not there").to_string()
    };
    let missing = Config { command: vec!["weir-no-such-program".into()], ..python("") };
    assert!(at_boot(&missing).starts_with("command: there is no program \"weir-no-such-program\" in its PATH"));
    let variables = [("PATH".to_owned(), "/nowhere".to_owned())].into();
    let elsewhere = Config { variables, ..python("") };
    assert!(at_boot(&elsewhere).contains("\"python3\" in its PATH, which is \"/nowhere\""), "its PATH, not weir's");
}

/// What is about a run costs that run a message, or its answer; the others in the process, and the process, go on.
#[tokio::test]
async fn what_does_not_fit_is_left_out_by_name_and_the_process_lives() {
    let program = PROGRAM.replace(
        r#"elif what == "raw""#,
        r#"elif what == "lines":
        for line in value: os.write(1, (line.replace("RUN", run) + "\n").encode())
    elif what == "raw""#,
    );
    let programs = Programs::start(&Config { cancel_grace: LONG, ..python(&program) });
    let cancel = CancellationToken::new();
    let lines = serde_json::json!([
        "lines",
        [
            r#"{"type":"exchange","run":"RUN","exchange":{"method":"GET","url":"u","started_ms":1.5}}"#,
            r#"{"type":"note","run":"RUN","text":429}"#,
            r#"{"type":"note","run":"RUN","text":"half \ud83d"}"#,
            r#"{"type":"outcome","run":"RUN","output":"\ud83d"}"#,
        ]
    ]);
    let unfit = r#"["lines", ["{\"type\":\"outcome\",\"run\":\"RUN\",\"error\":{\"message\":{\"CANARY\":1}}}"]]"#;
    let lines = lines.to_string();
    let talking = async {
        let (result, transcript) = programs.run_with(&lines, &CancellationToken::new()).await;
        assert_eq!(result.expect("an output").as_str(), r#""\ud83d""#);
        let notes: Vec<_> = transcript.notes.iter().map(|note| &*note.text).collect();
        let left_out = "left out of what the program said: the field";
        assert_eq!(
            notes[..2],
            [
                format!("{left_out} exchange.started_ms does not fit its type"),
                format!("{left_out} text does not fit its type")
            ]
        );
        assert!(notes[2].starts_with("half \u{fffd}"), "{notes:?}");
        let error = programs.run(unfit).await.expect_err("it does not fit");
        assert_eq!((error.remedy, error.reason.expect("one").as_str()), (Remedy::None, "bad_output"));
        assert!(error.message.ends_with("the field error.message does not fit its type"), "{}", error.message);
        cancel.cancel();
    };
    let ((other, _), ()) = tokio::join!(programs.run_with(r#"["wait", null]"#, &cancel), talking);
    assert_eq!(other.expect_err("cancelled").message, "stopped: cancelled");
    assert_eq!(programs.restarts("bad_output"), 0.0);
    programs.stop().await;
}

#[tokio::test]
async fn what_is_written_to_stderr_just_before_the_outcome_is_not_lost() {
    let script = r#"
        echo '{"type":"ready","protocol":1}'
        while read -r line; do
            run=${line#*'"run":"'}; run=${run%%'"'*}
            echo "last words" >&2
            echo '{"type":"outcome","run":"'$run'"}'
        done"#;
    let programs = Programs::start(&shell(script));
    for n in 0..50 {
        let (result, transcript) = programs.run_with("null", &CancellationToken::new()).await;
        result.expect("null");
        let notes: Vec<_> = transcript.notes.iter().map(|note| &*note.text).collect();
        assert_eq!(notes, ["stderr: last words"], "run {n}");
    }
    programs.stop().await;
}

#[tokio::test]
async fn a_task_that_never_had_a_place_says_what_it_waited_for() {
    let programs = Programs::start(&Config { max_concurrency_per_process: 1, cancel_grace: LONG, ..python(PROGRAM) });
    let (first, second) = (CancellationToken::new(), CancellationToken::new());
    let cancelling = async {
        eventually("the first runs", || programs.metric("weir_exec_busy{integration=\"bank\"}") == 1.0).await;
        eventually("the second waits", || programs.metric("weir_exec_waiting{integration=\"bank\"}") == 1.0).await;
        second.cancel();
    };
    let waiting = async {
        eventually("the first runs", || programs.metric("weir_exec_busy{integration=\"bank\"}") == 1.0).await;
        let (result, transcript) = programs.run_with("null", &second).await;
        first.cancel();
        assert!(result.expect_err("cancelled").message.contains("waiting for a process"));
        let note = &transcript.notes.first().expect("a note").text;
        assert!(note.starts_with("waited ") && note.ends_with("had none: all 1 places were taken"), "{note}");
    };
    let ((result, _), (), ()) = tokio::join!(programs.run_with(r#"["wait", null]"#, &first), cancelling, waiting);
    result.expect_err("cancelled");
    programs.stop().await;
}

#[tokio::test]
async fn a_process_that_grows_is_replaced_after_its_tasks_and_ended_when_it_goes_on() {
    const MIB: u64 = 1024 * 1024;
    let programs = Programs::start(&Config { max_resident_bytes: 100 * MIB, ..python(PROGRAM) });
    let first = programs.pid().await;
    let cancel = CancellationToken::new();
    let input = format!(r#"["memory", {}]"#, 100 * MIB);
    let growing = async {
        // It is full at once: it takes nothing new, and its task goes on.
        let places = || programs.metric("weir_exec_places{integration=\"bank\"}") == 1.0;
        eventually("it takes no more", places).await;
        assert!(lives(first));
        cancel.cancel();
    };
    let ((large, _), ()) = tokio::join!(programs.run_with(&input, &cancel), growing);
    assert_eq!(large.expect("an output").as_str(), (100 * MIB).to_string());
    assert_ne!(programs.pid().await, first);
    assert_eq!((programs.restarts("replaced"), programs.restarts("memory")), (1.0, 0.0));

    let error = programs.run(&format!(r#"["memory", {}]"#, 300 * MIB)).await.expect_err("too much");
    assert_eq!(word(&error), "process_memory");
    assert_eq!(programs.restarts("memory"), 1.0);
    programs.stop().await;
}

#[tokio::test]
async fn a_process_is_replaced_after_its_runs() {
    let programs = Programs::start(&Config { max_runs_per_process: Some(2), ..python(PROGRAM) });
    let mut pids = Vec::new();
    for _ in 0..6 {
        pids.push(programs.pid().await);
    }
    assert!(pids[0] == pids[1] && pids[2] == pids[3] && pids[4] == pids[5], "{pids:?}");
    pids.dedup();
    assert_eq!(pids.len(), 3);
    programs.stop().await;
}

#[tokio::test]
async fn a_stop_leaves_no_process_and_no_child_of_one() {
    // This one ignores both the end of its stdin and SIGTERM.
    let stubborn = format!("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{PROGRAM}\ntime.sleep(1000)");
    for (program, grace) in [(PROGRAM, LONG), (&stubborn, Duration::from_millis(50))] {
        let config = Config { stop_grace: grace.min(Duration::from_secs(3)), ..python(program) };
        let programs = Programs::start(&config);
        let pids: Vec<i32> = programs.run(r#"["child", null]"#).await.expect("pids").read().expect("numbers");
        assert!(pids.iter().all(|pid| lives(*pid)), "{pids:?}");
        programs.stop().await;
        eventually("nobody is left", || !pids.iter().any(|pid| lives(*pid))).await;
    }
}

#[tokio::test]
async fn a_program_gets_of_the_environment_what_it_is_given() {
    let variables = [("BANK_URL".to_owned(), "http://bank".to_owned())].into();
    let programs = Programs::start(&Config { variables, ..python(PROGRAM) });
    let names: Vec<String> = programs.run(r#"["environment", null]"#).await.expect("names").read().expect("texts");
    assert!(names.contains(&"BANK_URL".into()) && names.contains(&"PATH".into()), "{names:?}");
    // This test itself has variables that it was started with by cargo.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some() && !names.iter().any(|name| name.starts_with("CARGO")));
    programs.stop().await;

    let missing = Config { pass_variables: vec!["WEIR_TEST_NO_SUCH".into()], ..python(PROGRAM) };
    let error = Exec::new(&"bank".parse().expect("a name"), &missing, &Telemetry::new().expect("a recorder"));
    let error = error.err().expect("it is not set").to_string();
    assert!(error.starts_with("pass_variables: the variable WEIR_TEST_NO_SUCH is not set"), "{error}");
}
