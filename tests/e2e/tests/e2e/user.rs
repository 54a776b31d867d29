//! A user's own Berth, without root: under her own systemd, beside the machine's. Mallory is in no group of Berth's.

use std::time::Duration;

use berth_core::report::{ModelState, Status};
use berth_tests::{Berth, CtlOutput, fake};
use serde_json::Value;

/// Two of them fill the cards beside the machine's own model.
const EACH: &str = "6000MiB";
const SOON: Duration = Duration::from_secs(15);
const FOLDER: &str = "/home/mallory/.config/berth";

const MAIN: &str = "node = \"hers\"\n[deadlines]\nstop = \"3s\"\nrelease = \"12s\"\nstart = \"10s\"\n";
const PORTS: &str = "[http]\nlisten = [\"127.0.0.1:9009\"]\n[proxy]\nlisten = [\"127.0.0.1:9010\"]\n\
    [ports]\nrange = \"8200-8299\"\n[rights]\noperate = [\"@berth\"]\n";
/// What a unit is asked for that a user's systemd may lack.
const PINNED: &str = "devices = \"host\"\n[host]\ncores = \"0\"\nheadroom = \"64 MiB\"\n";

/// What Mallory can do.
struct Hers<'a> {
    berth: &'a Berth,
    runtime: String,
}

impl<'a> Hers<'a> {
    /// Her systemd, which runs without a login.
    fn linger(berth: &'a Berth) -> Self {
        _ = berth.run(None, &["loginctl", "enable-linger", "mallory"]).with_code(0);
        let uid = berth.run(None, &["id", "-u", "mallory"]).with_code(0).stdout.trim().to_owned();
        let hers = Self { berth, runtime: format!("XDG_RUNTIME_DIR=/run/user/{uid}") };
        berth.wait_for("her systemd is up", SOON, |_| {
            let state = hers.systemctl(&["is-system-running"]).stdout;
            // What else the machine has for its users may fail here.
            ["running", "degraded"].contains(&state.trim()).then_some(())
        });
        hers
    }

    #[track_caller]
    fn run(&self, argv: &[&str]) -> CtlOutput {
        self.berth.run(Some("mallory"), &[&["env", &self.runtime], argv].concat())
    }

    #[track_caller]
    fn ctl(&self, arguments: &[&str]) -> CtlOutput {
        self.run(&[&["berthctl", "--user"], arguments].concat())
    }

    #[track_caller]
    fn systemctl(&self, arguments: &[&str]) -> CtlOutput {
        self.run(&[&["systemctl", "--user"], arguments].concat())
    }

    #[track_caller]
    fn write(&self, path: &str, text: &str) {
        let command = format!("mkdir -p \"$(dirname '{path}')\" && cat > '{path}' <<'END'\n{text}\nEND");
        _ = self.run(&["sh", "-c", &command]).with_code(0);
    }

    #[track_caller]
    fn declare(&self, model: &str, toml: &str) {
        self.write(&format!("{FOLDER}/models.d/{model}.toml"), toml);
    }

    #[track_caller]
    fn status(&self) -> Status {
        let output = self.ctl(&["status", "--json"]);
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("no status ({error}): {output}"))
    }

    fn state_of(&self, model: &str) -> Option<ModelState> {
        let models = self.status().models;
        models.iter().find(|declared| declared.name.as_str() == model).map(|model| model.state)
    }

    #[track_caller]
    fn wait_for(&self, model: &str, state: ModelState) {
        let what = format!("{model} is {state:?}");
        self.berth.wait_for(&what, SOON, |_| (self.state_of(model) == Some(state)).then_some(()));
    }

    #[track_caller]
    fn wait_for_berthd(&self) {
        self.berth.wait_for("her berthd answers", SOON, |_| {
            (self.ctl(&["status", "--json"]).code == 0).then_some(())
        });
    }

    #[track_caller]
    fn property(&self, unit: &str, property: &str) -> String {
        let shown = self.systemctl(&["show", "--value", "--property", property, "--", unit]).with_code(0);
        shown.stdout.trim().to_owned()
    }

    fn problems(&self) -> Vec<String> {
        self.status().problems.into_iter().map(|problem| problem.code).collect()
    }
}

#[test]
fn a_user_runs_berth_without_root() {
    let berth = Berth::builder().fake("aeon", EACH, &[]).boot();
    berth.switch("aeon");
    let hers = Hers::linger(&berth);

    before_it_runs(&hers);
    _ = hers.systemctl(&["enable", "--now", "berthd"]).with_code(0);
    beside_the_machines(&hers);
    switches(&hers);
    what_systemd_tells(&hers);
    comes_back(&hers);
    doctor(&hers);
    found_by_itself(&hers);
    berth.assert_no_failed_allocation();
}

