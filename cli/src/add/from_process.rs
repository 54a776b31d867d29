//! From a running process that no service runs: its command line, working directory, user, and what of its environment
//! is more than any login has.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;

use berth_core::container::Engine;

use super::container::APART;
use super::draft::Draft;
use super::from_unit::{AS_ROOT, Refusal};
use super::{command_line, taken};
use crate::unit::Variables;

/// Variables of a session, a terminal or a shell: none of them is the server's. Those that end with `*` stand for all that
/// begin so.
const OF_SESSIONS: [&str; 43] = [
    "_",
    "BASH*",
    "COLORTERM",
    "DBUS_*",
    "DEBUGINFOD_*",
    "DESKTOP_SESSION",
    "DISPLAY",
    "EDITOR",
    "GDM*",
    "GNOME_*",
    "GPG_*",
    "GTK_*",
    "HIST*",
    "HOME",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "KDE_*",
    "LANG",
    "LC_*",
    "LESS*",
    "LISTEN_*",
    "LOGNAME",
    "LS_COLORS",
    "MAIL",
    "MANAGERPID",
    "MOTD_SHOWN",
    "NOTIFY_SOCKET",
    "OLDPWD",
    "PAGER",
    "PS1",
    "PWD",
    "QT_*",
    "SESSION_MANAGER",
    "SHELL",
    "SHLVL",
    "SSH_*",
    "SUDO_*",
    "SYSTEMD_*",
    "TERM*",
    "TMUX*",
    "USER",
    "WAYLAND_DISPLAY",
    "XDG_*",
];

/// What `PATH` is in every unit and every plain login.
const PATHS: [&str; 4] = [
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games",
    "/usr/local/bin:/usr/bin",
];

/// Reads the process.
pub(super) fn read(pid: u32, name: Option<&str>) -> Result<Draft, Refusal> {
    let file = |what: &str| {
        fs::read(format!("/proc/{pid}/{what}")).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Refusal::new(
                format!("there is no process {pid}"),
                "berthctl status names who holds GPU memory",
            ),
            ErrorKind::PermissionDenied => {
                Refusal::new(format!("process {pid} may not be read"), "run it with sudo")
            }
            _ => Refusal::new(format!("process {pid} can't be read: {error}"), ""),
        })
    };
    let mut argv = texts(&file("cmdline")?)?;
    let link = |what: &str| fs::read_link(format!("/proc/{pid}/{what}"));
    let Some(program) = argv.first_mut() else {
        return Err(Refusal::new(
            format!("process {pid} has no command line: it has ended, or is one of the kernel's"),
            "",
        ));
    };
    let cwd = link("cwd").map_err(|error| {
        Refusal::new(format!("the folder of process {pid} can't be read: {error}"), "run it with sudo")
    })?;
    if !program.starts_with('/') {
        // What a shell found in its PATH, or below its folder.
        let from_folder = cwd.join(&*program);
        let found =
            if program.contains('/') && from_folder.exists() { Some(from_folder) } else { link("exe").ok() };
        if let Some(found) = found.filter(|found| found.exists()) {
            *program = found.to_string_lossy().into_owned();
        }
    }
    let variables = texts(&file("environ")?)?;
    if [link("ns/mnt"), fs::read_link("/proc/self/ns/mnt")]
        .map(Result::ok)
        .windows(2)
        .any(|pair| pair[0] != pair[1])
    {
        let what = format!("process {pid} runs in a container, or with a view of the files of its own");
        return Err(Refusal::new(what, "add what starts it"));
    }
    let owner = fs::metadata(format!("/proc/{pid}")).map(|metadata| metadata.uid()).unwrap_or_default();
    let base = argv[0].rsplit('/').next().unwrap_or_default().to_owned();
    let name = super::named(name, &super::sound_name(&base))
        .map_err(|complaint| Refusal::new(complaint.title, "--name NAME"))?;
    let mut draft = Draft::new(name, format!("process {pid}"), argv);
    let (kept, dropped) = of_server(&variables);
    draft.env = kept;
    if !dropped.is_empty() {
        draft.note(dropped.join(", "), "left out: they belong to the session that it was started in");
    }
    draft.cwd = Some(cwd.to_string_lossy().into_owned()).filter(|cwd| cwd != "/");
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(owner)).ok().flatten();
    draft.service.push(format!("User={}", user.map_or(owner.to_string(), |user| user.name)));
    if owner == 0 {
        draft.service.push("CapabilityBoundingSet=~".to_owned());
        draft.note("root", AS_ROOT);
    }
    if let Some(service) = of_user(pid) {
        let why = "a service of a user's own systemd runs it, and would start it again: `systemctl --user disable --now` it \
                   before `berthctl switch`; until then its memory and port count as somebody else's";
        draft.note(service, why);
    } else if Engine::of(&draft.argv[0]).is_some() {
        draft.note(format!("process {pid}"), APART);
    } else {
        let scope = taken::scope(&draft.name);
        draft.replace(&scope);
        draft.note(
            format!("process {pid}"),
            format!("goes on, with all that it started, as {scope}: it outlives the session that it was started in"),
        );
    }
    command_line::settle(&mut draft)?;
    draft.hide_secrets();
    Ok(draft)
}

