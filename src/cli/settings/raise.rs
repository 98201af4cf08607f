//! `weir settings raise`: turns N up step by step, on a share of the workers first, and takes back what is worse.
//!
//! What is decided, and by which rule, is in `settings/raise.rs`; here it is observed and done. Each change is a document like
//! any other, with the numbers in the history. The mark in it says that a raise is under way, so that no second one begins;
//! and since each write names the document that it replaces, whoever else changes the settings meanwhile ends the raise
//! without losing anything.

mod args;
mod fleet;
mod readings;
mod scrape;
mod share;
mod show;

use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::super::table::counted;
use super::super::{Signals, remark};
use super::{document, lost, who};
use crate::config::Config;
use crate::registry::{self, Registry};
use crate::settings::edit::{self, Share};
use crate::settings::raise::{How, Look, Next, Raise, Rules, Stop, Verdict};
use crate::settings::store::{Edit, ReadError, Store, WriteError, version_of};
use crate::settings::{Settings, mark};
use crate::task::{PoolName, WorkerId};
use crate::telemetry::Telemetry;
pub(super) use args::Args;
use fleet::{Fleet, LOOK_INTERVAL, Pool};
use scrape::Source;
use share::{change, changed, choose};
use show::Output;

/// The only setting that can be raised so far.
const KEY: &str = "max_parallelism";

/// Exit codes.
const WORSE: u8 = 3;
const WEAK: u8 = 4;
const INTERRUPTED: u8 = 130;

/// How long a change may take to be applied by those who are observed.
const ARRIVES_WITHIN: Duration = Duration::from_secs(30);

/// How often the last change is tried, and the pause before the next time.
const ATTEMPTS: u32 = 10;
const RETRY: Duration = Duration::from_secs(1);

/// How a raise ended, and the N that stays: the last one that has proven itself.
struct Ended {
    how: End,
    stays: u32,
    /// The same in words, for the history.
    why: String,
}

/// How a raise ended.
enum End {
    /// By its rule.
    Decided(How),
    /// Somebody ended it.
    Interrupted,
    Failed,
}

impl From<Stop> for Ended {
    fn from(Stop { how, stays, why }: Stop) -> Self {
        Ended { how: End::Decided(how), stays, why }
    }
}

impl Ended {
    fn exit_code(&self) -> u8 {
        match self.how {
            End::Decided(How::Reached) => 0,
            End::Decided(How::Worse) => WORSE,
            End::Decided(How::Weak) => WEAK,
            End::Interrupted => INTERRUPTED,
            End::Failed => 1,
        }
    }
}

pub(super) async fn run(args: Args, store: Arc<dyn Store>, config: &Config) -> anyhow::Result<ExitCode> {
    if config.registry.url.is_none() {
        bail!(
            "registry.url: name the Redis that the workers announce themselves in, such as \"redis://127.0.0.1:6379\""
        );
    }
    let (rules, source) = (args.rules()?, Source::new(args.prometheus.as_deref())?);
    let pool = args.pool.clone().unwrap_or_else(|| config.router.pool.clone());
    let registry = registry::open(&config.registry, &pool, &Telemetry::new()?)?;
    let mut signals = Signals::listen()?;
    let mut session = Session::open(&args, &*store, &*registry, source, pool, config).await?;
    refuse_jump(&rules.path(session.from, args.to), session.max_jump)?;
    let mut raise = Raise::new(rules.clone(), session.from, args.to);
    session.announce(&rules)?;
    if args.dry_run {
        return session.observe_once(args.window, &mut signals).await;
    }
    let course = session.course(&mut raise, args.window, &mut signals).await;
    let stays = raise.proven();
    let (ended, failure) = match course {
        Ok(Some(stop)) => (stop.into(), None),
        Ok(None) => (Ended { how: End::Interrupted, stays, why: "it was interrupted".into() }, None),
        // What somebody else has written is not written over, not even to take something back.
        Err(error) if error.is::<Touched>() => return Err(session.touched(stays)),
        Err(error) => (Ended { how: End::Failed, stays, why: format!("it failed: {error:#}") }, Some(error)),
    };
    let what_remains = session.remains();
    let left = signals.or_exit(session.leave(&ended), None, || remark(format_args!("weir: {what_remains}"))).await;
    left?;
    failure.map_or_else(|| Ok(ExitCode::from(ended.exit_code())), Err)
}

