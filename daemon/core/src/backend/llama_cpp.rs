//! llama.cpp's `llama-server`.

mod lay_out;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;

use super::arguments::has;
use super::failure::COMMON;
use super::{
    Ask, Backend, FailureClass, GenerateProbe, Given, Kind, Launch, LayOut, PlacedGpu, Readiness, Spelling,
    Spellings, Text, add_address, by_uuid, declared_launch, flag,
};
use crate::config::Model;
use crate::demand::llama_cpp::Run;
use crate::facts::FileFacts;
use crate::layout::Layout;
use crate::tuning::Tuning;

pub(super) struct LlamaCpp;

static SPELLINGS: Spellings = Spellings {
    host: Spelling { flags: &["--host"], variable: Some("LLAMA_ARG_HOST") },
    port: Spelling { flags: &["--port"], variable: Some("LLAMA_ARG_PORT") },
    model: Spelling { flags: &["-m", "--model"], variable: Some("LLAMA_ARG_MODEL") },
};

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
        model.file.iter().cloned().chain(beside).collect()
    }

    fn effective(&self, model: &Model, files: &BTreeMap<PathBuf, FileFacts>) -> Tuning {
        lay_out::effective(model, files)
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
