//! The bank's behaviour over HTTP, for whoever runs it: no credential is asked for.
//!
//! | | |
//! |---|---|
//! | `GET /behaviour` | how it behaves now: towards everyone, and towards each client that something else is said about |
//! | `GET /behaviour/{client}` | towards one client |
//! | `PUT /behaviour`, `PUT /behaviour/{client}` | what is set live, over configuration and script; replaces what was |
//! | `DELETE /behaviour`, `DELETE /behaviour/{client}` | takes it back: all of it, or one client's |
//! | `POST /script/restart` | begins the script anew |

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::behaviour::{Behaviour, Wrong};
use super::routes::Bank;
use super::{CLIENT_ID_RULE, is_client_id};

/// What the body of a `PUT` is, for messages.
const FORM: &str = "use a JSON object such as {\"slowdown\": 50}";

/// The client that a path names.
type Named = Result<Path<String>, PathRejection>;

pub(super) fn routes() -> Router<Arc<Bank>> {
    Router::new()
        .route("/behaviour", get(show).put(set).delete(unset))
        .route("/behaviour/{client}", get(show_client).put(set_client).delete(unset_client))
        .route("/script/restart", post(restart))
}

async fn show(State(bank): State<Arc<Bank>>) -> Response {
    let now = Instant::now();
    let named = bank.conduct.named();
    let clients: BTreeMap<_, _> =
        named.into_iter().map(|name| (name.clone(), bank.conduct.towards(&name, now))).collect();
    let elapsed = bank.conduct.script_elapsed(now).map(|elapsed| elapsed.as_secs_f64());
    let everyone = bank.conduct.towards_everyone(now);
    Json(json!({ "script_elapsed_seconds": elapsed, "everyone": everyone, "clients": clients })).into_response()
}

async fn show_client(State(bank): State<Arc<Bank>>, named: Named) -> Response {
    match client(named) {
        Ok(client) => Json(bank.conduct.towards(&client, Instant::now())).into_response(),
        Err(wrong) => refuse(StatusCode::BAD_REQUEST, &wrong.to_string()),
    }
}

async fn set(State(bank): State<Arc<Bank>>, body: Result<Bytes, BytesRejection>) -> Response {
    match body {
        Ok(body) => answer(&bank, read(&body).and_then(|behaviour| bank.conduct.set(behaviour))),
        Err(rejection) => refuse(rejection.status(), &format!("body: {}: {FORM}", rejection.body_text())),
    }
}

async fn set_client(State(bank): State<Arc<Bank>>, named: Named, body: Result<Bytes, BytesRejection>) -> Response {
    match body {
        Ok(body) => {
            let set = |client: String| bank.conduct.set_client(&client, read(&body)?);
            answer(&bank, client(named).and_then(set))
        }
        Err(rejection) => refuse(rejection.status(), &format!("body: {}: {FORM}", rejection.body_text())),
    }
}

async fn unset(State(bank): State<Arc<Bank>>) -> Response {
    bank.conduct.unset();
    answer(&bank, Ok(()))
}

async fn unset_client(State(bank): State<Arc<Bank>>, named: Named) -> Response {
    answer(&bank, client(named).map(|client| bank.conduct.unset_client(&client)))
}

async fn restart(State(bank): State<Arc<Bank>>) -> Response {
    if bank.conduct.restart_script(Instant::now()) {
        return answer(&bank, Ok(()));
    }
    refuse(StatusCode::NOT_FOUND, "there is no script: start the sandbox with one")
}

fn client(named: Named) -> Result<String, Wrong> {
    match named {
        Ok(Path(client)) if is_client_id(&client) => Ok(client),
        Ok(Path(client)) => Err(Wrong::new("client", format!("{client:?} is no client id: use {CLIENT_ID_RULE}"))),
        Err(rejection) => Err(Wrong::new("client", format!("{}: use {CLIENT_ID_RULE}", rejection.body_text()))),
    }
}

fn read(body: &[u8]) -> Result<Behaviour, Wrong> {
    if body.trim_ascii().is_empty() {
        return Err(Wrong::new("body", format!("it is empty: {FORM}")));
    }
    let body: Value =
        serde_json::from_slice(body).map_err(|error| Wrong::new("body", format!("it is not JSON, {error}: {FORM}")))?;
    // A list would be read as the values of all keys in their order.
    if !body.is_object() {
        return Err(Wrong::new("body", format!("it is no JSON object: {FORM}")));
    }
    serde_path_to_error::deserialize(body).map_err(|error: serde_path_to_error::Error<serde_json::Error>| {
        let key = error.path().to_string();
        let key = if key == "." { "body".into() } else { key };
        Wrong::new(key, error.into_inner().to_string())
    })
}

fn answer(bank: &Bank, result: Result<(), Wrong>) -> Response {
    match result {
        Ok(()) => {
            bank.lines.limits_changed();
            StatusCode::NO_CONTENT.into_response()
        }
        Err(wrong) => refuse(StatusCode::BAD_REQUEST, &wrong.to_string()),
    }
}

fn refuse(status: StatusCode, problem: &str) -> Response {
    (status, Json(json!({ "error": problem }))).into_response()
}
