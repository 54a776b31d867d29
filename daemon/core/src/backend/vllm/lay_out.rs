//! Lays a vLLM model out: the share that it takes of each GPU, and whether its weights and one request fit in it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{DEFAULT_UTILIZATION, UTILIZATION};
use crate::backend::Backend as _;
use crate::backend::lay_out::{Ask, Laid, LayOut, fits};
use crate::bytes::Bytes;
use crate::config::Model;
use crate::demand::{Demand, Parts, Source, What};
use crate::facts::FileFacts;
use crate::layout::Layout;
use crate::placement::Room;
use crate::policy::Spread;
use crate::shape::Shape;
use crate::tuning::{KvType, Tuning};

/// What CUDA, NCCL and torch keep for a process on a GPU beside vLLM's own pool: 107 to 555 MiB were reported for the
/// context alone.
const OVERHEAD: Bytes = Bytes::mib(512);

/// Tokens that vLLM computes at once in its profile run where nothing is said (`max_num_batched_tokens` of its server on
/// a consumer card), and requests whose logits it keeps then (`max_num_seqs`).
const BATCHED: u64 = 2048;
const REQUESTS: u64 = 256;

/// See [`Backend::lay_out`](crate::backend::Backend::lay_out).
pub(super) fn lay_out<'a>(ask: &Ask<'a>) -> Result<LayOut<'a>, String> {
    if let Some(declared) = ask.declared() {
        return Ok(declared);
    }
    if !ask.model.policy.uses_gpus() {
        return Err("vLLM without a GPU takes what it is given".to_owned());
    }
    let ask = *ask;
    let model = ask.model;
    // Without weights that can be read its share is all that is known, and all that it takes.
    let shape = model.file.as_deref().and_then(|file| ask.shape(file).ok());
    let tuning = ask.instead.or(ask.tuning());
    let (share, given) = super::utilization(&model.args, tuning.utilization)
        .map_err(|given| format!("`{}` is no share of a GPU", given.text))?;
    let said = (given.is_some() || tuning.utilization.is_some()).then_some(share);
    let flags = super::Vllm.given_tuning(&model.args, &model.env);
    let needs = shape.map(|shape| Needs::of(shape, &ask.instead.or(flags.or(tuning))));
    Ok(Box::new(move |rooms| {
        let parts = needs.as_ref().map(|needs| needs.parts(rooms.len()));
        let needs = parts.as_ref().map_or(Bytes::ZERO, Parts::total);
        let at = |share: f64, beyond: Bytes| laid(&ask, rooms, parts.as_ref(), tuning, (share, said), beyond);
        let share = said.unwrap_or_else(|| chosen(rooms, needs));
        let first = at(share, Bytes::ZERO);
        // What it took beyond its share when it ran like this it takes again, beyond a smaller one too.
        let each = first.demand.gpus.iter().zip(rooms);
        let beyond = each.map(|(parts, room)| parts.total().less(share_of(room.usable, share))).max();
        let beyond = beyond.unwrap_or_default();
        if said.is_some() || beyond == Bytes::ZERO || fits(&first.demand, rooms) {
            return first;
        }
        let mut less = rooms.to_vec();
        for room in &mut less {
            room.available = room.available.less(beyond);
        }
        let smaller = at(chosen(&less, needs), beyond);
        if smaller.wrong.is_none() && fits(&smaller.demand, rooms) { smaller } else { first }
    }))
}

