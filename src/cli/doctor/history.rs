//! Some workers over a time that has passed, from a Prometheus that scraped them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};

use super::judge::LEAST_READINGS;
use super::observation::{Observation, Runs};
use super::rules::LEAST_COMPARED;
use super::track::Track;
use super::{Args, COMMAND, LONGEST_RANGE, observe, unix};
use crate::cli::scrape::{Prometheus, Series, of_instances};

/// Workers at a time: a larger pool is looked at in parts.
const MOST_WORKERS: usize = 50;

/// What a Prometheus itself says of each target: 1 when it was read, 0 when not.
const UP: &str = "up";

/// So many readings in a row that fail are no chance.
const MISSED: f64 = 3.0;

/// Points that a range is read at, and as many before it.
const POINTS: f64 = 100.0;

/// Steps are not shorter: nobody scrapes more often.
const SHORTEST_STEP: f64 = 1.0;

pub(super) async fn read(url: &str, args: &Args) -> anyhow::Result<Vec<Observation>> {
    if !(Duration::from_secs(10)..=LONGEST_RANGE).contains(&args.range) {
        bail!("--range {} is not 10s to 31 days", humantime::format_duration(args.range));
    }
    if let Some(from) = args.from.filter(|from| *from > SystemTime::now()) {
        bail!("--from {} is in the future", humantime::format_rfc3339_seconds(from));
    }
    let prometheus = Prometheus::new(COMMAND, url)?;
    let range = args.range.as_secs_f64();
    let from = args.from.map_or_else(|| unix(SystemTime::now()) - range, unix);
    let to = from + range;
    let workers = workers(&prometheus, args, range, to).await?;

    let selected = of_instances(workers.keys().map(String::as_str));
    let scraped = format!("count_over_time({}{{{selected}}}[{}s])", observe::READ, range.ceil());
    let names: Vec<_> = observe::names().chain([UP.to_owned()]).collect();
    let all = format!("{{__name__=~\"{}\",{selected}}}", names.join("|"));
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
        let track = Track::of(of_one_target(by_instance.remove(&instance).unwrap_or_default()), from);
        let (readings, unread) = (readings.get(&instance).copied().unwrap_or_default(), unread_for(&track));
        let seen = Observation::of_process(track, None, &instance, &pool)?;
        let interval = seen.seconds / readings.max(1) as f64;
        let unread_seconds = unread.filter(|seconds| *seconds >= MISSED * interval).unwrap_or_default();
        anyhow::Ok(Observation { readings, unread_seconds, ..seen })
    };
    let seen = workers.into_iter().map(observe).collect::<anyhow::Result<Vec<_>>>()?;
    let (mut seen, seldom): (Vec<_>, Vec<_>) =
        seen.into_iter().partition(|seen| seen.readings >= LEAST_READINGS && seen.seconds > 0.0);
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

/// For how long it was not read at the end of the window, where it is known. One that was taken out of the list of targets is
/// none of these.
fn unread_for(track: &Track) -> Option<f64> {
    let up = track.points(UP, None);
    let (end, _) = up.last()?;
    let (since, _) = up.iter().rev().take_while(|(_, is_up)| *is_up == 0.0).last()?;
    Some(end - since)
}

