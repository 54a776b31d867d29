//! A client that has to wait for a model hears of it, where it asks for that: its answer begins at once, as a stream of
//! events (`text/event-stream`), with a comment now and then until the model's own begins. What is no stream then, an error
//! among others, comes as one event.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use berth_core::proxy::Dialect;
use hyper::body::{Body, Bytes, Frame};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::{Response, StatusCode};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};

use super::body::Answer;
use super::forward::MODEL;

/// Who sends `comments` here wants them.
const WAIT: HeaderName = HeaderName::from_static("x-berth-wait");
/// Who has waited so long gets the first one, and then one after each pause. Clients and what lies between give up on a
/// silent connection after 30 s and more.
const FIRST: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_secs(10);
const COMMENT: &str = ": waiting for the model\n\n";
const EVENTS: &str = "text/event-stream";

/// Whether the client asks for comments.
pub(super) fn wanted(headers: &HeaderMap) -> bool {
    let asked = headers.get(WAIT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"comments"));
    asked && !headers.contains_key(UPGRADE)
}

/// The answer as it is where nothing is waited for, or not for long; else one that begins with comments.
pub(super) async fn beside(
    answering: impl Future<Output = Response<Answer>> + Send + 'static,
    waits: impl Fn() -> bool,
    dialect: Dialect,
) -> Response<Answer> {
    let mut answering: Answering = Box::pin(answering);
    loop {
        match timeout(FIRST, &mut answering).await {
            Ok(answer) => return answer,
            Err(_) if waits() => break,
            Err(_) => {}
        }
    }
    let mut pause = interval_at(Instant::now(), PAUSE);
    pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let stage = Stage::Waiting { answering, pause };
    let mut response = Response::new(Answer::Commented(Box::new(Commented { stage, dialect })));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(EVENTS));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

type Answering = Pin<Box<dyn Future<Output = Response<Answer>> + Send>>;

/// An answer that began with comments.
pub(super) struct Commented {
    stage: Stage,
    dialect: Dialect,
}

enum Stage {
    Waiting {
        answering: Answering,
        pause: Interval,
    },
    /// It is a stream of events itself, and goes on as it is.
    Stream(Answer),
    /// It is none: its lines are those of one event's data.
    Event(Answer),
    Over,
}

impl Commented {
    /// The next of it; None at its end.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let said = |text: String| Poll::Ready(Some(Ok(Frame::data(Bytes::from(text)))));
        match &mut self.stage {
            Stage::Waiting { answering, pause } => match answering.as_mut().poll(context) {
                Poll::Ready(response) => {
                    let failed = response.status() != StatusCode::OK;
                    let kind = response.headers().get(CONTENT_TYPE);
                    let events = kind.is_some_and(|kind| kind.as_bytes().starts_with(EVENTS.as_bytes()));
                    let model = response.headers().get(MODEL).and_then(|model| model.to_str().ok());
                    let from = model.map(|model| format!(": from {model}\n\n")).unwrap_or_default();
                    let body = response.into_body();
                    if events && !failed {
                        self.stage = Stage::Stream(body);
                        return if from.is_empty() { self.poll(context) } else { said(from) };
                    }
                    self.stage = Stage::Event(body);
                    let named = failed && self.dialect == Dialect::Anthropic;
                    said(from + if named { "event: error\ndata: " } else { "data: " })
                }
                Poll::Pending => match pause.poll_tick(context) {
                    Poll::Ready(_) => said(COMMENT.to_owned()),
                    Poll::Pending => Poll::Pending,
                },
            },
            Stage::Stream(body) => Pin::new(body).poll_frame(context),
            Stage::Event(body) => match Pin::new(body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => Poll::Ready(Some(Ok(Frame::data(one_event(&bytes))))),
                    Err(_) => self.poll(context),
                },
                Poll::Ready(None) => {
                    self.stage = Stage::Over;
                    said("\n\n".to_owned())
                }
                other => other,
            },
            Stage::Over => Poll::Ready(None),
        }
    }
}

/// These bytes, with each line of them marked as data.
fn one_event(bytes: &[u8]) -> Bytes {
    let mut marked = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        marked.extend_from_slice(line);
        if line.ends_with(b"\n") {
            marked.extend_from_slice(b"data: ");
        }
    }
    Bytes::from(marked)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use http_body_util::{BodyExt, Full};
    use tokio::time::sleep;

    use super::*;

    fn answer(status: u16, kind: &'static str, body: &'static str) -> Response<Answer> {
        let body = Answer::Own(Full::from(body));
        Response::builder().status(status).header(CONTENT_TYPE, kind).body(body).unwrap()
    }

    async fn heard(after: u64, dialect: Dialect, answer: Response<Answer>) -> (u16, String) {
        heard_by(true, after, dialect, answer).await
    }

    async fn heard_by(waits: bool, after: u64, dialect: Dialect, answer: Response<Answer>) -> (u16, String) {
        let answering = async move {
            sleep(Duration::from_millis(after)).await;
            answer
        };
        let response = beside(answering, || waits, dialect).await;
        let status = response.status().as_u16();
        (
            status,
            String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_so_until_the_answer_begins() {
        let events = "data: {\"a\":1}\n\ndata: [DONE]\n\n";
        let stream = || answer(200, EVENTS, events);
        assert_eq!(
            heard(900, Dialect::OpenAi, stream()).await,
            (200, events.to_owned()),
            "no comment is due"
        );
        let (status, text) = heard(22_000, Dialect::OpenAi, stream()).await;
        assert_eq!((status, text), (200, format!("{COMMENT}{COMMENT}{COMMENT}{events}")));
        let slow = heard_by(false, 22_000, Dialect::OpenAi, stream()).await;
        assert_eq!(slow, (200, events.to_owned()), "its model only takes its time");
        let mut named = stream();
        named.headers_mut().insert(MODEL, HeaderValue::from_static("aeon"));
        let (_, text) = heard(2000, Dialect::OpenAi, named).await;
        assert_eq!(text, format!("{COMMENT}: from aeon\n\n{events}"));
        // What is no stream of events becomes one.
        let (_, text) =
            heard(2000, Dialect::OpenAi, answer(200, "application/json", "{\n \"a\": 1\n}")).await;
        assert_eq!(text, format!("{COMMENT}data: {{\ndata:  \"a\": 1\ndata: }}\n\n"));
        let refused = || answer(503, "application/json", "{\"error\":{}}");
        assert_eq!(heard(500, Dialect::OpenAi, refused()).await, (503, "{\"error\":{}}".to_owned()));
        let (status, text) = heard(2000, Dialect::OpenAi, refused()).await;
        assert_eq!((status, text), (200, format!("{COMMENT}data: {{\"error\":{{}}}}\n\n")));
        let (_, text) = heard(2000, Dialect::Anthropic, refused()).await;
        assert_eq!(text, format!("{COMMENT}event: error\ndata: {{\"error\":{{}}}}\n\n"));
    }

    #[test]
    fn only_who_asks_for_comments_gets_them() {
        let headers = |value: &'static str| HeaderMap::from_iter([(WAIT, HeaderValue::from_static(value))]);
        assert!(wanted(&headers("comments")) && wanted(&headers("Comments")));
        let mut upgrades = headers("comments");
        upgrades.insert(UPGRADE, HeaderValue::from_static("websocket"));
        assert!(!wanted(&upgrades));
        assert!(!wanted(&headers("")) && !wanted(&headers("respond-async")) && !wanted(&HeaderMap::new()));
    }
}
