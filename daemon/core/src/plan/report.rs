//! What a plan looks like to people: each GPU before and after, and how long each step should take.

use std::collections::{BTreeMap, VecDeque};

use super::{Context, Plan, Start, Verdict};
use crate::bytes::Bytes;
use crate::config::Settings;
use crate::facts::{Facts, Gpu};
use crate::learned::{self, Run};
use crate::name::ModelName;
use crate::report::{
    Attempt, GpuChange, PlanReport, Request, SCHEMA, Step, StepForecast, Verdict as ReportVerdict,
};
use crate::state::{State, Times};

/// What a plan looks like to people, refused or not.
pub fn report(
    settings: &Settings,
    facts: &Facts,
    state: &State,
    request: &Request,
    verdict: &Verdict,
) -> PlanReport {
    let preflight = BTreeMap::new();
    let context = Context::new(settings, facts, state, &preflight);
    let (plan, said) = match verdict {
        Verdict::Go(plan) => (Some(plan), ReportVerdict::Go),
        Verdict::Nothing(text) => (None, ReportVerdict::Nothing { text: text.clone() }),
        Verdict::Refused { refusal, nearest } => (nearest.as_ref(), ReportVerdict::Refused(refusal.clone())),
    };
    PlanReport {
        schema: SCHEMA,
        request: request.clone(),
        verdict: said,
        stops: plan.map(|plan| plan.stops.clone()).unwrap_or_default(),
        starts: plan.map(|plan| plan.starts.iter().map(|s| s.model.clone()).collect()).unwrap_or_default(),
        gpus: plan.map(|plan| context.changes(plan)).unwrap_or_default(),
        tried: plan.map(|plan| context.tried_for(plan)).unwrap_or_default(),
        steps: plan.map(|plan| forecast(settings, facts, state, plan)).unwrap_or_default(),
    }
}

/// How long each step of a plan is expected to take, from measured times: of a model laid out like this where there are
/// some, else of the model.
pub fn forecast(settings: &Settings, facts: &Facts, state: &State, plan: &Plan) -> Vec<StepForecast> {
    let slowest = |pick: &dyn Fn(&ModelName) -> Option<u64>| {
        plan.stops.iter().map(pick).collect::<Option<Vec<u64>>>().and_then(|all| all.into_iter().max())
    };
    let times = |name: &ModelName, pick: fn(&Times) -> &VecDeque<u64>| {
        state.times.get(name).and_then(|times| Times::expected(pick(times)))
    };
    let one = if let [one] = plan.stops.as_slice() { Some(one.clone()) } else { None };
    let mut steps = Vec::new();
    if !plan.stops.is_empty() {
        let stop = slowest(&|name| times(name, |times| &times.stop));
        let release = slowest(&|name| {
            let run = state.claims.get(name).and_then(|claim| claim.run.as_ref());
            let known = run.and_then(|run| learned::remembered(state, name, run));
            known
                .and_then(|way| Times::expected(&way.release))
                .or_else(|| times(name, |times| &times.release))
        });
        steps.push(StepForecast { step: Step::Stopped, model: one.clone(), expected_ms: stop });
        steps.push(StepForecast { step: Step::Released, model: one, expected_ms: release });
    }
    for start in &plan.starts {
        let model = settings.models.get(&start.model);
        let run = model.and_then(|model| Run::of(model, facts, start));
        let known = run.and_then(|run| learned::remembered(state, &start.model, &run));
        let load = known.and_then(|way| Times::expected(&way.load));
        let load = load.or_else(|| times(&start.model, |times| &times.load));
        steps.push(StepForecast { step: Step::Ready, model: Some(start.model.clone()), expected_ms: load });
    }
    steps
}

impl Context<'_> {
    /// Per GPU that a plan concerns, before and after.
    fn changes(&self, plan: &Plan) -> Vec<GpuChange> {
        self.facts.gpus().iter().filter_map(|gpu| self.change(gpu, plan)).collect()
    }

    /// What was tried for the model that was asked for.
    fn tried_for(&self, plan: &Plan) -> Vec<Attempt> {
        let asked = plan.starts.iter().find(|start| Some(&start.model) == plan.model.as_ref());
        let Some(start) = asked else { return Vec::new() };
        let Some(model) = self.settings.models.get(&start.model) else { return Vec::new() };
        let before = plan.starts.iter().take_while(|other| other.model != start.model);
        let others: Vec<Start> = before.cloned().collect();
        let tried = self.tried(model, &plan.stops, &others, Some(start)).unwrap_or_default();
        tried.into_iter().map(|(attempt, _)| attempt).collect()
    }

    fn change(&self, gpu: &Gpu, plan: &Plan) -> Option<GpuChange> {
        let memory = gpu.memory.value()?;
        let foreign = self.state.foreign(gpu)?;
        let before: Vec<(ModelName, Bytes)> = self
            .state
            .claims
            .iter()
            .flat_map(|(model, claim)| claim.gpus.iter().map(move |part| (model, part)))
            .filter(|(_, part)| part.placed.id == gpu.id)
            .map(|(model, part)| (model.clone(), part.placed.bytes))
            .collect();
        let started: Vec<(ModelName, Bytes)> = plan
            .starts
            .iter()
            .flat_map(|start| start.gpus.iter().map(move |part| (&start.model, part)))
            .filter(|(_, part)| part.id == gpu.id)
            .map(|(model, part)| (model.clone(), part.bytes))
            .collect();
        if before.is_empty() && started.is_empty() {
            return None;
        }
        let mut after: Vec<(ModelName, Bytes)> =
            before.iter().filter(|(model, _)| !plan.stops.contains(model)).cloned().collect();
        after.extend(started.iter().cloned());
        let mut foreign_by: Vec<(Bytes, String)> = gpu
            .processes
            .value()
            .into_iter()
            .flatten()
            .filter(|process| self.state.owner(process).is_none())
            .map(|p| (p.memory.value().copied().unwrap_or_default(), p.program.clone()))
            .collect();
        foreign_by.sort_by(|a, b| b.cmp(a));
        Some(GpuChange {
            index: gpu.index,
            total: memory.total,
            unusable: memory.reserved.plus(self.settings.headroom),
            foreign,
            foreign_by: foreign_by.into_iter().map(|(_, name)| name).collect(),
            needs: started.iter().map(|(_, bytes)| *bytes).sum(),
            available: self.rooms.on(&gpu.id, &plan.stops),
            before,
            after,
        })
    }
}
