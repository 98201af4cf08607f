//! What is the matter, in order of likelihood. Pure: an [`Observation`] in, [`Finding`]s out.
//!
//! Each rule measures one number, and its **score** is between 0 and 1:
//!
//! score = strength × Π (1 − weight × score of the cause)
//!
//! over the causes that would bring the same about. **Strength** is where the number lies between the value at which it means
//! nothing and the one from which on it is beyond doubt:
//!
//! strength = (measured − nothing) / (sure − nothing), but not below 0 or above 1.
//!
//! The product is what is left for a symptom to say once something else explains it ("explaining away", Pearl, *Probabilistic
//! Reasoning in Intelligent Systems*, 1988, with the noisy-or's independent causes): a worker whose slots are full because an
//! integration blocks its threads needs no more slots. What an integration waits for explains nothing about another one,
//! only that it blocks threads does. Rules are in an order in which causes come before what they bring about.

use serde::Serialize;

use super::observation::Observation;
use super::rules::{RULES, Rule};

/// From this score on, a finding is shown.
pub(super) const SHOWN: f64 = 0.2;

/// Fewer tasks than this, ended or running, say little about a worker.
const ENOUGH_TASKS: f64 = 10.0;

/// Fewer readings are no window.
pub(super) const LEAST_READINGS: usize = 3;

/// What can be the matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
#[serde(rename_all = "snake_case")]
pub(super) enum Cause {
    Ended,
    CpuThrottled,
    BlockedThreads,
    Descriptors,
    MemoryLimit,
    StuckTasks,
    FailingUpstream,
    SocketsWait,
    ProcessesWait,
    BlockingWait,
    CpuBusy,
    RuntimeLag,
    SlowUpstream,
    StoreBehind,
    EncodingBehind,
    TakesNone,
    SlotsFull,
    MemoryGrowth,
    NoisyLogs,
}

impl Cause {
    /// Whether an integration brings it about for the others, too.
    fn is_felt_by_all(self) -> bool {
        self == Cause::BlockedThreads
    }
}

/// What a rule has seen.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    /// The integration, where it is about one.
    pub about: Option<String>,
    /// What is compared with the rule's bounds.
    pub measured: f64,
    /// The cause, in one line.
    pub says: String,
    /// Numbers with their units.
    pub evidence: Vec<String>,
    /// The settings or the code to change.
    pub change: Vec<String>,
}

/// Something that is the matter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Finding {
    pub cause: Cause,
    pub integration: Option<String>,
    /// How likely it is what is the matter, from 0 to 1.
    pub score: f64,
    /// What the rule measured, and what that is.
    pub measured: f64,
    pub measures: &'static str,
    /// Whose it is, worst first: HOST:PORT of their admin ports.
    pub instances: Vec<String>,
    pub says: String,
    pub evidence: Vec<String>,
    pub change: Vec<String>,
    /// The page that says more.
    pub read: &'static str,
}

/// How a worker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// Something is the matter.
    Findings,
    /// Nothing stands out.
    Healthy,
    /// Nothing stands out, and there was too little to do for that to say much.
    TooLittleTraffic,
}

/// What is the matter with one worker, the likeliest first.
pub(super) fn judge(observation: &Observation) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for rule in &RULES {
        let seen: Vec<_> = (rule.look)(observation).into_iter().map(|seen| finding(rule, seen, &findings)).collect();
        findings.extend(seen);
    }
    findings.iter_mut().for_each(|finding| finding.instances.push(observation.instance.clone()));
    findings.retain(|finding| finding.score >= SHOWN);
    sort(&mut findings);
    findings
}

fn finding(rule: &Rule, seen: Seen, causes: &[Finding]) -> Finding {
    let Seen { about, measured, says, evidence, change } = seen;
    let left = rule.explained_by.iter().map(|(cause, weight)| {
        let is_one = |finding: &&Finding| {
            let is_of_another = finding.integration.is_some() && about.is_some() && finding.integration != about;
            finding.cause == *cause && (!is_of_another || cause.is_felt_by_all())
        };
        let likeliest = causes.iter().filter(is_one).map(|finding| finding.score).fold(0.0, f64::max);
        1.0 - weight * likeliest
    });
    let score = rule.strength(measured) * left.product::<f64>();
    let Rule { cause, measures, read, .. } = *rule;
    let instances = Vec::new();
    Finding { cause, integration: about, score, measured, measures, instances, says, evidence, change, read }
}

/// The same thing on several workers is one finding, with what the worst of them shows.
pub(super) fn merge(of_workers: Vec<Vec<Finding>>) -> Vec<Finding> {
    let mut all: Vec<_> = of_workers.into_iter().flatten().collect();
    sort(&mut all);
    let mut merged: Vec<Finding> = Vec::new();
    for finding in all {
        let is_same = |other: &&mut Finding| (other.cause, &other.integration) == (finding.cause, &finding.integration);
        match merged.iter_mut().find(is_same) {
            Some(worst) => worst.instances.extend(finding.instances),
            None => merged.push(finding),
        }
    }
    merged
}

/// Of two that are as likely, causes come before what they bring about.
fn sort(findings: &mut [Finding]) {
    findings.sort_by(|one, other| other.score.total_cmp(&one.score).then(one.cause.cmp(&other.cause)));
}

/// What the findings of some workers come to.
pub(super) fn verdict(findings: &[Finding], observations: &[Observation]) -> Verdict {
    let tasks = |observation: &Observation| observation.ended() + observation.gate.in_flight.last;
    match findings {
        [_, ..] => Verdict::Findings,
        [] if observations.iter().any(|observation| tasks(observation) >= ENOUGH_TASKS) => Verdict::Healthy,
        [] => Verdict::TooLittleTraffic,
    }
}

#[cfg(test)]
mod tests;
