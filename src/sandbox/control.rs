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
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use tokio::time::Instant;

use super::behaviour::{Behaviour, Wrong};
use super::routes::Bank;

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

async fn show_client(State(bank): State<Arc<Bank>>, Path(client): Path<String>) -> Json<Behaviour> {
    Json(bank.conduct.towards(&client, Instant::now()))
}

async fn set(State(bank): State<Arc<Bank>>, body: Bytes) -> Response {
    let result = read(&body).and_then(|behaviour| bank.conduct.set(behaviour));
    answer(&bank, result)
}

async fn set_client(State(bank): State<Arc<Bank>>, Path(client): Path<String>, body: Bytes) -> Response {
    let result = read(&body).and_then(|behaviour| bank.conduct.set_client(&client, behaviour));
    answer(&bank, result)
}

async fn unset(State(bank): State<Arc<Bank>>) -> Response {
    bank.conduct.unset();
    answer(&bank, Ok(()))
}

async fn unset_client(State(bank): State<Arc<Bank>>, Path(client): Path<String>) -> Response {
    bank.conduct.unset_client(&client);
    answer(&bank, Ok(()))
}

async fn restart(State(bank): State<Arc<Bank>>) -> Response {
    if bank.conduct.restart_script(Instant::now()) {
        return answer(&bank, Ok(()));
    }
    (StatusCode::NOT_FOUND, Json(json!({ "error": "there is no script: start the sandbox with one" }))).into_response()
}

fn read(body: &[u8]) -> Result<Behaviour, Wrong> {
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_slice(body)).map_err(|error| {
        let key = error.path().to_string();
        Wrong::new(key, error.into_inner().to_string())
    })
}

fn answer(bank: &Bank, result: Result<(), Wrong>) -> Response {
    match result {
        Ok(()) => {
            bank.lines.limits_changed();
            StatusCode::NO_CONTENT.into_response()
        }
        Err(wrong) => (StatusCode::BAD_REQUEST, Json(json!({ "error": wrong.to_string() }))).into_response(),
    }
}
