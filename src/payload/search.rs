//! What a store holds, newest first, although a store lists its keys in ascending order and hour by hour in 16 shards.
//!
//! [`Search`] looks at one hour, then at the two before it, then at four, … until it has a page: how far back it must
//! look is not known, and so it looks at most at twice the hours. In each span it walks all shards at once. A walk
//! skips what is not wanted: where the keys of other integrations, outcomes or tasks fill pages, the next request starts
//! behind them. So a sparse store costs a request per shard and span, a full one about a request per shard and hour.
//!
//! Whatever a store holds, no more is kept than a page of a list and a page of results per shard.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Bound;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use jiff::Timestamp;
use jiff::civil;
use jiff::tz::TimeZone;
use uuid::Uuid;

use super::key::{self, Key, SHARDS, base, is_outcome};
use super::store::{Listed, Store, StoreError};
use crate::task::{IntegrationName, TaskId};

/// Requests under way at the same time: one for each shard.
pub const PARALLEL_REQUESTS: usize = SHARDS as usize;

/// Keys asked for at once: with the one that tells whether there are more, as many as S3 gives.
const MOST_KEYS: usize = 999;

/// Keys asked for at once where few of them are wanted.
const FEWEST_KEYS: usize = 31;

/// The digits and slashes of `yyyy/mm/dd/hh`.
const HOUR_CHARS: usize = 13;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Query {
    /// Of this integration; of all without one.
    pub integration: Option<IntegrationName>,
    /// With one of these outcomes, as [`crate::task::Outcome::label`] names them; with any if there is none.
    pub outcomes: BTreeSet<&'static str>,
    /// Of this task; its payloads are all in one shard.
    pub task: Option<TaskId>,
    /// Of runs that started then or later.
    pub since: Timestamp,
    /// Of runs that started before.
    pub until: Timestamp,
    /// Only those that come after this one, which are older: where the page before has ended.
    pub after: Option<Key>,
    /// How many are wanted.
    pub limit: usize,
}

/// One that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What its key says.
    pub key: Key,
    /// Its key.
    pub name: String,
    /// Its size as it is stored.
    pub bytes: u64,
}

/// What a search came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Results {
    /// The newest first: by the start of their runs, which is in their run ids.
    pub payloads: Vec<Found>,
    /// Whether there may be older ones: search again with the last of these as `after`.
    pub may_have_more: bool,
    /// Objects that were met and are no payloads.
    pub foreign: u64,
    /// One of them.
    pub foreign_example: Option<String>,
    /// How often the store was asked for a list.
    pub requests: u64,
}

/// A search under way.
pub struct Search<'s> {
    store: &'s dyn Store,
    prefix: &'s str,
    query: Query,
    after: Option<(Key, String)>,
    /// The first hour, and the one before which the next span ends.
    first: Hour,
    end: Hour,
    span_hours: i64,
    /// The most keys to ask for at once, and how many it asks for now.
    most_keys: usize,
    page: usize,
    newest: Newest,
    wanted: u64,
    results: Results,
}

impl<'s> Search<'s> {
    /// Asks for nothing yet. `prefix` is what all keys start with, as in [`super::Config`].
    pub fn new(store: &'s dyn Store, prefix: &'s str, query: Query) -> Self {
        let newest_hour = query.after.as_ref().map_or(query.until, |after| after.started().min(query.until));
        let (first, end) = (Hour::of(query.since), Hour::of(newest_hour).next());
        Search {
            store,
            prefix,
            after: query.after.clone().map(|after| (after.clone(), after.format(prefix))),
            first,
            end,
            span_hours: 1,
            most_keys: MOST_KEYS,
            page: MOST_KEYS,
            newest: Newest::of(query.limit),
            wanted: 0,
            results: Results::default(),
            query,
        }
    }

    /// Looks further back. False when nothing more is to be looked at.
    pub async fn step(&mut self) -> Result<bool, StoreError> {
        if self.is_done() {
            return Ok(false);
        }
        let from = Hour(self.end.0.saturating_sub(self.span_hours)).max(self.first);
        let shards = match &self.query.task {
            Some(task) => key::shard(task)..=key::shard(task),
            None => 0..=SHARDS - 1,
        };
        let walks = stream::iter(shards).map(|shard| self.walk(shard, from, self.end));
        let walks: Vec<_> = walks.buffer_unordered(PARALLEL_REQUESTS).try_collect().await?;
        self.page = walks.iter().map(|walked| walked.page).min().unwrap_or(self.most_keys);
        for walked in walks {
            walked.newest.found.into_iter().for_each(|found| self.newest.push(found));
            self.wanted += walked.wanted;
            self.results.requests += walked.requests;
            self.results.foreign += walked.foreign;
            self.results.foreign_example = self.results.foreign_example.take().or(walked.foreign_example);
        }
        self.newest.cut();
        (self.end, self.span_hours) = (from, self.span_hours * 2);
        Ok(!self.is_done())
    }

