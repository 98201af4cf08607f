//! How many requests a client makes over time: the generic cell rate algorithm (ITU-T I.371), which is a token bucket
//! in one number, the time at which the bucket would be full again.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::behaviour::RateLimit;
use super::clients::MAX_CLIENTS;

#[derive(Default)]
pub(super) struct Meters {
    full_again: Mutex<BTreeMap<String, Instant>>,
}

impl Meters {
    /// Counts a request of `client`, or says how long it should wait. What is refused is not counted.
    pub(super) fn take(&self, client: &str, limit: RateLimit, now: Instant) -> Result<(), Duration> {
        let mut meters = self.full_again.lock();
        if meters.len() > MAX_CLIENTS {
            meters.retain(|_, full_again| *full_again > now);
        }
        let each = Duration::from_secs_f64(1.0 / limit.per_second);
        let bucket = each.saturating_mul(limit.burst);
        // At most one bucket ahead: the limit may have been another one before.
        let known = meters.get(client).copied().unwrap_or(now);
        let full_again = known.max(now).min(now + bucket);
        let ahead = full_again + each - now;
        if ahead > bucket {
            return Err(ahead - bucket);
        }
        meters.insert(client.to_owned(), full_again + each);
        Ok(())
    }
}

/// The value of `Retry-After`: whole seconds, rounded up, at least one.
pub(super) fn retry_after_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_the_rate() {
        let (meters, limit) = (Meters::default(), RateLimit { per_second: 4.0, burst: 3 });
        let take = |client| meters.take(client, limit, Instant::now());
        assert_eq!([take("a"), take("a"), take("a")], [Ok(()); 3]);
        assert_eq!(take("a"), Err(Duration::from_millis(250)));
        assert_eq!(take("a"), Err(Duration::from_millis(250)), "a refused one costs nothing");
        assert_eq!(take("b"), Ok(()), "each client has its own");
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!((take("a"), take("a").is_err()), (Ok(()), true));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!([take("a"), take("a"), take("a")], [Ok(()); 3]);
        assert!(take("a").is_err(), "a pause earns no more than a burst");
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_is_raised_is_felt_at_once() {
        let meters = Meters::default();
        let (slow, fast) = (RateLimit { per_second: 0.001, burst: 1 }, RateLimit { per_second: 100.0, burst: 1 });
        meters.take("a", slow, Instant::now()).expect("the first");
        meters.take("a", slow, Instant::now()).expect_err("in a quarter of an hour");
        assert_eq!(meters.take("a", fast, Instant::now()), Err(Duration::from_millis(10)));
    }

    #[test]
    fn retry_after_is_rounded_up() {
        let seconds = [0, 1, 999, 1_000, 1_001].map(|millis| retry_after_seconds(Duration::from_millis(millis)));
        assert_eq!(seconds, [1, 1, 1, 1, 2]);
    }
}
