//! One GPU: its handle, what is read by it, and how it is found again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use berth_core::bytes::Bytes;
use berth_core::facts::{DeviceId, Gpu, GpuMemory, GpuProcess, Known, Moment};
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use nvml_wrapper::{Device, Nvml};

use super::progress::Progress;
use super::reason;
use crate::proc::{self, monotonic_now};

/// A lost GPU is looked for at most this often: that can take long.
const RETRY: Duration = Duration::from_secs(1);

/// What a GPU is known by.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) index: u32,
    pub(super) id: DeviceId,
    name: String,
}

impl Identity {
    /// That of a GPU which the library counts and has never let us see.
    pub(super) fn not_seen(index: u32) -> Self {
        Self { index, id: DeviceId(format!("unknown GPU {index}")), name: "unknown GPU".to_owned() }
    }

    /// Whether it is a true one.
    pub(super) fn is_seen(&self) -> bool {
        self.id != Self::not_seen(self.index).id
    }
}

/// How calls are made: each is announced first, and none is begun for one who has given up waiting.
pub(super) struct Calls<'a> {
    pub(super) progress: &'a Progress,
    pub(super) abandoned: &'a dyn Fn() -> bool,
}

impl Calls<'_> {
    fn make<T>(
        &self,
        what: &'static str,
        gpu: u32,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Result<T, NvmlError> {
        if (self.abandoned)() {
            return Err(NvmlError::Timeout);
        }
        self.progress.call(what, Some(gpu));
        call()
    }
}

/// One GPU, at hand or lost.
pub(super) struct Card<'n> {
    pub(super) identity: Identity,
    /// Whether it has shown that the library must be initialised again.
    pub(super) library_failed: bool,
    /// Its handle, or why there is none.
    device: Result<Device<'n>, String>,
    /// When it may be looked for again.
    retry_at: Instant,
}

impl<'n> Card<'n> {
    /// A GPU at hand.
    pub(super) fn found(index: u32, device: Device<'n>) -> Result<Self, NvmlError> {
        let identity = Identity { index, id: DeviceId(device.uuid()?), name: device.name()? };
        Ok(Self { identity, library_failed: false, device: Ok(device), retry_at: Instant::now() })
    }

    /// A GPU without a handle.
    pub(super) fn lost(identity: Identity, why: String) -> Self {
        Self { identity, library_failed: false, device: Err(why), retry_at: Instant::now() + RETRY }
    }

    pub(super) fn is_found(&self) -> bool {
        self.device.is_ok()
    }

    /// All there is to read of it.
    pub(super) fn read(&mut self, nvml: &'n Nvml, calls: &Calls<'_>) -> Gpu {
        let (read_at, memory) = self.memory(nvml, calls);
        let (listed_at, processes) = self.processes(nvml, calls);
        let index = self.identity.index;
        let lost = self.device.is_err() && !self.library_failed;
        // What is only for display: none of it on a device that has just been lost.
        let shown = |what, call: fn(&Device<'n>) -> Result<u32, NvmlError>| {
            let device = self.device.as_ref().ok()?;
            calls.make(what, index, || call(device)).ok()
        };
        Gpu {
            index,
            id: self.identity.id.clone(),
            name: self.identity.name.clone(),
            read_at,
            listed_at,
            memory,
            processes,
            lost,
            suspect: None,
            temperature_c: shown("temperature", |device| device.temperature(TemperatureSensor::Gpu)),
            power_w: shown("power", |device| {
                device.power_usage().map(|milliwatts| (milliwatts + 500) / 1000)
            }),
            utilization_percent: shown("utilization", |device| {
                device.utilization_rates().map(|rates| rates.gpu)
            }),
        }
    }

    /// Its memory, and the moment at which the call was begun.
    pub(super) fn memory(&mut self, nvml: &'n Nvml, calls: &Calls<'_>) -> (Moment, Known<GpuMemory>) {
        self.ask(nvml, calls, "memory info", |device, calls, index| {
            let info = calls.make("memory info", index, || device.memory_info())?;
            Ok(if info.total == 0 || info.free > info.total {
                Known::Unknown(format!(
                    "NVML's memory info makes no sense: {} B free of {} B",
                    info.free, info.total
                ))
            } else {
                Known::Value(GpuMemory {
                    total: Bytes(info.total),
                    reserved: Bytes(info.reserved),
                    used: Bytes(info.used),
                    free: Bytes(info.free),
                })
            })
        })
    }

    /// The processes that hold memory on it, and the moment at which the call was begun.
    pub(super) fn processes(
        &mut self,
        nvml: &'n Nvml,
        calls: &Calls<'_>,
    ) -> (Moment, Known<Vec<GpuProcess>>) {
        let (at, held) = self.ask(nvml, calls, "process list", |device, calls, index| {
            let compute =
                calls.make("compute processes", index, || again(|| device.running_compute_processes()))?;
            let graphics = calls.make("graphics processes", index, || {
                or_none(again(|| device.running_graphics_processes()))
            })?;
            let mps = calls
                .make("MPS processes", index, || or_none(again(|| device.mps_running_compute_processes())))?;
            Ok(Known::Value(merge([compute, graphics, mps])))
        });
        let describe = |(pid, memory)| match proc::describe(pid) {
            Some(known) => GpuProcess {
                pid,
                started: Some(known.started),
                program: known.program,
                memory,
                model: known.model,
                unit: known.unit,
            },
            None => {
                GpuProcess { pid, started: None, program: String::new(), memory, model: None, unit: None }
            }
        };
        match held {
            Known::Value(held) => (at, Known::Value(held.into_iter().map(describe).collect())),
            Known::Unknown(why) => (at, Known::Unknown(why)),
        }
    }