    /// What is found so far; all when [`Search::step`] has said so.
    pub fn finish(mut self) -> Results {
        self.newest.cut();
        self.results.may_have_more = self.wanted > self.newest.found.len() as u64 || self.end > self.first;
        self.results.payloads = self.newest.found;
        self.results
    }

    /// How far back it has looked.
    pub fn looked_back_to(&self) -> Timestamp {
        self.end.start().max(self.query.since)
    }

    /// How often the store was asked for a list so far.
    pub fn requests(&self) -> u64 {
        self.results.requests
    }

    fn is_done(&self) -> bool {
        self.end <= self.first || self.newest.found.len() >= self.query.limit
    }

    /// The newest of one shard in the hours from `from` to before `end`.
    async fn walk(&self, shard: u8, from: Hour, end: Hour) -> Result<Walked, StoreError> {
        let base = format!("{}{shard:x}/", base(self.prefix));
        let (first, last, end) = (from.path(), Hour(end.0 - 1).path(), end.path());
        let prefix = format!("{base}{}", common_start(&first, &last));
        let mut after = format!("{base}{}", self.start_of(from));
        let mut walked = Walked::new(self.query.limit, self.page);
        loop {
            let listed = self.store.list(&prefix, &after, walked.page).await?;
            walked.requests += 1;
            let before = walked.wanted;
            for (index, object) in listed.payloads.iter().enumerate() {
                if below(&object.key, &base) >= end.as_str() {
                    walked.ask(index * 4 < listed.payloads.len(), self.most_keys);
                    return Ok(walked);
                }
                match Key::parse(self.prefix, &object.key) {
                    Ok(key) if self.is_wanted(&key, &object.key) => {
                        walked.wanted += 1;
                        walked.newest.push(Found { key, name: object.key.clone(), bytes: object.bytes });
                    }
                    Ok(_) => {}
                    Err(_) => walked.foreign(&object.key),
                }
            }
            let Some(last) = listed.payloads.last().filter(|_| listed.has_more) else { return Ok(walked) };
            // Where a page is more than an hour's, it saves more requests than skipping would.
            let hour = |object: &Listed| below(&object.key, &base).get(..HOUR_CHARS).map(str::to_owned);
            let is_one_hour = listed.payloads.first().and_then(hour) == hour(last);
            let is_waste = is_one_hour && (walked.wanted - before) * 4 < listed.payloads.len() as u64;
            walked.ask(is_waste, self.most_keys);
            after = format!("{base}{}", self.skip(below(&last.key, &base))).max(last.key.clone());
            if below(&after, &base) >= end.as_str() {
                return Ok(walked);
            }
        }
    }

    fn is_wanted(&self, key: &Key, name: &str) -> bool {
        let Query { integration, outcomes, task, since, until, .. } = &self.query;
        let started = key.started();
        integration.as_ref().is_none_or(|wanted| *wanted == key.integration)
            && (outcomes.is_empty() || outcomes.contains(key.outcome.as_str()))
            && task.as_ref().is_none_or(|wanted| *wanted == key.task)
            && (*since..*until).contains(&started)
            && self.after.as_ref().is_none_or(|(after, after_name)| age(key, name) < age(after, after_name))
    }

    /// Before everything that may be wanted of an hour.
    fn start_of(&self, hour: Hour) -> String {
        let hour = hour.path();
        let Some(integration) = &self.query.integration else { return format!("{hour}/") };
        let Some(outcome) = self.query.outcomes.first() else { return format!("{hour}/{integration}/") };
        self.start_of_outcome(&format!("{hour}/{integration}"), outcome)
    }

    /// Before everything that may be wanted of an outcome; `above` is hour and integration.
    fn start_of_outcome(&self, above: &str, outcome: &str) -> String {
        let task = self.query.task.as_ref().map(|task| format!("{task}.")).unwrap_or_default();
        format!("{above}/{outcome}/{task}")
    }

    /// Where to go on after `seen`, a path below a shard: there, or behind what is not wanted. `0` is the character
    /// after the slash: `bank0` comes behind all of `bank/`.
    fn skip(&self, seen: &str) -> String {
        let Some(Place { hour, integration, outcome, file }) = Place::of(seen) else { return seen.to_owned() };
        let above = format!("{}/{integration}", hour.path());
        let behind_integration = match &self.query.integration {
            // With their slashes, for `bank-2/` comes before `bank/`.
            Some(wanted) if format!("{integration}/") < format!("{wanted}/") => return self.start_of(hour),
            Some(wanted) if integration != wanted.as_str() => return self.start_of(hour.next()),
            Some(_) => self.start_of(hour.next()),
            None => format!("{above}0"),
        };
        let outcomes = &self.query.outcomes;
        let behind_outcome = || {
            let next = outcomes.range::<str, _>((Bound::Excluded(outcome), Bound::Unbounded)).next();
            next.map_or(behind_integration, |next| self.start_of_outcome(&above, next))
        };
        if !outcomes.is_empty() && !outcomes.contains(outcome) {
            return behind_outcome();
        }
        let Some(task) = &self.query.task else { return seen.to_owned() };
        let wanted = format!("{task}.");
        if file.starts_with(&wanted) {
            seen.to_owned()
        } else if file < wanted.as_str() {
            self.start_of_outcome(&above, outcome)
        } else if outcomes.is_empty() {
            format!("{above}/{outcome}0")
        } else {
            behind_outcome()
        }
    }
}

