//! What berthd brings back by itself: home, or who serves in its place.

use std::collections::{BTreeMap, BTreeSet};

use super::{Context, Plan, Start, refusal};
use crate::config::{Model, Settings};
use crate::facts::Facts;
use crate::name::ModelName;
use crate::report::{Refusal, Verb};
use crate::state::{Phase, State};

/// Who is not to be started now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeldBack {
    /// For a while: backing off, or something is waited for. A model of home keeps its place meanwhile.
    pub waiting: BTreeSet<ModelName>,
    /// Models of home that won't be able to serve for long: somebody else may serve in their place.
    pub out: BTreeSet<ModelName>,
    /// Guests that nobody has asked for long enough: they leave.
    pub leaving: BTreeSet<ModelName>,
}

/// What there is to do for home.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Restoration {
    /// What can be done now.
    pub plan: Option<Plan>,
    /// Who serves in whose place by it.
    pub stand_in: Option<(ModelName, ModelName)>,
    /// Models of home that find no place, and why.
    pub refused: BTreeMap<ModelName, Refusal>,
}

/// Starts the first missing model of home that is not held back, or somebody in the place of one that is out, and
/// stops what nobody wants: what an uncommitted swap left behind, who served in the place of one that is back, and
/// guests that leave.
/// Models come in the order of their priority, then `default`, then as they were started.
pub fn restore(settings: &Settings, facts: &Facts, state: &State, held: &HeldBack) -> Restoration {
    let preflight = BTreeMap::new();
    let context = Context::new(settings, facts, state, &preflight);
    let mut stops = context.unwanted();
    stops.extend(held.leaving.iter().filter(|name| state.is_serving(name)).cloned());
    let absent = context.missing(held);
    let may = |name: &ModelName| !held.waiting.contains(name);
    let mut done = Restoration::default();
    let mut start = None;
    if let Some(places) = context.place_all(&absent, &stops, Vec::new()) {
        start = places.into_iter().find(|start| may(&start.model));
    } else {
        // Not all of them find a place now: what can serve, serves.
        for model in &absent {
            match context.place_for(model, &stops) {
                Ok((place, gone)) if start.is_none() && may(&model.name) => {
                    stops.extend(gone);
                    start = Some(place);
                }
                Ok(_) => {}
                Err(refusal) => {
                    let displaced = state.is_displaced(&model.name).then(|| displaced(&model.name, state));
                    done.refused.insert(model.name.clone(), displaced.unwrap_or(*refusal));
                }
            }
        }
    }
    if start.is_none()
        && let Some((place, of)) = context.in_place_of_another(&absent, &stops, held)
    {
        done.stand_in = Some((place.model.clone(), of));
        start = Some(place);
    }
    if start.is_some() || !stops.is_empty() {
        done.plan = Some(Plan {
            verb: Verb::Restore,
            model: start.as_ref().map(|start| start.model.clone()),
            stops,
            starts: start.into_iter().collect(),
            home: state.home.clone(),
            previous: None,
        });
    }
    done
}

/// Why a model of home that gave way does not come back yet.
fn displaced(name: &ModelName, state: &State) -> Refusal {
    let guests: Vec<&str> = state.guests.keys().map(ModelName::as_str).collect();
    let text = format!("{name} comes back when nobody asks for {} any more", guests.join(" and "));
    refusal("displaced", text, vec![format!("berthctl switch {name}")])
}

