//! The swap machine: (state, event) → (state, actions). It decides every step of a change and performs none.
//!
//! ```text
//!  begin ─► draining ─► stopping ─► releasing ─► starting ─► readying ─┬─► (next start) … ─► committed
//!                          │            │            │           │     │
//!                          └────────────┴────────────┴───────────┴─► diagnosing ─► the same again, backwards ─► restored
//!                                                                                          └─► degraded
//! ```
//!
//! The way back uses the same stages: what was started is stopped and its memory proved free, then what was
//! stopped is started again where it was. Prewarming is not built yet and recorded as skipped.
//!
//! `down` stops and proves memory free, `up` starts and waits until ready, `end` commits, goes back or gives up; `cancel`
//! calls it off; `beside` says what an operator's request means for a swap of berthd's own.

mod beside;
mod cancel;
mod down;
mod end;
mod up;
mod words;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::backend::Failure;
use crate::config::{Deadlines, Settings};
use crate::facts::{Facts, Moment};
use crate::name::ModelName;
use crate::plan::{self, Plan, Start};
use crate::proxy::{Clients, Usage};
use crate::release::Proofs;
use crate::report::{Actor, Step, StepForecast, StepReport, StepState, SwapSummary, Verb, What};
use crate::state::{Home, Phase, State, Stopped};
pub use beside::Beside;
use up::{Loading, Symptom};
use words::{millis, placed_for_display, spare_sentence};

/// How long systemd may take from StartUnit to the launcher's READY=1.
const LAUNCH_DEADLINE: Duration = Duration::from_secs(30);
/// How long systemd may take from StopUnit until it begins to stop the unit.
const HEED_DEADLINE: Duration = Duration::from_secs(30);
/// How long a process may survive SIGKILL before it counts as stuck.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

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
    /// What clients want of each model just now, as far as the proxy knows.
    pub clients: &'a Clients,
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
    /// Start with waiting for the first model to become ready: an earlier berthd started it.
    Resume,
    /// The same for all of them, after an earlier berthd that died over it: only what is ready now counts.
    Settle,
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
    /// It has been asked and has not answered yet, and what is waited for.
    Silent(ModelName, String),
    /// Why the model failed, read from its log.
    Diagnosed(ModelName, Failure),
    /// The ledger could not be written.
    RecordFailed(String),
    /// Something more important is to be done, and what: give up and go back, unless that is under way already.
    GiveWay(String),
    /// An operator does not want it any more, and who: the same.
    Cancel(String),
    /// Time passed.
    Tick,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)]
