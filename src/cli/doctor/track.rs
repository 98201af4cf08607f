//! Readings of one worker over time, and what they come to in a window of it.
//!
//! Counters may begin anew with the process: what they rose by is the sum of their rises, and after a fall the whole
//! value, as Prometheus' `increase` has it, without its extrapolation.
//!
//! The window is of one life of the process, where it was started anew: the longest one.

use std::collections::{BTreeMap, BTreeSet};

use super::observation::{Level, Mean};
use crate::cli::scrape::{Sample, Series};

/// All series of a worker.
#[derive(Debug)]
pub(super) struct Track {
    series: Vec<Series>,
    /// Where each series is, for readings that come one after the other.
    known: BTreeMap<(String, BTreeMap<String, String>), usize>,
    /// Where the window begins and ends; what lies before it is what is compared with.
    from: f64,
    to: f64,
    /// Whether what a series had at its first reading belongs to what came before.
    is_since_start: bool,
}

/// When, and until when.
pub(super) type Time = (f64, f64);

/// In the window; or before it: as far back as it was read, or since the process began where it was not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Before,
    Window,
}

/// Which of a metric's series: those with this label.
pub(super) type With<'a> = Option<(&'a str, &'a str)>;

impl Track {
    /// Nothing read yet.
    pub fn new() -> Self {
        Track { is_since_start: true, ..Track::of(Vec::new(), f64::NEG_INFINITY) }
    }

    /// Of whole series; the window begins at `from`.
    pub fn of(series: Vec<Series>, from: f64) -> Self {
        Track { series, known: BTreeMap::new(), from, to: f64::INFINITY, is_since_start: false }
    }

    /// The same, with another window in it.
    pub fn within(self, (from, to): Time) -> Self {
        Track { from, to, ..self }
    }

    /// Adds a reading.
    pub fn add(&mut self, samples: Vec<Sample>, at: f64) {
        for Sample { name, labels, value } in samples {
            let next = self.series.len();
            let index = *self.known.entry((name.clone(), labels.clone())).or_insert(next);
            if index == next {
                self.series.push(Series { name, labels, points: Vec::new() });
            }
            self.series[index].points.push((at, value));
        }
    }

