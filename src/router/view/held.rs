//! What keeps a task from the workers that run its integration: for those who ask, and for answers that say why.

use std::fmt;

use crate::task::IntegrationName;

/// What keeps a task from one worker. The order is that in which they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::router) enum Hold {
    /// Nothing does.
    HasRoom,
    Draining,
    Unreachable,
    /// It stood out by its failures.
    Ejected,
    Overloaded,
    /// Its N is 0.
    Closed,
    /// All of its slots are held.
    Full,
    /// All of N is reserved for interactive tasks.
    AllReserved,
    /// What is left is.
    Reserved,
    /// It spares the integration.
    Breaker,
    IntegrationCap,
    /// The integration may hold nothing.
    IntegrationShut,
    TenantCap,
    /// The tenant may hold nothing.
    TenantShut,
}

impl Hold {
    /// The word for programs.
    pub(in crate::router) fn as_str(self) -> &'static str {
        match self {
            Hold::HasRoom => "none",
            Hold::Draining => "draining",
            Hold::Unreachable => "unreachable",
            Hold::Ejected => "ejected",
            Hold::Overloaded => "overloaded",
            Hold::Closed | Hold::Full => "slots",
            Hold::AllReserved | Hold::Reserved => "interactive_reserve",
            Hold::Breaker => "breaker",
            Hold::IntegrationCap | Hold::IntegrationShut => "integration_cap",
            Hold::TenantCap | Hold::TenantShut => "tenant_cap",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Hold::HasRoom => "expected to have room",
            Hold::Draining => "draining",
            Hold::Unreachable => "left alone because the last calls did not reach it, or reached another life of it",
            Hold::Ejected => "ejected for a while: its tasks fail, and those of other workers do not",
            Hold::Overloaded => "overloaded",
            Hold::Closed => "taking nothing (max_parallelism is 0)",
            Hold::Full => "full: all of its slots are held (max_parallelism)",
            Hold::AllReserved => "taking no batch tasks: all of its slots are reserved (interactive_reserve is 1)",
            Hold::Reserved => "full for batch: what is left is reserved (interactive_reserve)",
            Hold::Breaker => "sparing the integration, because it fails",
            Hold::IntegrationCap => {
                "taking no more of the integration for now (integration_caps, or its adaptive limit)"
            }
            Hold::IntegrationShut => "taking none of the integration (its cap in integration_caps is 0)",
            Hold::TenantCap => "at the cap of the tenant (tenant_caps)",
            Hold::TenantShut => "taking none of the tenant (its cap in tenant_caps is 0)",
        }
    }
}

/// What keeps a task from all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::router) struct Held {
    integration: IntegrationName,
    /// The workers that run the integration.
    workers: usize,
    /// Those that were looked at, by what keeps the task from them; the most first.
    by: Vec<(Hold, usize)>,
    /// Whether that is the last word of a registry that cannot be reached.
    is_stale: bool,
}

impl Held {
    pub(super) fn new(integration: IntegrationName, workers: usize, holds: impl IntoIterator<Item = Hold>) -> Self {
        let mut by: Vec<(Hold, usize)> = Vec::new();
        for hold in holds {
            match by.iter_mut().find(|(known, _)| *known == hold) {
                Some((_, workers)) => *workers += 1,
                None => by.push((hold, 1)),
            }
        }
        by.sort_unstable_by_key(|(hold, workers)| (std::cmp::Reverse(*workers), *hold));
        Held { integration, workers, by, is_stale: false }
    }

    pub(super) fn stale(self, is_stale: bool) -> Self {
        Held { is_stale, ..self }
    }

    /// What keeps it from the most of them: the word for programs.
    pub(in crate::router) fn main(&self) -> &'static str {
        self.by.first().map_or("no_worker", |(hold, _)| hold.as_str())
    }
}

impl Hold {
    /// Whether it stays so whatever ends: only a setting changes it.
    fn is_shut(self) -> bool {
        matches!(self, Hold::Closed | Hold::AllReserved | Hold::IntegrationShut | Hold::TenantShut)
    }
}

impl Held {
    /// Whether a worker may take it once something there ends.
    pub(in crate::router) fn may_end(&self) -> bool {
        self.by.iter().any(|(hold, _)| !hold.is_shut())
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_holds(f)?;
        if self.is_stale { f.write_str(", by the last word of a registry that cannot be reached") } else { Ok(()) }
    }
}

impl Held {
    fn write_holds(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let integration = self.integration.as_str();
        let looked_at: usize = self.by.iter().map(|(_, workers)| workers).sum();
        match self.by[..] {
            [] => write!(f, "the router knows no worker that runs {integration:?}"),
            [(hold, 1)] => write!(f, "the one worker that runs {integration:?} is {}", hold.words()),
            [(hold, workers)] if workers == self.workers => {
                write!(f, "each of the {workers} workers that run {integration:?} is {}", hold.words())
            }
            ref by => {
                if looked_at < self.workers {
                    write!(f, "of {looked_at} of ")?;
                } else {
                    write!(f, "of ")?;
                }
                write!(f, "the {} workers that run {integration:?},", self.workers)?;
                by.iter().enumerate().try_for_each(|(index, (hold, workers))| {
                    let (separator, verb) =
                        (if index == 0 { "" } else { ";" }, if *workers == 1 { "is" } else { "are" });
                    write!(f, "{separator} {workers} {verb} {}", hold.words())
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_each_limit_and_how_many_workers_are_at_it() {
        let held = |holds: &[Hold]| Held::new("bank".parse().expect("a name"), holds.len(), holds.iter().copied());
        assert_eq!(held(&[]).to_string(), "the router knows no worker that runs \"bank\"");
        assert_eq!(held(&[]).main(), "no_worker");
        let shut = held(&[Hold::Closed]);
        assert_eq!(shut.to_string(), "the one worker that runs \"bank\" is taking nothing (max_parallelism is 0)");
        let several = held(&[Hold::TenantCap, Hold::Draining, Hold::TenantCap]);
        assert_eq!(
            several.to_string(),
            "of the 3 workers that run \"bank\", 2 are at the cap of the tenant (tenant_caps); 1 is draining"
        );
        assert_eq!(several.main(), "tenant_cap");
        let some = Held::new("bank".parse().expect("a name"), 4_000, [Hold::Full; 500]);
        assert!(some.to_string().starts_with("of 500 of the 4000 workers that run \"bank\", 500 are full"), "{some}");
    }
}
