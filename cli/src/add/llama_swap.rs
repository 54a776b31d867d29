//! From llama-swap's configuration to a declaration for each of its models.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value as Json;
use toml::{Table, Value};

use super::draft::{Draft, Note};
use super::from_unit::Refusal;
use super::{Addition, command_line, sound_name};

/// The file, as far as it has an equal here; the rest is listed by its key.
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default)]
    models: BTreeMap<String, Model>,
    #[serde(default)]
    macros: BTreeMap<String, Json>,
    #[serde(default)]
    groups: BTreeMap<String, Group>,
    #[serde(default, rename = "healthCheckTimeout")]
    health_check_timeout: Option<u64>,
    #[serde(default, rename = "globalTTL")]
    ttl: Option<i64>,
    #[serde(flatten)]
    rest: BTreeMap<String, Json>,
}

#[derive(Debug, Deserialize)]
struct Model {
    #[serde(default)]
    cmd: String,
    #[serde(default)]
    macros: BTreeMap<String, Json>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    proxy: Option<String>,
    #[serde(default)]
    aliases: Vec<String>,
    #[serde(default, rename = "checkEndpoint")]
    check_endpoint: Option<String>,
    #[serde(default)]
    ttl: Option<i64>,
    #[serde(default, rename = "useModelName")]
    use_model_name: Option<String>,
    #[serde(default)]
    filters: Filters,
    #[serde(flatten)]
    rest: BTreeMap<String, Json>,
}

#[derive(Debug, Default, Deserialize)]
struct Filters {
    #[serde(default, alias = "strip_params", rename = "stripParams")]
    strip: Option<String>,
    #[serde(default, rename = "setParams")]
    set: BTreeMap<String, Json>,
    #[serde(flatten)]
    rest: BTreeMap<String, Json>,
}

#[derive(Debug, Deserialize)]
struct Group {
    #[serde(default)]
    members: Vec<String>,
    #[serde(default = "yes")]
    swap: bool,
    #[serde(default = "yes")]
    exclusive: bool,
    #[serde(default)]
    persistent: bool,
}

fn yes() -> bool {
    true
}

/// The longest chain of macros that name each other.
const DEEPEST: usize = 16;

/// Keys that have an equal elsewhere, or need none. All others are listed too.
const ELSEWHERE: [(&str, &str); 16] = [
    ("apiKeys", "`berthctl key NAME` makes a key for each client"),
    ("cmdStop", "Berth ends the server's processes itself"),
    ("concurrencyLimit", "`slots` says how many requests a model answers at once; others wait at its server"),
    ("description", "it is shown nowhere"),
    ("hooks", "`berthctl start MODEL` once: what was started comes back after each boot"),
    ("includeAliasesInList", "aliases are always listed"),
    ("logLevel", "each server's output is in the journal: `berthctl logs MODEL`"),
    ("logTimeFormat", "each server's output is in the journal: `berthctl logs MODEL`"),
    ("logToStdout", "each server's output is in the journal: `berthctl logs MODEL`"),
    ("matrix", "Berth decides by memory what serves together"),
    ("metadata", "it is shown nowhere"),
    ("metricsMaxInMemory", "`berthctl history`, and GET /metrics"),
    ("name", "it is shown nowhere"),
    ("peers", "Berth passes nothing on to other machines"),
    ("startPort", "[ports] range in berth.toml; 8100-8199 where it is not declared"),
    ("unlisted", "every model that may be asked for is listed"),
];

/// Reads the file. Models that can't be taken over are listed; where there is no other, it is refused.
pub(super) fn read(path: &Path, name: Option<&str>) -> Result<Addition, Refusal> {
    let shown = path.display().to_string();
    let text = fs::read_to_string(path)
        .map_err(|error| Refusal::new(format!("it can't be read: {error}"), format!("ls -l {shown}")))?;
    translate(&text, &shown, name)
}

fn translate(text: &str, shown: &str, name: Option<&str>) -> Result<Addition, Refusal> {
    let config: Config = serde_saphyr::from_str(text)
        .map_err(|error| Refusal::new(format!("it is not llama-swap's configuration: {error}"), ""))?;
    if config.models.is_empty() {
        return Err(Refusal::new("it has no models", "`models:` is where llama-swap has them"));
    }
    if name.is_some() && config.models.len() > 1 {
        return Err(Refusal::new("it has several models, and --name is one name", "leave --name out"));
    }
    let mut addition = Addition { drafts: Vec::new(), service: None, process: None, notes: Vec::new() };
    let mut refused = Vec::new();
    for (id, model) in &config.models {
        match draft(id, model, &config, shown, name) {
            Ok(draft) => addition.drafts.push(draft),
            Err(refusal) => {
                refused.push(Note { what: id.clone(), why: format!("not taken over: {}", said(refusal)) });
            }
        }
    }
    if addition.drafts.is_empty() {
        let all: Vec<String> = refused.iter().map(|note| format!("{}: {}", note.what, note.why)).collect();
        return Err(Refusal::new(all.join("; "), ""));
    }
    addition.notes = refused;
    addition.notes.extend(beside(&config));
    Ok(addition)
}

