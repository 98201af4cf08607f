//! What is written of what is said, by the whole of the logger but its descriptor.

use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tracing::field::Empty;

use super::*;

/// Keeps what is written.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All lines that `says` leads to.
fn written(style: impl Style + 'static, level: &str, repeats: u32, says: impl FnOnce(&Level, &Shared)) -> Vec<String> {
    let (kept, lines) = (Kept::default(), Lines::new(Box::new(style), repeats));
    let shared = lines.shared().clone();
    shared.buffer.start(kept.clone(), || (), &Lifecycle::new()).expect("a thread");
    let (levels, handle) = reload::Layer::new(Levels::read(level).expect("a level"));
    let subscriber = tracing_subscriber::registry().with(levels).with(lines);
    tracing::subscriber::with_default(subscriber, || says(&Level::of(handle), &shared));
    shared.tell_rest();
    shared.buffer.end(END_WITHIN * 60);
    let text = String::from_utf8(kept.0.lock().clone()).expect("text");
    text.lines().map(str::to_owned).collect()
}

/// The same in JSON; no line has a name twice.
fn json(level: &str, repeats: u32, says: impl FnOnce(&Level, &Shared)) -> Vec<Value> {
    let lines = written(Ecs::new("weir-test"), level, repeats, says);
    let read = |line: &String| {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for name in value.as_object().expect("an object").keys() {
            assert_eq!(line.matches(&format!("{}:", Value::from(name.as_str()))).count(), 1, "{name} in {line}");
        }
        value
    };
    lines.iter().map(read).collect()
}

#[test]
fn a_line_has_the_names_of_the_schema() {
    let lines = json("info", 0, |_, shared| {
        tracing::info!(
            listen = "[::1]:1",
            max_parallelism = 30,
            share = 1.0,
            missing = None::<u64>,
            "the \"worker\"\n{}",
            1
        );
        shared.node.set("w1".into()).expect("the first name");
        let error = io::Error::other("the disk is full");
        tracing::warn!(%error, event.duration = 7_u64, is_first = true, ratio = f64::NAN, "it failed");
    });
    let [first, second] = lines.as_slice() else { panic!("{lines:#?}") };
    assert_eq!(first["message"], "the \"worker\"\n1");
    assert_eq!([&first["log.level"], &first["log.logger"]], ["info", "weir::telemetry::logs::tests"]);
    assert_eq!(first["log.origin.file.name"], "tests.rs");
    assert!(first["log.origin.file.line"].as_u64().is_some_and(|line| line > 0));
    assert_eq!([&first["service.name"], &first["service.version"]], ["weir-test", env!("CARGO_PKG_VERSION")]);
    assert_eq!(first["process.pid"], std::process::id());
    assert!(first["host.hostname"].is_string() && first["ecs.version"].is_string());
    let at = first["@timestamp"].as_str().expect("a time");
    assert!(at.len() == "2026-11-26T08:53:43.123456Z".len() && at.parse::<jiff::Timestamp>().is_ok(), "{at}");
    assert_eq!([&first["weir.listen"], &first["weir.max_parallelism"]], [&Value::from("[::1]:1"), &Value::from(30)]);
    assert!(
        first["weir.share"].is_f64() && first.get("weir.missing").is_none() && first.get("service.node.name").is_none()
    );

    assert_eq!([&second["error.message"], &second["service.node.name"]], ["the disk is full", "w1"]);
    assert_eq!([&second["event.duration"], &second["weir.is_first"]], [&Value::from(7), &Value::from(true)]);
    assert!(second["weir.ratio"].is_null());
}

#[test]
fn lines_of_a_run_have_its_names_once_whoever_says_them() {
    let lines = json("error,weir=info,bank=debug", 0, |_, _| {
        let call = tracing::error_span!("call", trace.id = "4bf9");
        let _call = call.enter();
        let run = tracing::error_span!("run", task = Empty, run = Empty, tenant = Empty);
        let _run = run.enter();
        tracing::record_all!(run, task = "t-1", run = "r-1", tenant = "acme");
        tracing::info!(task = "t-1", "it names its task itself");
        // An integration of a team's own.
        tracing::debug!(target: "bank::accounts", accounts = 3, task = "another", log.level = "mine", http.method = "GET", "pulled");
        tracing::info!(target: "library", "nobody wants this");
    });
    assert_eq!(lines.len(), 2, "{lines:#?}");
    for line in &lines {
        assert_eq!([&line["weir.task"], &line["weir.run"], &line["weir.tenant"]], ["t-1", "r-1", "acme"], "{line}");
        assert_eq!(line["trace.id"], "4bf9");
    }
    assert_eq!([&lines[1]["labels.accounts"], &lines[1]["labels.task"]], ["3", "another"], "labels are text");
    assert_eq!([&lines[1]["labels.log_level"], &lines[1]["http.method"]], ["mine", "GET"]);
    assert_eq!(lines[1]["log.level"], "debug");
}

