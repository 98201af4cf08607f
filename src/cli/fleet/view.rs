//! What is known of the fleet, and how it looks as a table: pure.
//!
//! Who is missing from a snapshot stays for one more TTL, as with routers: the registry may have lost its memory, and then
//! the next heartbeat of each worker that lives brings it back. So what is news is a difference between workers, and
//! never one between what the registry remembers.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::follow::Update;
use crate::cli::table::{Table, counted, duration, printable};
use crate::registry::{Absence, Change, Incarnation, Presence, State, is_gone};
use crate::task::{IntegrationName, PoolName, WorkerId};

/// A view older than this says so, even when nobody said that the registry is away: reading changes answers each second.
const OLD: Duration = Duration::from_secs(5);

/// Integrations of a worker that are named as kept out; further ones are counted.
const MOST_KEPT_OUT: usize = 3;

/// Lines around the rows: title, totals, an empty one, the table's header, and the last one for what is left out.
const FRAME_LINES: usize = 5;

/// The workers by their ids, and when the registry was last heard.
#[derive(Default)]
pub(super) struct View {
    workers: BTreeMap<WorkerId, Presence>,
    /// Since when a snapshot has them no longer, or since when they are said to be gone, where they may not have been heard yet.
    missing: BTreeMap<WorkerId, Instant>,
    absence: Absence,
    heard: Option<Instant>,
    away: Option<String>,
}

/// What an update has changed.
#[derive(Default)]
pub(super) struct News {
    pub(super) present: Vec<Presence>,
    pub(super) gone: Vec<(WorkerId, Incarnation)>,
}

impl View {
    /// Takes over what the registry said. While it is away, the last view stays.
    pub(super) fn update(&mut self, update: Update) -> News {
        self.update_at(update, Instant::now())
    }

    fn update_at(&mut self, update: Update, now: Instant) -> News {
        let mut news = News::default();
        if self.away.is_some() && matches!(update, Update::Snapshot(_) | Update::Changes(_)) {
            self.absence.ends(now);
            self.missing.values_mut().for_each(|since| *since = now);
        }
        match update {
            Update::Snapshot(workers) => self.replace(workers, now, &mut news),
            Update::Changes(changes) => changes.into_iter().for_each(|change| self.apply(change, now, &mut news)),
            Update::Seen(workers) => {
                workers.into_iter().for_each(|presence| self.refresh(presence));
                return news;
            }
            Update::Away(error) => {
                self.away = Some(error.to_string());
                return news;
            }
        }
        self.expire(now, &mut news);
        (self.heard, self.away) = (Some(now), None);
        news
    }

    /// Takes over everyone.
    fn replace(&mut self, workers: Vec<Presence>, now: Instant, news: &mut News) {
        for worker in self.workers.keys() {
            self.missing.entry(worker.clone()).or_insert(now);
        }
        workers.into_iter().for_each(|presence| self.present(presence, news));
    }

    fn apply(&mut self, change: Change, now: Instant, news: &mut News) {
        match change {
            Change::Present(presence) => self.present(presence, news),
            Change::Gone(worker, incarnation) => {
                let known = self.workers.get(&worker).filter(|known| known.incarnation == incarnation);
                let Some(known) = known else { return };
                if self.absence.excuses(known, now) {
                    self.missing.entry(worker).or_insert(now);
                } else {
                    self.remove(&worker, news);
                }
            }
        }
    }

    fn present(&mut self, presence: Presence, news: &mut News) {
        self.missing.remove(&presence.worker);
        // A number in flight alone is no change.
        let same = |known: &Presence| Presence { in_flight: presence.in_flight, ..known.clone() } == presence;
        if !self.workers.get(&presence.worker).is_some_and(same) {
            news.present.push(presence.clone());
        }
        self.workers.insert(presence.worker.clone(), presence);
    }

    fn remove(&mut self, worker: &WorkerId, news: &mut News) {
        self.missing.remove(worker);
        if let Some(known) = self.workers.remove(worker) {
            news.gone.push((known.worker, known.incarnation));
        }
    }

    /// Removes those that a snapshot missed a TTL ago and that were not heard of since.
    fn expire(&mut self, now: Instant, news: &mut News) {
        let over = self.missing.iter().filter(|(_, since)| is_gone(**since, now));
        let expired: Vec<_> = over.map(|(worker, _)| worker.clone()).collect();
        expired.iter().for_each(|worker| self.remove(worker, news));
    }

