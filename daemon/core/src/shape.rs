//! What a model is made of, as the header of its file tells: where every estimate of memory begins.

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;

/// A model as its files describe it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Shape {
    /// `general.architecture` of a GGUF file, `model_type` of a `config.json`.
    pub architecture: String,
    /// Its layers in order. Those that only predict further tokens come last (`Layer::next_token`).
    pub layers: Vec<Layer>,
    /// Every tensor of all its files, in the files' order.
    pub tensors: Vec<Tensor>,
    /// Width of the embedding.
    pub embedding: u64,
    /// Tokens in its vocabulary.
    pub vocabulary: u64,
    /// The context that it was trained for, in tokens; 0 where it does not say.
    pub trained_context: u64,
    /// Width of the widest dense feed-forward network; 0 where all are of experts.
    pub feed_forward: u64,
    /// Experts in a layer; 0 for a dense model.
    pub experts: u64,
    /// Experts that each token uses.
    pub experts_used: u64,
    /// Tokens that a sliding layer sees; 0 where no layer slides.
    pub window: u64,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layer {
    /// All its tensors, those of experts too.
    pub weights: Bytes,
    /// Its tensors of experts, without shared ones.
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
    /// Elements of all its key heads together; of MLA the compressed ones with the rotated dimensions.
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

impl Shape {
    /// All its weights.
    pub fn weights(&self) -> Bytes {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }
}
