//! The proof that memory is back (S1, and rule 2 of "what always holds"): a replacement starts when what it needs
//! is measured free on every GPU that it uses, whatever the memory, its holders or other processes do meanwhile.

use std::time::Duration;

use berth_core::report::{ModelState, Outcome, Step, StepState, SwapSummary};
use berth_tests::{Berth, Builder, declaration, step_ms};
use gpusim::linger::Exit;

/// More than half of a card.
const EACH: &str = "14300MiB";

/// Long enough for what berthd does by itself a moment later.
const BY_ITSELF: Duration = Duration::from_secs(20);

/// Two models that don't fit beside each other.
fn pair() -> Builder {
    Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &[])
}

/// Switches, and panics where the server was started before the memory was free, or where any allocation failed.
#[track_caller]
fn proved_switch(berth: &Berth, to: &str) -> SwapSummary {
    let swap = berth.switch(to);
    assert_started_on_free_memory(berth, to);
    assert_eq!(swap.outcome, Some(Outcome::Done));
    berth.assert_home(to);
    for stopped in &swap.stops {
        assert!(berth.try_ask(stopped.as_str(), "x").is_err(), "{stopped} still answers");
    }
    swap
}

#[track_caller]
fn assert_started_on_free_memory(berth: &Berth, model: &str) {
    berth.assert_no_failed_allocation();
    let stats = berth.stats();
    // gpusim's and systemd's stamps are of the same clock.
    let ours = stats.releases.iter().filter(|release| !release.foreign);
    let last_free = ours.map(|release| release.freed_ns).max().unwrap_or(0);
    let unit = format!("berth-model@{model}.service");
    let started: u64 = berth.property(&unit, "ExecMainStartTimestampMonotonic").parse().unwrap();
    assert!(started * 1000 >= last_free, "started at {started} us, memory was free at {last_free} ns");
}

/// How a step that was done is described.
#[track_caller]
fn detail(swap: &SwapSummary, step: Step) -> &str {
    let done = swap.steps.iter().find(|report| report.step == step && report.state == StepState::Done);
    &done.unwrap_or_else(|| panic!("no {step:?} in {swap:?}")).detail
}

/// The pid of who holds memory under this name.
#[track_caller]
fn holder(berth: &Berth, program: &str) -> Option<u32> {
    let devices = berth.stats().devices;
    devices.iter().flat_map(|device| &device.held).find(|held| held.comm == program).map(|held| held.pid)
}

/// S1: memory that is back at once, after 0.3, 2.5 and 8 s; that comes back bit by bit; on one of two GPUs later
/// than on the other; and whose dead holder stays in the driver's lists.
#[test]
fn waits_for_as_long_as_memory_lingers() {
    let berth = pair().boot();
    berth.switch("aeon");
    let mut models = ["genesis", "aeon"].into_iter().cycle();
    let mut switch_with = |knobs: &[&[&str]]| {
        berth.gpu(&["linger", "0"]);
        for knob in knobs {
            berth.gpu(knob);
        }
        proved_switch(&berth, models.next().unwrap())
    };

    let at_once = switch_with(&[]);
    assert!(!at_once.early_start_would_fail, "{at_once:?}");
    switch_with(&[&["linger", "300ms"]]);
    for time in ["2500ms", "8s"] {
        let swap = switch_with(&[&["linger", time]]);
        assert!(swap.early_start_would_fail, "{swap:?}");
        assert_eq!(swap.held_at_exit.map(|held| held.0 >> 20), Some(2 * 14300), "{swap:?}");
    }

    let ramp = switch_with(&[&["linger-ramp", "1500ms"]]);
    assert!(ramp.early_start_would_fail, "{ramp:?}");

    let one_late = switch_with(&[&["linger", "1500ms", "--device", "1"]]);
    assert!(one_late.early_start_would_fail, "{one_late:?}");
    let each = detail(&one_late, Step::Released);
    let seconds: Vec<f64> = each.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // The GPUs' numbers and the seconds, in turn.
    let [_, first, _, second] = seconds[..] else { panic!("{each}") };
    assert!(each.starts_with("GPU 0 after ") && each.contains(", GPU 1 after "), "{each}");
    assert!(first < second && second >= 1.0, "{each}");

    let listed = switch_with(&[&["linger", "1s"], &["linger-listed", "on"]]);
    assert!(listed.early_start_would_fail, "{listed:?}");
}

