//! The cards' state: who holds what, what lingers, what readings show. No clock, no processes, no sockets
//! here: time is an argument, deaths are told to it, so everything can be tested to the nanosecond.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cards::Card;
use crate::linger::{Exit, Linger, held};
use crate::protocol::{
    Calls, Code, DeviceStats, Driver, FailedAllocation, Failure, Hang, Held, Kind, Knob, Lingering, Listed,
    Memory, Release, SensorKnobs, Sensors, Xid,
};
use crate::units::mib;

/// How one card behaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Knobs {
    linger: Linger,
    linger_listed: bool,
    lists: bool,
    usage: bool,
    lost: bool,
    memory_na: bool,
    events: bool,
    residue: u64,
    sensors: SensorKnobs,
    /// The reading that every later one repeats.
    #[serde(skip)]
    stale: Option<Memory>,
    /// How much less the next reading says is used.
    #[serde(skip)]
    jump: u64,
    /// What hangs, and since when.
    #[serde(skip)]
    hang: Option<(Hang, u64)>,
}

impl Default for Knobs {
    fn default() -> Self {
        Knobs {
            linger: Linger::default(),
            linger_listed: false,
            lists: true,
            usage: true,
            lost: false,
            memory_na: false,
            events: true,
            residue: 0,
            sensors: SensorKnobs::default(),
            stale: None,
            jump: 0,
            hang: None,
        }
    }
}

/// What outlives a restart of the server: the cards and their knobs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    seed: u64,
    cards: Vec<(Card, Knobs)>,
    version_mismatch: bool,
}

impl Config {
    /// Healthy cards with these totals in bytes.
    pub fn new(totals: &[u64], seed: u64) -> Self {
        let card = |(index, total): (u32, &u64)| (Card::new(index, *total, seed), Knobs::default());
        Config { seed, cards: (0..).zip(totals).map(card).collect(), version_mismatch: false }
    }
}

/// A living process that holds memory.
#[derive(Debug)]
struct Process {
    comm: String,
    foreign: bool,
    claims: Vec<(u32, Kind, u64)>,
}

/// Memory of a dead process on its way back.
#[derive(Debug)]
struct Leaving {
    release: Release,
    kind: Kind,
    ramp: bool,
}

/// What a foreign process will take later.
#[derive(Debug)]
struct Wish {
    pid: u32,
    device: u32,
    kind: Kind,
    bytes: u64,
    when: When,
}

/// When a foreign process takes memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// At this time; less than `bytes` if less is free.
    At(u64),
    /// At the instant a release makes room for all of it, or this long after that instant.
    AtRelease { delay: u64 },
}

/// What happened and is to be recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happening {
    Allocated { time_ns: u64, pid: u32, device: u32, bytes: u64 },
    Failed(FailedAllocation),
    Released(Release),
}

/// All cards, and everything on them.
#[derive(Debug, Default)]
pub struct Gpus {
    config: Config,
    processes: BTreeMap<u32, Process>,
    leaving: Vec<Leaving>,
    wishes: Vec<Wish>,
    xids: Vec<Xid>,
    draws: u64,
    happened: Vec<Happening>,
}

impl Gpus {
    /// These cards, empty.
    pub fn new(config: Config) -> Self {
        Gpus { config, ..Gpus::default() }
    }

    /// The cards and knobs, to be kept.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What happened since the last call, oldest first.
    pub fn take_happenings(&mut self) -> Vec<Happening> {
        std::mem::take(&mut self.happened)
    }