fn said(refusal: Refusal) -> String {
    match refusal.instead {
        Some(instead) => format!("{}; {instead}", refusal.what),
        None => refusal.what,
    }
}

/// What of the file is about no model alone.
fn beside(config: &Config) -> Vec<Note> {
    let note = |what: &str, why: &str| Note { what: what.to_owned(), why: why.to_owned() };
    let mut notes = Vec::new();
    for (name, group) in &config.groups {
        let members = group.members.join(", ");
        let why = match (group.persistent, group.swap) {
            (true, _) => {
                "Berth lets no client's model take the place of what was started: `berthctl start` each of them"
            }
            (false, true) => {
                "Berth lets them serve at once where they fit; `policy = \"exclusive\"` keeps one alone"
            }
            (false, false) => "Berth lets them serve at once where they fit",
        };
        let alone = if group.exclusive { "" } else { ", not exclusive" };
        notes.push(note(&format!("group {name} ({members}{alone})"), why));
    }
    if config.groups.is_empty() && config.models.len() > 1 {
        notes.push(note(
            "one model at a time",
            "Berth lets several serve where they fit; `policy = \"exclusive\"` keeps one alone",
        ));
    }
    notes.extend(config.rest.keys().map(|key| note(key, elsewhere(key))));
    notes.push(note(
        "llama-swap",
        "it goes on, with its models and their memory: end it before the first `berthctl switch`",
    ));
    notes
}

fn elsewhere(key: &str) -> &'static str {
    ELSEWHERE.iter().find(|(known, _)| *known == key).map_or("it has no equal", |(_, why)| why)
}

fn draft(
    id: &str,
    model: &Model,
    config: &Config,
    shown: &str,
    name: Option<&str>,
) -> Result<Draft, Refusal> {
    let name = super::named(name, &sound_name(id))
        .map_err(|complaint| Refusal::new(complaint.title, "--name NAME"))?;
    let macros = Macros { of_model: &model.macros, of_all: &config.macros, id };
    let mut draft = Draft::new(name, format!("{id} of {shown}"), command(&macros.replaced(&model.cmd)?)?);
    for variable in &model.env {
        let variable = macros.replaced(variable)?;
        let Some((name, value)) = variable.split_once('=') else {
            return Err(Refusal::new(format!("`{variable}` in env is no NAME=VALUE"), ""));
        };
        draft.env.insert(name.to_owned(), value.to_owned());
    }
    command_line::no_placeholders(&draft)?;
    // Only now: what llama-swap itself does not replace would be no placeholder.
    let port = |text: &mut String| *text = text.replace(PORT, "{port}");
    draft.argv.iter_mut().for_each(port);
    command_line::settle_placed(&mut draft)?;
    if draft.env.values().any(|value| value.contains(PORT)) {
        return Err(Refusal::new(
            "a variable in env names ${PORT}",
            "declare `port = NUMBER` and write it out",
        ));
    }
    address(&mut draft, model, &macros)?;
    let mut aliases: Vec<String> = model.aliases.clone();
    if draft.name.as_str() != id {
        aliases.insert(0, id.to_owned());
    }
    if !aliases.is_empty() {
        draft.keys.insert("aliases".to_owned(), Value::from(aliases));
    }
    if let Some(ttl) = model.ttl.or(config.ttl).filter(|ttl| *ttl > 0) {
        draft.keys.insert("guest_idle".to_owned(), Value::from(format!("{ttl} s")));
    } else {
        draft.note("no ttl", "loaded for a client, it leaves after `guest_idle` without requests, 10 min where it is not declared");
    }
    if let Some(known_as) = &model.use_model_name {
        draft.keys.insert("known_as".to_owned(), Value::from(known_as.clone()));
    }
    match model.check_endpoint.as_deref() {
        None => {}
        Some("none") => draft.note(
            "checkEndpoint",
            "Berth has to see that a server is up: declare `health` in [ready], a path that answers 200",
        ),
        Some(path) => table(&mut draft, "ready", "health", Value::from(path)),
    }
    if let Some(seconds) = config.health_check_timeout {
        table(&mut draft, "deadlines", "start", Value::from(format!("{seconds} s")));
    }
    filters(&mut draft, &model.filters)?;
    for key in model.rest.keys().chain(model.filters.rest.keys()) {
        draft.note(key, elsewhere(key));
    }
    draft.hide_secrets();
    Ok(draft)
}