    /// Newer numbers of one who is known; whether somebody is there is for changes to say.
    fn refresh(&mut self, presence: Presence) {
        if let Some(known) = self.workers.get_mut(&presence.worker)
            && known.incarnation == presence.incarnation
        {
            *known = presence;
        }
    }

    /// The whole table as text.
    pub(super) fn text(&self, pool: &PoolName) -> String {
        let table = self.table(self.workers.values(), SystemTime::now());
        let mut lines = vec![self.totals(pool)];
        if !self.workers.is_empty() {
            lines.push(String::new());
            lines.extend(table.lines());
        }
        lines.join("\n")
    }

    /// What fits on a screen of so many lines, and who that is.
    pub(super) fn frame(&self, pool: &PoolName, screen_lines: usize) -> (Vec<String>, Vec<WorkerId>) {
        let rows = screen_lines.saturating_sub(FRAME_LINES);
        let shown: Vec<_> = self.workers.values().take(rows).collect();
        let mut lines = vec![self.totals(pool), self.state_of_view(Instant::now()), String::new()];
        lines.extend(self.table(shown.iter().copied(), SystemTime::now()).lines());
        let left_out = self.workers.len() - shown.len();
        if left_out > 0 {
            lines.push(format!("… and {} more: a taller window shows more, weir fleet --once all", left_out));
        }
        (lines, shown.into_iter().map(|presence| presence.worker.clone()).collect())
    }

    fn totals(&self, pool: &PoolName) -> String {
        let count = |state| self.workers.values().filter(|presence| presence.state == state).count();
        let states = [State::Open, State::Full, State::Overloaded, State::Draining].map(|state| (count(state), state));
        let states: Vec<_> = states
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, state)| format!("{count} {}", state_name(*state)))
            .collect();
        let workers = counted(self.workers.len() as u64, "worker");
        if states.is_empty() {
            return format!("pool {pool}: no workers");
        }
        let sum = |number: fn(&Presence) -> u32| self.workers.values().map(|it| u64::from(number(it))).sum::<u64>();
        let (held, slots) = (sum(|it| it.in_flight), sum(|it| it.target));
        format!("pool {pool}: {workers}, {}; {held} of {slots} slots held", states.join(", "))
    }

    /// Whether the view is to be believed.
    fn state_of_view(&self, now: Instant) -> String {
        let age = self.heard.map(|heard| now.saturating_duration_since(heard));
        let shown = age.map(|age| duration(age.as_secs_f64()));
        match (&self.away, shown) {
            (Some(away), Some(age)) => printable(&format!("STALE, as of {age} ago: {away}")),
            (Some(away), None) => printable(away),
            (None, Some(age)) if age_is_old(self.heard, now) => format!("STALE: the registry was last heard {age} ago"),
            (None, Some(_)) => "live; q ends".into(),
            (None, None) => "connecting to the registry".into(),
        }
    }

    fn table<'a>(&self, workers: impl Iterator<Item = &'a Presence>, now: SystemTime) -> Table {
        let head =
            ["WORKER", "ADDRESS", "STATE", "IN FLIGHT#", "RESERVED#", "INTEGRATIONS#", "SETTINGS", "UP#", "KEPT OUT"];
        let mut table = Table::new(&head);
        for presence in workers {
            table.row([
                presence.worker.to_string(),
                presence.address.clone(),
                state_name(presence.state).into(),
                format!("{}/{}", presence.in_flight, presence.target),
                presence.reserved.to_string(),
                presence.integrations.len().to_string(),
                settings(presence),
                up(presence.incarnation, now).map_or_else(|| "?".into(), |up| duration(up.as_secs_f64())),
                kept_out(presence),
            ]);
        }
        table
    }
}

/// The version that the worker runs, and how much of the last document it rejects.
fn settings(presence: &Presence) -> String {
    let version = &presence.settings_version;
    match &presence.settings_rejected {
        Some(rejected) => format!("{version}, rejects {}", rejected.keys.len().saturating_add(rejected.more)),
        None => version.clone(),
    }
}

/// The integrations of which the worker takes no tasks, or a few alone, although it may have room: the worst first.
fn kept_out(presence: &Presence) -> String {
    let Presence { full, broken, half_open, .. } = presence;
    let named =
        |names: &[IntegrationName], how: &str| -> Vec<_> { names.iter().map(|name| format!("{name} {how}")).collect() };
    let all = [named(broken, "spared"), named(half_open, "half open"), named(full, "full")].concat();
    match all.len().saturating_sub(MOST_KEPT_OUT) {
        _ if all.is_empty() => "-".into(),
        0 => all.join(", "),
        more => format!("{}, +{more}", all[..MOST_KEPT_OUT].join(", ")),
    }
}

