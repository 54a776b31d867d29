//! Settings: what was declared, validated as a whole. Reading files is done elsewhere; here is only text.

mod access;
mod command_line;
mod contained;
mod declared;
mod difference;
mod error;
mod explain;
mod history;
mod keys;
mod main_file;
mod model_file;
mod notify;
mod policy_file;
mod reader;
mod schema;
mod together;
mod tuned;
mod variant;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::bytes::Bytes;
use crate::container::Container;
use crate::name::ModelName;
use crate::policy::Policy;
use crate::proxy::KeyHash;
use crate::tuning::Tuning;

pub use access::{Access, Http, Principal, Token};
pub use command_line::{Parts, parts};
pub use difference::{changes, difference, is_secret, run_values};
pub use error::{ConfigError, Place, Warning};
pub use explain::{Explained, Explanation, ModelExplanation, Origin, explain};
pub use keys::{FileKind, Key, Section, reference, without_links};
pub use notify::{Format, Notify, Target};
pub use schema::schema;
pub use variant::{BadSet, with_settings};

/// The port of the control API over TCP.
pub const API_PORT: u16 = 8009;

/// The port of the proxy, the clients' one address.
pub const PROXY_PORT: u16 = 8010;

/// The name by which clients reach whatever was switched to; no model can have it.
pub const DEFAULT_ALIAS: &str = "default";

/// The configuration's files as they were read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sources {
    /// `berth.toml`, where there is one.
    pub main: Option<SourceFile>,
    /// The files of `models.d` that end in `.toml`.
    pub models: Vec<SourceFile>,
    /// The files of `policies.d` that end in `.toml`.
    pub policies: Vec<SourceFile>,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it lies, as it is shown in errors.
    pub path: PathBuf,
    /// What it holds.
    pub text: String,
}

/// Makes settings of the files' text, or says everything that is wrong with it, in the order of files and lines.
/// `host_name` is the node's name where none is declared.
pub fn load(sources: &Sources, host_name: &str) -> Result<Settings, Vec<ConfigError>> {
    let (mut settings, mut errors) = main_file::read(sources.main.as_ref(), host_name);
    let (policies, wrong, found) = policy_file::read_all(&sources.policies);
    let mut warnings = std::mem::take(&mut settings.warnings);
    warnings.extend(found);
    settings.policies = policies;
    errors.extend(wrong);
    let mut files: Vec<&SourceFile> = sources.models.iter().collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut drafts = Vec::new();
    for file in files {
        let (of_file, found) = model_file::read(file, &settings);
        drafts.extend(of_file);
        errors.extend(found.errors);
        warnings.extend(found.warnings);
    }
    together::check(&drafts, &mut errors);
    together::assign_ports(&mut drafts, settings.ports, sources.main.as_ref(), &mut errors);
    if errors.is_empty() {
        warnings.sort_by(|a, b| a.order().cmp(&b.order()));
        settings.warnings = warnings;
        let models = drafts.into_iter().filter_map(|draft| draft.model);
        settings.models = models.map(|model| (model.name.clone(), model)).collect();
        Ok(settings)
    } else {
        errors.sort_by(|a, b| a.order().cmp(&b.order()));
        Err(errors)
    }
}

/// All that was declared on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// The node's name in what people see; by default the host's.
    pub node: String,
    /// GPU memory per device that is never given to a model.
    pub headroom: Bytes,
    /// For how long a GPU that misbehaved must be read soundly before it is used again.
    pub sound: Duration,
    /// How long each step may take, where a model does not say otherwise.
    pub deadlines: Deadlines,
    /// How models that fail are brought back.
    pub restart: Restart,
    /// What is waited for before what served is brought back.
    pub boot: Boot,
    /// How models in service are checked, where a model does not say otherwise.
    pub health: Health,
    /// The clients' one address.
    pub proxy: Proxy,
    /// Where operators and programs see and change what serves, beside the unix socket.
    pub http: Http,
    /// What users may do over the unix socket.
    pub access: Access,
    /// What is kept of the past.
    pub history: History,
    /// How models are loaded because a client asks, where a model does not say otherwise.
    pub guests: Guests,
    /// Who is told of problems.
    pub notify: Vec<Notify>,
    /// How models may be placed, by name: those that ship with Berth and those of `policies.d`.
    pub policies: BTreeMap<String, Policy>,
    /// What is allowed and known to hurt.
    pub warnings: Vec<Warning>,
    /// Every declared model, retired ones too.
    pub models: BTreeMap<ModelName, Model>,
    /// Where models that declare no port get one from.
    pub ports: PortRange,
    /// The file these were read from; None where there is none and all is by default.
    pub source: Option<PathBuf>,
    /// The line of `source` on which each key stands that was written down (`headroom`, `deadlines.stop` …).
    pub declared: BTreeMap<String, usize>,
}

