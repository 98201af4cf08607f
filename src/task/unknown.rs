//! What a configuration says of an integration that there is not: nobody would ever be held to it.

use super::IntegrationName;

/// The integrations that are named where one is unknown.
const MOST_NAMES: usize = 10;

/// A name under which there is no integration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no integration of this name{}", meant(.known))]
pub struct UnknownIntegration {
    /// What stands in the configuration.
    pub name: IntegrationName,
    /// The one that is nearest to it, or else all that there are.
    known: Result<IntegrationName, Vec<IntegrationName>>,
}

impl UnknownIntegration {
    /// Those of `names` that are not among `known`.
    pub fn among<'n>(names: impl IntoIterator<Item = &'n IntegrationName>, known: &[&IntegrationName]) -> Vec<Self> {
        let unknown = names.into_iter().filter(|name| !known.contains(name));
        unknown.map(|name| UnknownIntegration { name: name.clone(), known: nearest(name, known) }).collect()
    }
}

fn meant(known: &Result<IntegrationName, Vec<IntegrationName>>) -> String {
    match known {
        Ok(near) => format!("; {:?} is near", near.as_str()),
        Err(all) if all.is_empty() => String::new(),
        Err(all) => {
            let shown: Vec<_> = all.iter().take(MOST_NAMES).map(IntegrationName::as_str).collect();
            let more = if all.len() > shown.len() { ", …" } else { "" };
            format!("; there are {}{more}", shown.join(", "))
        }
    }
}

/// The name that is nearest by the changes of letters from one to the other: at most one in three.
fn nearest(name: &IntegrationName, known: &[&IntegrationName]) -> Result<IntegrationName, Vec<IntegrationName>> {
    let changes = |other: &IntegrationName| strsim::damerau_levenshtein(name.as_str(), other.as_str());
    let near = known.iter().map(|other| (changes(other), *other)).min();
    let near = near.filter(|(changes, _)| changes * 3 <= name.as_str().len());
    near.map(|(_, other)| other.clone()).ok_or_else(|| known.iter().copied().cloned().collect())
}
