//! What lies in the spool, and whose turn it is. Pure.
//!
//! The oldest goes first. One whose upload failed goes to the end of the line, and those that come in later queue up behind
//! it. One that the store refuses again and again while it takes others rests for a while, behind all the others.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::payload::refusals::Refusals;
use crate::payload::sample::Value;

/// What the names of spooled payloads end in.
const SUFFIX: &str = ".payload";

/// The most payloads that give way to one.
const MAX_EVICTED: usize = 256;

/// The most payloads in the spool, whatever their size: a directory of more is slow to read.
pub(super) const MAX_FILES: usize = 100_000;

/// A spooled payload's file name: when it was spooled, what it is worth, and a part of its key's checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::payload) struct Name {
    milliseconds: u64,
    value: Value,
    id: u64,
}

impl Name {
    pub fn new(at: SystemTime, value: Value, id: u64) -> Self {
        let milliseconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        Name { milliseconds, value, id }
    }

    /// None for a file that is not a spooled payload.
    pub fn parse(file: &str) -> Option<Self> {
        let mut parts = file.strip_suffix(SUFFIX)?.split('-');
        let (milliseconds, value, id) = (parts.next()?, parts.next()?, parts.next()?);
        let value = match value {
            "o" => Value::Ordinary,
            "s" => Value::Slow,
            "f" => Value::Failure,
            _ => return None,
        };
        let name = Name { milliseconds: milliseconds.parse().ok()?, value, id: u64::from_str_radix(id, 16).ok()? };
        // Each has one form only: +7 and 007 are numbers too.
        (name.to_string() == file).then_some(name)
    }

    pub fn age(&self, now: SystemTime) -> Duration {
        let spooled = SystemTime::UNIX_EPOCH + Duration::from_millis(self.milliseconds);
        now.duration_since(spooled).unwrap_or_default()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = match self.value {
            Value::Ordinary => 'o',
            Value::Slow => 's',
            Value::Failure => 'f',
        };
        write!(f, "{:013}-{value}-{:016x}{SUFFIX}", self.milliseconds, self.id)
    }
}

/// One payload in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::payload) struct Entry {
    pub name: Name,
    /// The size of its file.
    pub bytes: u64,
    pub refusals: Refusals,
    turn: Turn,
}

/// A place in the line: those that do not rest, then by round.
type Turn = (Option<Instant>, u32);

/// Those that wait, by turn and then by age: what they hold, and what is held against them.
type Line = BTreeMap<(Turn, Name), (u64, Refusals)>;

/// What lies in the spool.
#[derive(Debug)]
pub(super) struct Index {
    max_bytes: u64,
    ordinary: Line,
    wanted: Line,
    last_round: u32,
    /// Of all: those that wait, those that are being written, and those that are being uploaded.
    bytes: u64,
}

impl Index {
    pub fn new(max_bytes: u64) -> Self {
        Index { max_bytes, ordinary: Line::new(), wanted: Line::new(), last_round: 0, bytes: 0 }
    }

    /// Makes room for a payload that is about to be written: returns those that must be removed for it. None when it
    /// does not fit, for those that wait are wanted more, or not enough.
    pub fn reserve(&mut self, bytes: u64, value: Value) -> Option<Vec<Name>> {
        let over = self.bytes.saturating_add(bytes).saturating_sub(self.max_bytes);
        let files_over = (self.len() + 1).saturating_sub(MAX_FILES);
        let wanted = if value.is_ordinary() { 0 } else { self.wanted.len() };
        let evicted = self.evict(over, files_over, wanted, MAX_EVICTED)?;
        self.bytes += bytes;
        Some(evicted)
    }

    /// Gives up what is more than it may hold, as it may be after the limits were lowered.
    pub fn trim(&mut self) -> Vec<Name> {
        let over = self.bytes.saturating_sub(self.max_bytes);
        self.evict(over, self.len().saturating_sub(MAX_FILES), self.wanted.len(), usize::MAX).unwrap_or_default()
    }

