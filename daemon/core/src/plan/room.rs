//! What each GPU has for models, reckoned once for a plan: who is stopped and who is started beside is asked often.

use super::{Context, Start, gpu_suspect, gpu_unknown};
use crate::bytes::Bytes;
use crate::config::{Model, Settings};
use crate::facts::{DeviceId, Facts, Known};
use crate::name::ModelName;
use crate::report::Refusal;
use crate::state::State;

pub(super) struct Rooms<'a> {
    settings: &'a Settings,
    gpus: Vec<GpuRoom>,
}

struct GpuRoom {
    id: DeviceId,
    /// Total less reserved; nothing where it is unknown.
    usable: Bytes,
    /// `usable` less foreign use, or why nothing is placed there.
    free: Result<Bytes, Refusal>,
    /// What each model is kept, or holds where that is more.
    held: Vec<(ModelName, Bytes)>,
}

impl<'a> Rooms<'a> {
    pub(super) fn new(settings: &'a Settings, facts: &Facts, state: &State) -> Self {
        let gpus = facts.gpus().iter().map(|gpu| {
            let usable = gpu.memory.value().map_or(Bytes::ZERO, |memory| memory.total.less(memory.reserved));
            let free = match (&gpu.memory, &gpu.suspect, state.foreign(gpu)) {
                (Known::Unknown(why), ..) => Err(gpu_unknown(gpu.index, why)),
                (_, Some(suspicion), _) => Err(gpu_suspect(gpu.index, suspicion, facts.at)),
                (_, _, None) => Err(gpu_unknown(gpu.index, "its memory is unknown")),
                (_, _, Some(foreign)) => Ok(usable.less(foreign)),
            };
            let held = state.claims.keys().map(|model| (model.clone(), state.kept(gpu, model)));
            let held = held.filter(|(_, held)| *held > Bytes::ZERO);
            GpuRoom { id: gpu.id.clone(), usable, free, held: held.collect() }
        });
        Self { settings, gpus: gpus.collect() }
    }

    pub(super) fn usable(&self, position: usize) -> Bytes {
        self.gpus[position].usable
    }

    /// What `model` could take on this GPU with `victims` gone and `others` started: nothing where it would have to
    /// share and may not.
    pub(super) fn available(
        &self,
        position: usize,
        model: &Model,
        victims: &[ModelName],
        others: &[Start],
    ) -> Result<Bytes, Refusal> {
        let free = self.gpus[position].free.clone()?;
        if self.kept_alone(position, model, victims, others).is_some() {
            return Ok(Bytes::ZERO);
        }
        let headroom = model.policy.headroom.unwrap_or(self.settings.headroom);
        let held: Bytes = self.staying(position, victims).map(|(_, held)| *held).sum();
        Ok(free.less(headroom).less(held).less(self.beside(position, others).map(|(_, bytes)| bytes).sum()))
    }

    /// What any model that may share could take on this GPU with `victims` gone; nothing where that is unknown.
    pub(super) fn on(&self, gpu: &DeviceId, victims: &[ModelName]) -> Bytes {
        let Some(position) = self.gpus.iter().position(|room| room.id == *gpu) else { return Bytes::ZERO };
        let held: Bytes = self.staying(position, victims).map(|(_, held)| *held).sum();
        self.gpus[position].free.clone().unwrap_or_default().less(self.settings.headroom).less(held)
    }

    fn staying(&self, position: usize, victims: &[ModelName]) -> impl Iterator<Item = &(ModelName, Bytes)> {
        self.gpus[position].held.iter().filter(|(model, _)| !victims.contains(model))
    }

    fn beside<'s>(
        &'s self,
        position: usize,
        others: &'s [Start],
    ) -> impl Iterator<Item = (&'s ModelName, Bytes)> {
        let id = &self.gpus[position].id;
        others.iter().flat_map(move |start| {
            let parts = start.gpus.iter().filter(move |part| part.id == *id);
            parts.map(move |part| (&start.model, part.bytes))
        })
    }

    /// Who is in the way on this GPU, since one of the two may not share it.
    pub(super) fn kept_alone<'s>(
        &'s self,
        position: usize,
        model: &Model,
        victims: &'s [ModelName],
        others: &'s [Start],
    ) -> Option<&'s ModelName> {
        let shares =
            |name: &ModelName| self.settings.models.get(name).is_none_or(|other| other.policy.shares);
        let staying = self.staying(position, victims).map(|(name, _)| name);
        let mut there = staying.chain(self.beside(position, others).map(|(name, _)| name));
        there.find(|name| **name != model.name && !(model.policy.shares && shares(name)))
    }

    /// "0.3 GiB short on GPU 0: it needs …, … are available (held: …)".
    #[allow(clippy::too_many_arguments)]
    pub(super) fn short_on(
        &self,
        context: &Context<'_>,
        position: usize,
        model: &Model,
        needs: Bytes,
        available: Bytes,
        victims: &[ModelName],
        others: &[Start],
    ) -> String {
        let gpu = &context.facts.gpus()[position];
        if let Some(other) = self.kept_alone(position, model, victims, others) {
            return format!("{other} is on GPU {}, and they don't share one", gpu.index);
        }
        let mut holders: Vec<String> = self
            .staying(position, victims)
            .map(|(model, held)| format!("{model} {held}"))
            .chain(self.beside(position, others).map(|(model, bytes)| format!("{model} {bytes}")))
            .collect();
        for process in gpu.processes.value().into_iter().flatten() {
            if context.state.owner(process).is_none() {
                let held = process.memory.value().map_or("an unknown amount".to_owned(), Bytes::to_string);
                holders.push(format!("{} {held}", process.named()));
            }
        }
        let held =
            if holders.is_empty() { String::new() } else { format!(" (held: {})", holders.join(", ")) };
        format!(
            "{} short on GPU {}: it needs {needs}, {available} are available{held}",
            needs.less(available),
            gpu.index
        )
    }
}
