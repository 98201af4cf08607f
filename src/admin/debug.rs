//! `/debug/pprof/…`: profiles of the process, at the paths and in the formats that Go's tools, Pyroscope and Parca ask for.
//!
//! A request takes as long as its profile. Whoever goes away ends it, and so does the end of the process.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::Deserialize;

use super::{Peers, Role};
use crate::telemetry::profile::heap::HeapError;
use crate::telemetry::profile::{Ask, DEFAULT_SECONDS, Form, MAX_HZ, MAX_SECONDS, PPROF_TYPE, ProfileError, SVG_TYPE};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Parameters {
    seconds: u64,
    hz: u32,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters { seconds: DEFAULT_SECONDS, hz: MAX_HZ }
    }
}

type Asked = Result<Query<Parameters>, QueryRejection>;

/// Why there is no profile, for whoever asked.
pub(super) struct Refusal {
    status: StatusCode,
    reason: String,
    retry_after_seconds: Option<i64>,
}

impl Refusal {
    fn new(status: StatusCode, reason: impl ToString) -> Self {
        Refusal { status, reason: reason.to_string(), retry_after_seconds: None }
    }
}

impl From<ProfileError> for Refusal {
    fn from(error: ProfileError) -> Self {
        let status = match error {
            ProfileError::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            ProfileError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            ProfileError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let left = |until: Timestamp| until.duration_since(Timestamp::now()).as_secs().max(0) + 1;
        let retry_after_seconds = match error {
            ProfileError::Busy { until } => until.map(left),
            _ => None,
        };
        Refusal { retry_after_seconds, ..Refusal::new(status, error) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, format!("{}\n", self.reason)).into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

pub(super) async fn profile(
    State(role): State<Arc<Role>>,
    peers: Extension<Peers>,
    asked: Asked,
) -> Result<Response, Refusal> {
    Ok(file(taken(&role, &peers, asked, Form::Pprof).await?, "profile.pb.gz"))
}

pub(super) async fn flame_graph(
    State(role): State<Arc<Role>>,
    peers: Extension<Peers>,
    asked: Asked,
) -> Result<Response, Refusal> {
    let svg = taken(&role, &peers, asked, Form::FlameGraph).await?;
    Ok(([(header::CONTENT_TYPE, SVG_TYPE)], svg).into_response())
}

pub(super) async fn heap(State(role): State<Arc<Role>>, peers: Extension<Peers>) -> Result<Response, Refusal> {
    check(&role, &peers)?;
    match role.profiles.profiler.heap().await {
        Ok(profile) => Ok(file(profile, "heap.pb.gz")),
        Err(HeapError::Failed(error)) => Err(error.into()),
        Err(error) => Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, error)),
    }
}

async fn taken(role: &Role, peers: &Peers, asked: Asked, form: Form) -> Result<Vec<u8>, Refusal> {
    check(role, peers)?;
    let Query(Parameters { seconds, hz }) = asked.map_err(|error| {
        let reason = format!(
            "{}; the parameters are seconds, an integer from 1 to {MAX_SECONDS}, and hz, an integer from 1 to {MAX_HZ}",
            error.body_text()
        );
        Refusal::new(StatusCode::BAD_REQUEST, reason)
    })?;
    let ask = Ask::new(seconds, hz).map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error))?;
    Ok(role.profiles.profiler.take_as(form, &role.profiles.name, ask).await?)
}

fn check(role: &Role, peers: &Peers) -> Result<(), Refusal> {
    let checked = role.profiles.check(Some(peers.caller), Some(peers.here));
    checked.map_err(|reason| Refusal::new(StatusCode::FORBIDDEN, reason))
}

fn file(bytes: Vec<u8>, name: &str) -> Response {
    let disposition = format!("attachment; filename=\"{name}\"");
    ([(header::CONTENT_TYPE, PPROF_TYPE.to_owned()), (header::CONTENT_DISPOSITION, disposition)], bytes).into_response()
}
