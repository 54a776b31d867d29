//! Placement policies: where a model may go, and what it may give up for a place.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::tuning::KvType;

/// How models may be placed. What ships with Berth is in `policies/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Its name: the file's.
    pub name: String,
    /// The file; None for one that ships with Berth.
    pub source: Option<PathBuf>,
    /// The devices that it may use. `Host` alone means no GPU.
    pub devices: Vec<Devices>,
    /// Over how many GPUs.
    pub spread: Spread,
    /// How layers are divided among them.
    pub fill: Fill,
    /// GPU memory that is left free on each device; the node's where it says nothing.
    pub headroom: Option<Bytes>,
    /// Whether other models may be on the same GPUs.
    pub shares: bool,
    /// Of what served before, models with a higher one come back first; a model's own counts more.
    pub priority: i32,
    /// Whom a switch may stop for it.
    pub evicts: Evicts,
    /// What is given up, one after the other, until there is a place. Each keeps those before it.
    pub ladder: Vec<Concession>,
    /// What holds on the host.
    pub host: HostRules,
}

/// Devices by what names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Devices {
    /// Every GPU.
    All,
    /// The host: its memory and processors.
    Host,
    /// The GPU with this index.
    Index(u32),
    /// The GPU with this UUID.
    Uuid(String),
    /// GPUs whose product name matches, `*` standing for anything.
    Name(String),
}

/// Over how many GPUs a model is laid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// As few as hold it.
    Fewest,
    /// All that are allowed.
    All,
    /// So many.
    Exactly(u32),
}

/// How layers are divided among several GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// So that each has about the same share of what is available on it.
    Even,
    /// One after the other.
    InOrder,
}

/// Whom a switch may stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evicts {
    /// Whoever is in the way.
    Any,
    /// Those of a lower priority.
    Lower,
    /// Nobody.
    None,
}

/// Something that is given up for a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Concession {
    /// Experts of the last layers stay on the CPU: as few layers as make it fit.
    Experts,
    /// Keys and values are kept like this.
    Kv(KvType),
    /// So much context.
    Ctx(u64),
    /// Whole layers stay on the CPU, the first ones: as few as make it fit.
    Layers,
}

/// How a model may use the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRules {
    /// The processors that it runs on.
    pub cores: Cores,
    /// Threads that compute; as many as it has processors where it says nothing.
    pub threads: Option<u32>,
    /// Its memory is locked: it is never paged out.
    pub lock: bool,
    /// Its scheduling priority as `nice` has it; a negative one is a higher priority.
    pub nice: i32,
    /// It takes at most so much of the host's memory.
    pub memory: Option<Bytes>,
    /// So much of the host's memory is left free.
    pub headroom: Bytes,
}

/// A set of processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cores {
    /// All of them.
    All,
    /// One of each physical core.
    Physical,
    /// One of each fast core.
    Performance,
    /// One of each economical core.
    Efficiency,
    /// These.
    These(Vec<u32>),
}
