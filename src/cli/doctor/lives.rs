//! The lives of a process, from when it says that it was started: which one is judged, and whether it is one process at all.
//!
//! What a process says of its start does not change while it lives. Where it becomes later, the process was started anew.
//! Where it goes back, or the later start was long ago, readings came from another process: an address that leads to several.

use super::judge::LEAST_READINGS;
use super::track::{Time, Track};

/// When a process was started.
pub(super) const START: &str = "process_start_time_seconds";

/// Clocks of two machines may differ by so much.
const CLOCKS_DIFFER_SECONDS: f64 = 60.0;

/// What the window has of them.
#[derive(Debug, PartialEq)]
pub(super) enum Lives {
    /// One process, however often it was started anew.
    Of {
        restarts: usize,
        /// The longest one, where there are several of which one was read often enough.
        longest: Option<Time>,
    },
    /// So many processes answered in turn.
    Several(usize),
}

impl Lives {
    /// `began` is the Unix time from which on a restart would have been seen, where that is known.
    pub fn of(track: &Track, began: Option<f64>) -> Self {
        // When, until when, how often it was read, and the start that it told of.
        let mut lives: Vec<(Time, usize, f64)> = Vec::new();
        for (at, start) in track.points(START, None) {
            match lives.last_mut() {
                Some((time, readings, known)) if *known == start => (time.1, *readings) = (at, *readings + 1),
                _ => lives.push(((at, at), 1, start)),
            }
        }
        let mut starts: Vec<_> = lives.iter().map(|(.., start)| *start).collect();
        let is_old = |start: &f64| began.is_some_and(|began| *start < began - CLOCKS_DIFFER_SECONDS);
        let were_there = starts.len() > 1 && starts.iter().skip(1).any(is_old);
        starts.sort_by(f64::total_cmp);
        starts.dedup();
        if were_there || starts.len() < lives.len() {
            return Lives::Several(starts.len());
        }
        let longest = lives.iter().max_by_key(|(_, readings, _)| *readings).filter(|_| lives.len() > 1);
        let longest = longest.filter(|(_, readings, _)| *readings >= LEAST_READINGS).map(|(time, ..)| *time);
        Lives::Of { restarts: lives.len().saturating_sub(1), longest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::scrape::Series;

    fn lives(starts: &[f64], began: Option<f64>) -> Lives {
        let points = (0..).map(f64::from).zip(starts.iter().copied()).collect();
        let series = Series { name: START.into(), labels: Default::default(), points };
        Lives::of(&Track::of(vec![series], 0.0), began)
    }

    #[test]
    fn a_later_start_is_another_life_and_an_old_one_another_process() {
        let one = |restarts, longest| Lives::Of { restarts, longest };
        for (starts, began, expected) in [
            (&[][..], None, one(0, None)),
            (&[5.0, 5.0, 5.0], Some(900.0), one(0, None)),
            (&[5.0, 5.0, 5.0, 1003.0], Some(1000.0), one(1, Some((0.0, 2.0)))),
            (&[5.0, 1001.0, 1001.0, 1001.0, 1001.0, 1006.0], Some(1000.0), one(2, Some((1.0, 4.0)))),
            (&[5.0, 1001.0, 1003.0, 1003.0], Some(1000.0), one(2, None)),
            // A pod that was replaced by one on a machine whose clock is late.
            (&[1000.0, 1000.0, 1000.0, 990.0], None, one(1, Some((0.0, 2.0)))),
            (&[5.0, 9.0, 5.0, 9.0], None, Lives::Several(2)),
            (&[5.0, 5.0, 9.0, 9.0], Some(1000.0), Lives::Several(2)),
        ] {
            assert_eq!(lives(starts, began), expected, "{starts:?}");
        }
    }
}
