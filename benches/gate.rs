//! What admission costs a task: the time of `Gate::admit` and of dropping its permit, together.
//!
//! ```text
//! cargo bench --bench gate
//! ```
//!
//! 20 integrations with caps and weights, 1,000 tenants with a cap, a reserve: every limit is looked at. Steady: one thread
//! at a gate where 100 tasks run. Edge: N is reached with each admission, so that each of them tells the followers twice.
//! Contended: two and four threads at once, as fast as they can, which no worker is. Beside them what a clock costs that
//! is read twice, for it is in all of the numbers. Target: p99 of 1 µs or less, uncontended.

#[path = "support/spread.rs"]
mod spread;

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use spread::Spread;
use weir::gate::{Gate, Permit, Want};
use weir::limits::{ByName, Cap, Limits, Weight};
use weir::task::{IntegrationName, Priority, Tenant};
use weir::telemetry::Telemetry;

const ROUNDS: usize = 200_000;
const INTEGRATIONS: usize = 20;
const TENANTS: usize = 1_000;

fn main() {
    println!("{:<34}{:>10}{:>10}{:>10}{:>12}", "admit + release, µs", "p50", "p99", "p99.9", "refused");
    row("the clock alone", clock(), 0);
    for (name, threads, target, running) in [
        ("steady, 1 thread", 1, 1_000, 100),
        ("edge of N, 1 thread", 1, 101, 100),
        ("contended, 2 threads", 2, 1_000, 100),
        ("contended, 4 threads", 4, 1_000, 100),
    ] {
        let (spread, refused) = measure(threads, target, running);
        row(name, spread, refused);
    }
    println!("\n(target: p99 of 1 µs or less, uncontended)");
}

fn row(name: &str, mut spread: Spread, refused: usize) {
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| spread.quantile(share).as_secs_f64() * 1e6);
    println!("{name:<34}{p50:>10.3}{p99:>10.3}{p999:>10.3}{refused:>12}");
}

fn clock() -> Spread {
    let mut spread = Spread::default();
    (0..ROUNDS).for_each(|_| spread.add(black_box(Instant::now()).elapsed()));
    spread
}

fn measure(threads: usize, target: u32, running: usize) -> (Spread, usize) {
    let integrations: Vec<IntegrationName> =
        (0..INTEGRATIONS).map(|n| format!("bank-{n}").parse().expect("a name")).collect();
    let tenants: Vec<Tenant> = (0..TENANTS).map(|n| format!("tenant-{n}").parse().expect("a name")).collect();
    let limits = Limits {
        interactive_reserve: 0.1,
        integration_caps: ByName {
            others: Some(Cap::Share(0.5)),
            named: [(integrations[0].clone(), Cap::Slots(50))].into(),
        },
        tenant_caps: ByName { others: Some(Cap::Share(0.2)), named: [(tenants[0].clone(), Cap::Slots(50))].into() },
        weights: ByName { others: None, named: [(integrations[1].clone(), Weight::new(2))].into() },
        ..Limits::of(target)
    };
    let gate = Gate::new(limits, integrations.iter().cloned(), &Telemetry::new().expect("a recorder"));
    let _follower = gate.standing();
    let want = |n: usize, priority| Want {
        integration: &integrations[n % INTEGRATIONS],
        tenant: &tenants[n * 7 % TENANTS],
        priority,
    };
    // Of those that weigh one slot, spread over integrations and tenants.
    let others = (0..).filter(|n| n % INTEGRATIONS > 1).take(running);
    let _running: Vec<Permit> =
        others.map(|n| gate.admit(&want(n, Priority::Interactive)).expect("there is room")).collect();
    let begin = Barrier::new(threads);
    let rounds = |thread: usize| {
        let (gate, want, begin) = (&gate, &want, &begin);
        move || {
            let mut took = Vec::with_capacity(ROUNDS);
            let mut refused = 0;
            begin.wait();
            for n in 0..ROUNDS {
                let want = want(thread + n, if n % 2 == 0 { Priority::Batch } else { Priority::Interactive });
                let started = Instant::now();
                let admitted = gate.admit(&want);
                refused += usize::from(admitted.is_err());
                drop(admitted);
                took.push(started.elapsed());
            }
            (took, refused)
        }
    };
    let ended: Vec<(Vec<Duration>, usize)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(rounds(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it ends")).collect()
    });
    let (mut spread, mut refused) = (Spread::default(), 0);
    for (took, refusals) in ended {
        took.into_iter().for_each(|took| spread.add(took));
        refused += refusals;
    }
    (spread, refused)
}
