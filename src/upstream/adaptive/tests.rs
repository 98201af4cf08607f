//! The limit against simulated banks: each file in `tests/simulations` is one, and says where the limit must come to lie.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::path::Path;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// So many different courses of each. (With [`MIN_RUNS`] at 20 it is the fourth of `variable_latency` that goes wrong.)
const SEEDS: u64 = 5;

/// A file in `tests/simulations`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Simulation {
    #[serde(default)]
    config: Config,
    seed: u64,
    /// In which the spread of durations is this: the standard deviation of their logarithm.
    spread: f64,
    phases: Vec<Phase>,
}

/// A time in which bank and load are the same.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Phase {
    #[serde(with = "humantime_serde")]
    lasts: Duration,
    /// How many tasks want to run at any time.
    load: usize,
    /// The median of what the bank needs for a task.
    #[serde(with = "humantime_serde")]
    takes: Duration,
    /// So many at a time; the others wait in line at the bank.
    knee: usize,
    /// The share that fails, at once.
    #[serde(default)]
    fails: f64,
    /// Whether what is beyond the knee fails at once, instead of waiting in line.
    #[serde(default)]
    refuses: bool,
    /// Within which the limit lies in the last fifth of the phase, by its mean.
    limit: [f64; 2],
    /// How much of what the bank could do at this load is done in that time, at least.
    #[serde(default)]
    throughput: f64,
}

struct Bank {
    now: Instant,
    adaptive: Adaptive,
    random: StdRng,
    spread: f64,
    in_flight: usize,
    /// The time integral of what is in flight.
    integral: f64,
    /// Tasks that the bank works on, by their end; and those in line at it.
    served: BinaryHeap<Reverse<(Instant, u64)>>,
    line: VecDeque<u64>,
    busy: usize,
    /// When, at which integral, and whether it was refused.
    started: Vec<(Instant, f64, bool)>,
}

struct Seen {
    mean_limit: f64,
    throughput: f64,
}

impl Bank {
    fn run(&mut self, phase: &Phase) -> Seen {
        let (start, end) = (self.now, self.now + phase.lasts);
        let late = start + phase.lasts * 4 / 5;
        let (mut limits, mut ended) = (Vec::new(), 0u32);
        while self.now < end {
            self.admit(phase);
            let Some(Reverse((at, task))) = self.served.pop() else { break };
            self.advance(at);
            self.in_flight -= 1;
            let (began, before, refused) = self.started[task as usize];
            self.busy -= usize::from(!refused);
            let took = self.now - began;
            let is_ok = !refused && !self.random.random_bool(phase.fails);
            let lived = took.as_secs_f64().max(1e-9);
            let sample = Sample { took, beside: (self.integral - before) / lived, is_ok };
            self.adaptive.add(sample, self.now);
            if self.now > late {
                ended += u32::from(!refused);
                limits.push(f64::from(self.adaptive.limit()));
            }
        }
        // The mean of a log-normal distribution is above its median.
        let mean = phase.takes.as_secs_f64() * (self.spread.powi(2) / 2.0).exp();
        let possible = phase.load.min(phase.knee) as f64 / mean * (phase.lasts / 5).as_secs_f64();
        Seen { mean_limit: limits.iter().sum::<f64>() / limits.len() as f64, throughput: f64::from(ended) / possible }
    }

    fn advance(&mut self, to: Instant) {
        self.integral += self.in_flight as f64 * to.saturating_duration_since(self.now).as_secs_f64();
        self.now = self.now.max(to);
    }

    fn admit(&mut self, phase: &Phase) {
        let limit = if self.adaptive.mode() == Mode::On { self.adaptive.limit() as usize } else { usize::MAX };
        while self.in_flight < phase.load.min(limit) {
            self.in_flight += 1;
            self.line.push_back(self.started.len() as u64);
            self.started.push((self.now, self.integral, false));
        }
        while self.busy < phase.knee {
            let Some(task) = self.line.pop_front() else { break };
            let takes = phase.takes.mul_f64((self.spread * self.normal()).exp());
            self.served.push(Reverse((self.now + takes, task)));
            self.busy += 1;
        }
        while let Some(task) = if phase.refuses { self.line.pop_front() } else { None } {
            self.started[task as usize].2 = true;
            self.served.push(Reverse((self.now + Duration::from_millis(20), task)));
        }
    }

    /// Box and Muller.
    fn normal(&mut self) -> f64 {
        let (radius, angle): (f64, f64) = (self.random.random_range(1e-12..1.0), self.random.random());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
}

#[test]
fn the_limit_comes_to_lie_where_each_simulation_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simulations");
    let mut wrong = Vec::new();
    let mut files = 0;
    for entry in std::fs::read_dir(folder).expect("simulations") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("readable");
        let Simulation { config, seed, spread, phases } =
            toml::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        config.check().unwrap_or_else(|problem| panic!("{name}: {problem}"));
        files += 1;
        for seed in seed..seed + SEEDS {
            let now = Instant::now();
            let mut bank = Bank {
                now,
                adaptive: Adaptive::new(config.clone(), now),
                random: StdRng::seed_from_u64(seed),
                spread,
                in_flight: 0,
                integral: 0.0,
                served: BinaryHeap::new(),
                line: VecDeque::new(),
                busy: 0,
                started: Vec::new(),
            };
            for (index, phase) in phases.iter().enumerate() {
                let Seen { mean_limit, throughput } = bank.run(phase);
                let says = format!(
                    "{name}, seed {seed}, phase {}: limit {mean_limit:.1} of {:?}, throughput {throughput:.2}, baseline {:?}",
                    index + 1,
                    phase.limit,
                    bank.adaptive.baseline()
                );
                println!("{says}");
                if !(phase.limit[0]..=phase.limit[1]).contains(&mean_limit) || throughput < phase.throughput {
                    wrong.push(says);
                }
            }
        }
    }
    assert!(files >= 8, "{files} simulations");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

proptest! {
    #[test]
    fn the_limit_never_leaves_its_clamps(
        samples in proptest::collection::vec((0u64..100_000, 0.0f64..500.0, any::<bool>(), 0u64..500), 0..2_000),
        min in 1u32..50,
        more in 0u32..100,
    ) {
        let mut now = Instant::now();
        let config = Config { mode: Mode::On, min, max: min + more, initial: min, ..Config::default() };
        let mut adaptive = Adaptive::new(config, now);
        for (took, beside, is_ok, later) in samples {
            now += Duration::from_millis(later);
            adaptive.add(Sample { took: Duration::from_millis(took), beside, is_ok }, now);
            prop_assert!((min..=min + more).contains(&adaptive.limit()));
        }
    }
}
