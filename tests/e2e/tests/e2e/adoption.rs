//! Rule 8: berthd dies, hangs, is restarted or replaced, and no model notices. Each next one takes over what runs.

use std::time::Duration;

use berth_tests::{Berth, Streamed, adoption};

const EACH: &str = "14300MiB";
const SOON: Duration = Duration::from_secs(20);
const TOKENS: [&str; 2] = ["--token-delay", "5ms"];

/// SIGKILL fifty times under a running stream, straight to the model's port: the stream goes on, and every next berthd
/// shows the same run of the model serving.
#[test]
fn fifty_kills_under_a_stream() {
    let berth = Berth::builder().fake("aeon", EACH, &TOKENS).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    let adoption = adoption::under_a_stream(&berth, "aeon", 50, |_| ()).unwrap();
    let millis = |stamps: &[u64]| {
        let mut stamps: Vec<u64> = stamps.iter().map(|ns| ns / 1_000_000).collect();
        stamps.sort_unstable();
        (stamps[stamps.len() / 2], stamps[stamps.len() - 1])
    };
    println!(
        "adoption: (median, longest) ms from its start {:?}, from the kill {:?}; {} tokens",
        millis(&adoption.from_start),
        millis(&adoption.from_kill),
        adoption.tokens
    );
    assert_eq!((adoption.streams_cut, adoption.from_start.len()), (0, 50));
    // The last of them is a whole berthd.
    berth.assert_home("aeon");
    berth.switch("genesis");
    berth.assert_home("genesis");
    berth.assert_no_failed_allocation();
}

/// A berthd that hangs is ended by systemd's watchdog, which may be set shorter than it is here; a restart and an
/// upgrade are ordinary. Each time another berthd takes over, and the model goes on with what it says.
#[test]
fn a_watchdog_a_restart_and_an_upgrade() {
    let berth = Berth::builder().fake("aeon", EACH, &TOKENS).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    let aeon = berth.run_of("aeon");
    let stream = Streamed::open(berth.pid1().unwrap(), berth.port("aeon").unwrap()).unwrap();
    let berthd = || berth.property("berthd.service", "MainPID");
    let another_than = |old: &str| {
        berth.wait_for("another berthd", SOON, |_| (!["0", old].contains(&&*berthd())).then_some(()));
        berth.wait_for_berthd(SOON).unwrap();
        assert_eq!((berth.run_of("aeon"), berth.serving()), (aeon.clone(), vec!["aeon".to_owned()]));
        stream.goes_on().unwrap();
    };

    let old = berthd();
    let short = "[Service]\nWatchdogSec=4s\n";
    berth.sandbox().write_file("/run/systemd/system/berthd.service.d/short.conf", short).unwrap();
    _ = berth.systemctl(&["daemon-reload"]).with_code(0);
    _ = berth.systemctl(&["restart", "berthd.service"]).with_code(0);
    another_than(&old);
    let old = berthd();
    // One that is well is left alone.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(berthd(), old, "{}", berth.journal("berthd.service"));
    _ = berth.systemctl(&["kill", "--signal=STOP", "berthd.service"]).with_code(0);
    another_than(&old);
    assert!(berth.journal("berthd.service").contains("Watchdog timeout"));

    // As a package does it: another file takes the old one's name, then the restart.
    let old = berthd();
    let program = "/usr/bin/berthd";
    let upgrade = format!("cp {program} {program}.new && mv {program}.new {program}");
    _ = berth.run(None, &["sh", "-c", &upgrade]).with_code(0);
    berth.wait_for("the old program is replaced", SOON, |berth| {
        let runs = berth.run(None, &["readlink", &format!("/proc/{old}/exe")]).with_code(0).stdout;
        runs.contains("(deleted)").then_some(())
    });
    _ = berth.systemctl(&["restart", "berthd.service"]).with_code(0);
    another_than(&old);

    berth.assert_home("aeon");
    berth.switch("genesis");
    berth.assert_home("genesis");
    berth.assert_no_failed_allocation();
}
