//! The cap on sockets per host, and who waits for one.
//!
//! The client speaks HTTP/1.1, so a request in flight is a busy socket: a permit per request, held until the body is
//! read, is the cap. A hidden cap is what makes work slow without a sign, so this one has gauges and a warning.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use metrics::{Gauge, Histogram};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::connections::{Held, Open};
use crate::telemetry::notice::Notice;
use crate::telemetry::{Counted, Telemetry};

/// Hosts that one transport talks to at the same time. Those that nobody talks to are forgotten when there are more.
const MAX_HOSTS: usize = 1_024;

/// Waiting for a socket is warned of at most this often.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

pub(super) struct Sockets {
    per_host: usize,
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
    waits: Notice,
    settings_key: String,
    metrics: Metrics,
    busy: Arc<AtomicUsize>,
    open: Open,
}

/// One of a host's sockets; dropping it gives it back.
pub(super) struct Socket {
    _permit: OwnedSemaphorePermit,
    _busy: Counted,
    _held: Held,
}

/// More hosts are in use at the same time than are kept apart.
#[derive(Debug, thiserror::Error)]
#[error("more than {MAX_HOSTS} hosts are in use at the same time")]
pub struct TooManyHosts;

impl Sockets {
    pub(super) fn new(label: &str, settings_key: &str, per_host: usize) -> Self {
        Sockets {
            per_host,
            hosts: Mutex::default(),
            waits: Notice::every(WARN_INTERVAL),
            settings_key: settings_key.to_owned(),
            metrics: Metrics::new(label, per_host),
            busy: Arc::default(),
            open: Open::new(label),
        }
    }

    /// What connections are counted in.
    pub(super) fn open(&self) -> Open {
        self.open.clone()
    }

    /// Has idle sockets counted before each scrape.
    pub(super) fn count_idle(&self, label: &str, telemetry: &Telemetry) {
        let (busy, open) = (self.busy.clone(), self.open.clone());
        let idle = telemetry.register(|| {
            metrics::describe_gauge!(
                "weir_http_sockets_idle",
                "Sockets to all hosts that are kept open for the next request."
            );
            metrics::gauge!("weir_http_sockets_idle", "integration" => label.to_owned())
        });
        telemetry.before_scrape(move || {
            // A busy one that still connects is no open socket yet.
            let all = open.sockets.load(Ordering::Relaxed) + open.connecting.load(Ordering::Relaxed);
            idle.set(all.saturating_sub(busy.load(Ordering::Relaxed)) as f64);
        });
    }

    /// One of `host`'s sockets, as soon as one is free: first come, first served.
    pub(super) async fn take(&self, host: &str) -> Result<Socket, TooManyHosts> {
        let (host_sockets, asked) = (self.of(host)?, Instant::now());
        let permit = match host_sockets.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                self.warn(host);
                let _waiting = Counted::new(&self.metrics.waiting);
                host_sockets.acquire_owned().await.expect("the semaphore is never closed")
            }
        };
        self.metrics.wait.record(asked.elapsed());
        let busy = Held::new(&self.busy);
        Ok(Socket { _permit: permit, _busy: Counted::new(&self.metrics.busy), _held: busy })
    }

    fn of(&self, host: &str) -> Result<Arc<Semaphore>, TooManyHosts> {
        let mut hosts = self.hosts.lock();
        if let Some(sockets) = hosts.get(host) {
            return Ok(sockets.clone());
        }
        if hosts.len() >= MAX_HOSTS {
            hosts.retain(|_, sockets| Arc::strong_count(sockets) > 1);
        }
        if hosts.len() >= MAX_HOSTS {
            return Err(TooManyHosts);
        }
        let sockets = Arc::new(Semaphore::new(self.per_host));
        hosts.insert(host.to_owned(), sockets.clone());
        Ok(sockets)
    }

    fn warn(&self, host: &str) {
        if self.waits.due().is_some() {
            let (key, per_host) = (&self.settings_key, self.per_host);
            tracing::warn!(
                host,
                max_connections_per_host = per_host,
                "requests wait for a socket: all {per_host} to this host are busy; raise {key}.max_connections_per_host \
                 if the host can take more"
            );
        }
    }
}

struct Metrics {
    busy: Gauge,
    waiting: Gauge,
    wait: Histogram,
}

impl Metrics {
    fn new(label: &str, per_host: usize) -> Self {
        use metrics::{describe_gauge, describe_histogram, gauge, histogram};
        describe_histogram!(
            "weir_http_socket_wait_seconds",
            "How long requests waited for one of a host's sockets, those of all integrations together."
        );
        describe_gauge!("weir_http_sockets_busy", "Sockets to all hosts that carry a request.");
        describe_gauge!("weir_http_sockets_waiting", "Requests that wait for one of a host's sockets.");
        describe_gauge!("weir_http_sockets_per_host_limit", "Sockets that may be busy per host.");
        gauge!("weir_http_sockets_per_host_limit", "integration" => label.to_owned()).set(per_host as f64);
        Metrics {
            busy: gauge!("weir_http_sockets_busy", "integration" => label.to_owned()),
            waiting: gauge!("weir_http_sockets_waiting", "integration" => label.to_owned()),
            // For all integrations together: weir_http_sockets_waiting says whose requests wait.
            wait: histogram!("weir_http_socket_wait_seconds"),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::telemetry::logs::testing::Heard;

    #[tokio::test(start_paused = true)]
    async fn the_next_in_line_gets_a_socket_that_is_given_back() {
        let sockets = Sockets::new("bank", "integrations.bank", 1);
        let first = sockets.take("a").await.expect("one is free");
        let mut second = Box::pin(sockets.take("a"));
        assert!(second.as_mut().now_or_never().is_none());
        sockets.take("b").await.expect("another host has sockets of its own");
        drop(first);
        second.await.expect("one is free again");
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_is_warned_of_once_a_minute_with_the_key_to_raise() {
        let heard = Heard::listen();
        let sockets = Sockets::new("bank", "integrations.bank", 1);
        let _first = sockets.take("https://bank:443").await.expect("one is free");
        let wait = || sockets.take("https://bank:443").now_or_never().is_none();
        for (seconds, warnings) in [(0, 1), (59, 1), (1, 2), (0, 2)] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            assert!(wait());
            let said = heard.lines("raise integrations.bank.max_connections_per_host");
            assert_eq!(said.len(), warnings, "{said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_without_requests_are_forgotten_when_there_are_many() {
        let sockets = Sockets::new("bank", "integrations.bank", 1);
        let mut held = Vec::new();
        for number in 0..MAX_HOSTS {
            held.push(sockets.take(&number.to_string()).await.expect("within the limit"));
        }
        assert!(sockets.take("one more").await.is_err());
        held.clear();
        sockets.take("one more").await.expect("the others are forgotten");
        assert_eq!(sockets.hosts.lock().len(), 1);
    }
}
