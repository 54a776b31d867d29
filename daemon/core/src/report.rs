//! What people and programs are shown: one schema for HTTP, events and `berthctl --json`.
//!
//! Moments here are wall-clock milliseconds since 1970 (`*_ms` of events and `since_ms`), durations are
//! milliseconds, memory is bytes. Fields may be added within a schema version; none changes its meaning.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backend::Failure;
use crate::bytes::Bytes;
use crate::demand::Parts;
use crate::facts::Known;
use crate::name::ModelName;

/// The version of this schema, in every top-level answer.
pub const SCHEMA: u32 = 1;

/// The state of one node: `GET /api/v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
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
    /// The swap that is under way.
    pub swap: Option<SwapSummary>,
    /// The last one that ended.
    pub last_swap: Option<SwapSummary>,
    /// What is wrong, worst first; empty is good.
    pub problems: Vec<Problem>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// `MemTotal`.
    pub total: Bytes,
    /// `MemAvailable`.
    pub available: Bytes,
}

/// One declared model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// In whose place it serves, where that is so.
    #[serde(default)]
    pub stands_in_for: Option<ModelName>,
}

/// What a model does, in the words of those who run models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// What an operator asks for. `POST /api/v1/plan` and `POST /api/v1/swaps` take it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What to do.
    pub verb: Verb,
    /// The model's name or alias as typed; none for `stop_all` and `back`.
    #[serde(default)]
    pub model: Option<String>,
    /// Settings to try with it, for `switch` and `start`: `ctx`, `kv`, `policy` …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
}

/// What can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Make it `default`; evict only what is in the way.
    Switch,
    /// Add it beside the rest; never evicts.
    Start,
    /// Free its memory; it stays stopped.
    Stop,
    /// Stop every model.
    StopAll,
    /// The same again.
    Restart,
    /// Whatever served before.
    Back,
    /// Lift its quarantine.
    Retry,
    /// berthd's own: bring home back after a failure or a boot. Refused when a client asks for it.
    Restore,
}

impl Verb {
    /// As typed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::StopAll => "stop --all",
            Self::Restart => "restart",
            Self::Back => "back",
            Self::Retry => "retry",
            Self::Restore => "restore",
        }
    }
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// User id, from the socket's peer credentials.
    pub uid: u32,
    /// User name, where there is one.
    pub user: String,
    /// The asking process.
    pub pid: u32,
}

/// What would happen: the answer of `POST /api/v1/plan`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What was asked.
    pub request: Request,
    /// What would come of it.
    pub verdict: Verdict,
    /// Models that would be stopped, in order.
    pub stops: Vec<ModelName>,
    /// Models that would be started, in order.
    pub starts: Vec<ModelName>,
    /// Per GPU that is concerned, before and after.
    pub gpus: Vec<GpuChange>,
    /// The ways to place the model that were tried, in order; the last is what is taken, or came nearest.
    #[serde(default)]
    pub tried: Vec<Attempt>,
    /// The steps, and how long each took lately.
    pub steps: Vec<StepForecast>,
}

/// What would come of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It can be done.
    Go,
    /// It is so already.
    Nothing {
        /// How it is, as one sentence.
        text: String,
    },
    /// It can't be done; nothing was touched.
    Refused(Refusal),
}

/// Why a request was refused, and what would work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// Stable, for programs: `unknown_model`, `retired`, `does_not_fit`, `busy` …
    pub code: String,
    /// What, where, how much.
    pub text: String,
    /// Commands or changes that would help, best first.
    pub hints: Vec<String>,
}

/// One way to place a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Where, and with what given up, in words.
    pub way: String,
    /// What it needs on each device.
    pub devices: Vec<DeviceShare>,
    /// Whether there is room for it.
    pub outcome: AttemptOutcome,
}

/// What a way needs on one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceShare {
    /// NVML's index; None for the host.
    pub gpu: Option<u32>,
    /// In all.
    pub needs: Bytes,
    /// What it could take there; None where that is unknown.
    pub available: Option<Bytes>,
    /// By part, and how each is known.
    pub parts: Parts,
}

