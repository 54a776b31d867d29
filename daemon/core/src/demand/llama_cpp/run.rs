//! What a llama-server is told that decides how much memory it takes: from its arguments, its environment and what
//! Berth decided.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::backend::{Given, Spelling, flag};
use crate::tuning::{KvType, Tuning};

/// The settings of one llama-server.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Tokens of context, of all slots together; 0 for what the model was trained for.
    pub ctx: u64,
    /// How keys are kept.
    pub kv_k: KvType,
    /// How values are kept.
    pub kv_v: KvType,
    /// Requests that are answered at once.
    pub slots: u32,
    /// Whether slots share one pool of context.
    pub unified: bool,
    /// Tokens that are taken at once.
    pub batch: u64,
    /// Tokens that are computed at once.
    pub ubatch: u64,
    /// Sliding layers keep all of the context too.
    pub swa_full: bool,
    /// Whether attention is computed without its whole matrix.
    pub flash: Flash,
    /// The file's weights are mapped.
    pub mmap: bool,
    /// Keys and values lie where their layer lies; on the host otherwise.
    pub kv_offload: bool,
    /// GPUs compute with weights that lie on the host, where many tokens are computed at once.
    pub op_offload: bool,
    /// Layers on GPUs, the last ones, the output as one; None where the server decides.
    pub gpu_layers: Option<u32>,
    /// Where single tensors go, the first that matches.
    pub overrides: Vec<Override>,
    /// Shares of the model for each GPU, as given.
    pub tensor_split: Option<Vec<f32>>,
    /// How the model is divided among GPUs.
    pub split_mode: SplitMode,
    /// The GPU that does what is not divided.
    pub main_gpu: u32,
    /// The projector's file.
    pub projector: Option<PathBuf>,
    /// The projector is on a GPU.
    pub projector_offload: bool,
    /// What predicts tokens ahead, where something does.
    pub draft: Option<Draft>,
}

/// Whether flash attention is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flash {
    /// Wherever the devices can.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How a model is divided among GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitMode {
    /// One GPU has all of it.
    None,
    /// By layers.
    Layer,
    /// Each matrix by its rows; all else is on the main GPU.
    Row,
    /// Each matrix, with keys and values.
    Tensor,
}

/// Tensors whose names match go into such a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// A regular expression that is searched in a tensor's name.
    pub pattern: String,
    /// The buffer's type, `CPU` or a device as `CUDA1`.
    pub buffer: String,
}

/// A second context that predicts tokens ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The model's file; None where the model's own layers predict.
    pub file: Option<PathBuf>,
    /// Layers for that purpose predict (MTP).
    pub mtp: bool,
    /// Its layers on GPUs; None for all of them.
    pub gpu_layers: Option<u32>,
    /// How its keys are kept.
    pub kv_k: KvType,
    /// How its values are kept.
    pub kv_v: KvType,
    /// Tokens that it predicts at most.
    pub tokens: u64,
}

/// A setting that can't be understood: the server would not start with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{by}` is `{text}`; llama-server wants {wanted}")]
pub struct BadSetting {
    /// The flag or variable.
    pub by: String,
    /// Its value.
    pub text: String,
    /// What would be one.
    pub wanted: &'static str,
}

const fn spelling(flags: &'static [&'static str], variable: &'static str) -> Spelling {
    Spelling { flags, variable: Some(variable) }
}

const CTX: Spelling = spelling(&["-c", "--ctx-size"], "LLAMA_ARG_CTX_SIZE");
const KV_K: Spelling = spelling(&["-ctk", "--cache-type-k"], "LLAMA_ARG_CACHE_TYPE_K");
const KV_V: Spelling = spelling(&["-ctv", "--cache-type-v"], "LLAMA_ARG_CACHE_TYPE_V");
const SLOTS: Spelling = spelling(&["-np", "--parallel"], "LLAMA_ARG_N_PARALLEL");
const BATCH: Spelling = spelling(&["-b", "--batch-size"], "LLAMA_ARG_BATCH");
const UBATCH: Spelling = spelling(&["-ub", "--ubatch-size"], "LLAMA_ARG_UBATCH");
const FLASH: Spelling = spelling(&["-fa", "--flash-attn"], "LLAMA_ARG_FLASH_ATTN");
const GPU_LAYERS: Spelling = spelling(&["-ngl", "--gpu-layers", "--n-gpu-layers"], "LLAMA_ARG_N_GPU_LAYERS");
const TENSOR_SPLIT: Spelling = spelling(&["-ts", "--tensor-split"], "LLAMA_ARG_TENSOR_SPLIT");
const SPLIT_MODE: Spelling = spelling(&["-sm", "--split-mode"], "LLAMA_ARG_SPLIT_MODE");
const MAIN_GPU: Spelling = spelling(&["-mg", "--main-gpu"], "LLAMA_ARG_MAIN_GPU");
const PROJECTOR: Spelling = spelling(&["-mm", "--mmproj"], "LLAMA_ARG_MMPROJ");
const DRAFT: Spelling =
    spelling(&["-md", "--model-draft", "--spec-draft-model"], "LLAMA_ARG_SPEC_DRAFT_MODEL");
