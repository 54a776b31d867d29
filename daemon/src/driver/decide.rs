//! What an operator asks for is decided here, by core's planner.

use berth_core::plan::{self, Verdict};
use berth_core::report::{Accepted, Actor, PlanReport, Refusal, SCHEMA, SwapSummary, Verdict as Said};
use berth_core::state::State;
use berth_core::swap::{Beside, Event, Swap};

use super::{Answer, Decide, Driver, millis};
use crate::preflight::Looked;
use crate::proc::monotonic_now;

impl Driver {
    pub(super) fn decide(&mut self, mut decide: Decide) {
        self.take_looked(&mut decide.looked);
        if self.memory.ledger_error.is_some() {
            self.record();
        }
        let unrecorded = self.memory.ledger_error.clone();
        let unnamed = self.name(&mut decide).err().map(|refusal| *refusal);
        let unrecorded = unrecorded.or(unnamed).map(|refusal| Verdict::Refused { refusal, nearest: None });
        let Some(by) = decide.by.clone() else {
            let verdict = unrecorded.unwrap_or_else(|| self.plan(&decide, &self.state));
            let report = self.report(&decide, &verdict);
            return answer(decide, Answer::Plan(report));
        };
        let verdict = match (&self.swap, unrecorded) {
            (_, Some(refused)) => refused,
            (Some(own), None) if own.verb().is_own() && self.waiting.is_none() => {
                match own
                    .beside(&self.settings, &self.state, &decide.request, &|state| self.plan(&decide, state))
                {
                    // What an operator asks for comes before what berthd does by itself.
                    Beside::GiveWay => {
                        let to = format!("`{}` by {}", decide.request.verb.as_str(), by.user);
                        self.waiting = Some(decide);
                        return self.step(Event::GiveWay(to));
                    }
                    Beside::Same => {
                        let (swap, after) = (Some(own.id()), self.events.newest());
                        let plan = self.report(&decide, &Verdict::Nothing("It is being started.".to_owned()));
                        return answer(
                            decide,
                            Answer::Accepted(Accepted { schema: SCHEMA, swap, after, plan }),
                        );
                    }
                    Beside::TakesOver(plan) => {
                        let report = self.report(&decide, &Verdict::Go(plan.clone()));
                        let (swap, after) = (self.take_over(plan, by), self.events.newest());
                        let accepted = Accepted { schema: SCHEMA, swap, after, plan: report };
                        return answer(decide, Answer::Accepted(accepted));
                    }
                    Beside::Answered(verdict) => verdict,
                }
            }
            (Some(swap), None) => busy(&swap.summary(monotonic_now())),
            (None, None) => self.plan(&decide, &self.state),
        };
        let plan = self.report(&decide, &verdict);
        let after = self.events.newest();
        match verdict {
            Verdict::Go(go) => {
                let checked_ms = millis(monotonic_now().saturating_sub(decide.looked.began));
                let swap = Some(self.begin(go, Some(by), checked_ms, Event::Begin));
                answer(decide, Answer::Accepted(Accepted { schema: SCHEMA, swap, after, plan }));
            }
            Verdict::Nothing(_) => {
                answer(decide, Answer::Accepted(Accepted { schema: SCHEMA, swap: None, after, plan }));
            }
            Verdict::Refused { .. } => answer(decide, Answer::Plan(plan)),
        }
    }

    /// The swap of this number, under way or among the last ones.
    pub(super) fn swap_by_id(&self, id: u64) -> Option<SwapSummary> {
        let running = self.swap.as_ref().filter(|swap| swap.id() == id);
        let running = running.map(|swap| swap.summary(monotonic_now()));
        running.or_else(|| self.state.swaps.iter().find(|swap| swap.id == id).cloned())
    }

    /// Calls off the swap of this number, as far as it can be; gives how far it is.
    pub(super) fn cancel(&mut self, id: u64, by: &Actor) -> Result<SwapSummary, Box<Refusal>> {
        match self.swap.as_ref().filter(|swap| swap.id() == id) {
            Some(swap) => swap.may_be_cancelled()?,
            None if self.swap_by_id(id).is_some() => return Err(Box::new(Swap::over(id))),
            None => return Err(Box::new(unknown(id))),
        }
        tracing::info!(swap = id, by = by.user, "the swap is cancelled");
        self.step(Event::Cancel(by.user.clone()));
        self.swap_by_id(id).ok_or_else(|| Box::new(unknown(id)))
    }

    /// Takes what was looked up for a decision. What was observed since counts more: a model that has just come up would be
    /// taken for one that is down.
    pub(super) fn take_looked(&mut self, looked: &mut Looked) {
        if let Some(gpus) = looked.gpus.take().filter(|_| self.gpus_at <= looked.began) {
            self.facts.gpus = gpus;
        }
        if let Some(units) = looked.units.take().filter(|_| self.units_at <= looked.began) {
            self.facts.units = units;
            self.units_awaited = false;
        }
        self.facts.files.clone_from(&looked.files);
        self.observed();
    }

    fn plan(&self, decide: &Decide, state: &State) -> Verdict {
        if decide.request.verb.is_own() {
            let text = format!("`{}` is berthd's own", decide.request.verb.as_str());
            return refused("bad_request", text, Vec::new());
        }
        if self.units_awaited {
            let text = "what runs is being read anew since a reload".to_owned();
            return refused("busy", text, vec!["the same again, in a moment".to_owned()]);
        }
        plan::plan(&self.settings, &self.facts, state, &decide.request, &decide.looked.preflight)
    }

    fn report(&self, decide: &Decide, verdict: &Verdict) -> PlanReport {
        plan::report(&self.settings, &self.facts, &self.state, &decide.request, verdict)
    }
}

/// Why nothing can be said of a swap.
pub fn unknown(id: u64) -> Refusal {
    let text = format!("swap {id} is not known; the last {} are", State::KEPT_SWAPS);
    Refusal { code: "unknown_swap".to_owned(), text, hints: vec!["berthctl history".to_owned()] }
}

fn answer(decide: Decide, answer: Answer) {
    // Whether the asker still listens changes nothing.
    _ = decide.reply.send(answer);
}

fn busy(swap: &SwapSummary) -> Verdict {
    let who = swap.by.as_ref().map_or("berthd itself".to_owned(), |by| by.user.clone());
    let what = swap.model.as_ref().map(|model| format!(" {model}")).unwrap_or_default();
    let text = format!(
        "one swap at a time: `{}{what}` by {who} is under way since {}.{} s",
        swap.verb.as_str(),
        swap.elapsed_ms / 1000,
        swap.elapsed_ms % 1000 / 100
    );
    refused("busy", text, vec!["berthctl status --watch".to_owned()])
}

fn refused(code: &str, text: String, hints: Vec<String>) -> Verdict {
    Verdict::Refused { refusal: Refusal { code: code.to_owned(), text, hints }, nearest: None }
}

/// Whether a plan was refused, and why.
pub fn refusal(report: &PlanReport) -> Option<&Refusal> {
    match &report.verdict {
        Said::Refused(refusal) => Some(refusal),
        _ => None,
    }
}
