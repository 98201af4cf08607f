//! Those of one class who wait for one integration: pure.
//!
//! A *lane* holds what one tenant has waiting, earliest deadline first. The *line* holds the lanes that are ready, the tenant
//! with the lowest virtual time first. A line is *held* when workers were found to have room for others, and none for its
//! integration: what waits in it waits for that, and not for a slot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound::{Excluded, Unbounded};

use tokio::time::Instant;

use super::Place;
use super::drain::Drain;
use super::fair::Usage;
use crate::task::{IntegrationName, Tenant};

#[derive(Debug)]
pub(super) struct Line<T> {
    pub(super) ready: BTreeSet<(Usage, Tenant)>,
    pub(super) lanes: HashMap<Tenant, Lane<T>>,
    /// What waits in lanes that are ready.
    pub(super) ready_tasks: usize,
    hold: Hold,
    pub(super) drain: Drain,
}

/// What was found of a line last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// Nothing holds it but what holds all.
    Free,
    /// There was room for others only.
    Held,
    /// One of it was served since: where its own calls make room for one another, that is all.
    ServedOnce,
}

#[derive(Debug)]
pub(super) struct Lane<T> {
    pub(super) waiting: BTreeMap<(Instant, u64), Waiter<T>>,
    pub(super) parked_until: Option<Instant>,
}

/// One who waits.
#[derive(Debug)]
pub(super) struct Waiter<T> {
    pub(super) place: Place,
    pub(super) value: T,
}

impl<T> Line<T> {
    pub(super) fn new(now: Instant) -> Self {
        Line { ready: BTreeSet::new(), lanes: HashMap::new(), ready_tasks: 0, hold: Hold::Free, drain: Drain::new(now) }
    }

    pub(super) fn is_held(&self) -> bool {
        self.hold != Hold::Free
    }

    /// There is room for others, and none for its integration.
    pub(super) fn hold(&mut self) {
        self.hold = Hold::Held;
    }

    /// One of it is served.
    pub(super) fn served(&mut self) {
        self.hold = if self.hold == Hold::Held { Hold::ServedOnce } else { Hold::Free };
    }

    /// The first lane, or the first after a place in the line: its virtual time, its head, its tenant.
    pub(super) fn first_after(&self, last: Option<&(Usage, Tenant)>) -> Option<(Usage, (Instant, u64), &Tenant)> {
        let (at, tenant) = match last {
            None => self.ready.first()?,
            Some(last) => self.ready.range((Excluded(last), Unbounded)).next()?,
        };
        let head = self.lanes.get(tenant)?.waiting.first_key_value()?.0;
        Some((*at, *head, tenant))
    }
}

impl<T> Lane<T> {
    pub(super) fn new() -> Self {
        Lane { waiting: BTreeMap::new(), parked_until: None }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.parked_until.is_none()
    }
}

/// Who is next in a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) at: Usage,
    pub(super) integration: IntegrationName,
    pub(super) tenant: Tenant,
}

/// Who was passed over while the queue is served, because there was no room for them.
#[derive(Debug, Default)]
pub(super) struct Passed {
    pub(super) all: bool,
    lines: HashMap<IntegrationName, Option<(Usage, Tenant)>>,
}

impl Passed {
    pub(super) fn line(&mut self, integration: IntegrationName) {
        self.lines.insert(integration, None);
    }

    /// The tenant alone: all before it in the line were passed over already.
    pub(super) fn tenant(&mut self, candidate: Candidate) {
        self.lines.insert(candidate.integration, Some((candidate.at, candidate.tenant)));
    }

    /// The first lane of a line that was not passed over: its virtual time, its head, its tenant.
    pub(super) fn first_of<'a, T>(
        &self,
        integration: &IntegrationName,
        line: &'a Line<T>,
    ) -> Option<(Usage, (Instant, u64), &'a Tenant)> {
        match self.lines.get(integration) {
            None => line.first_after(None),
            Some(None) => None,
            Some(last) => line.first_after(last.as_ref()),
        }
    }
}
