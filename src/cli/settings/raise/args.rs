//! Flags of `weir settings raise`.

use std::time::Duration;

use anyhow::bail;

use super::KEY;
use crate::settings::edit::Share;
use crate::settings::raise::Rules;
use crate::task::PoolName;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A share of the workers, the canaries, gets a step more, and is compared with the others from their metrics. \
A step that is shown to be good goes to all workers and is watched; one that is worse, or that nothing can be told of, is taken \
back. The rule, and what ends a raise: docs/raise.md. Ctrl-C puts back the last N that has proven itself.

Exit codes: 0 the raise is where it should go (or --dry-run); 3 the next step is worse; 4 the signal is too weak; 1 it failed; 130 it \
was interrupted.

Examples:
  weir settings raise max_parallelism --to 60 --pool parallel --dry-run
  weir settings raise max_parallelism --to 60 --pool parallel
  weir settings raise max_parallelism --to 60 --pool parallel --share 5% --window 1m --prometheus http://prometheus:9090"
)]
pub(crate) struct Args {
    /// What to raise.
    #[arg(value_name = "KEY", value_parser = [KEY])]
    pub(super) key: String,
    /// How far.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(super) to: u32,
    /// The pool; without it, the one that [router] names.
    #[arg(long)]
    pub(super) pool: Option<PoolName>,
    /// The share of the workers that try each step; more where that is nobody.
    #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = share)]
    pub(super) share: Share,
    /// How much N grows with a step.
    #[arg(long, value_name = "PERCENT", default_value = "25%", value_parser = percent::<100>)]
    pub(super) step: f64,
    /// How long each window of the observation is.
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
    pub(super) window: Duration,
    /// How long all workers are watched after the last step.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration)]
    pub(super) watch: Duration,
    /// How much longer tasks may take on average, after all steps.
    #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = percent::<1000>)]
    pub(super) max_slower: f64,
    /// How many more of 100 tasks may fail, after all steps.
    #[arg(long, value_name = "PERCENT", default_value = "1%", value_parser = percent::<100>)]
    pub(super) max_failures: f64,
    /// How much later a worker's runtime may be on average.
    #[arg(long, value_name = "DURATION", default_value = "10ms", value_parser = humantime::parse_duration)]
    pub(super) max_lag: Duration,
    /// How much more memory a worker may use than in proportion to N.
    #[arg(long, value_name = "PERCENT", default_value = "25%", value_parser = percent::<1000>)]
    pub(super) max_memory: f64,
    /// How much a worker's memory may grow while N stays.
    #[arg(long, value_name = "PERCENT", default_value = "2%", value_parser = percent::<1000>)]
    pub(super) max_growth: f64,
    /// So many tasks of an integration must have ended on either side before a step is good.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub(super) min_tasks: u64,
    /// A Prometheus that scrapes the workers, in place of their admin ports. A window should be four of its scrapes or more.
    #[arg(long, value_name = "URL")]
    pub(super) prometheus: Option<String>,
    /// The reason, for the history.
    #[arg(long, value_name = "TEXT")]
    pub(super) why: Option<String>,
    /// Prints what it would do and what it sees, and changes nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Prints one JSON object per window, change and line.
    #[arg(long)]
    pub(super) json: bool,
}

fn share(text: &str) -> Result<Share, String> {
    text.parse().map_err(|reason| format!("{reason}; the others are what they are compared with"))
}

/// From above 0% to `MOST`%.
fn percent<const MOST: u32>(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    let number = number.filter(|percent| *percent > 0.0 && *percent <= f64::from(MOST));
    number
        .map(|percent| percent / 100.0)
        .ok_or_else(|| format!("use a form such as \"5%\", above 0% and up to {MOST}%"))
}

impl Args {
    pub(super) fn rules(&self) -> anyhow::Result<Rules> {
        let window = self.window;
        if !(Duration::from_millis(100)..=Duration::from_secs(3_600)).contains(&window) {
            bail!("--window {} is not 100ms to 1h", humantime::format_duration(window));
        }
        Ok(Rules {
            window_seconds: window.as_secs_f64(),
            step: self.step,
            max_slower: self.max_slower,
            max_failures: self.max_failures,
            max_lag_seconds: self.max_lag.as_secs_f64(),
            max_memory: self.max_memory,
            max_growth: self.max_growth,
            min_tasks: self.min_tasks,
            watch_windows: self.watch.as_secs_f64().div_euclid(window.as_secs_f64()) as usize,
            ..Rules::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_have_their_sign_and_their_range() {
        assert_eq!((percent::<100>("25%"), percent::<100>("0.5 %")), (Ok(0.25), Ok(0.005)));
        for wrong in ["25", "0%", "-1%", "101%", "x%", "NaN%", ""] {
            assert!(percent::<100>(wrong).expect_err(wrong).contains("such as \"5%\""), "{wrong}");
        }
    }
}
