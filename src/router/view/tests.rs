mod ejection;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::known::{SHEDS, SUSPECTED};
use super::*;
use crate::registry::TTL;
use crate::wire::metadata::{Share, Shares};

fn presence(worker: &str, in_flight: u32, target: u32, state: State) -> Presence {
    Presence {
        worker: worker.parse().expect("a worker id"),
        address: format!("http://{worker}:7401"),
        incarnation: Incarnation::mint(),
        pool: "default".parse().expect("a pool"),
        target,
        in_flight,
        reserved: 0,
        state,
        integrations: vec!["bank".parse().expect("an integration")],
        full: vec![],
        broken: vec![],
        half_open: vec![],
        settings_version: "start".into(),
        settings_rejected: None,
        jump_limit: None,
    }
}

/// What a task of the tenant acme would be, for the integration `bank`.
struct Bench {
    bank: IntegrationName,
    acme: Tenant,
    view: View,
    random: SmallRng,
    now: Instant,
}

impl Bench {
    fn with(workers: impl IntoIterator<Item = Presence>) -> Self {
        let (view, random) = (View::default(), SmallRng::seed_from_u64(1));
        let (bank, acme) = ("bank".parse().expect("a name"), "acme".parse().expect("a tenant"));
        let mut bench = Bench { bank, acme, view, random, now: Instant::now() };
        for presence in workers {
            bench.view.apply(Change::Present(presence), bench.now);
        }
        bench
    }

    fn reserve(&mut self) -> Option<Placement> {
        self.reserve_for(Priority::Interactive)
    }

    fn reserve_for(&mut self, priority: Priority) -> Option<Placement> {
        match self.room_for(priority) {
            Room::Found(placement) => Some(placement),
            _ => None,
        }
    }

    fn room_for(&mut self, priority: Priority) -> Room<Placement> {
        let wanted = Wanted { integration: &self.bank, tenant: &self.acme, priority };
        self.view.reserve(&wanted, &mut self.random, self.now)
    }

    fn held(&self, priority: Priority) -> String {
        self.view.held(&Wanted { integration: &self.bank, tenant: &self.acme, priority }, self.now).to_string()
    }

    fn release(&mut self, placement: &Placement, learned: Learned, load: Option<(u32, u32)>) {
        let load = load.map(|(in_flight, target)| LoadReport {
            in_flight,
            target,
            reserved: 0,
            keeps_out: false,
            shares: None,
        });
        self.release_with(placement, learned, load);
    }

    fn release_with(&mut self, placement: &Placement, learned: Learned, load: Option<LoadReport>) {
        let wanted = Wanted { integration: &self.bank, tenant: &self.acme, priority: Priority::Batch };
        self.view.release(placement, &wanted, learned, load, 1.0, self.now);
    }
}

#[test]
fn a_worker_gets_no_more_calls_than_it_has_room_for() {
    let mut bench = Bench::with([presence("w1", 1, 3, State::Open)]);
    assert!(bench.reserve().is_some());
    assert!(bench.reserve().is_some());
    assert!(bench.reserve().is_none());
}

#[test]
fn the_load_on_a_reply_corrects_the_estimate() {
    let mut bench = Bench::with([presence("w1", 0, 2, State::Open)]);
    let (first, _second) = (bench.reserve().expect("room"), bench.reserve().expect("room"));
    bench.release(&first, Learned::Answered, Some((2, 2)));
    assert!(bench.reserve().is_none(), "someone else's task took the place");
    let mut bench = Bench::with([presence("w1", 0, 1, State::Open)]);
    let only = bench.reserve().expect("room");
    bench.release(&only, Learned::Answered, Some((0, 5)));
    assert_eq!(std::iter::from_fn(|| bench.reserve()).count(), 5, "its target was raised");
}

#[test]
fn an_old_report_of_no_room_is_not_believed_for_ever() {
    let mut bench = Bench::with([presence("w1", 0, 1, State::Open)]);
    let placement = bench.reserve().expect("room");
    bench.release(&placement, Learned::Refused(Reason::WorkerFull), Some((1, 1)));
    assert!(bench.reserve().is_none());
    bench.now += REPORT_TRUSTED;
    assert!(bench.reserve().is_some());
}

