//! `GET /metrics`, for Prometheus.

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use berth_core::metrics;
use tokio::sync::oneshot;

use super::{Api, no_answer};
use crate::driver::Message;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) fn routes() -> Router<Api> {
    Router::new().route("/metrics", get(page))
}

/// The page is put together here, not in the driver.
async fn page(State(api): State<Api>) -> Response {
    let (reply, answer) = oneshot::channel();
    let Some(mut measured) = api.ask(Message::Metrics(reply), answer).await else { return no_answer() };
    measured.listeners = api.events.listeners() as u64;
    ([(header::CONTENT_TYPE, TEXT)], metrics::page(&measured)).into_response()
}
