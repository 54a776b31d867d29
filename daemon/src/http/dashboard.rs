//! The dashboard: the page that was built from `dashboard/` and lies in this binary, and a plain one, which takes its
//! place where none was built.

mod plain;

use axum::Router;
use axum::extract::Path as UrlPath;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use utoipa_axum::router::OpenApiRouter;

use super::{Api, problem};

/// One file of the built page.
struct File {
    /// Below the page's root.
    path: &'static str,
    /// Changes when it does.
    tag: &'static str,
    bytes: &'static [u8],
    gzip: Option<&'static [u8]>,
}

include!(concat!(env!("OUT_DIR"), "/dashboard.rs"));

const INDEX: &str = "index.html";

/// Names of what lies below `assets/` change with what is in it.
const FOR_EVER: &str = "public, max-age=31536000, immutable";
const ASK_AGAIN: &str = "no-cache";

/// The page's own files, which tell nothing of this machine.
pub(super) fn files() -> Router<Api> {
    let files = Router::new()
        .route("/plain.css", get(plain::style))
        .route("/favicon.svg", get(async |headers: HeaderMap| file("favicon.svg", &headers)))
        .route(
            "/assets/{name}",
            get(async |UrlPath(name): UrlPath<String>, headers: HeaderMap| {
                file(&format!("assets/{name}"), &headers)
            }),
        );
    match find(INDEX) {
        Some(_) => files.route("/", get(async |headers: HeaderMap| file(INDEX, &headers))),
        None => files,
    }
}

/// The plain page, for those who may see how the machine is.
pub(super) fn plain() -> OpenApiRouter<Api> {
    // No resource of the API, so it is not described.
    let plain = OpenApiRouter::new().route("/plain", get(plain::page));
    if find(INDEX).is_some() { plain } else { plain.route("/", get(plain::page)) }
}

/// Says so where the dashboard is not in this binary.
pub(super) fn announce() {
    if find(INDEX).is_none() {
        tracing::info!("{}", plain::NOT_BUILT);
    }
}

fn find(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}

fn file(path: &str, headers: &HeaderMap) -> Response {
    match find(path) {
        Some(file) => file.answer(headers),
        None => problem(StatusCode::NOT_FOUND, "not_found", "no such file of the dashboard", &[]),
    }
}

impl File {
    fn answer(&self, headers: &HeaderMap) -> Response {
        let said = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let gzip = self.gzip.filter(|_| takes_gzip(said(header::ACCEPT_ENCODING)));
        let tag = format!("\"{}{}\"", self.tag, if gzip.is_some() { "-gzip" } else { "" });
        let kept = if self.path.starts_with("assets/") { FOR_EVER } else { ASK_AGAIN };
        let known = said(header::IF_NONE_MATCH).split(',').any(|known| known.trim() == tag);
        let about = [
            (header::ETAG, tag),
            (header::CACHE_CONTROL, kept.to_owned()),
            (header::VARY, "accept-encoding".to_owned()),
        ];
        if known {
            return (StatusCode::NOT_MODIFIED, about).into_response();
        }
        let typed = [(header::CONTENT_TYPE, content_type(self.path))];
        match gzip {
            Some(gzip) => (about, typed, [(header::CONTENT_ENCODING, "gzip")], gzip).into_response(),
            None => (about, typed, self.bytes).into_response(),
        }
    }
}

/// Whether an `Accept-Encoding` has gzip in it, and not with a weight of nothing.
fn takes_gzip(accepted: &str) -> bool {
    accepted.split(',').any(|part| {
        let mut part = part.split(';').map(str::trim);
        part.next().is_some_and(|coding| coding.eq_ignore_ascii_case("gzip"))
            && part.all(|weight| !matches!(weight, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SCRIPT: File =
        File { path: "assets/page.js", tag: "12ab", bytes: b"whole", gzip: Some(b"packed".as_slice()) };

    async fn answer(file: &File, asked: &[(&'static str, &str)]) -> (Response, Vec<u8>) {
        let mut headers = HeaderMap::new();
        for (name, value) in asked {
            headers.insert(*name, value.parse().unwrap());
        }
        let (parts, body) = file.answer(&headers).into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec();
        (Response::from_parts(parts, axum::body::Body::empty()), bytes)
    }

    fn header<'a>(answer: &'a Response, name: &str) -> &'a str {
        answer.headers().get(name).map_or("", |value| value.to_str().unwrap())
    }

    #[tokio::test]
    async fn a_file_is_packed_for_those_who_take_it_and_sent_once() {
        let (whole, bytes) = answer(&SCRIPT, &[("accept-encoding", "br, gzip;q=0")]).await;
        assert_eq!((bytes.as_slice(), header(&whole, "content-encoding")), (b"whole".as_slice(), ""));
        assert_eq!(header(&whole, "content-type"), "text/javascript; charset=utf-8");
        let (packed, bytes) = answer(&SCRIPT, &[("accept-encoding", "br;q=1.0, GZIP;q=0.8")]).await;
        assert_eq!((bytes.as_slice(), header(&packed, "content-encoding")), (b"packed".as_slice(), "gzip"));
        assert_ne!(header(&whole, "etag"), header(&packed, "etag"));

        let (again, bytes) = answer(&SCRIPT, &[("if-none-match", "\"x\", \"12ab\"")]).await;
        assert_eq!((again.status(), bytes.len()), (StatusCode::NOT_MODIFIED, 0));
        let (other, _) = answer(&SCRIPT, &[("if-none-match", "\"12ab-gzip\"")]).await;
        assert_eq!(other.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn only_what_changes_its_name_is_kept_for_ever() {
        let page = File { path: INDEX, tag: "1", bytes: b"<!doctype html>", gzip: None };
        let (page, _) = answer(&page, &[("accept-encoding", "gzip")]).await;
        assert_eq!(header(&page, "cache-control"), "no-cache");
        let (script, _) = answer(&SCRIPT, &[]).await;
        assert!(header(&script, "cache-control").ends_with("immutable"));
    }

    /// Where it was built: the page names what is there, and nothing of elsewhere.
    #[test]
    fn the_page_has_all_that_it_asks_for() {
        let Some(page) = find(INDEX) else { return };
        let text = std::str::from_utf8(page.bytes).unwrap();
        let named: Vec<&str> = text.split('"').filter(|word| word.starts_with("./")).collect();
        assert!(named.len() >= 3, "{text}");
        for name in named {
            assert!(find(name.trim_start_matches("./")).is_some(), "{name} is missing");
        }
        assert!(!text.contains("style=") && !text.contains("<style"), "{text}");
    }
}
