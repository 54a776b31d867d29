//! A command line that runs its server by docker or podman: what can't be under Berth is taken off and told, and the unit is
//! let do what the engine needs.

use berth_core::config::is_secret;
use berth_core::container::{Container, Engine, elsewhere, gpus, is_all, without};

use super::draft::Draft;
use super::from_unit::Refusal;
use crate::remove::word;

/// Options that mean something else under Berth, and why they are left out.
const LEFT_OUT: [(&str, &str); 7] = [
    ("--cgroup-parent", "Berth decides in which cgroup it runs, to know its processes"),
    ("--cgroups", "Berth keeps all of it in the model's unit, with --cgroups=split"),
    ("--cidfile", "Berth finds the container without it"),
    ("--detach", "systemd keeps the server running"),
    ("--restart", "Berth brings a model back itself"),
    ("--sdnotify", "Berth asks the server itself whether it is ready"),
    ("--tty", "a unit has no terminal"),
];

/// What podman does and a model's unit forbids. The last two would keep a user's podman from its helpers: systemd lets no
/// program gain rights where a unit has filters of its own.
const PODMAN: [&str; 18] = [
    "Delegate=yes",
    "NoNewPrivileges=no",
    "CapabilityBoundingSet=~",
    "PrivateMounts=no",
    "ProtectSystem=no",
    "ProtectControlGroups=no",
    "ProtectKernelModules=no",
    "ProtectKernelTunables=no",
    "ProtectKernelLogs=no",
    "ProtectHostname=no",
    "ProtectProc=default",
    "RestrictAddressFamilies=",
    "RestrictNamespaces=no",
    "RestrictSUIDSGID=no",
    "LockPersonality=no",
    "SystemCallFilter=",
    "RestrictRealtime=no",
    "SystemCallArchitectures=",
];

/// What becomes of a container that runs now.
pub(super) const APART: &str = "goes on, in a cgroup that is not the service's: until it ends its memory and port count as somebody \
     else's; end it before `berthctl switch`";

/// Settles a draft whose program is a container engine.
pub(super) fn settle(draft: &mut Draft, engine: Engine) -> Result<(), Refusal> {
    let (program, args) = draft
        .argv
        .split_first()
        .map_or((String::new(), Vec::new()), |(program, args)| (program.clone(), args.to_vec()));
    let split = |name: &str, value: Option<&str>| name == "--cgroups" && value == Some("split");
    let (_, in_unit) = without(&args, split);
    draft.apart = engine == Engine::Docker || in_unit.is_empty();
    let why = |name: &str| LEFT_OUT.iter().find(|(left, _)| *left == name).map(|(_, why)| *why);
    for (name, why) in LEFT_OUT {
        let (_, dropped) = without(&args, |given, value| given == name && !split(given, value));
        if !dropped.is_empty() {
            draft.note(dropped.join(" "), format!("left out: {why}"));
        }
    }
    let (args, _) = without(&args, |name, value| why(name).is_some() && !split(name, value));
    let args = hide_secrets(draft, &args);
    draft.argv = std::iter::once(program.clone()).chain(args.iter().cloned()).collect();
    if let Some(Err(unfit)) = Container::read(&program, &args) {
        let what = format!("`{engine}` can't run a model like this: {}", unfit.why);
        return Err(Refusal::new(what, unfit.instead));
    }
    if let Some((why, instead)) = draft.env.iter().find_map(|(name, value)| elsewhere(engine, name, value)) {
        return Err(Refusal::new(why, instead));
    }
    ends(draft);
    // The variables so far are the engine's own; those of the file would go into the container.
    let env = std::mem::take(&mut draft.env);
    for (name, value) in env {
        // Where commands run beside the server they are there already.
        let there = |line: &String| line.starts_with("Environment=") && line.contains(&format!("{name}="));
        if is_secret(&name) {
            draft.env.insert(name, value);
        } else if !draft.service.iter().any(there) {
            draft.service.push(format!("Environment={}", word(&format!("{name}={value}"), false)));
        }
    }
    match engine {
        Engine::Docker => docker(draft),
        Engine::Podman => podman(draft),
    }
    Ok(())
}

