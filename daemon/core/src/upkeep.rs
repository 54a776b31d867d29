//! What berthd does without being asked: it holds state against facts, and brings home back.
//!
//! ```text
//!  adopt ─► observe ─► next ─► (a swap of berthd's own) ─► ended ─┐
//!              ▲ ▲───────────────────────────────────────────────┘
//!              └── diagnosed, hung, looked
//! ```
//!
//! `adopt` settles what an earlier berthd left, `trouble` counts failures and quarantines, this file looks at what
//! changed and says what is to be begun. Like the swap machine it performs nothing: it answers with [`Deed`]s.

mod adopt;
mod trouble;

pub(crate) use trouble::pause;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::facts::{Active, Docker, Moment};
use crate::host;
use crate::name::ModelName;
use crate::plan::{self, HeldBack, Plan};
use crate::proxy::Usage;
use crate::report::{ModelState, SwapSummary, Verb, What};
use crate::state::{During, Phase, State, Stopped};
use crate::swap::{Event, World};

/// How long the reading of a fallen model's log may take before its failure counts without.
const DIAGNOSIS: Duration = Duration::from_secs(6);
/// Between two attempts to stop a unit that should be down.
const STRAY: Duration = Duration::from_secs(10);
/// How old a look at a model's files may be when it is started by it, and between two looks at missing ones.
const LOOKED: Duration = Duration::from_secs(2);

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)]
pub enum Deed {
    /// Write the state to the ledger and sync it.
    Record,
    /// StopUnit.
    Stop(ModelName),
    /// SIGKILL to all processes of the unit.
    Kill(ModelName),
    /// Find out how a model ended; the answer goes to [`Upkeep::diagnosed`].
    Diagnose {
        /// Which.
        model: ModelName,
        /// The InvocationID of the run that ended; its claim may have ended by now.
        run: String,
        /// That of the run before it.
        earlier: String,
    },
    /// Look up a model's files; the answer goes to [`Upkeep::looked`].
    Look(ModelName),
    /// Tell everybody.
    Say(What),
}

/// How a model that served has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// By itself, and why, as a clause about it.
    Failed(String),
    /// systemd was told to stop it, and not by berthd.
    ByHand,
    /// The machine is going down.
    Shutdown,
    /// With the systemd that ran it, in whose place is another one: a user's own ends with the last login.
    WithSystemd,
}

/// What is waited for before a model of home is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// As a clause about the model.
    pub why: String,
    /// What to do, where there is something.
    pub next: Option<String>,
}

/// What berthd does by itself, and what it knows for it. The ledger has what must outlive berthd.
#[derive(Debug, Clone, Default)]
pub struct Upkeep {
    began: Moment,
    /// Why each model last failed, in one sentence; forgotten when it serves again.
    pub errors: BTreeMap<ModelName, String>,
    /// Why each missing model of home is not started now.
    pub waits: BTreeMap<ModelName, Wait>,
    /// What has to be settled by looking: swaps that were cut off.
    cut_off: Vec<Plan>,
    /// Models that fell and whose end is being looked up, and until when that counts.
    undiagnosed: BTreeMap<ModelName, Moment>,
    strays: BTreeMap<ModelName, Stray>,
    looks: BTreeMap<ModelName, Look>,
    /// Since when each guest serves, as far as this berthd has seen.
    guests: BTreeMap<ModelName, Moment>,
}

/// A unit that runs and should not.
#[derive(Debug, Clone, Copy)]
struct Stray {
    since: Moment,
    tried_at: Moment,
}

/// A look at a model's files.
#[derive(Debug, Clone, Default)]
struct Look {
    /// Under way since.
    asked_at: Option<Moment>,
    /// When the last one ended.
    at: Option<Moment>,
    /// What was missing then, and why.
    missing: Option<(PathBuf, String)>,
    /// Since when something is missing.
    since: Option<Moment>,
}

impl Upkeep {
    /// Whether what clients ask for has to wait for home: how a model ended is being looked up, an operator's stop by hand
    /// or a shutdown among it, or one of home that failed is tried again within `soon`.
    pub fn is_awaited(&self, world: &World, soon: Duration) -> bool {
        let missed = world.state.home.models.iter().filter(|model| !world.state.is_resident(model));
        let mut missed = missed.filter(|model| !world.state.is_displaced(model));
        !self.undiagnosed.is_empty()
            || missed.any(|model| trouble::pause(world, model).is_some_and(|pause| pause <= soon))
    }

