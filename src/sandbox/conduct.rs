//! The bank's behaviour as it is now: what is configured, what the script says, what was set live.
//!
//! From below: the configuration for everyone, the configuration for one client, the script, what was set live for
//! everyone, what was set live for one client. Each layer may leave keys to those below it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::time::Instant;

use super::behaviour::{Behaviour, Wrong};
use super::clients::MAX_CLIENTS;
use super::script::Script;
use super::{CLIENT_ID_RULE, Config, is_client_id};

pub(super) struct Conduct {
    configured: Behaviour,
    configured_clients: BTreeMap<String, Behaviour>,
    script: Option<Script>,
    live: RwLock<Live>,
}

struct Live {
    script_began: Instant,
    everyone: Behaviour,
    clients: BTreeMap<String, Behaviour>,
}

impl Conduct {
    pub(super) fn new(config: &Config, script: Option<Script>, now: Instant) -> Self {
        let latency = Behaviour { latency: Some(config.latency), ..Behaviour::default() };
        Conduct {
            configured: config.behaviour.over(latency),
            configured_clients: config.clients.clone(),
            script,
            live: RwLock::new(Live { script_began: now, everyone: Behaviour::default(), clients: BTreeMap::new() }),
        }
    }

    /// How the bank behaves towards this client.
    pub(super) fn towards(&self, client: &str, now: Instant) -> Behaviour {
        let live = self.live.read();
        let own = live.clients.get(client).copied().unwrap_or_default();
        own.over(live.everyone).over(self.below_live(client, now.saturating_duration_since(live.script_began)))
    }

    /// What configuration and script say.
    fn below_live(&self, client: &str, elapsed: Duration) -> Behaviour {
        let configured = self.configured_clients.get(client).copied().unwrap_or_default().over(self.configured);
        let scripted = self.script.as_ref().map(|script| script.behaviour(client, elapsed)).unwrap_or_default();
        scripted.over(configured)
    }

    /// How it behaves towards everyone that nothing else is said about.
    pub(super) fn towards_everyone(&self, now: Instant) -> Behaviour {
        self.towards("", now)
    }

    /// The clients that something else is said about.
    pub(super) fn named(&self) -> BTreeSet<String> {
        let live = self.live.read();
        let scripted = self.script.iter().flat_map(|script| script.clients().map(str::to_owned));
        self.configured_clients.keys().chain(live.clients.keys()).cloned().chain(scripted).collect()
    }

    /// Replaces what was set live for everyone.
    pub(super) fn set(&self, behaviour: Behaviour) -> Result<(), Wrong> {
        behaviour.check()?;
        let mut live = self.live.write();
        let elapsed = live.script_began.elapsed();
        behaviour.over(self.below_live("", elapsed)).check()?;
        for (client, own) in &live.clients {
            let whole = own.over(behaviour).over(self.below_live(client, elapsed));
            whole.check().map_err(|wrong| Wrong::new(wrong.key, format!("for client {client}, {}", wrong.problem)))?;
        }
        live.everyone = behaviour;
        Ok(())
    }

    /// Replaces what was set live for one client.
    pub(super) fn set_client(&self, client: &str, behaviour: Behaviour) -> Result<(), Wrong> {
        behaviour.check()?;
        if !is_client_id(client) {
            return Err(Wrong::new("client", format!("{client:?} is no client id: use {CLIENT_ID_RULE}")));
        }
        let mut live = self.live.write();
        behaviour.over(live.everyone).over(self.below_live(client, live.script_began.elapsed())).check()?;
        if live.clients.len() >= MAX_CLIENTS && !live.clients.contains_key(client) {
            return Err(Wrong::new("client", format!("{MAX_CLIENTS} clients have their own behaviour already")));
        }
        live.clients.insert(client.to_owned(), behaviour);
        Ok(())
    }

    /// Takes back all that was set live.
    pub(super) fn unset(&self) {
        let mut live = self.live.write();
        live.everyone = Behaviour::default();
        live.clients.clear();
    }