/// How long the steps of a swap, and of a request, may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Deadlines {
    /// For answers that are under way, before the model is stopped.
    pub drain: Duration,
    /// From when systemd begins to stop it until berthd kills what is left.
    pub stop: Duration,
    /// From the last process's end until memory must be proved free.
    pub release: Duration,
    /// From the unit's start until it must be ready.
    pub start: Duration,
    /// Until it takes a connection of a request.
    pub connect: Duration,
    /// From then until its answer begins; the node's is `[proxy] first_byte`.
    pub first_byte: Duration,
    /// The longest pause of its answer; the node's is `[proxy] idle`.
    pub idle: Duration,
}

/// How a model of home that fails is brought back, and when it no longer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Restart {
    /// The pause after the first failure; it doubles with each further one.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
    /// After so long in service earlier failures no longer count.
    pub healthy: Duration,
    /// So many failures within `window` quarantine a model.
    pub failures: u32,
    /// See `failures`.
    pub window: Duration,
}

/// What is waited for, and how long, before home is brought back without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Boot {
    /// For GPUs that were there before.
    pub gpus: Duration,
    /// For the files of a model: a disk that is mounted late.
    pub files: Duration,
}

/// How a model in service is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Health {
    /// Between two health checks; None where nothing is checked.
    pub every: Option<Duration>,
    /// How many failures in a row make it count as hung.
    pub failures: u32,
    /// How long an idle model may go without generating before it is asked for a token; None where it never is.
    pub token: Option<Duration>,
    /// How long it may leave checks unanswered while it works.
    pub busy: Duration,
}

/// What is kept of the past, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct History {
    /// Between two samples of the devices. Each is kept for a day.
    pub every: Duration,
    /// For how long a sample of each minute is kept.
    pub samples: Duration,
    /// For how long a sample of each quarter of an hour is kept, and events, swaps and problems.
    pub keep: Duration,
    /// What all of it takes at most; then what is oldest goes before its time.
    pub size: Bytes,
}

/// How a model is loaded because a client asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Guests {
    /// At whose expense.
    pub on_demand: OnDemand,
    /// How long it may go without a request before home returns, from when it was ready or answered last.
    pub idle: Duration,
}

/// At whose expense a model is loaded that a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDemand {
    /// Only where home keeps its place; other guests give way.
    Beside,
    /// Home gives way too, where the model's policy lets it.
    Evict,
    /// It is not loaded.
    Never,
}

impl OnDemand {
    /// As it is declared.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Beside => "beside",
            Self::Evict => "evict",
            Self::Never => "never",
        }
    }
}

/// The clients' one address, and what is taken there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proxy {
    /// Where it listens; nowhere means that there is none.
    pub listen: Vec<SocketAddr>,
    /// What becomes of a name that nobody has.
    pub unknown: UnknownName,
    /// The longest body of a request.
    pub body: Bytes,
    /// How many requests may wait for one model.
    pub queue: u32,
    /// How long one may wait for a model that is on its way.
    pub wait: Duration,
    /// How long a model that others wait for in vain may go on being asked, before they get their turn.
    pub turn: Duration,
    /// How long a request's body may pause.
    pub idle: Duration,
    /// How many clients may be connected at a time.
    pub connections: u32,
    /// Who may ask; everybody where there are none.
    pub keys: Vec<ClientKey>,
    /// The origins of pages that may ask from a browser, or `*` for all; none where it is empty.
    pub cors: Vec<String>,
}

/// A key that a client has to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClientKey {
    /// Whose it is.
    pub name: String,
    /// Its hash.
    pub hash: KeyHash,
    /// The names of models that it may ask for; None for all.
    pub models: Option<Vec<String>>,
    /// Whether it may have a model loaded that does not serve.
    pub loads: bool,
}

/// What becomes of a request for a name that nobody has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownName {
    /// It is refused with the names that there are.
    Refuse,
    /// `default` answers it.
    Default,
}

