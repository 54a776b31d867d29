//! What a model is made of, as the header of its file tells: where every estimate of memory begins.

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;

/// A model as its files describe it.
///
/// Of sizes that a file gives only what no machine could hold is refused: multiply them so that nothing overflows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Shape {
    /// `general.architecture` of a GGUF file, `model_type` of a `config.json`.
    pub architecture: String,
    /// What the files are for.
    pub kind: Kind,
    /// Its layers in order. Those that only predict further tokens come last (`Layer::next_token`).
    /// llama.cpp counts these too when it spreads layers over devices (`-ngl`, `--tensor-split`).
    pub layers: Vec<Layer>,
    /// Every tensor of all its files, in the files' order; of safetensors the experts of a layer are one entry.
    pub tensors: Vec<Tensor>,
    /// Width of the embedding.
    pub embedding: u64,
    /// Tokens in its vocabulary.
    pub vocabulary: u64,
    /// The context that it was trained for, in tokens; 0 where it does not say.
    pub trained_context: u64,
    /// Width of the widest dense feed-forward network; 0 where all are of experts.
    pub feed_forward: u64,
    /// Width of an expert's feed-forward network; 0 for a dense model.
    pub expert_feed_forward: u64,
    /// Heads of queries in the layer that has most.
    pub heads: u64,
    /// Width of a head of queries, in the layer whose heads are widest.
    pub head: u64,
    /// Experts in a layer; 0 for a dense model.
    pub experts: u64,
    /// Experts that each token uses, in the layer that uses most.
    pub experts_used: u64,
    /// Tokens that a sliding layer sees; 0 where no layer slides.
    pub window: u64,
    /// Why what its layers keep is not known to the byte; None where it is. Then it is an estimate at best.
    pub unsure: Option<String>,
}

/// What files are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A model.
    #[default]
    Model,
    /// The projector of a model that sees or hears (`mmproj`): tensors, no layers.
    Projector,
    /// Only a vocabulary, no tensors.
    Vocabulary,
    /// Something that no server serves: an adapter, an importance matrix.
    Other,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layer {
    /// All its tensors, those of experts too. llama.cpp loads those of a `next_token` layer even where nothing drafts
    /// with it (seen with qwen35).
    pub weights: Bytes,
    /// Its tensors of experts, without shared ones: what `--n-cpu-moe` keeps on the CPU.
    pub experts: Bytes,
    /// The keys and values that it keeps; None where it keeps none, or uses those of an earlier layer.
    pub attention: Option<Attention>,
    /// The state that it keeps for each sequence; None where it keeps none.
    pub recurrent: Option<Recurrent>,
    /// It only predicts further tokens (MTP): a second context runs it, if any does.
    pub next_token: bool,
}

/// What a layer keeps for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Attention {
    /// Elements of all its key heads together; of MLA the compressed ones with the rotated dimensions, and of a
    /// layer that indexes its keys (DSA) the index too, which is kept in the keys' type.
    pub key: u64,
    /// Elements of all its value heads together; 0 for MLA, where they are made of the keys.
    pub value: u64,
    /// It sees only the last [`Shape::window`] tokens.
    pub sliding: bool,
}

/// What a recurrent layer keeps for each sequence, always in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Recurrent {
    /// Elements of its convolution's state.
    pub convolution: u64,
    /// Elements of its own state.
    pub state: u64,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: Bytes,
    /// The layer it belongs to; None for those before the first and after the last.
    pub layer: Option<u32>,
}

/// Where llama.cpp puts a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// With the input: always on the CPU.
    Input,
    /// With this layer, wherever that is.
    Layer(u32),
    /// With the first layer of each device that has one: one copy for each such device.
    EachDevice,
    /// With the output, which counts as one more layer after the last.
    Output,
}

impl Tensor {
    /// Where llama.cpp puts it (`LLM_TENSOR_INFOS` in llama-arch.cpp), if no override says otherwise.
    pub fn place(&self) -> Place {
        let name = self.name.as_str();
        match self.layer {
            Some(layer) => Place::Layer(layer),
            None if ["token_embd.", "position_embd.", "token_types.", "per_layer_token_embd."]
                .iter()
                .any(|input| name.starts_with(input)) =>
            {
                Place::Input
            }
            None if name.starts_with("rope_f") => Place::EachDevice,
            // Normed or projected in the first layer, though without its number.
            None if name.starts_with("token_embd_norm.") || name.starts_with("per_layer_") => Place::Layer(0),
            None => Place::Output,
        }
    }
}

impl Shape {
    /// All its weights.
    pub fn weights(&self) -> Bytes {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// The embedding that llama.cpp uses as the output too, since the file has no `output.weight`. It is loaded
    /// once where input and output are both in the CPU's buffers, and a second time on the output's device else.
    pub fn tied_output(&self) -> Option<Bytes> {
        let find = |name| self.tensors.iter().find(|tensor| tensor.name == name).map(|tensor| tensor.bytes);
        if find("output.weight").is_some() { None } else { find("token_embd.weight") }
    }
}
