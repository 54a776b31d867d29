//! The plan for each kind of request on the machines of story.md, as people are told it.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use berth_core::bytes::Bytes;
use berth_core::facts::{Known, Listener, Preflight, Suspicion};
use berth_core::name::ModelName;
use berth_core::plan::{self, Verdict};
use berth_core::report::Verb;
use berth_core::state::{Phase, Times};
use insta::assert_snapshot;

use crate::story::{Machine, name};

/// The request, its verdict and the whole report, in MiB.
fn told(machine: &Machine, verb: Verb, model: Option<&str>) -> String {
    let verdict = machine.plan(verb, model);
    let request = Machine::request(verb, model);
    let report = plan::report(&machine.settings, &machine.facts, &machine.state, &request, &verdict);
    let mut out = format!("> {} {}\n", verb.as_str(), model.unwrap_or_default());
    match &verdict {
        Verdict::Go(plan) => {
            let home: Vec<&str> = plan.home.models.iter().map(ModelName::as_str).collect();
            let default = plan.home.default.as_ref().map_or("nothing", |m| m.as_str());
            writeln!(out, "go: home [{}], default {default}", home.join(", ")).unwrap();
            writeln!(out, "    back would lead to {:?}", plan.previous.as_ref().map(|home| &home.models))
                .unwrap();
        }
        Verdict::Nothing(text) => writeln!(out, "nothing to do: {text}").unwrap(),
        Verdict::Refused { refusal, .. } => {
            writeln!(out, "refused ({}): {}", refusal.code, refusal.text).unwrap();
            for hint in &refusal.hints {
                writeln!(out, "    try: {hint}").unwrap();
            }
        }
    }
    writeln!(out, "stops {:?}, starts {:?}", report.stops, report.starts).unwrap();
    let mib = |bytes: Bytes| bytes.0 >> 20;
    for gpu in &report.gpus {
        writeln!(
            out,
            "GPU {}: {} total, {} unusable, {} foreign {:?}, needs {} of {}",
            gpu.index,
            mib(gpu.total),
            mib(gpu.unusable),
            mib(gpu.foreign),
            gpu.foreign_by,
            mib(gpu.needs),
            mib(gpu.available)
        )
        .unwrap();
        let held = |models: &[(ModelName, Bytes)]| {
            models
                .iter()
                .map(|(model, bytes)| format!("{model} {}", mib(*bytes)))
                .collect::<Vec<_>>()
                .join(" + ")
        };
        writeln!(out, "    before [{}], after [{}]", held(&gpu.before), held(&gpu.after)).unwrap();
    }
    for step in &report.steps {
        let model = step.model.as_ref().map_or("all", |m| m.as_str());
        writeln!(out, "{:?} {model}: {:?} ms", step.step, step.expected_ms).unwrap();
    }
    out
}

const BOTH: &[(usize, u64)] = &[(0, 14_331), (1, 14_331)];

#[test]
fn aeon_gives_way_to_genesis() {
    let mut tower = Machine::tower(2).serves("aeon", BOTH);
    tower.state.times.insert(
        name("aeon"),
        Times { stop: VecDeque::from([900]), release: VecDeque::from([2500, 2300]), load: VecDeque::new() },
    );
    tower.state.times.insert(name("genesis"), Times { load: VecDeque::from([61_000]), ..Times::default() });
    assert_snapshot!(told(&tower, Verb::Switch, Some("production")));
}

#[test]
fn a_switch_evicts_only_what_is_in_the_way() {
    let tower = Machine::tower(2).serves("small", &[(0, 5120)]).serves("glm-flash", &[(1, 9216)]);
    let mut out = told(&tower, Verb::Switch, Some("supergemma"));
    out += &told(&tower, Verb::Switch, Some("pair"));
    out += &told(&tower, Verb::Switch, Some("small"));
    out += &told(&tower, Verb::Switch, Some("glm-flash"));
    assert_snapshot!(out);
}

#[test]
fn a_start_fits_beside_or_points_to_switch() {
    let one = Machine::tower(1).serves("glm-flash", &[(0, 9216)]);
    let mut out = told(&one, Verb::Start, Some("small"));
    out += &told(&one, Verb::Start, Some("cpu-only"));
    let full = Machine::tower(2).serves("aeon", BOTH);
    out += &told(&full, Verb::Start, Some("small"));
    out += &told(&full, Verb::Start, Some("aeon"));
    assert_snapshot!(out);
}

#[test]
fn too_big_is_said_with_every_number() {
    let two = Machine::tower(2).serves("aeon", BOTH);
    let mut out = told(&two, Verb::Switch, Some("gemma-nvfp4"));
    out += &told(&Machine::tower(1), Verb::Switch, Some("supergemma"));
    out += &told(&Machine::tower(2), Verb::Switch, Some("supergemma"));
    assert_snapshot!(out);
    let short = |machine: &Machine, model: &str| {
        plan::too_big(
            &machine.settings,
            &machine.facts,
            &machine.state,
            &machine.settings.models[&name(model)],
        )
    };
    assert!(short(&two, "gemma-nvfp4").is_some());
    assert_eq!(short(&two, "genesis"), None);
}

