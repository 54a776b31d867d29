//! Lays a llama.cpp model out: which layers on which GPU, whose experts on the CPU.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::backend::lay_out::{Ask, Laid, LayOut, fits};
use crate::config::Model;
use crate::demand::Demand;
use crate::demand::llama_cpp::{Costs, Files, Flash, Run, divided};
use crate::facts::FileFacts;
use crate::layout::Layout;
use crate::placement::Room;
use crate::policy::Fill;
use crate::tuning::Tuning;

/// See [`Backend::lay_out`](crate::backend::Backend::lay_out).
pub(super) fn lay_out<'a>(ask: &Ask<'a>) -> Result<LayOut<'a>, String> {
    if let Some(declared) = ask.declared() {
        // What stays on the host is counted by its header all the same, where that can be read.
        let Ok((costs, run)) = costs(ask, &tuning(ask)) else { return Ok(declared) };
        let layers = run.gpu_layers.unwrap_or(u32::MAX).min(costs.slots());
        return Ok(Box::new(move |rooms| {
            let mut laid = declared(rooms);
            let layers = if rooms.is_empty() { 0 } else { layers };
            let split = divided(layers, &vec![1.0; rooms.len()]);
            laid.demand.host = costs.demand(rooms.len(), &split, &[]).host;
            laid
        }));
    }
    let ask = *ask;
    let model = ask.model;
    let tuning = tuning(&ask);
    let (costs, run) = costs(&ask, &tuning)?;
    // What it would be told if it were to be other than declared: what was learned of it is not learned of that.
    let tuning = ask.instead.or(tuning);
    // The user's own overrides say where experts go.
    let experts: Vec<u32> = if run.overrides.is_empty() {
        (0..costs.slots()).filter(|layer| costs.experts(*layer).0 > 0).collect()
    } else {
        Vec::new()
    };
    let may_move = if ask.conceded.experts { experts.len() } else { 0 };
    let fixed = ask.instead.cpu_experts.or(model.tuning.cpu_experts).map(|count| count as usize);
    let moved = fixed.map_or(0..=may_move, |count| count..=count.max(may_move));
    Ok(Box::new(move |rooms| {
        let all = ask.instead.gpu_layers.or(run.gpu_layers).unwrap_or(u32::MAX).min(costs.slots());
        let all = if rooms.is_empty() { 0 } else { all };
        let attempt = |layers: u32, count: usize| {
            let on_cpu = experts[experts.len() - count.min(experts.len())..].to_vec();
            let split = divide(&costs, rooms, layers, &on_cpu, &run, model.policy.fill);
            let mut demand = costs.demand(rooms.len(), &split, &on_cpu);
            let layout = Layout { tuning, split, cpu_experts: on_cpu, ..Layout::default() };
            ask.apply_learned(&layout, rooms, &mut demand);
            Laid { layout, demand, ..Laid::default() }
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

/// The settings under which it runs with what it gives up. Without flash attention a server with quantized values does
/// not start.
fn tuning(ask: &Ask<'_>) -> Tuning {
    let mut ask = *ask;
    if Run::read(&ask.model.args, &ask.model.env, &ask.model.tuning).is_ok_and(|run| run.flash == Flash::Off)
    {
        ask.conceded.tuning.kv_v = None;
    }
    ask.tuning()
}

/// What each layer costs under these settings.
fn costs(ask: &Ask<'_>, tuning: &Tuning) -> Result<(Costs, Run), String> {
    let model = ask.model;
    let mut run = Run::read(&model.args, &model.env, tuning).map_err(|bad| bad.to_string())?;
    instead(&mut run, &ask.instead);
    let file = model.file.as_deref().ok_or("its model is not a file that can be read")?;
    let outside = |path: &std::path::Path| {
        model.outside(path).ok_or_else(|| format!("{} is in the image and can't be read", path.display()))
    };
    let named = |path: Option<&std::path::Path>| path.map(|path| ask.shape(&outside(path)?)).transpose();
    let files = Files {
        model: ask.shape(file)?,
        projector: named(run.projector.as_deref())?,
        draft: named(run.draft.as_ref().and_then(|draft| draft.file.as_deref()))?,
    };
    Ok((Costs::new(files, &run), run))
}

fn instead(run: &mut Run, instead: &Tuning) {
    run.ctx = instead.ctx.unwrap_or(run.ctx);
    run.kv_k = instead.kv_k.unwrap_or(run.kv_k);
    run.kv_v = instead.kv_v.unwrap_or(run.kv_v);
    run.slots = instead.slots.unwrap_or(run.slots);
    run.unified = instead.unified.unwrap_or(run.unified);
    run.ubatch = instead.ubatch.unwrap_or(run.ubatch);
}

/// See [`Backend::effective`](crate::backend::Backend::effective).
pub(super) fn effective(model: &Model, files: &BTreeMap<PathBuf, FileFacts>) -> Tuning {
    let Ok(run) = Run::read(&model.args, &model.env, &model.tuning) else { return model.tuning };
    let shape = model.file.as_ref().and_then(|file| files.get(file)?.shape.value());
    let trained = shape.map(|shape| shape.trained_context).filter(|trained| *trained > 0);
    Tuning {
        ctx: Some(run.ctx).filter(|ctx| *ctx > 0).or(trained),
        kv_k: Some(run.kv_k),
        kv_v: Some(run.kv_v),
        slots: Some(run.slots),
        unified: Some(run.unified),
        ubatch: Some(run.ubatch),
        gpu_layers: run.gpu_layers,
        ..model.tuning
    }
}

/// How many of the last `layers` layers (the output is one) go to each GPU, in order.
fn divide(costs: &Costs, rooms: &[Room<'_>], layers: u32, on_cpu: &[u32], run: &Run, fill: Fill) -> Vec<u32> {
    match (rooms, &run.tensor_split) {
        ([], _) => return Vec::new(),
        ([_], _) => return vec![layers],
        (_, Some(shares)) => return divided(layers, &padded(shares, rooms.len())),
        _ => {}
    }
    let first = costs.slots() - layers;
    let weights: Vec<f64> = (first..costs.slots())
        .map(|layer| costs.weigh(layer, on_cpu.binary_search(&layer).is_ok()).0 as f64)
        .collect();
    // What each GPU takes whichever layers it has: told by a trial.
    let even = divided(layers, &vec![1.0; rooms.len()]);
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
    for _ in 0..16 {
        let middle = f64::midpoint(low, high);
        if taken(middle).1 { high = middle } else { low = middle }
    }
    taken(high).0
}

/// One share for each GPU; none for those that are not named.
fn padded(shares: &[f32], gpus: usize) -> Vec<f32> {
    shares.iter().copied().chain(std::iter::repeat(0.0)).take(gpus).collect()
}
