//! The dispatcher against workers that keep to their own caps, which it has to find out: nobody is lost, nobody waits for
//! long while there is room, and little is asked in vain.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;

const WORKERS: usize = 3;
const SLOTS: u32 = 10;
const TENANT_CAP: u32 = 2;
const RUN: Duration = Duration::from_millis(400);

/// What the workers hold, by worker and tenant: the truth.
#[derive(Clone, Default)]
struct Gates {
    held: Arc<Mutex<HashMap<(String, String), u32>>>,
}

impl Gates {
    fn admit(&self, worker: &str, tenant: &str) -> Result<(), Reason> {
        if self.holds(worker, None) >= SLOTS {
            return Err(Reason::WorkerFull);
        }
        if self.holds(worker, Some(tenant)) >= TENANT_CAP {
            return Err(Reason::TenantFull);
        }
        *self.held.lock().entry((worker.into(), tenant.into())).or_default() += 1;
        Ok(())
    }

    fn release(&self, worker: &str, tenant: &str) {
        *self.held.lock().get_mut(&(worker.into(), tenant.into())).expect("it is held") -= 1;
    }

    fn holds(&self, worker: &str, tenant: Option<&str>) -> u32 {
        let held = self.held.lock();
        let of = held.iter().filter(|((at, of), _)| at == worker && tenant.is_none_or(|tenant| tenant == of));
        of.map(|(_, held)| held).sum()
    }

    fn load(&self, worker: &str, tenant: &str) -> Option<LoadReport> {
        let (all, own) = (self.holds(worker, None), self.holds(worker, Some(tenant)));
        let (integration, tenant) = (Share { held: all, most: None }, Share { held: own, most: Some(TENANT_CAP) });
        let shares = Some(Shares { weight: 1, integration, tenant });
        Some(LoadReport { in_flight: all, target: SLOTS, reserved: 0, keeps_out: false, shares })
    }
}

/// Runs one task to its end; returns how often it was refused.
async fn run(dispatcher: Dispatcher, gates: Gates, tenant: String, time: Duration) -> u32 {
    let place = place_for(&dispatcher, Priority::Batch, "bank", &tenant);
    let mut refusals = 0;
    loop {
        let reservation = dispatcher.reserve(&place, refusals > 0).await.expect("a worker within a minute");
        let worker = reservation.placement().worker.to_string();
        // The way to the worker.
        tokio::time::sleep(Duration::from_millis(1)).await;
        if let Err(reason) = gates.admit(&worker, &tenant) {
            let load = gates.load(&worker, &tenant);
            reservation.end(refused(reason, load));
            refusals += 1;
            continue;
        }
        tokio::time::sleep(time).await;
        gates.release(&worker, &tenant);
        reservation.end(answered(gates.load(&worker, &tenant)));
        return refusals;
    }
}

async fn tick(dispatcher: Dispatcher) {
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        dispatcher.tick();
    }
}

#[tokio::test(start_paused = true)]
async fn a_fleet_with_caps_is_kept_busy_and_little_is_asked_in_vain() {
    for seed in 0..20 {
        let mut random = SmallRng::seed_from_u64(seed);
        let workers = (0..WORKERS).map(|n| presence(&format!("w{n}"), SLOTS));
        let (dispatcher, gates) = (dispatcher(10_000, workers), Gates::default());
        let mut ticking = JoinSet::new();
        ticking.spawn(tick(dispatcher.clone()));
        let (began, mut tasks) = (Instant::now(), JoinSet::new());
        // One tenant has a hundred: six of them run at a time. The others have as many all together, and room for all.
        for number in 0..200 {
            let tenant = if number % 2 == 0 { "greedy".to_owned() } else { format!("t{}", random.random_range(0..20)) };
            let time = RUN.mul_f64(random.random_range(0.5..1.5));
            tasks.spawn(run(dispatcher.clone(), gates.clone(), tenant, time));
        }
        let refusals: u32 = tasks.join_all().await.into_iter().sum();
        let least = RUN.mul_f64(100.0 / f64::from(TENANT_CAP * WORKERS as u32));
        let took = began.elapsed();
        assert!(took < least.mul_f64(1.3), "{took:?}, and {least:?} is what the greedy one's take at six at a time");
        assert!(refusals < 80, "{refusals} refusals for 200 tasks");
        assert_eq!((waiting(&dispatcher), dispatcher.numbers()[0].census.in_flight), (0, 0));
    }
}