#[test]
fn a_model_is_not_too_big_while_another_ones_memory_lingers() {
    let mut tower = Machine::tower(1);
    tower.claims("glm-flash", Phase::Ending, &[(0, 9216)], None);
    let Known::Value(processes) = &mut tower.gpu(0).processes else { panic!() };
    processes.retain(|process| process.model.is_none());
    let small = &tower.settings.models[&name("small")];
    assert_eq!(plan::too_big(&tower.settings, &tower.facts, &tower.state, small), None);
    // Counted once: 9 GiB linger, 5 fit beside them.
    assert_snapshot!(told(&tower, Verb::Start, Some("small")));
}

#[test]
fn what_can_be_known_beforehand_is_refused() {
    let mut tower = Machine::tower(2).serves("aeon", BOTH);
    let mut out = told(&tower, Verb::Switch, Some("old"));
    for asked in ["genesys", "smal", "wholly-unknown", "a\u{1b}[31mb", "default"] {
        out += &told(&tower, Verb::Start, Some(asked));
    }
    out += &told(&tower, Verb::Switch, Some("unsaid"));
    out += &told(&tower, Verb::Switch, None);
    out += &told(&tower, Verb::Back, Some("genesis"));
    out += &told(&tower, Verb::Back, None);
    let unit = Some("llama-swap.service".to_owned());
    let listener = Listener { address: "0.0.0.0".parse().unwrap(), port: 8022, uid: 1000, model: None, unit };
    tower.preflight.insert(name("genesis"), Preflight { files: Vec::new(), port: Some(listener) });
    let missing = (PathBuf::from("/models/small.gguf"), "it does not exist; /models does".to_owned());
    tower.preflight.insert(name("small"), Preflight { files: vec![missing], port: None });
    out += &told(&tower, Verb::Switch, Some("genesis"));
    out += &told(&tower, Verb::Restart, Some("small"));
    tower.state.claims.get_mut(&name("aeon")).unwrap().phase = Phase::Ending;
    out += &told(&tower, Verb::Switch, Some("aeon"));
    assert_snapshot!(out);
}

#[test]
fn a_port_of_ones_own_models_is_no_obstacle_to_a_switch() {
    let tower = Machine::tower(2).serves("twin", &[(0, 1024)]);
    let mut out = told(&tower, Verb::Switch, Some("genesis"));
    out += &told(&tower, Verb::Start, Some("genesis"));
    // It does not run now, but is to: two of one port in home would never both come back.
    let mut absent = Machine::tower(2);
    absent.state.home = tower.state.home.clone();
    out += &told(&absent, Verb::Start, Some("genesis"));
    assert_snapshot!(out);
}

#[test]
fn what_is_suspect_is_not_used() {
    let suspect = |machine: &mut Machine, index: usize, until: Option<u64>| {
        machine.gpu(index).suspect = Some(Suspicion {
            why: "the driver reported Xid 79; see `dmesg`".to_owned(),
            since: Duration::from_secs(98),
            until: until.map(Duration::from_secs),
        });
    };
    let mut tower = Machine::tower(2).serves("glm-flash", &[(0, 9216)]);
    suspect(&mut tower, 1, Some(107));
    // What serves goes on, and may be stopped.
    let mut out = told(&tower, Verb::Start, Some("small"));
    out += &told(&tower, Verb::Start, Some("supergemma"));
    out += &told(&tower, Verb::Switch, Some("genesis"));
    out += &told(&tower, Verb::Restart, Some("glm-flash"));
    suspect(&mut tower, 0, None);
    out += &told(&tower, Verb::Restart, Some("glm-flash"));
    out += &told(&tower, Verb::Switch, Some("glm-flash"));
    out += &told(&tower, Verb::Stop, Some("glm-flash"));
    assert_snapshot!(out);
}

#[test]
fn what_cannot_be_seen_is_not_used() {
    let lost = |machine: &mut Machine, index: usize| {
        machine.gpu(index).memory = Known::Unknown("the GPU is lost".to_owned());
        machine.gpu(index).processes = Known::Unknown("the GPU is lost".to_owned());
    };
    let mut tower = Machine::tower(2);
    lost(&mut tower, 1);
    let mut out = told(&tower, Verb::Start, Some("small"));
    out += &told(&tower, Verb::Switch, Some("genesis"));
    out += &told(&tower, Verb::Switch, Some("supergemma"));
    lost(&mut tower, 0);
    out += &told(&tower, Verb::Start, Some("small"));
    let mut bare = Machine::bare(0);
    out += &told(&bare, Verb::Switch, Some("genesis"));
    out += &told(&bare, Verb::Start, Some("cpu-only"));
    bare.facts.gpus = Known::Unknown("libnvidia-ml.so.1 is not installed".to_owned());
    out += &told(&bare, Verb::Switch, Some("genesis"));
    assert_snapshot!(out);
}

