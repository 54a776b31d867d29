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
    /// The settings by the keys under which they are declared. `kv` stands for `kv_k` and `kv_v` alike.
    pub const KEYS: [&'static str; 11] = [
        "ctx",
        "kv",
        "kv_k",
        "kv_v",
        "slots",
        "unified",
        "ubatch",
        "gpu_layers",
        "cpu_experts",
        "threads",
        "utilization",
    ];

    /// What a key's value must be, in words.
    pub fn expected(key: &str) -> &'static str {
        match key {
            "ctx" => "a number of tokens, for example 32768",
            "kv" | "kv_k" | "kv_v" => "a type of KV cache, for example \"q8_0\"",
            "slots" => "a number of slots from 1 to 65536",
            "unified" => "true or false",
            "ubatch" => "a number of tokens, for example 512",
            "gpu_layers" | "cpu_experts" => "a number of layers from 0 to 100000",
            "threads" => "a number of threads from 1 to 4096",
            _ => "a share of each GPU from 0.01 to 1.00, in hundredths",
        }
    }

    /// Sets what stands under `key`, from the value as it is written.
    pub fn set(&mut self, key: &str, text: &str) -> Result<(), BadSetting> {
        fn number<T: FromStr + PartialOrd>(text: &str, least: T, most: T) -> Option<T> {
            text.parse().ok().filter(|number| (least..=most).contains(number))
        }
        let bad = || BadSetting::Value { key: key.to_owned(), text: text.to_owned() };
        match key {
            "ctx" => self.ctx = Some(number(text, 1, MOST_TOKENS).ok_or_else(bad)?),
            "kv" => (self.kv_k, self.kv_v) = (Some(text.parse()?), Some(text.parse()?)),
            "kv_k" => self.kv_k = Some(text.parse()?),
            "kv_v" => self.kv_v = Some(text.parse()?),
            "slots" => self.slots = Some(number(text, 1, 65_536).ok_or_else(bad)?),
            "unified" => self.unified = Some(text.parse().map_err(|_| bad())?),
            "ubatch" => self.ubatch = Some(number(text, 1, MOST_TOKENS).ok_or_else(bad)?),
            "gpu_layers" => self.gpu_layers = Some(number(text, 0, MOST_LAYERS).ok_or_else(bad)?),
            "cpu_experts" => self.cpu_experts = Some(number(text, 0, MOST_LAYERS).ok_or_else(bad)?),
            "threads" => self.threads = Some(number(text, 1, 4096).ok_or_else(bad)?),
            "utilization" => self.utilization = Some(hundredths(text).ok_or_else(bad)?),
            _ => return Err(BadSetting::Key(key.to_owned())),
        }
        Ok(())
    }

    /// Leaves what stands under `key` to whoever else says it.
    pub fn clear(&mut self, key: &str) {
        match key {
            "ctx" => self.ctx = None,
            "kv" => (self.kv_k, self.kv_v) = (None, None),
            "kv_k" => self.kv_k = None,
            "kv_v" => self.kv_v = None,
            "slots" => self.slots = None,
            "unified" => self.unified = None,
            "ubatch" => self.ubatch = None,
            "gpu_layers" => self.gpu_layers = None,
            "cpu_experts" => self.cpu_experts = None,
            "threads" => self.threads = None,
            "utilization" => self.utilization = None,
            _ => {}
        }
    }

    /// What stands under `key`, as it is written. None where nothing does, and for `kv` where keys and values are kept
    /// differently.
    pub fn get(&self, key: &str) -> Option<String> {
        let shown = |value: Option<u64>| value.map(|value| value.to_string());
        match key {
            "ctx" => shown(self.ctx),
            "kv" => self.kv_k.filter(|kind| self.kv_v == Some(*kind)).map(|kind| kind.to_string()),
            "kv_k" => self.kv_k.map(|kind| kind.to_string()),
            "kv_v" => self.kv_v.map(|kind| kind.to_string()),
            "slots" => shown(self.slots.map(u64::from)),
            "unified" => self.unified.map(|unified| unified.to_string()),
            "ubatch" => shown(self.ubatch),
            "gpu_layers" => shown(self.gpu_layers.map(u64::from)),
            "cpu_experts" => shown(self.cpu_experts.map(u64::from)),
            "threads" => shown(self.threads.map(u64::from)),
            "utilization" => self.utilization.map(|share| format!("{}.{:02}", share / 100, share % 100)),
            _ => None,
        }
    }

    /// This without what `other` says.
    pub fn without(self, other: &Self) -> Self {
        fn unless<T: Copy>(other: Option<T>, own: Option<T>) -> Option<T> {
            if other.is_some() { None } else { own }
        }
        Self {
            ctx: unless(other.ctx, self.ctx),
            kv_k: unless(other.kv_k, self.kv_k),
            kv_v: unless(other.kv_v, self.kv_v),
            slots: unless(other.slots, self.slots),
            unified: unless(other.unified, self.unified),
            ubatch: unless(other.ubatch, self.ubatch),
            gpu_layers: unless(other.gpu_layers, self.gpu_layers),
            cpu_experts: unless(other.cpu_experts, self.cpu_experts),
            threads: unless(other.threads, self.threads),
            utilization: unless(other.utilization, self.utilization),
        }
    }

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

