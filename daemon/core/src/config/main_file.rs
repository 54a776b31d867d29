//! `berth.toml`: what holds for the whole node. All of it may be left out.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use super::access::{self, Access};
use super::error::ConfigError;
use super::reader::{Reader, Table};
use super::{
    API_PORT, Boot, ClientKey, Deadlines, Guests, Health, OnDemand, PROXY_PORT, PortRange, Proxy, Restart,
    Settings, SourceFile, UnknownName, history,
};
use crate::bytes::Bytes;
use crate::proxy::KeyHash;

/// Kept free on each GPU for what no declaration holds: kernels and workspaces that CUDA loads at first use,
/// allocators that round up to their blocks, a desktop that opens a window. A judgement, not a measurement:
/// small beside a 16 GiB card (1.6%), and several times the block to which an allocator rounds.
const HEADROOM: Bytes = Bytes::mib(256);

/// A judgement: ten of the readings that are made when nothing goes on. A card that falls off the bus for good does so
/// within seconds of its Xid, and one that was reset answers like any other.
const SOUND: Duration = Duration::from_secs(10);

/// Generous on purpose, since a deadline that passes fails the swap: a server finishes what it answers before it
/// ends, a driver gives memory back seconds after a process's end, and large weights from a slow disk together
/// with vLLM's graphs take minutes.
const DEADLINES: Deadlines = Deadlines {
    drain: Duration::from_secs(60),
    stop: Duration::from_secs(30),
    release: Duration::from_secs(60),
    start: Duration::from_secs(15 * 60),
    // A server on this machine accepts at once, unless its queue is full.
    connect: Duration::from_secs(5),
    // Long prompts on a CPU take so long.
    first_byte: Duration::from_mins(30),
    idle: IDLE,
};

const IDLE: Duration = Duration::from_mins(10);

/// A crash is mostly a single one, so the first restart comes at once as far as people notice; one that comes again
/// and again shall cost a machine nothing. Five in ten minutes are no accident: with these pauses the fifth comes
/// within half a minute of the first.
const RESTART: Restart = Restart {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(5 * 60),
    healthy: Duration::from_secs(10 * 60),
    failures: 5,
    window: Duration::from_secs(10 * 60),
};

/// A card that trains its link late, and a disk that is checked before it is mounted.
const BOOT: Boot = Boot { gpus: Duration::from_secs(2 * 60), files: Duration::from_secs(5 * 60) };

/// A hung model is found within a minute, for a connection every ten seconds. Long prompts on a CPU can keep a server
/// that answers nothing meanwhile at work for minutes.
const HEALTH: Health = Health {
    every: Some(Duration::from_secs(10)),
    failures: 3,
    token: Some(Duration::from_mins(5)),
    busy: Duration::from_mins(10),
};

/// No client takes production away unless an operator says so. Agents that think or run tools between two requests come back
/// within minutes; a load costs about one.
const GUESTS: Guests = Guests { on_demand: OnDemand::Beside, idle: Duration::from_mins(10) };

/// Clients on other machines need an address that somebody chose. Bodies carry images and sound. Who waits longer than ten
/// minutes has given up: that is when the usual clients do.
fn proxy_defaults() -> Proxy {
    Proxy {
        listen: vec![SocketAddr::from(([127, 0, 0, 1], PROXY_PORT))],
        unknown: UnknownName::Refuse,
        body: Bytes::mib(256),
        queue: 256,
        wait: Duration::from_mins(10),
        // About what a load takes: then at least half of the time is served in.
        turn: Duration::from_mins(1),
        idle: IDLE,
        connections: 4096,
        keys: Vec::new(),
        cors: Vec::new(),
    }
}

/// Above the ports that people give to servers by hand.
const PORTS: PortRange = PortRange { first: 8100, last: 8199 };