/// S1 where the driver says less: no process lists from the start on or since a model serves, and lists without
/// bytes. `free` is then the proof.
#[test]
fn proves_by_free_memory_where_the_driver_gives_no_lists() {
    let berth = pair().boot();
    berth.gpu(&["linger", "1s"]);
    let held_at_first = |swap: &SwapSummary| assert!(swap.early_start_would_fail, "{swap:?}");

    berth.gpu(&["lists", "off"]);
    berth.switch("aeon");
    held_at_first(&proved_switch(&berth, "genesis"));
    berth.gpu(&["lists", "on"]);
    held_at_first(&proved_switch(&berth, "aeon"));
    berth.gpu(&["lists", "off"]);
    held_at_first(&proved_switch(&berth, "genesis"));
    berth.gpu(&["lists", "on"]);

    berth.gpu(&["usage", "off"]);
    held_at_first(&proved_switch(&berth, "aeon"));
    held_at_first(&proved_switch(&berth, "genesis"));
}

/// A victim that ignores SIGTERM is killed after its deadline; one that is slow, but within it, is not; and a child
/// in the unit that ignores SIGTERM goes with it, and so does what it holds.
#[test]
fn stops_victims_that_do_not_go_by_themselves() {
    let deadline = |stop: &str| format!("deadlines = {{ stop = \"{stop}\" }}\n");
    let fake = |flags: &[&str], stop| berth_tests::fake(2, EACH, flags) + &deadline(stop);
    let nurse = "/usr/bin/fakellm --vram-each 13000MiB --fork-child --child-vram 1=1300MiB";
    let berth = Berth::builder()
        .model("deaf", &fake(&["--ignore-sigterm"], "800ms"))
        .model("slow", &fake(&["--slow-stop", "900ms"], "5s"))
        .model("nurse", &(declaration(nurse, 2, EACH) + &deadline("5s")))
        .boot();
    let ended = |model: &str| {
        let unit = format!("berth-model@{model}.service");
        (berth.property(&unit, "ExecMainCode"), berth.property(&unit, "ExecMainStatus"))
    };
    let exits = || berth.stats().releases.iter().map(|release| release.exit).collect::<Vec<_>>();

    berth.switch("deaf");
    let swap = proved_switch(&berth, "slow");
    let ms = step_ms(&swap, Step::Stopped).unwrap();
    assert!((800..5000).contains(&ms), "{swap:?}");
    assert!(!exits().iter().any(|exit| matches!(exit, Exit::Code(_))), "{:?}", exits());
    assert_eq!(ended("deaf"), ("2".to_owned(), "9".to_owned()), "(killed, SIGKILL)");

    let swap = proved_switch(&berth, "nurse");
    assert!((800..5000).contains(&step_ms(&swap, Step::Stopped).unwrap()), "{swap:?}");
    assert_eq!(ended("slow"), ("1".to_owned(), "0".to_owned()), "(exited, 0)");
    assert!(holder(&berth, "fakellm-worker").is_some());

    let swap = proved_switch(&berth, "deaf");
    assert!(step_ms(&swap, Step::Stopped).unwrap() < 4000, "{swap:?}");
    assert_eq!(holder(&berth, "fakellm-worker"), None);
}

