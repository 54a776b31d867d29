//! A model's file as it is written: each value of the right type, nothing derived yet.

use std::net::IpAddr;

use toml::Spanned;

use super::command_line;
use super::error::ConfigError;
use super::main_file;
use super::reader::{OneOrEach, Reader, Table};
use super::tuned::{self, Tuned};
use super::{BackendKind, Changes, Deadlines, Guests, Health, Memory, Settings};
use crate::bytes::Bytes;
use crate::container::Container;

/// Everything that a file says.
pub(super) struct Declared {
    pub(super) name: Option<Spanned<String>>,
    pub(super) backend: Option<Spanned<BackendKind>>,
    pub(super) command: Option<Command>,
    /// What its program runs it in; the command's arguments are then the server's own.
    pub(super) container: Option<Container>,
    /// Names of variables that systemd fills in.
    pub(super) secrets: Vec<String>,
    pub(super) cwd: Option<Spanned<String>>,
    pub(super) model: Option<Spanned<String>>,
    pub(super) host: Option<Spanned<IpAddr>>,
    pub(super) port: Option<Spanned<u16>>,
    pub(super) shares_port: bool,
    pub(super) exposed: bool,
    pub(super) replaces: Option<Spanned<String>>,
    pub(super) policy: Option<Spanned<String>>,
    pub(super) tuned: Tuned,
    pub(super) known_as: Option<Spanned<String>>,
    pub(super) request: Changes,
    pub(super) aliases: Vec<Spanned<String>>,
    pub(super) retired: bool,
    pub(super) fallback: Option<Spanned<String>>,
    pub(super) guests: Guests,
    pub(super) priority: Option<Spanned<i32>>,
    pub(super) memory: DeclaredMemory,
    pub(super) ready: Option<Spanned<String>>,
    pub(super) generate: Option<bool>,
    pub(super) deadlines: Deadlines,
    pub(super) health: Health,
}

/// What is run, from `cmd` or from `program` and `args`.
pub(super) struct Command {
    /// The key that holds the arguments: `cmd` or `args`.
    pub(super) key: &'static str,
    pub(super) program: Spanned<String>,
    pub(super) args: Vec<Spanned<String>>,
    pub(super) env: Vec<(Spanned<String>, Spanned<String>)>,
}

pub(super) fn read(root: &mut Table<'_, '_>, reader: &Reader<'_>, node: &Settings) -> Declared {
    let backends = [
        ("llama.cpp", BackendKind::LlamaCpp),
        ("vllm", BackendKind::Vllm),
        ("command", BackendKind::Command),
    ];
    let name = root.string("name", "a name as text");
    let backend = root.choice("backend", &backends);
    let command = command(root, reader);
    let declared = Declared {
        name,
        backend,
        command,
        container: None,
        secrets: secrets(root, reader),
        cwd: root.string("cwd", "a folder as text"),
        model: root.string("model", "a path as text"),
        host: root.parsed("host", "an IP address as text, for example \"127.0.0.1\""),
        port: root.port("port"),
        shares_port: root.boolean_or("shares_port", false),
        exposed: root.boolean_or("exposed", false),
        replaces: replaces(root, reader),
        policy: root.string("policy", "the name of a policy"),
        tuned: tuned::read(root, reader),
        known_as: root.string("known_as", "the name by which its server knows it"),
        request: root.table("request").map(|table| request(table, reader)).unwrap_or_default(),
        aliases: root.strings("aliases", "an array of names").map(Spanned::into_inner).unwrap_or_default(),
        retired: root.boolean_or("retired", false),
        fallback: root.string("fallback", "the name of another model"),
        guests: main_file::guests(root, node.guests),
        priority: root.whole("priority", -1000..=1000, "a whole number from -1000 to 1000"),
        memory: root.table("memory").map(|table| memory(table, reader)).unwrap_or_default(),
        ready: None,
        generate: None,
        deadlines: main_file::deadlines(root, node.deadlines),
        health: main_file::health(root, node.health),
    };
    let Some(ready) = root.table("ready") else { return declared };
    let (path, generate) = self::ready(ready);
    Declared { ready: path, generate, ..declared }
}

