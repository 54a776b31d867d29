//! Something always serves (S2, S3, S11, S18): what keeps failing is quarantined and another serves in its place, what
//! was stopped by hand stays stopped, and after a boot home comes back as soon as it can.

use std::time::Duration;

use berth_core::report::{ModelState, Problem, Verb};
use berth_tests::{Berth, Builder, fake};

const EACH: &str = "14300MiB";
const SOON: Duration = Duration::from_secs(30);

/// Pauses that a test can wait for, and three failures for a quarantine.
const MAIN: &str = "node = \"tower\"\n\
    [deadlines]\nstop = \"3s\"\nrelease = \"12s\"\nstart = \"10s\"\n\
    [restart]\nfirst = \"100ms\"\nlongest = \"400ms\"\nfailures = 3\nwindow = \"2 min\"\n\
    [boot]\ngpus = \"6s\"\nfiles = \"5s\"\n";

fn machine() -> Builder {
    Berth::builder().main(MAIN).fake("aeon", EACH, &[])
}

#[track_caller]
fn problem(berth: &Berth, code: &str) -> Problem {
    berth.wait_for(code, SOON, |berth| berth.status().problems.into_iter().find(|p| p.code == code))
}

fn stands_in(berth: &Berth, model: &str) -> Option<String> {
    let models = berth.status().models;
    let model = models.into_iter().find(|declared| declared.name.as_str() == model)?;
    model.stands_in_for.map(|of| of.to_string()).filter(|_| model.state == ModelState::Serving)
}

/// S18: a model that dies again and again is given up with the evidence, and the one before it serves; over a restart
/// of berthd too. An operator may try again: while it fails, the other one comes back, and once it is mended it serves.
#[test]
fn what_keeps_dying_is_quarantined() {
    let dying = fake(2, EACH, &["--die-after", "1200ms", "--die-signal", "11"]);
    let berth = machine().model("genesis", &dying).boot();
    berth.switch("aeon");
    berth.switch("genesis");
    berth.gpu(&["linger", "300ms"]);

    let quarantined = problem(&berth, "quarantined");
    let words =
        "genesis is quarantined: it failed 3 times within 2m, at last: it was ended by signal 11 (SIGSEGV";
    assert!(quarantined.text.starts_with(words), "{quarantined:?}");
    assert!(quarantined.next.ends_with("berthctl retry genesis"), "{quarantined:?}");
    berth.wait_for("aeon serves in its place", SOON, |berth| stands_in(berth, "aeon"));
    assert_eq!(stands_in(&berth, "aeon").as_deref(), Some("genesis"));
    assert_eq!(berth.state_of("genesis"), ModelState::Quarantined);
    let status = berth.status();
    assert_eq!(
        status.home.iter().map(berth_core::name::ModelName::as_str).collect::<Vec<_>>(),
        ["genesis"],
        "home is the operator's"
    );
    assert!(problem(&berth, "quarantined").text.ends_with("; aeon serves in its place"));
    let events = berth.ctl(&["events"]).with_code(0).stdout;
    assert!(!events.contains("over: quarantined"), "it stands while aeon is started: {events}");
    let text = berth.ctl(&["status"]).with_code(0).stdout;
    assert!(text.contains("aeon serves in place of genesis (quarantined) on 127.0.0.1:"), "{text}");
    assert!(!berth.ask("aeon").is_empty());

    let change = berth.change(&["switch", "genesis"]).with_code(3);
    assert_eq!(change.last["problem"]["code"], "quarantined", "{:#}", change.last);
    assert_eq!(change.last["problem"]["hints"][1], "berthctl retry genesis", "{:#}", change.last);

    let aeon = berth.run_of("aeon");
    berth.restart_berthd();
    berth.wait_for("aeon still serves in its place", SOON, |berth| stands_in(berth, "aeon"));
    assert_eq!(berth.run_of("aeon"), aeon);
    assert_eq!(berth.state_of("genesis"), ModelState::Quarantined);

    // Not mended: it exits at once, and aeon is back.
    berth.declare("genesis", &fake(2, EACH, &["--exit-at-once", "3"]));
    berth.restart_berthd();
    let told = berth.told(4, &["retry", "genesis"]);
    assert_eq!(told.swap.verb, Verb::Retry);
    assert!(told.reason().contains("it exited with status 3"), "{}", told.reason());
    assert_eq!(stands_in(&berth, "aeon").as_deref(), Some("genesis"));
    assert_eq!(berth.state_of("genesis"), ModelState::Quarantined);

    berth.declare("genesis", &fake(2, EACH, &[]));
    berth.restart_berthd();
    _ = berth.change(&["retry", "genesis"]).with_code(0);
    berth.assert_home("genesis");
    _ = berth.change(&["retry", "genesis"]).with_code(0);
    berth.assert_home("genesis");
    berth.assert_no_failed_allocation();
}