#[test]
fn full_and_draining_workers_are_left_alone() {
    let mut bench = Bench::with([presence("full", 3, 3, State::Full), presence("draining", 0, 3, State::Draining)]);
    bench.now += Duration::from_secs(3600);
    assert!(bench.reserve().is_none());
    bench.view.set_stale();
    assert_eq!(bench.reserve().expect("the last word on it is old").worker.as_str(), "full");
}

#[test]
fn an_unreachable_worker_is_suspected_for_longer_each_time() {
    let mut bench = Bench::with([presence("w1", 0, 9, State::Open)]);
    for pause in [SUSPECTED, SUSPECTED * 2, SUSPECTED * 4] {
        let placement = bench.reserve().expect("trusted again");
        bench.release(&placement, Learned::Unreachable, None);
        bench.now += pause - Duration::from_millis(1);
        assert!(bench.reserve().is_none());
        bench.now += Duration::from_millis(1);
    }
    let placement = bench.reserve().expect("trusted again");
    bench.release(&placement, Learned::Answered, None);
    assert_eq!(bench.view.census(bench.now).suspected, 0);
}

#[test]
fn a_restarted_worker_replaces_its_former_life_and_late_news_of_that_are_ignored() {
    let before = presence("w1", 0, 1, State::Open);
    let after = presence("w1", 0, 1, State::Open);
    let mut bench = Bench::with([before.clone()]);
    let old_call = bench.reserve().expect("room");
    let ended = bench.view.apply(Change::Present(after.clone()), bench.now);
    assert_eq!(ended.expect("the former life ended").incarnation, before.incarnation);
    bench.release(&old_call, Learned::Unreachable, None);
    assert_eq!(bench.view.apply(Change::Gone(before.worker, before.incarnation), bench.now), None);
    assert_eq!(bench.reserve().expect("room").incarnation, after.incarnation);
}

#[test]
fn who_is_missing_from_a_snapshot_stays_for_one_more_ttl() {
    let (kept, lost) = (presence("kept", 0, 9, State::Open), presence("lost", 0, 9, State::Open));
    let mut bench = Bench::with([kept.clone(), lost]);
    bench.view.replace(Vec::new(), bench.now);
    assert_eq!(bench.view.census(bench.now).workers, 2);
    bench.now += TTL / 2;
    bench.view.apply(Change::Present(kept), bench.now);
    bench.now += TTL / 2;
    let expired = bench.view.expire_missing(bench.now);
    assert_eq!(expired.iter().map(|placement| placement.worker.as_str()).collect::<Vec<_>>(), ["lost"]);
}

#[test]
fn nothing_expires_while_the_view_is_stale() {
    let mut bench = Bench::with([presence("w1", 0, 9, State::Open)]);
    bench.view.replace(Vec::new(), bench.now);
    bench.view.set_stale();
    bench.now += TTL * 10;
    assert!(bench.view.expire_missing(bench.now).is_empty());
    assert!(bench.reserve().is_some());
}

#[test]
fn who_is_said_to_be_gone_when_the_registry_is_back_has_one_more_ttl_to_be_heard_of() {
    let (heard, silent) = (presence("heard", 0, 9, State::Open), presence("silent", 0, 9, State::Open));
    let draining = presence("draining", 0, 9, State::Draining);
    let mut bench = Bench::with([heard.clone(), silent.clone(), draining.clone()]);
    let gone = |presence: &Presence| Change::Gone(presence.worker.clone(), presence.incarnation);
    bench.view.set_stale();
    bench.now += TTL * 2;
    // Their time was over meanwhile, and the router is the first to reach the registry.
    bench.view.set_fresh(bench.now);
    assert!([&heard, &silent].iter().all(|it| bench.view.apply(gone(it), bench.now).is_none()));
    assert!(bench.view.apply(gone(&draining), bench.now).is_some(), "it has said so");
    assert_eq!(bench.view.census(bench.now).workers, 2);
    bench.now += TTL / 2;
    bench.view.apply(Change::Present(heard.clone()), bench.now);
    assert!(bench.view.expire_missing(bench.now).is_empty());
    bench.now += TTL / 2;
    let expired = bench.view.expire_missing(bench.now);
    assert_eq!(expired.iter().map(|placement| placement.worker.as_str()).collect::<Vec<_>>(), ["silent"]);
    assert!(bench.view.apply(gone(&heard), bench.now).is_some(), "from then on it is believed at once");
}

