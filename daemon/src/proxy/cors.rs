//! Pages of other origins that ask from a browser. Without a declaration none can: what a model's server says to browsers is
//! about itself, and does not go on to them.

use berth_core::proxy::Refused;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HOST, HeaderName, HeaderValue, ORIGIN,
    VARY,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};

/// What a server says to browsers.
const SAID: [HeaderName; 7] = [
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN,
    HeaderName::from_static("access-control-allow-private-network"),
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
];

/// What browsers say of where a request comes from, and what its answer is for.
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const DESTINATION: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// All origins, in the declaration and to browsers.
const ALL: &str = "*";

/// One request, from wherever.
#[derive(Debug)]
pub(super) struct Cors<'c> {
    declared: &'c [String],
    origin: Option<HeaderValue>,
}

impl<'c> Cors<'c> {
    /// A request with these headers, where these origins are declared.
    pub(super) fn of(declared: &'c [String], headers: &HeaderMap) -> Self {
        Self { declared, origin: headers.get(ORIGIN).cloned() }
    }

    /// The answer to a browser that asks whether a page may ask. It shows no key.
    pub(super) fn preflight<B>(
        &self,
        request: &Request<B>,
    ) -> Option<Result<Response<Full<Bytes>>, Refused>> {
        let origin = self.origin.as_ref().filter(|_| !self.declared.is_empty())?;
        let asks = request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if request.method() != Method::OPTIONS || !asks {
            return None;
        }
        if !self.may() {
            return Some(Err(refused(origin)));
        }
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE");
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        // Whichever: a `*` would not stand for `Authorization`.
        if let Some(asked) = request.headers().get(ACCESS_CONTROL_REQUEST_HEADERS) {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
        headers.append(VARY, HeaderValue::from(ACCESS_CONTROL_REQUEST_HEADERS));
        self.allow(headers);
        Some(Ok(response))
    }

    /// Refuses what another page asks that is not declared. Its browser would not let it read the answer; but to ask is
    /// enough to have a model loaded. A page of this very address, a server's own, may.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let is = |name: &HeaderName, value: &str| {
            headers.get(name).is_some_and(|is| is.as_bytes() == value.as_bytes())
        };
        let own = |origin: &HeaderValue| {
            let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
            origin.is_some_and(|(_, address)| is(&HOST, address))
        };
        match &self.origin {
            Some(origin) if !self.may() && !own(origin) => Err(refused(origin)),
            // Images, scripts and frames of a page say no origin. What somebody opens is none of them.
            None if !self.to_all() && is(&SITE, "cross-site") && !is(&DESTINATION, "document") => {
                Err(refused(&HeaderValue::from_static("another site")))
            }
            _ => Ok(()),
        }
    }

    /// Says in an answer who may read it, and nothing that its server says of that.
    pub(super) fn mark(&self, headers: &mut HeaderMap) {
        for said in SAID {
            headers.remove(said);
        }
        self.allow(headers);
    }

    fn allow(&self, headers: &mut HeaderMap) {
        let to_all = self.to_all();
        if !self.declared.is_empty() && !to_all {
            headers.append(VARY, HeaderValue::from(ORIGIN));
        }
        let Some(origin) = self.origin.as_ref().filter(|_| self.may()) else { return };
        if to_all {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static(ALL));
        } else {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        let exposed = HeaderValue::from_static("retry-after, x-berth-instead-of, x-berth-model");
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }

    /// Whether its page may ask.
    fn may(&self) -> bool {
        let named = |origin: &HeaderValue| self.declared.iter().any(|declared| *declared == *origin);
        self.to_all() || self.origin.as_ref().is_some_and(named)
    }

    fn to_all(&self) -> bool {
        self.declared.iter().any(|declared| declared == ALL)
    }
}

