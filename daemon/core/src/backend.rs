//! The servers that Berth can run: what to run, how to know that it serves, how to read its failures.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::facts::{DeviceId, Exit};

/// What `berth-launch` executes: complete, nothing is decided after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The program, an absolute path, and its arguments.
    pub argv: Vec<String>,
    /// Variables set on top of the unit's environment.
    pub env: BTreeMap<String, String>,
    /// The working directory; the unit's where none is given.
    pub cwd: Option<PathBuf>,
}

/// A failure as read from a server's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
