//! The options of `docker run` and `podman run`, as far as they decide how the server is reached, held and ended.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::path::PathBuf;

use crate::config::is_secret;

use super::{Container, Engine, Gpus, Published, Unfit};

/// Options of `run` that take no value; all others take one.
const SWITCHES: &[&str] = &[
    "--detach",
    "--disable-content-trust",
    "--env-host",
    "--help",
    "--http-proxy",
    "--init",
    "--interactive",
    "--no-healthcheck",
    "--no-hostname",
    "--no-hosts",
    "--oom-kill-disable",
    "--passwd",
    "--privileged",
    "--publish-all",
    "--quiet",
    "--read-only",
    "--read-only-tmpfs",
    "--replace",
    "--rm",
    "--rmi",
    "--rootfs",
    "--sig-proxy",
    "--tls-verify",
    "--tty",
    "--unsetenv-all",
    "--use-api-socket",
];

/// Letters of those, and of the options with a value that matter here.
const SHORT: &[(char, &str)] = &[
    ('d', "--detach"),
    ('i', "--interactive"),
    ('P', "--publish-all"),
    ('q', "--quiet"),
    ('t', "--tty"),
    ('e', "--env"),
    ('p', "--publish"),
    ('v', "--volume"),
];

/// Options before `run` that take no value.
const GLOBAL_SWITCHES: &[&str] = &[
    "-D",
    "--debug",
    "--help",
    "--noout",
    "--remote",
    "-r",
    "--syslog",
    "--tls",
    "--tlsverify",
    "--transient-store",
];

/// Options before `run` that can lead to another machine, or to another engine of this one.
const ELSEWHERE: &[&str] = &["-c", "--connection", "--context", "-H", "--host", "--remote", "-r", "--url"];

/// Variables that do the same.
const ELSEWHERE_BY_ENV: &[&str] =
    &["DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST", "CONTAINER_CONNECTION"];

/// The variable by which NVIDIA's runtime is told the GPUs.
const BY_ENV: &str = "NVIDIA_VISIBLE_DEVICES";

/// What is at a folder inside: a folder of this machine, or None for what only the engine knows.
pub(super) type Mount = (Option<PathBuf>, PathBuf);

const WHOLE: &str = "write the whole path, from `/`";

/// One option of `run`.
struct Given<'a> {
    /// Where it begins, and where among the letters of that word it stands.
    at: usize,
    letter: Option<usize>,
    /// How many words it takes.
    words: usize,
    /// Its long name.
    name: String,
    /// Its value as it is written.
    value: Option<&'a str>,
}

impl Given<'_> {
    fn is_off(&self) -> bool {
        self.value.is_some_and(|value| ["false", "0", "f"].contains(&value.to_ascii_lowercase().as_str()))
    }
}

/// Takes the arguments of an engine apart. Which of its ports is the server's is to be settled.
pub(super) fn read(engine: Engine, args: &[String]) -> Result<(Container, usize), Unfit> {
    let run = verb(engine, args)?;
    let (given, image) = options(args, run + 1)?;
    for option in &given {
        refuse(option)?;
    }
    let mut container = Container {
        engine,
        verb: args[..=run].to_vec(),
        options: without_secrets(args, &given, run + 1..image),
        image: args[image].clone(),
        entrypoint: None,
        host_network: false,
        ports: Vec::new(),
        port: None,
        mounts: Vec::new(),
        env: BTreeMap::new(),
        passed: BTreeSet::new(),
        gpus: Gpus::Unsaid,
    };
    for Given { at, name, value, .. } in given {
        let value = value.unwrap_or_default();
        match name.as_str() {
            "--entrypoint" => {
                container.entrypoint = Some(value.to_owned()).filter(|program| !program.is_empty());
            }
            "--network" | "--net" => container.host_network = value == "host",
            "--env" => match value.split_once('=') {
                Some((name, value)) => {
                    container.gpus_by_env(name, value);
                    if is_secret(name) {
                        container.passed.insert(name.to_owned());
                    }
                    container.env.insert(name.to_owned(), value.to_owned());
                }
                None => _ = container.passed.insert(value.to_owned()),
            },
            "--volume" => container.mounts.push(volume(value).map_err(|why| unfit(at, why, WHOLE))?),
            "--mount" => container.mounts.extend(mount(value).map_err(|why| unfit(at, why, WHOLE))?),
            "--tmpfs" => container.mounts.push((None, value.split(':').next().unwrap_or_default().into())),
            "--gpus" | "--device" => {
                if let Some(which) = gpus(&name, value) {
                    container.gpus = container.gpus.with(which);
                }
            }
            "--publish" => {
                let port =
                    published(value).map_err(|why| unfit(at, why, "write it as -p 127.0.0.1:8022:8000"))?;
                container.ports.extend(port);
            }
            _ => {}
        }
    }
    Ok((container, image + 1))
}

