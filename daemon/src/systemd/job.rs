//! The end of a job that systemd was asked for.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{JobResult, Systemd, SystemdError, read};

/// Between two looks for the end of a job that systemd may have told while nobody could listen.
const LOOK: Duration = Duration::from_millis(50);

/// A job that ended.
#[derive(Debug)]
pub(super) struct JobEnd {
    /// Its object.
    pub(super) object: String,
    pub(super) result: JobResult,
}

/// What a job is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Up,
    Down,
}

/// A queued job. Dropping it leaves the job alone.
#[derive(Debug)]
#[must_use = "the job is only queued; wait for its end or drop it on purpose"]
pub struct Job {
    pub(super) systemd: Systemd,
    pub(super) unit: String,
    pub(super) doing: String,
    pub(super) wanted: Wanted,
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
            JobResult::Done => Ok(()),
            result => Err(SystemdError::Job { doing: self.doing, unit: self.unit, result }),
        }
    }

    async fn end(&mut self) -> JobResult {
        while let Some(end) = self.waiter.recv().await {
            if end.object == self.object {
                return end.result;
            }
        }
        // The bus was away: what systemd told then is lost, and what came of it can be seen.
        loop {
            if let Ok(connection) = self.systemd.connection(&self.doing)
                && let Ok(Some(active)) = read::settled(&connection, &self.unit).await
            {
                return match self.wanted {
                    Wanted::Up if !active.is_down() => JobResult::Done,
                    Wanted::Down if active.is_down() => JobResult::Done,
                    _ => JobResult::Failed,
                };
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