/// The settings without models, and what is wrong with the file.
pub(super) fn read(file: Option<&SourceFile>, host_name: &str) -> (Settings, Vec<ConfigError>) {
    let mut settings = Settings { source: file.map(|file| file.path.clone()), ..defaults(host_name) };
    let Some(file) = file else { return (settings, Vec::new()) };
    let reader = Reader::new(file);
    if file.text.is_empty() {
        // Written and not synced before a power cut, most likely: its settings would be lost silently.
        reader.note(
            ConfigError::new("the file is empty", reader.place(&(0..0), ""))
                .help("restore its content, or remove the file: then everything is by default"),
        );
    } else if let Some(table) = reader.parse() {
        read_keys(Table::root(&reader, &table), &reader, &mut settings);
    }
    let found = reader.finish();
    settings.declared = found.declared;
    settings.warnings = found.warnings;
    (settings, found.errors)
}

/// What holds where there is no file.
pub(super) fn defaults(host_name: &str) -> Settings {
    Settings {
        node: host_name.to_owned(),
        headroom: HEADROOM,
        sound: SOUND,
        deadlines: DEADLINES,
        restart: RESTART,
        boot: BOOT,
        health: HEALTH,
        proxy: proxy_defaults(),
        http: access::http_defaults(),
        access: Access::default(),
        history: history::DEFAULT,
        guests: GUESTS,
        notify: Vec::new(),
        policies: BTreeMap::new(),
        models: BTreeMap::new(),
        warnings: Vec::new(),
        ports: PORTS,
        source: None,
        declared: BTreeMap::new(),
    }
}

/// Every key of the file, into the settings.
pub(super) fn read_keys(mut root: Table<'_, '_>, reader: &Reader<'_>, settings: &mut Settings) {
    read_node(&mut root, reader, settings);
    settings.guests = guests(&mut root, settings.guests);
    if let Some(mut gpu) = root.table("gpu") {
        let size = "a size, for example \"256 MiB\"";
        settings.headroom = gpu.parsed_or("headroom", size, settings.headroom);
        settings.sound = gpu.duration_or("sound", settings.sound);
        gpu.finish();
    }
    settings.deadlines = node_deadlines(&mut root, settings.deadlines);
    settings.restart = restart(&mut root, settings.restart);
    if let Some(mut boot) = root.table("boot") {
        settings.boot.gpus = boot.duration_or("gpus", settings.boot.gpus);
        settings.boot.files = boot.duration_or("files", settings.boot.files);
        boot.finish();
    }
    settings.health = health(&mut root, settings.health);
    proxy(&mut root, reader, settings);
    access::http(&mut root, reader, &mut settings.http, &settings.proxy.listen);
    access::rights(&mut root, &mut settings.access);
    settings.notify = super::notify::read(&mut root, reader);
    settings.history = history::read(&mut root, reader, settings.history);
    if let Some(mut ports) = root.table("ports") {
        let text = ports.string("range", "two ports, for example \"8100-8199\"");
        ports.by_default("range", settings.ports.to_string());
        if let Some(text) = text {
            match range(text.get_ref()) {
                Ok(range) => settings.ports = range,
                Err(why) => reader.error(
                    "`ports.range` must be two ports, for example \"8100-8199\"",
                    &text.span(),
                    why,
                ),
            }
        }
        ports.finish();
    }
    root.finish();
}

fn read_node(root: &mut Table<'_, '_>, reader: &Reader<'_>, settings: &mut Settings) {
    let Some(node) = root.string("node", "a name as text") else { return };
    let name = node.get_ref();
    if name.is_empty() || name.len() > 64 || name.contains(|c: char| c.is_control() || c.is_whitespace()) {
        reader.error("`node` must be a name of 1 to 64 characters without spaces", &node.span(), "");
    } else {
        settings.node.clone_from(name);
    }
}

/// A model's `[deadlines]`, where it is given; else what holds already.
pub(super) fn deadlines(root: &mut Table<'_, '_>, otherwise: Deadlines) -> Deadlines {
    let Some(mut table) = root.table("deadlines") else { return otherwise };
    let first_byte = table.duration_or("first_byte", otherwise.first_byte);
    let idle = table.duration_or("idle", otherwise.idle);
    steps(table, Deadlines { first_byte, idle, ..otherwise })
}

/// The node's. What it says of answers stands in `[proxy]`.
fn node_deadlines(root: &mut Table<'_, '_>, otherwise: Deadlines) -> Deadlines {
    root.table("deadlines").map_or(otherwise, |table| steps(table, otherwise))
}