/// The options of `run` as they are written, but for the values of secrets: everybody sees a command line.
fn without_secrets(args: &[String], given: &[Given<'_>], run: Range<usize>) -> Vec<String> {
    let mut words: Vec<Vec<String>> = args[..run.end].iter().map(|word| vec![word.clone()]).collect();
    for option in given.iter().filter(|option| option.name == "--env") {
        let Some((name, _)) = option.value.and_then(|value| value.split_once('=')) else { continue };
        if is_secret(name) {
            // Switches may stand before it in the same word.
            let before = option.letter.map(|letter| &args[option.at][..letter]).filter(|word| *word != "-");
            words[option.at..option.at + option.words].fill(Vec::new());
            words[option.at].extend(before.map(str::to_owned));
            words[option.at].push(format!("--env={name}"));
        }
    }
    // A `--` says no more than where the image stands.
    words.into_iter().skip(run.start).flatten().filter(|word| word != "--").collect()
}

/// Which GPUs an option of `run` names, as they are written; None where it is about something else.
pub fn gpus<'a>(option: &str, value: &'a str) -> Option<&'a str> {
    match option {
        "--gpus" => Some(value),
        "--device" if value.starts_with("/dev/nvidia") => Some(value),
        "--device" => {
            value.split_once('=').filter(|(kind, _)| kind.ends_with("/gpu")).map(|(_, which)| which)
        }
        "--env" => value.split_once('=').filter(|(name, _)| *name == BY_ENV).map(|(_, which)| which),
        _ => None,
    }
}

/// Whether these are all GPUs, whatever follows of what the server may do with them.
pub fn is_all(which: &str) -> bool {
    ["all", "-1"].contains(&which.split(',').next().unwrap_or_default())
}

impl Gpus {
    fn with(self, which: &str) -> Self {
        match self {
            Self::Unsaid | Self::All if is_all(which) => Self::All,
            _ => Self::Chosen,
        }
    }
}

impl Container {
    /// What a variable says of its GPUs, which NVIDIA's own runtime alone reads.
    pub(crate) fn gpus_by_env(&mut self, name: &str, value: &str) {
        if name == BY_ENV && has(&self.options, "--runtime", "nvidia") {
            self.gpus = self.gpus.with(value);
        }
    }
}

/// The arguments of an engine without those options of `run` of which `drop` says so, by long name and value; and these
/// as they are written.
pub fn without(args: &[String], drop: impl Fn(&str, Option<&str>) -> bool) -> (Vec<String>, Vec<String>) {
    let run = args.iter().position(|arg| arg == "run").map_or(0, |run| run + 1);
    let Ok((given, _)) = options(args, run) else { return (args.to_vec(), Vec::new()) };
    let (mut kept, mut dropped) = (args.iter().cloned().map(Some).collect::<Vec<_>>(), Vec::new());
    // From the last one on, so that places stay what they are.
    for option in given.iter().rev().filter(|option| drop(&option.name, option.value)) {
        let letters = option.letter.filter(|_| args[option.at].len() > 2 && option.words == 1);
        if let (Some(letter), None) = (letters, option.value)
            && let Some(word) = &mut kept[option.at]
        {
            dropped.push(format!("-{}", word.remove(letter)));
            continue;
        }
        let words = option.at..option.at + option.words;
        dropped.push(args[words.clone()].join(" "));
        kept[words].fill(None);
    }
    dropped.reverse();
    (kept.into_iter().flatten().filter(|word| word != "-").collect(), dropped)
}

/// Whether there is such an option of `run`, with a value that begins so.
pub(super) fn has(words: &[String], name: &str, value: &str) -> bool {
    // The image ends them.
    let words = [words, &[String::new()]].concat();
    let is = |option: &Given<'_>| option.name == name && option.value.unwrap_or_default().starts_with(value);
    options(&words, 0).is_ok_and(|(given, _)| given.iter().any(is))
}

fn unfit(at: usize, why: impl Into<String>, instead: impl Into<String>) -> Unfit {
    Unfit { at, why: why.into(), instead: instead.into() }
}

