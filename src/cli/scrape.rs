//! Reading the metrics of weir's processes: at their admin ports, or at a Prometheus that scrapes these.

mod text;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;
use tokio::time::Instant;

use crate::integration::transport::{self, Request};
use crate::integration::{Recorder, Transport, recorder};
use crate::task::transcript::Fault;
use crate::telemetry::Telemetry;

pub(super) use text::parse;

/// How long an answer may take.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The largest answer: about 100 workers with 10,000 series each, through Prometheus.
const MAX_BYTES: usize = 256 * 1024 * 1024;

/// One series of a process at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

/// One series over time: when, in seconds of a clock that is the same for all series of a process, and what it was.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) points: Vec<(f64, f64)>,
}

/// Reads admin ports.
pub(super) struct Scraper {
    transport: Transport,
}

impl Scraper {
    /// For this command.
    pub(super) fn new(command: &str) -> anyhow::Result<Self> {
        let limits = transport::Config {
            request_timeout: ANSWER_WITHIN,
            connect_timeout: ANSWER_WITHIN,
            max_response_bytes: MAX_BYTES,
            ..transport::Config::default()
        };
        let transport = Transport::new(command, command, &limits, &Telemetry::new()?);
        Ok(Scraper { transport: transport.map_err(|error| anyhow!("{error}"))? })
    }

