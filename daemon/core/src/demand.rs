//! How much memory a model takes on each device, by part, and how each part is known.

pub mod llama_cpp;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::bytes::Bytes;

/// What a model takes, laid out in one way.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Demand {
    /// On each GPU, in the layout's order.
    pub gpus: Vec<Parts>,
    /// On the host, mapped weights included.
    pub host: Parts,
}

/// What it takes on one device. Parts that are nothing are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Parts(pub Vec<Part>);

/// One part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Part {
    /// What it is for.
    pub what: What,
    /// How much.
    pub bytes: Bytes,
    /// How that is known.
    pub source: Source,
}

/// What memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = MemoryUse)]
pub enum What {
    /// The model's tensors.
    Weights,
    /// Keys and values of layers that see all of the context.
    KvGlobal,
    /// Keys and values of layers that see a window of it.
    KvSliding,
    /// State of recurrent layers.
    Recurrent,
    /// Buffers to compute in.
    Compute,
    /// What the driver keeps for a process: its context, its libraries' kernels.
    Overhead,
    /// The projector of a model that sees or hears.
    Projector,
    /// A draft model or MTP layers, with their own KV and buffers.
    Draft,
    /// All of it, where no parts are known: declared, or the server's own rule.
    Whole,
}

/// How an amount is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Computed to the byte from the file's header.
    Exact,
    /// By a formula that fits what was measured elsewhere.
    Estimated,
    /// Written in the configuration.
    Declared,
    /// Measured here, when it ran like this last.
    Learned,
}

impl Parts {
    /// Adds to a part, unless it is nothing.
    pub fn add(&mut self, what: What, bytes: Bytes, source: Source) {
        if bytes > Bytes::ZERO {
            match self.0.iter_mut().find(|part| part.what == what && part.source == source) {
                Some(part) => part.bytes = part.bytes.plus(bytes),
                None => self.0.push(Part { what, bytes, source }),
            }
        }
    }

    /// All parts together.
    pub fn total(&self) -> Bytes {
        self.0.iter().map(|part| part.bytes).sum()
    }

    /// What is there whichever layers are: buffers to compute in and what the driver keeps.
    pub fn fixed(&self) -> Bytes {
        [What::Compute, What::Overhead, What::Projector, What::Draft]
            .map(|what| self.of(what))
            .into_iter()
            .sum()
    }

    /// How much of it is for this.
    pub fn of(&self, what: What) -> Bytes {
        self.0.iter().filter(|part| part.what == what).map(|part| part.bytes).sum()
    }
}
