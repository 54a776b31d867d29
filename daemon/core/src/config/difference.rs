//! What differs between two configurations, and between what a model was started with and what is declared now.

use std::collections::{BTreeMap, BTreeSet};

use super::explain::explain_model;
use super::{Explained, Model, Settings, explain};
use crate::report::{Changed, ValueChange};

/// What berthd takes up when it starts alone.
const AT_START: [&str; 6] =
    ["http.listen", "proxy.listen", "proxy.connections", "rights.", "notify.", "history."];

/// What differs in what Berth does with a model and leaves its server as it is.
const BESIDE: [&str; 13] = [
    "retired",
    "known_as",
    "aliases",
    "fallback",
    "priority",
    "on_demand",
    "guest_idle",
    "shares_port",
    "exposed",
    "replaces",
    "request.",
    "deadlines.",
    "health.",
];

/// What was changed, added and removed, the node's first.
pub fn difference(before: &Settings, after: &Settings) -> Vec<Changed> {
    let (was, is) = (explain(before), explain(after));
    let mut all = Vec::new();
    let values = changes(&by_key(&was.values), &by_key(&is.values));
    if !values.is_empty() {
        let needs_restart = values.iter().any(|change| is_among(&change.key, &AT_START));
        all.push(Changed { model: None, values, needs_restart });
    }
    let names: BTreeSet<_> = before.models.keys().chain(after.models.keys()).collect();
    let of = |settings: &Settings, name| {
        let model: Option<&Model> = settings.models.get(name);
        model.map(|model| by_key(&explain_model(model, settings).values)).unwrap_or_default()
    };
    for name in names {
        let values = changes(&of(before, name), &of(after, name));
        if !values.is_empty() {
            all.push(Changed { model: Some(name.clone()), values, needs_restart: false });
        }
    }
    all
}

/// What decides how a model's server runs, by key, as it is declared.
pub fn run_values(model: &Model, settings: &Settings) -> BTreeMap<String, String> {
    let mut values = by_key(&explain_model(model, settings).values);
    values.retain(|key, _| !is_among(key, &BESIDE));
    values
}

/// What differs between two sets of values.
pub fn changes(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<ValueChange> {
    let keys: BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let differs = keys.into_iter().filter(|key| before.get(*key) != after.get(*key));
    let change = |key: &String| ValueChange {
        key: key.clone(),
        before: before.get(key).cloned(),
        after: after.get(key).cloned(),
    };
    differs.map(change).collect()
}

/// Whether it is one of these keys, or below one of these tables, which end with a dot.
fn is_among(key: &str, keys: &[&str]) -> bool {
    keys.iter().any(|one| key == *one || one.ends_with('.') && key.starts_with(one))
}

fn by_key(values: &[Explained]) -> BTreeMap<String, String> {
    values.iter().map(|value| (value.key.clone(), value.value.clone())).collect()
}

/// Whether the value of a variable of this name is nobody's business but the server's.
pub fn is_secret(name: &str) -> bool {
    const SECRETS: [&str; 4] = ["TOKEN", "KEY", "SECRET", "PASSWORD"];
    let name = name.to_ascii_uppercase();
    SECRETS.iter().any(|word| name.contains(word))
}
