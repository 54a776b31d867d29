//! Keeps pages of other sites from asking through a browser of somebody who may: by the name under which berthd was reached,
//! and by whence the browser says that a request comes.

use axum::extract::Request;
use axum::http::header::{
    CONTENT_SECURITY_POLICY, HOST, HeaderName, ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use berth_core::config::Settings;

use super::{malformed, problem};

/// What browsers may do with what they get here: nothing but what berthd itself serves.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; font-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// Refuses what a browser sends on behalf of another site.
#[allow(clippy::result_large_err)]
pub(super) fn check(request: &Request, settings: &Settings) -> Result<(), Response> {
    let headers = request.headers();
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => text(&HOST),
    };
    let Some(host) = host else {
        return Err(malformed(StatusCode::BAD_REQUEST, "the request does not say to which host it is"));
    };
    if !is_ours(name(host), settings) {
        let shown: String = host.chars().take(100).collect();
        let text = format!("{shown:?} is no name by which berthd is reached");
        let hint = "add it to `hosts` in [http] of berth.toml".to_owned();
        return Err(problem(StatusCode::MISDIRECTED_REQUEST, "unknown_host", &text, &[hint]));
    }
    let own = |origin: &str| {
        let bare = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        bare.is_some_and(|bare| bare.eq_ignore_ascii_case(host))
    };
    let foreign_origin = headers.contains_key(ORIGIN) && !text(&ORIGIN).is_some_and(own);
    let fetch = |name: &'static str| text(&HeaderName::from_static(name));
    // Who follows a link comes from elsewhere and is welcome; frames and scripts of other sites are not.
    let follows = *request.method() == Method::GET
        && fetch("sec-fetch-mode") == Some("navigate")
        && fetch("sec-fetch-dest") == Some("document");
    let elsewhere = !matches!(fetch("sec-fetch-site"), None | Some("same-origin" | "none"));
    if foreign_origin || (elsewhere && !follows) {
        let text = "a page of another site asked for this";
        return Err(problem(StatusCode::FORBIDDEN, "origin_not_allowed", text, &[]));
    }
    Ok(())
}

/// Tells browsers what they may do with an answer.
pub(super) async fn mark(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_FRAME_OPTIONS, "DENY"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A host without its port.
fn name(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(address, _)| address),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

/// Addresses can't be made to point here by whoever owns a name; names can (DNS rebinding), but for these.
fn is_ours(name: &str, settings: &Settings) -> bool {
    name.parse::<std::net::IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || name.eq_ignore_ascii_case(&settings.node)
        || settings.http.hosts.iter().any(|host| name.eq_ignore_ascii_case(host))
}
