//! Clients in the simulated world: what they ask for waits, is loaded, is answered.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_core::name::ModelName;
use berth_core::plan::Load;
use berth_core::proxy::{Directory, Queue, Turns, directory};
use berth_core::report::{Requests, SwapSummary};
use berth_core::status::{Memory, View};
use berth_core::swap::Event;
use berth_core::upkeep::Upkeep;

use super::berth::{Due, World};

impl World {
    pub(super) fn at(&self) -> Duration {
        Duration::from_millis(self.nature.now)
    }

    fn with_turns<T>(
        &mut self,
        decide: impl FnOnce(&mut Turns, &mut Upkeep, &mut berth_core::swap::World) -> T,
    ) -> T {
        let mut turns = std::mem::take(&mut self.turns);
        let decided = self.with_upkeep(|upkeep, world| decide(&mut turns, upkeep, world));
        self.turns = turns;
        decided
    }

    /// Time passed, or clients came or went.
    pub(crate) fn tick(&mut self) {
        self.step(Event::Tick);
        self.look_for_load();
    }

    pub(super) fn look_for_load(&mut self) {
        if self.swap.is_some() || self.ledger_fails || self.waiting.is_some() || self.looking {
            return;
        }
        if let Some(model) = self.with_turns(|turns, upkeep, world| turns.next(world, upkeep)) {
            self.looking = true;
            self.due(5, Due::LookedForLoad(model));
        }
    }

    /// What was looked up for a load is there.
    pub(super) fn load(&mut self, model: &ModelName) {
        self.looking = false;
        if self.swap.is_some() || self.ledger_fails || self.waiting.is_some() {
            return;
        }
        let load = self.with_turns(|turns, upkeep, world| {
            let load = turns.decide(world, upkeep, &BTreeMap::new(), model);
            if let Load::Refused(refusal) = &load {
                turns.refuse(world, model, refusal);
            }
            load
        });
        if let Load::Go(plan) = load {
            self.begin(plan, None, Event::Begin);
        }
    }

    pub(super) fn load_ended(&mut self, swap: &SwapSummary, called_off: bool) {
        self.with_turns(|turns, _, world| turns.ended(world, swap, called_off));
    }

    /// Who answers to which name, as the proxy sees it.
    pub(crate) fn directory(&self) -> Directory {
        let (memory, proofs) = (Memory::default(), berth_core::release::Proofs::default());
        let view = View {
            settings: &self.settings,
            facts: &self.facts,
            state: &self.state,
            proofs: &proofs,
            upkeep: &self.upkeep,
            memory: &memory,
            swap: None,
            now: self.at(),
            now_ms: self.nature.now,
            uptime_ms: 0,
            requests: &|_| Requests::default(),
        };
        directory(&view, self.swap.as_ref(), &self.turns)
    }

    /// A request comes that takes so long to answer: it goes to its model where that serves, else it waits so long.
    pub(crate) fn client(&mut self, model: &ModelName, ms: u64) {
        let held = self.swap.as_ref().is_some_and(|swap| swap.holds_back(model));
        if self.state.is_serving(model) && !held {
            self.answers(model, ms);
        } else if let Some(ticket) = self.clients.wait(model, ("client", true), 100, self.at()) {
            self.due(ms, Due::HangsUp(model.clone(), ticket));
            self.tick();
        }
    }

    /// A request goes to this model, whose answer takes so long.
    pub(crate) fn answers(&mut self, model: &ModelName, ms: u64) {
        self.clients.enter(model);
        let run = self.runs.get(model).copied().unwrap_or_default();
        self.due(ms, Due::Answered(model.clone(), run));
    }

    /// What it answers is cut off: it is stopped.
    pub(super) fn cuts(&mut self, model: &ModelName) {
        for _ in 0..self.clients.usage(model).under_way {
            self.clients.leave(model, self.at());
            self.cut += 1;
        }
        *self.runs.entry(model.clone()).or_default() += 1;
    }

    pub(super) fn answered(&mut self, model: &ModelName, run: u64) {
        if self.runs.get(model).copied().unwrap_or_default() == run {
            self.clients.leave(model, self.at());
            self.answered += 1;
            self.tick();
        }
    }

    pub(crate) fn hangs_up(&mut self, model: &ModelName, ticket: u64) {
        self.clients.give_back(model, ticket);
        self.tick();
    }

    /// berthd died: whoever was connected is not any more.
    pub(super) fn clients_are_cut_off(&mut self) {
        self.clients = Queue::default();
        self.turns = Turns::default();
        self.looking = false;
        for run in self.runs.values_mut() {
            *run += 1;
        }
    }
}
