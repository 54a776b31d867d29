//! llama.cpp's `llama-server`.

mod lay_out;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;

use super::arguments::{has, switch};
use super::failure::COMMON;
use super::settings::{flags, positive, same, truth};
use super::{
    Advice, Ask, Backend, FailureClass, GenerateProbe, Given, Kind, Launch, LayOut, PlacedGpu, Placing,
    Readiness, Setting, Spelling, Spellings, Text, add_address, by_uuid, declared_launch, flag,
};
use crate::config::Model;
use crate::cpus;
use crate::demand::llama_cpp::Run;
use crate::facts::FileFacts;
use crate::layout::Layout;
use crate::tuning::{KvType, MOST_LAYERS, Tuning};

pub(super) struct LlamaCpp;

static SPELLINGS: Spellings = Spellings {
    host: Spelling { flags: &["--host"], variable: Some("LLAMA_ARG_HOST") },
    port: Spelling { flags: &["--port"], variable: Some("LLAMA_ARG_PORT") },
    model: Spelling { flags: &["-m", "--model"], variable: Some("LLAMA_ARG_MODEL") },
};

static SETTINGS: [Setting; 9] = [
    value("ctx", &["-c", "--ctx-size"], "LLAMA_ARG_CTX_SIZE", positive),
    value("kv_k", &["-ctk", "--cache-type-k"], "LLAMA_ARG_CACHE_TYPE_K", kv_type),
    value("kv_v", &["-ctv", "--cache-type-v"], "LLAMA_ARG_CACHE_TYPE_V", kv_type),
    value("slots", &["-np", "--parallel"], "LLAMA_ARG_N_PARALLEL", positive),
    Setting {
        switches: Some((&["-kvu", "--kv-unified"], &["-no-kvu", "--no-kv-unified"])),
        ..value("unified", &[], "LLAMA_ARG_KV_UNIFIED", truth)
    },
    value("ubatch", &["-ub", "--ubatch-size"], "LLAMA_ARG_UBATCH", positive),
    value("gpu_layers", &["-ngl", "--gpu-layers", "--n-gpu-layers"], "LLAMA_ARG_N_GPU_LAYERS", layers),
    // The server counts from the first layer, which is no number of the last ones.
    Setting {
        switches: Some((&["-cmoe", "--cpu-moe"], &[])),
        ..value("cpu_experts", &["-ncmoe", "--n-cpu-moe"], "LLAMA_ARG_N_CPU_MOE", |_| None)
    },
    value("threads", &["-t", "--threads"], "LLAMA_ARG_THREADS", positive),
];

const fn value(
    key: &'static str,
    flags: &'static [&'static str],
    variable: &'static str,
    read: fn(&str) -> Option<String>,
) -> Setting {
    Setting { key, spelling: Spelling { flags, variable: Some(variable) }, switches: None, read, write: same }
}

fn kv_type(text: &str) -> Option<String> {
    text.parse::<KvType>().ok().filter(|kind| *kind != KvType::Fp8).map(|kind| kind.to_string())
}

/// Layers on GPUs; -1 and `auto` leave it to the server.
fn layers(text: &str) -> Option<String> {
    match text {
        "all" => Some(MOST_LAYERS.to_string()),
        number => Some(number.parse::<u64>().ok()?.min(MOST_LAYERS.into()).to_string()),
    }
}

/// What says where tensors go, besides the settings.
static TENSOR_SPLIT: Spelling =
    Spelling { flags: &["-ts", "--tensor-split"], variable: Some("LLAMA_ARG_TENSOR_SPLIT") };
static FIT: Spelling = Spelling { flags: &["-fit", "--fit"], variable: Some("LLAMA_ARG_FIT") };
static CPU_SET: Spelling = Spelling { flags: &["-C", "--cpu-mask", "-Cr", "--cpu-range"], variable: None };
static MLOCK: Spelling = Spelling { flags: &[], variable: Some("LLAMA_ARG_MLOCK") };
static FLASH_ATTENTION: Spelling =
    Spelling { flags: &["-fa", "--flash-attn"], variable: Some("LLAMA_ARG_FLASH_ATTN") };
static PRIORITY: Spelling = Spelling { flags: &["--prio", "--prio-batch"], variable: None };
const OVERRIDES: &[&str] = &["-ot", "--override-tensor"];

