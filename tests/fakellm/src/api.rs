//! The HTTP face: the endpoints of llama-server and vLLM that clients and managers use.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::args::{Arguments, Style};
use crate::tokens::{Wanted, token, wanted};
use crate::{gpu, life};

/// What all handlers share.
pub(crate) struct Server {
    pub arguments: Arguments,
    pub name: String,
    pub ready: AtomicBool,
    /// Of the two that hang: from the start by a flag, from some moment on by a signal.
    pub mute: AtomicBool,
    pub numb: AtomicBool,
    /// With --busy: who has it may do something.
    turn: Arc<Semaphore>,
    grown: AtomicBool,
    answers: AtomicU64,
}

impl Server {
    pub(crate) fn new(arguments: &Arguments) -> Arc<Self> {
        Arc::new(Server {
            arguments: arguments.clone(),
            name: arguments.name(),
            ready: AtomicBool::new(false),
            mute: AtomicBool::new(arguments.hang_health),
            numb: AtomicBool::new(arguments.no_generate),
            turn: Arc::new(Semaphore::new(1)),
            grown: AtomicBool::new(false),
            answers: AtomicU64::new(0),
        })
    }
}

impl Server {
    /// Waits until nothing else is done, with --busy.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        if !self.arguments.busy {
            return None;
        }
        Arc::clone(&self.turn).acquire_owned().await.ok()
    }

    /// Lets the time for so many tokens pass; with --busy by computing.
    async fn think(&self, tokens: u32) {
        let time = self.arguments.token_delay * tokens;
        if !self.arguments.busy {
            return tokio::time::sleep(time).await;
        }
        let end = Instant::now() + time;
        let spun = tokio::task::spawn_blocking(move || {
            while Instant::now() < end {
                std::hint::spin_loop();
            }
        });
        // It can't fail.
        _ = spun.await;
    }
}

type Shared = State<Arc<Server>>;

/// All endpoints.
pub(crate) fn router(server: Arc<Server>) -> Router {
    let mut router = Router::new()
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat));
    router = match server.arguments.style {
        Style::Llama => router.route("/completion", post(completion)).route("/props", get(props)),
        Style::Vllm => router.route("/version", get(|| async { Json(json!({"version": "0.11.0"})) })),
    };
    router.layer(from_fn_with_state(Arc::clone(&server), only_when_ready)).with_state(server)
}

/// While it loads, every endpoint says so.
async fn only_when_ready(State(server): Shared, request: Request, next: Next) -> Response {
    if server.ready.load(Ordering::SeqCst) {
        return next.run(request).await;
    }
    failure(StatusCode::SERVICE_UNAVAILABLE, "Loading model", "unavailable_error")
}

fn failure(status: StatusCode, message: &str, kind: &str) -> Response {
    let error = json!({"code": status.as_u16(), "message": message, "type": kind});
    (status, Json(json!({"error": error}))).into_response()
}

async fn health(State(server): Shared) -> Response {
    if server.mute.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
    _ = server.turn().await;
    match server.arguments.style {
        Style::Llama => Json(json!({"status": "ok"})).into_response(),
        Style::Vllm => StatusCode::OK.into_response(),
    }
}

async fn models(State(server): Shared) -> Json<Value> {
    let owner = if server.arguments.style == Style::Llama { "llamacpp" } else { "vllm" };
    let model = json!({
        "id": server.name, "object": "model", "created": now(), "owned_by": owner,
        "max_model_len": server.arguments.ctx,
    });
    Json(json!({"object": "list", "data": [model]}))
}

async fn props(State(server): Shared) -> Json<Value> {
    Json(json!({
        "model_path": server.arguments.model.as_ref().map(|path| path.display().to_string()),
        "model_alias": server.name,
        "total_slots": 4,
        "default_generation_settings": {"n_ctx": server.arguments.ctx},
    }))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The three shapes in which an answer goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Chat,
    Text,
    Own,
}

async fn chat(State(server): Shared, body: Bytes) -> Response {
    generate(server, &body, Shape::Chat).await
}

async fn completions(State(server): Shared, body: Bytes) -> Response {
    generate(server, &body, Shape::Text).await
}

async fn completion(State(server): Shared, body: Bytes) -> Response {
    generate(server, &body, Shape::Own).await
}

async fn generate(server: Arc<Server>, body: &Bytes, shape: Shape) -> Response {
    if server.arguments.echo {
        return Json(json!({ "request": String::from_utf8_lossy(body) })).into_response();
    }
    let Ok(body) = serde_json::from_slice::<Value>(body) else {
        return failure(StatusCode::BAD_REQUEST, "the body is not JSON", "invalid_request_error");
    };
    if server.arguments.say_prompts {
        println!("prompt: {}", body["prompt"].as_str().unwrap_or_default());
    }
    if server.arguments.generate_error {
        return failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            "CUDA error: unspecified launch failure",
            "server_error",
        );
    }
    if server.numb.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
    let wanted = wanted(&body);
    grow(&server, wanted.prompt_tokens).await;
    let id = server.answers.fetch_add(1, Ordering::SeqCst);
    let turn = server.turn().await;
    let answer = Answer { server, turn, shape, id: format!("fake-{id}"), created: now(), wanted };
    if answer.wanted.stream { answer.stream() } else { answer.whole().await }
}

