//! What was: the answers of `GET /api/v1/history/…`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Event, Problem, SwapSummary};
use crate::bytes::Bytes;

/// The devices over a time: `GET /api/v1/history/devices`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DevicesHistory {
    /// [`SCHEMA`](super::SCHEMA).
    pub schema: u32,
    /// From when.
    pub since_ms: u64,
    /// Until when.
    pub until_ms: u64,
    /// Each device that was seen in that time: GPUs by index, then the host.
    pub devices: Vec<DeviceHistory>,
}

/// One device over a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceHistory {
    /// A GPU's UUID, or `host`.
    pub id: String,
    /// NVML's index when it was seen last; None for the host.
    pub index: Option<u32>,
    /// Its memory; None where that was never known.
    pub total: Option<Bytes>,
    /// What was seen of it, oldest first. A time in which nothing was seen has none.
    pub samples: Vec<DeviceSample>,
}

/// What was seen of a device: at a moment, or the mean over a while that begins then. None is unknown, not nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct DeviceSample {
    /// When.
    pub at_ms: u64,
    /// Allocated; of the host: MemTotal − MemAvailable.
    pub used: Option<Bytes>,
    /// The most that was allocated at any reading of that while.
    pub used_max: Option<Bytes>,
    /// Kept for models by claims; unknown for the host.
    pub kept: Option<Bytes>,
    /// Held by others; unknown for the host.
    pub foreign: Option<Bytes>,
    /// Allocatable; of the host: MemAvailable.
    pub free: Option<Bytes>,
    /// Degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Watts.
    pub power_w: Option<u32>,
    /// Percent.
    pub utilization_percent: Option<u32>,
}

/// Swaps that were: `GET /api/v1/history/swaps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SwapsHistory {
    /// [`SCHEMA`](super::SCHEMA).
    pub schema: u32,
    /// Newest first, with their steps. One without an outcome is under way; where it has a `reason` it was cut off with
    /// berthd's end.
    pub swaps: Vec<SwapSummary>,
}

/// One swap that was: `GET /api/v1/history/swaps/ID`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SwapHistory {
    /// [`SCHEMA`](super::SCHEMA).
    pub schema: u32,
    /// The swap.
    pub swap: SwapSummary,
}

/// What happened: `GET /api/v1/history/events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventsHistory {
    /// [`SCHEMA`](super::SCHEMA).
    pub schema: u32,
    /// Newest first.
    pub events: Vec<Event>,
}

/// What was wrong: `GET /api/v1/history/problems`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemsHistory {
    /// [`SCHEMA`](super::SCHEMA).
    pub schema: u32,
    /// By when they began, newest first.
    pub problems: Vec<PastProblem>,
}

/// Something that was wrong, or still is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PastProblem {
    /// As it was when it began.
    #[serde(flatten)]
    pub problem: Problem,
    /// When it was over; None while it stands.
    pub ended_ms: Option<u64>,
}
