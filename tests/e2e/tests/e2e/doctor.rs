//! What nobody was told of: servers that listen more widely than declared (S13), and what `berthctl doctor` finds on a
//! machine that somebody has set up by hand.

use std::time::{Duration, Instant};

use berth_core::report::Problem;
use berth_tests::{Berth, declaration};
use serde_json::Value;

/// Three of them share the cards.
const EACH: &str = "4000MiB";
/// From a wider bind until people are told.
const TOLD: Duration = Duration::from_secs(10);

fn fake(flags: &str) -> String {
    declaration(&format!("/usr/bin/fakellm --vram-each {EACH} {flags}"), 2, EACH)
}

/// Whether somebody in the guest listens on this port.
fn listens(berth: &Berth, port: u16) -> bool {
    let sockets = berth.run(None, &["cat", "/proc/net/tcp", "/proc/net/tcp6"]).with_code(0);
    let local = format!(":{port:04X}");
    sockets.stdout.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (address, state) = (words.next(), words.nth(1));
        address.is_some_and(|address| address.ends_with(&local)) && state == Some("0A")
    })
}

fn exposed(berth: &Berth, model: &str) -> Option<Problem> {
    berth.status().problems.into_iter().find(|problem| problem.code == "exposed" && problem.subject == model)
}

/// Waits until the port is listened at, and then for the problem, which must come in time.
#[track_caller]
fn told_in_time(berth: &Berth, model: &str, port: u16) -> Problem {
    berth.wait_for(&format!("{model} listens on {port}"), Duration::from_secs(20), |berth| {
        listens(berth, port).then_some(())
    });
    let since = Instant::now();
    let problem = berth.wait_for(&format!("{model} is exposed"), TOLD, |berth| exposed(berth, model));
    println!("{model} on {port}: told after {:.1} s: {}", since.elapsed().as_secs_f64(), problem.text);
    problem
}

#[test]
fn what_is_exposed_and_what_is_set_up_wrong_is_named() {
    let berth = Berth::builder()
        .model("wide", &fake("--bind-host 0.0.0.0"))
        .model("late", &fake("--child-listens 0.0.0.0:9101 --child-listens-after 4s"))
        .model("six", &fake("--child-listens [::]:9102 --child-listens-after 2s"))
        .boot();
    for model in ["wide", "late", "six"] {
        _ = berth.change(&["start", model]).with_code(0).swap();
    }

    let port = berth.port("wide").unwrap();
    let wide = told_in_time(&berth, "wide", port);
    let pid = berth.run_of("wide").main_pid;
    let by = format!("0.0.0.0:{port} by fakellm (pid {pid})");
    assert!(wide.text.contains(&by) && wide.text.contains(&format!("127.0.0.1:{port}")), "{wide:?}");

    // Of a process of another user berthd can't see what it has open: it names all that run in the unit.
    let late = told_in_time(&berth, "late", 9101);
    assert!(late.text.contains("0.0.0.0:9101 by fakellm (pid ") && late.text.contains(" or "), "{late:?}");
    let six = told_in_time(&berth, "six", 9102);
    assert!(six.text.contains("[::]:9102"), "{six:?}");

    // It is a warning: all that should serve does.
    let health =
        berth.run(None, &["curl", "-fsS", "--unix-socket", "/run/berth/berth.sock", "http://berth/health"]);
    assert!(health.with_code(0).stdout.contains("\"status\":\"ok\""));

    // What is meant is declared, and what is stopped listens no more.
    berth.declare("wide", &format!("exposed = true\n{}", fake("--bind-host 0.0.0.0")));
    _ = berth.ctl(&["reload"]).with_code(0);
    assert_eq!(exposed(&berth, "wide"), None);
    _ = berth.change(&["stop", "late"]).with_code(0);
    berth.wait_for("late is over", TOLD, |berth| exposed(berth, "late").is_none().then_some(()));
    assert!(exposed(&berth, "six").is_some());

    plant(&berth);
    look(&berth, "with berthd");
    let told = berth.ctl(&["doctor", "watch", "wait.service"]).with_code(1).stdout;
    println!("{told}");
    for line in told.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }

    // Who may ask berthd nothing is told so, and finds what anybody can see.
    let others = berth.run(Some("mallory"), &["berthctl", "doctor", "--json"]).with_code(1);
    let others: Value = serde_json::from_str(&others.stdout).unwrap();
    assert!(
        has(&others, "unknown", "permission_denied", "") && has(&others, "warning", "rival", "aeon.service")
    );
    assert!(has(&others, "unknown", "gpu_gone", ""), "the ledger is not everybody's: {others:#}");

    _ = berth.systemctl(&["stop", "berthd"]).with_code(0);
    look(&berth, "without berthd");
    let report = berth.ctl_json(&["doctor"]);
    assert!(has(&report, "error", "berthd_not_running", ""), "{report:#}");
}

