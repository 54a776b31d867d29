//! Lays a llama.cpp model out: which layers on which GPU, whose experts on the CPU.

use crate::backend::lay_out::{Ask, LayOut, Laid, fits};
use crate::demand::Demand;
use crate::demand::llama_cpp::{Costs, Files, Run};
use crate::layout::Layout;
use crate::placement::Room;
use crate::policy::Fill;
use crate::tuning::Tuning;

/// See [`Backend::lay_out`](crate::backend::Backend::lay_out).
pub(super) fn lay_out<'a>(ask: &Ask<'a>) -> Result<LayOut<'a>, String> {
    if let Some(declared) = ask.declared() {
        return Ok(declared);
    }
    let ask = *ask;
    let model = ask.model;
    let tuning = ask.conceded.tuning.or(model.tuning);
    let mut run = Run::read(&model.args, &model.env, &tuning).map_err(|bad| bad.to_string())?;
    instead(&mut run, &ask.instead);
    let file = model.file.as_deref().ok_or("its model is not a file that can be read")?;
    let named = |path: Option<&std::path::Path>| path.map(|path| ask.shape(path)).transpose();
    let files = Files {
        model: ask.shape(file)?,
        projector: named(run.projector.as_deref())?,
        draft: named(run.draft.as_ref().and_then(|draft| draft.file.as_deref()))?,
    };
    let costs = Costs::new(files, &run);
    // The user's own overrides say where experts go.
    let experts: Vec<u32> = if run.overrides.is_empty() {
        (0..costs.slots()).filter(|layer| costs.experts(*layer).0 > 0).collect()
    } else {
        Vec::new()
    };
    let may_move = if ask.conceded.experts { experts.len() } else { 0 };
    let fixed = model.tuning.cpu_experts.or(ask.instead.cpu_experts).map(|count| count as usize);
    let moved = fixed.map_or(0..=may_move, |count| count..=count.max(may_move));
    Ok(Box::new(move |rooms| {
        let all = ask.instead.gpu_layers.or(run.gpu_layers).unwrap_or(u32::MAX).min(costs.slots());
        let all = if rooms.is_empty() { 0 } else { all };
        let attempt = |layers: u32, count: usize| {
            let on_cpu = experts[experts.len() - count.min(experts.len())..].to_vec();
            let split = divide(&costs, rooms, layers, &on_cpu, &run, model.policy.fill);
            let mut demand = costs.demand(rooms.len(), &split, &on_cpu);
            let layout = Layout { tuning, split, cpu_experts: on_cpu, ..Layout::default() };
            (ask.learned)(&layout, &mut demand);
            Laid { layout, demand, wrong: None }
        };
        let mut laid = Laid::default();
        for count in moved.clone() {
            laid = attempt(all, count);
            if fits(&laid.demand, rooms) {
                return laid;
            }
        }
        if ask.conceded.layers && run.gpu_layers.is_none() && ask.instead.gpu_layers.is_none() {
            for layers in (0..all).rev() {
                laid = attempt(layers, *moved.end());
                if fits(&laid.demand, rooms) {
                    return laid;
                }
            }
        }
        laid
    }))
}

fn instead(run: &mut Run, instead: &Tuning) {
    run.ctx = instead.ctx.unwrap_or(run.ctx);
    run.kv_k = instead.kv_k.unwrap_or(run.kv_k);
    run.kv_v = instead.kv_v.unwrap_or(run.kv_v);
    run.slots = instead.slots.unwrap_or(run.slots);
    run.unified = instead.unified.unwrap_or(run.unified);
    run.ubatch = instead.ubatch.unwrap_or(run.ubatch);
}

/// How many of the last `layers` layers (the output is one) go to each GPU, in order.
fn divide(
    costs: &Costs,
    rooms: &[Room],
    layers: u32,
    on_cpu: &[u32],
    run: &Run,
    fill: Fill,
) -> Vec<u32> {
    match (rooms, &run.tensor_split) {
        ([], _) => return Vec::new(),
        ([_], _) => return vec![layers],
        (_, Some(shares)) => return by_shares(shares, rooms.len(), layers),
        _ => {}
    }
    let first = costs.slots() - layers;
    let weights: Vec<f64> = (first..costs.slots())
        .map(|layer| costs.weigh(layer, on_cpu.binary_search(&layer).is_ok()).0 as f64)
        .collect();
    // What each GPU takes whichever layers it has: told by a trial.
    let even = by_shares(&vec![1.0; rooms.len()], rooms.len(), layers);
    let trial: Demand = costs.demand(rooms.len(), &even, on_cpu);
    let budgets: Vec<f64> = trial
        .gpus
        .iter()
        .zip(rooms)
        .map(|(parts, room)| room.available.less(parts.fixed()).0.max(1) as f64)
        .collect();
    let taken = |part: f64| {
        let mut rest = weights.as_slice();
        let mut counts = Vec::with_capacity(budgets.len());
        for budget in &budgets {
            let mut held = 0.0;
            let count = rest.iter().take_while(|weight| {
                held += **weight;
                held <= budget * part
            });
            let count = count.count();
            counts.push(u32::try_from(count).unwrap_or(u32::MAX));
            rest = &rest[count..];
        }
        (counts, rest.is_empty())
    };
    if fill == Fill::InOrder
        && let (counts, true) = taken(1.0)
    {
        return counts;
    }
    // The least part of each budget that holds everything.
    let (mut low, mut high) = (0.0, 1.0);
    while !taken(high).1 {
        (low, high) = (high, high * 2.0);
    }
    for _ in 0..24 {
        let middle = f64::midpoint(low, high);
        if taken(middle).1 { high = middle } else { low = middle }
    }
    taken(high).0
}

/// As llama.cpp divides by `--tensor-split`: a layer goes to the first GPU whose share, with those before it, exceeds
/// the layer's part of all.
fn by_shares(shares: &[f32], gpus: usize, layers: u32) -> Vec<u32> {
    let shares: Vec<f32> = shares.iter().copied().chain(std::iter::repeat(0.0)).take(gpus).collect();
    let whole: f32 = shares.iter().sum();
    let ends: Vec<f32> = shares
        .iter()
        .scan(0.0, |sum, share| {
            *sum += share;
            Some(if whole > 0.0 { *sum / whole } else { 1.0 })
        })
        .collect();
    let mut counts = vec![0; gpus];
    for layer in 0..layers {
        #[allow(clippy::cast_precision_loss)]
        let at = layer as f32 / layers as f32;
        let gpu = ends.iter().position(|end| *end > at).unwrap_or(gpus - 1);
        counts[gpu] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_as_llama_cpp_does() {
        assert_eq!(by_shares(&[1.0, 1.0], 2, 31), [16, 15]);
        assert_eq!(by_shares(&[3.0, 1.0], 2, 8), [6, 2]);
        assert_eq!(by_shares(&[17.0, 14.0], 2, 31), [17, 14]);
        assert_eq!(by_shares(&[1.0], 2, 4), [4, 0]);
        assert_eq!(by_shares(&[0.0, 0.0], 2, 2), [2, 0]);
    }
}