impl Context<'_> {
    /// Models that run and that nobody wants.
    fn unwanted(&self) -> Vec<ModelName> {
        let state = self.state;
        // A stand-in makes room when the other one is started, and where both have room, once that one serves.
        let needed = |of: &ModelName| state.home.models.contains(of) && !state.is_serving(of);
        let unwanted = state.claims.iter().filter(|(name, claim)| match state.stand_ins.get(*name) {
            Some(of) => claim.phase != Phase::Ending && !state.home.models.contains(name) && !needed(of),
            None => claim.phase == Phase::Starting && !state.is_wanted(name),
        });
        unwanted.map(|(name, _)| name.clone()).collect()
    }

    /// Models of home that don't run and could, first the one that is to come first.
    fn missing(&self, held: &HeldBack) -> Vec<&Model> {
        let home = &self.state.home;
        let absent = home.models.iter().filter(|name| !self.state.claims.contains_key(*name));
        let declared = absent.filter_map(|name| self.settings.models.get(name));
        let able = declared.filter(|model| !model.retired && !held.out.contains(&model.name));
        let mut missing: Vec<&Model> = able.filter(|model| self.is_back_whole(model, held)).collect();
        missing.sort_by_key(|model| (-model.priority, home.default.as_ref() != Some(&model.name)));
        missing
    }

    /// Whether a model of home that gave way to guests gives up no more beside those that stay than without them: it would
    /// serve on like that when they are gone. One that did not give way always.
    fn is_back_whole(&self, model: &Model, held: &HeldBack) -> bool {
        if !self.state.is_displaced(&model.name) {
            return true;
        }
        let leaving: Vec<ModelName> = held.leaving.iter().cloned().collect();
        let guests: Vec<ModelName> = self.state.guests.keys().cloned().collect();
        match (self.place(model, &leaving), self.place(model, &guests)) {
            (Ok(now), Ok(whole)) => {
                let (now, whole) = (now.layout, whole.layout);
                now.tuning == whole.tuning && now.cpu_experts.len() <= whole.cpu_experts.len()
            }
            // That it finds no place is said with the others.
            _ => true,
        }
    }

    /// A place for a model of home, and who serves in its stead, or as a guest, and has to go for it.
    fn place_for(&self, model: &Model, gone: &[ModelName]) -> Result<(Start, Vec<ModelName>), Box<Refusal>> {
        let refused = match self.place(model, gone) {
            Ok(start) => return Ok((start, Vec::new())),
            Err(unplaced) => unplaced.refusal,
        };
        let stands_in = self.state.stand_in(&model.name).filter(|name| self.state.is_resident(name)).cloned();
        let stands_in: Vec<ModelName> = stands_in.into_iter().collect();
        match self.place(model, &[gone, &stands_in].concat()) {
            Ok(start) => Ok((start, stands_in)),
            Err(_) => self.place_of_guests(model, gone).ok_or(refused),
        }
    }

    /// A place for a model of home that is missed, and the guests that have to go for it.
    fn place_of_guests(&self, model: &Model, gone: &[ModelName]) -> Option<(Start, Vec<ModelName>)> {
        let guests =
            self.state.guests.keys().filter(|name| self.state.is_resident(name) && !gone.contains(name));
        let guests: Vec<ModelName> = guests.cloned().collect();
        if guests.is_empty() || self.state.is_displaced(&model.name) {
            return None;
        }
        let sets = self.victim_sets(&guests).into_iter().map(|set| [gone, &set].concat()).collect::<Vec<_>>();
        let (victims, start) = self.place_for_fewest(model, &sets).ok()?;
        Some((start, victims.into_iter().filter(|name| !gone.contains(name)).collect()))
    }

    /// The first model that can serve in the place of one that is out, which is named second: its declared fallback
    /// or, where `default` or everything would be missed, whoever served last.
    fn in_place_of_another(
        &self,
        absent: &[&Model],
        gone: &[ModelName],
        held: &HeldBack,
    ) -> Option<(Start, ModelName)> {
        let home = &self.state.home;
        let out = home.models.iter().filter(|name| held.out.contains(*name));
        out.filter(|name| self.state.stand_in(name).is_none()).find_map(|of| {
            let missed = home.default.as_ref() == Some(of)
                || !home.models.iter().any(|name| self.state.is_resident(name));
            let declared = self.settings.models.get(of).and_then(|model| model.fallback.as_ref());
            let mut served: Vec<&ModelName> = self.state.served.keys().filter(|_| missed).collect();
            served.sort_by_key(|name| std::cmp::Reverse(self.state.served[*name].at_ms));
            let candidates =
                declared.into_iter().chain(served).filter_map(|name| self.settings.models.get(name));
            let able = candidates.filter(|model| {
                let name = &model.name;
                !model.retired
                    && !home.models.contains(name)
                    && !self.state.claims.contains_key(name)
                    && !self.state.stopped.contains_key(name)
                    && self.state.quarantine(name).is_none()
                    && !held.waiting.contains(name)
            });
            let beside: Vec<&Model> = absent.to_vec();
            let place = |model: &Model| {
                let all = [beside.as_slice(), &[model]].concat();
                self.place_all(&all, gone, Vec::new())?.pop()
            };
            Some((able.into_iter().find_map(place)?, of.clone()))
        })
    }
}
