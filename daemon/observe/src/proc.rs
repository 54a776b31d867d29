//! Processes and cgroups as the kernel tells them: who runs in a cgroup, which model a process belongs to.
//!
//! Everything is read when asked for and nothing is kept, save where cgroup2 is mounted. A process or a cgroup
//! that is gone is no error: it is absent from the answer. What can't be read is unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use berth_core::bytes::Bytes;
use berth_core::facts::{Brought, HostMemory, Known, Moment};
use berth_core::name::ModelName;
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use procfs::process::Process;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::scope::Scope;

/// The cgroups of a model: of its unit, and of what else runs for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Groups {
    /// Each as systemd names it (`ControlGroup`). Those below count too.
    pub paths: Vec<String>,
    /// The user whose processes were moved there when they had their sockets already: a socket keeps the cgroup in which it
    /// was made, so those are known by this.
    pub moved: Option<u32>,
}

impl Groups {
    /// This cgroup alone; none where it is empty.
    pub fn of(control_group: String) -> Self {
        let paths = Some(control_group).filter(|group| !group.is_empty()).into_iter().collect();
        Self { paths, moved: None }
    }
}

/// What is known of a running process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its start time in clock ticks since boot, which tells it from another one with the same pid.
    pub started: u64,
    /// Its program's name (`comm`, at most 15 bytes).
    pub program: String,
    /// The model in whose unit's cgroup it runs.
    pub model: Option<ModelName>,
    /// The unit of a process that belongs to no model, as [`GpuProcess`](berth_core::facts::GpuProcess) has it.
    pub unit: Option<String>,
}

/// The time on `CLOCK_MONOTONIC`, which systemd's monotonic stamps use too.
pub fn monotonic_now() -> Moment {
    // The clock exists on every Linux; the call has no other way to fail.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Moment::ZERO, Moment::from)
}

/// What can be told of a process; None when it is gone.
pub fn describe(pid: u32) -> Option<Described> {
    // The open /proc folder stays that of this very process, should its pid be used again meanwhile.
    let process = Process::new(i32::try_from(pid).ok()?).ok()?;
    let stat = process.stat().ok()?;
    let group = control_group(&process).unwrap_or_default();
    let model = model_in(&group, units_root());
    let unit = if model.is_none() { unit_in(&group, systemd_root()) } else { None };
    Some(Described { started: stat.starttime, program: stat.comm, model, unit })
}

/// What a process has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Its start time in clock ticks since boot.
    pub started: u64,
    /// Processor time, its own and the kernel's for it.
    pub cpu: Duration,
    /// Pages for which it had to wait for a disk.
    pub faulted: Bytes,
    /// Its resident memory.
    pub resident: Bytes,
}

/// The start time of a process in clock ticks since boot; None when it is gone.
pub fn started(pid: u32) -> Option<u64> {
    Some(used(pid)?.started)
}

/// What a process has done so far; None when it is gone.
pub fn used(pid: u32) -> Option<Used> {
    // By hand and with one read, since every process of a cgroup is asked at every reading: a third of the time
    // that the crate takes. The line has about 400 bytes at most.
    let mut buffer = [0; 1024];
    let length = File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut buffer).ok()?;
    let stat = &buffer[..length];
    // The name, in parentheses, may hold anything. After it comes field 3.
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 2;
    let fields: Vec<&[u8]> = stat.get(after_name..)?.split(|byte| *byte == b' ').collect();
    let field = |number: usize| std::str::from_utf8(fields.get(number - 3)?).ok()?.trim().parse::<u64>().ok();
    let (page, ticks) = units();
    Some(Used {
        started: field(22)?,
        cpu: Duration::from_millis((field(14)? + field(15)?) * 1000 / ticks),
        faulted: Bytes(field(12)? * page),
        resident: Bytes(field(24)? * page),
    })
}

/// Bytes in a page, and clock ticks in a second.
fn units() -> (u64, u64) {
    static UNITS: OnceLock<(u64, u64)> = OnceLock::new();
    // Neither can be refused; where one were, what holds on nearly every machine.
    let value = |of, otherwise| {
        sysconf(of).ok().flatten().and_then(|value| u64::try_from(value).ok()).unwrap_or(otherwise)
    };
    *UNITS.get_or_init(|| (value(SysconfVar::PAGE_SIZE, 4096), value(SysconfVar::CLK_TCK, 100)))
}

/// The user that a process runs as; None when it is gone.
pub fn uid_of(pid: u32) -> Option<u32> {
    // Not who owns its folder: that is root for one that keeps its memory to itself.
    Some(Process::new(i32::try_from(pid).ok()?).ok()?.status().ok()?.euid)
}

