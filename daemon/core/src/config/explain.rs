//! Every value of the settings and where it comes from: what `berthctl check` shows.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::difference::is_secret;
use super::reader::shown;
use super::{BackendKind, Deadlines, Health, Memory, Model, Settings, Target, UnknownName};
use crate::backend;
use crate::layout::Layout;
use crate::name::ModelName;
use crate::policy::{Cores, Policy, Spread};
use crate::proxy::KeyHash;
use crate::report::Rights;
use crate::tuning::Tuning;

/// All settings with their origins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The node's name.
    pub node: String,
    /// `berth.toml`, where there is one.
    pub source: Option<PathBuf>,
    /// What holds for the whole node.
    pub values: Vec<Explained>,
    /// The models, by name.
    pub models: Vec<ModelExplanation>,
}

/// One model's settings with their origins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelExplanation {
    /// Its name.
    pub name: ModelName,
    /// The file that declares it.
    pub source: PathBuf,
    /// Its values, the most telling ones first.
    pub values: Vec<Explained>,
}

/// One value and its origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// The key by which it is, or could be, declared.
    pub key: String,
    /// The value as a person would write it.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Origin {
    /// Written down in the file of the model, or for the node in `berth.toml`.
    Declared {
        /// The line of that file.
        line: usize,
    },
    /// Written down for all models in `berth.toml`.
    DeclaredForNode {
        /// The line of that file.
        line: usize,
    },
    /// Not written down.
    Derived {
        /// What it follows from: `the file's name`, `default of vLLM` …
        from: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Declared { line } => write!(f, "line {line}"),
            Self::DeclaredForNode { line } => write!(f, "berth.toml, line {line}"),
            Self::Derived { from } => f.write_str(from),
        }
    }
}

/// Explains `settings`.
pub fn explain(settings: &Settings) -> Explanation {
    let mut values = Values { declared: &settings.declared, list: Vec::new() };
    values.add("node", settings.node.clone(), "the host's name");
    values.add("gpu.headroom", format!("{} on each GPU", settings.headroom), "default");
    values.add("gpu.sound", shown(settings.sound), "default");
    for (key, time) in deadlines(&settings.deadlines) {
        values.add(key, shown(time), "default");
    }
    let restart = &settings.restart;
    for (key, time) in [
        ("restart.first", restart.first),
        ("restart.longest", restart.longest),
        ("restart.healthy", restart.healthy),
    ] {
        values.add(key, shown(time), "default");
    }
    values.add("restart.failures", restart.failures.to_string(), "default");
    values.add("restart.window", shown(restart.window), "default");
    values.add("boot.gpus", shown(settings.boot.gpus), "default");
    values.add("boot.files", shown(settings.boot.files), "default");
    for (key, value) in health(&settings.health) {
        values.add(key, value, "default");
    }
    for (key, value) in guests(settings.guests) {
        values.add(key, value, "default");
    }
    let proxy = &settings.proxy;
    let listen = if proxy.listen.is_empty() { "nowhere".to_owned() } else { joined(&proxy.listen) };
    values.add("proxy.listen", listen, "default");
    let unknown = match proxy.unknown {
        UnknownName::Refuse => "refuse",
        UnknownName::Default => "default",
    };
    values.add("proxy.unknown", unknown.to_owned(), "default");
    values.add("proxy.body", proxy.body.to_string(), "default");
    values.add("proxy.queue", proxy.queue.to_string(), "default");
    values.add("proxy.wait", shown(proxy.wait), "default");
    values.add("proxy.turn", shown(proxy.turn), "default");
    values.add("proxy.first_byte", shown(settings.deadlines.first_byte), "default");
    values.add("proxy.idle", shown(proxy.idle), "default");
    values.add("proxy.connections", proxy.connections.to_string(), "default");
    let cors = if proxy.cors.is_empty() { "off".to_owned() } else { joined(&proxy.cors) };
    values.add("proxy.cors", cors, "default");
    if !proxy.keys.is_empty() {
        let keys: Vec<String> = proxy
            .keys
            .iter()
            .map(|key| match &key.models {
                Some(models) => format!("{} ({})", key.name, models.join(", ")),
                None => key.name.clone(),
            })
            .collect();
        values.add("proxy.keys", keys.join(", "), "");
    }
    let http = &settings.http;
    let listen = if http.listen.is_empty() { "nowhere".to_owned() } else { joined(&http.listen) };
    values.add("http.listen", listen, "default");
    let anonymous = match http.anonymous {
        Some(rights) => rights.as_str(),
        None => "read (loopback)",
    };
    values.add("http.anonymous", anonymous.to_owned(), "default");
    if !http.hosts.is_empty() {
        values.add("http.hosts", joined(&http.hosts), "");
    }
    if !http.tokens.is_empty() {
        let tokens = http.tokens.iter().map(|token| format!("{} ({})", token.name, token.rights.as_str()));
        values.add("http.tokens", tokens.collect::<Vec<_>>().join(", "), "");
    }
    let all = [Rights::Operate, Rights::Plan, Rights::Read];
    for rights in all {
        let who = settings.access.who.iter().filter(|(_, theirs)| *theirs == rights);
        let who: Vec<String> = who.map(|(principal, _)| principal.to_string()).collect();
        if !who.is_empty() {
            values.add(&format!("rights.{}", rights.as_str()), who.join(", "), "");
        }
    }
    if settings.access.who.is_empty() {
        values.add("rights.operate", "who can open berth.sock".to_owned(), "default");
    }
    for notify in &settings.notify {
        let name = &notify.name;
        let key = if let Target::Command(_) = notify.target { "command" } else { "url" };
        values.add(&format!("notify.{name}.{key}"), notify.target.to_string(), "");
        values.add(&format!("notify.{name}.settle"), shown(notify.rules.settle), "default");
        values.add(&format!("notify.{name}.every"), shown(notify.rules.every), "default");
    }
    let history = &settings.history;
    for (key, time) in [
        ("history.every", history.every),
        ("history.samples", history.samples),
        ("history.keep", history.keep),
    ] {
        values.add(key, shown(time), "default");
    }
    values.add("history.size", history.size.to_string(), "default");
    values.add("ports.range", settings.ports.to_string(), "default");
    for policy in settings.policies.values() {
        if let Some(source) = &policy.source {
            let from = Origin::Derived { from: source.display().to_string() };
            values.push(&format!("policy {policy}"), summary(policy), from);
        }
    }
    Explanation {
        node: settings.node.clone(),
        source: settings.source.clone(),
        values: values.list,
        models: settings.models.values().map(|model| explain_model(model, settings)).collect(),
    }
}

