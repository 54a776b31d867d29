//! What a placement may never do, whatever is declared, conceded or remembered.

use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_core::backend;
use berth_core::bytes::Bytes;
use berth_core::facts::{FileFacts, Known, Stamp};
use berth_core::learned::{Learned, Run};
use berth_core::plan::{self, HeldBack, Plan, Start, Verdict};
use berth_core::proxy::Clients;
use berth_core::release::Proofs;
use berth_core::report::{AttemptOutcome, Verb};
use berth_core::shape::Shape;
use berth_core::state::Home;
use berth_core::swap;
use berth_core::upkeep::Upkeep;
use shapes::gguf::Type;
use shapes::models;

use super::ladder::{shape, with};
use crate::story::{Machine, memory, name, settings, settings_with};

fn gemma() -> Shape {
    shape(&models::gemma4_26b(Type::Other(7, 32, 24)))
}

fn small() -> Shape {
    shape(&models::small()[0].1)
}

fn goes(machine: &Machine, verb: Verb, model: &str) -> Plan {
    match machine.plan(verb, Some(model)) {
        Verdict::Go(plan) => plan,
        other => panic!("{other:?}"),
    }
}

fn argv(machine: &Machine, start: &Start) -> String {
    let model = &machine.settings.models[&start.model];
    backend::of(model.backend).launch(model, &start.gpus, &start.layout).argv.join(" ")
}

/// The program of a model is known too.
fn program(machine: &mut Machine, model: &str) {
    let path = machine.settings.models[&name(model)].program.clone();
    let stamp = Known::Value(Stamp { size: 7, modified: 7 });
    machine.facts.files.insert(path, FileFacts { stamp, shape: Known::Unknown("a program".to_owned()) });
}

/// The model ran as `start` says and held so much on its first GPU.
fn ran(machine: &mut Machine, start: &Start, peak: Bytes) {
    let model = &machine.settings.models[&start.model];
    let run = Run::of(model, &machine.facts, start).unwrap();
    let way = Learned {
        run,
        peak: vec![peak],
        resting: vec![peak],
        host: Bytes::ZERO,
        load: [4000].into(),
        release: [].into(),
    };
    machine.state.learned.insert(start.model.clone(), vec![way]);
}

/// What comes back after a reboot, where all of these are home.
fn brought_back(gpus: usize, declared: &[(String, String)]) -> plan::Restoration {
    let declared: Vec<(&str, &str)> =
        declared.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let mut machine = Machine::bare(gpus);
    machine.settings = settings(&declared);
    machine.state.home =
        Home { models: declared.iter().map(|(text, _)| name(text)).collect(), default: None };
    plan::restore(&machine.settings, &machine.facts, &machine.state, &HeldBack::default())
}

/// After a reboot, with more models than a search through all their places could ever end with.
#[test]
fn many_models_of_home_are_brought_back_although_one_fits_nowhere() {
    for (gpus, small) in [(2, 12), (4, 8), (8, 8)] {
        let mut declared: Vec<(String, String)> = (0..small)
            .map(|number| {
                let port = 9100 + number;
                let text =
                    format!("cmd = \"serve\"\nport = {port}\npriority = 1\n[memory]\ngpu = \"1 GiB\"\n");
                (format!("s{number}"), text)
            })
            .collect();
        let big = "cmd = \"serve\"\nport = 9000\n[memory]\ngpu = \"900 GiB\"\n";
        declared.push(("big".to_owned(), big.to_owned()));
        let back = brought_back(gpus, &declared);
        assert_eq!(back.plan.unwrap().starts[0].model, name("s0"));
        assert!(back.refused.contains_key(&name("big")));
    }
}

/// The same where all fit one by one and only together they don't.
#[test]
fn a_search_that_would_not_end_gives_way_to_one_after_the_other() {
    let declared: Vec<(String, String)> = (0..9)
        .map(|number| {
            let port = 9100 + number;
            (format!("m{number}"), format!("cmd = \"serve\"\nport = {port}\n[memory]\ngpu = \"15 GiB\"\n"))
        })
        .collect();
    let back = brought_back(8, &declared);
    assert_eq!(back.plan.unwrap().starts[0].model, name("m0"));
}

