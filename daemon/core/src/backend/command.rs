//! Any other program that serves HTTP. It is told its address by `HOST` and `PORT` in the environment; as with
//! the others, `{host}` and `{port}` in its arguments stand for it too.

use serde_json::json;

use super::failure::COMMON;
use super::{
    Ask, Backend, GenerateProbe, Launch, LayOut, PlacedGpu, Readiness, Setting, Spelling, Spellings, Text,
    by_uuid, declared_launch, llama_cpp, vllm,
};
use crate::config::Model;
use crate::layout::Layout;

pub(super) struct Command;

static SPELLINGS: Spellings = Spellings {
    host: Spelling { flags: &["--host"], variable: Some("HOST") },
    port: Spelling { flags: &["--port"], variable: Some("PORT") },
    // Nothing can be said about what another program calls its model.
    model: Spelling { flags: &[], variable: None },
};

impl Backend for Command {
    fn launch(&self, model: &Model, gpus: &[PlacedGpu], layout: &Layout) -> Launch {
        let mut launch = declared_launch(model, gpus, layout, by_uuid);
        launch.env.entry("HOST".to_owned()).or_insert_with(|| model.host.to_string());
        launch.env.entry("PORT".to_owned()).or_insert_with(|| model.port.to_string());
        launch
    }

    fn lay_out<'a>(&self, ask: &Ask<'a>) -> Result<LayOut<'a>, String> {
        ask.declared().ok_or_else(|| "it is not declared".to_owned())
    }

    fn readiness(&self, model: &Model) -> Readiness {
        let body = json!({ "model": model.name.as_str(), "prompt": "a", "max_tokens": 1 });
        let probe = GenerateProbe { path: "/v1/completions".to_owned(), body, bearer: None };
        Readiness { health: model.ready.health.clone(), generate: model.ready.generate.then_some(probe) }
    }

    fn spellings(&self) -> &'static Spellings {
        &SPELLINGS
    }

    /// None: nothing can be said about another program's flags.
    fn settings(&self) -> &'static [Setting] {
        &[]
    }

    fn generates(&self, _args: &[String]) -> (bool, String) {
        (false, "default for a command".to_owned())
    }

    /// All of them: behind a script may stand any of the servers.
    fn texts(&self) -> &'static [&'static [Text]] {
        &[COMMON, llama_cpp::TEXTS, vllm::TEXTS]
    }
}
