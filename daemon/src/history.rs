//! The history: what happened and what was seen, in SQLite, for those who look back.
//!
//! A task asks the driver how things are, now and then, and hears its events; a thread writes both into the file. The
//! driver waits for neither. What can't be written is tried again from the events that are kept for listeners, and is a
//! problem meanwhile; a file that can't be believed is set aside and a new one begun.

mod file;
mod read;
mod store;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as thread;
use std::time::Duration;

use berth_core::config;
use berth_core::history::Limits;
use berth_core::report::{Refusal, Status, What};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use crate::driver::{Message, now_ms};
use crate::events::Events;
use crate::scope::Scope;

pub use file::HistoryError;
pub use read::{Page, Reader};
use store::{Batch, Store};

/// How long the driver may take to say how things are; without an answer there is no sample.
const DRIVER: Duration = Duration::from_secs(5);
/// How long a write may take before it is said that the disk does not answer.
const DISK: Duration = Duration::from_secs(30);
/// Between two tries to write what could not be written.
const AGAIN: Duration = Duration::from_secs(10);
/// What happens at once is written at once: the events of a step come within less than this.
const TOGETHER: Duration = Duration::from_millis(50);

/// Begins to keep the history in `folder`; gives what reads it.
pub fn spawn(
    folder: &Path,
    declared: &config::History,
    events: Events,
    driver: mpsc::Sender<Message>,
) -> Reader {
    let path = folder.join(file::NAME);
    let limits = Limits::new(declared);
    let suspect = Arc::new(AtomicBool::new(false));
    let reader = Reader::new(path.clone(), limits, Arc::clone(&suspect));
    let (jobs, queue) = thread::channel();
    let writer = Writer { path: path.clone(), limits, suspect, store: None, aside: None };
    // A thread of its own, that nobody waits for: a disk that does not answer holds up nothing but it.
    let started = std::thread::Builder::new().name("history".to_owned()).spawn(move || writer.run(&queue));
    match started {
        Ok(_) => _ = tokio::spawn(keep(path, declared.every, jobs, events, driver)),
        Err(error) => tracing::error!(%error, "no history is kept: {error}"),
    }
    reader
}

/// A batch for the thread, and where it says what came of it.
type Job = (Batch, oneshot::Sender<Vec<Refusal>>);

/// Collects what is to be written, and tells the driver what is wrong with it.
async fn keep(
    path: PathBuf,
    every: Duration,
    jobs: thread::Sender<Job>,
    events: Events,
    driver: mpsc::Sender<Message>,
) {
    let (mut written, mut sample_at, mut told) = (0, Instant::now(), Vec::new());
    loop {
        let (kept, mut live) = events.after(written);
        let newest = kept.last().map(|event| event.id);
        let missed = kept.first().filter(|first| written > 0 && first.id > written + 1);
        if let Some(first) = missed {
            tracing::warn!("{} events are missing from the history", first.id - written - 1);
        }
        let sample = Instant::now() >= sample_at;
        let of_problems = kept
            .iter()
            .any(|event| matches!(event.what, What::ProblemBegan { .. } | What::ProblemEnded { .. }));
        let status = if sample || of_problems { ask(&driver).await } else { None };
        if sample {
            // What was missed is not made up for.
            sample_at = (sample_at + every).max(Instant::now());
        }
        let (reply, mut answer) = oneshot::channel();
        if jobs.send((Batch { events: kept, status, sample }, reply)).is_err() {
            tracing::error!("the history's thread ended");
            return;
        }
        let wrong = loop {
            if let Ok(wrong) = timeout(DISK, &mut answer).await {
                break wrong.unwrap_or_default();
            }
            let error = HistoryError::Silent { path: path.clone(), after: DISK };
            tell(&driver, &mut told, vec![refusal(&error)]).await;
        };
        let failed = wrong.iter().any(|refusal| refusal.code == ERROR);
        tell(&driver, &mut told, wrong).await;
        if failed {
            // The events wait where they are.
            sample_at = Instant::now() + AGAIN;
            sleep_until(sample_at).await;
            continue;
        }
        written = newest.unwrap_or(written);
        tokio::select! {
            // Lagging says the same: there are events.
            _ = live.recv() => tokio::time::sleep(TOGETHER).await,
            () = sleep_until(sample_at) => {}
        }
    }
}

