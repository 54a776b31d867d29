//! What the proxy says itself: refusals as the client's library understands them, and the list of models.

use berth_core::config::DEFAULT_ALIAS;
use berth_core::name::ModelName;
use berth_core::proxy::{Dialect, Directory, Entry, Refused};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::keys::May;

/// A refusal in the client's dialect.
pub(super) fn refusal(refused: &Refused, dialect: Dialect) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(refused.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = match (status.as_u16(), dialect) {
        (401, Dialect::Anthropic) => "authentication_error",
        (403, Dialect::Anthropic) => "permission_error",
        (404, Dialect::Anthropic) => "not_found_error",
        (413, Dialect::Anthropic) => "request_too_large",
        (429, _) => "rate_limit_error",
        (400..=499, _) => "invalid_request_error",
        (503, Dialect::Anthropic) => "overloaded_error",
        (_, Dialect::Anthropic) => "api_error",
        (_, Dialect::OpenAi) => "server_error",
    };
    let (text, code) = (&refused.text, refused.code);
    let body = match dialect {
        Dialect::OpenAi => json!({ "error": { "message": text, "type": kind, "param": null, "code": code } }),
        Dialect::Anthropic => {
            json!({ "type": "error", "error": { "type": kind, "message": text, "code": code } })
        }
    };
    let mut response = answer(status, &body);
    if let Some(seconds) = refused.retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// What may be asked for.
pub(super) fn models(directory: &Directory, may: May<'_>) -> Response<Full<Bytes>> {
    let default = directory.default.as_ref().and_then(|name| directory.models.get_key_value(name));
    let default = default.map(|(name, entry)| (DEFAULT_ALIAS, name, entry));
    let all = directory.models.iter().map(|(name, entry)| (name.as_str(), name, entry));
    let seen = default.into_iter().chain(all).filter(|(id, name, _)| may.sees(name, id));
    let data: Vec<Value> = seen.map(|(id, name, entry)| model(id, name, entry)).collect();
    answer(StatusCode::OK, &json!({ "object": "list", "data": data }))
}

/// One of what may be asked for, by any of its names.
pub(super) fn one(directory: &Directory, asked: &str) -> Option<Response<Full<Bytes>>> {
    let (name, entry) = directory.find(asked)?;
    Some(answer(StatusCode::OK, &model(asked, name, entry)))
}

fn model(id: &str, name: &ModelName, entry: &Entry) -> Value {
    let mut model = json!({
        "id": id,
        "object": "model",
        "created": 0,
        "owned_by": "berth",
        "state": entry.state,
        "aliases": entry.aliases,
    });
    // Under the name that vLLM gives it, which clients look for.
    if let Some(context) = entry.context {
        model["max_model_len"] = context.into();
    }
    if id != name.as_str() {
        model["model"] = name.as_str().into();
    }
    model
}

fn answer(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