/// Whether there is room for a way to place a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum AttemptOutcome {
    /// There is.
    Fits {
        /// What is left on the GPU where least is; on the host where it has none.
        spare: Bytes,
    },
    /// There is not.
    Short {
        /// How much is missing on all devices together.
        by: Bytes,
        /// What is short where.
        text: String,
    },
    /// It can't be said.
    Unknown {
        /// Why.
        text: String,
    },
}

/// One GPU before and after a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuChange {
    /// NVML's index.
    pub index: u32,
    /// Physical memory.
    pub total: Bytes,
    /// Kept by the driver, plus headroom.
    pub unusable: Bytes,
    /// Foreign use, with the programs' names.
    pub foreign: Bytes,
    /// Names of foreign programs, largest first.
    pub foreign_by: Vec<String>,
    /// Models on it now, with what is kept for each.
    pub before: Vec<(ModelName, Bytes)>,
    /// Models on it afterwards.
    pub after: Vec<(ModelName, Bytes)>,
    /// What the model asked for needs here.
    pub needs: Bytes,
    /// What would be available to it here.
    pub available: Bytes,
}

/// How long a step is expected to take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepForecast {
    /// The step.
    pub step: Step,
    /// Whose.
    pub model: Option<ModelName>,
    /// From measured times; None without history.
    pub expected_ms: Option<u64>,
}

/// The steps of a swap as people see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Fit, files, port, program.
    Checked,
    /// Weights read ahead. Not built yet: recorded as skipped.
    Prewarmed,
    /// Running answers ended. Not built yet: recorded as skipped.
    Drained,
    /// Units stopped, their processes gone.
    Stopped,
    /// Memory proved free.
    Released,
    /// Unit started.
    Started,
    /// Answers a request.
    Ready,
    /// What served before serves again.
    Restored,
}

/// Where a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Under way.
    Began,
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// There was nothing to do.
    Skipped,
}

/// One step of one swap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Which.
    pub step: Step,
    /// How far.
    pub state: StepState,
    /// Whether it belongs to the way back after a failure.
    pub rollback: bool,
    /// Whose, where it is one model's.
    pub model: Option<ModelName>,
    /// How long it took, or has taken so far.
    pub elapsed_ms: u64,
    /// From measured times.
    pub expected_ms: Option<u64>,
    /// What there is to say, in plain words: "GPU 0 after 1.31 s, GPU 1 after 2.48 s".
    pub detail: String,
}

/// A swap: the one under way, or one that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SwapSummary {
    /// Counts up on each node, also over restarts.
    pub id: u64,
    /// What was asked.
    pub verb: Verb,
    /// Which model was asked for.
    pub model: Option<ModelName>,
    /// Who asked; None for berthd itself.
    pub by: Option<Actor>,
    /// What it stops.
    pub stops: Vec<ModelName>,
    /// What it starts.
    pub starts: Vec<ModelName>,
    /// Where: indices of the GPUs of what it starts (of what it stops when it starts nothing).
    pub gpus: Vec<u32>,
    /// What it starts takes on each of those GPUs, in the same order.
    pub gpu_bytes: Vec<Bytes>,
    /// When it began.
    pub began_ms: u64,
    /// How long it took, or has taken so far.
    pub elapsed_ms: u64,
    /// From measured times.
    pub expected_ms: Option<u64>,
    /// Its steps so far.
    pub steps: Vec<StepReport>,
    /// How it ended; None while it is under way.
    pub outcome: Option<Outcome>,
    /// Why it failed, in one sentence.
    pub reason: Option<String>,
    /// The classified failure of the model that did not start, where that was it.
    pub failure: Option<Failure>,
    /// Memory that was still held when the last stopped process had ended.
    pub held_at_exit: Option<Bytes>,
    /// Whether a start at that moment would have run out of memory.
    pub early_start_would_fail: bool,
    /// From the first stop until something served again.
    pub gap_ms: Option<u64>,
    /// What serves now.
    pub serving: Vec<ModelName>,
    /// What clients of `default` get now.
    pub default: Option<ModelName>,
    /// The command that undoes it.
    pub undo: Option<String>,
}

