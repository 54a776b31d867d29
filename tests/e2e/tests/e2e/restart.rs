//! What berthd believes after it was gone, and who comes first when it brings home back.

use std::time::Duration;

use berth_core::report::{ModelState, Outcome};
use berth_tests::Berth;

const EACH: &str = "14300MiB";
const SOON: Duration = Duration::from_secs(20);

/// Kills berthd and waits for the next one.
fn next_berthd(berth: &Berth) {
    let old = berth.property("berthd.service", "MainPID");
    _ = berth.systemctl(&["kill", "--signal=KILL", "berthd.service"]).with_code(0);
    berth.wait_for("the next berthd", SOON, |berth| {
        (berth.property("berthd.service", "MainPID") != old).then_some(())
    });
    berth.wait_for_berthd(SOON).unwrap();
}

/// Rule 8: a ledger that is lost costs no model its life. Nor can a second berthd take it from the first.
#[test]
fn the_ledger_is_lost_and_fought_for() {
    let berth = Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    let aeon = berth.run_of("aeon");

    let second = berth.run(None, &["/usr/bin/berthd"]);
    assert!(second.code != 0, "a second berthd runs: {second}");
    assert!(second.stderr.contains("another berthd"), "{second}");
    // The first one still has the ledger: what it writes is read by the next.
    berth.switch("genesis");
    berth.switch("aeon");
    next_berthd(&berth);
    berth.assert_home("aeon");

    let aeon_now = berth.run_of("aeon");
    assert_ne!(aeon, aeon_now, "it was switched away and back");
    _ = berth.systemctl(&["stop", "berthd.service"]).with_code(0);
    _ = berth.run(None, &["mv", "/var/lib/berth/ledger", "/var/lib/berth/ledger.old"]).with_code(0);
    _ = berth.systemctl(&["start", "berthd.service"]).with_code(0);
    berth.wait_for_berthd(SOON).unwrap();
    berth.wait_serving("aeon", SOON);
    assert_eq!(berth.run_of("aeon"), aeon_now);
    berth.switch("genesis");
    assert_eq!(berth.serving(), ["genesis"]);
    berth.assert_no_failed_allocation();

    // One that is damaged is not believed, and the models run on.
    let genesis = berth.run_of("genesis");
    _ = berth.systemctl(&["stop", "berthd.service"]).with_code(0);
    _ = berth.run(None, &["sed", "-i", "2s/boot/bo0t/", "/var/lib/berth/ledger"]).with_code(0);
    _ = berth.systemctl(&["start", "berthd.service"]);
    assert!(berth.journal("berthd.service").contains("line 2 is damaged"));
    assert_eq!(berth.run_of("genesis"), genesis);
}

/// S2, rule 8: a model of home that was on its way up when berthd died is waited for, not started again; and a
/// model that an operator stopped stays stopped, though its memory came back too late for the stop.
#[test]
fn half_a_start_and_a_late_stop() {
    let berth = Berth::builder().fake("aeon", EACH, &["--load-time", "4s"]).boot();
    berth.switch("aeon");
    _ = berth.systemctl(&["kill", "--signal=KILL", "berth-model@aeon.service"]).with_code(0);
    let before = berth.run_of("aeon");
    let half = berth.wait_for("aeon to be started again", SOON, |berth| {
        let now = berth.run_of("aeon");
        (now.invocation != before.invocation && now.main_pid != before.main_pid).then_some(now)
    });
    next_berthd(&berth);
    berth.wait_serving("aeon", SOON);
    assert_eq!(berth.run_of("aeon").invocation, half.invocation);

    berth.gpu(&["linger", "15s"]);
    let stop = berth.change(&["stop", "aeon"]).with_code(5);
    assert_eq!(stop.swap().outcome, Some(Outcome::Degraded));
    berth.wait_for("the late proof", SOON, |berth| (berth.state_of("aeon") == ModelState::Off).then_some(()));
    berth.gpu(&["linger", "0"]);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(berth.state_of("aeon"), ModelState::Off);
    assert!(berth.status().home.is_empty());
    berth.assert_no_failed_allocation();
}

/// Rule 8: a model that does not stop keeps the next berthd neither from coming up nor from killing it in time.
#[test]
fn berthd_comes_back_while_a_model_is_being_stopped() {
    let patient = "node = \"tower\"\n\n[deadlines]\nstop = \"4s\"\n";
    let berth = Berth::builder().main(patient).fake("aeon", EACH, &["--ignore-sigterm"]).boot();
    berth.switch("aeon");
    let mut stopping = berth.ctl_spawn(None, &["stop", "aeon"]);
    berth.wait_for("aeon to be stopped", SOON, |berth| {
        (berth.property("berth-model@aeon.service", "ActiveState") == "deactivating").then_some(())
    });
    next_berthd(&berth);
    assert_eq!(berth.property("berth-model@aeon.service", "ActiveState"), "deactivating");
    berth.wait_for("aeon to be killed", SOON, |berth| {
        (berth.property("berth-model@aeon.service", "MainPID") == "0").then_some(())
    });
    _ = stopping.kill();
    _ = stopping.wait();
}

/// What an operator asks for comes before what berthd does by itself, unless it would be refused; and asking for
/// what is being started follows that start.
#[test]
fn an_operator_comes_first() {
    let berth = Berth::builder().fake("aeon", EACH, &["--load-time", "6s"]).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    let fall = |berth: &Berth| {
        let before = berth.run_of("aeon");
        _ = berth.systemctl(&["kill", "--signal=KILL", "berth-model@aeon.service"]).with_code(0);
        berth.wait_for("aeon to be started again", SOON, |berth| {
            let now = berth.run_of("aeon");
            let loads = berth.state_of("aeon") == ModelState::Loading;
            (loads && now.invocation != before.invocation).then_some(now)
        })
    };
    let run = fall(&berth);
    _ = berth.ctl(&["switch", "genesys"]).with_code(3);
    let followed = berth.change(&["switch", "aeon"]).with_code(0);
    assert_eq!(followed.swap().outcome, Some(Outcome::Done));
    assert_eq!(berth.run_of("aeon"), run, "it was started anew");

    _ = fall(&berth);
    berth.switch("genesis");
    assert_eq!(berth.serving(), ["genesis"]);
    berth.assert_home("genesis");
    berth.assert_no_failed_allocation();
}
