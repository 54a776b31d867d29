//! Looks for services outside Berth that are enabled for boot, and tells the driver; core knows which are rivals.

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::driver::Message;
use crate::systemd::{Change, Systemd};

/// Before the first look. Listing unit files keeps systemd from all else for 0.1 s and more, and what home waits for
/// at a boot is systemd.
const FIRST: Duration = Duration::from_secs(2);
/// Between two looks. Who enables or disables a unit has systemd load all units anew, and that is seen at once.
const AGAIN: Duration = Duration::from_secs(300);
/// After systemd has loaded its units anew: installing a package makes it do so several times.
const SETTLE: Duration = Duration::from_millis(500);

/// Starts looking. What is found goes to `driver`.
pub fn spawn(systemd: Systemd, driver: mpsc::Sender<Message>) {
    tokio::spawn(look(systemd, driver));
}

async fn look(systemd: Systemd, driver: mpsc::Sender<Message>) {
    let mut changes = systemd.changes();
    let mut next = Instant::now() + FIRST;
    loop {
        tokio::select! {
            () = sleep_until(next) => {
                next = Instant::now() + AGAIN;
                match systemd.enabled().await {
                    Ok(services) => {
                        if driver.send(Message::Enabled(services)).await.is_err() {
                            return;
                        }
                    }
                    // The last that was known stays.
                    Err(error) => tracing::warn!(%error, "rivals can't be looked for"),
                }
            }
            change = changes.recv() => match change {
                Ok(Change::Reloading(false) | Change::Back) | Err(RecvError::Lagged(_)) => {
                    next = next.min(Instant::now() + SETTLE);
                }
                Ok(_) => {}
                Err(RecvError::Closed) => return,
            },
        }
    }
}
