//! Hardware and systemd: cards, processes that hold memory and let go of it late, units that misbehave.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_core::bytes::Bytes;
use berth_core::facts::{Active, Brought, Facts, Gpu, GpuProcess, Known, Suspicion, Unit};
use berth_core::name::ModelName;
use berth_core::plan::Start;

use crate::story::{DRIVER, device, host, memory, name, unit};

pub(crate) const TOTAL: u64 = 16_311;
pub(crate) const RESERVED: u64 = 388;
/// A moment that never comes.
pub(crate) const NEVER: u64 = u64::MAX;

/// How a model's server behaves, and what its memory does after it: all times in milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Manner {
    /// From its start until it is ready; [`NEVER`] for one that hangs.
    pub(crate) load: u64,
    /// From its start until it exits by itself.
    pub(crate) dies: u64,
    /// systemd can't start it.
    pub(crate) unstartable: bool,
    /// systemd won't stop it.
    pub(crate) unstoppable: bool,
    /// From StopUnit until systemd begins with it: polkit may be slow.
    pub(crate) heeds: u64,
    /// From SIGTERM until its end; [`NEVER`] for one that ignores it.
    pub(crate) term: u64,
    /// From SIGKILL until its end: a process in D state takes long.
    pub(crate) kill: u64,
    /// How long its memory lingers on the first card; on each further one as much longer.
    pub(crate) linger: u64,
    /// Whether it comes back bit by bit.
    pub(crate) ramp: bool,
    /// For how long it reads into the host's memory; not at all with 0.
    pub(crate) reads: u64,
    /// For how long a child outside the cgroup goes on holding its memory.
    pub(crate) escapee: u64,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            load: 3000,
            dies: NEVER,
            unstartable: false,
            unstoppable: false,
            heeds: 0,
            term: 150,
            kill: 5,
            linger: 0,
            ramp: false,
            reads: 0,
            escapee: 0,
        }
    }
}

/// Memory on a card that belongs to a model, or did.
#[derive(Debug, Clone)]
struct Held {
    gpu: usize,
    mib: u64,
    pid: u32,
    /// Since when its process is gone, and when all of it is back; None while it runs.
    lingers: Option<(u64, u64, bool)>,
    /// Until when a child of the process holds it.
    escaped_until: Option<u64>,
}

impl Held {
    fn at(&self, now: u64) -> u64 {
        match self.lingers.filter(|_| self.escaped_until.is_none()) {
            Some((_, until, _)) if now >= until => 0,
            Some((since, until, true)) => self.mib * (until - now) / (until - since).max(1),
            _ => self.mib,
        }
    }
}

/// A run of a unit.
#[derive(Debug, Clone)]
struct Run {
    invocation: String,
    pid: u32,
    active: Active,
    started: u64,
    manner: Manner,
    parts: Vec<(usize, u64)>,
    allocated: bool,
    ends_at: u64,
    asked: Option<u64>,
    by_hand: bool,
}

/// Everything that is not Berth.
#[derive(Debug, Clone, Default)]
pub(crate) struct Nature {
    pub(crate) now: u64,
    pub(crate) gpus: usize,
    pub(crate) manners: BTreeMap<ModelName, Manner>,
    pub(crate) foreign: BTreeMap<usize, u64>,
    /// Until when NVML says nothing of a card, and gives no lists.
    pub(crate) blind_until: BTreeMap<usize, u64>,
    /// Until when a card is suspect.
    pub(crate) suspect_until: BTreeMap<usize, u64>,
    /// Until when so much of the host's memory, in MiB, is somebody else's.
    pub(crate) host_taken: (u64, u64),
    /// Allocations that failed.
    pub(crate) failed_allocations: u32,
    /// Until when the files of a model are on a disk that is not mounted.
    pub(crate) unmounted_until: BTreeMap<ModelName, u64>,
    held: Vec<Held>,
    runs: BTreeMap<ModelName, Run>,
    count: u32,
}

/// How soon after its start a server allocates.
const ALLOCATES: u64 = 30;

impl Nature {
    pub(crate) fn new(gpus: usize) -> Self {
        Self { gpus, now: 1000, ..Self::default() }
    }

    pub(crate) fn manner(&mut self, model: &str) -> &mut Manner {
        self.manners.entry(name(model)).or_default()
    }

    /// Lets time pass up to `now`.
    pub(crate) fn advance(&mut self, now: u64) {
        self.now = now;
        self.held.iter_mut().filter(|held| held.escaped_until.is_some_and(|until| now >= until)).for_each(
            |held| {
                held.escaped_until = None;
            },
        );
        self.held.retain(|held| held.at(now) > 0);
        let models: Vec<ModelName> = self.runs.keys().cloned().collect();
        for model in models {
            let run = self.runs[&model].clone();
            if !run.active.is_down() && !run.allocated && now >= run.started + ALLOCATES {
                self.allocate(&model, &run);
            }
            if self.runs[&model].ends_at <= now && !self.runs[&model].active.is_down() {
                self.ends(&model);
            }
        }
    }