fn steps(mut table: Table<'_, '_>, otherwise: Deadlines) -> Deadlines {
    let drain = table.duration_or("drain", otherwise.drain);
    let stop = table.duration_or("stop", otherwise.stop);
    let release = table.duration_or("release", otherwise.release);
    let start = table.duration_or("start", otherwise.start);
    let connect = table.duration_or("connect", otherwise.connect);
    table.finish();
    Deadlines { drain, stop, release, start, connect, ..otherwise }
}

/// `on_demand` and `guest_idle`, where they are given; else what holds already.
pub(super) fn guests(root: &mut Table<'_, '_>, otherwise: Guests) -> Guests {
    let choices = [OnDemand::Beside, OnDemand::Evict, OnDemand::Never].map(|how| (how.as_str(), how));
    let on_demand = root.choice_or("on_demand", &choices, otherwise.on_demand);
    Guests { on_demand, idle: root.duration_or("guest_idle", otherwise.idle) }
}

/// `listen` of the table of this name, where it is given.
pub(super) fn listen(
    table: &mut Table<'_, '_>,
    reader: &Reader<'_>,
    name: &str,
    addresses: &mut Vec<SocketAddr>,
) {
    const ADDRESSES: &str = "addresses with ports, for example [\"127.0.0.1:8010\", \"[::1]:8010\"]";
    let listen = table.strings("listen", ADDRESSES);
    table.by_default("listen", addresses.iter().map(ToString::to_string).collect::<Vec<_>>());
    let Some(listen) = listen else { return };
    addresses.clear();
    for text in listen.get_ref() {
        match text.get_ref().parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 => {
                table.complain("listen", ADDRESSES, &text.span(), "ports are 1 to 65535");
            }
            Ok(address) if addresses.contains(&address) => {
                reader.error(format!("`{name}.listen` names {address} twice"), &text.span(), "");
            }
            Ok(address) => addresses.push(address),
            Err(error) => table.complain("listen", ADDRESSES, &text.span(), &error.to_string()),
        }
    }
}

/// `[proxy]`, where it is given.
fn proxy(root: &mut Table<'_, '_>, reader: &Reader<'_>, settings: &mut Settings) {
    let Some(mut table) = root.table("proxy") else { return };
    let (proxy, deadlines) = (&mut settings.proxy, &mut settings.deadlines);
    listen(&mut table, reader, "proxy", &mut proxy.listen);
    cors(&mut table, &mut proxy.cors);
    let unknown = [("refuse", UnknownName::Refuse), ("default", UnknownName::Default)];
    proxy.unknown = table.choice_or("unknown", &unknown, proxy.unknown);
    proxy.body = table.parsed_or("body", "a size, for example \"256 MiB\"", proxy.body);
    let whole = "a whole number from 1 to 100000";
    proxy.queue = table.whole_or("queue", 1..=100_000, whole, proxy.queue);
    proxy.connections = table.whole_or("connections", 1..=100_000, whole, proxy.connections);
    for (name, mut key) in table.tables("keys") {
        let hash = key.parsed::<KeyHash>("sha256", "the SHA-256 of a key; `berthctl key` makes one");
        let models = key.strings("models", "an array of models' names");
        let loads = key.boolean_or("loads", true);
        if hash.is_none() && !key.has("sha256") {
            reader.error(
                format!("the key `{}` has no `sha256`", name.get_ref()),
                &name.span(),
                "`berthctl key` makes one",
            );
        }
        let models = models.map(|models| models.into_inner().into_iter().map(Spanned::into_inner).collect());
        if let Some(hash) = hash {
            let (name, hash) = (name.get_ref().clone(), hash.into_inner());
            proxy.keys.push(ClientKey { name, hash, models, loads });
        }
        key.finish();
    }
    if let Some(span) = table.span("listen")
        && let Some(address) = proxy.listen.iter().find(|address| !address.ip().is_loopback())
        && proxy.keys.is_empty()
    {
        let label = "other machines reach it";
        let place = reader.place(&span, label);
        let message = format!("whoever reaches {address} may ask every model");
        reader.warn(ConfigError::new(message, place).help("`berthctl key NAME` makes a key for a client"));
    }
    proxy.wait = table.duration_or("wait", proxy.wait);
    proxy.turn = table.duration_or("turn", proxy.turn);
    deadlines.first_byte = table.duration_or("first_byte", deadlines.first_byte);
    proxy.idle = table.duration_or("idle", proxy.idle);
    deadlines.idle = proxy.idle;
    table.finish();
}

