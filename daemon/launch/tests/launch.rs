//! The binary, run as systemd runs it: with a credentials directory and a notification socket.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use berth_launch::{Launch, Ticket};

/// What a run of berth-launch left behind.
struct Ran {
    output: Output,
    /// The messages to systemd, in order.
    notes: Vec<String>,
}

impl Ran {
    fn stdout(&self) -> String {
        String::from_utf8(self.output.stdout.clone()).unwrap()
    }

    fn stderr(&self) -> String {
        String::from_utf8(self.output.stderr.clone()).unwrap()
    }

    /// Checks that nothing was run, and that the reason is told to the caller and to systemd alike.
    fn assert_failed(&self, code: i32, reason: &str) {
        assert_eq!(self.output.status.code(), Some(code), "{}", self.stderr());
        let stderr = self.stderr();
        assert!(stderr.contains(reason), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        let notes = self.notes.concat();
        assert!(notes.contains(&format!("STATUS={}", stderr.trim().strip_prefix("berth-launch: ").unwrap())));
        assert!(notes.contains("ERRNO="), "{notes}");
    }
}

fn run_text(text: &[u8]) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ticket"), text).unwrap();
    run_in(folder.path())
}

fn run_in(folder: &Path) -> Ran {
    let socket_at = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(socket_at.path().join("notify")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_berth-launch"))
        .env("CREDENTIALS_DIRECTORY", folder)
        .env("NOTIFY_SOCKET", socket_at.path().join("notify"))
        .env("FROM_UNIT", "kept")
        .output()
        .unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut notes = Vec::new();
    let mut buffer = [0; 8192];
    while let Ok(length) = socket.recv(&mut buffer) {
        notes.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    Ran { output, notes }
}

fn run(argv: &[&str], env: &[(&str, &str)], cwd: Option<&str>) -> Ran {
    let launch = Launch {
        argv: argv.iter().map(ToString::to_string).collect(),
        env: env.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect::<BTreeMap<_, _>>(),
        cwd: cwd.map(str::to_owned),
    };
    run_text(Ticket::Launch(launch).to_json().as_bytes())
}

#[test]
fn it_becomes_the_server_in_its_environment() {
    let script = r#"printf '%s|' "$0" "$1" "$ATOMIC" "$FROM_UNIT" "${NOTIFY_SOCKET-none}" "${CREDENTIALS_DIRECTORY-none}" "$PWD"; exit 7"#;
    let ran = run(&["/bin/sh", "-c", script, "zero", "a b"], &[("ATOMIC", "1")], Some("/usr/lib"));
    assert_eq!(ran.stdout(), "zero|a b|1|kept|none|none|/usr/lib|");
    assert_eq!(ran.output.status.code(), Some(7), "its exit status is the server's");
    assert_eq!(ran.notes, ["READY=1\n"]);
}

#[test]
fn a_bare_name_is_searched_for() {
    let ran = run(&["env"], &[("PATH", "/nowhere")], None);
    assert!(ran.stdout().contains("PATH=/nowhere"), "{}", ran.stderr());
    run(&["no-such-server"], &[], None)
        .assert_failed(127, "there is no program `no-such-server` in /usr/local/bin or /usr/bin");
}

#[test]
fn a_refusal_is_told() {
    run_text(br#"{"ticket":1,"refused":"genesis is off:\n run `berthctl start genesis`"}"#)
        .assert_failed(78, "genesis is off: run `berthctl start genesis`");
}

#[test]
fn a_start_without_a_readable_ticket_is_refused() {
    run_text(b"\0garbage").assert_failed(78, "the ticket can't be read");
    run_text(br#"{"ticket":9}"#).assert_failed(78, "format 9");
    run_in(Path::new("/nowhere")).assert_failed(78, "/nowhere/ticket can't be read");
    let alone = Command::new(env!("CARGO_BIN_EXE_berth-launch")).env_clear().output().unwrap();
    assert_eq!(alone.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&alone.stderr).contains("berthctl start"));
}

#[test]
fn what_cannot_run_is_said_before_systemd_hears_ready() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    fs::write(&plain, "text").unwrap();
    run(&["/nowhere/llama-server"], &[], None)
        .assert_failed(127, "there is no program /nowhere/llama-server");
    run(&[plain.to_str().unwrap()], &[], None).assert_failed(126, "is not executable for");
    run(&["/usr/lib"], &[], None).assert_failed(126, "/usr/lib is not a file");
    run(&["/bin/true"], &[], Some("/nowhere"))
        .assert_failed(126, "the working directory /nowhere can't be entered");
    run(&["/bin/true", "a\0b"], &[], None).assert_failed(78, r"the argument `a\0b` has a NUL in it");
    run(&["/bin/true"], &[("A=B", "")], None).assert_failed(78, "`A=B` can't be the name");
    run(&["/bin/true"], &[("A", "\0")], None).assert_failed(78, r"the variable `A=\0` has a NUL");
}

#[test]
fn a_program_that_the_kernel_refuses_is_said_too() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("server");
    for (text, code, reason) in [
        ("#!/nowhere/python\n", 127, "the interpreter or loader"),
        ("\x01\x02", 126, "can't be run: Exec format"),
    ] {
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        run(&[script.to_str().unwrap()], &[], None).assert_failed(code, reason);
    }
}
