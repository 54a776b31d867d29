//! The trivial model server: it answers at once and always the same, so that what is measured is the way to it.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::{Instant, Interval, interval_at};

/// The name under which it is declared.
pub(super) const MODEL: &str = "trivial";

/// Tokens of a streamed answer. The first is sent at once.
pub(super) const TOKENS: usize = 10;

/// From one token to the next.
const EVERY: Duration = Duration::from_millis(5);

/// By this a request asks for a stream; ours is written without spaces, and a proxy must not touch it.
const WANTS_STREAM: &[u8] = b"\"stream\":true";

/// How an answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// In one piece.
    Whole,
    /// Token by token.
    Streamed,
}

/// What a client has to see.
#[derive(Debug)]
pub(super) struct Answer {
    /// All of it.
    pub(super) bytes: Bytes,
    /// How long a part is: a token, or all of a whole answer.
    pub(super) part: usize,
    /// How many parts there are.
    pub(super) parts: usize,
}

impl Kind {
    /// The body of a request: about 1 KB of chat.
    pub(super) fn request(self) -> Bytes {
        let said = "What does a model server do while nobody asks it anything? ".repeat(15);
        let body = json!({
            "model": MODEL,
            "stream": self == Kind::Streamed,
            "max_tokens": TOKENS,
            "messages": [{ "role": "user", "content": said }],
        });
        Bytes::from(body.to_string())
    }

    /// The answer to it.
    pub(super) fn answer(self) -> &'static Answer {
        match self {
            Kind::Whole => &WHOLE,
            Kind::Streamed => &STREAMED,
        }
    }
}

static WHOLE: LazyLock<Answer> = LazyLock::new(|| {
    let said = "It waits, and holds the memory of its GPUs all the while. ".repeat(13);
    let body = json!({
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": said },
            "finish_reason": "stop",
        }],
        "usage": { "prompt_tokens": 150, "completion_tokens": 156, "total_tokens": 306 },
    });
    let bytes = Bytes::from(body.to_string());
    Answer { part: bytes.len(), parts: 1, bytes }
});

static TOKEN: LazyLock<Bytes> = LazyLock::new(|| {
    let chunk = json!({
        "id": "chatcmpl-0",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": MODEL,
        "choices": [{ "index": 0, "delta": { "content": " waits" }, "finish_reason": null }],
    });
    Bytes::from(format!("data: {chunk}\n\n"))
});

static LAST: LazyLock<Bytes> = LazyLock::new(|| [&TOKEN[..], b"data: [DONE]\n\n"].concat().into());

static STREAMED: LazyLock<Answer> = LazyLock::new(|| {
    let bytes = [&TOKEN.repeat(TOKENS - 1)[..], &LAST[..]].concat();
    Answer { bytes: bytes.into(), part: TOKEN.len(), parts: TOKENS }
});

/// On how many threads the upstream answers, and on how many it is asked: few, so that they leave cores to the proxy
/// between them.
pub(super) fn threads() -> usize {
    thread::available_parallelism().map_or(1, |cores| (cores.get() / 4).clamp(1, 4))
}

/// Answers at this address until the process ends.
///
/// # Errors
/// The address is taken.
pub fn serve(address: SocketAddr) -> Result<Infallible> {
    let listener = TcpListener::bind(address).with_context(|| format!("can't listen on {address}"))?;
    answer_on(listener, threads())
}

/// The same on a socket that listens already.
pub(super) fn answer_on(listener: TcpListener, threads: usize) -> Result<Infallible> {
    listener.set_nonblocking(true)?;
    // Each has a runtime of its own: a shared one wakes threads to share work that is too little to be shared.
    for _ in 1..threads {
        let listener = listener.try_clone()?;
        thread::spawn(move || accept(listener));
    }
    accept(listener)
}

fn accept(listener: TcpListener) -> Result<Infallible> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (socket, _) = listener.accept().await?;
            tokio::spawn(answer_all(socket));
        }
    })
}

/// Answers one client until it leaves.
async fn answer_all(socket: TcpStream) {
    // Without it a token would wait for the acknowledgement of the last one.
    _ = socket.set_nodelay(true);
    // A client that leaves amid a request is its own affair.
    _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service_fn(answer)).await;
}

async fn answer(request: Request<Incoming>) -> Result<Response<Either<Full<Bytes>, Tokens>>, hyper::Error> {
    let asked = request.into_body().collect().await?.to_bytes();
    let streamed = asked.windows(WANTS_STREAM.len()).any(|bytes| bytes == WANTS_STREAM);
    let (kind, body) = if streamed {
        (
            "text/event-stream",
            Either::Right(Tokens { next: interval_at(Instant::now() + EVERY, EVERY), left: TOKENS }),
        )
    } else {
        // Also to a question for its health.
        ("application/json", Either::Left(Full::new(WHOLE.bytes.clone())))
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

/// A body that comes token by token.
struct Tokens {
    next: Interval,
    left: usize,
}

impl Body for Tokens {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        // Not even the first tick of an interval comes at once: timers are rounded up to a millisecond.
        if self.left < TOKENS {
            ready!(self.next.poll_tick(context));
        }
        self.left -= 1;
        let token = if self.left == 0 { &LAST } else { &TOKEN };
        Poll::Ready(Some(Ok(Frame::data(Bytes::clone(token)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }
}
