//! What holds of every plan on every machine, against an arithmetic of its own.

use std::fmt::Write as _;

use berth_core::bytes::Bytes;
use berth_core::config::Memory;
use berth_core::facts::Known;
use berth_core::name::ModelName;
use berth_core::plan::{HeldBack, Plan, Verdict, restore};
use berth_core::policy::Spread;
use berth_core::report::Verb;
use berth_core::state::{Home, Phase};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use crate::story::{DRIVER, Machine, device, memory, name, settings};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// A model: which GPUs it wants, and which port.
#[derive(Debug, Clone)]
struct Wants {
    demand: Vec<u64>,
    policy: usize,
    port: u16,
}

/// A machine in MiB, before anything is on it.
#[derive(Debug, Clone)]
struct Drawn {
    gpus: Vec<(u64, u64)>,
    models: Vec<Wants>,
    /// Model, first GPU, in home, how much of its claim in percent it holds, phase.
    runs: Vec<(usize, usize, bool, u64, usize)>,
    foreign: Vec<(usize, u64)>,
    previous: Vec<usize>,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let wants = (prop::collection::vec(500u64..16_000, 1..3), 0usize..3, 9001u16..9005)
        .prop_map(|(demand, policy, port)| Wants { demand, policy, port });
    let gpus = prop::collection::vec((8_000u64..24_000, 0u64..600), 1..4);
    let runs =
        prop::collection::vec((0usize..6, 0usize..3, prop::bool::weighted(0.8), 0u64..115, 0usize..8), 0..4);
    let foreign = prop::collection::vec((0usize..3, 10u64..6_000), 0..4);
    let previous = prop::collection::vec(0usize..6, 0..3);
    (gpus, prop::collection::vec(wants, 6), runs, foreign, previous)
        .prop_map(|(gpus, models, runs, foreign, previous)| Drawn { gpus, models, runs, foreign, previous })
}

/// The machine as drawn, with the foreign processes of `foreign`.
fn machine(drawn: &Drawn, foreign: &[(usize, u64)]) -> Machine {
    let mut machine = Machine::bare(drawn.gpus.len());
    let mut files = Vec::new();
    for (text, wants) in NAMES.iter().zip(&drawn.models) {
        let mut file = format!("cmd = \"serve\"\nport = {}\nshares_port = true\n", wants.port);
        let sizes: Vec<String> = wants.demand.iter().map(|mib| format!("\"{mib} MiB\"")).collect();
        match wants.policy {
            0 => write!(file, "[memory]\ngpu = {}\n", sizes[0]).unwrap(),
            1 => write!(file, "policy = \"split\"\n[memory]\ngpu = {}\n", sizes[0]).unwrap(),
            _ => write!(file, "[memory]\ngpu = [{}]\n", sizes.join(", ")).unwrap(),
        }
        files.push((*text, file));
    }
    let files: Vec<(&str, &str)> = files.iter().map(|(name, file)| (*name, file.as_str())).collect();
    machine.settings = settings(&files);
    for (index, (total, reserved)) in drawn.gpus.iter().enumerate() {
        machine.gpu(index).memory = Known::Value(memory(*total, *reserved, DRIVER));
    }
    for (model, first, home, percent, phase) in &drawn.runs {
        let text = NAMES[*model];
        if machine.state.claims.contains_key(&name(text)) {
            continue;
        }
        let wants = &drawn.models[*model];
        let parts: Vec<(usize, u64)> = match wants.policy {
            2 => wants
                .demand
                .iter()
                .enumerate()
                .map(|(i, mib)| ((first + i) % drawn.gpus.len(), *mib))
                .collect(),
            1 => {
                let n = drawn.gpus.len() as u64;
                (0..drawn.gpus.len()).map(|i| (i, wants.demand[0].div_ceil(n))).collect()
            }
            _ => vec![(first % drawn.gpus.len(), wants.demand[0])],
        };
        let parts: Vec<(usize, u64)> = parts
            .iter()
            .filter(|(gpu, _)| parts.iter().filter(|(other, _)| other == gpu).count() == 1)
            .copied()
            .collect();
        let phase = if *phase == 0 { Phase::Ending } else { Phase::Serving };
        machine.claims(text, phase, &[], None);
        machine.claims(text, phase, &parts, Some(parts.first().map_or(0, |(_, mib)| mib * percent / 100)));
        if *home {
            machine.state.home.models.push(name(text));
            machine.state.home.default = Some(name(text));
        }
    }
    machine.state.previous = Some(Home {
        models: drawn.previous.iter().map(|model| name(NAMES[*model])).collect(),
        default: None,
    });
    for (index, (gpu, mib)) in foreign.iter().enumerate() {
        machine.holds(gpu % drawn.gpus.len(), 900 + u32::try_from(index).unwrap(), "foreign", *mib, None);
    }
    machine
}

