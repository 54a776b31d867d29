//! berthd killed, its machine cut from power and its calls failed, at every point of a switch in turn; and what must
//! be so once it is up again.
//!
//! ```text
//! scout: a switch in peace ──► points ──► cases (point × what happens) ──► trial ──► rest: looked at from outside
//! ```
//!
//! There are two switches: one that is done, and one that has to go back to what served before. Each case begins with
//! `aeon` as home, nothing else running and no memory lingering; several sandboxes work through them at once.
//! `random` does all of it at random, in a long row.

mod case;
mod fault;
mod points;
pub mod random;
mod rest;
mod trial;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;

pub use case::{Case, Kind, Switch};
pub use rest::Rest;

use crate::{Berth, declare};

/// What each model holds on each card: more than half of it.
const EACH: &str = "14300MiB";
/// How long memory of the dead lingers.
const LINGER: &str = "120ms";
/// A point that is not reached in this many tries counts as one that did not converge.
const TRIES: u32 = 3;

/// Short deadlines: a trial is to end in seconds whatever goes wrong in it. No quarantine: what fails here is to be
/// tried again.
const MAIN: &str = "\
node = \"tower\"

[deadlines]
stop = \"2s\"
release = \"8s\"
start = \"8s\"

[restart]
first = \"200ms\"
longest = \"2s\"
failures = 1000
";

/// How one case ended.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// All was as it must be.
    Converged,
    /// The point was not reached this time; all else was as it must be.
    NotReached,
    /// Something was not, with the evidence.
    Violation(String),
}

/// What all cases came to.
#[derive(Debug, Clone, Default)]
pub struct Sum {
    /// Cases: points, times what happened there, for both switches.
    pub points: usize,
    /// Those after which all was as it must be.
    pub converged: usize,
    /// Cases that were tried again, since the point was not reached.
    pub tried_again: usize,
    /// What must not be, in words.
    pub violations: Vec<String>,
}

/// A machine with `aeon` and `genesis`, which can't be resident together, and `broken`, which takes its memory, never
/// gets ready and has to be killed.
///
/// # Errors
/// It does not come up.
pub fn machine() -> Result<Berth> {
    let load = ["--load-time", "60ms"];
    let broken = declare::fake(2, EACH, &["--never-ready", "--ignore-sigterm"]);
    let broken = format!("{broken}[deadlines]\nstart = \"400ms\"\nstop = \"200ms\"\n");
    let builder = Berth::builder().faults().main(MAIN).fake("aeon", EACH, &load).fake("genesis", EACH, &load);
    let berth = builder.model("broken", &broken).try_boot()?;
    berth.switch("aeon");
    trial::go_back_to_aeon(&berth)?;
    Ok(berth)
}

/// Walks through a switch in peace and gives all cases that come of it, in the order of their points.
///
/// # Errors
/// The switch does not end as it is meant to.
pub fn scout(berth: &mut Berth, switch: Switch) -> Result<Vec<Case>> {
    points::scout(berth, switch)
}

/// Tries each case, with this many sandboxes at once. `progress` is told of each that ended, and how long it took.
///
/// # Errors
/// A sandbox does not come up.
pub fn run(
    cases: Vec<Case>,
    sandboxes: usize,
    mut progress: impl FnMut(&Case, &Outcome, Duration),
) -> Result<Sum> {
    let mut sum = Sum { points: cases.len(), ..Sum::default() };
    let queue = &Mutex::new(cases.into_iter().map(|case| (case, 1)).collect::<VecDeque<_>>());
    let (done, ended) = mpsc::channel();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..sandboxes)
            .map(|_| {
                let done = done.clone();
                scope.spawn(move || work(queue, &done))
            })
            .collect();
        drop(done);
        for (case, outcome, tries, took) in ended {
            progress(&case, &outcome, took);
            match outcome {
                Outcome::Converged => sum.converged += 1,
                Outcome::NotReached if tries < TRIES => sum.tried_again += 1,
                Outcome::NotReached => {
                    sum.violations.push(format!("{case}: not reached in {tries} tries"));
                }
                Outcome::Violation(evidence) => sum.violations.push(format!("{case}: {evidence}")),
            }
        }
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        Ok(sum)
    })
}

type Ended = (Case, Outcome, u32, Duration);

/// Takes case after case, in one sandbox for as long as nothing goes wrong in it.
fn work(queue: &Mutex<VecDeque<(Case, u32)>>, done: &Sender<Ended>) -> Result<()> {
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let mut machine_at_hand = None;
    while let Some((case, tries)) = next() {
        let began = std::time::Instant::now();
        let mut berth = match machine_at_hand.take() {
            Some(berth) => berth,
            None => machine()?,
        };
        let outcome = match guarded(|| trial::trial(&mut berth, &case)) {
            Ok(true) => Outcome::Converged,
            Ok(false) => Outcome::NotReached,
            Err(why) => Outcome::Violation(format!("{why}{}", trial::evidence(&berth))),
        };
        match &outcome {
            // What is left of it is no ground for another trial.
            Outcome::Violation(_) => {}
            _ => machine_at_hand = Some(berth),
        }
        if matches!(outcome, Outcome::NotReached) && tries < TRIES {
            let again = (case.clone(), tries + 1);
            queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(again);
        }
        // The one who counts lives as long as all of us.
        _ = done.send((case, outcome, tries, began.elapsed()));
    }
    Ok(())
}

/// A guest that does not answer makes its fixture panic: that is an error as others are.
fn guarded<T>(act: impl FnOnce() -> Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(result) => result.map_err(|error| format!("{error:#}")),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(text.unwrap_or_else(|| "the trial panicked".to_owned()))
        }
    }
}

/// The test of the test: with a ledger that is not synced, a cut right after a reported success must be found out.
///
/// # Errors
/// It was not.
pub fn finds_an_unsynced_ledger(berth: &mut Berth) -> Result<String> {
    trial::unsynced(berth)
}
