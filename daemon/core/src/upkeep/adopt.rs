//! What an earlier berthd left is settled by looking, not by assuming.

use super::{Upkeep, started, trouble};
use crate::config::Settings;
use crate::facts::{Active, Facts, Moment};
use crate::name::ModelName;
use crate::plan::Plan;
use crate::report::Verb;
use crate::state::{During, Phase, State};
use crate::swap::{Event, World};

impl Upkeep {
    /// Takes over `state` as it is found on this boot. Models that serve as they were recorded serve on. Of those
    /// that run otherwise, wanted ones are waited for, and those that a swap was about to commit are asked whether
    /// they are ready; the others end. What does not run has to prove its memory free. A boot proves everything: no
    /// process and no allocation outlives it.
    pub fn adopt(
        settings: &Settings,
        state: &mut State,
        facts: &Facts,
        boot: &str,
        now: Moment,
        now_ms: u64,
    ) -> Self {
        let mut upkeep = Self { began: now, ..Self::default() };
        let intent = state.intent.take();
        let same = state.boot == boot;
        boot.clone_into(&mut state.boot);
        if !same {
            another_boot(settings, state, now_ms);
        } else if let Some(plan) = intent.filter(|plan| was_about_to_commit(state, facts, plan)) {
            upkeep.cut_off.push(plan);
        }
        let awaited: Vec<ModelName> =
            upkeep.cut_off.iter().flat_map(|plan| &plan.starts).map(|start| start.model.clone()).collect();
        let mut doubted = Vec::new();
        for (model, claim) in &mut state.claims {
            let unit = facts.units.get(model).filter(|unit| !unit.active.is_down());
            if let Some(unit) =
                unit.filter(|unit| claim.invocation.is_empty() && unit.invocation != claim.earlier)
            {
                claim.invocation.clone_from(&unit.invocation);
            }
            let runs =
                unit.is_some_and(|unit| unit.invocation == claim.invocation && unit.active == Active::Active);
            let wanted = state.home.models.contains(model) || state.stand_ins.contains_key(model);
            claim.phase = match claim.phase {
                // One that fell meanwhile is seen by the first look, which asks how it ended.
                Phase::Serving => Phase::Serving,
                Phase::Starting if runs && (wanted || awaited.contains(model)) => Phase::Starting,
                Phase::Ending if runs && wanted => {
                    doubted.push(model.clone());
                    Phase::Starting
                }
                _ => Phase::Ending,
            };
        }
        // It was to be stopped and was not: by an operator's swap, which is undone, or since it no longer answered.
        let plans: Vec<Plan> =
            doubted.iter().map(|model| started(state, model, &state.claims[model])).collect();
        upkeep.cut_off.extend(plans);
        upkeep
    }

    /// The next of what was cut off and is still to be settled.
    pub(super) fn settle(&mut self, world: &World) -> Option<(Plan, Event)> {
        while !self.cut_off.is_empty() {
            let plan = self.cut_off.remove(0);
            let starting = |model: &ModelName| {
                world.state.claims.get(model).is_some_and(|claim| claim.phase == Phase::Starting)
            };
            if plan.starts.iter().all(|start| starting(&start.model)) {
                return Some((plan, Event::Settle));
            }
        }
        None
    }
}

/// Nothing runs and nothing is held any more. A start that the machine went down over counts against the model.
fn another_boot(settings: &Settings, state: &mut State, now_ms: u64) {
    let claims = std::mem::take(&mut state.claims);
    let starting = claims.iter().filter(|(_, claim)| claim.phase == Phase::Starting);
    for (model, _) in starting.filter(|(model, _)| state.is_wanted(model)).collect::<Vec<_>>() {
        let why = "the machine went down while it was being started".to_owned();
        trouble::note(state, settings.restart, model, During::Boot, why, now_ms);
    }
    state.stand_ins.clear();
    state.guests.clear();
    state.displaced.clear();
}

/// Whether all that a swap was to start runs, and all that it was to stop is gone.
fn was_about_to_commit(state: &State, facts: &Facts, plan: &Plan) -> bool {
    let runs = |model: &ModelName| facts.units.get(model).is_some_and(|unit| unit.active == Active::Active);
    let starting =
        |model: &ModelName| state.claims.get(model).is_some_and(|claim| claim.phase == Phase::Starting);
    let started = |model: &ModelName| plan.starts.iter().any(|start| start.model == *model);
    plan.verb != Verb::Restore
        && !plan.starts.is_empty()
        && plan.starts.iter().all(|start| starting(&start.model) && runs(&start.model))
        && plan.stops.iter().all(|model| started(model) || !state.claims.contains_key(model))
}
