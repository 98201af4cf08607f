//! A task for unit tests, which name only what matters to them.

use std::time::Duration;

use tokio::time::Instant;

use super::{Json, Priority, Task, Tenant};

/// A batch task of the default tenant for `bank`, without an input, with a minute's time.
pub(crate) fn task(id: &str) -> Task {
    Task {
        id: id.parse().expect("an id"),
        integration: "bank".parse().expect("a name"),
        tenant: Tenant::default(),
        priority: Priority::Batch,
        input: Json::null(),
        deadline: Instant::now() + Duration::from_secs(60),
    }
}
