//! Who of the pool is ejected because it stands out by its failures (`outlier`): pure, with the time passed in.
//!
//! Never more than a share of the pool, and never the last that serves an integration: where nobody else is left, or the pool
//! has become smaller, an ejected worker comes back early.

use tokio::time::Instant;

use super::{Learned, View};
use crate::registry::State;
use crate::router::outlier::{self, Config, Ejection, Reason, Saw, Says, Watch};
use crate::task::{IntegrationName, WorkerId};

/// The ejected workers of a pool.
#[derive(Debug, Default)]
pub(super) struct Ejections {
    config: Config,
    watch: Watch,
    out: Vec<WorkerId>,
    /// What was not told yet.
    news: Vec<News>,
    /// Since the start, by reason.
    totals: [u64; Reason::ALL.len()],
}

/// What became of a worker, to be told once.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::router) enum News {
    Ejected(WorkerId, Ejection),
    /// Its time is over, and it is tried.
    OnTrial(WorkerId),
    /// It came back early, for too few others were left.
    Needed(WorkerId),
}

impl Ejections {
    pub(super) fn new(config: Config) -> Self {
        Ejections { config, ..Ejections::default() }
    }
}

impl View {
    /// Ejects those that stand out, and takes back those whose time is over. Returns what is new.
    pub(in crate::router) fn judge(&mut self, now: Instant) -> Vec<News> {
        self.take_back(now);
        if self.ejections.watch.is_due(&self.ejections.config, now) {
            let pool = self.workers.iter_mut().map(|(worker, known)| (worker, &mut known.conduct));
            let found = outlier::sweep(pool, &self.ejections.config, now);
            found.into_iter().for_each(|(worker, saw)| self.eject(&worker, saw, now));
        }
        std::mem::take(&mut self.ejections.news)
    }

    /// What a call says of its worker. What breaks while the worker is suspected says nothing new.
    pub(super) fn judge_call(
        &mut self,
        worker: &WorkerId,
        integration: &IntegrationName,
        learned: Learned,
        was_suspected: bool,
        now: Instant,
    ) {
        let says = match learned {
            Learned::Nothing | Learned::Refused(_) | Learned::Unreachable => Says::Nothing,
            Learned::Answered => Says::Answers,
            Learned::Succeeded => Says::Well,
            Learned::Failed => Says::Badly,
            Learned::Broke if was_suspected => Says::Nothing,
            Learned::Broke => Says::Broke,
        };
        let Ejections { config, watch, .. } = &mut self.ejections;
        let Some(known) = self.workers.get_mut(worker).filter(|_| config.enabled) else { return };
        watch.saw(says, now);
        if let Some(saw) = known.conduct.learn(integration, says, config, now) {
            self.eject(worker, saw, now);
        }
    }

    fn eject(&mut self, worker: &WorkerId, saw: Saw, now: Instant) {
        let most = self.ejections.config.most_of(self.workers.len());
        if self.ejections.out.len() >= most || !self.has_others(worker) {
            return;
        }
        let Some(known) = self.workers.get_mut(worker) else { return };
        let ejection = known.conduct.eject(saw, &self.ejections.config, now);
        self.ejections.out.push(worker.clone());
        self.ejections.totals[saw.reason as usize] += 1;
        self.ejections.news.push(News::Ejected(worker.clone(), ejection));
    }

    /// Those whose time is over, and those that are needed; a worker that has ended, or begun a new life, is out no more.
    fn take_back(&mut self, now: Instant) {
        let mut out = std::mem::take(&mut self.ejections.out);
        out.retain(|worker| {
            let Some(known) = self.workers.get_mut(worker) else { return false };
            let Some(ejection) = known.conduct.ejection() else { return false };
            if now < ejection.until {
                return true;
            }
            known.conduct.try_again();
            self.ejections.news.push(News::OnTrial(worker.clone()));
            false
        });
        // Those that have been out for longest are at the front.
        let too_many = out.len().saturating_sub(self.ejections.config.most_of(self.workers.len()));
        let mut needed: Vec<_> = out.drain(..too_many).collect();
        needed.extend(out.iter().filter(|worker| !self.has_others(worker)).cloned());
        out.retain(|worker| !needed.contains(worker));
        self.ejections.out = out;
        for worker in needed {
            if let Some(known) = self.workers.get_mut(&worker) {
                known.conduct.readmit(now);
                self.ejections.news.push(News::Needed(worker));
            }
        }
    }

    /// Whether each of its integrations is served by another worker that is neither ejected nor ending.
    fn has_others(&self, worker: &WorkerId) -> bool {
        let Some(known) = self.workers.get(worker) else { return false };
        let serves = |other: &WorkerId| {
            let others = self.workers.get(other).filter(|_| other != worker);
            others.is_some_and(|it| it.conduct.ejection().is_none() && it.presence.state != State::Draining)
        };
        let is_served = |integration| self.serving.get(integration).is_some_and(|serving| serving.iter().any(serves));
        known.presence.integrations.iter().all(is_served)
    }

    /// Ejections since the start, by reason.
    pub(in crate::router) fn ejections(&self) -> [u64; Reason::ALL.len()] {
        self.ejections.totals
    }

    /// Who is ejected, those first that have been for longest.
    pub(in crate::router) fn ejected(&self) -> impl Iterator<Item = (&WorkerId, Ejection)> {
        self.ejections.out.iter().filter_map(|worker| Some((worker, self.workers.get(worker)?.conduct.ejection()?)))
    }
}