    /// Weighs new facts. While a swap is under way that is the machine's; what is left are models that fall besides.
    pub fn observe(&mut self, world: &mut World, swapping: bool) -> Vec<Deed> {
        let mut deeds = Vec::new();
        self.mark_fallen(world, &mut deeds);
        self.count_undiagnosed(world, &mut deeds);
        let mut news = world.state.note_found(world.facts);
        if swapping {
            if news {
                deeds.push(Deed::Record);
            }
            return deeds;
        }
        news |= world.state.note_units(world.facts);
        news |= !world.proofs.weigh(world.state, world.facts).is_empty();
        news |= take_over_found(world);
        news |= world.state.note_guests();
        self.note_guests(world);
        if news {
            deeds.push(Deed::Record);
        }
        self.stop_strays(world, &mut deeds);
        deeds
    }

    fn note_guests(&mut self, world: &World) {
        let guests = world.state.guests.keys().filter(|model| world.state.is_serving(model));
        self.guests = guests
            .map(|model| (model.clone(), self.guests.get(model).copied().unwrap_or(world.now)))
            .collect();
    }

    /// Guests that nobody has asked for long enough, counted from when they were ready or answered last.
    fn leaving(&self, world: &World) -> BTreeSet<ModelName> {
        let leaving = self.guests.iter().filter(|(model, ready)| {
            let usage = world.usage(model);
            let used = usage.and_then(|usage| usage.used).unwrap_or_default().max(**ready);
            let idle = world.settings.models.get(*model).map_or(world.settings.guests, |m| m.guests).idle;
            !usage.is_some_and(Usage::is_wanted) && world.now.saturating_sub(used) >= idle
        });
        leaving.map(|(model, _)| model.clone()).collect()
    }

    /// Models in service whose unit went down without berthd: what they hold has to be proved free, and how they
    /// ended is looked up.
    fn mark_fallen(&mut self, world: &mut World, deeds: &mut Vec<Deed>) {
        let units = &world.facts.units;
        let mut fallen = Vec::new();
        for (model, claim) in world.state.claims.iter_mut().filter(|(_, claim)| claim.phase == Phase::Serving)
        {
            let runs =
                |unit: &crate::facts::Unit| !unit.active.is_down() && unit.invocation == claim.invocation;
            if !units.get(model).is_some_and(runs) {
                claim.phase = Phase::Ending;
                fallen.push((model.clone(), claim.invocation.clone(), claim.earlier.clone()));
            }
        }
        let any = !fallen.is_empty();
        for (model, run, earlier) in fallen {
            self.errors.insert(model.clone(), format!("{model} ended without being asked to"));
            self.undiagnosed.insert(model.clone(), world.now + DIAGNOSIS);
            deeds.push(Deed::Diagnose { model, run, earlier });
        }
        if any {
            deeds.push(Deed::Record);
        }
    }

    fn count_undiagnosed(&mut self, world: &mut World, deeds: &mut Vec<Deed>) {
        let late: Vec<ModelName> = self
            .undiagnosed
            .iter()
            .filter(|(_, until)| world.now >= **until)
            .map(|(model, _)| model.clone())
            .collect();
        for model in late {
            let why = "it ended, and its log could not be read in time".to_owned();
            deeds.extend(self.diagnosed(world, &model, End::Failed(why)));
        }
    }

    /// Takes what was found out about a model that fell.
    pub fn diagnosed(&mut self, world: &mut World, model: &ModelName, end: End) -> Vec<Deed> {
        if self.undiagnosed.remove(model).is_none() {
            return Vec::new();
        }
        match end {
            End::Failed(why) => self.failed(world, model, During::Service, why),
            End::ByHand => self.stopped_by_hand(world, model),
            // No failure: as after a boot home comes back, once its memory is proved free.
            End::WithSystemd => Vec::new(),
            End::Shutdown => {
                // Nothing is started on a machine that goes down; after the boot home comes back.
                self.undiagnosed.insert(model.clone(), Moment::MAX);
                Vec::new()
            }
        }
    }