const DRAFT_KIND: Spelling = spelling(&["--spec-type"], "LLAMA_ARG_SPEC_TYPE");
const DRAFT_TOKENS: Spelling = spelling(&["--spec-draft-n-max"], "LLAMA_ARG_SPEC_DRAFT_N_MAX");
const DRAFT_GPU_LAYERS: Spelling = spelling(
    &["-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft", "--spec-draft-ngl"],
    "LLAMA_ARG_N_GPU_LAYERS_DRAFT",
);
const DRAFT_KV_K: Spelling =
    spelling(&["-ctkd", "--cache-type-k-draft", "--spec-draft-type-k"], "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K");
const DRAFT_KV_V: Spelling =
    spelling(&["-ctvd", "--cache-type-v-draft", "--spec-draft-type-v"], "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V");

/// A setting with one flag for yes and one for no. The variable for no is the other with `NO_`, and wins.
struct Toggle {
    yes: &'static [&'static str],
    no: &'static [&'static str],
    variable: &'static str,
}

const UNIFIED: Toggle = Toggle {
    yes: &["-kvu", "--kv-unified"],
    no: &["-no-kvu", "--no-kv-unified"],
    variable: "LLAMA_ARG_KV_UNIFIED",
};
const SWA_FULL: Toggle = Toggle { yes: &["--swa-full"], no: &[], variable: "LLAMA_ARG_SWA_FULL" };
const MMAP: Toggle = Toggle { yes: &["--mmap"], no: &["--no-mmap"], variable: "LLAMA_ARG_MMAP" };
const KV_OFFLOAD: Toggle = Toggle {
    yes: &["-kvo", "--kv-offload"],
    no: &["-nkvo", "--no-kv-offload"],
    variable: "LLAMA_ARG_KV_OFFLOAD",
};
const OP_OFFLOAD: Toggle =
    Toggle { yes: &["--op-offload"], no: &["--no-op-offload"], variable: "LLAMA_ARG_OP_OFFLOAD" };
const PROJECTOR_OFFLOAD: Toggle =
    Toggle { yes: &["--mmproj-offload"], no: &["--no-mmproj-offload"], variable: "LLAMA_ARG_MMPROJ_OFFLOAD" };

/// Which tensors are of experts, as the server's own options for them say it.
const EXPERTS: &str = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps";

/// llama.cpp takes no model with more layers.
const MOST_LAYERS: u32 = 512;

/// A llama-server's command line and environment.
struct Told<'a> {
    args: &'a [String],
    env: &'a BTreeMap<String, String>,
}

