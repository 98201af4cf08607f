//! The workers of a pool, and who of them takes calls: pure, with the time passed in.
//!
//! A worker is looked for in what `openings` keeps: who has a slot for a class, and who takes an integration. Both follow
//! from what is known of a worker (`known`) and from whether the registry can be reached. So nobody changes a worker but
//! through [`Workers::change`], which notes them anew. What is noted says whom to look at, and no more: what is known has the
//! last word.

use std::collections::{BTreeMap, HashMap};
use std::slice;

use rand::Rng;
use tokio::time::Instant;

use super::Wanted;
use super::known::Known;
use super::openings::{Openings, Opens, Row, Rows};
use crate::registry::Presence;
use crate::router::outlier::Conduct;
use crate::router::pick::pick;
use crate::task::{IntegrationName, Priority, WorkerId};

#[derive(Debug, Default)]
pub(super) struct Workers {
    /// By row.
    known: Vec<Option<Known>>,
    free: Vec<Row>,
    rows: HashMap<WorkerId, Row>,
    serving: BTreeMap<IntegrationName, Serving>,
    /// Who has a slot, by class.
    with_slot: [Openings; Priority::ALL.len()],
    /// Of all of them together: see [`Known::slots`].
    slots: u64,
    is_stale: bool,
}

/// Those that run an integration.
#[derive(Debug, Default)]
struct Serving {
    /// In order.
    rows: Vec<Row>,
    members: Rows,
    /// Who takes it, as far as there is a slot.
    taking: Openings,
}

/// What a change of a worker may change of who takes calls.
#[derive(Debug, Clone, Copy)]
pub(super) enum Touches<'a> {
    /// Whether it has a slot.
    Slots,
    /// That, and whether it takes the integration.
    Integration(&'a IntegrationName),
    /// That, and whether it takes those that the registry has as full or spared.
    KeptOut,
    /// That, and whether it takes each that it runs.
    All,
}

impl Workers {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn get(&self, worker: &WorkerId) -> Option<&Known> {
        self.rows.get(worker).and_then(|row| self.at(*row))
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Known> {
        self.known.iter().flatten()
    }

    /// For what has no say in who takes calls.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Known> {
        self.known.iter_mut().flatten()
    }

    /// How many slots they have that take tasks, by their last word.
    pub(super) fn slots(&self) -> u64 {
        self.slots
    }

    /// Those that run an integration; none where nobody does.
    pub(super) fn serving(&self, integration: &IntegrationName) -> Option<impl ExactSizeIterator<Item = &Known>> {
        let serving = self.serving.get(integration)?;
        Some(serving.rows.iter().map(|row| self.at(*row).expect("only those that are known are listed")))
    }

    /// Whether the registry cannot be reached.
    pub(super) fn is_stale(&self) -> bool {
        self.is_stale
    }

    pub(super) fn set_stale(&mut self, is_stale: bool) {
        if self.is_stale != is_stale {
            self.is_stale = is_stale;
            (0..self.known.len()).for_each(|row| self.note(row, Touches::KeptOut));
        }
    }

    // ── who there is

    /// One that was not known.
    pub(super) fn insert(&mut self, known: Known) {
        let row = self.free.pop().unwrap_or_else(|| {
            self.known.push(None);
            self.known.len() - 1
        });
        self.slots += known.slots();
        self.rows.insert(known.presence.worker.clone(), row);
        self.list(row, &known.presence.integrations);
        self.known[row] = Some(known);
        self.note(row, Touches::All);
    }

    pub(super) fn remove(&mut self, worker: &WorkerId) -> Option<Known> {
        let row = self.rows.remove(worker)?;
        let known = self.known[row].take()?;
        self.slots -= known.slots();
        self.unlist(row);
        self.with_slot.iter_mut().for_each(|openings| openings.set(row, Opens::Never));
        self.free.push(row);
        Some(known)
    }

    /// A worker runs other integrations from now on, or those in another order. What is known of it must follow.
    pub(super) fn relist(&mut self, worker: &WorkerId, integrations: &[IntegrationName]) {
        if let Some(row) = self.rows.get(worker).copied() {
            self.unlist(row);
            self.list(row, integrations);
        }
    }

    fn list(&mut self, row: Row, integrations: &[IntegrationName]) {
        for integration in integrations {
            let serving = self.serving.entry(integration.clone()).or_default();
            if let Err(place) = serving.rows.binary_search(&row) {
                serving.rows.insert(place, row);
                serving.members.set(row, true);
            }
        }
    }

    fn unlist(&mut self, row: Row) {
        self.serving.retain(|_, serving| {
            if let Ok(place) = serving.rows.binary_search(&row) {
                serving.rows.remove(place);
                serving.members.set(row, false);
                serving.taking.set(row, Opens::Never);
            }
            !serving.rows.is_empty()
        });
    }

