//! Who takes calls, kept as that changes, so that nobody is looked for among those that take none: pure, with the time
//! passed in.
//!
//! A worker is a *row* here, a small number, and those that take calls are a set of bits: to find the next one in a fleet
//! of thousands takes a few dozen words. Events open a row and shut it. Time alone only opens rows: a report grows old, a
//! pause ends. So with each event a row says when it opens ([`Opens`]), and one that will open by itself has an alarm,
//! which is looked at before a row is looked for. Each row has one at the most, and it may ring too early, to be set anew:
//! a row that changes a thousand times a second would else move its alarm as often.

use std::collections::{BTreeSet, HashMap};
use std::iter;

use tokio::time::Instant;

const BITS: usize = u64::BITS as usize;

/// A worker's number while it is known; that of one who is gone is given to another.
pub(super) type Row = usize;

/// When somebody takes calls, if nothing but time passes. The later of two is the larger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Opens {
    Now,
    At(Instant),
    /// Not before something happens.
    Never,
}

impl Opens {
    /// After a pause, where there is one.
    pub(super) fn after(pause: Option<Instant>) -> Self {
        pause.map_or(Opens::Now, Opens::At)
    }

    /// Whether it is open by then.
    pub(super) fn by(self, now: Instant) -> bool {
        self <= Opens::At(now)
    }
}

/// A set of rows.
#[derive(Debug, Default)]
pub(super) struct Rows {
    words: Vec<u64>,
}

impl Rows {
    pub(super) fn contains(&self, row: Row) -> bool {
        self.words.get(row / BITS).is_some_and(|word| word & bit(row) != 0)
    }

    /// Puts a row in, or takes it out.
    pub(super) fn set(&mut self, row: Row, is_in: bool) {
        match self.words.get_mut(row / BITS) {
            Some(word) if is_in => *word |= bit(row),
            Some(word) => *word &= !bit(row),
            None if is_in => {
                self.words.resize(row / BITS + 1, 0);
                self.set(row, is_in);
            }
            None => {}
        }
    }

    /// Those that are in each of some sets, in order: from one row on to the end, and then from the beginning to it.
    pub(super) fn around<'a, const N: usize>(sets: [&'a Rows; N], from: Row) -> impl Iterator<Item = Row> + 'a {
        let words = sets.iter().map(|set| set.words.len()).min().unwrap_or_default();
        let (first, before) = (from / BITS, bit(from) - 1);
        let to_the_end = (first..words).map(move |index| (index, if index == first { !before } else { u64::MAX }));
        let to_the_first =
            (0..words.min(first + 1)).map(move |index| (index, if index == first { before } else { u64::MAX }));
        to_the_end.chain(to_the_first).flat_map(move |(index, mask)| {
            rows_of(sets.iter().fold(mask, |word, set| word & set.words[index]), index * BITS)
        })
    }
}

fn bit(row: Row) -> u64 {
    1 << (row % BITS)
}

fn rows_of(mut word: u64, first: Row) -> impl Iterator<Item = Row> {
    iter::from_fn(move || {
        let next = (word != 0).then(|| first + word.trailing_zeros() as usize);
        word &= word.wrapping_sub(1);
        next
    })
}

/// Who is open, and when others will be.
#[derive(Debug, Default)]
pub(super) struct Openings {
    open: Rows,
    waiting: HashMap<Row, Waiting>,
    /// By time: one for each that is waiting.
    alarms: BTreeSet<(Instant, Row)>,
    /// Until when they were looked at.
    passed: Option<Instant>,
}

#[derive(Debug)]
struct Waiting {
    /// When the row opens by itself; none if that has changed, and the alarm will ring for nothing.
    opens_at: Option<Instant>,
    alarm: Instant,
}

impl Openings {
    /// What has changed of a row may have changed this.
    pub(super) fn set(&mut self, row: Row, opens: Opens) {
        let is_open = opens == Opens::Now || self.passed.is_some_and(|passed| opens.by(passed));
        self.open.set(row, is_open);
        match opens {
            Opens::At(opens_at) if !is_open => self.wait(row, opens_at),
            _ => {
                if let Some(waiting) = self.waiting.get_mut(&row) {
                    waiting.opens_at = None;
                }
            }
        }
    }

