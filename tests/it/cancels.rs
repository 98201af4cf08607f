//! Callers that go away, many of them: each costs its own task and nobody else's.
//!
//! HTTP/2 servers count streams that are reset, and end connections on which there are many: against the attack known as
//! rapid reset (CVE-2023-44487). A router has one connection to each worker, on which the tasks of all callers are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use weir::lifecycle::Lifecycle;

use crate::support::house::{LONG, Plan, synthetic};

/// More than the thousand that HTTP/2 servers commonly take.
const CANCELS: usize = 1_500;
const AT_ONCE: usize = 50;
const NEIGHBOURS: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_that_leave_cost_nobody_else_a_task() {
    let house = Plan { max_parallelism: 100, ..Plan::default() }.start().await;
    let (neighbours, is_over, answered) =
        (Lifecycle::new(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    for neighbour in 0..NEIGHBOURS {
        let (client, is_over, answered) = (house.client.clone(), is_over.clone(), answered.clone());
        neighbours.spawn("neighbour", async move {
            for round in 0.. {
                let task = synthetic(&format!("stays-{neighbour}-{round}"), json!({"do": "sleep", "ms": 20}));
                let outcome = client.submit(&task).await.expect("nobody else's end is its own");
                assert!(outcome.result.is_ok(), "{outcome:?}");
                answered.fetch_add(1, Ordering::Relaxed);
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
    }
    for round in 0..CANCELS / AT_ONCE {
        let leaves = |number: usize| {
            let task = synthetic(&format!("leaves-{round}-{number}"), json!({"do": "sleep", "ms": 60_000}));
            let client = house.client.clone();
            async move { tokio::time::timeout(Duration::from_millis(20), client.submit(&task)).await.err() }
        };
        let left = join_all((0..AT_ONCE).map(leaves)).await;
        assert!(left.iter().all(Option::is_some), "nobody was answered before it left");
    }
    is_over.store(true, Ordering::Relaxed);
    neighbours.wait(LONG).await.expect("each neighbour has its answer");
    assert!(answered.load(Ordering::Relaxed) >= NEIGHBOURS);
    house.until_in_flight(0, 0).await;
    house.close().await;
}
