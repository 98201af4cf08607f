//! What dashboards and rules ask, and the names in it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::documents::{path, read};

/// One query of a panel or an annotation, as it stands in the dashboard.
pub struct Query {
    /// The dashboard's file and the panel's title.
    pub place: String,
    pub expression: String,
    pub instant: bool,
}

/// What Grafana puts in place of the variables of a dashboard; in an order in which no name begins with an earlier one.
pub const USUAL: [(&str, &str); 7] = [
    ("$__rate_interval", "1m"),
    ("$__range", "30m"),
    ("$baseline_pool", "default"),
    ("$baseline", "1"),
    ("$pool", ".*"),
    ("$integration", ".*"),
    ("$instance", ".*"),
];

/// Each dashboard with the name of its file.
pub fn dashboards() -> Vec<(String, Value)> {
    let entries = std::fs::read_dir(path("dashboards")).expect("a directory").map(|entry| entry.expect("an entry"));
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".json")).collect();
    names.sort();
    let parsed = |name: String| {
        let dashboard = serde_json::from_str(&read(&format!("dashboards/{name}"))).expect("a dashboard is JSON");
        (name, dashboard)
    };
    names.into_iter().map(parsed).collect()
}

/// Everything but the rows.
pub fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let all = dashboard["panels"].as_array().expect("it has panels");
    all.iter().filter(|panel| panel["type"] != "row")
}

pub fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

/// The queries of the panels and annotations of all dashboards.
pub fn queries() -> Vec<Query> {
    let mut queries = Vec::new();
    for (file, dashboard) in dashboards() {
        for panel in panels(&dashboard) {
            for target in panel["targets"].as_array().expect("it has queries") {
                let (place, expression) = (format!("{file}: {}", text(panel, "title")), text(target, "expr"));
                queries.push(Query { place, expression, instant: target["instant"] == true });
            }
        }
        for annotation in dashboard["annotations"]["list"].as_array().expect("it has annotations") {
            if let Some(expression) = annotation["expr"].as_str() {
                let (place, expression) = (format!("{file}: {}", text(annotation, "name")), expression.to_owned());
                queries.push(Query { place, expression, instant: false });
            }
        }
    }
    queries
}

/// The expression with values in place of the variables.
pub fn filled_in(expression: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(expression.to_owned(), |text, (name, value)| text.replace(name, value))
}

/// Names of weir's metrics in a text.
pub fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_' || c == ':'));
    // A recorded series has colons in its name, and a regular expression names beginnings.
    let words = words.filter(|word| !word.trim_matches(':').contains(':')).map(|word| word.trim_matches(':'));
    // `process_crashed` and the like are reasons of failures.
    let of_the_process = |word: &str| {
        let ends = ["_seconds", "_seconds_total", "_bytes", "_fds", "_threads"];
        word.starts_with("process_") && ends.iter().any(|end| word.ends_with(end))
    };
    let named = words.filter(|word| word.starts_with("weir_") || of_the_process(word));
    named.filter(|word| !word.ends_with('_')).map(str::to_owned).collect()
}

/// The names in an expression.
#[derive(Default)]
pub struct Asked {
    /// Metrics, each with the labels that it is selected by.
    pub selectors: Vec<(String, Vec<String>)>,
    /// Labels that are grouped or matched by.
    pub grouped: Vec<String>,
}

impl Asked {
    pub fn of(expression: &str) -> Self {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let (mut asked, mut rest) = (Asked::default(), expression);
        while let Some(start) = rest.find(is_name) {
            let name = &rest[start..];
            let name = &name[..name.find(|c| !is_name(c)).unwrap_or(name.len())];
            rest = rest[start + name.len()..].trim_start();
            let inside = |close: char| rest[1..].split(close).next().unwrap_or_default();
            if rest.starts_with('{') {
                let matchers = inside('}');
                asked.selectors.push((name.to_owned(), labels(matchers)));
                rest = &rest[matchers.len() + 2..];
            } else if ["by", "without", "ignoring", "on", "group_left"].contains(&name) && rest.starts_with('(') {
                let all = inside(')').split(',').map(|label| label.trim().to_owned());
                asked.grouped.extend(all.filter(|label| !label.is_empty()));
                rest = &rest[inside(')').len() + 2..];
            } else if name.starts_with("weir_") || name.starts_with("process_") || is_recorded(name) {
                asked.selectors.push((name.to_owned(), Vec::new()));
            }
        }
        asked
    }
}

/// As in `level:metric:operation`, but not as in `[15m:]`.
fn is_recorded(name: &str) -> bool {
    name.trim_end_matches(':').contains(':') && name.starts_with(|first: char| first.is_ascii_alphabetic())
}

/// The label names of `name="…", name=~"…"`; no value holds a comma or a brace.
pub fn labels(matchers: &str) -> Vec<String> {
    matchers.split(',').filter_map(|matcher| Some(matcher.split_once(['=', '!'])?.0.trim().to_owned())).collect()
}

#[test]
fn names_are_found_in_an_expression() {
    let asked = Asked::of(
        r#"sum by (le, a) (rate(weir_x_bucket{b!="1", c=~".*"}[1m])) / on () group_left () (process_y > i:weir_z:sum)"#,
    );
    let selector = |name: &str, labels: &[&str]| (name.to_owned(), labels.iter().map(|&it| it.to_owned()).collect());
    let expected: Vec<(String, Vec<String>)> =
        vec![selector("weir_x_bucket", &["b", "c"]), selector("process_y", &[]), selector("i:weir_z:sum", &[])];
    assert_eq!(asked.selectors, expected);
    assert_eq!(asked.grouped, ["le", "a"]);
    assert_eq!(names_in("weir_a and i:weir_z:sum, weir_b_.*, process_hung"), BTreeSet::from(["weir_a".to_owned()]));
}