#[test]
fn it_tells_an_unknown_integration_from_an_empty_pool() {
    let name = |text: &str| text.parse::<IntegrationName>().expect("a name");
    let worker = presence("w1", 0, 9, State::Open);
    let mut bench = Bench::with([worker.clone()]);
    assert_eq!(bench.view.serves(&name("bank")), Served::Yes);
    assert_eq!(bench.view.serves(&name("other")), Served::ByNobody);
    bench.view.apply(Change::Gone(worker.worker, worker.incarnation), bench.now);
    assert_eq!(bench.view.serves(&name("bank")), Served::NoWorkers);
}

#[test]
fn batch_tasks_leave_alone_what_is_reserved_for_people() {
    let mut bench = Bench::with([Presence { reserved: 2, ..presence("w1", 0, 3, State::Open) }]);
    let batch = bench.reserve_for(Priority::Batch).expect("one is not reserved");
    assert!(bench.reserve_for(Priority::Batch).is_none());
    assert!(bench.reserve().is_some() && bench.reserve().is_some());
    assert!(bench.reserve().is_none(), "all three are taken");
    bench.release(&batch, Learned::Answered, Some((2, 3)));
    assert!(bench.reserve_for(Priority::Batch).is_some(), "people fill the reserve themselves");
}

#[test]
fn an_integration_that_is_kept_out_costs_no_call() {
    let bank: IntegrationName = "bank".parse().expect("an integration");
    let full = Presence { full: vec![bank.clone()], ..presence("full", 1, 9, State::Open) };
    let spares = Presence { broken: vec![bank.clone()], ..presence("spares", 1, 9, State::Open) };
    let mut bench = Bench::with([full, spares.clone()]);
    assert!(bench.reserve().is_none());
    assert_eq!(bench.view.serves(&bank), Served::Yes, "one of them only has no room");
    let mut all_spare = Bench::with([spares]);
    assert_eq!(all_spare.view.serves(&bank), Served::Broken);
    all_spare.view.set_stale();
    assert_eq!(all_spare.view.serves(&bank), Served::Yes, "the last word may be an old one");
    assert!(all_spare.reserve().is_some());
}

#[test]
fn replies_tell_at_once_whether_an_integration_is_kept_out() {
    let bank: IntegrationName = "bank".parse().expect("an integration");
    let full = Presence { full: vec![bank], ..presence("w1", 0, 9, State::Open) };
    let mut bench = Bench::with([presence("w1", 0, 9, State::Open)]);
    let (first, second) = (bench.reserve().expect("room"), bench.reserve().expect("room"));
    let says = |keeps_out| Some(LoadReport { in_flight: 1, target: 9, reserved: 0, keeps_out, shares: None });
    bench.release_with(&first, Learned::Refused(Reason::IntegrationFull), says(true));
    assert!(bench.reserve().is_none());
    bench.view.present(Presence { incarnation: second.incarnation, ..full }, bench.now);
    bench.release_with(&second, Learned::Answered, says(false));
    let third = bench.reserve().expect("one has just ended, whatever the registry said before");
    bench.release_with(&third, Learned::Answered, says(true));
    assert!(bench.reserve().is_none());
    bench.now += REPORT_TRUSTED;
    assert!(bench.reserve().is_some(), "an old report is not believed for ever");
}

#[test]
fn a_refusal_for_overload_is_believed_for_a_second_and_the_registrys_word_until_it_changes() {
    let mut bench = Bench::with([presence("w1", 0, 9, State::Open)]);
    let placement = bench.reserve().expect("room");
    bench.release(&placement, Learned::Refused(Reason::Overloaded), Some((0, 9)));
    assert!(bench.reserve().is_none());
    bench.now += SHEDS;
    assert!(bench.reserve().is_some(), "nobody would take it back otherwise");

    let mut bench = Bench::with([presence("w1", 0, 9, State::Overloaded)]);
    bench.now += SHEDS * 60;
    assert!(bench.reserve().is_none());
    bench.view.set_stale();
    assert!(bench.reserve().is_some(), "the registry cannot say that it is over");
}

