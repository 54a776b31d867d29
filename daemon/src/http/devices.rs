//! The GPUs over the control API.

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use berth_core::report::{ClearRequest, Cleared};
use tokio::sync::oneshot;

use super::audit::Audit;
use super::caller::By;
use super::openapi::Problems;
use super::{Api, Asked, no_answer, problem, understood};
use crate::driver::Message;

impl Asked for ClearRequest {
    fn name(&self) -> Option<&String> {
        Some(&self.device)
    }
}

/// Uses a suspect GPU again at once. Needs `operate`.
#[utoipa::path(post, path = "/api/v1/devices/clear", tag = "devices", request_body = ClearRequest, responses((status = 200, body = Cleared), Problems))]
pub(super) async fn clear(
    State(api): State<Api>,
    by: By,
    request: Result<Json<ClearRequest>, JsonRejection>,
) -> Response {
    let request = match understood(request) {
        Ok(request) => request,
        Err(problem) => return problem,
    };
    // In a task of its own: the asker may vanish, what was asked for and who asked may not.
    match tokio::spawn(cleared(api, request, by)).await {
        Ok(response) => response,
        Err(_) => no_answer(),
    }
}

async fn cleared(api: Api, request: ClearRequest, by: By) -> Response {
    let audit = Audit::new(by, "device clear", request.device.clone());
    let (reply, answer) = oneshot::channel();
    match api.ask(Message::Clear(request.device, reply), answer).await {
        Some(Ok(cleared)) => {
            let given_up: Vec<String> =
                cleared.given_up.iter().map(|part| format!("{} of {}", part.bytes, part.model)).collect();
            let was = cleared.suspect.as_deref().unwrap_or("not suspect");
            audit.write(&format!("it was: {was}; given up: {}", list(&given_up)));
            Json(cleared).into_response()
        }
        Some(Err(refusal)) => {
            audit.write(&format!("refused: {}", refusal.text));
            problem(StatusCode::NOT_FOUND, &refusal.code, &refusal.text, &refusal.hints)
        }
        None => {
            audit.write("berthd did not answer");
            no_answer()
        }
    }
}

fn list(parts: &[String]) -> String {
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
}
