//! Settings of a server that decide how much memory it takes: declared, given by its own flags, or conceded.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Such settings; None leaves one to whoever else says it, in the end to the server's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tuning {
    /// Tokens of context, of all slots together for llama.cpp, of one request for vLLM.
    pub ctx: Option<u64>,
    /// How keys are kept.
    pub kv_k: Option<KvType>,
    /// How values are kept.
    pub kv_v: Option<KvType>,
    /// Requests that are answered at once.
    pub slots: Option<u32>,
    /// Whether slots share one pool of context.
    pub unified: Option<bool>,
    /// Tokens that are computed at once.
    pub ubatch: Option<u64>,
    /// Layers on GPUs, the last ones; the output counts as one.
    pub gpu_layers: Option<u32>,
    /// Of how many layers, the last ones, the experts stay on the CPU.
    pub cpu_experts: Option<u32>,
    /// Threads that compute on the CPU.
    pub threads: Option<u32>,
    /// Hundredths of each GPU that vLLM takes.
    pub utilization: Option<u32>,
}

impl Tuning {
    /// This, and where it is silent `otherwise`.
    pub fn or(self, otherwise: Self) -> Self {
        Self {
            ctx: self.ctx.or(otherwise.ctx),
            kv_k: self.kv_k.or(otherwise.kv_k),
            kv_v: self.kv_v.or(otherwise.kv_v),
            slots: self.slots.or(otherwise.slots),
            unified: self.unified.or(otherwise.unified),
            ubatch: self.ubatch.or(otherwise.ubatch),
            gpu_layers: self.gpu_layers.or(otherwise.gpu_layers),
            cpu_experts: self.cpu_experts.or(otherwise.cpu_experts),
            threads: self.threads.or(otherwise.threads),
            utilization: self.utilization.or(otherwise.utilization),
        }
    }
}

/// How elements of the KV cache are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvType {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
    /// 16 bits.
    Bf16,
    /// 8 bits, vLLM only.
    Fp8,
    /// 8.5 bits.
    Q8_0,
    /// 6 bits.
    Q5_1,
    /// 5.5 bits.
    Q5_0,
    /// 5 bits.
    Q4_1,
    /// 4.5 bits.
    Q4_0,
    /// 4.5 bits.
    Iq4Nl,
}

impl KvType {
    /// All of them with their names, largest first.
    pub const ALL: [(&'static str, Self); 10] = [
        ("f32", Self::F32),
        ("f16", Self::F16),
        ("bf16", Self::Bf16),
        ("fp8", Self::Fp8),
        ("q8_0", Self::Q8_0),
        ("q5_1", Self::Q5_1),
        ("q5_0", Self::Q5_0),
        ("q4_1", Self::Q4_1),
        ("q4_0", Self::Q4_0),
        ("iq4_nl", Self::Iq4Nl),
    ];

    /// Bytes of 32 elements: llama.cpp keeps quantized ones in blocks of 32 with their scale (ggml-common.h).
    pub const fn bytes_of_32(self) -> u64 {
        match self {
            Self::F32 => 128,
            Self::F16 | Self::Bf16 => 64,
            Self::Fp8 => 32,
            Self::Q8_0 => 34,
            Self::Q5_1 => 24,
            Self::Q5_0 => 22,
            Self::Q4_1 => 20,
            Self::Q4_0 | Self::Iq4Nl => 18,
        }
    }

    /// Whether elements are kept in blocks: such values need flash attention.
    pub const fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16 | Self::Fp8)
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(_, kind)| kind == self).map_or("", |(name, _)| name);
        f.pad(name)
    }
}

/// No such type.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is no type of KV cache; there are f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl and, for vLLM, fp8"
)]
pub struct BadKvType(pub String);

impl FromStr for KvType {
    type Err = BadKvType;

    fn from_str(text: &str) -> Result<Self, BadKvType> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text);
        found.map(|(_, kind)| *kind).ok_or_else(|| BadKvType(text.to_owned()))
    }
}
