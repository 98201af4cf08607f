//! The raise against simulated fleets: each file in `tests/raises` is one, and says where the raise must end.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Deserialize;

use super::*;

/// So many different courses of each.
const SEEDS: u64 = 10;

/// No raise takes longer.
const MOST_WINDOWS: usize = 3_000;

/// A file in `tests/raises`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Simulation {
    seed: u64,
    from: u32,
    to: u32,
    workers: usize,
    canaries: usize,
    #[serde(default = "fifteen")]
    window_seconds: f64,
    /// The slots that each worker would hold if it had them.
    load: f64,
    /// How different workers are, and each from window to window: the standard deviation of the logarithm of their times.
    #[serde(default)]
    workers_differ: f64,
    #[serde(default)]
    windows_differ: f64,
    integrations: Vec<Integration>,
    #[serde(default)]
    leak: Option<Leak>,
    ends: Ends,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Integration {
    name: String,
    /// Of the slots that are held.
    share: f64,
    /// The mean time of a run, and the standard deviation of its logarithm.
    takes_seconds: f64,
    spread: f64,
    /// How many slots' tasks at a time the bank works on, for each worker; the others wait in line at it.
    #[serde(default = "endless")]
    knee: f64,
    /// Whether all workers are in one line.
    #[serde(default)]
    is_shared: bool,
    /// Whether what is beyond the knee fails, instead of waiting.
    #[serde(default)]
    refuses: bool,
    #[serde(default)]
    fails: f64,
    #[serde(default)]
    slow: Vec<Slow>,
}

/// The bank is slower for a while, for everyone.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Slow {
    /// Windows since the start, or since all have this N.
    window: usize,
    #[serde(default)]
    since_all_have: u32,
    lasts: usize,
    times: f64,
}

/// Workers that have this N or more grow.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Leak {
    from_n: u32,
    after_windows: usize,
    per_window: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ends {
    how: Vec<String>,
    n: [u32; 2],
    /// What the controls' mean time may come to, as a factor on that of the beginning, while they are controls.
    #[serde(default = "endless")]
    controls_slower: f64,
}

fn fifteen() -> f64 {
    15.0
}

fn endless() -> f64 {
    f64::INFINITY
}

struct Fleet<'a> {
    of: &'a Simulation,
    random: StdRng,
    /// A factor on each worker's times.
    speeds: Vec<f64>,
    n: Vec<u32>,
    /// Windows since a worker has an N from which it leaks.
    leaking_for: Vec<usize>,
    window: usize,
    /// When all got the N that they have.
    level_since: usize,
}

