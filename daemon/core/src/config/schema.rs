//! The JSON schema of each kind of file, for editors. It is taken from the readers: what they ask a file for may stand in
//! it, and nothing else; so it can't say something else than they do. What a key means is taken from the documentation.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::SourceFile;
use super::reader::{Asked, May, Reader, Table};
use super::{declared, main_file, policy_file, variant};

/// A kind of file below /etc/berth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// `berth.toml`.
    Main,
    /// `models.d/NAME.toml`.
    Model,
    /// `policies.d/NAME.toml`.
    Policy,
}

impl FileKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Main, Self::Model, Self::Policy];

    /// The name of its schema's file, without `.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "berth",
            Self::Model => "model",
            Self::Policy => "policy",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Main => "/etc/berth/berth.toml: what holds for this machine",
            Self::Model => "/etc/berth/models.d/NAME.toml: a model",
            Self::Policy => "/etc/berth/policies.d/NAME.toml: how models may be placed",
        }
    }

    /// The headings of docs/configuration.md below which tables list its keys.
    fn documented(self) -> &'static [&'static str] {
        match self {
            Self::Main => &["The node", "Being told"],
            Self::Model => &["A model"],
            Self::Policy => &["Policies"],
        }
    }
}

/// The schema of a kind of file: JSON Schema, draft 7, which editors' TOML plugins take.
pub fn schema(kind: FileKind) -> Value {
    let mut root = object(&asked(kind), &meanings(kind), "");
    root["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    root["title"] = json!(kind.title());
    root
}

/// Everything that the reader of these files asks for. A table is only looked into where it is there, so files with more
/// and more empty tables are read.
fn asked(kind: FileKind) -> Asked {
    let mut tables = String::new();
    loop {
        // Of what else it holds nothing matters, but a file that holds nothing is not read.
        let file = SourceFile { path: "file.toml".into(), text: format!("cmd = \"x\"\n{tables}") };
        let asked = ask(kind, &file);
        let mut text = String::new();
        for (key, may) in &asked {
            let keys: Vec<String> = key.split('.').map(|key| format!("\"{key}\"")).collect();
            match may {
                May::Table => _ = writeln!(text, "[{}]", keys.join(".")),
                May::Tables => _ = writeln!(text, "[{}.\"*\"]", keys.join(".")),
                May::Value(_) => {}
            }
        }
        if text == tables {
            return asked;
        }
        tables = text;
    }
}

fn ask(kind: FileKind, file: &SourceFile) -> Asked {
    let reader = Reader::noting(file);
    let mut node = main_file::defaults("");
    if kind == FileKind::Policy {
        // Errors are of no interest here.
        _ = policy_file::read(&reader, String::new(), None);
    } else if let Some(table) = reader.parse() {
        let mut root = Table::root(&reader, &table);
        if kind == FileKind::Main {
            main_file::read_keys(root, &reader, &mut node);
        } else {
            let declared = declared::read(&mut root, &reader, &node);
            _ = variant::read(&mut root, &reader, declared.deadlines);
        }
    }
    reader.asked()
}

/// The schema of the table whose keys begin with `prefix`.
fn object(asked: &Asked, meanings: &BTreeMap<String, String>, prefix: &str) -> Value {
    let keys = asked.iter().filter_map(|(whole, may)| Some((whole, whole.strip_prefix(prefix)?, may)));
    let properties = keys.filter(|(_, key, _)| !key.contains('.')).map(|(whole, key, may)| {
        let mut value = match may {
            May::Value(value) => value.clone(),
            May::Table => object(asked, meanings, &format!("{whole}.")),
            May::Tables => {
                let each = object(asked, meanings, &format!("{whole}.*."));
                json!({ "type": "object", "additionalProperties": each })
            }
        };
        if let Some(meaning) = meaning(meanings, whole) {
            value["description"] = json!(meaning);
        }
        (key.to_owned(), value)
    });
    let properties: Map<_, _> = properties.collect();
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

/// What is written about a key. A variant's are those of its model.
fn meaning<'a>(meanings: &'a BTreeMap<String, String>, key: &str) -> Option<&'a String> {
    meanings.get(key).or_else(|| meanings.get(key.strip_prefix("variants.*.")?))
}

/// What the documentation's tables say about each key of such a file.
fn meanings(kind: FileKind) -> BTreeMap<String, String> {
    let mut meanings = BTreeMap::new();
    let mut here = false;
    for line in include_str!("../../../../docs/configuration.md").lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            here = kind.documented().contains(&heading);
        }
        let cells: Vec<&str> = line.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
        let [keys, text, otherwise, ..] = cells[..] else { continue };
        if !here || !line.starts_with("| `") {
            continue;
        }
        // `ctx` and its like have a column for each server in this one's place.
        let otherwise = Some(otherwise).filter(|text| cells.len() == 3 && !text.is_empty());
        let otherwise = otherwise.map(|text| format!(". Where it is not given: {text}")).unwrap_or_default();
        let text = plain(&format!("{text}{otherwise}"));
        // `[table] key`, `key`; what follows the first is of the same table.
        let mut table = String::new();
        for name in keys.split('`').skip(1).step_by(2) {
            let name = match name.strip_prefix('[').and_then(|name| name.split_once(']')) {
                Some((of, name)) => {
                    table = of.replace("NAME", "*");
                    name.trim()
                }
                None => name,
            };
            let key =
                if name.is_empty() { table.trim_end_matches(".*").to_owned() } else { whole(&table, name) };
            meanings.insert(key, text.clone());
        }
    }
    if kind == FileKind::Main {
        // Told in a section of its own, where the table needs no name.
        for key in ["command", "url", "format", "settle", "every"] {
            if let Some(text) = meanings.remove(key) {
                meanings.insert(format!("notify.*.{key}"), text);
            }
        }
    }
    meanings
}

fn whole(table: &str, name: &str) -> String {
    if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") }
}

/// Without links, which lead nowhere from an editor.
fn plain(text: &str) -> String {
    let mut parts = text.split('[');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let link = part.split_once("](").and_then(|(shown, after)| Some((shown, after.split_once(')')?.1)));
        match link.filter(|(shown, _)| !shown.contains(']')) {
            Some((shown, after)) => plain.extend([shown, after]),
            None => plain.extend(["[", part]),
        }
    }
    plain
}
