//! The two recordings on README's first screen are what these commands say here, but for the figures.

use std::time::Duration;

use berth_tests::Berth;

const EACH: &str = "14300MiB";
const SOON: Duration = Duration::from_secs(20);

/// A unit as somebody writes it by hand.
fn unit(port: u16) -> String {
    let command = format!("/usr/bin/fakellm --vram-each {EACH} --load-time 1s --port {port}");
    format!("[Service]\nType=exec\nExecStart={command}\nRestart=no\n")
}

/// The commands with what they say, as a terminal shows both.
fn recorded(berth: &Berth, user: Option<&str>, commands: &[&str]) -> String {
    let recorded = |command: &&str| {
        let said = berth.run_within(SOON, user, &["sh", "-c", command]);
        format!("$ {command}\n{}{}", said.stdout, said.stderr)
    };
    commands.iter().map(recorded).collect()
}

/// The lines without what differs from run to run.
fn without_figures(text: &str) -> Vec<String> {
    let word = |word: &str| {
        let digits = word.chars().map(|c| if c.is_ascii_digit() { '#' } else { c });
        let mut masked: Vec<char> = digits.collect();
        masked.dedup_by(|one, other| *one == '#' && *other == '#');
        String::from_iter(masked)
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    text.trim().lines().map(line).collect()
}

#[test]
fn readme_shows_what_happens() {
    let berth = Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &["--load-time", "1s"]).boot();
    berth.gpu(&["linger", "2500ms"]);
    for (name, port) in [("aeon", 8021), ("genesis", 8022)] {
        let path = format!("/etc/systemd/system/{name}.service");
        berth.sandbox().write_file(&path, unit(port).as_bytes()).unwrap();
    }
    _ = berth.systemctl(&["daemon-reload"]).with_code(0);
    _ = berth.systemctl(&["start", "aeon"]).with_code(0);
    berth.wait_for("aeon answers", SOON, |berth| berth.try_ask(8021, "x").ok());
    _ = berth.systemctl(&["stop", "aeon"]).with_code(0);
    _ = berth.systemctl(&["start", "genesis"]).with_code(0);
    berth.wait_for("genesis dies", SOON, |berth| {
        (berth.property("genesis.service", "ActiveState") == "failed").then_some(())
    });
    let by_hand = "$ sudo systemctl stop aeon\n$ sudo systemctl start genesis\n".to_owned()
        + &recorded(
            &berth,
            None,
            &["journalctl -u genesis -o cat -g 'out of memory'", "systemctl is-active aeon genesis"],
        );

    berth.wait_for("the memory of the dead is back", SOON, |berth| {
        let devices = berth.stats().devices;
        devices.iter().all(|gpu| gpu.held.is_empty() && gpu.lingering.is_empty()).then_some(())
    });
    // So that it is known how long it takes.
    for (model, linger) in [("aeon", "0ms"), ("genesis", "2500ms"), ("aeon", "0ms")] {
        berth.gpu(&["linger", linger]);
        berth.switch(model);
    }
    berth.gpu(&["linger", "2500ms"]);
    let with_berth = recorded(&berth, Some("frank"), &["berthctl switch genesis"]);
    assert_eq!(berth.stats().failed, 1, "one by hand, none with Berth");

    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
    let blocks: Vec<&str> = readme.split("```").skip(1).step_by(2).collect();
    for (what, recorded, block) in [("by hand", by_hand, blocks[0]), ("with Berth", with_berth, blocks[1])] {
        assert_eq!(without_figures(&recorded), without_figures(block), "{what}, it is now:\n{recorded}");
    }
}
