//! Who could be stopped for a model, and whom its port stands against.

use std::net::SocketAddr;

use super::{Context, Start, refusal};
use crate::config::Model;
use crate::name::ModelName;
use crate::policy::Evicts;
use crate::report::Refusal;
use crate::state::Times;

impl Context<'_> {
    /// Residents that a switch to this model may stop.
    pub(super) fn evictable(&self, model: &Model) -> Vec<ModelName> {
        let priority = |name: &ModelName| self.settings.models.get(name).map_or(0, |model| model.priority);
        let residents = self.state.residents().map(|(name, _)| name);
        let may = residents.filter(|name| match model.policy.evicts {
            Evicts::Any => true,
            Evicts::Lower => priority(name) < model.priority,
            Evicts::None => false,
        });
        may.cloned().collect()
    }

    /// Sets of residents that could be stopped: those with the fewest of home, then the fewest, then the cheapest; the
    /// last holds all. Up to ten residents all sets are tried.
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
        // Among equally many, what counts least goes first, then `default`, which the operator replaces, then what has
        // served longest, then what is back soonest.
        let default = self.state.home.default.as_ref();
        let wanted = |set: &[ModelName]| set.iter().filter(|name| self.state.is_wanted(name)).count();
        let models = |set: &[ModelName]| {
            let declared = set.iter().map(|name| self.settings.models.get(name));
            declared.map(|model| model.map_or(0, |model| i64::from(model.priority))).sum::<i64>()
        };
        let since = |set: &[ModelName]| {
            let served = set.iter().map(|name| self.state.served.get(name).map_or(0, |served| served.at_ms));
            served.max().unwrap_or(0)
        };
        let reload = |set: &[ModelName]| {
            let times = set.iter().filter_map(|name| self.state.times.get(name));
            times.filter_map(|times| Times::expected(&times.load)).sum::<u64>()
        };
        sets.sort_by_cached_key(|set| {
            let default = !set.iter().any(|m| Some(m) == default);
            (wanted(set), set.len(), models(set), default, since(set), reload(set))
        });
        sets
    }

    /// Who else has the same port: a model that holds memory and is none of `victims`, or one of `others`.
    pub(super) fn port_holder<'a>(
        &'a self,
        model: &Model,
        victims: &[ModelName],
        others: &'a [Start],
    ) -> Option<&'a ModelName> {
        let staying = self.state.claims.keys().filter(|other| !victims.contains(other));
        staying.chain(others.iter().map(|start| &start.model)).find(|other| self.same_port(model, other))
    }

    /// Whether two different models can't serve at once for their port's sake.
    pub(super) fn same_port(&self, model: &Model, other: &ModelName) -> bool {
        // Where it was started with another address than is declared now, that one is taken.
        let started = self.state.claims.get(other).and_then(|claim| claim.address);
        let declared =
            || self.settings.models.get(other).map(|other| SocketAddr::new(other.host, other.port));
        *other != model.name && started.or_else(declared) == Some(SocketAddr::new(model.host, model.port))
    }

    pub(super) fn port_taken(&self, model: &Model, holder: &ModelName) -> Refusal {
        let text = format!("{} and {holder} have the same port {}", model.name, model.port);
        let ending = self.state.claims.contains_key(holder) && !self.state.is_resident(holder);
        let hint =
            if ending { "berthctl status".to_owned() } else { format!("berthctl switch {}", model.name) };
        refusal("port_taken", text, vec![hint])
    }
}