/// Her units are sound, and what is missing is said with both places at which it was looked for.
fn before_it_runs(hers: &Hers) {
    let units =
        ["berthd.service", "berth-model@x.service"].map(|unit| format!("/usr/lib/systemd/user/{unit}"));
    let verified = hers.run(&["systemd-analyze", "--user", "verify", &units[0], &units[1]]).with_code(0);
    assert_eq!(verified.stderr, "");

    hers.write(&format!("{FOLDER}/berth.toml"), MAIN);
    hers.declare("one", &fake(2, EACH, &[]));
    hers.declare("two", &fake(2, "9400MiB", &[]));
    hers.write(&format!("{FOLDER}/policies.d/pinned.toml"), PINNED);
    hers.declare(
        "pinned",
        "cmd = \"/usr/bin/fakellm\"\nbackend = \"llama.cpp\"\npolicy = \"pinned\"\nmemory = { host = \"8 MiB\" }\n",
    );
    hers.declare("big", &fake(2, "14000MiB", &[]));
    hers.declare("broken", &fake(2, EACH, &["--exit-at-once", "3"]));
    let checked = hers.ctl(&["check"]).with_code(0).stdout;
    assert!(checked.contains(&format!("valid: 5 models in {FOLDER}")), "{checked}");

    let down = hers.ctl(&["switch", "one"]).with_code(6).stderr;
    let socket = format!("{}/berth/berth.sock", hers.runtime.strip_prefix("XDG_RUNTIME_DIR=").unwrap());
    assert!(down.contains(&format!("there is no socket {socket}")), "{down}");
    assert!(down.contains("systemctl --user status berthd"), "{down}");
    assert!(
        hers.ctl(&["add", "aeon.service"])
            .with_code(2)
            .stderr
            .contains(&format!("NAME.toml in {FOLDER}/models.d"))
    );
    let by_hand = hers.systemctl(&["start", "berth-model@one"]);
    assert_ne!(by_hand.code, 0);
    let said = hers.systemctl(&["status", "berth-model@one"]).stdout;
    assert!(
        said.contains("berthd is not running") && said.contains("systemctl --user start berthd"),
        "{said}"
    );
}

/// Two daemons on one machine: the second is told which addresses are taken, and each sees what the other's models hold.
fn beside_the_machines(hers: &Hers) {
    hers.wait_for_berthd();
    let clash = || {
        let mut problems = hers.problems();
        problems.retain(|code| code.ends_with("_unheard"));
        problems
    };
    hers.berth.wait_for("both addresses are said to be taken", SOON, |_| {
        (clash() == ["http_unheard", "proxy_unheard"]).then_some(())
    });
    hers.write(&format!("{FOLDER}/berth.toml"), &format!("{MAIN}{PORTS}"));
    _ = hers.systemctl(&["restart", "berthd"]).with_code(0);
    hers.wait_for_berthd();
    for port in ["9009/health", "9010/v1/models"] {
        _ = hers.run(&["curl", "-fsS", &format!("http://127.0.0.1:{port}")]).with_code(0);
    }
    assert_eq!(clash(), [""; 0]);

    let refused = hers.ctl(&["plan", "switch", "big"]).with_code(3);
    assert!(refused.stdout.contains("of berth-model@aeon.service 5.9 GiB"), "{refused}");
    _ = hers.ctl(&["switch", "one"]).with_code(0);
    let units = |status: Status| -> Vec<String> {
        let holders = status.gpus.value().unwrap()[0].holders.value().unwrap().clone();
        holders.into_iter().filter(|holder| !holder.ours).filter_map(|holder| holder.unit).collect()
    };
    let uid = hers.run(&["id", "-u"]).stdout.trim().to_owned();
    let of_hers = format!("user@{uid}.service/berth-model@one.service");
    hers.berth.wait_for("each sees the other's", SOON, |berth| {
        let seen = (units(hers.status()), units(berth.status()));
        (seen == (vec!["berth-model@aeon.service".to_owned()], vec![of_hers.clone()])).then_some(())
    });
}

