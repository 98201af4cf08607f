//! An error and what caused it, in one line: the outer ones of a chain often say only that something failed.

use std::error::Error;
use std::iter::successors;

/// An error and its causes, outermost first, each once.
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    and_causes(error.to_string(), error)
}

/// The same, with other words for the error itself.
pub fn and_causes(said: String, error: &(dyn Error + 'static)) -> String {
    successors(error.source(), |&cause| cause.source()).map(ToString::to_string).fold(said, |said, cause| {
        // Many repeat their cause in their own text.
        if said.contains(&cause) { said } else { format!("{said}: {cause}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_named_once() {
        let named = anyhow::anyhow!("the port is taken").context("worker.listen: the port is taken; use another");
        assert_eq!(with_causes(named.as_ref()), "worker.listen: the port is taken; use another");
        let unnamed = anyhow::anyhow!("permission denied").context("cannot write it").context("no metrics");
        assert_eq!(with_causes(unnamed.as_ref()), "no metrics: cannot write it: permission denied");
    }
}
