//! Parts of the status as resources of their own.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use berth_core::report::{Devices, ModelStatus, Models, Node, Nodes, Placements, SCHEMA, Status};
use tokio::sync::oneshot;

use super::openapi::Problems;
use super::{Api, no_answer, problem};
use crate::driver::Message;

/// How the node is: all of it.
#[utoipa::path(get, path = "/api/v1/status", tag = "node", responses((status = 200, body = Status), Problems))]
pub(super) async fn status(State(api): State<Api>) -> Response {
    shown(&api, |status| status).await
}

/// The nodes that berthd knows: this one.
#[utoipa::path(get, path = "/api/v1/nodes", tag = "node", responses((status = 200, body = Nodes), Problems))]
pub(super) async fn nodes(State(api): State<Api>) -> Response {
    let part = |status: Status| {
        let Status { node, version, at_ms, uptime_ms, problems, .. } = status;
        Nodes { schema: SCHEMA, nodes: vec![Node { name: node, version, at_ms, uptime_ms, problems }] }
    };
    shown(&api, part).await
}

/// The GPUs and the host's memory.
#[utoipa::path(get, path = "/api/v1/devices", tag = "devices", responses((status = 200, body = Devices), Problems))]
pub(super) async fn devices(State(api): State<Api>) -> Response {
    shown(&api, |Status { at_ms, gpus, host, .. }| Devices { schema: SCHEMA, at_ms, gpus, host }).await
}

/// Every declared model.
#[utoipa::path(get, path = "/api/v1/models", tag = "models", responses((status = 200, body = Models), Problems))]
pub(super) async fn models(State(api): State<Api>) -> Response {
    shown(&api, |Status { at_ms, models, .. }| Models { schema: SCHEMA, at_ms, models }).await
}

/// One declared model, by its name or an alias.
#[utoipa::path(
    get,
    path = "/api/v1/models/{name}",
    tag = "models",
    params(("name" = String, Path, description = "The model's name or an alias")),
    responses((status = 200, body = ModelStatus), Problems)
)]
pub(super) async fn model(State(api): State<Api>, Path(name): Path<String>) -> Response {
    let model = match api.model(&name) {
        Ok(model) => model,
        Err(response) => return *response,
    };
    let Some(status) = api.status().await else { return no_answer() };
    match status.models.into_iter().find(|one| one.name == model) {
        Some(model) => Json(model).into_response(),
        None => problem(StatusCode::NOT_FOUND, "unknown_model", &format!("there is no model {model}"), &[]),
    }
}

/// What is kept for each model on each device.
#[utoipa::path(get, path = "/api/v1/placements", tag = "models", responses((status = 200, body = Placements), Problems))]
pub(super) async fn placements(State(api): State<Api>) -> Response {
    let part = |Status { at_ms, placements, .. }| Placements { schema: SCHEMA, at_ms, placements };
    shown(&api, part).await
}

async fn shown<T: serde::Serialize>(api: &Api, part: impl FnOnce(Status) -> T) -> Response {
    match api.status().await {
        Some(status) => Json(part(status)).into_response(),
        None => no_answer(),
    }
}

impl Api {
    /// How the node is; None where the driver does not answer.
    pub(super) async fn status(&self) -> Option<Status> {
        let (reply, answer) = oneshot::channel();
        self.ask(Message::Status(reply), answer).await
    }
}