/// What a policy comes to, in a few words.
fn summary(policy: &Policy) -> String {
    let mut words = vec![joined(&policy.devices)];
    if policy.uses_gpus() {
        words.push(match policy.spread {
            Spread::Fewest => "the fewest GPUs".to_owned(),
            Spread::All => "all GPUs".to_owned(),
            Spread::Exactly(1) => "one GPU".to_owned(),
            Spread::Exactly(n) => format!("{n} GPUs"),
        });
    }
    if !policy.shares {
        words.push("alone".to_owned());
    }
    if policy.host.cores != Cores::All {
        words.push(format!("cores {}", policy.host.cores));
    }
    if policy.host.lock {
        words.push("locked".to_owned());
    }
    let given_up = if policy.ladder.is_empty() { "nothing".to_owned() } else { joined(&policy.ladder) };
    words.push(format!("gives up {given_up}"));
    words.join("; ")
}

fn joined<T: fmt::Display>(all: &[T]) -> String {
    all.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

fn deadlines(deadlines: &Deadlines) -> [(&'static str, Duration); 5] {
    [
        ("deadlines.drain", deadlines.drain),
        ("deadlines.stop", deadlines.stop),
        ("deadlines.release", deadlines.release),
        ("deadlines.start", deadlines.start),
        ("deadlines.connect", deadlines.connect),
    ]
}

fn health(health: &Health) -> [(&'static str, String); 4] {
    let or_off = |time: Option<Duration>| time.map_or("off".to_owned(), shown);
    [
        ("health.every", or_off(health.every)),
        ("health.failures", health.failures.to_string()),
        ("health.token", or_off(health.token)),
        ("health.busy", shown(health.busy)),
    ]
}

fn guests(guests: super::Guests) -> [(&'static str, String); 2] {
    [("on_demand", guests.on_demand.as_str().to_owned()), ("guest_idle", shown(guests.idle))]
}

/// The values so far, and the lines on which keys stand.
struct Values<'a> {
    declared: &'a BTreeMap<String, usize>,
    list: Vec<Explained>,
}

impl Values<'_> {
    /// A value that stands in the file under its own key, or else comes from `otherwise`.
    fn add(&mut self, key: &str, value: String, otherwise: &str) {
        let origin = match self.declared.get(key) {
            Some(line) => Origin::Declared { line: *line },
            None => Origin::Derived { from: otherwise.to_owned() },
        };
        self.push(key, value, origin);
    }

    fn push(&mut self, key: &str, value: String, origin: Origin) {
        self.list.push(Explained { key: key.to_owned(), value, origin });
    }
}

pub(super) fn explain_model(model: &Model, settings: &Settings) -> ModelExplanation {
    let mut values = Values { declared: &model.declared, list: Vec::new() };
    let derived = |key: &str| {
        let found = model.derived.iter().find(|derived| derived.key == key);
        found.map_or("default", |derived| derived.from.as_str())
    };
    if model.retired {
        values.add("retired", "true: never started, never a problem".to_owned(), "");
    }
    command(&mut values, model);
    if let Some(cwd) = &model.cwd {
        values.add("cwd", cwd.display().to_string(), "");
    }
    values.add("backend", model.backend.to_string(), derived("backend"));
    if let Some(file) = &model.file {
        values.add("model", file.display().to_string(), derived("model"));
    } else if let Some(hub) = &model.hub {
        values.add("model", hub.clone(), derived("model"));
    }
    values.add("host", model.host.to_string(), derived("host"));
    values.add("port", model.port.to_string(), derived("port"));
    if model.shares_port {
        values.add("shares_port", "true".to_owned(), "");
    }
    if model.exposed {
        values.add("exposed", "true: it may listen at other addresses too".to_owned(), "");
    }
    if let Some(unit) = &model.replaces {
        values.add("replaces", unit.clone(), "");
    }
    values.add("policy", model.policy.to_string(), derived("policy"));
    for key in Tuning::KEYS {
        let declared = |key: &str| model.declared.contains_key(key);
        // Keys and values are shown as they are declared, together or each.
        let shown = match key {
            "kv" => declared("kv") || model.tuning.kv_k.is_none() && model.tuning.kv_v.is_none(),
            "kv_k" | "kv_v" => !declared("kv"),
            _ => true,
        };
        let given = || model.derived.iter().find(|given| given.key == key).map(|given| given.value.clone());
        if let Some(value) = model.tuning.get(key).or_else(given).filter(|_| shown) {
            values.add(key, value, derived(key));
        }
    }
    let (memory, from) = memory(model);
    values.add("memory.gpu", memory, &from);
    if let Some(host) = model.host_memory {
        values.add("memory.host", host.to_string(), "");
    }
    if let Some(known_as) = &model.known_as {
        values.add("known_as", known_as.clone(), "");
    }
    for (key, fields) in [("request.default", &model.request.default), ("request.set", &model.request.set)] {
        if !fields.is_empty() {
            let fields: Vec<String> =
                fields.iter().map(|(name, value)| format!("{name} = {value}")).collect();
            values.add(key, fields.join(", "), "");
        }
    }
    if !model.request.strip.is_empty() {
        values.add("request.strip", model.request.strip.join(", "), "");
    }
    if !model.aliases.is_empty() {
        values.add("aliases", model.aliases.join(", "), "");
    }
    if let Some(fallback) = &model.fallback {
        values.add("fallback", fallback.to_string(), "");
    }
    if model.priority != 0 {
        values.add("priority", model.priority.to_string(), "");
    }
    values.add("ready.health", format!("GET {} answers 200", model.ready.health), derived("ready.health"));
    let generate = if model.ready.generate { "one token is generated" } else { "no token is asked for" };
    values.add("ready.generate", generate.to_owned(), derived("ready.generate"));
    let Deadlines { first_byte, idle, .. } = model.deadlines;
    let answers = [("deadlines.first_byte", first_byte), ("deadlines.idle", idle)];
    let deadlines = deadlines(&model.deadlines).into_iter().chain(answers);
    let deadlines = deadlines.map(|(key, time)| (key, shown(time)));
    for (key, value) in deadlines.chain(health(&model.health)).chain(guests(model.guests)) {
        let of_node = match key {
            "deadlines.first_byte" => "proxy.first_byte",
            "deadlines.idle" => "proxy.idle",
            key => key,
        };
        match (model.declared.get(key), settings.declared.get(of_node)) {
            _ if key == "health.token" && !model.ready.generate => {
                let from = Origin::Derived { from: "`ready.generate` is false".to_owned() };
                values.push(key, value, from);
            }
            (None, Some(line)) => values.push(key, value, Origin::DeclaredForNode { line: *line }),
            _ => values.add(key, value, "default"),
        }
    }
    ModelExplanation { name: model.name.clone(), source: model.source.clone(), values: values.list }
}

/// The command line, what Berth adds to it, and the environment.
fn command(values: &mut Values<'_>, model: &Model) {
    let launch = backend::launch(model, &[], &Layout::default());
    let key = if model.declared.contains_key("cmd") { "cmd" } else { "program" };
    values.add(key, shell_words::join(backend::declared_line(model)), "");
    let added = added(backend::declared_argv(model), &launch.argv);
    if !added.is_empty() {
        let from = Origin::Derived { from: "added by Berth".to_owned() };
        values.push("args", format!("… {}", shell_words::join(added)), from);
    }
    let line = values.declared.get("env").or(values.declared.get("cmd")).copied().unwrap_or(1);
    for (name, value) in &model.env {
        values.push(&format!("env.{name}"), visible(name, value), Origin::Declared { line });
    }
    for name in &model.secrets {
        let line = values.declared.get("secrets").copied().unwrap_or(1);
        values.push(&format!("env.{name}"), "a credential of its unit".to_owned(), Origin::Declared { line });
    }
    // Which GPUs it sees is decided at its start.
    for (name, value) in launch.env.iter().filter(|(name, _)| !name.starts_with("CUDA_")) {
        if !model.env.contains_key(name) {
            let from = Origin::Derived { from: "added by Berth".to_owned() };
            values.push(&format!("env.{name}"), visible(name, value), from);
        }
    }
}

/// A variable's value as people may see it: of a secret that it is another one, and no more.
fn visible(name: &str, value: &str) -> String {
    if !is_secret(name) {
        return value.to_owned();
    }
    let hash = KeyHash::of(value.as_bytes()).to_string();
    format!("hidden ({})", &hash[..8])
}

/// The words of `whole` that are not among `declared`: a backend only adds to them.
fn added(declared: Vec<String>, whole: &[String]) -> Vec<&String> {
    let mut declared = declared.into_iter().peekable();
    whole.iter().filter(|word| declared.next_if_eq(*word).is_none()).collect()
}

fn memory(model: &Model) -> (String, String) {
    if !model.policy.uses_gpus() {
        return ("none".to_owned(), format!("`policy` is {}", model.policy));
    }
    match (&model.memory, model.backend) {
        (Memory::Total(total), ..) => (format!("{total} in all"), String::new()),
        (Memory::PerDevice(each), ..) => {
            let each: Vec<String> = each.iter().map(ToString::to_string).collect();
            (each.join(" + "), String::new())
        }
        (Memory::Undeclared, BackendKind::Vllm) => {
            let from = match backend::utilization(&model.args, model.tuning.utilization) {
                Ok((share, given)) => (share, given.map(|given| given.by)),
                Err(given) => (0.0, Some(given.by)),
            };
            let declared = model.tuning.utilization.map(|_| "utilization".to_owned());
            let by = from.1.or(declared).map_or("default of vLLM".to_owned(), |by| format!("`{by}`"));
            (format!("{} of each GPU it gets", from.0), by)
        }
        (Memory::Undeclared, BackendKind::LlamaCpp) if model.file.is_some() => {
            ("from its file's header".to_owned(), "`berthctl fit` shows it".to_owned())
        }
        (Memory::Undeclared, ..) => (
            "not declared".to_owned(),
            "it can't be started on a GPU; add `[memory]` with `gpu = \"… GiB\"`".to_owned(),
        ),
    }
}

/// Columns of the text: keys from 2, values from 20, origins from 46, nothing beyond 80.
const VALUES: usize = 20;
const ORIGINS: usize = 46;
const WIDTH: usize = 80;

impl fmt::Display for Explanation {
    /// As plain text, 80 columns wide.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source =
            self.source.as_ref().map_or("no berth.toml".to_owned(), |path| path.display().to_string());
        heading(f, &self.node, &source)?;
        rows(f, &self.values)?;
        for model in &self.models {
            writeln!(f)?;
            heading(f, model.name.as_str(), &model.source.display().to_string())?;
            rows(f, &model.values)?;
        }
        Ok(())
    }
}

fn heading(f: &mut fmt::Formatter<'_>, name: &str, source: &str) -> fmt::Result {
    let room = WIDTH.saturating_sub(name.chars().count() + 2);
    if source.chars().count() <= room {
        writeln!(f, "{name}  {source:>room$}")
    } else {
        writeln!(f, "{name}\n  {source}")
    }
}

fn rows(f: &mut fmt::Formatter<'_>, values: &[Explained]) -> fmt::Result {
    for Explained { key, value, origin } in values {
        let mut key = key.as_str();
        if key.chars().count() > VALUES - 3 {
            writeln!(f, "  {key}")?;
            key = "";
        }
        let value = wrap(value, WIDTH - VALUES);
        let mut origin = wrap(&origin.to_string(), WIDTH - ORIGINS).into_iter();
        for (i, line) in value.iter().enumerate() {
            write!(f, "  {key:width$}{line}", width = VALUES - 2)?;
            key = "";
            let ends = VALUES + line.chars().count();
            let first = origin.as_slice().first().map_or(0, |first| first.chars().count());
            // The origin begins on the value's last line, where there is room.
            if i + 1 == value.len() && ends.max(ORIGINS - 2) + 2 + first <= WIDTH {
                let gap = ORIGINS.saturating_sub(ends).max(2);
                write!(f, "{:gap$}{}", "", origin.next().unwrap_or_default())?;
            }
            writeln!(f)?;
        }
        for line in origin {
            writeln!(f, "{:ORIGINS$}{line}", "")?;
        }
    }
    Ok(())
}

/// Breaks text at spaces into lines of at most `width` characters; a longer word is a line of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.len() - 1;
        let line = &mut lines[line];
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
