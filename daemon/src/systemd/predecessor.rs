//! Units that models replace: what served a model before it was Berth's. While such a unit runs, it is the model.

use std::collections::BTreeMap;

use berth_core::name::ModelName;

/// Which models replace which units.
#[derive(Debug, Default)]
pub(super) struct Predecessors {
    declared: BTreeMap<ModelName, String>,
    /// How often `declared` has changed.
    generation: u64,
}

impl Predecessors {
    /// Whether these are others.
    pub(super) fn declare(&mut self, units: BTreeMap<ModelName, String>) -> bool {
        let news = self.declared != units;
        self.generation += u64::from(news);
        self.declared = units;
        news
    }

    pub(super) fn declared(&self) -> &BTreeMap<ModelName, String> {
        &self.declared
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// A model's own unit, and the one that it replaces.
    pub(super) fn units_of(&self, model: &ModelName) -> Vec<String> {
        std::iter::once(model.unit()).chain(self.declared.get(model).cloned()).collect()
    }

    /// The model that replaces such a unit.
    pub(super) fn model(&self, is: impl Fn(&str) -> bool) -> Option<ModelName> {
        self.declared.iter().find(|(_, unit)| is(unit)).map(|(model, _)| model.clone())
    }
}
