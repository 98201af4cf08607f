use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::settings::Config;
use crate::task::testing::task;

fn split_with(pools: Value, sticky: Sticky, overflow: Value) -> Split {
    let settings = Settings {
        pools: pools.try_into().expect("weights"),
        pool_sticky: sticky,
        pool_overflow: overflow.try_into().expect("pools"),
        ..Config::default().start()
    };
    Split::new(&settings, &"own".parse().expect("a pool"))
}

fn split(pools: Value) -> Split {
    split_with(pools, Sticky::Tenant, json!({}))
}

fn keys(tenant: &str, id: &str) -> Keys {
    Keys::of(&Task { tenant: tenant.parse().expect("a tenant"), ..task(id) })
}

/// The pools of many tenants.
fn homes(split: &Split, tenants: usize) -> Vec<&str> {
    (0..tenants).map(|n| split.home(&keys(&format!("tenant-{n}"), "t")).as_str()).collect()
}

fn part(homes: &[&str], pool: &str) -> f64 {
    homes.iter().filter(|home| **home == pool).count() as f64 / homes.len() as f64
}

#[test]
fn from_5_to_6_percent_one_tenant_in_a_hundred_moves_and_none_of_them_back() {
    const TENANTS: usize = 100_000;
    let (five, six) = (split(json!({"single": 95, "parallel": 5})), split(json!({"single": 94, "parallel": 6})));
    let (before, after) = (homes(&five, TENANTS), homes(&six, TENANTS));
    assert!((0.047..0.053).contains(&part(&before, "parallel")), "{}", part(&before, "parallel"));
    assert!((0.057..0.063).contains(&part(&after, "parallel")), "{}", part(&after, "parallel"));
    let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    let share = moved.len() as f64 / TENANTS as f64;
    println!("{} of {TENANTS} moved", moved.len());
    assert!((0.009..0.011).contains(&share), "{share}");
    assert!(moved.iter().all(|(before, after)| (**before, **after) == ("single", "parallel")));
}

#[test]
fn it_is_the_same_in_each_router_and_after_each_start() {
    let split = split(json!({"a": 1, "b": 1, "c": 2}));
    // Were this another, a rolling upgrade of routers would move tenants to and fro.
    assert_eq!(homes(&split, 12).join(" "), "c c a b b c b c a c b c");
}

#[test]
fn a_tenant_or_a_task_stays_where_it_is() {
    let pools = || json!({"a": 50, "b": 50});
    let by_tenant = split_with(pools(), Sticky::Tenant, json!({}));
    let by_task = split_with(pools(), Sticky::Task, json!({}));
    for n in 0..200 {
        let (tenant, task) = (format!("tenant-{}", n % 10), format!("task-{n}"));
        assert_eq!(by_tenant.home(&keys(&tenant, &task)), by_tenant.home(&keys(&tenant, "another")));
        assert_eq!(by_task.home(&keys(&tenant, &task)), by_task.home(&keys("another", &task)));
    }
    let spread = |split: &Split| (0..200).filter(|n| split.home(&keys("t", &format!("{n}"))).as_str() == "a").count();
    assert!([0, 200].contains(&spread(&by_tenant)) && (70..130).contains(&spread(&by_task)));
}

#[test]
fn without_the_setting_there_is_the_pool_of_the_configuration() {
    let own = split(json!({}));
    assert_eq!((homes(&own, 10), own.origin()), (vec!["own"; 10], Origin::Configuration));
    assert_eq!((own.share(&"own".parse().expect("a pool")), own.share(&"other".parse().expect("a pool"))), (1.0, 0.0));
}

#[test]
fn who_is_followed() {
    let overflow = json!({"parallel": "spare", "not-there": "nobody"});
    let split = split_with(json!({"single": 1, "parallel": 0}), Sticky::Task, overflow);
    let followed: Vec<_> = split.pools().map(PoolName::as_str).collect();
    assert_eq!(followed, ["parallel", "single", "spare"]);
    let of = |pool: &str| split.overflow_of(&pool.parse().expect("a pool")).map(PoolName::as_str);
    assert_eq!([of("parallel"), of("single")], [Some("spare"), None]);
}

