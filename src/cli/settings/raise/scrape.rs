//! Where the workers' metrics are read: at their admin ports, or at a Prometheus that scrapes them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use futures_util::stream::{self, StreamExt};
use serde::Deserialize;
use tokio::time::Instant;

use super::readings::{Reading, Sample, names, parse};
use crate::integration::transport::{self, Request};
use crate::integration::{Recorder, Transport, recorder};
use crate::task::WorkerId;
use crate::telemetry::Telemetry;

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The largest answer: about 100 workers with 10,000 series each, through Prometheus.
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// Workers asked at the same time.
const AT_ONCE: usize = 32;

/// A source of metrics.
pub(super) struct Scraper {
    transport: Transport,
    prometheus: Option<String>,
    started: Instant,
}

/// What each worker said, or why it did not.
pub(super) type Readings = BTreeMap<WorkerId, anyhow::Result<Reading>>;

impl Scraper {
    /// At a Prometheus, or without one at the workers.
    pub(super) fn new(prometheus: Option<&str>) -> anyhow::Result<Self> {
        let limits = transport::Config {
            request_timeout: ANSWER_WITHIN,
            connect_timeout: ANSWER_WITHIN,
            max_response_bytes: MAX_BYTES,
            ..transport::Config::default()
        };
        let transport =
            Transport::new("raise", "raise", &limits, &Telemetry::new()?).map_err(|error| anyhow!("{error}"))?;
        let prometheus = prometheus.map(|url| match url::Url::parse(url) {
            Ok(parsed) if parsed.host().is_some() => Ok(url.trim_end_matches('/').to_owned()),
            _ => Err(anyhow!("--prometheus {url:?} is no URL: use a form such as \"http://127.0.0.1:9090\"")),
        });
        Ok(Scraper { transport, prometheus: prometheus.transpose()?, started: Instant::now() })
    }

    /// The numbers of these workers, whose admin ports are given, at this moment.
    pub(super) async fn read(&self, workers: &[(WorkerId, String)]) -> Readings {
        match &self.prometheus {
            Some(prometheus) => self.read_prometheus(prometheus, workers).await,
            None => {
                let reads = workers
                    .iter()
                    .map(|(worker, admin)| async move { (worker.clone(), self.read_worker(admin).await) });
                let reads: stream::BufferUnordered<_> = stream::iter(reads).buffer_unordered(AT_ONCE);
                reads.collect().await
            }
        }
    }

    async fn read_worker(&self, admin: &str) -> anyhow::Result<Reading> {
        let text = self.get(Request::get(format!("http://{admin}/metrics"))).await?;
        Ok(Reading::of(&parse(&text), self.started.elapsed().as_secs_f64()))
    }

    async fn read_prometheus(&self, prometheus: &str, workers: &[(WorkerId, String)]) -> Readings {
        let instances: Vec<_> = workers.iter().map(|(_, admin)| literal(admin)).collect();
        let of_workers = format!("instance=~\"{}\"", instances.join("|"));
        let all = format!("{{__name__=~\"{}\",{of_workers}}}", names().join("|"));
        // When a sample was scraped, which is before it is asked for.
        let scraped = format!("timestamp(weir_gate_task_seconds{{{of_workers}}})");
        let answers = tokio::try_join!(self.query(prometheus, &all), self.query(prometheus, &scraped));
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
                None => Err(anyhow!("{prometheus} has no weir_gate_task_seconds with instance={admin:?}")),
            };
            (worker.clone(), reading)
        };
        workers.iter().map(of).collect()
    }

    async fn query(&self, prometheus: &str, query: &str) -> anyhow::Result<Vec<Sample>> {
        let request = Request::get(format!("{prometheus}/api/v1/query")).query("query", query);
        let text = self.get(request).await?;
        vector(&text).with_context(|| format!("{prometheus} does not answer as Prometheus does"))
    }

    async fn get(&self, request: Request) -> anyhow::Result<String> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        // What was said is in the transcript of a run; here there is none.
        let recorder = Recorder::new(&recorder::Config { max_exchanges: 0, ..recorder::Config::default() });
        let answer = self.transport.client(&recorder, deadline).send(request).await;
        let answer = answer.map_err(|error| match error {
            transport::Error::Timeout { target, .. } | transport::Error::Deadline { target } => {
                anyhow!("{target}: no answer within {}", humantime::format_duration(ANSWER_WITHIN))
            }
            other => other.into(),
        })?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        if !answer.is_success() {
            bail!("status {}: {}", answer.status, text.chars().take(200).collect::<String>());
        }
        Ok(text)
    }
}

/// Prometheus' answer to an instant query: <https://prometheus.io/docs/prometheus/latest/querying/api/>.
#[derive(Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    result: Vec<OfSeries>,
}

#[derive(Deserialize)]
struct OfSeries {
    metric: BTreeMap<String, String>,
    value: (f64, String),
}

/// An address as a part of a regular expression in PromQL: there, a backslash in quotes is written as two.
fn literal(address: &str) -> String {
    address.replace('.', r"\\.").replace('[', r"\\[").replace(']', r"\\]")
}

fn vector(text: &str) -> anyhow::Result<Vec<Sample>> {
    let answer: Answer = serde_json::from_str(text)?;
    let sample = |OfSeries { metric, value: (_, value) }| {
        let mut labels = metric;
        let name = labels.remove("__name__").unwrap_or_default();
        Ok(Sample { name, labels, value: value.parse().with_context(|| format!("{value:?} is no number"))? })
    };
    answer.data.result.into_iter().map(sample).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_prometheus_is_read() {
        let text = r#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"__name__":"weir_gate_in_flight","instance":"10.0.0.7:9401","job":"weir"},"value":[1.5,"30"]},
            {"metric":{"instance":"10.0.0.7:9401"},"value":[1.5,"NaN"]}]}}"#;
        let samples = vector(text).expect("samples");
        assert_eq!((samples[0].name.as_str(), samples[0].value), ("weir_gate_in_flight", 30.0));
        assert_eq!(samples[0].labels["instance"], "10.0.0.7:9401");
        assert!(samples[1].name.is_empty() && samples[1].value.is_nan());
        assert!(vector("{}").is_err() && vector("<html>").is_err());
    }

    #[test]
    fn what_is_no_url_is_said() {
        let error = Scraper::new(Some("prometheus")).err().expect("no URL").to_string();
        assert!(error.contains("use a form such as"), "{error}");
    }
}
