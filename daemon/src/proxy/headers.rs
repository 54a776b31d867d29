//! Headers on their way: what belongs to one connection does not go on to the next (RFC 9110, 7.6.1).

use hyper::HeaderMap;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};

/// `Expect` is answered here, where the body is read.
const HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What another protocol is asked for by, where it is.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = listed(headers).any(|option| option.eq_ignore_ascii_case("upgrade"));
    headers.get(UPGRADE).filter(|_| asked).cloned()
}

/// Removes what belongs to this connection; with `upgrade` the next one is asked for that protocol too.
pub(super) fn onward(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    // Two lengths would make two messages of one: what is chunked is told by its chunks (RFC 9112, 6.3).
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    // What `Connection` names too. Not what frames the message: that would make two of one.
    let named: Vec<HeaderName> = listed(headers)
        .filter_map(|option| HeaderName::from_bytes(option.as_bytes()).ok())
        .filter(|name| *name != CONTENT_LENGTH && *name != HOST)
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    headers.append(VIA, HeaderValue::from_static("1.1 berth"));
}

/// The options of `Connection`.
fn listed(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|option| !option.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs =
            all.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut map = HeaderMap::new();
        pairs.for_each(|(name, value)| _ = map.append(name, value));
        map
    }

    #[test]
    fn what_belongs_to_one_connection_stays_there() {
        let mut given = headers(&[
            ("connection", "close, X-Mine, content-length"),
            ("connection", "x-other"),
            ("x-mine", "1"),
            ("x-other", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("expect", "100-continue"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "Basic x"),
            ("content-length", "5"),
            ("authorization", "Bearer x"),
        ]);
        assert_eq!(upgrade(&given), None, "an upgrade that `Connection` does not name is none");
        onward(&mut given, None);
        let wanted = headers(&[("content-length", "5"), ("authorization", "Bearer x"), ("via", "1.1 berth")]);
        assert_eq!(given, wanted);
    }

    #[test]
    fn a_message_has_one_length() {
        let mut given = headers(&[("transfer-encoding", "chunked"), ("content-length", "5")]);
        onward(&mut given, None);
        assert_eq!(given, headers(&[("via", "1.1 berth")]));
    }

    #[test]
    fn an_upgrade_is_asked_for_again() {
        let mut given = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        let protocol = upgrade(&given);
        onward(&mut given, protocol);
        let wanted = headers(&[("connection", "upgrade"), ("upgrade", "websocket"), ("via", "1.1 berth")]);
        assert_eq!(given, wanted);
    }
}
