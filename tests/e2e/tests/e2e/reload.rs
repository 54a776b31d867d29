//! What is declared anew takes effect without a restart, whole or not at all, and touches nothing that runs (S15).

use std::time::Duration;

use berth_core::report::{ModelState, Reloaded};
use berth_tests::{Berth, fake, post};

const EACH: &str = "6000MiB";
const SOON: Duration = Duration::from_secs(20);

fn reload(berth: &Berth, arguments: &[&str]) -> Reloaded {
    let output = berth.ctl(&[&["reload", "--json"], arguments].concat()).with_code(0);
    serde_json::from_str(&output.stdout).unwrap()
}

/// Which models differ, and in which keys.
fn keys(reloaded: &Reloaded) -> Vec<String> {
    let of = |changed: &berth_core::report::Changed| {
        let model = changed.model.as_ref().map_or("node", |model| model.as_str()).to_owned();
        changed.values.iter().map(move |value| format!("{model} {}", value.key)).collect::<Vec<_>>()
    };
    reloaded.changes.iter().flat_map(of).collect()
}

#[test]
fn what_is_declared_anew_takes_effect() {
    let berth = Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    let aeon = berth.run_of("aeon");
    assert!(reload(&berth, &[]).changes.is_empty());

    // What is wrong changes nothing, and is said whole.
    berth.declare("genesis", "cmd = \"/usr/bin/fakellm\"\ncontxt = 5\n");
    berth.declare("broken", "cmd = 5\n");
    let refused = berth.ctl(&["reload"]).with_code(2);
    assert!(refused.stderr.contains("contxt") && refused.stderr.contains("broken.toml"), "{refused}");
    berth.unconfigure("models.d/broken.toml");

    // A variable and an alias of what runs, a new model, a setting of the node.
    let changed = fake(2, EACH, &[])
        + "aliases = [\"chat\"]\nenv = { VLLM_MARLIN = \"1\", HF_TOKEN = \"hf_sesame\" }\n";
    berth.declare("aeon", &changed);
    berth.declare("genesis", &fake(2, EACH, &[]));
    berth.declare("glm", &fake(1, EACH, &[]));
    berth.configure("berth.toml", b"node = \"tower\"\nguest_idle = \"30s\"\n");
    let checked = reload(&berth, &["--check"]);
    for key in ["node guest_idle", "aeon aliases", "aeon env.VLLM_MARLIN", "aeon env.HF_TOKEN", "glm cmd"] {
        assert!(keys(&checked).iter().any(|found| found == key), "{key}: {:?}", keys(&checked));
    }
    assert!(!berth.status().models.iter().any(|model| model.name.as_str() == "glm"), "it was a check");
    assert_eq!(reload(&berth, &[]), checked);
    assert!(reload(&berth, &[]).changes.is_empty());

    // What runs goes on as it was, is marked, and answers to its new name at once.
    assert_eq!(berth.run_of("aeon"), aeon);
    let status = berth.status();
    let marked = status.models.iter().find(|model| model.name.as_str() == "aeon").unwrap();
    let drifted: Vec<&str> = marked.drifted.iter().map(|change| change.key.as_str()).collect();
    assert_eq!(drifted, ["env.HF_TOKEN", "env.VLLM_MARLIN"]);
    let shown = berth.ctl(&["status"]).with_code(0).stdout;
    assert!(shown.contains("env.VLLM_MARLIN: - -> 1"), "{shown}");
    assert!(
        !shown.contains("sesame") && !berth.ctl(&["status", "--json"]).stdout.contains("sesame"),
        "{shown}"
    );
    let asks = serde_json::json!({ "model": "chat", "prompt": "x", "max_tokens": 1 });
    assert_eq!(post(berth.pid1().unwrap(), 8010, "/v1/completions", &asks, SOON).unwrap().status, 200);
    // berthd's death changes nothing of that.
    berth.restart_berthd();
    let drifted =
        |berth: &Berth| berth.status().models.iter().map(|model| model.drifted.len()).sum::<usize>();
    assert_eq!(drifted(&berth), 2);
    _ = berth.change(&["restart", "aeon"]).with_code(0);
    assert_eq!(drifted(&berth), 0);
    let pid = berth.run_of("aeon").main_pid.to_string();
    let environment = berth.run(None, &["cat", &format!("/proc/{pid}/environ")]).with_code(0).stdout;
    assert!(environment.contains("VLLM_MARLIN=1"), "{environment}");

    // By a signal too; what serves can't be taken away under it, and a swap goes by what it began with.
    berth.unconfigure("models.d/aeon.toml");
    let refused = berth.ctl(&["reload"]).with_code(3);
    assert!(refused.stderr.contains("aeon is not declared any more"), "{refused}");
    _ = berth.change(&["switch", "glm"]).with_code(0);
    _ = berth.change(&["stop", "aeon"]);
    _ = berth.systemctl(&["reload", "berthd"]).with_code(0);
    berth.wait_for("the reload", SOON, |berth| {
        (!berth.status().models.iter().any(|model| model.name.as_str() == "aeon")).then_some(())
    });
    assert_eq!(berth.state_of("glm"), ModelState::Serving);
    // By its name alone it would be given the port that glm has had since before aeon was gone.
    berth.declare("slow", &fake(1, EACH, &["--load-time", "3s"]));
    _ = reload(&berth, &[]);
    assert!(!berth.ask("glm").is_empty());
    let accepted = berth.change(&["start", "slow", "--no-wait"]).with_code(0);
    let busy = berth.ctl(&["reload"]).with_code(3);
    assert!(
        busy.stderr.contains(&format!("swap {} is under way", accepted.last["accepted"]["swap"])),
        "{busy}"
    );
    berth.wait_serving("slow", SOON);
    // A berthd that is started anew finds what runs where it is.
    berth.restart_berthd();
    for model in ["glm", "slow"] {
        berth.wait_serving(model, SOON);
        assert!(!berth.ask(model).is_empty());
    }
    let status = berth.status();
    assert!(status.models.iter().all(|model| model.drifted.is_empty()), "{status:#?}");
}
