//! The description of the control API is the one that is in docs.
#![allow(clippy::unwrap_used)]

use serde_json::Value;

#[test]
fn the_description_in_docs_is_of_this_code() {
    let kept = include_str!("../../docs/openapi.json");
    let now = berthd::http::openapi_json();
    assert!(
        kept.trim_end() == now,
        "docs/openapi.json is not of this code: cargo run -p berthd -- --openapi >docs/openapi.json"
    );
    let document: Value = serde_json::from_str(&now).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let names: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    assert!(names.iter().all(|name| name.starts_with("/api/v1/")), "{names:?}");
}
