//! What happened, and what models' servers say, as it comes.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use berth_core::plan;
use berth_core::report::{Event, What};
use futures_util::stream::{self, Stream, StreamExt};
use serde::Deserialize;
use tokio::sync::broadcast;

use super::{Api, malformed, problem};
use crate::journal;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    after: Option<u64>,
    last: Option<usize>,
    swap: Option<u64>,
    #[serde(default = "yes")]
    follow: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogsQuery {
    #[serde(default = "hundred")]
    lines: usize,
    #[serde(default)]
    follow: bool,
}

fn yes() -> bool {
    true
}

fn hundred() -> usize {
    100
}

/// `GET /api/v1/events`.
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

/// `GET /api/v1/models/{name}/logs`.
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
    let state = berth_core::state::State::default();
    let unnamed = name.parse().ok().and_then(|name| api.settings.model(&name));
    let declared = unnamed.map_or_else(|| plan::resolve(&api.settings, &state, &name).map(Cow::Borrowed), Ok);
    let model = match declared {
        Ok(model) => model.name.clone(),
        Err(refusal) => {
            return problem(StatusCode::NOT_FOUND, &refusal.code, &refusal.text, &refusal.hints);
        }
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