/// S20: what vLLM wants free at its start is kept for it, whatever it held when it ran.
#[test]
fn a_peak_below_vllms_share_lowers_no_claim() {
    let declared = [("v", "cmd = \"vllm serve org/m --gpu-memory-utilization 0.90\"\nport = 8027\n")];
    let mut tower = Machine::bare(1);
    tower.settings = settings(&declared);
    program(&mut tower, "v");
    let start = goes(&tower, Verb::Switch, "v").starts[0].clone();
    let share = start.gpus[0].bytes;
    ran(&mut tower, &start, share.less(Bytes::mib(900)));
    assert_eq!(goes(&tower, Verb::Switch, "v").starts[0].gpus[0].bytes, share);
    let short = tower.foreign(0, "x", 1800);
    assert!(matches!(short.plan(Verb::Switch, Some("v")), Verdict::Refused { .. }));
}

#[test]
fn a_concession_never_raises_a_setting() {
    for (declaration, ladder) in [
        ("ctx = 4096\n", "\"ctx 32768\", \"experts\""),
        ("ctx = 4096\nkv = \"q4_0\"\n", "\"kv q8_0\", \"experts\""),
    ] {
        let model = format!("cmd = \"llama-server -m /models/m.gguf\"\npolicy = \"p\"\n{declaration}");
        let policy = format!("ladder = [{ladder}]\n");
        let mut tower = with(Machine::bare(1), &[], "/models/m.gguf", gemma());
        tower.settings = settings_with(&[("m", &model)], &[("p", &policy)]);
        let start = goes(&tower, Verb::Switch, "m").starts[0].clone();
        assert!(!start.layout.cpu_experts.is_empty(), "something is given up: {start:?}");
        let (tuning, wish) = (start.layout.tuning, tower.settings.models[&name("m")].tuning);
        assert_eq!((tuning.ctx, tuning.kv_k, tuning.kv_v), (wish.ctx, wish.kv_k, wish.kv_v));
    }
}

/// A ladder serves models of every backend: what one doesn't know is passed over.
#[test]
fn no_server_is_told_what_it_does_not_know() {
    let ladder = "ladder = [\"kv q8_0\", \"kv q4_0\", \"ctx 16384\"]\n";
    let vllm =
        "cmd = \"vllm serve /models/m.gguf --gpu-memory-utilization 0.9\"\nctx = 262144\npolicy = \"p\"\n";
    let llama = "cmd = \"llama-server -m /models/m.gguf\"\nctx = 262144\npolicy = \"f\"\nport = 9001\n";
    let mut tower = with(Machine::bare(1), &[], "/models/m.gguf", gemma());
    let policies = [("p", ladder), ("f", "ladder = [\"kv fp8\", \"experts\"]\n")];
    tower.settings = settings_with(&[("v", vllm), ("l", llama)], &policies);
    let mut conceded = false;
    for mib in (10_000..40_000).rev().step_by(200) {
        tower.gpu(0).memory = Known::Value(memory(mib, 0, 0));
        for model in ["v", "l"] {
            let Verdict::Go(plan) = tower.plan(Verb::Switch, Some(model)) else { continue };
            let line = argv(&tower, &plan.starts[0]);
            assert!(!line.contains("q8_0") && !line.contains("q4_0") && !line.contains("fp8"), "{line}");
            conceded |= line.contains("--max-model-len 16384");
        }
    }
    assert!(conceded, "vLLM gives up context");
}

#[test]
fn vllm_is_laid_over_as_many_gpus_as_divide_its_heads() {
    assert_eq!(gemma().heads, 16);
    let declared = [
        ("v", "cmd = \"vllm serve /models/v\"\nport = 8027\nctx = 8192\n"),
        ("hub", "cmd = \"vllm serve org/m\"\nport = 8028\n"),
        ("all", "cmd = \"vllm serve /models/v\"\nport = 8029\nctx = 8192\npolicy = \"split\"\n"),
    ];
    let machine = |gpus: usize, mib: u64| {
        let mut machine = with(Machine::bare(gpus), &declared, "/models/v", gemma());
        for gpu in 0..gpus {
            machine.gpu(gpu).memory = Known::Value(memory(mib, 0, 3));
        }
        machine
    };
    let gpus = |machine: &Machine, model| goes(machine, Verb::Switch, model).starts[0].gpus.len();
    // Three would hold it and can't be used; four can.
    assert!(matches!(machine(3, 9_000).plan(Verb::Switch, Some("v")), Verdict::Refused { .. }));
    assert_eq!(gpus(&machine(5, 9_000), "v"), 4);
    assert_eq!((gpus(&machine(3, 24_000), "all"), gpus(&machine(3, 24_000), "hub")), (2, 2));
}

