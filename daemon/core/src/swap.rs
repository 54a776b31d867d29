//! The swap machine: (state, event) → (state, actions). It decides every step of a change and performs none.
//!
//! ```text
//!  begin ─► stopping ─► releasing ─► starting ─► readying ─┬─► (next start) … ─► committed
//!              │            │            │           │     │
//!              └────────────┴────────────┴───────────┴─► diagnosing ─► the same again, backwards ─► restored
//!                                                                              └─► degraded
//! ```
//!
//! The way back uses the same stages: what was started is stopped and its memory proved free, then what was
//! stopped is started again where it was. Prewarming and draining are not built yet and recorded as skipped.

use std::time::Duration;

use crate::backend::{Failure, PlacedGpu};
use crate::bytes::Bytes;
use crate::config::Settings;
use crate::facts::{Active, Facts, Known, Moment};
use crate::name::ModelName;
use crate::plan::{self, Plan, Start};
use crate::release::{self, Proofs, Reading};
use crate::report::{Actor, Outcome, Step, StepReport, StepState, SwapSummary, Verb, What};
use crate::state::{Claim, ClaimedGpu, Phase, State, Times};

/// How long systemd may take from StartUnit to the launcher's READY=1.
const LAUNCH_DEADLINE: Duration = Duration::from_secs(30);
/// How long a process may survive SIGKILL before it counts as stuck.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// How long the reading of a failed server's log may take.
const DIAGNOSIS_DEADLINE: Duration = Duration::from_secs(5);
/// A start whose memory grew within this time is still loading: its deadline extends, up to twice what was set.
const GROWING: Duration = Duration::from_secs(10);

/// What the machine looks at and changes.
pub struct World<'a> {
    /// What was declared.
    pub settings: &'a Settings,
    /// What was observed last.
    pub facts: &'a Facts,
    /// What Berth knows of itself.
    pub state: &'a mut State,
    /// The proofs of release under way.
    pub proofs: &'a mut Proofs,
    /// Now.
    pub now: Moment,
    /// Now by the wall clock, in milliseconds since 1970; only shown.
    pub now_ms: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Start with the first step.
    Begin,
    /// There are new facts.
    Facts,
    /// StopUnit's job ended.
    StopEnded(ModelName, Result<(), String>),
    /// StartUnit's job ended.
    StartEnded(ModelName, Result<(), String>),
    /// The model answers as it should.
    Ready(ModelName),
    /// It does not yet, and what it says.
    NotReady(ModelName, String),
    /// Why the model failed, read from its log.
    Diagnosed(ModelName, Failure),
    /// The ledger could not be written.
    RecordFailed(String),
    /// Time passed.
    Tick,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write the state to the ledger and sync it.
    Record {
        /// What follows is only done once that is through. Not so on the way back: that something serves again
        /// matters more than that it is written down.
        first: bool,
    },
    /// StopUnit.
    Stop(ModelName),
    /// SIGKILL to all processes of the unit.
    Kill(ModelName),
    /// Give a ticket and StartUnit.
    Start(Start),
    /// Ask the model whether it is ready, again and again, until it is, or something is started or diagnosed.
    Probe(ModelName),
    /// Read why the model failed.
    Diagnose(ModelName),
    /// How closely to observe from now on.
    Watch(Watch),
    /// Tell everybody.
    Say(What),
    /// The swap is over.
    End,
}

/// How closely to observe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watch {
    /// At the ordinary interval.
    Idle,
    /// A few times a second: something loads.
    Loading,
    /// As fast as is cheap: the memory info of the devices of these claims; process lists once it is back.
    Release(Vec<ModelName>),
}

/// One swap.
#[derive(Debug, Clone, PartialEq)]
pub struct Swap {
    plan: Plan,
    stage: Stage,
    /// What is started again on the way back, as it was.
    restores: Vec<Start>,
    began: Moment,
    step_began: Moment,
    first_stop: Option<Moment>,
    forecast: Vec<crate::report::StepForecast>,
    summary: SwapSummary,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Back,
}

