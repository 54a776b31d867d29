//! The control API: HTTP on a unix socket. Knows the driver's messages and core's report, nothing beneath.
//!
//! Who may connect is the socket's mode: root and the group `berth`. Who asked for a change goes into the journal.

mod dashboard;
mod devices;

use std::borrow::Cow;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use berth_core::config::Settings;
use berth_core::plan;
use berth_core::report::{Actor, ApiProblem, Event, PlanReport, Request, What};
use futures_util::stream::{self, Stream, StreamExt};
use nix::unistd::{Uid, User};
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::net::unix::UCred;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::driver::{Answer, Decide, Message, refusal};
use crate::events::Events;
use crate::journal;
use crate::preflight::Looker;

/// How long a decision may take: what berthd does by itself has to be given up first.
const DECISION: Duration = Duration::from_secs(180);
/// How long the driver may take to answer; it waits for nothing but a disk.
const DRIVER: Duration = Duration::from_secs(30);

/// A request is a verb and a name: what is longer is none.
const LARGEST_REQUEST: usize = 64 << 10;
/// Longer than any name or alias; a longer one need not be compared with them, nor logged.
const LONGEST_NAME: usize = 200;

/// What requests are answered with.
#[derive(Clone)]
pub struct Api {
    /// The driver.
    pub driver: mpsc::Sender<Message>,
    /// What happened.
    pub events: Events,
    /// Looks up what each decision needs.
    pub looker: Looker,
    /// What was declared.
    pub settings: Arc<Settings>,
}

/// Binds the control socket: for root and the group of operators only.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Serves requests until the process ends.
pub async fn serve(listener: UnixListener, api: Api) -> io::Result<()> {
    dashboard::announce();
    let router = Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/plan", post(dry_run))
        .route("/api/v1/swaps", post(begin))
        .route("/api/v1/swaps/{id}", get(swap))
        .route("/api/v1/repair", post(repair))
        .route("/api/v1/devices/clear", post(devices::clear))
        .route("/api/v1/events", get(events))
        .route("/api/v1/models/{name}/logs", get(logs))
        .merge(dashboard::routes())
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "not_found", "no such resource", &[]) })
        .method_not_allowed_fallback(|| async {
            let text = "this resource does not take this method";
            problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text, &[])
        })
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .with_state(api);
    axum::serve(listener, router.into_make_service_with_connect_info::<Peer>()).await
}

/// Who is at the other end, as the kernel says.
#[derive(Debug, Clone, Copy)]
struct Peer(Option<UCred>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok())
    }
}

impl Peer {
    fn actor(self) -> Option<Actor> {
        let peer = self.0?;
        let user = User::from_uid(Uid::from_raw(peer.uid())).ok().flatten();
        Some(Actor {
            uid: peer.uid(),
            user: user.map_or_else(|| format!("uid {}", peer.uid()), |user| user.name),
            pid: peer.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default(),
        })
    }
}

async fn status(State(api): State<Api>) -> Response {
    let (reply, answer) = oneshot::channel();
    match api.ask(Message::Status(reply), answer).await {
        Some(status) => Json(status).into_response(),
        None => no_answer(),
    }
}

async fn swap(State(api): State<Api>, id: Result<UrlPath<String>, PathRejection>) -> Response {
    let Some(id) = id.ok().and_then(|id| id.parse().ok()) else {
        return malformed(StatusCode::BAD_REQUEST, "a swap's id is a number");
    };
    let (reply, answer) = oneshot::channel();
    match api.ask(Message::SwapById(id, reply), answer).await {
        Some(Some(swap)) => Json(swap).into_response(),
        Some(None) => {
            let text = format!(
                "swap {id} is not known any more; the last {} are",
                berth_core::state::State::KEPT_SWAPS
            );
            problem(StatusCode::NOT_FOUND, "unknown_swap", &text, &[])
        }
        None => no_answer(),
    }
}

