//! Small mistakes in a handler, with the files of `sdk` as programs get them: each costs its own task alone, and what is
//! said to weir has the form that docs/exec.md gives it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::documents::path;

/// What a program said of one run.
#[derive(Default)]
struct Said {
    notes: Vec<String>,
    exchanges: Vec<Value>,
    /// As it was written.
    outcome: String,
}

impl Said {
    fn error(&self) -> Value {
        serde_json::from_str::<Value>(&self.outcome).expect("JSON")["error"].clone()
    }

    fn output(&self) -> String {
        let fields: BTreeMap<&str, &RawValue> = serde_json::from_str(&self.outcome).expect("JSON");
        fields.get("output").unwrap_or_else(|| panic!("an output: {}", self.outcome)).get().to_owned()
    }
}

/// Gives a program these inputs, all at once, and the end of its stdin; it must answer each and end well.
fn say(command: &[&str], bank: &str, inputs: &[(&str, String)]) -> BTreeMap<String, Said> {
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let mut program = Command::new(command[0]);
    program.env("REFUSED_URL", format!("http://{nobody}/"));
    program.args(&command[1..]).env("BANK_URL", bank).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = program.stderr(Stdio::null()).spawn().expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let mut names = BTreeMap::new();
    for (n, (name, input)) in inputs.iter().enumerate() {
        let run = format!("01890a5d-ac96-774b-bcce-{n:012}");
        // As the worker writes it, with the input as its caller did.
        writeln!(
            stdin,
            r#"{{"type":"task","run":"{run}","task":{{"id":"t","integration":"i","tenant":"default","priority":"batch","input":{input}}},"timeout_ms":20000}}"#
        )
        .expect("it reads");
        names.insert(run, (*name).to_owned());
    }
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let output_text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{command:?} ended with {}: {output_text}", output.status);
    let mut said = BTreeMap::<String, Said>::new();
    for line in output_text.lines() {
        let fields: BTreeMap<&str, &RawValue> = serde_json::from_str(line).expect("JSON");
        let text = |key: &str| serde_json::from_str::<String>(fields[key].get()).expect("a text, and a whole one");
        if text("type") == "ready" {
            continue;
        }
        let of = said.entry(names[&text("run")].clone()).or_default();
        match &*text("type") {
            "note" => of.notes.push(text("text")),
            "exchange" => of.exchanges.push(serde_json::from_str(fields["exchange"].get()).expect("JSON")),
            "outcome" => {
                assert!(of.outcome.is_empty(), "answered twice: {line}");
                of.outcome = line.to_owned();
            }
            other => panic!("{other}"),
        }
    }
    assert!(inputs.iter().all(|(name, _)| !said[*name].outcome.is_empty()), "each is answered");
    said
}

fn each(names: &[&'static str]) -> Vec<(&'static str, String)> {
    names.iter().map(|name| (*name, json!({"do": name}).to_string())).collect()
}

/// A bank that never comes to an end: of its answer's body, or before it.
#[expect(clippy::disallowed_methods, reason = "it has no end: its threads end with the test's process")]
fn endless() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut head = [0; 4096];
                let read = stream.read(&mut head).unwrap_or_default();
                let hangs = head[..read].starts_with(b"GET /hang");
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").and_then(|()| match hangs {
                    true => stream.read(&mut head).map(drop),
                    false => loop {
                        stream.write_all(&[b'x'; 65_536])?;
                    },
                });
            });
        }
    });
    format!("http://{address}")
}

/// What both languages have in common.
const MISTAKES: [&str; 13] = [
    "reason",
    "surrogate",
    "started",
    "before",
    "text_status",
    "large_status",
    "no_url",
    "timing",
    "nan",
    "half_output",
    "odd",
    "unfinished",
    "other",
];

