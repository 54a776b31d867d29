//! Many switches in a row, and what must not have come of them: failed allocations, and anything that grows or
//! stays behind in berthd, in the guest or on the cards.
//!
//! berthd's size is compared between two moments of rest: after a few switches, when caches, queues and pools
//! have their usual size, and after the last one.

mod traces;

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use berth_core::report::Outcome;

pub use traces::{Footprint, Process};

use crate::Berth;
use traces::{leftovers, servers};

/// What each of the two models holds on each card: more than half of it.
pub const EACH: &str = "14300MiB";

/// berthd may have grown by this much between the two moments of rest.
const MEMORY_GROWTH_KIB: i64 = 2048;

/// For a guest to come to rest: threads that wait for work end after 10 s without any.
const REST: Duration = Duration::from_secs(15);

/// How much, and how hard.
#[derive(Debug, Clone, Copy)]
pub struct Soak {
    /// Switches in all.
    pub switches: u32,
    /// How many of them come before the first look at berthd's size.
    pub warm_up: u32,
    /// Memory comes back after a random time of at most this, on each card another.
    pub linger: Duration,
    /// Draws those times.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// Switches that were done.
    pub switches: u32,
    /// Allocations that failed for lack of memory.
    pub failed_allocations: u64,
    /// File descriptors that berthd has more than after the warm-up.
    pub fd_growth: i64,
    /// Memory that berthd has of its own, more than after the warm-up.
    pub memory_growth_kib: i64,
    /// All that must not be, in words; empty is good.
    pub violations: Vec<String>,
}

impl fmt::Display for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "switches={} failed_allocations={} fd_growth={} memory_growth_kib={}",
            self.switches, self.failed_allocations, self.fd_growth, self.memory_growth_kib
        )
    }
}

/// A machine with two models that can't be resident together, `aeon` and `genesis`.
///
/// # Errors
/// It does not come up.
pub fn machine() -> Result<Berth> {
    let load = ["--load-time", "20ms"];
    Berth::builder().fake("aeon", EACH, &load).fake("genesis", EACH, &load).try_boot()
}

/// Switches back and forth. `progress` is told after each switch how many are done.
///
/// # Errors
/// A switch did not end as asked: nothing after it would mean anything.
pub fn soak(berth: &Berth, plan: &Soak, mut progress: impl FnMut(u32)) -> Result<Traces> {
    ensure!(plan.warm_up < plan.switches, "a warm-up of {} leaves nothing to measure", plan.warm_up);
    berth.switch("aeon");
    let linger = format!("{}ms", plan.linger.as_millis());
    berth.gpu(&["linger-random", &linger, &plan.seed.to_string()]);
    let process = Process::of_berthd(berth)?;
    let failed_before = berth.stats().failed;

    let mut warm = None;
    for done in 0..plan.switches {
        if done == plan.warm_up {
            warm = Some(process.at_rest()?);
        }
        let model = if done % 2 == 0 { "genesis" } else { "aeon" };
        let change = berth.change(&["switch", model]);
        if change.swap.as_ref().and_then(|swap| swap.outcome) != Some(Outcome::Done) {
            bail!("switch {} to {model} ended otherwise: {:#}", done + 1, change.last);
        }
        progress(done + 1);
    }
    let warm = warm.context("no look was taken after the warm-up")?;
    let last = if plan.switches % 2 == 1 { "genesis" } else { "aeon" };

    let mut violations = Vec::new();
    let stats = berth.stats();
    let failed_allocations = stats.failed - failed_before;
    for failure in stats.failures.iter().rev().take(usize::try_from(failed_allocations).unwrap_or(5)) {
        violations.push(format!("an allocation failed: {failure:?}"));
    }
    // A berthd that was started anew would look small and clean.
    process.still_runs(berth)?;
    let end = process.at_rest_within(REST, &warm)?;
    let fd_growth = end.descriptors - warm.descriptors;
    let memory_growth_kib = end.anonymous_kib - warm.anonymous_kib;
    if fd_growth > 0 {
        violations
            .push(format!("berthd has {fd_growth} more open files: {}", process.descriptors_in_words()?));
    }
    if memory_growth_kib > MEMORY_GROWTH_KIB {
        violations.push(format!("berthd's memory grew by {memory_growth_kib} KiB, from {warm:?} to {end:?}"));
    }
    if end.threads > warm.threads {
        violations.push(format!("berthd has {} threads and had {}", end.threads, warm.threads));
    }
    violations.extend(leftovers(berth, REST));
    let servers = servers(berth)?;
    if servers.len() != 1 {
        violations.push(format!("{last} alone should run, and there are {servers:?}"));
    }
    Ok(Traces { switches: plan.switches, failed_allocations, fd_growth, memory_growth_kib, violations })
}
