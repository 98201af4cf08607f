//! The workers that a raise observes: who they are, where their metrics are, and whether they have what they should.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use crate::cli::scrape::reachable;
use crate::client::operations::Operations;
use crate::registry::{Incarnation, Presence, Registry, State};
use crate::settings::raise::{Group, Window};
use crate::task::{PoolName, WorkerId};

use super::readings::{Done, Reading, group};
use super::scrape::{Readings, Source};

/// Of a large fleet, so many canaries and so many controls are observed: beyond that, more add nothing to the signal.
const OBSERVED: usize = 50;

/// How long a document that was there before the raise may still take to be applied.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);

/// How often it is looked at whether a document is applied. A worker announces it at once.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Workers that are asked for their admin port at the same time.
const AT_ONCE: usize = 32;

/// Windows in a row that end while a worker takes no tasks to protect itself.
const OVERLOADED_FOR: u32 = 2;

/// Windows in a row after which a raise fails, because nothing of one of the two groups can be read.
const BLIND_FOR: u32 = 3;

/// How often the first reading of a window is tried, and the pause before the next time.
const ATTEMPTS: u32 = 3;
const RETRY: Duration = Duration::from_secs(1);

struct Member {
    incarnation: Incarnation,
    is_canary: bool,
    /// Where its metrics are: HOST:PORT.
    admin: String,
    /// The last reading.
    before: Option<Reading>,
    overloaded_for: u32,
}

/// Who is observed.
pub(super) struct Fleet {
    members: BTreeMap<WorkerId, Member>,
    blind_for: u32,
}

/// What a reading found.
struct Read {
    /// What the canaries and the controls did since the last one.
    groups: [Group; 2],
    /// Why one of them is not known at all.
    blind: Option<anyhow::Error>,
}

/// The workers of a pool that take tasks, all with the same N.
pub(super) struct Pool {
    pub(super) n: u32,
    pub(super) workers: Vec<Presence>,
}

impl Pool {
    /// Those that run this document, of which one may just have been told.
    pub(super) async fn read(registry: &dyn Registry, pool: &PoolName, version: Option<&str>) -> anyhow::Result<Self> {
        let until = Instant::now() + SETTLED_WITHIN;
        let mut workers = loop {
            let mut workers = registry.snapshot().await?.workers;
            workers.retain(|worker| worker.state != State::Draining);
            let is_behind = |worker: &&Presence| version.is_some_and(|version| worker.settings_version != version);
            let Some(behind) = workers.iter().find(is_behind) else { break workers };
            if Instant::now() >= until {
                bail!(
                    "worker {} runs settings {}, and the document is {}: look at weir settings status --pool {pool} first",
                    behind.worker,
                    behind.settings_version,
                    version.unwrap_or_default()
                );
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        };
        workers.sort_by(|one, other| one.worker.cmp(&other.worker));
        let first = match workers.as_slice() {
            [] => bail!("pool {pool} has no worker"),
            [only] => bail!(
                "pool {pool} has one worker, {}, and a raise compares some workers with the others: start another one, or \
                 set N by hand (weir settings set) and watch the dashboard",
                only.worker
            ),
            [first, ..] => first,
        };
        if let Some(other) = workers.iter().find(|worker| worker.target != first.target) {
            bail!(
                "the workers of pool {pool} have different N ({}: {}, {}: {}): give all of them one, such as weir settings \
                 set max_parallelism={} --pool {pool} --why 'one N for all'",
                first.worker,
                first.target,
                other.worker,
                other.target,
                first.target.min(other.target)
            );
        }
        Ok(Pool { n: first.target, workers })
    }
}

impl Fleet {
    /// Of these workers, those that are observed; asks each for its admin port.
    pub(super) async fn observe(pool: &Pool, canaries: &[WorkerId]) -> anyhow::Result<Self> {
        let is_canary = |presence: &&Presence| canaries.contains(&presence.worker);
        let (canaries, controls): (Vec<_>, Vec<_>) = pool.workers.iter().partition(is_canary);
        let chosen = canaries.iter().take(OBSERVED).map(|presence| (*presence, true));
        let chosen = chosen.chain(controls.iter().take(OBSERVED).map(|presence| (*presence, false)));
        let asked = chosen.map(|(presence, is_canary)| async move {
            let admin = admin_of(presence).await.with_context(|| format!("worker {}", presence.worker))?;
            let member =
                Member { incarnation: presence.incarnation, is_canary, admin, before: None, overloaded_for: 0 };
            anyhow::Ok((presence.worker.clone(), member))
        });
        let asked: stream::BufferUnordered<_> = stream::iter(asked).buffer_unordered(AT_ONCE);
        let members: Vec<_> = asked.collect().await;
        Ok(Fleet { members: members.into_iter().collect::<anyhow::Result<_>>()?, blind_for: 0 })
    }

