//! How a swap ends: committed, or back to what served, or degraded.

use super::up::died;
use super::words::{millis, names, one};
use super::{Action, Direction, Stage, Swap, Watch, World};
use crate::backend::Failure;
use crate::name::ModelName;
use crate::plan::Start;
use crate::report::{Outcome, Step, StepReport, StepState, Verb, What};
use crate::state::{Guest, Phase, State};

impl Swap {
    pub(super) fn all_started(&mut self, world: &mut World, direction: Direction, actions: &mut Vec<Action>) {
        match direction {
            Direction::Forward => {
                // While the last one loaded nobody waited for those before it.
                if let Some(start) = self.plan.starts.iter().find(|start| died(world, &start.model)) {
                    let reason = format!("{} ended while others were started", start.model);
                    return self.fail(world, reason, None, actions);
                }
                serve(world, &self.plan.starts);
                for model in &self.plan.stops {
                    world.state.stand_ins.remove(model);
                }
                if self.plan.verb == Verb::Load {
                    self.take_guest(world);
                } else if !self.plan.verb.is_own() {
                    self.take_word(world);
                }
                world.state.home = self.plan.home.clone();
                if let Some(previous) = &self.plan.previous {
                    world.state.previous = Some(previous.clone());
                    self.summary.undo = Some("berthctl back".to_owned());
                }
                self.end(world, Outcome::Done, actions);
            }
            Direction::Back => {
                serve(world, &self.restores);
                let outcome = if home_is_missed(world) { Outcome::Degraded } else { Outcome::Restored };
                self.end(world, outcome, actions);
            }
        }
    }

    /// What clients asked for is a guest, but where it is home's; what is home's and was stopped for it comes back.
    fn take_guest(&self, world: &mut World) {
        let guests = self.plan.starts.iter().filter(|start| !self.plan.home.models.contains(&start.model));
        for Start { model, .. } in guests {
            let guest = Guest { since_ms: world.now_ms, cause: self.cause.clone() };
            world.state.guests.insert(model.clone(), guest);
        }
        let stopped = self.plan.stops.iter().filter(|model| self.plan.home.models.contains(*model));
        world.state.displaced.extend(stopped.cloned());
    }

    /// An operator's word counts from now on, and what it started is ready: what was held against that is over.
    fn take_word(&self, world: &mut World) {
        let retried = self.plan.model.iter().filter(|_| self.plan.verb == Verb::Retry);
        for model in self.plan.starts.iter().map(|start| &start.model).chain(retried) {
            world.state.troubles.remove(model);
        }
        world.state.stand_ins.retain(|model, _| !self.plan.home.models.contains(model));
        if !self.plan.home.models.is_empty() {
            world.state.stopped.retain(|_, stopped| !stopped.with_all);
        }
        let seen = world.facts.gpus().iter().filter(|gpu| gpu.memory.value().is_some());
        world.state.gpus = seen.map(|gpu| (gpu.index, gpu.id.clone())).collect();
    }

    /// The step under way failed: back to what served, or degraded where this was the way back already.
    pub(super) fn fail(
        &mut self,
        world: &mut World,
        reason: String,
        failure: Option<Failure>,
        actions: &mut Vec<Action>,
    ) {
        self.ended_step(world, StepState::Failed, reason.clone(), actions);
        if self.going_back {
            let first = self.summary.reason.take();
            let then = format!("the way back failed too: {reason}");
            self.summary.reason = Some(first.map_or(then.clone(), |first| format!("{first}; {then}")));
            self.abandon(world, actions);
            return self.end(world, Outcome::Degraded, actions);
        }
        self.going_back = true;
        self.summary.reason = Some(reason);
        self.summary.failure = failure;
        let started: Vec<ModelName> = self
            .plan
            .starts
            .iter()
            .map(|start| &start.model)
            .filter(|model| {
                world.state.claims.get(*model).is_some_and(|claim| claim.phase == Phase::Starting)
            })
            .cloned()
            .collect();
        // A victim whose end or release is not proved can't be started over itself: berthd goes on observing.
        let stuck = self.plan.stops.iter().any(|model| {
            !started.contains(model)
                && world.state.claims.get(model).is_some_and(|c| c.phase == Phase::Ending)
        });
        if stuck {
            return self.end(world, Outcome::Degraded, actions);
        }
        // What was not stopped in the end need not come back.
        let runs_on = |model: &ModelName| world.state.is_resident(model) && !started.contains(model);
        self.restores.retain(|start| !runs_on(&start.model));
        self.stop(world, Direction::Back, started, actions);
    }

