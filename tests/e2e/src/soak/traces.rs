//! What a long run leaves: berthd's size, and processes, units and memory that should be gone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::Berth;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Looks at one moment of rest: a single one may fall on a reading of the GPUs.
const LOOKS: usize = 7;

/// berthd's process, seen from outside the guest.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its number in the guest.
    pub pid: u32,
    proc: PathBuf,
}

/// How large berthd is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Open files.
    pub descriptors: i64,
    /// Threads.
    pub threads: i64,
    /// Anonymous memory in KiB: heap, stacks and what it changed of its program; not pages of files, which the
    /// kernel maps in and out as it likes.
    pub anonymous_kib: i64,
    /// All that is resident, in KiB: pages of its program too.
    pub resident_kib: i64,
}

impl Process {
    /// The berthd that runs now.
    ///
    /// # Errors
    /// None does, or /proc can't be read.
    pub fn of_berthd(berth: &Berth) -> Result<Process> {
        let pid: u32 =
            berth.property("berthd.service", "MainPID").parse().context("berthd has no process")?;
        ensure!(pid > 0, "berthd does not run");
        let proc = guest_proc(berth).join(pid.to_string());
        Ok(Process { pid, proc })
    }

    /// Says so where berthd was started anew since.
    ///
    /// # Errors
    /// It was.
    pub fn still_runs(&self, berth: &Berth) -> Result<()> {
        let (pid, restarts) =
            (berth.property("berthd.service", "MainPID"), berth.property("berthd.service", "NRestarts"));
        if pid != self.pid.to_string() || restarts != "0" {
            bail!("berthd was process {} and is {pid} now, after {restarts} restarts", self.pid);
        }
        Ok(())
    }

    /// CPU time that it has taken since its start, user and system, as /proc/PID/stat counts it.
    ///
    /// # Errors
    /// It is gone.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = self.read("stat")?;
        // The command's name may hold anything, so count from its closing bracket: the state is field 3.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok());
        let ticks = ticks(14).zip(ticks(15)).context("a stat without times")?;
        let a_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
        Ok(Duration::from_secs_f64((ticks.0 + ticks.1) as f64 / a_second as f64))
    }

    /// Its size now: the fewest files and threads of several looks, and the median of its memory.
    ///
    /// # Errors
    /// It is gone.
    pub fn at_rest(&self) -> Result<Footprint> {
        let mut looks = Vec::new();
        for _ in 0..LOOKS {
            thread::sleep(PAUSE);
            looks.push(self.look()?);
        }
        looks.sort_by_key(|look| look.anonymous_kib);
        Ok(Footprint {
            descriptors: looks.iter().map(|look| look.descriptors).min().unwrap_or_default(),
            threads: looks.iter().map(|look| look.threads).min().unwrap_or_default(),
            anonymous_kib: looks[LOOKS / 2].anonymous_kib,
            resident_kib: looks[LOOKS / 2].resident_kib,
        })
    }

    /// The same, once it has no more files and threads than before; or what it has at the deadline.
    ///
    /// # Errors
    /// It is gone.
    pub fn at_rest_within(&self, deadline: Duration, before: &Footprint) -> Result<Footprint> {
        let start = Instant::now();
        loop {
            let now = self.at_rest()?;
            let grown = now.descriptors > before.descriptors || now.threads > before.threads;
            if !grown || start.elapsed() >= deadline {
                return Ok(now);
            }
        }
    }

    fn look(&self) -> Result<Footprint> {
        let count = |folder| -> Result<i64> {
            let path = self.proc.join(folder);
            let entries = fs::read_dir(&path).with_context(|| format!("can't read {}", path.display()))?;
            Ok(i64::try_from(entries.count())?)
        };
        let rollup = self.read("smaps_rollup")?;
        let kib = |key: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<i64>().ok())
        };
        // What was swapped out is its own, too.
        let anonymous_kib =
            kib("Anonymous").context("a smaps_rollup without Anonymous")? + kib("Swap").unwrap_or_default();
        let resident_kib = kib("Rss").context("a smaps_rollup without Rss")?;
        Ok(Footprint { descriptors: count("fd")?, threads: count("task")?, anonymous_kib, resident_kib })
    }

    /// What its open files are, with how many there are of each.
    ///
    /// # Errors
    /// It is gone.
    pub fn descriptors_in_words(&self) -> Result<String> {
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for entry in fs::read_dir(self.proc.join("fd"))?.flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
            let kind = target.split(":[").next().unwrap_or_default().to_owned();
            *kinds.entry(kind).or_default() += 1;
        }
        Ok(kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", "))
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.proc.join(name);
        fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
    }
}

fn guest_proc(berth: &Berth) -> PathBuf {
    berth.sandbox().root().join("proc")
}

/// Zombies that stay, units that failed or should be forgotten, memory that nobody living holds.
pub(super) fn leftovers(berth: &Berth, deadline: Duration) -> Vec<String> {
    let start = Instant::now();
    loop {
        let found = look_for_leftovers(berth);
        // Memory lingers, and systemd reaps when it gets round to it.
        if found.is_empty() || start.elapsed() >= deadline {
            return found;
        }
        thread::sleep(PAUSE);
    }
}

fn look_for_leftovers(berth: &Berth) -> Vec<String> {
    let mut found = Vec::new();
    for (pid, name, state) in processes(&guest_proc(berth)) {
        if state == 'Z' {
            found.push(format!("process {pid} ({name}) has ended and nobody reaps it"));
        }
    }
    for device in berth.stats().devices {
        if device.held.len() != 1 || !device.lingering.is_empty() {
            found.push(format!(
                "GPU {} is held by {:?} and {:?}",
                device.index, device.held, device.lingering
            ));
        }
    }
    let units =
        berth.systemctl(&["list-units", "--failed", "--all", "--plain", "--no-legend", "--no-pager"]).stdout;
    found.extend(units.lines().map(|line| format!("a unit failed: {line}")));
    let jobs = berth.systemctl(&["list-jobs", "--no-legend", "--no-pager"]).stdout;
    found.extend(
        jobs.lines().filter(|line| line.contains("berth")).map(|line| format!("a job waits: {line}")),
    );
    found
}

/// Model servers and launchers that run in the guest: number and name.
pub(super) fn servers(berth: &Berth) -> Result<Vec<(u32, String)>> {
    let all = processes(&guest_proc(berth));
    ensure!(!all.is_empty(), "the guest's processes can't be seen");
    let ours = |name: &str| ["fakellm", "berth-launch", "berthctl"].contains(&name);
    Ok(all.into_iter().filter(|(_, name, _)| ours(name)).map(|(pid, name, _)| (pid, name)).collect())
}

/// Number, command name and state of each process.
fn processes(proc: &Path) -> Vec<(u32, String, char)> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let stat = fs::read_to_string(proc.join(pid.to_string()).join("stat")).ok()?;
        let (start, rest) = stat.rsplit_once(") ")?;
        let (_, name) = start.split_once('(')?;
        Some((pid, name.to_owned(), rest.chars().next()?))
    })
    .collect()
}
