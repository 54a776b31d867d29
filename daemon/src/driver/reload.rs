//! What was declared anew takes effect here.

use std::collections::BTreeSet;
use std::sync::Arc;

use berth_core::config::{self, Settings};
use berth_core::facts::{Facts, Unit};
use berth_core::name::ModelName;
use berth_core::report::{Changed, Refusal};
use berth_core::state::{Phase, State};

use super::{Driver, unnamed};
use crate::proc::monotonic_now;

/// Models that run as units which they do not replace any more: those go on by themselves, and Berth's they are not. What
/// one that is being stopped holds has to be proved free as ever.
fn given_back(facts: &Facts, state: &State, settings: &Settings) -> BTreeSet<ModelName> {
    let predecessors = settings.predecessors();
    let back = |(name, unit): &(&ModelName, &Unit)| {
        let ending = state.claims.get(*name).is_some_and(|claim| claim.phase != Phase::Serving);
        let other = unit.predecessor.is_some() && unit.predecessor.as_ref() != predecessors.get(*name);
        other && !unit.active.is_down() && !ending
    };
    facts.units.iter().filter(back).map(|(name, _)| name.clone()).collect()
}

impl Driver {
    /// These settings hold from now on; what differs. Nothing that runs is touched. Refused while a swap is under way,
    /// whose plan was made by the ones that held.
    pub(super) fn reload(&mut self, settings: Settings) -> Result<Vec<Changed>, Refusal> {
        if let Some(swap) = &self.swap {
            let id = swap.id();
            return Err(Refusal {
                code: "busy".to_owned(),
                text: format!(
                    "swap {id} is under way, by what was declared when it began; nothing was reloaded"
                ),
                hints: vec!["berthctl events --follow; when it has ended: berthctl reload".to_owned()],
            });
        }
        let given_back = given_back(&self.facts, &self.state, &settings);
        let gone = |name: &&ModelName| {
            !settings.models.contains_key(*name) && name.settings().is_none() && !given_back.contains(*name)
        };
        if let Some(name) = self.state.claims.keys().find(gone) {
            return Err(Refusal {
                code: "in_use".to_owned(),
                text: format!("{name} is not declared any more and has memory still; nothing was reloaded"),
                hints: vec![format!("berthctl stop {name}, then berthctl reload")],
            });
        }
        let changes = config::difference(&self.hands.declared.now(), &settings);
        for change in &changes {
            let what = change.model.as_ref().map_or("berth.toml", |model| model.as_str());
            let keys: Vec<&str> = change.values.iter().map(|value| value.key.as_str()).collect();
            tracing::info!(what, "declared anew: {what}: {}", keys.join(", "));
        }
        for name in &given_back {
            tracing::info!(model = %name, "what runs is the service's own again");
            self.state.let_go(name);
            self.facts.units.remove(name);
        }
        self.settings = Arc::new(unnamed::settings_for(&settings, &self.state, &self.facts));
        if self.hands.systemd.set_predecessors(settings.predecessors()) {
            (self.units_at, self.units_awaited) = (monotonic_now(), true);
        }
        self.hands.declared.set(Arc::new(settings));
        self.memory.weigh_alone(&self.settings, &self.facts, &self.state, monotonic_now());
        if !given_back.is_empty() {
            self.record();
        }
        self.name_all();
        self.notice();
        self.restore();
        Ok(changes)
    }
}
