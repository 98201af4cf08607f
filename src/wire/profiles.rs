//! Profiles over a port: who may have one, and how it goes over gRPC, in parts that fit into messages.

use std::net::SocketAddr;
use std::pin::Pin;

use futures_util::stream::{self, Stream, StreamExt};
use tonic::Status;

use super::callers::Callers;
use super::proto::{ProfileForm, ProfilePart, ProfileRequest};
use crate::lifecycle::Lifecycle;
use crate::telemetry::profile::{Ask, DEFAULT_SECONDS, Form, MAX_HZ, Profiler};

/// The longest part.
const PART_BYTES: usize = 1 << 20;

/// A role's profiles.
#[derive(Clone)]
pub struct Profiles {
    /// Takes them.
    pub profiler: Profiler,
    /// Who may ask.
    pub callers: Callers,
    /// The configuration's key that says so.
    pub key: &'static str,
    /// What is profiled, for people.
    pub name: String,
}

/// A profile on its way.
pub type Parts = Pin<Box<dyn Stream<Item = Result<ProfilePart, Status>> + Send>>;

impl Profiles {
    /// The same, on another lifecycle.
    pub fn on(&self, lifecycle: &Lifecycle) -> Self {
        Profiles { profiler: self.profiler.on(lifecycle), ..self.clone() }
    }

    /// Whether that caller may ask for one; who may, if not.
    pub fn check(&self, caller: Option<SocketAddr>, here: Option<SocketAddr>) -> Result<(), String> {
        self.callers.check(caller, here, "profile", "", self.key)
    }

    /// Takes one, while somebody waits for the parts.
    pub(super) fn answer(&self, request: ProfileRequest) -> Result<Parts, Status> {
        let ask = Ask::new(request.seconds.map_or(DEFAULT_SECONDS, u64::from), request.hz.unwrap_or(MAX_HZ))
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let form = ProfileForm::try_from(request.form).map_err(|_| {
            Status::invalid_argument(format!(
                "form {} is not known: use 1 (pprof), 2 (flame graph) or 3 (heap)",
                request.form
            ))
        })?;
        let profiles = self.clone();
        let taken = async move { profiles.take(ask, form).await };
        Ok(Box::pin(stream::once(taken).flat_map(|taken| stream::iter(parts(taken)))))
    }

    async fn take(&self, ask: Ask, form: ProfileForm) -> Result<Vec<u8>, Status> {
        let refused = |error: &dyn std::error::Error| Status::failed_precondition(error.to_string());
        let form = match form {
            ProfileForm::Heap => return self.profiler.heap().await.map_err(|error| refused(&error)),
            ProfileForm::FlameGraph => Form::FlameGraph,
            ProfileForm::Pprof | ProfileForm::Unspecified => Form::Pprof,
        };
        self.profiler.take_as(form, &self.name, ask).await.map_err(|error| refused(&error))
    }
}

fn parts(taken: Result<Vec<u8>, Status>) -> Vec<Result<ProfilePart, Status>> {
    match taken {
        Ok(bytes) => bytes.chunks(PART_BYTES).map(|part| Ok(ProfilePart { data: part.to_vec() })).collect(),
        Err(status) => vec![Err(status)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_profile_goes_in_parts_that_make_it_whole() {
        let whole: Vec<u8> = (0..3 * PART_BYTES + 5).map(|at| at as u8).collect();
        let parts: Vec<_> = parts(Ok(whole.clone())).into_iter().map(|part| part.expect("a part").data).collect();
        assert_eq!(parts.len(), 4);
        assert!(parts.iter().all(|part| part.len() <= PART_BYTES) && parts.concat() == whole);
    }
}