/// Laid out with this share of each GPU, which may be the user's own word, and takes `beyond` of each besides.
fn laid(
    ask: &Ask<'_>,
    rooms: &[Room<'_>],
    parts: Option<&Parts>,
    tuning: Tuning,
    (share, said): (f64, Option<f64>),
    beyond: Bytes,
) -> Laid {
    let needs = parts.map_or(Bytes::ZERO, Parts::total);
    let mut demand = Demand { gpus: Vec::new(), host: Parts::default() };
    let mut wrong = None;
    for room in rooms {
        let taken = share_of(room.usable, share);
        let mut whole = Parts::default();
        match parts {
            // It needs more than its share: what is short can be seen part by part.
            Some(parts) if needs > taken => {
                whole = parts.clone();
                if needs <= room.available {
                    wrong = Some(format!(
                        "{taken} of each GPU leave no room for the KV cache of one request: it needs {needs}, so \
                         raise the share ({UTILIZATION}) above {share:.2}, or lower the context"
                    ));
                }
            }
            // What is left of its share becomes KV cache.
            Some(parts) => {
                whole = parts.clone();
                whole.add(What::KvGlobal, taken.less(needs), Source::Exact);
            }
            None => whole.add(What::Whole, taken, Source::Exact),
        }
        demand.gpus.push(whole);
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let hundredths = (share * 100.0).round() as u32;
    let settled = Tuning {
        utilization: (said.is_none() && hundredths != 92).then_some(hundredths).or(tuning.utilization),
        ..tuning
    };
    let layout = Layout { tuning: settled, ..Layout::default() };
    ask.apply_learned(&layout, rooms, &mut demand);
    // It starts only where its share is free, whatever it held when it ran.
    for (parts, room) in demand.gpus.iter_mut().zip(rooms) {
        let share = share_of(room.usable, share);
        parts.add(What::KvGlobal, share.less(parts.total()), Source::Exact);
        parts.add(What::Compute, share.plus(beyond).less(parts.total()), Source::Learned);
    }
    Laid { layout, demand, wrong, elastic: said.is_none() }
}

/// See [`Backend::numbers`](crate::backend::Backend::numbers). What the arguments say; else numbers that divide the heads
/// of its attention, as tensor parallelism wants it, which is every power of two for nearly all models.
pub(super) fn numbers(model: &Model, files: &BTreeMap<PathBuf, FileFacts>, most: usize) -> Vec<usize> {
    if let Some((said, _)) = super::parallel(&model.args) {
        return vec![usize::try_from(said).unwrap_or(usize::MAX)];
    }
    let shape = model.file.as_ref().and_then(|file| files.get(file)?.shape.value());
    match shape.map(|shape| shape.heads).filter(|heads| *heads > 0) {
        Some(heads) => (1..=most).filter(|number| heads % *number as u64 == 0).collect(),
        // Its weights are not known either, and it may need all of them.
        None => match model.policy.spread {
            Spread::Exactly(number) => vec![number as usize],
            _ => (1..=most).rev().find(|number| number.is_power_of_two()).into_iter().collect(),
        },
    }
}

/// See [`Backend::effective`](crate::backend::Backend::effective).
pub(super) fn effective(model: &Model, files: &BTreeMap<PathBuf, FileFacts>) -> Tuning {
    let shape = model.file.as_ref().and_then(|file| files.get(file)?.shape.value());
    let trained = shape.map(|shape| shape.trained_context).filter(|trained| *trained > 0);
    let given = super::Vllm.given_tuning(&model.args, &model.env);
    given.or(model.tuning).or(Tuning { ctx: trained, ..Tuning::default() })
}

/// The default share, less where that is not available, more where it needs more.
fn chosen(rooms: &[Room<'_>], needs: Bytes) -> f64 {
    let shares = |bytes: &dyn Fn(&Room<'_>) -> Bytes| {
        let shares = rooms.iter().filter(|room| room.usable > Bytes::ZERO);
        shares.map(|room| bytes(room).0 as f64 / room.usable.0 as f64).collect::<Vec<f64>>()
    };
    // In hundredths, as people write it.
    let there = shares(&|room| room.available).into_iter().fold(1.0, f64::min);
    let there = (there * 100.0).floor() / 100.0;
    let wanted = (shares(&|_| needs).into_iter().fold(0.0, f64::max) * 100.0).ceil() / 100.0;
    if needs == Bytes::ZERO || there <= 0.0 {
        return DEFAULT_UTILIZATION;
    }
    DEFAULT_UTILIZATION.min(there).max(wanted.min(there))
}

/// Computed as the server computes it, in doubles and rounded up.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(super) fn share_of(total: Bytes, share: f64) -> Bytes {
    Bytes((total.0 as f64 * share).ceil() as u64)
}

/// What it needs in all to serve one request, before it is divided among GPUs.
struct Needs {
    weights: Bytes,
    global: Bytes,
    sliding: Bytes,
    recurrent: Bytes,
    compute: Bytes,
}

impl Needs {
    fn of(shape: &Shape, tuning: &Tuning) -> Self {
        let ctx = tuning.ctx.unwrap_or(shape.trained_context);
        let bytes = if tuning.kv_k == Some(KvType::Fp8) { 1 } else { 2 };
        let (mut global, mut sliding, mut recurrent) = (0u64, 0u64, 0u64);
        for layer in &shape.layers {
            if let Some(kept) = layer.attention {
                let each = kept.key.saturating_add(kept.value).saturating_mul(bytes);
                if kept.sliding {
                    let cells = ctx.min(shape.window.saturating_add(BATCHED));
                    sliding = sliding.saturating_add(each.saturating_mul(cells));
                } else {
                    global = global.saturating_add(each.saturating_mul(ctx));
                }
            }
            if let Some(kept) = layer.recurrent {
                recurrent =
                    recurrent.saturating_add(kept.convolution.saturating_add(kept.state).saturating_mul(4));
            }
        }
        // Two activations of the widest network and four of the embedding in 16 bits, and logits in 32 bits twice.
        let wide = shape.feed_forward.max(shape.expert_feed_forward.saturating_mul(shape.experts_used));
        let row = wide.saturating_mul(2).saturating_add(shape.embedding.saturating_mul(4)).saturating_mul(2);
        let logits = REQUESTS.saturating_mul(shape.vocabulary).saturating_mul(8);
        Self {
            weights: shape.weights(),
            global: Bytes(global),
            sliding: Bytes(sliding),
            recurrent: Bytes(recurrent),
            compute: Bytes(BATCHED.saturating_mul(row).saturating_add(logits)),
        }
    }

    /// On each of so many GPUs.
    fn parts(&self, gpus: usize) -> Parts {
        let each = |bytes: Bytes| Bytes(bytes.0.div_ceil(gpus.max(1) as u64));
        let mut parts = Parts::default();
        parts.add(What::Weights, each(self.weights), Source::Exact);
        parts.add(What::KvGlobal, each(self.global), Source::Exact);
        parts.add(What::KvSliding, each(self.sliding), Source::Exact);
        parts.add(What::Recurrent, each(self.recurrent), Source::Exact);
        parts.add(What::Compute, each(self.compute), Source::Estimated);
        parts.add(What::Overhead, OVERHEAD, Source::Estimated);
        parts
    }
}