/// What is left of a share becomes cache, so that less room is enough: nobody has to go for it.
#[test]
fn a_switch_stops_nobody_beside_whom_a_start_finds_room() {
    let declared = [
        ("v", "cmd = \"vllm serve /models/v\"\nport = 8027\nctx = 2048\n"),
        ("small", "cmd = \"serve\"\nport = 8001\n[memory]\ngpu = \"3 GiB\"\n"),
    ];
    let one = with(Machine::bare(1), &declared, "/models/v", small()).serves("small", &[(0, 3072)]);
    let (start, switch) = (goes(&one, Verb::Start, "v"), goes(&one, Verb::Switch, "v"));
    assert_eq!((start.stops, start.starts), (switch.stops, switch.starts));
}

/// Weights that stay on the host are counted there also where the GPU's part is declared.
#[test]
fn a_declared_gpu_leaves_the_host_counted() {
    let file = |port: u16| {
        format!("cmd = \"llama-server -m /models/s.gguf -ngl 5\"\nport = {port}\n[memory]\ngpu = \"4 GiB\"\n")
    };
    let declared = [("a", file(9001)), ("b", file(9002))];
    let declared: Vec<(&str, &str)> = declared.iter().map(|(name, text)| (*name, text.as_str())).collect();
    let tower = with(Machine::bare(2), &declared, "/models/s.gguf", gemma());
    let first = goes(&tower, Verb::Switch, "a");
    assert!(first.starts[0].layout.host > Bytes::mib(14 * 1024), "{:?}", first.starts[0].layout);
    let mut tower = tower.serves("a", &[(0, 4096)]);
    tower.state.claims.get_mut(&name("a")).unwrap().layout = first.starts[0].layout.clone();
    let Verdict::Refused { refusal, .. } = tower.plan(Verb::Start, Some("b")) else { panic!("both at once") };
    assert!(refusal.text.contains("short in the host's memory"), "{}", refusal.text);
}

/// Nothing is known of another program: what it takes of the host has to be declared as on a GPU.
#[test]
fn a_command_on_the_host_says_what_it_takes() {
    let declared = [("c", "cmd = \"serve\"\npolicy = \"cpu\"\nport = 9001\n")];
    let mut host = Machine::bare(0);
    host.settings = settings(&declared);
    let Verdict::Refused { refusal, .. } = host.plan(Verb::Switch, Some("c")) else {
        panic!("unknown is not zero")
    };
    assert_eq!(refusal.code, "memory_undeclared");
    assert!(refusal.hints[0].contains("host = "), "{:?}", refusal.hints);
}

/// What would fit is weighed by what it would take, not by what more of it took.
#[test]
fn advice_stays_once_a_model_has_run() {
    let declared = [("m", "cmd = \"llama-server -m /models/m.gguf\"\nctx = 262144\n")];
    let mut tower = with(Machine::bare(1), &declared, "/models/m.gguf", small());
    program(&mut tower, "m");
    let start = goes(&tower, Verb::Switch, "m").starts[0].clone();
    let peak = start.gpus[0].bytes;
    tower.gpu(0).memory = Known::Value(memory((peak.0 >> 20) + 256 - 40, 0, 0));
    let hints = |machine: &Machine| match machine.plan(Verb::Switch, Some("m")) {
        Verdict::Refused { refusal, .. } => refusal.hints,
        other => panic!("{other:?}"),
    };
    let before = hints(&tower);
    assert!(before.iter().any(|hint| hint.contains("--set kv=q8_0")), "{before:?}");
    ran(&mut tower, &start, peak);
    assert_eq!(hints(&tower), before);
}

/// What a model holds is filed under what it was started with.
#[test]
fn what_is_learned_belongs_to_the_run_and_not_to_what_is_declared_now() {
    let long = [("m", "cmd = \"llama-server -m /models/m.gguf\"\nctx = 262144\n")];
    let short = [("m", "cmd = \"llama-server -m /models/m.gguf\"\nctx = 4096\n")];
    let mut tower = with(Machine::bare(1), &long, "/models/m.gguf", small());
    program(&mut tower, "m");
    let start = goes(&tower, Verb::Switch, "m").starts[0].clone();
    let mib = start.gpus[0].bytes.0 >> 20;
    tower = tower.serves("m", &[(0, mib)]);
    let run = Run::of(&tower.settings.models[&name("m")], &tower.facts, &start);
    let claim = tower.state.claims.get_mut(&name("m")).unwrap();
    (claim.layout, claim.run) = (start.layout.clone(), run);
    // The file is changed under it, and berthd restarted.
    tower.settings = settings(&short);
    assert!(berth_core::learned::note(&tower.facts, &mut tower.state));
    let ways = &tower.state.learned[&name("m")];
    assert_eq!(ways.len(), 1);
    assert_eq!(ways[0].run.layout.tuning.ctx, Some(262_144));
}

