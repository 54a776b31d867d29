//! The servers that Berth can run: what to run, how to know that it serves, how to read its failures.

mod arguments;
mod command;
mod failure;
mod lay_out;
mod llama_cpp;
mod placing;
mod settings;
mod vllm;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::bytes::Bytes;
use crate::config::{BackendKind, Model};
use crate::container::Container;
use crate::facts::{DeviceId, Exit, FileFacts};
use crate::layout::Layout;
use crate::tuning::{KvType, Tuning};

pub use lay_out::{Ask, Laid, LayOut};
pub use placing::{Placing, placing, without_placing};

pub(crate) use arguments::{Given, Spelling, Spellings, flag};
pub(crate) use settings::Setting;
pub(crate) use vllm::{parallel, utilization};

/// What Berth knows about one kind of server.
pub trait Backend: Sync {
    /// What to run for `model` on `gpus`, laid out so: the declared command line, with the address, port, model, GPUs
    /// and settings added where the user gave none himself. Without GPUs the server sees none.
    fn launch(&self, model: &Model, gpus: &[PlacedGpu], layout: &Layout) -> Launch;

    /// How to see that `model` serves.
    fn readiness(&self, model: &Model) -> Readiness;

    /// Why a server failed, from the lines of its log (oldest first) and the way it ended.
    fn classify(&self, log: &[String], exit: Option<Exit>) -> Failure {
        failure::classify(self.texts(), log, exit)
    }

    /// How a model is laid out on GPUs, and what it takes there; without GPUs, on the host alone. An error says in one
    /// clause why that is not known.
    fn lay_out<'a>(&self, ask: &Ask<'a>) -> Result<LayOut<'a>, String>;

    /// The files that a model is made of, as far as its declaration names them by path.
    fn files(&self, model: &Model) -> Vec<PathBuf> {
        model.file.iter().cloned().collect()
    }

    /// The name by which the server knows its model, where it answers to no other.
    fn known_as(&self, _model: &Model) -> Option<String> {
        None
    }

    /// Over how many GPUs a model can be laid, of at most `most`, ascending.
    fn numbers(&self, _model: &Model, _files: &BTreeMap<PathBuf, FileFacts>, most: usize) -> Vec<usize> {
        (1..=most).collect()
    }

    /// Whether this server can keep keys and values like this.
    fn keeps(&self, kind: KvType) -> bool {
        let text = kind.to_string();
        let known = |setting: &&Setting| (setting.read)(&(setting.write)(&text)).as_ref() == Some(&text);
        self.settings().iter().filter(|setting| setting.key.starts_with("kv")).any(|setting| known(&setting))
    }

    /// The settings under which a model runs if nothing is given up, as far as they are known.
    fn effective(&self, model: &Model, _files: &BTreeMap<PathBuf, FileFacts>) -> Tuning {
        model.tuning
    }

    /// The memory that must be free on a device of `total` allocatable bytes at the moment of the start, whatever
    /// the model takes later. None where the server has no such rule.
    fn needs_free(&self, _model: &Model, _total: Bytes) -> Option<Bytes> {
        None
    }

    /// What the user's own command line says of the settings that decide its memory, as far as it is certain.
    fn given_tuning(&self, args: &[String], env: &BTreeMap<String, String>) -> Tuning {
        settings::given_tuning(self.settings(), args, env)
    }

    /// What is allowed on this command line and known to hurt: what, why, and by which argument.
    #[doc(hidden)]
    fn advice(&self, _args: &[String], _env: &BTreeMap<String, String>, _tuning: &Tuning) -> Vec<Advice> {
        Vec::new()
    }

    /// How this server is told the settings that decide its memory; it has no others.
    #[doc(hidden)]
    fn settings(&self) -> &'static [Setting];

    /// What the user's own command line says of the setting `key`, whether that is certain or not.
    #[doc(hidden)]
    fn given(
        &self,
        key: &str,
        args: &[String],
        env: &BTreeMap<String, String>,
    ) -> Option<(Given, Option<String>)> {
        let setting = self.settings().iter().find(|setting| setting.key == key)?;
        let given = setting.given(args, env)?;
        let value = (setting.read)(&given.text);
        Some((given, value))
    }

    /// Takes what they say of the setting `key` out of a command line and its variables.
    #[doc(hidden)]
    fn forget(&self, key: &str, args: &mut Vec<String>, env: &mut BTreeMap<String, String>) {
        for setting in self.settings().iter().filter(|setting| setting.key == key) {
            setting.forget(args, env);
        }
    }

    /// By what this server is told where it is placed.
    #[doc(hidden)]
    fn placing(&self) -> &'static Placing {
        &placing::GPUS
    }

    /// Under which flags and variables this server is told its address, port and model.
    #[doc(hidden)]
    fn spellings(&self) -> &'static Spellings;

    /// What the command line names as the model: a path, or a name at Hugging Face.
    #[doc(hidden)]
    fn names_model(&self, args: &[String], env: &BTreeMap<String, String>) -> Option<Given> {
        self.spellings().model.given(args, env)
    }

    /// The path that answers 200 when a server with these arguments is up.
    #[doc(hidden)]
    fn health(&self, _args: &[String]) -> String {
        "/health".to_owned()
    }

    /// Whether a server with these arguments can generate text, and how that is known.
    #[doc(hidden)]
    fn generates(&self, args: &[String]) -> (bool, String);

    /// The texts by which its failures are known.
    #[doc(hidden)]
    fn texts(&self) -> &'static [&'static [Text]];
}

