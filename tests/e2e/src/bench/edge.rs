//! S8: a model at the edge of memory is restarted again and again, and a start before the last one's memory is back
//! would run out of memory at once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_core::report::Step;

use super::client::Client;
use crate::{Berth, step_ms};

/// In the story memory lingers up to three seconds. A thousand such waits would take half an hour, so they are
/// shorter by this.
pub(super) const SCALE: u32 = 10;

const LINGER: Duration = Duration::from_secs(3);

/// On each card: 99% of the 15,923 MiB that a card of 16,311 MiB has without what its driver keeps.
const EACH: &str = "15763MiB";

/// What such a model leaves of a card is less than Berth keeps free by itself.
const MAIN: &str = "node = \"tower\"\n[gpu]\nheadroom = \"64 MiB\"\n";

/// Restarts it so many times; how long each wait was, in nanoseconds, from the last process's end to the proof that
/// its memory is free. `progress` is told after each how many are done.
///
/// # Errors
/// A restart did not end as asked, or an allocation failed.
pub(super) fn measure(restarts: u32, mut progress: impl FnMut(u32)) -> Result<Vec<u64>> {
    let berth = Berth::builder().main(MAIN).fake("llama70b", EACH, &[]).try_boot()?;
    let client = Client::new(&berth);
    client.change("switch", "llama70b")?.ended()?;
    let linger = format!("{}ms", (LINGER / SCALE).as_millis());
    berth.gpu(&["linger-random", &linger, "8"]);
    let mut waits = Vec::new();
    for done in 1..=restarts {
        let (_, swap) = client.change("restart", "llama70b")?.ended()?;
        let wait = step_ms(&swap, Step::Released).context("a restart that waited for no memory")?;
        waits.push(wait * 1_000_000);
        progress(done);
    }
    let stats = berth.stats();
    ensure!(stats.failed == 0, "{} allocations failed: {:?}", stats.failed, stats.failures);
    ensure!(
        stats.releases.len() == 2 * restarts as usize,
        "{restarts} restarts on two cards, and {} releases",
        stats.releases.len()
    );
    Ok(waits)
}