    /// Lets go of what the way back was starting, so that later restoration begins afresh.
    pub(super) fn abandon(&mut self, world: &mut World, actions: &mut Vec<Action>) {
        let half: Vec<ModelName> = world
            .state
            .claims
            .iter()
            .filter(|(model, claim)| {
                claim.phase == Phase::Starting && self.restores.iter().any(|start| start.model == **model)
            })
            .map(|(model, _)| model.clone())
            .collect();
        // Those that were restored already serve on.
        for model in half {
            let last = match &self.stage {
                Stage::Starting { index, .. } | Stage::Readying { index, .. } => self.restores.get(*index),
                Stage::Diagnosing { model, .. } => self.restores.iter().find(|start| start.model == *model),
                _ => None,
            };
            let failing = last.is_some_and(|start| start.model == model);
            if let Some(claim) = world.state.claims.get_mut(&model) {
                claim.phase = if failing { Phase::Ending } else { Phase::Serving };
            }
            if failing {
                actions.push(Action::Stop(model));
            }
        }
    }

    pub(super) fn end(&mut self, world: &mut World, mut outcome: Outcome, actions: &mut Vec<Action>) {
        if let Some((mut home, previous)) = self.before.take().filter(|_| outcome != Outcome::Done) {
            // What systemd would not stop serves on, and home with it; what is stopped stays stopped.
            home.models.retain(|model| !self.plan.stops.contains(model) || world.state.is_serving(model));
            home.default = home.default.filter(|model| home.models.contains(model));
            (world.state.home, world.state.previous) = (home, previous);
            if outcome == Outcome::Restored && home_is_missed(world) {
                outcome = Outcome::Degraded;
            }
        }
        leave_stopped(world.state);
        world.state.note_guests();
        let summary = &mut self.summary;
        summary.outcome = Some(outcome);
        summary.elapsed_ms = millis(world.now.saturating_sub(self.began));
        summary.serving = world
            .state
            .claims
            .iter()
            .filter(|(_, claim)| claim.phase == Phase::Serving)
            .map(|(model, _)| model.clone())
            .collect();
        summary.default.clone_from(&world.state.home.default);
        if let (Some(first), false) = (self.first_stop, summary.serving.is_empty()) {
            summary.gap_ms = Some(millis(world.now.saturating_sub(first)));
        }
        if outcome == Outcome::Restored && !self.restores.is_empty() {
            let step = StepReport {
                step: Step::Restored,
                state: StepState::Done,
                rollback: true,
                model: one(&self.restores.iter().map(|start| start.model.clone()).collect::<Vec<_>>()),
                elapsed_ms: summary.elapsed_ms,
                expected_ms: None,
                detail: names(&self.restores.iter().map(|start| start.model.clone()).collect::<Vec<_>>()),
            };
            summary.steps.push(step.clone());
            actions.push(Action::Say(What::SwapStep { swap: summary.id, step }));
        }
        world.state.intent = None;
        while world.state.swaps.len() >= State::KEPT_SWAPS {
            world.state.swaps.pop_front();
        }
        world.state.swaps.push_back(summary.clone());
        actions.push(Action::Watch(Watch::Idle));
        actions.push(Action::Record { first: true });
        actions.push(Action::Say(What::SwapEnded { swap: summary.clone() }));
        actions.push(Action::End);
        self.stage = Stage::Over;
    }
}

/// These are ready.
fn serve(world: &mut World, started: &[Start]) {
    for Start { model, .. } in started {
        if let Some(claim) = world.state.claims.get_mut(model) {
            claim.phase = Phase::Serving;
            world.state.note_ready(model, world.now_ms);
        }
    }
}

/// What was stopped by hand while the swap went on is not home again by its end.
fn leave_stopped(state: &mut State) {
    let stopped = |model: &ModelName| state.stopped.get(model).is_some_and(|stopped| stopped.by_hand);
    let gone: Vec<ModelName> = state
        .home
        .models
        .iter()
        .filter(|model| stopped(model) && !state.is_resident(model))
        .cloned()
        .collect();
    state.home.models.retain(|model| !gone.contains(model));
    state.home.default = state.home.default.take().filter(|model| !gone.contains(model));
    let resident: Vec<ModelName> = state.residents().map(|(model, _)| model.clone()).collect();
    state.stopped.retain(|model, _| !resident.contains(model));
}

/// Whether a model of home does not serve, nor another in its place.
fn home_is_missed(world: &World) -> bool {
    let state = &world.state;
    !state.home.models.iter().all(|model| state.is_provided(model) || state.is_displaced(model))
}
