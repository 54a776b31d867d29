//! Models of the story on its machines, placed from the headers of their files: what is tried, rung by rung, what is
//! taken, and the command line that comes of it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use berth_core::backend;
use berth_core::bytes::Bytes;
use berth_core::facts::{Brought, FileFacts, HostMemory, Known, Stamp};
use berth_core::layout::Layout;
use berth_core::plan::{self, Verdict};
use berth_core::report::{AttemptOutcome, Verb};
use berth_core::shape::Shape;
use berth_core::{gguf, safetensors};
use insta::assert_snapshot;
use proptest::prelude::*;
use shapes::gguf::{Gguf, Type};
use shapes::models;

use crate::story::{Machine, memory, name, settings, settings_with};

pub(crate) fn shape(file: &Gguf) -> Shape {
    let header = file.header();
    let read = gguf::read(&mut header.as_slice(), file.length()).unwrap();
    gguf::shape(vec![read]).unwrap()
}

/// The machine with these models alone, the file of the first one as its header tells.
pub(crate) fn with(mut machine: Machine, declared: &[(&str, &str)], path: &str, shape: Shape) -> Machine {
    machine.settings = settings(declared);
    let stamp = Known::Value(Stamp { size: shape.weights().0, modified: 1 });
    let facts = FileFacts { stamp, shape: Known::Value(Arc::new(shape)) };
    machine.facts.files.insert(PathBuf::from(path), facts);
    machine
}

fn told(machine: &Machine, model: &str) -> String {
    let verdict = machine.plan(Verb::Switch, Some(model));
    let request = Machine::request(Verb::Switch, Some(model));
    let report = plan::report(&machine.settings, &machine.facts, &machine.state, &request, &verdict);
    let mut out = String::new();
    for tried in &report.tried {
        let outcome = match &tried.outcome {
            AttemptOutcome::Fits { spare } => format!("fits, {spare} to spare"),
            AttemptOutcome::Short { text, .. } | AttemptOutcome::Unknown { text } => text.clone(),
        };
        writeln!(out, "{}: {outcome}", tried.way).unwrap();
        for device in &tried.devices {
            let place = device.gpu.map_or("host".to_owned(), |index| format!("GPU {index}"));
            let available = device.available.map_or("?".to_owned(), |bytes| (bytes.0 >> 20).to_string());
            write!(out, "    {place}: {} of {available} MiB", device.needs.0 >> 20).unwrap();
            for part in &device.parts.0 {
                write!(out, ", {:?} {} ({:?})", part.what, part.bytes.0 >> 20, part.source).unwrap();
            }
            out.push('\n');
        }
    }
    match &verdict {
        Verdict::Go(plan) => {
            let start = plan.starts.last().unwrap();
            let model = &machine.settings.models[&start.model];
            let launch = backend::of(model.backend).launch(model, &start.gpus, &start.layout);
            writeln!(out, "stops {:?}\nruns {}", plan.stops, launch.argv.join(" ")).unwrap();
            writeln!(out, "sees {}", launch.env["CUDA_VISIBLE_DEVICES"]).unwrap();
        }
        Verdict::Nothing(text) => writeln!(out, "nothing to do: {text}").unwrap(),
        Verdict::Refused { refusal, .. } => {
            writeln!(out, "refused ({}): {}", refusal.code, refusal.text).unwrap();
            refusal.hints.iter().for_each(|hint| writeln!(out, "    try: {hint}").unwrap());
        }
    }
    out
}

const SUPERGEMMA: &[(&str, &str)] =
    &[("supergemma", "cmd = \"llama-server -m /models/s.gguf -ub 1024\"\nctx = 32768\nport = 8024\n")];

/// The one declaration, on a tower with so many cards of which each has 15,223 MiB free.
fn supergemma(gpus: usize) -> Machine {
    let mut tower = Machine::bare(gpus);
    for gpu in 0..gpus {
        tower.gpu(gpu).memory = Known::Value(memory(16_311, 388, 700));
    }
    with(tower, SUPERGEMMA, "/models/s.gguf", shape(&models::gemma4_26b(Type::Other(3, 32, 20))))
}

#[test]
fn the_fewest_expert_layers_stay_on_the_cpu_of_a_machine_with_one_card() {
    assert_snapshot!(told(&supergemma(1), "supergemma"));
}

