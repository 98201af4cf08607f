//! A worker alone, without Redis and router, and what makes it a client of the sandbox bank.

use std::sync::Arc;

use weir::client::Client;
use weir::config::Config;
use weir::integration::Integrations;
use weir::overload;
use weir::payload;
use weir::registry::memory::MemoryRegistry;
use weir::telemetry::Telemetry;
use weir::telemetry::logs::Level;
use weir::worker::{Parts, Worker};

/// The configuration of one that keeps its payloads in a directory, which the test chooses.
pub const WORKER: &str = r#"
[worker]
listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
[payloads]
store = "directory"
"#;

/// Starts one with what is configured and with `own`, and a client of it.
pub async fn start(config: Config, own: Integrations, telemetry: Telemetry) -> (Worker, Client) {
    let configured = Integrations::from_config(&config.integrations, &telemetry).expect("integrations");
    let parts = Parts {
        integrations: configured.merge(own).expect("other names"),
        registry: Arc::new(MemoryRegistry::new()),
        store: payload::store::open(&config.payloads).await.expect("valid settings"),
        payloads: config.payloads,
        // The machine that runs the tests may be a busy one.
        overload: overload::Config::watch_only(),
        settings: config.settings,
        log_level: Level::fixed(),
    };
    let worker = Worker::start(config.worker, parts, telemetry).await.expect("a worker");
    let client = Client::new(&format!("http://{}", worker.address())).expect("an address");
    (worker, client)
}

/// An integration that is a client of its own at the bank, known by the key in the file `DIR/CLIENT.key`: each misbehaviour
/// of the bank can be one client's. `BANK` is the bank's address, and `more` the keys that are left, with the steps.
pub fn asking(client: &str, more: &str) -> String {
    format!(
        r#"
        [integrations.{client}]
        kind = "http"
        base_url = "BANK"
        auth = {{ kind = "api_key", header = "x-api-key", key = {{ file = "DIR/{client}.key" }} }}
        request_timeout = "500ms"
        max_response_bytes = 100000
        retries = {{ attempts = 2, first_pause = "1ms", max_pause = "1ms" }}
        {more}
        "#
    )
}

/// One request: the accounts of a customer.
pub const ACCOUNTS: &str =
    r#"steps = [{ name = "accounts", path = "/accounts", query = { customer = "{{ input.customer }}" } }]"#;
