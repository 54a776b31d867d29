//! The host's memory as a device: what is foreign, what is kept for models, what is left for another.
//!
//! What the kernel calls available says little of a model whose weights are mapped: pages of a file can be given back,
//! and the model is slow or dead without them. So what models take is counted by their claims, mapped weights included,
//! and the kernel is asked only for what others hold.

use crate::backend;
use crate::bytes::Bytes;
use crate::config::Model;
use crate::facts::{Facts, HostMemory, Known};
use crate::name::ModelName;
use crate::state::State;

impl State {
    /// What is neither available nor pinned by models that have a claim. What can't be attributed counts as foreign;
    /// unknown as long as the host's memory is.
    pub fn host_foreign(&self, facts: &Facts) -> Known<Bytes> {
        match &facts.host.memory {
            Known::Value(memory) => Known::Value(self.foreign_of(memory, facts)),
            Known::Unknown(why) => Known::Unknown(why.clone()),
        }
    }

    fn foreign_of(&self, memory: &HostMemory, facts: &Facts) -> Bytes {
        let ours = self.claims.keys().map(|model| pinned(facts, model)).sum();
        memory.total.less(memory.available).less(ours)
    }

    /// What claims hold of the host's memory, those of `except` left out.
    pub fn host_claimed(&self, except: &[ModelName]) -> Bytes {
        let others = self.claims.iter().filter(|(model, _)| !except.contains(model));
        others.map(|(_, claim)| claim.layout.host).sum()
    }

    /// What models pin beyond their claims, those of `except` left out.
    pub fn host_outgrown(&self, facts: &Facts, except: &[ModelName]) -> Bytes {
        let others = self.claims.iter().filter(|(model, _)| !except.contains(model));
        others.map(|(model, claim)| pinned(facts, model).less(claim.layout.host)).sum()
    }

    /// What a new model could take of the host's memory when that of `except` is back, with `headroom` left free.
    pub fn host_available(&self, facts: &Facts, headroom: Bytes, except: &[ModelName]) -> Known<Bytes> {
        match &facts.host.memory {
            Known::Value(memory) => Known::Value(
                memory
                    .total
                    .less(headroom)
                    .less(self.foreign_of(memory, facts))
                    .less(self.host_claimed(except))
                    .less(self.host_outgrown(facts, except)),
            ),
            Known::Unknown(why) => Known::Unknown(why.clone()),
        }
    }
}

/// What the host keeps for a model that was found running, of which only its files are known: all of them where it has no
/// GPU. What it pins counts whatever is claimed.
pub fn of_files(model: &Model, facts: &Facts) -> Bytes {
    if model.policy.uses_gpus() {
        return Bytes::ZERO;
    }
    let files = backend::of(model.backend).files(model);
    let stamps = files.iter().filter_map(|path| facts.files.get(path)?.stamp.value());
    let files = stamps.map(|stamp| Bytes(stamp.size)).sum();
    model.host_memory.unwrap_or(files)
}

/// What a model's processes pin; nothing where that is not known, so that it counts as foreign.
fn pinned(facts: &Facts, model: &ModelName) -> Bytes {
    let brought = facts.units.get(model).and_then(|unit| unit.brought.value());
    brought.map_or(Bytes::ZERO, |brought| brought.pinned)
}

#[cfg(test)]
#[path = "host/tests.rs"]
mod tests;
