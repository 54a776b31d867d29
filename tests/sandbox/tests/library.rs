//! Real guests through the library. These tests need root, and fail without.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Scratch, left};
use nix::sys::signal::Signal;
use sandbox::{Sandbox, exit_code, signal};

fn bare() -> Sandbox {
    Sandbox::builder().up().unwrap()
}

fn stdout(sandbox: &Sandbox, argv: &[&str]) -> String {
    sandbox.exec(argv).unwrap().check().unwrap().stdout.trim_end().to_owned()
}

#[test]
fn a_guest_runs_its_own_systemd_and_nothing_of_the_hosts() {
    let sandbox = bare();
    assert_eq!(sandbox.health().unwrap(), ("running".to_owned(), vec![]));
    assert_eq!(stdout(&sandbox, &["cat", "/proc/1/comm"]), "systemd");
    assert_eq!(stdout(&sandbox, &["systemctl", "is-active", "dbus", "systemd-journald"]), "active\nactive");
    assert_eq!(stdout(&sandbox, &["hostname"]), "sandbox");
    assert_eq!(stdout(&sandbox, &["cat", "/proc/self/cgroup"]).lines().last(), Some("0::/sandbox-exec"));
    assert_eq!(stdout(&sandbox, &["cat", "/sys/class/net/lo/operstate"]), "unknown", "lo is up");
    // polkit answers, and comes up by itself.
    let asked =
        sandbox.exec_as("frank", &["systemctl", "--no-ask-password", "start", "systemd-hostnamed"]).unwrap();
    assert!(asked.stderr.contains("authentication required"), "{asked:?}");
    assert_eq!(stdout(&sandbox, &["systemctl", "is-active", "polkit"]), "active");
    // Only services that the sandbox asked for.
    let services = stdout(&sandbox, &["systemctl", "list-units", "--type=service", "--plain", "--no-legend"]);
    for line in services.lines() {
        let service = line.split_whitespace().next().unwrap();
        assert!(
            service.starts_with("systemd-") || ["dbus.service", "polkit.service"].contains(&service),
            "{service}"
        );
    }
}

#[test]
fn commands_give_back_what_they_did() {
    let sandbox = bare();
    let output = sandbox.exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]).unwrap();
    assert_eq!((output.status.code(), &*output.stdout, &*output.stderr), (Some(7), "out\n", "err\n"));
    assert!(output.check().unwrap_err().to_string().contains("err"));
    let killed = sandbox.exec(&["sh", "-c", "kill -9 $$"]).unwrap();
    assert_eq!((exit_code(killed.status), &*killed.stderr), (137, ""));

    let start = Instant::now();
    let late = sandbox.exec_within(Duration::from_millis(500), None, &["sh", "-c", "echo begun; sleep 77"]);
    let late = format!("{:#}", late.unwrap_err());
    assert!(late.contains("begun") && late.contains("0.5 s") && late.contains("sleep 77"), "{late}");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(exit_code(sandbox.exec(&["pgrep", "-x", "sleep"]).unwrap().status), 1, "it was killed");

    sandbox.write_file("/etc/berth/models.d/it's.toml", "cmd = \"x\"\n").unwrap();
    assert_eq!(sandbox.read_file("/etc/berth/models.d/it's.toml").unwrap(), "cmd = \"x\"\n");
    assert!(format!("{:#}", sandbox.read_file("/nowhere").unwrap_err()).contains("No such file"));
    assert!(sandbox.root().join("etc/berth/models.d/it's.toml").exists());
    assert!(sandbox.exec::<&str>(&[]).is_err());
}