impl Fleet<'_> {
    fn new(of: &Simulation, seed: u64) -> Fleet<'_> {
        let mut random = StdRng::seed_from_u64(seed);
        let speeds = (0..of.workers).map(|_| (of.workers_differ * normal(&mut random)).exp()).collect();
        let (n, leaking_for) = (vec![of.from; of.workers], vec![0; of.workers]);
        Fleet { of, random, speeds, n, leaking_for, window: 0, level_since: 0 }
    }

    fn window(&mut self) -> Window {
        self.window += 1;
        let canaries: Vec<_> = (0..self.of.canaries).collect();
        let controls: Vec<_> = (self.of.canaries..self.of.workers).collect();
        let window = Window { canaries: self.group(&canaries), controls: self.group(&controls), lost: None };
        if let Some(leak) = &self.of.leak {
            for (n, windows) in self.n.iter().zip(&mut self.leaking_for) {
                *windows = if *n >= leak.from_n { *windows + 1 } else { 0 };
            }
        }
        window
    }

    fn group(&mut self, workers: &[usize]) -> Group {
        let (mut group, count) = (Group { workers: workers.len(), ..Group::default() }, workers.len() as f64);
        let (mut memory, mut lag) = (0.0, 0.0);
        for &worker in workers {
            let held = self.held(worker) * (1.0 + 0.01 * normal(&mut self.random));
            group.slots += held / count;
            let mood = (self.of.windows_differ * normal(&mut self.random)).exp() * self.speeds[worker];
            for integration in &self.of.integrations {
                let tasks = self.tasks(integration, worker, mood);
                group.tasks.entry(integration.name.clone()).or_default().add(&tasks);
            }
            let leak = self.of.leak.as_ref().map_or(0.0, |leak| {
                leak.per_window * self.leaking_for[worker].saturating_sub(leak.after_windows) as f64
            });
            memory += (200e6 + 500e3 * held) * (1.0 + leak + 0.003 * normal(&mut self.random));
            lag += (200e-6 + 20e-6 * normal(&mut self.random)).max(0.0);
        }
        (group.memory_bytes, group.lag_seconds) = (Some(memory / count), Some(lag / count));
        group
    }

    fn held(&self, worker: usize) -> f64 {
        self.of.load.min(f64::from(self.n[worker]))
    }

    fn tasks(&mut self, integration: &Integration, worker: usize, mood: f64) -> Tasks {
        let of_one = |worker: usize| integration.share * self.held(worker);
        let held = of_one(worker);
        let pressing = match integration.is_shared {
            true => (0..self.of.workers).map(of_one).sum::<f64>() / self.of.workers as f64,
            false => held,
        };
        let pressure = (pressing / integration.knee).max(1.0);
        let (waits, refused) = if integration.refuses { (1.0, 1.0 - 1.0 / pressure) } else { (pressure, 0.0) };
        let slow: f64 = integration.slow.iter().filter(|slow| self.is_slow(slow)).map(|slow| slow.times).product();
        // What is refused takes a twentieth.
        let mean = integration.takes_seconds * mood * slow * waits * (1.0 - 0.95 * refused);
        let expected = held * self.of.window_seconds / mean;
        let count = (expected + expected.sqrt() * normal(&mut self.random)).max(0.0).round();
        let deviation = mean * ((integration.spread.powi(2)).exp() - 1.0).sqrt();
        let seconds = (count * mean + count.sqrt() * deviation * normal(&mut self.random)).max(0.0);
        let fails = integration.fails + (1.0 - integration.fails) * refused;
        let failed = self.failures(count as u64, fails);
        Tasks { ended: count as u64, failed, timed: count as u64, seconds }
    }

    /// Draws how many of so many fail, by skipping from one that does to the next.
    fn failures(&mut self, of: u64, share: f64) -> u64 {
        if share <= 0.0 {
            return 0;
        }
        let (mut at, mut failed) = (0.0, 0);
        loop {
            at += 1.0 + (self.random.random_range(1e-12..1.0f64).ln() / (1.0 - share).max(1e-12).ln()).floor();
            if at > of as f64 {
                return failed;
            }
            failed += 1;
        }
    }

    fn is_slow(&self, slow: &Slow) -> bool {
        let since = match slow.since_all_have {
            0 => Some(self.window),
            n => self.n.iter().all(|of_one| *of_one >= n).then(|| self.window - self.level_since),
        };
        since.is_some_and(|since| (slow.window..slow.window + slow.lasts).contains(&since))
    }
}

/// Box and Muller.
fn normal(random: &mut StdRng) -> f64 {
    let (radius, angle): (f64, f64) = (random.random_range(1e-12..1.0), random.random());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

struct Ended {
    stop: Stop,
    windows: usize,
    controls_slower: f64,
}

fn run(simulation: &Simulation, seed: u64) -> Ended {
    let rules = Rules { window_seconds: simulation.window_seconds, ..Rules::default() };
    let mut raise = Raise::new(rules, simulation.from, simulation.to);
    let mut fleet = Fleet::new(simulation, seed);
    let mut controls = Vec::new();
    while fleet.window < MOST_WINDOWS {
        let window = fleet.window();
        let mean = |group: &Group| {
            let all = group.tasks.values().fold(Tasks::default(), |mut all, tasks| {
                all.add(tasks);
                all
            });
            all.mean_seconds()
        };
        controls.push(mean(&window.controls));
        match raise.look(&window).next {
            Next::Hold => {}
            Next::Step(to) => fleet.n[..simulation.canaries].fill(to),
            Next::Promote(to) => {
                fleet.n.fill(to);
                fleet.level_since = fleet.window;
            }
            Next::Stop(stop) => {
                let average = |of: &[f64]| of.iter().sum::<f64>() / of.len() as f64;
                let first = average(&controls[..controls.len().min(8)]);
                let controls_slower = controls.chunks(8).map(average).fold(0.0, f64::max) / first;
                return Ended { stop, windows: fleet.window, controls_slower };
            }
        }
    }
    panic!("it goes on for more than {MOST_WINDOWS} windows");
}

#[test]
fn a_raise_ends_where_each_simulation_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/raises");
    let (mut wrong, mut files) = (Vec::new(), 0);
    for entry in std::fs::read_dir(folder).expect("simulations") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("readable");
        let simulation: Simulation = toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        files += 1;
        for seed in simulation.seed..simulation.seed + SEEDS {
            let Ended { stop: Stop { how, stays, why }, windows, controls_slower } = run(&simulation, seed);
            let says = format!(
                "{name}, seed {seed}: {how:?} at {stays} after {windows} windows, controls × {controls_slower:.2}: {why}"
            );
            println!("{says}");
            let ends = &simulation.ends;
            let is_so = ends.how.contains(&format!("{how:?}").to_lowercase());
            if !is_so || !(ends.n[0]..=ends.n[1]).contains(&stays) || controls_slower > ends.controls_slower {
                wrong.push(says);
            }
        }
    }
    assert!(files >= 10, "{files} simulations");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_step_is_a_share_of_n_and_at_least_one_slot_and_never_beyond_the_end() {
    let rules = Rules::default();
    assert_eq!(rules.path(1, 12), [1, 2, 3, 4, 5, 6, 7, 8, 10, 12]);
    assert_eq!(rules.next(u32::MAX, u32::MAX), u32::MAX);
}

