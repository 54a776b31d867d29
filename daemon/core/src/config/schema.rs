//! The JSON schema of each kind of file, for editors. It is taken from the readers: what they ask a file for may stand in
//! it, and nothing else; so it can't say something else than they do.

#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

use super::keys::{FileKind, asked, meaning, without_links};
use super::reader::{Asked, May};

/// The schema of a kind of file: JSON Schema, draft 7, which editors' TOML plugins take.
pub fn schema(kind: FileKind) -> Value {
    let mut root = object(kind, &asked(kind), "");
    root["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    root["title"] = json!(format!("{}: {}", kind.path(), kind.title()));
    root
}

/// The schema of the table whose keys begin with `prefix`.
fn object(kind: FileKind, asked: &Asked, prefix: &str) -> Value {
    let keys = asked.iter().filter_map(|(whole, may)| Some((whole, whole.strip_prefix(prefix)?, may)));
    let properties = keys.filter(|(_, key, _)| !key.contains('.')).map(|(whole, key, may)| {
        let mut value = match may {
            May::Value(value) => value.clone(),
            May::Table => object(kind, asked, &format!("{whole}.")),
            May::Tables => {
                let each = object(kind, asked, &format!("{whole}.*."));
                json!({ "type": "object", "additionalProperties": each })
            }
        };
        if let Some((meaning, otherwise)) = meaning(kind, whole) {
            let mut text = meaning;
            if let Some(value) = value.as_object_mut().filter(|_| !otherwise.is_empty()) {
                // What follows from something else is no constant.
                value.remove("default");
                text = format!("{text}. Where it is not given: {otherwise}");
            }
            value["description"] = json!(without_links(&text));
        }
        (key.to_owned(), value)
    });
    let properties: Map<_, _> = properties.collect();
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}
