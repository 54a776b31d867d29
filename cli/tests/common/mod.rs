//! A berthd that plays what a test gives it, on a real unix socket.

use std::collections::VecDeque;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use berth_core::report::{Event, What};
use futures_util::stream;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;

#[path = "../../src/render/examples.rs"]
#[allow(dead_code)]
pub(crate) mod examples;

/// One piece of a stream.
#[derive(Debug, Clone)]
pub(crate) enum Say {
    Event(Box<Event>),
    Raw(String),
    Pause(Duration),
    /// Nothing more, and no end either.
    Silence,
}

/// What it answers.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// Method and path without query, and the answer.
    pub(crate) answers: Vec<(String, u16, Value)>,
    /// What each request for events gets, in turn; an end of the stream follows.
    pub(crate) streams: VecDeque<Vec<Say>>,
    /// What a request for logs gets.
    pub(crate) logs: Vec<Say>,
}

impl Script {
    pub(crate) fn answer(mut self, what: &str, status: u16, value: impl serde::Serialize) -> Self {
        self.answers.push((what.to_owned(), status, serde_json::to_value(value).unwrap()));
        self
    }

    pub(crate) fn stream(mut self, says: Vec<Say>) -> Self {
        self.streams.push_back(says);
        self
    }
}

pub(crate) struct Berthd {
    pub(crate) socket: PathBuf,
    script: Arc<Mutex<Script>>,
    requests: Arc<Mutex<Vec<String>>>,
    runtime: Option<Runtime>,
}

#[derive(Clone)]
struct Shared {
    script: Arc<Mutex<Script>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Berthd {
    pub(crate) fn start(socket: &Path, script: Script) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shared =
            Shared { script: Arc::new(Mutex::new(script)), requests: Arc::new(Mutex::new(Vec::new())) };
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(socket).unwrap()
        };
        let app = Router::new().fallback(serve).with_state(shared.clone());
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self {
            socket: socket.to_owned(),
            script: shared.script,
            requests: shared.requests,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }

    /// Method, path with query, and body of all requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// Dies: every connection breaks, and the socket is gone.
    pub(crate) fn die(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
            std::fs::remove_file(&self.socket).unwrap();
        }
    }
}

impl Drop for Berthd {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(State(shared): State<Shared>, request: Request) -> Response {
    let what = format!("{} {}", request.method(), request.uri().path());
    let whole = format!("{} {}", request.method(), request.uri());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    shared.requests.lock().unwrap().push(format!("{whole} {body}").trim_end().to_owned());
    let mut script = shared.script.lock().unwrap();
    let reply = |status: u16, body| {
        Response::builder().status(StatusCode::from_u16(status).unwrap()).body(body).unwrap()
    };
    if let Some((_, status, value)) = script.answers.iter().find(|answer| answer.0 == what) {
        return reply(*status, Body::from(value.to_string()));
    }
    if what == "GET /api/v1/events"
        && let Some(says) = script.streams.pop_front()
    {
        return reply(200, streamed(says));
    }
    if what.ends_with("/logs") {
        return reply(200, streamed(script.logs.clone()));
    }
    reply(503, Body::from("not now"))
}

fn streamed(says: Vec<Say>) -> Body {
    let pieces = stream::unfold(VecDeque::from(says), |mut says| async move {
        let text = match says.pop_front()? {
            Say::Event(event) => {
                format!("id: {}\ndata: {}\n\n", event.id, serde_json::to_string(&event).unwrap())
            }
            Say::Raw(text) => text,
            Say::Pause(time) => {
                tokio::time::sleep(time).await;
                ":\n\n".to_owned()
            }
            Say::Silence => std::future::pending().await,
        };
        Some((Ok::<_, std::convert::Infallible>(text), says))
    });
    Body::from_stream(pieces)
}

/// The events with ids from 101.
pub(crate) fn events(whats: Vec<What>) -> Vec<Say> {
    whats
        .into_iter()
        .zip(101..)
        .map(|(what, id)| Say::Event(Box::new(Event { schema: 1, id, at_ms: examples::NOW, what })))
        .collect()
}

/// A folder for a socket that everybody may look into.
pub(crate) fn folder() -> TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// berthctl with this socket and these arguments.
pub(crate) fn berthctl(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berthctl"));
    command
        .args(args)
        .env("BERTH_SOCKET", socket)
        .env("TZ", "UTC")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    command
}

/// Runs it to its end.
pub(crate) fn run(socket: &Path, args: &[&str]) -> Ran {
    Ran::from(berthctl(socket, args).output().unwrap())
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let ran = Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
        ran
    }
}

impl Ran {
    /// Standard error as if it were one line.
    pub(crate) fn told(&self) -> String {
        self.stderr.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Standard output as one JSON document a line, each with the schema's version.
    pub(crate) fn documents(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| {
                let value: Value = serde_json::from_str(line).unwrap();
                assert_eq!(value["schema"], 1, "{line}");
                value
            })
            .collect()
    }
}