    // ── what changes

    /// Changes what is known of a worker, if it is, and notes what comes of it.
    pub(super) fn change<R>(
        &mut self,
        worker: &WorkerId,
        touches: Touches<'_>,
        change: impl FnOnce(&mut Known) -> R,
    ) -> Option<R> {
        let row = *self.rows.get(worker)?;
        let known = self.known[row].as_mut()?;
        let before = known.slots();
        let result = change(known);
        self.slots = self.slots - before + known.slots();
        self.note(row, touches);
        Some(result)
    }

    /// Changes how all of them have fared.
    pub(super) fn judge<R>(&mut self, judge: impl FnOnce(Vec<(&WorkerId, &mut Conduct)>) -> R) -> R {
        let known = self.known.iter_mut().flatten();
        let result = judge(known.map(|known| (&known.presence.worker, &mut known.conduct)).collect());
        self.slots = self.values().map(Known::slots).sum();
        (0..self.known.len()).for_each(|row| self.note(row, Touches::Slots));
        result
    }

    fn note(&mut self, row: Row, touches: Touches<'_>) {
        let Some(known) = &self.known[row] else { return };
        for priority in Priority::ALL {
            self.with_slot[priority as usize].set(row, known.opens(priority, self.is_stale));
        }
        let Presence { integrations, full, broken, .. } = &known.presence;
        let (some, more): (&[_], &[_]) = match touches {
            Touches::Slots => (&[], &[]),
            Touches::Integration(integration) => (slice::from_ref(integration), &[]),
            Touches::KeptOut => (full, broken),
            Touches::All => (integrations, &[]),
        };
        for integration in some.iter().chain(more) {
            let serving = self.serving.get_mut(integration).filter(|serving| serving.members.contains(row));
            if let Some(serving) = serving {
                serving.taking.set(row, known.opens_for(integration, self.is_stale));
            }
        }
    }

    // ── who takes a call

    /// A worker for a task.
    pub(super) fn pick(&mut self, wanted: &Wanted<'_>, random: &mut impl Rng, now: Instant) -> Option<WorkerId> {
        let Workers { known, serving, with_slot, is_stale, .. } = self;
        let (with_slot, serving) = (&mut with_slot[wanted.priority as usize], serving.get_mut(wanted.integration)?);
        with_slot.pass(now);
        serving.taking.pass(now);
        let (with_slot, taking) = (with_slot.open(), serving.taking.open());
        let load = |row: Row| {
            // Mostly it takes none, which is told without a look at it.
            let known = known[row].as_ref().filter(|_| with_slot.contains(row) && taking.contains(row))?;
            known.load_for(wanted, *is_stale, now).filter(|_| known.takes_of_tenant(wanted.tenant, now))
        };
        let picked = pick(&serving.rows, random, load, |from| Rows::around([with_slot, taking], from))?;
        Some(known[picked].as_ref()?.presence.worker.clone())
    }

    /// Whether somebody has a slot for a class.
    pub(super) fn any_has_slot(&self, priority: Priority, now: Instant) -> bool {
        let with_slot = &self.with_slot[priority as usize];
        let mut rows = Rows::around([with_slot.open()], 0).chain(with_slot.due(now));
        rows.any(|row| self.has_slot(row, priority, now))
    }

    /// Whether somebody who runs the integration has a slot for the class, whatever its caps and its breaker say.
    pub(super) fn any_has_slot_for(&self, wanted: &Wanted<'_>, now: Instant) -> bool {
        let Some(serving) = self.serving.get(wanted.integration) else { return false };
        let with_slot = &self.with_slot[wanted.priority as usize];
        let mut rows = Rows::around([with_slot.open(), &serving.members], 0).chain(with_slot.due(now));
        rows.any(|row| serving.members.contains(row) && self.has_slot(row, wanted.priority, now))
    }

    /// Whether somebody takes the integration and the class, whatever the cap of the tenant.
    pub(super) fn any_takes(&self, wanted: &Wanted<'_>, now: Instant) -> bool {
        let Some(serving) = self.serving.get(wanted.integration) else { return false };
        let with_slot = &self.with_slot[wanted.priority as usize];
        let open = Rows::around([with_slot.open(), serving.taking.open()], 0);
        let mut rows = open.chain(with_slot.due(now)).chain(serving.taking.due(now));
        let takes = |row| self.at(row).is_some_and(|known| known.load_for(wanted, self.is_stale, now).is_some());
        rows.any(|row| serving.members.contains(row) && takes(row))
    }

    fn has_slot(&self, row: Row, priority: Priority, now: Instant) -> bool {
        self.at(row).is_some_and(|known| known.load(priority, self.is_stale, now).is_some())
    }

    fn at(&self, row: Row) -> Option<&Known> {
        self.known.get(row)?.as_ref()
    }
}

#[cfg(test)]
mod tests;
