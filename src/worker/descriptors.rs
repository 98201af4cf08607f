//! Whether the process may open as many descriptors as its settings can need. Pure.
//!
//! A task in flight holds a socket to the outside, an upload one to the store, and the rest of the process a few: ports
//! and callers' connections, the registry, files. A worker that runs out of them fails tasks one by one, in the middle
//! of a busy hour; so it does not start.

/// What the rest of the process may hold: ports, routers and callers, the registry, logs, files that are being written.
const OTHERS: u64 = 128;

/// What may be open at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// N, as the settings start with it.
    pub max_parallelism: u64,
    /// `payloads.uploads`, or 0 where payloads are not kept.
    pub uploads: u64,
}

/// The limit is too low for the settings.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "settings.max_parallelism = {} sockets + payloads.uploads = {} sockets + {OTHERS} for the rest make {}, more than the \
     {limit} descriptors that this process may open: lower one of them, or raise the hard limit (ulimit -Hn, LimitNOFILE)",
    .need.max_parallelism, .need.uploads, .need.in_all()
)]
pub struct TooFew {
    need: Need,
    limit: u64,
}

impl Need {
    /// All together.
    pub fn in_all(&self) -> u64 {
        self.max_parallelism.saturating_add(self.uploads).saturating_add(OTHERS)
    }

    /// Checks it against the hard limit; none is no limit.
    pub fn check(self, limit: Option<u64>) -> Result<(), TooFew> {
        match limit {
            Some(limit) if self.in_all() > limit => Err(TooFew { need: self, limit }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_need_more_than_there_is_are_refused_with_the_arithmetic() {
        let need = Need { max_parallelism: 4_000, uploads: 50 };
        assert_eq!(need.check(None), Ok(()));
        assert_eq!(need.check(Some(4_178)), Ok(()));
        let error = need.check(Some(4_096)).expect_err("too few").to_string();
        assert!(
            error.starts_with("settings.max_parallelism = 4000 sockets + payloads.uploads = 50 sockets + 128"),
            "{error}"
        );
        assert!(error.contains("make 4178, more than the 4096 descriptors"), "{error}");
    }
}
