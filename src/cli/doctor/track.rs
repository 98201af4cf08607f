//! Readings of one worker over time, and what they come to in a window of it.
//!
//! Counters may begin anew with the process: what they rose by is the sum of their rises, and after a fall the whole
//! value, as Prometheus' `increase` has it, without its extrapolation.

use std::collections::{BTreeMap, BTreeSet};

use super::observation::{Level, Mean};
use crate::cli::scrape::{Sample, Series};

/// All series of a worker.
#[derive(Debug, Default)]
pub(super) struct Track {
    series: Vec<Series>,
    /// Where each series is, for readings that come one after the other.
    known: BTreeMap<(String, BTreeMap<String, String>), usize>,
    /// Where the window begins; what lies before it is what is compared with.
    from: f64,
}

/// Which of a metric's series: those with this label.
type With<'a> = Option<(&'a str, &'a str)>;

impl Track {
    /// Nothing read yet.
    pub fn new() -> Self {
        Track::default()
    }

    /// Of whole series; the window begins at `from`.
    pub fn of(series: Vec<Series>, from: f64) -> Self {
        Track { series, known: BTreeMap::new(), from }
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
        &series.points[begin..]
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
        self.of_metric(name, with).map(|series| risen(self.window(series))).sum()
    }

    /// What a counter rose by before the window: as far back as it was read, or since the process began where it was not.
    fn rise_before(&self, name: &str, with: With) -> f64 {
        let of = |series: &Series| {
            let begin = series.points.partition_point(|(at, _)| *at < self.from);
            match begin {
                0 => series.points.first().map_or(0.0, |(_, value)| *value),
                // Up to the first point of the window, where its own rise begins.
                _ => risen(&series.points[..series.points.len().min(begin + 1)]),
            }
        };
        self.of_metric(name, with).map(of).sum()
    }

    /// The rises of a counter that are more than 0, by a label.
    pub fn rises(&self, name: &str, label: &str, with: With) -> BTreeMap<String, f64> {
        let mut rises = BTreeMap::new();
        for series in self.of_metric(name, with) {
            let rise = risen(self.window(series));
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

    /// The same before the window.
    pub fn mean_before(&self, histogram: &str, with: With) -> Mean {
        let part = |part: &str| self.rise_before(&format!("{histogram}_{part}"), with);
        Mean { count: part("count"), seconds: part("sum") }
    }

    /// A gauge, its series with the label added up at each moment; none where there is none.
    pub fn level(&self, name: &str, with: With) -> Option<Level> {
        let mut points: Vec<(f64, f64)> = Vec::new();
        for series in self.of_metric(name, with) {
            for (at, value) in self.window(series).iter().filter(|(_, value)| value.is_finite()) {
                match points.binary_search_by(|(known, _)| known.total_cmp(at)) {
                    Ok(index) => points[index].1 += value,
                    Err(index) => points.insert(index, (*at, *value)),
                }
            }
        }
        level(&points)
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
    Some(Level { first: *first, last: *last, mean, max, grown: slope * (to - from) })
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
        assert_eq!((lived.mean_before("t", None).count, lived.mean("t", None).count), (10.0, 41.0));
        assert_eq!((seen.mean_before("t", None).count, seen.mean("t", None).count), (40.0, 1.0));
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
