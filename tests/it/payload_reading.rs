//! Payloads read back by the program: `weir payload list` and `weir payload get`, on a directory and on a real S3 server.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::SystemTime;

use base64::engine::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weir::lifecycle::Lifecycle;
use weir::payload::store::s3::{Credentials, S3};
use weir::payload::{Body, Config, Encoding, Key, Object, Store, store};
use weir::task::RunId;

use crate::cli::{assert_failed, assert_ok, lines, run, stderr, stdout, weir};
use crate::support::house::{House, LONG, pull};
use crate::support::s3::{ACCESS_KEY, S3Server, SECRET_KEY};

const MINUTE: u64 = 60_000;

/// The program with the settings of a store.
struct Reader(Vec<(&'static str, String)>);

impl Reader {
    fn with(mut self, variable: &'static str, value: &str) -> Self {
        self.0.push((variable, value.to_owned()));
        self
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, "").await
    }

    async fn run_with(&self, arguments: &[&str], stdin: &str) -> Output {
        run(weir().arg("payload").args(arguments).envs(self.0.iter().cloned()), stdin).await
    }
}

/// A bucket, which is a directory on the server's disk.
struct Bucket {
    root: tempfile::TempDir,
    server: S3Server,
    store: S3,
}

impl Bucket {
    async fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        fs::create_dir(root.path().join("weir")).expect("a bucket");
        let server = S3Server::start(root.path()).await;
        let mut config = Config { store: store::Kind::S3, ..Config::default() };
        config.s3.bucket = "weir".into();
        config.s3.endpoint = Some(server.endpoint());
        config.s3.path_style = true;
        let credentials = Some(Credentials::fixed(ACCESS_KEY, SECRET_KEY));
        let store = S3::connect_with(&config.s3, config.uploads, credentials).await.expect("valid settings");
        Bucket { root, server, store }
    }

    fn path(&self) -> PathBuf {
        self.root.path().join("weir")
    }

    async fn put(&self, name: &str, body: Vec<u8>) {
        let body = Body::from(bytes::Bytes::from(body));
        let metadata = [("sha256", body.sha256_hex()), ("stored-bytes", body.len().to_string())];
        let metadata = metadata.map(|(name, value)| (name.to_owned(), value)).into();
        let object = Object { key: name.into(), body, media_type: "text/plain".into(), metadata };
        self.store.put(&object).await.expect("stores");
    }

    /// Over S3, and over the directory.
    fn readers(&self) -> [Reader; 2] {
        [over_s3(&self.server.endpoint()), over_directory(&self.path())]
    }
}

fn over_s3(endpoint: &str) -> Reader {
    let variables = [
        ("WEIR_PAYLOADS__STORE", "s3"),
        ("WEIR_PAYLOADS__S3__BUCKET", "weir"),
        ("WEIR_PAYLOADS__S3__PATH_STYLE", "true"),
        ("WEIR_PAYLOADS__S3__ENDPOINT", endpoint),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
    ];
    Reader(variables.map(|(name, value)| (name, value.to_owned())).into())
}

fn over_directory(path: &Path) -> Reader {
    let path = path.display().to_string();
    Reader(vec![("WEIR_PAYLOADS__STORE", "directory".into()), ("WEIR_PAYLOADS__DIRECTORY__PATH", path)])
}

fn millis_ago(millis: u64) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    u64::try_from(now.as_millis()).expect("before the year 500 million") - millis
}

fn time_ago(millis: u64) -> String {
    Timestamp::from_millisecond(millis_ago(millis) as i64).expect("a time").to_string()
}

fn key(millis: u64, number: u64, integration: &str, outcome: &str, task: &str) -> String {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.to_be_bytes());
    let key = Key {
        integration: integration.parse().expect("a name"),
        outcome: outcome.into(),
        task: task.parse().expect("an id"),
        run: RunId(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid()),
        suffix: Encoding::default().suffix(),
    };
    key.format("payloads")
}