/// The service of a user's own systemd that runs it.
fn of_user(pid: u32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    service_below(text.lines().find_map(|line| line.strip_prefix("0::"))?)
}

fn service_below(control_group: &str) -> Option<String> {
    // What a terminal started there is in a scope of its own.
    let (_, below) = control_group.split_once("/user@")?.1.split_once('/')?;
    let unit = below.split('/').find(|part| part.strip_suffix(".slice").is_none())?;
    unit.ends_with(".service").then(|| unit.to_owned())
}

/// The variables that are the server's, and the names of those that are not.
fn of_server(variables: &[String]) -> (Variables, Vec<String>) {
    let (mut kept, mut dropped) = (Variables::new(), Vec::new());
    for variable in variables {
        let Some((name, value)) = variable.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            continue;
        };
        let of_session = OF_SESSIONS.iter().any(|one| match one.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == *one,
        });
        if of_session || (name == "PATH" && PATHS.contains(&value)) {
            dropped.push(name.to_owned());
        } else {
            kept.insert(name.to_owned(), value.to_owned());
        }
    }
    dropped.sort();
    (kept, dropped)
}

/// Texts that a NUL ends.
fn texts(bytes: &[u8]) -> Result<Vec<String>, Refusal> {
    let texts = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    let text = |bytes: &[u8]| {
        String::from_utf8(bytes.to_vec())
            .map_err(|_| Refusal::new("its command line or environment is not UTF-8 text", ""))
    };
    texts.split(|byte| *byte == 0).map(text).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn only_a_service_of_a_user_s_own_would_start_it_again() {
        let user = "/user.slice/user-1000.slice/user@1000.service";
        let of = |below: &str| service_below(&format!("{user}{below}"));
        assert_eq!(of("/app.slice/llama.service").as_deref(), Some("llama.service"));
        assert_eq!(of("/app.slice/tmux-spawn-1.scope"), None);
        assert_eq!(of("/init.scope"), None);
        assert_eq!(of(""), None);
        assert_eq!(service_below("/user.slice/user-1000.slice/session-3.scope"), None);
    }

    #[test]
    fn a_process_is_read_as_it_was_started() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("/bin/sleep")
            .arg("1000")
            .current_dir(&folder)
            .env_clear()
            .envs([("HF_TOKEN", "abc"), ("A", "b c"), ("SSH_TTY", "x"), ("PATH", "/usr/local/bin:/usr/bin")])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The kernel shows it only a moment after the program has begun.
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::read(format!("/proc/{}/cmdline", child.id())).unwrap().is_empty() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        let read = read(child.id(), Some("sleeper"));
        child.kill().unwrap();
        child.wait().unwrap();
        let draft = read.unwrap();
        assert_eq!(draft.argv, ["/bin/sleep", "1000"]);
        assert_eq!(draft.env, [("A".to_owned(), "b c".to_owned())].into());
        assert_eq!(draft.secrets, [("HF_TOKEN".to_owned(), "abc".to_owned())].into());
        assert_eq!(draft.cwd.unwrap(), folder.path().canonicalize().unwrap().to_str().unwrap());
        assert!(draft.notes.iter().any(|note| note.what == "PATH, SSH_TTY"), "{:?}", draft.notes);
        assert!(super::read(child.id(), None).unwrap_err().what.contains("no process"));
    }
}
