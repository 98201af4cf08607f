//! All that is wrong with a configuration, in one go: what was wrong is taken out, and the rest is read again.
//!
//! A mistake that may only follow from what was taken out is none: a step without its name, which was no name.

use serde_json::Value;

use super::{Config, ConfigError, INTEGRATIONS, Source, deserialize};

/// No configuration has more; a mistake that taking out does not end would go on for ever.
const MOST_ROUNDS: usize = 1_000;

/// What can be used of a configuration, and what cannot.
pub(super) fn examine(source: &Source, mut tree: Value) -> (Option<Config>, Vec<ConfigError>) {
    let (mut usable, mut problems, mut taken): (Option<Config>, _, _) = (None, Vec::new(), Vec::new());
    for _ in 0..MOST_ROUNDS {
        let found = match deserialize(source, &tree) {
            Ok(config) => {
                let found = config.problems();
                // With what is wrong, but not unreadable: whoever uses it knows what that is.
                usable.get_or_insert(config);
                found
            }
            Err(problem) => vec![problem],
        };
        let mut is_smaller = false;
        for problem in found {
            let ConfigError::Value { key, .. } = &problem else {
                problems.push(problem);
                continue;
            };
            let key = key.clone();
            // Of what was taken out, or of what it was in.
            let follows = taken.iter().any(|taken: &String| is_within(taken, &key));
            if !follows {
                problems.push(problem);
            }
            // While something cannot be read at all, what it is in goes, too, until it is an integration or nothing.
            let gone = if usable.is_none() || !follows { take(&mut tree, &key, usable.is_none()) } else { None };
            is_smaller |= gone.is_some();
            taken.push(gone.unwrap_or(key));
        }
        if !is_smaller {
            break;
        }
    }
    let is_broken = |name: &str| problems.iter().any(|problem| problem.is_of(&format!("{INTEGRATIONS}.{name}")));
    if let Some(config) = &mut usable {
        config.integrations.retain(|name, _| !is_broken(name.as_str()));
    }
    (usable, problems)
}

/// Whether a key is `outer` or something in it.
fn is_within(key: &str, outer: &str) -> bool {
    key.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Takes out what a key names, or with `or_around` what it would be in; returns which it was.
fn take(tree: &mut Value, key: &str, or_around: bool) -> Option<String> {
    let mut key = key.to_owned();
    loop {
        // A section is never all of it: of the integrations, one at a time.
        if key.is_empty() || key == INTEGRATIONS {
            return None;
        }
        let (around, last) = key.rsplit_once('.').map_or(("", key.as_str()), |(around, last)| (around, last));
        if remove(tree, around, last) {
            return Some(key);
        }
        if !or_around {
            return None;
        }
        key = around.to_owned();
    }
}

/// `last` may end with indices, such as `steps[0]`: the list goes as a whole, for the others would get other indices.
fn remove(tree: &mut Value, around: &str, last: &str) -> bool {
    let mut at = tree;
    for part in around.split('.').filter(|part| !part.is_empty()) {
        let (name, indices) = part.split_once('[').map_or((part, None), |(name, rest)| (name, Some(rest)));
        let Some(next) = at.get_mut(name) else { return false };
        at = next;
        for index in indices.into_iter().flat_map(|rest| rest.trim_end_matches(']').split("][")) {
            let Some(next) = index.parse::<usize>().ok().and_then(|index| at.get_mut(index)) else { return false };
            at = next;
        }
    }
    let last = last.split('[').next().unwrap_or_default();
    at.as_object_mut().is_some_and(|table| table.remove(last).is_some())
}

#[cfg(test)]
mod tests {
    use super::super::{toml, tree};
    use super::*;

    fn wrong(text: &str) -> (Option<Config>, Vec<String>) {
        let source = Source::builder().add_source(toml(text)).build().expect("TOML");
        let (config, problems) = examine(&source, tree(&source).expect("a tree"));
        let mut keys: Vec<_> = problems
            .into_iter()
            .map(|problem| match problem {
                ConfigError::Value { key, .. } => key,
                file => file.to_string(),
            })
            .collect();
        keys.sort();
        (config, keys)
    }

    #[test]
    fn each_mistake_of_a_section_is_found() {
        let (config, keys) = wrong(
            r#"
            [log]
            level = "loud"
            [worker]
            listen = "nowhere"
            lissten = "127.0.0.1:1"
            default_timeout = "soon"
            admin.listen = 7
            [settings]
            max_jump = 0
            redis_key = "no braces"
            max_parallelism = -1
            [registry]
            url = "http://x"
            connect_timeout = "1h"
            [sandbox]
            token_lifetime = "0s"
            response_bytes = 99999999999
            [sandbox.behaviour]
            hangs = 2
            "#,
        );
        let expected = [
            "log.level",
            "registry.connect_timeout",
            "registry.url",
            "sandbox.behaviour.hangs",
            "sandbox.response_bytes",
            "sandbox.token_lifetime",
            "settings.max_jump",
            "settings.max_parallelism",
            "settings.redis_key",
            "worker.admin.listen",
            "worker.default_timeout",
            "worker.lissten",
            "worker.listen",
        ];
        assert_eq!(keys, expected);
        assert!(config.is_some());
    }

    #[test]
    fn what_follows_from_a_mistake_is_none_and_a_broken_integration_is_left_out() {
        let (config, keys) = wrong(
            r#"
            [integrations.one]
            kind = "smtp"
            [integrations.two]
            kind = "http"
            base_url = 7
            tokn = "x"
            steps = [{ name = 7, path = "/" }]
            [integrations.three]
            retries = 1
            [integrations.four]
            kind = "synthetic"
            "#,
        );
        let named = |name: &str| keys.iter().filter(|key| key.starts_with(&format!("integrations.{name}"))).count();
        assert_eq!((named("one"), named("three"), named("four")), (1, 1, 0), "{keys:?}");
        assert!(named("two") >= 2, "{keys:?}");
        let names: Vec<_> = config.expect("usable").integrations.into_keys().map(|name| name.to_string()).collect();
        assert_eq!(names, ["four"]);
    }

    #[test]
    fn a_tree_that_is_none_is_given_up() {
        let source = Source::builder().build().expect("empty");
        let (config, problems) = examine(&source, Value::from(7));
        assert!(config.is_none() && problems.len() == 1);
    }
}