#[derive(Debug, Clone, PartialEq)]
enum Stage {
    Planned,
    Stopping {
        direction: Direction,
        stops: Vec<ModelName>,
        deadline: Moment,
        killed: bool,
    },
    Releasing {
        direction: Direction,
        stops: Vec<ModelName>,
        deadline: Moment,
        measured: bool,
        freed: Vec<(u32, u64)>,
    },
    Starting {
        direction: Direction,
        index: usize,
        deadline: Moment,
    },
    Readying {
        direction: Direction,
        index: usize,
        loading: Loading,
    },
    Diagnosing {
        direction: Direction,
        model: ModelName,
        symptom: Symptom,
        deadline: Moment,
    },
    Over,
}

/// What showed that a start failed; its log usually says why.
#[derive(Debug, Clone, PartialEq)]
enum Symptom {
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
    fn clause(&self, failure: Option<&Failure>) -> String {
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
struct Loading {
    deadline: Moment,
    cap: Moment,
    held: Bytes,
    grew_at: Moment,
    said: String,
}

impl Swap {
    /// A swap that is about to carry out `plan`. `checked_ms`: how long the checking took.
    pub fn new(plan: Plan, id: u64, by: Option<Actor>, checked_ms: u64, world: &World) -> Self {
        let restores = plan
            .stops
            .iter()
            .filter(|model| plan.verb != Verb::Restore || world.state.home.models.contains(model))
            .filter_map(|model| {
                let claim = world.state.claims.get(model)?;
                let gpus = claim.gpus.iter().map(|part| part.placed.clone()).collect();
                Some(Start { model: model.clone(), gpus })
            })
            .collect();
        let forecast = plan::forecast(world.state, &plan);
        let expected_ms = forecast.iter().map(|step| step.expected_ms).sum::<Option<u64>>();
        let placed = placed_for_display(&plan, world.state);
        let step = |step, state, elapsed_ms| StepReport {
            step,
            state,
            rollback: false,
            model: plan.model.clone(),
            elapsed_ms,
            expected_ms: None,
            detail: String::new(),
        };
        let mut checked = step(Step::Checked, StepState::Done, checked_ms);
        checked.detail = spare_sentence(&plan, world);
        let summary = SwapSummary {
            id,
            verb: plan.verb,
            model: plan.model.clone(),
            by,
            stops: plan.stops.clone(),
            starts: plan.starts.iter().map(|start| start.model.clone()).collect(),
            gpus: placed.iter().map(|part| part.index).collect(),
            gpu_bytes: placed.iter().map(|part| part.bytes).collect(),
            began_ms: world.now_ms,
            elapsed_ms: 0,
            expected_ms,
            steps: vec![
                checked,
                step(Step::Prewarmed, StepState::Skipped, 0),
                step(Step::Drained, StepState::Skipped, 0),
            ],
            outcome: None,
            reason: None,
            failure: None,
            held_at_exit: None,
            early_start_would_fail: false,
            gap_ms: None,
            serving: Vec::new(),
            default: world.state.home.default.clone(),
            undo: None,
        };
        let now = world.now;
        Self {
            plan,
            stage: Stage::Planned,
            restores,
            began: now,
            step_began: now,
            first_stop: None,
            forecast,
            summary,
        }
    }

    /// Its id.
    pub fn id(&self) -> u64 {
        self.summary.id
    }

    /// The swap as people see it, as of `now`.
    pub fn summary(&self, now: Moment) -> SwapSummary {
        let mut summary = self.summary.clone();
        if summary.outcome.is_none() {
            summary.elapsed_ms = millis(now.saturating_sub(self.began));
        }
        summary
    }

    /// Takes one event. The actions are to be done in their order.
    pub fn step(&mut self, world: &mut World, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if event == Event::Facts {
            world.state.note_units(world.facts);
            self.weigh(world);
        }
        match (self.stage.clone(), event) {
            (Stage::Over, _) => {}
            (Stage::Planned, Event::Begin) => self.begin(world, &mut actions),
            (_, Event::RecordFailed(why)) => self.not_recorded(world, &why, &mut actions),
            (Stage::Stopping { .. }, Event::StopEnded(model, Err(why))) => {
                self.not_stopped(world, &model, &why, &mut actions);
            }
            (Stage::Stopping { .. }, _) => self.stopping(world, &mut actions),
            (Stage::Releasing { .. }, _) => self.releasing(world, &mut actions),
            (Stage::Starting { direction, index, .. }, Event::StartEnded(model, result)) => {
                if self.start_at(direction, index).is_some_and(|start| start.model == model) {
                    match result {
                        Ok(()) => self.readying(world, direction, index, &mut actions),
                        Err(why) => {
                            self.diagnose(world, direction, model, Symptom::NotStarted(why), &mut actions)
                        }
                    }
                }
            }
            (Stage::Starting { direction, index, deadline }, _) if world.now >= deadline => {
                let why = format!("systemd did not start it within {} s", LAUNCH_DEADLINE.as_secs());
                if let Some(start) = self.start_at(direction, index) {
                    self.diagnose(
                        world,
                        direction,
                        start.model.clone(),
                        Symptom::NotStarted(why),
                        &mut actions,
                    );
                }
            }
            (Stage::Readying { direction, index, loading }, event) => {
                self.loading(world, direction, index, loading, event, &mut actions);
            }
            (Stage::Diagnosing { model, symptom, .. }, Event::Diagnosed(whose, failure))
                if whose == model =>
            {
                let reason = format!("{model} did not start: {}", symptom.clause(Some(&failure)));
                self.fail(world, reason, Some(failure), &mut actions);
            }
            (Stage::Diagnosing { model, symptom, deadline, .. }, _) if world.now >= deadline => {
                let reason = format!("{model} did not start: {}", symptom.clause(None));
                self.fail(world, reason, None, &mut actions);
            }
            _ => {}
        }
        actions
    }

    fn begin(&mut self, world: &mut World, actions: &mut Vec<Action>) {
        world.state.swap = Some(self.summary.id);
        actions.push(Action::Say(What::SwapBegan { swap: self.summary.clone() }));
        let stops = self.plan.stops.clone();
        self.stop(world, Direction::Forward, stops, actions);
    }

    /// Stops these models, or goes on with the starts where there are none.
    fn stop(
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
                claim.phase = Phase::Ending;
            }
        }
        self.first_stop = self.first_stop.or(Some(world.now));
        self.began_step(world, Step::Stopped, direction, one(&stops), actions);
        actions.push(Action::Record { first: direction == Direction::Forward });
        actions.extend(stops.iter().map(|model| Action::Stop(model.clone())));
        actions.push(Action::Watch(Watch::Release(stops.clone())));
        let deadline = world.now + self.longest(world, &stops, |deadlines| deadlines.stop);
        self.stage = Stage::Stopping { direction, stops, deadline, killed: false };
    }