async fn dry_run(State(api): State<Api>, request: Result<Json<Request>, JsonRejection>) -> Response {
    let request = match understood(request) {
        Ok(request) => request,
        Err(problem) => return problem,
    };
    match api.decide(request, None).await {
        Some(Answer::Plan(report)) => Json(report).into_response(),
        Some(Answer::Accepted(accepted)) => Json(accepted.plan).into_response(),
        None => no_answer(),
    }
}

async fn begin(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Result<Json<Request>, JsonRejection>,
) -> Response {
    let Some(actor) = peer.actor() else {
        return problem(StatusCode::FORBIDDEN, "unknown_peer", "the kernel does not say who asks", &[]);
    };
    let request = match understood(request) {
        Ok(request) => request,
        Err(problem) => return problem,
    };
    // In a task of its own: the asker may vanish, what was asked for and who asked may not.
    match tokio::spawn(asked(api, request, actor)).await {
        Ok(response) => response,
        Err(_) => no_answer(),
    }
}

async fn repair(State(api): State<Api>, ConnectInfo(peer): ConnectInfo<Peer>) -> Response {
    let Some(actor) = peer.actor() else {
        return problem(StatusCode::FORBIDDEN, "unknown_peer", "the kernel does not say who asks", &[]);
    };
    // As with a change: it is done and written down though the asker vanishes.
    match tokio::spawn(repaired(api, actor)).await {
        Ok(response) => response,
        Err(_) => no_answer(),
    }
}

/// Has a damaged ledger mended, and writes down who asked for it.
async fn repaired(api: Api, actor: Actor) -> Response {
    let audit = Audit::new(actor, "repair", String::new());
    let (reply, answer) = oneshot::channel();
    let (outcome, response) = match api.ask(Message::Repair(reply), answer).await {
        Some(Ok(repaired)) => {
            let outcome = match (&repaired.damage, repaired.line) {
                (None, _) => "nothing to do".to_owned(),
                (Some(damage), Some(line)) => format!("{damage}; line {line} counts from now on"),
                (Some(damage), None) => format!("{damage}; begun anew from what runs"),
            };
            (outcome, Json(repaired).into_response())
        }
        Some(Err(refusal)) => (
            format!("refused: {}", refusal.text),
            problem(StatusCode::CONFLICT, &refusal.code, &refusal.text, &refusal.hints),
        ),
        None => ("berthd did not answer".to_owned(), no_answer()),
    };
    audit.write(&outcome);
    response
}

/// Has a change decided, and writes down who asked for it.
async fn asked(api: Api, request: Request, actor: Actor) -> Response {
    let set: Vec<String> = request.set.iter().map(|(key, value)| format!(" --set {key}={value}")).collect();
    let model = request.model.clone().unwrap_or_default() + &set.concat();
    let audit = Audit::new(actor.clone(), request.verb.as_str(), model);
    let answer = api.decide(request, Some(actor)).await;
    let (outcome, response) = match answer {
        Some(Answer::Accepted(accepted)) => {
            let outcome = accepted.swap.map_or("nothing to do".to_owned(), |id| format!("swap {id}"));
            (outcome, (StatusCode::ACCEPTED, Json(accepted)).into_response())
        }
        Some(Answer::Plan(report)) => {
            let why = refusal(&report).map(|refusal| refusal.text.clone()).unwrap_or_default();
            (format!("refused: {why}"), refused(report))
        }
        None => ("berthd did not answer".to_owned(), no_answer()),
    };
    audit.write(&outcome);
    response
}

/// Who asks for which change.
struct Audit {
    actor: Actor,
    command: String,
    verb: &'static str,
    model: String,
}

impl Audit {
    /// Looked up at once: whoever asks may be gone when the answer is there.
    fn new(actor: Actor, verb: &'static str, model: String) -> Self {
        let command = std::fs::read(format!("/proc/{}/cmdline", actor.pid)).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
        Self { actor, command, verb, model }
    }

