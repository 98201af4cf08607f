//! Some workers over a time that has passed, from a Prometheus that scraped them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};

use super::judge::LEAST_READINGS;
use super::observation::{Mean, Observation};
use super::track::Track;
use super::{Args, COMMAND, LONGEST_RANGE, observe};
use crate::cli::scrape::{Prometheus, Series, of_instances};

/// Workers at a time: a larger pool is looked at in parts.
const MOST_WORKERS: usize = 50;

/// Points that a range is read at, and as many before it.
const POINTS: f64 = 100.0;

/// Steps are not shorter: nobody scrapes more often.
const SHORTEST_STEP: f64 = 1.0;

pub(super) async fn read(url: &str, args: &Args) -> anyhow::Result<Vec<Observation>> {
    if !(Duration::from_secs(10)..=LONGEST_RANGE).contains(&args.range) {
        bail!("--range {} is not 10s to 31 days", humantime::format_duration(args.range));
    }
    let prometheus = Prometheus::new(COMMAND, url)?;
    let range = args.range.as_secs_f64();
    let from = args.from.map_or_else(|| unix(SystemTime::now()) - range, unix);
    let to = from + range;
    let workers = workers(&prometheus, args, range, to).await?;

    let selected = of_instances(workers.keys().map(String::as_str));
    let scraped = format!("count_over_time({}{{{selected}}}[{}s])", observe::READ, range.ceil());
    let all = format!("{{__name__=~\"{}\",{selected}}}", observe::names().collect::<Vec<_>>().join("|"));
    let step = (range / POINTS).max(SHORTEST_STEP);
    let (scraped, series) =
        tokio::try_join!(prometheus.instant(&scraped, Some(to)), prometheus.range(&all, from - range, to, step))?;
    let readings: BTreeMap<_, _> = scraped
        .iter()
        .filter_map(|sample| Some((sample.labels.get("instance")?.clone(), sample.value as usize)))
        .collect();
    let mut by_instance: BTreeMap<String, Vec<Series>> = BTreeMap::new();
    for series in series {
        if let Some(instance) = series.labels.get("instance") {
            by_instance.entry(instance.clone()).or_default().push(series);
        }
    }
    let observe = |(instance, pool): (String, String)| {
        let track = Track::of(by_instance.remove(&instance).unwrap_or_default(), from);
        let readings = readings.get(&instance).copied().unwrap_or_default();
        Observation { readings, ..Observation::of(&track, &instance, &pool) }
    };
    let (mut seen, seldom): (Vec<_>, Vec<_>) =
        workers.into_iter().map(observe).partition(|seen| seen.readings >= LEAST_READINGS && seen.seconds > 0.0);
    if seen.is_empty() {
        let read: Vec<_> = seldom.iter().map(|seen| format!("{} {} times", seen.instance, seen.readings)).collect();
        bail!(
            "{url} has too few readings in {}: {}; a longer --range has more",
            humantime::format_duration(args.range),
            read.join(", ")
        );
    }
    compare(&mut seen);
    Ok(seen)
}

/// The workers that are asked for and were scraped: their pools by their instances.
async fn workers(
    prometheus: &Prometheus,
    args: &Args,
    range: f64,
    to: f64,
) -> anyhow::Result<BTreeMap<String, String>> {
    let known = format!("last_over_time({}{{role=\"worker\"}}[{}s])", observe::ROLE, range.ceil());
    let known: BTreeMap<_, _> = prometheus
        .instant(&known, Some(to))
        .await?
        .into_iter()
        .filter_map(|mut sample| Some((sample.labels.remove("instance")?, sample.labels.remove("pool")?)))
        .collect();
    if known.is_empty() {
        let range = humantime::format_duration(args.range);
        bail!("{} knows no worker of weir in {range}: it has no weir_pool_info{{role=\"worker\"}}", prometheus.url());
    }
    if let Some(instance) = args.instance.iter().find(|instance| !known.contains_key(*instance)) {
        let known: Vec<_> = known.keys().take(10).map(String::as_str).collect();
        bail!("{} knows no worker {instance}: it has {}", prometheus.url(), known.join(", "));
    }
    let pools: std::collections::BTreeSet<_> = known.values().cloned().collect();
    let is_asked = |instance: &String, pool: &String| {
        let of_pool = args.pool.as_ref().is_none_or(|asked| asked.as_str() == pool);
        of_pool && (args.instance.is_empty() || args.instance.contains(instance))
    };
    let asked: BTreeMap<_, _> = known.into_iter().filter(|(instance, pool)| is_asked(instance, pool)).collect();
    match asked.len() {
        0 => {
            let pool = args.pool.as_ref().context("instances are known")?;
            let pools: Vec<_> = pools.iter().map(String::as_str).collect();
            bail!("{} knows no such worker in pool {pool}: its workers are in {}", prometheus.url(), pools.join(", "))
        }
        1..=MOST_WORKERS => Ok(asked),
        many => bail!("{many} workers are more than {MOST_WORKERS}: name a --pool or some --instance"),
    }
}

/// Each integration on a worker with the same one on the others.
fn compare(seen: &mut [Observation]) {
    let mut all: BTreeMap<String, Mean> = BTreeMap::new();
    for (name, of) in seen.iter().flat_map(|seen| &seen.integrations) {
        let sum = all.entry(name.clone()).or_default();
        (sum.count, sum.seconds) = (sum.count + of.took.count, sum.seconds + of.took.seconds);
    }
    for (name, of) in seen.iter_mut().flat_map(|seen| &mut seen.integrations) {
        let sum = all.get(name).copied().unwrap_or_default();
        of.peers = Mean { count: sum.count - of.took.count, seconds: sum.seconds - of.took.seconds };
    }
}

fn unix(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::super::observation::Integration;
    use super::*;

    #[test]
    fn an_integration_is_compared_with_itself_on_the_others() {
        let of = |count, seconds| {
            let took = Mean { count, seconds };
            let integrations = BTreeMap::from([("bank".to_owned(), Integration { took, ..Integration::default() })]);
            Observation { integrations, ..Observation::default() }
        };
        let mut seen = [of(10.0, 1.0), of(20.0, 40.0), of(30.0, 3.0)];
        compare(&mut seen);
        let peers = |index: usize| seen[index].integrations["bank"].peers;
        assert_eq!([peers(0), peers(1)], [Mean { count: 50.0, seconds: 43.0 }, Mean { count: 40.0, seconds: 4.0 }]);
    }
}
