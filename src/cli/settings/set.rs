//! `weir settings set`: a value for all, for the workers of a pool, or for a share of them.
//!
//! What workers would refuse is refused here, too, before anything is written. Whether a value is a jump is theirs to say:
//! it is judged by what the registry says that they have, and where that is not known, this says so.

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::bail;
use serde_json::Value;

use super::super::table::counted;
use super::super::{print, remark};
use super::{BACK, asked, document, help, lost, reason, unserved, who};
use crate::config::Config;
use crate::registry::Presence;
use crate::settings::edit::{self, Change, Scope, Share};
use crate::settings::flagd::Document;
use crate::settings::jump;
use crate::settings::store::{Edit, Store};
use crate::settings::{self, Spec, spec};
use crate::task::PoolName;

const EXAMPLES: &str = "With --pool or --share, the value becomes a rule in front of those that are there; it replaces the one that \
this command wrote for the same pool before. A worker that is in a share stays in it while the share grows. A value that \
workers would refuse as a jump (settings.max_jump) is not set, as far as the registry says what they have. Where settings are \
kept, and how they differ by rules: docs/settings.md.

Examples:
  weir settings set max_parallelism=40 --pool parallel --share 5% --why 'a first step'
  weir settings set max_parallelism=40 --pool parallel --why 'the first step went well'
  weir settings set 'integration_caps={\"bank\": 5}' payload_sampling=0.1 --why 'the bank is slow'
  weir settings set max_parallelism=30 --everywhere --why 'back to one value for all'";

#[derive(Debug, clap::Args)]
#[command(after_help = help::with_settings(EXAMPLES))]
pub(super) struct Args {
    /// Settings and their values, in JSON or as text.
    #[arg(value_name = "KEY=VALUE", required = true, value_parser = assignment)]
    values: Vec<(String, Value)>,
    /// For the workers of this pool.
    #[arg(long)]
    pool: Option<PoolName>,
    /// For this share of the workers, such as 5%.
    #[arg(long, value_name = "PERCENT", value_parser = share)]
    share: Option<Share>,
    /// For all workers; removes the rules that there are for some.
    #[arg(long, conflicts_with_all = ["pool", "share"])]
    everywhere: bool,
    /// Lets a value be more than settings.max_jump times what it was.
    #[arg(long)]
    allow_jump: bool,
    /// Begins a new document although workers run one that is gone.
    #[arg(long)]
    new: bool,
    /// The reason, for the history.
    #[arg(long, value_name = "TEXT")]
    why: String,
}

fn assignment(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("use KEY=VALUE, such as max_parallelism=40")?;
    Ok((key.trim().to_owned(), edit::read_value(value).map_err(|reason| format!("the value {reason}"))?))
}

fn share(text: &str) -> Result<Share, String> {
    text.parse().map_err(|reason| format!("{reason}; for all of them, leave --share out"))
}

