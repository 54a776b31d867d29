//! What berthd takes of a core while it waits for memory, and when nothing goes on.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::switches::Switcher;
use crate::Berth;
use crate::soak::Process;

/// From the request until the victim is gone for sure and only waiting is left; and how long before the end of
/// the lingering the last look is.
const MARGIN: Duration = Duration::from_millis(1500);

pub(super) struct Waiting {
    /// Of one core, while memory lingers.
    pub lingering_percent: f64,
    /// Of one core, with a model that serves.
    pub idle_percent: f64,
    /// All of berthd that is resident when nothing goes on, in KiB.
    pub idle_kib: i64,
    /// How long was looked at, each.
    pub seconds: f64,
}

/// Lets memory linger for so long and takes berthd's CPU time meanwhile.
pub(super) fn measure(berth: &Berth, switcher: &Switcher, linger: Duration) -> Result<Waiting> {
    let look = linger.saturating_sub(MARGIN * 2);
    ensure!(!look.is_zero(), "to measure the waiting, memory must linger longer than {linger:?}");
    let process = Process::of_berthd(berth)?;
    thread::sleep(MARGIN);
    let idle_percent = percent(&process, look)?;
    let idle_kib = process.at_rest()?.resident_kib;

    berth.gpu(&["linger", &format!("{}ms", linger.as_millis())]);
    let following = switcher.client().change("switch", switcher.next())?;
    thread::sleep(MARGIN);
    let lingering_percent = percent(&process, look)?;
    let lingering = berth.stats().devices.iter().filter(|card| !card.lingering.is_empty()).count();
    ensure!(lingering == 2, "the wait was over before it was measured");
    following.ended()?;
    Ok(Waiting { lingering_percent, idle_percent, idle_kib, seconds: look.as_secs_f64() })
}

fn percent(process: &Process, time: Duration) -> Result<f64> {
    let (start, before) = (Instant::now(), process.cpu_time()?);
    thread::sleep(time);
    let (elapsed, taken) = (start.elapsed(), process.cpu_time()?.saturating_sub(before));
    Ok(taken.as_secs_f64() / elapsed.as_secs_f64() * 100.0)
}
