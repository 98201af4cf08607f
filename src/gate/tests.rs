mod interleavings;
mod threads;

use std::time::Duration;

use super::*;
use crate::limits::{ByName, Cap, Weight};

fn name(text: &str) -> IntegrationName {
    text.parse().expect("a name")
}

/// A gate for two integrations.
fn gate(limits: Limits) -> Gate {
    Gate::new(limits, ["bank", "scraper"].map(name), &Telemetry::new().expect("recorder"))
}

/// Asks for a place: `batch bank acme` is a batch task of the integration `bank` for the tenant `acme`.
fn ask(gate: &Gate, task: &str) -> Result<Permit, Refused> {
    let words: Vec<_> = task.split(' ').collect();
    let priority = if words[0] == "batch" { Priority::Batch } else { Priority::Interactive };
    gate.admit(&Want { integration: &name(words[1]), tenant: &words[2].parse().expect("a tenant"), priority })
}

fn admit(gate: &Gate, task: &str) -> Permit {
    ask(gate, task).unwrap_or_else(|refused| panic!("{task} is refused: {refused}"))
}

fn refusal(gate: &Gate, task: &str) -> String {
    ask(gate, task).err().unwrap_or_else(|| panic!("{task} is admitted")).to_string()
}

fn capped<N: Ord + std::str::FromStr<Err: std::fmt::Debug>, V>(named: &str, value: V) -> ByName<N, V> {
    ByName { others: None, named: [(named.parse().expect("a name"), value)].into() }
}

const TASK: &str = "batch bank acme";

#[test]
fn it_admits_up_to_the_target_and_a_dropped_permit_is_a_place() {
    let gate = gate(Limits::of(2));
    let first = admit(&gate, TASK);
    let _second = admit(&gate, TASK);
    assert_eq!(refusal(&gate, TASK), "2 of 2 slots are held");
    drop(first);
    admit(&gate, TASK);
}

#[test]
fn lowering_the_target_ends_nothing_and_zero_takes_nothing() {
    let gate = gate(Limits::of(3));
    let permits: Vec<_> = (0..3).map(|_| admit(&gate, TASK)).collect();
    gate.set_limits(Limits::of(0));
    let load = gate.load();
    assert_eq!((load.in_flight, load.held(), load.target, load.state), (3, 3, 0, State::Full));
    let takes_none = "the worker takes no tasks now (max_parallelism is 0)";
    assert_eq!(refusal(&gate, TASK), format!("{takes_none}, and finishes those it has"));
    drop(permits);
    assert_eq!(refusal(&gate, TASK), takes_none);
    gate.set_limits(Limits::of(1));
    admit(&gate, TASK);
}

#[test]
fn a_permit_is_released_by_a_panic() {
    let gate = gate(Limits::of(1));
    let held = admit(&gate, TASK);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _held = held;
        panic!("on purpose");
    }));
    assert!(result.is_err());
    assert_eq!(gate.load().in_flight, 0);
}

#[test]
fn followers_see_each_change_of_state() {
    let gate = gate(Limits::of(1));
    let mut standing = gate.standing();
    let permit = admit(&gate, TASK);
    assert_eq!(standing.now().state, State::Full);
    drop(permit);
    assert_eq!(standing.now().state, State::Open);
    gate.set_overloaded(true);
    assert_eq!(standing.now().state, State::Overloaded);
    assert_eq!(refusal(&gate, TASK), "the worker is overloaded");
    gate.set_overloaded(false);
    assert_eq!(standing.now().state, State::Open);
    gate.drain();
    assert_eq!(standing.now().state, State::Draining);
    assert_eq!(refusal(&gate, TASK), "the worker is draining");
}

#[test]
fn batch_leaves_the_reserve_to_interactive_and_what_interactive_holds_is_not_reserved_again() {
    let gate = gate(Limits { interactive_reserve: 0.2, ..Limits::of(10) });
    let batch: Vec<_> = (0..8).map(|_| admit(&gate, TASK)).collect();
    assert_eq!(refusal(&gate, TASK), "batch holds 8 and may hold 8 of 10 slots, 2 are reserved for interactive");
    let standing = gate.stands();
    assert_eq!((standing.state, standing.takes_batch), (State::Open, false));
    let _interactive: Vec<_> = (0..2).map(|_| admit(&gate, "interactive bank acme")).collect();
    assert_eq!(refusal(&gate, TASK), "10 of 10 slots are held");
    drop(batch);
    assert_eq!(gate.load().room_for(Priority::Batch), 8);
}