/// The first long prompt takes more memory; without it the server ends as the real one does.
async fn grow(server: &Arc<Server>, prompt_tokens: u64) {
    let arguments = &server.arguments;
    if prompt_tokens < arguments.after_tokens || server.grown.swap(true, Ordering::SeqCst) {
        return;
    }
    let claims = gpusim::visible::Claims { on: arguments.grow.clone(), each: None };
    let style = arguments.style;
    let taken = tokio::task::spawn_blocking(move || gpu::take(&claims, style, Duration::ZERO)).await;
    if let Ok(Err(error)) = taken {
        life::end(&format!("{error:#}"), 1);
    }
}

/// One answer on its way.
struct Answer {
    server: Arc<Server>,
    /// Held until the answer has gone out.
    #[allow(dead_code, reason = "what is done with it is its end")]
    turn: Option<OwnedSemaphorePermit>,
    shape: Shape,
    id: String,
    created: u64,
    wanted: Wanted,
}

impl Answer {
    fn usage(&self) -> Value {
        let Wanted { prompt_tokens, tokens, .. } = self.wanted;
        json!({
            "prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens,
        })
    }

    fn object(&self, kind: &str, choices: &Value, usage: Option<Value>) -> Value {
        let mut object = json!({
            "id": self.id, "object": kind, "created": self.created, "model": self.server.name,
            "choices": choices,
        });
        if let Some(usage) = usage {
            object["usage"] = usage;
        }
        object
    }

    async fn whole(self) -> Response {
        let tokens = u32::try_from(self.wanted.tokens).unwrap_or(u32::MAX);
        self.server.think(tokens).await;
        let text: String = (0..self.wanted.tokens).map(|i| token(&self.server.name, i)).collect();
        let choice = |key: &str, value: Value| json!([{"index": 0, key: value, "finish_reason": "length"}]);
        let answer = match self.shape {
            Shape::Chat => {
                let choices = choice("message", json!({"role": "assistant", "content": text}));
                self.object("chat.completion", &choices, Some(self.usage()))
            }
            Shape::Text => self.object("text_completion", &choice("text", json!(text)), Some(self.usage())),
            Shape::Own => self.own(&text, true),
        };
        Json(answer).into_response()
    }

    /// llama-server's own form.
    fn own(&self, content: &str, stop: bool) -> Value {
        let mut answer = json!({"index": 0, "content": content, "stop": stop, "model": self.server.name});
        if stop {
            answer["tokens_predicted"] = json!(self.wanted.tokens);
            answer["tokens_evaluated"] = json!(self.wanted.prompt_tokens);
            answer["stop_type"] = json!("limit");
        }
        answer
    }

    /// One chunk with a token in it.
    fn chunk(&self, text: &str) -> Value {
        let choices = |key: &str, value: Value| json!([{"index": 0, key: value, "finish_reason": null}]);
        match self.shape {
            Shape::Chat => {
                let choices = choices("delta", json!({"role": "assistant", "content": text}));
                self.object("chat.completion.chunk", &choices, None)
            }
            Shape::Text => self.object("text_completion", &choices("text", json!(text)), None),
            Shape::Own => self.own(text, false),
        }
    }

    /// What follows the last token.
    fn ending(&self) -> Vec<String> {
        let done = |key: &str, value: Value| json!([{"index": 0, key: value, "finish_reason": "length"}]);
        let mut last = match self.shape {
            Shape::Own => return vec![self.own("", true).to_string()],
            Shape::Chat => {
                vec![self.object("chat.completion.chunk", &done("delta", json!({})), None).to_string()]
            }
            Shape::Text => vec![self.object("text_completion", &done("text", json!("")), None).to_string()],
        };
        if self.wanted.stream_usage {
            last.push(self.object("chat.completion.chunk", &json!([]), Some(self.usage())).to_string());
        }
        last.push("[DONE]".to_owned());
        last
    }

    fn stream(self) -> Response {
        let tokens = self.wanted.tokens;
        let answer = Arc::new(self);
        let ending = answer.ending();
        let said = stream::iter(0..tokens).then(move |index| {
            let answer = Arc::clone(&answer);
            async move {
                answer.server.think(1).await;
                answer.chunk(&token(&answer.server.name, index)).to_string()
            }
        });
        let events = said.chain(stream::iter(ending));
        Sse::new(events.map(|data| Ok::<_, Infallible>(Event::default().data(data)))).into_response()
    }
}
