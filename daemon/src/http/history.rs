//! The past over the control API.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use berth_core::history::Window;
use berth_core::report::{DevicesHistory, EventsHistory, ProblemsHistory, SCHEMA, SwapHistory, SwapsHistory};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::openapi::Problems;
use super::{Api, malformed, problem};
use crate::driver::now_ms;
use crate::history::{HistoryError, Page};

/// As many as fit on a few screens; more at once would be megabytes.
const LAST: u32 = 50;
const MOST: u32 = 500;

/// The resources below `/api/v1/history`.
pub(super) fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(devices))
        .routes(routes!(swaps))
        .routes(routes!(swap))
        .routes(routes!(events))
        .routes(routes!(problems))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct DevicesQuery {
    /// From when; an hour ago where it is not given.
    since_ms: Option<u64>,
    /// Until when; now where it is not given.
    until_ms: Option<u64>,
    /// How many at most of each device.
    points: Option<u64>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// How many at most.
    last: Option<u32>,
    /// Those before the one of this number.
    before: Option<u64>,
    /// Of events: which, as `swap_ended`.
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

/// Samples of the devices.
#[utoipa::path(get, path = "/api/v1/history/devices", tag = "history", params(DevicesQuery), responses((status = 200, body = DevicesHistory), Problems))]
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

/// Past swaps, newest first.
#[utoipa::path(get, path = "/api/v1/history/swaps", tag = "history", params(ListQuery), responses((status = 200, body = SwapsHistory), Problems))]
async fn swaps(State(api): State<Api>, query: Asked<ListQuery>) -> Response {
    let page = match list(query, false) {
        Ok((page, _)) => page,
        Err(response) => return response,
    };
    answer(api.history.swaps(page).await.map(|swaps| SwapsHistory { schema: SCHEMA, swaps }))
}

/// One past swap with its steps.
#[utoipa::path(get, path = "/api/v1/history/swaps/{id}", tag = "history", params(("id" = u64, Path, description = "Its number")), responses((status = 200, body = SwapHistory), Problems))]
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

/// Past events, newest first.
#[utoipa::path(get, path = "/api/v1/history/events", tag = "history", params(ListQuery), responses((status = 200, body = EventsHistory), Problems))]
async fn events(State(api): State<Api>, query: Asked<ListQuery>) -> Response {
    let (page, kind) = match list(query, true) {
        Ok(asked) => asked,
        Err(response) => return response,
    };
    answer(api.history.events(page, kind).await.map(|events| EventsHistory { schema: SCHEMA, events }))
}

/// Problems, past and present, newest first.
#[utoipa::path(get, path = "/api/v1/history/problems", tag = "history", params(ListQuery), responses((status = 200, body = ProblemsHistory), Problems))]
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