fn table(draft: &mut Draft, table: &str, key: &str, value: Value) {
    let of = draft.keys.entry(table).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(of) = of {
        of.insert(key.to_owned(), value);
    }
}

fn filters(draft: &mut Draft, filters: &Filters) -> Result<(), Refusal> {
    let strip: Vec<String> = filters
        .strip
        .iter()
        .flat_map(|all| all.split(','))
        .map(|one| one.trim().to_owned())
        .filter(|one| !one.is_empty())
        .collect();
    if !strip.is_empty() {
        table(draft, "request", "strip", Value::from(strip));
    }
    if !filters.set.is_empty() {
        let set = Value::try_from(&filters.set)
            .map_err(|error| Refusal::new(format!("setParams can't be written down: {error}"), ""))?;
        table(draft, "request", "set", set);
    }
    Ok(())
}

/// The server's port, where `proxy` says it and the command line does not.
fn address(draft: &mut Draft, model: &Model, macros: &Macros<'_>) -> Result<(), Refusal> {
    let Some(proxy) = &model.proxy else { return Ok(()) };
    let proxy = macros.replaced(proxy)?;
    let authority = proxy.split_once("://").map_or(proxy.as_str(), |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or_default();
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, ""));
    if !["localhost", "127.0.0.1", "[::1]"].contains(&host) {
        return Err(Refusal::new(
            format!("it is reached at {proxy}, and Berth runs servers on this machine alone"),
            "",
        ));
    }
    let said = draft.argv.iter().any(|arg| arg == "--port" || arg.starts_with("--port="));
    if let Some(port) = port.parse::<u16>().ok().filter(|_| !said) {
        draft.keys.insert("port".to_owned(), Value::from(i64::from(port)));
        draft.notes.retain(|note| !note.why.contains("on which port"));
    }
    Ok(())
}

/// The words of a command, without its comments.
fn command(text: &str) -> Result<Vec<String>, Refusal> {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let line =
        lines.map(|line| line.trim_end().strip_suffix('\\').unwrap_or(line)).collect::<Vec<_>>().join("\n");
    let words =
        shell_words::split(&line).map_err(|_| Refusal::new("a quote in cmd is opened and not closed", ""))?;
    if words.is_empty() { Err(Refusal::new("it has no cmd", "")) } else { Ok(words) }
}

/// What stands for the port until the command line is settled.
const PORT: &str = "${PORT}";

/// Macros: those of the model first.
struct Macros<'a> {
    of_model: &'a BTreeMap<String, Json>,
    of_all: &'a BTreeMap<String, Json>,
    id: &'a str,
}

impl Macros<'_> {
    fn replaced(&self, text: &str) -> Result<String, Refusal> {
        let mut text = text.to_owned();
        for _ in 0..DEEPEST {
            let mut out = String::new();
            let mut rest = text.as_str();
            let mut found = false;
            while let Some((before, (name, after))) =
                rest.split_once("${").and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
            {
                out.push_str(before);
                if name == "PORT" {
                    out.push_str(PORT);
                } else {
                    out.push_str(&self.value(name)?);
                    found = true;
                }
                rest = after;
            }
            out.push_str(rest);
            text = out;
            if !found {
                return Ok(text);
            }
        }
        Err(Refusal::new("its macros name each other without an end", ""))
    }

    fn value(&self, name: &str) -> Result<String, Refusal> {
        if name == "MODEL_ID" {
            return Ok(self.id.to_owned());
        }
        if let Some(variable) = name.strip_prefix("env.") {
            return std::env::var(variable).map_err(|_| {
                Refusal::new(
                    format!("${{{name}}} is a variable of llama-swap's, and not set here"),
                    format!("{variable}=… berthctl add …"),
                )
            });
        }
        match self.of_model.get(name).or_else(|| self.of_all.get(name)) {
            Some(Json::String(text)) => Ok(text.clone()),
            Some(value @ (Json::Number(_) | Json::Bool(_))) => Ok(value.to_string()),
            _ => Err(Refusal::new(format!("there is no macro ${{{name}}}"), "")),
        }
    }
}

#[cfg(test)]
mod tests;