static PLACING: Placing = Placing {
    flags: &[
        "-ngl",
        "--gpu-layers",
        "--n-gpu-layers",
        "-ncmoe",
        "--n-cpu-moe",
        "-ot",
        "--override-tensor",
        "-ts",
        "--tensor-split",
        "-sm",
        "--split-mode",
        "-mg",
        "--main-gpu",
        "-dev",
        "--device",
        "-fit",
        "--fit",
    ],
    switches: &["-cmoe", "--cpu-moe"],
    variables: &[
        "CUDA_DEVICE_ORDER",
        "CUDA_VISIBLE_DEVICES",
        "LLAMA_ARG_CPU_MOE",
        "LLAMA_ARG_DEVICE",
        "LLAMA_ARG_FIT",
        "LLAMA_ARG_MAIN_GPU",
        "LLAMA_ARG_N_CPU_MOE",
        "LLAMA_ARG_N_GPU_LAYERS",
        "LLAMA_ARG_OVERRIDE_TENSOR",
        "LLAMA_ARG_SPLIT_MODE",
        "LLAMA_ARG_TENSOR_SPLIT",
    ],
};

/// The argument that puts experts elsewhere by the names of their tensors, the last one.
fn override_of_experts(args: &[String]) -> Option<Given> {
    (0..=args.len())
        .rev()
        .find_map(|end| flag(&args[..end], OVERRIDES).filter(|given| given.text.contains("exps")))
}

/// The pattern that keeps the experts of these layers in the host's memory, as the server writes it for a count.
fn experts_on_cpu(layers: &[u32]) -> String {
    let layers: Vec<String> = layers.iter().map(u32::to_string).collect();
    format!(r"blk\.({})\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU", layers.join("|"))
}

/// Flags that name a model elsewhere than in a file.
const HUB: &[&str] = &["-hf", "-hfr", "--hf-repo"];

/// Flags that make the server answer with vectors or scores instead of text.
const NO_TEXT: &[&str] = &["--embedding", "--embeddings", "--rerank", "--reranking"];

pub(super) const TEXTS: &[Text] = &[
    Text::cause(FailureClass::OutOfMemory, &["cudamalloc failed: out of memory"]),
    Text::cause(FailureClass::OutOfMemory, &["failed to allocate", "buffer of size"]),
    Text::cause(FailureClass::OutOfMemory, &["unable to allocate", "buffer"]),
    Text::cause(FailureClass::OutOfMemory, &["failed to allocate buffer for kv cache"]),
    Text::cause(FailureClass::OutOfMemory, &["failed to allocate compute pp buffers"]),
    Text::cause(FailureClass::BadModelFile, &["unknown model architecture"]),
    Text::cause(FailureClass::BadModelFile, &["data is not within the file bounds"]),
    Text::cause(FailureClass::BadModelFile, &["invalid magic characters"]),
    Text::cause(FailureClass::PortTaken, &["couldn't bind http server socket"]),
    // Pipelining keeps four copies of the inputs; where they don't fit, the server does without.
    Text { kind: Kind::Retries, parts: &["retrying without pipeline parallelism"] },
    Text { kind: Kind::Wrapper, parts: &["exiting due to model loading error"] },
];

/// What stands before every path of the server.
fn prefix(args: &[String]) -> String {
    flag(args, &["--api-prefix"]).map(|given| given.text.trim_end_matches('/').to_owned()).unwrap_or_default()
}

impl Backend for LlamaCpp {
    fn launch(&self, model: &Model, gpus: &[PlacedGpu], layout: &Layout) -> Launch {
        let mut launch = declared_launch(model, gpus, layout, by_uuid);
        if let Some(file) = &model.file
            && self.names_model(&model.args, &model.env).is_none()
        {
            launch.argv.extend(["--model".to_owned(), file.to_string_lossy().into_owned()]);
        }
        add_address(&mut launch, model, &SPELLINGS);
        let (args, env) = (&model.args, &model.env);
        let mut tuning = Tuning { cpu_experts: None, ..layout.tuning.or(model.tuning) };
        if !layout.split.is_empty() {
            tuning.gpu_layers = Some(layout.split.iter().sum());
        }
        let mut more = flags(&SETTINGS, &tuning, args, env);
        let mut add = |words: &[&str]| more.extend(words.iter().map(|word| (*word).to_owned()));
        if layout.split.len() > 1 && TENSOR_SPLIT.given(args, env).is_none() {
            let split: Vec<String> = layout.split.iter().map(u32::to_string).collect();
            add(&["--tensor-split", &split.join(",")]);
        }
        if !layout.split.is_empty() && FIT.given(args, env).is_none() {
            add(&["-fit", "off"]);
        }
        if !layout.cpu_experts.is_empty() && self.given("cpu_experts", args, env).is_none() {
            add(&["-ot", &experts_on_cpu(&layout.cpu_experts)]);
        }
        if !layout.cores.is_empty() && CPU_SET.given(args, env).is_none() {
            add(&["--cpu-mask", &cpus::mask(&layout.cores)]);
        }
        if layout.lock && switch(args, &["--mlock"], &[]).or(MLOCK.given(args, env)).is_none() {
            add(&["--mlock"]);
        }
        launch.argv.extend(more);
        launch
    }