/// The settings by which a server is told what is declared under `key`: for `kv` those of keys and of values. Empty
/// where it has no such setting.
pub(crate) fn settings_for(backend: &dyn Backend, key: &str) -> Vec<&'static str> {
    let both = |setting: &str| key == "kv" && ["kv_k", "kv_v"].contains(&setting);
    let keys = backend.settings().iter().map(|setting| setting.key);
    keys.filter(|setting| *setting == key || both(setting)).collect()
}

/// Something that is allowed and known to hurt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advice {
    /// What, as one clause.
    pub(crate) what: String,
    /// Why.
    pub(crate) why: String,
    /// What to do instead.
    pub(crate) instead: String,
    /// Which argument or variable asks for it.
    pub(crate) given: Given,
}

/// What Berth knows about servers of this kind.
pub fn of(kind: BackendKind) -> &'static dyn Backend {
    match kind {
        BackendKind::LlamaCpp => &llama_cpp::LlamaCpp,
        BackendKind::Vllm => &vllm::Vllm,
        BackendKind::Command => &command::Command,
    }
}

/// The kind of server that a command line starts, by its program's name.
pub fn kind_of(program: &str, args: &[String]) -> BackendKind {
    let base = program.rsplit('/').next().unwrap_or_default();
    if base.starts_with("llama-server") {
        BackendKind::LlamaCpp
    } else if base == "vllm" || (base.starts_with("python") && vllm::run_by_python(args)) {
        BackendKind::Vllm
    } else {
        BackendKind::Command
    }
}

/// `total` in `parts` equal parts, rounded up.
fn evenly(total: Bytes, parts: usize) -> Option<Vec<Bytes>> {
    (parts > 0).then(|| vec![Bytes(total.0.div_ceil(parts as u64)); parts])
}

/// What to run for `model` on `gpus`, laid out so: its server's command line, in its container where it has one.
pub fn launch(model: &Model, gpus: &[PlacedGpu], layout: &Layout) -> Launch {
    let backend = of(model.backend);
    let Some(container) = &model.container else { return backend.launch(model, gpus, layout) };
    let (server, seen) = container.server(model, gpus);
    container.around(model, gpus, backend.launch(&server, &seen, layout))
}

/// The port at which llama-server and vLLM listen, and their images, where nothing is said.
pub fn usual_port(kind: BackendKind) -> Option<u16> {
    match kind {
        BackendKind::LlamaCpp => Some(8080),
        BackendKind::Vllm => Some(8000),
        BackendKind::Command => None,
    }
}

/// The whole command line as declared.
pub fn declared_line(model: &Model) -> Vec<String> {
    let program = model.program.to_string_lossy().into_owned();
    let container = model.container.iter().flat_map(Container::declared);
    std::iter::once(program).chain(container).chain(model.args.iter().cloned()).collect()
}

/// The same, with the address where `{host}` and `{port}` stand.
pub(crate) fn declared_argv(model: &Model) -> Vec<String> {
    let Some(container) = &model.container else { return own_argv(model) };
    let (server, _) = container.server(model, &[]);
    let mut argv = own_argv(&server);
    argv.splice(1..1, container.words(model));
    argv
}

/// The program and its server's own arguments, with the address in them.
fn own_argv(model: &Model) -> Vec<String> {
    let (host, port) = (model.host.to_string(), model.port.to_string());
    let args = model.args.iter().map(|arg| arg.replace("{host}", &host).replace("{port}", &port));
    std::iter::once(model.program.to_string_lossy().into_owned()).chain(args).collect()
}

/// The declared command line, to which a backend adds; with the variables that say which GPUs it sees, each as
/// `name` calls it, and with the bounds of its layout.
fn declared_launch(
    model: &Model,
    gpus: &[PlacedGpu],
    layout: &Layout,
    name: fn(&PlacedGpu) -> String,
) -> Launch {
    let mut env = model.env.clone();
    let visible: Vec<String> = gpus.iter().map(name).collect();
    // In this order CUDA's own numbers, in logs and in indices, agree with NVML's.
    env.entry("CUDA_DEVICE_ORDER".to_owned()).or_insert_with(|| "PCI_BUS_ID".to_owned());
    env.entry("CUDA_VISIBLE_DEVICES".to_owned()).or_insert_with(|| visible.join(","));
    Launch {
        argv: own_argv(model),
        env,
        secrets: model.secrets.clone(),
        cwd: model.cwd.clone(),
        cpus: layout.cores.clone(),
        memlock: may_lock(gpus, layout),
        nice: (layout.nice != 0).then_some(layout.nice),
        clear: None,
    }
}