    fn write(self, outcome: &str) {
        let Self { actor: Actor { uid, user, pid }, command, verb, model } = self;
        let what = format!("{verb} {model}");
        let what = what.trim_end();
        tracing::info!(
            audit = true,
            uid,
            user,
            pid,
            command,
            verb,
            model,
            outcome,
            "audit: {user} (uid {uid}) by pid {pid} ({command}) asked: {what}: {outcome}",
        );
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    after: Option<u64>,
    last: Option<usize>,
    swap: Option<u64>,
    #[serde(default = "yes")]
    follow: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogsQuery {
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

async fn events(State(api): State<Api>, query: Result<Query<EventsQuery>, QueryRejection>) -> Response {
    let Query(query) = match query {
        Ok(query) => query,
        Err(rejection) => return malformed(rejection.status(), &rejection.body_text()),
    };
    let (kept, live) = match (query.after, query.last) {
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

async fn logs(
    State(api): State<Api>,
    name: Result<UrlPath<String>, PathRejection>,
    query: Result<Query<LogsQuery>, QueryRejection>,
) -> Response {
    let (name, query) = match (name, query) {
        (Ok(UrlPath(name)), Ok(Query(query))) => (name, query),
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

impl Api {
    async fn ask<T>(&self, message: Message, answer: oneshot::Receiver<T>) -> Option<T> {
        self.driver.send(message).await.ok()?;
        tokio::time::timeout(DRIVER, answer).await.ok()?.ok()
    }

    /// Looks up what a decision needs, outside the driver, and has it decided.
    async fn decide(&self, request: Request, by: Option<Actor>) -> Option<Answer> {
        let looked = self.looker.look(&request).await;
        let (reply, answer) = oneshot::channel();
        let decide = Decide { request, by, looked, reply };
        self.driver.send(Message::Decide(Box::new(decide))).await.ok()?;
        tokio::time::timeout(DECISION, answer).await.ok()?.ok()
    }
}

fn refused(report: PlanReport) -> Response {
    let (code, text, hints) = match refusal(&report) {
        Some(refusal) => (refusal.code.clone(), refusal.text.clone(), refusal.hints.clone()),
        None => ("refused".to_owned(), "it was refused".to_owned(), Vec::new()),
    };
    let status = StatusCode::CONFLICT;
    let body = ApiProblem { status: status.as_u16(), code, title: text, hints, plan: Some(report) };
    as_problem(status, &body)
}

/// What can be asked for, with the name in it.
trait Asked {
    fn name(&self) -> Option<&String>;
}

impl Asked for Request {
    fn name(&self) -> Option<&String> {
        self.model.as_ref()
    }
}

/// A request, or the answer to what is none.
#[allow(clippy::result_large_err)]
fn understood<T: Asked>(request: Result<Json<T>, JsonRejection>) -> Result<T, Response> {
    match request {
        Ok(Json(request)) if request.name().is_some_and(|name| name.len() > LONGEST_NAME) => {
            let text = format!("no name has more than {LONGEST_NAME} bytes");
            Err(malformed(StatusCode::BAD_REQUEST, &text))
        }
        Ok(Json(request)) => Ok(request),
        Err(rejection) => Err(malformed(rejection.status(), &rejection.body_text())),
    }
}

fn malformed(status: StatusCode, why: &str) -> Response {
    problem(status, "bad_request", why, &[])
}

fn no_answer() -> Response {
    let hint = "journalctl -u berthd -n 50".to_owned();
    problem(StatusCode::SERVICE_UNAVAILABLE, "no_answer", "berthd's driver does not answer", &[hint])
}

fn problem(status: StatusCode, code: &str, title: &str, hints: &[String]) -> Response {
    let body = ApiProblem {
        status: status.as_u16(),
        code: code.to_owned(),
        title: title.to_owned(),
        hints: hints.to_vec(),
        plan: None,
    };
    as_problem(status, &body)
}

fn as_problem(status: StatusCode, body: &ApiProblem) -> Response {
    let json = serde_json::to_string(body).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, "application/problem+json")], json).into_response()
}