/// S3: who stops a unit with systemctl means it, whether berthd runs or not; and `start` takes it back.
#[test]
fn what_was_stopped_by_hand_stays_stopped() {
    let berth = machine().boot();
    let unit = "berth-model@aeon.service";
    let stays_off = |berth: &Berth| {
        let status = berth.wait_for("the stop counts", SOON, |berth| {
            let status = berth.status();
            let off = status.models.iter().all(|model| model.state == ModelState::Off);
            (off && status.home.is_empty()).then_some(status)
        });
        assert!(status.problems.is_empty(), "{status:?}");
        let text = berth.ctl(&["status"]).with_code(0).stdout;
        assert!(text.contains("aeon was stopped by hand (systemctl stop)"), "{text}");
    };
    berth.switch("aeon");
    _ = berth.systemctl(&["stop", unit]).with_code(0);
    stays_off(&berth);
    let events = berth.ctl(&["events"]).with_code(0).stdout;
    assert!(events.contains("aeon was stopped by hand"), "{events}");
    berth.restart_berthd();
    stays_off(&berth);
    std::thread::sleep(Duration::from_secs(2));
    stays_off(&berth);

    berth.switch("aeon");
    berth.assert_home("aeon");
    _ = berth.systemctl(&["stop", "berthd.service"]).with_code(0);
    _ = berth.systemctl(&["stop", unit]).with_code(0);
    _ = berth.systemctl(&["start", "berthd.service"]).with_code(0);
    berth.wait_for_berthd(SOON).unwrap();
    stays_off(&berth);
    // One that ends by itself is another matter.
    berth.switch("aeon");
    _ = berth.systemctl(&["kill", "--signal=TERM", unit]).with_code(0);
    berth.wait_for("aeon is missed", SOON, |berth| {
        (berth.state_of("aeon") != ModelState::Serving).then_some(())
    });
    berth.wait_serving("aeon", SOON);
    berth.assert_home("aeon");
}