/// The unit that served this model before it was Berth's.
fn replaces(root: &mut Table<'_, '_>, reader: &Reader<'_>) -> Option<Spanned<String>> {
    let unit = root.string("replaces", "the name of a unit, for example \"genesis.service\"")?;
    let text = unit.get_ref();
    let plain = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    let stem = text.strip_suffix(".service").or_else(|| text.strip_suffix(".scope")).unwrap_or_default();
    let wrong = if stem.is_empty() || !text.chars().all(plain) {
        "a service or a scope, with the end of its name: \"genesis.service\""
    } else if stem.ends_with('@') {
        "this is a template; name the instance"
    } else if text.starts_with("berth-model@") || text == "berthd.service" || text == "berth-devices.service"
    {
        "this is one of Berth's own units"
    } else {
        return Some(unit);
    };
    reader.error("`replaces` must be the unit that served this model before", &unit.span(), wrong);
    None
}

/// Variables whose values are credentials of the unit, which systemd hands to the server and to nobody else.
fn secrets(root: &mut Table<'_, '_>, reader: &Reader<'_>) -> Vec<String> {
    let names = root.strings("secrets", "an array of variables' names, for example [\"HF_TOKEN\"]");
    let mut secrets = Vec::new();
    for name in names.map(Spanned::into_inner).unwrap_or_default() {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let text = name.get_ref();
        if text.is_empty() || text.starts_with(|c: char| c.is_ascii_digit()) || !text.chars().all(plain) {
            reader.error("a secret has the name of a variable: letters, digits and `_`", &name.span(), "");
        } else if secrets.contains(text) {
            reader.error("this secret is named twice", &name.span(), "");
        } else {
            secrets.push(name.into_inner());
        }
    }
    secrets
}

/// `[request]`. The model's name is not among what can be changed: the proxy sees to that.
fn request(mut table: Table<'_, '_>, reader: &Reader<'_>) -> Changes {
    const FIELDS: &str = "an array of fields' names";
    let mut changes = Changes { default: table.json("default"), set: table.json("set"), strip: Vec::new() };
    let strip = table.strings("strip", FIELDS).map(Spanned::into_inner).unwrap_or_default();
    changes.strip = strip.into_iter().map(Spanned::into_inner).collect();
    for (key, named) in [
        ("default", changes.default.contains_key("model")),
        ("set", changes.set.contains_key("model")),
        ("strip", changes.strip.iter().any(|field| field == "model")),
    ] {
        if let Some(span) = table.span(key).filter(|_| named) {
            let message = format!("`request.{key}` can't change `model`");
            reader.error(message, &span, "`known_as` says what its server is told");
        }
    }
    table.finish();
    changes
}

/// `[ready]`: the path to ask, and whether a token must be generated.
pub(super) fn ready(mut table: Table<'_, '_>) -> (Option<Spanned<String>>, Option<bool>) {
    let path = table.string("health", "a path as text, for example \"/health\"");
    let generate = table.boolean("generate");
    table.finish();
    (path, generate)
}

/// The command. None where none could be read; every reason is noted.
fn command(root: &mut Table<'_, '_>, reader: &Reader<'_>) -> Option<Command> {
    let line = root.string("cmd", "the command line as text");
    let program = root.string("program", "a path as text");
    let args = root.strings("args", "an array of texts");
    let env = root.string_table("env", "a text, for example \"1\"");
    if let Some(line) = line {
        let other = program.map(|program| ("program", program.span()));
        if let Some((key, span)) = other.or(args.map(|args| ("args", args.span()))) {
            let place = reader.place(&span, "and this says it again");
            reader.note(
                ConfigError::new(format!("`cmd` and `{key}` are both given"), place)
                    .and(reader.place(&line.span(), "this says what to run"))
                    .help("keep one of them"),
            );
            return None;
        }
        return taken_apart(&line, env, reader);
    }
    match (program, args) {
        (Some(program), args) => {
            let args = args.map(Spanned::into_inner).unwrap_or_default();
            Some(Command { key: "args", program, args, env })
        }
        (None, Some(args)) => {
            reader.error("`args` are given without a `program`", &args.span(), "");
            None
        }
        // A `cmd` or `program` of a wrong type is noted already.
        (None, None) if root.has("cmd") || root.has("program") => None,
        (None, None) => {
            reader.note(
                ConfigError::new("nothing says what to run", reader.place(&(0..0), ""))
                    .help("add `cmd = \"<the command line you run today>\"`"),
            );
            None
        }
    }
}