/// Where `run` stands.
fn verb(engine: Engine, args: &[String]) -> Result<usize, Unfit> {
    let instead = format!("write it as `{engine} run … IMAGE …`");
    let mut at = 0;
    while let Some(arg) = args.get(at).filter(|arg| arg.starts_with('-')) {
        let (name, value) = global(arg);
        let takes = value.is_none() && !GLOBAL_SWITCHES.contains(&name.as_str());
        let value = if takes { args.get(at + 1).map(String::as_str) } else { value };
        // docker's daemon on this machine; with podman it would not run below the unit.
        let here = ["-H", "--host"].contains(&name.as_str()) && value.is_some_and(is_here);
        // podman's `-c` is docker's `--context`.
        if ELSEWHERE.contains(&name.as_str()) && !here {
            let why = format!("`{name}` may run the server on another machine");
            return Err(unfit(at, why, "leave it out: Berth runs what is on this machine"));
        }
        at += if takes { 2 } else { 1 };
    }
    let word = |at: usize| args.get(at).map_or("", String::as_str);
    match (word(at), word(at + 1)) {
        ("run", _) => Ok(at),
        ("container", "run") => Ok(at + 1),
        ("", _) => Err(unfit(0, format!("`{engine}` is told nothing to do"), instead)),
        ("start" | "restart", _) => {
            let why =
                format!("`{engine} {}` runs a container that was made elsewhere, outside its unit", word(at));
            Err(unfit(at, why, format!("{instead}, with the options that it was made with")))
        }
        ("compose" | "stack" | "kube" | "play", _) => {
            let why = format!("`{engine} {}` runs servers in the background, outside their unit", word(at));
            Err(unfit(at, why, format!("{instead}, for the one server that is the model")))
        }
        (other, _) => Err(unfit(at, format!("`{engine} {other}` runs no server"), instead)),
    }
}

/// Whether an engine at this address is on this machine.
fn is_here(address: &str) -> bool {
    address.starts_with("unix://")
}

/// Which of these variables may lead the engine to another machine, and what to do.
pub fn elsewhere(engine: Engine, name: &str, value: &str) -> Option<(String, &'static str)> {
    let here = engine == Engine::Docker && name == "DOCKER_HOST" && is_here(value);
    (ELSEWHERE_BY_ENV.contains(&name) && !here).then(|| {
        let why = format!("`{name}` may have {engine} run the server on another machine");
        (why, "leave it out: Berth runs what is on this machine")
    })
}

/// An option before `run`, by the name that decides, and its value where that stands in the same word.
fn global(arg: &str) -> (String, Option<&str>) {
    if arg.starts_with("--") {
        let (name, value) = split(arg);
        return (name.to_owned(), value);
    }
    // Letters of switches, then one that takes the rest or the next word.
    let mut name = arg.to_owned();
    for (place, letter) in arg.char_indices().skip(1) {
        name = format!("-{letter}");
        let rest = &arg[place + letter.len_utf8()..];
        let decides = ELSEWHERE.contains(&name.as_str()) || !GLOBAL_SWITCHES.contains(&name.as_str());
        if decides {
            return (name, Some(rest.strip_prefix('=').unwrap_or(rest)).filter(|value| !value.is_empty()));
        }
    }
    (name, None)
}

/// `--name=value` as its parts.
fn split(arg: &str) -> (&str, Option<&str>) {
    match arg.split_once('=') {
        Some((name, value)) if name.starts_with("--") => (name, Some(value)),
        _ => (arg, None),
    }
}

/// The options from `from` on, and where the image stands.
fn options(args: &[String], from: usize) -> Result<(Vec<Given<'_>>, usize), Unfit> {
    let mut given = Vec::new();
    let mut at = from;
    while let Some(arg) = args.get(at) {
        if arg == "--" {
            at += 1;
            break;
        }
        if !arg.starts_with('-') || arg == "-" {
            break;
        }
        let next = args.get(at + 1).map(String::as_str);
        let mut words = 1;
        if arg.starts_with("--") {
            let (name, value) = split(arg);
            let takes = !SWITCHES.contains(&name) && value.is_none();
            words += usize::from(takes);
            let value = if takes { next } else { value };
            given.push(Given { at, letter: None, words, name: name.to_owned(), value });
        } else {
            // Letters of switches, then one that takes the rest or the next word.
            for (place, letter) in arg.char_indices().skip(1) {
                let known = SHORT.iter().find(|(short, _)| *short == letter);
                let name = known.map_or_else(|| format!("-{letter}"), |(_, long)| (*long).to_owned());
                let rest = &arg[place + letter.len_utf8()..];
                let switch = SWITCHES.contains(&name.as_str());
                let value = match rest.strip_prefix('=') {
                    Some(value) => Some(value),
                    None if switch => None,
                    None if rest.is_empty() => next,
                    None => Some(rest),
                };
                words += usize::from(!switch && rest.is_empty());
                given.push(Given { at, letter: Some(place), words, name, value });
                if value.is_some() || !switch {
                    break;
                }
            }
        }
        at += words;
    }
    if args.get(at).is_none() {
        return Err(unfit(
            from.saturating_sub(1),
            "no image is named",
            "add the image, and behind it the server's own flags",
        ));
    }
    Ok((given, at))
}

