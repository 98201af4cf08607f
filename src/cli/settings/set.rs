//! `weir settings set`: a value for all, for the workers of a pool, or for a share of them.
//!
//! What workers would refuse is refused here, too, before anything is written. Whether a value is a jump is theirs to say:
//! it is judged by what the registry says that they have, and where that is not known, this says so.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use serde_json::Value;

use super::super::table::counted;
use super::super::{print, remark};
use super::{BACK, document, help, lost, reason, unserved, who};
use crate::config::Config;
use crate::limits::MAX_SLOTS;
use crate::registry::{self, Presence};
use crate::settings::edit::{self, Change, Scope, Share};
use crate::settings::jump::{self, Standing};
use crate::settings::store::{Edit, Store, version_of};
use crate::settings::{self, Context, Role, START_VERSION, Spec, examine, spec};
use crate::task::PoolName;
use crate::telemetry::Telemetry;

/// How long the registry may take to say who serves the pools.
const ASKED_WITHIN: Duration = Duration::from_secs(2);

/// Workers that are named where some would refuse a value.
const NAMED: usize = 3;

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
        lost::refuse(pool, store, config).await?;
    }
    let start = config.settings.start();
    let edited = |changes, max_jump| edit::edit(current.as_deref(), changes, &start, max_jump);
    if let Err(reason) = edited(&[], f64::INFINITY) {
        bail!("{}: {reason}; mend it, or put the last good one back with {BACK}", store.name());
    }
    let document = edited(&changes, f64::INFINITY).map_err(anyhow::Error::msg)?;
    if current.as_deref() == Some(document.as_bytes()) {
        return print("nothing changes: it is set already");
    }
    let may_jump = changes.iter().any(|change| change.key == jump::KEY && !change.allow_jump);
    let named = settings::named_in(changes.iter().map(|change| (change.key.as_str(), &change.value)));
    let has_names = !named.named_integrations().is_empty() || !named.named_pools().is_empty();
    let asked = match may_jump || has_names || pool.is_some() {
        true => {
            let mut meant = pools(pool, current.as_deref(), config);
            meant.extend(pools(pool, Some(document.as_bytes()), config));
            ask(&meant, config).await
        }
        false => Ok(Vec::new()),
    };
    if may_jump {
        let (workers, version) = (asked.as_deref().unwrap_or_default(), current.as_deref().map(version_of));
        refuse_jump(current.as_deref(), &document, workers, config)?;
        // Of those who have not read the document, and of those whom nobody can ask, it is all that there is to go by.
        if workers.is_empty() || workers.iter().any(|worker| is_behind(worker, version.as_deref())) {
            edited(&changes, config.settings.max_jump).map_err(anyhow::Error::msg)?;
        }
    }
    let is_raise = may_jump && edited(&changes, 1.0).is_err();
    let refused = examine(document.as_bytes(), &start, &Context::default()).map_or_else(|_| Vec::new(), |(_, it)| it);
    let number = store.write(current.as_deref(), &Edit { document, who: who(), why }).await?;
    let values: Vec<_> = changes.iter().map(|change| format!("{} = {}", change.key, change.value)).collect();
    print(&format!("v{number}: {} {}", values.join(", "), for_whom(&scope, whose(&changes))))?;
    for rejection in refused {
        remark(format_args!("weir: workers refuse another value of the document: {rejection}"));
    }
    if has_names && let Ok(workers) = &asked {
        unserved::warnings(&named, workers).iter().for_each(|warning| remark(format_args!("weir: {warning}")));
    }
    match (&asked, pool) {
        (Ok(workers), Some(pool)) if workers.is_empty() => {
            remark(format_args!("weir: no worker serves the pool {pool} now: nobody has this value until one does"));
        }
        (Ok(workers), None) if is_raise && workers.is_empty() => not_known("no worker is in the registry"),
        (Err(reason), _) if is_raise => not_known(reason),
        _ => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn not_known(why: &str) {
    remark(format_args!(
        "weir: whether workers refuse this as a jump is not known: {why}. It was compared with what the document and this \
         configuration say"
    ));
}

/// The pools that a change is for, as far as anything names them: a change for all is for those that routers send to.
fn pools(pool: Option<&PoolName>, document: Option<&[u8]>, config: &Config) -> BTreeSet<PoolName> {
    if let Some(pool) = pool {
        return BTreeSet::from([pool.clone()]);
    }
    let start = config.settings.start();
    let context = Context { role: Role::Router, ..Context::default() };
    let examined = document.and_then(|document| examine(document, &start, &context).ok());
    let routed = examined.map_or(start, |(settings, _)| settings);
    let (weights, overflow) = (routed.pools.iter(), routed.pool_overflow.iter());
    let named = weights.map(|(pool, _)| pool).chain(overflow.map(|(_, into)| into));
    named.chain([&config.router.pool]).cloned().collect()
}

/// The workers of these pools, or why nobody knows them.
async fn ask(pools: &BTreeSet<PoolName>, config: &Config) -> Result<Vec<Presence>, String> {
    if config.registry.url.is_none() {
        return Err("registry.url is not set".into());
    }
    let asked = async {
        let (mut workers, telemetry) = (Vec::new(), Telemetry::new()?);
        for pool in pools {
            workers.extend(registry::open(&config.registry, pool, &telemetry)?.snapshot().await?.workers);
        }
        anyhow::Ok(workers)
    };
    match tokio::time::timeout(ASKED_WITHIN, asked).await {
        Ok(workers) => workers.map_err(|error| format!("{error:#}")),
        Err(_) => Err(format!("the registry did not answer within {}", humantime::format_duration(ASKED_WITHIN))),
    }
}

/// Whether a worker has not read the document that is there, so that what it says is of one before.
fn is_behind(worker: &Presence, version: Option<&str>) -> bool {
    let Some(version) = version else { return false };
    let rejects = worker.settings_rejected.as_ref().is_some_and(|rejected| rejected.version == version);
    worker.settings_version != version && !rejects
}

fn refuse_jump(before: Option<&[u8]>, document: &str, workers: &[Presence], config: &Config) -> anyhow::Result<()> {
    let standings: Vec<_> = workers.iter().map(|worker| standing(worker, config.settings.max_jump)).collect();
    let judged = jump::judge(before, document.as_bytes(), &standings).map_err(anyhow::Error::msg)?;
    let Some((_, value)) = judged.refuse.first() else { return Ok(()) };
    let named = judged.refuse.iter().take(NAMED);
    let named: Vec<_> =
        named.map(|(it, _)| format!("{} has {} and takes {} at the most", it.worker, it.n, it.limit)).collect();
    let more = if judged.refuse.len() > NAMED { "; …" } else { "" };
    bail!(
        "{} = {value} is a jump that {} of {} would refuse ({}{more}); raise it in steps, or add --allow-jump",
        jump::KEY,
        judged.refuse.len(),
        counted(judged.meant as u64, "worker"),
        named.join("; "),
    )
}

/// How far a worker would go. An older one does not say: it is measured by what it has.
fn standing(worker: &Presence, max_jump: f64) -> Standing {
    let Presence { worker, pool, target: n, jump_limit, settings_version, .. } = worker.clone();
    let by_n = || if settings_version == START_VERSION { MAX_SLOTS } else { (f64::from(n.max(1)) * max_jump) as u32 };
    Standing { worker, pool, n, limit: jump_limit.unwrap_or_else(by_n) }
}

fn whose(changes: &[Change]) -> &'static str {
    let of_routers = |change: &Change| spec(&change.key).is_some_and(Spec::is_of_routers);
    match (changes.iter().all(of_routers), changes.iter().any(of_routers)) {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::{Incarnation, Rejected, State};
    use crate::settings::flagd;

    fn presence(worker: &str, n: u32, version: &str) -> Presence {
        Presence {
            worker: worker.parse().expect("a worker id"),
            address: "http://127.0.0.1:1".into(),
            incarnation: Incarnation::mint(),
            pool: PoolName::default(),
            target: n,
            in_flight: 0,
            reserved: 0,
            state: State::Open,
            integrations: vec![],
            full: vec![],
            broken: vec![],
            half_open: vec![],
            settings_version: version.into(),
            settings_rejected: None,
            jump_limit: None,
        }
    }

    #[test]
    fn a_jump_is_refused_by_what_the_workers_say_and_they_are_named() {
        let (before, after) = (flagd::document(&[(jump::KEY, json!(3))]), flagd::document(&[(jump::KEY, json!(200))]));
        let refused = |workers: &[Presence]| {
            let refused = refuse_jump(Some(before.as_bytes()), &after, workers, &Config::default());
            refused.map_err(|error| error.to_string())
        };
        let older = presence("older", 3, "v");
        let lowered = Presence { jump_limit: Some(300), ..presence("lowered", 3, "v") };
        let young = presence("young", 3, START_VERSION);
        assert_eq!(refused(&[lowered.clone(), young.clone()]), Ok(()));
        let expected = "max_parallelism = 200 is a jump that 1 of 3 workers would refuse (older has 3 and takes 30 at the most); \
                        raise it in steps, or add --allow-jump";
        assert_eq!(refused(&[older, lowered, young]), Err(expected.into()));
        let many: Vec<_> = (0..5).map(|number| presence(&format!("w{number}"), 3, "v")).collect();
        let error = refused(&many).expect_err("all refuse");
        assert!(
            error.contains("5 of 5 workers") && error.contains("w2 has 3") && error.contains("most; …)"),
            "{error}"
        );
    }

    #[test]
    fn who_has_not_read_the_document_is_behind() {
        let behind = presence("w", 3, "v1");
        let rejected = Some(Box::new(Rejected::new("v2", ["x"], 0)));
        let rejects = Presence { settings_rejected: rejected, ..behind.clone() };
        let runs_it = presence("w", 3, "v2");
        assert_eq!([&behind, &rejects, &runs_it].map(|worker| is_behind(worker, Some("v2"))), [true, false, false]);
        assert!(!is_behind(&behind, None), "there is none to read");
    }

    #[test]
    fn a_change_for_all_is_for_the_pools_that_routers_send_to() {
        let pools = |pool: Option<&str>, document: Option<&str>| {
            let pool = pool.map(|pool| pool.parse().expect("a pool"));
            let pools = pools(pool.as_ref(), document.map(str::as_bytes), &Config::default());
            pools.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let routed = [("pools", json!({"single": 95, "parallel": 5})), ("pool_overflow", json!({"parallel": "spare"}))];
        let document = flagd::document(&routed);
        assert_eq!(pools(None, Some(&document)), ["default", "parallel", "single", "spare"]);
        assert_eq!(pools(Some("parallel"), Some(&document)), ["parallel"]);
        assert_eq!([pools(None, None), pools(None, Some("{"))], [["default"], ["default"]]);
    }
}