#[test]
fn a_signal_reaches_a_command_once() {
    let sandbox = bare();
    let script = "i=0 last=100; trap 'echo caught; last=$((i+5))' INT; echo ready; \
                  while [ $i -lt $last ]; do sleep 0.1; i=$((i+1)); done; exit 5";
    // Whoever runs tests in the background ignores it, and so would what they start.
    let argv = ["env", "--default-signal=INT", "sh", "-c", script];
    let mut command = sandbox.command(None, &argv).unwrap();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let ready = Instant::now();
    while sandbox.exec(&["pgrep", "-x", "sleep"]).unwrap().stdout.is_empty() {
        assert!(ready.elapsed() < Duration::from_secs(10));
    }
    signal(&child, Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((exit_code(output.status), &*output.stdout), (5, &b"ready\ncaught\n"[..]));

    // One whose outer end is killed does not live on in the guest.
    let mut child = sandbox.command(Some("frank"), &["sleep", "88"]).unwrap().spawn().unwrap();
    let sleeps = || !sandbox.exec(&["pgrep", "-f", "^sleep 88"]).unwrap().stdout.is_empty();
    while !sleeps() {
        assert!(ready.elapsed() < Duration::from_secs(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    while sleeps() {
        assert!(ready.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn users_have_the_guests_groups() {
    let sandbox = bare();
    let id = |user| sandbox.exec_as(user, &["id"]).unwrap().check().unwrap().stdout;
    assert!(id("frank").starts_with("uid=2001(frank) gid=2001(frank)") && id("frank").contains("(berth)"));
    assert!(
        id("mallory").starts_with("uid=2002(mallory) gid=2002(mallory)") && !id("mallory").contains("berth")
    );
    let home = sandbox.exec_as("frank", &["sh", "-c", "cd && pwd && touch x && echo $USER"]).unwrap();
    assert_eq!(home.check().unwrap().stdout, "/home/frank\nfrank\n");
    assert!(!sandbox.exec_as("frank", &["cat", "/etc/shadow"]).unwrap().status.success());
    assert!(sandbox.exec_as("eve", &["id"]).unwrap_err().to_string().contains("\"eve\""));
}

#[test]
fn a_cut_loses_what_was_not_synced_and_only_that() {
    let mut sandbox = bare();
    stdout(&sandbox, &["sh", "-c", "echo kept >/var/lib/berth/synced && sync /var/lib/berth/synced"]);
    stdout(&sandbox, &["sh", "-c", "echo gone >/var/lib/berth/unsynced; logger said before the cut"]);
    stdout(&sandbox, &["sh", "-c", "echo hardware >/var/lib/gpusim/state"]);
    let before = stdout(&sandbox, &["cat", "/proc/sys/kernel/random/boot_id"]);
    // journald writes to a mapped file; a moment for it to take the line.
    assert!(stdout(&sandbox, &["journalctl", "--sync", "-b", "--no-pager"]).len() < 1_000_000);
    let pid1 = sandbox.pid1().unwrap();

    sandbox.cut().unwrap();
    assert_eq!(sandbox.pid1(), None);
    assert!(!fs::exists(format!("/proc/{pid1}")).unwrap());
    assert!(sandbox.exec(&["true"]).unwrap_err().to_string().contains("is down"));
    assert!(sandbox.cut().is_err());

    sandbox.boot().unwrap();
    assert!(sandbox.boot().unwrap_err().to_string().contains("runs already"));
    assert_eq!(sandbox.boots(), 2);
    assert_eq!(sandbox.read_file("/var/lib/berth/synced").unwrap(), "kept\n");
    assert!(!stdout(&sandbox, &["ls", "-A", "/var/lib/berth"]).contains("unsynced"));
    assert_eq!(sandbox.read_file("/var/lib/gpusim/state").unwrap(), "hardware\n");
    assert_ne!(stdout(&sandbox, &["cat", "/proc/sys/kernel/random/boot_id"]), before);
    let journal = stdout(&sandbox, &["journalctl", "-b", "-1", "--no-pager"]);
    assert!(journal.contains("said before the cut"), "{journal}");
    assert!(!stdout(&sandbox, &["journalctl", "-b", "--no-pager"]).contains("said before the cut"));
    sandbox.down().unwrap();
}

#[test]
fn in_good_order_nothing_is_lost_and_nothing_is_left() {
    let mut sandbox = bare();
    stdout(&sandbox, &["sh", "-c", "echo kept >/var/lib/berth/unsynced"]);
    let child = sandbox.command(None, &["sleep", "99"]).unwrap().spawn().unwrap();
    sandbox.poweroff().unwrap();
    let mut child = child;
    assert_ne!(child.wait().unwrap().code(), Some(0));
    sandbox.boot().unwrap();
    assert_eq!(sandbox.read_file("/var/lib/berth/unsynced").unwrap(), "kept\n");
    let (cgroup, dir) = (sandbox.cgroup().to_owned(), sandbox.dir().to_owned());
    assert!(left(&cgroup, &dir).len() > 4, "what is looked for can be found");
    sandbox.down().unwrap();
    assert_eq!(left(&cgroup, &dir), Vec::<String>::new());

    // Dropped without a word.
    let sandbox = bare();
    let (cgroup, dir) = (sandbox.cgroup().to_owned(), sandbox.dir().to_owned());
    drop(sandbox);
    assert_eq!(left(&cgroup, &dir), Vec::<String>::new());
}

const OWNER: &str = "SANDBOX_TEST_OWNER";

#[test]
fn an_owner_that_is_killed_leaves_nothing() {
    if std::env::var_os(OWNER).is_some() {
        let sandbox = bare();
        println!("OWNED {} {}", sandbox.cgroup().display(), sandbox.dir().display());
        thread::sleep(Duration::from_secs(60));
        return;
    }
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "an_owner_that_is_killed_leaves_nothing", "--nocapture"])
        .env(OWNER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(owner.stdout.take().unwrap()));
    let line = lines.map_while(Result::ok).find(|line| line.contains("OWNED ")).unwrap();
    let mut words = line.rsplit(' ').map(std::path::PathBuf::from);
    let (dir, cgroup) = (words.next().unwrap(), words.next().unwrap());
    assert!(dir.exists() && cgroup.exists());
    owner.kill().unwrap();
    owner.wait().unwrap();
    let start = Instant::now();
    while !left(&cgroup, &dir).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", left(&cgroup, &dir));
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn services_have_what_berths_units_use() {
    let sandbox = bare();
    sandbox.write_file("/etc/secret", "from the file").unwrap();
    sandbox.exec(&["mkdir", "/opt/program"]).unwrap().check().unwrap();
    let script = "cat $CREDENTIALS_DIRECTORY/loaded $CREDENTIALS_DIRECTORY/absent >&2; echo >&2; id -un >&2; \
                  touch /usr/x 2>/dev/null && echo writable >&2; ls -A /tmp >&2; touch /tmp/mine; \
                  head -c 4 /dev/urandom >/dev/null && echo devices >&2; echo $BERTH >&2; \
                  echo mine >$STATE_DIRECTORY/mine; exec sleep 60";
    sandbox.write_file("/opt/program/run", format!("#!/bin/sh\n{script}\n")).unwrap();
    sandbox.exec(&["chmod", "755", "/opt/program/run"]).unwrap().check().unwrap();
    sandbox.exec(&["touch", "/tmp/not-mine"]).unwrap().check().unwrap();
    let unit = "[Service]\nExecStart=/opt/program/run\nUser=frank\nLoadCredential=loaded:/etc/secret\n\
                LoadCredential=absent:/run/nothing.sock\nSetCredential=absent:-default\nProtectSystem=strict\n\
                PrivateTmp=yes\nNoNewPrivileges=yes\nStateDirectory=berth\nLimitMEMLOCK=infinity\n\
                LimitNOFILE=65536\nRemoveIPC=yes\nEnvironment=BERTH=1\nKillMode=mixed\n";
    sandbox.write_file("/etc/systemd/system/trial@.service", unit).unwrap();
    sandbox.exec(&["systemctl", "daemon-reload"]).unwrap().check().unwrap();
    sandbox.exec(&["systemctl", "start", "trial@a.service"]).unwrap().check().unwrap();
    let start = Instant::now();
    let said = loop {
        let said = stdout(&sandbox, &["journalctl", "-u", "trial@a", "-o", "cat", "_TRANSPORT=stdout"]);
        if said.contains("\n1") || start.elapsed() > Duration::from_secs(10) {
            break said;
        }
    };
    assert_eq!(said.trim(), "from the file-default\nfrank\ndevices\n1");
    assert_eq!(sandbox.read_file("/var/lib/berth/mine").unwrap(), "mine\n");
    sandbox
        .exec(&["systemctl", "set-property", "--runtime", "trial@a.service", "AllowedCPUs=0"])
        .unwrap()
        .check()
        .unwrap();
    assert_eq!(stdout(&sandbox, &["systemctl", "show", "-P", "AllowedCPUs", "trial@a.service"]), "0");
    sandbox.exec(&["systemctl", "stop", "trial@a.service"]).unwrap().check().unwrap();
}

#[test]
fn the_host_stays_untouched() {
    let places = ["/tmp", "/run", "/dev/shm", "/etc", "/var/log"];
    let name = format!("sandbox-canary-{}", std::process::id());
    let inside = format!("sandbox-inside-{}", std::process::id());
    for place in places {
        fs::write(format!("{place}/{name}"), "host").unwrap();
        // Old enough for any cleaning by age.
        let old = Command::new("touch").args(["-d", "100 days ago"]).arg(format!("{place}/{name}")).status();
        assert!(old.unwrap().success());
    }
    let sandbox = bare();
    let cleaned = sandbox.exec(&["systemd-tmpfiles", "--clean", "--remove"]).unwrap();
    for place in places {
        sandbox.write_file(&format!("{place}/{inside}"), "guest").unwrap();
    }
    for place in ["/tmp", "/run", "/dev/shm"] {
        assert!(
            !stdout(&sandbox, &["ls", place]).contains(&name),
            "{place} of the host is seen in the guest"
        );
    }
    for setting in ["/proc/sys/kernel/printk", "/sys/kernel/mm/ksm/run", "/proc/sys/kernel/core_pattern"] {
        let written = sandbox.exec(&["sh", "-c", "echo 1 >\"$0\"", setting]).unwrap();
        assert!(!written.status.success(), "{setting} of the host can be written");
    }
    assert!(
        stdout(&sandbox, &["ls", "/dev"])
            .lines()
            .all(|device| !device.starts_with("vd") && !device.starts_with("sd"))
    );
    drop(sandbox);
    for place in places {
        assert!(fs::exists(format!("{place}/{name}")).unwrap(), "{place}: {cleaned:?}");
        assert!(!fs::exists(format!("{place}/{inside}")).unwrap(), "{place}");
        fs::remove_file(format!("{place}/{name}")).unwrap();
    }
}

#[test]
fn a_tree_binds_and_wanted_units_arrive() {
    let scratch = Scratch::new("tree");
    scratch.write("tree/usr/lib/systemd/system/mine.service", "[Service]\nExecStart=sleep 60\n");
    let program = scratch.write("tree/usr/bin/mine", "#!/bin/sh\necho mine\n");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(&program, Some(1234), Some(1234)).unwrap();
    scratch.write("shared/file", "from the host");
    let sandbox = Sandbox::builder()
        .dir(scratch.path().join("box"))
        .name("node-1")
        .tree(scratch.path().join("tree"))
        .bind(scratch.path().join("shared"), "/mnt/shared")
        .bind_read_only(scratch.path().join("shared/file"), "/srv/deep/file")
        .want("mine.service")
        .up()
        .unwrap();
    assert_eq!(stdout(&sandbox, &["mine"]), "mine");
    assert_eq!(stdout(&sandbox, &["stat", "-c", "%u:%g:%a", "/usr/bin/mine"]), "0:0:755");
    assert_eq!(stdout(&sandbox, &["systemctl", "is-active", "mine"]), "active");
    assert_eq!(stdout(&sandbox, &["hostname"]), "node-1");
    assert_eq!(sandbox.read_file("/srv/deep/file").unwrap(), "from the host");
    assert!(sandbox.write_file("/srv/deep/file", "x").is_err());
    sandbox.write_file("/mnt/shared/back", "from the guest").unwrap();
    assert_eq!(fs::read_to_string(scratch.path().join("shared/back")).unwrap(), "from the guest");
    assert_eq!(fs::metadata(&program).unwrap().uid(), 1234);
    drop(sandbox);
    assert!(!scratch.path().join("box").exists());
    assert!(scratch.path().join("shared/file").exists(), "what was bound is not wiped");
}

#[test]
fn what_can_not_work_is_refused_and_leaves_nothing() {
    let scratch = Scratch::new("refused");
    let dir = scratch.path().join("box");
    let refused = |builder: sandbox::Builder| format!("{:#}", builder.dir(&dir).up().unwrap_err());
    for (builder, what) in [
        (Sandbox::builder().want("nowhere.service"), "nowhere.service"),
        (Sandbox::builder().tree("/nowhere"), "make stage"),
        (Sandbox::builder().bind("/nowhere", "/x"), "/nowhere"),
        (Sandbox::builder().bind("/etc", "x"), "starts with /"),
        (Sandbox::builder().name("a b"), "host name"),
        (Sandbox::builder().gpus("2;reboot"), "2x16311"),
    ] {
        let said = refused(builder);
        assert!(said.contains(what), "{said}");
        assert!(!dir.exists(), "{what}");
    }
    let said = format!("{:#}", Sandbox::builder().dir(scratch.path().join("a,b")).up().unwrap_err());
    assert!(said.contains("comma"), "{said}");
    scratch.write("full/precious", "");
    let said = format!("{:#}", Sandbox::builder().dir(scratch.path().join("full")).up().unwrap_err());
    assert!(said.contains("precious"), "{said}");
    assert!(format!("{:#}", Sandbox::attach(&dir).unwrap_err()).contains("sandbox up"));
}

#[test]
fn two_at_once_know_nothing_of_each_other() {
    let (one, two) = thread::scope(|scope| {
        let one = scope.spawn(bare);
        (one.join().unwrap(), bare())
    });
    one.exec(&["systemd-run", "--unit=only-here", "sleep", "60"]).unwrap().check().unwrap();
    assert_eq!(stdout(&one, &["systemctl", "is-active", "only-here"]), "active");
    assert_eq!(two.exec(&["systemctl", "is-active", "only-here"]).unwrap().stdout.trim(), "inactive");
    let machine = ["cat", "/etc/machine-id"];
    assert_ne!(stdout(&one, &machine), stdout(&two, &machine));
    one.write_file("/var/lib/berth/x", "").unwrap();
    assert!(two.read_file("/var/lib/berth/x").is_err());
    drop(one);
    assert_eq!(two.health().unwrap().0, "running");
}
