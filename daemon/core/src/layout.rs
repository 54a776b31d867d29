//! How a model is laid out on the devices of its place: what a backend turns into flags.

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::tuning::Tuning;

/// A layout. Empty where the server is left to itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Layout {
    /// Settings as they were decided: declared ones and concessions. What the user's own flags say isn't in it.
    pub tuning: Tuning,
    /// Layers on each GPU in the place's order, the output as one more on the last; empty where the server divides.
    pub split: Vec<u32>,
    /// Layers whose experts stay on the CPU, ascending.
    pub cpu_experts: Vec<u32>,
    /// What it takes of the host's memory.
    pub host: Bytes,
    /// The processors that it runs on, ascending; empty means all.
    pub cores: Vec<u32>,
    /// Its memory is locked.
    pub lock: bool,
    /// Its scheduling priority as `nice` has it.
    pub nice: i32,
}
