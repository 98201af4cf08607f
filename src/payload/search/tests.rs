use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use proptest::prelude::*;

use super::super::store::{Listed, Object, Page, Stored};
use super::*;
use crate::payload::Encoding;
use crate::task::RunId;

/// 2026-11-25 20:00 UTC.
const EIGHT_OCLOCK: i64 = 1_795_636_800;

/// A store that only lists.
#[derive(Default)]
struct Listing {
    keys: Mutex<BTreeMap<String, u64>>,
    keys_listed: AtomicU64,
}

#[async_trait]
impl Store for Listing {
    async fn put(&self, object: &Object) -> Result<(), StoreError> {
        self.keys.lock().insert(object.key.clone(), object.body.len());
        Ok(())
    }

    async fn get(&self, key: &str, _limit_bytes: u64) -> Result<Stored, StoreError> {
        Err(StoreError::NotFound { location: key.to_owned() })
    }

    async fn list(&self, prefix: &str, start_after: &str, limit: usize) -> Result<Page, StoreError> {
        let keys = self.keys.lock();
        let all = keys.range::<str, _>((Bound::Excluded(start_after), Bound::Unbounded));
        let mut payloads: Vec<_> = all
            .skip_while(|(key, _)| !key.starts_with(prefix) && key.as_str() < prefix)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, bytes)| Listed { key: key.clone(), bytes: *bytes })
            .take(limit + 1)
            .collect();
        let has_more = payloads.len() > limit;
        payloads.truncate(limit);
        self.keys_listed.fetch_add(payloads.len() as u64, Ordering::Relaxed);
        Ok(Page { payloads, has_more })
    }

    fn location(&self, key: &str) -> String {
        key.to_owned()
    }
}

impl Listing {
    fn of(keys: impl IntoIterator<Item = String>) -> Self {
        let listing = Listing::default();
        listing.keys.lock().extend(keys.into_iter().map(|key| (key, 7)));
        listing
    }
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(EIGHT_OCLOCK * 1_000 + millis).expect("a time")
}

fn a_key(millis: i64, random: u64, integration: &str, outcome: &str, task: &str) -> Key {
    let mut bytes = [0; 10];
    bytes[2..].copy_from_slice(&random.to_be_bytes());
    let millis = u64::try_from(EIGHT_OCLOCK * 1_000 + millis).expect("after 1970");
    Key {
        integration: integration.parse().expect("a name"),
        outcome: outcome.to_owned(),
        task: task.parse().expect("an id"),
        run: RunId(uuid::Builder::from_unix_timestamp_millis(millis, &bytes).into_uuid()),
        suffix: Encoding::default().suffix(),
    }
}

fn everything() -> Query {
    let (since, until) = (at(-24 * HOUR), at(24 * HOUR));
    Query { integration: None, outcomes: BTreeSet::new(), task: None, since, until, after: None, limit: 20 }
}

const HOUR: i64 = 3_600_000;

/// All pages, one after the other.
async fn pages(store: &Listing, prefix: &str, query: &Query, page: usize) -> Vec<Results> {
    let (mut query, mut pages) = (query.clone(), Vec::new());
    loop {
        let mut search = Search { page, most_keys: page, ..Search::new(store, prefix, query.clone()) };
        while search.step().await.expect("lists") {}
        let results = search.finish();
        let (last, more) = (results.payloads.last().cloned(), results.may_have_more);
        pages.push(results);
        match last {
            Some(last) if more => query.after = Some(last.key),
            _ => return pages,
        }
    }
}