/// A raise, and what it has done so far.
struct Session<'a> {
    args: &'a Args,
    store: &'a dyn Store,
    registry: &'a dyn Registry,
    source: Source,
    pool: PoolName,
    start: Settings,
    max_jump: f64,
    share: Share,
    canaries: Vec<WorkerId>,
    workers: usize,
    fleet: Fleet,
    from: u32,
    /// The document that is there, as far as this raise knows.
    current: Option<String>,
    /// The document of each N that all had, without the mark; none where there was no document.
    levels: Vec<(u32, Option<String>)>,
    /// The last change that this raise made.
    revision: Option<u64>,
    undo: UndoCommands,
    output: Output,
}

impl<'a> Session<'a> {
    async fn open(
        args: &'a Args,
        store: &'a dyn Store,
        registry: &'a dyn Registry,
        source: Source,
        pool: PoolName,
        config: &Config,
    ) -> anyhow::Result<Self> {
        let bytes = document(store).await?;
        if let Some(raise) = bytes.as_deref().and_then(|document| mark::marked(document, KEY)) {
            bail!("another raise is under way: {raise}");
        }
        if bytes.is_none() {
            lost::refuse(store, config).await?;
        }
        let current = bytes.map(String::from_utf8).transpose().context("the document is not UTF-8")?;
        let version = current.as_deref().map(|document| version_of(document.as_bytes()));
        let members = Pool::read(registry, &pool, version.as_deref()).await?;
        let from = members.n;
        if args.to <= from {
            bail!("--to {}: pool {pool} has N = {from} already", args.to);
        }
        let undo = undo(store, current.as_deref(), from, &pool).await?;
        // What the workers have is what a jump is one from, whatever they would be started with here.
        let start = Settings { max_parallelism: from, ..config.settings.start() };
        let max_jump = config.settings.max_jump;
        let ids: Vec<_> = members.workers.iter().map(|worker| worker.worker.clone()).collect();
        let trial = |share: Share| {
            let change = change(from.saturating_add(1), &pool, Some(share));
            edit::edit(current.as_deref().map(str::as_bytes), &[change], &start, max_jump)
        };
        let (share, canaries) = choose(args.share, &ids, from.saturating_add(1), &pool, trial)?;
        let on_trial = trial(share).map_err(anyhow::Error::msg)?;
        if let Some(other) = changed(current.as_deref(), &on_trial, &ids, &canaries, &pool)? {
            bail!(
                "a rule for a share of the workers decides on the N of pool {pool}, and each step would replace it, so that {other} \
                 would lose its N, too: give all of them one, such as weir settings set {KEY}={from} --pool {pool} --why 'one N for \
                 all'"
            );
        }
        let fleet = Fleet::observe(&members, &canaries).await?;
        Ok(Session {
            args,
            store,
            registry,
            source,
            pool,
            start,
            max_jump,
            share,
            canaries,
            workers: ids.len(),
            fleet,
            from,
            levels: vec![(from, current.clone())],
            current,
            revision: None,
            undo,
            output: Output::new(args.json),
        })
    }

    fn announce(&self, rules: &Rules) -> anyhow::Result<()> {
        let steps = rules.path(self.from, self.args.to);
        let named: Vec<_> = self.canaries.iter().take(5).map(WorkerId::as_str).collect();
        let more = if self.canaries.len() > named.len() { ", …" } else { "" };
        let (canaries, controls) = self.fleet.counts();
        let path: Vec<_> = steps.iter().map(u32::to_string).collect();
        let text = format!(
            "{KEY} of pool {}: {}; each step on {} of {} first ({}: {}{more}); observed are {canaries} of them and {}, in windows \
             of {}",
            self.pool,
            path.join(" → "),
            self.canaries.len(),
            counted(self.workers as u64, "worker"),
            self.share,
            named.join(", "),
            counted(controls as u64, "other"),
            humantime::format_duration(self.args.window),
        );
        let plan = json!({"key": KEY, "pool": self.pool.as_str(), "steps": steps, "share": self.share.to_string(),
            "canaries": self.canaries.iter().map(WorkerId::as_str).collect::<Vec<_>>(), "workers": self.workers,
            "window_seconds": self.args.window.as_secs_f64()});
        self.output.plan(&text, plan)
    }

    async fn observe_once(&mut self, window: Duration, signals: &mut Signals) -> anyhow::Result<ExitCode> {
        self.fleet.begin(&self.source).await?;
        tokio::select! {
            () = signals.next() => return Ok(ExitCode::from(INTERRUPTED)),
            () = tokio::time::sleep(window) => {}
        }
        let mut warnings = Vec::new();
        let seen = self.fleet.window(self.registry, &self.source, false, &mut warnings).await?;
        warnings.iter().for_each(|warning| self.output.warn(warning));
        self.output.observation(&seen)?;
        self.output.say("nothing was changed: this was --dry-run")?;
        Ok(ExitCode::SUCCESS)
    }