/// Of a worker that is scraped twice, by two jobs or by two Prometheus that are asked as one: what one of them has read, the one
/// with the most of it.
fn of_one_target(series: Vec<Series>) -> Vec<Series> {
    // It has no labels but those that say where it was read.
    let of_target = series.iter().filter(|series| series.name == observe::READ);
    let Some(target) = of_target.max_by_key(|series| series.points.len()).map(|series| series.labels.clone()) else {
        return series;
    };
    let is_of_target = |series: &Series| target.iter().all(|(label, value)| series.labels.get(label) == Some(value));
    series.into_iter().filter(is_of_target).collect()
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

/// Each integration on a worker with the same one on the others of its pool: with the one of them of which as many are slower as are
/// faster, or of two in the middle with the slower one. A sum of all would be that of the fastest, which end the most.
fn compare(seen: &mut [Observation]) {
    let of = |seen: &Observation, name: &str| Some((seen.pool.clone(), seen.integrations.get(name)?.took));
    let ok_seconds = |runs: &Runs| runs.ok().mean_seconds().unwrap_or_default();
    let names: BTreeSet<String> = seen.iter().flat_map(|seen| seen.integrations.keys().cloned()).collect();
    for name in names {
        let all: Vec<_> = seen.iter().map(|seen| of(seen, &name)).collect();
        for (index, seen) in seen.iter_mut().enumerate() {
            let Some(integration) = seen.integrations.get_mut(&name) else { continue };
            let others = all.iter().enumerate().filter(|(other, _)| *other != index).filter_map(|(_, of)| of.as_ref());
            let of_pool = others.filter(|(pool, _)| *pool == seen.pool).map(|(_, runs)| *runs);
            let mut others: Vec<_> = of_pool.filter(|runs| runs.ok().count >= LEAST_COMPARED).collect();
            others.sort_by(|one, other| ok_seconds(one).total_cmp(&ok_seconds(other)));
            integration.peers = others.get(others.len() / 2).copied().unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::observation::{Integration, Mean};
    use super::*;

    #[test]
    fn a_worker_that_is_scraped_twice_counts_once() {
        let series = |name: &str, labels: &[(&str, &str)], points: usize| {
            let labels = labels.iter().map(|(label, value)| (label.to_string(), value.to_string())).collect();
            Series { name: name.into(), labels, points: vec![(1.0, 1.0); points] }
        };
        let one = [("instance", "w:1"), ("job", "weir")];
        let other = [("instance", "w:1"), ("job", "all-pods")];
        let read = vec![
            series(observe::READ, &one, 9),
            series(observe::READ, &other, 3),
            series("weir_tasks_total", &[one[0], one[1], ("outcome", "ok")], 9),
            series("weir_tasks_total", &[other[0], other[1], ("outcome", "ok")], 3),
        ];
        let kept = of_one_target(read);
        assert_eq!(kept.len(), 2);
        assert!(kept.iter().all(|series| series.labels["job"] == "weir"), "{kept:?}");
        assert!(of_one_target(Vec::new()).is_empty());
    }

    #[test]
    fn for_how_long_a_worker_was_not_read_is_counted_from_the_end() {
        let since = |up: &[f64]| {
            let points = (0..).map(|at| f64::from(at) * 15.0).zip(up.iter().copied()).collect();
            unread_for(&Track::of(vec![Series { name: UP.into(), labels: BTreeMap::new(), points }], 0.0))
        };
        assert_eq!((since(&[]), since(&[1.0, 1.0]), since(&[0.0, 0.0, 1.0])), (None, None, None));
        assert_eq!((since(&[1.0, 0.0]), since(&[0.0, 1.0, 0.0, 0.0, 0.0])), (Some(0.0), Some(30.0)));
    }

    fn worker(count: f64, seconds: f64, failed: Mean) -> Observation {
        let took = Runs { count, seconds, failed };
        let integrations = BTreeMap::from([("bank".to_owned(), Integration { took, ..Integration::default() })]);
        Observation { integrations, ..Observation::default() }
    }

    fn peers(mut seen: Vec<Observation>) -> Vec<Option<f64>> {
        compare(&mut seen);
        seen.iter().map(|seen| seen.integrations["bank"].peers.ok().mean_seconds()).collect()
    }

    #[test]
    fn an_integration_is_compared_with_itself_on_the_worker_in_the_middle_of_the_others() {
        let none = Mean::default();
        let of = [(20.0, 2.5), (20.0, 40.0), (40.0, 10.0), (32.0, 12.0)];
        let seen = of.map(|(count, seconds)| worker(count, seconds, none)).into();
        assert_eq!(peers(seen), [Some(0.375), Some(0.25), Some(0.375), Some(0.25)]);
        assert_eq!(peers(vec![worker(20.0, 2.0, none)]), [None]);
        let elsewhere = Observation { pool: "single".into(), ..worker(20.0, 2.0, none) };
        assert_eq!(peers(vec![worker(20.0, 20.0, none), elsewhere]), [None, None], "another pool has another N");
    }

    #[test]
    fn a_worker_whose_tasks_fail_at_once_makes_the_others_look_slow_to_nobody() {
        let none = Mean::default();
        // All of them fail there, or all but a few, in a millisecond each, and so there are many.
        let all = worker(10_000.0, 10.0, Mean { count: 10_000.0, seconds: 10.0 });
        assert_eq!(peers(vec![all, worker(30.0, 30.0, none)]), [Some(1.0), None]);
        let most = worker(10_040.0, 50.0, Mean { count: 10_000.0, seconds: 10.0 });
        assert_eq!(peers(vec![most, worker(30.0, 30.0, none)]), [Some(1.0), Some(1.0)]);
    }
}
