//! The guarded raise: how far N can go up, found on a share of the workers. Pure: what is observed comes in from outside,
//! and what is to be done goes out.
//!
//! A share of the workers, the **canaries**, gets a higher N; the others, the **controls**, keep theirs. What happens is
//! observed in windows of one length, and each window makes one value per signal:
//!
//! | signal | its value in a window | its bound |
//! |---|---|---|
//! | mean time of an integration's runs | ln(canaries / controls) | ln(1 + `max_slower`), for the whole raise |
//! | an integration's share of failures | counted over all windows | `max_failures`, for the whole raise |
//! | lag of the runtime | canaries − controls, in seconds | `max_lag_seconds` |
//! | memory of a worker | ln(canaries / controls) | ln(N' / N) + ln(1 + `max_memory`) |
//! | growth of memory | the slope of ln(canaries / controls), times a third of the windows | ln(1 + `max_growth`) |
//!
//! **The rule.** A signal's change is the mean of its values in the trial less their mean in all windows before in which all
//! had the same N: a difference of differences. What slows a bank for everyone cancels out within a window, and what has
//! always been different about the canaries cancels out between the two times. The change has a confidence interval:
//! Welch's for means, Newcombe's for shares, least squares for growth (`statistics.rs`). A step is *worse* when the lower
//! end of one signal's interval is beyond its bound, and *good* when the upper ends of all are within theirs: not being
//! shown to be worse is not enough. Anything else is *open*, and more windows are waited for.
//!
//! **Many looks.** A trial is looked at after 4, 12, 24 and 48 windows. The probability of a mistake in a trial, `false_alarms`, is
//! shared out evenly among its looks and signals (Bonferroni), so that it holds however often and at whatever one looks. A
//! step is good after 12 windows at the earliest, and with `min_tasks` of each integration that has a twentieth of the tasks
//! or more; a smaller one can only be worse. What is open after the last look stops the raise: the signal is too weak.
//!
//! **Full enough.** A window counts only if the canaries held, on average, more than half of what their N was raised by. A
//! canary that never reached its N says nothing.
//!
//! **After a good step** all workers get the new N, and the controls are compared with themselves before: a bank that all
//! workers share is pressed by all of them only now, and slows for canaries and controls alike. That it slowed for its own
//! reasons in just these windows cannot be told from that, and the step is taken back, too; running the raise again tells. These
//! windows are also the ones that the next trial is compared with. After the last step they go on for `watch_windows`, in
//! which a late leak shows.
//!
//! A mean, not a quantile: the buckets of the histograms are a factor of two apart, so a quantile would stay or jump, while sums
//! and counts are exact, and a mean hides no slow tasks. Dividing up the probability over looks is the simplest form of group
//! sequential testing (Pocock, *Biometrika* 64, 1977, spends it more thriftily); showing that a change is within a margin is
//! a test of non-inferiority (Rothmann, Wiens and Chan, *Design and Analysis of Non-Inferiority Trials*, 2012).

mod series;
mod statistics;

use std::collections::BTreeMap;

pub use series::{Group, Says, Signal, Tasks, Verdict};
pub use statistics::Interval;

use series::{Bounds, Series};

/// The windows after which a trial is looked at.
const LOOKS: [usize; 4] = [4, 12, 24, 48];

/// Before this many, nothing is good: memory that grows does not show yet.
const GOOD_FROM: usize = 12;

/// The windows in which all have the same N.
const LEVEL: usize = 24;

/// So many windows without news, and no more are waited for.
const PATIENCE: usize = 32;

/// Below this share of N that is held, it is not N that holds anything back.
const IN_USE: f64 = 0.8;