fn check_mistakes(said: &BTreeMap<String, Said>) {
    assert_eq!(said["reason"].error(), json!({"message": "too many", "remedy": "retry", "reason": "429"}));
    let surrogate = &said["surrogate"];
    assert_eq!(surrogate.error()["message"], "half \u{fffd}");
    assert_eq!(surrogate.notes[..2], ["half \u{fffd}", "half \u{fffd}"]);
    assert!([1_000, 1_001].map(Value::from).contains(&said["started"].exchanges[0]["started_ms"]));
    assert_eq!(said["before"].exchanges[0]["started_ms"], 0);
    assert_eq!(said["text_status"].exchanges[0]["response"]["status"], 200);
    for (name, says) in [
        ("large_status", "three digits"),
        ("no_url", "method and url are needed"),
        ("timing", "finite"),
        ("nan", "JSON"),
    ] {
        assert!(said[name].exchanges.is_empty(), "{name}");
        let message = said[name].error()["message"].as_str().expect("a message").to_owned();
        assert!(message.contains(says) || message.contains("not JSON compliant"), "{name}: {message}");
    }
    assert_eq!(said["half_output"].output(), r#""\ud83d""#);
    assert!(said["odd"].error()["message"].is_string());
    assert_eq!(said["unfinished"].notes, ["one", "of unfinished"]);
    assert_eq!(said["other"].notes, ["of other"]);
}

#[test]
fn a_mistake_in_a_handler_in_node_costs_its_task_alone() {
    let file = path("tests/it/exec/faults.mjs");
    let mut inputs = each(&MISTAKES);
    inputs.extend(each(&["no_url_at_all", "refused", "late", "endless"]));
    inputs.push(("input", format!(r#"{{"do":"input","value":{}{}}}"#, "[".repeat(1_000), "]".repeat(1_000))));
    let said = say(&["node", file.to_str().expect("a text")], &endless(), &inputs);
    check_mistakes(&said);
    assert_eq!(said["surrogate"].notes[2], "x".repeat(16_383), "cut before a pair, not in it");
    let nan = said["nan"].error();
    assert_eq!(nan["message"], r#"the output holds NaN, which is no number of JSON, at "amount""#);
    for (name, remedy) in [("no_url_at_all", "none"), ("refused", "retry"), ("late", "retry"), ("endless", "none")] {
        let error = said[name].error();
        assert_eq!(error["remedy"].as_str().unwrap_or("none"), remedy, "{name}: {error}");
    }
    assert_eq!(said["endless"].error()["message"], "a response has more than 1000000 bytes");
    let endless = &said["endless"].exchanges[0];
    assert!(endless["response"]["body"].as_str().is_some_and(|body| body.len() == 256 * 1024), "what was read is cut");
    assert_eq!(said["input"].output(), "[".repeat(1_000) + &"]".repeat(1_000));
}

#[test]
fn a_mistake_in_a_handler_in_python_costs_its_task_alone() {
    let file = path("tests/it/exec/faults.py");
    let file = file.to_str().expect("a text");
    let large = format!(r#"{{"do":"input","value":{}}}"#, "7".repeat(5_000));
    let deep = format!(r#"{{"do":"input","value":{}{}}}"#, "[".repeat(1_000), "]".repeat(1_000));
    for arguments in [&[][..], &["one"], &["async"]] {
        let mut inputs = vec![("large", large.clone()), ("deep", deep.clone())];
        inputs.extend(each(&["exit", "interrupt"]));
        inputs.extend(each(&MISTAKES));
        inputs.extend(each(&["space", "refused", "decimal"]));
        let said = say(&[&["python3", file], arguments].concat(), "", &inputs);
        check_mistakes(&said);
        for (name, says) in [
            ("large", "Python cannot read the input: "),
            ("deep", "Python cannot read the input: "),
            ("exit", "SystemExit: 3"),
            ("interrupt", "KeyboardInterrupt"),
        ] {
            let error = said[name].error();
            assert_eq!(error["remedy"].as_str().unwrap_or("none"), "none", "{name}: {error}");
            assert!(error["message"].as_str().is_some_and(|message| message.starts_with(says)), "{name}: {error}");
        }
        assert_eq!((said["space"].error()["remedy"].as_str(), said["decimal"].output()), (Some("none"), "0.10".into()));
        assert_eq!(said["refused"].error()["remedy"], "retry");
    }
}

#[test]
fn python_keeps_the_digits_of_decimals_on_request() {
    let file = path("tests/it/exec/faults.py");
    let value = r#"[0.80,12345678901234567890.12,12345678901234567890,-1.10,"weir-decimal-0"]"#;
    let inputs = [("input", format!(r#"{{"do":"input","value":{value}}}"#))];
    let said = say(&["python3", file.to_str().expect("a text"), "exact"], "", &inputs);
    assert_eq!(said["input"].output(), value);
}