#[test]
fn spans_of_weirs_own_pass_whatever_the_level_and_cost_nothing_where_nothing_is_logged() {
    let lines = json("off,bank=info", 0, |level, _| {
        let run = tracing::error_span!("run", task = "t-1");
        run.in_scope(|| tracing::info!(target: "bank", "it says something"));
        level.set("off").expect("a level");
        assert!(tracing::error_span!("run", task = "t-2").is_disabled());
    });
    assert_eq!((lines.len(), lines[0]["weir.task"].as_str()), (1, Some("t-1")), "{lines:#?}");
}

#[test]
fn the_level_changes_for_all_or_by_target_and_a_bad_one_changes_nothing() {
    let lines = json("warn", 0, |level, _| {
        let say = |text: &str| {
            tracing::info!(target: "weir::router", "{text}");
            tracing::info!(target: "weir::worker", "{text}");
        };
        say("one");
        level.set("warn,weir::router=info").expect("a filter");
        say("two");
        let error = level.set("warn,weir::rooter=info").expect_err("a slip").to_string();
        assert!(error.contains("did you mean \"weir::router\"?"), "{error}");
        say("three");
        level.set("info").expect("a level");
        say("four");
    });
    let said: Vec<_> = lines.iter().map(|line| (line["message"].as_str(), line["log.logger"].as_str())).collect();
    let [router, worker] = ["weir::router", "weir::worker"].map(Some);
    assert_eq!(said, [(Some("two"), router), (Some("three"), router), (Some("four"), router), (Some("four"), worker)]);
}

#[test]
fn what_is_said_too_often_is_left_out_by_integration_and_counted() {
    let of = |integration: &str, times: usize| {
        let run = tracing::error_span!("run", integration);
        let _run = run.enter();
        (0..times).for_each(|number| tracing::error!(number, "the bank is away"));
    };
    let mut left_out = 0;
    let lines = json("info", 10, |_, shared| {
        // One place in the code, and so one count, but for the integrations.
        for (integration, times) in [("noisy", 1000), ("quiet", 3)] {
            of(integration, times);
        }
        left_out = shared.counts.left_out[0].load(Ordering::Relaxed);
    });
    assert_eq!((lines.len(), left_out), (10 + 3 + 1, 990));
    let of_the_quiet = lines.iter().filter(|line| line["weir.integration"] == "quiet").count();
    assert_eq!(of_the_quiet, 3);
    let told = lines.last().expect("a line");
    assert_eq!(told["message"], "990 more like this within 10 s were left out: the bank is away");
    assert_eq!([&told["log.level"], &told["weir.integration"]], ["error", "noisy"]);
    assert_eq!((&told["weir.left_out"], &told["log.logger"]), (&Value::from(990), &lines[0]["log.logger"]));
}

#[test]
fn a_text_that_is_too_long_is_cut_and_stays_json() {
    let lines = json("info", 0, |_, _| {
        let long = "ä\u{1}".repeat(100_000);
        tracing::info!(long, "{}", "x".repeat(100_000));
    });
    for name in ["message", "weir.long"] {
        let text = lines[0][name].as_str().expect("text");
        assert!(text.len() < 9_000 && text.ends_with('…'), "{name} has {} bytes", text.len());
    }
}

#[test]
fn text_for_people_is_one_line_without_anything_for_a_terminal_to_do() {
    let lines = written(Human { has_colours: false }, "info", 0, |_, _| {
        let run = tracing::error_span!("run", task = "t-1");
        let _run = run.enter();
        tracing::warn!(listen = "a\nb", seconds = 1.5, "it says {}", "\x1b[31mred\n");
    });
    let (time, rest) = lines[0].split_once(' ').expect("a time");
    assert!(time.ends_with('Z'), "{time}");
    let says = r" WARN weir::telemetry::logs::tests: it says \u{1b}[31mred\n listen=a\nb seconds=1.5 task=t-1";
    assert_eq!((lines.len(), rest), (1, says));
}
