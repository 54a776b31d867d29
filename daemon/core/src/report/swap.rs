//! A swap, step by step.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Actor, Verb};
use crate::backend::Failure;
use crate::bytes::Bytes;
use crate::name::ModelName;

/// The steps of a swap as people see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
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

impl Step {
    /// What was done, in one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Checked => "checked",
            Self::Prewarmed => "prewarmed",
            Self::Drained => "drained",
            Self::Stopped => "stopped",
            Self::Released => "released",
            Self::Started => "started",
            Self::Ready => "ready",
            Self::Restored => "restored",
        }
    }
}

/// Where a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
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
    /// Whether an operator cancelled it.
    #[serde(default)]
    pub cancelled: bool,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// As asked.
    Done,
    /// It failed, and what served before serves again.
    Restored,
    /// It failed, and not all that should serve does; berthd goes on trying.
    Degraded,
}