    /// A model that runs and serves nobody any more is treated as one that ended: it is stopped, and restarted.
    pub fn hung(&mut self, world: &mut World, model: &ModelName, invocation: &str, why: String) -> Vec<Deed> {
        let claim = world.state.claims.get_mut(model);
        let Some(claim) = claim.filter(|c| c.phase == Phase::Serving && c.invocation == invocation) else {
            return Vec::new();
        };
        claim.phase = Phase::Ending;
        self.failed(world, model, During::Service, why)
    }

    /// `systemctl stop` is an operator's word as `berthctl stop` is: what was stopped stays stopped.
    fn stopped_by_hand(&mut self, world: &mut World, model: &ModelName) -> Vec<Deed> {
        let text = format!(
            "{model} was stopped by hand, past Berth: it stays stopped until `berthctl start {model}`"
        );
        let state = &mut *world.state;
        if state.home.models.contains(model) {
            state.previous = Some(state.home.clone());
            state.home.models.retain(|other| other != model);
            state.home.default = state.home.default.take().filter(|default| default != model);
        }
        state.stand_ins.remove(model);
        state.stopped.insert(model.clone(), Stopped { at_ms: world.now_ms, by_hand: true, with_all: false });
        self.errors.remove(model);
        let what = What::Model { model: model.clone(), state: ModelState::Stopping, text };
        vec![Deed::Record, Deed::Say(what)]
    }

    /// Units whose claim is ending and that run nevertheless are told to stop, and killed where they don't; so are containers
    /// of models that are down and have no claim.
    fn stop_strays(&mut self, world: &World, deeds: &mut Vec<Deed>) {
        let strays = world.facts.units.iter().filter(|(model, unit)| {
            // A container outlives the unit whose program only waits for it, and can come after it.
            let contained = unit.docker.value() == Some(&Docker::Runs);
            match world.state.claims.get(*model) {
                Some(claim) => claim.phase == Phase::Ending && (!unit.active.is_down() || contained),
                None => unit.active.is_down() && contained,
            }
        });
        let strays: BTreeSet<&ModelName> = strays.map(|(model, _)| model).collect();
        self.strays.retain(|model, _| strays.contains(model));
        for model in strays {
            let patience =
                world.settings.models.get(model).map_or(world.settings.deadlines, |m| m.deadlines).stop;
            match self.strays.get_mut(model) {
                None => {
                    self.strays.insert(model.clone(), Stray { since: world.now, tried_at: world.now });
                    deeds.push(Deed::Stop(model.clone()));
                }
                Some(stray) if world.now.saturating_sub(stray.tried_at) >= STRAY.min(patience) => {
                    stray.tried_at = world.now;
                    if world.now.saturating_sub(stray.since) >= patience {
                        deeds.push(Deed::Kill(model.clone()));
                    }
                    deeds.push(Deed::Stop(model.clone()));
                }
                Some(_) => {}
            }
        }
    }

    /// Takes what was found out about a model's files: the first that is missing, and why.
    pub fn looked(&mut self, model: &ModelName, missing: Option<(PathBuf, String)>, now: Moment) {
        let look = self.looks.entry(model.clone()).or_default();
        look.since = missing.as_ref().map(|_| look.since.unwrap_or(now));
        *look = Look { asked_at: None, at: Some(now), missing, since: look.since };
    }

    /// What is to be begun for home now, and with which event; or what is to be looked up first. Not while a swap is
    /// under way or the ledger can't be written.
    pub fn next(&mut self, world: &mut World) -> (Option<(Plan, Event)>, Vec<Deed>) {
        if let Some(settled) = self.settle(world) {
            return (Some(settled), Vec::new());
        }
        if let Some(half) = half_started(world.state) {
            return (Some((half, Event::Resume)), Vec::new());
        }
        let mut deeds = Vec::new();
        let held = self.held_back(world, &mut deeds);
        let restoration = plan::restore(world.settings, world.facts, world.state, &held);
        for (model, refusal) in restoration.refused {
            let wait = Wait { why: refusal.text, next: refusal.hints.into_iter().next() };
            self.waits.entry(model).or_insert(wait);
        }
        if let Some((stand_in, of)) = restoration.stand_in {
            world.state.stand_ins.insert(stand_in, of);
        }
        // A look is good for one start.
        for start in restoration.plan.iter().flat_map(|plan| &plan.starts) {
            self.looks.remove(&start.model);
        }
        (restoration.plan.map(|plan| (plan, Event::Begin)), deeds)
    }