#[test]
fn the_same_declaration_uses_a_second_card() {
    assert_snapshot!(told(&supergemma(2), "supergemma"));
}

/// The quantized MLP layers, the rest at 16 bits: 30.6 GB in one file.
fn nvfp4() -> Shape {
    let config = r#"{"model_type":"gemma4","num_hidden_layers":30,"hidden_size":2816,"num_attention_heads":16,
        "num_key_value_heads":8,"head_dim":256,"vocab_size":262144,"max_position_embeddings":131072,
        "intermediate_size":2112,"sliding_window":1024}"#;
    let names: Vec<String> = (0..30).map(|layer| format!("model.layers.{layer}.mlp.weight")).collect();
    let tensors: Vec<shapes::safetensors::Tensor<'_>> =
        names.iter().map(|name| (name.as_str(), "U8", 8, &[1_020_000_000_u64][..])).collect();
    let (header, length) = shapes::safetensors::header(&tensors);
    let file = safetensors::read(&mut header.as_slice(), length).unwrap();
    safetensors::shape(config.as_bytes(), vec![file]).unwrap()
}

#[test]
fn a_model_that_leaves_no_room_for_its_cache_is_refused_before_anything_stops() {
    let declared: &[(&str, &str)] = &[
        ("gemma-nvfp4", "cmd = \"vllm serve /models/g\"\npolicy = \"split\"\nport = 8027\n"),
        ("aeon", "cmd = \"vllm serve /models/aeon -tp 2\"\npolicy = \"split\"\nport = 8023\n"),
    ];
    let tower = with(Machine::tower(2), declared, "/models/g", nvfp4());
    let tower = tower.serves("aeon", &[(0, 14_331), (1, 14_331)]);
    assert_snapshot!(told(&tower, "gemma-nvfp4"));
}

/// The beelink: 32 GB of memory, of which a desktop has some, no GPU.
fn beelink(declaration: &str) -> Machine {
    let mut beelink = Machine::bare(0);
    beelink.facts.host.memory = Known::Value(HostMemory {
        read_at: beelink.facts.at,
        total: Bytes::mib(31_800),
        available: Bytes::mib(21_500),
    });
    let declared = [("supergemma", declaration)];
    with(beelink, &declared, "/models/s.gguf", shape(&models::gemma4_26b(Type::Other(7, 32, 24))))
}

#[test]
fn a_context_of_32k_needs_quantized_kv_on_a_small_host() {
    let wishes = "cmd = \"llama-server -m /models/s.gguf\"\nctx = 32768\npolicy = \"cpu\"\n";
    let flags = "cmd = \"llama-server -m /models/s.gguf -c 32768 -ctk f16 -ctv f16\"\npolicy = \"cpu\"\n";
    let mut out = told(&beelink(wishes), "supergemma");
    out.push_str("--- with f16 by the user's own flags\n");
    out += &told(&beelink(flags), "supergemma");
    assert_snapshot!(out);
}

/// Lets it have run as it is planned, and have held so much then. Gives what was planned.
fn ran(tower: &mut Machine, held: impl Fn(Bytes) -> Bytes) -> (Bytes, Layout) {
    let Verdict::Go(plan) = tower.plan(Verb::Switch, Some("supergemma")) else { panic!("it fits") };
    let start = plan.starts[0].clone();
    let program = tower.settings.models[&name("supergemma")].program.clone();
    let stamp = Known::Value(Stamp { size: 7, modified: 7 });
    tower.facts.files.insert(program, FileFacts { stamp, shape: Known::Unknown("a program".to_owned()) });
    let model = &tower.settings.models[&name("supergemma")];
    let run = berth_core::learned::Run::of(model, &tower.facts, &start).unwrap();
    let peak = vec![held(start.gpus[0].bytes)];
    let learned = berth_core::learned::Learned {
        run,
        resting: peak.clone(),
        peak,
        host: Bytes::ZERO,
        load: [4000].into(),
        release: [].into(),
    };
    tower.state.learned.insert(name("supergemma"), vec![learned]);
    (start.gpus[0].bytes, start.layout)
}

/// What is planned for it.
fn again(tower: &Machine) -> (Bytes, Layout) {
    let Verdict::Go(plan) = tower.plan(Verb::Switch, Some("supergemma")) else { panic!("it fits") };
    (plan.starts[0].gpus[0].bytes, plan.starts[0].layout.clone())
}