/// A victim's child left its unit, survives it and keeps memory: the switch fails within its deadline and names
/// pid, program and bytes. Nothing is started over it. Once it is gone, what served comes back by itself.
#[test]
fn names_an_escaped_child_that_keeps_memory() {
    let aeon = "/usr/bin/fakellm --vram-each 12000MiB --escape-child --child-vram 0=2GiB";
    let berth = Berth::builder()
        .model("aeon", &(declaration(aeon, 2, EACH) + "deadlines = { release = \"1s\" }\n"))
        .fake("genesis", EACH, &[])
        .boot();
    berth.switch("aeon");
    let worker = holder(&berth, "fakellm-worker").unwrap().to_string();
    let escape = format!("mkdir -p /sys/fs/cgroup/away && echo {worker} > /sys/fs/cgroup/away/cgroup.procs");
    // berthd looks at a unit's processes once a second.
    std::thread::sleep(Duration::from_millis(1500));
    _ = berth.run(None, &["sh", "-c", &escape]).with_code(0);

    let told = berth.told(5, &["switch", "genesis"]);
    let reason = told.reason();
    let named = format!(
        "GPU 0: 2.0 GiB of aeon's memory are still held: pid {worker} (fakellm-worker) holds 2.0 GiB"
    );
    assert!(reason.starts_with("memory was not back after 1.") && reason.contains(&named), "{reason}");
    assert!(!reason.contains("GPU 1"), "{reason}");
    assert_eq!(told.swap.outcome, Some(Outcome::Degraded));
    assert_eq!(berth.serving(), [""; 0]);
    let status = berth.status();
    let held = status.problems.iter().find(|problem| problem.code == "memory_held").unwrap();
    assert!(held.text.contains(&format!("pid {worker} (fakellm-worker)")), "{held:?}");
    assert_eq!(held.next, format!("sudo kill -9 {worker}"));
    let again = berth.ctl(&["switch", "aeon"]).with_code(3);
    assert!(again.to_string().contains("not proved free"), "{again}");

    _ = berth.run(None, &["kill", "-9", &worker]).with_code(0);
    berth.wait_serving("aeon", BY_ITSELF);
    berth.assert_home("aeon");
    berth.assert_no_failed_allocation();
}

/// Memory that comes back after its deadline: the switch fails, nothing is started over it; the late proof is taken
/// all the same, and what served comes back by itself.
#[test]
fn takes_a_proof_that_comes_late() {
    let aeon = berth_tests::fake(2, EACH, &[]) + "deadlines = { release = \"500ms\" }\n";
    let berth = Berth::builder().model("aeon", &aeon).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    berth.gpu(&["linger", "2500ms"]);

    let told = berth.told(5, &["switch", "genesis"]);
    let reason = told.reason();
    assert!(reason.starts_with("memory was not back after "), "{reason}");
    for gpu in [0, 1] {
        let held =
            format!("GPU {gpu}: 14.0 GiB of aeon's memory are still held though its processes are gone");
        assert!(reason.contains(&held), "{reason}");
    }
    assert!(!berth.status().problems.is_empty());
    let genesis = berth.property("berth-model@genesis.service", "ExecMainStartTimestampMonotonic");
    assert_eq!(genesis, "0", "genesis was started over memory that was still held");

    berth.wait_serving("aeon", BY_ITSELF);
    assert_started_on_free_memory(&berth, "aeon");
    berth.assert_home("aeon");
}

