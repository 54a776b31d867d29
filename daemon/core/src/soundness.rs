//! Whether a GPU's readings can be relied on. One that misbehaved is suspect: nothing is placed there until it has been
//! read soundly for a while, or an operator clears it.
//!
//! Misbehaving is: being lost or in need of a reset; an Xid that no application causes; silence for longer than
//! [`SILENCE`]; a reading that contradicts itself or the one before. A single call that misses its deadline is not: the
//! device is merely unknown then. Nor is what foreign processes take or give back, however fast.
//!
//! It knows nothing of claims: the memory of a suspect device is awaited and proved as ever.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bytes::Bytes;
use crate::facts::{DeviceId, Gpu, GpuMemory, Known, Moment, Suspicion};
use crate::release::TOLERANCE;

/// A device that could not be read for longer than this is suspect when it answers again: something happened to it.
pub const SILENCE: Duration = Duration::from_secs(5);

/// Memory info may be off its own total by one part in so many: drivers round, and some count their own reserve twice.
const ROUNDING: u64 = 16;

/// The Xids that a program causes and that leave the device well: NVIDIA's own Kubernetes device plugin ignores the
/// same ones by default. 13 graphics engine exception, 31 memory page fault, 43 stopped processing, 45 preemptive
/// cleanup, 68 video processor exception, 109 context switch timeout.
const OF_APPLICATIONS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// Whether an Xid is a program's doing and says nothing of the device.
pub fn is_of_application(xid: u64) -> bool {
    OF_APPLICATIONS.contains(&xid)
}

/// What is remembered of every device that was seen.
#[derive(Debug, Clone, Default)]
pub struct Soundness {
    devices: BTreeMap<DeviceId, Device>,
}

#[derive(Debug, Clone, Default)]
struct Device {
    /// When the newest reading that was taken in was made: its memory, its lists.
    newest: (Moment, Moment),
    /// The newest good reading, and the one before it.
    last: Option<Seen>,
    before: Option<Seen>,
    /// Since when it has not been read.
    silent: Option<Moment>,
    /// What is wrong with it in its newest reading.
    wrong: Option<Wrong>,
    /// What an operator takes as it is for as long as it lasts.
    accepted: Option<Wrong>,
    /// Why it is suspect, since when, and when something was wrong last.
    suspect: Option<(String, Moment, Moment)>,
    /// The first of the sound readings since then, and the newest.
    sound: Option<(Moment, Moment)>,
}

/// A reading that was good.
#[derive(Debug, Clone)]
struct Seen {
    listed_at: Moment,
    memory: GpuMemory,
    /// What each process held, by its pid and start; None unless all of it is known.
    held: Option<BTreeMap<(u32, Option<u64>), Bytes>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Lost,
    Total,
    Sum,
    BelowListed,
    Jump,
}

impl Soundness {
    /// Takes new readings in and marks those GPUs that are suspect. A reading that was taken in before counts once.
    pub fn judge(&mut self, gpus: &mut Known<Vec<Gpu>>, now: Moment, settle: Duration) {
        match gpus {
            Known::Value(gpus) => {
                for gpu in gpus {
                    let device = self.devices.entry(gpu.id.clone()).or_default();
                    device.take(gpu, now, settle);
                    gpu.suspect = device.suspicion(settle);
                }
            }
            Known::Unknown(_) => {
                for device in self.devices.values_mut() {
                    device.is_silent(now);
                }
            }
        }
    }

    /// The driver reported this Xid. Whether that makes the device suspect.
    pub fn xid(&mut self, id: &DeviceId, xid: u64, now: Moment) -> bool {
        if is_of_application(xid) {
            return false;
        }
        let why = format!("the driver reported Xid {xid}; see `dmesg`");
        self.devices.entry(id.clone()).or_default().suspect(why, now);
        true
    }

    /// An operator takes the device as it is. A contradiction in its newest reading is accepted for as long as it
    /// lasts; what is wrong anew makes it suspect again. Why it was suspect, where it was.
    pub fn clear(&mut self, id: &DeviceId, now: Moment) -> Option<String> {
        let device = self.devices.get_mut(id)?;
        device.accepted = device.wrong.filter(|wrong| *wrong != Wrong::Lost);
        device.silent = device.silent.map(|_| now);
        device.suspect.take().map(|(why, ..)| why)
    }
}

impl Device {
    fn suspect(&mut self, why: String, now: Moment) {
        let since = self.suspect.as_ref().map_or(now, |(_, since, _)| *since);
        self.suspect = Some((why, since, now));
        self.sound = None;
    }