    /// Which models are not started now, and why; that is kept in `waits`.
    fn held_back(&mut self, world: &World, deeds: &mut Vec<Deed>) -> HeldBack {
        self.waits.clear();
        let mut held = HeldBack { leaving: self.leaving(world), ..HeldBack::default() };
        let state = &*world.state;
        // Those that may stand in are not looked up beforehand: their start says what is missing.
        held.waiting.extend(self.undiagnosed.keys().cloned());
        held.waiting
            .extend(state.troubles.keys().filter(|model| trouble::pause(world, model).is_some()).cloned());
        let gpus = self.awaited_gpus(world);
        for name in state.home.models.iter().filter(|name| !state.claims.contains_key(*name)) {
            let Some(model) = world.settings.models.get(name).filter(|model| !model.retired) else {
                continue;
            };
            if state.quarantine(name).is_some() {
                held.out.insert(name.clone());
                continue;
            }
            let wait = if self.undiagnosed.contains_key(name) {
                Some(Wait { why: "how it ended is being looked up".to_owned(), next: None })
            } else if let Some(pause) = trouble::pause(world, name) {
                let failures = state.troubles.get(name).map_or(0, |trouble| trouble.failures.len());
                let why = format!(
                    "it is tried again in {:.0} s, after failure {failures}",
                    pause.as_secs_f64().ceil()
                );
                Some(Wait { why, next: Some(format!("berthctl retry {name}")) })
            } else if let Some(wait) = gpus.clone().filter(|_| model.policy.uses_gpus()) {
                Some(wait)
            } else {
                let look = self.looks.entry(name.clone()).or_default();
                look_up(look, world, name, deeds)
            };
            if let Some(wait) = wait {
                held.waiting.insert(name.clone());
                self.waits.insert(name.clone(), wait);
            }
            let missing_since = self.looks.get(name).and_then(|look| look.since);
            if missing_since.is_some_and(|since| world.now.saturating_sub(since) >= world.settings.boot.files)
            {
                held.out.insert(name.clone());
            }
        }
        held
    }

    /// GPUs that were there before and are not seen yet, for as long as they are waited for.
    fn awaited_gpus(&self, world: &World) -> Option<Wait> {
        let left = world.settings.boot.gpus.checked_sub(world.now.saturating_sub(self.began))?;
        let seen = |id| world.facts.gpu(id).is_some_and(|gpu| gpu.memory.value().is_some());
        let missing = world.state.gpus.iter().filter(|(_, id)| !seen(id));
        let missing: Vec<String> = missing.map(|(index, id)| format!("GPU {index} ({id})")).collect();
        if missing.is_empty() || left.is_zero() {
            return None;
        }
        let why = format!(
            "{} was there before and is not seen; it is waited for, {:.0} s more at most",
            missing.join(" and "),
            left.as_secs_f64().ceil()
        );
        Some(Wait { why, next: Some("nvidia-smi -L".to_owned()) })
    }

    /// An operator's swap begins: it says what is to be, and what was cut off before it no longer counts.
    pub fn gives_way(&mut self) {
        self.cut_off.clear();
    }