    fn allocate(&mut self, model: &ModelName, run: &Run) {
        if run.parts.iter().any(|(gpu, mib)| self.used(*gpu) + mib + RESERVED > TOTAL) {
            self.failed_allocations += 1;
            self.ends(model);
            return;
        }
        for (gpu, mib) in &run.parts {
            let held = Held { gpu: *gpu, mib: *mib, pid: run.pid, lingers: None, escaped_until: None };
            self.held.push(held);
        }
        self.runs.get_mut(model).unwrap().allocated = true;
    }

    fn ends(&mut self, model: &ModelName) {
        let run = self.runs.get_mut(model).unwrap();
        run.active = if run.asked.is_some() { Active::Inactive } else { Active::Failed };
        for held in self.held.iter_mut().filter(|held| held.pid == run.pid && held.lingers.is_none()) {
            let late = if run.manner.linger == 0 { 0 } else { run.manner.linger * (held.gpu as u64 + 1) };
            let from = self.now + run.manner.escapee;
            held.lingers = Some((from, from + late, run.manner.ramp));
            held.escaped_until = (run.manner.escapee > 0).then_some(from);
        }
    }

    /// What is allocated on a card, whoever holds it.
    pub(crate) fn used(&self, gpu: usize) -> u64 {
        let held: u64 = self.held.iter().filter(|held| held.gpu == gpu).map(|held| held.at(self.now)).sum();
        DRIVER + held + self.foreign.get(&gpu).copied().unwrap_or(0)
    }

    /// What models hold on a card, running ones and such that ended.
    pub(crate) fn of_models(&self, gpu: usize) -> u64 {
        self.used(gpu) - DRIVER - self.foreign.get(&gpu).copied().unwrap_or(0)
    }

    pub(crate) fn start(&mut self, start: &Start) -> Result<(), String> {
        let manner = self.manners.get(&start.model).cloned().unwrap_or_default();
        if self.runs.get(&start.model).is_some_and(|run| !run.active.is_down()) {
            return Ok(());
        }
        self.count += 1;
        let parts = start.gpus.iter().map(|part| (part.index as usize, part.bytes.0 >> 20)).collect();
        let active = if manner.unstartable { Active::Failed } else { Active::Active };
        let run = Run {
            invocation: format!("run-{}", self.count),
            pid: 1000 + self.count,
            active,
            started: self.now,
            ends_at: self.now.saturating_add(manner.dies),
            manner,
            parts,
            allocated: false,
            asked: None,
            by_hand: false,
        };
        self.runs.insert(start.model.clone(), run);
        if active == Active::Failed { Err("exit status 1".to_owned()) } else { Ok(()) }
    }

    /// SIGTERM. An error where systemd refuses.
    pub(crate) fn stop(&mut self, model: &ModelName) -> Result<(), String> {
        let manner = self.manners.get(model).cloned().unwrap_or_default();
        let now = self.now;
        let Some(run) = self.runs.get_mut(model).filter(|run| !run.active.is_down()) else { return Ok(()) };
        if manner.unstoppable {
            return Err("Access denied".to_owned());
        }
        run.active = Active::Deactivating;
        run.manner = manner;
        run.asked = run.asked.or(Some(now));
        run.ends_at = run.ends_at.min(now.saturating_add(run.manner.term));
        Ok(())
    }

    /// `systemctl stop`, past Berth.
    pub(crate) fn stop_by_hand(&mut self, model: &ModelName) {
        let runs = self.runs.get(model).is_some_and(|run| run.active == Active::Active);
        if runs && self.stop(model).is_ok() {
            self.runs.get_mut(model).unwrap().by_hand = true;
        }
    }

    /// Whether its last run was ended so.
    pub(crate) fn stopped_by_hand(&self, model: &ModelName) -> bool {
        self.runs.get(model).is_some_and(|run| run.by_hand)
    }

    /// A server dies of itself.
    pub(crate) fn crash(&mut self, model: &ModelName) {
        let now = self.now;
        if let Some(run) = self.runs.get_mut(model).filter(|run| !run.active.is_down()) {
            run.ends_at = now;
        }
    }

    /// No process and no memory outlives it.
    pub(crate) fn power_fails(&mut self) {
        self.held.clear();
        self.runs.clear();
        self.foreign.clear();
    }

    /// Whether a model's files can't be found.
    pub(crate) fn unmounted(&self, model: &ModelName) -> bool {
        self.unmounted_until.get(model).is_some_and(|until| self.now < *until)
    }