    fn suspicion(&self, settle: Duration) -> Option<Suspicion> {
        let (why, since, _) = self.suspect.as_ref()?;
        let until = self.sound.map(|(first, _)| first + settle);
        Some(Suspicion { why: why.clone(), since: *since, until })
    }

    /// It could not be read.
    fn is_silent(&mut self, now: Moment) {
        self.sound = None;
        self.silent.get_or_insert(now);
    }

    fn take(&mut self, gpu: &Gpu, now: Moment, settle: Duration) {
        if self.newest == (gpu.read_at, gpu.listed_at) {
            return;
        }
        self.newest = (gpu.read_at, gpu.listed_at);
        let (Known::Value(memory), false) = (&gpu.memory, gpu.lost) else {
            self.wrong = gpu.lost.then_some(Wrong::Lost);
            self.is_silent(now);
            if gpu.lost {
                let why = gpu.memory.why_unknown().or(gpu.processes.why_unknown());
                self.suspect(why.unwrap_or("the driver lost it").to_owned(), now);
            }
            return;
        };
        let seen = Seen { listed_at: gpu.listed_at, memory: *memory, held: held(gpu) };
        let wrong = self.contradiction(gpu, &seen);
        self.wrong = wrong.as_ref().map(|(kind, _)| *kind);
        if let Some(since) = self.silent.take().filter(|since| now.saturating_sub(*since) > SILENCE) {
            let silence = now.saturating_sub(since).as_secs_f64();
            self.suspect(format!("it could not be read for {silence:.0} s"), now);
        }
        match wrong {
            Some((kind, _)) if self.accepted == Some(kind) => self.is_sound(gpu.read_at, settle),
            Some((_, why)) => {
                self.accepted = None;
                self.suspect(why, now);
            }
            None => {
                self.accepted = None;
                self.is_sound(gpu.read_at, settle);
            }
        }
        self.before = self.last.replace(seen);
    }

    /// A reading begun at `at` was sound.
    fn is_sound(&mut self, at: Moment, settle: Duration) {
        // What was read before it went wrong says nothing.
        if self.suspect.as_ref().is_none_or(|(.., wrong_at)| at < *wrong_at) {
            return;
        }
        let first = self.sound.filter(|(_, newest)| at.saturating_sub(*newest) <= SILENCE);
        let first = first.map_or(at, |(first, _)| first);
        if at.saturating_sub(first) >= settle {
            (self.suspect, self.sound) = (None, None);
        } else {
            self.sound = Some((first, at));
        }
    }

    /// What in this reading can't be true, and in words.
    fn contradiction(&self, gpu: &Gpu, seen: &Seen) -> Option<(Wrong, String)> {
        let GpuMemory { total, reserved, used, free } = seen.memory;
        if let Some(last) = self.last.as_ref().filter(|last| last.memory.total != total) {
            let why = format!("its total memory changed from {} to {total}", last.memory.total);
            return Some((Wrong::Total, why));
        }
        let sum = used.plus(free).plus(reserved);
        if sum.less(total).max(total.less(sum)) > Bytes(total.0 / ROUNDING) {
            let why = format!(
                "its memory does not add up: {used} used, {free} free and {reserved} reserved of {total}"
            );
            return Some((Wrong::Sum, why));
        }
        // Lists are read after the memory, and what a process took in between is not used yet. What it held before and
        // holds still, it held then too.
        let last = self.last.as_ref().filter(|last| last.listed_at <= gpu.read_at)?;
        let (Some(was), Some(is)) = (&last.held, &seen.held) else { return None };
        let both = is.iter().filter_map(|(process, bytes)| Some((*bytes).min(*was.get(process)?)));
        let listed: Bytes = both.sum();
        if listed.less(used) > TOLERANCE {
            let why = format!("only {used} are used, and its processes are listed with {listed}");
            return Some((Wrong::BelowListed, why));
        }
        // Memory that nobody is listed for went and came back between readings, while no process came, went, took or
        // gave. The other way round is a program that was too short-lived to be listed.
        let before = self.before.as_ref()?;
        let same = before.held.as_ref() == Some(was) && was == is;
        let (from, low) = (before.memory.used, last.memory.used);
        let undone = from.less(used).max(used.less(from)) <= TOLERANCE;
        if same && undone && from.min(used).less(low) > TOLERANCE {
            let why = format!("its used memory jumped from {from} to {low} and back to {used}");
            return Some((Wrong::Jump, why));
        }
        None
    }
}

fn held(gpu: &Gpu) -> Option<BTreeMap<(u32, Option<u64>), Bytes>> {
    let processes = gpu.processes.value()?.iter();
    processes.map(|process| Some(((process.pid, process.started), *process.memory.value()?))).collect()
}