/// More than any model's context.
const MOST_TOKENS: u64 = 1 << 31;

/// More layers than any model has: all of them.
pub const MOST_LAYERS: u32 = 100_000;

/// `0.90` as 90.
fn hundredths(text: &str) -> Option<u32> {
    let share = text.parse::<f64>().ok()? * 100.0;
    // Half a thousandth of slack for what decimals lose in a double.
    let whole = (1..=100).find(|whole| (f64::from(*whole) - share).abs() < 0.000_5);
    whole.filter(|_| share.is_finite())
}

/// What is no setting.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadSetting {
    /// There is no such key.
    #[error("there is no setting `{}`; there are {}", .0.escape_debug(), Tuning::KEYS.join(", "))]
    Key(String),
    /// It can't have this value.
    #[error("`{key}` must be {}, not `{}`", Tuning::expected(.key), .text.escape_debug())]
    Value {
        /// Which setting.
        key: String,
        /// What was given.
        text: String,
    },
    /// It is kept in no such way.
    #[error(transparent)]
    Kv(#[from] BadKvType),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn settings_are_read_as_they_are_shown() {
        let values = ["131072", "q4_0", "q8_0", "f16", "4", "false", "1024", "99", "6", "8", "0.90"];
        for (key, value) in Tuning::KEYS.into_iter().zip(values) {
            let mut tuning = Tuning::default();
            tuning.set(key, value).unwrap();
            assert_eq!(tuning.get(key).unwrap(), value, "{key}");
            tuning.clear(key);
            assert_eq!(tuning, Tuning::default(), "{key}");
        }
        let mut tuning = Tuning::default();
        assert_eq!((tuning.set("kv_k", "q8_0"), tuning.set("kv_v", "f16")), (Ok(()), Ok(())));
        assert_eq!(tuning.get("kv"), None);
    }

    #[test]
    fn bad_settings_are_refused() {
        let bad = [
            ("ctx", "0"),
            ("ctx", "32K"),
            ("ctx", "-1"),
            ("kv", "q9_0"),
            ("slots", "0"),
            ("unified", "yes"),
            ("threads", "5000"),
            ("utilization", "0"),
            ("utilization", "0.925"),
            ("utilization", "1.01"),
            ("utilization", "NaN"),
            ("context", "1"),
        ];
        let mut tuning = Tuning::default();
        for (key, value) in bad {
            assert!(tuning.set(key, value).is_err(), "{key}={value}");
        }
        assert_eq!(tuning, Tuning::default());
        assert_eq!((tuning.set("utilization", ".5"), tuning.utilization), (Ok(()), Some(50)));
    }
}
