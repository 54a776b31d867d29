//! What clients wait for is loaded here, when its turn has come.

use berth_core::name::ModelName;
use berth_core::plan::{Load, Plan};
use berth_core::report::{Actor, SwapSummary};
use berth_core::swap::Event;

use super::{Driver, millis};
use crate::preflight::Looked;
use crate::proc::monotonic_now;

impl Driver {
    /// Time passed, or clients came or went.
    pub(super) fn tick(&mut self) {
        if self.facts.expire(monotonic_now()) {
            self.observed();
        }
        self.step(Event::Tick);
        self.look_for_load();
    }

    /// Has all looked up about the model whose turn it is; `load` decides.
    pub(super) fn look_for_load(&mut self) {
        let busy = self.swap.is_some() || self.waiting.is_some() || self.looking;
        if busy || self.memory.ledger_error.is_some() {
            return;
        }
        let mut turns = std::mem::take(&mut self.turns);
        let next = self.with_world(|upkeep, world| turns.next(world, upkeep));
        self.turns = turns;
        if let Some(model) = next {
            self.looking = true;
            self.hands.look_for_load(&model);
        }
    }

    /// Begins to load a model, or tells those who wait for it why not.
    pub(super) fn load(&mut self, model: &ModelName, mut looked: Looked) {
        self.looking = false;
        self.take_looked(&mut looked);
        self.looked_for_unnamed(&mut looked);
        if self.swap.is_some() || self.waiting.is_some() || self.memory.ledger_error.is_some() {
            return;
        }
        let mut turns = std::mem::take(&mut self.turns);
        let load = self.with_world(|upkeep, world| {
            let load = turns.decide(world, upkeep, &looked.preflight, model);
            if let Load::Refused(refusal) = &load {
                turns.refuse(world, model, refusal);
            }
            load
        });
        self.turns = turns;
        match load {
            Load::Go(plan) => {
                let checked_ms = millis(monotonic_now().saturating_sub(looked.began));
                self.begin(plan, None, checked_ms, Event::Begin);
            }
            Load::Later => {}
            Load::Refused(refusal) => {
                tracing::info!(%model, code = refusal.code, "not loaded for clients: {}", refusal.text);
                self.name_all();
            }
        }
    }

    /// An operator wants what is being loaded for clients.
    pub(super) fn take_over(&mut self, plan: Plan, by: Actor) -> Option<u64> {
        let mut swap = self.swap.take()?;
        tracing::info!(swap = swap.id(), verb = plan.verb.as_str(), "an operator takes this swap over");
        self.with_world(|upkeep, world| {
            upkeep.gives_way();
            swap.take_over(plan, by, world.state);
        });
        let id = swap.id();
        self.swap = Some(swap);
        self.record();
        self.name_all();
        Some(id)
    }

    /// Those who wait for a model whose load failed are told so.
    pub(super) fn load_ended(&mut self, swap: &SwapSummary, called_off: bool) {
        let mut turns = std::mem::take(&mut self.turns);
        self.with_world(|_, world| turns.ended(world, swap, called_off));
        self.turns = turns;
    }
}