/// Searches to the end.
pub async fn search(store: &dyn Store, prefix: &str, query: Query) -> Result<Results, StoreError> {
    let mut search = Search::new(store, prefix, query);
    while search.step().await? {}
    Ok(search.finish())
}

/// What the walk through a shard met.
struct Walked {
    newest: Newest,
    /// How many, whether they are kept or not.
    wanted: u64,
    foreign: u64,
    foreign_example: Option<String>,
    requests: u64,
    /// How many keys to ask for next.
    page: usize,
}

impl Walked {
    fn new(limit: usize, page: usize) -> Self {
        Walked { page, newest: Newest::of(limit), wanted: 0, foreign: 0, foreign_example: None, requests: 0 }
    }

    /// Adapts how many keys to ask for: fewer where most were of no use.
    fn ask(&mut self, is_waste: bool, most_keys: usize) {
        let page = if is_waste { (self.page / 4).max(FEWEST_KEYS) } else { self.page * 4 };
        self.page = page.min(most_keys);
    }

    fn foreign(&mut self, key: &str) {
        self.foreign += 1;
        self.foreign_example.get_or_insert_with(|| key.to_owned());
    }
}

/// The newest of many. Holds at most twice as many as are wanted.
struct Newest {
    most: usize,
    found: Vec<Found>,
}

impl Newest {
    fn of(most: usize) -> Self {
        Newest { most, found: Vec::new() }
    }

    fn push(&mut self, found: Found) {
        self.found.push(found);
        if self.found.len() >= self.most.saturating_mul(2) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.found.sort_unstable_by(|one, other| {
            Reverse(age(&one.key, &one.name)).cmp(&Reverse(age(&other.key, &other.name)))
        });
        self.found.truncate(self.most);
    }
}

/// By what they are ordered. No two are equal: names are not.
fn age<'k>(key: &Key, name: &'k str) -> (Timestamp, Uuid, &'k str) {
    (key.started(), key.run.0, name)
}

/// An hour, by its number since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Hour(i64);

impl Hour {
    fn of(time: Timestamp) -> Self {
        Hour(time.as_second().div_euclid(3_600))
    }

    fn next(self) -> Self {
        Hour(self.0 + 1)
    }

    fn start(self) -> Timestamp {
        Timestamp::from_second(self.0.saturating_mul(3_600)).unwrap_or(Timestamp::MAX)
    }

    fn path(self) -> String {
        key::hour(self.start())
    }

    fn parse(path: &str) -> Option<Self> {
        let numbers: Vec<i16> = path.split('/').map(|number| number.parse().ok()).collect::<Option<_>>()?;
        let [year, month, day, hour] = numbers[..] else { return None };
        let date = civil::Date::new(year, month.try_into().ok()?, day.try_into().ok()?).ok()?;
        let time = civil::Time::new(hour.try_into().ok()?, 0, 0, 0).ok()?;
        let start = TimeZone::UTC.to_timestamp(date.to_datetime(time)).ok()?;
        Some(Hour::of(start)).filter(|hour| hour.path() == path)
    }
}

/// The parts of a path below a shard that has the form of a payload's.
struct Place<'p> {
    hour: Hour,
    integration: &'p str,
    outcome: &'p str,
    file: &'p str,
}

impl<'p> Place<'p> {
    fn of(path: &'p str) -> Option<Self> {
        let hour = Hour::parse(path.get(..HOUR_CHARS)?)?;
        let mut parts = path[HOUR_CHARS..].strip_prefix('/')?.splitn(3, '/');
        let (integration, outcome, file) = (parts.next()?, parts.next()?, parts.next()?);
        // Of other names one does not know where they stand among the wanted ones.
        let is_payload = integration.parse::<IntegrationName>().is_ok() && is_outcome(outcome);
        is_payload.then_some(Place { hour, integration, outcome, file })
    }
}

/// The key below its shard.
fn below<'k>(key: &'k str, base: &str) -> &'k str {
    key.strip_prefix(base).unwrap_or_default()
}

/// What two texts of digits and slashes begin with.
fn common_start<'t>(one: &'t str, other: &str) -> &'t str {
    let common = one.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count();
    &one[..common]
}

#[cfg(test)]
mod tests;
