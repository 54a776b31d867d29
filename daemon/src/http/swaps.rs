//! Plans and swaps over the control API: foretold, begun, looked at, cancelled.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use berth_core::report::{Accepted, ApiProblem, PlanReport, Refusal, Request, SwapSummary};
use tokio::sync::oneshot;

use super::audit::Audit;
use super::caller::By;
use super::openapi::Problems;
use super::{Api, Asked, as_problem, malformed, no_answer, problem, understood};
use crate::driver::{Answer, Message, refusal, unknown};

impl Asked for Request {
    fn name(&self) -> Option<&String> {
        self.model.as_ref()
    }
}

/// One swap, under way or ended.
#[utoipa::path(get, path = "/api/v1/swaps/{id}", tag = "swaps", params(("id" = u64, Path, description = "Its number")), responses((status = 200, body = SwapSummary), Problems))]
pub(super) async fn one(State(api): State<Api>, id: Result<Path<String>, PathRejection>) -> Response {
    let id = match number(id) {
        Ok(id) => id,
        Err(problem) => return *problem,
    };
    let (reply, answer) = oneshot::channel();
    match api.ask(Message::SwapById(id, reply), answer).await {
        Some(Some(swap)) => Json(swap).into_response(),
        Some(None) => refused_with(&unknown(id)),
        None => no_answer(),
    }
}

/// Cancels a change that is under way: what it stopped is started again, once memory is proved free. Needs `operate`.
#[utoipa::path(delete, path = "/api/v1/swaps/{id}", tag = "swaps", params(("id" = u64, Path, description = "Its number")), responses((status = 202, body = SwapSummary, description = "It is called off, and this is how far it is"), Problems))]
pub(super) async fn cancel(
    State(api): State<Api>,
    by: By,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    let id = match number(id) {
        Ok(id) => id,
        Err(problem) => return *problem,
    };
    // In a task of its own: the asker may vanish, what was asked for and who asked may not.
    match tokio::spawn(cancelled(api, id, by)).await {
        Ok(response) => response,
        Err(_) => no_answer(),
    }
}

async fn cancelled(api: Api, id: u64, by: By) -> Response {
    let audit = Audit::new(by, "cancel", format!("swap {id}"));
    let (reply, answer) = oneshot::channel();
    let (outcome, response) = match api.ask(Message::Cancel(id, audit.actor().clone(), reply), answer).await {
        Some(Ok(swap)) => ("called off".to_owned(), (StatusCode::ACCEPTED, Json(swap)).into_response()),
        Some(Err(refusal)) => (format!("refused: {}", refusal.text), refused_with(&refusal)),
        None => ("berthd did not answer".to_owned(), no_answer()),
    };
    audit.write(&outcome);
    response
}

fn refused_with(refusal: &Refusal) -> Response {
    let unknown = refusal.code == "unknown_swap";
    let status = if unknown { StatusCode::NOT_FOUND } else { StatusCode::CONFLICT };
    problem(status, &refusal.code, &refusal.text, &refusal.hints)
}

fn number(id: Result<Path<String>, PathRejection>) -> Result<u64, Box<Response>> {
    let id = id.ok().and_then(|id| id.parse().ok());
    id.ok_or_else(|| Box::new(malformed(StatusCode::BAD_REQUEST, "a swap's id is a number")))
}

/// What a change would do; touches nothing. Needs `plan`.
#[utoipa::path(post, path = "/api/v1/plan", tag = "swaps", request_body = Request, responses((status = 200, body = PlanReport), Problems))]
pub(super) async fn dry_run(
    State(api): State<Api>,
    request: Result<Json<Request>, JsonRejection>,
) -> Response {
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

/// Begins a change. Needs `operate`. It goes on though the asker vanishes; `GET /api/v1/events` tells how.
#[utoipa::path(post, path = "/api/v1/swaps", tag = "swaps", request_body = Request, responses((status = 202, body = Accepted), Problems))]
pub(super) async fn begin(
    State(api): State<Api>,
    by: By,
    request: Result<Json<Request>, JsonRejection>,
) -> Response {
    let request = match understood(request) {
        Ok(request) => request,
        Err(problem) => return problem,
    };
    // In a task of its own: the asker may vanish, what was asked for and who asked may not.
    match tokio::spawn(asked(api, request, by)).await {
        Ok(response) => response,
        Err(_) => no_answer(),
    }
}

/// Has a change decided, and writes down who asked for it.
async fn asked(api: Api, request: Request, by: By) -> Response {
    let set: Vec<String> = request.set.iter().map(|(key, value)| format!(" --set {key}={value}")).collect();
    let model = request.model.clone().unwrap_or_default() + &set.concat();
    let audit = Audit::new(by, request.verb.as_str(), model);
    let answer = api.decide(request, Some(audit.actor().clone())).await;
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

fn refused(report: PlanReport) -> Response {
    let (code, text, hints) = match refusal(&report) {
        Some(refusal) => (refusal.code.clone(), refusal.text.clone(), refusal.hints.clone()),
        None => ("refused".to_owned(), "it was refused".to_owned(), Vec::new()),
    };
    let status = StatusCode::CONFLICT;
    let body = ApiProblem { status: status.as_u16(), code, title: text, hints, plan: Some(report) };
    as_problem(status, &body)
}
