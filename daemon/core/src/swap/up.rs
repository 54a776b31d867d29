//! The way up: a unit is started under a claim, and waited for until it is ready or has failed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::words::{millis, seconds};
use super::{Action, Direction, Event, LAUNCH_DEADLINE, Stage, Swap, Watch, World, longest};
use crate::backend::Failure;
use crate::bytes::Bytes;
use crate::config::run_values;
use crate::container::Engine;
use crate::facts::{Brought, Gpu, Moment};
use crate::learned::{self, Run};
use crate::name::ModelName;
use crate::plan::{self, Start};
use crate::report::{Step, StepState};
use crate::state::{Claim, ClaimedGpu, Phase, Times};

/// How long the reading of a failed server's log may take.
const DIAGNOSIS_DEADLINE: Duration = Duration::from_secs(5);
/// How long a model that an earlier berthd started may be silent until it is taken for one that does not serve.
const SETTLING: Duration = Duration::from_secs(30);
/// A start whose memory, on a GPU or the host's, grew within this time, or a tenth of its deadline where that is
/// shorter, is still loading: its deadline extends, up to twice what was set.
const GROWING: Duration = Duration::from_secs(10);

/// What showed that a start failed; its log usually says why.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Symptom {
    /// Its unit went down.
    Died,
    /// systemd could not start it.
    NotStarted(String),
    /// It did not become ready in time.
    NotReady(String),
}

impl Symptom {
    /// Why it failed, as a clause: the log's word, where it has one, before systemd's; but a server that runs and
    /// isn't ready is judged by what it answers.
    pub(super) fn clause(&self, failure: Option<&Failure>) -> String {
        match (self, failure) {
            (Self::NotReady(why), _) => why.clone(),
            (Self::NotStarted(why), failure) => {
                failure.filter(|failure| !failure.line.is_empty()).map_or(why.clone(), Failure::sentence)
            }
            (Self::Died, Some(failure)) => failure.sentence(),
            (Self::Died, None) => "it ended, and its log could not be read in time".to_owned(),
        }
    }
}

/// A start that is on its way up.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Loading {
    deadline: Moment,
    cap: Moment,
    growing: Duration,
    held: Bytes,
    brought: Brought,
    grew_at: Moment,
    said: String,
    /// It answers as it should; only systemd's word of this run is awaited.
    answers: bool,
}

impl Swap {
    pub(super) fn start_at(&self, direction: Direction, index: usize) -> Option<&Start> {
        match direction {
            Direction::Forward => self.plan.starts.get(index),
            Direction::Back => self.restores.get(index),
        }
    }

    /// Starts what is next, or ends the swap where nothing is left to start.
    pub(super) fn start(
        &mut self,
        world: &mut World,
        direction: Direction,
        index: usize,
        actions: &mut Vec<Action>,
    ) {
        if let (Some(why), Direction::Forward) = (&self.called_off, direction) {
            return self.fail(world, why.clone(), None, actions);
        }
        let Some(start) = self.start_at(direction, index).cloned() else {
            return self.all_started(world, direction, actions);
        };
        self.stage = Stage::Starting { direction, index, deadline: world.now + LAUNCH_DEADLINE };
        if let Err(refusal) = plan::admit(world.settings, world.facts, world.state, &start) {
            let reason = format!("{} was not started: {}", start.model, refusal.text);
            return self.fail(world, reason, None, actions);
        }
        let claim = claim(world, &start);
        world.state.claims.insert(start.model.clone(), claim);
        world.proofs.forget(&start.model);
        self.began_step(world, Step::Ready, direction, Some(start.model.clone()), actions);
        actions.push(Action::Record { first: direction == Direction::Forward });
        actions.push(Action::Start(start));
    }

    pub(super) fn readying(
        &mut self,
        world: &mut World,
        direction: Direction,
        index: usize,
        actions: &mut Vec<Action>,
    ) {
        let Some(model) = self.start_at(direction, index).map(|start| start.model.clone()) else { return };
        let declared = longest(world, std::slice::from_ref(&model), |deadlines| deadlines.start);
        // History may lengthen the deadline, never shorten it.
        let slowest =
            world.state.times.get(&model).and_then(|times| times.load.iter().max().copied()).unwrap_or(0);
        let within = if self.settling {
            SETTLING
        } else {
            declared.max(Duration::from_millis(slowest.saturating_mul(2)))
        };
        let loading = Loading {
            deadline: world.now + within,
            cap: world.now + within * 2,
            growing: GROWING.min(within / 10),
            held: Bytes::ZERO,
            brought: Brought::default(),
            grew_at: world.now,
            said: "nothing listens on its port yet".to_owned(),
            answers: false,
        };
        actions.push(Action::Probe(model));
        actions.push(Action::Watch(Watch::Loading));
        self.stage = Stage::Readying { direction, index, loading };
    }

