//! What happened, and what models' servers say, as it comes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use berth_core::report::{Event, LogLine, What};
use futures_util::stream::{self, Stream, StreamExt};
use serde::Deserialize;
use tokio::sync::broadcast;
use utoipa::IntoParams;

use super::openapi::Problems;
use super::{Api, malformed, problem};
use crate::journal;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    /// Those after the one of this id, and from then on.
    after: Option<u64>,
    /// So many that were last, and from then on.
    last: Option<usize>,
    /// Those of this swap alone.
    swap: Option<u64>,
    /// Whether to go on with what comes.
    #[serde(default = "yes")]
    follow: bool,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct LogsQuery {
    /// So many that were last.
    #[serde(default = "hundred")]
    lines: usize,
    /// Whether to go on with what comes.
    #[serde(default)]
    follow: bool,
}

fn yes() -> bool {
    true
}

fn hundred() -> usize {
    100
}

/// What happened and happens, as server-sent events: each is an `Event`.
#[utoipa::path(get, path = "/api/v1/events", tag = "events", params(EventsQuery), responses((status = 200, content_type = "text/event-stream", body = Event), Problems))]
pub(super) async fn events(
    State(api): State<Api>,
    headers: HeaderMap,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Response {
    let Query(query) = match query {
        Ok(query) => query,
        Err(rejection) => return malformed(rejection.status(), &rejection.body_text()),
    };
    // A browser that was cut off says where it was.
    let came_back = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let (kept, live) = match (came_back.or(query.after), query.last) {
        (Some(after), _) => api.events.after(after),
        (None, Some(count)) => api.events.last(count),
        (None, None) => api.events.last(0),
    };
    let kept = stream::iter(kept);
    let all = if query.follow { kept.chain(following(live)).boxed() } else { kept.boxed() };
    let wanted = query.swap;
    let messages = all
        .filter(move |event| std::future::ready(wanted.is_none_or(|id| swap_of(event) == Some(id))))
        .map(|event| {
            let json = serde_json::to_string(&*event).unwrap_or_default();
            Ok::<_, Infallible>(sse::Event::default().id(event.id.to_string()).data(json))
        });
    Sse::new(messages).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}

/// Live events; ends for a listener that lags behind, which comes back with the last id that it saw.
fn following(live: broadcast::Receiver<Arc<Event>>) -> impl Stream<Item = Arc<Event>> {
    stream::unfold(live, |mut live| async move { live.recv().await.ok().map(|event| (event, live)) })
}

fn swap_of(event: &Event) -> Option<u64> {
    match &event.what {
        What::SwapBegan { swap } | What::SwapEnded { swap } => Some(swap.id),
        What::SwapStep { swap, .. } => Some(*swap),
        _ => None,
    }
}

/// What a model's server said: a `LogLine` each line.
#[utoipa::path(get, path = "/api/v1/models/{name}/logs", tag = "models", params(("name" = String, Path, description = "The model's name or an alias"), LogsQuery), responses((status = 200, content_type = "application/x-ndjson", body = LogLine), Problems))]
pub(super) async fn logs(
    State(api): State<Api>,
    name: Result<Path<String>, PathRejection>,
    query: Result<Query<LogsQuery>, QueryRejection>,
) -> Response {
    let (name, query) = match (name, query) {
        (Ok(Path(name)), Ok(Query(query))) => (name, query),
        (Err(rejection), _) => return malformed(rejection.status(), &rejection.body_text()),
        (_, Err(rejection)) => return malformed(rejection.status(), &rejection.body_text()),
    };
    let model = match api.model(&name) {
        Ok(model) => model,
        Err(response) => return *response,
    };
    let lines = match journal::follow(&model, query.lines.min(100_000), query.follow) {
        Ok(lines) => lines,
        Err(error) => {
            return problem(StatusCode::SERVICE_UNAVAILABLE, "journal", &error.to_string(), &[]);
        }
    };
    // An error after the answer has begun can only break it off.
    let body = lines.map(|line| {
        line.map(|line| {
            let mut json = serde_json::to_vec(&line).unwrap_or_default();
            json.push(b'\n');
            Bytes::from(json)
        })
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response()
}
