//! The command line that a model is to have: what only ran the server is taken off, and what would run it where Berth
//! can't see it is refused.

use berth_core::config::{self, BackendKind};
use berth_core::container::{COMPOSERS, Engine};
use berth_core::{backend, rivals};
use toml::Value;

use super::container;
use super::draft::Draft;
use super::from_unit::Refusal;

const SHELLS: [&str; 6] = ["ash", "bash", "dash", "ksh", "sh", "zsh"];

/// Programs that take a server out of its unit, or can't run in one.
const AWAY: [(&str, &str); 8] = [
    ("sudo", "it asks for a password; User= says who the server runs as"),
    ("doas", "it asks for a password; User= says who the server runs as"),
    ("su", "it opens a session of its own; User= says who the server runs as"),
    ("runuser", "it opens a session of its own; User= says who the server runs as"),
    ("nohup", "the server would leave systemd's sight; run it without"),
    ("setsid", "the server would leave systemd's sight; run it without"),
    ("screen", "the server would run in a session outside its unit; run it without"),
    ("tmux", "the server would run in a session outside its unit; run it without"),
];

/// Settles the draft's command line, with what it says of backend and port.
pub(super) fn settle(draft: &mut Draft) -> Result<(), Refusal> {
    no_placeholders(draft)?;
    settle_placed(draft)
}

/// Refuses words that only in a declaration stand for the address.
pub(super) fn no_placeholders(draft: &Draft) -> Result<(), Refusal> {
    if let Some(arg) = draft.argv.iter().skip(1).find(|arg| arg.contains("{port}") || arg.contains("{host}"))
    {
        let what = format!("`{arg}` would be taken for Berth's own placeholder of the address");
        return Err(Refusal::new(what, "write the address out"));
    }
    Ok(())
}

/// The same as [`settle`], where placeholders are meant as such.
pub(super) fn settle_placed(draft: &mut Draft) -> Result<(), Refusal> {
    while unwrap_env(draft) || unwrap_shell(draft) {}
    if let Some(engine) = draft.argv.first().and_then(|program| Engine::of(program)) {
        return container::settle(draft, engine);
    }
    for command in seen(&draft.argv) {
        refuse(&command)?;
    }
    let [program, args @ ..] = draft.argv.as_slice() else { return Ok(()) };
    let kind = backend::kind_of(program, args);
    if kind == BackendKind::Command {
        behind(draft);
    }
    Ok(())
}

/// Takes `env NAME=value` off.
fn unwrap_env(draft: &mut Draft) -> bool {
    let [program, args @ ..] = draft.argv.as_slice() else { return false };
    if base(program) != "env" {
        return false;
    }
    let set: Vec<(String, String)> = args.iter().map_while(|arg| assignment(arg)).collect();
    let rest = &args[set.len()..];
    if !rest.first().is_some_and(|program| program.starts_with('/')) {
        return false;
    }
    draft.argv = rest.to_vec();
    draft.env.extend(set);
    true
}

/// Takes a shell off that does nothing but run one command.
fn unwrap_shell(draft: &mut Draft) -> bool {
    let [program, flag, script] = draft.argv.as_slice() else { return false };
    if !SHELLS.contains(&base(program)) || flag != "-c" {
        return false;
    }
    let script = script.trim();
    let command = script.strip_prefix("exec ").unwrap_or(script).trim_start();
    // What a shell would look for among files.
    if unquoted(command).contains(['*', '?', '[', '{', '!', '\n']) {
        return false;
    }
    let Ok(parts) = config::parts(command) else { return false };
    if !parts.program.starts_with('/') {
        return false;
    }
    let what = format!("{program} -c");
    draft.argv = std::iter::once(parts.program).chain(parts.args).collect();
    draft.env.extend(parts.env);
    draft.note(what, "left out: all it did was to run this command");
    true
}

/// The commands that are known to run: the command line itself, and those of a shell's script.
fn seen(argv: &[String]) -> Vec<Vec<String>> {
    let mut all = vec![argv.to_vec()];
    let is_shell = argv.first().is_some_and(|program| SHELLS.contains(&base(program)));
    if let Some(script) = argv.iter().skip(1).find(|arg| !arg.starts_with('-')).filter(|_| is_shell) {
        for command in script.split(['\n', ';', '&', '|', '(', ')', '{', '}']) {
            let words = shell_words::split(command).unwrap_or_default();
            let begins = words.iter().position(|word| word != "exec" && assignment(word).is_none());
            all.extend(begins.map(|begins| words[begins..].to_vec()));
        }
    }
    all
}

fn refuse(command: &[String]) -> Result<(), Refusal> {
    let Some(program) = command.first().map(|program| base(program)) else { return Ok(()) };
    if let Some((_, why)) = AWAY.iter().find(|(name, _)| *name == program) {
        return Err(Refusal::new(format!("`{program}` can't run a model: {why}"), ""));
    }
    if COMPOSERS.contains(&program) {
        return Err(Refusal::new(
            format!("`{program}` runs servers in the background, outside their unit"),
            "run the one server that is the model: docker run … IMAGE …, or podman run … IMAGE …",
        ));
    }
    if Engine::of(program).is_some() {
        let what = format!("a shell runs `{program}`, and Berth has to see with which options");
        return Err(Refusal::new(what, format!("let it run {program} alone; ExecStartPre= runs before it")));
    }
    Ok(())
}

/// What is known of a server that something else starts.
fn behind(draft: &mut Draft) {
    let position = draft.argv.iter().position(|arg| base(arg).starts_with("llama-server"));
    if let Some(at) = position.filter(|at| *at > 0) {
        // What stands before it must not be taken for the server's own flags.
        let plain = draft.argv[1..at].iter().all(|arg| !arg.starts_with('-') || arg.starts_with("--"));
        if plain && !SHELLS.contains(&base(&draft.argv[0])) {
            draft.keys.insert("backend".to_owned(), Value::from("llama.cpp"));
            return;
        }
    }
    let words: Vec<String> =
        draft.argv.iter().flat_map(|arg| shell_words::split(arg).unwrap_or_default()).collect();
    let given = |words: &[String]| {
        let pair = words.windows(2).find(|pair| pair[0] == "--port").map(|pair| pair[1].clone());
        pair.or_else(|| words.iter().find_map(|word| word.strip_prefix("--port=").map(str::to_owned)))
    };
    let own = draft.argv.iter().any(|arg| arg == "--port" || arg.starts_with("--port="));
    if let Some(port) = given(&words).and_then(|port| port.parse::<u16>().ok()).filter(|_| !own) {
        draft.keys.insert("port".to_owned(), Value::from(i64::from(port)));
    } else if !own && !draft.env.contains_key("PORT") {
        let why = "Berth can't see on which port it listens: add `port = NUMBER`, or let it listen on $PORT";
        draft.note(rivals::server_of(&draft.argv).unwrap_or_else(|| base(&draft.argv[0]).to_owned()), why);
    }
}

/// A script without what stands in quotes.
fn unquoted(script: &str) -> String {
    let mut quote = None;
    let mut out = String::new();
    let mut chars = script.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (Some('\''), _) => {}
            (_, '\\') => _ = chars.next(),
            (None, c) => out.push(c),
            (Some(_), _) => {}
        }
    }
    out
}

fn assignment(word: &str) -> Option<(String, String)> {
    let (name, value) = word.split_once('=')?;
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let plain = starts && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    plain.then(|| (name.to_owned(), value.to_owned()))
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}