/// Weights of up to six pools, at least one above 0.
fn weights() -> impl Strategy<Value = BTreeMap<String, u32>> {
    let weights = proptest::collection::vec(0u32..=100, 1..6);
    let named =
        |weights: Vec<u32>| weights.into_iter().enumerate().map(|(n, weight)| (format!("p{n}"), weight)).collect();
    weights.prop_filter("one above 0", |weights| weights.iter().any(|weight| *weight > 0)).prop_map(named)
}

fn json_of(weights: &BTreeMap<String, u32>) -> Value {
    weights.iter().map(|(pool, weight)| (pool.clone(), Value::from(*weight))).collect::<Map<_, _>>().into()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn each_pool_has_its_share(weights in weights()) {
        const TENANTS: usize = 10_000;
        let split = split(json_of(&weights));
        let homes = homes(&split, TENANTS);
        let all: u32 = weights.values().sum();
        for (pool, weight) in &weights {
            let (expected, found) = (f64::from(*weight) / f64::from(all), part(&homes, pool));
            prop_assert_eq!(split.share(&pool.parse().expect("a pool")), expected);
            // Five standard deviations of a share of so many.
            let tolerance = 5.0 * (expected * (1.0 - expected) / TENANTS as f64).sqrt();
            prop_assert!((found - expected).abs() <= tolerance, "{} has {}, not {}", pool, found, expected);
        }
    }

    #[test]
    fn where_one_weight_changes_as_little_moves_as_can_be(weights in weights(), which in 0usize..5, to in 1u32..=100) {
        const TENANTS: usize = 10_000;
        let pool = weights.keys().nth(which % weights.len()).expect("one of them").clone();
        let mut changed = weights.clone();
        changed.insert(pool.clone(), to);
        let (before, after) = (split(json_of(&weights)), split(json_of(&changed)));
        let (was, is) = (homes(&before, TENANTS), homes(&after, TENANTS));
        let moved: Vec<_> = was.iter().zip(&is).filter(|(was, is)| was != is).collect();
        prop_assert!(moved.iter().all(|(was, is)| **was == pool || **is == pool));
        let name: PoolName = pool.parse().expect("a pool");
        let (least, moved) = ((after.share(&name) - before.share(&name)).abs(), moved.len() as f64 / TENANTS as f64);
        let tolerance = 5.0 * (least * (1.0 - least) / TENANTS as f64).sqrt();
        prop_assert!((moved - least).abs() <= tolerance, "{} moved, and {} is the least", moved, least);
    }

    #[test]
    fn what_moves_goes_to_a_weight_that_grew_by_more(one in weights(), other in weights()) {
        let (before, after) = (split(json_of(&one)), split(json_of(&other)));
        let weight = |weights: &BTreeMap<String, u32>, pool: &str| f64::from(weights.get(pool).copied().unwrap_or(0));
        let (was, is) = (homes(&before, 1_000), homes(&after, 1_000));
        for (was, is) in was.iter().zip(&is).filter(|(was, is)| was != is) {
            let factor = |pool: &str| weight(&other, pool) / weight(&one, pool);
            prop_assert!(factor(is) > factor(was), "{} to {}", was, is);
        }
    }

    #[test]
    fn a_weight_of_0_gets_nothing_and_a_new_pool_takes_only_its_own(weights in weights(), more in 1u32..100) {
        let before = split(json_of(&weights));
        let mut with_new = weights.clone();
        with_new.insert("new".into(), more);
        let after = split(json_of(&with_new));
        for (was, is) in homes(&before, 500).iter().zip(homes(&after, 500)) {
            prop_assert!(weights[*was] > 0);
            prop_assert!(is == *was || is == "new");
        }
    }
}
