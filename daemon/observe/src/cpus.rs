//! The processors as the kernel describes them: which are online, which share a core, which kinds of cores there are.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use berth_core::cpus::list;
use berth_core::facts::{CoreKind, Cpu, Known};

/// The processors that are online, by their number.
pub fn online() -> Known<Vec<Cpu>> {
    below(Path::new("/sys/devices"))
}

/// The same, of another `/sys/devices`.
pub fn below(devices: &Path) -> Known<Vec<Cpu>> {
    let cpus = devices.join("system/cpu");
    let file = cpus.join("online");
    let online = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) => return Known::Unknown(format!("{} can't be read: {error}", file.display())),
    };
    let online = match list(&online) {
        Ok(online) if !online.is_empty() => online,
        Ok(_) => return Known::Unknown(format!("{} names no processor", file.display())),
        Err(error) => return Known::Unknown(format!("{} can't be read: {error}", file.display())),
    };
    let economical = economical(devices, &cpus, &online);
    Known::Value(
        online
            .iter()
            .map(|id| Cpu {
                id: *id,
                core: core(&cpus, *id, &online),
                kind: if economical.contains(id) { CoreKind::Efficiency } else { CoreKind::Performance },
            })
            .collect(),
    )
}

/// The lowest online number among the threads of this processor's core; its own where the kernel tells nothing.
fn core(cpus: &Path, id: u32, online: &[u32]) -> u32 {
    let topology = cpus.join(format!("cpu{id}/topology"));
    // The second is what it was called before Linux 5.7.
    let threads =
        ["core_cpus_list", "thread_siblings_list"].into_iter().find_map(|name| listed(&topology.join(name)));
    threads.unwrap_or_default().into_iter().find(|thread| online.contains(thread)).unwrap_or(id)
}

/// A core is economical when it does less than three quarters of what the fastest does. Cores of one kind differ by a
/// tenth at most, those that may clock highest being picked out of a batch.
const FAST: u64 = 75;

/// The processors of economical cores; none on a machine whose cores are of one kind.
fn economical(devices: &Path, cpus: &Path, online: &[u32]) -> BTreeSet<u32> {
    // Intel's hybrids count each kind's events by a device of its own. A third, on some, is for still slower cores.
    let of_kind = |name: &str| listed(&devices.join(name).join("cpus"));
    if of_kind("cpu_core").is_some_and(|fast| !fast.is_empty()) {
        let slow = ["cpu_atom", "cpu_lowpower"].into_iter().filter_map(of_kind).flatten();
        return slow.filter(|cpu| online.contains(cpu)).collect();
    }
    // Arm's kinds differ by capacity, as some newer x86 do; AMD's dense cores by how high they may clock.
    for name in ["cpu_capacity", "cpufreq/cpuinfo_max_freq"] {
        let speed = |id: &u32| Some((*id, number(&cpus.join(format!("cpu{id}")).join(name))?));
        let Some(speeds) = online.iter().map(speed).collect::<Option<Vec<(u32, u64)>>>() else { continue };
        let fastest = speeds.iter().map(|(_, speed)| *speed).max().unwrap_or_default();
        let is_slow = |speed: u64| speed.saturating_mul(100) < fastest.saturating_mul(FAST);
        let slow: BTreeSet<u32> =
            speeds.into_iter().filter(|(_, speed)| is_slow(*speed)).map(|(id, _)| id).collect();
        if !slow.is_empty() {
            return slow;
        }
    }
    BTreeSet::new()
}

fn listed(file: &Path) -> Option<Vec<u32>> {
    list(&fs::read_to_string(file).ok()?).ok()
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
#[path = "cpus/tests.rs"]
mod tests;