    pub(crate) fn kill(&mut self, model: &ModelName) {
        let now = self.now;
        if let Some(run) = self.runs.get_mut(model).filter(|run| !run.active.is_down()) {
            run.ends_at = run.ends_at.min(now.saturating_add(run.manner.kill));
        }
    }

    pub(crate) fn is_down(&self, model: &ModelName) -> bool {
        self.runs.get(model).is_none_or(|run| run.active.is_down())
    }

    /// Whether it answers now.
    pub(crate) fn ready(&self, model: &ModelName) -> bool {
        self.runs.get(model).is_some_and(|run| {
            run.active == Active::Active
                && run.allocated
                && self.now >= run.started.saturating_add(run.manner.load)
        })
    }

    /// When its end is due, where one is.
    pub(crate) fn ends_at(&self, model: &ModelName) -> u64 {
        self.runs.get(model).map_or(NEVER, |run| run.ends_at)
    }

    /// Ends everything that is wrong, now and for later starts.
    pub(crate) fn heal(&mut self) {
        let now = self.now;
        self.manners.clear();
        self.foreign.clear();
        self.blind_until.clear();
        self.unmounted_until.clear();
        self.suspect_until.clear();
        for run in self.runs.values_mut().filter(|run| !run.active.is_down()) {
            run.manner = Manner { load: run.manner.load.min(3000), ..Manner::default() };
            let due = if run.asked.is_some() { now } else { NEVER };
            run.ends_at = due;
        }
        for held in &mut self.held {
            if held.lingers.is_some() {
                (held.lingers, held.escaped_until) = (Some((now, now, false)), None);
            }
        }
    }

    pub(crate) fn unit(&self, model: &ModelName) -> Option<Unit> {
        self.runs.get(model).map(|run| {
            let pids = [run.pid];
            let mut unit = unit(&run.invocation, run.active, if run.active.is_down() { &[] } else { &pids });
            let read = run.manner.reads.min(self.now - run.started);
            // Of what is mapped the kernel takes back as much as comes in; only the faults tell of it.
            unit.brought = Known::Value(Brought { faulted: Bytes(read << 10), ..Brought::default() });
            unit
        })
    }

    /// What NVML and systemd would say now.
    pub(crate) fn facts(&self) -> Facts {
        let at = Duration::from_millis(self.now);
        let gpus = (0..self.gpus).map(|index| {
            let blind = self.blind_until.get(&index).is_some_and(|until| self.now < *until);
            let why = || "NVML does not answer".to_owned();
            let runs_of =
                |pid: u32| self.runs.iter().find(|(_, run)| run.pid == pid && !run.active.is_down());
            let held = self.held.iter().filter(|held| held.gpu == index);
            let mut listed: Vec<GpuProcess> = held
                .filter(|held| held.lingers.is_none() || held.escaped_until.is_some())
                .map(|held| listed(held.pid, held.mib, runs_of(held.pid).map(|(model, _)| model.clone())))
                .collect();
            let foreign = self.foreign.get(&index).copied().unwrap_or(0);
            if foreign > 0 {
                listed.push(self::listed(9, foreign, None));
            }
            Gpu {
                index: u32::try_from(index).unwrap(),
                id: device(index),
                name: String::new(),
                read_at: at,
                listed_at: at,
                memory: if blind {
                    Known::Unknown(why())
                } else {
                    Known::Value(memory(TOTAL, RESERVED, self.used(index)))
                },
                processes: if blind { Known::Unknown(why()) } else { Known::Value(listed) },
                lost: false,
                suspect: self.suspect_until.get(&index).filter(|until| self.now < **until).map(|until| {
                    Suspicion {
                        why: "the driver reported Xid 79".to_owned(),
                        since: at,
                        until: Some(Duration::from_millis(*until)),
                    }
                }),
                temperature_c: None,
                power_w: None,
                utilization_percent: None,
            }
        });
        let mut host = host();
        let (until, taken) = self.host_taken;
        if let Known::Value(memory) = &mut host.memory
            && self.now < until
        {
            memory.available = memory.available.less(Bytes::mib(taken));
        }
        let units = self.runs.keys().filter_map(|model| Some((model.clone(), self.unit(model)?)));
        Facts { at, gpus: Known::Value(gpus.collect()), units: units.collect(), host, files: BTreeMap::new() }
    }
}

fn listed(pid: u32, mib: u64, model: Option<ModelName>) -> GpuProcess {
    GpuProcess {
        pid,
        started: Some(u64::from(pid)),
        program: "server".to_owned(),
        memory: Known::Value(Bytes::mib(mib)),
        model,
        unit: None,
    }
}
