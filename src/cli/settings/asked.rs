//! What workers say in the registry while a change of the settings is at hand: who they are, and which of them would refuse it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::bail;
use serde_json::Value;

use super::super::remark;
use super::super::table::counted;
use crate::config::Config;
use crate::limits::MAX_SLOTS;
use crate::registry::{self, Presence, Rejected};
use crate::settings::flagd::Document;
use crate::settings::jump::{self, Standing};
use crate::settings::store::version_of;
use crate::settings::{self, Context, START_VERSION, Settings, Source};
use crate::task::{PoolName, WorkerId};
use crate::telemetry::Telemetry;

/// How long the registry may take to say who serves the pools.
const ASKED_WITHIN: Duration = Duration::from_secs(2);

/// Workers for which a document is looked through: rules may give each another value.
const EXAMINED: usize = 100;

/// Workers that are named where some would refuse a value.
const NAMED: usize = 3;

/// The workers of a pool, or of all pools, whatever the document or the configuration says of them.
pub(super) async fn workers(pool: Option<&PoolName>, config: &Config) -> anyhow::Result<Vec<Presence>> {
    if config.registry.url.is_none() {
        bail!("registry.url is not set");
    }
    let pools = match pool {
        Some(pool) => BTreeSet::from([pool.clone()]),
        None => registry::redis::pools(&config.registry).await?,
    };
    let (mut workers, telemetry) = (Vec::new(), Telemetry::new()?);
    for pool in &pools {
        workers.extend(registry::open(&config.registry, pool, &telemetry)?.snapshot().await?.workers);
    }
    Ok(workers)
}

/// The same, soon, or why nobody knows them.
pub(super) async fn ask(pool: Option<&PoolName>, config: &Config) -> Result<Vec<Presence>, String> {
    match tokio::time::timeout(ASKED_WITHIN, workers(pool, config)).await {
        Ok(workers) => workers.map_err(|error| format!("{error:#}")),
        Err(_) => Err(format!("the registry did not answer within {}", humantime::format_duration(ASKED_WITHIN))),
    }
}

/// Says that nobody could be asked.
pub(super) fn not_known(why: &str) {
    remark(format_args!(
        "weir: whether workers refuse this as a jump is not known: {why}. It was compared with what the document and this \
         configuration say"
    ));
}

/// Whether what the workers say is not all that there is to go by: nobody is there, or some have not read the document.
pub(super) fn is_partial(workers: &[Presence], document: Option<&[u8]>, config: &Config) -> bool {
    let version = document.map(version_of);
    let mut readers = readers(workers, document, config).peekable();
    readers.peek().is_none() || readers.any(|worker| is_behind(worker, version.as_deref()))
}

/// Those who read this source, as far as one can tell: of a file, which may be on one machine alone, those who have its
/// document.
fn readers<'w>(
    workers: &'w [Presence],
    document: Option<&[u8]>,
    config: &Config,
) -> impl Iterator<Item = &'w Presence> {
    let of_file = (config.settings.source == Source::File).then(|| document.map_or(START_VERSION.into(), version_of));
    workers.iter().filter(move |worker| !is_behind(worker, of_file.as_deref()))
}

/// Values of the document that these workers would not take, or no worker.
pub(super) fn values_refused(document: &str, start: &Settings, workers: &[Presence]) -> Vec<String> {
    let of_worker =
        |it: &Presence| Context { pool: it.pool.clone(), worker: Some(it.worker.clone()), ..Context::default() };
    let contexts = std::iter::once(Context::default()).chain(workers.iter().take(EXAMINED).map(of_worker));
    let Ok(document) = Document::read(document.as_bytes()) else { return Vec::new() };
    let refused = contexts.flat_map(|context| settings::examine(&document, start, &context).1);
    let mut told = Vec::new();
    for rejection in refused.map(|it| format!("workers refuse another value of the document: {it}")) {
        if !told.contains(&rejection) {
            told.push(rejection);
        }
    }
    told
}