    /// The observed canaries, and how many controls.
    pub(super) fn counts(&self) -> (usize, usize) {
        let canaries = self.members.values().filter(|member| member.is_canary).count();
        (canaries, self.members.len() - canaries)
    }

    /// What is missing until the workers run this document, and the canaries and the controls have their N.
    pub(super) async fn missing(
        &self,
        registry: &dyn Registry,
        version: &str,
        (canaries, controls): (u32, u32),
    ) -> Option<anyhow::Error> {
        let seen = match self.look(registry).await {
            Ok(seen) => seen,
            Err(error) => return Some(error),
        };
        seen.into_iter().find_map(|presence| {
            let n = if self.members.get(&presence.worker)?.is_canary { canaries } else { controls };
            let has_it = presence.settings_version == version && presence.target == n;
            (!has_it).then(|| {
                let Presence { worker, settings_version, target, .. } = presence;
                anyhow!(
                    "worker {worker} should run settings {version} with N = {n}, and runs {settings_version} with N = {target}"
                )
            })
        })
    }

    async fn look(&self, registry: &dyn Registry) -> anyhow::Result<Vec<Presence>> {
        let workers: Vec<_> = self.members.keys().cloned().collect();
        Ok(registry.look(&workers).await?)
    }

    /// Reads where a window begins; an error where nothing of one of the groups can be read.
    pub(super) async fn begin(&mut self, source: &Source) -> anyhow::Result<()> {
        let mut attempts = 1;
        while let Some(blind) = self.read(source, &mut Vec::new()).await.blind {
            if attempts == ATTEMPTS {
                return Err(blind);
            }
            attempts += 1;
            tokio::time::sleep(RETRY).await;
        }
        self.blind_for = 0;
        Ok(())
    }

    /// Reads where a window ends, and the next one begins. `all_have_it` says that the controls have the new N, too.
    /// Whoever could not be read is told of in `warnings`; an error where that is a whole group, window after window.
    pub(super) async fn window(
        &mut self,
        registry: &dyn Registry,
        source: &Source,
        all_have_it: bool,
        warnings: &mut Vec<String>,
    ) -> anyhow::Result<Window> {
        let lost = match self.look(registry).await {
            Ok(seen) => self.lost(&seen, all_have_it, warnings),
            Err(error) => {
                warnings.push(format!("who lives is not known: {error:#}"));
                None
            }
        };
        let Read { groups: [canaries, controls], blind } = self.read(source, warnings).await;
        match blind {
            // What has happened to them decides, and not that they cannot be read for it.
            Some(_) if lost.is_some() => {}
            Some(blind) if self.blind_for + 1 == BLIND_FOR => {
                return Err(blind.context(format!("{BLIND_FOR} windows in a row told nothing")));
            }
            Some(_) => self.blind_for += 1,
            None => self.blind_for = 0,
        }
        Ok(Window { canaries, controls, lost })
    }

    /// What has happened to a worker with the new N. Others that leave are observed no longer.
    fn lost(&mut self, seen: &[Presence], all_have_it: bool, warnings: &mut Vec<String>) -> Option<String> {
        let mut lost = None;
        self.members.retain(|worker, member| {
            let presence = seen.iter().find(|presence| presence.worker == *worker);
            let what = match presence {
                None => "has gone",
                Some(presence) if presence.incarnation != member.incarnation => "was started anew",
                Some(presence) if presence.state == State::Draining => "drains",
                Some(presence) => {
                    let is_overloaded = presence.state == State::Overloaded;
                    member.overloaded_for = if is_overloaded { member.overloaded_for + 1 } else { 0 };
                    if member.overloaded_for >= OVERLOADED_FOR && (member.is_canary || all_have_it) {
                        lost = Some(format!("worker {worker} takes no tasks, to protect itself"));
                    }
                    return true;
                }
            };
            // Whoever is told to end does so in order; that is not the raise's doing.
            if what != "drains" && (member.is_canary || all_have_it) {
                lost = Some(format!("worker {worker} {what}"));
            }
            warnings.push(format!("worker {worker} {what}; it is observed no longer"));
            false
        });
        lost
    }

    async fn read(&mut self, source: &Source, warnings: &mut Vec<String>) -> Read {
        let workers: Vec<_> =
            self.members.iter().map(|(worker, member)| (worker.clone(), member.admin.clone())).collect();
        let mut readings = source.read(&workers).await;
        let blind = [true, false].into_iter().find_map(|is_canary| self.blind(&readings, is_canary));
        let mut done: [Vec<Done>; 2] = Default::default();
        for (worker, member) in &mut self.members {
            match readings.remove(worker) {
                Some(Ok(reading)) => {
                    let since = member.before.as_ref().and_then(|before| reading.since(before));
                    done[usize::from(!member.is_canary)].extend(since);
                    member.before = Some(reading);
                }
                Some(Err(error)) => warnings.push(format!("the metrics of worker {worker} cannot be read: {error:#}")),
                None => {}
            }
        }
        Read { groups: done.map(|workers| group(&workers)), blind }
    }

