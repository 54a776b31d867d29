//! Who may do what: operators without sudo, berthd without root, and starts only by berthd's permission (S3).

use std::time::Duration;

use berth_core::report::ModelState;
use berth_tests::{Berth, CtlOutput, fake};
use serde_json::Value;

const EACH: &str = "6000MiB";
const SOON: Duration = Duration::from_secs(15);

/// A process's `/proc/PID/status`, as the guest has it: the values of these keys.
fn of_process<const N: usize>(berth: &Berth, pid: &str, keys: [&str; N]) -> [String; N] {
    let status = berth.run(None, &["cat", &format!("/proc/{pid}/status")]).with_code(0).stdout;
    keys.map(|key| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {key} in {status}"))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    })
}

fn uid(berth: &Berth, user: &str) -> String {
    berth.run(None, &["id", "-u", user]).with_code(0).stdout.trim().to_owned()
}

/// What the journal keeps for an audit, newest last.
fn audit(berth: &Berth) -> Vec<Value> {
    let argv = ["journalctl", "--no-pager", "--output=json", "--unit=berthd.service", "BERTH_AUDIT=true"];
    let output = berth.run(None, &argv).with_code(0);
    output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// S3: one of group `berth` switches without sudo, and what he stops stays stopped. One outside is told why not,
/// in words that name the group and the command that would change it. The journal keeps who asked for what.
#[test]
fn operators_are_a_group() {
    let berth = Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &[]).boot();
    _ = berth.ctl_as("frank", &["switch", "aeon"]).with_code(0);
    assert!(!berth.ask("aeon").is_empty());
    let aeon = berth.run_of("aeon");

    for verb in [&["switch", "genesis"][..], &["stop", "--all"], &["plan", "switch", "genesis"]] {
        let refused = berth.ctl_as("mallory", verb).with_code(6);
        assert!(refused.stderr.contains("not in group berth"), "{refused}");
        assert!(refused.stderr.contains("sudo usermod -aG berth mallory"), "{refused}");
        let refused = berth.ctl_as("mallory", &[verb, &["--json"]].concat()).with_code(6);
        let last: Value = serde_json::from_str(refused.stdout.lines().last().unwrap()).unwrap();
        assert_eq!(last["problem"]["code"], "permission_denied", "{refused}");
    }
    // What anyone may see, he sees: who holds the GPUs.
    let seen = berth.ctl_as("mallory", &["status"]).with_code(6);
    assert!(seen.stdout.contains("GPU 0") && seen.stdout.contains("aeon"), "{seen}");
    assert_eq!(berth.run_of("aeon"), aeon);

    _ = berth.ctl_as("frank", &["switch", "genesys"]).with_code(3);
    _ = berth.ctl_as("frank", &["stop", "aeon"]).with_code(0);
    berth.restart_berthd();
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!((berth.state_of("aeon"), berth.run_of("aeon").main_pid), (ModelState::Off, 0));

    let lines = audit(&berth);
    let frank = uid(&berth, "frank");
    let command = |line: &Value| line["BERTH_COMMAND"].as_str().unwrap_or_default().to_owned();
    let commands: Vec<String> = lines.iter().map(command).collect();
    assert_eq!(commands, ["berthctl switch aeon", "berthctl switch genesys", "berthctl stop aeon"]);
    for line in &lines {
        assert_eq!((line["BERTH_UID"].as_str(), line["BERTH_USER"].as_str()), (Some(&*frank), Some("frank")));
        let pid = line["BERTH_PID"].as_str().unwrap();
        assert!(pid.parse::<u32>().is_ok_and(|pid| pid > 1), "{line:#}");
        let message = line["MESSAGE"].as_str().unwrap();
        for part in ["frank", &format!("uid {frank}"), &format!("pid {pid}"), &command(line)] {
            assert!(message.contains(part), "{part} is missing: {message}");
        }
    }
    assert!(lines[1]["MESSAGE"].as_str().unwrap().contains("refused: no model is called `genesys`"));
}

/// berthd has neither root nor capabilities, and its user can handle model units and nothing else; a model's
/// processes have neither, too.
#[test]
fn nobody_has_more_rights_than_he_needs() {
    let berth = Berth::builder().fake("aeon", EACH, &["--fork-child"]).boot();
    berth.switch("aeon");
    let keys = ["Uid", "CapPrm", "CapEff", "CapAmb", "CapBnd", "NoNewPrivs"];
    let unprivileged = |user: &str| {
        let (uid, none) = (uid(&berth, user), "0000000000000000");
        [[uid.as_str(); 4].join(" "), none.into(), none.into(), none.into(), none.into(), "1".into()]
    };
    let berthd = berth.property("berthd.service", "MainPID");
    assert_eq!(of_process(&berth, &berthd, keys), unprivileged("berth"));
    let group = berth.property("berth-model@aeon.service", "ControlGroup");
    let processes = berth.run(None, &["cat", &format!("/sys/fs/cgroup{group}/cgroup.procs")]).with_code(0);
    let processes: Vec<&str> = processes.stdout.lines().collect();
    assert!(processes.len() >= 2 && processes.contains(&&*berth.run_of("aeon").main_pid.to_string()));
    for pid in processes {
        assert_eq!(of_process(&berth, pid, keys), unprivileged("berth-model"), "pid {pid}");
    }

    // No unit but models' for berth; none at all for operators.
    let aeon = berth.run_of("aeon");
    let gpusim = berth.property("gpusim.service", "MainPID");
    let systemctl = |user: &str, verb: &[&str]| -> CtlOutput {
        berth.run(Some(user), &[&["systemctl", "--no-ask-password"], verb].concat())
    };
    for (user, verb) in [
        ("berth", &["stop", "gpusim.service"][..]),
        ("berth", &["restart", "berthd.service"]),
        ("berth", &["start", "systemd-ask-password-console.service"]),
        ("berth", &["kill", "gpusim.service"]),
        ("berth", &["set-property", "--runtime", "gpusim.service", "CPUWeight=1"]),
        ("berth", &["restart", "berth-model@aeon.service"]),
        ("berth", &["daemon-reload"]),
        ("berth", &["enable", "berth-model@aeon.service"]),
        ("frank", &["stop", "berth-model@aeon.service"]),
        ("mallory", &["stop", "berth-model@aeon.service"]),
    ] {
        let denied = systemctl(user, verb);
        assert_ne!(denied.code, 0, "{user} {verb:?}: {denied}");
    }
    assert_eq!(berth.property("gpusim.service", "MainPID"), gpusim);
    assert_eq!(berth.property("berthd.service", "MainPID"), berthd);
    assert_eq!(berth.run_of("aeon"), aeon);
    // Proof that it is the rule that tells them apart: model units it may kill. berthd brings home back.
    _ = systemctl("berth", &["kill", "berth-model@aeon.service"]).with_code(0);
    berth.wait_for("aeon is back", SOON, |berth| {
        (berth.serving() == ["aeon"] && berth.run_of("aeon") != aeon).then_some(())
    });
}

/// S2, S3: model units start by berthd's permission alone. They can't be enabled for boot; a start by hand fails
/// with the reason where people look, with berthd and without.
#[test]
fn starts_by_hand_fail_with_the_reason() {
    let berth = Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    let unit = "berth-model@genesis.service";
    let enable = berth.systemctl(&["enable", unit]);
    assert!(enable.stderr.contains("not meant to be enabled"), "{enable}");
    assert_eq!(berth.systemctl(&["is-enabled", unit]).stdout.trim(), "static");
    let links = berth.run(None, &["find", "/etc/systemd", "-name", "berth-model@*"]).with_code(0);
    assert_eq!(links.stdout, "");

    let by_hand = |reason: &str| {
        let start = berth.systemctl(&["start", unit]);
        assert_ne!(start.code, 0, "{start}");
        let status = berth.systemctl(&["status", "--no-pager", "--full", unit]);
        assert!(status.stdout.contains(reason), "`{reason}` is not in: {status}");
        assert_eq!(berth.run_of("genesis").main_pid, 0);
        assert!(berth.try_ask(8101, "x").is_err());
    };
    by_hand("only berthd starts model servers: run `berthctl switch genesis`");
    // It says who holds the GPUs, too; and such a start does no harm to what comes after it.
    by_hand("GPU 0 is held by aeon (5.9 GiB)");
    let text = berth.ctl(&["status"]).with_code(0).stdout;
    assert!(text.contains("aeon serves"), "{text}");

    let aeon = berth.run_of("aeon");
    _ = berth.systemctl(&["stop", "berthd.service"]).with_code(0);
    by_hand("berthd is not running");
    assert_eq!(berth.run_of("aeon"), aeon);
    // The reason is the same while one that died is not up again, though sockets stay in place meanwhile.
    _ = berth.systemctl(&["start", "berthd.service"]).with_code(0);
    let late = "[Service]\nRestartSec=3s\n";
    berth.sandbox().write_file("/run/systemd/system/berthd.service.d/late.conf", late).unwrap();
    _ = berth.systemctl(&["daemon-reload"]).with_code(0);
    _ = berth.systemctl(&["kill", "--signal=KILL", "berthd.service"]).with_code(0);
    berth.wait_for("berthd is dead", SOON, |berth| {
        (berth.property("berthd.service", "SubState") == "auto-restart").then_some(())
    });
    by_hand("berthd is not running");
    assert_eq!(berth.run_of("aeon"), aeon);
    berth.wait_for_berthd(SOON).unwrap();
    berth.switch("genesis");
    assert!(!berth.ask("genesis").is_empty());
    assert_eq!(berth.stats().failed, 0);
}

/// Asks for a ticket from an abstract address (none where it is empty), and prints what comes.
const ASK: &str = r#"
use Socket;
socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!\n";
if (length $ARGV[0]) { bind($s, pack("Sa*", AF_UNIX, "\0$ARGV[0]")) or die "bind: $!\n"; }
connect($s, pack_sockaddr_un("/run/berth/ticket.sock")) or die "connect: $!\n";
local $SIG{ALRM} = sub { die "no end\n" };
alarm 5;
local $/;
print <$s> // "";
"#;

/// A ticket is for PID 1 alone, as it starts that unit, and once: nobody else gets one, not even root at PID 1's
/// address, before a start or while one is under way.
#[test]
fn tickets_are_for_pid_1_and_once() {
    let berth = Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &[]).boot();
    let ask = |user: Option<&str>, address: &str| berth.run(user, &["perl", "-e", ASK, address]);
    let unit = "berth-model@aeon.service";
    let pid_1s = format!("0123456789abcdef/unit/{unit}/ticket");
    let asked = || {
        for user in ["mallory", "frank", "berth-model"] {
            let denied = ask(Some(user), &pid_1s);
            assert!(denied.code != 0 && denied.stderr.contains("Permission denied"), "{user}: {denied}");
        }
        // berth owns the socket and is not PID 1 either.
        assert_eq!(ask(Some("berth"), &pid_1s).with_code(0).stdout, "");
        for address in [
            pid_1s.as_str(),
            "",
            "aeon",
            "/unit/berth-model@aeon.service/ticket",
            "0123456789abcdef/unit/berth-model@aeon.service/other",
            "0123456789abcdef/unit/ssh.service/ticket",
            "0123456789abcdef/unit/x/unit/berth-model@aeon.service/ticket",
        ] {
            assert_eq!(ask(None, address).with_code(0).stdout, "", "{address}");
        }
    };
    asked();

    // A step of preparation holds the start up: the ticket is fetched, and is there again for the server.
    let drop_in = "/etc/systemd/system/berth-model@aeon.service.d/slow.conf";
    let slow = "[Service]\nExecStartPre=/bin/sh -c 'touch /tmp/preparing; while test -e /tmp/preparing; do sleep 0.1; done'\n";
    berth.sandbox().write_file(drop_in, slow).unwrap();
    _ = berth.systemctl(&["daemon-reload"]).with_code(0);
    let accepted = berth.change(&["switch", "aeon", "--no-wait"]).with_code(0);
    assert!(accepted.last["accepted"]["swap"].is_u64(), "{:#}", accepted.last);
    berth.wait_for("the preparation", SOON, |berth| {
        (berth.run(None, &["test", "-e", "/tmp/preparing"]).code == 0).then_some(())
    });
    asked();
    assert_eq!(berth.property(unit, "SubState"), "start-pre");
    _ = berth.run(None, &["rm", "/tmp/preparing"]).with_code(0);
    berth.wait_serving("aeon", SOON);
    assert!(!berth.ask("aeon").is_empty());
    asked();
    // From within the unit there is an answer, once the start is over: why there is no ticket any more.
    let group = berth.property(unit, "ControlGroup");
    let within = "echo $$ >\"/sys/fs/cgroup$0/cgroup.procs\" && exec perl -e \"$1\" \"$2\"";
    let reason = berth.run(None, &["sh", "-c", within, &group, ASK, &pid_1s]).with_code(0).stdout;
    assert!(reason.contains("only berthd starts model servers"), "{reason}");
    assert!(!reason.contains("fakellm"), "{reason}");
    let journal = berth.journal("berthd.service");
    assert!(journal.contains("asked for by someone who isn't systemd"), "{journal}");
}

