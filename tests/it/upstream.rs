//! What a worker learns of its banks, with the sandbox as ten of them: one that fails is spared and found well again, one
//! that bears few at a time gets few, and what cannot end in time does not start.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use tempfile::TempDir;
use tonic::Code;
use weir::client::Client;
use weir::config;
use weir::integration::Integrations;
use weir::lifecycle::Lifecycle;
use weir::sandbox::{Behaviour, Beyond, Concurrency, Errors, Latency, Sandbox};
use weir::telemetry::Telemetry;
use weir::wire::{Reason, Retry};
use weir::worker::Worker;

use crate::support::calls::{message, metric, plain_client, refusal, typed};
use crate::support::house::{LONG, eventually, submission};
use crate::support::lone;

const BANKS: usize = 10;
const CUSTOMER: &str = r#"{"customer": "c1"}"#;

/// A worker with ten integrations, each of them a client of its own at the sandbox.
struct Banks {
    sandbox: Sandbox,
    worker: Worker,
    telemetry: Telemetry,
    client: Client,
    upstream: Lifecycle,
    _directory: TempDir,
}

impl Banks {
    async fn start(latency: Duration, keys: &str) -> Self {
        let (upstream, directory) = (Lifecycle::new(), tempfile::tempdir().expect("a directory"));
        let bank = weir::sandbox::Config {
            listen: ([127, 0, 0, 1], 0).into(),
            latency: Latency::Fixed(latency),
            ..Default::default()
        };
        let sandbox = Sandbox::start(bank, &upstream).await.expect("a bank");
        let mut text = format!("{WORKER}{keys}\n");
        for bank in 0..BANKS {
            let token = directory.path().join(format!("token-{bank}"));
            std::fs::write(&token, format!("sandbox.bank-{bank}")).expect("written");
            text.push_str(&format!(
                r#"
[integrations.bank-{bank}]
kind = "http"
base_url = "http://{}"
token = {{ file = "{}" }}
retries.attempts = 1
steps = [{{ name = "accounts", path = "/accounts", query = {{ customer = "{{{{ input.customer }}}}" }} }}]
"#,
                sandbox.local_addr,
                token.display()
            ));
        }
        let config = config::from_text(&text).expect("a configuration");
        let telemetry = Telemetry::new().expect("a recorder");
        let (worker, client) = lone::start(config, Integrations::new(), telemetry.clone()).await;
        Banks { sandbox, worker, telemetry, client, upstream, _directory: directory }
    }

    /// Runs so many tasks of one bank at once; how many had an output.
    async fn run(&self, bank: usize, tasks: usize) -> usize {
        let integration = format!("bank-{bank}");
        let submission = |n| submission(&format!("t-{bank}-{n}"), &integration, json!({"customer": "c1"}));
        let submissions: Vec<_> = (0..tasks).map(submission).collect();
        let outcomes = join_all(submissions.iter().map(|submission| self.client.submit(submission))).await;
        outcomes.into_iter().filter(|outcome| outcome.as_ref().is_ok_and(|outcome| outcome.result.is_ok())).count()
    }

    fn metric(&self, series: &str) -> f64 {
        metric(&self.telemetry.render(), series)
    }

    fn breaker(&self, bank: usize) -> f64 {
        self.metric(&format!("weir_breaker_state{{integration=\"bank-{bank}\"}}"))
    }

    async fn stop(self) {
        drop(self.client);
        let ended = self.worker.drain().await;
        assert_eq!((ended.in_flight, ended.left_behind), (0, 0));
        self.upstream.stop(LONG).await.expect("the bank ends");
    }
}