    fn wait(&mut self, row: Row, opens_at: Instant) {
        match self.waiting.get_mut(&row) {
            Some(waiting) if waiting.alarm <= opens_at => {
                waiting.opens_at = Some(opens_at);
                return;
            }
            Some(waiting) => drop(self.alarms.remove(&(waiting.alarm, row))),
            None => {}
        }
        self.alarms.insert((opens_at, row));
        self.waiting.insert(row, Waiting { opens_at: Some(opens_at), alarm: opens_at });
    }

    /// Time has passed: opens those whose time has come.
    pub(super) fn pass(&mut self, now: Instant) {
        self.passed = self.passed.max(Some(now));
        while let Some(&(alarm, row)) = self.alarms.first()
            && alarm <= now
        {
            self.alarms.pop_first();
            match self.waiting.remove(&row).and_then(|waiting| waiting.opens_at) {
                Some(opens_at) if opens_at <= now => self.open.set(row, true),
                Some(opens_at) => self.wait(row, opens_at),
                None => {}
            }
        }
    }

    /// Those that are open, as far as time has passed.
    pub(super) fn open(&self) -> &Rows {
        &self.open
    }

    /// Those that may have opened since time last passed.
    pub(super) fn due(&self, now: Instant) -> impl Iterator<Item = Row> {
        self.alarms.range(..=(now, Row::MAX)).map(|(_, row)| *row)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const ROWS: Row = 130;

    #[test]
    fn those_in_all_sets_are_found_in_order_from_anywhere() {
        let set = |rows: &[Row]| {
            let mut set = Rows::default();
            rows.iter().for_each(|row| set.set(*row, true));
            set
        };
        let (some, others) = (set(&[0, 3, 63, 64, 130, 190]), set(&[3, 64, 65, 130]));
        let found = |from| Rows::around([&some, &others], from).collect::<Vec<_>>();
        assert_eq!(found(0), [3, 64, 130]);
        assert_eq!(found(64), [64, 130, 3]);
        assert_eq!(found(65), [130, 3, 64]);
        assert_eq!(found(131), [3, 64, 130]);
        assert_eq!(found(1_000), [3, 64, 130], "where neither has a word");
        assert_eq!(Rows::around([&some, &Rows::default()], 5).count(), 0);
    }

    #[test]
    fn a_row_that_changes_all_the_time_has_one_alarm() {
        let (mut openings, start) = (Openings::default(), Instant::now());
        for step in 0..1_000 {
            openings.set(7, Opens::At(start + Duration::from_millis(250 + step)));
            openings.pass(start + Duration::from_millis(step));
            openings.set(7, Opens::Now);
        }
        assert_eq!((openings.alarms.len(), openings.waiting.len()), (1, 1));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Set(Row, u8, u64),
        Passes(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let set = (0..ROWS, 0..4u8, 0..200u64).prop_map(|(row, kind, at)| Step::Set(row, kind, at));
        prop::collection::vec(prop_oneof![3 => set, 1 => (0..80u64).prop_map(Step::Passes)], 1..120)
    }

    proptest! {
        /// Those that are open by now are those that say so, whatever was said before.
        #[test]
        fn whoever_is_open_is_found_and_nobody_else(steps in steps()) {
            let (mut openings, mut told, start) = (Openings::default(), vec![Opens::Never; ROWS], Instant::now());
            let mut now = start;
            for step in steps {
                match step {
                    Step::Set(row, kind, at) => {
                        let opens = match kind {
                            0 => Opens::Now,
                            1 => Opens::Never,
                            _ => Opens::At(now - Duration::from_millis(20) + Duration::from_millis(at)),
                        };
                        told[row] = opens;
                        openings.set(row, opens);
                    }
                    Step::Passes(milliseconds) => now += Duration::from_millis(milliseconds),
                }
                let is_open = |row: &Row| told[*row].by(now);
                let mut found: BTreeSet<Row> = Rows::around([openings.open()], 70).collect();
                found.extend(openings.due(now));
                prop_assert!((0..ROWS).filter(is_open).all(|row| found.contains(&row)), "before time was passed");
                if now > start {
                    openings.pass(now);
                    let found: BTreeSet<Row> = Rows::around([openings.open()], 70).collect();
                    prop_assert_eq!(found, (0..ROWS).filter(is_open).collect::<BTreeSet<_>>());
                    prop_assert_eq!(openings.due(now).count(), 0);
                }
                prop_assert!(openings.alarms.len() == openings.waiting.len() && openings.alarms.len() <= ROWS);
            }
        }
    }
}
