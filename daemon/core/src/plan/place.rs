//! Where a model fits: the places to try, and what is short where (what always holds, rule 1).

use super::{Context, Start, Unplaced, gpu_suspect, gpu_unknown, refusal};
use crate::backend::{self, PlacedGpu};
use crate::bytes::Bytes;
use crate::config::{Memory, Model};
use crate::facts::{Gpu, Known};
use crate::layout::Layout;
use crate::name::ModelName;
use crate::policy::Spread;
use crate::report::Refusal;

impl Context<'_> {
    pub(super) fn place(&self, model: &Model, victims: &[ModelName]) -> Result<Start, Unplaced> {
        self.place_beside(model, victims, &[])
    }

    /// The first place where the model fits with `victims` gone and `others` started.
    pub(super) fn place_beside(
        &self,
        model: &Model,
        victims: &[ModelName],
        others: &[Start],
    ) -> Result<Start, Unplaced> {
        self.places(model, victims, others).map(|mut places| places.swap_remove(0))
    }

    /// Places for all of these models at once beside `placed`, in their order: what the first could take may be the
    /// only place of another.
    pub(super) fn place_all(
        &self,
        models: &[&Model],
        victims: &[ModelName],
        placed: Vec<Start>,
    ) -> Option<Vec<Start>> {
        let Some((first, rest)) = models.split_first() else { return Some(placed) };
        self.places(first, victims, &placed).ok()?.into_iter().find_map(|start| {
            let placed = placed.iter().cloned().chain([start]).collect();
            self.place_all(rest, victims, placed)
        })
    }

    /// Every place where the model fits, its port included, with `victims` gone and `others` started; at least one.
    pub(super) fn places(
        &self,
        model: &Model,
        victims: &[ModelName],
        others: &[Start],
    ) -> Result<Vec<Start>, Unplaced> {
        if let Some(holder) = self.port_holder(model, victims, others) {
            return Err(self.port_taken(model, holder).into());
        }
        if !model.policy.uses_gpus() {
            return Ok(vec![Start {
                model: model.name.clone(),
                gpus: Vec::new(),
                layout: Layout::default(),
            }]);
        }
        let gpus = match &self.facts.gpus {
            Known::Value(gpus) if gpus.is_empty() => {
                let text = "this machine has no GPU that the driver knows".to_owned();
                return Err(refusal("no_gpu", text, vec!["nvidia-smi -L".to_owned()]).into());
            }
            Known::Value(gpus) => gpus,
            Known::Unknown(why) => {
                let text = format!("the GPUs can't be seen: {why}");
                return Err(refusal("gpu_unknown", text, Vec::new()).into());
            }
        };
        let mut fitting = Vec::new();
        let mut nearest: Option<(Start, Bytes, Vec<String>)> = None;
        let mut unknown = None;
        for candidate in candidates(model, gpus)? {
            let mut short = Vec::new();
            let mut missing = Bytes::ZERO;
            let mut unseen = None;
            for part in &candidate {
                let gpu = &gpus[part.position];
                let available = match self.available(gpu, victims) {
                    Ok(available) => available,
                    Err(why) => {
                        unseen = unseen.or(Some(why));
                        continue;
                    }
                };
                let beside: Bytes = others
                    .iter()
                    .flat_map(|start| &start.gpus)
                    .filter(|placed| placed.id == gpu.id)
                    .map(|placed| placed.bytes)
                    .sum();
                let available = available.less(beside);
                if available < part.bytes {
                    missing = missing.plus(part.bytes.less(available));
                    short.push(self.short_on(gpu, part.bytes, available, victims));
                }
            }
            let start = Start {
                model: model.name.clone(),
                gpus: candidate
                    .iter()
                    .map(|part| PlacedGpu {
                        id: gpus[part.position].id.clone(),
                        index: gpus[part.position].index,
                        bytes: part.bytes,
                    })
                    .collect(),
                layout: Layout::default(),
            };
            match (short.is_empty(), unseen) {
                (true, None) => fitting.push(start),
                (true, Some(why)) => unknown = unknown.or(Some(why)),
                (false, unseen) => {
                    short.extend(unseen.map(|why| why.text));
                    if nearest.as_ref().is_none_or(|(_, least, _)| missing < *least) {
                        nearest = Some((start, missing, short));
                    }
                }
            }
        }
        if !fitting.is_empty() {
            return Ok(fitting);
        }
        match (nearest, unknown) {
            (Some((start, missing, mut short)), unknown) => {
                let certain = unknown.is_none();
                // On a suspect device it may fit as soon as an operator says so.
                let suspect = unknown.as_ref().filter(|why| why.code == "gpu_suspect");
                let hints = suspect.map(|why| why.hints.clone()).unwrap_or_default();
                let unseen = unknown.map(|why| why.text).filter(|text| !short.contains(text));
                short.extend(unseen);
                Err(Unplaced {
                    refusal: Box::new(refusal("does_not_fit", short.join("; "), hints)),
                    short: Some(Box::new((start, missing))),
                    certain,
                })
            }
            (None, Some(why)) => Err(why.into()),
            (None, None) => {
                let text =
                    format!("{} declares memory on more GPUs than the {} here", model.name, gpus.len());
                let hint = format!("correct [memory] in {}", model.source.display());
                Err(refusal("too_few_gpus", text, vec![hint]).into())
            }
        }
    }

    /// What a new model could take on this device with `victims` gone.
    pub(super) fn available(&self, gpu: &Gpu, victims: &[ModelName]) -> Result<Bytes, Refusal> {
        let memory = match &gpu.memory {
            Known::Value(memory) => memory,
            Known::Unknown(why) => return Err(gpu_unknown(gpu.index, why)),
        };
        if let Some(suspicion) = &gpu.suspect {
            return Err(gpu_suspect(gpu.index, suspicion, self.facts.at));
        }
        let foreign =
            self.state.foreign(gpu).ok_or_else(|| gpu_unknown(gpu.index, "its memory is unknown"))?;
        let claimed = self.state.claimed(&gpu.id, victims).plus(self.state.outgrown(gpu, victims));
        Ok(memory.total.less(memory.reserved).less(self.settings.headroom).less(foreign).less(claimed))
    }

    pub(super) fn short_on(
        &self,
        gpu: &Gpu,
        needs: Bytes,
        available: Bytes,
        victims: &[ModelName],
    ) -> String {
        let mut holders: Vec<String> = self
            .state
            .claims
            .iter()
            .filter(|(model, _)| !victims.contains(model))
            .flat_map(|(model, claim)| claim.gpus.iter().map(move |part| (model, part)))
            .filter(|(_, part)| part.placed.id == gpu.id)
            .map(|(model, part)| format!("{model} {}", part.placed.bytes))
            .collect();
        for process in gpu.processes.value().into_iter().flatten() {
            if self.state.owner(process).is_none() {
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

/// A part of a candidate: which GPU by its position in the list, and how much on it.
struct Part {
    position: usize,
    bytes: Bytes,
}

/// The places to try, in order: for `auto` each GPU alone, then all of them; for `split` all; where memory is
/// declared for each device, every run of neighbouring GPUs of that length.
fn candidates(model: &Model, gpus: &[Gpu]) -> Result<Vec<Vec<Part>>, Unplaced> {
    let per_device = match &model.memory {
        Memory::PerDevice(bytes) => Some(bytes.clone()),
        Memory::Total(_) => None,
        Memory::Undeclared => {
            // A server that splits itself would fill the others differently: with one of them unknown, so is this.
            let usable = gpus.iter().map(|gpu| match &gpu.memory {
                Known::Value(memory) => Ok(memory.total.less(memory.reserved)),
                Known::Unknown(why) => Err(gpu_unknown(gpu.index, why)),
            });
            let usable = usable.collect::<Result<Vec<Bytes>, Refusal>>()?;
            let derived = backend::of(model.backend).demand(model, &usable);
            Some(derived.ok_or_else(|| {
                let text = format!("how much GPU memory {} needs is not declared", model.name);
                let hint = format!("add `[memory] gpu = \"… GiB\"` to {}", model.source.display());
                refusal("memory_undeclared", text, vec![hint])
            })?)
        }
    };
    let run = |from: usize, bytes: &[Bytes]| -> Vec<Part> {
        bytes.iter().enumerate().map(|(i, bytes)| Part { position: from + i, bytes: *bytes }).collect()
    };
    let n = gpus.len();
    Ok(match (per_device, &model.memory) {
        (Some(bytes), _) => (0..=n)
            .filter(|from| !bytes.is_empty() && from + bytes.len() <= n)
            .map(|from| run(from, &bytes))
            .collect(),
        (None, Memory::Total(total)) => {
            let each = Bytes(total.0.div_ceil(n.max(1) as u64));
            let all = run(0, &vec![each; n]);
            let mut places: Vec<Vec<Part>> = Vec::new();
            if model.policy.spread != Spread::All {
                places.extend((0..n).map(|i| run(i, &[*total])));
            }
            if n > 1 || places.is_empty() {
                places.push(all);
            }
            places
        }
        (None, _) => Vec::new(),
    })
}