    /// Whether it stays initialised while nobody uses it.
    pub(super) fn persistence(&mut self, nvml: &'n Nvml, calls: &Calls<'_>) -> Known<bool> {
        let (_, kept) = self.ask(nvml, calls, "persistence mode", |device, calls, index| {
            Ok(Known::Value(calls.make("persistence mode", index, || device.is_in_persistent_mode())?))
        });
        kept
    }

    fn ask<T>(
        &mut self,
        nvml: &'n Nvml,
        calls: &Calls<'_>,
        what: &str,
        question: impl FnOnce(&Device<'n>, &Calls<'_>, u32) -> Result<Known<T>, NvmlError>,
    ) -> (Moment, Known<T>) {
        self.find_again(nvml, calls);
        // Before the call: what it returns may be as old as that.
        let at = monotonic_now();
        let answer = match &self.device {
            Ok(device) => question(device, calls, self.identity.index),
            Err(why) => return (at, Known::Unknown(why.clone())),
        };
        (at, answer.unwrap_or_else(|error| Known::Unknown(self.fail(what, &error))))
    }

    /// Gets a handle again, if there is none and the time has come.
    fn find_again(&mut self, nvml: &'n Nvml, calls: &Calls<'_>) {
        let Err(why) = &mut self.device else { return };
        if Instant::now() < self.retry_at {
            return;
        }
        self.retry_at = Instant::now() + RETRY;
        let Identity { index, ref id, .. } = self.identity;
        let seen = self.identity.is_seen();
        let found = calls.make("handle", index, || {
            let device = if seen { nvml.device_by_uuid(id.0.as_str()) } else { nvml.device_by_index(index) }?;
            let index = device.index()?;
            Self::found(index, device)
        });
        match found {
            Ok(card) => *self = card,
            // That it isn't listed says less than why it was lost.
            Err(NvmlError::NotFound | NvmlError::Timeout) => {}
            Err(error) => {
                *why = reason::of_device("handle", &error);
                self.library_failed |= reason::is_of_library(&error);
            }
        }
    }

    fn fail(&mut self, what: &str, error: &NvmlError) -> String {
        let why = reason::of_device(what, error);
        self.library_failed |= reason::is_of_library(error);
        if !reason::is_absence(error) {
            self.device = Err(why.clone());
            self.retry_at = Instant::now() + RETRY;
        }
        why
    }
}

/// Asks for a list anew when it grew between the question for its length and that for itself.
fn again(list: impl Fn() -> Result<Vec<ProcessInfo>, NvmlError>) -> Result<Vec<ProcessInfo>, NvmlError> {
    let mut answer = list();
    for _ in 0..3 {
        if !matches!(answer, Err(NvmlError::InsufficientSize(_))) {
            break;
        }
        answer = list();
    }
    answer
}

/// A list that this kind of GPU does not have is empty: the compute list alone must be there.
fn or_none(list: Result<Vec<ProcessInfo>, NvmlError>) -> Result<Vec<ProcessInfo>, NvmlError> {
    match list {
        Err(NvmlError::NotSupported | NvmlError::FailedToLoadSymbol(_)) => Ok(Vec::new()),
        other => other,
    }
}

/// Each pid once. A process is in a list once per instance of a divided GPU, so that adds up; in several lists it
/// is with the same memory.
fn merge(lists: [Vec<ProcessInfo>; 3]) -> BTreeMap<u32, Known<Bytes>> {
    let mut merged: BTreeMap<u32, Known<Bytes>> = BTreeMap::new();
    for list in lists {
        let mut of_list: BTreeMap<u32, Known<Bytes>> = BTreeMap::new();
        for process in list {
            let memory = match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Known::Value(Bytes(bytes)),
                UsedGpuMemory::Unavailable => Known::Unknown("NVML does not say".to_owned()),
            };
            join(&mut of_list, process.pid, memory, Bytes::plus);
        }
        for (pid, memory) in of_list {
            join(&mut merged, pid, memory, Bytes::max);
        }
    }
    merged
}

fn join(
    into: &mut BTreeMap<u32, Known<Bytes>>,
    pid: u32,
    memory: Known<Bytes>,
    both: fn(Bytes, Bytes) -> Bytes,
) {
    let joined = match (into.remove(&pid), memory) {
        (None, memory) => memory,
        (Some(Known::Value(one)), Known::Value(other)) => Known::Value(both(one, other)),
        (Some(unknown @ Known::Unknown(_)), _) | (Some(_), unknown) => unknown,
    };
    into.insert(pid, joined);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, used_gpu_memory: UsedGpuMemory) -> ProcessInfo {
        ProcessInfo { pid, used_gpu_memory, gpu_instance_id: None, compute_instance_id: None }
    }

    #[test]
    fn each_pid_is_listed_once() {
        use UsedGpuMemory::{Unavailable, Used};
        let merged = merge([
            vec![process(7, Used(100)), process(8, Used(5)), process(9, Used(1)), process(9, Used(2))],
            vec![process(7, Used(100)), process(8, Unavailable), process(6, Unavailable)],
            vec![process(9, Used(2))],
        ]);
        let unknown = || Known::Unknown("NVML does not say".to_owned());
        let expected =
            [(6, unknown()), (7, Known::Value(Bytes(100))), (8, unknown()), (9, Known::Value(Bytes(3)))];
        assert_eq!(merged, BTreeMap::from(expected));
    }
}
