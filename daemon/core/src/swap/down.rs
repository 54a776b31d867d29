//! The way down: units are stopped, and the memory of each is proved free.

use super::words::{millis, names, one, seconds, survivors};
use super::{Action, Direction, HEED_DEADLINE, KILL_DEADLINE, Stage, Swap, Watch, World, longest};
use crate::bytes::Bytes;
use crate::facts::Active;
use crate::learned;
use crate::name::ModelName;
use crate::plan::{self, Plan, Start};
use crate::release::{self, Reading};
use crate::report::{Step, StepState, Verb};
use crate::state::{Claim, Phase, Times};

impl Swap {
    /// Lets answers that are under way end before these models are stopped. Where none are, nothing is waited for.
    pub(super) fn drain(&mut self, world: &mut World, stops: Vec<ModelName>, actions: &mut Vec<Action>) {
        if stops.is_empty() {
            self.passed(Step::Drained);
            self.take_stops(world);
            return self.start(world, Direction::Forward, 0, actions);
        }
        let deadline = world.now + longest(world, &stops, |deadlines| deadlines.drain);
        self.step_began = world.now;
        self.stage = Stage::Draining { stops, deadline };
        actions.push(Action::HoldBack);
    }

    /// Whether it is for clients who are gone. Once something was stopped for them it goes on: whoever asks again, after
    /// a timeout of theirs, finds it further.
    fn is_unwanted(&self, world: &World) -> bool {
        let waits = |model| world.usage(model).is_some_and(|usage| usage.waiting > 0);
        self.plan.verb == Verb::Load && !self.plan.model.as_ref().is_some_and(waits)
    }

    pub(super) fn draining(&mut self, world: &mut World, actions: &mut Vec<Action>) {
        let Stage::Draining { stops, deadline } = self.stage.clone() else { return };
        let under_way: usize = stops.iter().map(|model| world.under_way(model)).sum();
        if self.is_unwanted(world) {
            let why = "nobody waits for it any more".to_owned();
            return self.call_off(world, why, actions);
        }
        let began = self.summary.steps.last().is_some_and(|step| step.step == Step::Drained);
        if under_way > 0 && world.now < deadline {
            if !began {
                self.began_step(world, Step::Drained, Direction::Forward, one(&stops), actions);
            }
            return;
        }
        match (began, under_way) {
            (false, 0) => self.passed(Step::Drained),
            (_, 0) => self.ended_step(world, StepState::Done, String::new(), actions),
            (_, left) => {
                let waited = seconds(millis(world.now.saturating_sub(self.step_began)));
                let whose = if left == 1 { "1 answer".to_owned() } else { format!("{left} answers") };
                let detail = format!("{whose} still under way after {waited}: cut off");
                self.ended_step(world, StepState::Done, detail, actions);
            }
        }
        self.take_stops(world);
        self.stop(world, Direction::Forward, stops, actions);
    }

    /// Stops these models, or goes on with the starts where there are none.
    pub(super) fn stop(
        &mut self,
        world: &mut World,
        direction: Direction,
        stops: Vec<ModelName>,
        actions: &mut Vec<Action>,
    ) {
        if stops.is_empty() {
            return self.start(world, direction, 0, actions);
        }
        for model in &stops {
            if let Some(claim) = world.state.claims.get_mut(model) {
                self.phases.insert(model.clone(), claim.phase);
                claim.phase = Phase::Ending;
            }
        }
        self.first_stop = self.first_stop.or(Some(world.now));
        self.began_step(world, Step::Stopped, direction, one(&stops), actions);
        actions.push(Action::Record { first: direction == Direction::Forward });
        actions.extend(stops.iter().map(|model| Action::Stop(model.clone())));
        actions.push(Action::Watch(Watch::Release(stops.clone())));
        let deadline = world.now + longest(world, &stops, |deadlines| deadlines.stop);
        let asked = stops.clone();
        self.stage = Stage::Stopping { direction, stops, asked, deadline, killed: false };
    }