/// What each GPU would bear, in bytes: with `stopped` gone and `started` there, claims (or what is held, where that
/// is more), foreign processes, the driver's own and the reserve must stay below the total. None: it does not fit.
fn bears(drawn: &Drawn, machine: &Machine, index: usize, stopped: &[ModelName], started: u64) -> bool {
    let id = device(index);
    let mut sum = Bytes::mib(DRIVER + drawn.gpus[index].1).0 + machine.settings.headroom.0 + started;
    for process in machine.facts.gpus()[index].processes.value().unwrap() {
        if process.program == "foreign" {
            sum += process.memory.value().unwrap().0;
        }
    }
    for (model, claim) in machine.state.claims.iter().filter(|(model, _)| !stopped.contains(model)) {
        let claimed: u64 =
            claim.gpus.iter().filter(|part| part.placed.id == id).map(|part| part.placed.bytes.0).sum();
        let held = machine.facts.gpus()[index].processes.value().unwrap();
        let held: u64 = held
            .iter()
            .filter(|process| process.model.as_ref() == Some(model))
            .map(|process| process.memory.value().unwrap().0)
            .sum();
        sum += claimed.max(held);
    }
    sum <= Bytes::mib(drawn.gpus[index].0).0
}

/// Whether the model fits somewhere with these gone, its port included.
fn fits(drawn: &Drawn, machine: &Machine, model: &ModelName, stopped: &[ModelName]) -> bool {
    let declared = &machine.settings.models[model];
    let n = drawn.gpus.len();
    let port_free = machine.state.claims.keys().all(|other| {
        other == model || stopped.contains(other) || machine.settings.models[other].port != declared.port
    });
    let bears_all = |parts: &[(usize, u64)]| {
        parts.iter().all(|(gpu, bytes)| bears(drawn, machine, *gpu, stopped, *bytes))
    };
    port_free
        && match (&declared.memory, declared.policy.spread) {
            // Which GPUs doesn't matter, only that their order is kept.
            (Memory::PerDevice(each), _) => subsets(n).iter().any(|gpus| {
                let parts: Vec<(usize, u64)> = gpus.iter().copied().zip(each.iter().map(|b| b.0)).collect();
                gpus.len() == each.len() && bears_all(&parts)
            }),
            (Memory::Total(total), spread) => subsets(n).iter().any(|gpus| {
                let each = total.0.div_ceil(gpus.len() as u64);
                let parts: Vec<(usize, u64)> = gpus.iter().map(|gpu| (*gpu, each)).collect();
                (spread == Spread::Fewest || gpus.len() == n) && bears_all(&parts)
            }),
            (Memory::Undeclared, _) => false,
        }
}

/// Every set of GPUs but the empty one.
fn subsets(n: usize) -> Vec<Vec<usize>> {
    (1u32..1 << n).map(|bits| (0..n).filter(|gpu| bits >> gpu & 1 == 1).collect()).collect()
}

fn every_request() -> Vec<(Verb, Option<&'static str>)> {
    let mut all = vec![(Verb::Back, None), (Verb::StopAll, None)];
    for model in NAMES {
        all.extend([Verb::Switch, Verb::Start, Verb::Stop, Verb::Restart].map(|verb| (verb, Some(model))));
    }
    all
}

