//! The end of a job that systemd was asked for.

use std::fmt;
use std::time::Instant;

use tokio::sync::mpsc;

use super::SystemdError;

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
    pub(super) fn parse(word: &str) -> Self {
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

/// A job that ended.
#[derive(Debug)]
pub(super) struct JobEnd {
    /// Its object.
    pub(super) object: String,
    pub(super) result: JobResult,
}

/// A queued job. Dropping it leaves the job alone.
#[derive(Debug)]
#[must_use = "the job is only queued; wait for its end or drop it on purpose"]
pub struct Job {
    pub(super) doing: String,
    pub(super) unit: String,
    /// Its object.
    pub(super) object: String,
    pub(super) began: Instant,
    pub(super) deadline: Instant,
    pub(super) waiter: mpsc::UnboundedReceiver<JobEnd>,
}

impl Job {
    /// Waits for the end of the job, until its deadline. Any end but [`JobResult::Done`] is an error.
    pub async fn wait(mut self) -> Result<(), SystemdError> {
        let Ok(result) = tokio::time::timeout_at(self.deadline.into(), self.end()).await else {
            let after = self.deadline.saturating_duration_since(self.began);
            return Err(SystemdError::JobLate { doing: self.doing, after });
        };
        match result {
            Some(JobResult::Done) => Ok(()),
            Some(result) => Err(SystemdError::Job { doing: self.doing, unit: self.unit, result }),
            None => Err(SystemdError::Unreachable {
                doing: format!("learn how it ended to {}", self.doing),
                why: "the connection was lost while the job ran".to_owned(),
            }),
        }
    }

    async fn end(&mut self) -> Option<JobResult> {
        loop {
            let end = self.waiter.recv().await?;
            if end.object == self.object {
                return Some(end.result);
            }
        }
    }
}