/// S2: after a boot GPUs and files that were there before are waited for, which is said. What does not start twice in a
/// row then gives way to the last good one, and what comes late takes its place back.
#[test]
fn a_boot_waits_for_what_was_there() {
    let weights = "/srv/genesis.gguf";
    let genesis = |flags: &[&str]| fake(2, EACH, flags) + &format!("model = {weights:?}\n");
    let mut berth = machine().model("genesis", &genesis(&[])).boot();
    let touch = |berth: &Berth, verb: &[&str]| _ = berth.run(None, &[verb, &[weights]].concat()).with_code(0);
    touch(&berth, &["touch"]);
    berth.switch("aeon");
    berth.switch("genesis");
    _ = berth.run(None, &["sync"]).with_code(0);

    berth.cut();
    berth.boot();
    berth.wait_serving("genesis", SOON);
    assert_eq!(berth.serving(), ["genesis"], "exactly what was committed");

    // The weights' disk is late: it is waited for, then aeon serves meanwhile.
    touch(&berth, &["rm"]);
    _ = berth.systemctl(&["kill", "--signal=KILL", "berth-model@genesis.service"]).with_code(0);
    let waits = berth.wait_for("the file is missed", SOON, |berth| {
        berth.status().problems.into_iter().find(|problem| problem.text.contains("genesis.gguf"))
    });
    assert_eq!(waits.code, "degraded", "{waits:?}");
    assert!(waits.text.contains("it does not exist; it is waited for"), "{waits:?}");
    berth.wait_for("aeon serves in its place", SOON, |berth| stands_in(berth, "aeon"));
    touch(&berth, &["touch"]);
    berth.wait_serving("genesis", SOON);
    berth.assert_home("genesis");

    // A GPU is late: home is not squeezed onto the others, and its name is told.
    let drop_in = "/etc/systemd/system/berthd.service.d/60-late.conf";
    let late = format!("printf '[Service]\\nExecStartPre=+/usr/bin/gpusim ctl lose 1\\n' > {drop_in}");
    _ = berth.run(None, &["sh", "-c", &late]).with_code(0);
    berth.cut();
    berth.boot();
    let waits = berth.wait_for("the GPU is missed", SOON, |berth| {
        berth.status().problems.into_iter().find(|problem| problem.text.contains("was there before"))
    });
    assert!(waits.text.contains("GPU 1 (GPU-"), "{waits:?}");
    _ = berth.run(None, &["rm", drop_in]).with_code(0);
    berth.gpu(&["restore", "1"]);
    berth.wait_serving("genesis", SOON);
    berth.assert_home("genesis");

    // It was broken by an update: after the next boot the last good one serves, soon.
    berth.declare("genesis", &genesis(&["--exit-at-once", "1", "--print", "'CUDA error: no kernel image'"]));
    berth.cut();
    berth.boot();
    let quarantined = problem(&berth, "quarantined");
    let words = "genesis is quarantined: it failed to start 2 times in a row after a boot, at last: ";
    assert!(quarantined.text.starts_with(words), "{quarantined:?}");
    berth.wait_for("aeon serves in its place", SOON, |berth| stands_in(berth, "aeon"));
    berth.assert_no_failed_allocation();
}

/// Rule 8 in the middle of a switch: berthd is gone when the new model becomes ready; what serves is kept. Gone before,
/// what served comes back.
#[test]
fn a_switch_that_was_cut_off_goes_forward_or_back() {
    let slow = fake(2, EACH, &["--load-time", "2500ms"]);
    let berth = machine().model("genesis", &slow).boot();
    berth.switch("aeon");
    let begin = || {
        _ = berth.ctl(&["switch", "genesis", "--no-wait"]).with_code(0);
        let run = berth.wait_for("genesis loads", SOON, |berth| {
            let run = berth.run_of("genesis");
            (run.main_pid != 0 && berth.property("berth-model@genesis.service", "ActiveState") == "active")
                .then_some(run)
        });
        _ = berth.systemctl(&["stop", "berthd.service"]).with_code(0);
        run
    };
    let port = berth.port("genesis").unwrap();
    let run = begin();
    berth.wait_for("genesis answers", SOON, |berth| berth.try_ask(port, "x").ok());
    _ = berth.systemctl(&["start", "berthd.service"]).with_code(0);
    berth.wait_serving("genesis", SOON);
    assert_eq!(berth.run_of("genesis"), run, "it was started anew");
    berth.assert_home("genesis");
    assert!(berth.ctl(&["back"]).with_code(0).to_string().contains("aeon"));
    berth.assert_home("aeon");

    begin();
    _ = berth.systemctl(&["start", "berthd.service"]).with_code(0);
    berth.wait_serving("aeon", SOON);
    berth.assert_home("aeon");
    berth.assert_no_failed_allocation();
}
