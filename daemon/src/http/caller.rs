//! Who asks, and what they may do: by the peer's credentials on the unix socket, by token or session over TCP.

use std::ffi::CString;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{Extension, FromRequestParts, Request, State};
use axum::http::header::{AUTHORIZATION, COOKIE, WWW_AUTHENTICATE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use berth_core::config::{Access, Settings};
use berth_core::proxy::KeyHash;
use berth_core::report::{Actor, Rights, SCHEMA, Session};
use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};
use tokio::net::unix::UCred;
use tokio::time::timeout;
use utoipa_axum::router::OpenApiRouter;

use super::openapi::Problems;
use super::session::{self, Sessions};
use super::{Api, LARGEST_REQUEST, guard, malformed, problem};

/// How long a request's body may take to come in.
const BODY: Duration = Duration::from_secs(30);

/// The way by which somebody asks.
#[derive(Debug, Clone)]
pub(super) enum Via {
    /// The unix socket, whose peer the kernel knows.
    Socket(UCred),
    /// TCP.
    Tcp {
        /// The address at which berthd listens.
        at: SocketAddr,
        /// Whence.
        from: SocketAddr,
    },
}

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Who it is; None for who shows nothing.
    pub(super) actor: Option<Actor>,
    /// What they may do.
    pub(super) rights: Rights,
    /// The command line of the asking process, or its address.
    pub(super) from: String,
}

/// Who asks for a change.
pub(super) struct By {
    /// Who it is.
    pub(super) actor: Actor,
    /// As in [`Caller`].
    pub(super) from: String,
}

impl<S: Sync> FromRequestParts<S> for By {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        let Some(caller) = parts.extensions.get::<Caller>() else { return Err(super::no_answer()) };
        match caller.actor.clone() {
            Some(actor) => Ok(Self { actor, from: caller.from.clone() }),
            None => Err(denied(caller, Rights::Operate)),
        }
    }
}

/// Lets in who may come in, tells the handlers who it is, and reads the body.
pub(super) async fn identify(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let settings = api.declared.now();
    let via = request.extensions().get::<Via>().cloned();
    let caller = match via {
        Some(Via::Socket(peer)) => peer_caller(peer, &api.access).await,
        Some(Via::Tcp { at, from }) => {
            if let Err(refused) = guard::check(&request, &settings) {
                return refused;
            }
            match shown(request.headers(), &settings, &api.sessions, at, from) {
                Ok(caller) => caller,
                Err(refused) => return refused,
            }
        }
        None => return super::no_answer(),
    };
    request.extensions_mut().insert(caller);
    let (head, body) = request.into_parts();
    let body = match timeout(BODY, to_bytes(body, LARGEST_REQUEST)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let text = format!("no request is longer than {} KiB", LARGEST_REQUEST >> 10);
            return malformed(StatusCode::PAYLOAD_TOO_LARGE, &text);
        }
        Err(_) => {
            let text = format!("the body did not come within {} s", BODY.as_secs());
            return malformed(StatusCode::REQUEST_TIMEOUT, &text);
        }
    };
    next.run(Request::from_parts(head, Body::from(body))).await
}

/// These routes, for who may do so much.
pub(super) fn needing(rights: Rights, routes: OpenApiRouter<Api>) -> OpenApiRouter<Api> {
    let check = move |Extension(caller): Extension<Caller>, request: Request, next: Next| async move {
        if caller.rights >= rights { next.run(request).await } else { denied(&caller, rights) }
    };
    routes.route_layer(middleware::from_fn(check))
}

/// Who asks, and what they may do.
#[utoipa::path(get, path = "/api/v1/session", tag = "session", responses((status = 200, body = Session), Problems))]
pub(super) async fn session(Extension(caller): Extension<Caller>) -> Json<Session> {
    let user = caller.actor.map(|actor| actor.user);
    Json(Session { schema: SCHEMA, user, rights: caller.rights })
}

fn denied(caller: &Caller, needed: Rights) -> Response {
    let needed = needed.as_str();
    let Some(actor) = &caller.actor else {
        let text = format!("this needs the right `{needed}`, and nothing was shown that gives it");
        let hints = [
            "for a browser: berthctl dashboard".to_owned(),
            "for a program: Authorization: Bearer TOKEN; an operator makes one: berthctl token NAME"
                .to_owned(),
        ];
        return unknown("not_signed_in", &text, &hints);
    };
    let text = format!(
        "this needs the right `{needed}`; {} has `{}`. Rights are given in [rights] and [http.tokens] of berth.toml",
        actor.user,
        caller.rights.as_str()
    );
    problem(StatusCode::FORBIDDEN, "not_allowed", &text, &[])
}

fn unknown(code: &str, text: &str, hints: &[String]) -> Response {
    let mut response = problem(StatusCode::UNAUTHORIZED, code, text, hints);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// By what is shown in the request's head.
#[allow(clippy::result_large_err)]
fn shown(
    headers: &HeaderMap,
    settings: &Settings,
    sessions: &Sessions,
    at: SocketAddr,
    from: SocketAddr,
) -> Result<Caller, Response> {
    let from = from.to_string();
    if let Some(value) = headers.get(AUTHORIZATION) {
        let hash = value.as_bytes().strip_prefix(b"Bearer ").map(KeyHash::of);
        // All are looked at, whichever it is.
        let known = settings.http.tokens.iter().fold(None, |known, token| {
            if hash.as_ref().is_some_and(|hash| token.hash.is(hash)) { Some(token) } else { known }
        });
        let Some(token) = known else {
            let text = "this token is none of those that are declared";
            let hints = ["an operator makes one: berthctl token NAME".to_owned()];
            return Err(unknown("invalid_token", text, &hints));
        };
        let actor = Actor { user: format!("token {}", token.name), uid: None, pid: None };
        return Ok(Caller { actor: Some(actor), rights: token.rights, from });
    }
    let cookie = headers.get_all(COOKIE).iter().find_map(session::cookie);
    if let Some((actor, rights)) = cookie.and_then(|cookie| sessions.find(cookie)) {
        return Ok(Caller { actor: Some(actor), rights, from });
    }
    Ok(Caller { actor: None, rights: settings.http.anonymous(at), from })
}

async fn peer_caller(peer: UCred, access: &Access) -> Caller {
    let access = access.clone();
    // Names may come from the network.
    let looked = tokio::task::spawn_blocking(move || {
        let uid = Uid::from_raw(peer.uid());
        let user = User::from_uid(uid).ok().flatten().map(|user| user.name);
        let groups = if access.who.is_empty() { Vec::new() } else { groups(user.as_deref(), peer.gid()) };
        let user = user.unwrap_or_else(|| format!("uid {uid}"));
        // Who could end berthd anyway and run another.
        let is_berthds = uid == geteuid();
        let rights = if is_berthds { Rights::Operate } else { access.of(peer.uid(), &user, &groups) };
        let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok());
        let command =
            pid.and_then(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).ok()).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
        Caller { actor: Some(Actor { user, uid: Some(peer.uid()), pid }), rights, from: command }
    });
    let nobody = Caller { actor: None, rights: Rights::None, from: String::new() };
    looked.await.unwrap_or(nobody)
}

/// The names of a user's groups.
fn groups(user: Option<&str>, gid: u32) -> Vec<String> {
    let own = Gid::from_raw(gid);
    let name = user.and_then(|user| CString::new(user).ok());
    let mut all = name.and_then(|name| getgrouplist(&name, own).ok()).unwrap_or_default();
    all.push(own);
    all.into_iter().filter_map(|gid| Some(Group::from_gid(gid).ok()??.name)).collect()
}
