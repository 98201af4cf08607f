//! How often the same is said: so many lines in ten seconds, of each thing that is told apart.
//!
//! What is left out is counted, to be told once the ten seconds are over, whether or not it happens again: nothing is lost
//! without a trace. Time is divided into windows that begin with their first line. Deciding takes a short lock and one look
//! into a map; nothing is formatted for a line that is left out but the first of them, which stands for the others.
//!
//! The logger counts all lines so, by their place in the code and their integration. Who says what has a line each time it
//! happens, but may happen very often, keeps a lower bound of its own.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long is counted before it begins anew.
pub const WINDOW: Duration = Duration::from_secs(10);

/// Places that are told apart at a time; all beyond them count as one.
const MOST_PLACES: usize = 4_096;

/// Counts lines by their place, `K`. Those that are left out have one that stands for them, `E`.
pub struct Repeats<K, E> {
    /// Lines of one place that are written in each window; none is no limit.
    lines: Option<u32>,
    places: Mutex<HashMap<K, Count<E>>>,
}

struct Count<E> {
    since: Instant,
    written: u32,
    left_out: u64,
    /// The first that was left out.
    example: Option<E>,
}

/// What was left out of one place in one window.
#[derive(Debug, PartialEq, Eq)]
pub struct LeftOut<E> {
    /// What stands for them.
    pub example: E,
    /// How many they are.
    pub lines: u64,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is written.
    Write,
    /// It is counted.
    LeaveOut,
}

impl<K: Clone + Default + Eq + Hash, E> Repeats<K, E> {
    /// Writes at most `lines` of a place in each window; 0 is no limit.
    pub fn new(lines: u32) -> Self {
        Repeats { lines: (lines > 0).then_some(lines), places: Mutex::new(HashMap::new()) }
    }

    /// One more line of `place`, and what was left out of its window before, if that is over. `example` is asked for the
    /// first line that is left out. Where places are too many, what is new counts as the default one.
    pub fn count(&self, place: K, now: Instant, example: impl FnOnce() -> E) -> (Verdict, Option<LeftOut<E>>) {
        let Some(most) = self.lines else { return (Verdict::Write, None) };
        let mut places = self.places.lock();
        let place = if places.len() < MOST_PLACES || places.contains_key(&place) { place } else { K::default() };
        let count = places.entry(place.clone()).or_insert_with(|| Count::begin(now));
        let before = count.is_over(now).then(|| std::mem::replace(count, Count::begin(now)).left_out()).flatten();
        if count.written < most {
            count.written += 1;
            return (Verdict::Write, before);
        }
        count.left_out += 1;
        let is_first = count.example.is_none();
        drop(places);
        if is_first {
            // Without the lock: what is formatted here may be anything, and may log itself.
            let example = example();
            if let Some(count) = self.places.lock().get_mut(&place) {
                count.example.get_or_insert(example);
            }
        }
        (Verdict::LeaveOut, before)
    }

    /// What was left out in windows that are over, and forgets those.
    pub fn over(&self, now: Instant) -> Vec<LeftOut<E>> {
        self.take(|count| count.is_over(now))
    }

    /// What was left out and not told yet.
    pub fn rest(&self) -> Vec<LeftOut<E>> {
        self.take(|_| true)
    }

    fn take(&self, is_due: impl Fn(&Count<E>) -> bool) -> Vec<LeftOut<E>> {
        self.places.lock().extract_if(|_, count| is_due(count)).filter_map(|(_, count)| count.left_out()).collect()
    }
}

impl<E> Count<E> {
    fn begin(now: Instant) -> Self {
        Count { since: now, written: 0, left_out: 0, example: None }
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= WINDOW
    }

    fn left_out(self) -> Option<LeftOut<E>> {
        self.example.map(|example| LeftOut { example, lines: self.left_out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> String {
        "the first of them".to_owned()
    }

    #[test]
    fn what_is_said_too_often_is_left_out_and_told_once_the_window_is_over() {
        let (repeats, start) = (Repeats::new(2), Instant::now());
        let verdicts: Vec<_> = (0..5).map(|_| repeats.count(1, start, example)).collect();
        let written = verdicts.iter().filter(|verdict| **verdict == (Verdict::Write, None)).count();
        let left_out = verdicts.iter().filter(|verdict| **verdict == (Verdict::LeaveOut, None)).count();
        assert_eq!((written, left_out), (2, 3));
        assert_eq!(repeats.count(2, start, example), (Verdict::Write, None), "others are not concerned");

        assert!(repeats.over(start + WINDOW / 2).is_empty());
        let later = start + WINDOW;
        let three = LeftOut { example: example(), lines: 3 };
        assert_eq!(repeats.count(1, later, example), (Verdict::Write, Some(three)));
        assert!(repeats.over(later).is_empty(), "it is told once");
    }

    #[test]
    fn what_was_left_out_is_told_though_nothing_follows() {
        let (repeats, start) = (Repeats::new(1), Instant::now());
        (0..4).for_each(|_| drop(repeats.count(1, start, example)));
        assert_eq!(repeats.over(start + WINDOW), [LeftOut { example: example(), lines: 3 }]);
        (0..3).for_each(|_| drop(repeats.count(1, start + WINDOW, example)));
        assert_eq!(repeats.rest(), [LeftOut { example: example(), lines: 2 }]);
        assert!(repeats.places.lock().is_empty());
    }

    #[test]
    fn only_the_first_is_formatted() {
        let (repeats, now, mut formatted) = (Repeats::new(1), Instant::now(), 0);
        for _ in 0..9 {
            repeats.count(1, now, || {
                formatted += 1;
                example()
            });
        }
        assert_eq!(formatted, 1);
    }

    #[test]
    fn places_are_bounded_and_zero_is_no_limit() {
        let (repeats, now) = (Repeats::new(1), Instant::now());
        for place in 0..2 * MOST_PLACES as u64 {
            repeats.count(place, now, example);
        }
        assert!(repeats.places.lock().len() <= MOST_PLACES + 1);
        let all = Repeats::new(0);
        assert!((0..9).all(|_| all.count(1, now, example).0 == Verdict::Write));
    }
}