    pub(super) fn stopping(&mut self, world: &mut World, actions: &mut Vec<Action>) {
        let Stage::Stopping { direction, stops, asked, deadline, killed } = self.stage.clone() else {
            return;
        };
        let left: Vec<ModelName> = stops
            .iter()
            .filter(|model| asked.contains(model) || !release::processes_gone(world.facts.units.get(*model)))
            .cloned()
            .collect();
        if left.is_empty() {
            let took = millis(world.now.saturating_sub(self.step_began));
            for model in &stops {
                Times::note(&mut world.state.times.entry(model.clone()).or_default().stop, took);
            }
            self.ended_step(world, StepState::Done, names(&stops), actions);
            self.began_step(world, Step::Released, direction, one(&stops), actions);
            let deadline = world.now + longest(world, &stops, |deadlines| deadlines.release);
            self.stage = Stage::Releasing { direction, stops, deadline, measured: false, freed: Vec::new() };
            self.weigh(world);
            return self.releasing(world, actions);
        }
        // What systemd has not begun to stop, because polkit or itself is slow, has had no time yet to end by itself.
        let heeded = |model| world.facts.units.get(model).is_none_or(|unit| !unit.active.is_up());
        if !killed && world.now < self.step_began + HEED_DEADLINE && !left.iter().all(heeded) {
            let deadline = world.now + longest(world, &stops, |deadlines| deadlines.stop);
            self.stage = Stage::Stopping { direction, stops, asked, deadline, killed };
            return;
        }
        if world.now < deadline {
            return;
        }
        if killed {
            let who: Vec<String> =
                left.iter().map(|model| survivors(world.state, world.facts, model)).collect();
            self.fail(
                world,
                format!("{}; a new server is not started over it", who.join("; ")),
                None,
                actions,
            );
        } else {
            actions.extend(left.into_iter().map(Action::Kill));
            self.stage = Stage::Stopping {
                direction,
                stops,
                asked,
                deadline: world.now + KILL_DEADLINE,
                killed: true,
            };
        }
    }

    /// The step under way was not begun, since it could not be written down before.
    pub(super) fn not_recorded(&mut self, world: &mut World, why: &str, actions: &mut Vec<Action>) {
        if let Stage::Stopping { stops, .. } = &self.stage {
            for model in stops {
                if let (Some(claim), Some(phase)) =
                    (world.state.claims.get_mut(model), self.phases.get(model))
                {
                    claim.phase = *phase;
                }
            }
        }
        self.fail(world, format!("the ledger can't be written: {why}"), None, actions);
    }

    /// StopUnit ended. Where systemd would not stop it, what still runs as before serves on; but what was to go on
    /// the way back has failed already and serves nobody: it stays one that is to end.
    pub(super) fn stop_ended(
        &mut self,
        world: &mut World,
        model: &ModelName,
        result: Result<(), String>,
        actions: &mut Vec<Action>,
    ) {
        let runs = world.facts.units.get(model).is_some_and(|unit| unit.active == Active::Active);
        if let (Err(why), true, Some(claim)) = (result, runs, world.state.claims.get_mut(model)) {
            if !self.going_back {
                claim.phase = self.phases.get(model).copied().unwrap_or(Phase::Serving);
            }
            return self.fail(world, format!("{model} could not be stopped: {why}"), None, actions);
        }
        if let Stage::Stopping { asked, .. } = &mut self.stage {
            asked.retain(|other| other != model);
        }
        self.stopping(world, actions);
    }

