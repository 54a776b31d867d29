//! A model that is placed from the header of its file: what it gives up, the flags that come of it, and what is learned.

use berth_core::demand::Source;
use berth_core::report::{AttemptOutcome, PlanReport};
use berth_tests::Berth;
use serde_json::Value;
use shapes::gguf::{Gguf, Type};
use shapes::models;

/// A server that holds less than is estimated, of whatever model.
const MODEL: &str = "cmd = \"/usr/bin/fakellm -m /models/moe.gguf --vram-each 13000MiB -ub 1024\"\n\
                     backend = \"llama.cpp\"\nctx = 32768\n";

/// 15 GiB of weights in 30 layers with experts: more than fits one card of 16 GiB.
fn moe() -> Gguf {
    models::gemma4_26b(Type::Other(3, 32, 20))
}

fn plan(berth: &Berth) -> PlanReport {
    let said = berth.ctl(&["plan", "switch", "moe", "--json"]).with_code(0);
    serde_json::from_str(&said.stdout).unwrap()
}

/// S6: what is said beforehand is what runs, and what it took is what is said the next time.
#[test]
fn a_model_that_gives_something_up_runs_as_planned_and_is_remembered() {
    let berth = Berth::builder().gpus("1x16311").model("moe", MODEL).boot();
    let file = moe();
    berth.sandbox().write_file("/models/moe.gguf", file.header()).unwrap();
    _ = berth.run(None, &["truncate", "-s", &file.length().to_string(), "/models/moe.gguf"]).with_code(0);

    let planned = plan(&berth);
    let taken = planned.tried.last().unwrap();
    assert!(matches!(taken.outcome, AttemptOutcome::Fits { .. }), "{planned:?}");
    let layers = taken.way.split_once("layers (").and_then(|(_, rest)| rest.split_once("-29)")).unwrap().0;
    let first: u32 = layers.parse().unwrap();
    let fewer = &planned.tried[planned.tried.len() - 2];
    assert!(fewer.way.contains(&format!("({}-29)", first + 1)), "{fewer:?}");
    assert!(matches!(fewer.outcome, AttemptOutcome::Short { .. }), "{fewer:?}");

    _ = berth.switch("moe");
    let pid = berth.property("berth-model@moe.service", "MainPID");
    let args = berth.run(None, &["sh", "-c", &format!("tr '\\0' ' ' < /proc/{pid}/cmdline")]).stdout;
    let moved: Vec<String> = (first..30).map(|layer| layer.to_string()).collect();
    let experts = format!(r"-ot blk\.({})\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU", moved.join("|"));
    assert!(args.contains(&format!("-c 32768 -ngl 31 -fit off {experts}")), "{args}");
    let kept = |berth: &Berth| {
        let gpus = berth.status().gpus;
        gpus.value().unwrap()[0].memory.value().unwrap().kept
    };
    assert_eq!(kept(&berth), taken.devices[0].needs);

    // Without berthd the same is said: what serves counts as absent.
    let fit: Value =
        serde_json::from_str(&berth.ctl_as("mallory", &["fit", "moe", "--json"]).with_code(0).stdout)
            .unwrap();
    assert_eq!(fit["way"], taken.way);
    assert_eq!(fit["devices"][0]["needs_bytes"], taken.devices[0].needs.0);
    assert_eq!(fit["devices"][0]["available_bytes"], taken.devices[0].available.unwrap().0);

    // Over a restart and a boot's worth of it: what was measured is in the ledger.
    _ = berth.change(&["stop", "moe"]).with_code(0);
    berth.restart_berthd();
    let again = plan(&berth);
    let last = again.tried.last().unwrap();
    assert_eq!(last.way, taken.way);
    assert_eq!(last.devices[0].needs.0 >> 20, 13_000, "{last:?}");
    assert!(last.devices[0].parts.0.iter().any(|part| part.source == Source::Learned), "{last:?}");
    let text = berth.ctl(&["plan", "switch", "moe"]).with_code(0).stdout;
    assert!(text.contains("learned"), "{text}");

    // Another version of its file is estimated anew.
    _ = berth.run(None, &["touch", "/models/moe.gguf"]).with_code(0);
    let anew = plan(&berth);
    assert_eq!(anew.tried.last().unwrap().devices[0].needs, taken.devices[0].needs);
    berth.assert_no_failed_allocation();
}