/// The name of a process's program; None when it is gone.
pub fn program_of(pid: u32) -> Option<String> {
    Some(Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?.comm)
}

/// The model in whose unit's cgroup a process runs; None for a foreign process and one that is gone.
pub fn model_of(pid: u32) -> Option<ModelName> {
    model_in(&control_group_of(pid)?, units_root())
}

/// The processes of models' units that run now, by model.
pub fn of_models() -> BTreeMap<ModelName, BTreeMap<u32, Used>> {
    let mut found: BTreeMap<ModelName, BTreeMap<u32, Used>> = BTreeMap::new();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        if let (Some(model), Some(used)) = (model_of(pid), used(pid)) {
            found.entry(model).or_default().insert(pid, used);
        }
    }
    found
}

/// The path of a process's cgroup in the unified hierarchy, as systemd's `ControlGroup` has it.
pub fn control_group_of(pid: u32) -> Option<String> {
    control_group(&Process::new(i32::try_from(pid).ok()?).ok()?)
}

fn control_group(process: &Process) -> Option<String> {
    let groups = process.cgroups().ok()?.0;
    let unified = groups.iter().find(|group| group.hierarchy == 0);
    // Where systemd keeps its tree in a version 1 hierarchy of its own, every process is at the unified root.
    let legacy = || groups.iter().find(|group| group.controllers.iter().any(|name| name == "name=systemd"));
    match unified {
        Some(group) if group.pathname != "/" => Some(group.pathname.clone()),
        _ => legacy().or(unified).map(|group| group.pathname.clone()),
    }
}

/// The cgroup below which Berth's own systemd keeps its units.
fn units_root() -> &'static str {
    static ROOT: OnceLock<String> = OnceLock::new();
    ROOT.get_or_init(|| Scope::this().control_group(systemd_root()))
}

/// The resources of which Berth's own systemd can give a share to its units: `cpuset`, `memory` … The kernel may lack one,
/// and a user's systemd has what PID 1 hands on to it.
pub fn controllers() -> Known<BTreeSet<String>> {
    let Some(mount) = cgroup2_mount() else {
        return Known::Unknown("no cgroup2 file system is mounted".to_owned());
    };
    let file = folder(mount, units_root()).join("cgroup.controllers");
    match std::fs::read_to_string(&file) {
        Ok(all) => Known::Value(all.split_whitespace().map(str::to_owned).collect()),
        Err(error) => Known::Unknown(format!("{} can't be read: {error}", file.display())),
    }
}

/// The cgroup below which systemd, PID 1, keeps its units: usually the root, written as an empty string.
fn systemd_root() -> &'static str {
    static ROOT: OnceLock<String> = OnceLock::new();
    ROOT.get_or_init(|| {
        let path = control_group_of(1).unwrap_or_default();
        path.strip_suffix("/init.scope").unwrap_or_default().to_owned()
    })
}

/// The model to whose unit or slice a cgroup belongs. Only slices may stand between these and their systemd: another user's
/// systemd and containers can name their units as they like, and theirs lie below a service or a scope.
fn model_in(control_group: &str, units_root: &str) -> Option<ModelName> {
    let of_unit = below_slices(control_group, units_root).next().and_then(ModelName::from_unit);
    of_unit.or_else(|| {
        let below = control_group.strip_prefix(units_root)?.strip_prefix(SLICES)?;
        ModelName::from_slice(below.split('/').next()?)
    })
}

/// Below systemd's own cgroup, where the slices of models are: one for each model whose container docker runs.
const SLICES: &str = "/berth.slice/berth-model.slice/";

/// The cgroup of a model's slice, in which docker runs its container.
pub fn slice_of(model: &ModelName) -> String {
    format!("{}{SLICES}{}", units_root(), model.slice())
}

/// Whether a cgroup is a slice's own.
pub fn is_slice(control_group: &str) -> bool {
    control_group.rsplit('/').next().is_some_and(ends_as_slice)
}

/// The models whose slices are there.
pub fn with_slices() -> Vec<ModelName> {
    let Some(mount) = cgroup2_mount() else { return Vec::new() };
    let entries = std::fs::read_dir(folder(mount, &format!("{}{SLICES}", units_root())));
    let names = entries.into_iter().flatten().flatten();
    names.filter_map(|entry| ModelName::from_slice(entry.file_name().to_str()?)).collect()
}