fn refused(origin: &HeaderValue) -> Refused {
    let text = format!(
        "pages of {} may not ask here; `cors` in [proxy] of berth.toml names those that may",
        String::from_utf8_lossy(origin.as_bytes())
    );
    Refused { status: 403, code: "origin_not_allowed", text, retry_after: None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const CHAT: &str = "https://chat.example";

    fn asked(headers: &[(&'static str, &'static str)]) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = Method::OPTIONS;
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_static(value));
        }
        request
    }

    /// What an answer says to a page of this origin, whose server would let all pages read it with all that they know.
    fn said(declared: &[&str], origin: Option<&'static str>) -> Vec<String> {
        let declared: Vec<String> = declared.iter().map(|&origin| origin.to_owned()).collect();
        let headers: Vec<_> = origin.into_iter().map(|origin| ("origin", origin)).collect();
        let mut answer = HeaderMap::new();
        for (name, value) in [
            ("access-control-allow-origin", "*"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-private-network", "true"),
            ("vary", "accept"),
            ("x-other", "1"),
        ] {
            answer.insert(name, HeaderValue::from_static(value));
        }
        Cors::of(&declared, asked(&headers).headers()).mark(&mut answer);
        let mut all: Vec<String> =
            answer.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        all.retain(|line| !line.starts_with("access-control-expose-headers: "));
        all.sort();
        all
    }

    #[test]
    fn who_is_declared_may_read_and_nobody_else() {
        let (other, none): (_, &[&str]) = ("https://other.example", &[]);
        assert_eq!(said(none, Some(CHAT)), ["vary: accept", "x-other: 1"]);
        let credentials = "access-control-allow-credentials: true";
        let allowed = "access-control-allow-origin: https://chat.example";
        for declared in [&[CHAT] as &[&str], &[other, CHAT]] {
            let wanted = [credentials, allowed, "vary: accept", "vary: origin", "x-other: 1"];
            assert_eq!(said(declared, Some(CHAT)), wanted);
        }
        for stranger in
            ["https://chat.example.evil", "https://Chat.example", "http://chat.example", "null", "*", ""]
        {
            let wanted = ["vary: accept", "vary: origin", "x-other: 1"];
            assert_eq!(said(&[CHAT], Some(stranger)), wanted, "{stranger}");
        }
        assert_eq!(said(&[CHAT], None), ["vary: accept", "vary: origin", "x-other: 1"]);
        // For all, and without what a browser knows.
        let wanted = ["access-control-allow-origin: *", "vary: accept", "x-other: 1"];
        assert_eq!(said(&["*"], Some(other)), wanted);
        assert_eq!(said(&["*"], None), ["vary: accept", "x-other: 1"]);
    }

    #[test]
    fn a_page_that_is_not_declared_can_not_even_ask() {
        let (chat, all, none) = (vec![CHAT.to_owned()], vec![ALL.to_owned()], Vec::new());
        let host = ("host", "10.10.10.1:8010");
        let foreign = ("sec-fetch-site", "cross-site");
        for (declared, headers, admitted) in [
            (&none, vec![host], true),
            (&none, vec![host, ("origin", CHAT)], false),
            (&none, vec![host, ("origin", "null")], false),
            (&none, vec![host, ("origin", "http://10.10.10.1:8010")], true),
            (&none, vec![host, ("origin", "http://10.10.10.1:8011")], false),
            (&none, vec![("origin", "http://")], false),
            (&none, vec![host, foreign], false),
            (&none, vec![host, foreign, ("sec-fetch-dest", "iframe")], false),
            (&none, vec![host, foreign, ("sec-fetch-dest", "document")], true),
            (&none, vec![host, ("sec-fetch-site", "same-origin")], true),
            (&chat, vec![host, ("origin", CHAT), foreign], true),
            (&chat, vec![host, ("origin", "https://other.example")], false),
            (&chat, vec![host, foreign], false),
            (&all, vec![host, ("origin", CHAT)], true),
            (&all, vec![host, foreign], true),
        ] {
            let request = asked(&headers);
            let answer = Cors::of(declared, request.headers()).admit(request.headers());
            assert_eq!(answer.is_ok(), admitted, "{declared:?} {headers:?}");
        }
    }

    #[test]
    fn a_browser_that_asks_before_is_answered() {
        let declared = [CHAT.to_owned()];
        let method = ("access-control-request-method", "POST");
        let headers = ("access-control-request-headers", "authorization,content-type");
        let answer = |declared: &[String], request: &Request<()>| {
            Cors::of(declared, request.headers()).preflight(request)
        };
        let asks = asked(&[("origin", CHAT), method, headers]);
        let allowed = answer(&declared, &asks).unwrap().unwrap();
        assert_eq!(allowed.status(), 204);
        for (name, value) in [
            ("access-control-allow-origin", CHAT),
            ("access-control-allow-headers", headers.1),
            ("access-control-allow-methods", "GET, HEAD, POST, PUT, PATCH, DELETE"),
        ] {
            assert_eq!(allowed.headers()[name], value);
        }
        let stranger = answer(&declared, &asked(&[("origin", "https://other.example"), method]));
        let refused = stranger.unwrap().unwrap_err();
        assert_eq!((refused.status, refused.code), (403, "origin_not_allowed"));
        assert!(refused.text.starts_with("pages of https://other.example may not"), "{}", refused.text);
        // Whoever is no browser, or asks where nothing is declared, is a client like others.
        assert!(answer(&[], &asks).is_none());
        assert!(answer(&declared, &asked(&[method])).is_none());
        assert!(answer(&declared, &asked(&[("origin", CHAT)])).is_none());
        let mut post = asks;
        *post.method_mut() = Method::POST;
        assert!(answer(&declared, &post).is_none());
    }
}