/// A window in which all is as it was, with this much of the new N in use.
fn quiet(canaries: f64, controls: f64) -> Window {
    let tasks = Tasks { ended: 400, failed: 0, timed: 400, seconds: 400.0 };
    let group = |slots, workers| Group {
        workers,
        slots,
        tasks: [("bank".to_owned(), tasks)].into(),
        memory_bytes: Some(1e8),
        lag_seconds: Some(1e-4),
    };
    Window { canaries: group(canaries, 1), controls: group(controls, 3), lost: None }
}

fn until_trial(raise: &mut Raise) -> u32 {
    for _ in 0..100 {
        if let Next::Step(to) = raise.look(&quiet(30.0, 30.0)).next {
            return to;
        }
    }
    panic!("no step");
}

#[test]
fn a_worker_that_is_lost_with_the_new_n_ends_the_raise_at_once() {
    let mut raise = Raise::new(Rules::default(), 30, 60);
    let lost = || Window { lost: Some("worker-1 was started anew".into()), ..quiet(30.0, 30.0) };
    assert_eq!(raise.look(&lost()).next, Next::Hold, "with the old N it is no concern of the raise");
    assert_eq!((until_trial(&mut raise), raise.on_trial(), raise.proven()), (37, Some(37), 30));
    let Next::Stop(stop) = raise.look(&lost()).next else { panic!("it goes on") };
    assert_eq!((stop.how, stop.stays, stop.why.as_str()), (How::Worse, 30, "worker-1 was started anew"));
}

#[test]
fn canaries_that_are_not_full_say_nothing() {
    let mut raise = Raise::new(Rules::default(), 30, 60);
    until_trial(&mut raise);
    let looks: Vec<_> = (0..=PATIENCE).map(|_| raise.look(&quiet(33.0, 30.0))).collect();
    assert!(looks.iter().all(|look| look.verdicts.is_empty() && look.windows == 0));
    let Next::Stop(stop) = &looks[PATIENCE].next else { panic!("it goes on") };
    assert_eq!((stop.how, stop.stays), (How::Weak, 30));
    assert!(stop.why.contains("did not hold 33.5 slots each"), "{}", stop.why);
}

#[test]
fn a_good_step_is_promoted_after_twelve_windows_and_watched_against_before() {
    let mut raise = Raise::new(Rules { watch_windows: 30, ..Rules::default() }, 30, 37);
    until_trial(&mut raise);
    let looks: Vec<_> = (0..13).map(|_| raise.look(&quiet(37.0, 30.0))).collect();
    assert_eq!(looks[0].note, "tasks from before the change end");
    assert_eq!((looks[4].verdicts.len(), &looks[4].next), (5, &Next::Hold), "a look, but too early to be good");
    assert_eq!((looks[12].windows, &looks[12].next), (12, &Next::Promote(37)));
    assert_eq!((raise.n(), raise.proven()), (37, 30), "not watched yet");
    let looks: Vec<_> = (0..31).map(|_| raise.look(&quiet(37.0, 37.0)).next).collect();
    assert!(looks[..30].iter().all(|next| *next == Next::Hold));
    let Next::Stop(stop) = &looks[30] else { panic!("it goes on") };
    assert_eq!((stop.how, stop.stays), (How::Reached, 37));
}