/// A range of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// One declared model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Model {
    /// Its name.
    pub name: ModelName,
    /// The file that declares it.
    pub source: PathBuf,
    /// What kind of server it is.
    pub backend: BackendKind,
    /// The server's program: an absolute path, or a bare name that berthd looks up in `/usr/local/bin` and
    /// `/usr/bin`.
    pub program: PathBuf,
    /// The container that the program runs it in; the arguments are those of the server inside.
    pub container: Option<Container>,
    /// Its arguments as declared; the backend adds address, port and placement where they are not given.
    pub args: Vec<String>,
    /// Its environment beyond what the template gives.
    pub env: BTreeMap<String, String>,
    /// Variables of its environment whose values are credentials of its unit: only systemd and the server know them.
    pub secrets: Vec<String>,
    /// Its working directory.
    pub cwd: Option<PathBuf>,
    /// The model's file or folder, an absolute path, where one is declared or found among the arguments.
    pub file: Option<PathBuf>,
    /// The model's name at Hugging Face (`Qwen/Qwen3-32B`) where it is given by that instead of by a path.
    pub hub: Option<String>,
    /// The address that the server is to listen on.
    pub host: IpAddr,
    /// The port that the server is to listen on.
    pub port: u16,
    /// Whether another model that says so too may have the same port: the two never serve at once.
    pub shares_port: bool,
    /// Whether its processes may listen at other addresses than that: it is no problem then.
    pub exposed: bool,
    /// The unit that served it before it was Berth's: while that runs, it is the model.
    pub replaces: Option<String>,
    /// How it may be placed.
    pub policy: Policy,
    /// GPU memory it needs.
    pub memory: Memory,
    /// The host's memory that it needs, where that is declared.
    pub host_memory: Option<Bytes>,
    /// Settings that are declared by keys of their own instead of the server's flags.
    pub tuning: Tuning,
    /// The name by which its server knows it, where requests have to say that instead of what clients ask for.
    pub known_as: Option<String>,
    /// What is changed about requests to it.
    pub request: Changes,
    /// Other names by which clients may ask for it.
    pub aliases: Vec<String>,
    /// Kept for the record, never started and never a problem.
    pub retired: bool,
    /// Who serves in its place while it can't.
    pub fallback: Option<ModelName>,
    /// How it is loaded because a client asks for it.
    pub guests: Guests,
    /// Of what served before, models with a higher one come back first; the policy's where it says nothing.
    pub priority: i32,
    /// How it shows that it serves.
    pub ready: Ready,
    /// How long its steps may take.
    pub deadlines: Deadlines,
    /// How it is checked while it serves. No token is asked of one that does not generate.
    pub health: Health,
    /// The line of `source` on which each key stands that was written down (`cmd`, `memory.gpu` …).
    pub declared: BTreeMap<String, usize>,
    /// Each value above that was not written down, and where it came from: for `berthctl check`.
    pub derived: Vec<Derived>,
}

impl Settings {
    /// The units that models were before, by model.
    pub fn predecessors(&self) -> BTreeMap<ModelName, String> {
        let of = |model: &Model| Some((model.name.clone(), model.replaces.clone()?));
        self.models.values().filter_map(of).collect()
    }
}

impl Model {
    /// Where a file that its server's flags name is on this machine; None where it is part of a container's image.
    pub fn outside(&self, path: &Path) -> Option<PathBuf> {
        self.container.as_ref().map_or_else(|| Some(path.to_owned()), |container| container.outside(path))
    }
}

/// What is changed about the JSON bodies of requests, at their top level.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Changes {
    /// Fields that are added where they are missing.
    pub default: BTreeMap<String, Value>,
    /// Fields that are replaced or added.
    pub set: BTreeMap<String, Value>,
    /// Fields that are taken out.
    pub strip: Vec<String>,
}

impl Changes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.default.is_empty() && self.set.is_empty() && self.strip.is_empty()
    }
}

/// What kind of server a model runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackendKind {
    /// llama.cpp's `llama-server`.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
    /// `vllm serve`.
    #[serde(rename = "vllm")]
    Vllm,
    /// Any other program that serves HTTP.
    #[serde(rename = "command")]
    Command,
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::LlamaCpp => "llama.cpp",
            Self::Vllm => "vllm",
            Self::Command => "command",
        })
    }
}

/// Declared GPU memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// In all; divided evenly where it is split.
    Total(Bytes),
    /// On each device of a split, in NVML's order; the number of entries is the number of devices.
    PerDevice(Vec<Bytes>),
    /// Not declared: such a model can be checked and listed, but not started on a GPU.
    Undeclared,
}

/// How a server shows that it serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ready {
    /// Path that answers 200 when the server is up.
    pub health: String,
    /// Whether one token must be generated too (llama.cpp and vLLM: always, unless declared off).
    pub generate: bool,
}

/// A value that was derived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Derived {
    /// Which: `port`, `backend` …
    pub key: String,
    /// Its value as a person would write it.
    pub value: String,
    /// Where it came from: `"--port" in cmd`, `the file's name` …
    pub from: String,
}

#[cfg(test)]
mod tests;