/// What is enough, and how far it may go.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// The length of a window.
    pub window_seconds: f64,
    /// How much N grows with a step: 0.25 is by a quarter.
    pub step: f64,
    /// How much longer runs may take on average after all steps: 0.1 is by a tenth.
    pub max_slower: f64,
    /// How much larger the share of failures may be after all steps: 0.01 is by one task in a hundred.
    pub max_failures: f64,
    /// How much later the runtime may be, on average.
    pub max_lag_seconds: f64,
    /// How much more memory may be used than in proportion to N: 0.25 is by a quarter.
    pub max_memory: f64,
    /// How much memory may grow while N stays.
    pub max_growth: f64,
    /// The probability that a trial ends with the wrong verdict.
    pub false_alarms: f64,
    /// The tasks of an integration in each group, for a step to be good.
    pub min_tasks: u64,
    /// Windows after the last step.
    pub watch_windows: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            window_seconds: 15.0,
            step: 0.25,
            max_slower: 0.1,
            max_failures: 0.01,
            max_lag_seconds: 0.01,
            max_memory: 0.25,
            max_growth: 0.02,
            false_alarms: 0.05,
            min_tasks: 200,
            watch_windows: 40,
        }
    }
}

impl Rules {
    /// The N after `n` on the way to `to`: a step higher, by at least 1.
    pub fn next(&self, n: u32, to: u32) -> u32 {
        let next = (f64::from(n) * (1.0 + self.step)).floor() as u32;
        next.max(n.saturating_add(1)).min(to)
    }

    /// All values of N on the way, with both ends.
    pub fn path(&self, from: u32, to: u32) -> Vec<u32> {
        std::iter::successors(Some(from), |n| (*n < to).then(|| self.next(*n, to))).collect()
    }
}

/// What was seen in one window.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Window {
    /// Those that get a new N first.
    pub canaries: Group,
    /// The others.
    pub controls: Group,
    /// A worker with the new N that ended, was started anew, or takes no tasks to protect itself, in words.
    pub lost: Option<String>,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Wait for the next window.
    Hold,
    /// Give the canaries this N.
    Step(u32),
    /// Give it to all.
    Promote(u32),
    /// All workers have the N that stays, or get it back; there is nothing more to do.
    Stop(Stop),
}

/// How a raise ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Stop {
    /// Why.
    pub how: How,
    /// The N that stays: the last one that has proven itself.
    pub stays: u32,
    /// The same in words, with the numbers.
    pub why: String,
}

/// Why a raise ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It is where it should go.
    Reached,
    /// The next step is worse.
    Worse,
    /// Whether the next step is worse cannot be told.
    Weak,
}

/// What a window came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Look {
    /// The windows of this phase that count.
    pub windows: usize,
    /// What was judged; empty when nothing was.
    pub verdicts: Vec<Verdict>,
    /// What to do.
    pub next: Next,
    /// What this phase waits for, in words.
    pub note: String,
}

/// A raise under way.
#[derive(Debug)]
pub struct Raise {
    rules: Rules,
    to: u32,
    /// What all have or had; the last is in force.
    levels: Vec<u32>,
    phase: Phase,
    now: Series,
    /// All windows in which all had the same N: what trials are compared with.
    alike: Series,
    /// The last trial: what comes after its promotion is compared with it.
    trial: Option<Series>,
    /// Windows that are left out, because tasks that end in them began before the last change.
    settling: usize,
    /// Windows that did not count.
    idle: usize,
    used: BTreeMap<Signal, f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// All have the same N.
    Level,
    /// The canaries have this one.
    Trial(u32),
}

impl Raise {
    /// From an N that all have.
    pub fn new(rules: Rules, from: u32, to: u32) -> Self {
        let (now, alike, used) = (Series::default(), Series::default(), BTreeMap::new());
        let (levels, phase) = (vec![from], Phase::Level);
        Raise { rules, to, levels, phase, now, alike, trial: None, settling: 0, idle: 0, used }
    }

    /// The N of those that are no canaries.
    pub fn n(&self) -> u32 {
        self.levels.last().copied().unwrap_or_default()
    }

    /// The N on trial.
    pub fn on_trial(&self) -> Option<u32> {
        match self.phase {
            Phase::Level => None,
            Phase::Trial(to) => Some(to),
        }
    }

