//! Without a swap: state is held against facts, and home is brought back.

use berth_core::facts::{Active, Facts, Moment};
use berth_core::name::ModelName;
use berth_core::plan::{self, Plan, Start};
use berth_core::report::Verb;
use berth_core::state::{Phase, State};
use berth_core::swap::Event;

use super::{BEYOND, Driver, HEALTHY, RECORD_AGAIN, RETRY_FIRST, RETRY_LAST, Retry};
use crate::proc::monotonic_now;

impl Driver {
    /// Takes new facts in; home is brought back by `restore`.
    pub(super) fn observed(&mut self) {
        self.facts.at = monotonic_now();
        self.mark_fallen(self.facts.at);
        if self.swap.is_some() {
            self.step(Event::Facts);
        } else {
            self.settle(self.facts.at);
        }
        self.notice();
    }

    fn settle(&mut self, now: Moment) {
        let mut news = self.state.note_units(&self.facts);
        for model in self.proofs.weigh(&mut self.state, &self.facts) {
            tracing::info!(%model, "its memory is proved free");
            news = true;
        }
        news |= self.take_over_found();
        let again = now.saturating_sub(self.recorded_at) >= RECORD_AGAIN;
        if news || (self.memory.ledger_error.is_some() && again) {
            self.record();
        }
        self.stop_strays(now);
    }

    /// Models in service whose unit went down by itself: what they hold has to be proved free.
    fn mark_fallen(&mut self, now: Moment) {
        let fallen: Vec<ModelName> = self
            .state
            .claims
            .iter()
            .filter(|(model, claim)| {
                claim.phase == Phase::Serving
                    && self
                        .facts
                        .units
                        .get(*model)
                        .is_none_or(|unit| unit.active.is_down() || unit.invocation != claim.invocation)
            })
            .map(|(model, _)| model.clone())
            .collect();
        for model in &fallen {
            if let Some(claim) = self.state.claims.get_mut(model) {
                claim.phase = Phase::Ending;
                self.hands.diagnose(None, model, claim.invocation.clone(), claim.earlier.clone());
            }
            self.memory.errors.insert(model.clone(), format!("{model} ended without being asked to"));
            self.put_off(model, now);
        }
        if !fallen.is_empty() {
            self.record();
        }
    }

    /// Models that run and have no claim, since the ledger was lost: they serve on, and what they hold counts.
    fn take_over_found(&mut self) -> bool {
        let mut news = false;
        for (model, unit) in &self.facts.units {
            let ours = self.settings.models.contains_key(model) && unit.active == Active::Active;
            if !ours || self.state.claims.contains_key(model) {
                continue;
            }
            if let Some(claim) = State::found(model, &self.facts) {
                tracing::warn!(%model, "it runs and is not in the ledger: taken over as it is");
                self.state.claims.insert(model.clone(), claim);
                news = true;
            }
        }
        news
    }

    /// Units whose claim is ending and that run nevertheless are told to stop, and killed where they don't.
    fn stop_strays(&mut self, now: Moment) {
        let units = &self.facts.units;
        let runs = |model: &ModelName| units.get(model).is_some_and(|unit| !unit.active.is_down());
        self.strays.retain(|model, _| runs(model));
        let ending = self.state.claims.iter().filter(|(_, claim)| claim.phase == Phase::Ending);
        for (model, _) in ending.filter(|(model, _)| runs(model)) {
            let patience =
                self.settings.models.get(model).map_or(self.settings.deadlines, |m| m.deadlines).stop;
            let told = self.strays.get(model).map(|at| now.saturating_sub(*at));
            if told.is_some_and(|since| since < patience) {
                continue;
            }
            tracing::info!(%model, "stopping it");
            if told.is_some() {
                self.hands.kill(model);
            }
            self.strays.insert(model.clone(), now);
            self.hands.stop(0, model, BEYOND);
        }
    }

    /// Begins to bring home back, where something of it is missing and can be started now.
    pub(super) fn restore(&mut self) {
        if self.swap.is_some() || self.waiting.is_some() || self.memory.ledger_error.is_some() {
            return;
        }
        let half =
            self.state.claims.iter().find(|(model, claim)| {
                claim.phase == Phase::Starting && self.state.home.models.contains(model)
            });
        if let Some((model, claim)) = half {
            // An earlier berthd started it: what is left to do is to wait until it is ready.
            let gpus = claim.gpus.iter().map(|part| part.placed.clone()).collect();
            let plan = Plan {
                verb: Verb::Restore,
                model: Some(model.clone()),
                stops: Vec::new(),
                starts: vec![Start { model: model.clone(), gpus }],
                home: self.state.home.clone(),
                previous: None,
            };
            self.begin(plan, None, 0, Event::Resume);
            return;
        }
        let now = monotonic_now();
        let held_off: Vec<ModelName> = self
            .retries
            .iter()
            .filter(|(_, retry)| retry.not_before > now)
            .map(|(model, _)| model.clone())
            .collect();
        if let Some(plan) = plan::restore(&self.settings, &self.facts, &self.state, &held_off) {
            self.begin(plan, None, 0, Event::Begin);
        }
    }

    /// A model of home failed: it is tried again after a pause that doubles with each failure.
    pub(super) fn put_off(&mut self, model: &ModelName, now: Moment) {
        let retry = self.retries.entry(model.clone()).or_insert(Retry { failures: 0, not_before: now });
        if now.saturating_sub(retry.not_before) > HEALTHY {
            retry.failures = 0;
        }
        let pause = RETRY_FIRST.saturating_mul(1 << retry.failures.min(16)).min(RETRY_LAST);
        *retry = Retry { failures: retry.failures + 1, not_before: now + pause };
    }
}

/// Settles what an earlier berthd left, by looking. Models that serve as they were recorded serve on. Of those that
/// run otherwise, home's are waited for until they are ready, and the others end. What does not run has to prove its
/// memory free. A boot proves everything: no process and no allocation outlives it.
pub(super) fn adopt(state: &mut State, facts: &Facts, boot: &str) {
    if state.boot != boot {
        state.claims.clear();
    }
    for (model, claim) in &mut state.claims {
        let unit = facts.units.get(model).filter(|unit| !unit.active.is_down());
        if let Some(unit) =
            unit.filter(|unit| claim.invocation.is_empty() && unit.invocation != claim.earlier)
        {
            claim.invocation.clone_from(&unit.invocation);
        }
        let runs =
            unit.is_some_and(|unit| unit.invocation == claim.invocation && unit.active == Active::Active);
        claim.phase = match claim.phase {
            Phase::Serving if runs => Phase::Serving,
            _ if runs && state.home.models.contains(model) => Phase::Starting,
            _ => Phase::Ending,
        };
        tracing::info!(%model, phase = ?claim.phase, "taken over from the ledger");
    }
    state.swap = None;
    boot.clone_into(&mut state.boot);
}