    /// Brings everything up to `now`: what was to happen until then happens, in order.
    pub fn settle(&mut self, now: u64) {
        loop {
            let grown = self.wishes.iter().filter_map(|w| match w.when {
                When::At(at) => Some(at),
                When::AtRelease { .. } => None,
            });
            let next = self.leaving.iter().map(|l| l.release.freed_ns).chain(grown).min();
            let Some(at) = next.filter(|at| *at <= now) else { return };
            let mut freed: Vec<u32> = Vec::new();
            self.leaving.retain(|l| {
                let over = l.release.freed_ns == at;
                freed.extend(over.then_some(l.release.device));
                !over
            });
            for mut wish in std::mem::take(&mut self.wishes) {
                let free = self.truth(wish.device, at).map_or(0, |m| m.free);
                match wish.when {
                    When::At(due) if due == at => self.hold(&wish, wish.bytes.min(free)),
                    When::AtRelease { delay } if freed.contains(&wish.device) && free >= wish.bytes => {
                        if delay == 0 {
                            self.hold(&wish, wish.bytes);
                        } else {
                            wish.when = When::At(at.saturating_add(delay));
                            self.wishes.push(wish);
                        }
                    }
                    _ => self.wishes.push(wish),
                }
            }
        }
    }

    fn hold(&mut self, wish: &Wish, bytes: u64) {
        if let Some(process) = self.processes.get_mut(&wish.pid) {
            add(&mut process.claims, wish.device, wish.kind, bytes);
        }
    }

    /// What is true of a card's memory at `now`, whatever its readings show.
    fn truth(&self, device: u32, now: u64) -> Option<Memory> {
        let (card, knobs) = self.config.cards.get(device as usize)?;
        let living = self.processes.values().flat_map(|p| &p.claims);
        let living: u64 = living.filter(|(d, ..)| *d == device).map(|(.., bytes)| bytes).sum();
        let dead: u64 = self.leaving.iter().filter(|l| l.release.device == device).map(|l| l.left(now)).sum();
        let used = living + dead + knobs.residue;
        let free = card.total.saturating_sub(card.reserved).saturating_sub(used);
        Some(Memory { total: card.total, reserved: card.reserved, used, free })
    }

    /// The card and its knobs, if it is there and answers.
    fn card(&self, device: u32) -> Result<&(Card, Knobs), Failure> {
        let found = self.config.cards.get(device as usize).ok_or_else(|| {
            Failure::new(
                Code::NotFound,
                format!("there is no device {device}; there are {}", self.config.cards.len()),
            )
        })?;
        if found.1.lost {
            return Err(Failure::new(Code::Lost, format!("device {device} has fallen off the bus")));
        }
        Ok(found)
    }

    /// What initialization finds.
    pub fn driver(&self) -> Result<Driver, Failure> {
        if self.config.version_mismatch {
            return Err(Failure::new(Code::VersionMismatch, "driver and library versions differ"));
        }
        Ok(Driver {
            driver_version: "580.95.05".to_owned(),
            nvml_version: "13.580.95.05".to_owned(),
            cuda_version: 13_000,
            cards: u32::try_from(self.config.cards.len()).unwrap_or(u32::MAX),
        })
    }

    /// What never changes of a card.
    pub fn identity(&self, device: u32) -> Result<Card, Failure> {
        self.card(device).map(|(card, _)| card.clone())
    }

    /// The card's memory reading.
    pub fn memory(&self, device: u32, now: u64) -> Result<Memory, Failure> {
        let (_, knobs) = self.card(device)?;
        if knobs.memory_na {
            return Err(Failure::new(
                Code::NotSupported,
                format!("device {device} gives no memory readings"),
            ));
        }
        let truth = self.truth(device, now);
        knobs.stale.or(truth).ok_or_else(|| Failure::new(Code::NotFound, "no such device"))
    }

    /// The same for a call: it may jump, once.
    pub fn read_memory(&mut self, device: u32, now: u64) -> Result<Memory, Failure> {
        let mut memory = self.memory(device, now)?;
        if let Some((_, knobs)) = self.config.cards.get_mut(device as usize) {
            let less = std::mem::take(&mut knobs.jump).min(memory.used);
            (memory.used, memory.free) = (memory.used - less, memory.free + less);
        }
        Ok(memory)
    }

    /// Whether the card's Xids may be watched.
    pub fn watch(&self, device: u32) -> Result<(), Failure> {
        if self.card(device)?.1.events {
            return Ok(());
        }
        Err(Failure::new(Code::NotSupported, format!("device {device} reports no events")))
    }

