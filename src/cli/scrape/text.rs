//! Prometheus' text format, as far as weir writes it:
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::collections::BTreeMap;

use super::Sample;

/// The series that `is_read` knows by their names; what is none of them is passed over.
pub(in crate::cli) fn parse(text: &str, is_read: impl Fn(&str) -> bool) -> Vec<Sample> {
    text.lines().filter_map(|line| parse_line(line, &is_read)).collect()
}

fn parse_line(line: &str, is_read: &impl Fn(&str) -> bool) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    if !is_read(name) {
        return None;
    }
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.trim_start_matches(',').trim().to_owned(), value);
            rest = after;
        }
        rest = &rest[1..];
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// A text up to its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_as_prometheus_writes_them_and_nonsense_is_passed_over() {
        let is_read = |name: &str| name.starts_with("weir_");
        let line = r#"weir_tasks_total{integration="a \"b\" \\ c",outcome="ok"} 1.5 1700000000"#;
        let sample = parse_line(line, &is_read).expect("a sample");
        assert_eq!((sample.labels["integration"].as_str(), sample.value), (r#"a "b" \ c"#, 1.5));
        for nonsense in [
            "",
            "weir_tasks_total",
            "weir_tasks_total{",
            "weir_tasks_total{a=\"b} 1",
            "weir_gate_in_flight x",
            "other 1",
        ] {
            assert_eq!(parse_line(nonsense, &is_read), None, "{nonsense}");
        }
    }
}
