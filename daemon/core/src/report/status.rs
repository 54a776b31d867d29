//! How a node is: its GPUs, its host, its models and what is wrong.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{SwapSummary, ValueChange};
use crate::bytes::Bytes;
use crate::facts::Known;
use crate::name::ModelName;

/// The state of one node: `GET /api/v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// [`SCHEMA`](super::SCHEMA).
    pub schema: u32,
    /// The node's name.
    pub node: String,
    /// berthd's version; empty where no daemon was asked.
    pub version: String,
    /// When this was put together.
    pub at_ms: u64,
    /// How long berthd has been up; None where no daemon was asked.
    pub uptime_ms: Option<u64>,
    /// What clients of `default` get.
    pub default: Option<ModelName>,
    /// What an operator last committed: comes back after a failure and a reboot.
    pub home: Vec<ModelName>,
    /// The GPUs, or why they can't be seen.
    pub gpus: Known<Vec<GpuStatus>>,
    /// The host's memory.
    pub host: Known<HostStatus>,
    /// Every declared model, by name.
    pub models: Vec<ModelStatus>,
    /// What is kept for each model on each device.
    #[serde(default)]
    pub placements: Vec<Placement>,
    /// The swap that is under way.
    pub swap: Option<SwapSummary>,
    /// The last one that ended.
    pub last_swap: Option<SwapSummary>,
    /// What is wrong, worst first; empty is good.
    pub problems: Vec<Problem>,
}

/// The nodes: `GET /api/v1/nodes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Nodes {
    /// [`SCHEMA`](super::SCHEMA).
    pub schema: u32,
    /// Each.
    pub nodes: Vec<Node>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// berthd's version.
    pub version: String,
    /// When this was put together.
    pub at_ms: u64,
    /// How long berthd has been up.
    pub uptime_ms: Option<u64>,
    /// What is wrong, worst first.
    pub problems: Vec<Problem>,
}

/// The GPUs and the host's memory: `GET /api/v1/devices`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Devices {
    /// [`SCHEMA`](super::SCHEMA).
    pub schema: u32,
    /// When this was put together.
    pub at_ms: u64,
    /// The GPUs, or why they can't be seen.
    pub gpus: Known<Vec<GpuStatus>>,
    /// The host's memory.
    pub host: Known<HostStatus>,
}

/// Every declared model: `GET /api/v1/models`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Models {
    /// [`SCHEMA`](super::SCHEMA).
    pub schema: u32,
    /// When this was put together.
    pub at_ms: u64,
    /// Each, by name.
    pub models: Vec<ModelStatus>,
}

/// What is kept for models: `GET /api/v1/placements`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Placements {
    /// [`SCHEMA`](super::SCHEMA).
    pub schema: u32,
    /// When this was put together.
    pub at_ms: u64,
    /// For each model that is on its way up, serves, or whose memory is not proved free.
    pub placements: Vec<Placement>,
}

/// What is kept for one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Placement {
    /// Whose.
    pub model: ModelName,
    /// On each of its GPUs.
    pub gpus: Vec<PlacedShare>,
    /// Of the host's memory.
    pub host: Bytes,
}

/// What is kept on one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlacedShare {
    /// NVML's index.
    pub index: u32,
    /// Its UUID.
    pub id: String,
    /// How much.
    pub bytes: Bytes,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GpuStatus {
    /// NVML's index.
    pub index: u32,
    /// Its UUID.
    pub id: String,
    /// Product name.
    pub name: String,
    /// Age of the reading.
    pub age_ms: u64,
    /// Memory, or why it is unknown.
    pub memory: Known<GpuBalance>,
    /// Why nothing is placed there although it is known, and when it is used again; None while it is sound.
    #[serde(default)]
    pub suspect: Option<String>,
    /// Who holds how much, largest first; unknown where the driver does not say.
    pub holders: Known<Vec<Holder>>,
    /// Degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Watts.
    pub power_w: Option<u32>,
    /// Percent.
    pub utilization_percent: Option<u32>,
}

/// A GPU's memory as Berth counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GpuBalance {
    /// Physical.
    pub total: Bytes,
    /// Kept by the driver.
    pub reserved: Bytes,
    /// Allocated now.
    pub used: Bytes,
    /// Allocatable now.
    pub free: Bytes,
    /// Held by processes that are not Berth's models, or by nobody that is known.
    pub foreign: Bytes,
    /// Kept for models by claims, whether allocated yet or not.
    pub kept: Bytes,
    /// Never given to a model.
    pub headroom: Bytes,
}