async fn ask(driver: &mpsc::Sender<Message>) -> Option<Status> {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        driver.send(Message::Status(reply)).await.ok()?;
        answer.await.ok()
    };
    timeout(DRIVER, asked).await.ok()?
}

/// Tells the driver what is wrong, where that has changed.
async fn tell(driver: &mpsc::Sender<Message>, told: &mut Vec<Refusal>, wrong: Vec<Refusal>) {
    if *told != wrong {
        told.clone_from(&wrong);
        // A driver that is gone tells nobody any more.
        _ = driver.send(Message::History(wrong)).await;
    }
}

const ERROR: &str = "history_error";
const DAMAGED: &str = "history_damaged";

/// What is wrong while nothing can be written.
fn refusal(error: &HistoryError) -> Refusal {
    let scope = Scope::this();
    let hint = if error.is_full() {
        format!("make room on the disk of {}", scope.state().display())
    } else {
        format!("{} -u berthd", scope.journalctl())
    };
    Refusal {
        code: ERROR.to_owned(),
        text: format!("what happens is not kept: {error}. All else goes on"),
        hints: vec![format!("{hint}; berthd tries again every {} s", AGAIN.as_secs())],
    }
}

/// The thread's own.
struct Writer {
    path: PathBuf,
    limits: Limits,
    suspect: Arc<AtomicBool>,
    store: Option<Store>,
    /// Why the last one was set aside.
    aside: Option<String>,
}

impl Writer {
    fn run(mut self, queue: &thread::Receiver<Job>) {
        while let Ok((batch, reply)) = queue.recv() {
            let failed = self.write(&batch, now_ms()).inspect_err(|error| tracing::warn!("{error}")).err();
            let wrong = failed.as_ref().map(refusal).into_iter().chain(self.damaged()).collect();
            // Whoever waits for it may have gone.
            _ = reply.send(wrong);
        }
    }

    fn write(&mut self, batch: &Batch, now_ms: u64) -> Result<(), HistoryError> {
        if self.suspect.swap(false, Ordering::Relaxed) {
            // Opening it checks it.
            self.store = None;
        }
        match self.try_write(batch, now_ms) {
            Err(error) if error.is_damage() => {
                self.store = None;
                let aside = file::set_aside(&self.path, now_ms / 1000)?;
                tracing::error!("{error}; it is kept as {}, and a new one is begun", aside.display());
                self.aside = Some(error.to_string());
                self.try_write(batch, now_ms)
            }
            done => done,
        }
    }

    fn try_write(&mut self, batch: &Batch, now_ms: u64) -> Result<(), HistoryError> {
        let store = match &mut self.store {
            Some(store) => store,
            empty => empty.insert(Store::open(&self.path, self.limits, now_ms)?),
        };
        let written = store.write(batch, now_ms);
        if written.is_err() {
            // Opened anew the next time: nothing of what went wrong is left in it.
            self.store = None;
        }
        written
    }

    /// What is said for as long as a file that was set aside is there.
    fn damaged(&self) -> Option<Refusal> {
        let folder = self.path.parent()?;
        let newest = file::aside_in(folder).ok()?.into_iter().max()?;
        let newest = newest.display();
        let why = self.aside.clone().unwrap_or_else(|| "an earlier history could not be believed".to_owned());
        Some(Refusal {
            code: DAMAGED.to_owned(),
            text: format!("{why}. It is kept as {newest}, and a new one was begun; all else goes on"),
            hints: vec![format!(
                "look into it with sqlite3, or let it go: {}rm {newest}*",
                Scope::this().sudo()
            )],
        })
    }
}
