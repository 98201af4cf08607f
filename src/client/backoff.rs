//! When what never started is tried again: exponential pauses with jitter, never sooner than the server asked, never
//! beyond the task's own time.

use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use super::error::SubmitError;
use crate::task::Outcome;

/// The pauses between attempts to start a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// After the first attempt; doubled with each. Moved by up to a tenth at random, so that callers who were refused
    /// together come back apart.
    pub first: Duration,
    /// The longest, unless the server asks for a longer one.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { first: Duration::from_millis(100), max: Duration::from_secs(5) }
    }
}

impl Backoff {
    fn pause(&self, attempts: u32, asked: Duration) -> Duration {
        let doubled = self.first.saturating_mul(2u32.saturating_pow(attempts.saturating_sub(1)));
        let jitter = rand::rng().random_range(0.0..0.2);
        doubled.min(self.max).mul_f64(0.9 + jitter).max(asked.mul_f64(1.0 + jitter))
    }
}

/// Attempts until one starts the task, or until a further one must not be, would not help, or would come too late.
pub(super) async fn until_started<A, F>(
    backoff: Option<Backoff>,
    deadline: Instant,
    mut attempt: A,
) -> Result<Outcome, SubmitError>
where
    A: FnMut() -> F,
    F: Future<Output = Result<Outcome, SubmitError>>,
{
    let mut attempts = 0;
    loop {
        let error = match attempt().await {
            Ok(outcome) => return Ok(outcome),
            Err(error) => error,
        };
        attempts += 1;
        let (Some(backoff), Some(asked)) = (backoff, error.retry_after()) else { return Err(error) };
        let pause = backoff.pause(attempts, asked);
        if pause >= deadline.saturating_duration_since(Instant::now()) {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::TaskError;

    /// How often a task with a minute is attempted when each attempt fails like this, and how long that takes.
    async fn attempts(backoff: Option<Backoff>, error: TaskError) -> (usize, Duration) {
        let (began, mut attempts) = (Instant::now(), 0);
        let result = until_started(backoff, began + Duration::from_secs(60), || {
            attempts += 1;
            std::future::ready(Err(SubmitError::NotStarted(error.clone())))
        });
        assert_eq!(result.await.expect_err("it never starts").reason(), error.reason.as_str());
        (attempts, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end_with_the_tasks_time() {
        let (attempts, took) = attempts(Some(Backoff::default()), TaskError::stale_incarnation("")).await;
        // 0.1 + 0.2 + … + 3.2 s, then 5 s each.
        assert!((14..=22).contains(&attempts), "{attempts}");
        assert!(took < Duration::from_secs(60) && took > Duration::from_secs(53), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_asks_for_more_time_gets_it() {
        let asked = TaskError::queue_full("", Duration::from_secs(25));
        let (attempts, took) = attempts(Some(Backoff::default()), asked).await;
        assert!((2..=3).contains(&attempts) && took >= Duration::from_secs(25), "{attempts} in {took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_would_not_help_is_not_tried_and_neither_is_anything_with_retries_off() {
        for (backoff, error) in
            [(Some(Backoff::default()), TaskError::invalid("")), (None, TaskError::worker_full("full"))]
        {
            assert_eq!(attempts(backoff, error).await, (1, Duration::ZERO));
        }
    }
}
