//! What comes up after a power cut, and what doesn't (S2): exactly what was committed, never a model by itself, and
//! nothing over a service outside Berth that was faster.

use std::time::Duration;

use berth_core::report::{ModelState, Problem};
use berth_tests::Berth;

/// More than half of a card.
const EACH: &str = "14300MiB";
const SOON: Duration = Duration::from_secs(20);
/// Longer than berthd takes for what it does by itself.
const QUIET: Duration = Duration::from_secs(2);

/// Cuts the power and boots again, until berthd answers.
#[track_caller]
fn power_cut(berth: &mut Berth) {
    berth.cut();
    berth.boot();
    berth.wait_for_berthd(SOON).unwrap();
}

#[track_caller]
fn sh(berth: &Berth, script: &str) {
    _ = berth.run(None, &["sh", "-c", script]).with_code(0);
}

/// Writes a unit as somebody does who knows nothing of Berth.
#[track_caller]
fn write_unit(berth: &Berth, unit: &str, text: &str) {
    sh(berth, &format!("cat > /etc/systemd/system/{unit} <<'EOF'\n{text}\nEOF\nsystemctl daemon-reload"));
}

/// Whether the model's server was started since the boot.
#[track_caller]
fn was_started(berth: &Berth, model: &str) -> bool {
    berth.property(&format!("berth-model@{model}.service"), "ExecMainStartTimestampMonotonic") != "0"
}

#[track_caller]
fn wait_for_problem(berth: &Berth, code: &str, subject: &str) -> Problem {
    berth.wait_for(&format!("{code} {subject}"), SOON, |berth| {
        let problems = berth.status().problems;
        problems.into_iter().find(|problem| problem.code == code && problem.subject == subject)
    })
}

#[track_caller]
fn wait_for_no_problem(berth: &Berth) {
    berth.wait_for("no problem", SOON, |berth| berth.status().problems.is_empty().then_some(()));
}

/// Does what a problem says is to be done.
#[track_caller]
fn obey(berth: &Berth, problem: &Problem) {
    let words: Vec<&str> = problem.next.split_whitespace().collect();
    let ["sudo", command @ ..] = &*words else { panic!("not a command: {problem:?}") };
    _ = berth.run(None, command).with_code(0);
}

