//! `GET /health`, `/health/live` and `/health/ready`, for watchdogs and supervisors. They say nothing that is secret, and
//! answer within seconds whatever goes on.

use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use berth_core::report::{Concern, Health, HealthStatus, Problem, Readiness, SCHEMA};
use serde::Serialize;
use tokio::sync::oneshot;

use super::Api;
use crate::driver::{Message, now_ms};
use crate::scope::Scope;

/// How long the driver may take: who watches gives up soon after.
const ANSWER: Duration = Duration::from_secs(5);

/// For who may read.
pub(super) fn routes() -> Router<Api> {
    Router::new().route("/health", get(health))
}

/// For everybody: they tell nothing but yes or no.
pub(super) fn supervisors() -> Router<Api> {
    Router::new().route("/health/live", get(live)).route("/health/ready", get(ready))
}

/// Whether everything that should serve does.
async fn health(State(api): State<Api>) -> Response {
    let health = watch(&api).await.map_or_else(no_answer, |(health, _)| health);
    said(health.status == HealthStatus::Ok, &health)
}

/// That berthd answers.
async fn live() -> Response {
    said(true, &Readiness { schema: SCHEMA, ready: true, why: None })
}

/// Whether clients of `default` are answered.
async fn ready(State(api): State<Api>) -> Response {
    let silent = || Readiness { schema: SCHEMA, ready: false, why: Some(silence()) };
    let readiness = watch(&api).await.map_or_else(silent, |(_, readiness)| readiness);
    said(readiness.ready, &readiness)
}

async fn watch(api: &Api) -> Option<(Health, Readiness)> {
    let (reply, answer) = oneshot::channel();
    tokio::time::timeout(ANSWER, api.ask(Message::Watch(reply), answer)).await.ok().flatten()
}

fn no_answer() -> Health {
    let problem = Problem {
        code: "no_answer".to_owned(),
        subject: String::new(),
        since_ms: now_ms(),
        text: silence(),
        next: format!("{} -u berthd -n 50", Scope::this().journalctl()),
    };
    let problems = vec![Concern { severity: problem.severity(), problem }];
    Health { schema: SCHEMA, status: HealthStatus::Degraded, problems, swap: None }
}

fn silence() -> String {
    format!("berthd's driver did not answer within {} s", ANSWER.as_secs())
}

fn said(good: bool, body: &impl Serialize) -> Response {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}
