//! Names in a change that no worker knows: likely slips. They are no errors, for the workers may come later, so whoever sets one
//! is told. Pure; what the workers say is asked elsewhere.

use std::collections::BTreeSet;

use crate::registry::Presence;
use crate::settings::Settings;
use crate::task::{IntegrationName, UnknownIntegration};

/// What to say of the names in these settings, given the workers that they are for. Where there are none of them, nobody knows
/// what they would serve.
pub(super) fn warnings(named: &Settings, workers: &[Presence]) -> Vec<String> {
    let pools: BTreeSet<_> = workers.iter().map(|worker| &worker.pool).collect();
    let unserved = named.named_pools().into_iter().filter(|(_, pool)| !pools.contains(pool));
    let unserved = unserved.map(|(key, pool)| {
        let what = if key == "pools" {
            "its share waits in the routers until one does"
        } else {
            "it takes nothing until then"
        };
        format!("no worker serves the pool {:?} of {key} now: {what}", pool.as_str())
    });
    let served: BTreeSet<_> = workers.iter().flat_map(|worker| &worker.integrations).collect();
    let served: Vec<&IntegrationName> = served.into_iter().collect();
    let unknown = |(key, name): (&str, &IntegrationName)| {
        let unknown = UnknownIntegration::among([name], &served).pop()?;
        Some(format!("no worker that this is for serves {:?} of {key}: {unknown}", name.as_str()))
    };
    let unknown = named.named_integrations().into_iter().filter(|_| !workers.is_empty()).filter_map(unknown);
    unserved.chain(unknown).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::settings::{Config, named_in};

    fn presence(worker: &str, pool: &str, integrations: &[&str]) -> Presence {
        let integrations = integrations.iter().map(|name| name.parse().expect("a name")).collect();
        Presence { pool: pool.parse().expect("a pool"), integrations, ..Presence::of_a_test(worker) }
    }

    fn warned(key: &str, value: Value, workers: &[Presence]) -> Vec<String> {
        assert!(Config::default().start().named_integrations().is_empty());
        warnings(&named_in([(key, &value)]), workers)
    }

    #[test]
    fn a_name_that_nobody_knows_is_told_with_what_is_near() {
        let workers = [presence("w1", "single", &["bank", "scraper"]), presence("w2", "parallel", &["bank"])];
        assert_eq!(warned("integration_caps", json!({"bank": 5, "scraper": 1, "*": 9}), &workers), [""; 0]);
        assert_eq!(
            warned("integration_caps", json!({"bnak": 5, "bank": 5}), &workers),
            [
                "no worker that this is for serves \"bnak\" of integration_caps: there is no integration of this name; \"bank\" is near"
            ]
        );
        let many = warned("payload_sampling", json!({"*": 0.1, "insurer": 1}), &workers);
        assert_eq!(many.len(), 1);
        assert!(many[0].ends_with("; there are bank, scraper"), "{many:?}");
        assert_eq!(warned("integration_weights", json!({"bnak": 5}), &[]), [""; 0], "nobody knows");
        assert_eq!(
            warned("pools", json!({"single": 95, "paralel": 5, "old": 0}), &workers),
            ["no worker serves the pool \"paralel\" of pools now: its share waits in the routers until one does"]
        );
        assert_eq!(
            warned("pool_overflow", json!({"parallel": "spare"}), &workers),
            ["no worker serves the pool \"spare\" of pool_overflow now: it takes nothing until then"]
        );
        assert_eq!(warned("max_parallelism", json!(4), &workers), [""; 0]);
    }
}
