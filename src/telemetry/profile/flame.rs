//! A profile as a flame graph: the wider a function, the more of the time it or what it calls ran.

use std::collections::BTreeMap;
use std::io;

use pprof::flamegraph;

use super::CpuProfile;

/// What an idle process shows: a graph needs something to draw.
const IDLE: &str = "(no processor time was used)";

pub(super) fn svg(profile: &CpuProfile, of: &str) -> io::Result<Vec<u8>> {
    let mut options = flamegraph::Options::default();
    let (seconds, samples) = (profile.took.as_secs_f64(), profile.samples());
    options.title = format!("{of}: {samples} samples in {seconds:.1} s, at most {} per second", profile.hz);
    options.count_name = "samples".into();
    let mut svg = Vec::new();
    let lines = lines(profile);
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg).map_err(io::Error::other)?;
    Ok(svg)
}

/// A line for each stack, outermost function first, as the graph takes them.
fn lines(profile: &CpuProfile) -> Vec<String> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for ((thread, stack), count) in &profile.samples {
        let functions = stack.iter().rev().flat_map(|frame| frame.iter().rev());
        let names = functions.map(|function| function.name.replace(';', ":"));
        let line = std::iter::once(thread.replace(';', ":")).chain(names).collect::<Vec<_>>().join(";");
        *counts.entry(line).or_default() += count;
    }
    if counts.is_empty() {
        counts.insert(IDLE.into(), 1);
    }
    counts.into_iter().map(|(line, count)| format!("{line} {count}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::profile;
    use super::*;

    #[test]
    fn the_graph_has_the_names_and_can_be_searched() {
        let svg = profile(&[(&["hot", "run"], 3), (&["run"], 1)]).to_flame_graph("worker w1").expect("drawn");
        let svg = String::from_utf8(svg).expect("text");
        assert!(svg.contains("<title>hot (3 samples, 75.00%)</title>"), "{svg}");
        assert!(svg.contains("worker w1: 4 samples in 2.0 s") && svg.contains("search"), "{svg}");
    }

    #[test]
    fn an_idle_process_has_a_graph_that_says_so() {
        let svg = profile(&[]).to_flame_graph("worker w1").expect("drawn");
        assert!(String::from_utf8(svg).expect("text").contains(IDLE));
    }
}