/// Somebody who holds GPU memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Holder {
    /// The model's name, or the foreign program's.
    pub name: String,
    /// Whether it is one of Berth's models.
    pub ours: bool,
    /// The systemd unit of a foreign program, where it has one.
    #[serde(default)]
    pub unit: Option<String>,
    /// The process ids.
    pub pids: Vec<u32>,
    /// What it holds.
    pub memory: Known<Bytes>,
}

/// The host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostStatus {
    /// `MemTotal`.
    pub total: Bytes,
    /// `MemAvailable`.
    pub available: Bytes,
}

/// One declared model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelStatus {
    /// Its name.
    pub name: ModelName,
    /// What it does now.
    pub state: ModelState,
    /// Indices of the GPUs it is on.
    pub gpus: Vec<u32>,
    /// GPU memory it holds now, measured.
    pub memory: Option<Bytes>,
    /// Since when it is in this state; None when that is not known.
    pub since_ms: Option<u64>,
    /// Where its server listens.
    pub address: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// Main process of its unit.
    pub pid: Option<u32>,
    /// What a switch to it would take, from measured times; None without history.
    pub to_switch_ms: Option<u64>,
    /// By how much it is too big for this machine with everything else stopped; None when it fits.
    pub short: Option<Bytes>,
    /// Why it last failed, in one sentence.
    pub last_error: Option<String>,
    /// What was declared anew since its server was started and holds after a restart of it; nothing where it isn't up.
    #[serde(default)]
    pub drifted: Vec<ValueChange>,
    /// The unit as which it runs, where that is not its own yet but the one that it replaces.
    #[serde(default)]
    pub predecessor: Option<String>,
    /// In whose place it serves, where that is so.
    #[serde(default)]
    pub stands_in_for: Option<ModelName>,
    /// Why it serves, where it is not of home but clients asked for it.
    #[serde(default)]
    pub guest: Option<GuestStatus>,
    /// What clients asked of it through the proxy.
    #[serde(default)]
    pub requests: Requests,
}

/// A model that serves because clients asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestStatus {
    /// Who asked for it first: a client's key or address.
    pub cause: String,
    /// When nobody has for so long, it leaves.
    pub idle_ms: u64,
}

/// The requests for one model since berthd started. Medians are of the newest 100 that reached it; None where nothing is
/// known.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct Requests {
    /// How many have ended.
    pub total: u64,
    /// The same by what came of them: the `code` of a refusal; for those that the model answered `2xx`, `4xx` …; for
    /// answers that did not come to their end `client_gone`, `answer_cut`, `answer_paused`.
    pub outcomes: BTreeMap<String, u64>,
    /// How many it answers now.
    pub under_way: u64,
    /// How many wait for it.
    pub waiting: u64,
    /// Tokens of what was asked, as far as its server said.
    pub prompt_tokens: u64,
    /// Tokens of its answers, likewise.
    pub completion_tokens: u64,
    /// Median of how long one waited.
    pub queued_ms: Option<u64>,
    /// Median from then until the answer began.
    pub first_byte_ms: Option<u64>,
    /// Median from then until the first token of a stream.
    pub first_token_ms: Option<u64>,
    /// Median of its speed in one answer: as its server measured it, else of streams from their first token to their end.
    pub tokens_per_second: Option<f64>,
    /// When the last answer ended.
    pub last_used_ms: Option<u64>,
}

/// What a model does, in the words of those who run models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// Answers requests.
    Serving,
    /// On its way up.
    Loading,
    /// On its way down; its memory is not proved free yet.
    Stopping,
    /// Not running, and not meant to.
    Off,
    /// Would not fit even alone.
    TooBig,
    /// Meant to serve and doesn't.
    Failed,
    /// Failed so often that it is not started again until an operator says so.
    Quarantined,
    /// Declared so; never started.
    Retired,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Stable, for programs: `degraded`, `gpu_unknown`, `gpu_suspect`, `memory_held` …
    pub code: String,
    /// What it is about, where there can be several: a model, a GPU.
    #[serde(default)]
    pub subject: String,
    /// Since when.
    pub since_ms: u64,
    /// What is wrong, where and how much.
    pub text: String,
    /// What to do.
    pub next: String,
}

impl Problem {
    /// What tells it from others: its code and its subject.
    pub fn key(&self) -> String {
        format!("{} {}", self.code, self.subject).trim_end().to_owned()
    }
}