/// A projector that is replaced makes it another model, and a file that can't be looked at is no file that is known.
#[test]
fn every_file_of_a_model_counts() {
    let declared = [("m", "cmd = \"llama-server -m /models/m.gguf --mmproj /models/p.gguf\"\nctx = 8192\n")];
    let mut tower = with(Machine::bare(1), &declared, "/models/m.gguf", small());
    program(&mut tower, "m");
    let projector = PathBuf::from("/models/p.gguf");
    let of = |bytes: u64| FileFacts {
        stamp: Known::Value(Stamp { size: bytes, modified: bytes }),
        shape: tower_shape(),
    };
    tower.facts.files.insert(projector.clone(), of(1));
    let start = goes(&tower, Verb::Switch, "m").starts[0].clone();
    let estimated = start.gpus[0].bytes;
    let learned = estimated.less(Bytes::mib(100));
    ran(&mut tower, &start, learned);
    let now = |machine: &Machine| goes(machine, Verb::Switch, "m").starts[0].gpus[0].bytes;
    assert_eq!(now(&tower), learned);
    tower.facts.files.insert(projector, of(2));
    assert_eq!(now(&tower), estimated);
    for unknown in ["/models/m.gguf", "llama-server"] {
        let mut tower = tower.clone();
        let facts = tower.facts.files.get_mut(Path::new(unknown)).unwrap();
        facts.stamp = Known::Unknown("it does not answer".to_owned());
        let model = &tower.settings.models[&name("m")];
        assert_eq!(Run::of(model, &tower.facts, &start), None, "{unknown}");
        assert_eq!(now(&tower), estimated);
    }
}

fn tower_shape() -> Known<std::sync::Arc<Shape>> {
    Known::Value(std::sync::Arc::new(small()))
}

/// The last way that is shown is the one that is taken, also where an earlier one had room.
#[test]
fn the_last_way_that_is_shown_is_the_one_that_is_taken() {
    // `pair` of home comes back to GPU 0 alone, so `m` goes to GPU 1 although GPU 0 has room for it.
    let declared = [
        ("m", "cmd = \"llama-server -m /models/m.gguf\"\nctx = 8192\nport = 9001\n"),
        ("first", "cmd = \"serve\"\nport = 9002\npolicy = \"zero\"\n[memory]\ngpu = \"15 GiB\"\n"),
    ];
    let mut tower = with(Machine::bare(2), &[], "/models/m.gguf", small());
    tower.settings = settings_with(&declared, &[("zero", "devices = 0\n")]);
    tower.state.home = Home { models: vec![name("first")], default: Some(name("first")) };
    let verdict = tower.plan(Verb::Start, Some("m"));
    let Verdict::Go(plan) = &verdict else { panic!("{verdict:?}") };
    assert_eq!(plan.starts[0].gpus[0].index, 1);
    let request = Machine::request(Verb::Start, Some("m"));
    let report = plan::report(&tower.settings, &tower.facts, &tower.state, &request, &verdict);
    let last = report.tried.last().unwrap();
    assert_eq!((last.way.as_str(), last.devices[0].gpu), ("whole on GPU 1", Some(1)));
    assert!(matches!(last.outcome, AttemptOutcome::Fits { .. }));
}

/// Settings that were tried and then written into the file still lead to what serves under their name.
#[test]
fn settings_that_became_the_declaration_keep_their_model() {
    let declared = settings(&[("g", "cmd = \"llama-server -m /m\"\nctx = 16384\n")]);
    let tried = name("g:ctx=16384");
    assert_eq!(declared.model(&tried).map(|model| model.name.clone()), Some(tried.clone()));
    assert!(declared.with_unnamed([&tried]).models.contains_key(&tried));
}

