//! A damaged ledger, over the control API.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use berth_core::report::Repaired;
use tokio::sync::oneshot;

use super::audit::Audit;
use super::caller::By;
use super::openapi::Problems;
use super::{Api, no_answer, problem};
use crate::driver::Message;

/// Goes on from what a damaged ledger still tells. Needs `operate`.
#[utoipa::path(post, path = "/api/v1/repair", tag = "node", responses((status = 200, body = Repaired), Problems))]
pub(super) async fn repair(State(api): State<Api>, by: By) -> Response {
    // As with a change: it is done and written down though the asker vanishes.
    match tokio::spawn(repaired(api, by)).await {
        Ok(response) => response,
        Err(_) => no_answer(),
    }
}

/// Has a damaged ledger mended, and writes down who asked for it.
async fn repaired(api: Api, by: By) -> Response {
    let audit = Audit::new(by, "repair", String::new());
    let (reply, answer) = oneshot::channel();
    let (outcome, response) = match api.ask(Message::Repair(reply), answer).await {
        Some(Ok(repaired)) => {
            let outcome = match (&repaired.damage, repaired.line) {
                (None, _) => "nothing to do".to_owned(),
                (Some(damage), Some(line)) => format!("{damage}; line {line} counts from now on"),
                (Some(damage), None) => format!("{damage}; begun anew from what runs"),
            };
            (outcome, Json(repaired).into_response())
        }
        Some(Err(refusal)) => (
            format!("refused: {}", refusal.text),
            problem(StatusCode::CONFLICT, &refusal.code, &refusal.text, &refusal.hints),
        ),
        None => ("berthd did not answer".to_owned(), no_answer()),
    };
    audit.write(&outcome);
    response
}
