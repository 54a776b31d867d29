//! The buffers that llama.cpp computes in: estimated, since they depend on its build and on what each device can do.

use super::{Cells, Run};
use crate::shape::Shape;

/// How many copies of a graph's inputs there are when several GPUs work as a pipeline.
const COPIES: u64 = 4;

/// What one context computes in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Compute {
    /// Results over the vocabulary, of the tokens whose results are asked for.
    logits: u64,
    /// Masks: which cells each token sees.
    masks: u64,
    /// What lies between the layers' operations.
    between: u64,
    /// Keys and values of one layer, made whole again where they are quantized.
    widened: u64,
    /// Embeddings and all that is told for each token.
    inputs: u64,
}

impl Compute {
    pub(super) fn new(shape: &Shape, run: &Run, cells: &Cells) -> Self {
        let tokens = cells.ubatch;
        let kept =
            || shape.layers.iter().filter(|layer| !layer.next_token).filter_map(|layer| layer.attention);
        let seen =
            |sliding: bool, count: u64| if kept().any(|kept| kept.sliding == sliding) { count } else { 0 };
        let streams = cells.streams;
        let mask_cells = (seen(false, cells.global) + seen(true, cells.sliding)) * streams;
        let quantized = run.kv_k.is_quantized() || run.kv_v.is_quantized();
        let widest = kept().filter(|kept| !kept.sliding).map(|kept| kept.key + kept.value).max().unwrap_or(0);
        let between = if shape.experts > 0 {
            3 * shape.experts_used * shape.embedding
        } else {
            2 * shape.feed_forward + 128
        };
        Self {
            logits: 4 * tokens.min(cells.slots) * shape.vocabulary,
            masks: 2 * tokens * mask_cells,
            between: 4 * tokens * between,
            widened: if quantized { 2 * cells.ctx * widest } else { 0 },
            inputs: 8 * tokens * shape.embedding,
        }
    }

    /// On a GPU with some layers.
    pub(super) fn gpu(&self, output: bool, pipelined: bool) -> u64 {
        let inputs = if pipelined { (COPIES - 1) * self.masks } else { 0 };
        let logits = if output { self.logits } else { 0 };
        (self.masks + self.between + self.widened).max(logits) + inputs
    }

    /// On the host beside GPUs.
    pub(super) fn host(&self, all: bool, pipelined: bool) -> u64 {
        let between = if all { 0 } else { self.between };
        let copies = if pipelined { COPIES } else { 1 };
        copies * self.masks + self.inputs + between + self.logits
    }

    /// On the host where no GPU does anything.
    pub(super) fn alone(&self) -> u64 {
        (self.masks + self.between + self.inputs).max(self.logits) + self.logits
    }
}

/// What a projector computes in.
pub(super) fn projector(shape: &Shape) -> u64 {
    // About a quarter of its weights was seen for projectors of one picture at a time.
    shape.weights().0 / 4
}