fn taken_apart(
    line: &Spanned<String>,
    mut env: Vec<(Spanned<String>, Spanned<String>)>,
    reader: &Reader<'_>,
) -> Option<Command> {
    let at = |text: String| Spanned::new(line.span(), text);
    let parts = match command_line::split(line.get_ref()) {
        Ok(parts) => parts,
        Err(refused) => {
            let place = reader.place(&within(reader, line, &refused.at), refused.why);
            let message = "`cmd` can't be run as it is";
            reader.note(ConfigError::new(message, place).help(refused.instead));
            return None;
        }
    };
    for (name, value) in parts.env {
        if let Some((other, _)) = env.iter().find(|(other, _)| *other.get_ref() == name) {
            let place = reader.place(&other.span(), "and again here");
            reader.note(
                ConfigError::new(format!("the variable `{name}` is set twice"), place)
                    .and(reader.place(&line.span(), "once here")),
            );
        }
        env.push((at(name), at(value)));
    }
    let args = parts.args.into_iter().map(at).collect();
    Some(Command { key: "cmd", program: at(parts.program), args, env })
}

/// The bytes `part` of a text, as bytes of the file: exactly where the text stands in it as it is, else all of
/// the text (where it is written with escapes or over several lines).
fn within(
    reader: &Reader<'_>,
    text: &Spanned<String>,
    part: &std::ops::Range<usize>,
) -> std::ops::Range<usize> {
    let span = text.span();
    let inside = span.start + 1..span.end.saturating_sub(1);
    if reader.file.text.get(inside.clone()) == Some(text.get_ref()) && !part.is_empty() {
        inside.start + part.start..inside.start + part.end
    } else {
        span
    }
}

/// `[memory]`.
#[derive(Default)]
pub(super) struct DeclaredMemory {
    pub(super) gpu: Option<Spanned<Memory>>,
    pub(super) host: Option<Bytes>,
}

pub(super) fn memory(mut table: Table<'_, '_>, reader: &Reader<'_>) -> DeclaredMemory {
    let gpu = table
        .one_or_each::<Bytes>("gpu", "a size, for example \"14.3 GiB\", or an array with one for each GPU");
    let host = table.parsed::<Bytes>("host", "a size, for example \"6 GiB\"");
    table.finish();
    DeclaredMemory { gpu: gpu.and_then(|gpu| on_gpus(gpu, reader)), host: host.map(Spanned::into_inner) }
}

fn on_gpus(gpu: Spanned<OneOrEach<Bytes>>, reader: &Reader<'_>) -> Option<Spanned<Memory>> {
    let span = gpu.span();
    let demand = match gpu.into_inner() {
        OneOrEach::One(total) => Memory::Total(total),
        OneOrEach::Each(each) => Memory::PerDevice(each),
    };
    let wrong = match &demand {
        Memory::Total(Bytes::ZERO) => "for a model without a GPU write `policy = \"cpu\"`",
        Memory::PerDevice(each) if each.is_empty() => {
            "this names no GPU; for a model without one write `policy = \"cpu\"`"
        }
        Memory::PerDevice(each) if each.contains(&Bytes::ZERO) => {
            "leave GPUs out that the model does not use"
        }
        _ => return Some(Spanned::new(span, demand)),
    };
    reader.error("`memory.gpu` must be more than 0", &span, wrong);
    None
}
