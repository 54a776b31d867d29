//! vLLM's server: `vllm serve MODEL`, or `python -m vllm.entrypoints.openai.api_server --model MODEL`.

mod lay_out;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;

use super::failure::COMMON;
use super::settings::{flags, positive, same};
use super::{
    Ask, Backend, FailureClass, GenerateProbe, Given, Kind, Launch, LayOut, PlacedGpu, Placing, Readiness,
    Setting, Spelling, Spellings, Text, add_address, declared_launch, flag,
};
use crate::bytes::Bytes;
use crate::config::Model;
use crate::facts::FileFacts;
use crate::layout::Layout;
use crate::tuning::Tuning;

pub(super) struct Vllm;

static SPELLINGS: Spellings = Spellings {
    host: Spelling { flags: &["--host"], variable: None },
    port: Spelling { flags: &["--port"], variable: None },
    model: Spelling { flags: &["--model"], variable: None },
};

/// The flag for the share of each GPU that the server takes.
const UTILIZATION: &str = "--gpu-memory-utilization";

/// That share where it is not given: the newest version's. Earlier ones took 0.90, which fits where this does.
const DEFAULT_UTILIZATION: f64 = 0.92;

static SETTINGS: [Setting; 4] = [
    value("ctx", &["--max-model-len"], tokens, same),
    value("kv", &["--kv-cache-dtype"], kv_type, kv_name),
    value("slots", &["--max-num-seqs"], positive, same),
    value("utilization", &[UTILIZATION], share_in_hundredths, same),
];

const fn value(
    key: &'static str,
    flags: &'static [&'static str],
    read: fn(&str) -> Option<String>,
    write: fn(&str) -> String,
) -> Setting {
    Setting { key, spelling: Spelling { flags, variable: None }, switches: None, read, write }
}

/// Tokens as vLLM takes them: `32k` is 32000, `32K` is 32768.
fn tokens(text: &str) -> Option<String> {
    let unit = match text.chars().last()? {
        'k' => 1e3,
        'm' => 1e6,
        'K' => 1024.0,
        'M' => 1024.0 * 1024.0,
        _ => return positive(text),
    };
    let number =
        text[..text.len() - 1].parse::<f64>().ok().filter(|number| *number > 0.0 && *number < 1e9)?;
    Some(format!("{:.0}", (number * unit).trunc()))
}

/// The server's names for 16 bits and 8; `auto` follows the model's file.
fn kv_type(text: &str) -> Option<String> {
    let kind = match text {
        "float16" => "f16",
        "bfloat16" => "bf16",
        text if text.starts_with("fp8") => "fp8",
        _ => return None,
    };
    Some(kind.to_owned())
}

fn kv_name(kind: &str) -> String {
    match kind {
        "f16" => "float16",
        "bf16" => "bfloat16",
        other => other,
    }
    .to_owned()
}

/// Rounded up: what it says is at least taken.
fn share_in_hundredths(text: &str) -> Option<String> {
    let share = text.parse::<f64>().ok().filter(|share| *share > 0.0 && *share <= 1.0)?;
    // Less what a decimal loses in a double, or 0.57 would become 0.58.
    Some(format!("{:.2}", (share * 100.0 - 1e-6).ceil() / 100.0))
}

const TENSOR_PARALLEL: &[&str] = &["-tp", "--tensor-parallel-size"];
const PIPELINE_PARALLEL: &[&str] = &["-pp", "--pipeline-parallel-size"];

static PLACING: Placing = Placing {
    flags: &["-tp", "--tensor-parallel-size", "-pp", "--pipeline-parallel-size", UTILIZATION],
    switches: &[],
    variables: &["CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"],
};

pub(super) const TEXTS: &[Text] = &[
    Text::cause(FailureClass::OutOfMemory, &["cuda out of memory. tried to allocate"]),
    Text::cause(FailureClass::OutOfMemory, &["cuda out of memory occurred when warming up sampler"]),
    Text::cause(
        FailureClass::TooLittleFree,
        &["free memory on device", "is less than desired gpu memory utilization"],
    ),
    Text::cause(FailureClass::NoRoomForKv, &["no available memory for the cache blocks"]),
    Text::cause(FailureClass::NoRoomForKv, &["to serve at least one request with the model"]),
    Text::cause(FailureClass::MemoryMoved, &["error in memory profiling"]),
    Text { kind: Kind::Wrapper, parts: &["engine core initialization failed"] },
];

/// Whether `python ARGS` runs vLLM.
pub(super) fn run_by_python(args: &[String]) -> bool {
    let module = args
        .windows(2)
        .take(4)
        .any(|pair| pair[0] == "-m" && (pair[1] == "vllm" || pair[1].starts_with("vllm.")));
    let script = args.iter().find(|arg| !arg.starts_with('-'));
    module || script.is_some_and(|script| script.ends_with("/vllm"))
}

/// Where `serve` stands among the arguments. Only near their start, or it is some flag's value.
fn serve(args: &[String]) -> Option<usize> {
    args.iter().take(3).position(|arg| arg == "serve")
}

/// The share of each GPU that is asked for by the arguments, else by the declared one in hundredths, and by what; or
/// what is wrong with the arguments.
pub(crate) fn utilization(args: &[String], declared: Option<u32>) -> Result<(f64, Option<Given>), Given> {
    let Some(given) = flag(args, &[UTILIZATION]) else {
        return Ok((declared.map_or(DEFAULT_UTILIZATION, |share| f64::from(share) / 100.0), None));
    };
    match given.text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok((share, Some(given))),
        _ => Err(given),
    }
}