/// No device that gets something new bears more than it has.
fn safe(drawn: &Drawn, machine: &Machine, plan: &Plan) -> Result<(), TestCaseError> {
    for index in 0..drawn.gpus.len() {
        let started: u64 = plan
            .starts
            .iter()
            .flat_map(|start| &start.gpus)
            .filter(|part| part.id == device(index))
            .map(|part| part.bytes.0)
            .sum();
        prop_assert!(
            started == 0 || bears(drawn, machine, index, &plan.stops, started),
            "GPU {index}: {plan:?}"
        );
    }
    Ok(())
}

fn config() -> ProptestConfig {
    let kept = FileFailurePersistence::Direct("proptest-regressions/planner.txt");
    ProptestConfig { cases: 100, failure_persistence: Some(Box::new(kept)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_plan_takes_more_than_there_is(drawn in drawn()) {
        let machine = machine(&drawn, &drawn.foreign);
        for (verb, model) in every_request() {
            let verdict = machine.plan(verb, model);
            prop_assert_eq!(&verdict, &machine.plan(verb, model), "the same facts, the same plan");
            let Verdict::Go(plan) = verdict else { continue };
            safe(&drawn, &machine, &plan)?;
            // What stays and what comes never share a port, nor is anything started that runs.
            for start in &plan.starts {
                prop_assert!(plan.stops.contains(&start.model) || !machine.state.claims.contains_key(&start.model));
                let port = machine.settings.models[&start.model].port;
                let staying = machine.state.claims.keys().filter(|other| !plan.stops.contains(other));
                let others = plan.starts.iter().map(|start| &start.model).chain(staying);
                for other in others.filter(|other| **other != start.model) {
                    prop_assert_ne!(machine.settings.models[other].port, port, "{} and {}", start.model, other);
                }
            }
        }
        let held = HeldBack::default();
        if let Some(plan) = restore(&machine.settings, &machine.facts, &machine.state, &held).plan {
            safe(&drawn, &machine, &plan)?;
        }
    }

    #[test]
    fn victims_are_few_and_starts_have_none(drawn in drawn()) {
        let machine = machine(&drawn, &drawn.foreign);
        for model in NAMES.map(name) {
            if let Verdict::Go(plan) = machine.plan(Verb::Start, Some(model.as_str())) {
                prop_assert!(plan.stops.is_empty());
            }
            let serving = machine.state.is_serving(&model);
            match machine.plan(Verb::Switch, Some(model.as_str())) {
                Verdict::Go(plan) if !serving => {
                    for subset in 0..(1usize << plan.stops.len()) - 1 {
                        let fewer: Vec<ModelName> = (0..plan.stops.len())
                            .filter(|i| subset >> i & 1 == 1)
                            .map(|i| plan.stops[i].clone())
                            .collect();
                        prop_assert!(!fits(&drawn, &machine, &model, &fewer), "{fewer:?} would do: {plan:?}");
                    }
                    prop_assert!(fits(&drawn, &machine, &model, &plan.stops));
                    prop_assert_eq!(plan.home.default, Some(model.clone()));
                    prop_assert!(plan.home.models.contains(&model));
                }
                Verdict::Refused { refusal, .. } if refusal.code != "memory_held" => {
                    let all: Vec<ModelName> = machine.state.residents().map(|(model, _)| model.clone()).collect();
                    prop_assert!(!fits(&drawn, &machine, &model, &all), "refused, but would fit: {}", refusal.text);
                    prop_assert!(!refusal.text.is_empty());
                }
                _ => {}
            }
        }
    }

    #[test]
    fn less_foreign_use_never_turns_a_yes_into_a_no(drawn in drawn()) {
        let with = machine(&drawn, &drawn.foreign);
        for leaves in 0..drawn.foreign.len() {
            let mut fewer = drawn.foreign.clone();
            fewer.remove(leaves);
            let without = machine(&drawn, &fewer);
            for (verb, model) in every_request() {
                if !matches!(with.plan(verb, model), Verdict::Refused { .. }) {
                    let then = without.plan(verb, model);
                    prop_assert!(!matches!(then, Verdict::Refused { .. }), "{verb:?} {model:?}: {then:?}");
                }
            }
        }
    }
}
