//! What is loaded because a client asks for it, and who gives way.

use std::collections::BTreeMap;

use super::{Context, Plan, Start, Unplaced, refusal};
use crate::config::{Model, OnDemand, Settings};
use crate::facts::{Facts, Preflight};
use crate::name::ModelName;
use crate::report::{Refusal, Verb};
use crate::state::State;

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

impl Load {
    /// Whether it is to be loaded.
    pub fn goes(&self) -> bool {
        matches!(self, Self::Go(_))
    }
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
        let giving_way = self.giving_way(model);
        let mut sets = self.victim_sets(&giving_way);
        // Those first that nobody uses.
        sets.sort_by_key(|set| (set.iter().any(|name| self.state.is_wanted(name)), set.iter().any(in_use)));
        match self.place_for_fewest(model, &sets) {
            Ok((victims, start)) => match self.keeps_home(model, &victims, &start) {
                Err(refusal) => Load::Refused(*refusal),
                Ok(()) if victims.iter().any(in_use) => Load::Later,
                Ok(()) => Load::Go(Plan {
                    verb: Verb::Load,
                    model: Some(name.clone()),
                    stops: victims,
                    starts: vec![start],
                    home: self.state.home.clone(),
                    previous: None,
                }),
            },
            Err(_) if self.fits_later(model, &giving_way).is_some() => Load::Later,
            Err(unplaced) => Load::Refused(Self::why_not(model, unplaced)),
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

    /// Refuses what would take the place of a model of home that is missing: one that failed comes back while guests are
    /// there; one that gave way comes back after them, unless home is what gives way.
    fn keeps_home(&self, model: &Model, victims: &[ModelName], start: &Start) -> Result<(), Box<Refusal>> {
        if self.state.home.models.contains(&model.name) {
            return Ok(());
        }
        let mut missing = self.absent(&model.name);
        missing.retain(|model| self.state.quarantine(&model.name).is_none());
        let (gave_way, failed): (Vec<&Model>, Vec<&Model>) =
            missing.into_iter().partition(|model| self.state.is_displaced(&model.name));
        let gone: Vec<ModelName> = failed.iter().map(|model| &model.name).chain(victims).cloned().collect();
        if let Some(first) = failed.first()
            && self.place_all(&failed, &gone, vec![start.clone()]).is_none()
        {
            let text = format!(
                "{} of home is to come back, and beside {} it would have no place",
                first.name, model.name
            );
            return Err(Box::new(refusal("does_not_fit", text, vec!["berthctl status".to_owned()])));
        }
        if model.guests.on_demand == OnDemand::Evict || self.leaves_room(start, &gave_way, victims) {
            return Ok(());
        }
        Err(Box::new(Self::no_room_beside(model)))
    }

    fn no_room_beside(model: &Model) -> Refusal {
        let name = &model.name;
        let text = format!("{name} has no room beside what is to serve");
        refusal("does_not_fit", text, vec![format!("berthctl switch {name}")])
    }

    fn why_not(model: &Model, unplaced: Unplaced) -> Refusal {
        let mut refusal = *unplaced.refusal;
        if refusal.code == "does_not_fit" {
            let beside = Self::no_room_beside(model);
            refusal.text = format!("{}: {}", beside.text, refusal.text);
            refusal.hints = beside.hints;
        }
        refusal
    }
}
