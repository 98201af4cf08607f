//! The names of keys on all servers: for commands that somebody waits for, never for what runs all the time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;

use super::{Config, Error, Link, Place};

/// Keys that one request looks at: a millisecond of Redis' time.
const KEYS_PER_REQUEST: usize = 5_000;

/// The names of the keys that are like `pattern`, on each node of a Cluster. One that comes or goes meanwhile may be missing.
pub async fn keys(config: &Config, pattern: &str) -> Result<BTreeSet<String>, Error> {
    let mut found = BTreeSet::new();
    for place in Place::new(config, pattern)?.all().await? {
        let link = Link::new(config, Arc::new(place), Duration::ZERO);
        let mut cursor = 0_u64;
        loop {
            let mut request = redis::cmd("SCAN");
            request.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(KEYS_PER_REQUEST);
            let mut lease = link.lease().await?;
            let reply: RedisResult<(u64, Vec<String>)> = request.query_async(&mut lease.connection).await;
            let (next, some) = lease.settle(reply)?;
            found.extend(some);
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    Ok(found)
}