/// The next one starts when the memory of the last is proved free; one that fails leaves what served before.
fn switches(hers: &Hers) {
    hers.berth.gpu(&["linger", "800ms"]);
    let switched = hers.ctl(&["switch", "two"]).with_code(0).stdout;
    assert!(switched.contains("released"), "{switched}");
    let pid = hers.property("berth-model@two", "MainPID");
    let status = hers.run(&["cat", &format!("/proc/{pid}/status")]).with_code(0).stdout;
    let uid = hers.run(&["id", "-u"]).stdout.trim().to_owned();
    assert!(status.contains(&format!("Uid:\t{uid}\t{uid}")) && status.contains("NoNewPrivs:\t1"), "{status}");
    hers.berth.gpu(&["linger", "0"]);

    _ = hers.ctl(&["start", "pinned"]).with_code(0);
    assert_eq!(hers.property("berth-model@pinned", "AllowedCPUs"), "0");
    let pid = hers.property("berth-model@pinned", "MainPID");
    let status = hers.run(&["cat", &format!("/proc/{pid}/status")]).with_code(0).stdout;
    assert!(status.contains("Cpus_allowed_list:\t0\n"), "{status}");

    let failed = hers.ctl(&["switch", "broken"]).with_code(4);
    assert!(failed.stdout.contains("status 3") || failed.stderr.contains("status 3"), "{failed}");
    assert_eq!(hers.state_of("two"), Some(ModelState::Serving));
    let log = hers.ctl(&["logs", "two"]).with_code(0).stdout;
    assert!(log.contains("listening") && log.contains("Started"), "{log}");
}

/// What is done past Berth: a stop by hand is her word, and a start by hand is refused with the reason.
fn what_systemd_tells(hers: &Hers) {
    _ = hers.systemctl(&["stop", "berth-model@two", "berth-model@pinned"]).with_code(0);
    hers.berth.wait_for("it is taken for her word", SOON, |_| hers.status().home.is_empty().then_some(()));
    for model in ["two", "pinned"] {
        hers.wait_for(model, ModelState::Off);
    }
    assert_ne!(hers.systemctl(&["start", "berth-model@two"]).code, 0);
    let said = hers.systemctl(&["status", "berth-model@two"]).stdout;
    assert!(said.contains("only berthd starts model servers: run `berthctl switch two`"), "{said}");
    for verb in [["switch", "two"], ["start", "pinned"]] {
        _ = hers.ctl(&verb).with_code(0);
    }
}

/// A restart of berthd takes over what serves. Her systemd ends with her last login, or at a reboot, and with the next
/// one the same models serve again.
fn comes_back(hers: &Hers) {
    let run = || hers.property("berth-model@two", "InvocationID");
    let before = run();
    let berthd = hers.property("berthd", "MainPID");
    _ = hers.run(&["kill", "-KILL", &berthd]).with_code(0);
    hers.berth.wait_for("another berthd", SOON, |_| {
        let now = hers.property("berthd", "MainPID");
        (now != "0" && now != berthd).then_some(())
    });
    hers.wait_for_berthd();
    hers.wait_for("two", ModelState::Serving);
    assert_eq!(run(), before);

    let uid = hers.run(&["id", "-u"]).stdout.trim().to_owned();
    _ = hers.berth.systemctl(&["restart", &format!("user@{uid}.service")]).with_code(0);
    hers.wait_for_berthd();
    hers.wait_for("two", ModelState::Serving);
    hers.wait_for("pinned", ModelState::Serving);
    assert_ne!(run(), before);
}

/// What only the machine's Berth needs is not missed.
fn doctor(hers: &Hers) {
    let said = hers.ctl(&["doctor", "--json"]).stdout;
    let report: Value = serde_json::from_str(&said).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let of_machine =
        ["polkit_old", "polkit_rule", "no_user", "no_unit", "unit_missing", "folder", "unreadable"];
    for code in findings.iter().map(|finding| finding["code"].as_str().unwrap()) {
        assert!(!of_machine.contains(&code), "{report:#}");
    }
    // A user's systemd has the processors to give away only where PID 1 hands them on.
    let uid = hers.run(&["id", "-u"]).stdout.trim().to_owned();
    let controllers =
        format!("/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers");
    let there = hers.run(&["cat", &controllers]).with_code(0).stdout.contains("cpuset");
    let said = findings.iter().any(|finding| finding["code"] == "no_controller");
    assert_eq!(said, !there, "{report:#}");
    let well: Vec<&str> = report["well"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for name in ["systemd", "lingering", "berthd at boot", "folders", "units", "files of models", "ports"] {
        assert!(well.contains(&name), "{name}: {report:#}");
    }
}

/// Without `--user` the machine's berthd is asked where there is one, else her own.
fn found_by_itself(hers: &Hers) {
    let denied = hers.run(&["berthctl", "status"]).with_code(6);
    assert!(denied.stdout.contains("berthctl --user"), "{denied}");
    _ = hers.berth.systemctl(&["stop", "berthd"]).with_code(0);
    let own = hers.run(&["berthctl", "status"]).with_code(0).stdout;
    assert!(own.starts_with("hers"), "{own}");

    _ = hers.systemctl(&["stop", "berthd"]).with_code(0);
    let pid = hers.property("berth-model@two", "MainPID");
    assert_ne!(pid, "0", "models serve on");
    let neither = hers.run(&["berthctl", "switch", "one"]).with_code(6).stderr;
    assert!(neither.contains("/run/berth/berth.sock, nor"), "{neither}");
}
