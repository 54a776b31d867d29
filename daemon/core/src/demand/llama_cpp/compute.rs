//! The buffers that llama.cpp computes in. They depend on its build and on what each device can do, so this is an
//! estimate: what is alive at the widest point of a layer, as the server of August 2026 logs it (`sched_reserve`).
//!
//! All of it grows with the tokens that are computed at once. A layer is at its widest either where it attends, or
//! in its feed-forward network, or where the results of a token's experts are added up.

use super::{Cells, Flash, Run, product};
use crate::shape::Shape;

/// How many copies of a graph's inputs there are when several GPUs work as a pipeline.
const COPIES: u64 = 4;

/// What one context computes in, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Compute {
    /// Results over the vocabulary, of the tokens whose results are asked for.
    logits: u64,
    /// Masks: which cells each token sees, in layers that see everything and in those that slide.
    mask_global: u64,
    mask_sliding: u64,
    /// Where a layer attends.
    attention: u64,
    /// Where a layer is widest.
    layer: u64,
    /// Where a weight that lies on the host is used on a GPU, besides the weight.
    visited: u64,
    /// One embedding of each token.
    tokens: u64,
    /// Keys and values of one layer made whole, where they are quantized: GPUs do that.
    widened: u64,
    /// Keys and values are on the host, wherever their layer is.
    apart: bool,
    /// Weights on the host are copied to the first GPU when many tokens are computed at once.
    visits: bool,
}

/// What a GPU has to do.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Work {
    /// Some layer's feed-forward network lies there.
    pub(super) networks: bool,
    /// Some layer there sees everything.
    pub(super) global: bool,
    /// Some layer there slides.
    pub(super) sliding: bool,
    /// It has the output.
    pub(super) output: bool,
    /// It is one of several that work as a pipeline.
    pub(super) pipelined: bool,
    /// The largest weight that lies on the host and is copied there to be used.
    pub(super) visitor: u64,
    /// Keys and values of a layer that are on the host and are copied there to be used.
    pub(super) kept: u64,
}

impl Compute {
    pub(super) fn new(shape: &Shape, run: &Run, cells: &Cells) -> Self {
        let kept = || shape.layers.iter().filter_map(|layer| layer.attention);
        let any = |sliding: bool| kept().any(|kept| kept.sliding == sliding);
        let global = if any(false) { cells.global } else { 0 };
        let sliding = if any(true) { cells.sliding } else { 0 };
        let widest = kept().map(|kept| product(&[kept.key]) + product(&[kept.value])).max().unwrap_or(0);

        let (embedding, queries) = (product(&[shape.embedding]), product(&[shape.heads, shape.head]));
        let apart = if queries > embedding { queries } else { 0 };
        let network = |width: u64| 3 * width + 2 * embedding + apart;
        let hidden = product(&[shape.experts_used, shape.expert_feed_forward]);
        let results = product(&[shape.experts_used, embedding]);
        let attention = 2 * (embedding + queries) + widest;
        let experts = network(hidden).max(2 * results + 4 * embedding);
        let layer = if shape.experts > 0 { experts } else { 0 };
        let layer = layer.max(network(product(&[shape.feed_forward]))).max(attention);
        let visited = if shape.experts > 0 { hidden + results + 2 * embedding } else { layer };

        let floats = |count: u64| product(&[4, cells.ubatch, count]);
        // Without flash attention the whole matrix of queries and keys is there, and masks are twice as wide.
        let (matrix, mask) = match run.flash {
            Flash::Off => (floats(product(&[shape.heads, global.max(sliding)])), 4),
            Flash::On | Flash::Auto => (0, 2),
        };
        let quantized = run.kv_k.is_quantized() || run.kv_v.is_quantized();
        let predicted = run.draft.as_ref().map_or(1, |draft| 1 + draft.tokens);
        Self {
            logits: product(&[4, cells.ubatch.min(cells.slots * predicted), shape.vocabulary]),
            mask_global: product(&[mask, cells.ubatch, global]),
            mask_sliding: product(&[mask, cells.ubatch, sliding]),
            attention: floats(attention) + matrix,
            layer: floats(layer).max(floats(attention) + matrix),
            visited: floats(visited),
            tokens: floats(embedding),
            widened: if quantized && matrix == 0 { product(&[2, cells.ctx, widest]) } else { 0 },
            apart: !run.kv_offload,
            visits: run.op_offload,
        }
    }

    /// On a GPU that has some layers.
    pub(super) fn gpu(&self, work: Work) -> u64 {
        let masks =
            if work.global { self.mask_global } else { 0 } + if work.sliding { self.mask_sliding } else { 0 };
        let here = if work.networks { self.layer } else { self.attention };
        let mut most = here + if self.apart { 3 * self.tokens } else { self.widened };
        if work.visitor > 0 && self.visits {
            most = most.max(self.visited + work.visitor) + work.kept;
        }
        let copies = if work.pipelined { (COPIES - 1) * masks + COPIES * self.tokens } else { 0 };
        let logits = if work.output { self.logits } else { 0 };
        (masks + most).max(logits) + copies
    }

    /// On the host beside GPUs: what they are told, what they answer, and what is computed there.
    pub(super) fn host(&self, weights: bool, pipelined: bool) -> u64 {
        let copies = if pipelined { COPIES } else { 1 };
        let here = if weights && !self.visits { self.layer } else { 0 };
        copies * self.masks() + 2 * self.tokens + here + self.logits
    }

    /// On the host where no GPU does anything.
    pub(super) fn alone(&self) -> u64 {
        (self.masks() + self.layer + self.tokens).max(self.logits) + self.logits
    }

    const fn masks(&self) -> u64 {
        self.mask_global + self.mask_sliding
    }
}

/// What a projector computes in.
pub(super) fn projector(shape: &Shape) -> u64 {
    // About a quarter of its weights was seen for projectors of one picture at a time.
    shape.weights().0 / 4
}