    /// Takes how a swap ended: models that did not start have failed, and all that is missed is tried again later.
    /// One that was `called_off` says nothing of any model.
    pub fn ended(&mut self, world: &mut World, swap: &SwapSummary, called_off: bool) -> Vec<Deed> {
        use crate::report::{Outcome, Step, StepState};
        for model in &swap.serving {
            self.errors.remove(model);
        }
        // Not those that gave way to an operator, or whose start could not be written down.
        let failed: Vec<(&ModelName, &str)> = swap
            .steps
            .iter()
            .filter(|step| step.state == StepState::Failed && step.step == Step::Ready)
            .filter_map(|step| {
                let model = step.model.as_ref()?;
                Some((model, step.detail.strip_prefix(&format!("{model} did not start: "))?))
            })
            .filter(|(model, _)| !swap.serving.contains(model))
            .collect();
        if let Some(reason) = swap.reason.as_ref().filter(|_| !called_off) {
            let failed = swap.steps.iter().rfind(|step| step.state == StepState::Failed);
            let model = failed.and_then(|step| step.model.clone()).or_else(|| swap.model.clone());
            if let Some(model) = model.filter(|model| !swap.serving.contains(model)) {
                self.errors.insert(model, reason.clone());
            }
        }
        if swap.outcome == Some(Outcome::Done) || called_off && swap.verb == Verb::Load {
            return Vec::new();
        }
        let mut deeds = Vec::new();
        for (model, why) in &failed {
            if world.state.is_wanted(model) || swap.verb == Verb::Load {
                deeds.extend(self.failed(world, model, During::Start, (*why).to_owned()));
            }
        }
        let reason = swap.reason.clone().unwrap_or_default();
        let missed: Vec<ModelName> =
            world.state.home.models.iter().chain(world.state.stand_ins.keys()).cloned().collect();
        for model in missed {
            let told = failed.iter().any(|(known, _)| **known == model) || world.state.is_displaced(&model);
            if !swap.serving.contains(&model) && !told {
                deeds.extend(self.failed(world, &model, During::Other, reason.clone()));
            }
        }
        // Who was to stand in and did not leaves the place to another.
        let serving =
            |model: &ModelName| world.state.claims.get(model).is_some_and(|c| c.phase == Phase::Serving);
        let gone: Vec<ModelName> = world.state.stand_ins.keys().filter(|m| !serving(m)).cloned().collect();
        for model in gone {
            world.state.stand_ins.remove(&model);
            deeds.push(Deed::Record);
        }
        deeds
    }
}

/// What is waited for about a model's files; None where a fresh look found them all.
fn look_up(look: &mut Look, world: &World, name: &ModelName, deeds: &mut Vec<Deed>) -> Option<Wait> {
    let fresh = look.at.is_some_and(|at| world.now.saturating_sub(at) < LOOKED);
    if !fresh && look.asked_at.is_none() {
        look.asked_at = Some(world.now);
        deeds.push(Deed::Look(name.clone()));
    }
    match &look.missing {
        Some((file, why)) => {
            let left = look
                .since
                .map(|since| world.settings.boot.files.saturating_sub(world.now.saturating_sub(since)));
            let until = left.filter(|left| !left.is_zero()).map(|left| {
                format!(", {:.0} s more until another may serve in its place", left.as_secs_f64().ceil())
            });
            let why = format!("{}: {why}; it is waited for{}", file.display(), until.unwrap_or_default());
            Some(Wait { why, next: Some(format!("mount or restore {}", file.display())) })
        }
        None if fresh => None,
        None => Some(Wait { why: "its files are being looked up".to_owned(), next: None }),
    }
}

/// A wanted model that an earlier berthd started: what is left to do is to wait until it is ready.
fn half_started(state: &State) -> Option<Plan> {
    let mut claims = state.claims.iter();
    let (model, claim) =
        claims.find(|(model, claim)| claim.phase == Phase::Starting && state.is_wanted(model))?;
    Some(started(state, model, claim))
}

fn started(state: &State, model: &ModelName, claim: &crate::state::Claim) -> Plan {
    Plan {
        verb: Verb::Restore,
        model: Some(model.clone()),
        stops: Vec::new(),
        starts: vec![claim.start(model)],
        home: state.home.clone(),
        previous: None,
    }
}

/// Models that run and have no claim, since the ledger was lost or they run as the units that they replace: they serve on,
/// and what they hold counts.
fn take_over_found(world: &mut World) -> bool {
    let mut news = false;
    for (model, unit) in &world.facts.units {
        let Some(declared) = world.settings.models.get(model) else { continue };
        if unit.active != Active::Active || world.state.claims.contains_key(model) {
            continue;
        }
        if let Some(mut claim) = State::found(model, world.facts) {
            claim.layout.host = host::of_files(declared, world.facts);
            if claim.gpus.is_empty() && declared.policy.uses_gpus() {
                // It may be loading: on each of them its memory is awaited when it ends.
                claim.gpus = State::nothing_on(world.facts);
            }
            // What is declared was read off what runs.
            claim.address = unit.predecessor.as_ref().map(|_| SocketAddr::new(declared.host, declared.port));
            world.state.claims.insert(model.clone(), claim);
            news = true;
        }
    }
    news
}