    fn of_metric<'a>(&'a self, name: &'a str, with: With<'a>) -> impl Iterator<Item = &'a Series> {
        let has = move |series: &&Series| {
            series.name == name
                && with.is_none_or(|(label, value)| series.labels.get(label).is_some_and(|has| has == value))
        };
        self.series.iter().filter(has)
    }

    fn window<'a>(&self, series: &'a Series) -> &'a [(f64, f64)] {
        let begin = series.points.partition_point(|(at, _)| *at < self.from);
        let end = series.points.partition_point(|(at, _)| *at <= self.to);
        &series.points[begin..end.max(begin)]
    }

    /// The values of a label.
    pub fn values<'a>(&'a self, name: &'a str, label: &str) -> BTreeSet<&'a str> {
        self.of_metric(name, None).filter_map(|series| series.labels.get(label)).map(String::as_str).collect()
    }

    /// When it was read in the window: how often, and from when to when.
    pub fn readings(&self, name: &str) -> (usize, f64) {
        let longest = self.of_metric(name, None).map(|series| self.window(series)).max_by_key(|points| points.len());
        match longest {
            Some(points @ [(first, _), .., (last, _)]) => (points.len(), last - first),
            Some(points) => (points.len(), 0.0),
            None => (0, 0.0),
        }
    }

    /// What a counter rose by in the window, all its series with the label together.
    pub fn rise(&self, name: &str, with: With) -> f64 {
        self.rise_in(When::Window, name, with)
    }

    /// The same, then.
    pub fn rise_in(&self, when: When, name: &str, with: With) -> f64 {
        self.of_metric(name, with).map(|series| self.risen_in(when, series)).sum()
    }

    fn risen_in(&self, when: When, series: &Series) -> f64 {
        let begin = series.points.partition_point(|(at, _)| *at < self.from);
        match when {
            When::Window => risen(self.window(series)),
            When::Before => {
                let is_all = begin == 0 || self.is_since_start;
                let first = series.points.first().filter(|_| is_all).map_or(0.0, |(_, value)| *value);
                // Up to the first point of the window, where its own rise begins.
                first + risen(&series.points[..series.points.len().min(begin + 1)])
            }
        }
    }

    /// The rises of a counter that are more than 0, by a label.
    pub fn rises(&self, name: &str, label: &str, with: With) -> BTreeMap<String, f64> {
        self.rises_in(When::Window, name, label, with)
    }

    /// The same, then.
    pub fn rises_in(&self, when: When, name: &str, label: &str, with: With) -> BTreeMap<String, f64> {
        let mut rises = BTreeMap::new();
        for series in self.of_metric(name, with) {
            let rise = self.risen_in(when, series);
            if let (Some(value), true) = (series.labels.get(label), rise > 0.0) {
                *rises.entry(value.clone()).or_default() += rise;
            }
        }
        rises
    }

    /// What a histogram's sum and count rose by.
    pub fn mean(&self, histogram: &str, with: With) -> Mean {
        let part = |part: &str| self.rise(&format!("{histogram}_{part}"), with);
        Mean { count: part("count"), seconds: part("sum") }
    }

    /// What a histogram's buckets rose by then: each bound, and how many were not above it.
    pub fn buckets(&self, when: When, histogram: &str, with: With) -> Vec<(f64, f64)> {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for series in self.of_metric(&format!("{histogram}_bucket"), with) {
            let Some(bound) = series.labels.get("le").and_then(|bound| bound.parse::<f64>().ok()) else { continue };
            let rise = self.risen_in(when, series);
            match buckets.binary_search_by(|(known, _)| known.total_cmp(&bound)) {
                Ok(index) => buckets[index].1 += rise,
                Err(index) => buckets.insert(index, (bound, rise)),
            }
        }
        buckets
    }

    /// A gauge, its series with the label added up at each moment; none where there is none.
    pub fn level(&self, name: &str, with: With) -> Option<Level> {
        level(&self.points(name, with))
    }

    /// The same, without what it grew by in those times.
    pub fn level_without(&self, name: &str, times: &[Time]) -> Option<Level> {
        let points = self.points(name, None);
        let (all, mut rest, mut left_out) = (level(&points)?, points.clone(), 0.0);
        for (pair, point) in points.windows(2).zip(&mut rest[1..]) {
            if is_in(times, pair) {
                left_out += pair[1].1 - pair[0].1;
            }
            point.1 -= left_out;
        }
        Some(Level { grown: level(&rest)?.grown, ..all })
    }

    /// The level of a gauge at the readings that do not end one of those times; at all where there are no others.
    pub fn level_outside(&self, name: &str, with: With, times: &[Time]) -> Option<Level> {
        let points = self.points(name, with);
        let outside = points.iter().filter(|(at, _)| !times.iter().any(|(_, end)| end == at));
        level(&outside.copied().collect::<Vec<_>>()).or_else(|| level(&points))
    }

    /// What a counter rose by outside those times.
    pub fn rise_outside(&self, name: &str, with: With, times: &[Time]) -> f64 {
        let points = self.points(name, with);
        points.windows(2).filter(|pair| !is_in(times, pair)).map(risen).sum()
    }

    /// What a counter rose by per second outside those times; in the whole window where nothing is outside.
    pub fn per_second_outside(&self, name: &str, times: &[Time]) -> f64 {
        let points = self.points(name, None);
        let outside = |times: &[Time]| {
            let pairs = points.windows(2).filter(|pair| !is_in(times, pair));
            pairs.fold((0.0, 0.0), |(rise, seconds), pair| (rise + risen(pair), seconds + pair[1].0 - pair[0].0))
        };
        match (outside(times), outside(&[])) {
            ((rise, seconds), _) if seconds > 0.0 => rise / seconds,
            (_, (rise, seconds)) if seconds > 0.0 => rise / seconds,
            _ => 0.0,
        }
    }

    /// What a gauge or a counter was at each moment of the window, its series with the label added up.
    pub fn points(&self, name: &str, with: With) -> Vec<(f64, f64)> {
        let mut points: Vec<(f64, f64)> = Vec::new();
        for series in self.of_metric(name, with) {
            for (at, value) in self.window(series).iter().filter(|(_, value)| value.is_finite()) {
                match points.binary_search_by(|(known, _)| known.total_cmp(at)) {
                    Ok(index) => points[index].1 += value,
                    Err(index) => points.insert(index, (*at, *value)),
                }
            }
        }
        points
    }

    /// The mean of a gauge, 0 where there is none.
    pub fn average(&self, name: &str, with: With) -> f64 {
        self.level(name, with).map_or(0.0, |level| level.mean)
    }

    /// Its last value, 0 where there is none.
    pub fn last(&self, name: &str) -> f64 {
        self.level(name, None).map_or(0.0, |level| level.last)
    }

    /// The share of the moments in which a gauge had this value.
    pub fn share(&self, name: &str, with: With, value: f64) -> f64 {
        let points: Vec<_> = self.of_metric(name, with).flat_map(|series| self.window(series)).collect();
        if points.is_empty() {
            return 0.0;
        }
        points.iter().filter(|(_, has)| *has == value).count() as f64 / points.len() as f64
    }
}