/// What a server may lock beyond what it takes: the head of its model's file, buffers of its libraries.
const ALSO_LOCKED: Bytes = Bytes::mib(64);

/// How much a server may lock: what it takes where all of it is on the host. On a GPU the driver locks as it needs, and
/// a model that is not to be locked may still be told to by its own flags: to these no limit is set.
fn may_lock(gpus: &[PlacedGpu], layout: &Layout) -> Option<Bytes> {
    let known = layout.lock && gpus.is_empty() && layout.host > Bytes::ZERO;
    known.then(|| layout.host.plus(ALSO_LOCKED))
}

/// A GPU by what names the same card whatever else is plugged in.
fn by_uuid(gpu: &PlacedGpu) -> String {
    gpu.id.0.clone()
}

/// Adds `--host` and `--port` where the user gave none.
fn add_address(launch: &mut Launch, model: &Model, spellings: &Spellings) {
    if spellings.host.given(&model.args, &model.env).is_none() {
        launch.argv.extend(["--host".to_owned(), model.host.to_string()]);
    }
    if spellings.port.given(&model.args, &model.env).is_none() {
        launch.argv.extend(["--port".to_owned(), model.port.to_string()]);
    }
}

/// A text by which a failure is known, in lower case: the parts appear in one line, in this order.
#[derive(Debug)]
pub struct Text {
    kind: Kind,
    parts: &'static [&'static str],
}

/// What a known text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A cause.
    Cause(FailureClass),
    /// The server goes on and tries another way: what it ran out of before this line was no failure.
    Retries,
    /// Says that something failed, not what.
    Wrapper,
}

impl Text {
    const fn cause(class: FailureClass, parts: &'static [&'static str]) -> Self {
        Self { kind: Kind::Cause(class), parts }
    }
}

/// What `berth-launch` executes: complete, nothing is decided after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The program, an absolute path, and its arguments.
    pub argv: Vec<String>,
    /// Variables set on top of the unit's environment.
    pub env: BTreeMap<String, String>,
    /// Variables whose values are credentials of the unit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// The working directory; the unit's where none is given.
    pub cwd: Option<PathBuf>,
    /// The processors that it runs on, ascending; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u32>,
    /// How much it may lock in memory; as much as the unit allows where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memlock: Option<Bytes>,
    /// Its scheduling priority as `nice` has it; the unit's where none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nice: Option<i32>,
    /// How what an earlier run left is cleared away before it; None where nothing can be left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clear: Option<Clear>,
}

/// How what an earlier run left is cleared away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clear {
    /// Prints it, a word for each.
    pub find: Vec<String>,
    /// Removes what is named behind it.
    pub remove: Vec<String>,
}

/// A failure as read from a server's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// Its kind.
    pub class: FailureClass,
    /// The log line that shows it, trimmed; empty where none did.
    pub line: String,
    /// How the process ended, where it has.
    pub exit: Option<Exit>,
}

/// A GPU that a model was placed on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedGpu {
    /// Its UUID.
    pub id: DeviceId,
    /// NVML's index, for display.
    pub index: u32,
    /// The memory that is kept for the model on it.
    pub bytes: Bytes,
}

/// How a server shows that it serves: both must succeed, the first one first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// GET this path: 200 means up.
    pub health: String,
    /// Then generate one token, since a server can be healthy and dead.
    pub generate: Option<GenerateProbe>,
}

/// A request that makes a server generate one token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerateProbe {
    /// POST to this path: 200 with a body in JSON means that it generates.
    pub path: String,
    /// The request's body.
    pub body: serde_json::Value,
    /// The key to send as `Authorization: Bearer …`, where the server was given one.
    pub bearer: Option<String>,
}

/// Kinds of failures (`memory.md`'s table).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// An allocation failed.
    OutOfMemory,
    /// vLLM's share of the GPU was not free at the start.
    TooLittleFree,
    /// The weights fit, the KV cache does not.
    NoRoomForKv,
    /// Another process's memory moved during vLLM's profiling.
    MemoryMoved,
    /// The model's file is not what the server can read.
    BadModelFile,
    /// The port is taken.
    PortTaken,
    /// A shared library is missing.
    MissingLibrary,
    /// No known text; the exit status is all there is.
    Unclassified,
}

#[cfg(test)]
mod tests;
