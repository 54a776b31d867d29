//! Browsers that are signed in: `berthctl dashboard` gives an address that does it once, a cookie keeps it. Forgotten when
//! berthd ends.

use std::fs::File;
use std::io::{self, Read as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::{Extension, Query, State};
use axum::http::header::{CACHE_CONTROL, COOKIE, LOCATION, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use berth_core::proxy::KeyHash;
use berth_core::report::{Actor, Rights, SCHEMA, SignIn};
use serde::Deserialize;
use tokio::time::Instant;

use super::caller::Caller;
use super::openapi::Problems;
use super::{Api, problem};

/// How long an address that signs in may be used.
const CODE: Duration = Duration::from_mins(5);
/// How long a browser stays signed in.
const STAY: Duration = Duration::from_hours(12);
/// How many of each are kept; the oldest gives way.
const MOST: usize = 100;
/// The cookie's name.
const NAME: &str = "berth_session";

/// Who is signed in. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Sessions(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    codes: Vec<Entry>,
    browsers: Vec<Entry>,
}

/// What opens something for somebody, until then.
#[derive(Debug, Clone)]
struct Entry {
    secret: KeyHash,
    actor: Actor,
    rights: Rights,
    until: Instant,
}

impl Sessions {
    /// A code that signs in once.
    fn invite(&self, actor: Actor, rights: Rights) -> io::Result<String> {
        add(&mut self.lock().codes, actor, rights, CODE)
    }

    /// The cookie's value, for who shows a code.
    fn sign_in(&self, code: &str) -> Option<io::Result<String>> {
        let mut inner = self.lock();
        let at = place(&inner.codes, code)?;
        let Entry { actor, rights, .. } = inner.codes.remove(at);
        tracing::info!(user = actor.user, rights = rights.as_str(), "signed in at the dashboard");
        Some(add(&mut inner.browsers, actor, rights, STAY))
    }

    /// Whose cookie this is.
    pub(super) fn find(&self, cookie: &str) -> Option<(Actor, Rights)> {
        let inner = self.lock();
        let entry = inner.browsers.get(place(&inner.browsers, cookie)?)?;
        Some((entry.actor.clone(), entry.rights))
    }

    fn sign_out(&self, cookie: &str) {
        let mut inner = self.lock();
        if let Some(at) = place(&inner.browsers, cookie) {
            inner.browsers.remove(at);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here leaves a list half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds somebody, and gives the secret.
fn add(entries: &mut Vec<Entry>, actor: Actor, rights: Rights, keep: Duration) -> io::Result<String> {
    let mut chance = [0_u8; 24];
    File::open("/dev/urandom")?.read_exact(&mut chance)?;
    // As digits: whatever is as hard to guess will do.
    let secret = KeyHash::of(&chance).to_string();
    let now = Instant::now();
    entries.retain(|entry| entry.until > now);
    if entries.len() >= MOST {
        entries.remove(0);
    }
    entries.push(Entry { secret: KeyHash::of(secret.as_bytes()), actor, rights, until: now + keep });
    Ok(secret)
}

fn place(entries: &[Entry], secret: &str) -> Option<usize> {
    let (hash, now) = (KeyHash::of(secret.as_bytes()), Instant::now());
    // All are looked at, whichever it is.
    let known = |known, (at, entry): (usize, &Entry)| if entry.secret.is(&hash) { Some(at) } else { known };
    entries.iter().enumerate().fold(None, known).filter(|at| entries[*at].until > now)
}

/// The session in a Cookie header.
pub(super) fn cookie(header: &HeaderValue) -> Option<&str> {
    let pairs = header.to_str().ok()?.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs.into_iter().find(|(name, _)| *name == NAME).map(|(_, value)| value)
}

/// An address that signs a browser in, once, as who asks for it.
#[utoipa::path(post, path = "/api/v1/session", tag = "session", responses((status = 200, body = SignIn), Problems))]
pub(super) async fn invite(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Response {
    let Some(actor) = caller.actor else {
        let text = "nobody is signed in, so nobody can be signed in elsewhere";
        return problem(StatusCode::FORBIDDEN, "not_signed_in", text, &["berthctl dashboard".to_owned()]);
    };
    let Some(at) = api.settings.http.listen.first() else {
        let text = "berthd serves no dashboard: it listens on its unix socket alone";
        let hint = "name an address in `listen` of [http] in berth.toml".to_owned();
        return problem(StatusCode::CONFLICT, "no_listener", text, &[hint]);
    };
    let host = if at.ip().is_unspecified() {
        format!("{}:{}", api.settings.node, at.port())
    } else {
        at.to_string()
    };
    match api.sessions.invite(actor, caller.rights) {
        Ok(code) => {
            let url = format!("http://{host}/login?code={code}");
            let expires_in_s = CODE.as_secs();
            Json(SignIn { schema: SCHEMA, url, rights: caller.rights, expires_in_s }).into_response()
        }
        Err(error) => no_chance(&error),
    }
}

#[derive(Deserialize)]
pub(super) struct LoginQuery {
    #[serde(default)]
    code: String,
}

/// `GET /login?code=`: signs a browser in and sends it on.
pub(super) async fn login(State(api): State<Api>, Query(LoginQuery { code }): Query<LoginQuery>) -> Response {
    match api.sessions.sign_in(&code) {
        Some(Ok(secret)) => moved(&secret, STAY),
        Some(Err(error)) => no_chance(&error),
        None => {
            let text = "this address was used already, or is too old. Another one: berthctl dashboard\n";
            (StatusCode::FORBIDDEN, [(CACHE_CONTROL, "no-store")], text).into_response()
        }
    }
}

/// Signs a browser out.
#[utoipa::path(delete, path = "/api/v1/session", tag = "session", responses((status = 204, description = "It is signed out"), Problems))]
pub(super) async fn logout(State(api): State<Api>, headers: HeaderMap) -> Response {
    for cookie in headers.get_all(COOKIE).iter().filter_map(cookie) {
        api.sessions.sign_out(cookie);
    }
    let mut response = moved("", Duration::ZERO);
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// To the dashboard, with this cookie. No script sees it, and no other site's request carries it.
fn moved(secret: &str, keep: Duration) -> Response {
    let cookie = format!("{NAME}={secret}; Path=/; HttpOnly; SameSite=Strict; Max-Age={}", keep.as_secs());
    let headers = [(LOCATION, "/".to_owned()), (SET_COOKIE, cookie), (CACHE_CONTROL, "no-store".to_owned())];
    (StatusCode::SEE_OTHER, headers).into_response()
}

fn no_chance(error: &io::Error) -> Response {
    let text = format!("/dev/urandom can't be read: {error}");
    problem(StatusCode::INTERNAL_SERVER_ERROR, "no_chance", &text, &[])
}
