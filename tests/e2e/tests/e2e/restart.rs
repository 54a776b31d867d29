//! What berthd believes after it was gone, and who comes first when it brings home back.

use std::time::Duration;

use berth_core::report::{ModelState, Outcome};
use berth_tests::Berth;
use serde_json::{Value, json};

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
}

/// What is done to the ledger while berthd is down; what it is then.
fn spoil(berth: &Berth, how: &str) -> String {
    _ = berth.systemctl(&["stop", "berthd.service"]).with_code(0);
    _ = berth.run(None, &["sh", "-ec", &format!("cd /var/lib/berth; {how}")]).with_code(0);
    let spoilt = ledger(berth);
    _ = berth.systemctl(&["start", "berthd.service"]).with_code(0);
    berth.wait_for_berthd(SOON).unwrap();
    spoilt
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn ledger(berth: &Berth) -> String {
    berth.run(None, &["cat", "/var/lib/berth/ledger"]).with_code(0).stdout
}

/// What it is, with what repairs it, as the problem and as the refusal of a switch.
fn assert_damaged(berth: &Berth, why: &str) {
    let problems = berth.status().problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].code, "ledger_damaged");
    assert!(problems[0].text.contains("ledger /var/lib/berth/ledger: ") && problems[0].text.contains(why));
    assert!(problems[0].next.contains("berthctl repair"), "{problems:?}");
    let refused = berth.change(&["switch", "aeon"]).with_code(3);
    let problem = &refused.last["problem"];
    assert_eq!((&problem["code"], &problem["title"]), (&json!("ledger_damaged"), &json!(problems[0].text)));
    assert!(problem["hints"].to_string().contains("berthctl repair"), "{problem:#}");
}

/// Rules 5, 8: a torn tail is cut off and said. A ledger that is damaged is not believed: berthd observes, and
/// starts and stops nothing, over restarts too, until somebody has it repaired; the file is kept.
#[test]
fn a_damaged_ledger_stops_acting_and_not_observing() {
    let berth = Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    berth.switch("genesis");
    let genesis = berth.run_of("genesis");

    _ = spoil(&berth, r#"printf '0badcafe {"home":' >> ledger"#);
    let journal = berth.journal("berthd.service");
    assert!(journal.contains("ledger: cut off 17 bytes of a write that was interrupted"), "{journal}");
    berth.assert_home("genesis");

    let spoilt = spoil(&berth, "sed -i 2s/boot/bo0t/ ledger");
    let why = "line 2 is damaged (its checksum is wrong)";
    berth.wait_serving("genesis", SOON);
    assert_damaged(&berth, why);
    berth.restart_berthd();
    berth.wait_serving("genesis", SOON);
    assert_damaged(&berth, why);
    for verb in [&["start", "aeon"][..], &["stop", "--all"], &["back"], &["plan", "back"]] {
        let refused = berth.ctl(verb).with_code(3);
        let said = one_line(&format!("{}{}", refused.stdout, refused.stderr));
        assert!(said.contains(why) && said.contains("Try: berthctl repair"), "{verb:?}: {refused}");
    }
    let events = berth.ctl(&["events"]).with_code(0).stdout;
    assert!(one_line(&events).contains(why), "{events}");
    _ = berth.ctl(&["logs", "genesis"]).with_code(0);
    assert!(!berth.ask("genesis").is_empty());
    assert_eq!((ledger(&berth), berth.run_of("genesis")), (spoilt.clone(), genesis.clone()));

    // One who may not use the socket may not repair.
    _ = berth.ctl_as("mallory", &["repair"]).with_code(6);
    let text = berth.ctl_as("frank", &["repair"]).with_code(0).stdout;
    let lines = spoilt.lines().count();
    assert!(one_line(&text).contains(why) && text.contains(&format!("line {lines}, the last one")), "{text}");
    assert!(text.contains("home     genesis; `default` is genesis"), "{text}");
    let kept = text.lines().find_map(|line| line.strip_prefix("  kept     ")).unwrap();
    assert_eq!(berth.run(None, &["cat", kept]).with_code(0).stdout, spoilt);
    berth.assert_home("genesis");
    let journal = berth.journal("berthd.service");
    assert!(
        journal.contains("audit: frank (uid")
            && journal.contains("asked: repair: ledger /var/lib/berth/ledger: line 2"),
        "{journal}"
    );
    let again = berth.ctl(&["repair"]).with_code(0).stdout;
    assert_eq!(again, "Nothing to repair: the ledger is sound.\n");
    assert_eq!(berth.run_of("genesis"), genesis);
    berth.switch("aeon");

    // An older line counts where the newest are damaged: one in which aeon is to end. What runs is not stopped for it.
    _ = berth.ctl(&["stop", "aeon"]).with_code(0);
    berth.switch("aeon");
    let aeon = berth.run_of("aeon");
    _ = spoil(&berth, r#"sed -i '/"phase":"ending"/!{2,$s/boot/bo0t/}' ledger"#);
    berth.wait_serving("aeon", SOON);
    let repaired = berth.ctl_json(&["repair"]);
    assert_eq!((&repaired["home"], &repaired["serving"]), (&json!([]), &json!(["aeon"])), "{repaired:#}");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(berth.run_of("aeon"), aeon);
    berth.switch("aeon");
    berth.assert_home("aeon");

    // A model that falls meanwhile is seen to, once there is a ledger again.
    _ = spoil(&berth, "sed -i 2s/boot/bo0t/ ledger");
    berth.wait_serving("aeon", SOON);
    _ = berth.systemctl(&["kill", "--signal=KILL", "berth-model@aeon.service"]).with_code(0);
    berth.wait_for("aeon's end", SOON, |berth| (berth.state_of("aeon") == ModelState::Off).then_some(()));
    assert_eq!(berth.run_of("aeon").main_pid, 0);
    _ = berth.ctl(&["repair"]).with_code(0);
    berth.wait_serving("aeon", SOON);
    berth.assert_home("aeon");

    // Where nothing can be believed, what runs serves on, and what is home is asked for.
    let aeon = berth.run_of("aeon");
    for (how, why) in [
        ("sed -i 2,\\$s/boot/bo0t/ ledger", "line 2 is damaged"),
        ("sed -i '1s/2/3/' ledger", "begins with `berth-ledger 3`: a newer Berth wrote it"),
        (": > ledger", "line 1 is damaged (it has no end)"),
    ] {
        _ = spoil(&berth, how);
        berth.wait_serving("aeon", SOON);
        assert_damaged(&berth, why);
        let repaired = berth.ctl_json(&["repair"]);
        assert_eq!(
            (&repaired["line"], &repaired["serving"][0]),
            (&Value::Null, &json!("aeon")),
            "{repaired:#}"
        );
        assert_eq!((repaired["home"].as_array().unwrap().len(), berth.status().problems), (0, vec![]));
        assert_eq!((berth.serving(), berth.run_of("aeon")), (vec!["aeon".to_owned()], aeon.clone()));
    }
    let files = berth.run(None, &["ls", "/var/lib/berth"]).with_code(0).stdout;
    assert_eq!(files.matches("ledger.damaged-").count(), 6, "{files}");
    berth.switch("genesis");
    berth.assert_home("genesis");
    berth.assert_no_failed_allocation();
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
