//! Units that models replace: what served a model before it was Berth's. While such a unit runs, it is the model.

use std::collections::{BTreeMap, BTreeSet};

use berth_core::name::ModelName;

/// Which models replace which units, and which of those run in their models' place.
#[derive(Debug, Default)]
pub(super) struct Predecessors {
    declared: BTreeMap<ModelName, String>,
    /// Those that their predecessor is: as read last.
    now: BTreeSet<ModelName>,
    /// How often `declared` has changed.
    generation: u64,
}

impl Predecessors {
    pub(super) fn declare(&mut self, units: BTreeMap<ModelName, String>) {
        self.now.retain(|model| self.declared.get(model) == units.get(model));
        self.generation += u64::from(self.declared != units);
        self.declared = units;
    }

    pub(super) fn declared(&self) -> &BTreeMap<ModelName, String> {
        &self.declared
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether a model was seen as its predecessor.
    pub(super) fn note(&mut self, model: &ModelName, predecessor: bool) {
        if !predecessor {
            self.now.remove(model);
        } else if self.declared.contains_key(model) {
            self.now.insert(model.clone());
        }
    }

    pub(super) fn unit_now(&self, model: &ModelName) -> String {
        let predecessor = self.declared.get(model).filter(|_| self.now.contains(model));
        predecessor.cloned().unwrap_or_else(|| model.unit())
    }

    pub(super) fn units_of(&self, model: &ModelName) -> Vec<String> {
        std::iter::once(model.unit()).chain(self.declared.get(model).cloned()).collect()
    }

    /// The model that a unit belongs to, its own or the one that it replaces.
    pub(super) fn model(&self, is: impl Fn(&str) -> bool) -> Option<ModelName> {
        self.declared.iter().find(|(_, unit)| is(unit)).map(|(model, _)| model.clone())
    }
}
