//! What an administrator does to systemd and the bus below a running switch: it is loaded anew, it executes itself
//! anew, dbus is restarted, polkit stands still.

use std::thread;
use std::time::Duration;

use berth_core::report::{Outcome, Step, StepState};
use berth_tests::Berth;

const EACH: &str = "14300MiB";
const SOON: Duration = Duration::from_secs(30);

/// Long enough that what is done in a step is done before its end.
const SERVER: [&str; 4] = ["--slow-stop", "1500ms", "--load-time", "1500ms"];
const LINGER: &str = "1500ms";

/// Switches back and forth, and does it once in each step that takes time: the victim stops, its memory lingers, the
/// new model loads. All the same each switch ends as asked, and what happens afterwards is seen.
fn in_each_step(command: &[&str]) {
    let berth = Berth::builder().fake("aeon", EACH, &SERVER).fake("genesis", EACH, &SERVER).boot();
    berth.switch("aeon");
    berth.gpu(&["linger", LINGER]);
    let berthd = berth.property("berthd.service", "MainPID");
    for (step, model) in [(Step::Stopped, "genesis"), (Step::Released, "aeon"), (Step::Ready, "genesis")] {
        _ = berth.change(&["switch", model, "--no-wait"]).with_code(0);
        let id = berth.wait_for(&format!("{step:?} is under way"), SOON, |berth| under_way(berth, step));
        // Not at its very beginning, where systemd is still at work for it.
        thread::sleep(Duration::from_millis(300));
        _ = berth.run(None, command).with_code(0);
        assert_eq!(under_way(&berth, step), Some(id), "{step:?} was over before {command:?} was");
        ends_as_asked(&berth, id);
        berth.assert_home(model);
    }

    // What systemd tells is heard again: a model that dies is missed at once and comes back.
    berth.gpu(&["linger", "0"]);
    let before = berth.run_of("genesis");
    _ = berth.systemctl(&["kill", "--signal=KILL", "berth-model@genesis.service"]).with_code(0);
    berth.wait_for("genesis is started again", SOON, |berth| {
        let now = berth.run_of("genesis");
        (now.main_pid != 0 && now.invocation != before.invocation).then_some(())
    });
    berth.wait_serving("genesis", SOON);
    berth.wait_for("all is well", SOON, |berth| berth.status().problems.is_empty().then_some(()));
    berth.switch("aeon");
    berth.assert_home("aeon");
    assert_eq!(berth.property("berthd.service", "MainPID"), berthd, "another berthd runs");
    let journal = berth.journal("berthd.service");
    assert!(!journal.contains("panicked"), "{journal}");
    berth.assert_no_failed_allocation();
}

/// The swap whose newest step this is and goes on.
fn under_way(berth: &Berth, step: Step) -> Option<u64> {
    let swap = berth.status().swap?;
    let last = swap.steps.last()?;
    (last.step == step && last.state == StepState::Began).then_some(swap.id)
}

fn ends_as_asked(berth: &Berth, id: u64) {
    let swap = berth
        .wait_for("the switch ends", SOON, |berth| berth.status().last_swap.filter(|swap| swap.id >= id));
    assert_eq!((swap.id, swap.outcome), (id, Some(Outcome::Done)), "{swap:#?}");
}

#[test]
fn units_are_loaded_anew_below_a_switch() {
    in_each_step(&["systemctl", "daemon-reload"]);
}

#[test]
fn systemd_executes_itself_anew_below_a_switch() {
    in_each_step(&["systemctl", "daemon-reexec"]);
}

#[test]
fn the_bus_is_restarted_below_a_switch() {
    in_each_step(&["systemctl", "restart", "dbus.service"]);
}

/// The bus is away for longer, just when a unit is to be stopped, when the end of that would be told, and the same of a
/// start: what can't be asked for is asked for again, and what was not heard is looked up.
#[test]
fn the_bus_is_away() {
    let berth = Berth::builder().fake("aeon", EACH, &["--slow-stop", "1s"]).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    let bus = |verb: &str| _ = berth.systemctl(&[verb, "dbus.socket", "dbus.service"]).with_code(0);
    let switch = |model: &str| {
        let accepted = berth.change(&["switch", model, "--no-wait"]).with_code(0);
        accepted.last["accepted"]["swap"].as_u64().unwrap()
    };
    bus("stop");
    let id = switch("genesis");
    thread::sleep(Duration::from_secs(1));
    assert_ne!(berth.run_of("aeon").main_pid, 0, "it was stopped without a bus");
    bus("start");
    ends_as_asked(&berth, id);

    berth.gpu(&["linger", "1s"]);
    // aeon's start takes longer than it takes to send the bus away.
    let drop_in = "/run/systemd/system/berth-model@aeon.service.d/slow.conf";
    berth.sandbox().write_file(drop_in, "[Service]\nExecStartPre=/bin/sleep 1\n").unwrap();
    _ = berth.systemctl(&["daemon-reload"]).with_code(0);
    for (model, step) in [("aeon", Step::Released), ("genesis", Step::Stopped), ("aeon", Step::Ready)] {
        let id = switch(model);
        berth.wait_for(&format!("{step:?} is under way"), SOON, |berth| under_way(berth, step));
        bus("stop");
        thread::sleep(Duration::from_millis(2500));
        assert_eq!(berth.status().swap.map(|swap| swap.id), Some(id), "it went on without a bus");
        let asked = step == Step::Ready;
        assert_eq!(berth.run_of(model).main_pid != 0, asked, "{model} is started by word of berthd's alone");
        bus("start");
        ends_as_asked(&berth, id);
        berth.assert_home(model);
    }
    berth.assert_no_failed_allocation();
}

/// polkit, which systemd asks first, stands still for longer than a victim may take to end by itself: that time begins
/// when systemd tells it to, and neither it nor the start is taken for one that failed.
#[test]
fn polkit_stands_still_below_a_switch() {
    let berth = Berth::builder().fake("aeon", EACH, &SERVER).fake("genesis", EACH, &SERVER).boot();
    berth.switch("aeon");
    let polkit = |signal: &str| {
        let signal = format!("--signal={signal}");
        _ = berth.systemctl(&["kill", &signal, "polkit.service"]).with_code(0);
    };
    berth.gpu(&["linger", LINGER]);
    for (model, other, step) in [("genesis", "aeon", Step::Stopped), ("aeon", "genesis", Step::Ready)] {
        if step == Step::Stopped {
            polkit("STOP");
        }
        _ = berth.change(&["switch", model, "--no-wait"]).with_code(0);
        if step == Step::Ready {
            berth.wait_for("memory is waited for", SOON, |berth| under_way(berth, Step::Released));
            polkit("STOP");
        }
        let id = berth.wait_for(&format!("{step:?} is under way"), SOON, |berth| under_way(berth, step));
        // Berth's own deadline for a stop is 3 s here, and 10 s more for SIGKILL.
        thread::sleep(Duration::from_secs(14));
        assert_eq!(under_way(&berth, step), Some(id), "it went on without polkit's word");
        let runs = if step == Step::Stopped { other } else { model };
        assert_eq!(berth.run_of(runs).main_pid != 0, step == Step::Stopped, "{runs}");
        polkit("CONT");
        ends_as_asked(&berth, id);
        berth.assert_home(model);
    }
    berth.assert_no_failed_allocation();
}
