//! What people are told: the picture of the node, and what changes in it.

use std::collections::btree_map::Entry;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use berth_core::metrics::Measured;
use berth_core::name::ModelName;
use berth_core::proxy::{Usage, directory};
use berth_core::report::{ModelState, Problem, What};
use berth_core::state::{Claim, State};
use berth_core::status::{self, View};
use berth_core::swap::Swap;

use super::{Driver, millis, now_ms};
use crate::proc::{host_memory, monotonic_now};

/// Between two looks at which models would not fit even alone: as often as GPUs are read when nothing goes on.
const WEIGH: Duration = Duration::from_secs(1);

impl Driver {
    /// Notices changes that people are told of: states of models, problems.
    pub(super) fn notice(&mut self) {
        let now_ms = now_ms();
        self.memory.rivals.note(self.facts.gpus());
        let now = monotonic_now();
        if self.swap.is_none() && self.memory.weighed_at.is_none_or(|at| now >= at + WEIGH) {
            self.memory.weigh_alone(&self.settings, &self.facts, &self.state, now);
        }
        let (states, problems) = self.with_view(|view| {
            let states: Vec<(ModelName, ModelState)> = view
                .settings
                .models
                .values()
                .map(|model| (model.name.clone(), status::model_state(view, model)))
                .collect();
            (states, status::problems(view))
        });
        self.name_all();
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held_in_words(&self.state);
        for (model, state) in states {
            let was = self.memory.since.get(&model).map(|(was, _)| *was);
            if was == Some(state) {
                continue;
            }
            self.memory.since.insert(model.clone(), (state, now_ms));
            if was.is_some() && self.swap.is_none() {
                let text = self.upkeep.errors.get(&model).cloned().unwrap_or_default();
                self.events.say(now_ms, What::Model { model, state, text });
            }
        }
        self.problems.send_if_modified(|was| {
            let news = *was != problems;
            was.clone_from(&problems);
            news
        });
        let stand: Vec<String> = problems.iter().map(Problem::key).collect();
        let over: Vec<String> =
            self.memory.problems.keys().filter(|key| !stand.contains(key)).cloned().collect();
        for key in over {
            self.memory.problems.remove(&key);
            let code = key.split(' ').next().unwrap_or_default().to_owned();
            self.events.say(now_ms, What::ProblemEnded { text: format!("{key}: over"), code });
        }
        for (key, problem) in stand.into_iter().zip(problems) {
            if let Entry::Vacant(news) = self.memory.problems.entry(key) {
                news.insert(now_ms);
                tracing::warn!(code = problem.code, "{}", problem.text);
                self.events.say(now_ms, What::ProblemBegan { problem });
            }
        }
    }

    /// Tells the proxy who answers to which name, where that has changed.
    pub(super) fn name_all(&self) {
        let waits = |usage: &Usage| usage.waiting > 0;
        let draining = self.swap.as_ref().is_some_and(Swap::is_draining);
        self.traffic.awaited(draining || self.traffic.clients().values().any(waits));
        let now = self.with_view(|view| directory(view, self.swap.as_ref(), &self.turns));
        self.names.send_if_modified(|was| {
            let news = was.as_deref() != Some(&now);
            if news {
                *was = Some(Arc::new(now));
            }
            news
        });
    }

    /// All that is measured. Who listens to events is not the driver's to know.
    pub(super) fn measured(&mut self) -> Measured {
        self.facts.host.memory = host_memory();
        let (status, health) = self.with_view(|view| (status::status(view), status::health(view)));
        let kept = |claim: &Claim| claim.gpus.iter().map(|part| part.placed.bytes).sum();
        Measured {
            status,
            health,
            kept: self.state.claims.iter().map(|(model, claim)| (model.clone(), kept(claim))).collect(),
            swaps: self.swaps.clone(),
            times: self.traffic.times(),
            listeners: 0,
        }
    }

    pub(super) fn with_view<T>(&self, look: impl FnOnce(&View) -> T) -> T {
        let now = monotonic_now();
        let swap = self.swap.as_ref().map(|swap| swap.summary(now));
        look(&View {
            settings: &self.settings,
            facts: &self.facts,
            state: &self.state,
            proofs: &self.proofs,
            upkeep: &self.upkeep,
            memory: &self.memory,
            swap: swap.as_ref(),
            requests: &|model| self.traffic.requests(model),
            now,
            now_ms: now_ms(),
            uptime_ms: millis(now.saturating_sub(self.began)),
        })
    }
}

/// "; GPU 0 is held by aeon (14.0 GiB)", or nothing.
fn held_in_words(state: &State) -> String {
    let mut held: Vec<String> = state
        .claims
        .iter()
        .flat_map(|(model, claim)| claim.gpus.iter().map(move |part| (model, &part.placed)))
        .map(|(model, placed)| format!("GPU {} is held by {model} ({})", placed.index, placed.bytes))
        .collect();
    held.sort();
    held.iter().fold(String::new(), |all, one| all + "; " + one)
}
