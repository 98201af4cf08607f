//! The behaviour as it is changed while the bank runs: over HTTP, from Rust, by a script.

use super::*;
use crate::sandbox::Concurrency;

impl Fixture {
    async fn control(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let request = |base: String| Request::new(method, base + path).body("application/json", body.to_owned());
        let answer = self.send(request).await;
        (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
    }
}

#[tokio::test]
async fn the_behaviour_is_set_shown_and_taken_back_over_http() {
    let fixture = Fixture::with(at_once(), 4).await;
    let everyone = r#"{"errors":{"share":1.0,"status":418}}"#;
    assert_eq!(fixture.control("PUT", "/behaviour", everyone).await.0, 204);
    assert_eq!(fixture.control("PUT", "/behaviour/b", r#"{"errors":{"share":0.0}}"#).await.0, 204);
    let both = || async { (fixture.pull("a").await.expect("an answer"), fixture.pull("b").await.expect("an answer")) };
    assert_eq!(both().await, (418, 200));
    let (_, shown) = fixture.control("GET", "/behaviour", "").await;
    assert_eq!(shown["everyone"]["errors"], json!({ "share": 1.0, "status": 418 }));
    assert_eq!(shown["clients"]["b"]["errors"]["share"], json!(0.0));
    assert_eq!(fixture.control("GET", "/behaviour/a", "").await.1, shown["everyone"]);
    assert_eq!(fixture.control("DELETE", "/behaviour/b", "").await.0, 204);
    assert_eq!(both().await, (418, 418));
    assert_eq!(fixture.control("DELETE", "/behaviour", "").await.0, 204);
    assert_eq!(both().await, (200, 200));
    fixture.stop().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_a_reason_and_changes_nothing() {
    let fixture = Fixture::with(at_once(), 4).await;
    let too_long = " ".repeat(3 << 20);
    for (method, path, body, status, expected) in [
        ("PUT", "/behaviour", r#"{"slowdwon":2}"#, 400, "unknown field `slowdwon`"),
        ("PUT", "/behaviour", r#"{"errors":{"share":3}}"#, 400, "errors.share: 3 is out of range"),
        ("PUT", "/behaviour", r#"{"latency":{"fixed":"soon"}}"#, 400, "latency.fixed"),
        ("PUT", "/behaviour", "fast", 400, "body: it is not JSON, expected ident at line 1"),
        ("PUT", "/behaviour", "", 400, "body: it is empty: use a JSON object such as"),
        ("PUT", "/behaviour", "[]", 400, "body: it is no JSON object"),
        ("PUT", "/behaviour/a", "[]", 400, "body: it is no JSON object"),
        ("PUT", "/behaviour", r#"{"hangs":0.6,"resets":0.6}"#, 400, "hangs = 0.6, resets = 0.6, add up to more than 1"),
        ("PUT", "/behaviour", &too_long, 413, "length limit exceeded"),
        ("PUT", "/behaviour/a", &too_long, 413, "length limit exceeded"),
        ("POST", "/oauth/token", "", 415, "invalid_request"),
        ("PUT", "/behaviour/.a", "{}", 400, "no client id"),
        ("GET", "/behaviour/-a", "", 400, "no client id"),
        ("DELETE", "/behaviour/%ff", "", 400, "client: "),
        ("POST", "/behaviour", "{}", 405, "other methods"),
        ("POST", "/accounts", "{}", 405, "other methods"),
        ("PUT", "/behaviour/a%20b", "{}", 400, "no client id"),
        ("POST", "/script/restart", "", 404, "there is no script"),
    ] {
        let (answered, answer) = fixture.control(method, path, body).await;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(answered == status && error.contains(expected), "{path} {body}: {answered} {answer}");
    }
    assert_eq!(
        fixture.sandbox.behaviour("a"),
        Behaviour { latency: Some(Latency::Fixed(Duration::ZERO)), ..Behaviour::default() }
    );
    fixture.stop().await;
}

#[tokio::test]
async fn a_script_changes_the_behaviour_of_one_client_and_begins_anew_when_asked() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("script.toml");
    let text = "[[step]]\nat = \"0s\"\nclient = \"bank-3\"\nset = { errors = { share = 1, status = 503 } }\n";
    std::fs::write(&file, text).expect("written");
    let fixture = Fixture::with(Config { script: Some(file.clone()), ..at_once() }, 4).await;
    assert_eq!(fixture.pull("bank-3").await.expect("an answer"), 503);
    assert_eq!(fixture.pull("bank-4").await.expect("an answer"), 200);
    let (_, shown) = fixture.control("GET", "/behaviour", "").await;
    assert_eq!(shown["clients"]["bank-3"]["errors"]["status"], json!(503));
    assert!(shown["script_elapsed_seconds"].is_number());
    assert_eq!(fixture.control("POST", "/script/restart", "").await.0, 204);
    assert!(fixture.sandbox.restart_script());
    std::fs::write(&file, "[[step]]\nat = \"0s\"\nset = { hangs = 7 }").expect("written");
    let config = Config { script: Some(file.clone()), listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..at_once() };
    let error = Sandbox::start(config, &fixture.lifecycle).await.err().expect("wrong").to_string();
    assert!(error.contains(&file.display().to_string()) && error.contains("step 1: set.hangs: 7"), "{error}");
    fixture.stop().await;
}

#[tokio::test]
async fn those_who_wait_in_line_feel_a_raised_limit_at_once() {
    let rule = |limit| Some(Concurrency { limit, beyond: Beyond::Wait });
    let latency = Some(Latency::Fixed(Duration::from_millis(500)));
    let fixture = Fixture::behaving(Behaviour { latency, concurrency: rule(1), ..Behaviour::default() }).await;
    let began = Instant::now();
    let raise = async {
        while fixture.counts("a").in_flight < 20 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let raised = Behaviour { concurrency: rule(100), ..Behaviour::default() };
        fixture.sandbox.set_client_behaviour("a", raised).expect("valid");
    };
    let (all, ()) = tokio::join!(join_all((0..20).map(|_| fixture.pull("a"))), raise);
    assert!(all.iter().all(|status| matches!(status, Ok(200))));
    assert!(began.elapsed() < Duration::from_secs(5), "one by one they would take ten: {:?}", began.elapsed());
    fixture.sandbox.unset_client_behaviour("a");
    assert_eq!(fixture.sandbox.behaviour("a").concurrency, rule(1));
    fixture.sandbox.unset_behaviour();
    fixture.stop().await;
}

#[test]
fn the_example_script_is_valid() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/sandbox_script.toml");
    let script = Script::read(&file).expect("valid");
    let at = |client, seconds| script.behaviour(client, Duration::from_secs(seconds));
    assert_eq!((at("bank-3", 0).slowdown, at("bank-3", 10).slowdown), (None, Some(50.0)));
    assert_eq!((at("bank-1", 10).slowdown, at("bank-3", 40).slowdown), (None, None));
}
