//! The whole way once: a switch, with a pretended server and with the real one.

use std::time::Duration;

use berth_core::name::ModelName;
use berth_core::report::{ModelState, Outcome, Step};
use berth_tests::{Berth, step_ms};

/// What each of the two models holds on each card: more than half of it.
const EACH: &str = "14300MiB";

/// S1: the memory of aeon is still held when it has exited; genesis starts only when it is back, and no
/// allocation fails.
fn switches_while_memory_lingers(berth: &Berth) {
    berth.gpu(&["linger", "1200ms"]);
    let first = berth.switch("aeon");
    assert_eq!(first.stops, []);
    assert!(!berth.ask("aeon").is_empty());

    let swap = berth.switch("genesis");
    assert_eq!(swap.outcome, Some(Outcome::Done));
    assert!(swap.early_start_would_fail && swap.held_at_exit.is_some(), "{swap:?}");
    assert!(step_ms(&swap, Step::Released).unwrap() >= 1000, "{swap:?}");
    assert!(!berth.ask("genesis").is_empty());
    assert!(berth.try_ask("aeon", "x").is_err(), "aeon still answers");

    let stats = berth.stats();
    assert_eq!(stats.failed, 0, "{:?}", stats.failures);
    let last_free = stats.releases.iter().map(|release| release.freed_ns).max().unwrap();
    let started: u64 =
        berth.property("berth-model@genesis.service", "ExecMainStartTimestampMonotonic").parse().unwrap();
    assert!(started * 1000 >= last_free, "started at {started} us, memory was free at {last_free} ns");

    let status = berth.status();
    assert_eq!(status.default.as_ref().map(ModelName::as_str), Some("genesis"));
    assert_eq!(berth.state_of("aeon"), ModelState::Off);
    assert_eq!(berth.state_of("genesis"), ModelState::Serving);
    assert_eq!(status.problems, []);
    let text = berth.ctl(&[]).with_code(0).stdout;
    assert!(text.contains("genesis serves `default`"), "{text}");
}

/// S1, with a server that only pretends.
#[test]
fn a_switch_of_fakellms() {
    let berth =
        Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &["--load-time", "300ms"]).boot();
    switches_while_memory_lingers(&berth);
}

/// S1, with llama.cpp's own server and real weights.
#[test]
fn a_switch_of_real_llama_servers() {
    let berth = Berth::builder().real("aeon", EACH).real("genesis", EACH).boot();
    switches_while_memory_lingers(&berth);
    let answer = berth.ask("genesis");
    assert!(answer.contains("Thursday, Friday"), "{answer:?} is not what these weights say");
}

/// The fixture itself: what a test sees after a power cut is the next boot of the same disk.
#[test]
fn a_cut_and_a_boot() {
    let mut berth = Berth::builder().fake("aeon", EACH, &[]).boot();
    berth.switch("aeon");
    // As berthd sees it, who may have a /proc of its own.
    let boot_id = |berth: &Berth| {
        let berthd = berth.property("berthd.service", "MainPID");
        let within = ["nsenter", "-m", "-t", &berthd, "cat", "/proc/sys/kernel/random/boot_id"];
        berth.run(None, &within).with_code(0).stdout
    };
    let before = boot_id(&berth);
    berth.cut();
    berth.boot();
    berth.wait_serving("aeon", Duration::from_secs(15));
    assert_ne!(before, boot_id(&berth));
    assert!(!berth.ask("aeon").is_empty());
}
