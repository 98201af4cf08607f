//! How much may wait: by number, by bytes and by the estimated wait, of each class and of each tenant in it.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::task::Priority;

/// The longest that a caller is told to wait before it comes again.
const RETRY_MOST: Duration = Duration::from_secs(60);

/// The shortest.
const RETRY_LEAST: Duration = Duration::from_millis(100);

/// What it is told when nothing is known of how fast the queue drains.
const RETRY_UNKNOWN: Duration = Duration::from_secs(1);

/// `[router.queue]`: the bounds hold for each pool and class by itself, so that a backlog of batch work keeps no person out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How many tasks may wait.
    pub tasks: usize,
    /// How many bytes of their inputs.
    pub bytes: usize,
    /// The share of both (more than 0, up to 1) that one tenant may fill.
    pub tenant_share: f64,
    /// The longest estimated wait.
    #[serde(with = "humantime_serde")]
    pub wait: Duration,
    /// The share (0 to 1) of the slot-seconds started that batch has while it waits: the start value of the setting.
    pub batch_share: f64,
    /// Dropped early is what waits and has less time left than this quantile (0 to 0.95) of what an integration's
    /// successful runs took: at 0.5, what would more likely than not end too late. 0 drops nothing.
    pub run_quantile: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            tasks: 10_000,
            bytes: 1 << 30,
            tenant_share: 0.8,
            wait: Duration::from_secs(600),
            batch_share: 0.1,
            run_quantile: 0.5,
        }
    }
}

impl Config {
    /// What is wrong with it, by key.
    pub fn check(&self) -> Result<(), String> {
        let share = |key: &str, value: f64, right: bool, range: &str| match right {
            true => Ok(()),
            false => Err(format!("{key}: {value} is not {range}")),
        };
        if self.tasks == 0 {
            return Err("tasks: 0 would refuse every task that has to wait: use at least 1".into());
        }
        if self.bytes < crate::wire::MAX_INPUT_BYTES {
            let least = crate::wire::MAX_INPUT_BYTES;
            return Err(format!("bytes: {} is less than the largest input: use at least {least}", self.bytes));
        }
        if self.wait.is_zero() {
            return Err("wait: 0s would refuse every task that has to wait: use more".into());
        }
        let Config { tenant_share, batch_share, run_quantile, .. } = *self;
        share(
            "tenant_share",
            tenant_share,
            tenant_share > 0.0 && tenant_share <= 1.0,
            "more than 0.0 and at most 1.0",
        )?;
        share("batch_share", batch_share, (0.0..=1.0).contains(&batch_share), "0.0 to 1.0")?;
        share("run_quantile", run_quantile, (0.0..=0.95).contains(&run_quantile), "0.0 to 0.95")
    }

    /// The tasks of one class that one tenant may have waiting.
    pub fn tenant_tasks(&self) -> usize {
        ((self.tasks as f64 * self.tenant_share).ceil() as usize).clamp(1, self.tasks)
    }

    /// The same in bytes: room for the largest input at least.
    pub(super) fn tenant_bytes(&self) -> usize {
        let share = (self.bytes as f64 * self.tenant_share).ceil() as usize;
        share.max(crate::wire::MAX_INPUT_BYTES).min(self.bytes)
    }

    /// Whether one more may wait.
    pub(super) fn check_room(&self, class: Waiting, tenant: Waiting, bytes: usize) -> Result<(), Bound> {
        let over = |now: usize, most: usize| now + bytes > most;
        match () {
            () if class.tasks >= self.tasks => Err(Bound::Tasks),
            () if over(class.bytes, self.bytes) => Err(Bound::Bytes),
            () if tenant.tasks >= self.tenant_tasks() => Err(Bound::TenantTasks),
            () if over(tenant.bytes, self.tenant_bytes()) => Err(Bound::TenantBytes),
            () => Ok(()),
        }
    }

    /// In words.
    pub(super) fn describe(&self, bound: Bound, priority: Priority) -> String {
        let class = priority.as_str();
        let (tasks, tenant_tasks) = (self.tasks, self.tenant_tasks());
        match bound {
            Bound::Bytes => {
                format!(
                    "with it, the inputs of waiting {class} tasks would be more than {} bytes (router.queue.bytes)",
                    self.bytes
                )
            }
            Bound::TenantTasks => format!(
                "{tenant_tasks} {class} tasks of this tenant are waiting already, as many as may \
                 (router.queue.tenant_share)"
            ),
            Bound::TenantBytes => format!(
                "with it, the inputs of this tenant's waiting {class} tasks would be more than {} bytes \
                 (router.queue.tenant_share)",
                self.tenant_bytes()
            ),
            _ => format!("{tasks} {class} tasks are waiting already, as many as may (router.queue.tasks)"),
        }
    }