/// S2: after a power cut exactly home serves. A service that was enabled outside Berth is found before it does harm;
/// where it took the memory first, nothing is started over it, it is named with the command that ends it, and home
/// returns by itself once it is gone.
#[test]
fn exactly_home_comes_back_and_a_rival_is_named() {
    let mut berth = Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    berth.switch("genesis");
    power_cut(&mut berth);
    berth.wait_serving("genesis", SOON);
    std::thread::sleep(QUIET);
    berth.assert_home("genesis");
    assert!(!was_started(&berth, "aeon"));
    let boot = berth.run(None, &["cat", "/proc/sys/kernel/random/boot_id"]).stdout;
    let recorded = berth.run(None, &["tail", "--lines=1", "/var/lib/berth/ledger"]).stdout;
    assert!(recorded.contains(boot.trim()), "berthd saw another boot id than {boot}: {recorded}");

    // One that is known by what it would run, and one by what it holds. Others that are enabled are no rivals.
    sh(&berth, "ln -s fakellm /usr/bin/llama-server");
    write_unit(
        &berth,
        "aeon.service",
        "[Unit]\nAfter=gpusim.service\nBefore=berthd.service\n\
         [Service]\nExecStart=/usr/bin/llama-server --vram-each 14300MiB --port 8090 --bind-late\n\
         ExecStartPost=/bin/bash -c 'until : </dev/tcp/127.0.0.1/8090; do sleep 0.02; done' \n\
         Restart=always\n[Install]\nWantedBy=sandbox.target",
    );
    write_unit(
        &berth,
        "train@.service",
        "[Service]\nExecStart=/usr/bin/gpusim run --claim 0=1100MiB -- /bin/sleep infinity\n\
         [Install]\nWantedBy=sandbox.target",
    );
    write_unit(
        &berth,
        "notes.service",
        "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=sandbox.target",
    );
    assert_eq!(berth.status().problems, []);
    _ = berth.systemctl(&["enable", "--now", "train@night.service", "notes.service"]).with_code(0);
    let train = wait_for_problem(&berth, "rival", "train@night.service");
    assert!(
        train.text.contains("train@night.service is enabled for boot and has held 1.1 GiB of GPU memory"),
        "{train:?}"
    );
    obey(&berth, &train);
    wait_for_no_problem(&berth);

    _ = berth.systemctl(&["enable", "aeon.service"]).with_code(0);
    let rival = wait_for_problem(&berth, "rival", "aeon.service");
    assert_eq!(
        rival.text,
        "aeon.service is enabled for boot (Restart=always) and runs llama-server: after a reboot it would take GPU \
         memory before Berth"
    );
    assert_eq!(rival.next, "sudo systemctl disable --now aeon.service");
    assert_eq!(berth.status().problems.len(), 1);
    assert_eq!(berth.serving(), ["genesis"]);

    power_cut(&mut berth);
    let missing = wait_for_problem(&berth, "degraded", "genesis");
    let pid = berth.property("aeon.service", "MainPID");
    let named = format!("(held: pid {pid} (llama-server) of aeon.service 14.0 GiB)");
    assert!(missing.text.contains("short on GPU 0: it needs 14.0 GiB"), "{missing:?}");
    assert_eq!(missing.text.matches(&named).count(), 2, "{missing:?}");
    assert_eq!(missing.next, "sudo systemctl disable --now aeon.service");
    let refused = berth.ctl(&["switch", "aeon"]).with_code(3).to_string();
    assert!(refused.contains("of aeon.service"), "{refused}");
    _ = wait_for_problem(&berth, "rival", "aeon.service");
    let holders = berth.status().gpus.value().unwrap()[1].holders.clone();
    assert_eq!(holders.value().unwrap()[0].unit.as_deref(), Some("aeon.service"));
    std::thread::sleep(QUIET);
    assert!(!was_started(&berth, "genesis"), "started over aeon.service");
    assert_eq!(berth.property("aeon.service", "MainPID"), pid, "foreign processes are never ended");

    obey(&berth, &missing);
    berth.wait_serving("genesis", SOON);
    wait_for_no_problem(&berth);
    berth.assert_home("genesis");

    power_cut(&mut berth);
    berth.wait_serving("genesis", SOON);
    std::thread::sleep(QUIET);
    berth.assert_home("genesis");
    assert!(!was_started(&berth, "aeon"));
    assert_eq!(berth.property("aeon.service", "ActiveState"), "inactive");
    berth.assert_no_failed_allocation();
}

/// No ticket survives a boot: while berthd is kept from starting no model starts, though somebody linked one into the
/// boot; and what was home returns with berthd.
#[test]
fn no_model_starts_by_itself() {
    let mut berth = Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &[]).boot();
    berth.switch("genesis");
    _ = berth.systemctl(&["mask", "berthd.service"]).with_code(0);
    let link = "/etc/systemd/system/sandbox.target.wants/berth-model@genesis.service";
    sh(
        &berth,
        &format!("mkdir -p $(dirname {link}) && ln -s /usr/lib/systemd/system/berth-model@.service {link}"),
    );
    berth.cut();
    berth.boot();

    let unit = "berth-model@genesis.service";
    berth.wait_for("the start to fail", SOON, |berth| {
        (berth.property(unit, "ActiveState") == "failed").then_some(())
    });
    assert_eq!(berth.property("berthd.service", "ActiveState"), "inactive");
    let why = berth.systemctl(&["status", "--no-pager", unit]).stdout;
    assert!(why.contains("berthd is not running, and only it starts model servers"), "{why}");
    std::thread::sleep(QUIET);
    assert!(berth.stats().devices.iter().all(|device| device.held.is_empty()));
    assert!(!was_started(&berth, "aeon"));

    _ = berth.run(None, &["rm", link]).with_code(0);
    _ = berth.systemctl(&["unmask", "berthd.service"]).with_code(0);
    _ = berth.systemctl(&["start", "berthd.service"]).with_code(0);
    berth.wait_serving("genesis", SOON);
    berth.assert_home("genesis");
    assert_eq!(berth.state_of("aeon"), ModelState::Off);
    berth.assert_no_failed_allocation();
}