    /// The last N that has proven itself: what stays if the raise ends now.
    pub fn proven(&self) -> u32 {
        match (self.phase, self.levels.as_slice()) {
            (Phase::Level, [.., before, _]) => *before,
            _ => self.n(),
        }
    }

    /// Takes in a window. What it returns is to be done before the next one begins.
    pub fn look(&mut self, window: &Window) -> Look {
        let mut look = Look { windows: self.now.windows, verdicts: Vec::new(), next: Next::Hold, note: String::new() };
        let has_new_n = self.phase != Phase::Level || self.levels.len() > 1;
        if let (Some(lost), true) = (&window.lost, has_new_n) {
            look.next = stop(How::Worse, self.proven(), lost.clone());
        } else if self.settling > 0 {
            self.settling -= 1;
            look.note = "tasks from before the change end".into();
        } else {
            match self.phase {
                Phase::Level => self.look_at_level(window, &mut look),
                Phase::Trial(to) => self.look_at_trial(to, window, &mut look),
            }
        }
        look
    }

    fn look_at_level(&mut self, window: &Window, look: &mut Look) {
        self.now.add(&window.canaries, &window.controls);
        let (windows, n, is_last) = (self.now.windows, self.n(), self.n() >= self.to);
        look.windows = windows;
        let length = if is_last { self.rules.watch_windows.max(LEVEL) } else { LEVEL };
        look.note = format!("window {windows} of {length} with N = {n} for all");
        let looks: Vec<_> = LOOKS.into_iter().filter(|look| *look < length).chain([length]).collect();
        if let (Some(trial), [.., last, _], true) = (&self.trial, self.levels.as_slice(), looks.contains(&windows)) {
            let raised_by = (f64::from(n) / f64::from((*last).max(1))).ln();
            // The step has been paid for already: what it may come to here is the whole bound.
            let bounds = Bounds { rules: &self.rules, raised_by, used: &BTreeMap::new(), looks: looks.len() };
            look.verdicts = self.now.against_before(trial, &bounds);
            if let Some(bad) = look.verdicts.iter().find(|verdict| verdict.says() == Says::Bad) {
                let cause = match bad.signal {
                    Signal::Time(_) | Signal::Failures(_) => {
                        ": either what they share bears no more, or something else happened to it just then"
                    }
                    Signal::Lag | Signal::Memory | Signal::Leak => "",
                };
                let why = format!("since all have N = {n}, {}{cause}", in_words(bad));
                look.next = stop(How::Worse, self.proven(), why);
                return;
            }
        }
        if windows < length {
            return;
        }
        let unknown = self.now.unknown();
        if is_last {
            look.next = stop(How::Reached, n, format!("N = {n} has proven itself"));
        } else if self.now.major().next().is_none() {
            look.next = stop(How::Weak, n, format!("no task ended in {windows} windows"));
        } else if !unknown.is_empty() && windows >= PATIENCE {
            let why = format!("too few tasks of {} ended in {windows} windows; use longer ones", unknown.join(", "));
            look.next = stop(How::Weak, n, why);
        } else if !unknown.is_empty() {
            look.note = format!("more tasks of {} are waited for", unknown.join(", "));
        } else if self.now.mean_slots() < IN_USE * f64::from(n) {
            let held = self.now.mean_slots();
            let why = format!("each worker held {held:.1} of {n} slots on average: N is not what holds anything back");
            look.next = stop(How::Weak, n, why);
        } else {
            let to = self.rules.next(n, self.to);
            look.next = Next::Step(to);
            self.begin(Phase::Trial(to));
        }
    }

