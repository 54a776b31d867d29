//! Tells people of problems: runs their command, or posts to their webhook. Core says what is pushed when; each target has a
//! task of its own, so that one that hangs holds up neither the driver nor another.

mod send;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_core::config::{Notify, Settings};
use berth_core::notify::{Next, Notifier, Told};
use berth_core::report::Problem;
use tokio::sync::watch;

use crate::driver::now_ms;
use crate::proc::monotonic_now;

/// How long one push may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Starts telling everybody who is declared. What each was told is kept in a file of `state`.
pub fn spawn(settings: &Settings, state: &Path, problems: &watch::Receiver<Vec<Problem>>) {
    for notify in &settings.notify {
        let path = state.join(format!("told-{}.json", notify.name));
        tokio::spawn(tell(notify.clone(), settings.node.clone(), path, problems.clone()));
    }
}

async fn tell(notify: Notify, node: String, path: PathBuf, mut problems: watch::Receiver<Vec<Problem>>) {
    let who = &notify.name;
    let mut notifier = Notifier::new(notify.rules, recall(&path));
    loop {
        notifier.observe(&problems.borrow_and_update().clone(), monotonic_now());
        let wait = match notifier.next(monotonic_now()) {
            Next::Push(event, problem) => {
                let push = Notifier::push(&node, event, problem.clone(), now_ms());
                let result = send::send(&notify.target, &push, DEADLINE).await;
                notifier.done(event, &problem, result.is_ok(), monotonic_now());
                let (event, key) = (event.as_str(), problem.key());
                match result {
                    Ok(()) => {
                        tracing::info!(who, "told {who}: {key} {event}");
                        if let Err(error) = keep(&path, notifier.told()) {
                            let path = path.display();
                            tracing::warn!(
                                "{path} can't be written, so {who} is told again after a restart: {error}"
                            );
                        }
                    }
                    Err(why) => tracing::warn!(who, "{who} can't be told that {key} {event}: {why}"),
                }
                continue;
            }
            Next::At(then) => Some(then.saturating_sub(monotonic_now())),
            Next::Nothing => None,
        };
        let later = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = later => {}
            changed = problems.changed() => if changed.is_err() { return },
        }
    }
}

/// What the target was told by an earlier berthd.
fn recall(path: &Path) -> Told {
    let read = fs::read(path).and_then(|text| serde_json::from_slice(&text).map_err(io::Error::other));
    read.unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!("{} can't be read, so what stands is told again: {error}", path.display());
        }
        Told::default()
    })
}

/// Not synced: what a power cut takes is told again.
fn keep(path: &Path, told: &Told) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(told)?)?;
    fs::rename(new, path)
}