const WORKER: &str = r#"
[settings]
max_parallelism = 100
[worker]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn of_ten_banks_the_one_that_fails_is_spared_alone_and_a_probe_finds_it_well_again() {
    // Long enough that each look at the open breaker finds it open.
    let keys = "[worker.upstream]\nbreaker = { min_tasks = 10, probes = 2, open_for = \"3s\", max_open_for = \"3s\" }";
    let banks = Banks::start(Duration::from_millis(1), keys).await;
    let fails = Behaviour { errors: Some(Errors { share: 1.0, status: 503 }), ..Behaviour::default() };
    banks.sandbox.set_client_behaviour("bank-3", fails).expect("a client");
    assert_eq!(banks.run(3, 10).await, 0);
    assert_eq!(banks.breaker(3), 2.0);
    let asked = banks.sandbox.stats().clients["bank-3"].total;

    let mut plain = plain_client(&format!("http://{}", banks.worker.address())).await;
    let status = refusal(&mut plain, message("spared", "bank-3", CUSTOMER)).await;
    let refused = typed(&status);
    assert_eq!((refused.reason, refused.retry, status.code()), (Reason::BreakerOpen, Retry::Later, Code::Unavailable));
    assert!(refused.message.contains("bank-3 is spared: 10 of 10 tasks failed"), "{refused}");
    assert!(refused.retry_after.is_some_and(|after| after < Duration::from_secs(4)), "{refused:?}");
    let ran = join_all((0..BANKS).filter(|bank| *bank != 3).map(|bank| banks.run(bank, 20))).await;
    assert_eq!(ran, [20; BANKS - 1], "the others are served");
    assert!((0..BANKS).filter(|bank| *bank != 3).all(|bank| banks.breaker(bank) == 0.0));

    assert_eq!(banks.sandbox.stats().clients["bank-3"].total, asked, "it was left alone");
    banks.sandbox.unset_client_behaviour("bank-3");
    // The client waits as long as it is told, and then it is the probe.
    assert_eq!(banks.run(3, 1).await, 1);
    assert_eq!(banks.run(3, 20).await, 20);
    assert_eq!(banks.breaker(3), 0.0);
    assert_eq!(banks.metric("weir_breaker_opened_total{integration=\"bank-3\"}"), 1.0);
    banks.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_cannot_end_in_time_does_not_start() {
    let banks = Banks::start(Duration::from_millis(300), "").await;
    assert_eq!(banks.run(0, 40).await, 40);
    let asked = banks.sandbox.stats().clients["bank-0"].total;
    let mut plain = plain_client(&format!("http://{}", banks.worker.address())).await;
    let mut task = message("hurried", "bank-0", CUSTOMER);
    task.timeout = Some(Duration::from_millis(100).try_into().expect("in range"));
    let refused = typed(&refusal(&mut plain, task).await);
    assert_eq!((refused.reason, refused.retry), (Reason::DeadlineTooShort, Retry::Never));
    assert!(refused.message.contains("5% of the last 40 tasks or so were faster"), "{refused}");
    assert_eq!(banks.sandbox.stats().clients["bank-0"].total, asked);
    banks.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adaptive_limit_finds_how_many_a_bank_bears() {
    let keys = "[worker.upstream]\nadaptive = { mode = \"on\", initial = 4, min = 2, window = \"100ms\" }";
    let banks = Banks::start(Duration::from_millis(50), keys).await;
    let knee = Behaviour { concurrency: Some(Concurrency { limit: 8, beyond: Beyond::Wait }), ..Behaviour::default() };
    banks.sandbox.set_client_behaviour("bank-0", knee).expect("a client");
    let limit = || banks.metric("weir_adaptive_limit{integration=\"bank-0\",mode=\"on\"}");
    assert_eq!(limit(), 4.0);

    let callers = Lifecycle::new();
    for caller in 0..40 {
        let (client, token) = (banks.client.clone(), callers.token());
        callers.spawn("caller", async move {
            for n in 0.. {
                let task = submission(&format!("c-{caller}-{n}"), "bank-0", json!({"customer": "c1"}));
                if token.run_until_cancelled(client.submit(&task)).await.is_none() {
                    break;
                }
            }
        });
    }
    eventually("the limit has grown", || limit() >= 6.0).await;
    let watched = Instant::now();
    while watched.elapsed() < Duration::from_secs(3) {
        assert!(limit() <= 24.0, "three times what it bears: {}", limit());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    callers.stop(LONG).await.expect("the callers end");
    let most = banks.sandbox.stats().clients["bank-0"].max_in_flight;
    assert!(most <= 26, "{most} of 40 callers were let through");
    banks.stop().await;
}