fn age_is_old(heard: Option<Instant>, now: Instant) -> bool {
    heard.is_some_and(|heard| now.saturating_duration_since(heard) > OLD)
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Open => "open",
        State::Full => "full",
        State::Overloaded => "overloaded",
        State::Draining => "draining",
    }
}

/// How long a life has lasted, by the time that is in its id; its clock and this one may differ.
fn up(incarnation: Incarnation, now: SystemTime) -> Option<Duration> {
    let (seconds, nanos) = incarnation.0.get_timestamp()?.to_unix();
    let started = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
    Some(now.duration_since(started).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{RegistryError, Rejected, TTL};

    fn presence(worker: &str, state: State, in_flight: u32) -> Presence {
        Presence {
            worker: worker.parse().expect("a worker id"),
            address: "http://10.0.0.7:7401".into(),
            incarnation: Incarnation::mint(),
            pool: "default".parse().expect("a pool"),
            target: 30,
            in_flight,
            reserved: 0,
            state,
            integrations: vec!["bank".parse().expect("a name")],
            full: vec![],
            broken: vec![],
            half_open: vec![],
            settings_version: "start".into(),
            settings_rejected: None,
            jump_limit: None,
        }
    }

    fn lines(view: &View, screen_lines: usize) -> Vec<String> {
        view.frame(&PoolName::default(), screen_lines).0
    }

    #[test]
    fn a_table_is_sorted_counted_and_cut_to_the_screen() {
        let mut view = View::default();
        let workers = [("w2", State::Full, 30), ("w1", State::Open, 3), ("w3", State::Draining, 1)];
        view.update(Update::Snapshot(workers.map(|(id, state, held)| presence(id, state, held)).into()));
        let all = lines(&view, 40);
        assert_eq!(all[0], "pool default: 3 workers, 1 open, 1 full, 1 draining; 34 of 90 slots held");
        assert_eq!(all[1], "live; q ends");
        assert!(all[4].starts_with("w1  ") && all[5].starts_with("w2") && all[6].starts_with("w3"), "{all:#?}");
        assert!(all[5].contains("full") && all[5].contains("30/30"), "{all:#?}");
        let small = lines(&view, 7);
        assert_eq!(small.len(), 7);
        assert!(small[6].starts_with("… and 1 more"), "{small:#?}");
        assert_eq!(view.frame(&PoolName::default(), 0).1, []);
    }

    #[test]
    fn who_is_kept_out_is_named_the_worst_first_and_the_rest_is_counted() {
        let names = |text: &str| -> Vec<IntegrationName> {
            text.split_whitespace().map(|name| name.parse().expect("a name")).collect()
        };
        let worker = Presence { reserved: 6, full: names("bank"), ..presence("w1", State::Open, 3) };
        let row = |worker: &Presence| {
            let mut view = View::default();
            view.update(Update::Snapshot(vec![worker.clone()]));
            lines(&view, 9)[4].clone()
        };
        let shown = row(&worker);
        let cells: Vec<_> = shown.split_whitespace().collect();
        assert_eq!(cells[3..6], ["3/30", "6", "1"], "{shown}");
        assert!(shown.ends_with("  bank full"), "{shown}");
        let worse = Presence { broken: names("a b"), half_open: names("c"), full: names("d e"), ..worker.clone() };
        assert!(row(&worse).ends_with("  a spared, b spared, c half open, +2"), "{}", row(&worse));
        assert!(row(&Presence { full: vec![], ..worker.clone() }).ends_with("  -"));
        let rejected = Some(Box::new(Rejected::new("next", ["max_parallelism"], 2)));
        let shown = row(&Presence { settings_rejected: rejected, ..worker });
        assert!(shown.contains("  start, rejects 3  "), "{shown}");
    }

    #[test]
    fn changes_count_for_the_life_that_they_are_about_and_a_look_adds_nobody() {
        let mut view = View::default();
        let (old, new) = (presence("w1", State::Open, 1), presence("w1", State::Open, 2));
        view.update(Update::Snapshot(vec![old.clone()]));
        let gone = Change::Gone(old.worker.clone(), old.incarnation);
        let news = view.update(Update::Changes(vec![Change::Present(new.clone()), gone]));
        assert_eq!((news.present.len(), news.gone.len()), (1, 0), "the newer life is not meant");
        view.update(Update::Seen(vec![presence("w9", State::Open, 9), Presence { in_flight: 7, ..new.clone() }, old]));
        assert!(lines(&view, 9)[0].ends_with("1 worker, 1 open; 7 of 30 slots held"), "{:?}", lines(&view, 9));
        let news = view.update(Update::Changes(vec![Change::Gone(new.worker.clone(), new.incarnation)]));
        assert_eq!(news.gone, [(new.worker, new.incarnation)]);
        assert_eq!(lines(&view, 9)[0], "pool default: no workers");
    }

    #[test]
    fn a_registry_that_lost_its_memory_is_no_news_of_workers_that_live() {
        let (mut view, now) = (View::default(), Instant::now());
        let at = |millis| now + Duration::from_millis(millis);
        let (lives, dies) = (presence("lives", State::Open, 1), presence("dies", State::Open, 2));
        let news = view.update_at(Update::Snapshot(vec![lives.clone(), dies.clone()]), now);
        assert_eq!(news.present.len(), 2);
        let away = RegistryError::Unavailable { address: "10.0.0.1:6379".into(), reason: "refused".into() };
        view.update_at(Update::Away(away), at(60_000));
        let none = |news: News| assert!(news.present.is_empty() && news.gone.is_empty(), "{:?}", news.present);
        none(view.update_at(Update::Snapshot(vec![]), at(61_000)));
        let heartbeat = Presence { in_flight: 3, ..lives.clone() };
        none(view.update_at(Update::Changes(vec![Change::Present(heartbeat.clone())]), at(62_000)));
        none(view.update_at(Update::Snapshot(vec![heartbeat]), at(63_000)));
        let ttl = TTL.as_millis() as u64;
        none(view.update_at(Update::Changes(vec![]), at(61_000 + ttl - 1)));
        let news = view.update_at(Update::Changes(vec![]), at(61_000 + ttl));
        assert_eq!(news.gone, [(dies.worker, dies.incarnation)]);
        let full = Presence { state: State::Full, ..lives };
        let news = view.update_at(Update::Changes(vec![Change::Present(full.clone())]), at(90_000));
        assert_eq!((news.present, news.gone.len()), (vec![full], 0));
    }

    #[test]
    fn a_registry_that_is_back_has_to_hear_of_workers_first() {
        let (mut view, now) = (View::default(), Instant::now());
        let at = |millis| now + Duration::from_millis(millis);
        let (lives, dies) = (presence("lives", State::Open, 1), presence("dies", State::Open, 2));
        let leaves = presence("leaves", State::Draining, 3);
        view.update_at(Update::Snapshot(vec![lives.clone(), dies.clone(), leaves.clone()]), now);
        let away = RegistryError::Unavailable { address: "10.0.0.1:6379".into(), reason: "refused".into() };
        view.update_at(Update::Away(away), at(60_000));
        let gone = |presence: &Presence| Change::Gone(presence.worker.clone(), presence.incarnation);
        let all = [&lives, &dies, &leaves].map(gone).to_vec();
        let news = view.update_at(Update::Changes(all), at(70_000));
        assert_eq!(news.gone, [(leaves.worker, leaves.incarnation)], "it said so itself");
        view.update_at(Update::Changes(vec![Change::Present(lives.clone())]), at(71_000));
        let ttl = TTL.as_millis() as u64;
        let news = view.update_at(Update::Changes(vec![]), at(70_000 + ttl));
        assert_eq!(news.gone, [(dies.worker, dies.incarnation)]);
        let news = view.update_at(Update::Changes(vec![gone(&lives)]), at(80_000 + ttl));
        assert_eq!(news.gone, [(lives.worker, lives.incarnation)], "and later it is believed at once");
    }

    #[test]
    fn a_view_that_cannot_be_renewed_stays_and_says_so() {
        let mut view = View::default();
        let error = || RegistryError::Unavailable { address: "10.0.0.1:6379".into(), reason: "refused".into() };
        view.update(Update::Away(error()));
        assert!(lines(&view, 9)[1].contains("10.0.0.1:6379 cannot be reached"));
        view.update(Update::Snapshot(vec![presence("w1", State::Open, 1)]));
        view.update(Update::Away(error()));
        let stale = lines(&view, 9);
        assert!(stale[1].starts_with("STALE, as of 0.0s ago: ") && stale[0].contains("1 worker"), "{stale:#?}");
        view.update(Update::Changes(vec![]));
        assert_eq!(lines(&view, 9)[1], "live; q ends");
        assert!(view.state_of_view(Instant::now() + OLD * 2).starts_with("STALE"));
    }
}
