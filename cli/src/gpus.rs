//! The GPUs without berthd: straight from NVML, for a look.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use berth_core::bytes::Bytes;
use berth_core::facts::{DeviceId, Gpu, GpuMemory, GpuProcess, Known, Moment};
use berth_core::name::ModelName;
use nix::time::{ClockId, clock_gettime};
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

/// A GPU that fell off its bus can keep NVML's calls for ever; one that slept takes some seconds.
const DEADLINE: Duration = Duration::from_secs(10);

/// The GPUs in NVML's order, or why they can't be seen.
pub(crate) fn gpus_without_daemon() -> Known<Vec<Gpu>> {
    let (send, receive) = mpsc::channel();
    // On a thread of its own, which a call that hangs keeps; the process ends all the same.
    std::thread::spawn(move || send.send(read()));
    match receive.recv_timeout(DEADLINE) {
        Ok(Ok(gpus)) => Known::Value(gpus),
        Ok(Err(e)) => Known::Unknown(format!("NVML: {e}")),
        Err(_) => Known::Unknown(format!("NVML has not answered for {} s", DEADLINE.as_secs())),
    }
}

fn read() -> Result<Vec<Gpu>, NvmlError> {
    let nvml = Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init()?;
    let count = nvml.device_count()?;
    Ok((0..count)
        .map(|index| nvml.device_by_index(index).map_or_else(|e| lost(index, &e), |d| gpu(index, &d)))
        .collect())
}

fn lost(index: u32, error: &NvmlError) -> Gpu {
    Gpu {
        index,
        id: DeviceId(String::new()),
        name: String::new(),
        read_at: now(),
        listed_at: now(),
        memory: Known::Unknown(error.to_string()),
        processes: Known::Unknown(error.to_string()),
        temperature_c: None,
        power_w: None,
        utilization_percent: None,
    }
}

fn gpu(index: u32, device: &Device) -> Gpu {
    let memory = device.memory_info().map(|info| GpuMemory {
        total: Bytes(info.total),
        reserved: Bytes(info.reserved),
        used: Bytes(info.used),
        free: Bytes(info.free),
    });
    Gpu {
        index,
        id: DeviceId(device.uuid().unwrap_or_default()),
        name: device.name().unwrap_or_default(),
        read_at: now(),
        memory: memory.map_or_else(|e| Known::Unknown(e.to_string()), Known::Value),
        processes: processes(device).map_or_else(|e| Known::Unknown(e.to_string()), Known::Value),
        listed_at: now(),
        temperature_c: device.temperature(TemperatureSensor::Gpu).ok(),
        power_w: device.power_usage().ok().map(|milliwatts| milliwatts / 1000),
        utilization_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
    }
}

/// The processes of both lists, each pid once.
fn processes(device: &Device) -> Result<Vec<GpuProcess>, NvmlError> {
    let mut found: BTreeMap<u32, Known<Bytes>> = BTreeMap::new();
    for process in device.running_compute_processes()?.into_iter().chain(device.running_graphics_processes()?)
    {
        let memory = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Known::Value(Bytes(bytes)),
            UsedGpuMemory::Unavailable => Known::Unknown("the driver does not say".to_owned()),
        };
        found.entry(process.pid).or_insert(memory);
    }
    Ok(found.into_iter().map(|(pid, memory)| of_pid(pid, memory)).collect())
}

fn of_pid(pid: u32, memory: Known<Bytes>) -> GpuProcess {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let model = read("cgroup").trim().split('/').find_map(ModelName::from_unit);
    // Nobody waits for this process here, so that its start time is not needed.
    GpuProcess { pid, started: None, program: read("comm").trim().to_owned(), memory, model }
}

fn now() -> Moment {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Moment::ZERO, Moment::from)
}