    /// A wait in words.
    pub(super) fn describe_wait(&self, bound: Bound, priority: Priority, estimate: Duration, most: Duration) -> String {
        let [estimate, most] = [estimate, most].map(|time| time.as_secs_f64());
        let class = priority.as_str();
        let limit = match bound {
            Bound::WaitOverDeadline => format!("this one has {most:.0} s, its run included"),
            _ => format!("{most:.0} s is the most (router.queue.wait)"),
        };
        format!("one more {class} task of this tenant would wait for about {estimate:.0} s, and {limit}")
    }
}

/// What waits, of a class or of a tenant in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) tasks: usize,
    pub(super) bytes: usize,
}

/// Which bound is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::router) enum Bound {
    Tasks,
    Bytes,
    TenantTasks,
    TenantBytes,
    Wait,
    /// It would wait for longer than it has.
    WaitOverDeadline,
}

impl Bound {
    pub(in crate::router) const ALL: [Bound; 6] =
        [Bound::Tasks, Bound::Bytes, Bound::TenantTasks, Bound::TenantBytes, Bound::Wait, Bound::WaitOverDeadline];

    /// The label in metrics.
    pub(in crate::router) fn as_str(self) -> &'static str {
        match self {
            Bound::Tasks => "tasks",
            Bound::Bytes => "bytes",
            Bound::TenantTasks => "tenant_tasks",
            Bound::TenantBytes => "tenant_bytes",
            Bound::Wait => "wait",
            Bound::WaitOverDeadline => "wait_over_deadline",
        }
    }
}

/// One more may not wait.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::router) struct Full {
    pub(in crate::router) bound: Bound,
    pub(in crate::router) retry_after: Duration,
    pub(in crate::router) message: String,
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// When to come again, for what has to become shorter by `excess` tasks and drains at `rate` tasks per second:
/// excess / rate, from 100 ms to a minute; a second where the rate is not known.
pub(super) fn retry_after(excess: f64, rate: Option<f64>) -> Duration {
    let Some(rate) = rate.filter(|rate| *rate > 0.0) else { return RETRY_UNKNOWN };
    Duration::try_from_secs_f64(excess / rate).unwrap_or(RETRY_MOST).clamp(RETRY_LEAST, RETRY_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_named_with_what_would_be_right() {
        let of = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.check().expect_err("it is wrong")
        };
        for (error, says) in [
            (of(|it| it.tasks = 0), "tasks: 0 would"),
            (of(|it| it.bytes = 7), "bytes: 7 is less"),
            (of(|it| it.tenant_share = 0.0), "tenant_share: 0 is not more than 0.0"),
            (of(|it| it.batch_share = 1.5), "batch_share: 1.5 is not 0.0 to 1.0"),
            (of(|it| it.run_quantile = f64::NAN), "run_quantile: NaN is not 0.0 to 0.95"),
            (of(|it| it.wait = Duration::ZERO), "wait: 0s would"),
        ] {
            assert!(error.starts_with(says), "{error}");
        }
        Config::default().check().expect("the defaults are right");
    }

    #[test]
    fn a_tenants_share_is_never_nothing_and_never_more_than_all() {
        let of = |tasks, share| Config { tasks, tenant_share: share, ..Config::default() }.tenant_tasks();
        assert_eq!([of(1, 0.1), of(2, 0.8), of(10_000, 0.8), of(7, 1.0)], [1, 2, 8_000, 7]);
    }

    #[test]
    fn no_bound_is_exceeded_by_one_byte_or_one_task() {
        let config = Config { tasks: 10, bytes: 4 << 20, tenant_share: 0.5, ..Config::default() };
        let room = |(tasks, bytes), (own_tasks, own_bytes), more| {
            let (all, own) = (Waiting { tasks, bytes }, Waiting { tasks: own_tasks, bytes: own_bytes });
            config.check_room(all, own, more).err()
        };
        let mebibyte = 1 << 20;
        assert_eq!(room((9, 3 * mebibyte), (4, mebibyte), mebibyte), None);
        assert_eq!(room((10, 0), (0, 0), 0), Some(Bound::Tasks));
        assert_eq!(room((0, 3 * mebibyte), (0, 0), mebibyte + 1), Some(Bound::Bytes));
        assert_eq!(room((5, 0), (5, 0), 0), Some(Bound::TenantTasks));
        assert_eq!(room((1, 0), (1, mebibyte), mebibyte + 1), Some(Bound::TenantBytes));
    }

    #[test]
    fn when_to_come_again_follows_from_the_rate() {
        assert_eq!(retry_after(10.0, None), RETRY_UNKNOWN);
        assert_eq!(retry_after(10.0, Some(2.0)), Duration::from_secs(5));
        assert_eq!(retry_after(1e9, Some(1e-9)), RETRY_MOST);
        assert_eq!(retry_after(0.0, Some(0.0)), RETRY_UNKNOWN);
    }
}
