//! Where the workers' numbers are read: at their admin ports, or at a Prometheus that scrapes them.

use std::collections::BTreeMap;

use anyhow::anyhow;
use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use super::readings::{Reading, is_read, names};
use crate::cli::scrape::{Prometheus, Sample, Scraper, of_instances};
use crate::task::WorkerId;

/// Workers asked at the same time.
const AT_ONCE: usize = 32;

/// What errors and the client's metrics call it.
const COMMAND: &str = "raise";

/// A source of the numbers of workers.
pub(super) enum Source {
    /// The workers themselves, on a clock that began then.
    Workers(Scraper, Instant),
    /// A Prometheus.
    Prometheus(Prometheus),
}

/// What each worker said, or why it did not.
pub(super) type Readings = BTreeMap<WorkerId, anyhow::Result<Reading>>;

impl Source {
    /// A Prometheus, or without one the workers.
    pub(super) fn new(prometheus: Option<&str>) -> anyhow::Result<Self> {
        match prometheus {
            Some(url) => Ok(Source::Prometheus(Prometheus::new(COMMAND, url)?)),
            None => Ok(Source::Workers(Scraper::new(COMMAND)?, Instant::now())),
        }
    }

    /// The numbers of these workers, whose admin ports are given, at this moment.
    pub(super) async fn read(&self, workers: &[(WorkerId, String)]) -> Readings {
        match self {
            Source::Workers(scraper, started) => {
                let reads = workers.iter().map(|(worker, admin)| async move {
                    let samples = scraper.metrics(admin, is_read).await;
                    (worker.clone(), samples.map(|samples| Reading::of(&samples, started.elapsed().as_secs_f64())))
                });
                let reads: stream::BufferUnordered<_> = stream::iter(reads).buffer_unordered(AT_ONCE);
                reads.collect().await
            }
            Source::Prometheus(prometheus) => read_prometheus(prometheus, workers).await,
        }
    }
}

async fn read_prometheus(prometheus: &Prometheus, workers: &[(WorkerId, String)]) -> Readings {
    let of_workers = of_instances(workers.iter().map(|(_, admin)| admin.as_str()));
    let all = format!("{{__name__=~\"{}\",{of_workers}}}", names().join("|"));
    // When a sample was scraped, which is before it is asked for.
    let scraped = format!("timestamp(weir_gate_task_seconds{{{of_workers}}})");
    let answers = tokio::try_join!(prometheus.instant(&all, None), prometheus.instant(&scraped, None));
    let (samples, scraped) = match answers {
        Ok(answers) => answers,
        Err(error) => {
            let failed = format!("{error:#}");
            return workers.iter().map(|(worker, _)| (worker.clone(), Err(anyhow!("{failed}")))).collect();
        }
    };
    let of = |(worker, admin): &(WorkerId, String)| {
        let is_of = |sample: &&Sample| sample.labels.get("instance") == Some(admin);
        let own: Vec<_> = samples.iter().filter(is_of).cloned().collect();
        let reading = match scraped.iter().find(is_of) {
            Some(scraped) => Ok(Reading::of(&own, scraped.value)),
            None => Err(anyhow!("{} has no weir_gate_task_seconds with instance={admin:?}", prometheus.url())),
        };
        (worker.clone(), reading)
    };
    workers.iter().map(of).collect()
}