    /// One of the card's process lists, by pid.
    pub fn processes(&self, device: u32, kind: Kind, now: u64) -> Result<Vec<Listed>, Failure> {
        let (_, knobs) = self.card(device)?;
        if !knobs.lists {
            return Err(Failure::new(Code::NotSupported, format!("device {device} gives no process lists")));
        }
        let mut held: BTreeMap<u32, u64> = BTreeMap::new();
        for (pid, process) in &self.processes {
            for (.., bytes) in process.claims.iter().filter(|(d, k, _)| *d == device && *k == kind) {
                *held.entry(*pid).or_default() += bytes;
            }
        }
        if knobs.linger_listed {
            for leaving in self.leaving.iter().filter(|l| l.release.device == device && l.kind == kind) {
                *held.entry(leaving.release.pid).or_default() += leaving.left(now);
            }
        }
        let listed = |(pid, bytes)| Listed { pid, bytes: knobs.usage.then_some(bytes) };
        Ok(held.into_iter().map(listed).collect())
    }

    /// Sensor readings: a warm card when somebody holds memory, a cool one otherwise.
    pub fn sensors(&self, device: u32, now: u64) -> Result<Sensors, Failure> {
        let (card, knobs) = self.card(device)?;
        let busy = self.processes.values().any(|p| p.claims.iter().any(|(d, ..)| *d == device));
        let used = self.truth(device, now).map_or(0, |m| m.used);
        let percent = u32::try_from(used * 100 / card.total.max(1)).unwrap_or(100);
        Ok(Sensors {
            temperature_c: knobs.sensors.temperature_c.unwrap_or(if busy { 52 } else { 36 }),
            power_mw: knobs.sensors.power_mw.unwrap_or(if busy { 41_000 } else { 7_000 }),
            utilization_percent: knobs.sensors.utilization_percent.unwrap_or(0),
            memory_percent: percent,
        })
    }

    /// Xids numbered above `after`.
    pub fn xids(&self, after: u64) -> Vec<Xid> {
        self.xids.iter().filter(|xid| xid.number > after).cloned().collect()
    }

    /// Until when a call made at `asked` does not return, if it hangs. Called again until it says `None`, so
    /// that hanging can be switched off under it.
    pub fn hangs(&self, device: Option<u32>, call: Calls, asked: u64, now: u64) -> Option<u64> {
        let cards = self.config.cards.iter().filter(|(card, _)| device.is_none_or(|d| d == card.index));
        let mut hangs: Vec<_> = cards.map(|(_, knobs)| knobs.hang).collect();
        // Calls on no card in particular hang only when every card does.
        if device.is_none() && hangs.iter().any(Option::is_none) {
            hangs.clear();
        }
        let matching = hangs.into_iter().flatten().filter(|(h, _)| h.calls == Calls::All || h.calls == call);
        let until =
            matching.map(|(h, since)| h.ns.saturating_add(if h.each { asked } else { since })).max()?;
        (until > now).then_some(until)
    }

    /// Gives memory to a process.
    pub fn alloc(
        &mut self,
        now: u64,
        (pid, comm, foreign): (u32, &str, bool),
        device: u32,
        bytes: u64,
        kind: Kind,
    ) -> Result<(), Failure> {
        self.settle(now);
        self.card(device)?;
        let free = self.truth(device, now).map_or(0, |m| m.free);
        if bytes > free {
            let comm = comm.to_owned();
            if !foreign {
                let failed = FailedAllocation { time_ns: now, pid, comm, device, wanted: bytes, free };
                self.happened.push(Happening::Failed(failed));
            }
            let message = format!("device {device} has {} free, wanted are {}", mib(free), mib(bytes));
            return Err(Failure::new(Code::OutOfMemory, message));
        }
        let process = self.processes.entry(pid).or_insert_with(|| Process {
            comm: String::new(),
            foreign,
            claims: Vec::new(),
        });
        // The name may have changed since, by an exec.
        comm.clone_into(&mut process.comm);
        add(&mut process.claims, device, kind, bytes);
        if !foreign {
            self.happened.push(Happening::Allocated { time_ns: now, pid, device, bytes });
        }
        Ok(())
    }