fn is_in(times: &[Time], pair: &[(f64, f64)]) -> bool {
    times.contains(&(pair[0].0, pair[1].0))
}

fn risen(points: &[(f64, f64)]) -> f64 {
    let rises = points.windows(2).map(|pair| if pair[1].1 >= pair[0].1 { pair[1].1 - pair[0].1 } else { pair[1].1 });
    rises.sum()
}

fn level(points: &[(f64, f64)]) -> Option<Level> {
    let ([(from, first), ..], [.., (to, last)]) = (points, points) else { return None };
    let count = points.len() as f64;
    let mean = points.iter().map(|(_, value)| value).sum::<f64>() / count;
    let mean_at = points.iter().map(|(at, _)| at).sum::<f64>() / count;
    let (mut both, mut square) = (0.0, 0.0);
    for (at, value) in points {
        both += (at - mean_at) * (value - mean);
        square += (at - mean_at).powi(2);
    }
    let slope = if square > 0.0 { both / square } else { 0.0 };
    let max = points.iter().map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max);
    // What came and went is no growth.
    let (along, between) = (slope * (to - from), last - first);
    let grown = if along > 0.0 { along.min(between).max(0.0) } else { along };
    Some(Level { first: *first, last: *last, mean, max, grown })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &str, labels: &[(&str, &str)], points: &[(f64, f64)]) -> Series {
        let labels = labels.iter().map(|(label, value)| (label.to_string(), value.to_string())).collect();
        Series { name: name.into(), labels, points: points.to_vec() }
    }

    #[test]
    fn a_counter_that_begins_anew_has_risen_by_what_it_has() {
        let track = Track::of(
            vec![
                series("a_total", &[("of", "x")], &[(1.0, 90.0), (2.0, 100.0), (3.0, 4.0), (4.0, 6.0)]),
                series("a_total", &[("of", "y")], &[(1.0, 5.0), (4.0, 5.0)]),
            ],
            0.0,
        );
        assert_eq!((track.rise("a_total", None), track.rise("a_total", Some(("of", "x")))), (16.0, 16.0));
        assert_eq!(track.rises("a_total", "of", None), BTreeMap::from([("x".to_owned(), 16.0)]));
        assert_eq!(track.readings("a_total"), (4, 3.0));
    }

    #[test]
    fn what_was_before_is_read_or_began_with_the_process() {
        let points = [(1.0, 10.0), (2.0, 20.0), (3.0, 50.0), (4.0, 51.0)];
        let all = || vec![series("t_count", &[], &points), series("t_sum", &[], &points)];
        let (lived, seen) = (Track::of(all(), 0.0), Track::of(all(), 3.0));
        assert_eq!((lived.rise_in(When::Before, "t_sum", None), lived.rise("t_count", None)), (10.0, 41.0));
        assert_eq!((seen.rise_in(When::Before, "t_sum", None), seen.rise("t_count", None)), (40.0, 1.0));
        // What is watched has all since the start before its window, wherever that begins and ends.
        let watched = Track { is_since_start: true, ..Track::of(all(), 0.0) }.within((2.0, 3.0));
        assert_eq!((watched.rise_in(When::Before, "t_sum", None), watched.rise("t_sum", None)), (20.0, 30.0));
    }

    #[test]
    fn buckets_are_added_up_by_their_bounds() {
        let of = |le: &str, parallelism: &str, points: &[(f64, f64)]| {
            series("t_bucket", &[("le", le), ("parallelism", parallelism)], points)
        };
        let track = Track::of(
            vec![
                of("0.25", "1", &[(1.0, 5.0), (2.0, 6.0)]),
                of("+Inf", "1", &[(1.0, 9.0), (2.0, 12.0)]),
                of("0.25", "2-15", &[(1.0, 1.0), (2.0, 3.0)]),
            ],
            0.0,
        );
        assert_eq!(track.buckets(When::Window, "t", None), [(0.25, 3.0), (f64::INFINITY, 3.0)]);
        assert_eq!(track.buckets(When::Before, "t", None), [(0.25, 6.0), (f64::INFINITY, 9.0)]);
    }

    #[test]
    fn what_comes_and_goes_or_falls_into_a_time_that_is_left_out_is_no_growth() {
        let of = |values: [f64; 5]| {
            let points: Vec<_> = (1..).map(f64::from).zip(values).collect();
            Track::of(vec![series("a", &[], &points)], 0.0)
        };
        assert_eq!(of([1.0, 1.0, 9.0, 9.0, 2.0]).level("a", None).map(|level| level.grown), Some(1.0));
        assert_eq!(of([1.0, 1.0, 9.0, 9.0, 1.0]).level("a", None).map(|level| level.grown), Some(0.0));
        let jumps = of([10.0, 10.0, 80.0, 80.0, 80.0]);
        let level = jumps.level_without("a", &[(2.0, 3.0)]).expect("read");
        assert_eq!((level.first, level.last, level.grown), (10.0, 80.0, 0.0));
        assert_eq!(jumps.level_without("a", &[]), jumps.level("a", None));
        assert_eq!(
            jumps.level_outside("a", None, &[(2.0, 3.0), (3.0, 4.0), (4.0, 5.0)]).map(|level| level.max),
            Some(10.0)
        );
        assert_eq!(jumps.per_second_outside("a", &[(2.0, 3.0)]), 0.0);
        let rises = [&[][..], &[(2.0, 3.0)]].map(|times| jumps.rise_outside("a", None, times));
        assert_eq!(rises, [70.0, 0.0]);
        let all: Vec<_> = (1..5).map(|at| (f64::from(at), f64::from(at + 1))).collect();
        assert_eq!(jumps.per_second_outside("a", &all), 17.5);
        assert_eq!(
            jumps.level_outside("a", None, &[(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 5.0)]),
            jumps.level("a", None)
        );
    }

    #[test]
    fn a_level_is_the_sum_of_its_series_at_each_moment() {
        let track = Track::of(
            vec![
                series("held", &[("priority", "batch")], &[(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]),
                series("held", &[("priority", "interactive")], &[(1.0, 1.0), (2.0, 1.0), (3.0, 1.0)]),
            ],
            0.0,
        );
        let level = track.level("held", None).expect("read");
        assert_eq!(level, Level { first: 2.0, last: 4.0, mean: 3.0, max: 4.0, grown: 2.0 });
        assert_eq!(track.level("other", None), None);
        assert!((track.share("held", Some(("priority", "batch")), 2.0) - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn readings_one_after_the_other_are_one_series_each() {
        let mut track = Track::new();
        for at in [1.0, 2.0] {
            track.add(vec![Sample { name: "a".into(), labels: BTreeMap::new(), value: at * 10.0 }], at);
        }
        assert_eq!((track.rise("a", None), track.readings("a")), (10.0, (2, 1.0)));
        assert_eq!(track.values("a", "label"), BTreeSet::new());
    }
}