    /// Lets the proofs look at the facts and keeps, for each GPU, when it was proved free.
    pub(super) fn weigh(&mut self, world: &mut World) {
        let before: Vec<(ModelName, Claim)> =
            world.state.claims.iter().map(|(model, claim)| (model.clone(), claim.clone())).collect();
        let proved = world.proofs.weigh(world.state, world.facts);
        let Stage::Releasing { stops, freed, measured, .. } = &mut self.stage else { return };
        for (model, claim) in before.iter().filter(|(model, _)| stops.contains(model)) {
            let Some(gone) = world.proofs.gone_at(model) else { continue };
            if !*measured
                && claim
                    .gpus
                    .iter()
                    .all(|part| world.facts.gpu(&part.placed.id).is_none_or(|g| g.read_at >= gone))
            {
                *measured = true;
                let (held, too_early) = held_at_exit(world, &before, stops, &self.plan);
                if self.summary.held_at_exit.is_none() {
                    self.summary.held_at_exit = Some(held);
                    self.summary.early_start_would_fail = too_early;
                }
            }
            for part in &claim.gpus {
                let index = part.placed.index;
                let Some(at) = world.proofs.proved_at(model, &part.placed.id) else { continue };
                let ms = millis(at.saturating_sub(gone));
                match freed.iter_mut().find(|(known, _)| *known == index) {
                    Some((_, known)) => *known = ms.max(*known),
                    None => freed.push((index, ms)),
                }
            }
        }
        for model in proved.iter().filter(|model| stops.contains(model)) {
            let took = freed.iter().map(|(_, ms)| *ms).max().unwrap_or(0);
            Times::note(&mut world.state.times.entry(model.clone()).or_default().release, took);
            let claim = before.iter().find(|(name, _)| name == model);
            if let Some(run) = claim.and_then(|(_, claim)| claim.run.clone()) {
                learned::note_release(world.state, model, run, took);
            }
        }
    }

    pub(super) fn releasing(&mut self, world: &mut World, actions: &mut Vec<Action>) {
        let Stage::Releasing { direction, stops, deadline, freed, .. } = self.stage.clone() else { return };
        let left: Vec<&ModelName> =
            stops.iter().filter(|model| world.state.claims.contains_key(*model)).collect();
        if left.is_empty() {
            // On a device that misbehaves just now nothing is started, nor where the host's memory is not back; it may
            // be sound, and there is no proof for the host's but to see it.
            let waits = |start: &Start| {
                plan::is_unsound(world.facts, start)
                    || plan::is_short_on_host(world.settings, world.facts, world.state, start)
            };
            if world.now < deadline && self.start_at(direction, 0).is_some_and(waits) {
                return;
            }
            let mut freed = freed;
            freed.sort_unstable();
            let each: Vec<String> =
                freed.iter().map(|(index, ms)| format!("GPU {index} after {}", seconds(*ms))).collect();
            self.ended_step(world, StepState::Done, each.join(", "), actions);
            actions.push(Action::Watch(Watch::Idle));
            return self.start(world, direction, 0, actions);
        }
        if world.now >= deadline {
            let missing: Vec<String> = left
                .iter()
                .flat_map(|model| world.proofs.unproved(model, &world.state.claims[*model]))
                .map(|unproved| unproved.sentence())
                .collect();
            let waited = millis(world.now.saturating_sub(self.step_began));
            let reason = format!("memory was not back after {}: {}", seconds(waited), missing.join("; "));
            self.fail(world, reason, None, actions);
        }
    }
}

/// What was still held right after the last process ended, and whether a start then would have failed.
fn held_at_exit(
    world: &World,
    claims: &[(ModelName, Claim)],
    stops: &[ModelName],
    plan: &Plan,
) -> (Bytes, bool) {
    let mut held = Bytes::ZERO;
    for (model, claim) in claims.iter().filter(|(model, _)| stops.contains(model)) {
        for part in &claim.gpus {
            if let Reading::Held { bytes, .. } =
                release::judge(world.state, model, part, world.facts.gpu(&part.placed.id))
            {
                held = held.plus(bytes);
            }
        }
    }
    let too_early = plan.starts.iter().flat_map(|start| &start.gpus).any(|part| {
        let memory = world.facts.gpu(&part.id).and_then(|gpu| gpu.memory.value());
        memory.is_some_and(|memory| memory.free < part.bytes)
    });
    (held, too_early)
}