    fn stopping(&mut self, world: &mut World, actions: &mut Vec<Action>) {
        let Stage::Stopping { direction, stops, deadline, killed } = self.stage.clone() else { return };
        let left: Vec<ModelName> = stops
            .iter()
            .filter(|model| !release::processes_gone(world.facts.units.get(*model)))
            .cloned()
            .collect();
        if left.is_empty() {
            let took = millis(world.now.saturating_sub(self.step_began));
            for model in &stops {
                Times::note(&mut world.state.times.entry(model.clone()).or_default().stop, took);
            }
            self.ended_step(world, StepState::Done, names(&stops), actions);
            self.began_step(world, Step::Released, direction, one(&stops), actions);
            let deadline = world.now + self.longest(world, &stops, |deadlines| deadlines.release);
            self.stage = Stage::Releasing { direction, stops, deadline, measured: false, freed: Vec::new() };
            self.weigh(world);
            return self.releasing(world, actions);
        }
        if world.now < deadline {
            return;
        }
        if killed {
            let who: Vec<String> = left.iter().map(|model| survivors(world.facts, model)).collect();
            self.fail(
                world,
                format!("{}; a new server is not started over it", who.join("; ")),
                None,
                actions,
            );
        } else {
            actions.extend(left.into_iter().map(Action::Kill));
            self.stage =
                Stage::Stopping { direction, stops, deadline: world.now + KILL_DEADLINE, killed: true };
        }
    }

    /// The step under way was not begun, since it could not be written down before.
    fn not_recorded(&mut self, world: &mut World, why: &str, actions: &mut Vec<Action>) {
        if let Stage::Stopping { stops, .. } = &self.stage {
            for model in stops {
                if let Some(claim) = world.state.claims.get_mut(model) {
                    claim.phase = Phase::Serving;
                }
            }
        }
        self.fail(world, format!("the ledger can't be written: {why}"), None, actions);
    }