    /// Windows, looks, and what follows from them, until there is nothing more to do.
    /// None where somebody interrupts it.
    async fn course(
        &mut self,
        raise: &mut Raise,
        window: Duration,
        signals: &mut Signals,
    ) -> anyhow::Result<Option<Stop>> {
        self.fleet.begin(&self.source).await?;
        let mut end = Instant::now() + window;
        loop {
            tokio::select! {
                () = signals.next() => return Ok(None),
                () = sleep_until(end) => {}
            }
            self.is_untouched().await?;
            let (n, on_trial, mut warnings) = (raise.n(), raise.on_trial(), Vec::new());
            let all_have_it = on_trial.is_none() && n != self.from;
            let seen = self.fleet.window(self.registry, &self.source, all_have_it, &mut warnings).await;
            warnings.iter().for_each(|warning| self.output.warn(warning));
            let seen = seen?;
            let look = raise.look(&seen);
            self.output.window(&seen, &look, n, on_trial)?;
            end += window;
            let targets = match look.next {
                Next::Hold => continue,
                Next::Stop(stop) => return Ok(Some(stop)),
                Next::Step(to) => self.step(to, n).await?,
                Next::Promote(to) => self.promote(to, &look).await?,
            };
            tokio::select! {
                () = signals.next() => return Ok(None),
                arrived = self.arrived(targets) => arrived?,
            }
            tokio::select! {
                () = signals.next() => return Ok(None),
                begun = self.fleet.begin(&self.source) => begun?,
            }
            end = Instant::now() + window;
        }
    }

