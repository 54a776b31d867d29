//! What a swap says of itself.

use std::time::Duration;

use super::{KILL_DEADLINE, World};
use crate::backend::PlacedGpu;
use crate::bytes::Bytes;
use crate::facts::{Facts, Known};
use crate::name::ModelName;
use crate::plan::Plan;
use crate::state::State;

pub(super) fn survivors(state: &State, facts: &Facts, model: &ModelName) -> String {
    let pids: Vec<String> = match facts.units.get(model).map(|unit| &unit.processes) {
        Some(Known::Value(processes)) => processes.keys().map(u32::to_string).collect(),
        _ => Vec::new(),
    };
    let held: Vec<String> = facts
        .gpus()
        .iter()
        .flat_map(|gpu| gpu.processes.value().into_iter().flatten().map(move |process| (gpu.index, process)))
        .filter(|(_, process)| state.owner(process) == Some(model))
        .map(|(index, process)| {
            let bytes = process.memory.value().map_or("an unknown amount".to_owned(), Bytes::to_string);
            format!("pid {} ({}) holds {bytes} on GPU {index}", process.pid, process.program)
        })
        .collect();
    let who = if held.is_empty() { format!("processes {}", pids.join(", ")) } else { held.join(", ") };
    format!("{model} survives SIGKILL since {} s: {who}", KILL_DEADLINE.as_secs())
}

/// "fits, 1.0 GiB to spare on GPU 0; files, port, program".
pub(super) fn spare_sentence(plan: &Plan, world: &World) -> String {
    let least = plan
        .starts
        .iter()
        .flat_map(|start| &start.gpus)
        .filter_map(|part| {
            let gpu = world.facts.gpu(&part.id)?;
            let memory = gpu.memory.value()?;
            let room = memory
                .total
                .less(memory.reserved)
                .less(world.settings.headroom)
                .less(world.state.foreign(gpu)?)
                .less(world.state.claimed(&gpu.id, &plan.stops));
            Some((room.less(part.bytes), part.index))
        })
        .min();
    match least {
        Some((spare, index)) => format!("fits, {spare} to spare on GPU {index}; files, port, program"),
        None => String::new(),
    }
}

pub(super) fn placed_for_display(plan: &Plan, state: &State) -> Vec<PlacedGpu> {
    let mut placed: Vec<PlacedGpu> = Vec::new();
    let add =
        |placed: &mut Vec<PlacedGpu>, part: &PlacedGpu| match placed.iter_mut().find(|p| p.id == part.id) {
            Some(known) => known.bytes = known.bytes.plus(part.bytes),
            None => placed.push(part.clone()),
        };
    for part in plan.starts.iter().flat_map(|start| &start.gpus) {
        add(&mut placed, part);
    }
    if plan.starts.is_empty() {
        for part in
            plan.stops.iter().filter_map(|model| state.claims.get(model)).flat_map(|claim| &claim.gpus)
        {
            add(&mut placed, &part.placed);
        }
    }
    placed.sort_by_key(|part| part.index);
    placed
}

pub(super) fn one(models: &[ModelName]) -> Option<ModelName> {
    if let [one] = models { Some(one.clone()) } else { None }
}

pub(super) fn names(models: &[ModelName]) -> String {
    models.iter().map(ModelName::as_str).collect::<Vec<_>>().join(", ")
}

pub(super) fn seconds(ms: u64) -> String {
    if ms < 10_000 {
        format!("{}.{:02} s", ms / 1000, ms % 1000 / 10)
    } else {
        format!("{}.{} s", ms / 1000, ms % 1000 / 100)
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
