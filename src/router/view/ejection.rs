//! Who of the pool is ejected because it stands out by its failures (`outlier`): pure, with the time passed in.
//!
//! Never more than a share of the pool, those on trial included, and never one without which an integration would have
//! nobody to rely on: where that comes to be so, or the pool has become smaller, an ejected worker comes back early.

use tokio::time::Instant;

use super::known::Known;
use super::workers::Touches;
use super::{Learned, Placement, View, Wanted};
use crate::router::outlier::{Config, Ejection, Reason, Saw, Says, Sent, Watch};
use crate::task::WorkerId;

/// The ejected workers of a pool.
#[derive(Debug, Default)]
pub(super) struct Ejections {
    config: Config,
    watch: Watch,
    /// Those that are out, those first that have been for longest.
    out: Vec<WorkerId>,
    on_trial: Vec<WorkerId>,
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
        let Ejections { config, watch, .. } = &mut self.ejections;
        if watch.is_due(config, now) {
            let found = self.workers.judge(|pool| watch.sweep(pool, config, now));
            found.into_iter().for_each(|(worker, saw)| self.eject(&worker, saw, now));
        }
        std::mem::take(&mut self.ejections.news)
    }

    /// A call goes out.
    pub(super) fn is_sent(&mut self, worker: &WorkerId, wanted: &Wanted<'_>, now: Instant) {
        self.ejections.watch.sent(worker, &sent(wanted, now));
    }

    /// What a call says of its worker. What breaks while the worker is suspected says nothing new.
    pub(super) fn judge_call(
        &mut self,
        placement: &Placement,
        wanted: &Wanted<'_>,
        learned: Learned,
        was_suspected: bool,
        now: Instant,
    ) {
        let says = match learned {
            Learned::Nothing | Learned::Refused(_) | Learned::Unreachable => Says::Nothing,
            Learned::Answered => Says::Answers,
            Learned::Succeeded => Says::Well,
            Learned::Failed | Learned::Silent => Says::Badly,
            Learned::Broke if was_suspected => Says::Nothing,
            Learned::Broke => Says::Broke,
        };
        let (worker, sent) = (&placement.worker, sent(wanted, placement.at));
        let Ejections { config, watch, .. } = &mut self.ejections;
        watch.ended(worker, &sent);
        if !self.workers.get(worker).is_some_and(|known| known.conduct.counts(sent.at)) {
            return;
        }
        watch.saw(worker, &sent, says, config, now);
        let learn = |known: &mut Known| known.conduct.learn(&sent, says, config, now);
        if let Some(saw) = self.workers.change(worker, Touches::Slots, learn).flatten()
            && !self.most_err()
        {
            self.eject(worker, saw, now);
        }
    }

    /// A worker has ended, or begun a new life.
    pub(super) fn is_no_more(&mut self, worker: &WorkerId) {
        self.ejections.watch.forget(worker);
    }

    fn eject(&mut self, worker: &WorkerId, saw: Saw, now: Instant) {
        let Ejections { config, out, on_trial, .. } = &self.ejections;
        let away = out.iter().chain(on_trial).filter(|other| *other != worker).count();
        if !config.enabled || away >= config.most_of(self.workers.len()) || !self.is_spared(worker) {
            return;
        }
        let eject = |known: &mut Known| known.conduct.eject(saw, config, now);
        let Some(ejection) = self.workers.change(worker, Touches::Slots, eject) else { return };
        let Ejections { watch, out, on_trial, news, totals, .. } = &mut self.ejections;
        watch.forget(worker);
        on_trial.retain(|other| other != worker);
        out.push(worker.clone());
        totals[saw.reason as usize] += 1;
        news.push(News::Ejected(worker.clone(), ejection));
    }

    /// Those whose time is over, and those that are needed; a worker that has ended, or begun a new life, is out no more.
    fn take_back(&mut self, now: Instant) {
        let mut on_trial = std::mem::take(&mut self.ejections.on_trial);
        on_trial.retain(|worker| self.workers.get(worker).is_some_and(|known| known.conduct.is_on_trial()));
        let mut out = std::mem::take(&mut self.ejections.out);
        out.retain(|worker| {
            let ejection = self.workers.get(worker).and_then(|known| known.conduct.ejection());
            let is_over = ejection.is_some_and(|ejection| now >= ejection.until);
            if is_over {
                self.workers.change(worker, Touches::Slots, |known| known.conduct.try_again(now));
                on_trial.push(worker.clone());
                self.ejections.news.push(News::OnTrial(worker.clone()));
            }
            ejection.is_some() && !is_over
        });
        // Those that have been out for longest are at the front.
        let too_many = out.len().saturating_sub(self.ejections.config.most_of(self.workers.len()));
        let mut needed: Vec<_> = out.drain(..too_many).collect();
        needed.extend(out.iter().chain(&on_trial).filter(|worker| !self.is_spared(worker)).cloned());
        out.retain(|worker| !needed.contains(worker));
        on_trial.retain(|worker| !needed.contains(worker));
        (self.ejections.out, self.ejections.on_trial) = (out, on_trial);
        for worker in needed {
            self.workers.change(&worker, Touches::Slots, |known| known.conduct.readmit(now));
            self.ejections.news.push(News::Needed(worker));
        }
    }

    /// Whether each integration that it serves, and does not spare, has another worker that is relied on.
    fn is_spared(&self, worker: &WorkerId) -> bool {
        let Some(known) = self.workers.get(worker) else { return false };
        let is_served = |integration| {
            let relied_on = |other: &Known| other.presence.worker != *worker && other.is_relied_on(integration);
            self.workers.serving(integration).is_some_and(|mut serving| serving.any(relied_on))
        };
        known.presence.integrations.iter().all(|integration| known.spares(integration) || is_served(integration))
    }

    /// Whether the last calls to more workers broke than may be ejected at all: then it is no fault of theirs.
    fn most_err(&self) -> bool {
        let err = self.workers.values().filter(|known| known.conduct.errs()).count();
        err > self.ejections.config.most_of(self.workers.len())
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

fn sent<'a>(wanted: &Wanted<'a>, at: Instant) -> Sent<'a> {
    Sent { integration: wanted.integration, tenant: wanted.tenant, at }
}