fn names(pages: &[Results]) -> Vec<&str> {
    pages.iter().flat_map(|page| &page.payloads).map(|found| found.name.as_str()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_search_finds_what_is_wanted_and_pages_neither_lose_nor_double(
        stored in proptest::collection::vec((
            // Often in the same millisecond.
            prop_oneof![-2 * HOUR..30 * HOUR, 0..3i64],
            any::<u64>(),
            // Names that sort in another way than their folders do.
            proptest::sample::select(vec!["bank", "bank-2", "bank.x", "bank0", "bank0.", "a", "z"]),
            proptest::sample::select(vec!["ok", "panic", "deadline", "integration_error", "a_new_one"]),
            proptest::sample::select(vec!["t", "t.1", "t-1", "t.u", "s", "T", "0"]),
        ), 0..80),
        foreign in proptest::collection::vec(
            "[0-9a-f]/2026/11/2[56]/(20|21|00|xx)/(bank|bank-2|BANK)/(ok|ok-1|panic)/(t\\.|x)?", 0..4),
        prefix in prop_oneof![Just(""), Just("payloads"), Just("a/b")],
        integration in proptest::option::of(proptest::sample::select(vec!["bank", "bank0", "a", "q"])),
        outcomes in proptest::collection::btree_set(
            proptest::sample::select(vec!["ok", "panic", "deadline", "cancelled"]), 0..3),
        task in proptest::option::of(proptest::sample::select(vec!["t", "t.1", "s", "none"])),
        (since, until) in (-2 * HOUR..30 * HOUR, -2 * HOUR..31 * HOUR),
        limit in 1usize..9,
        page in prop_oneof![1usize..5, Just(MOST_KEYS)],
    ) {
        let keys: Vec<_> = stored.iter().map(|(at, random, i, o, t)| a_key(*at, *random, i, o, t)).collect();
        let foreign = foreign.iter().map(|key| format!("{}{key}", base(prefix)));
        let store = Listing::of(keys.iter().map(|key| key.format(prefix)).chain(foreign));
        let query = Query {
            integration: integration.map(|name| name.parse().expect("a name")),
            outcomes,
            task: task.map(|id| id.parse().expect("an id")),
            since: at(since),
            until: at(until),
            after: None,
            limit,
        };
        let mut wanted: Vec<_> = keys.iter().filter(|key| {
            query.integration.as_ref().is_none_or(|name| *name == key.integration)
                && (query.outcomes.is_empty() || query.outcomes.contains(key.outcome.as_str()))
                && query.task.as_ref().is_none_or(|id| *id == key.task)
                && (query.since..query.until).contains(&key.started())
        }).map(|key| (key.started(), key.run.0, key.format(prefix))).collect();
        wanted.sort_unstable_by(|one, other| other.cmp(one));
        wanted.dedup();
        let wanted: Vec<_> = wanted.iter().map(|(_, _, name)| name.as_str()).collect();

        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let pages = runtime.block_on(pages(&store, prefix, &query, page));
        prop_assert_eq!(names(&pages), wanted);
        prop_assert!(pages.iter().all(|page| page.payloads.len() <= limit));
        prop_assert!(pages.iter().rev().skip(1).all(|page| page.payloads.len() == limit));
    }
}

#[tokio::test]
async fn pages_stay_as_they_are_when_newer_payloads_arrive() {
    let key = |minute: i64| a_key(minute * 60_000, minute as u64, "bank", "ok", &format!("t-{minute}"));
    let store = Listing::of((0..300).map(|minute| key(minute).format("p")));
    let mut query = Query { limit: 50, until: at(48 * HOUR), ..everything() };
    let mut seen = Vec::new();
    for round in 0.. {
        let results = search(&store, "p", query.clone()).await.expect("lists");
        seen.extend(results.payloads.iter().map(|found| found.name.clone()));
        // More than a page, in each shard and in hours old and new.
        store.keys.lock().extend((0..100).map(|more| (key(301 + 100 * round + more).format("p"), 7)));
        match results.payloads.last() {
            Some(last) if results.may_have_more => query.after = Some(last.key.clone()),
            _ => break,
        }
    }
    let expected: Vec<_> = (0..300).rev().map(|minute| key(minute).format("p")).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_sparse_store_costs_a_request_per_shard_and_span() {
    let store = Listing::of([a_key(0, 1, "bank", "ok", "t").format("p")]);
    let query = Query { since: at(-720 * HOUR), until: at(-1), ..everything() };
    let results = search(&store, "p", query).await.expect("lists");
    // 1 + 2 + 4 + … + 512 hours are more than 720.
    assert_eq!((results.requests, results.payloads.len(), results.may_have_more), (16 * 10, 0, false));
    let query = Query { task: Some("t".parse().expect("an id")), ..everything() };
    let results = search(&store, "p", query).await.expect("lists");
    assert_eq!((results.requests, results.payloads.len()), (6, 1), "its shard is known");
}

#[tokio::test]
async fn what_is_not_wanted_is_skipped_and_not_read() {
    // Three hours with 20,000 of one bank, and three failures of another.
    let many = (0..60_000i64).map(|n| a_key(n * 180, n as u64, "bank", "ok", &format!("t-{n}")));
    let few = (0..3).map(|n| a_key(n * HOUR + 1, n as u64, "bank-2", "panic", "f"));
    let more = (0..3).map(|n| a_key(n * HOUR + 2, n as u64, "bank", "deadline", "g"));
    let store = Listing::of(many.chain(few).chain(more).map(|key| key.format("p")));
    let since = everything().since;
    for (integration, outcomes, expected) in [
        (Some("bank-2"), vec![], 3),
        (None, vec!["deadline", "panic"], 6),
        (Some("bank"), vec!["deadline", "panic"], 3),
    ] {
        store.keys_listed.store(0, Ordering::Relaxed);
        let integration = integration.map(|name| name.parse().expect("a name"));
        let query =
            Query { integration, outcomes: outcomes.into_iter().collect(), since, until: at(3 * HOUR), ..everything() };
        let results = search(&store, "p", query.clone()).await.expect("lists");
        assert_eq!(results.payloads.len(), expected, "{query:?}");
        let listed = store.keys_listed.load(Ordering::Relaxed);
        assert!(results.requests < 16 * 16 && listed < 30_000, "{} requests, {listed} keys", results.requests);
    }
}

#[tokio::test]
async fn no_more_is_kept_than_is_asked_for() {
    let mut newest = Newest::of(10);
    for n in 0..100_000i64 {
        // In no order.
        let key = a_key(n * 7_919 % 100_003, n as u64, "bank", "ok", "t");
        newest.push(Found { name: key.format(""), key, bytes: 1 });
        assert!(newest.found.len() < 20);
    }
    newest.cut();
    let times: Vec<_> = newest.found.iter().map(|found| found.key.started()).collect();
    assert!(times.len() == 10 && times.is_sorted_by(|one, other| one > other));
    assert_eq!(times[0], at(100_002));
}

#[tokio::test]
async fn what_is_no_payload_is_counted_with_an_example() {
    let good = a_key(0, 1, "bank", "ok", "t");
    let copy = good.format("p").replace(".json.zlib.b64", ".json.zlib.b64.bak");
    let store = Listing::of([good.format("p"), copy.clone(), "p/README".to_owned(), "q/0/2026/11/25/20/x".to_owned()]);
    let results = search(&store, "p", everything()).await.expect("lists");
    assert_eq!((results.payloads.len(), results.foreign, results.foreign_example), (1, 1, Some(copy)));
}
