//! Placement policies: where a model may go, and what it may give up for a place.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::tuning::{BadKvType, KvType};

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

/// Left free of the host's memory where a policy says nothing: for the page cache, the desktop and what else runs. A
/// judgement: a sixteenth of the smallest machine on which a model is worth running.
const HOST_HEADROOM: Bytes = Bytes::mib(2048);

impl Policy {
    /// Whether it allows any GPU.
    pub fn uses_gpus(&self) -> bool {
        self.devices.iter().any(|devices| *devices != Devices::Host)
    }
}

impl Default for HostRules {
    fn default() -> Self {
        Self { cores: Cores::All, threads: None, lock: false, nice: 0, memory: None, headroom: HOST_HEADROOM }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Host => f.write_str("host"),
            Self::Index(index) => write!(f, "{index}"),
            Self::Uuid(text) | Self::Name(text) => f.write_str(text),
        }
    }
}

/// What names no devices.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("this names no GPU")]
pub struct BadDevices;

impl FromStr for Devices {
    type Err = BadDevices;

    fn from_str(text: &str) -> Result<Self, BadDevices> {
        match text {
            "all" => Ok(Self::All),
            "host" => Ok(Self::Host),
            _ if text.trim().is_empty() => Err(BadDevices),
            _ if text.bytes().all(|b| b.is_ascii_digit()) => {
                text.parse().map(Self::Index).map_err(|_| BadDevices)
            }
            _ if text.starts_with("GPU-") || text.starts_with("MIG-") => Ok(Self::Uuid(text.to_owned())),
            _ => Ok(Self::Name(text.to_owned())),
        }
    }
}

impl fmt::Display for Concession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Experts => f.write_str("experts"),
            Self::Kv(kind) => write!(f, "kv {kind}"),
            Self::Ctx(tokens) => write!(f, "ctx {tokens}"),
            Self::Layers => f.write_str("layers"),
        }
    }
}

/// What nothing can be given up by.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadConcession {
    /// It is no word of a ladder.
    #[error("write \"experts\", \"kv TYPE\", \"ctx TOKENS\" or \"layers\"")]
    Word,
    /// Its KV type is none.
    #[error(transparent)]
    Kv(#[from] BadKvType),
    /// Its context is no number.
    #[error("`{0}` is no number of tokens, for example \"ctx 16384\"")]
    Ctx(String),
}

impl FromStr for Concession {
    type Err = BadConcession;

    fn from_str(text: &str) -> Result<Self, BadConcession> {
        match text.split_whitespace().collect::<Vec<_>>()[..] {
            ["experts"] => Ok(Self::Experts),
            ["layers"] => Ok(Self::Layers),
            ["kv", kind] => Ok(Self::Kv(kind.parse()?)),
            ["ctx", tokens] => {
                let number = tokens.parse().ok().filter(|tokens| *tokens > 0);
                number.map(Self::Ctx).ok_or_else(|| BadConcession::Ctx(tokens.to_owned()))
            }
            _ => Err(BadConcession::Word),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn concessions_and_devices_are_read_as_they_are_shown() {
        for text in ["experts", "kv q8_0", "ctx 16384", "layers"] {
            assert_eq!(text.parse::<Concession>().unwrap().to_string(), text);
        }
        for bad in ["", "expert", "kv", "kv q9", "ctx", "ctx 0", "ctx many", "layers 3"] {
            assert!(bad.parse::<Concession>().is_err(), "{bad}");
        }
        let read = |text: &str| text.parse::<Devices>().unwrap();
        assert_eq!(read("1"), Devices::Index(1));
        assert_eq!(read("GPU-8fe1"), Devices::Uuid("GPU-8fe1".into()));
        assert_eq!(read("RTX 5060*"), Devices::Name("RTX 5060*".into()));
        assert_eq!((read("all"), read("host")), (Devices::All, Devices::Host));
        assert!(" ".parse::<Devices>().is_err() && "99999999999".parse::<Devices>().is_err());
    }
}