    /// Why nothing of a group is known, where that is so.
    fn blind(&self, readings: &Readings, is_canary: bool) -> Option<anyhow::Error> {
        let name = if is_canary { "canary" } else { "other worker" };
        let group = self.members.iter().filter(|(_, member)| member.is_canary == is_canary);
        let mut why = anyhow!("no {name} is left to be observed");
        for (worker, _) in group {
            match readings.get(worker)? {
                Ok(_) => return None,
                Err(error) => why = anyhow!("the metrics of no {name} can be read, such as of {worker}: {error:#}"),
            }
        }
        Some(why)
    }
}

/// Where a worker's metrics are, as it says itself.
async fn admin_of(presence: &Presence) -> anyhow::Result<String> {
    let description = Operations::new(&presence.address)?.describe(1).await?;
    reachable(&description.admin, &presence.address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::memory::MemoryRegistry;

    fn presence(worker: &str, target: u32) -> Presence {
        Presence { target, settings_version: "v".into(), ..Presence::of_a_test(worker) }
    }

    fn fleet(workers: &[(&Presence, bool)]) -> Fleet {
        let member = |(presence, is_canary): &(&Presence, bool)| {
            let (incarnation, is_canary) = (presence.incarnation, *is_canary);
            let member = Member { incarnation, is_canary, admin: String::new(), before: None, overloaded_for: 0 };
            (presence.worker.clone(), member)
        };
        Fleet { members: workers.iter().map(member).collect(), blind_for: 0 }
    }

    #[tokio::test]
    async fn a_pool_that_cannot_be_compared_is_refused_with_what_to_do() {
        let (registry, pool) = (MemoryRegistry::new(), PoolName::default());
        let read = async || {
            Pool::read(&registry, &pool, Some("v")).await.map(|pool| pool.n).map_err(|error| error.to_string())
        };
        assert!(read().await.expect_err("nobody").contains("has no worker"));
        registry.announce(&presence("one", 30), true).await.expect("announced");
        let error = read().await.expect_err("one alone");
        assert!(error.contains("has one worker, one, and a raise compares"), "{error}");
        registry.announce(&presence("two", 40), true).await.expect("announced");
        let error = read().await.expect_err("different");
        assert!(error.contains("one: 30, two: 40") && error.contains("max_parallelism=30 --pool default"), "{error}");
        registry.announce(&presence("two", 30), true).await.expect("announced");
        assert_eq!(read().await, Ok(30));
    }

    #[test]
    fn a_canary_that_dies_is_lost_and_one_that_drains_or_a_control_is_only_gone() {
        let all: Vec<_> = ["canary", "control", "third"].iter().map(|worker| presence(worker, 30)).collect();
        let watched = || fleet(&[(&all[0], true), (&all[1], false), (&all[2], false)]);
        let lost = |fleet: &mut Fleet, seen: &[Presence], all_have_it| fleet.lost(seen, all_have_it, &mut Vec::new());

        let mut fleet = watched();
        assert_eq!(lost(&mut fleet, &all, false), None);
        assert_eq!(lost(&mut fleet, &all[..2], false), None, "a control");
        assert_eq!(fleet.counts(), (1, 1));
        assert_eq!(lost(&mut fleet, &all[1..2], false).as_deref(), Some("worker canary has gone"));
        assert_eq!(lost(&mut watched(), &all[..2], true).as_deref(), Some("worker third has gone"));

        let anew = Presence { incarnation: Incarnation::mint(), ..all[0].clone() };
        let seen = [anew, all[1].clone(), all[2].clone()];
        assert_eq!(lost(&mut watched(), &seen, false).as_deref(), Some("worker canary was started anew"));
        let drains = [Presence { state: State::Draining, ..all[0].clone() }, all[1].clone(), all[2].clone()];
        let mut fleet = watched();
        assert_eq!((lost(&mut fleet, &drains, false), fleet.counts()), (None, (0, 2)));

        let sheds = [Presence { state: State::Overloaded, ..all[0].clone() }, all[1].clone(), all[2].clone()];
        let mut fleet = watched();
        assert_eq!(lost(&mut fleet, &sheds, false), None, "once may be chance");
        assert!(lost(&mut fleet, &sheds, false).expect("twice").contains("to protect itself"));
    }
}
