//! Callers in other languages: the examples in Python and Node, and the README's grpcurl, run as users would run them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::documents::{path, read};
use crate::support::house::{House, LONG};

/// What `tests/foreign-clients` has installed, from the pins of today.
fn installed() -> PathBuf {
    let installed = path("target/foreign");
    let pins = ["requirements.txt", "package.json", "package-lock.json"].map(|pin| read(&format!("examples/{pin}")));
    let stamp = std::fs::read_to_string(installed.join("installed")).unwrap_or_default();
    assert!(stamp == pins.concat(), "the foreign clients are not installed as examples/ pins them: run tests/run once");
    installed
}

/// The tools of one language, and a directory for what they make.
struct Client {
    program: PathBuf,
    directory: TempDir,
}

impl Client {
    /// Python, with the code that it generates from the contract.
    async fn python() -> Client {
        let client = Client { program: installed().join("python/bin/python"), directory: scratch() };
        let out = client.directory.path().display();
        let (messages, stubs) = (format!("--python_out={out}"), format!("--grpc_python_out={out}"));
        let arguments = ["-m", "grpc_tools.protoc", "-I", "proto", &messages, &stubs, "weir/v1/tasks.proto"];
        let output = client.run(&arguments).await;
        assert!(output.status.success(), "{output:?}");
        client
    }

    /// Node, which looks for packages beside the program that it runs.
    fn node() -> Client {
        let directory = scratch();
        for example in ["submit.mjs", "submit_many.mjs"] {
            std::fs::copy(path("examples").join(example), directory.path().join(example)).expect("copied");
        }
        let packages = installed().join("node/node_modules");
        std::os::unix::fs::symlink(packages, directory.path().join("node_modules")).expect("linked");
        Client { program: "node".into(), directory }
    }

    fn path_of(&self, example: &str) -> String {
        let folder = if example.ends_with(".py") { path("examples") } else { self.directory.path().to_owned() };
        folder.join(example).display().to_string()
    }

    /// Runs an example, and returns what it prints; it must end well.
    async fn example(&self, name: &str, arguments: &[&str]) -> String {
        let output = self.run(&[&[self.path_of(name).as_str()], arguments].concat()).await;
        assert!(output.status.success(), "{name} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        run(command(&self.program).args(arguments).env("PYTHONPATH", self.directory.path())).await
    }
}

fn scratch() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

/// A program in the repository's root, without the proxies and settings of this machine.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.current_dir(path("")).kill_on_drop(true).stdin(Stdio::null());
    command
}

async fn run(command: &mut Command) -> Output {
    let output = tokio::time::timeout(LONG, command.output()).await.expect("it ends in time");
    output.unwrap_or_else(|error| panic!("{:?}: {error}: run tests/run once", command.as_std().get_program()))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// One task each that goes well, that fails, and that nobody takes.
async fn one_task_each(client: &Client, example: &str) {
    let house = House::start().await;
    let router = house.router_address().to_string();
    let output = client.example(example, &[&router]).await;
    assert!(json(&output)["accounts"].is_array(), "{output}");

    let failure = client.example(example, &[&router, "synthetic", r#"{"do":"fail"}"#]).await;
    for part in ["FAILURE_CODE_INTEGRATION", "told to fail", "REMEDY_NONE"] {
        assert!(failure.contains(part), "{part} is missing in {failure}");
    }

    let refusal = client.example(example, &[&router, "nobody-has-this"]).await;
    assert!(refusal.starts_with("no outcome: no worker of pool \"default\" runs"), "{refusal}");
    assert!(refusal.ends_with("UNKNOWN_INTEGRATION started: no\n"), "{refusal}");
    house.close().await;

    let unreachable = client.example(example, &[&router]).await;
    assert!(unreachable.starts_with("no outcome: ") && unreachable.ends_with(" started: unknown\n"), "{unreachable}");
}

/// More tasks than there are places, over one stream; then some that nobody takes, and nobody at all.
async fn many_tasks(client: &Client, example: &str) {
    const TASKS: usize = 40;
    let house = House::start().await;
    let router = house.router_address().to_string();
    let output = client.example(example, &[&router, "bank", &TASKS.to_string()]).await;
    let ids = output.lines().map(|line| {
        let (id, output) = line.split_once(' ').expect("an id and an output");
        assert!(json(output)["transactions"].is_array(), "{line}");
        id
    });
    assert_eq!(ids.collect::<BTreeSet<_>>().len(), TASKS, "{output}");

    let refusals = client.example(example, &[&router, "nobody-has-this", "3"]).await;
    assert_eq!(refusals.lines().count(), 3, "{refusals}");
    for refusal in refusals.lines() {
        assert!(refusal.contains(" no outcome: no worker of pool \"default\" runs"), "{refusal}");
        assert!(refusal.ends_with("UNKNOWN_INTEGRATION started: no"), "{refusal}");
    }
    house.close().await;

    let broken = client.run(&[&client.path_of(example), &router]).await;
    let said = String::from_utf8_lossy(&broken.stderr);
    assert_eq!(broken.status.code(), Some(1), "{said}");
    assert!(said.starts_with("the stream broke, and what has no answer may have run: "), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn python_submits_one_task() {
    one_task_each(&Client::python().await, "submit.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python_submits_many_tasks_over_one_stream() {
    many_tasks(&Client::python().await, "submit_many.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_submits_one_task() {
    one_task_each(&Client::node(), "submit.mjs").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_submits_many_tasks_over_one_stream() {
    many_tasks(&Client::node(), "submit_many.mjs").await;
}

/// The command of the README, with another address and, if need be, another integration.
async fn grpcurl(router: &str, integration: &str) -> Output {
    let readme = read("README.md").replace("\\\n", " ");
    let shown = readme.lines().find(|line| line.starts_with("grpcurl ")).expect("the README shows it");
    let line = shown.replace("127.0.0.1:7400", router).replace(r#""integration":"bank""#, integration);
    assert!(line.contains(router) && line.contains(integration), "the README has another address: {shown}");
    let mut command = command(Path::new("sh"));
    let path = format!("{}:{}", installed().join("python/bin").display(), std::env::var("PATH").unwrap_or_default());
    run(command.args(["-c", &line]).env("PATH", path)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcurl_submits_by_reflection_and_prints_the_details_of_errors() {
    let house = House::start().await;
    let router = house.router_address().to_string();
    let output = grpcurl(&router, r#""integration":"bank""#).await;
    assert!(output.status.success(), "{output:?}");
    let outcome = json(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(outcome["taskId"], "curl-1");
    assert!(json(outcome["output"].as_str().expect("a text"))["accounts"].is_array(), "{outcome}");

    let failed = grpcurl(&router, r#""integration":"synthetic""#).await;
    assert!(failed.status.success(), "a failure is an outcome: {failed:?}");
    let failure = &json(&String::from_utf8_lossy(&failed.stdout))["failure"];
    assert_eq!((&failure["code"], &failure["remedy"]), (&"FAILURE_CODE_INTEGRATION".into(), &"REMEDY_NONE".into()));

    let refused = grpcurl(&router, r#""integration":"nobody-has-this""#).await;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success(), "{said}");
    for part in [r#""reason":"UNKNOWN_INTEGRATION""#, r#""started":"no""#, r#""domain":"weir""#] {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
    house.close().await;
}

#[test]
fn the_pins_name_no_registry() {
    for pins in ["requirements.txt", "package.json", "package-lock.json"] {
        assert!(
            !read(&format!("examples/{pins}")).contains("resolved"),
            "examples/{pins}: omit where packages are from"
        );
    }
}