/// A model's secret goes from root's file through systemd to the server: berthd can't read it, and it is neither in the
/// ledger, nor in what is told, nor in a log. Where it is missing the server does not start, and that is said.
#[test]
fn a_secret_is_between_systemd_and_the_server() {
    let secret = "hf_open_sesame";
    let model = fake(1, "2000MiB", &[]) + "secrets = [\"HF_TOKEN\"]\n";
    let berth = Berth::builder().model("aeon", &model).boot();
    let missing = berth.ctl(&["switch", "aeon"]).with_code(4);
    assert!(missing.stdout.contains("HF_TOKEN is not there"), "{missing}");

    let (kept, drop_in) =
        ("/etc/berth/secrets/hf", "/etc/systemd/system/berth-model@.service.d/secrets.conf");
    let unit = format!("[Service]\nLoadCredential=HF_TOKEN:{kept}\n");
    berth.sandbox().write_file(drop_in, unit.as_bytes()).unwrap();
    berth.sandbox().write_file(kept, format!("{secret}\n").as_bytes()).unwrap();
    _ = berth.run(None, &["chmod", "600", kept]).with_code(0);
    _ = berth.systemctl(&["daemon-reload"]).with_code(0);
    berth.switch("aeon");
    let pid = berth.run_of("aeon").main_pid;
    let environment = berth.run(None, &["cat", &format!("/proc/{pid}/environ")]).with_code(0).stdout;
    assert!(environment.split('\0').any(|pair| pair == format!("HF_TOKEN={secret}")), "{environment:?}");

    for file in [
        kept.to_owned(),
        format!("/proc/{pid}/environ"),
        "/run/credentials/berth-model@aeon.service/HF_TOKEN".to_owned(),
    ] {
        assert_eq!(berth.run(None, &["test", "-e", &file]).code, 0, "{file}");
        assert_ne!(berth.run(Some("berth"), &["cat", &file]).code, 0, "berthd can read {file}");
    }
    let told = berth.ctl(&["status", "--json"]).stdout
        + &berth.ctl(&["check"]).stdout
        + &berth.ctl(&["events"]).stdout;
    let kept = berth.run(None, &["sh", "-c", "cat /var/lib/berth/*"]).with_code(0).stdout;
    let logged = berth.run(None, &["journalctl", "--no-pager"]).with_code(0).stdout;
    for (what, text) in [("answers", &told), ("state", &kept), ("journal", &logged)] {
        assert!(text.len() > 100 && !text.contains(secret), "it is in the {what}");
    }
}