/// Leaves out commands that end or remove the container.
fn ends(draft: &mut Draft) {
    let ends = |line: &String| {
        let (key, command) = line.split_once('=').unwrap_or_default();
        let mut words = command.trim_start_matches(['-', '@', ':']).split_whitespace();
        let engine = words.next().and_then(Engine::of).is_some();
        let verb = words.find(|word| !word.starts_with('-')).unwrap_or_default();
        key.starts_with("Exec") && engine && ["kill", "rm", "stop"].contains(&verb)
    };
    let (left_out, kept) = std::mem::take(&mut draft.service).into_iter().partition(ends);
    draft.service = kept;
    if !draft.service.iter().any(|line| line.starts_with("ExecStartPre=")) {
        draft.notes.retain(|note| note.what != "ExecStartPre=");
    }
    for line in left_out {
        draft.note(line, "left out: Berth ends the container and removes it");
    }
}

/// Takes the values of secret variables out of the command line: the unit has them, and the engine passes them on.
fn hide_secrets(draft: &mut Draft, args: &[String]) -> Vec<String> {
    let of = |text: &str| {
        text.split_once('=').filter(|(name, _)| is_secret(name)).map(|(n, v)| (n.to_owned(), v.to_owned()))
    };
    let given = |name: &str, value: Option<&str>| value.filter(|_| name == "--env").and_then(of);
    let found = std::cell::RefCell::new(Vec::new());
    let (mut args, _) = without(args, |name, value| {
        let secret = given(name, value);
        found.borrow_mut().extend(secret.clone());
        secret.is_some()
    });
    let run = args.iter().position(|arg| arg == "run").map_or(0, |run| run + 1);
    for (name, value) in found.into_inner() {
        args.insert(run, format!("--env={name}"));
        draft.env.insert(name, value);
    }
    args
}

/// The words of an engine without those that choose GPUs, and these.
pub(super) fn without_gpus(engine: &[String]) -> (Vec<String>, Vec<String>) {
    if engine.is_empty() {
        return (Vec::new(), Vec::new());
    }
    without(engine, |name, value| {
        value.and_then(|value| gpus(name, value)).is_some_and(|which| !is_all(which))
    })
}

fn docker(draft: &mut Draft) {
    for key in ["Wants", "After"] {
        let there = |line: &String| line.starts_with(key) && line.contains("docker.service");
        if !draft.unit.iter().any(there) {
            draft.unit.push(format!("{key}=docker.service"));
        }
    }
    let why = "whoever may ask docker can do all that root can: see what it means in docs/security.md";
    match draft.service.iter().find_map(|line| line.strip_prefix("User=")) {
        Some("" | "root" | "0") => {}
        Some(user) => draft.note(format!("User={user}"), format!("it has to be in the group docker; {why}")),
        None => {
            draft.service.push("SupplementaryGroups=docker".to_owned());
            draft.note("docker", format!("the drop-in lets the model's user ask it; {why}"));
        }
    }
}

fn podman(draft: &mut Draft) {
    for line in PODMAN {
        let (key, _) = line.split_once('=').unwrap_or((line, ""));
        if !draft.service.iter().any(|one| one.starts_with(&format!("{key}="))) {
            draft.service.push(line.to_owned());
        }
    }
    draft.note("podman", "a model's unit forbids what it needs, so the drop-in allows it");
    let user = draft.service.iter().find_map(|line| line.strip_prefix("User=")).unwrap_or("berth-model");
    let user = user.to_owned();
    rootless(draft, &user);
}

/// Says what a user needs for podman.
pub(super) fn rootless(draft: &mut Draft, user: &str) {
    let by_podman = draft.argv.first().and_then(|program| Engine::of(program)) == Some(Engine::Podman);
    if by_podman && !["", "root", "0"].contains(&user) {
        let why = format!(
            "podman without root needs ranges in /etc/subuid and /etc/subgid, and `loginctl enable-linger {user}`"
        );
        draft.note(format!("User={user}"), why);
    }
}
