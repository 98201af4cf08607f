//! One worker, watched for some seconds: its metrics again and again, and what it says of itself.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use tokio::time::{Instant, sleep_until};

use super::judge::LEAST_READINGS;
use super::observation::{Mean, Observation};
use super::track::Track;
use super::{Args, COMMAND, observe, unix};
use crate::cli::remark;
use crate::cli::scrape::{Scraper, is_nobody_there, reachable};
use crate::client::operations::{Operations, OperationsError};
use crate::wire::proto::{Description, description};

/// Between readings; a long time is read this many times.
const INTERVAL: Duration = Duration::from_secs(1);
const MOST_READINGS: u32 = 120;

/// Running tasks that are asked for, to see for how long they have run.
const MOST_TASKS: u32 = 1_000;

/// Readings before the first one is given up: a worker whose threads are all blocked answers in between.
const ATTEMPTS: u32 = 3;

pub(super) async fn watch(address: &str, args: &Args) -> anyhow::Result<Observation> {
    let (operations, scraper) = (Operations::new(address)?, Scraper::new(COMMAND)?);
    let admin = match &args.admin {
        Some(admin) => admin.trim_start_matches("http://").trim_end_matches('/').to_owned(),
        None => admin_of(&operations).await?,
    };
    let (mut track, seconds) = (Track::new(), Duration::from_secs(args.seconds.into()));
    let interval = INTERVAL.max(seconds / MOST_READINGS);
    let pool = first(&scraper, &admin, &mut track).await?;
    if std::io::stderr().is_terminal() {
        remark(format_args!("watching {admin} for {}", humantime::format_duration(seconds)));
    }
    let (started, began, mut missed) = (Instant::now(), unix(SystemTime::now()), Missed::default());
    let mut next = started + interval;
    while next <= started + seconds {
        sleep_until(next).await;
        let read = scraper.metrics(&admin, observe::is_read).await;
        let at = started.elapsed().as_secs_f64();
        missed.note(read.as_ref().err(), at);
        if let Ok(samples) = read {
            track.add(samples, at);
        }
        // One that took longer makes up for nothing: readings lie at least so far apart.
        next = (next + interval).max(Instant::now());
    }
    if missed.gone_since.is_some() {
        // One connection may break.
        let again = scraper.metrics(&admin, observe::is_read).await;
        missed.note(again.err().as_ref(), started.elapsed().as_secs_f64());
    }
    let (readings, _) = track.readings(observe::READ);
    let gone_seconds = missed.gone_since.map_or(0.0, |since| started.elapsed().as_secs_f64() - since);
    if readings < LEAST_READINGS {
        bail!(
            "the metrics at {admin} were read {readings} times in {}, and {}",
            humantime::format_duration(seconds),
            missed.why()
        );
    }
    let observation = Observation::of_process(track, Some(began), &admin, &pool)?;
    let mut observation = Observation { unanswered: missed.unanswered, gone_seconds, ..observation };
    // What it says of itself helps and is not needed.
    if let Ok(description) = operations.describe(MOST_TASKS).await {
        describe(&description, &mut observation);
    }
    Ok(observation)
}

/// Readings that did not come.
#[derive(Debug, Default)]
struct Missed {
    /// Somebody is there and did not answer.
    unanswered: usize,
    /// Since when nobody is there.
    gone_since: Option<f64>,
}

impl Missed {
    /// What a reading came to, and when.
    fn note(&mut self, error: Option<&anyhow::Error>, at: f64) {
        match error {
            None => self.gone_since = None,
            Some(error) if is_nobody_there(error) => self.gone_since = self.gone_since.or(Some(at)),
            Some(_) => self.unanswered += 1,
        }
    }

    fn why(&self) -> String {
        match self {
            Missed { gone_since: Some(_), .. } => {
                "then nobody was there any more: the worker has ended, or been started anew \
                 elsewhere; its log and weir_last_exit of the next one say why"
                    .into()
            }
            Missed { unanswered, .. } => format!(
                "{unanswered} readings were not answered: its async threads may all be blocked, and then its log names the \
                 integration"
            ),
        }
    }
}

/// Where its metrics are, as it says itself.
async fn admin_of(operations: &Operations) -> anyhow::Result<String> {
    let description = operations.describe(1).await.map_err(|error| match error {
        OperationsError::Failed { .. } => anyhow::Error::from(error).context(
            "the worker does not answer: its async threads may all be blocked, and then its log names the integration",
        ),
        other => other.into(),
    })?;
    let endpoint = operations.endpoint();
    if let Some(description::Role::Router(_)) = description.role {
        bail!(
            "{endpoint} is a router, and the doctor looks at workers: weir fleet and weir describe {endpoint} tell of routers"
        );
    }
    reachable(&description.admin, endpoint).context("name another way to its metrics with --admin HOST:PORT")
}

/// The first reading, which says whose metrics they are; returns the pool.
async fn first(scraper: &Scraper, admin: &str, track: &mut Track) -> anyhow::Result<String> {
    let mut attempt = 1;
    let samples = loop {
        match scraper.metrics(admin, observe::is_read).await {
            Err(_) if attempt < ATTEMPTS => attempt += 1,
            read => break read.context("the worker's metrics cannot be read")?,
        }
    };
    let pool = match observe::role(&samples) {
        Some(("worker", pool)) => pool.to_owned(),
        Some((role, _)) => bail!("{admin} has the metrics of a {role}, and the doctor looks at workers"),
        None => bail!(
            "{admin} has no metrics of a worker of weir: give the address of its admin port (worker.admin.listen)"
        ),
    };
    track.add(samples, 0.0);
    Ok(pool)
}

/// Adds what only the worker itself says.
fn describe(description: &Description, observation: &mut Observation) {
    let Some(description::Role::Worker(worker)) = &description.role else { return };
    let mut running: BTreeMap<&str, Mean> = BTreeMap::new();
    for run in &worker.running {
        let of = running.entry(&run.integration).or_default();
        of.count += 1.0;
        of.seconds += run.age_seconds;
    }
    for (name, of) in running {
        if let Some(integration) = observation.integrations.get_mut(name) {
            integration.running = of;
        }
    }
    let level = worker.settings.as_ref().and_then(|settings| settings.values.get("log_level"));
    observation.log_level = level.map(|level| level.trim_matches('"').to_owned());
    let Some(overload) = &worker.overload else { return };
    observation.shedding = overload.why.clone();
    observation.blocked_by = overload.blocked_by.clone();
    observation.memory.limit_of = overload.memory_limit_of.clone();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_there_is_told_from_one_who_does_not_answer() {
        let closed =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
        let scraper = Scraper::new(COMMAND).expect("a scraper");
        let refused = scraper.metrics(&closed.to_string(), observe::is_read).await.expect_err("nobody listens");
        let mut missed = Missed::default();
        missed.note(Some(&refused), 3.0);
        missed.note(Some(&refused), 4.0);
        assert_eq!((missed.unanswered, missed.gone_since), (0, Some(3.0)));
        assert!(missed.why().contains("nobody was there any more"), "{}", missed.why());
        missed.note(None, 5.0);
        missed.note(Some(&anyhow::anyhow!("no answer within 5s")), 6.0);
        assert_eq!((missed.unanswered, missed.gone_since), (1, None));
        assert!(missed.why().contains("1 readings were not answered"), "{}", missed.why());
    }
}