/// Over how many GPUs the arguments split the model, and the flag that says so. None where they don't say.
pub(crate) fn parallel(args: &[String]) -> Option<(u64, String)> {
    let tensor = flag(args, TENSOR_PARALLEL);
    let pipeline = flag(args, PIPELINE_PARALLEL);
    let by = tensor.as_ref().or(pipeline.as_ref())?.by.clone();
    let number = |given: Option<Given>| given.map_or(Some(1), |given| given.text.parse::<u64>().ok());
    Some((number(tensor)?.saturating_mul(number(pipeline)?), by))
}

/// vLLM before the middle of 2026 takes `CUDA_VISIBLE_DEVICES` apart itself and dies of a UUID in it. An index is
/// as good while this boot lasts, and no start outlasts it.
fn by_index(gpu: &PlacedGpu) -> String {
    gpu.index.to_string()
}

impl Vllm {
    fn share(model: &Model, total: Bytes) -> Option<Bytes> {
        let (share, _) = utilization(&model.args, model.tuning.utilization).ok()?;
        // Computed as the server computes it, in doubles and rounded up.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Some(Bytes((total.0 as f64 * share).ceil() as u64))
    }
}

impl Backend for Vllm {
    fn launch(&self, model: &Model, gpus: &[PlacedGpu], layout: &Layout) -> Launch {
        let mut launch = declared_launch(model, gpus, layout, by_index);
        let named =
            model.file.as_ref().map(|file| file.to_string_lossy().into_owned()).or_else(|| model.hub.clone());
        if let Some(named) = named
            && self.names_model(&model.args, &model.env).is_none()
        {
            // argv counts the program too.
            match serve(&model.args) {
                Some(at) => launch.argv.insert(at + 2, named),
                // An image's own program may be either.
                None if run_by_python(&model.args) || model.container.is_some() => {
                    launch.argv.extend(["--model".to_owned(), named]);
                }
                None => _ = launch.argv.splice(1..1, ["serve".to_owned(), named]),
            }
        }
        add_address(&mut launch, model, &SPELLINGS);
        if gpus.len() > 1 && parallel(&model.args).is_none() {
            launch.argv.extend(["--tensor-parallel-size".to_owned(), gpus.len().to_string()]);
        }
        let tuning = layout.tuning.or(model.tuning);
        launch.argv.extend(flags(&SETTINGS, &tuning, &model.args, &model.env));
        launch
    }

    /// The first served name, else the model exactly as it was given.
    fn known_as(&self, model: &Model) -> Option<String> {
        let path = || model.file.as_ref().map(|file| file.to_string_lossy().into_owned());
        flag(&model.args, &["--served-model-name"])
            .or_else(|| self.names_model(&model.args, &model.env))
            .map(|given| given.text)
            .or_else(path)
            .or_else(|| model.hub.clone())
    }

    fn readiness(&self, model: &Model) -> Readiness {
        let args = &model.args;
        let name = self.known_as(model).unwrap_or_default();
        let key = flag(args, &["--api-key"]).map(|given| given.text);
        let bearer = key.or_else(|| model.env.get("VLLM_API_KEY").cloned());
        let body = json!({ "model": name, "prompt": "a", "max_tokens": 1 });
        let probe = GenerateProbe { path: "/v1/completions".to_owned(), body, bearer };
        Readiness { health: model.ready.health.clone(), generate: model.ready.generate.then_some(probe) }
    }

    fn lay_out<'a>(&self, ask: &Ask<'a>) -> Result<LayOut<'a>, String> {
        lay_out::lay_out(ask)
    }

    fn numbers(&self, model: &Model, files: &BTreeMap<PathBuf, FileFacts>, most: usize) -> Vec<usize> {
        lay_out::numbers(model, files, most)
    }

    fn effective(&self, model: &Model, files: &BTreeMap<PathBuf, FileFacts>) -> Tuning {
        lay_out::effective(model, files)
    }

    fn needs_free(&self, model: &Model, total: Bytes) -> Option<Bytes> {
        Self::share(model, total)
    }

    fn settings(&self) -> &'static [Setting] {
        &SETTINGS
    }

    fn spellings(&self) -> &'static Spellings {
        &SPELLINGS
    }

    fn placing(&self) -> &'static Placing {
        &PLACING
    }

    fn names_model(&self, args: &[String], env: &BTreeMap<String, String>) -> Option<Given> {
        let positional = serve(args).and_then(|at| {
            let text = args.get(at + 1).filter(|next| !next.starts_with('-'))?;
            Some(Given { text: text.clone(), by: "serve".to_owned(), index: Some(at + 1) })
        });
        positional.or_else(|| SPELLINGS.model.given(args, env))
    }

    fn generates(&self, args: &[String]) -> (bool, String) {
        let runner = flag(args, &["--runner"]).filter(|given| given.text == "pooling");
        let task =
            flag(args, &["--task"]).filter(|given| !["auto", "generate"].contains(&given.text.as_str()));
        match runner.or(task) {
            Some(given) => (false, format!("`{} {}` in the arguments", given.by, given.text)),
            None => (true, "default of vLLM".to_owned()),
        }
    }

    fn texts(&self) -> &'static [&'static [Text]] {
        &[COMMON, TEXTS]
    }
}
