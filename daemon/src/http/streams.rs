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
use crate::events::Events;
use crate::journal;

#[derive(Clone, Deserialize, IntoParams)]
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
    told(&api.events, &headers, &query)
}

fn told(events: &Events, headers: &HeaderMap, query: &EventsQuery) -> Response {
    // A browser that was cut off says where it was.
    let came_back = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    let (kept, live) = match (came_back.or(query.after), query.last) {
        (Some(after), _) => events.after(after),
        (None, Some(count)) => events.last(count),
        (None, None) => events.last(0),
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
    let lines =
        match journal::follow(&api.looker.systemd.units_of(&model), query.lines.min(100_000), query.follow) {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::SocketAddr;

    use axum::Router;
    use axum::routing::get;
    use berth_core::report::ModelState;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::{Instant, timeout};

    use super::super::caller::Via;
    use super::super::serve::{UNREAD, converse};
    use super::*;

    /// One who listens from after the event `after`, and the connection that serves them.
    async fn listen(events: &Events, after: u64) -> (DuplexStream, impl Future<Output = ()> + use<>) {
        let events = events.clone();
        let query = EventsQuery { after: None, last: None, swap: None, follow: true };
        let answer = move |headers: HeaderMap| std::future::ready(told(&events, &headers, &query));
        let routes = Router::new().route("/", get(answer));
        let (mut client, server) = tokio::io::duplex(4096);
        let request = format!("GET / HTTP/1.1\r\nHost: berth\r\nLast-Event-ID: {after}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let here: SocketAddr = "127.0.0.1:8009".parse().unwrap();
        (client, converse(server, Via::Tcp { at: here, from: here }, routes))
    }

    fn say(events: &Events, count: u64) {
        for at_ms in 0..count {
            let (model, text) = ("aeon".parse().unwrap(), "x".repeat(600));
            events.say(at_ms, What::Model { model, state: ModelState::Serving, text });
        }
    }

    /// The ids of the events that came whole.
    fn ids(text: &str) -> Vec<u64> {
        let whole = text.split("\n\n").filter(|event| event.contains("data:"));
        whole
            .filter_map(|event| event.lines().find_map(|line| line.strip_prefix("id: ")?.parse().ok()))
            .collect()
    }

    /// Who never reads is dropped, and finds what was missed on coming back; who is silent because nothing happens stays.
    #[tokio::test(start_paused = true)]
    async fn who_never_reads_is_dropped_and_may_come_back() {
        let events = Events::new(0);
        say(&events, 1);
        let (mut client, connection) = listen(&events, 0).await;
        let connection = tokio::spawn(connection);
        tokio::time::sleep(UNREAD * 4).await;
        assert!(!connection.is_finished(), "nothing was to be read that was not kept ready");

        let blocked = Instant::now();
        say(&events, 100);
        timeout(UNREAD * 2, connection).await.expect("it is dropped").unwrap();
        assert!(blocked.elapsed() >= UNREAD, "not before its time: {:?}", blocked.elapsed());
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        let last = *ids(&text).last().unwrap();
        assert!((1..101).contains(&last), "{last}");

        let (mut client, connection) = listen(&events, last).await;
        let connection = tokio::spawn(connection);
        let mut text = String::new();
        while ids(&text).last() != Some(&101) {
            let mut part = [0; 1024];
            let read = timeout(UNREAD, client.read(&mut part)).await.expect("it comes").unwrap();
            text.push_str(std::str::from_utf8(&part[..read]).unwrap());
        }
        assert_eq!(ids(&text), (last + 1..=101).collect::<Vec<_>>());
        drop(client);
        timeout(UNREAD, connection).await.expect("it ends").unwrap();
    }
}