    /// systemd would not stop it: what still runs as before serves on.
    fn not_stopped(&mut self, world: &mut World, model: &ModelName, why: &str, actions: &mut Vec<Action>) {
        let runs = world.facts.units.get(model).is_some_and(|unit| unit.active == Active::Active);
        let Some(claim) = world.state.claims.get_mut(model).filter(|_| runs) else {
            return self.stopping(world, actions);
        };
        claim.phase = Phase::Serving;
        self.fail(world, format!("{model} could not be stopped: {why}"), None, actions);
    }

    /// Lets the proofs look at the facts and keeps, for each GPU, when it was proved free.
    fn weigh(&mut self, world: &mut World) {
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
        }
    }

    fn releasing(&mut self, world: &mut World, actions: &mut Vec<Action>) {
        let Stage::Releasing { direction, stops, deadline, freed, .. } = self.stage.clone() else { return };
        let left: Vec<&ModelName> =
            stops.iter().filter(|model| world.state.claims.contains_key(*model)).collect();
        if left.is_empty() {
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

    fn start_at(&self, direction: Direction, index: usize) -> Option<&Start> {
        match direction {
            Direction::Forward => self.plan.starts.get(index),
            Direction::Back => self.restores.get(index),
        }
    }

    /// Starts what is next, or ends the swap where nothing is left to start.
    fn start(&mut self, world: &mut World, direction: Direction, index: usize, actions: &mut Vec<Action>) {
        let Some(start) = self.start_at(direction, index).cloned() else {
            return self.all_started(world, direction, actions);
        };
        if let Err(refusal) = plan::admit(world.settings, world.facts, world.state, &start) {
            let reason = format!("{} was not started: {}", start.model, refusal.text);
            return self.fail(world, reason, None, actions);
        }
        let claim = claim(world, &start);
        world.state.claims.insert(start.model.clone(), claim);
        self.began_step(world, Step::Ready, direction, Some(start.model.clone()), actions);
        actions.push(Action::Record { first: direction == Direction::Forward });
        actions.push(Action::Start(start));
        self.stage = Stage::Starting { direction, index, deadline: world.now + LAUNCH_DEADLINE };
    }

    fn readying(&mut self, world: &mut World, direction: Direction, index: usize, actions: &mut Vec<Action>) {
        let Some(model) = self.start_at(direction, index).map(|start| start.model.clone()) else { return };
        let declared = self.longest(world, std::slice::from_ref(&model), |deadlines| deadlines.start);
        // History may lengthen the deadline, never shorten it.
        let slowest =
            world.state.times.get(&model).and_then(|times| times.load.iter().max().copied()).unwrap_or(0);
        let within = declared.max(Duration::from_millis(slowest.saturating_mul(2)));
        let loading = Loading {
            deadline: world.now + within,
            cap: world.now + within * 2,
            held: Bytes::ZERO,
            grew_at: world.now,
            said: "nothing listens on its port yet".to_owned(),
        };
        actions.push(Action::Probe(model));
        actions.push(Action::Watch(Watch::Loading));
        self.stage = Stage::Readying { direction, index, loading };
    }

    fn loading(
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
                let took = millis(world.now.saturating_sub(self.step_began));
                Times::note(&mut world.state.times.entry(model.clone()).or_default().load, took);
                self.ended_step(world, StepState::Done, String::new(), actions);
                return self.start(world, direction, index + 1, actions);
            }
            Event::NotReady(whose, said) if whose == model => loading.said = said,
            _ => {}
        }
        if died(world, &model) {
            return self.diagnose(world, direction, model, Symptom::Died, actions);
        }
        let held = held_by(world, &model);
        if held > loading.held {
            loading.held = held;
            loading.grew_at = world.now;
        }
        if world.now >= loading.deadline {
            let growing = world.now.saturating_sub(loading.grew_at) < GROWING;
            if !growing || world.now >= loading.cap {
                let waited = millis(world.now.saturating_sub(self.step_began));
                let why = format!("it was not ready after {}: {}", seconds(waited), loading.said);
                return self.diagnose(world, direction, model, Symptom::NotReady(why), actions);
            }
        }
        self.stage = Stage::Readying { direction, index, loading };
    }

    fn diagnose(
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

    fn all_started(&mut self, world: &mut World, direction: Direction, actions: &mut Vec<Action>) {
        match direction {
            Direction::Forward => {
                for start in &self.plan.starts {
                    if let Some(claim) = world.state.claims.get_mut(&start.model) {
                        claim.phase = Phase::Serving;
                    }
                }
                world.state.home = self.plan.home.clone();
                if let Some(previous) = &self.plan.previous {
                    world.state.previous = Some(previous.clone());
                    self.summary.undo = Some("berthctl back".to_owned());
                }
                self.end(world, Outcome::Done, actions);
            }
            Direction::Back => {
                for start in &self.restores {
                    if let Some(claim) = world.state.claims.get_mut(&start.model) {
                        claim.phase = Phase::Serving;
                    }
                }
                let missing = world.state.home.models.iter().any(|model| !world.state.is_serving(model));
                let outcome = if missing { Outcome::Degraded } else { Outcome::Restored };
                self.end(world, outcome, actions);
            }
        }
    }

    /// The step under way failed: back to what served, or degraded where this was the way back already.
    fn fail(
        &mut self,
        world: &mut World,
        reason: String,
        failure: Option<Failure>,
        actions: &mut Vec<Action>,
    ) {
        let direction = match &self.stage {
            Stage::Stopping { direction, .. }
            | Stage::Releasing { direction, .. }
            | Stage::Starting { direction, .. }
            | Stage::Readying { direction, .. }
            | Stage::Diagnosing { direction, .. } => *direction,
            Stage::Planned | Stage::Over => Direction::Forward,
        };
        self.ended_step(world, StepState::Failed, reason.clone(), actions);
        if direction == Direction::Back {
            let first = self.summary.reason.take();
            let then = format!("the way back failed too: {reason}");
            self.summary.reason = Some(first.map_or(then.clone(), |first| format!("{first}; {then}")));
            self.abandon(world, actions);
            return self.end(world, Outcome::Degraded, actions);
        }
        self.summary.reason = Some(reason);
        self.summary.failure = failure;
        let started: Vec<ModelName> = self
            .plan
            .starts
            .iter()
            .map(|start| &start.model)
            .filter(|model| world.state.claims.get(*model).is_some_and(|claim| claim.phase != Phase::Ending))
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
        self.restores.retain(|start| !world.state.is_serving(&start.model));
        self.stop(world, Direction::Back, started, actions);
    }

    /// Lets go of what the way back was starting, so that later restoration begins afresh.
    fn abandon(&mut self, world: &mut World, actions: &mut Vec<Action>) {
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

    fn end(&mut self, world: &mut World, outcome: Outcome, actions: &mut Vec<Action>) {
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
        world.state.swap = None;
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

    fn began_step(
        &mut self,
        world: &World,
        step: Step,
        direction: Direction,
        model: Option<ModelName>,
        actions: &mut Vec<Action>,
    ) {
        self.step_began = world.now;
        let forecast = self.forecast.iter().find(|forecast| forecast.step == step && forecast.model == model);
        let report = StepReport {
            step,
            state: StepState::Began,
            rollback: direction == Direction::Back,
            expected_ms: match (direction, forecast) {
                (Direction::Forward, Some(forecast)) => forecast.expected_ms,
                _ => None,
            },
            model,
            elapsed_ms: 0,
            detail: String::new(),
        };
        self.summary.steps.push(report.clone());
        actions.push(Action::Say(What::SwapStep { swap: self.summary.id, step: report }));
    }

    fn ended_step(&mut self, world: &World, state: StepState, detail: String, actions: &mut Vec<Action>) {
        let Some(step) = self.summary.steps.last_mut().filter(|step| step.state == StepState::Began) else {
            return;
        };
        step.state = state;
        step.elapsed_ms = millis(world.now.saturating_sub(self.step_began));
        step.detail = detail;
        actions.push(Action::Say(What::SwapStep { swap: self.summary.id, step: step.clone() }));
    }

    fn longest(
        &self,
        world: &World,
        models: &[ModelName],
        pick: impl Fn(&crate::config::Deadlines) -> Duration,
    ) -> Duration {
        models
            .iter()
            .map(|model| {
                pick(world.settings.models.get(model).map_or(&world.settings.deadlines, |m| &m.deadlines))
            })
            .max()
            .unwrap_or_default()
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
            let listed = gpu.and_then(|gpu| gpu.processes.value()).and_then(|processes| {
                processes.iter().map(|process| process.memory.value().copied()).sum::<Option<Bytes>>()
            });
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
    Claim { gpus, phase: Phase::Starting, invocation: String::new(), seen: std::collections::BTreeMap::new() }
}

/// Whether the unit that was started is down again.
fn died(world: &World, model: &ModelName) -> bool {
    let Some(claim) = world.state.claims.get(model) else { return false };
    match world.facts.units.get(model) {
        Some(unit) if claim.invocation.is_empty() => unit.active == Active::Failed,
        Some(unit) => unit.active.is_down() || unit.invocation != claim.invocation,
        None => !claim.invocation.is_empty(),
    }
}

/// GPU memory that a model's processes hold now, as far as it is known.
fn held_by(world: &World, model: &ModelName) -> Bytes {
    world
        .facts
        .gpus()
        .iter()
        .flat_map(|gpu| gpu.processes.value().into_iter().flatten())
        .filter(|process| process.model.as_ref() == Some(model))
        .filter_map(|process| process.memory.value().copied())
        .sum()
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

fn survivors(facts: &Facts, model: &ModelName) -> String {
    let pids: Vec<String> = match facts.units.get(model).map(|unit| &unit.processes) {
        Some(Known::Value(processes)) => processes.keys().map(u32::to_string).collect(),
        _ => Vec::new(),
    };
    let held: Vec<String> = facts
        .gpus()
        .iter()
        .flat_map(|gpu| gpu.processes.value().into_iter().flatten().map(move |process| (gpu.index, process)))
        .filter(|(_, process)| process.model.as_ref() == Some(model))
        .map(|(index, process)| {
            let bytes = process.memory.value().map_or("an unknown amount".to_owned(), Bytes::to_string);
            format!("pid {} ({}) holds {bytes} on GPU {index}", process.pid, process.program)
        })
        .collect();
    let who = if held.is_empty() { format!("processes {}", pids.join(", ")) } else { held.join(", ") };
    format!("{model} survives SIGKILL since {} s: {who}", KILL_DEADLINE.as_secs())
}

/// "fits, 1.0 GiB to spare on GPU 0; files, port, program".
fn spare_sentence(plan: &Plan, world: &World) -> String {
    let least = plan
        .starts
        .iter()
        .flat_map(|start| &start.gpus)
        .filter_map(|part| {
            let gpu = world.facts.gpu(&part.id)?;
            let memory = gpu.memory.value()?;
            let room = memory
                .total
                .less(memory.reserved)
                .less(world.settings.headroom)
                .less(world.state.foreign(gpu)?)
                .less(world.state.claimed(&gpu.id, &plan.stops));
            Some((room.less(part.bytes), part.index))
        })
        .min();
    match least {
        Some((spare, index)) => format!("fits, {spare} to spare on GPU {index}; files, port, program"),
        None => String::new(),
    }
}

fn placed_for_display(plan: &Plan, state: &State) -> Vec<PlacedGpu> {
    let mut placed: Vec<PlacedGpu> = Vec::new();
    let add =
        |placed: &mut Vec<PlacedGpu>, part: &PlacedGpu| match placed.iter_mut().find(|p| p.id == part.id) {
            Some(known) => known.bytes = known.bytes.plus(part.bytes),
            None => placed.push(part.clone()),
        };
    for part in plan.starts.iter().flat_map(|start| &start.gpus) {
        add(&mut placed, part);
    }
    if plan.starts.is_empty() {
        for part in
            plan.stops.iter().filter_map(|model| state.claims.get(model)).flat_map(|claim| &claim.gpus)
        {
            add(&mut placed, &part.placed);
        }
    }
    placed.sort_by_key(|part| part.index);
    placed
}

fn one(models: &[ModelName]) -> Option<ModelName> {
    if let [one] = models { Some(one.clone()) } else { None }
}

fn names(models: &[ModelName]) -> String {
    models.iter().map(ModelName::as_str).collect::<Vec<_>>().join(", ")
}

fn seconds(ms: u64) -> String {
    if ms < 10_000 {
        format!("{}.{:02} s", ms / 1000, ms % 1000 / 10)
    } else {
        format!("{}.{} s", ms / 1000, ms % 1000 / 100)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
