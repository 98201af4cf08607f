//! Payloads on a real S3 server that verifies signatures: put, get, decode, and what goes wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use weir::lifecycle::Lifecycle;
use weir::payload::store::s3::{Checksums, Encryption, S3};
use weir::payload::{
    Compression, Config, Limits, Object, Payloads, Reason, Record, Store, StoreError, Value, decode, key, store,
};
use weir::task::{Json, Outcome, Priority, RunId, Task, Timings, Transcript};
use weir::telemetry::Telemetry;

use crate::support::authority;
use crate::support::s3::{ACCESS_KEY, S3Server, SECRET_KEY};

const LONG: Duration = Duration::from_secs(30);

fn config(endpoint: String) -> Config {
    let mut config = Config { store: store::Kind::S3, ..Config::default() };
    config.s3.bucket = "weir".into();
    config.s3.endpoint = Some(endpoint);
    config.s3.path_style = true;
    config
}

async fn connect(config: &Config, secret: &str) -> Arc<S3> {
    let credentials = store::s3::Credentials::fixed(ACCESS_KEY, secret);
    Arc::new(S3::connect_with(&config.s3, config.uploads, Some(credentials)).await.expect("valid settings"))
}

async fn server() -> (S3Server, tempfile::TempDir) {
    let root = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(root.path().join("weir")).expect("a bucket");
    (S3Server::start(root.path()).await, root)
}

fn record(id: &str) -> Record {
    let id: weir::task::TaskId = id.parse().expect("an id");
    let task = Task {
        id: id.clone(),
        integration: "bank".parse().expect("a name"),
        tenant: Default::default(),
        priority: Priority::Batch,
        input: Json::of(&"x".repeat(10_000)).expect("JSON"),
        deadline: tokio::time::Instant::now() + LONG,
    };
    let outcome = Outcome {
        task: id,
        run: RunId::mint(),
        result: Ok(Json::null()),
        worker: "w-1".parse().expect("an id"),
        attempt: 1,
        timings: Timings::default(),
    };
    Record { task, outcome, transcript: Transcript::default(), pool: "parallel".parse().expect("a name") }
}

fn object(key: &str) -> Object {
    Object { key: key.into(), body: "body".into(), media_type: "text/plain".into(), metadata: Vec::new() }
}

/// Offers `count` records and flushes.
async fn run(config: &Config, store: Arc<S3>, count: usize) -> (weir::payload::Ledger, Vec<String>) {
    let (telemetry, lifecycle) = (Telemetry::new().expect("a recorder"), Lifecycle::new());
    let payloads =
        Payloads::start(config, store, Arc::new(|| Duration::ZERO), &telemetry, &lifecycle).expect("it starts");
    let records: Vec<Record> = (0..count).map(|n| record(&format!("t-{n}"))).collect();
    let suffix = config.encoding().suffix();
    let keys = records.iter().map(|it| key::key(&config.prefix, &it.task.integration, &it.outcome, suffix)).collect();
    records.into_iter().for_each(|record| payloads.offer(record, Value::Ordinary));
    let ledger = payloads.flush(LONG).await;
    lifecycle.stop(LONG).await.expect("all of it ends");
    (ledger, keys)
}