#[test]
fn without_process_lists_claims_stand_for_what_is_ours() {
    let mut tower = Machine::tower(2).serves("small", &[(0, 5120)]);
    tower.gpu(0).processes = Known::Unknown("the driver gives no lists here".to_owned());
    let mut out = told(&tower, Verb::Start, Some("glm-flash"));
    out += &told(&tower, Verb::Switch, Some("pair"));
    assert_snapshot!(out);
}

#[test]
fn declared_for_each_gpu_and_split_on_one() {
    let mut out = told(&Machine::tower(2), Verb::Start, Some("pair"));
    out += &told(&Machine::bare(3).foreign(0, "Xorg", 6000), Verb::Start, Some("pair"));
    out += &told(&Machine::tower(1), Verb::Start, Some("pair"));
    out += &told(&Machine::bare(1), Verb::Start, Some("gemma-nvfp4"));
    assert_snapshot!(out);
}

#[test]
fn back_restart_stop() {
    let tower = Machine::tower(2).serves("aeon", BOTH).before(&["small", "glm-flash"]);
    let mut out = told(&tower, Verb::Back, None);
    out += &told(&tower, Verb::Restart, Some("aeon"));
    out += &told(&tower, Verb::Restart, Some("default"));
    out += &told(&tower, Verb::Stop, Some("aeon"));
    out += &told(&tower, Verb::Stop, Some("small"));
    out += &told(&tower, Verb::StopAll, None);
    out += &told(&tower, Verb::Restart, Some("small"));
    out += &told(&Machine::tower(2), Verb::StopAll, None);
    let gone = Machine::tower(2).serves("aeon", BOTH).before(&["forgotten"]);
    out += &told(&gone, Verb::Back, None);
    assert_snapshot!(out);
}

#[test]
fn a_failed_model_of_home_gives_way_or_stays() {
    // aeon failed; it can't come back beside genesis, so it is missed no longer. small can, so it stays home.
    let mut tower = Machine::tower(2);
    tower.state.home.models = vec![name("aeon"), name("cpu-only")];
    tower.state.home.default = Some(name("aeon"));
    let mut out = told(&tower, Verb::Switch, Some("genesis"));
    out += &told(&tower, Verb::Start, Some("small"));
    tower.state.home.models = vec![name("small")];
    out += &told(&tower, Verb::Switch, Some("glm-flash"));
    assert_snapshot!(out);
}

#[test]
fn a_model_that_outgrew_its_claim_counts_with_what_it_holds() {
    let mut tower = Machine::tower(1);
    tower.claims("small", Phase::Serving, &[(0, 5120)], Some(7000));
    assert_snapshot!(told(&tower, Verb::Start, Some("glm-flash")));
}

fn restored(machine: &Machine, waiting: &[ModelName]) -> plan::Plan {
    let held = plan::HeldBack { waiting: waiting.iter().cloned().collect(), ..plan::HeldBack::default() };
    plan::restore(&machine.settings, &machine.facts, &machine.state, &held).plan.unwrap()
}

#[test]
fn the_first_place_is_left_to_whom_has_no_other() {
    let home = |models: &[&str]| {
        let mut tower = Machine::bare(2);
        tower.state.home.models = models.iter().map(|model| name(model)).collect();
        tower
    };
    let gpu = |start: &plan::Start| (start.model.as_str().to_owned(), start.gpus[0].index);
    // pair needs most of GPU 0.
    let tower = home(&["small", "pair"]);
    let plan = restored(&tower, &[]);
    assert_eq!(gpu(&plan.starts[0]), ("small".to_owned(), 1));
    let held_off = [name("small")];
    let plan = restored(&tower, &held_off);
    assert_eq!(gpu(&plan.starts[0]), ("pair".to_owned(), 0));
    let Verdict::Go(plan) = Machine::bare(2).before(&["small", "pair"]).plan(Verb::Back, None) else {
        panic!()
    };
    assert_eq!(
        plan.starts.iter().map(gpu).collect::<Vec<_>>(),
        [("small".to_owned(), 1), ("pair".to_owned(), 0)]
    );
    let Verdict::Go(plan) = home(&["pair"]).plan(Verb::Start, Some("small")) else { panic!() };
    assert_eq!(gpu(&plan.starts[0]), ("small".to_owned(), 1));
    // Where somebody else has what pair needs, small serves nevertheless.
    let tower = home(&["pair", "small"]).foreign(0, "train.py", 8000);
    let plan = restored(&tower, &[]);
    assert_eq!(gpu(&plan.starts[0]), ("small".to_owned(), 0));
}