/// A report in which the tenant holds so many of so many.
fn tenant_holds(held: u32, most: u32) -> Option<LoadReport> {
    let (integration, tenant) = (Share { held, most: None }, Share { held, most: Some(most) });
    let shares = Some(Shares { weight: 1, integration, tenant });
    Some(LoadReport { in_flight: held, target: 20, reserved: 0, keeps_out: false, shares })
}

#[test]
fn a_tenant_at_its_cap_everywhere_is_told_from_one_that_another_worker_may_take() {
    let mut bench = Bench::with([presence("w1", 0, 20, State::Open)]);
    let calls: Vec<_> = (0..7).map(|_| bench.reserve().expect("nothing is known of a cap")).collect();
    calls[5..]
        .iter()
        .for_each(|call| bench.release_with(call, Learned::Refused(Reason::TenantFull), tenant_holds(5, 5)));
    let Room::NotForTenant { again: Some(again) } = bench.room_for(Priority::Batch) else { panic!("it is at its cap") };
    assert!(again > bench.now);
    assert!(bench.held(Priority::Batch).ends_with("is at the cap of the tenant (tenant_caps)"));
    bench.release_with(&calls[0], Learned::Answered, tenant_holds(4, 5));
    assert!(bench.reserve().is_some(), "one of its own has ended");
    bench.view.apply(Change::Present(presence("w2", 20, 20, State::Full)), bench.now);
    assert_eq!(bench.room_for(Priority::Batch), Room::NotForTenant { again: None });
}

#[test]
fn a_worker_with_other_settings_may_have_other_caps() {
    let worker = presence("w1", 0, 20, State::Open);
    let mut bench = Bench::with([worker.clone()]);
    assert!(bench.view.has_other_limits() && !bench.view.has_other_limits());
    let call = bench.reserve().expect("room");
    bench.release_with(&call, Learned::Refused(Reason::TenantFull), tenant_holds(0, 0));
    assert!(bench.held(Priority::Batch).contains("its cap in tenant_caps is 0"));
    bench.view.apply(Change::Present(Presence { settings_version: "next".into(), ..worker }), bench.now);
    assert!(bench.view.has_other_limits() && bench.reserve().is_some());
}

#[test]
fn room_at_one_worker_is_looked_for_there_alone() {
    let bank: IntegrationName = "bank".parse().expect("a name");
    let full = Presence { full: vec![bank], reserved: 2, ..presence("full", 0, 2, State::Open) };
    let mut bench = Bench::with([full, presence("free", 0, 2, State::Open)]);
    let mut at = |worker: &str, priority| {
        let wanted = Wanted { integration: &bench.bank, tenant: &bench.acme, priority };
        bench.view.reserve_at(&worker.parse().expect("an id"), &wanted, bench.now)
    };
    assert_eq!(at("full", Priority::Batch), Room::NotForClass);
    assert_eq!(at("full", Priority::Interactive), Room::NotForIntegration);
    assert!(matches!(at("free", Priority::Batch), Room::Found(_)));
    assert_eq!(at("nobody", Priority::Batch), Room::NotForClass);
}

#[test]
fn each_door_that_is_closed_is_named() {
    let bank: IntegrationName = "bank".parse().expect("a name");
    for (worker, says) in [
        (presence("w", 0, 0, State::Full), "taking nothing (max_parallelism is 0)"),
        (presence("w", 3, 3, State::Full), "full: all of its slots are held (max_parallelism)"),
        (presence("w", 0, 3, State::Draining), "draining"),
        (presence("w", 0, 3, State::Overloaded), "overloaded"),
        (Presence { reserved: 3, ..presence("w", 0, 3, State::Open) }, "interactive_reserve is 1"),
        (
            Presence { reserved: 2, ..presence("w", 1, 3, State::Open) },
            "what is left is reserved (interactive_reserve)",
        ),
        (Presence { full: vec![bank.clone()], ..presence("w", 0, 3, State::Open) }, "integration_caps"),
        (Presence { broken: vec![bank.clone()], ..presence("w", 0, 3, State::Open) }, "because it fails"),
        (presence("w", 0, 3, State::Open), "expected to have room"),
    ] {
        let held = Bench::with([worker]).held(Priority::Batch);
        assert!(held.contains(says), "{held}");
    }
    assert!(Bench::with([]).held(Priority::Batch).contains("no worker"));
}
