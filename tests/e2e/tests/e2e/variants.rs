//! Variants of a model, declared ones and unnamed ones of `--set`: what really runs, and what is kept of it.

use std::time::Duration;

use berth_core::name::ModelName;
use berth_core::report::{ModelState, Verdict};
use berth_tests::{Berth, real};

/// Half of a card, and more than half of one.
const EACH: &str = "6000MiB";
const SOON: Duration = Duration::from_secs(30);

/// The server's command line as the kernel has it, without the program and what starts it.
fn command_line(berth: &Berth, model: &str) -> String {
    let pid = berth.run_of(model).main_pid;
    let line = berth.run(None, &["cat", &format!("/proc/{pid}/cmdline")]).with_code(0).stdout;
    let line = line.trim_end_matches('\0').replace('\0', " ");
    line.split_once("gemma-3-270m.gguf ").unwrap_or_else(|| panic!("{model}: {line}")).1.to_owned()
}

fn home(berth: &Berth) -> Vec<String> {
    berth.status().home.iter().map(|name| name.as_str().to_owned()).collect()
}

/// A variant and a `--set` run with exactly the flags that they change, on the base's port and in its place; what was
/// tried without a declaration is home like any other, over a new berthd and a reboot, and is forgotten afterwards.
#[test]
fn a_variant_runs_with_exactly_what_it_changes() {
    let base = real(2, EACH) + "port = 8150\naliases = [\"gem\"]\n";
    let variants =
        "[variants.long]\nctx = 4096\nkv = \"q8_0\"\n\n[variants.same]\nctx = 2048\naliases = [\"prod\"]\n";
    let mut berth =
        Berth::builder().assets().model("gemma", &format!("{base}{variants}")).fake("aeon", EACH, &[]).boot();
    let address = "--host 127.0.0.1 --port 8150";
    berth.switch("gemma:long");
    assert_eq!(command_line(&berth, "gemma:long"), format!("-t 2 {address} -c 4096 -ctk q8_0 -ctv q8_0"));
    assert!(!berth.ask("gemma:long").is_empty());
    assert_eq!((home(&berth), berth.state_of("gemma")), (vec!["gemma:long".to_owned()], ModelState::Off));

    // The base takes its place, under another of its names: it is one server, on one port.
    let swap = berth.switch("gemma:same");
    assert_eq!((swap.stops[0].as_str(), swap.starts[0].as_str()), ("gemma:long", "gemma"));
    assert_eq!(command_line(&berth, "gemma"), format!("-c 2048 -t 2 {address}"));
    assert_eq!(home(&berth), ["gemma"]);

    // What can't be set is refused with what can, and changes nothing; what changes nothing is the model itself.
    let before = berth.run_of("gemma");
    let refused = berth.ctl(&["switch", "gemma", "--set", "context=1024"]).with_code(3);
    assert!(refused.stderr.contains("there is no setting `context`; there are ctx, kv,"), "{refused}");
    let audit = berth.journal("berthd.service");
    assert!(
        audit.contains("asked: switch gemma --set context=1024: refused: there is no setting"),
        "{audit}"
    );
    let refused = berth.ctl(&["plan", "switch", "gem", "--set", "ctx=1K"]).with_code(3);
    assert!(refused.stdout.contains("`ctx` must be a number of tokens"), "{refused}");
    let refused = berth.ctl(&["switch", "gemma:ctx=0"]).with_code(3);
    assert!(refused.stderr.contains("`ctx` must be a number of tokens"), "{refused}");
    let nothing = berth.ctl(&["switch", "gemma", "--set", "ctx=2048"]).with_code(0);
    assert!(nothing.stdout.contains("gemma serves as `default` already"), "{nothing}");
    let planned = berth.ctl_json(&["plan", "switch", "default", "--set", "ctx=1024", "--set", "slots=2"]);
    assert_eq!(planned["starts"][0], "gemma:ctx=1024,slots=2", "{planned:#}");
    let planned: Verdict = serde_json::from_value(planned["verdict"].clone()).unwrap();
    assert_eq!(planned, Verdict::Go);
    assert_eq!(berth.run_of("gemma"), before);
    let known: Vec<ModelName> = berth.status().models.into_iter().map(|model| model.name).collect();
    assert_eq!(known.iter().map(ModelName::as_str).collect::<Vec<_>>(), ["aeon", "gemma", "gemma:long"]);

    // Tried by an alias; it serves as any other, and a berthd that begins anew knows it by its name.
    let unnamed = "gemma:ctx=1024,slots=2";
    let tried = berth.change(&["switch", "gem", "--set", "slots=2", "--set", "ctx=1024"]).with_code(0);
    assert_eq!(tried.swap().starts[0].as_str(), unnamed);
    assert_eq!(command_line(&berth, unnamed), format!("-t 2 {address} -c 1024 -np 2"));
    assert_eq!(home(&berth), [unnamed]);
    let run = berth.run_of(unnamed);
    berth.restart_berthd();
    assert_eq!((berth.run_of(unnamed), berth.serving()), (run.clone(), vec![unnamed.to_owned()]));
    let said = berth.ctl(&["logs", unnamed, "-n", "5"]).with_code(0);
    assert!(!said.stdout.is_empty(), "{said}");
    _ = berth.ctl(&["restart", unnamed]).with_code(0);
    assert_ne!(berth.run_of(unnamed), run);
    assert_eq!(command_line(&berth, unnamed), format!("-t 2 {address} -c 1024 -np 2"));
    // It comes back after a crash and a reboot, since it is home.
    _ = berth.systemctl(&["kill", "-s", "KILL", &unnamed.parse::<ModelName>().unwrap().unit()]).with_code(0);
    berth.wait_serving(unnamed, SOON);
    berth.cut();
    berth.boot();
    berth.wait_serving(unnamed, SOON);
    assert_eq!(command_line(&berth, unnamed), format!("-t 2 {address} -c 1024 -np 2"));

    // Away with it: `back` would still lead there; once nothing does it is gone.
    berth.switch("aeon");
    _ = berth.ctl(&["stop", unnamed]);
    _ = berth.ctl(&["stop", "--all"]).with_code(0);
    berth.switch("gemma");
    berth.switch("aeon");
    _ = berth.ctl(&["stop", "gemma"]);
    assert!(berth.status().models.iter().all(|model| model.name.as_str() != unnamed));
    assert_eq!(berth.stats().failed, 0);
}
