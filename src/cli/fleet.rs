//! `weir fleet`: the workers of a pool, as the registry has them.
//!
//! It follows the registry as a router does: one snapshot, then changes; nothing reads the whole fleet at an interval. A
//! number in flight alone is no change, so the rows that are on the screen, and only those, are looked up once per
//! heartbeat.

mod follow;
mod screen;
mod view;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use serde::Serialize;
use tokio::time::MissedTickBehavior;

use super::table::printable;
use super::{Signals, block_on, print, remark};
use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::registry::{self, Incarnation, Presence, Registry};
use crate::task::{PoolName, WorkerId};
use crate::telemetry::Telemetry;
use follow::{Following, Update};
use screen::Screen;
use view::View;

/// How often the screen is drawn.
const DRAW_INTERVAL: Duration = Duration::from_millis(250);

/// How long the loops may take to end.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// Flags of `weir fleet`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "On a terminal the table is live: q or Ctrl-C ends it. Numbers in flight are those of each worker's last \
heartbeat, at most 2 s old; off the screen, those of its last change of state.

RESERVED is how many of the free slots only interactive tasks may take. KEPT OUT names integrations of which a worker takes \
nothing although it may have room: spared, because they fail; half open, of which a few tasks try whether they still do; \
full, of which as many run as may. SETTINGS is the version of the settings, and how many values of the last document the worker \
rejects: `weir settings status` names them.

With --json, each line is a worker: worker, address, incarnation, pool, target, in_flight, reserved, state, integrations, \
settings_version, jump_limit, and where there are any, full, broken (spared) and half_open, lists of integrations, and \
settings_rejected (version, keys, more). With --follow too, each has \"change\": \"present\" (new, or changed) or \"gone\" \
(worker and incarnation alone).

Examples:
  weir fleet
  weir fleet --pool parallel --once
  weir fleet --json | jq 'select(.state == \"full\").worker'
  weir fleet --json --follow"
)]
pub(super) struct Args {
    /// The pool; without it, the one that [router] names.
    #[arg(long)]
    pool: Option<PoolName>,
    /// Prints the table once, as it does when the output is no terminal.
    #[arg(long, conflicts_with = "follow")]
    once: bool,
    /// Prints one JSON object per worker and line.
    #[arg(long)]
    json: bool,
    /// Goes on with each change as a JSON line, until it is interrupted.
    #[arg(long, requires = "json")]
    follow: bool,
}

pub(super) fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    let pool = args.pool.clone().unwrap_or(config.router.pool);
    if config.registry.url.is_none() {
        bail!(
            "registry.url: name the Redis that the workers announce themselves in, such as \"redis://127.0.0.1:6379\" \
             (in weir.toml, or as WEIR_REGISTRY__URL)"
        );
    }
    block_on(async {
        let registry = registry::open(&config.registry, &pool, &Telemetry::new()?)?;
        match (args.follow, args.json, args.once || !io::stdout().is_terminal()) {
            (true, ..) => follow_as_lines(registry).await,
            (false, true, _) => once_as_lines(&*registry).await,
            (false, false, true) => once(&*registry, &pool).await,
            (false, false, false) => live(registry, &pool).await,
        }
    })
}

async fn once(registry: &dyn Registry, pool: &PoolName) -> anyhow::Result<ExitCode> {
    let mut view = View::default();
    view.update(Update::Snapshot(registry.snapshot().await?.workers));
    print(&view.text(pool))
}

async fn once_as_lines(registry: &dyn Registry) -> anyhow::Result<ExitCode> {
    let mut workers = registry.snapshot().await?.workers;
    workers.sort_by(|one, other| one.worker.cmp(&other.worker));
    for presence in workers {
        print(&serde_json::to_string(&presence)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One line of `--follow`.
#[derive(Serialize)]
#[serde(tag = "change", rename_all = "lowercase")]
enum Line<'a> {
    Present(&'a Presence),
    Gone { worker: &'a WorkerId, incarnation: Incarnation },
}

async fn follow_as_lines(registry: Arc<dyn Registry>) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let lifecycle = Lifecycle::new();
    let mut following = Following::start(registry, &lifecycle);
    let mut view = View::default();
    let mut is_away = false;
    let lines = async {
        while let Some(update) = following.updates.recv().await {
            // Each is said once, however often it is tried.
            match &update {
                Update::Away(error) if !is_away => {
                    remark(format_args!("weir: the last view stays: {}", printable(&error.to_string())));
                    is_away = true;
                }
                Update::Snapshot(_) | Update::Changes(_) if is_away => {
                    remark("weir: the registry answers again");
                    is_away = false;
                }
                _ => {}
            }
            let news = view.update(update);
            let present = news.present.iter().map(Line::Present);
            let gone = news.gone.iter().map(|(worker, incarnation)| Line::Gone { worker, incarnation: *incarnation });
            for line in present.chain(gone) {
                print(&serde_json::to_string(&line)?)?;
            }
        }
        anyhow::Ok(())
    };
    tokio::select! {
        () = signals.next() => {}
        ended = lines => ended?,
    }
    stop(&lifecycle).await;
    Ok(ExitCode::SUCCESS)
}

async fn live(registry: Arc<dyn Registry>, pool: &PoolName) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let lifecycle = Lifecycle::new();
    let mut following = Following::start(registry, &lifecycle);
    let mut view = View::default();
    let screen = Screen::open(&lifecycle)?;
    let mut draws = tokio::time::interval(DRAW_INTERVAL);
    draws.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ended = loop {
        tokio::select! {
            () = signals.next() => break Ok(()),
            () = screen.asked_to_end() => break Ok(()),
            Some(update) = following.updates.recv() => drop(view.update(update)),
            _ = draws.tick() => {
                let (lines, on_screen) = view.frame(pool, screen.rows());
                following.watch(on_screen);
                if let Err(error) = screen.draw(&lines) {
                    break Err(error);
                }
            }
        }
    };
    drop(screen);
    stop(&lifecycle).await;
    ended?;
    Ok(ExitCode::SUCCESS)
}

async fn stop(lifecycle: &Lifecycle) {
    // What does not end is a read of Redis, which ends with the process.
    let _ = lifecycle.stop(STOP_WITHIN).await;
}