#[test]
fn what_an_image_took_is_sure_only_where_it_is_the_same() {
    let in_image = |options: &str, image: &str| {
        let text = format!(
            "cmd = \"podman run --network=host -v /models:/models {options} {image} -m /models/s.gguf -ub 1024\"\n\
             ctx = 32768\nport = 8024\n"
        );
        settings_with(&[("supergemma", &text)], &[])
    };
    let tagged = "ghcr.io/ggml-org/llama.cpp:server-cuda";
    let (less, more) = (|bytes: Bytes| bytes.less(Bytes::mib(111)), |bytes: Bytes| bytes.plus(Bytes::mib(7)));
    let mut tower = supergemma(1);
    tower.settings = in_image("", &format!("{tagged}@sha256:0123"));
    let (estimated, layout) = ran(&mut tower, less);
    assert_eq!(again(&tower), (less(estimated), layout));
    // Other options are another run.
    tower.settings = in_image("--shm-size=1g", &format!("{tagged}@sha256:0123"));
    assert_eq!(again(&tower).0, estimated);
    // The tag may lead to another image by now.
    tower.settings = in_image("", tagged);
    let (estimated, layout) = ran(&mut tower, less);
    assert_eq!(again(&tower), (estimated, layout));
    _ = ran(&mut tower, more);
    assert_eq!(again(&tower).0, more(estimated));
}

#[test]
fn what_was_learned_takes_the_place_of_estimates() {
    let mut tower = supergemma(1);
    let (estimated, layout) = ran(&mut tower, |estimated| estimated.less(Bytes::mib(111)));
    assert_eq!(again(&tower), (estimated.less(Bytes::mib(111)), layout.clone()));
    // What died while it loaded tells nothing of what it needs.
    let way = tower.state.learned.get_mut(&name("supergemma")).unwrap();
    way[0].load.clear();
    assert_eq!(again(&tower), (estimated, layout.clone()));
    tower.state.learned.get_mut(&name("supergemma")).unwrap()[0].load.push_back(4000);
    // Another version of the file is another model.
    let file = tower.facts.files.get_mut(&PathBuf::from("/models/s.gguf")).unwrap();
    file.stamp = Known::Value(Stamp { size: 1, modified: 2 });
    assert_eq!(again(&tower), (estimated, layout));
}

/// A tower whose cards have this much free, with one of the models that the fixtures have.
fn drawn(model: usize, ctx: u64, free: &[u64], ladder: &[&str]) -> Machine {
    let files = models::small();
    let (_, file) = &files[model % files.len()];
    let mut tower = Machine::bare(free.len());
    for (gpu, mib) in free.iter().enumerate() {
        tower.gpu(gpu).memory = Known::Value(memory(mib + 300, 44, 0));
    }
    let words: Vec<String> = ladder.iter().map(|word| format!("\"{word}\"")).collect();
    let policy = format!("ladder = [{}]\n", words.join(", "));
    let declared = format!("cmd = \"llama-server -m /models/m.gguf\"\npolicy = \"drawn\"\nctx = {ctx}\n");
    let mut tower = with(tower, &[], "/models/m.gguf", shape(file));
    tower.settings = settings_with(&[("m", &declared)], &[("drawn", &policy)]);
    tower
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_placement_exceeds_a_device_and_more_room_is_never_worse(
        model in 0usize..10,
        ctx in prop::sample::select(vec![2048u64, 32_768, 262_144]),
        free in prop::collection::vec(300u64..1500, 1..4),
        more in prop::collection::vec(0u64..400, 3),
        rungs in 0usize..5,
    ) {
        let ladder = &["experts", "kv q8_0", "ctx 2048", "layers"][..rungs];
        let tower = drawn(model, ctx, &free, ladder);
        let first = tower.plan(Verb::Switch, Some("m"));
        prop_assert_eq!(&first, &tower.plan(Verb::Switch, Some("m")), "the same facts, the same plan");
        // What a foreign process held is free now.
        let roomier: Vec<u64> = free.iter().zip(&more).map(|(free, more)| free + more).collect();
        let second = drawn(model, ctx, &roomier, ladder).plan(Verb::Switch, Some("m"));
        let conceded = |verdict: &Verdict| match verdict {
            Verdict::Go(plan) => {
                let layout = &plan.starts[0].layout;
                Some((layout.tuning.ctx, layout.tuning.kv_k, layout.cpu_experts.len()))
            }
            _ => None,
        };
        if let Verdict::Go(plan) = &first {
            for part in &plan.starts[0].gpus {
                // 256 MiB are the headroom, which `free` has beside it.
                prop_assert!(part.bytes <= Bytes::mib(free[part.index as usize]), "{plan:?}");
            }
            let (before, after) = (conceded(&first).unwrap(), conceded(&second));
            prop_assert!(after.is_some(), "with less foreign use it is refused: {second:?}");
            let after = after.unwrap();
            prop_assert!(after.0 >= before.0 && (after.1 == before.1 || after.1.is_none()), "{before:?} {after:?}");
        }
    }
}