fn cors(table: &mut Table<'_, '_>, origins: &mut Vec<String>) {
    const ORIGINS: &str = "origins of web pages, for example [\"https://chat.example\"], or [\"*\"] for all";
    let Some(declared) = table.strings("cors", ORIGINS).map(Spanned::into_inner) else { return };
    for text in &declared {
        let wrong = match text.get_ref().as_str() {
            "*" if declared.len() > 1 => Some("with this the others have no effect"),
            "*" => None,
            origin => bad_origin(origin),
        };
        if let Some(why) = wrong {
            table.complain("cors", ORIGINS, &text.span(), why);
        }
    }
    *origins = declared.into_iter().map(Spanned::into_inner).collect();
}

/// Why no browser says this of a page.
fn bad_origin(origin: &str) -> Option<&'static str> {
    let Some((scheme, host)) = origin.split_once("://") else {
        return Some("it begins with `https://` or the like");
    };
    let default_port = [("http", ":80"), ("https", ":443")];
    if origin.contains(|c: char| !c.is_ascii_graphic() || c.is_ascii_uppercase()) {
        Some("browsers write it in small letters, with ASCII for other ones")
    } else if scheme.is_empty() || host.is_empty() {
        Some("a scheme and a host are both needed")
    } else if host.contains(['/', '?', '#', '@', '*', ',']) {
        Some("it ends with the host or its port, and nothing stands for others")
    } else if default_port.iter().any(|(of, port)| scheme == *of && host.ends_with(port)) {
        Some("browsers leave this port out")
    } else {
        None
    }
}

fn restart(root: &mut Table<'_, '_>, otherwise: Restart) -> Restart {
    let Some(mut table) = root.table("restart") else { return otherwise };
    let restart = Restart {
        first: table.duration_or("first", otherwise.first),
        longest: table.duration_or("longest", otherwise.longest),
        healthy: table.duration_or("healthy", otherwise.healthy),
        failures: failures(&mut table, otherwise.failures),
        window: table.duration_or("window", otherwise.window),
    };
    table.finish();
    restart
}

/// `[health]`, where it is given; else what holds already.
pub(super) fn health(root: &mut Table<'_, '_>, otherwise: Health) -> Health {
    let Some(mut table) = root.table("health") else { return otherwise };
    let every = table.duration_or_off("every", otherwise.every);
    let failures = failures(&mut table, otherwise.failures);
    let token = table.duration_or_off("token", otherwise.token);
    let busy = table.duration_or("busy", otherwise.busy);
    table.finish();
    Health { every, failures, token, busy }
}

fn failures(table: &mut Table<'_, '_>, otherwise: u32) -> u32 {
    table.whole_or("failures", 1..=1000, "a number from 1 to 1000", otherwise)
}

fn range(text: &str) -> Result<PortRange, String> {
    let bounds = text.split_once('-').and_then(|(first, last)| {
        Some(PortRange { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? })
    });
    match bounds {
        None => Err("not two ports with `-` between them".to_owned()),
        Some(PortRange { first: 0, .. }) => Err("port 0 is no port".to_owned()),
        Some(range) if range.first > range.last => Err("the first is larger than the last".to_owned()),
        Some(range) => match [API_PORT, PROXY_PORT].into_iter().find(|port| range.contains(*port)) {
            Some(port) => Err(format!("{port} is one of Berth's own")),
            None => Ok(range),
        },
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl PortRange {
    fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// What is wrong with a port for a model, if anything.
pub(super) fn bad_port(port: &Spanned<u16>) -> Option<(Range<usize>, &'static str)> {
    let why = match *port.get_ref() {
        0 => "port 0 is no port",
        API_PORT => "8009 is the control API's port",
        PROXY_PORT => "8010 is the proxy's port, where clients reach every model",
        _ => return None,
    };
    Some((port.span(), why))
}
