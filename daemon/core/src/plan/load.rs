//! What is loaded because a client asks for it, and who gives way.

use std::collections::BTreeMap;

use super::{Context, Plan, Start, Unplaced, refusal};
use crate::config::{Model, OnDemand, Settings};
use crate::facts::{Facts, Preflight};
use crate::name::ModelName;
use crate::report::{Refusal, Verb};
use crate::state::{Phase, State};

/// What comes of a client's wish for a model that does not serve.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// It is to be loaded.
    Go(Plan),
    /// Not yet: those who would give way are in use, or memory is on its way back.
    Later,
    /// It can't be.
    Refused(Refusal),
}

/// Whether a client's wish can have this model loaded at all: what an operator stopped stays stopped.
pub fn is_loaded_on_demand(state: &State, model: &Model) -> bool {
    let name = &model.name;
    let wanted = state.home.models.contains(name) || model.guests.on_demand != OnDemand::Never;
    wanted && !state.stopped.contains_key(name)
}

/// Decides on a model that clients wait for. Nobody gives way who is in use. `preflight` is what was looked up about it.
pub fn load(
    settings: &Settings,
    facts: &Facts,
    state: &State,
    preflight: &BTreeMap<ModelName, Preflight>,
    name: &ModelName,
    in_use: &dyn Fn(&ModelName) -> bool,
) -> Load {
    let context = Context::new(settings, facts, state, preflight);
    match settings.models.get(name) {
        Some(model) => context.load(model, in_use),
        None => Load::Refused(refusal("unknown_model", format!("{name} is not declared"), Vec::new())),
    }
}

impl Context<'_> {
    fn load(&self, model: &Model, in_use: &dyn Fn(&ModelName) -> bool) -> Load {
        let name = &model.name;
        let ending = |name: &ModelName| self.state.claims.get(name).is_some_and(|c| c.phase == Phase::Ending);
        if self.state.claims.contains_key(name) {
            // It serves, or comes, or its memory is not back.
            return Load::Later;
        }
        if !is_loaded_on_demand(self.state, model) {
            let hints = vec![format!("berthctl start {name}")];
            return Load::Refused(refusal("not_on_demand", format!("{name} is loaded for no client"), hints));
        }
        if let Err(refusal) = self.check(model) {
            return Load::Refused(*refusal);
        }
        let mut sets = self.victim_sets(&self.giving_way(model));
        // Those first that nobody uses.
        sets.sort_by_key(|set| (set.iter().any(|name| self.state.is_wanted(name)), set.iter().any(in_use)));
        match self.place_for_fewest(model, &sets) {
            Ok((victims, _)) if victims.iter().any(in_use) => Load::Later,
            Ok((victims, start)) if self.keeps_home(model, &victims, &start) => Load::Go(Plan {
                verb: Verb::Load,
                model: Some(name.clone()),
                stops: victims,
                starts: vec![start],
                home: self.state.home.clone(),
                previous: None,
            }),
            // What is missing of home comes first; then it may give way.
            Ok(_) if model.guests.on_demand == OnDemand::Evict => Load::Later,
            Ok(_) => Load::Refused(self.no_room_beside(model)),
            Err(_) if self.state.claims.keys().any(ending) && self.fits_alone(model) => Load::Later,
            Err(unplaced) => Load::Refused(self.why_not(model, unplaced)),
        }
    }

    /// Residents that may have to go for a model that a client asks for: guests, and home where that is declared.
    fn giving_way(&self, model: &Model) -> Vec<ModelName> {
        let guest = |name: &ModelName| self.state.guests.contains_key(name);
        if self.state.home.models.contains(&model.name) {
            return self
                .state
                .residents()
                .map(|(name, _)| name)
                .filter(|name| guest(name))
                .cloned()
                .collect();
        }
        let evicts = model.guests.on_demand == OnDemand::Evict;
        self.evictable(model).into_iter().filter(|name| evicts || guest(name)).collect()
    }

    /// Whether what is missing of home, and gave way to no guest where that is declared, can still come back beside it.
    fn keeps_home(&self, model: &Model, victims: &[ModelName], start: &Start) -> bool {
        let mut absent = self.absent(&model.name);
        if model.guests.on_demand == OnDemand::Evict {
            absent.retain(|model| !self.state.is_displaced(&model.name));
        }
        self.state.home.models.contains(&model.name) || self.leaves_room(start, &absent, victims)
    }

    fn fits_alone(&self, model: &Model) -> bool {
        let all: Vec<ModelName> = self.state.claims.keys().cloned().collect();
        self.place(model, &all).is_ok()
    }

    fn no_room_beside(&self, model: &Model) -> Refusal {
        let name = &model.name;
        let text = format!("{name} has no room beside what is to serve");
        refusal("does_not_fit", text, vec![format!("berthctl switch {name}")])
    }

    fn why_not(&self, model: &Model, unplaced: Unplaced) -> Refusal {
        let mut refusal = *unplaced.refusal;
        if refusal.code == "does_not_fit" {
            let beside = self.no_room_beside(model);
            refusal.text = format!("{}: {}", beside.text, refusal.text);
            refusal.hints = beside.hints;
        }
        refusal
    }
}
