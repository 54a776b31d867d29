//! The past over the control API.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use berth_core::history::Window;
use berth_core::report::{EventsHistory, ProblemsHistory, SCHEMA, SwapHistory, SwapsHistory};
use serde::Deserialize;

use super::{Api, malformed, problem};
use crate::driver::now_ms;
use crate::history::{HistoryError, Page};

/// As many as fit on a few screens; more at once would be megabytes.
const LAST: u32 = 50;
const MOST: u32 = 500;

/// The resources below `/api/v1/history`.
pub(super) fn routes() -> Router<Api> {
    Router::new()
        .route("/api/v1/history/devices", get(devices))
        .route("/api/v1/history/swaps", get(swaps))
        .route("/api/v1/history/swaps/{id}", get(swap))
        .route("/api/v1/history/events", get(events))
        .route("/api/v1/history/problems", get(problems))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DevicesQuery {
    since_ms: Option<u64>,
    until_ms: Option<u64>,
    points: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    last: Option<u32>,
    before: Option<u64>,
    kind: Option<String>,
}

impl ListQuery {
    #[allow(clippy::result_large_err)]
    fn page(&self) -> Result<Page, Response> {
        let last = self.last.unwrap_or(LAST);
        if (1..=MOST).contains(&last) {
            Ok(Page { last, before: self.before })
        } else {
            Err(malformed(StatusCode::BAD_REQUEST, &format!("`last` has to be 1 to {MOST}")))
        }
    }
}

type Asked<T> = Result<Query<T>, QueryRejection>;

#[allow(clippy::result_large_err)]
fn list(query: Asked<ListQuery>, of_kind: bool) -> Result<(Page, Option<String>), Response> {
    let Query(query) = query.map_err(|rejection| malformed(rejection.status(), &rejection.body_text()))?;
    if query.kind.is_some() && !of_kind {
        return Err(malformed(StatusCode::BAD_REQUEST, "`kind` is for events alone"));
    }
    Ok((query.page()?, query.kind))
}

async fn devices(State(api): State<Api>, query: Asked<DevicesQuery>) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(rejection) => return malformed(rejection.status(), &rejection.body_text()),
    };
    let now_ms = now_ms();
    match Window::new(query.since_ms, query.until_ms, query.points, now_ms) {
        Ok(window) => answer(api.history.devices(window, now_ms).await),
        Err(error) => malformed(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

async fn swaps(State(api): State<Api>, query: Asked<ListQuery>) -> Response {
    let page = match list(query, false) {
        Ok((page, _)) => page,
        Err(response) => return response,
    };
    answer(api.history.swaps(page).await.map(|swaps| SwapsHistory { schema: SCHEMA, swaps }))
}

async fn swap(State(api): State<Api>, id: Result<UrlPath<String>, PathRejection>) -> Response {
    let Some(id) = id.ok().and_then(|id| id.parse().ok()) else {
        return malformed(StatusCode::BAD_REQUEST, "a swap's id is a number");
    };
    match api.history.swap(id).await {
        Ok(Some(swap)) => Json(SwapHistory { schema: SCHEMA, swap }).into_response(),
        Ok(None) => {
            let text = format!("swap {id} is not in the history");
            let hint = "berthctl history (those that are)".to_owned();
            problem(StatusCode::NOT_FOUND, "unknown_swap", &text, &[hint])
        }
        Err(error) => unavailable(&error),
    }
}

async fn events(State(api): State<Api>, query: Asked<ListQuery>) -> Response {
    let (page, kind) = match list(query, true) {
        Ok(asked) => asked,
        Err(response) => return response,
    };
    answer(api.history.events(page, kind).await.map(|events| EventsHistory { schema: SCHEMA, events }))
}

async fn problems(State(api): State<Api>, query: Asked<ListQuery>) -> Response {
    let page = match list(query, false) {
        Ok((page, _)) => page,
        Err(response) => return response,
    };
    answer(api.history.problems(page).await.map(|problems| ProblemsHistory { schema: SCHEMA, problems }))
}

fn answer<T: serde::Serialize>(read: Result<T, HistoryError>) -> Response {
    match read {
        Ok(document) => Json(document).into_response(),
        Err(error) => unavailable(&error),
    }
}

fn unavailable(error: &HistoryError) -> Response {
    let hint = "berthctl status (why, and what to do)".to_owned();
    problem(StatusCode::SERVICE_UNAVAILABLE, "history_error", &error.to_string(), &[hint])
}