#[test]
fn two_models_of_18_gib_are_never_both_on_a_host_of_32_gb() {
    let file = |port: u16| {
        format!("cmd = \"serve\"\npolicy = \"cpu\"\nport = {port}\n[memory]\nhost = \"18 GiB\"\n")
    };
    let mut beelink = Machine::bare(0);
    beelink.settings = settings(&[("a", &file(9001)), ("b", &file(9002))]);
    let Verdict::Go(first) = beelink.plan(Verb::Switch, Some("a")) else { panic!("it fits") };
    beelink = beelink.serves("a", &[]);
    beelink.state.claims.get_mut(&name("a")).unwrap().layout = first.starts[0].layout.clone();
    // Mapped weights leave what the kernel calls available as it is; locked ones don't.
    for locked in [0, 18 * 1024] {
        if let Known::Value(memory) = &mut beelink.facts.host.memory {
            memory.available = memory.available.less(Bytes::mib(locked));
        }
        let unit = beelink.facts.units.get_mut(&name("a")).unwrap();
        unit.brought = Known::Value(Brought { pinned: Bytes::mib(locked), ..Brought::default() });
        let Verdict::Refused { refusal, .. } = beelink.plan(Verb::Start, Some("b")) else {
            panic!("both at once, {locked} MiB locked")
        };
        assert!(refusal.text.contains("short in the host's memory: it needs 18.0 GiB"), "{}", refusal.text);
        let Verdict::Go(switch) = beelink.plan(Verb::Switch, Some("b")) else {
            panic!("one after the other")
        };
        assert_eq!(switch.stops, [name("a")]);
    }
}

#[test]
fn no_gpu_is_left_empty_beside_experts_on_the_cpu() {
    let mut tower = supergemma(2);
    for gpu in 0..2 {
        tower.gpu(gpu).memory = Known::Value(memory(8_192, 388, 3));
    }
    let Verdict::Go(plan) = tower.plan(Verb::Switch, Some("supergemma")) else { panic!("it fits") };
    let start = &plan.starts[0];
    assert_eq!(start.gpus.len(), 2, "{start:?}");
    assert!(!start.layout.cpu_experts.is_empty(), "{start:?}");
}

#[test]
fn an_exclusive_model_shares_its_gpu_with_nobody() {
    let file = |policy: &str, port: u16| {
        format!("cmd = \"serve\"\npolicy = \"{policy}\"\nport = {port}\n[memory]\ngpu = \"4 GiB\"\n")
    };
    let declared = [("alone", file("exclusive", 9001)), ("small", file("auto", 9002))];
    let declared: Vec<(&str, &str)> = declared.iter().map(|(name, text)| (*name, text.as_str())).collect();
    for (there, asked) in [("small", "alone"), ("alone", "small")] {
        let mut one = Machine::bare(1);
        one.settings = settings(&declared);
        let one = one.serves(there, &[(0, 4096)]);
        let Verdict::Refused { refusal, .. } = one.plan(Verb::Start, Some(asked)) else {
            panic!("beside it")
        };
        assert!(
            refusal.text.contains(&format!("{there} is on GPU 0, and they don't share")),
            "{}",
            refusal.text
        );
        let Verdict::Go(plan) = one.plan(Verb::Switch, Some(asked)) else { panic!("in its place") };
        assert_eq!(plan.stops, [name(there)]);
    }
}