/// A server that takes a share of the GPU and somewhat more: where the share was all that there was, it takes a smaller one the
/// next time, and is not refused the place that it has.
#[test]
fn what_a_share_is_exceeded_by_makes_the_next_share_smaller() {
    let declared = [
        ("m", "cmd = \"vllm serve /models/m --max-model-len 4096\"\nport = 9001\n"),
        ("other", "cmd = \"serve\"\nport = 9002\n[memory]\ngpu = \"6 GiB\"\n"),
    ];
    let mut tower = with(Machine::bare(1), &declared, "/models/m", small()).serves("other", &[(0, 6144)]);
    program(&mut tower, "m");
    let share = |start: &Start| start.layout.tuning.utilization.unwrap();
    let first = goes(&tower, Verb::Start, "m").starts[0].clone();
    assert!((40..70).contains(&share(&first)), "{first:?}");
    for (beyond, smaller) in [(2, 0), (400, 2)] {
        let mut tower = tower.clone();
        ran(&mut tower, &first, first.gpus[0].bytes.plus(Bytes::mib(beyond)));
        let again = goes(&tower, Verb::Start, "m").starts[0].clone();
        assert_eq!(share(&first) - share(&again), smaller, "{beyond}: {again:?}");
        // What it exceeds its share by is kept for it, too.
        let taken = Bytes((15_923 << 20) * u64::from(share(&again)) / 100);
        assert!(again.gpus[0].bytes >= taken.plus(Bytes::mib(beyond)), "{beyond}: {again:?}");
    }
}

/// What was learned on one GPU needs less there than its estimate elsewhere: nobody has to go for the rest.
#[test]
fn where_it_is_known_to_take_less_nobody_has_to_go() {
    let declared = [
        ("m", "cmd = \"llama-server -m /models/m.gguf\"\nctx = 262144\nport = 8027\n"),
        ("victim", "cmd = \"serve\"\nport = 8001\n[memory]\ngpu = \"8 GiB\"\n"),
    ];
    let mut tower = with(Machine::bare(2), &declared, "/models/m.gguf", small());
    program(&mut tower, "m");
    "another card".clone_into(&mut tower.gpu(0).name);
    tower.gpu(0).memory = Known::Value(memory(100, 0, 0));
    let start = goes(&tower, Verb::Switch, "m").starts[0].clone();
    let estimated = start.gpus[0].bytes.0 >> 20;
    let learned = estimated * 9 / 10;
    ran(&mut tower, &start, Bytes::mib(learned));
    // Without the victim there is room on the first card for what is estimated there.
    tower.gpu(0).memory = Known::Value(memory(estimated + 8192, 0, 0));
    tower.gpu(1).memory = Known::Value(memory(learned + 300, 0, 0));
    let tower = tower.serves("victim", &[(0, 8192)]);
    let switch = goes(&tower, Verb::Switch, "m");
    assert_eq!((switch.stops.clone(), switch.starts[0].gpus[0].index), (vec![], 1), "{switch:?}");
}

/// Files that a model was started with are all that is known of it after the ledger is lost.
#[test]
fn what_is_found_running_on_the_host_counts_there() {
    let declared = [
        ("file", "cmd = \"llama-server -m /models/m.gguf\"\npolicy = \"cpu\"\nport = 8027\n"),
        ("said", "cmd = \"serve\"\npolicy = \"cpu\"\nport = 8001\n[memory]\nhost = \"3 GiB\"\n"),
        ("gpu", "cmd = \"llama-server -m /models/m.gguf\"\nport = 8002\n[memory]\ngpu = \"3 GiB\"\n"),
    ];
    let mut tower = with(Machine::bare(1), &declared, "/models/m.gguf", small());
    let size = tower.facts.files[Path::new("/models/m.gguf")].stamp.value().unwrap().size;
    for (model, held) in [("file", vec![]), ("said", vec![]), ("gpu", vec![(0, 3072)])] {
        tower = tower.serves(model, &held);
    }
    tower.state.claims.clear();
    let mut world = swap::World {
        settings: &tower.settings,
        facts: &tower.facts,
        state: &mut tower.state,
        proofs: &mut Proofs::default(),
        clients: &Clients::new(),
        now: Duration::from_secs(60),
        now_ms: 60_000,
    };
    Upkeep::default().observe(&mut world, false);
    let host = |model: &str| tower.state.claims[&name(model)].layout.host;
    assert_eq!((host("file"), host("said"), host("gpu")), (Bytes(size), Bytes::mib(3072), Bytes::ZERO));
}
