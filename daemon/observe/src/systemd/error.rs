//! What systemd's refusals mean, and how its jobs end.

use std::fmt;
use std::time::Duration;

use crate::scope::Scope;

/// Why systemd did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum SystemdError {
    /// The bus, or systemd on it, can't be reached.
    #[error(
        "can't {doing}: systemd can't be reached over {} ({why}); `{} status dbus` says more",
        Scope::this().bus(),
        Scope::this().systemctl()
    )]
    Unreachable {
        /// What was asked.
        doing: String,
        /// What is wrong.
        why: String,
    },
    /// polkit did not allow it.
    #[error(
        "may not {doing}: {said}; the rule that lets berthd handle berth-model@ units is 60-berth.rules in \
         /usr/share/polkit-1/rules.d, and polkit (0.106 or newer) must be installed"
    )]
    Denied {
        /// What was asked.
        doing: String,
        /// What was answered.
        said: String,
    },
    /// There is no such unit.
    #[error(
        "can't {doing}: {said}; is berth-model@.service installed? After installing it: `{} daemon-reload`",
        Scope::this().systemctl()
    )]
    NoSuchUnit {
        /// What was asked.
        doing: String,
        /// What was answered.
        said: String,
    },
    /// systemd refused for another reason.
    #[error("can't {doing}: {said} ({name})")]
    Refused {
        /// What was asked.
        doing: String,
        /// The error's name on the bus.
        name: String,
        /// What was answered.
        said: String,
    },
    /// No answer to a call.
    #[error("can't {doing}: systemd did not answer within {:.1} s", .after.as_secs_f64())]
    NoAnswer {
        /// What was asked.
        doing: String,
        /// How long was waited.
        after: Duration,
    },
    /// The job ended otherwise than asked for.
    #[error(
        "systemd could not {doing}: the job ended as `{result}`; `{} status {unit}` says more",
        Scope::this().systemctl()
    )]
    Job {
        /// What was asked.
        doing: String,
        /// The unit.
        unit: String,
        /// How the job ended.
        result: JobResult,
    },
    /// The job did not end in time. It goes on.
    #[error("systemd did not {doing} within {:.1} s", .after.as_secs_f64())]
    JobLate {
        /// What was asked.
        doing: String,
        /// How long was waited.
        after: Duration,
    },
}

/// How a job ended, in systemd's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobResult {
    /// What was asked for is so.
    Done,
    /// Another job took its place.
    Canceled,
    /// systemd's own deadline passed.
    Timeout,
    /// The unit failed.
    Failed,
    /// Something that it needs failed.
    Dependency,
    /// It did not apply.
    Skipped,
    /// Another of systemd's words.
    Other(String),
}

impl JobResult {
    /// Reads systemd's word.
    pub fn parse(word: &str) -> Self {
        match word {
            "done" => Self::Done,
            "canceled" => Self::Canceled,
            "timeout" => Self::Timeout,
            "failed" => Self::Failed,
            "dependency" => Self::Dependency,
            "skipped" => Self::Skipped,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl fmt::Display for JobResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Done => "done",
            Self::Canceled => "canceled",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
            Self::Dependency => "dependency",
            Self::Skipped => "skipped",
            Self::Other(word) => word,
        })
    }
}