    /// The numbers at an admin port, HOST:PORT: those of the series that `is_read` knows by their names.
    pub(super) async fn metrics(&self, admin: &str, is_read: impl Fn(&str) -> bool) -> anyhow::Result<Vec<Sample>> {
        let text = self.get(Request::get(format!("http://{admin}/metrics"))).await?;
        Ok(parse(&text, is_read))
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

/// Whether the error of a reading says that nobody is there, rather than somebody who does not answer.
pub(super) fn is_nobody_there(error: &anyhow::Error) -> bool {
    let fault = error.downcast_ref::<transport::Error>().and_then(transport::Error::fault);
    matches!(fault, Some(Fault::Connect | Fault::Broken))
}

/// A Prometheus, asked over its HTTP API: <https://prometheus.io/docs/prometheus/latest/querying/api/>.
pub(super) struct Prometheus {
    scraper: Scraper,
    url: String,
}

impl Prometheus {
    pub(super) fn new(command: &str, url: &str) -> anyhow::Result<Self> {
        let url = match url::Url::parse(url) {
            Ok(parsed) if parsed.host().is_some() => url.trim_end_matches('/').to_owned(),
            _ => bail!("--prometheus {url:?} is no URL: use a form such as \"http://127.0.0.1:9090\""),
        };
        Ok(Prometheus { scraper: Scraper::new(command)?, url })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// What a query comes to now, or at a Unix time in seconds.
    pub(super) async fn instant(&self, query: &str, at: Option<f64>) -> anyhow::Result<Vec<Sample>> {
        let request = self.ask("query", query);
        let request = at.into_iter().fold(request, |request, at| request.query("time", &at.to_string()));
        self.answer::<OfMoment, _>(request, OfMoment::read).await
    }

    /// What a query comes to from one Unix time to another, in steps of so many seconds.
    pub(super) async fn range(&self, query: &str, from: f64, to: f64, step: f64) -> anyhow::Result<Vec<Series>> {
        let request = self.ask("query_range", query);
        let bounds = [("start", from), ("end", to), ("step", step)];
        let request = bounds.iter().fold(request, |request, (key, value)| request.query(key, &value.to_string()));
        self.answer::<OverTime, _>(request, OverTime::read).await
    }

    fn ask(&self, what: &str, query: &str) -> Request {
        Request::get(format!("{}/api/v1/{what}", self.url)).query("query", query)
    }

    async fn answer<S, T>(&self, request: Request, read: fn(S) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>>
    where
        S: for<'de> Deserialize<'de>,
    {
        let text = self.scraper.get(request).await?;
        answered(&text, read).with_context(|| format!("{} does not answer as Prometheus does", self.url))
    }
}

/// An answer of Prometheus.
#[derive(Deserialize)]
struct Answer<S> {
    data: Data<S>,
}

#[derive(Deserialize)]
struct Data<S> {
    result: Vec<S>,
}

#[derive(Deserialize)]
struct OfMoment {
    metric: BTreeMap<String, String>,
    value: (f64, String),
}

#[derive(Deserialize)]
struct OverTime {
    metric: BTreeMap<String, String>,
    values: Vec<(f64, String)>,
}

impl OfMoment {
    fn read(self) -> anyhow::Result<Sample> {
        let (name, labels) = named(self.metric);
        Ok(Sample { name, labels, value: number(&self.value.1)? })
    }
}

impl OverTime {
    fn read(self) -> anyhow::Result<Series> {
        let (name, labels) = named(self.metric);
        let points = self.values.iter().map(|(at, value)| Ok((*at, number(value)?)));
        Ok(Series { name, labels, points: points.collect::<anyhow::Result<_>>()? })
    }
}

fn answered<S, T>(text: &str, read: fn(S) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>>
where
    S: for<'de> Deserialize<'de>,
{
    let answer: Answer<S> = serde_json::from_str(text)?;
    answer.data.result.into_iter().map(read).collect()
}

fn named(mut labels: BTreeMap<String, String>) -> (String, BTreeMap<String, String>) {
    (labels.remove("__name__").unwrap_or_default(), labels)
}

fn number(text: &str) -> anyhow::Result<f64> {
    text.parse().with_context(|| format!("{text:?} is no number"))
}

/// A selector of these instances, HOST:PORT each. In PromQL, a backslash in quotes is written as two.
pub(super) fn of_instances<'a>(instances: impl IntoIterator<Item = &'a str>) -> String {
    let literal = |instance: &str| instance.replace('.', r"\\.").replace('[', r"\\[").replace(']', r"\\]");
    let literals: Vec<_> = instances.into_iter().map(literal).collect();
    format!("instance=~\"{}\"", literals.join("|"))
}

/// An admin port as others reach it: the process knows where it listens, and `address` is where it is.
pub(super) fn reachable(admin: &str, address: &str) -> anyhow::Result<String> {
    let listens: std::net::SocketAddr =
        admin.parse().with_context(|| format!("its admin port is {admin:?}, which is no address"))?;
    let url = url::Url::parse(address).with_context(|| format!("its address is {address:?}"))?;
    let host = url.host().with_context(|| format!("its address is {address:?}"))?;
    let is_here = match &host {
        url::Host::Domain(name) => *name == "localhost",
        url::Host::Ipv4(ip) => ip.is_loopback(),
        url::Host::Ipv6(ip) => ip.is_loopback(),
    };
    match listens.ip() {
        ip if ip.is_unspecified() => Ok(format!("{host}:{}", listens.port())),
        ip if ip.is_loopback() && !is_here => bail!(
            "its metrics are on {admin}, which only its own machine reaches: set worker.admin.listen to an address that this \
             one reaches"
        ),
        _ => Ok(admin.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_prometheus_is_read() {
        let text = r#"{"status":"success","data":{"resultType":"vector","result":[
            {"metric":{"__name__":"weir_gate_in_flight","instance":"10.0.0.7:9401","job":"weir"},"value":[1.5,"30"]},
            {"metric":{"instance":"10.0.0.7:9401"},"value":[1.5,"NaN"]}]}}"#;
        let samples = answered(text, OfMoment::read).expect("samples");
        assert_eq!((samples[0].name.as_str(), samples[0].value), ("weir_gate_in_flight", 30.0));
        assert_eq!(samples[0].labels["instance"], "10.0.0.7:9401");
        assert!(samples[1].name.is_empty() && samples[1].value.is_nan());
        assert!(answered("{}", OfMoment::read).is_err() && answered("<html>", OfMoment::read).is_err());

        let text = r#"{"data":{"resultType":"matrix","result":[
            {"metric":{"__name__":"weir_gate_in_flight"},"values":[[1.5,"30"],[2.5,"31"]]}]}}"#;
        let series = answered(text, OverTime::read).expect("series");
        assert_eq!(
            (series[0].name.as_str(), &series[0].points),
            ("weir_gate_in_flight", &vec![(1.5, 30.0), (2.5, 31.0)])
        );
    }

    #[test]
    fn what_is_no_url_is_said() {
        let error = Prometheus::new("raise", "prometheus").err().expect("no URL").to_string();
        assert!(error.contains("use a form such as"), "{error}");
    }

    #[test]
    fn an_instance_is_a_text_in_a_selector() {
        assert_eq!(of_instances(["10.0.0.7:1", "[::1]:2"]), r#"instance=~"10\\.0\\.0\\.7:1|\\[::1\\]:2""#);
    }

    #[test]
    fn an_admin_port_is_where_others_reach_it() {
        for (admin, address, expected) in [
            ("0.0.0.0:9401", "http://10.0.0.7:7401", "10.0.0.7:9401"),
            ("[::]:9401", "http://worker-1:7401", "worker-1:9401"),
            ("10.0.0.7:9401", "http://worker-1:7401", "10.0.0.7:9401"),
            ("127.0.0.1:9401", "http://127.0.0.1:7401", "127.0.0.1:9401"),
        ] {
            assert_eq!(reachable(admin, address).expect(admin), expected);
        }
        let error = reachable("127.0.0.1:9401", "http://10.0.0.7:7401").expect_err("elsewhere").to_string();
        assert!(error.contains("set worker.admin.listen"), "{error}");
    }
}
