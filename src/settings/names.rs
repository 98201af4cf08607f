//! Which integrations and pools settings name. A name that nobody knows is no error, for workers come and go and serve
//! different integrations; but it may be a slip, so whoever sets one is told.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Config, Settings, spec};
use crate::task::{IntegrationName, PoolName};

impl Settings {
    /// Each integration that a setting has a value for by its name, with the setting's key.
    pub fn named_integrations(&self) -> BTreeSet<(&'static str, &IntegrationName)> {
        let caps = self.integration_caps.named.keys().map(|name| ("integration_caps", name));
        let weights = self.integration_weights.named.keys().map(|name| ("integration_weights", name));
        let sampling = self.payload_sampling.named().map(|name| ("payload_sampling", name));
        let quantiles = self.payload_slow_quantile.named().map(|name| ("payload_slow_quantile", name));
        caps.chain(weights).chain(sampling).chain(quantiles).collect()
    }

    /// Each pool that tasks are sent to, with the setting's key.
    pub fn named_pools(&self) -> BTreeSet<(&'static str, &PoolName)> {
        let weights = self.pools.iter().filter(|(_, weight)| *weight > 0).map(|(pool, _)| ("pools", pool));
        let overflow = self.pool_overflow.iter().flat_map(|(from, into)| [from, into]);
        weights.chain(overflow.map(|pool| ("pool_overflow", pool))).collect()
    }
}

/// Settings in which nothing but these good values names anything.
pub fn named_in<'a>(values: impl IntoIterator<Item = (&'a str, &'a Value)>) -> Settings {
    let mut settings = Config::default().start();
    for (key, value) in values {
        // What is no good value names nothing.
        let _ = spec(key).map(|spec| spec.write(&mut settings, value));
    }
    settings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_those_of_the_objects_and_stars_are_none() {
        let nothing = named_in([]);
        assert!(nothing.named_integrations().is_empty() && nothing.named_pools().is_empty());
        let values = [
            ("integration_caps", json!({"bank": 5, "*": "50%"})),
            ("integration_weights", json!({"scraper": 2})),
            ("payload_sampling", json!({"*": 0.1, "bank": 1})),
            ("payload_slow_quantile", json!(0.9)),
            ("tenant_caps", json!({"t": 1})),
            ("pools", json!({"single": 95, "parallel": 5, "old": 0})),
            ("pool_overflow", json!({"parallel": "spare"})),
        ];
        let settings = named_in(values.iter().map(|(key, value)| (*key, value)));
        let said = |named: Vec<(&str, String)>| named.into_iter().map(|(key, name)| format!("{key} {name}")).collect();
        let integrations = settings.named_integrations().into_iter().map(|(key, name)| (key, name.to_string()));
        let pools = settings.named_pools().into_iter().map(|(key, name)| (key, name.to_string()));
        let said: [Vec<String>; 2] = [said(integrations.collect()), said(pools.collect())];
        assert_eq!(said[0], ["integration_caps bank", "integration_weights scraper", "payload_sampling bank"]);
        assert_eq!(said[1], ["pool_overflow parallel", "pool_overflow spare", "pools parallel", "pools single"]);
    }
}
