//! When profiles began and ended: that takes memory, which is kept, and processor time, neither of which is the worker's doing.
//!
//! While it only samples, a profile costs next to nothing, and a worker may do so from its start to its end: those times count.

use super::track::{Time, Track};

/// 1 while one samples. When it has sampled, names are looked up, and only then is it counted.
const SAMPLING: &str = "weir_profile_sampling";
pub(super) const ENDED: &str = "weir_profiles_total";
const OUTCOMES: [&str; 3] = ["taken", "abandoned", "failed"];

/// The first one of a process reads the program's unwind tables, which may take some seconds, and only then samples.
const BEGINS_WITHIN_SECONDS: f64 = 10.0;

/// The times between two readings in which one began or ended, and those right after them.
pub(super) fn times(track: &Track) -> Vec<Time> {
    let ended: Vec<f64> = OUTCOMES.iter().flat_map(|outcome| rises_at(track, outcome)).collect();
    let (mut times, mut looks_up, mut is_counted) = (Vec::new(), false, false);
    let (mut just_changed, mut begins_until) = (false, f64::NEG_INFINITY);
    for pair in track.points(SAMPLING, None).windows(2) {
        let [(from, before), (to, now)] = [pair[0], pair[1]];
        let has_ended = ended.contains(&to);
        if now > before {
            (looks_up, is_counted, begins_until) = (false, false, to + BEGINS_WITHIN_SECONDS);
        }
        is_counted |= has_ended;
        looks_up = (looks_up || now < before) && !is_counted;
        let changes = now != before || has_ended || looks_up;
        if changes || just_changed || from < begins_until {
            times.push((from, to));
        }
        just_changed = changes;
    }
    times
}

/// At which readings there was one more.
fn rises_at(track: &Track, outcome: &str) -> Vec<f64> {
    let points = track.points(ENDED, Some(("outcome", outcome)));
    points.windows(2).filter(|pair| pair[1].1 > pair[0].1).map(|pair| pair[1].0).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cli::scrape::Series;

    fn times_of(sampling: &[f64], taken: &[f64]) -> Vec<f64> {
        let series = |name: &str, labels: BTreeMap<String, String>, values: &[f64]| {
            let points = (0..).map(|index| 5.0 * f64::from(index)).zip(values.iter().copied()).collect();
            Series { name: name.into(), labels, points }
        };
        let outcome = BTreeMap::from([("outcome".to_owned(), "taken".to_owned())]);
        let all = vec![series(SAMPLING, BTreeMap::new(), sampling), series(ENDED, outcome, taken)];
        let times = times(&Track::of(all, 0.0));
        assert!(times.iter().all(|(from, to)| to - from == 5.0));
        times.iter().map(|(_, to)| to / 5.0).collect()
    }

    #[test]
    fn the_beginning_and_the_end_of_a_profile_do_not_count_and_what_it_samples_does() {
        assert!(times_of(&[0.0; 5], &[7.0; 5]).is_empty());
        assert!(times_of(&[1.0; 5], &[7.0; 5]).is_empty(), "it profiles itself all the time");
        let long =
            times_of(&[0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], &[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        assert_eq!(long, [1.0, 2.0, 3.0, 5.0, 6.0, 7.0], "names are looked up until it is counted");
        let between_two_readings = times_of(&[0.0; 5], &[0.0, 0.0, 1.0, 1.0, 1.0]);
        assert_eq!(between_two_readings, [2.0, 3.0]);
        // One that is given up is counted before it ends.
        let given_up = times_of(&[0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], &[0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(given_up, [1.0, 2.0, 3.0, 4.0]);
    }
}