    fn look_at_trial(&mut self, to: u32, window: &Window, look: &mut Look) {
        let (n, held) = (self.n(), window.canaries.slots);
        let wanted = (f64::from(n) + f64::from(to)) / 2.0;
        if held < wanted {
            self.idle += 1;
            look.note = format!("the canaries held {held:.1} slots each; from {wanted:.1} on, a window counts");
            if self.idle >= PATIENCE {
                let why = format!(
                    "in {} windows the canaries did not hold {wanted:.1} slots each, in the last one {held:.1} of {to}: there is \
                     not enough to do to tell anything",
                    self.idle
                );
                look.next = stop(How::Weak, n, why);
            }
            return;
        }
        self.now.add(&window.canaries, &window.controls);
        let windows = self.now.windows;
        look.windows = windows;
        look.note = format!("window {windows} with N = {to} for the canaries");
        if !LOOKS.contains(&windows) {
            return;
        }
        let raised_by = (f64::from(to) / f64::from(n.max(1))).ln();
        let bounds = Bounds { rules: &self.rules, raised_by, used: &self.used, looks: LOOKS.len() };
        look.verdicts = self.now.against_controls(&self.alike, &bounds);
        let is_good = |verdict: &Verdict| !verdict.required || verdict.says() == Says::Good;
        let has_tasks = self.now.major().next().is_some();
        if let Some(bad) = look.verdicts.iter().find(|verdict| verdict.says() == Says::Bad) {
            look.next = stop(How::Worse, n, format!("with N = {to}, {}", in_words(bad)));
        } else if windows >= GOOD_FROM && has_tasks && look.verdicts.iter().all(is_good) {
            self.pay(&look.verdicts);
            self.levels.push(to);
            look.next = Next::Promote(to);
            self.begin(Phase::Level);
        } else if windows >= LOOKS[LOOKS.len() - 1] {
            let open = look.verdicts.iter().find(|verdict| !is_good(verdict));
            let open = open.map_or_else(|| "no task ended".into(), in_words);
            look.next = stop(How::Weak, n, format!("with N = {to}, after {windows} windows, {open}"));
        }
    }

    fn begin(&mut self, phase: Phase) {
        let tasks_take = (2.0 * self.now.slowest_seconds() / self.rules.window_seconds).ceil() as usize;
        self.settling = tasks_take.clamp(1, PATIENCE);
        let ended = std::mem::take(&mut self.now);
        match self.phase {
            Phase::Level => self.alike.absorb(&ended),
            Phase::Trial(_) => self.trial = Some(ended),
        }
        (self.phase, self.idle) = (phase, 0);
    }

    /// What a step takes of the bounds that are for the whole raise.
    fn pay(&mut self, verdicts: &[Verdict]) {
        for Verdict { signal, change, .. } in verdicts {
            if let (Signal::Time(_) | Signal::Failures(_), Some(change)) = (signal, change) {
                let used = self.used.entry(signal.clone()).or_default();
                *used = (*used + change.estimate).max(0.0);
            }
        }
    }
}

fn stop(how: How, stays: u32, why: String) -> Next {
    Next::Stop(Stop { how, stays, why })
}

/// A verdict as a part of a sentence, with its numbers.
fn in_words(verdict: &Verdict) -> String {
    let Verdict { signal, change, bound, enough, .. } = verdict;
    let bound = signal.shown(*bound);
    match (change, verdict.says()) {
        (None, _) => format!("too little is known of the {signal}"),
        (Some(change), says) => {
            let [estimate, low, high] = [change.estimate, change.low, change.high].map(|value| signal.shown(value));
            let end = match says {
                Says::Bad => format!("more than {bound}"),
                Says::Good => format!("within {bound}"),
                Says::Open if !enough => "but of too few tasks".into(),
                Says::Open => format!("and whether that is within {bound} cannot be told"),
            };
            format!("the {signal} changed by {estimate} ({low} to {high}), {end}")
        }
    }
}

impl Signal {
    /// A change or a bound of it as one says it.
    pub fn shown(&self, value: f64) -> String {
        match self {
            Signal::Time(_) | Signal::Memory | Signal::Leak => format!("{:+.1}%", value.exp_m1() * 100.0),
            Signal::Failures(_) => format!("{:+.2} points", value * 100.0),
            Signal::Lag => format!("{:+.1} ms", value * 1000.0),
        }
    }
}

#[cfg(test)]
mod tests;