/// The service or scope to which a cgroup belongs; below a user's own systemd with the unit there.
fn unit_in(control_group: &str, systemd_root: &str) -> Option<String> {
    // systemd puts `_` before a name that the kernel would take for a file of its own.
    let unit = |part: &str| {
        let name = part.strip_prefix('_').unwrap_or(part);
        let ends = [".service", ".scope"].into_iter().any(|end| name.ends_with(end));
        ends.then(|| name.to_owned())
    };
    let mut parts = below_slices(control_group, systemd_root);
    let outer = unit(parts.next()?)?;
    let inner = if outer.starts_with("user@") { parts.next().and_then(unit) } else { None };
    Some(inner.map_or(outer.clone(), |inner| format!("{outer}/{inner}")))
}

/// The parts of a cgroup's path below systemd's own, its slices left out.
fn below_slices<'a>(control_group: &'a str, systemd_root: &str) -> impl Iterator<Item = &'a str> {
    let below = control_group.strip_prefix(systemd_root).and_then(|path| path.strip_prefix('/'));
    below.unwrap_or_default().split('/').filter(|part| !ends_as_slice(part))
}

fn ends_as_slice(part: &str) -> bool {
    Path::new(part).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("slice"))
}

/// The start times of these processes, in clock ticks since boot.
pub fn started_of(used: &Known<BTreeMap<u32, Used>>) -> Known<BTreeMap<u32, u64>> {
    match used {
        Known::Value(used) => Known::Value(used.iter().map(|(pid, used)| (*pid, used.started)).collect()),
        Known::Unknown(why) => Known::Unknown(why.clone()),
    }
}

/// What these processes, those of these cgroups, have brought into memory.
pub fn brought_by(used: &Known<BTreeMap<u32, Used>>, groups: &Groups) -> Known<Brought> {
    match used {
        Known::Value(used) => Known::Value(Brought {
            resident: used.values().map(|used| used.resident).sum(),
            faulted: used.values().map(|used| used.faulted).sum(),
            charged: groups.paths.iter().filter_map(|group| charged(group)).sum(),
            pinned: pinned(used.keys().filter_map(|pid| held(*pid))),
        }),
        Known::Unknown(why) => Known::Unknown(why.clone()),
    }
}

/// What these processes keep in memory so that it can't be given back: anonymous, shared and locked pages.
fn pinned(processes: impl Iterator<Item = Held>) -> Bytes {
    let (mut own, mut shared) = (Bytes::ZERO, Bytes::ZERO);
    for held in processes {
        own = own.plus(held.anonymous);
        // Processes of one server share segments and map the same file: each counts it, and it is there once.
        shared = shared.max(held.shared.plus(held.locked.min(held.of_files)));
    }
    own.plus(shared)
}

/// What of a process's memory is resident, by kind, and how much it has locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Held {
    anonymous: Bytes,
    of_files: Bytes,
    shared: Bytes,
    locked: Bytes,
}

/// What a process holds; None when it is gone.
fn held(pid: u32) -> Option<Held> {
    // By hand and with one read, as in `used`. What is asked for is within the first kilobyte, after a list of groups.
    let mut buffer = [0; 4096];
    let length = File::open(format!("/proc/{pid}/status")).ok()?.read(&mut buffer).ok()?;
    Some(held_by(&String::from_utf8_lossy(&buffer[..length])))
}

fn held_by(status: &str) -> Held {
    let mut held = Held::default();
    for (key, value) in status.lines().filter_map(|line| line.split_once(':')) {
        let place = match key {
            "VmLck" => &mut held.locked,
            "RssAnon" => &mut held.anonymous,
            "RssFile" => &mut held.of_files,
            "RssShmem" => &mut held.shared,
            _ => continue,
        };
        let kibibytes = value.trim().strip_suffix(" kB").and_then(|number| number.trim().parse::<u64>().ok());
        *place = Bytes(kibibytes.unwrap_or_default().saturating_mul(1024));
    }
    held
}

/// What a cgroup is charged, page cache included; None where the memory controller is off for it.
fn charged(control_group: &str) -> Option<Bytes> {
    let mount = cgroup2_mount().filter(|_| !control_group.is_empty())?;
    let text = std::fs::read_to_string(folder(mount, control_group).join("memory.current")).ok()?;
    text.trim().parse().ok().map(Bytes)
}

/// The processes in these cgroups and in those below them, each with what it has done so far. One that is gone has none.
pub fn cgroup_processes(groups: &Groups) -> Known<BTreeMap<u32, Used>> {
    let mut all = BTreeMap::new();
    for group in &groups.paths {
        match processes_in(group) {
            Known::Value(processes) => all.extend(processes),
            unknown @ Known::Unknown(_) => return unknown,
        }
    }
    Known::Value(all)
}

