//! Who may do what ends a process or costs it time.
//!
//! The ports of weir have no login: it is a choice of the configuration, by default programs on the same machine, who could
//! mostly send a signal or attach a debugger as well: those whose address is the very one that they connected to, or a
//! loopback one.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Who may do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Callers {
    /// Callers on the same machine: from a loopback address, or from the address that they connected to, which only that
    /// machine has. Behind a proxy on that machine, everyone seems to be one.
    Loopback,
    /// Everyone who reaches the port.
    Anywhere,
    /// Nobody.
    Nowhere,
}

impl Callers {
    /// Whether a caller may `act`. `here` is this end of its connection. The error says who may, and that `key` of the
    /// configuration could let it, after what it may do `instead`.
    pub fn check(
        self,
        caller: Option<SocketAddr>,
        here: Option<SocketAddr>,
        act: &str,
        instead: &str,
        key: &str,
    ) -> Result<(), String> {
        if self.allows(caller, here) {
            return Ok(());
        }
        let who = match self {
            Callers::Loopback => "only callers on its own machine may",
            Callers::Anywhere | Callers::Nowhere => "nobody may",
        };
        Err(format!(
            "{who} {act} this process through its port: {instead}set {key} = \"anywhere\" where only operators reach the port"
        ))
    }

    fn allows(self, caller: Option<SocketAddr>, here: Option<SocketAddr>) -> bool {
        let ip = |address: SocketAddr| address.ip().to_canonical();
        match self {
            Callers::Loopback => {
                caller.is_some_and(|caller| ip(caller).is_loopback() || here.map(ip) == Some(ip(caller)))
            }
            Callers::Anywhere => true,
            Callers::Nowhere => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_is_told_by_the_address() {
        let address = |text: &str| Some(text.parse::<SocketAddr>().expect("an address"));
        let here = address("10.0.0.1:7401");
        for (local, here) in [
            ("127.0.0.1:9", "127.0.0.1:7401"),
            ("[::1]:9", "[::1]:7401"),
            ("[::ffff:127.0.0.1]:9", "[::]:7401"),
            ("10.0.0.1:9", "10.0.0.1:7401"),
            ("10.0.0.1:9", "[::ffff:10.0.0.1]:7401"),
            ("[2001:db8::1]:9", "[2001:db8::1]:7401"),
        ] {
            assert!(Callers::Loopback.allows(address(local), address(here)), "{local}");
        }
        for far in [address("10.0.0.7:9"), address("[2001:db8::1]:9"), None] {
            assert!(!Callers::Loopback.allows(far, here), "{far:?}");
            assert!(!Callers::Loopback.allows(far, None), "{far:?}");
            assert!(Callers::Anywhere.allows(far, here));
        }
        assert!(!Callers::Nowhere.allows(address("127.0.0.1:9"), here));
    }
}