pub enum Action {
    /// Hold back requests for what the swap stops, from before the next look at those that are under way.
    HoldBack,
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
    /// Whether something failed already: a second failure ends the swap as degraded.
    going_back: bool,
    /// Whether it goes on with a start that an earlier berthd made: how long that took is not known.
    resumed: bool,
    /// Whether that berthd died over it: what is not ready now is not waited for.
    settling: bool,
    /// Why it was called off before it was through.
    called_off: Option<String>,
    /// Which client a load is for.
    cause: String,
    /// How far the lives of what is being stopped had come.
    phases: BTreeMap<ModelName, Phase>,
    /// `home` and `previous` as they were before a stop, whose word counts from the beginning.
    before: Option<(Home, Option<Home>)>,
    began: Moment,
    step_began: Moment,
    first_stop: Option<Moment>,
    forecast: Vec<StepForecast>,
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
    Draining {
        stops: Vec<ModelName>,
        deadline: Moment,
    },
    Stopping {
        direction: Direction,
        stops: Vec<ModelName>,
        /// Those whose StopUnit has not ended yet: until then facts may be from before it.
        asked: Vec<ModelName>,
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

impl Swap {
    /// A swap that is about to carry out `plan`. `checked_ms`: how long the checking took.
    pub fn new(plan: Plan, id: u64, by: Option<Actor>, checked_ms: u64, world: &World) -> Self {
        let restores = plan
            .stops
            .iter()
            // Not what an earlier swap left half started.
            .filter(|model| {
                let serves = plan.verb != Verb::Restore && world.state.is_serving(model);
                serves || world.state.is_wanted(model)
            })
            .filter_map(|model| Some(world.state.claims.get(model)?.start(model)))
            .collect();
        let forecast = plan::forecast(world.settings, world.facts, world.state, &plan);
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
            steps: vec![checked, step(Step::Prewarmed, StepState::Skipped, 0)],
            outcome: None,
            reason: None,
            failure: None,
            cancelled: false,
            held_at_exit: None,
            early_start_would_fail: false,
            gap_ms: None,
            serving: Vec::new(),
            default: world.state.home.default.clone(),
            undo: None,
        };
        let now = world.now;
        let first = plan.model.as_ref().and_then(|model| world.usage(model)?.first.as_ref());
        let cause = first.map_or("a client".to_owned(), |(_, who)| who.clone());
        Self {
            plan,
            stage: Stage::Planned,
            restores,
            going_back: false,
            resumed: false,
            settling: false,
            called_off: None,
            cause,
            phases: BTreeMap::new(),
            before: None,
            began: now,
            step_began: now,
            first_stop: None,
            forecast,
            summary,
        }
    }

    /// Whether it failed and is on its way back.
    pub fn is_going_back(&self) -> bool {
        self.going_back
    }

    /// Whether it stops or starts this model.
    pub fn concerns(&self, model: &ModelName) -> bool {
        self.summary.stops.contains(model) || self.summary.starts.contains(model)
    }

    /// Whether requests for this model are held back: answers of it that are under way are to end before it is stopped.
    pub fn holds_back(&self, model: &ModelName) -> bool {
        matches!(&self.stage, Stage::Draining { stops, .. } if stops.contains(model))
    }

    /// Whether it was called off: nothing is wrong with what it was to start.
    pub fn was_called_off(&self) -> bool {
        self.called_off.is_some()
    }

    /// Whether it waits for answers that are under way.
    pub fn is_draining(&self) -> bool {
        matches!(self.stage, Stage::Draining { .. })
    }

    /// Who is to be `default` at the end, unless it fails: what comes to be asked for under that name waits for it.
    pub fn next_default(&self) -> Option<&ModelName> {
        self.plan.home.default.as_ref().filter(|_| !self.going_back)
    }

    /// What was asked.
    pub fn verb(&self) -> Verb {
        self.summary.verb
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
            (Stage::Planned, Event::Resume) => self.resume(world, &mut actions),
            (Stage::Planned, Event::Settle) => {
                self.settling = true;
                self.resume(world, &mut actions);
            }
            (_, Event::RecordFailed(why)) => self.not_recorded(world, &why, &mut actions),
            (_, Event::GiveWay(_) | Event::Cancel(_)) if self.going_back => {}
            (_, Event::GiveWay(to)) => self.call_off(world, format!("it gave way to {to}"), &mut actions),
            (_, Event::Cancel(by)) => {
                self.summary.cancelled = true;
                self.call_off(world, format!("{by} cancelled it"), &mut actions);
            }
            (Stage::Draining { .. }, _) => self.draining(world, &mut actions),
            (Stage::Stopping { .. }, Event::StopEnded(model, result)) => {
                self.stop_ended(world, &model, result, &mut actions);
            }
            (Stage::Stopping { .. }, _) => self.stopping(world, &mut actions),
            (Stage::Releasing { .. }, _) => self.releasing(world, &mut actions),
            (Stage::Starting { direction, index, .. }, Event::StartEnded(model, result))
                if self.start_at(direction, index).is_some_and(|start| start.model == model) =>
            {
                match result {
                    Ok(()) => self.readying(world, direction, index, &mut actions),
                    Err(why) => {
                        self.diagnose(world, direction, model, Symptom::NotStarted(why), &mut actions);
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
        world.state.intent = Some(self.plan.clone());
        actions.push(Action::Say(What::SwapBegan { swap: self.summary.clone() }));
        let stops = self.plan.stops.clone();
        self.drain(world, stops, actions);
    }

    /// From here on it is under way: should berthd die, or memory come back late, what an operator stops stays stopped.
    fn take_stops(&mut self, world: &mut World) {
        if !matches!(self.plan.verb, Verb::Stop | Verb::StopAll) {
            return;
        }
        self.before = Some((world.state.home.clone(), world.state.previous.clone()));
        world.state.home = self.plan.home.clone();
        let with_all = self.plan.verb == Verb::StopAll;
        let others = world.settings.models.keys().filter(|_| with_all);
        for model in self.plan.stops.iter().chain(&self.plan.model).chain(others) {
            let stopped = Stopped { at_ms: world.now_ms, by_hand: false, with_all };
            world.state.stopped.insert(model.clone(), stopped);
        }
    }

    fn resume(&mut self, world: &mut World, actions: &mut Vec<Action>) {
        self.resumed = true;
        world.state.intent = Some(self.plan.clone());
        actions.push(Action::Say(What::SwapBegan { swap: self.summary.clone() }));
        self.began_step(world, Step::Ready, Direction::Forward, self.plan.model.clone(), actions);
        self.readying(world, Direction::Forward, 0, actions);
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

    /// There was nothing to do in this step.
    fn passed(&mut self, step: Step) {
        self.summary.steps.push(StepReport {
            step,
            state: StepState::Skipped,
            rollback: false,
            model: self.plan.model.clone(),
            elapsed_ms: 0,
            expected_ms: None,
            detail: String::new(),
        });
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
}

impl World<'_> {
    /// What clients want of this model; None where nobody ever did.
    pub fn usage(&self, model: &ModelName) -> Option<&Usage> {
        self.clients.get(model)
    }

    /// How many requests it answers.
    fn under_way(&self, model: &ModelName) -> usize {
        self.usage(model).map_or(0, |usage| usage.under_way)
    }
}

/// The longest of these models' deadlines for one step.
fn longest(world: &World, models: &[ModelName], pick: impl Fn(&Deadlines) -> Duration) -> Duration {
    let deadlines =
        |model| world.settings.models.get(model).map_or(&world.settings.deadlines, |m| &m.deadlines);
    models.iter().map(|model| pick(deadlines(model))).max().unwrap_or_default()
}