impl Told<'_> {
    fn given(&self, spelling: &Spelling) -> Option<Given> {
        spelling.given(self.args, self.env)
    }

    /// A setting read by `read`, which gives None for what it can't read.
    fn read<T>(
        &self,
        spelling: &Spelling,
        wanted: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, BadSetting> {
        self.given(spelling)
            .map(|Given { text, by, .. }| read(text.trim()).ok_or(BadSetting { by, text, wanted }))
            .transpose()
    }

    fn number(&self, spelling: &Spelling) -> Result<Option<u64>, BadSetting> {
        let read = |text: &str| text.parse::<i32>().ok().and_then(|number| u64::try_from(number).ok());
        self.read(spelling, "a whole number", read)
    }

    fn kv_type(&self, spelling: &Spelling) -> Result<Option<KvType>, BadSetting> {
        self.read(spelling, "f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl", |text| {
            text.parse().ok().filter(|kind| *kind != KvType::Fp8)
        })
    }

    fn gpu_layers(&self, spelling: &Spelling) -> Result<Option<u32>, BadSetting> {
        let read = |text: &str| match text {
            "auto" | "-1" => Some(None),
            "all" => Some(Some(u32::MAX)),
            _ => text.parse::<i64>().ok().map(|n| Some(u32::try_from(n).unwrap_or(u32::MAX))),
        };
        Ok(self.read(spelling, "a number of layers, `auto` or `all`", read)?.flatten())
    }

    fn toggle(&self, toggle: &Toggle) -> Option<bool> {
        let written = self.args.iter().rev().find_map(|arg| {
            let arg = if arg.starts_with("--") { arg.replace('_', "-") } else { arg.clone() };
            let is = |names: &[&str]| names.contains(&arg.as_str());
            if is(toggle.yes) { Some(true) } else { is(toggle.no).then_some(false) }
        });
        written.or_else(|| {
            let negated = toggle.variable.replacen("LLAMA_ARG_", "LLAMA_ARG_NO_", 1);
            if !toggle.no.is_empty() && self.env.contains_key(&negated) {
                return Some(false);
            }
            switch(self.env.get(toggle.variable)?)
        })
    }

    /// Where single tensors go: the variables first, then the flags in their order, as the server collects them.
    fn overrides(&self) -> Result<Vec<Override>, BadSetting> {
        let to_cpu = |pattern| Override { pattern, buffer: "CPU".to_owned() };
        let mut all = Vec::new();
        let mut add = |by: &str, kind: Kind, text: &str| -> Result<(), BadSetting> {
            let bad = |wanted| BadSetting { by: by.to_owned(), text: text.to_owned(), wanted };
            match kind {
                Kind::Each => {
                    for part in text.split(',') {
                        let (pattern, buffer) =
                            part.split_once('=').ok_or_else(|| bad("PATTERN=BUFFER, several with commas"))?;
                        regex_lite::Regex::new(pattern)
                            .map_err(|_| bad("a regular expression before the `=`"))?;
                        all.push(Override { pattern: pattern.to_owned(), buffer: buffer.to_owned() });
                    }
                }
                Kind::AllExperts => all.push(to_cpu(EXPERTS.to_owned())),
                Kind::FirstExperts => {
                    let layers: u32 = text.trim().parse().map_err(|_| bad("a number of layers"))?;
                    let layers: Vec<String> =
                        (0..layers.min(MOST_LAYERS)).map(|layer| layer.to_string()).collect();
                    if !layers.is_empty() {
                        all.push(to_cpu(format!(r"blk\.({}){EXPERTS}", layers.join("|"))));
                    }
                }
            }
            Ok(())
        };
        for (_, kind, variable) in OVERRIDES {
            match self.env.get(variable) {
                Some(text) if kind != Kind::AllExperts || switch(text) == Some(true) => {
                    add(variable, kind, text)?;
                }
                _ => {}
            }
        }
        for (i, arg) in self.args.iter().enumerate() {
            let found = OVERRIDES.iter().find(|(flags, ..)| {
                let name = arg.split_once('=').map_or(arg.as_str(), |(name, _)| name);
                flags.contains(&name.replace('_', "-").as_str())
            });
            let Some((flags, kind, _)) = found else { continue };
            if *kind == Kind::AllExperts {
                add(arg, *kind, "")?;
            } else if let Some(given) = flag(&self.args[i..=(i + 1).min(self.args.len() - 1)], flags) {
                add(&given.by, *kind, &given.text)?;
            }
        }
        Ok(all)
    }

    fn draft(&self) -> Result<Option<Draft>, BadSetting> {
        let file = self.given(&DRAFT).map(|given| PathBuf::from(given.text));
        let mtp = self.given(&DRAFT_KIND).is_some_and(|given| given.text.contains("mtp"));
        if file.is_none() && !mtp {
            return Ok(None);
        }
        Ok(Some(Draft {
            file,
            mtp,
            gpu_layers: self.gpu_layers(&DRAFT_GPU_LAYERS)?,
            kv_k: self.kv_type(&DRAFT_KV_K)?.unwrap_or(KvType::F16),
            kv_v: self.kv_type(&DRAFT_KV_V)?.unwrap_or(KvType::F16),
            tokens: self.number(&DRAFT_TOKENS)?.unwrap_or(3),
        }))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Each,
    AllExperts,
    FirstExperts,
}

/// The options that say where single tensors go.
const OVERRIDES: [(&[&str], Kind, &str); 3] = [
    (&["-ot", "--override-tensor"], Kind::Each, "LLAMA_ARG_OVERRIDE_TENSOR"),
    (&["-cmoe", "--cpu-moe"], Kind::AllExperts, "LLAMA_ARG_CPU_MOE"),
    (&["-ncmoe", "--n-cpu-moe"], Kind::FirstExperts, "LLAMA_ARG_N_CPU_MOE"),
];

/// What llama-server takes for yes and no.
fn switch(text: &str) -> Option<bool> {
    match text {
        "on" | "enabled" | "true" | "1" => Some(true),
        "off" | "disabled" | "false" | "0" => Some(false),
        _ => None,
    }
}

fn shares(text: &str) -> Option<Vec<f32>> {
    text.split([',', '/']).map(|share| share.trim().parse().ok()).collect()
}

impl Default for Run {
    /// A llama-server that is told nothing.
    fn default() -> Self {
        Self {
            ctx: 0,
            kv_k: KvType::F16,
            kv_v: KvType::F16,
            slots: 4,
            unified: true,
            batch: 2048,
            ubatch: 512,
            swa_full: false,
            flash: Flash::Auto,
            mmap: true,
            kv_offload: true,
            op_offload: true,
            gpu_layers: None,
            overrides: Vec::new(),
            tensor_split: None,
            split_mode: SplitMode::Layer,
            main_gpu: 0,
            projector: None,
            projector_offload: true,
            draft: None,
        }
    }
}

impl Run {
    /// What a server with these arguments and variables does, where Berth adds `tuning`'s flags for all that they
    /// leave open.
    ///
    /// # Errors
    /// A setting with which the server would not start.
    pub fn read(
        args: &[String],
        env: &BTreeMap<String, String>,
        tuning: &Tuning,
    ) -> Result<Self, BadSetting> {
        let told = Told { args, env };
        let default = Self::default();
        // A number of slots, given by whom ever, makes each slot's context its own; -1 lets the server choose.
        let slots = told
            .read(&SLOTS, "a number of slots, or -1", |text| text.parse::<i64>().ok())?
            .map_or(tuning.slots, |slots| u32::try_from(slots).ok().filter(|slots| *slots > 0));
        let unified = told.toggle(&UNIFIED).or(tuning.unified).unwrap_or(slots.is_none());
        Ok(Self {
            ctx: told.number(&CTX)?.or(tuning.ctx).unwrap_or(0),
            kv_k: told.kv_type(&KV_K)?.or(tuning.kv_k).unwrap_or(default.kv_k),
            kv_v: told.kv_type(&KV_V)?.or(tuning.kv_v).unwrap_or(default.kv_v),
            slots: slots.unwrap_or(default.slots),
            unified,
            batch: told.number(&BATCH)?.unwrap_or(default.batch),
            ubatch: told.number(&UBATCH)?.or(tuning.ubatch).unwrap_or(default.ubatch),
            swa_full: told.toggle(&SWA_FULL).unwrap_or(false),
            flash: told
                .read(&FLASH, "`on`, `off` or `auto`", |text| match switch(text) {
                    Some(true) => Some(Flash::On),
                    Some(false) => Some(Flash::Off),
                    None => (text == "auto" || text == "-1").then_some(Flash::Auto),
                })?
                .unwrap_or(Flash::Auto),
            mmap: told.toggle(&MMAP).unwrap_or(true),
            kv_offload: told.toggle(&KV_OFFLOAD).unwrap_or(true),
            op_offload: told.toggle(&OP_OFFLOAD).unwrap_or(true),
            gpu_layers: match told.given(&GPU_LAYERS) {
                Some(_) => told.gpu_layers(&GPU_LAYERS)?,
                None => tuning.gpu_layers,
            },
            overrides: told.overrides()?,
            tensor_split: told.read(&TENSOR_SPLIT, "shares as `3,1`", shares)?,
            split_mode: told
                .read(&SPLIT_MODE, "none, layer, row or tensor", |text| match text {
                    "none" => Some(SplitMode::None),
                    "layer" => Some(SplitMode::Layer),
                    "row" => Some(SplitMode::Row),
                    "tensor" => Some(SplitMode::Tensor),
                    _ => None,
                })?
                .unwrap_or(SplitMode::Layer),
            main_gpu: told.read(&MAIN_GPU, "the number of a GPU", |text| text.parse().ok())?.unwrap_or(0),
            projector: told.given(&PROJECTOR).map(|given| PathBuf::from(given.text)),
            projector_offload: told.toggle(&PROJECTOR_OFFLOAD).unwrap_or(true),
            draft: told.draft()?,
        })
    }
}
