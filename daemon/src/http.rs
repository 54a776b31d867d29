//! The control API: HTTP on a unix socket and over TCP. Knows the driver's messages and core's report, nothing beneath.
//!
//! Who may connect to the socket is its mode; who may do what is in `[rights]` and `[http]` (`caller.rs`). Who asked for a
//! change goes into the journal (`audit.rs`).

mod audit;
mod caller;
mod configuration;
mod dashboard;
mod devices;
mod guard;
mod health;
mod history;
mod metrics;
mod openapi;
mod repair;
mod resources;
mod serve;
mod session;
mod streams;
mod swaps;

use std::borrow::Cow;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use berth_core::config::Access;
use berth_core::name::ModelName;
use berth_core::plan;
use berth_core::report::{Actor, ApiProblem, Request, Rights};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use self::session::Sessions;

use self::caller::needing;
use crate::declared::Declared;
use crate::driver::{Answer, Decide, Message};
use crate::events::Events;
use crate::history::Reader;
use crate::listen::{Opened, listening};
use crate::preflight::Looker;
use crate::scope::Scope;

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
    /// The past.
    pub history: Reader,
    /// Looks up what each decision needs.
    pub looker: Looker,
    /// What is declared.
    pub declared: Declared,
    /// Who may do what over the unix socket, as when it was bound: its mode goes with it, also after a reload.
    pub access: Access,
    /// The browsers that are signed in.
    pub sessions: Sessions,
}

/// Binds the control socket: for root and the group of operators, or for all where `[rights]` says who may do what.
pub fn bind(path: &Path, access: &Access) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    let mode = if access.who.is_empty() { 0o660 } else { 0o666 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// Serves requests until the process ends.
pub async fn serve(socket: UnixListener, tcp: Vec<Opened>, api: Api) {
    dashboard::announce();
    let routes = routes(&api);
    for (address, listener) in tcp {
        let (driver, routes) = (api.driver.clone(), routes.clone());
        tokio::spawn(async move {
            let listener = listening(address, listener, driver).await;
            tracing::info!(%address, "the dashboard and the control API are here");
            serve::tcp(listener, address, routes).await;
        });
    }
    serve::socket(socket, routes).await;
}

fn routes(api: &Api) -> Router {
    let (routes, document) = described().split_for_parts();
    let document = Bytes::from(document.to_json().unwrap_or_default());
    let document = move || async { ([(header::CONTENT_TYPE, "application/json")], document) };
    routes
        .merge(health::supervisors())
        .route("/login", get(session::login))
        .route("/api/v1/openapi.json", get(document))
        .merge(dashboard::files())
        .merge(needing(Rights::Read, dashboard::plain()))
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "not_found", "no such resource", &[]) })
        .method_not_allowed_fallback(|| async {
            let text = "this resource does not take this method";
            problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text, &[])
        })
        .layer(middleware::from_fn_with_state(api.clone(), caller::identify))
        .layer(middleware::from_fn(guard::mark))
        .with_state(api.clone())
}

/// The resources with their description.
fn described() -> OpenApiRouter<Api> {
    let open = OpenApiRouter::with_openapi(openapi::head()).routes(routes!(
        caller::session,
        session::invite,
        session::logout
    ));
    let read = OpenApiRouter::new()
        .routes(routes!(resources::status))
        .routes(routes!(resources::nodes))
        .routes(routes!(resources::devices))
        .routes(routes!(resources::models))
        .routes(routes!(resources::model))
        .routes(routes!(resources::placements))
        .routes(routes!(swaps::one))
        .routes(routes!(streams::events))
        .routes(routes!(streams::logs))
        .merge(history::routes())
        .merge(health::routes().merge(metrics::routes()).into());
    let plan = OpenApiRouter::new().routes(routes!(swaps::dry_run)).routes(routes!(configuration::check));
    let operate = OpenApiRouter::new()
        .routes(routes!(swaps::begin))
        .routes(routes!(swaps::cancel))
        .routes(routes!(configuration::reload))
        .routes(routes!(repair::repair))
        .routes(routes!(devices::clear));
    open.merge(needing(Rights::Read, read))
        .merge(needing(Rights::Plan, plan))
        .merge(needing(Rights::Operate, operate))
}

/// The description of the control API: OpenAPI 3.1, as JSON.
pub fn openapi_json() -> String {
    described().to_openapi().to_pretty_json().unwrap_or_default()
}

impl Api {
    /// The model of this name or alias, or why there is none.
    fn model(&self, name: &str) -> Result<ModelName, Box<Response>> {
        let settings = self.declared.now();
        let unnamed = name.parse().ok().and_then(|name| settings.model(&name));
        let state = berth_core::state::State::default();
        let declared = unnamed.map_or_else(|| plan::resolve(&settings, &state, name).map(Cow::Borrowed), Ok);
        declared.map(|model| model.name.clone()).map_err(|refusal| {
            Box::new(problem(StatusCode::NOT_FOUND, &refusal.code, &refusal.text, &refusal.hints))
        })
    }

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

/// What can be asked for, with the name in it.
trait Asked {
    fn name(&self) -> Option<&String>;
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
    let hint = format!("{} -u berthd -n 50", Scope::this().journalctl());
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