/// What somebody who sets up a machine by hand leaves behind.
fn plant(berth: &Berth) {
    let write = |path: &str, text: &str| {
        let command = format!("mkdir -p \"$(dirname '{path}')\" && cat > '{path}' <<'END'\n{text}\nEND");
        _ = berth.run(None, &["sh", "-c", &command]).with_code(0);
    };
    write(
        "/etc/systemd/system/watch.service",
        "[Unit]\nAfter=network.target dbuss.service\n[Service]\nExecStart=/bin/true",
    );
    write(
        "/etc/systemd/system/wait.service",
        "[Unit]\nRequires=tailscale.service\n[Service]\nExecStart=/bin/true",
    );
    write(
        "/etc/systemd/system/aeon.service",
        "[Service]\nRestart=always\nExecStart=/opt/llama.cpp/llama-server -m /m.gguf\n[Install]\nWantedBy=multi-user.target",
    );
    write(
        "/etc/systemd/system/berth-model@locked.service.d/limits.conf",
        "[Service]\nLimitMEMLOCK=64K\nNice=-5",
    );
    write("/etc/fstab", "/dev/sdz1 /weights ext4 noauto 0 0");
    write("/srv/closed/q.gguf", "weights");
    _ = berth.run(None, &["chmod", "0700", "/srv/closed"]).with_code(0);
    _ = berth.systemctl(&["daemon-reload"]).with_code(0);
    _ = berth.systemctl(&["enable", "aeon"]).with_code(0);
    let squatter = ["systemd-run", "--unit=squatter", "/usr/bin/fakellm", "--port", "8177"];
    _ = berth.run(None, &squatter).with_code(0);
    berth.wait_for("the squatter listens", TOLD, |berth| listens(berth, 8177).then_some(()));
    berth.declare("closed", &format!("model = \"/srv/closed/q.gguf\"\n{}", fake("")));
    berth.declare("away", &format!("model = \"/weights/q.gguf\"\n{}", fake("")));
    berth.declare("taken", &format!("port = 8177\n{}", fake("")));
    berth.declare("locked", &fake("--mlock"));
    berth.declare("large", &declaration("/usr/bin/fakellm", 2, "90000MiB"));
}

fn has(report: &Value, severity: &str, code: &str, subject: &str) -> bool {
    finding(report, severity, code, subject).is_some()
}

fn finding<'a>(report: &'a Value, severity: &str, code: &str, subject: &str) -> Option<&'a Value> {
    report["findings"].as_array().unwrap().iter().find(|finding| {
        finding["severity"] == severity && finding["code"] == code && finding["subject"] == subject
    })
}

/// What is found on that machine, whether berthd runs or not.
#[track_caller]
fn look(berth: &Berth, when: &str) {
    let report = berth.ctl_json(&["doctor", "watch", "wait.service"]);
    let wanted = [
        ("warning", "unit_missing", "watch.service dbuss.service", "/etc/systemd/system/watch.service:2"),
        (
            "error",
            "unit_missing",
            "wait.service tailscale.service",
            "can't start: it needs tailscale.service",
        ),
        ("warning", "rival", "aeon.service", "sudo systemctl disable --now aeon.service"),
        ("error", "unreadable", "closed", "drwx------ root root /srv/closed"),
        ("error", "not_mounted", "away", "sudo mount /weights"),
        ("error", "port_taken", "taken", "it is of squatter.service"),
        ("error", "memlock", "locked", "LimitMEMLOCK=65536"),
        ("warning", "priority", "locked", "Nice=-5"),
        ("warning", "does_not_fit", "large", "berthctl fit large"),
        // As root it is seen which process it is.
        ("warning", "exposed", "six", "[::]:9102 by fakellm (pid "),
    ];
    for (severity, code, subject, says) in wanted {
        let Some(finding) = finding(&report, severity, code, subject) else {
            panic!("{when}: no {severity} {code} of `{subject}`: {report:#}")
        };
        assert!(finding.to_string().contains(says), "{when}: {finding:#}");
        assert!(!finding["next"].as_str().unwrap().is_empty(), "{finding:#}");
    }
    let six = finding(&report, "warning", "exposed", "six").unwrap();
    assert!(!six["text"].as_str().unwrap().contains(" or "), "{when}: {six:#}");
    for well in
        ["configuration", "device nodes", "systemd", "polkit", "cgroups", "users and groups", "folders"]
    {
        assert!(
            report["well"].as_array().unwrap().iter().any(|name| name == well),
            "{when}: {well}: {report:#}"
        );
    }
}