pub(super) async fn run(args: Args, store: &dyn Store, config: &Config) -> anyhow::Result<ExitCode> {
    let why = reason(args.why)?;
    let scope = match (args.everywhere, args.pool, args.share) {
        (true, ..) => Scope::Everywhere,
        (false, None, None) => Scope::Default,
        (false, pool, share) => Scope::Some { pool, share },
    };
    let pool = if let Scope::Some { pool, .. } = &scope { pool.as_ref() } else { None };
    let change = |(key, value)| Change { key, value, scope: scope.clone(), allow_jump: args.allow_jump };
    let changes: Vec<_> = args.values.into_iter().map(change).collect();
    let mut keys = BTreeSet::new();
    if let Some(Change { key, .. }) = changes.iter().find(|change| !keys.insert(&change.key)) {
        bail!("{key} is given more than once: give each setting one value");
    }
    let current = document(store).await?;
    if current.is_none() && !args.new {
        lost::refuse(store, config).await?;
    }
    let start = config.settings.start();
    let edited = |changes, max_jump| edit::edit(current.as_deref(), changes, &start, max_jump);
    if let Err(reason) = edited(&[], f64::INFINITY) {
        bail!("{}: {reason}; mend it, or put the last good one back with {BACK}", store.name());
    }
    let document = edited(&changes, f64::INFINITY).map_err(anyhow::Error::msg)?;
    let is_same = |there: &&[u8]| edit::is_same(there, document.as_bytes());
    if let Some(there) = current.as_deref().filter(is_same) {
        if let Ok(workers) = asked::ask(pool, config).await {
            let keys: Vec<_> = changes.iter().map(|change| change.key.as_str()).collect();
            asked::refuse_rejected(there, Some(&keys), &workers)?;
        }
        return print("nothing changes: it is set already");
    }
    let may_jump = changes.iter().any(|change| change.key == jump::KEY && !change.allow_jump);
    let named = settings::named_in(changes.iter().map(|change| (change.key.as_str(), &change.value)));
    let has_names = !named.named_integrations().is_empty() || !named.named_pools().is_empty();
    let asked = asked::ask(pool, config).await;
    if may_jump {
        let workers = asked.as_deref().unwrap_or_default();
        asked::refuse_jump(current.as_deref(), &document, workers, config)?;
        // Of those who have not read the document, and of those whom nobody can ask, it is all that there is to go by.
        if asked::is_partial(workers, current.as_deref(), config) {
            edited(&changes, config.settings.max_jump).map_err(anyhow::Error::msg)?;
        }
    }
    let is_raise = may_jump && edited(&changes, 1.0).is_err();
    let mut remarks = asked::values_refused(&document, &start, asked.as_deref().unwrap_or_default());
    if let Ok(workers) = &asked {
        remarks.extend(asked::jump_still(current.as_deref(), document.as_bytes(), workers));
        remarks.extend(shares_of_nobody(&document, &changes, workers));
    }
    let number = store.write(current.as_deref(), &Edit { document, who: who(), why }).await?;
    let values: Vec<_> = changes.iter().map(|change| format!("{} = {}", change.key, change.value)).collect();
    print(&format!("v{number}: {} {}", values.join(", "), for_whom(&scope, whose(&changes))))?;
    remarks.iter().for_each(|text| remark(format_args!("weir: {text}")));
    if has_names && let Ok(workers) = &asked {
        unserved::warnings(&named, workers).iter().for_each(|warning| remark(format_args!("weir: {warning}")));
    }
    match (&asked, pool) {
        (Ok(workers), Some(pool)) if workers.is_empty() => {
            remark(format_args!("weir: no worker serves the pool {pool} now: nobody has this value until one does"));
        }
        (Ok(workers), None) if is_raise && workers.is_empty() => {
            asked::not_known("no worker of any pool is in the registry")
        }
        (Err(reason), _) if is_raise => asked::not_known(reason),
        _ => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Values for a share of the workers in which none of them is.
fn shares_of_nobody(document: &str, changes: &[Change], workers: &[Presence]) -> Vec<String> {
    let mut nobody = Vec::new();
    let Some(document) = Document::read(document.as_bytes()).ok().filter(|_| !workers.is_empty()) else {
        return nobody;
    };
    for Change { key, value, scope, .. } in changes {
        let Scope::Some { share: Some(share), .. } = scope else { continue };
        if asked::given(&document, key, value, workers) == 0 {
            let all = counted(workers.len() as u64, "worker");
            nobody.push(format!(
                "none of {all} is in the {share} that {key} = {value} is for: a larger --share reaches some"
            ));
        }
    }
    nobody
}

fn whose(changes: &[Change]) -> &'static str {
    let is = |of: fn(&Spec) -> bool| move |change: &Change| spec(&change.key).is_some_and(of);
    match (changes.iter().all(is(Spec::is_of_routers)), changes.iter().any(is(Spec::is_read_by_routers))) {
        (true, _) => "for all routers",
        (false, true) => "for all workers and routers",
        (false, false) => "for all workers",
    }
}

fn for_whom(scope: &Scope, all: &str) -> String {
    match scope {
        Scope::Default | Scope::Everywhere => all.into(),
        Scope::Some { pool, share } => {
            let share = share.map_or_else(|| "all workers".into(), |share| format!("{share} of the workers"));
            let pool = pool.as_ref().map(|pool| format!(" of pool {pool}")).unwrap_or_default();
            format!("for {share}{pool}")
        }
    }
}