    fn lay_out<'a>(&self, ask: &Ask<'a>) -> Result<LayOut<'a>, String> {
        lay_out::lay_out(ask)
    }

    fn files(&self, model: &Model) -> Vec<PathBuf> {
        let run = Run::read(&model.args, &model.env, &model.tuning).ok();
        let beside = run.into_iter().flat_map(|run| {
            let draft = run.draft.and_then(|draft| draft.file);
            run.projector.into_iter().chain(draft)
        });
        let beside = beside.filter_map(|path| model.outside(&path));
        model.file.iter().cloned().chain(beside).collect()
    }

    fn effective(&self, model: &Model, files: &BTreeMap<PathBuf, FileFacts>) -> Tuning {
        lay_out::effective(model, files)
    }

    fn settings(&self) -> &'static [Setting] {
        &SETTINGS
    }

    fn given(
        &self,
        key: &str,
        args: &[String],
        env: &BTreeMap<String, String>,
    ) -> Option<(Given, Option<String>)> {
        let setting = SETTINGS.iter().find(|setting| setting.key == key)?;
        let given = setting.given(args, env);
        if key == "cpu_experts" {
            return given.or_else(|| override_of_experts(args)).map(|given| (given, None));
        }
        let given = given?;
        let value = (setting.read)(&given.text);
        Some((given, value))
    }

    fn forget(&self, key: &str, args: &mut Vec<String>, env: &mut BTreeMap<String, String>) {
        for setting in SETTINGS.iter().filter(|setting| setting.key == key) {
            setting.forget(args, env);
        }
        while let Some(at) =
            override_of_experts(args).and_then(|given| given.index).filter(|_| key == "cpu_experts")
        {
            // Written as two words or as one with `=`.
            let first =
                if OVERRIDES.contains(&args[at - usize::from(at > 0)].as_str()) { at - 1 } else { at };
            args.drain(first..=at);
        }
    }

    fn advice(&self, args: &[String], env: &BTreeMap<String, String>, tuning: &Tuning) -> Vec<Advice> {
        let mut advice = Vec::new();
        let off =
            FLASH_ATTENTION.given(args, env).filter(|given| truth(&given.text).as_deref() == Some("false"));
        if let (Some(given), Some(kind)) = (off, tuning.kv_v.filter(|kind| kind.is_quantized())) {
            advice.push(Advice {
                what: format!("values kept as {kind} need flash attention, and it is turned off"),
                why: "the server does not start like this".to_owned(),
                instead: format!("remove `{}`, or keep values at f16", given.by),
                given,
            });
        }
        let raised = |given: &Given| given.text.parse::<i32>().is_ok_and(|priority| priority > 0);
        if let Some(given) = PRIORITY.given(args, env).filter(raised) {
            advice.push(Advice {
                what: "a raised priority can starve the threads of the CUDA driver".to_owned(),
                why: "measured: 67.4 instead of 69.8 tokens a second".to_owned(),
                instead: format!("remove `{}`", given.by),
                given,
            });
        }
        advice
    }

    fn readiness(&self, model: &Model) -> Readiness {
        // Several keys may be given; any of them opens the door.
        let keys = flag(&model.args, &["--api-key"]).map(|given| given.text);
        let keys = keys.or_else(|| model.env.get("LLAMA_API_KEY").cloned());
        let bearer = keys.and_then(|keys| keys.split(',').next().map(str::to_owned));
        let path = format!("{}/completion", prefix(&model.args));
        let body = json!({ "prompt": "a", "n_predict": 1 });
        let generate = model.ready.generate.then_some(GenerateProbe { path, body, bearer });
        Readiness { health: model.ready.health.clone(), generate }
    }

    fn spellings(&self) -> &'static Spellings {
        &SPELLINGS
    }

    fn placing(&self) -> &'static Placing {
        &PLACING
    }

    fn names_model(&self, args: &[String], env: &BTreeMap<String, String>) -> Option<Given> {
        SPELLINGS.model.given(args, env).or_else(|| flag(args, HUB))
    }

    fn health(&self, args: &[String]) -> String {
        format!("{}/health", prefix(args))
    }

    fn generates(&self, args: &[String]) -> (bool, String) {
        match NO_TEXT.iter().find(|flag| has(args, &[flag])) {
            Some(flag) => (false, format!("`{flag}` in the arguments")),
            None => (true, "default of llama.cpp".to_owned()),
        }
    }

    fn texts(&self) -> &'static [&'static [Text]] {
        &[COMMON, TEXTS]
    }
}