/// What keeps Berth from seeing, asking or ending the server.
fn refuse(option: &Given<'_>) -> Result<(), Unfit> {
    let Given { at, name, value, .. } = option;
    let value = value.unwrap_or_default();
    let (why, instead) = match name.as_str() {
        "--detach" if !option.is_off() => (
            "the server would go on in the background, and its unit would end at once",
            "leave `-d` out; systemd keeps it running",
        ),
        "--restart" if value != "no" => (
            "the engine would start the server again past Berth",
            "leave `--restart` out; Berth brings it back itself",
        ),
        "--sig-proxy" if option.is_off() => ("the server would not be told to stop", "leave it out"),
        "--tty" if !option.is_off() => {
            ("a unit has no terminal, and with one docker does not tell the server to stop", "leave `-t` out")
        }
        "--publish-all" if !option.is_off() => (
            "the machine's port would be another one at each start",
            "publish the server's own: -p 127.0.0.1:{port}:8000",
        ),
        "--cgroup-parent" => {
            ("it would run in another cgroup than that by which Berth knows its processes", "leave it out")
        }
        "--cgroups" if value != "split" => (
            "its processes would not be in the unit's cgroup, where Berth measures and ends them",
            "leave it out; Berth adds --cgroups=split",
        ),
        "--cidfile" => ("its file would keep the next start from working", "leave it out"),
        "--pod" | "--pod-id-file" => (
            "a pod's containers are not in the unit's cgroup",
            "run the server alone, with --network=host or a port that is published",
        ),
        "--network" | "--net" if value == "none" || value.starts_with("container:") => (
            "no port of this machine leads to the server",
            "use --network=host, or publish its port: -p 127.0.0.1:{port}:8000",
        ),
        _ => return Ok(()),
    };
    Err(unfit(*at, format!("with `{name}` {why}"), instead))
}

/// `[ADDRESS:]PORT:INSIDE[/tcp]`; None for another protocol.
fn published(text: &str) -> Result<Option<Published>, String> {
    let (text, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !protocol.eq_ignore_ascii_case("tcp") {
        return Ok(None);
    }
    let wrong = |what: &str| Err(format!("`{text}` publishes {what}"));
    let Some((outside, inside)) = text.rsplit_once(':') else {
        return wrong("the server's port at another one of the machine's at each start");
    };
    if inside == "{port}" {
        return wrong("another port of the server's for each that Berth gives; inside it is its own alone");
    }
    let Ok(inside) = inside.parse::<u16>() else { return wrong("several ports, or none that is a number") };
    let (address, port) = outside.rsplit_once(':').unwrap_or(("", outside));
    if port.is_empty() {
        return wrong("the server's port at another one of the machine's at each start");
    }
    if port != "{port}" && port.parse::<u16>().is_err() {
        return wrong("several ports, or none that is a number");
    }
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let host = match address {
        "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        address => match address.parse() {
            Ok(address) => address,
            Err(_) => return wrong("at no address"),
        },
    };
    Ok(Some(Published { host, port: port.to_owned(), inside }))
}

/// `/OUTSIDE:/INSIDE[:OPTIONS]`; a volume of the engine's is at no place of the machine's.
fn volume(text: &str) -> Result<Mount, String> {
    let mut parts = text.split(':');
    let first = parts.next().unwrap_or_default();
    match parts.next() {
        None => Ok((None, first.into())),
        Some(inside) => Ok((outside(first)?, inside.into())),
    }
}

/// `type=bind,source=/OUTSIDE,target=/INSIDE`.
fn mount(text: &str) -> Result<Option<Mount>, String> {
    let value = |names: &[&str]| {
        text.split(',').find_map(|part| {
            let (name, value) = part.split_once('=')?;
            names.contains(&name).then_some(value)
        })
    };
    let Some(inside) = value(&["target", "destination", "dst"]) else { return Ok(None) };
    let binds = value(&["type"]).is_none_or(|kind| kind == "bind");
    let source = value(&["source", "src"]).filter(|_| binds);
    Ok(Some((source.map(outside).transpose()?.flatten(), inside.into())))
}

/// A folder of this machine; None for a volume's name.
fn outside(text: &str) -> Result<Option<PathBuf>, String> {
    match text {
        _ if text.starts_with('/') => Ok(Some(text.into())),
        _ if text.contains('/') || text.starts_with(['.', '~']) => {
            Err(format!("`{text}` is another folder for each who starts it"))
        }
        _ => Ok(None),
    }
}