/// Another process takes the memory at the instant at which it is freed. Where what served before still fits, it
/// comes back; else nothing is started over the other one, which is named, and home returns when it is gone.
#[test]
fn goes_back_when_a_foreign_process_takes_the_freed_memory() {
    let berth = Berth::builder().fake("aeon", "8000MiB", &[]).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    let thief =
        |mib: &str| berth.gpu(&["foreign", "thief", "--bytes", mib, "--at-release"]).trim().to_owned();

    let pid = thief("4000MiB");
    assert_eq!(berth.stats().devices[0].held.iter().filter(|held| held.foreign).count(), 0);
    let told = berth.told(4, &["switch", "genesis"]);
    let reason = told.reason();
    assert!(reason.starts_with("genesis was not started: "), "{reason}");
    assert!(
        reason.contains("short on GPU 0") && reason.contains(&format!("pid {pid} (thief) of gpusim.service")),
        "{reason}"
    );
    assert!(told.output.to_string().contains("aeon serves again"), "{}", told.output);
    assert_eq!(told.swap.outcome, Some(Outcome::Restored));
    berth.assert_home("aeon");
    berth.assert_no_failed_allocation();
    berth.gpu(&["foreign-stop", "thief"]);

    let pid = thief("12GiB");
    let told = berth.told(5, &["switch", "genesis"]);
    let reason = told.reason();
    assert!(reason.contains("the way back failed too: aeon was not started: "), "{reason}");
    assert!(reason.contains(&format!("pid {pid} (thief) of gpusim.service 12.0 GiB")), "{reason}");
    assert_eq!(told.swap.outcome, Some(Outcome::Degraded));
    assert_eq!(berth.serving(), [""; 0]);
    assert_eq!(
        holder(&berth, "thief").map(|pid| pid.to_string()),
        Some(pid),
        "foreign processes are never killed"
    );
    berth.gpu(&["foreign-stop", "thief"]);
    berth.wait_serving("aeon", BY_ITSELF);
    berth.assert_home("aeon");
    berth.assert_no_failed_allocation();
}

/// A desktop that grew while the victim served holds no proof back (its growth is its own): the switch succeeds as
/// long as the next model fits beside it, and is refused with the desktop's name and nothing stopped when not.
#[test]
fn lets_a_desktop_grow_and_names_it_when_it_is_too_big() {
    let berth = pair().boot();
    berth.gpu(&["foreign", "Xorg", "--bytes", "400MiB"]);
    berth.switch("aeon");
    berth.gpu(&["linger", "300ms"]);
    berth.gpu(&["foreign", "Xorg", "--bytes", "800MiB"]);
    proved_switch(&berth, "genesis");

    let pid = berth.gpu(&["foreign", "Xorg", "--bytes", "300MiB"]);
    let invocation = berth.property("berth-model@genesis.service", "InvocationID");
    let refused = berth.ctl(&["switch", "aeon"]).with_code(3).to_string();
    let words = refused.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("133 MiB short on GPU 0: it needs 14.0 GiB"), "{refused}");
    assert!(words.contains(&format!("pid {} (Xorg) of gpusim.service 1.5 GiB", pid.trim())), "{refused}");
    assert_eq!(berth.property("berth-model@genesis.service", "InvocationID"), invocation);
    berth.assert_home("genesis");
}

/// A foreign process that gives memory back while the victim's is still held: the sum looks as if the victim's were
/// back, and the proof is not fooled.
#[test]
fn is_not_fooled_by_a_foreign_process_that_shrinks() {
    let berth = Berth::builder().fake("aeon", "3500MiB", &[]).fake("genesis", "11GiB", &[]).boot();
    for device in ["0", "1"] {
        let name = format!("trainer{device}");
        berth.gpu(&["foreign", &name, "--device", device, "--bytes", "4000MiB", "--kind", "compute"]);
    }
    berth.switch("aeon");
    berth.gpu(&["linger", "2s"]);
    let switching = berth.ctl_spawn(None, &["switch", "genesis"]);
    berth.wait_for("aeon is gone", Duration::from_secs(10), |berth| {
        (berth.stats().devices[0].lingering.len() == 1).then_some(())
    });
    berth.gpu(&["linger", "0"]);
    for name in ["trainer0", "trainer1"] {
        berth.gpu(&["foreign-stop", name]);
    }
    // Now less is used than before aeon was started.
    assert!(berth.stats().devices.iter().all(|device| device.memory.used < 4000 << 20));
    let output = switching.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    assert_started_on_free_memory(&berth, "genesis");
    assert_eq!(berth.state_of("aeon"), ModelState::Off);
    berth.assert_home("genesis");
}
