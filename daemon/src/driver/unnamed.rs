//! Models that are named by their settings (`genesis:ctx=16384`): they are among the settings for as long as something
//! knows them.

use std::sync::Arc;

use berth_core::config::Settings;
use berth_core::facts::{Active, Facts};
use berth_core::name::ModelName;
use berth_core::plan;
use berth_core::report::Refusal;
use berth_core::state::State;
use berth_core::swap::Swap;

use super::{Decide, Driver};
use crate::preflight::Looked;
use crate::proc::monotonic_now;

/// These settings with the unnamed models that `state` and `facts` know.
pub(super) fn settings_for(settings: &Settings, state: &State, facts: &Facts) -> Settings {
    settings.with_unnamed(known(state, facts))
}

/// Models that have a part in what serves, shall serve or served before, and such that run all the same.
fn known<'a>(state: &'a State, facts: &'a Facts) -> impl Iterator<Item = &'a ModelName> {
    let runs = facts.units.iter().filter(|(_, unit)| unit.active == Active::Active);
    state.models().chain(runs.map(|(name, _)| name))
}

impl Driver {
    /// Makes what a request sets a part of the model's name, and that model one of the settings. What was looked up
    /// for the model that it is a variant of holds for it too: its settings change neither program, file nor port.
    pub(super) fn name(&mut self, decide: &mut Decide) -> Result<(), Box<Refusal>> {
        decide.request = plan::named(&self.settings, &self.state, &decide.request)?;
        self.keep_unnamed(decide.request.model.as_deref());
        self.looked_for_unnamed(&mut decide.looked);
        Ok(())
    }

    /// What was looked up for a model holds for what settings made of it.
    pub(super) fn looked_for_unnamed(&self, looked: &mut Looked) {
        for name in self.settings.models.keys() {
            if let Some((base, _)) = name.settings()
                && let Some(found) = looked.preflight.get(&base).cloned()
            {
                looked.preflight.entry(name.clone()).or_insert(found);
            }
        }
    }

    /// Forgets unnamed models that nothing knows any more, besides the one that is `asked` for.
    pub(super) fn keep_unnamed(&mut self, asked: Option<&str>) {
        let waiting = self.waiting.as_ref().and_then(|decide| decide.request.model.as_deref());
        let named = asked.into_iter().chain(waiting).filter_map(|name| name.parse::<ModelName>().ok());
        let swap = self.swap.as_ref().map(|swap: &Swap| swap.summary(monotonic_now()));
        let moving = swap.into_iter().flat_map(|swap| swap.stops.into_iter().chain(swap.starts));
        let also: Vec<ModelName> = named.chain(moving).collect();
        let known = known(&self.state, &self.facts).chain(&also);
        let unnamed = known.filter(|name| name.settings().is_some());
        let (mut wanted, there): (Vec<&ModelName>, Vec<&ModelName>) = (
            unnamed.collect(),
            self.settings.models.keys().filter(|name| name.settings().is_some()).collect(),
        );
        wanted.sort();
        wanted.dedup();
        if wanted != there {
            self.settings = Arc::new(self.settings.with_unnamed(wanted));
            self.state.forget_unnamed();
        }
    }
}
