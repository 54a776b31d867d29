//! The program as it is typed. These tests need root, and fail without.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Scratch, left};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sandbox::Sandbox;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sandbox");

/// Runs the program in a folder, for its `.sandbox`.
fn sandbox(at: &Path, line: &str) -> Output {
    Command::new(PROGRAM).args(line.split(' ')).current_dir(at).stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn good(at: &Path, line: &str) -> String {
    let output = sandbox(at, line);
    assert!(output.status.success(), "{line}: {}", said(&output));
    said(&output)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_day_with_a_sandbox() {
    let scratch = Scratch::new("day");
    let at = scratch.path();
    let up = good(at, "up --tree none --gpus 1x24GiB");
    assert!(up.contains("sandbox: up in") && up.contains("running: systemd"), "{up}");
    assert!(up.contains("off: no /usr/bin/gpusim") && up.contains("exec -- berthctl"), "{up}");
    let again = sandbox(at, "up --tree none");
    assert_eq!(again.status.code(), Some(1));
    assert!(said(&again).contains("runs in") && said(&again).contains("down --wipe"), "{}", said(&again));

    assert_eq!(sandbox(at, "exec -- false").status.code(), Some(1));
    assert_eq!(sandbox(at, "exec sh -c exit${IFS}9").status.code(), Some(9));
    assert_eq!(good(at, "exec --user frank -- id -un"), "frank\n");
    assert_eq!(good(at, "exec --tty -- tty"), "/dev/pts/0\r\n");
    let shell = Command::new(PROGRAM)
        .args(["shell"])
        .current_dir(at)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut shell = shell.unwrap();
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), b"hostname; exit 3\n").unwrap();
    let shell = shell.wait_with_output().unwrap();
    assert_eq!((shell.status.code(), &*shell.stdout), (Some(3), &b"sandbox\n"[..]));

    assert!(good(at, "cut").contains("boot"));
    let status = sandbox(at, "status");
    assert_eq!(status.status.code(), Some(3));
    assert!(said(&status).contains("down"), "{}", said(&status));
    assert!(said(&sandbox(at, "exec true")).contains("sandbox boot"));
    assert!(good(at, "boot").contains("boot 2"));
    assert!(good(at, "status").contains("running"));
    good(at, "down");
    assert_eq!(sandbox(at, "status").status.code(), Some(3));
    // A new one in the place of one that is down.
    assert!(good(at, "up --tree none").contains("boot 1"));
    let state = Sandbox::attach(at.join(".sandbox")).unwrap();
    good(at, "down --wipe");
    assert_eq!(left(state.cgroup(), state.dir()), Vec::<String>::new());
    good(at, "down --wipe");
}

/// An `up` that takes 30 s: the tree has a unit that never comes up.
fn slow_up(scratch: &Scratch) -> (Child, PathBuf, Sandbox) {
    let unit = "[Service]\nType=oneshot\nExecStart=sleep 60\n";
    scratch.write("tree/usr/lib/systemd/system/slow.service", unit);
    let child = Command::new(PROGRAM)
        .args(["up", "--tree", "tree", "--want", "slow.service"])
        .current_dir(scratch.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let dir = scratch.path().join(".sandbox");
    let mut state = None;
    until("no sandbox appears", || {
        state = Sandbox::attach(&dir).ok();
        let booting =
            |state: &Sandbox| fs::read_dir(state.cgroup().join("guest/system.slice/slow.service")).is_ok();
        state.as_ref().is_some_and(booting)
    });
    (child, dir, state.unwrap())
}

#[test]
fn an_interrupted_up_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let scratch = Scratch::new("interrupted");
        let (child, dir, state) = slow_up(&scratch);
        if signal == Signal::SIGINT {
            let busy = sandbox(scratch.path(), "down");
            assert!(said(&busy).contains("another command still works on"), "{}", said(&busy));
        }
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130));
        assert_eq!(said(&output), "sandbox: interrupted\n");
        assert_eq!(left(state.cgroup(), &dir), Vec::<String>::new());
    }
}

#[test]
fn what_a_killed_up_left_is_removed_by_the_next() {
    let scratch = Scratch::new("killed");
    let (mut child, dir, state) = slow_up(&scratch);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!left(state.cgroup(), &dir).is_empty());
    assert_eq!(sandbox(scratch.path(), "status").status.code(), Some(3));
    assert!(good(scratch.path(), "up --tree none").contains("running"));
    assert!(!state.cgroup().exists());
    good(scratch.path(), "down --wipe");

    let (mut child, dir, state) = slow_up(&scratch);
    child.kill().unwrap();
    child.wait().unwrap();
    good(scratch.path(), "down --wipe");
    assert_eq!(left(state.cgroup(), &dir), Vec::<String>::new());
}

#[test]
fn it_also_works_on_a_host_that_runs_systemd() {
    // The outer sandbox is that host; its /tmp is a tmpfs, where the inner one's disk lies.
    let host = Sandbox::builder().bind_read_only(PROGRAM, "/usr/local/bin/sandbox").up().unwrap();
    let nodes = "mknod /dev/loop-control c 10 237; for i in $(seq 0 63); do mknod /dev/loop$i b 7 $i; done";
    host.exec(&["sh", "-c", nodes]).unwrap().check().unwrap();
    let inner = |line: &str| {
        let argv: Vec<&str> =
            ["sandbox"].into_iter().chain(line.split(' ')).chain(["--dir", "/tmp/box"]).collect();
        host.exec(&argv).unwrap().check().unwrap().stdout
    };
    let scopes =
        || host.exec(&["sh", "-c", "ls -d /sys/fs/cgroup/system.slice/berth-sandbox-*"]).unwrap().stdout;
    assert!(inner("up --tree none").contains("running"));
    assert!(scopes().contains(".scope"), "{}", scopes());
    let inside =
        host.exec(&["sandbox", "exec", "--dir", "/tmp/box", "--", "cat", "/proc/self/cgroup"]).unwrap();
    assert_eq!(inside.check().unwrap().stdout.lines().last(), Some("0::/sandbox-exec"));
    inner("cut");
    assert!(inner("boot").contains("boot 2"));
    inner("down");
    inner("boot");
    inner("down --wipe");
    assert_eq!(scopes(), "");
    assert_eq!(host.health().unwrap(), ("running".to_owned(), vec![]));
}

#[test]
fn refusals_say_what_to_do() {
    let scratch = Scratch::new("refusals");
    let at = scratch.path();
    for line in ["exec true", "status", "cut", "boot", "down"] {
        let output = sandbox(at, line);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(
            said(&output).contains("no sandbox in .sandbox") && said(&output).contains("sandbox up"),
            "{line}"
        );
    }
    let output = sandbox(at, "up --tree nowhere");
    assert!(said(&output).contains("make stage"), "{}", said(&output));
    let output = sandbox(at, "up --tree none --bind a");
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("SRC:DST"), "{}", said(&output));
    assert!(!at.join(".sandbox").exists());

    // As anybody but root; the program must lie where anybody can read it.
    let copy = scratch.path().join("program");
    fs::copy(PROGRAM, &copy).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
        .arg(&copy)
        .args(["up", "--tree", "none"])
        .current_dir(at)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("not root: run it with sudo"), "{}", said(&output));
    assert!(!at.join(".sandbox").exists());
}
