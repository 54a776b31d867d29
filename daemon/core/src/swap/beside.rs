//! What an operator's request means for a swap that berthd makes by itself.

use super::Swap;
use crate::config::Settings;
use crate::name::ModelName;
use crate::plan::{self, Plan, Verdict};
use crate::report::{Request, Verb};
use crate::state::{Claim, Guest, Phase, State};

/// What is done about it.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant)]
pub enum Beside {
    /// What an operator asks for comes before what berthd does by itself.
    GiveWay,
    /// It is what the swap does.
    Same,
    /// The swap becomes the operator's, whose plan this is.
    TakesOver(Plan),
    /// It is answered beside the swap, which goes on.
    Answered(Verdict),
}

impl Swap {
    /// Whether it has to give way to a request: not to one that would be refused, nor for what it starts. `decide` is what
    /// would come of the request in a state.
    pub fn beside(
        &self,
        settings: &Settings,
        state: &State,
        request: &Request,
        decide: &dyn Fn(&State) -> Verdict,
    ) -> Beside {
        let wanted = self.is_for(settings, state, request) && !self.is_going_back();
        if self.verb() == Verb::Load {
            return match self.as_if_done(state).filter(|_| wanted).map(|done| decide(&done)) {
                Some(Verdict::Go(plan)) if plan.stops.is_empty() && plan.starts.is_empty() => {
                    Beside::TakesOver(plan)
                }
                Some(refused @ Verdict::Refused { .. }) => Beside::Answered(refused),
                // Once it gave way, memory of what it stops and starts is waited for.
                _ => match decide(&self.as_if_ending(state)) {
                    Verdict::Go(_) => Beside::GiveWay,
                    Verdict::Refused { refusal, .. } if refusal.code == "memory_held" => Beside::GiveWay,
                    other => Beside::Answered(other),
                },
            };
        }
        let mut done = state.clone();
        for claim in done.claims.values_mut().filter(|claim| claim.phase == Phase::Starting) {
            claim.phase = Phase::Serving;
        }
        match decide(&done) {
            Verdict::Nothing(_) if wanted => Beside::Same,
            Verdict::Nothing(_) if !self.is_going_back() => Beside::Answered(decide(state)),
            Verdict::Go(_) | Verdict::Nothing(_) => Beside::GiveWay,
            refused @ Verdict::Refused { .. } => Beside::Answered(refused),
        }
    }

    /// A load for clients becomes an operator's swap to the same end.
    pub fn take_over(&mut self, plan: Plan, by: crate::report::Actor, state: &mut State) {
        self.summary.verb = plan.verb;
        self.summary.by = Some(by);
        self.plan = Plan { stops: self.plan.stops.clone(), starts: self.plan.starts.clone(), ..plan };
        state.intent = Some(self.plan.clone());
    }

    /// Whether the request wants what it starts.
    fn is_for(&self, settings: &Settings, state: &State, request: &Request) -> bool {
        let asked = request.model.as_deref().and_then(|asked| plan::resolve(settings, state, asked).ok());
        let wants = matches!(request.verb, Verb::Switch | Verb::Start | Verb::Restart | Verb::Retry);
        wants && asked.is_some_and(|model| self.starts(&model.name))
    }

    fn starts(&self, model: &ModelName) -> bool {
        self.plan.starts.iter().any(|start| start.model == *model)
    }

    /// The state as if what it stops and what it starts had been told to end.
    fn as_if_ending(&self, state: &State) -> State {
        let mut state = state.clone();
        for (model, claim) in &mut state.claims {
            if self.starts(model) || self.plan.stops.contains(model) {
                claim.phase = Phase::Ending;
            }
        }
        // Like any guest's, its place is nobody's for long.
        for start in &self.plan.starts {
            let guest = Guest { since_ms: 0, cause: self.cause.clone() };
            state.guests.insert(start.model.clone(), guest);
        }
        state
    }

    /// The state as if it were done; None before it has begun to start.
    fn as_if_done(&self, state: &State) -> Option<State> {
        let mut done = state.clone();
        done.claims.retain(|model, _| !self.plan.stops.contains(model));
        for start in &self.plan.starts {
            let claim = state.claims.get(&start.model)?;
            done.claims.insert(start.model.clone(), Claim { phase: Phase::Serving, ..claim.clone() });
        }
        Some(done)
    }
}
