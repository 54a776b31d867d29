//! What would happen.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Refusal, Request, Step};
use crate::bytes::Bytes;
use crate::demand::Parts;
use crate::name::ModelName;

/// What would happen: the answer of `POST /api/v1/plan`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanReport {
    /// [`SCHEMA`](super::SCHEMA).
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
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

/// One way to place a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Attempt {
    /// Where, and with what given up, in words.
    pub way: String,
    /// What it needs on each device.
    pub devices: Vec<DeviceShare>,
    /// Whether there is room for it.
    pub outcome: AttemptOutcome,
}

/// What a way needs on one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StepForecast {
    /// The step.
    pub step: Step,
    /// Whose.
    pub model: Option<ModelName>,
    /// From measured times; None without history.
    pub expected_ms: Option<u64>,
}
