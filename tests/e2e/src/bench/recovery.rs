//! From a power cut back to service: how long berthd takes until it starts what served before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::bus::Bus;
use super::client::Client;
use crate::Berth;
use crate::soak::EACH;

/// For a boot and a start, so long that only one that never comes passes it.
const DEADLINE: Duration = Duration::from_secs(30);

/// Cuts the power so many times; each time, in nanoseconds, from systemd's start of berthd to its start of the model.
/// The GPUs answer at once and nothing has to be mounted, so all of it is berthd's and systemd's. `progress` is told
/// after each how many are done.
///
/// # Errors
/// It does not boot or serve again, or an allocation failed.
pub(super) fn measure(boots: u32, mut progress: impl FnMut(u32)) -> Result<Vec<u64>> {
    // Two that can't be resident together: only one may come back.
    let mut berth = Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &[]).try_boot()?;
    Client::new(&berth).change("switch", "genesis")?.ended()?;
    let mut starts = Vec::new();
    for done in 1..=boots {
        berth.cut();
        berth.boot();
        berth.wait_for_berthd(DEADLINE)?;
        berth.wait_serving("genesis", DEADLINE);
        let bus = Bus::connect(&berth)?;
        let began = bus.started("berthd.service")?;
        let started = bus.started("berth-model@genesis.service")?;
        starts.push(started.checked_sub(began).context("the model was started before berthd")?);
        ensure!(berth.serving() == ["genesis"], "after the boot {:?} serve", berth.serving());
        let stats = berth.stats();
        ensure!(stats.failed == 0, "{} allocations failed: {:?}", stats.failed, stats.failures);
        progress(done);
    }
    Ok(starts)
}