/// Fails where workers do not take these settings of the document that is there; all of them without names.
pub(super) fn refuse_rejected(document: &[u8], keys: Option<&[&str]>, workers: &[Presence]) -> anyhow::Result<()> {
    let version = version_of(document);
    let rejects = |worker: &&Presence| {
        let rejected = rejected(worker, &version);
        rejected.is_some_and(|it| keys.is_none_or(|keys| it.keys.iter().any(|key| keys.contains(&key.as_str()))))
    };
    let rejecting: Vec<_> = workers.iter().filter(rejects).collect();
    let Some(first) = rejecting.first() else { return Ok(()) };
    let mut named: Vec<_> = rejecting.iter().take(NAMED).map(|worker| worker.worker.as_str()).collect();
    if rejecting.len() > NAMED {
        named.push("…");
    }
    bail!(
        "nothing changes: it is set already, but {} of {} reject it ({}). Why: weir describe {}; where it is a jump, raise it \
         in steps, or add --allow-jump",
        rejecting.len(),
        counted(workers.len() as u64, "worker"),
        named.join(", "),
        first.address,
    )
}

/// That workers refuse N of the document that was there, and will of the one after it, where that says the same to them.
pub(super) fn jump_still(before: Option<&[u8]>, after: &[u8], workers: &[Presence]) -> Option<String> {
    let version = before.map(version_of)?;
    let (before, after) = (Document::read(before?).ok()?, Document::read(after).ok()?);
    let rejects = |worker: &&Presence| {
        let said = |document| value_for(document, jump::KEY, &worker.pool, &worker.worker);
        let rejected = rejected(worker, &version);
        rejected.is_some_and(|it| it.keys.iter().any(|key| key == jump::KEY)) && said(&before) == said(&after)
    };
    let count = workers.iter().filter(rejects).count();
    let by = counted(count as u64, "worker");
    (count > 0).then(|| format!("{} of the document is refused still, by {by}: weir settings status", jump::KEY))
}

/// How many of the workers the document gives this value of a setting.
pub(super) fn given(document: &Document, key: &str, value: &Value, workers: &[Presence]) -> usize {
    workers.iter().filter(|it| value_for(document, key, &it.pool, &it.worker).as_ref() == Some(value)).count()
}

/// What the document says of a setting to a worker; none where it leaves it the start value.
pub(super) fn value_for(document: &Document, key: &str, pool: &PoolName, worker: &WorkerId) -> Option<Value> {
    let context = Context { pool: pool.clone(), worker: Some(worker.clone()), ..Context::default() };
    document.flag(key, &context).ok()?.map(|flag| flag.value)
}

/// What a worker rejects of the document of this version.
fn rejected<'w>(worker: &'w Presence, version: &str) -> Option<&'w Rejected> {
    worker.settings_rejected.as_deref().filter(|rejected| rejected.version == version)
}

/// Whether a worker has not read the document that is there, so that what it says is of one before.
fn is_behind(worker: &Presence, version: Option<&str>) -> bool {
    let Some(version) = version else { return false };
    worker.settings_version != version && rejected(worker, version).is_none()
}

/// Fails where workers would refuse what the document says of N.
pub(super) fn refuse_jump(
    before: Option<&[u8]>,
    document: &str,
    workers: &[Presence],
    config: &Config,
) -> anyhow::Result<()> {
    let standings: Vec<_> =
        readers(workers, before, config).map(|worker| standing(worker, config.settings.max_jump)).collect();
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::settings::flagd;

    fn presence(worker: &str, n: u32, version: &str) -> Presence {
        Presence { target: n, settings_version: version.into(), ..Presence::of_a_test(worker) }
    }

    #[test]
    fn a_jump_is_refused_by_what_the_workers_say_and_they_are_named() {
        let (before, after) = (flagd::document(&[(jump::KEY, json!(3))]), flagd::document(&[(jump::KEY, json!(200))]));
        let refused = |workers: &[Presence]| {
            let mut config = Config::default();
            config.settings.source = Source::Redis;
            let refused = refuse_jump(Some(before.as_bytes()), &after, workers, &config);
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
    fn of_a_file_only_those_are_asked_who_run_its_document() {
        let (before, after) =
            (flagd::document(&[(jump::KEY, json!(500))]), flagd::document(&[(jump::KEY, json!(400))]));
        let reads_it = presence("reads", 500, &version_of(before.as_bytes()));
        let reads_another = presence("other", 3, "v");
        let workers = [reads_it, reads_another];
        let refused = |source| {
            let mut config = Config::default();
            config.settings.source = source;
            let is_partial = is_partial(&workers, Some(before.as_bytes()), &config);
            (refuse_jump(Some(before.as_bytes()), &after, &workers, &config).is_err(), is_partial)
        };
        assert_eq!([Source::File, Source::Redis].map(refused), [(false, false), (true, true)]);
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
}
