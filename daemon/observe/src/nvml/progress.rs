//! What NVML's thread is doing, for those who wait for it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shared between NVML's thread, which tells what it does, and those who ask it.
#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When work on the present question began, and the call that it is in; None while the thread rests.
    job: Option<(Instant, Call)>,
    /// A deadline has passed during this job.
    overdue: bool,
}

/// A call to NVML.
#[derive(Debug, Clone, Copy)]
struct Call {
    /// What it asks for, for example `memory info`.
    what: &'static str,
    /// The GPU that it asks about.
    gpu: Option<u32>,
}

impl Progress {
    /// Work on a question begins.
    pub(super) fn begin(&self) {
        let call = Call { what: "start of the reading", gpu: None };
        *self.state() = State { job: Some((Instant::now(), call)), overdue: false };
    }

    /// A call is about to be made.
    pub(super) fn call(&self, what: &'static str, gpu: Option<u32>) {
        if let Some((_, call)) = &mut self.state().job {
            *call = Call { what, gpu };
        }
    }

    /// The question is answered.
    pub(super) fn end(&self) {
        *self.state() = State::default();
    }

    /// How long NVML has been silent, if a deadline has passed during the present job.
    pub(super) fn overdue(&self) -> Option<String> {
        let state = self.state();
        let (began, call) = state.job.filter(|_| state.overdue)?;
        Some(silence(began.elapsed(), Some(call)))
    }

    /// A deadline has passed: the same, and the job counts as overdue from now on.
    pub(super) fn missed(&self, deadline: Duration) -> String {
        let mut state = self.state();
        state.overdue = state.job.is_some();
        match state.job {
            Some((began, call)) => silence(began.elapsed(), Some(call)),
            None => silence(deadline, None),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn silence(time: Duration, call: Option<Call>) -> String {
    let call = match call {
        Some(Call { what, gpu: Some(index) }) => format!(" ({what} of GPU {index})"),
        Some(Call { what, gpu: None }) => format!(" ({what})"),
        None => String::new(),
    };
    format!("NVML has not answered for {:.1} s{call}", time.as_secs_f64())
}
