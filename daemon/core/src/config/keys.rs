//! Every key of each kind of file: what may stand there and what holds otherwise, as those who read the key say it, and
//! what it means. Schemas, the reference and the man page are made of this.

mod said;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use serde_json::Value;

use super::reader::{Asked, May, Reader, Table};
use super::{BackendKind, SourceFile, declared, main_file, policy_file, variant};
use crate::backend::{self, Setting};

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

    /// Where such files are.
    pub fn path(self) -> &'static str {
        match self {
            Self::Main => "/etc/berth/berth.toml",
            Self::Model => "/etc/berth/models.d/NAME.toml",
            Self::Policy => "/etc/berth/policies.d/NAME.toml",
        }
    }

    /// What one is for.
    pub fn title(self) -> &'static str {
        match self {
            Self::Main => "what holds for this machine; it may be missing",
            Self::Model => "what a model's server is and needs, a file for each model",
            Self::Policy => {
                "how models may be placed, a file for each policy besides those that ship with Berth"
            }
        }
    }
}

/// A table of a file, with the keys that stand in it. All texts are Markdown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name, without brackets; empty for what stands before all tables.
    pub table: String,
    /// What is said of all of it; may be empty.
    pub meaning: String,
    /// Its keys, the most telling ones first.
    pub keys: Vec<Key>,
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name in its table.
    pub name: String,
    /// What may stand there.
    pub value: String,
    /// What holds where nothing does; empty where nothing follows from that.
    pub otherwise: String,
    /// What it means.
    pub meaning: String,
}

/// All that such a file may hold.
pub fn reference(kind: FileKind) -> Vec<Section> {
    let asked = asked(kind);
    let mut sections: Vec<Section> = vec![section("", "")];
    for said in said::said(kind) {
        let may = asked.get(said.key);
        let Some(May::Value(value)) = may else {
            let name = if matches!(may, Some(May::Tables)) { ".NAME" } else { "" };
            sections.push(section(&format!("{}{name}", said.key), said.meaning));
            continue;
        };
        let (table, name) = said.key.rsplit_once('.').unwrap_or(("", said.key));
        let table = table.replace('*', "NAME");
        if sections.iter().all(|section| section.table != table) {
            sections.push(section(&table, ""));
        }
        let (meaning, otherwise) = meaning(kind, said.key).unwrap_or_default();
        let otherwise = if otherwise.is_empty() { constant(value) } else { otherwise.to_owned() };
        let key = Key { name: name.to_owned(), value: worded(value), otherwise, meaning };
        sections.iter_mut().filter(|section| section.table == table).for_each(|it| it.keys.push(key.clone()));
    }
    let of_variants = asked.iter().filter(|(_, may)| matches!(may, May::Value(_)));
    let of_variants: Vec<String> = of_variants
        .filter_map(|(key, _)| key.strip_prefix("variants.*."))
        .map(|key| match key.rsplit_once('.') {
            Some((table, key)) => format!("`[{table}] {key}`"),
            None => format!("`{key}`"),
        })
        .collect();
    for section in sections.iter_mut().filter(|section| section.table == "variants.NAME") {
        _ = write!(section.meaning, " {}.", of_variants.join(", "));
    }
    sections
}

fn section(table: &str, meaning: &str) -> Section {
    Section { table: table.to_owned(), meaning: meaning.to_owned(), keys: Vec::new() }
}

/// What a key means, and what holds where it is not given if that is said in words. A variant's are those of its model.
/// None where nothing is said of it.
pub(super) fn meaning(kind: FileKind, key: &str) -> Option<(String, &'static str)> {
    let of_model = key.strip_prefix("variants.*.");
    let (meaning, otherwise) = said::of(kind, of_model.unwrap_or(key))?;
    let flags: Vec<String> = [("llama.cpp", BackendKind::LlamaCpp), ("vLLM", BackendKind::Vllm)]
        .into_iter()
        .filter(|_| kind == FileKind::Model)
        .filter_map(|(name, server)| Some(format!("{name}: {}", flags(server, of_model.unwrap_or(key))?)))
        .collect();
    let flags = if flags.is_empty() { String::new() } else { format!(". {}", flags.join("; ")) };
    let otherwise = if of_model.is_some() { "as the model says" } else { otherwise };
    Some((format!("{meaning}{flags}"), otherwise))
}

/// The flags by which a server is told a setting.
fn flags(server: BackendKind, key: &str) -> Option<String> {
    let backend = backend::of(server);
    let keys = backend::settings_for(backend, key);
    // llama.cpp counts these from the first layer: its flag is another.
    let settings = backend.settings().iter().filter(|it| keys.contains(&it.key) && it.key != "cpu_experts");
    let flags: Vec<String> = settings.flat_map(Setting::added).map(|flag| format!("`{flag}`")).collect();
    (!flags.is_empty()).then(|| flags.join(", "))
}

/// Everything that the reader of these files asks for. A table is only looked into where it is there, so files with more
/// and more empty tables are read.
pub(super) fn asked(kind: FileKind) -> Asked {
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

/// What holds by default, as it is written in a file.
fn constant(value: &Value) -> String {
    value.get("default").map(|default| format!("`{default}`")).unwrap_or_default()
}

/// What a value must be.
fn worded(value: &Value) -> String {
    let own =
        value.get("description").or_else(|| value.pointer("/items/description")).and_then(Value::as_str);
    match (value.get("enum").and_then(Value::as_array), own, value["type"].as_str()) {
        (Some(words), ..) => {
            let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
            words.join(", ")
        }
        (None, Some(text), _) => coded(&without_example(text, value.get("default").is_some())),
        (None, None, Some("boolean")) => "`true`, `false`".to_owned(),
        (None, None, _) => {
            let each = value.pointer("/additionalProperties/description").and_then(Value::as_str);
            each.map_or("a table".to_owned(), |each| format!("a table; each value {}", coded(each)))
        }
    }
}

/// Without its example, which nobody needs where there is a default to look at.
fn without_example(text: &str, has_default: bool) -> String {
    match text.split_once(", for example ").filter(|_| has_default) {
        Some((what, example)) => match example.rsplit_once(", or ") {
            Some((_, or)) => format!("{what}, or {or}"),
            None => what.to_owned(),
        },
        None => text.to_owned(),
    }
}

/// With what is quoted in a text set as code: `"90 s"`, `["a", "b"]`.
fn coded(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(['"', '[']) {
        let (before, quoted) = rest.split_at(start);
        let end = if quoted.starts_with('[') { "\"]" } else { "\"" };
        let Some(length) = quoted[1..].find(end).map(|at| at + 1 + end.len()) else { break };
        _ = write!(out, "{before}`{}`", &quoted[..length]);
        rest = &quoted[length..];
    }
    out + rest
}

/// Without links, which lead nowhere from an editor or a terminal.
pub fn without_links(text: &str) -> String {
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
