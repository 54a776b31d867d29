//! Whose turn it is: which of the models that clients wait for is loaded next.
//!
//! Lines are served in the order in which their first request came. Who has to give way is left alone while it is in use,
//! but for no longer than a turn, counted from when the first line could have gone: nobody starves, and what was loaded
//! serves for a while. Lines behind the first one are loaded meanwhile where nobody has to give way for them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Refused;
use crate::facts::{Moment, Preflight};
use crate::name::ModelName;
use crate::plan::{self, Load};
use crate::report::{Outcome, Refusal, SwapSummary, Verb};
use crate::state::Times;
use crate::swap::World;
use crate::upkeep::{self, Upkeep};

/// For how long a refusal counts for those who come after: whatever it was for can change.
const REFUSED: Duration = Duration::from_secs(1);
/// So soon a model of home that failed is started again, and what clients ask for waits for that.
const HOME_FIRST: Duration = Duration::from_secs(10);
/// Where nothing is known of how long a load takes, in seconds.
pub(super) const UNKNOWN_LOAD: u64 = 30;

/// Whose turn it is.
#[derive(Debug, Clone, Default)]
pub struct Turns {
    /// When the last swap ended that anybody had to give way for.
    began: Moment,
    /// Models that were refused lately, and until when that counts.
    refused: BTreeMap<ModelName, (Moment, Refused)>,
}

/// A model that clients wait for, and since when the first of them does.
struct Line {
    since: Moment,
    model: ModelName,
}

impl Turns {
    /// The model whose load is to be tried now. Not while a swap is under way.
    pub fn next(&mut self, world: &World, upkeep: &Upkeep) -> Option<ModelName> {
        self.refused.retain(|_, (until, _)| world.now < *until);
        let nothing = BTreeMap::new();
        let mut first = true;
        for line in self.lines(world, upkeep) {
            let goes = match load(world, &nothing, &line.model, &|_| false) {
                Load::Refused(_) => true,
                // What can't go now for another reason than that somebody is in use stands in nobody's way.
                Load::Later => continue,
                Load::Go(plan) if plan.stops.is_empty() => true,
                Load::Go(_) => {
                    let first = std::mem::take(&mut first);
                    let in_use = |other: &ModelName| !first || self.is_in_use(world, &line, other);
                    load(world, &nothing, &line.model, &in_use).goes()
                }
            };
            if goes {
                return Some(line.model);
            }
        }
        None
    }

    /// What comes of that model, with what was looked up about it since.
    pub fn decide(
        &self,
        world: &World,
        upkeep: &Upkeep,
        preflight: &BTreeMap<ModelName, Preflight>,
        model: &ModelName,
    ) -> Load {
        let lines = self.lines(world, upkeep);
        let nothing = BTreeMap::new();
        let Some(line) = lines.iter().find(|line| line.model == *model) else { return Load::Later };
        let first = lines.iter().find(|line| load(world, &nothing, &line.model, &|_| false).goes());
        let first = first.is_none_or(|first| first.model == *model);
        load(world, preflight, model, &|other| !first || self.is_in_use(world, line, other))
    }

    /// Models that clients wait for and that could be loaded for them, first the one that was asked for first.
    fn lines(&self, world: &World, upkeep: &Upkeep) -> Vec<Line> {
        if upkeep.is_awaited(world, HOME_FIRST) {
            return Vec::new();
        }
        let loadable = |model: &ModelName| {
            let declared = world.settings.models.get(model);
            !world.state.claims.contains_key(model)
                && self.refusal(model, world.now).is_none()
                && declared.is_some_and(|declared| plan::is_loaded_on_demand(world.state, declared))
                && upkeep::pause(world, model).is_none()
        };
        let waited = world.clients.iter().filter_map(|(model, usage)| Some((usage.first.as_ref()?.0, model)));
        let lines = waited.filter(|(_, model)| loadable(model));
        let mut lines: Vec<Line> = lines.map(|(since, model)| Line { since, model: model.clone() }).collect();
        lines.sort_by(|a, b| (a.since, &a.model).cmp(&(b.since, &b.model)));
        lines
    }

    /// Whether a model keeps its place before the first line: it is in use, and its turn is not over.
    fn is_in_use(&self, world: &World, first: &Line, model: &ModelName) -> bool {
        let over = world.now >= self.began.max(first.since) + world.settings.proxy.turn;
        !over && world.usage(model).is_some_and(super::Usage::is_wanted)
    }

    /// Those who wait for a model are told that it can't be loaded.
    pub fn refuse(&mut self, world: &World, model: &ModelName, refusal: &Refusal) {
        let load = world.state.times.get(model).and_then(|times| Times::expected(&times.load));
        let again = upkeep::pause(world, model).unwrap_or_default().max(REFUSED);
        let load = load.map_or(UNKNOWN_LOAD, |ms| ms.div_ceil(1000)).max(again.as_secs());
        let next = refusal.hints.first().map(|hint| format!(". An operator can: {hint}")).unwrap_or_default();
        let code = if refusal.code == "does_not_fit" { "no_room" } else { "load_failed" };
        let text = format!("{}{next}", refusal.text);
        let refused = Refused { status: 503, code, text, retry_after: Some(load) };
        self.refused.insert(model.clone(), (world.now + again, refused));
    }

    /// Takes how a swap ended. A load that failed is not tried again for those who wait; `called_off` is no failure.
    pub fn ended(&mut self, world: &World, swap: &SwapSummary, called_off: bool) {
        if swap.verb != Verb::Load || !swap.stops.is_empty() {
            self.began = world.now;
        }
        let Some(model) = &swap.model else { return };
        if swap.verb != Verb::Load {
            // An operator's word counts more than what was.
            self.refused.remove(model);
        } else if swap.outcome != Some(Outcome::Done) && !called_off {
            let text = swap.reason.clone().unwrap_or_default();
            let hints = vec![format!("berthctl logs {model}")];
            self.refuse(world, model, &Refusal { code: "load_failed".to_owned(), text, hints });
        }
    }

    /// Why those who ask for a model now are refused.
    pub fn refusal(&self, model: &ModelName, now: Moment) -> Option<&Refused> {
        self.refused.get(model).filter(|(until, _)| now < *until).map(|(_, refused)| refused)
    }
}

fn load(
    world: &World,
    preflight: &BTreeMap<ModelName, Preflight>,
    model: &ModelName,
    in_use: &dyn Fn(&ModelName) -> bool,
) -> Load {
    plan::load(world.settings, world.facts, world.state, preflight, model, in_use)
}
