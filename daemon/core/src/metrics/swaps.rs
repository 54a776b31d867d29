//! What the swaps since berthd's start come to.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Histogram;
use crate::name::ModelName;
use crate::report::{Outcome, Step, StepState, SwapSummary, Verb};

/// Counts and times of swaps that ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Swaps {
    pub(super) ended: BTreeMap<(&'static str, &'static str), u64>,
    pub(super) steps: BTreeMap<Step, Histogram>,
    pub(super) gaps: Histogram,
    pub(super) releases: BTreeMap<ModelName, Histogram>,
}

/// Every verb that makes a swap, as a label.
pub(super) const VERBS: [Verb; 9] = [
    Verb::Switch,
    Verb::Start,
    Verb::Stop,
    Verb::StopAll,
    Verb::Restart,
    Verb::Back,
    Verb::Retry,
    Verb::Restore,
    Verb::Load,
];
pub(super) const OUTCOMES: [Outcome; 3] = [Outcome::Done, Outcome::Restored, Outcome::Degraded];

impl Swaps {
    /// Counts a swap that ended. `release` gives the newest measured time of a model's release, in milliseconds.
    pub fn add(&mut self, swap: &SwapSummary, release: impl Fn(&ModelName) -> Option<u64>) {
        let Some(outcome) = swap.outcome else { return };
        *self.ended.entry((verb(swap.verb), self::outcome(outcome))).or_default() += 1;
        if let Some(gap) = swap.gap_ms {
            self.gaps.add(Duration::from_millis(gap));
        }
        let done = |step: &&crate::report::StepReport| step.state == StepState::Done && !step.rollback;
        for step in swap.steps.iter().filter(done) {
            self.steps.entry(step.step).or_default().add(Duration::from_millis(step.elapsed_ms));
            if step.step == Step::Released {
                for model in &swap.stops {
                    if let Some(took) = release(model) {
                        let times = self.releases.entry(model.clone()).or_default();
                        times.add(Duration::from_millis(took));
                    }
                }
            }
        }
    }
}

pub(super) fn verb(verb: Verb) -> &'static str {
    match verb {
        Verb::StopAll => "stop_all",
        verb => verb.as_str(),
    }
}

pub(super) fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Restored => "restored",
        Outcome::Degraded => "degraded",
    }
}