fn processes_in(control_group: &str) -> Known<BTreeMap<u32, Used>> {
    let Some(mount) = cgroup2_mount() else {
        return Known::Unknown(
            "no cgroup2 file system is mounted; boot with systemd.unified_cgroup_hierarchy=1".to_owned(),
        );
    };
    let top = folder(mount, control_group);
    match processes_below(&top) {
        Ok(processes) => Known::Value(processes),
        Err(error) => Known::Unknown(format!("the processes in {} can't be read: {error}", top.display())),
    }
}

fn processes_below(top: &Path) -> io::Result<BTreeMap<u32, Used>> {
    // A process that moves from a folder not yet read into one already read is missed. So an empty answer counts
    // only when the kernel agrees with it.
    for _ in 0..3 {
        let mut processes = BTreeMap::new();
        for dir in folders(top)? {
            for line in lines(&dir.join("cgroup.procs"))?.lines() {
                match line.parse() {
                    Ok(0) => {
                        return Err(io::Error::other("one of them belongs to another pid namespace"));
                    }
                    Ok(pid) => processes.extend(used(pid).map(|used| (pid, used))),
                    Err(_) => return Err(io::Error::other(format!("`{line}` is no process id"))),
                }
            }
        }
        if !processes.is_empty() || !lines(&top.join("cgroup.events"))?.contains("populated 1") {
            return Ok(processes);
        }
    }
    Err(io::Error::other("the kernel says that there are some, and lists none"))
}

/// The kernel's ids of these cgroups and of those below them: what it calls a socket's cgroup. One that is gone has none.
pub fn cgroup_ids(groups: &Groups) -> BTreeSet<u64> {
    let Some(mount) = cgroup2_mount() else {
        return BTreeSet::new();
    };
    let dirs = groups.paths.iter().flat_map(|group| folders(&folder(mount, group)).unwrap_or_default());
    dirs.filter_map(|dir| Some(dir.metadata().ok()?.ino())).collect()
}

/// The kernel's id of this cgroup alone; None when it is gone.
pub fn cgroup_id(control_group: &str) -> Option<u64> {
    Some(folder(cgroup2_mount()?, control_group).metadata().ok()?.ino())
}

/// The unit to which the cgroup with this id of the kernel's belongs; None when it is gone, or belongs to none.
pub fn unit_of_cgroup(id: u64) -> Option<String> {
    let mount = cgroup2_mount()?;
    let is_it = |dir: &PathBuf| dir.metadata().is_ok_and(|metadata| metadata.ino() == id);
    let found = folders(mount).ok()?.into_iter().find(is_it)?;
    let below = found.strip_prefix(mount).ok()?;
    unit_in(&format!("/{}", below.display()), systemd_root())
}

/// The host's memory now.
pub fn host_memory() -> Known<HostMemory> {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(memory);
    match system {
        Ok(system) if system.total_memory() > 0 => {
            let (total, available) = (Bytes(system.total_memory()), Bytes(system.available_memory()));
            Known::Value(HostMemory { read_at: monotonic_now(), total, available })
        }
        Ok(_) => Known::Unknown("/proc/meminfo does not tell the memory's size".to_owned()),
        Err(error) => Known::Unknown(format!("the host's memory can't be read: {error}")),
    }
}

/// Where the cgroup2 file system is mounted, as /proc/self/mountinfo tells.
fn cgroup2_mount() -> Option<&'static Path> {
    static MOUNT: OnceLock<PathBuf> = OnceLock::new();
    if MOUNT.get().is_none() {
        let mounts = Process::myself().ok()?.mountinfo().ok()?;
        let whole = mounts.into_iter().find(|mount| mount.fs_type == "cgroup2" && mount.root == "/")?;
        return Some(MOUNT.get_or_init(|| whole.mount_point));
    }
    MOUNT.get().map(PathBuf::as_path)
}

fn folder(mount: &Path, control_group: &str) -> PathBuf {
    mount.join(control_group.trim_start_matches('/'))
}

/// A cgroup's folder and all those below it; none when it is gone.
fn folders(top: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut left = vec![top.to_owned()];
    while let Some(dir) = left.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        found.push(dir);
        for entry in entries {
            match entry {
                Ok(entry) if entry.file_type().is_ok_and(|kind| kind.is_dir()) => {
                    left.push(entry.path());
                }
                Ok(_) => {}
                Err(error) if is_gone(&error) => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(found)
}

/// The text of a cgroup's file; empty when the cgroup is gone.
fn lines(file: &Path) -> io::Result<String> {
    match std::fs::read_to_string(file) {
        // The processes of a threaded cgroup are listed by the one above it.
        Err(error) if is_gone(&error) || error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
            Ok(String::new())
        }
        other => other,
    }
}

/// Whether the cgroup is gone: its folder, or what was opened in it a moment before.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

#[cfg(test)]
#[path = "proc/tests.rs"]
mod tests;