/// The stored form of a payload.
fn payload(task: &str) -> Vec<u8> {
    // With a number that no tree can hold.
    packed(&format!(
        r#"{{"schema":"weir.payload.v1","task":{{"id":"{task}"}},"transcript":{{"log":{{"entries":[1e400]}}}}}}"#
    ))
}

fn packed(json: &str) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(1));
    encoder.write_all(json.as_bytes()).expect("into memory");
    STANDARD.encode(encoder.finish().expect("into memory")).into_bytes()
}

fn keys(output: &Output) -> Vec<String> {
    assert_ok(output);
    lines(output).iter().map(|line| line["key"].as_str().expect("a key").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_each_payload_once_the_newest_first_whatever_arrives_meanwhile() {
    for store in 0..2 {
        let bucket = Bucket::new().await;
        // Over four hours and all shards, seven of them in the same millisecond.
        let start = millis_ago(250 * MINUTE);
        let stored = |n: u64| {
            let integration = ["bank", "bank-2"][n as usize % 2];
            key(start + n.saturating_sub(6) * 2 * MINUTE, n, integration, "ok", &format!("t{n}"))
        };
        let all: Vec<_> = (0..126).map(stored).collect();
        for key in &all {
            bucket.put(key, b"a body".to_vec()).await;
        }
        let reader = &bucket.readers()[store];
        let mut seen = keys(&reader.run(&["list", "--json", "--limit", "25"]).await);
        for page in 1..6 {
            let new = key(millis_ago(0), 1_000 + page, "bank", "ok", &format!("new-{page}"));
            bucket.put(&new, b"a body".to_vec()).await;
            let last = seen.last().expect("a page").clone();
            let output = reader.run(&["list", "--json", "--limit", "25", "--after", &last]).await;
            seen.extend(keys(&output));
            let goes_on = stderr(&output).contains(&format!("older ones follow with --after {}", seen[seen.len() - 1]));
            assert_eq!(goes_on, page < 5, "{}", stderr(&output));
        }
        assert_eq!(seen, all.into_iter().rev().collect::<Vec<_>>());
        let again = keys(&reader.run(&["list", "--json", "--limit", "5"]).await);
        assert!(again.iter().all(|key| key.contains("/new-")), "{again:?}");
        bucket.server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_by_integration_outcome_task_and_time() {
    let bucket = Bucket::new().await;
    let stored = [
        (10, "bank", "ok", "t-1"),
        (20, "bank", "deadline", "t-1"),
        (30, "bank", "integration_error", "t-2"),
        (90, "bank-2", "panic", "t-3"),
        (100, "bank-2", "ok", "t.1"),
        (60 * 30, "bank", "ok", "t-1"),
    ];
    let of = |(minutes, integration, outcome, task): (u64, &str, &str, &str)| {
        key(millis_ago(minutes * MINUTE), minutes, integration, outcome, task)
    };
    let names = stored.map(of);
    for (name, (.., task)) in names.iter().zip(stored) {
        bucket.put(name, payload(task)).await;
    }
    let foreign = format!("{}.bak", names[1]);
    bucket.put(&foreign, b"x".to_vec()).await;
    bucket.put("payloads/weir-check", b"x".to_vec()).await;
    let an_hour_ago = time_ago(60 * MINUTE);
    let cases: [(&[&str], &[usize]); 11] = [
        (&[], &[0, 1, 2, 3, 4]),
        (&["--since", "2days"], &[0, 1, 2, 3, 4, 5]),
        (&["--since", "25min"], &[0, 1]),
        (&["--until", "25min"], &[2, 3, 4]),
        (&["--since", &an_hour_ago], &[0, 1, 2]),
        (&["--integration", "bank"], &[0, 1, 2]),
        (&["--outcome", "ok"], &[0, 4]),
        (&["--outcome", "failed"], &[1, 2, 3]),
        (&["--integration", "bank", "--outcome", "deadline"], &[1]),
        (&["--task", "t-1", "--since", "100days"], &[0, 1, 5]),
        (&["--task", "t"], &[]),
    ];
    for reader in bucket.readers() {
        for (flags, expected) in cases {
            let output = reader.run(&[&["list", "--json"], flags].concat()).await;
            let expected: Vec<_> = expected.iter().map(|index| &names[*index]).collect();
            assert_eq!(keys(&output).iter().collect::<Vec<_>>(), expected, "{flags:?}");
            let says = match (flags.is_empty(), expected.is_empty()) {
                (true, _) => format!("1 object met on the way, no payload and not listed: {foreign}"),
                (_, true) => "no such payload since ".to_owned(),
                _ => String::new(),
            };
            assert!(stderr(&output).contains(&says), "{}", stderr(&output));
        }
        let line = &lines(&reader.run(&["list", "--json", "--outcome", "panic"]).await)[0];
        let minute = Timestamp::from_millisecond(millis_ago(90 * MINUTE) as i64).expect("a time").to_string();
        assert!(line["started"].as_str().expect("a time").starts_with(&minute[..13]), "{line}");
        assert_eq!(line["bytes"], payload("t-3").len());
        assert_eq!([&line["integration"], &line["outcome"], &line["task"]], ["bank-2", "panic", "t-3"]);
        assert!(names[3].contains(line["run"].as_str().expect("a run id")));

        let output = reader.run(&["list", "--integration", "bank-2"]).await;
        let table = stdout(&output);
        let rows: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["STARTED", "INTEGRATION", "OUTCOME", "TASK", "SIZE", "KEY"]);
        assert_eq!(rows.len(), 3, "{table}");
        // A row's key is what get takes.
        let output = reader.run(&["get", rows[1].last().expect("a key")]).await;
        assert!(stdout(&output).contains(r#""id": "t-3""#), "{}", stderr(&output));
    }
    bucket.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_listed_is_said() {
    let bucket = Bucket::new().await;
    for reader in bucket.readers() {
        for (flags, says) in [
            (&["--after", "payloads/x"][..], "--after: \"payloads/x\" is no key of a payload; one is payloads/SHARD/"),
            (&["--since", "1h", "--until", "2h"], "is not before --until"),
            (&["--since", "2999-01-01T00:00:00Z"], "is not before now"),
        ] {
            assert_failed(&reader.run(&[&["list"], flags].concat()).await, &[says]);
        }
        for (flags, says) in [
            (["--outcome", "error"], "use ok, integration_error, "),
            (["--since", "yesterday"], "use how long ago it was"),
            (["--limit", "0"], "1..=10000"),
        ] {
            let output = reader.run(&[&["list"], &flags[..]].concat()).await;
            assert!(output.status.code() == Some(2) && stderr(&output).contains(says), "{}", stderr(&output));
        }
    }
    let [_, directory] = bucket.readers();
    let output = directory.run(&["list", "--since", "2026-01-01T10:00:00Z", "--until", "2026-01-01T11:00:00Z"]).await;
    assert!(output.status.success());
    let says = "no such payload since 2026-01-01T10:00:00Z until 2026-01-01T11:00:00Z in ";
    assert!(stderr(&output).contains(says), "{}", stderr(&output));
    let none = Reader(Vec::new());
    assert_failed(&none.run(&["list"]).await, &["no store is configured: set payloads.store"]);
    let nowhere = over_directory(&bucket.path().join("nowhere"));
    assert_failed(&nowhere.run(&["list"]).await, &["payloads.directory.path: there is no directory", "nowhere"]);
    std::fs::write(bucket.path().join("file"), "").expect("written");
    let file = over_directory(&bucket.path().join("file"));
    assert_failed(&file.run(&["list"]).await, &["payloads.directory.path: ", "file is no directory"]);
    let [s3, _] = bucket.readers();
    let elsewhere = s3.with("WEIR_PAYLOADS__S3__BUCKET", "another");
    assert_failed(&elsewhere.run(&["list"]).await, &["bucket \"another\" does not exist (NoSuchBucket)"]);
    bucket.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_comes_by_key_by_url_by_task_or_through_a_pipe_and_goes_into_files() {
    let bucket = Bucket::new().await;
    let [older, newer] = [2, 1].map(|minutes| key(millis_ago(minutes * MINUTE), minutes, "bank", "ok", "t-1"));
    bucket.put(&older, payload("older")).await;
    bucket.put(&newer, payload("newer")).await;
    let stored = String::from_utf8(payload("piped")).expect("base64");
    for reader in bucket.readers() {
        let raw = |text: &str| format!("{}\n", weir::payload::decode(&payload(text), Default::default()).expect("one"));
        assert_eq!(stdout(&reader.run(&["get", &older, "--raw"]).await), raw("older"));
        assert_eq!(stdout(&reader.run_with(&["get", "-", "--raw"], &stored).await), raw("piped"));
        let output = reader.run(&["get", "--task", "t-1", "--raw"]).await;
        assert_eq!((stdout(&output), stderr(&output)), (raw("newer"), format!("weir: {newer}\n")));
        assert_failed(
            &reader.run(&["get", "--task", "t-2"]).await,
            &["no payload of task t-2 since 2", "--since reaches"],
        );

        let directory = tempfile::tempdir().expect("a directory");
        let [json, har] = ["t.json", "t.har"].map(|name| directory.path().join(name).display().to_string());
        let files = ["get", &older, "--raw", "-o", &json, "--har", &har];
        let output = reader.run(&files).await;
        assert_ok(&output);
        assert_eq!(stdout(&output), "");
        assert_eq!(fs::read_to_string(&json).expect("written"), raw("older"));
        assert_eq!(fs::read_to_string(&har).expect("written"), "{\"log\":{\"entries\":[1e400]}}\n");
        assert_failed(&reader.run(&files).await, &["t.har exists already; --force replaces it"]);
        assert_ok(&reader.run(&[&files[..], &["--force"]].concat()).await);
        assert_failed(&reader.run(&["get", &older, "--har", "/no/such/t.har"]).await, &["cannot write /no/such/t.har"]);
        // What was written is read back, indented or not.
        assert_eq!(stdout(&reader.run(&["get", &json, "--raw"]).await), raw("older"));
        assert_ok(&reader.run(&["get", &older, "-o", &json, "--force"]).await);
        let [stored, written] = [reader.run(&["get", &older]).await, reader.run(&["get", &json]).await];
        assert_eq!(stdout(&written), stdout(&stored));
        // One file for both would hold only one of them.
        let other_name = json.replace("/t.json", "/./t.json");
        for same in [&json, &other_name] {
            let output = reader.run(&["get", &older, "-o", &json, "--har", same, "--force"]).await;
            assert_failed(&output, &["--output and --har are both ", "t.json: name another file for one of them"]);
        }
        assert_failed(&reader.run(&["get", &older, "-o", "-", "--har", "-"]).await, &["are both standard output"]);
        assert_eq!(stdout(&reader.run(&["get", &json]).await), stdout(&stored), "and nothing was written");
        let missing = directory.path().join("missing").display().to_string();
        assert_failed(&reader.run(&["get", &missing]).await, &[&format!("cannot read {missing}: No such file")]);
        assert_failed(&reader.run(&["get", "./missing"]).await, &["cannot read ./missing: No such file"]);
        let folder = directory.path().display().to_string();
        let says = format!("{folder} is a directory: name a file in it, or the key of a payload in the store");
        assert_failed(&reader.run(&["get", &folder]).await, &[&says]);
        let output = reader.run(&["get", &older, "--har", "-"]).await;
        assert_eq!(stdout(&output), "{\n  \"log\": {\n    \"entries\": [\n      1e400\n    ]\n  }\n}\n");
        assert_eq!(fs::read_dir(directory.path()).expect("a directory").count(), 2);
    }
    let [s3, directory] = bucket.readers();
    assert_ok(&s3.run(&["get", &format!("s3://weir/{older}")]).await);
    let url = format!("s3://another/{older}");
    assert_failed(
        &s3.run(&["get", &url]).await,
        &[&url, "in another bucket than payloads.s3.bucket, which is \"weir\""],
    );
    assert_failed(&directory.run(&["get", &url]).await, &[&url, "payloads.store is not \"s3\""]);
    bucket.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_payload_is_named_for_what_it_is() {
    let bucket = Bucket::new().await;
    let good = payload("t-1");
    let now = millis_ago(0);
    let name = |n: u64| key(now - n * MINUTE, n, "bank", "ok", "t-1");
    let cases: [(Vec<u8>, &str); 6] = [
        (Vec::new(), "the payload is empty"),
        (good[..good.len() / 2].to_vec(), "the payload is cut short: "),
        (b"<html>not found</html>".to_vec(), "it is not base64"),
        (STANDARD.encode("hello").into_bytes(), "base64 of something that is not zlib, gzip or zstd"),
        (packed(r#"{"log":{}}"#), "its schema is \"\", and \"weir.payload.v1\" would be right"),
        (packed(&format!("\"{}\"", "x".repeat(257 << 20))), "unfolds to more than the limit of 268435456 bytes"),
    ];
    for (n, (body, says)) in (0u64..).zip(cases) {
        bucket.put(&name(n), body).await;
        for reader in bucket.readers() {
            let output = reader.run(&["get", &name(n)]).await;
            assert_failed(&output, &[&format!("cannot read {}: ", name(n)), says]);
            assert_eq!(stdout(&output), "");
        }
    }
    let (large, damaged, cut) = (name(100), name(101), name(102));
    for key in [&large, &damaged, &cut] {
        bucket.put(key, good.clone()).await;
    }
    fs::write(bucket.path().join(&cut), &good[..good.len() / 2]).expect("written");
    let file = fs::OpenOptions::new().write(true).open(bucket.path().join(&large)).expect("it is stored");
    file.set_len((256 << 20) + 1).expect("a sparse file");
    fs::write(bucket.path().join(&damaged), payload("t-2")).expect("written");
    let [s3, directory] = bucket.readers();
    for reader in [&s3, &directory] {
        assert_failed(&reader.run(&["get", &large]).await, &[&large, "has more than 268435456 bytes"]);
    }
    let path = bucket.path().join(&large).display().to_string();
    assert_failed(&s3.run(&["get", &path]).await, &[&path, "more than the 268435456 bytes"]);
    // What the worker wrote beside the payload finds it.
    assert_failed(&s3.run(&["get", &damaged]).await, &[&damaged, "is damaged: its SHA-256 is ", " was stored"]);
    let says = format!("is cut short: it has {} of {} bytes", good.len() / 2, good.len());
    assert_failed(&s3.run(&["get", &cut]).await, &[&cut, &says]);
    bucket.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_key_that_is_not_there_what_is_near_is_named() {
    let bucket = Bucket::new().await;
    let stored = key(millis_ago(MINUTE), 1, "bank", "deadline", "t-1");
    bucket.put(&stored, payload("t-1")).await;
    for reader in bucket.readers() {
        // Another outcome, another run, the prefix left out.
        let other_run = key(millis_ago(MINUTE), 2, "bank", "deadline", "t-1");
        for wrong in [&stored.replace("deadline", "ok"), &other_run, stored.strip_prefix("payloads/").expect("begins")]
        {
            let near = format!(" does not exist; near it are of task t-1:\n  {stored}\n");
            assert_failed(&reader.run(&["get", wrong]).await, &[&near]);
        }
        // Its last letter, and the last of the run.
        let near = format!(" does not exist; near it are of task t-1:\n  {stored}\n");
        assert_failed(&reader.run(&["get", &stored.replace(".b64", ".b65")]).await, &[&near]);
        let start = &stored[..stored.find("t-1.").expect("its task") + 4];
        let begins = format!(" does not exist; these begin with {start}:\n  {stored}\n");
        let (run, suffix) = stored.split_at(stored.find(".json").expect("its suffix"));
        let wrong = format!("{}g{suffix}", &run[..run.len() - 1]);
        assert_failed(&reader.run(&["get", &wrong]).await, &[&begins]);
        let begins = format!(" does not exist; these begin with it:\n  {stored}\n");
        assert_failed(&reader.run(&["get", &stored[..stored.len() - 20]]).await, &[&begins]);
        let output = reader.run(&["get", "no/such/key"]).await;
        assert_failed(&output, &["no/such/key", " does not exist\n"]);
        assert_failed(&reader.run(&["get", "a/../b"]).await, &["key \"a/../b\" is not valid"]);
    }
    let [_, directory] = bucket.readers();
    assert_failed(&directory.run(&["get", "payloads"]).await, &[" does not exist; these begin with it:\n  payloads/"]);
    bucket.server.stop().await;
}

/// Answers each request with a refusal of that code.
async fn refusing(code: &'static str) -> (String, Lifecycle) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
    let lifecycle = Lifecycle::new();
    let token = lifecycle.token();
    let refuse = async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            // Not on the stack, where each move of this future would copy it.
            let mut request = vec![0; 65_536];
            let _ = socket.read(&mut request).await;
            let body = format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
            let head = format!("content-type: application/xml\r\ncontent-length: {}\r\nconnection: close", body.len());
            let _ = socket.write_all(format!("HTTP/1.1 403 Forbidden\r\n{head}\r\n\r\n{body}").as_bytes()).await;
        }
    };
    lifecycle.spawn("refusing", async move { token.run_until_cancelled(refuse).await });
    (endpoint, lifecycle)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_is_said_with_what_would_help() {
    let bucket = Bucket::new().await;
    let [s3, _] = bucket.readers();
    let name = key(millis_ago(MINUTE), 1, "bank", "ok", "t-1");
    let refused = s3.with("AWS_SECRET_ACCESS_KEY", "another-secret");
    let wrong_secret = "the credentials were refused (SignatureDoesNotMatch); check key, secret and clock";
    assert_failed(&refused.run(&["get", &name]).await, &["could not read s3://weir/", wrong_secret]);
    assert_failed(&refused.run(&["list"]).await, &["could not list s3://weir/payloads/", wrong_secret]);
    bucket.server.stop().await;
    for (code, reading, listing) in [
        ("AccessDenied", "need s3:GetObject on \"weir\", and without s3:ListBucket", "s3:ListBucket on \"weir\""),
        ("PermanentRedirect", "set payloads.s3.region: no", "set payloads.s3.region: no"),
    ] {
        let (endpoint, lifecycle) = refusing(code).await;
        let denied = over_s3(&endpoint);
        assert_failed(&denied.run(&["get", &name]).await, &[&format!("({code})"), reading]);
        assert_failed(&denied.run(&["list"]).await, &[&format!("({code})"), listing]);
        lifecycle.stop(LONG).await.expect("it ends");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_stored_is_listed_and_its_exchanges_are_a_har() {
    let house = House::start().await;
    house.client.submit(&pull("t-1")).await.expect("an outcome");
    house.until_payloads_ended(0, 1).await;
    let reader = over_s3(&house.s3.endpoint());
    let found = keys(&reader.run(&["list", "--integration", "bank", "--json"]).await);
    assert_eq!(found, house.stored_keys());
    let har: Value = serde_json::from_str(&stdout(&reader.run(&["get", &found[0], "--har", "-"]).await)).expect("JSON");
    assert_eq!(har["log"]["version"], json!("1.2"));
    assert_eq!(har["log"]["entries"].as_array().expect("a list").len(), 2);
    house.close().await;
}
