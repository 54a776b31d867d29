//! Quadlet's `.container` files: the service that podman's generator makes of one, as a unit to be read like any other.

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::draft::Draft;
use super::from_unit::Refusal;
use crate::remove::word;
use crate::unit::{File, Setting, Unit, words};

/// Where podman looks for them and systemd finds what comes of them.
const GENERATED: &str = "/run/systemd/generator";

/// Where files lie of which podman makes services of the machine's, and below them those of users'.
const OF_MACHINE: [&str; 3] =
    ["/etc/containers/systemd", "/run/containers/systemd", "/usr/share/containers/systemd"];
const OF_USERS: &str = "users";

const SECTION: &str = "Container";

/// What a key of `[Container]` becomes.
enum Becomes {
    /// This option with the value as it is.
    Option(&'static str),
    /// This option with each word of the value.
    Words(&'static str),
    /// This option where the value is true.
    Switch(&'static str),
    /// This option with this in front of the value.
    Prefixed(&'static str, &'static str),
    /// It is read apart.
    Apart,
    /// It means nothing under Berth, which is told as of a unit's setting.
    Left,
    /// With it there is no model.
    Refused(&'static str),
}

use Becomes::{Apart, Left, Option, Prefixed, Refused, Switch, Words};

/// After podman's documentation of its units, in its order; what is not here has no equal.
const KEYS: &[(&str, Becomes)] = &[
    ("AddCapability", Words("--cap-add")),
    ("AddDevice", Option("--device")),
    ("AddHost", Option("--add-host")),
    ("Annotation", Words("--annotation")),
    ("AutoUpdate", Left),
    ("CgroupsMode", Left),
    ("ContainerName", Option("--name")),
    ("ContainersConfModule", Apart),
    ("DNS", Option("--dns")),
    ("DNSOption", Option("--dns-option")),
    ("DNSSearch", Option("--dns-search")),
    ("DropCapability", Words("--cap-drop")),
    ("Entrypoint", Option("--entrypoint")),
    ("Environment", Words("--env")),
    ("EnvironmentFile", Option("--env-file")),
    ("EnvironmentHost", Switch("--env-host")),
    ("Exec", Apart),
    ("ExposeHostPort", Option("--expose")),
    ("GIDMap", Option("--gidmap")),
    ("GlobalArgs", Apart),
    ("Group", Apart),
    ("GroupAdd", Option("--group-add")),
    ("HealthCmd", Option("--health-cmd")),
    ("HostName", Option("--hostname")),
    ("IP", Option("--ip")),
    ("IP6", Option("--ip6")),
    ("Image", Apart),
    ("Label", Words("--label")),
    ("LogDriver", Option("--log-driver")),
    ("LogOpt", Option("--log-opt")),
    ("Mask", Prefixed("--security-opt", "mask=")),
    ("Memory", Option("--memory")),
    ("Mount", Option("--mount")),
    ("Network", Option("--network")),
    ("NetworkAlias", Option("--network-alias")),
    ("NoNewPrivileges", Switch("--security-opt=no-new-privileges")),
    ("Notify", Left),
    ("PidsLimit", Option("--pids-limit")),
    ("Pod", Refused("a pod's containers are not in the unit's cgroup: give the server a file of its own")),
    ("PodmanArgs", Apart),
    ("PublishPort", Option("--publish")),
    ("Pull", Option("--pull")),
    ("ReadOnly", Switch("--read-only")),
    ("Rootfs", Refused("only images are run: Image=")),
    ("RunInit", Switch("--init")),
    ("SeccompProfile", Prefixed("--security-opt", "seccomp=")),
    ("Secret", Option("--secret")),
    ("SecurityLabelDisable", Switch("--security-opt=label=disable")),
    ("SecurityLabelFileType", Prefixed("--security-opt", "label=filetype:")),
    ("SecurityLabelLevel", Prefixed("--security-opt", "label=level:")),
    ("SecurityLabelType", Prefixed("--security-opt", "label=type:")),
    ("ServiceName", Apart),
    ("ShmSize", Option("--shm-size")),
    ("StopSignal", Option("--stop-signal")),
    ("StopTimeout", Apart),
    ("SubGIDMap", Option("--subgidname")),
    ("SubUIDMap", Option("--subuidname")),
    ("Sysctl", Words("--sysctl")),
    ("Timezone", Option("--tz")),
    ("Tmpfs", Option("--tmpfs")),
    ("UIDMap", Option("--uidmap")),
    ("Ulimit", Option("--ulimit")),
    ("Unmask", Prefixed("--security-opt", "unmask=")),
    ("User", Apart),
    ("UserNS", Option("--userns")),
    ("Volume", Option("--volume")),
    ("WorkingDir", Option("--workdir")),
];

/// The service that podman makes of a Quadlet file and its drop-ins, by its name and as the file that it would be.
pub(super) fn service(path: &Path, files: &[File]) -> Result<(String, File), Refusal> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    if path.extension().is_none_or(|kind| kind != "container") {
        let what = "only a .container file runs one server";
        return Err(Refusal::new(what, "berthctl add NAME.container, of the server that is the model"));
    }
    let read = Unit::read(&format!("{stem}.service"), files)?;
    let name = read.last(SECTION, "ServiceName").map_or(stem, |name| name.value.clone());
    let mut text = String::new();
    let is_left = |key: &str| KEYS.iter().any(|(known, becomes)| *known == key && matches!(becomes, Left));
    for (section, key) in read.keys().into_iter().filter(|(section, key)| *section != SECTION || is_left(key))
    {
        for setting in read.all(section, key) {
            // Writing to a String can't fail; nor below.
            _ = writeln!(text, "[{section}]\n{key}={}", setting.value);
        }
    }
    let line: Vec<String> = command(&read)?.iter().map(|one| written(one)).collect();
    _ = writeln!(text, "[Service]\nExecStart={}", line.join(" "));
    // What systemd waits for besides is podman's own end.
    if let Some(stop) = read.last(SECTION, "StopTimeout") {
        _ = writeln!(text, "TimeoutStopSec={}", stop.value);
    }
    Ok((format!("{name}.service"), File { path: path.to_owned(), text }))
}

/// Whether these are the files of the service that podman's generator has made on this machine.
pub(super) fn is_generated(files: &[std::path::PathBuf]) -> bool {
    files.first().is_some_and(|file| file.starts_with(GENERATED))
}

/// Whether podman makes a service of the machine's of it, which runs as root.
pub(super) fn is_of_machine(path: &Path) -> bool {
    let below = OF_MACHINE.iter().find_map(|folder| path.strip_prefix(folder).ok());
    below.is_some_and(|rest| !rest.starts_with(OF_USERS))
}

/// What a file comes to that is not the machine's: its container ran as a user, and root is not who it is to run as.
pub(super) fn of_user(draft: &mut Draft, path: &Path, unit: &str, told: bool) -> Result<(), Refusal> {
    let user = draft.service.iter().find_map(|line| line.strip_prefix("User=")).unwrap_or_default();
    if !told && ["", "root", "0"].contains(&user) {
        let owner = std::fs::metadata(path).ok().map(|meta| nix::unistd::Uid::from_raw(meta.uid()));
        let owner =
            owner.filter(|uid| !uid.is_root()).and_then(|uid| nix::unistd::User::from_uid(uid).ok()?);
        let owner = owner.map_or("USER".to_owned(), |owner| owner.name);
        let what =
            "it is no file of the machine's, so its container runs as a user, and here it would run as root";
        return Err(Refusal::new(what, format!("--run-as {owner}, or move it to {}", OF_MACHINE[0])));
    }
    let why = format!(
        "a user's own systemd may have made {unit} of it, which goes on and comes back: move {} away, then as that user \
         `systemctl --user daemon-reload` and `systemctl --user stop {unit}`",
        path.display()
    );
    draft.note(unit, why);
    Ok(())
}

/// A word of the command as it stands in a unit, where specifiers and variables are replaced as in the file.
fn written(text: &str) -> String {
    word(text, false).replace("%%", "%")
}

/// `podman run` as it comes of `[Container]`.
fn command(unit: &Unit) -> Result<Vec<String>, Refusal> {
    let last = |key: &str| unit.last(SECTION, key);
    let Some(image) = last("Image") else {
        return Err(match last("Rootfs") {
            Some(rootfs) => refused(rootfs, "only images are run: Image="),
            None => Refusal::new("its [Container] names no Image=", ""),
        });
    };
    let mut command = vec!["/usr/bin/podman".to_owned()];
    for setting in unit.all(SECTION, "GlobalArgs") {
        command.extend(split(setting)?);
    }
    command.extend(last("ContainersConfModule").map(|module| format!("--module={}", module.value)));
    command.push("run".to_owned());
    for (section, key) in unit.keys() {
        if section != SECTION {
            continue;
        }
        let settings = unit.all(section, key);
        let Some(first) = settings.first() else { continue };
        let Some((_, becomes)) = KEYS.iter().find(|(known, _)| *known == key) else {
            return Err(refused(first, "it has no equal: say it with PodmanArgs="));
        };
        for setting in settings {
            let value = &setting.value;
            match becomes {
                Option(option) => command.extend([(*option).to_owned(), of_machine(setting)?]),
                Words(option) => {
                    let words = split(setting)?.into_iter();
                    command.extend(words.flat_map(|word| [(*option).to_owned(), word]));
                }
                Switch(option) => command.extend(is_true(value).then(|| (*option).to_owned())),
                Prefixed(option, prefix) => {
                    command.extend([(*option).to_owned(), format!("{prefix}{value}")]);
                }
                Apart | Left => {}
                Refused(why) => return Err(refused(setting, why)),
            }
        }
    }
    if let Some(user) = last("User") {
        let group = last("Group").map_or(String::new(), |group| format!(":{}", group.value));
        command.extend(["--user".to_owned(), format!("{}{group}", user.value)]);
    }
    for setting in unit.all(SECTION, "PodmanArgs") {
        command.extend(split(setting)?);
    }
    command.push(of_machine(image)?);
    if let Some(exec) = last("Exec") {
        command.extend(split(exec)?);
    }
    Ok(command)
}

/// The value, if it does not name another of Quadlet's files.
fn of_machine(setting: &Setting) -> Result<String, Refusal> {
    let name = match setting.key.as_str() {
        "Mount" => {
            let mut parts = setting.value.split(',').filter_map(|part| part.split_once('='));
            parts.find(|(name, _)| ["source", "src"].contains(name)).map_or("", |(_, source)| source)
        }
        _ => setting.value.split(':').next().unwrap_or_default(),
    };
    let kinds = ["build", "image", "network", "volume", "container", "pod"];
    if !name.starts_with('/') && kinds.iter().any(|kind| name.ends_with(&format!(".{kind}"))) {
        return Err(refused(
            setting,
            "podman makes it anew for its own service: write its name out, `systemd-NAME`",
        ));
    }
    if name.starts_with("./") || name.starts_with("../") {
        return Err(refused(
            setting,
            "it starts from the file's folder, which is another one: write the whole path",
        ));
    }
    // A device that may be missing, which podman itself does not know how to pass over.
    let value = setting.value.as_str();
    Ok(if setting.key == "AddDevice" { value.trim_start_matches('-') } else { value }.to_owned())
}

fn split(setting: &Setting) -> Result<Vec<String>, Refusal> {
    words(&setting.value).map_err(|why| refused(setting, &why))
}

fn refused(setting: &Setting, why: &str) -> Refusal {
    let what = format!("{}={} can't be taken over: {why}", setting.key, setting.value);
    Refusal { what, place: Some(setting.place()), instead: None }
}

fn is_true(value: &str) -> bool {
    ["1", "yes", "true", "on"].contains(&value.to_ascii_lowercase().as_str())
}
