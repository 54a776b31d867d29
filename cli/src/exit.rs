//! The exit codes: stable, for scripts.

use std::process::{ExitCode, Termination};

use berth_core::report::Outcome;

/// How a run of berthctl ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// As asked.
    Done = 0,
    /// `doctor` found something.
    Found = 1,
    /// The command line, the configuration or a model's file is wrong.
    Usage = 2,
    /// berthd refused and nothing was touched, or a model does not fit.
    Refused = 3,
    /// It failed, and what served before serves again.
    Restored = 4,
    /// It failed, and not all that should serve does; or it is done but for what is told.
    Degraded = 5,
    /// berthd can't be reached, or gives no answer that can be understood.
    Unreachable = 6,
    /// `--timeout` passed; what was asked for goes on.
    Timeout = 7,
    /// Ctrl-C: watching stopped; what was asked for goes on.
    Stopped = 130,
}

/// What `berthctl --help` says of them.
pub(crate) const EXPLAINED: &str = "\
Exit codes:
    0  done; with `doctor`: nothing is wrong
    1  with `doctor`: something is wrong, or could not be looked at
    2  usage: the command line, or with `check`, `fit` and `reload` what is read, is wrong
    3  refused, nothing was touched; with `fit`: it does not fit
    4  failed, and what served before serves again
    5  failed, and not all that should serve does; berthd goes on trying; with `add` and
       `remove`: done, and something is left to do
    6  berthd can't be reached, or its answer can't be understood
    7  --timeout passed; the switch goes on
  130  Ctrl-C: stopped watching; the switch goes on";

impl Exit {
    /// The code itself.
    pub(crate) fn code(self) -> u8 {
        self as u8
    }
}

impl From<Outcome> for Exit {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Done,
            Outcome::Restored => Self::Restored,
            Outcome::Degraded => Self::Degraded,
        }
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self.code())
    }
}