    /// Lets a foreign process take `bytes` more at some time.
    pub fn wish(&mut self, (pid, comm): (u32, &str), device: u32, bytes: u64, kind: Kind, when: When) {
        let process = Process { comm: comm.to_owned(), foreign: true, claims: Vec::new() };
        self.processes.entry(pid).or_insert(process);
        self.wishes.push(Wish { pid, device, kind, bytes, when });
    }

    /// The processes that hold memory.
    pub fn holders(&self) -> Vec<u32> {
        self.processes.keys().copied().collect()
    }

    /// A process has another name since an exec.
    pub fn rename(&mut self, pid: u32, comm: String) {
        if let Some(process) = self.processes.get_mut(&pid).filter(|_| !comm.is_empty()) {
            process.comm = comm;
        }
    }

    /// The process is dead since `at`; `comm` is its last name. Its memory comes back as the cards' knobs say.
    pub fn died(&mut self, pid: u32, comm: Option<&str>, exit: Exit, at: u64) {
        self.settle(at);
        self.wishes.retain(|wish| wish.pid != pid);
        let Some(process) = self.processes.remove(&pid) else { return };
        let comm = comm.filter(|name| !name.is_empty()).unwrap_or(&process.comm);
        let mut devices: Vec<u32> = process.claims.iter().map(|(device, ..)| *device).collect();
        devices.sort_unstable();
        devices.dedup();
        for device in devices {
            let Some((_, knobs)) = self.config.cards.get(device as usize) else { continue };
            let claims = process.claims.iter().filter(|(d, ..)| *d == device);
            let bytes = claims.clone().map(|(.., bytes)| bytes).sum();
            let (delay, ramp) = knobs.linger.delay(exit, bytes, &mut self.draws);
            let mut release = Release {
                device,
                pid,
                comm: comm.to_owned(),
                bytes,
                died_ns: at,
                freed_ns: at.saturating_add(delay),
                exit,
                foreign: process.foreign,
            };
            self.happened.push(Happening::Released(release.clone()));
            for (_, kind, bytes) in claims {
                release.bytes = *bytes;
                self.leaving.push(Leaving { release: release.clone(), kind: *kind, ramp });
            }
        }
        self.settle(at);
    }

    /// Changes a behaviour of one card or, without one, of all.
    pub fn set(&mut self, device: Option<u32>, knob: &Knob, now: u64) -> Result<(), Failure> {
        let count = self.config.cards.len();
        if device.is_some_and(|d| d as usize >= count) {
            let message = format!("there is no device {}; there are {count}", device.unwrap_or(0));
            return Err(Failure::new(Code::NotFound, message));
        }
        match knob {
            Knob::VersionMismatch(on) => self.config.version_mismatch = *on,
            Knob::Cards(totals) => self.replace_cards(totals),
            _ => {}
        }
        for index in (0..self.config.cards.len()).filter(|i| device.is_none_or(|d| d as usize == *i)) {
            let index_u32 = u32::try_from(index).unwrap_or(u32::MAX);
            let truth = self.truth(index_u32, now);
            let next_xid = self.xids.len() as u64 + 1;
            let knobs = &mut self.config.cards[index].1;
            match knob {
                Knob::Healthy => *knobs = Knobs::default(),
                Knob::Linger(linger) => knobs.linger = *linger,
                Knob::LingerListed(on) => knobs.linger_listed = *on,
                Knob::Lists(on) => knobs.lists = *on,
                Knob::Usage(on) => knobs.usage = *on,
                Knob::Lost(on) => knobs.lost = *on,
                Knob::Stale(on) => knobs.stale = truth.filter(|_| *on),
                Knob::Jump(less) => knobs.jump = *less,
                Knob::Events(on) => knobs.events = *on,
                Knob::MemoryNa(on) => knobs.memory_na = *on,
                Knob::Residue(bytes) => knobs.residue = *bytes,
                Knob::Hang(hang) => knobs.hang = (hang.ns > 0).then_some((*hang, now)),
                Knob::Sensors(sensors) => knobs.sensors = *sensors,
                Knob::Xid(xid) => {
                    self.xids.push(Xid { number: next_xid, device: index_u32, xid: *xid });
                }
                Knob::Cards(_) | Knob::VersionMismatch(_) => {}
            }
        }
        Ok(())
    }

