//! Models in service that fail their checks: people are told, and one that hangs is brought down as one that fell.

use std::net::SocketAddr;

use berth_core::health::Verdict;
use berth_core::name::ModelName;
use berth_core::state::{Claim, Phase};

use super::Driver;
use crate::health::{Checked, Checking};

impl Driver {
    /// Says which models are to be checked: those in service that the swap under way is not about.
    pub(super) fn watch_health(&mut self) {
        let checked = |(model, claim): (&ModelName, &Claim)| {
            let declared = self.settings.models.get(model)?;
            let serves = claim.phase == Phase::Serving && !claim.invocation.is_empty();
            if !serves || declared.health.every.is_none() || self.is_swapped(model) {
                return None;
            }
            let address = claim.address.unwrap_or_else(|| SocketAddr::new(declared.host, declared.port));
            Some((
                model.clone(),
                Checked { run: claim.invocation.clone(), address, gpus: self.computed(claim) },
            ))
        };
        let wanted: Checking = self.state.claims.iter().filter_map(checked).collect();
        self.memory.unwell.retain(|model, _| wanted.contains_key(model));
        self.checking.send_if_modified(|was| {
            let news = *was != wanted;
            *was = wanted;
            news
        });
    }

    /// Takes the verdict on one run of a model.
    pub(super) fn judged(&mut self, model: ModelName, run: &str, verdict: Verdict) {
        let serves = |claim: &Claim| claim.phase == Phase::Serving && claim.invocation == run;
        if !self.state.claims.get(&model).is_some_and(serves) || self.is_swapped(&model) {
            return;
        }
        match verdict {
            Verdict::Healthy => _ = self.memory.unwell.remove(&model),
            // What can't be recorded isn't begun, and one thing is done at a time; the verdict comes again.
            // What ran before was never seen to pass: it may just be asked in another way than it answers.
            Verdict::Hung(_)
                if self.facts.units.get(&model).is_some_and(|unit| unit.predecessor.is_some()) =>
            {
                self.memory.unwell.insert(model, verdict);
            }
            Verdict::Hung(what) if self.swap.is_none() && self.memory.ledger_error.is_none() => {
                self.bring_down(&model, run, format!("it hung: it {what}"));
            }
            other => _ = self.memory.unwell.insert(model, other),
        }
        self.notice();
    }

    /// Treats a model that runs and does not serve as one that fell: its unit is stopped, what it holds has to be
    /// proved free, and home is brought back.
    fn bring_down(&mut self, model: &ModelName, run: &str, why: String) {
        tracing::warn!(%model, "{model} failed: {why}");
        let deeds = self.with_world(|upkeep, world| upkeep.hung(world, model, run, why));
        self.fulfil(deeds);
        self.observed();
    }

    fn is_swapped(&self, model: &ModelName) -> bool {
        self.swap.as_ref().is_some_and(|swap| swap.concerns(model))
    }

    /// Whether one of a claim's GPUs computed at the last reading; None where that is not known of all.
    fn computed(&self, claim: &Claim) -> Option<bool> {
        let percent = claim.gpus.iter().map(|part| self.facts.gpu(&part.placed.id)?.utilization_percent);
        let percent: Vec<Option<u32>> = percent.collect();
        let busy = percent.iter().any(|percent| percent.is_some_and(|percent| percent > 0));
        (busy || !percent.contains(&None)).then_some(busy)
    }
}