    /// Takes back what was set live for one client.
    pub(super) fn unset_client(&self, client: &str) {
        self.live.write().clients.remove(client);
    }

    /// Begins the script anew; false without one.
    pub(super) fn restart_script(&self, now: Instant) -> bool {
        self.live.write().script_began = now;
        self.script.is_some()
    }

    /// How far the script is.
    pub(super) fn script_elapsed(&self, now: Instant) -> Option<Duration> {
        self.script.as_ref().map(|_| now.saturating_duration_since(self.live.read().script_began))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::latency::Latency;

    fn slow(slowdown: f64) -> Behaviour {
        Behaviour { slowdown: Some(slowdown), ..Behaviour::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn live_is_over_the_script_and_the_script_over_the_configuration() {
        let script = Script::parse("[[step]]\nat = \"10s\"\nset = { slowdown = 4 }").expect("valid");
        let latency = Latency::Fixed(Duration::from_millis(7));
        let config = Config {
            latency,
            behaviour: Behaviour { hangs: Some(0.25), ..slow(2.0) },
            clients: [("own".to_owned(), slow(3.0))].into(),
            ..Config::default()
        };
        let conduct = Conduct::new(&config, Some(script), Instant::now());
        let both = || ["own", "other"].map(|client| conduct.towards(client, Instant::now()).slowdown.expect("set"));
        assert_eq!(both(), [3.0, 2.0]);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(both(), [4.0, 4.0]);
        conduct.set(slow(5.0)).expect("valid");
        conduct.set_client("own", slow(6.0)).expect("valid");
        assert_eq!(both(), [6.0, 5.0]);
        assert_eq!(conduct.named(), ["own".to_owned()].into());
        let own = conduct.towards("own", Instant::now());
        assert_eq!((own.hangs, own.latency), (Some(0.25), Some(latency)), "other keys stay");
        conduct.unset_client("own");
        assert_eq!(both(), [5.0, 5.0]);
        conduct.unset();
        assert_eq!(both(), [4.0, 4.0]);
        assert!(conduct.restart_script(Instant::now()));
        assert_eq!(both(), [3.0, 2.0]);
        assert_eq!(conduct.script_elapsed(Instant::now()), Some(Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn shares_are_added_up_with_those_below_them() {
        let hangs = |share| Behaviour { hangs: Some(share), ..Behaviour::default() };
        let resets = |share| Behaviour { resets: Some(share), ..Behaviour::default() };
        let conduct = Conduct::new(&Config { behaviour: hangs(0.6), ..Config::default() }, None, Instant::now());
        let error = conduct.set(resets(0.6)).expect_err("more than all").to_string();
        assert!(error.contains("hangs = 0.6, resets = 0.6"), "{error}");
        conduct.set(resets(0.4)).expect("all");
        conduct.set_client("a", hangs(0.7)).expect_err("more than all");
        conduct.set_client("a", resets(0.4)).expect("all");
        let error = conduct.set(hangs(0.7)).expect_err("more than all for a").to_string();
        assert!(error.contains("for client a"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_wrong_changes_nothing() {
        let conduct = Conduct::new(&Config::default(), None, Instant::now());
        conduct.set(slow(-1.0)).expect_err("negative");
        conduct.set_client("a", slow(-1.0)).expect_err("negative");
        for client in ["a b", "", "..", ".", "-a", "_a"] {
            conduct.set_client(client, slow(1.0)).expect_err("no client id");
        }
        assert_eq!(conduct.towards_everyone(Instant::now()).slowdown, None);
        assert!(!conduct.restart_script(Instant::now()), "there is none");
        for client in 0..MAX_CLIENTS {
            conduct.set_client(&client.to_string(), slow(1.0)).expect("valid");
        }
        assert!(conduct.set_client("one-more", slow(1.0)).expect_err("too many").to_string().contains("already"));
        conduct.set_client("0", slow(2.0)).expect("known");
    }
}