/// How a swap ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As asked.
    Done,
    /// It failed, and what served before serves again.
    Restored,
    /// It failed, and not all that should serve does; berthd goes on trying.
    Degraded,
}

/// The answer to an accepted `POST /api/v1/swaps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accepted {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The swap's id; None when there was nothing to do.
    pub swap: Option<u64>,
    /// Follow `GET /api/v1/events?after=` from here to miss nothing.
    pub after: u64,
    /// What will happen.
    pub plan: PlanReport,
}

/// The answer of `POST /api/v1/repair`: what was done about a ledger that was damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repaired {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What was wrong with it; None where it was sound, and nothing was changed.
    pub damage: Option<String>,
    /// Where the damaged file is kept.
    pub kept: Option<String>,
    /// The line of it whose state counts from now on; None where none can be believed, so that Berth begins anew from
    /// what runs.
    pub line: Option<usize>,
    /// What an operator last committed, as far as is known now.
    pub home: Vec<ModelName>,
    /// What clients of `default` get.
    pub default: Option<ModelName>,
    /// What serves now, untouched.
    pub serving: Vec<ModelName>,
}

/// Which GPU is to be cleared. `POST /api/v1/devices/clear` takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClearRequest {
    /// Its index or its UUID, as typed.
    pub device: String,
}

/// What came of clearing a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleared {
    /// [`SCHEMA`].
    pub schema: u32,
    /// NVML's index.
    pub index: u32,
    /// Its UUID.
    pub id: String,
    /// Why it was suspect; None where it was not.
    pub suspect: Option<String>,
    /// Why it is still not used; None where it is.
    pub unusable: Option<String>,
    /// Memory of models that ended which is no longer awaited there.
    pub given_up: Vec<GivenUp>,
    /// Memory of models that ended which is still awaited there, each in one sentence.
    pub kept: Vec<String>,
}

/// Memory that is no longer awaited, since nobody is listed for it. It counts as foreign use for as long as it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// Whose it was.
    pub model: ModelName,
    /// How much of it was not back.
    pub bytes: Bytes,
}

/// Something that happened: one SSE message of `GET /api/v1/events`, whose id is `id`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Counts up from berthd's start.
    pub id: u64,
    /// When.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)]
pub enum What {
    /// A swap began.
    SwapBegan {
        /// As it stands.
        swap: SwapSummary,
    },
    /// A step of a swap began, went on or ended.
    SwapStep {
        /// The swap's id.
        swap: u64,
        /// The step.
        step: StepReport,
    },
    /// A swap ended.
    SwapEnded {
        /// All of it.
        swap: SwapSummary,
    },
    /// A model changed its state outside a swap.
    Model {
        /// Which.
        model: ModelName,
        /// What it does now.
        state: ModelState,
        /// Why, in one sentence.
        text: String,
    },
    /// A problem began.
    ProblemBegan {
        /// Which.
        problem: Problem,
    },
    /// A problem ended.
    ProblemEnded {
        /// Its code.
        code: String,
        /// What is over, in words.
        text: String,
    },
}

/// One line of a model's log: one line of `GET /api/v1/models/NAME/logs` (JSON, a line each).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When.
    pub at_ms: u64,
    /// What it said.
    pub text: String,
}

/// An error of the API: RFC 9457's members. A refusal travels as one, with status 409.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApiProblem {
    /// The HTTP status.
    pub status: u16,
    /// Stable, for programs.
    pub code: String,
    /// What went wrong.
    pub title: String,
    /// What to do, best first.
    #[serde(default)]
    pub hints: Vec<String>,
    /// The plan that was refused, where there was one.
    #[serde(default)]
    pub plan: Option<PlanReport>,
}
