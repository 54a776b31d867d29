//! A damaged ledger is mended, when an operator says so. Until then nothing is started or stopped.

use std::sync::Arc;

use berth_core::facts::{Active, Facts};
use berth_core::release::Proofs;
use berth_core::report::{Refusal, Repaired, SCHEMA};
use berth_core::state::{Phase, State};
use berth_core::upkeep::Upkeep;

use super::unnamed::settings_for;
use super::{Driver, now_ms};
use crate::ledger::LedgerError;
use crate::proc::monotonic_now;

impl Driver {
    /// Goes on from the newest state that the damaged ledger still tells, else from what runs, in a new ledger.
    /// Where that can't be written nothing is changed. With a sound ledger there is nothing to do.
    pub(super) fn repair(&mut self) -> Result<Repaired, Refusal> {
        let damage = self.ledger.damage();
        let (kept, line) = match &damage {
            Some(_) => tokio::task::block_in_place(|| self.mend()).map_err(|error| error.refusal())?,
            None => (None, None),
        };
        if damage.is_some() {
            self.memory.ledger_error = None;
            for model in self.state.claims.keys() {
                self.hands.reference(model);
            }
            // What runs and is not in the state is taken over before home is brought back.
            self.observed();
            self.restore();
        }
        let serving = self.state.claims.iter().filter(|(_, claim)| claim.phase == Phase::Serving);
        Ok(Repaired {
            schema: SCHEMA,
            damage: damage.map(|damage| damage.to_string()),
            kept,
            line,
            home: self.state.home.models.clone(),
            default: self.state.home.default.clone(),
            serving: serving.map(|(model, _)| model.clone()).collect(),
        })
    }

    /// Where the damaged file is kept, and which line of it counts.
    fn mend(&mut self) -> Result<(Option<String>, Option<usize>), LedgerError> {
        let (line, mut state) = match self.ledger.salvage()? {
            Some((line, state)) => (Some(line), state),
            None => (None, self.state.clone()),
        };
        let (now, boot) = (monotonic_now(), &self.state.boot);
        self.settings = Arc::new(settings_for(&self.hands.declared.now(), &state, &self.facts));
        let upkeep = Upkeep::adopt(&self.settings, &mut state, &self.facts, boot, now, now_ms());
        keep_running(&mut state, &self.facts);
        let kept = self.ledger.replace(&state, now_ms() / 1000)?;
        self.state = state;
        self.upkeep = upkeep;
        self.proofs = Proofs::default();
        Ok((kept.map(|path| path.display().to_string()), line))
    }
}

/// What runs serves on, though the state that was found would have it end: newer ones may have been lost. A run that
/// it does not know at all is taken over as it is, as with a ledger that was lost.
fn keep_running(state: &mut State, facts: &Facts) {
    state.claims.retain(|model, claim| {
        let unit = facts.units.get(model).filter(|unit| unit.active == Active::Active);
        let Some(unit) = unit.filter(|_| claim.phase == Phase::Ending) else { return true };
        claim.phase = Phase::Serving;
        unit.invocation == claim.invocation
    });
}