#[tokio::test]
async fn what_is_stored_in_s3_can_be_read_back() {
    let (server, _root) = server().await;
    for checksums in [Checksums::WhenRequired, Checksums::WhenSupported] {
        let mut config = config(server.endpoint());
        config.s3.checksums = checksums;
        let store = connect(&config, SECRET_KEY).await;
        let (ledger, keys) = run(&config, store.clone(), 100).await;
        assert_eq!((ledger.offered, ledger.stored, ledger.pending), (100, 100, 0), "{ledger:?}");
        for (n, key) in keys.iter().enumerate() {
            let stored = store.get(key, 1 << 20).await.expect("it is there");
            let json = decode(&stored.body, Limits::default()).expect("it decodes");
            assert!(json.contains(&format!(r#""id":"t-{n}""#)), "{json}");
        }
        assert!(matches!(store.get(&keys[0], 10).await, Err(StoreError::TooLarge { .. })));
        assert_eq!(store.location("a/b"), "s3://weir/a/b");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_missing_payload_is_named() {
    let (server, _root) = server().await;
    let store = connect(&config(server.endpoint()), SECRET_KEY).await;
    let error = store.get("no/such", 10).await.expect_err("absent").to_string();
    assert_eq!(error, format!("s3://weir/no/such at {} does not exist", server.endpoint()));
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_secret_is_a_clear_error_and_counted() {
    let (server, root) = server().await;
    let config = config(server.endpoint());
    let store = connect(&config, "wrong").await;
    let object = object("k");
    let error = store.put(&object).await.expect_err("refused").to_string();
    assert!(error.starts_with("could not store s3://weir/k at http://127.0.0.1"), "{error}");
    assert!(
        error.ends_with("the credentials were refused (SignatureDoesNotMatch); check key, secret and clock"),
        "{error}"
    );
    assert!(!error.contains("wrong"), "{error}");

    let (ledger, _) = run(&config, store, 3).await;
    assert_eq!((ledger.stored, ledger.dropped(Reason::Store), ledger.pending), (0, 3, 0));
    assert_eq!(std::fs::read_dir(root.path().join("weir")).expect("the bucket").count(), 0);
    server.stop().await;
}

#[tokio::test]
async fn a_store_that_is_away_costs_payloads_and_no_hang() {
    let (server, _root) = server().await;
    let mut config = config(server.endpoint());
    server.stop().await;
    config.s3.attempt_timeout = Duration::from_millis(500);
    config.s3.operation_timeout = Duration::from_secs(2);
    let store = connect(&config, SECRET_KEY).await;
    let error = store.get("k", 10).await.expect_err("nobody listens").to_string();
    assert!(error.contains("s3://weir/k at http://127.0.0.1") && error.contains("onnection refused"), "{error}");
    assert!(!error.contains('{'), "{error}");
    let started = Instant::now();
    let (ledger, _) = run(&config, store, 20).await;
    assert_eq!((ledger.stored, ledger.dropped(Reason::Store), ledger.pending), (0, 20, 0), "{ledger:?}");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_store_that_accepts_and_never_answers_times_out() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let mut config = config(format!("http://{}", silent.local_addr().expect("it is bound")));
    config.s3.attempt_timeout = Duration::from_millis(200);
    config.s3.operation_timeout = Duration::from_millis(500);
    let store = connect(&config, SECRET_KEY).await;
    let error = store.get("k", 10).await.expect_err("no answer").to_string();
    assert!(error.ends_with("it did not answer in time"), "{error}");
}

#[tokio::test]
async fn lists_come_in_pages_and_in_order() {
    let (server, _root) = server().await;
    let store = connect(&config(server.endpoint()), SECRET_KEY).await;
    let keys = ["a.b", "a/b/1", "a/b/2", "a/c", "aa/1", "b"];
    for key in keys {
        store.put(&object(key)).await.expect("stores");
    }
    let listed = async |prefix: &str, after: &str, limit| {
        let page = store.list(prefix, after, limit).await.expect("lists");
        assert!(page.payloads.iter().all(|listed| listed.bytes == 4));
        let keys: Vec<_> = page.payloads.into_iter().map(|listed| listed.key).collect();
        (keys, page.has_more)
    };
    assert_eq!(listed("", "", 10).await, (keys.map(str::to_owned).to_vec(), false));
    assert_eq!(listed("", "", 6).await, (keys.map(str::to_owned).to_vec(), false));
    assert_eq!(listed("", "a/b/1", 2).await, (vec!["a/b/2".to_owned(), "a/c".to_owned()], true));
    assert_eq!(listed("a/b", "", 1).await, (vec!["a/b/1".to_owned()], true));
    assert_eq!(listed("c", "", 1).await, (vec![], false));
    let error = connect(&config(server.endpoint()), "wrong").await.list("a/", "", 1).await.expect_err("refused");
    assert!(error.to_string().starts_with("could not list s3://weir/a/ at http://127.0.0.1"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn payloads_of_many_chunks_arrive_whole_in_every_encoding() {
    let (server, _root) = server().await;
    let mut big = record("t-big");
    // It does not compress.
    let noise: String =
        (0..1_000_000u64).map(|n| char::from(b'a' + (n.wrapping_mul(n).wrapping_mul(n) >> 13) as u8 % 26)).collect();
    big.task.input = Json::of(&noise).expect("JSON");
    for compression in [Compression::Zlib, Compression::Gzip, Compression::Zstd] {
        for base64 in [true, false] {
            let config = Config { compression, base64, ..config(server.endpoint()) };
            let store = connect(&config, SECRET_KEY).await;
            let (telemetry, lifecycle) = (Telemetry::new().expect("a recorder"), Lifecycle::new());
            let lag: weir::payload::Lag = Arc::new(|| Duration::ZERO);
            let payloads = Payloads::start(&config, store.clone(), lag, &telemetry, &lifecycle).expect("it starts");
            let mut record = record("t-big");
            record.task.input = big.task.input.clone();
            let suffix = config.encoding().suffix();
            let key = key::key(&config.prefix, &record.task.integration, &record.outcome, suffix);
            payloads.offer(record, Value::Failure);
            let ledger = payloads.flush(LONG).await;
            assert_eq!((ledger.stored, ledger.dropped_in_all()), (1, 0), "{ledger}");
            let stored = store.get(&key, 1 << 24).await.expect("it is there");
            assert!(decode(&stored.body, Limits::default()).expect("decodes").contains(&noise));
            assert!(telemetry.render().contains("weir_payload_store_sockets_idle 1"));
            lifecycle.stop(LONG).await.expect("all of it ends");
        }
    }
    server.stop().await;
}

/// Answers each request with the next of these statuses; hands over what was asked, head and body.
async fn listener(statuses: &'static [u16]) -> (String, tokio::sync::mpsc::UnboundedReceiver<String>, Lifecycle) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
    let (requests, received) = tokio::sync::mpsc::unbounded_channel();
    let lifecycle = Lifecycle::new();
    lifecycle.spawn("listener", async move {
        for status in statuses {
            let (mut socket, _) = listener.accept().await.expect("a request");
            let mut request = String::new();
            while !request.ends_with("the end") {
                let mut bytes = [0; 65_536];
                let read = socket.read(&mut bytes).await.expect("a request");
                request.push_str(&String::from_utf8_lossy(&bytes[..read]));
            }
            let answer =
                format!("HTTP/1.1 {status} X\r\netag: \"1\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            socket.write_all(answer.as_bytes()).await.expect("the client waits");
            requests.send(request).expect("the test waits");
        }
    });
    (endpoint, received, lifecycle)
}

#[tokio::test]
async fn what_is_asked_of_the_store_is_in_the_request_and_a_retry_sends_the_body_again() {
    let (endpoint, mut requests, lifecycle) = listener(&[503, 200]).await;
    let mut config = config(endpoint);
    config.s3.encryption = Encryption::Kms;
    config.s3.kms_key_id = Some("alias/weir".into());
    config.s3.storage_class = Some("STANDARD_IA".into());
    config.s3.tags.insert("team".into(), "a b".into());
    let store = connect(&config, SECRET_KEY).await;
    let text: &'static str = Box::leak(format!("{}the end", "x".repeat(100_000)).into_boxed_str());
    store.put(&Object { body: text.into(), ..object("k") }).await.expect("stores at the second attempt");
    for _ in 0..2 {
        let request = requests.recv().await.expect("a request").to_lowercase();
        let sha256 = weir::payload::Body::from(text).sha256_hex();
        for header in [
            "put /weir/k?x-id=putobject http/1.1",
            "content-length: 100007",
            "content-type: text/plain",
            "x-amz-server-side-encryption: aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id: alias/weir",
            "x-amz-storage-class: standard_ia",
            "x-amz-tagging: team=a+b",
            "x-amz-checksum-sha256: ",
            &format!("x-amz-content-sha256: {sha256}"),
        ] {
            assert!(request.contains(header), "{header} is missing in {}", &request[..2_000]);
        }
        assert!(request.ends_with(text) && !request.contains("aws-chunked"), "{}", &request[..2_000]);
    }
    lifecycle.stop(LONG).await.expect("it ends");
}

/// Such as a proxy's page: nothing is stored, and what believes it would lose the payload uncounted.
#[tokio::test]
async fn an_answer_without_an_etag_is_a_failure_of_the_store_and_the_payload_stays_in_the_spool() {
    let (endpoint, lifecycle) = answering(200, "text/html", "<html>Welcome</html>".into()).await;
    let mut config = config(endpoint.clone());
    let store = connect(&config, SECRET_KEY).await;
    let error = store.put(&object("k")).await.expect_err("it is no S3 server");
    assert!(!error.is_permanent(), "another time the store may be there");
    let expected =
        format!("could not store s3://weir/k at {endpoint}: the answer has no ETag, so it is no S3 server's: ");
    assert!(error.to_string().starts_with(&expected), "{error}");

    let spool = tempfile::tempdir().expect("a directory");
    config.spool.path = Some(spool.path().to_owned());
    let store = connect(&config, SECRET_KEY).await;
    let (ledger, _) = run(&config, store, 3).await;
    assert_eq!((ledger.stored, ledger.spooled, ledger.dropped_in_all()), (0, 3, 0), "{ledger}");
    lifecycle.stop(LONG).await.expect("it ends");
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_named() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n").expect("written");
    for (path, right) in
        [("/nowhere/ca.pem".into(), "it cannot be read"), (file.path().to_owned(), "certificates in PEM")]
    {
        let mut config = config("https://127.0.0.1:1".into());
        config.s3.ca_file = Some(path);
        let error = S3::connect(&config.s3, 1).await.err().expect("refused").to_string();
        assert!(error.starts_with("payloads.s3.ca_file is \"/") && error.contains(right), "{error}");
    }
}

/// A server whose certificate comes from an authority of its own, and that authority's certificate in PEM.
async fn private(root: &std::path::Path) -> (S3Server, String) {
    let (tls, authority) = authority::private();
    (S3Server::start_tls(root, tls).await, authority)
}

#[tokio::test]
async fn a_store_with_a_private_authority_needs_its_certificate() {
    let root = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(root.path().join("weir")).expect("a bucket");
    let (server, pem) = private(root.path()).await;
    let mut config = config(server.endpoint());

    let error = connect(&config, SECRET_KEY).await.put(&object("k")).await.expect_err("nobody knows it").to_string();
    let expected = format!(
        "could not store s3://weir/k at {}: its certificate comes from an authority that is not trusted; name a file with \
         that authority's certificate in payloads.s3.ca_file",
        server.endpoint()
    );
    assert_eq!(error, expected);

    let file = root.path().join("ca.pem");
    std::fs::write(&file, pem).expect("written");
    config.s3.ca_file = Some(file.clone());
    let store = connect(&config, SECRET_KEY).await;
    store.put(&object("k")).await.expect("it is trusted");
    assert_eq!(&store.get("k", 10).await.expect("it is there").body[..], b"body");
    assert!(store.open_sockets() > 0);

    // Its certificate does not hold for this name.
    config.s3.endpoint = Some(server.endpoint().replace("127.0.0.1", "localhost"));
    let error = connect(&config, SECRET_KEY).await.put(&object("k")).await.expect_err("another name").to_string();
    assert!(error.contains("not valid for name") && error.contains("localhost"), "{error}");

    // An authority of the same name with another key.
    let (other, pem) = private(root.path()).await;
    std::fs::write(&file, pem).expect("written");
    config.s3.endpoint = Some(server.endpoint());
    let error = connect(&config, SECRET_KEY).await.put(&object("k")).await.expect_err("another one").to_string();
    assert!(error.ends_with("that authority's certificate in payloads.s3.ca_file"), "{error}");
    other.stop().await;
    server.stop().await;
}

/// Answers every request with this error, as S3 does.
async fn refusing(status: u16, code: &str) -> (String, Lifecycle) {
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>of the store</Message>\
         <BucketName>weir</BucketName><RequestId>R1</RequestId><HostId>H1</HostId></Error>"
    );
    answering(status, "application/xml", xml).await
}

/// Answers every request with this.
async fn answering(status: u16, media_type: &'static str, body: String) -> (String, Lifecycle) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
    let lifecycle = Lifecycle::new();
    let token = lifecycle.token();
    lifecycle.spawn("answering store", async move {
        while let Some(Ok((mut socket, _))) = token.run_until_cancelled(listener.accept()).await {
            let mut request = Vec::new();
            // A request's body has nothing of the end of its head.
            while !request.windows(4).any(|it| it == b"\r\n\r\n") {
                if socket.read_buf(&mut request).await.expect("a request") == 0 {
                    break;
                }
            }
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: {media_type}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _ = socket.write_all((head + &body).as_bytes()).await;
        }
    });
    (endpoint, lifecycle)
}

#[tokio::test]
async fn what_a_store_refuses_says_what_to_do() {
    for (status, code, what_to_do) in [
        (404, "NoSuchBucket", "bucket \"weir\" does not exist (NoSuchBucket); create it, or set another"),
        (
            403,
            "AccessDenied",
            "access denied (AccessDenied); the credentials need s3:PutObject, s3:GetObject and s3:ListBucket on \"weir\"",
        ),
        (403, "InvalidAccessKeyId", "the credentials were refused (InvalidAccessKeyId); check key, secret and clock"),
        (400, "InvalidStorageClass", "HTTP 400, InvalidStorageClass: of the store"),
    ] {
        let (endpoint, lifecycle) = refusing(status, code).await;
        let store = connect(&config(endpoint.clone()), SECRET_KEY).await;
        let put = store.put(&object("k")).await.expect_err("refused").to_string();
        assert_eq!(put, format!("could not store s3://weir/k at {endpoint}: {what_to_do}"));
        let get = store.get("k", 10).await.expect_err("refused").to_string();
        // Without the right to list, S3 denies what is not there.
        let reading = "access denied (AccessDenied); the credentials need s3:GetObject on \"weir\", and without \
                       s3:ListBucket S3 says this of a key that does not exist, too";
        let what_reading_takes = if code == "AccessDenied" { reading } else { what_to_do };
        assert_eq!(get, format!("could not read s3://weir/k at {endpoint}: {what_reading_takes}"));
        let list = store.list("a/", "", 10).await.expect_err("refused").to_string();
        assert_eq!(list, format!("could not list s3://weir/a/ at {endpoint}: {what_to_do}"));
        lifecycle.stop(LONG).await.expect("it ends");
    }
}