    /// Frees so many bytes and files, at the expense of ordinary ones and then of so many of the wanted ones, of both first
    /// those that rest; none when that is not enough.
    fn evict(&mut self, over: u64, files_over: usize, wanted: usize, most: usize) -> Option<Vec<Name>> {
        let candidates = giving_way(&self.ordinary).chain(giving_way(&self.wanted).take(wanted)).take(most);
        let (mut evicted, mut freed) = (Vec::new(), 0);
        for (key, (bytes, _)) in candidates {
            if freed >= over && evicted.len() >= files_over {
                break;
            }
            evicted.push(*key);
            freed += bytes;
        }
        if freed < over || evicted.len() < files_over {
            return None;
        }
        for key in &evicted {
            self.line(key.1.value).remove(key);
        }
        self.bytes -= freed;
        Some(evicted.into_iter().map(|(_, name)| name).collect())
    }

    /// What was reserved was not written, or what was taken is gone.
    pub fn release(&mut self, bytes: u64) {
        self.bytes -= bytes;
    }

    /// What was reserved is there.
    pub fn add(&mut self, name: Name, bytes: u64) {
        let turn = (None, self.last_round);
        self.line(name.value).insert((turn, name), (bytes, Refusals::default()));
    }

    /// One was found on disk.
    pub fn hold(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// One that was found on disk waits from now on.
    pub fn admit(&mut self, name: Name, bytes: u64) {
        self.line(name.value).insert(((None, 0), name), (bytes, Refusals::default()));
    }

    /// Takes out the one whose turn it is, if one's is.
    pub fn take(&mut self, now: Instant) -> Option<Entry> {
        let first = |line: &Line| line.first_key_value().map(|(key, _)| *key);
        let (turn, name) = [first(&self.ordinary), first(&self.wanted)].into_iter().flatten().min()?;
        if turn.0.is_some_and(|until| now < until) {
            return None;
        }
        self.remove(turn, name)
    }

    /// One that was taken waits again, in its old place.
    pub fn untake(&mut self, entry: Entry) {
        self.line(entry.name.value).insert((entry.turn, entry.name), (entry.bytes, entry.refusals));
    }

    /// One that was taken goes to the end of the line, or rests, if it is to.
    pub fn put_back(&mut self, entry: Entry, now: Instant) {
        self.last_round = self.last_round.saturating_add(1);
        let turn = (entry.refusals.rest().map(|rest| now + rest), self.last_round);
        self.untake(Entry { turn, ..entry });
    }

    /// Takes out those that are too old, at most so many.
    pub fn expired(&mut self, now: SystemTime, max_age: Duration, most: usize) -> Vec<Entry> {
        let is_old = |key: &&(Turn, Name)| key.1.age(now) > max_age;
        let old = self.ordinary.keys().chain(self.wanted.keys()).filter(is_old).take(most);
        let old: Vec<_> = old.copied().collect();
        old.into_iter().filter_map(|(turn, name)| self.remove(turn, name)).collect()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.ordinary.len() + self.wanted.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn remove(&mut self, turn: Turn, name: Name) -> Option<Entry> {
        let (bytes, refusals) = self.line(name.value).remove(&(turn, name))?;
        Some(Entry { name, bytes, refusals, turn })
    }

    fn line(&mut self, value: Value) -> &mut Line {
        match value.is_ordinary() {
            true => &mut self.ordinary,
            false => &mut self.wanted,
        }
    }
}

/// Those of a line in the order in which they give way: first those that rest, the longest first, and then the oldest.
fn giving_way(line: &Line) -> impl Iterator<Item = (&(Turn, Name), &(u64, Refusals))> {
    let rests = |((turn, _), _): &(&(Turn, Name), &(u64, Refusals))| turn.0.is_some();
    line.iter().rev().take_while(rests).chain(line.iter().take_while(move |it| !rests(it)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(milliseconds: u64, value: Value) -> Name {
        Name { milliseconds, value, id: milliseconds }
    }

    fn full() -> Index {
        let mut index = Index::new(100);
        for (at, value) in [(1, Value::Failure), (2, Value::Ordinary), (3, Value::Slow), (4, Value::Ordinary)] {
            assert_eq!(index.reserve(25, value), Some(vec![]));
            index.add(name(at, value), 25);
        }
        index
    }

    #[test]
    fn names_say_what_they_are_and_others_are_foreign() {
        let name = Name::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_755_666_000), Value::Slow, 0xabc);
        assert_eq!(name.to_string(), "1755666000000-s-0000000000000abc.payload");
        assert_eq!(Name::parse(&name.to_string()), Some(name));
        for foreign in ["lock", "x.payload", "1-s-2.payload", "1755666000000-x-0000000000000abc.payload", ".tmp"] {
            assert_eq!(Name::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn ordinary_ones_give_way_first_and_then_the_oldest() {
        let mut index = full();
        assert_eq!(index.reserve(1, Value::Failure), Some(vec![name(2, Value::Ordinary)]));
        index.add(name(5, Value::Failure), 1);
        let both = vec![name(4, Value::Ordinary), name(1, Value::Failure)];
        assert_eq!(index.reserve(70, Value::Slow), Some(both));
        index.add(name(6, Value::Slow), 70);
        assert_eq!(index.reserve(10, Value::Ordinary), None, "it would displace wanted ones");
        assert_eq!(index.reserve(101, Value::Failure), None, "it never fits");
        assert_eq!((index.len(), index.bytes()), (3, 96));
    }

    #[test]
    fn the_oldest_goes_first_and_one_that_failed_goes_to_the_end() {
        let mut index = full();
        let now = Instant::now();
        let first = index.take(now).expect("one waits");
        assert_eq!(first.name, name(1, Value::Failure));
        index.put_back(first, now);
        index.reserve(0, Value::Slow).expect("there is room");
        index.add(name(9, Value::Slow), 0);
        let order: Vec<_> = std::iter::from_fn(|| index.take(now)).map(|entry| entry.name.milliseconds).collect();
        assert_eq!(order, [2, 3, 4, 1, 9]);
    }

    #[test]
    fn one_that_the_store_refuses_while_it_takes_others_rests() {
        let (mut index, now) = (full(), Instant::now());
        let mut refused = index.take(now).expect("one waits");
        (1..=3).for_each(|taken| refused.refusals.add(taken));
        index.put_back(refused, now);
        index.reserve(0, Value::Slow).expect("there is room");
        index.add(name(9, Value::Slow), 0);
        let mut order =
            |now| -> Vec<_> { std::iter::from_fn(|| index.take(now)).map(|entry| entry.name.milliseconds).collect() };
        assert_eq!((order(now), order(now + Duration::from_millis(999))), (vec![2, 3, 4, 9], vec![]));
        assert_eq!(order(now + Duration::from_secs(1)), [1]);
        let mut index = full();
        let all: Vec<_> = std::iter::from_fn(|| index.take(now)).collect();
        for mut entry in all {
            (1..=3).filter(|_| entry.name.milliseconds > 2).for_each(|taken| entry.refusals.add(taken));
            index.put_back(entry, now);
        }
        let in_order: Vec<_> = [4, 2].map(|at| name(at, Value::Ordinary)).into();
        assert_eq!(index.reserve(50, Value::Ordinary), Some(in_order), "those that rest give way first");
        let in_order: Vec<_> = [name(3, Value::Slow), name(1, Value::Failure)].into();
        assert_eq!(index.reserve(50, Value::Slow), Some(in_order));
    }

    #[test]
    fn what_is_too_old_is_taken_out() {
        let mut index = full();
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(12);
        let old: Vec<_> = index.expired(now, Duration::from_millis(9), 10);
        assert_eq!(old.iter().map(|entry| entry.name.milliseconds).collect::<Vec<_>>(), [2, 1]);
        old.iter().for_each(|entry| index.release(entry.bytes));
        assert_eq!((index.len(), index.bytes()), (2, 50));
    }

    proptest! {
        #[test]
        fn the_bytes_add_up_and_stay_within_the_limit(steps in proptest::collection::vec((0u8..6, 0u64..60), 1..200)) {
            let (mut index, mut out, mut at, now) = (Index::new(100), Vec::new(), 0, Instant::now());
            for (step, bytes) in steps {
                match step {
                    0..=2 => {
                        at += 1;
                        let value = [Value::Ordinary, Value::Slow, Value::Failure][usize::from(step)];
                        if index.reserve(bytes, value).is_some() {
                            index.add(name(at, value), bytes);
                        }
                    }
                    3 => out.extend(index.take(now)),
                    4 => out.pop().into_iter().for_each(|mut entry| {
                        entry.refusals.add(at);
                        index.put_back(entry, now);
                    }),
                    _ => out.pop().into_iter().for_each(|entry| index.release(entry.bytes)),
                }
                let held = index.ordinary.values().chain(index.wanted.values()).map(|(bytes, _)| bytes).sum::<u64>()
                    + out.iter().map(|entry| entry.bytes).sum::<u64>();
                prop_assert_eq!(held, index.bytes());
                prop_assert!(held <= 100);
            }
        }
    }
}