    /// Waits until the last change is applied: the canaries and the controls have these N.
    async fn arrived(&self, targets: (u32, u32)) -> anyhow::Result<()> {
        let version = version_of(self.current.as_deref().unwrap_or_default().as_bytes());
        let until = Instant::now() + ARRIVES_WITHIN;
        while let Some(missing) = self.fleet.missing(self.registry, &version, targets).await {
            self.is_untouched().await?;
            if Instant::now() >= until {
                let within = humantime::format_duration(ARRIVES_WITHIN);
                return Err(missing.context(format!("the change did not arrive within {within}")));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// That nobody else has changed the document. Where it cannot be read, nobody knows; the next write finds out.
    async fn is_untouched(&self) -> anyhow::Result<()> {
        let there = match self.store.read().await {
            Ok(there) => Some(there),
            Err(ReadError::Missing) => None,
            Err(error) => {
                self.output.warn(&format!("{}: {error}", self.store.name()));
                return Ok(());
            }
        };
        if there.as_deref() == self.current.as_deref().map(str::as_bytes) { Ok(()) } else { Err(Touched.into()) }
    }

    async fn step(&mut self, to: u32, n: u32) -> anyhow::Result<(u32, u32)> {
        let document = self.edited(to, Some(self.share))?;
        let whom = format!("{} of pool {}, on trial", self.share, self.pool);
        self.write(self.marked(&document), to, &whom, "to be compared with the others").await?;
        Ok((to, n))
    }

    async fn promote(&mut self, to: u32, look: &Look) -> anyhow::Result<(u32, u32)> {
        let document = self.edited(to, None)?;
        let whom = format!("all of pool {}", self.pool);
        self.write(self.marked(&document), to, &whom, &good(&look.verdicts, look.windows)).await?;
        self.levels.push((to, Some(document)));
        Ok((to, to))
    }

    /// Leaves the document of the last N that has proven itself, without the mark.
    async fn leave(&mut self, ended: &Ended) -> anyhow::Result<()> {
        if self.revision.is_none() {
            return self.output.end(ended, "Nothing was changed");
        }
        let stays = ended.stays;
        let level = self.levels.iter().find(|(n, _)| *n == stays).and_then(|(_, document)| document.clone());
        let document = match level {
            Some(document) => document,
            // There was no document: this one says what the workers were started with.
            None => self.edited(stays, None)?,
        };
        let whom = format!("all of pool {}, at the end of the raise", self.pool);
        let mut attempts = 1;
        while let Err(error) = self.write(document.clone(), stays, &whom, &ended.why).await {
            if error.is::<Touched>() {
                return Err(self.touched(stays));
            }
            if attempts == ATTEMPTS {
                bail!(
                    "the raise has ended ({}), and its last step could not be taken back ({error:#}); {}",
                    ended.why,
                    self.remains()
                );
            }
            self.output.warn(&format!("{error:#}; trying again"));
            attempts += 1;
            tokio::time::sleep(RETRY).await;
        }
        let what_remains = match stays == self.from {
            true => format!("All is as it was before: v{} put it back", self.revision.unwrap_or_default()),
            false => format!("To take all of it back: {}", self.undo),
        };
        self.output.end(ended, &what_remains)
    }

    /// What is there if nothing more is done, and how to undo it.
    fn remains(&self) -> String {
        match self.revision {
            None => "nothing was changed".into(),
            Some(revision) => format!("v{revision} of this raise stays; to take all of it back: {}", self.undo),
        }
    }

    /// That somebody else has written over it, and what to do: to put back a whole document would take back that, too.
    fn touched(&self, stays: u32) -> anyhow::Error {
        let what = match self.revision {
            None => "this raise has changed nothing".into(),
            Some(revision) => format!(
                "what this raise wrote last (v{revision}) may be a part of the document that is there; to end it: weir settings \
                 set {KEY}={stays} --pool {} --why 'the raise is taken back'",
                self.pool
            ),
        };
        anyhow!("the raise has ended, for {Touched}; {what}")
    }

    fn edited(&self, n: u32, share: Option<Share>) -> anyhow::Result<String> {
        let changes = [change(n, &self.pool, share)];
        let edited = edit::edit(self.current.as_deref().map(str::as_bytes), &changes, &self.start, self.max_jump);
        edited.map_err(anyhow::Error::msg)
    }

    fn marked(&self, document: &str) -> String {
        // Of two that begin at the same moment, each knows its own by the process.
        let (since, process) = (humantime::format_rfc3339_millis(SystemTime::now()), std::process::id());
        let text = format!(
            "{} raises it to {} for pool {} (process {process}), seen at {since}; if that has been ended, take it back: {}",
            who(),
            self.args.to,
            self.pool,
            self.undo
        );
        mark::mark(document, KEY, &text)
    }

    /// The number of this change, where it is what is in the way of itself: it was made, and only the answer was lost.
    async fn is_ours(&self, edit: &Edit) -> anyhow::Result<u64> {
        match self.store.history().await?.last() {
            Some(last) if last.edit == *edit => Ok(last.number),
            _ => Err(Touched.into()),
        }
    }

    async fn write(&mut self, document: String, n: u32, whom: &str, why: &str) -> anyhow::Result<()> {
        let reason = self.args.why.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let text = format!("raise to {}{reason}: N = {n} for {whom}: {why}", self.args.to);
        let edit = Edit { document, who: who(), why: text };
        let revision = match self.store.write(self.current.as_deref().map(str::as_bytes), &edit).await {
            Ok(revision) => revision,
            Err(WriteError::Conflict) => self.is_ours(&edit).await?,
            Err(failed) => return Err(failed.into()),
        };
        (self.current, self.revision) = (Some(edit.document), Some(revision));
        self.output.change(revision, n, whom, &edit.why)
    }
}

/// A step that workers would refuse.
fn refuse_jump(path: &[u32], max_jump: f64) -> anyhow::Result<()> {
    for (n, next) in path.iter().zip(path.iter().skip(1)) {
        let limit = (f64::from(*n) * max_jump) as u32;
        if *next > limit {
            bail!(
                "the step from N = {n} to {next} is one that workers refuse, for it is more than {max_jump} times what it was \
                 (settings.max_jump): use a smaller --step, or a larger settings.max_jump, here and at the workers"
            );
        }
    }
    Ok(())
}

/// Somebody else has changed the document.
#[derive(Debug, thiserror::Error)]
#[error("somebody else has changed the settings meanwhile (weir settings history and weir settings diff show what)")]
struct Touched;

fn good(verdicts: &[Verdict], windows: usize) -> String {
    format!("good after {windows} windows: {}", show::summary(verdicts))
}

/// The commands that take a raise back.
struct UndoCommands {
    /// To the document before, or where the history does not have it, to N.
    best: String,
    /// Where that takes back what others have changed, too: the one to N.
    beside_others: Option<String>,
}

impl fmt::Display for UndoCommands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.best)?;
        self.beside_others.as_ref().map_or(Ok(()), |command| {
            write!(f, "; if others have changed the document since (weir settings history): {command}")
        })
    }
}

async fn undo(store: &dyn Store, current: Option<&str>, from: u32, pool: &PoolName) -> anyhow::Result<UndoCommands> {
    let history = store.history().await?;
    let revision = match (history.last(), current) {
        // The first change notes what was there.
        (None, Some(_)) => Some(1),
        (Some(last), Some(current)) if last.edit.document == current => Some(last.number),
        _ => None,
    };
    let why = "--why 'the raise is taken back'";
    let to_n = format!("weir settings set {KEY}={from} --pool {pool} {why}");
    Ok(match revision {
        Some(revision) => {
            UndoCommands { best: format!("weir settings rollback {revision} {why}"), beside_others: Some(to_n) }
        }
        None => UndoCommands { best: to_n, beside_others: None },
    })
}