    pub(super) fn loading(
        &mut self,
        world: &mut World,
        direction: Direction,
        index: usize,
        mut loading: Loading,
        event: Event,
        actions: &mut Vec<Action>,
    ) {
        let Some(model) = self.start_at(direction, index).map(|start| start.model.clone()) else { return };
        match event {
            Event::Ready(whose) if whose == model => {
                loading.answers = true;
                "it answers, and systemd does not say yet that it runs".clone_into(&mut loading.said);
            }
            Event::NotReady(whose, said)
                if whose == model && self.settling && direction == Direction::Forward =>
            {
                let reason = format!("{model} was not ready when berthd came back: {said}");
                return self.fail(world, reason, None, actions);
            }
            Event::NotReady(whose, said) | Event::Silent(whose, said) if whose == model => {
                loading.said = said;
            }
            _ => {}
        }
        if died(world, &model) {
            return self.diagnose(world, direction, model, Symptom::Died, actions);
        }
        // A server can answer before its unit's signals were read. Committed on facts from before this run, it
        // would be taken for one that is down.
        if loading.answers && world.state.claims.get(&model).is_some_and(|claim| !claim.invocation.is_empty())
        {
            let took = millis(world.now.saturating_sub(self.step_began));
            if !self.resumed {
                Times::note(&mut world.state.times.entry(model.clone()).or_default().load, took);
                if let Some(run) = world.state.claims.get(&model).and_then(|claim| claim.run.clone()) {
                    learned::note_load(world.state, &model, run, took);
                }
            }
            self.ended_step(world, StepState::Done, String::new(), actions);
            // Those that come after it run already.
            if let Some(next) =
                self.start_at(direction, index + 1).filter(|_| self.settling && !self.going_back)
            {
                let next = next.model.clone();
                self.began_step(world, Step::Ready, direction, Some(next), actions);
                return self.readying(world, direction, index + 1, actions);
            }
            return self.start(world, direction, index + 1, actions);
        }
        let held = held_by(world, &model);
        // A first part of it can be on the GPUs long before the rest has come from a slow disk.
        let unit = world.facts.units.get(&model);
        let reads =
            unit.and_then(|unit| unit.brought.value()).is_some_and(|brought| loading.brought.grows(brought));
        if held > loading.held || reads {
            loading.held = loading.held.max(held);
            loading.grew_at = world.now;
        }
        if world.now >= loading.deadline {
            let growing = world.now.saturating_sub(loading.grew_at) < loading.growing;
            if !growing || world.now >= loading.cap {
                let waited = millis(world.now.saturating_sub(self.step_began));
                let why = format!("it was not ready after {}: {}", seconds(waited), loading.said);
                return self.diagnose(world, direction, model, Symptom::NotReady(why), actions);
            }
        }
        self.stage = Stage::Readying { direction, index, loading };
    }

    pub(super) fn diagnose(
        &mut self,
        world: &World,
        direction: Direction,
        model: ModelName,
        symptom: Symptom,
        actions: &mut Vec<Action>,
    ) {
        actions.push(Action::Watch(Watch::Loading));
        actions.push(Action::Diagnose(model.clone()));
        self.stage =
            Stage::Diagnosing { direction, model, symptom, deadline: world.now + DIAGNOSIS_DEADLINE };
    }
}

/// The claim for a start, with what is read before it.
fn claim(world: &World, start: &Start) -> Claim {
    let gpus = start
        .gpus
        .iter()
        .map(|placed| {
            let gpu = world.facts.gpu(&placed.id);
            let memory = gpu.and_then(|gpu| gpu.memory.value());
            let listed = gpu.and_then(Gpu::listed);
            let now = memory.zip(listed).map(|(memory, listed)| memory.used.less(listed));
            // Memory of another claim that is still on its way back is not part of what was there before.
            let others = world.state.claims.values().filter(|claim| claim.phase == Phase::Ending);
            let lowest = others
                .flat_map(|claim| &claim.gpus)
                .filter(|part| part.placed.id == placed.id)
                .filter_map(|part| part.unlisted_before)
                .min();
            ClaimedGpu {
                placed: placed.clone(),
                unlisted_before: now.map(|now| lowest.map_or(now, |lowest| lowest.min(now))),
                free_before: memory.map(|memory| memory.free).unwrap_or_default(),
            }
        })
        .collect();
    let model = world.settings.models.get(&start.model);
    Claim {
        gpus,
        layout: start.layout.clone(),
        run: model.and_then(|model| Run::of(model, world.facts, start)),
        phase: Phase::Starting,
        invocation: String::new(),
        earlier: world.facts.units.get(&start.model).map(|unit| unit.invocation.clone()).unwrap_or_default(),
        address: model.map(|model| SocketAddr::new(model.host, model.port)),
        declared: model.map(|model| run_values(model, world.settings)).unwrap_or_default(),
        unseen: model.and_then(|model| model.container.as_ref()).is_some_and(|c| c.engine == Engine::Docker),
        seen: BTreeMap::new(),
    }
}

/// Whether the unit that was started is down again.
pub(super) fn died(world: &World, model: &ModelName) -> bool {
    let Some(claim) = world.state.claims.get(model) else { return false };
    // Until this run was seen, facts are still those from before it.
    !claim.invocation.is_empty()
        && world
            .facts
            .units
            .get(model)
            .is_none_or(|unit| unit.active.is_down() || unit.invocation != claim.invocation)
}

/// GPU memory that a model's processes hold now, as far as it is known.
fn held_by(world: &World, model: &ModelName) -> Bytes {
    world
        .facts
        .gpus()
        .iter()
        .flat_map(|gpu| gpu.processes.value().into_iter().flatten())
        .filter(|process| world.state.owner(process) == Some(model))
        .filter_map(|process| process.memory.value().copied())
        .sum()
}
