//! What people and programs are shown: one schema for HTTP, events and `berthctl --json`.
//!
//! Moments here are wall-clock milliseconds since 1970 (`*_ms` of events and `since_ms`), durations are
//! milliseconds, memory is bytes. Fields may be added within a schema version; none changes its meaning.

mod plan;
mod status;
mod swap;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::bytes::Bytes;
use crate::name::ModelName;

pub use plan::{Attempt, AttemptOutcome, DeviceShare, GpuChange, PlanReport, StepForecast, Verdict};
pub use status::{
    Devices, GpuBalance, GpuStatus, GuestStatus, Holder, HostStatus, ModelState, ModelStatus, Models, Node,
    Nodes, PlacedShare, Placement, Placements, Problem, Requests, Status,
};
pub use swap::{Outcome, Step, StepReport, StepState, SwapSummary};

/// The version of this schema, in every top-level answer.
pub const SCHEMA: u32 = 1;

/// What an operator asks for. `POST /api/v1/plan` and `POST /api/v1/swaps` take it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
    /// berthd's own: load what clients ask for; home stays what it is. Refused when an operator asks for it.
    Load,
}

impl Verb {
    /// Whether it is berthd's own: it changes nothing of what is desired, and gives way to an operator.
    pub fn is_own(self) -> bool {
        matches!(self, Self::Restore | Self::Load)
    }

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
            Self::Load => "load",
        }
    }
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Actor {
    /// The user's name, or `token NAME`.
    pub user: String,
    /// User id, from the socket's peer credentials; None for who came over TCP with a token.
    #[serde(default)]
    pub uid: Option<u32>,
    /// The asking process, where it is one of this machine's.
    #[serde(default)]
    pub pid: Option<u32>,
}

/// What somebody may do. Each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rights {
    /// Nothing.
    None,
    /// See everything.
    Read,
    /// Ask what a change would do.
    Plan,
    /// Change what serves.
    Operate,
}

impl Rights {
    /// As it is declared.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Read => "read",
            Self::Plan => "plan",
            Self::Operate => "operate",
        }
    }
}

/// Who asks, and what they may do: `GET /api/v1/session`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The user's name, or `token NAME`; None for who shows nothing.
    pub user: Option<String>,
    /// What they may do.
    pub rights: Rights,
}

/// An address that signs a browser in, once: the answer of `POST /api/v1/session`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignIn {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The address.
    pub url: String,
    /// What it gives: the rights of who asked for it.
    pub rights: Rights,
    /// How long it may be used, in seconds.
    pub expires_in_s: u64,
}

/// Why a request was refused, and what would work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// Stable, for programs: `unknown_model`, `retired`, `does_not_fit`, `busy` …
    pub code: String,
    /// What, where, how much.
    pub text: String,
    /// Commands or changes that would help, best first.
    pub hints: Vec<String>,
}

/// The answer to an accepted `POST /api/v1/swaps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClearRequest {
    /// Its index or its UUID, as typed.
    pub device: String,
}

/// What came of clearing a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GivenUp {
    /// Whose it was.
    pub model: ModelName,
    /// How much of it was not back.
    pub bytes: Bytes,
}

/// Something that happened: one SSE message of `GET /api/v1/events`, whose id is `id`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLine {
    /// When.
    pub at_ms: u64,
    /// What it said.
    pub text: String,
}

/// An error of the API: RFC 9457's members. A refusal travels as one, with status 409.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
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