    /// Other cards. Those that stay, by index, keep their knobs and holders; memory on removed ones is gone.
    fn replace_cards(&mut self, totals: &[u64]) {
        let fresh = Config::new(totals, self.config.seed);
        let old = std::mem::replace(&mut self.config, fresh);
        self.config.version_mismatch = old.version_mismatch;
        for (new, (_, knobs)) in self.config.cards.iter_mut().zip(old.cards) {
            new.1 = knobs;
        }
        let there = |device: u32| (device as usize) < totals.len();
        self.leaving.retain(|l| there(l.release.device));
        self.wishes.retain(|w| there(w.device));
        for process in self.processes.values_mut() {
            process.claims.retain(|(device, ..)| there(*device));
        }
    }

    /// All cards with who holds them.
    pub fn devices(&self, now: u64) -> Vec<DeviceStats> {
        let entry = |(card, knobs): &(Card, Knobs)| {
            let memory = self.truth(card.index, now)?;
            let of_process = |(pid, process): (&u32, &Process)| {
                let claims = process.claims.clone();
                let held = claims.into_iter().filter(|(d, ..)| *d == card.index).map(|(_, kind, bytes)| {
                    Held { pid: *pid, comm: process.comm.clone(), bytes, kind, foreign: process.foreign }
                });
                held.collect::<Vec<_>>()
            };
            let leaving = self.leaving.iter().filter(|l| l.release.device == card.index);
            Some(DeviceStats {
                index: card.index,
                uuid: card.uuid.clone(),
                name: card.name.clone(),
                memory,
                residue: knobs.residue,
                held: self.processes.iter().flat_map(of_process).collect(),
                lingering: leaving
                    .map(|l| Lingering {
                        pid: l.release.pid,
                        comm: l.release.comm.clone(),
                        bytes: l.left(now),
                        freed_ns: l.release.freed_ns,
                    })
                    .collect(),
                knobs: knobs.in_words(),
            })
        };
        self.config.cards.iter().filter_map(entry).collect()
    }
}

impl Leaving {
    fn left(&self, now: u64) -> u64 {
        held(self.release.bytes, self.release.died_ns, self.release.freed_ns, self.ramp, now)
    }
}

impl Knobs {
    /// What differs from a healthy card.
    fn in_words(&self) -> Vec<String> {
        let healthy = Knobs::default();
        let mut words = Vec::new();
        if self.linger != healthy.linger {
            words.push(self.linger.to_string());
        }
        let flags = [
            (self.linger_listed, "the dead stay listed"),
            (!self.lists, "no process lists"),
            (!self.usage, "no bytes in process lists"),
            (self.lost, "lost"),
            (self.memory_na, "no memory readings"),
            (!self.events, "no events"),
            (self.stale.is_some(), "stale readings"),
            (self.hang.is_some(), "calls hang"),
        ];
        words.extend(flags.iter().filter(|(on, _)| *on).map(|(_, word)| (*word).to_owned()));
        words
    }
}

/// Adds to what a process holds on a card.
fn add(claims: &mut Vec<(u32, Kind, u64)>, device: u32, kind: Kind, bytes: u64) {
    match claims.iter_mut().find(|(d, k, _)| *d == device && *k == kind) {
        Some((.., held)) => *held += bytes,
        None => claims.push((device, kind, bytes)),
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
