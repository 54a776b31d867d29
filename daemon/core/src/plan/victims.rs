//! Who could be stopped for a model, and whom its port stands against.

use super::{Context, Unplaced, refusal};
use crate::config::Model;
use crate::name::ModelName;

impl Context<'_> {
    /// Sets of residents that could be stopped, fewest first. Up to ten residents all sets are tried.
    pub(super) fn victim_sets(&self, residents: &[ModelName]) -> Vec<Vec<ModelName>> {
        if residents.len() > 10 {
            return vec![Vec::new(), residents.to_vec()];
        }
        let mut sets: Vec<Vec<ModelName>> = (0u32..1 << residents.len())
            .map(|bits| {
                residents
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| bits >> i & 1 == 1)
                    .map(|(_, m)| m.clone())
                    .collect()
            })
            .collect();
        // Among equally many, what is `default` now goes first: it is what the operator replaces.
        let default = self.state.home.default.as_ref();
        sets.sort_by_key(|set| (set.len(), !set.iter().any(|m| Some(m) == default)));
        sets
    }

    /// A resident that stays and has the same port.
    pub(super) fn port_clash(&self, model: &Model, victims: &[ModelName]) -> Option<&ModelName> {
        self.state.claims.keys().find(|other| {
            **other != model.name
                && !victims.contains(other)
                && self
                    .settings
                    .models
                    .get(*other)
                    .is_some_and(|m| m.port == model.port && m.host == model.host)
        })
    }

    pub(super) fn clash(&self, model: &Model, victims: &[ModelName]) -> Unplaced {
        let holder = self.port_clash(model, victims).map_or("another model".to_owned(), ToString::to_string);
        let text = format!("{} and {holder} have the same port {}", model.name, model.port);
        refusal("port_taken", text, vec![format!("berthctl switch {}", model.name)]).into()
    }
}
