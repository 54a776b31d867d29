//! The binary, run as systemd runs it: with a credentials directory and a notification socket.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use berth_launch::{Clear, Launch, Ticket};

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
    run_program(&[env!("CARGO_BIN_EXE_berth-launch")], folder)
}

fn run_program(program: &[&str], folder: &Path) -> Ran {
    let socket_at = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(socket_at.path().join("notify")).unwrap();
    let output = Command::new(program[0])
        .args(&program[1..])
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
        secrets: Vec::new(),
        cwd: cwd.map(str::to_owned),
        cpus: Vec::new(),
        memlock: None,
        nice: None,
        clear: None,
    };
    run_text(Ticket::Launch(launch).to_json().as_bytes())
}

/// Runs a shell that shows its own bounds, started with these; `limits` are set before, as a unit's would be.
fn run_within(cpus: &[u32], memlock: Option<u64>, nice: Option<i32>, limits: &str) -> Ran {
    let shows = "sed -n 's/^Cpus_allowed_list:\\t/cpus /p' /proc/$$/status; \
                 sed -n 's/^Max locked memory */locks /p' /proc/$$/limits; cut -d' ' -f19 /proc/$$/stat";
    let launch = Launch {
        argv: ["/bin/sh", "-c", shows].map(str::to_owned).to_vec(),
        env: BTreeMap::new(),
        secrets: Vec::new(),
        cwd: None,
        cpus: cpus.to_vec(),
        memlock,
        nice,
        clear: None,
    };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("ticket"), Ticket::Launch(launch).to_json()).unwrap();
    let program = env!("CARGO_BIN_EXE_berth-launch");
    run_program(&["/bin/sh", "-c", &format!("{limits}; exec {program}")], folder.path())
}

#[test]
fn what_an_earlier_run_left_is_cleared_away_first() {
    let folder = tempfile::tempdir().unwrap();
    let left = folder.path().join("left");
    fs::write(&left, "").unwrap();
    let left = left.to_str().unwrap();
    let launch = |find: &str| Launch {
        argv: ["/bin/sh", "-c", "ls \"$0\" 2>/dev/null; echo served", left].map(str::to_owned).to_vec(),
        env: BTreeMap::from([("LEFT".to_owned(), left.to_owned())]),
        secrets: Vec::new(),
        cwd: None,
        cpus: Vec::new(),
        memlock: None,
        nice: None,
        clear: Some(Clear {
            find: ["/bin/sh", "-c", find].map(str::to_owned).to_vec(),
            remove: ["/bin/rm", "--verbose", "--"].map(str::to_owned).to_vec(),
        }),
    };
    // What it says is no word of the server's, which is not run beside what is left or where that is not known.
    let ran = |find: &str| run_text(Ticket::Launch(launch(find)).to_json().as_bytes());
    assert_eq!(ran("true").stdout(), format!("{left}\nserved\n"));
    let failed =
        "whether an earlier run left something is unknown: `/bin/sh -c exit 1` ended with exit status: 1";
    ran("exit 1").assert_failed(126, failed);
    ran("exec sleep 60").assert_failed(126, "`/bin/sh -c exec sleep 60` has not ended within 10 s");
    assert_eq!(ran("ls \"$LEFT\" 2>/dev/null || true").stdout(), "served\n");
    let nowhere = Clear { find: vec!["/no/such/engine".to_owned()], remove: Vec::new() };
    let nowhere = Launch { clear: Some(nowhere), ..launch("") };
    run_text(Ticket::Launch(nowhere).to_json().as_bytes())
        .assert_failed(127, "there is no program /no/such/engine");
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
fn secrets_come_from_the_units_credentials() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("HF_TOKEN"), "hf_sesame\n").unwrap();
    let launch = |secrets: &[&str]| {
        let ticket = serde_json::json!({"ticket": 1, "launch": {
            "argv": ["/bin/sh", "-c", "printf '%s|' \"$HF_TOKEN\" \"${CREDENTIALS_DIRECTORY-none}\""],
            "env": {"HF_TOKEN": "declared"}, "secrets": secrets,
        }});
        fs::write(folder.path().join("ticket"), ticket.to_string()).unwrap();
        run_in(folder.path())
    };
    assert_eq!(launch(&["HF_TOKEN"]).stdout(), "hf_sesame|none|");
    for missing in ["API_KEY", "../ticket"] {
        launch(&["HF_TOKEN", missing])
            .assert_failed(78, &format!("the secret {missing} is not there: give it"));
    }
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

#[test]
fn it_runs_within_the_bounds_of_its_ticket() {
    let unbounded = run_within(&[], None, None, "ulimit -l 1234").stdout();
    assert!(unbounded.contains("locks 1263616              1263616"), "{unbounded}");
    assert!(unbounded.ends_with("\n0\n"), "{unbounded}");

    let ran = run_within(&[0], Some(4 << 20), Some(7), ":");
    let shown = ran.stdout();
    assert!(shown.starts_with("cpus 0\nlocks 4194304              4194304"), "{shown} {}", ran.stderr());
    assert!(shown.ends_with("\n7\n"), "{shown}");
    assert_eq!(ran.notes, ["READY=1\n"]);
}

#[test]
fn bounds_that_cannot_be_had_are_said() {
    run_within(&[0, 1023], None, None, ":").assert_failed(
        126,
        "of the processors 0,1023 that the server is to run on, 1023 can't be had: offline, or not allowed for the unit",
    );
    run_within(&[1023], None, None, ":").assert_failed(126, "none of them is online and allowed");
    run_within(&[4000], None, None, ":").assert_failed(126, "bound to the processors 4000");
    run_within(&[], Some(1 << 30), None, "ulimit -l 64").assert_failed(
        126,
        "is to lock 1073741824 bytes in memory, and the unit allows 65536: raise LimitMEMLOCK=",
    );
    run_within(&[], None, Some(20), ":").assert_failed(78, "nice 20 is no priority: they go from -20 to 19");
}

/// Where a unit's limit can't be raised, as in some containers, the capability stands in for it.
#[test]
fn a_server_that_may_lock_anything_needs_no_limit() {
    let folder = tempfile::tempdir().unwrap();
    let ticket = br#"{"ticket":1,"launch":{"argv":["/bin/true"],"memlock":1073741824}}"#;
    fs::write(folder.path().join("ticket"), ticket).unwrap();
    let program = env!("CARGO_BIN_EXE_berth-launch");
    let may = ["--inh-caps=+ipc_lock", "--ambient-caps=+ipc_lock", program];
    for (with, code) in [(&may[2..], 126), (&may, 0)] {
        let program = [&["prlimit", "--memlock=65536", "setpriv"], with].concat();
        let ran = run_program(&program, folder.path());
        assert_eq!(ran.output.status.code(), Some(code), "{}", ran.stderr());
    }
}

/// What the unit's LimitNICE= allows counts only for a user without rights.
#[test]
fn a_priority_that_the_unit_does_not_allow_is_said() {
    let program = env!("CARGO_BIN_EXE_berth-launch");
    let folder = tempfile::tempdir().unwrap();
    let ticket = br#"{"ticket":1,"launch":{"argv":["/bin/true"],"nice":-5}}"#;
    fs::write(folder.path().join("ticket"), ticket).unwrap();
    // Its own rights taken away, so that it is root that may not.
    let without = ["prlimit", "--nice=0", "setpriv", "--bounding-set=-all", "--inh-caps=-all", program];
    let ran = run_program(&without, folder.path());
    ran.assert_failed(126, "can't run at nice -5: the unit does not allow it: lower LimitNICE= in a drop-in");
}