#[test]
fn an_integration_and_a_tenant_hold_no_more_than_their_caps() {
    let caps = Limits {
        integration_caps: capped("bank", Cap::Slots(2)),
        tenant_caps: capped("acme", Cap::Share(0.3)),
        ..Limits::of(10)
    };
    let gate = gate(caps);
    let bank = [admit(&gate, "batch bank other"), admit(&gate, "batch bank acme")];
    assert_eq!(refusal(&gate, "batch bank other"), "bank holds 2 of its 2 slots");
    assert_eq!(&*gate.stands().full, [name("bank")]);
    let _acme = [admit(&gate, "batch scraper acme"), admit(&gate, "batch scraper acme")];
    assert_eq!(refusal(&gate, "interactive scraper acme"), "tenant acme holds 3 of its 3 slots");
    assert_eq!(gate.full_tenants(5), [TenantLoad { tenant: "acme".parse().expect("a tenant"), held: 3, most: 3 }]);
    drop(bank);
    assert!(gate.stands().full.is_empty());
    admit(&gate, "batch scraper acme");
}

#[test]
fn a_limit_from_outside_counts_where_it_is_smaller_than_the_cap() {
    let gate = gate(Limits { integration_caps: capped("bank", Cap::Slots(2)), ..Limits::of(10) });
    let _held = admit(&gate, TASK);
    gate.narrow(&name("bank"), Some(1));
    assert_eq!(refusal(&gate, TASK), "bank holds 1 of its 1 slots");
    for wider in [Some(5), None] {
        gate.narrow(&name("bank"), wider);
        let _second = admit(&gate, TASK);
        assert_eq!(refusal(&gate, TASK), "bank holds 2 of its 2 slots");
    }
}

#[test]
fn a_heavy_task_holds_what_it_weighs_but_no_limit_makes_it_wait_for_ever() {
    let heavy = Limits { weights: capped("scraper", Weight::new(5)), ..Limits::of(8) };
    let gate = gate(heavy.clone());
    let scraper = admit(&gate, "batch scraper acme");
    assert_eq!((gate.load().held(), gate.load().in_flight), (5, 1));
    assert_eq!(refusal(&gate, "batch scraper acme"), "5 of 8 slots are held, and the task needs 5");
    assert_eq!(&*gate.stands().full, [name("scraper")], "the gate is open, but not for this one");
    let bank = admit(&gate, TASK);
    drop(scraper);
    assert_eq!(gate.load().held(), 1);
    drop(bank);
    let low = [
        Limits { target: 3, ..heavy.clone() },
        Limits { integration_caps: capped("scraper", Cap::Slots(3)), ..heavy.clone() },
        Limits { tenant_caps: capped("acme", Cap::Slots(3)), ..heavy.clone() },
        Limits { interactive_reserve: 0.6, ..heavy.clone() },
    ];
    for limits in low {
        gate.set_limits(limits);
        let _permit = admit(&gate, "batch scraper acme");
        assert_eq!(gate.load().held(), 3);
    }
}

#[tokio::test(start_paused = true)]
async fn the_parallelism_a_task_lived_through_is_weighted_by_time() {
    let gate = gate(Limits { weights: capped("bank", Weight::new(2)), ..Limits::of(20) });
    let long = admit(&gate, TASK);
    tokio::time::advance(Duration::from_secs(9)).await;
    let others: Vec<_> = (0..9).map(|_| admit(&gate, TASK)).collect();
    tokio::time::advance(Duration::from_secs(1)).await;
    drop(others);
    let mean = long.mean_in_flight();
    assert!((mean - 1.9).abs() < 1e-9, "9 s alone and 1 s with nine others, whatever they weigh: {mean}");
}

#[test]
fn what_a_task_finds_held_is_told_in_tasks_of_its_weight() {
    let limits = Limits {
        tenant_caps: capped("acme", Cap::Slots(7)),
        weights: capped("bank", Weight::new(3)),
        ..Limits::of(20)
    };
    let gate = gate(limits);
    let (bank, acme) = (name("bank"), "acme".parse().expect("a tenant"));
    let shares = || gate.shares(&Want { integration: &bank, tenant: &acme, priority: Priority::Batch });
    let share = |held, most| Share { held, most };
    assert_eq!(shares(), Shares { weight: 3, integration: share(0, None), tenant: share(0, Some(2)) });
    let _permit = admit(&gate, TASK);
    gate.narrow(&bank, Some(6));
    assert_eq!(shares(), Shares { weight: 3, integration: share(1, Some(2)), tenant: share(1, Some(2)) });
}
