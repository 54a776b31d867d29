//! What a server runs within: its processors, how much it may lock in memory, its priority. Set on this process, which
//! becomes the server.

use std::fmt;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use berth_launch::Launch;

use super::Failure;

/// Sets what the ticket says, or tells what can't be had.
pub(crate) fn set(launch: &Launch) -> Result<(), Failure> {
    if !launch.cpus.is_empty() {
        run_on(&launch.cpus)?;
    }
    if let Some(bytes) = launch.memlock {
        lock_at_most(bytes)?;
    }
    launch.nice.map_or(Ok(()), at_priority)
}

fn run_on(cpus: &[u32]) -> Result<(), Failure> {
    let this = Pid::from_raw(0);
    let failed = |errno: Errno| {
        let text = format!(
            "the server can't be bound to the processors {}: {}",
            Numbers(cpus),
            match errno {
                Errno::EINVAL =>
                    "none of them is online and allowed for the unit (`systemctl show -p AllowedCPUs`)",
                other => other.desc(),
            }
        );
        Failure::cannot_run(errno, text)
    };
    let mut wanted = CpuSet::new();
    for cpu in cpus {
        wanted.set(usize::try_from(*cpu).unwrap_or(usize::MAX)).map_err(failed)?;
    }
    sched_setaffinity(this, &wanted).map_err(failed)?;
    // The kernel leaves out those that can't be had as long as one is left.
    let got = sched_getaffinity(this).map_err(failed)?;
    let has = |cpu: &u32| usize::try_from(*cpu).is_ok_and(|cpu| got.is_set(cpu).unwrap_or(false));
    let missing: Vec<u32> = cpus.iter().copied().filter(|cpu| !has(cpu)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let text = format!(
        "of the processors {} that the server is to run on, {} can't be had: offline, or not allowed for the unit \
         (`systemctl show -p AllowedCPUs`)",
        Numbers(cpus),
        Numbers(&missing)
    );
    Err(Failure::cannot_run(Errno::EINVAL, text))
}

fn lock_at_most(bytes: u64) -> Result<(), Failure> {
    let failed = |errno: Errno| {
        let text = format!("how much the server may lock in memory can't be set: {}", errno.desc());
        Failure::cannot_run(errno, text)
    };
    let (_, most) = getrlimit(Resource::RLIMIT_MEMLOCK).map_err(failed)?;
    if most != RLIM_INFINITY && most < bytes {
        if may_lock_anything() {
            return Ok(());
        }
        let text = format!(
            "the server is to lock {bytes} bytes in memory, and the unit allows {most}: raise LimitMEMLOCK= in a \
             drop-in of berth-model@.service; for a user's own Berth root raises it in one of user@.service"
        );
        return Err(Failure::cannot_run(Errno::EPERM, text));
    }
    setrlimit(Resource::RLIMIT_MEMLOCK, bytes, bytes).map_err(failed)
}

/// Whether no limit counts for this process and the server that it becomes: `AmbientCapabilities=CAP_IPC_LOCK`.
fn may_lock_anything() -> bool {
    const CAP_IPC_LOCK: u64 = 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ambient = status.lines().find_map(|line| line.strip_prefix("CapAmb:"));
    let ambient = ambient.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    ambient.is_some_and(|set| set >> CAP_IPC_LOCK & 1 == 1)
}

fn at_priority(nice: i32) -> Result<(), Failure> {
    // The kernel would take the nearest.
    if !(-20..=19).contains(&nice) {
        return Err(Failure::refused(format!("nice {nice} is no priority: they go from -20 to 19")));
    }
    rustix::process::setpriority_process(None, nice).map_err(|error| {
        let errno = Errno::from_raw(error.raw_os_error());
        let why = match errno {
            Errno::EACCES | Errno::EPERM => {
                "the unit does not allow it: lower LimitNICE= in a drop-in of berth-model@.service; for a user's own \
                 Berth root lowers it in one of user@.service"
            }
            other => other.desc(),
        };
        Failure::cannot_run(errno, format!("the server can't run at nice {nice}: {why}"))
    })
}

/// Processors in a row.
struct Numbers<'a>(&'a [u32]);

impl fmt::Display for Numbers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&all.join(","))
    }
}
