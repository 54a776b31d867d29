//! `libnvidia-ml.so.1` over gpusim: the C functions of NVML that nvml-wrapper loads for what Berth reads.
//!
//! It holds no state but a count of initializations and connections to the server; what a call answers is
//! decided there. Each call has a connection to itself, so that one that hangs holds up no other.
#![allow(unsafe_code, non_snake_case, clippy::missing_safety_doc)]

pub mod events;

mod driver;
mod write;

use std::ffi::{c_char, c_int, c_uint};

use gpusim::cards::Card;
use gpusim::protocol::{Driver, Kind, Listed, Memory, Request, Sensors};
use nvml_wrapper_sys::bindings::{
    NVML_VALUE_NOT_AVAILABLE, nvmlDevice_t, nvmlEnableState_t, nvmlMemory_t, nvmlMemory_v2_t, nvmlPciInfo_t,
    nvmlProcessInfo_v1_t, nvmlProcessInfo_v2_t, nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE, nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT,
    nvmlReturn_enum_NVML_ERROR_NOT_FOUND, nvmlReturn_enum_NVML_SUCCESS, nvmlReturn_t, nvmlUtilization_t,
};

use driver::{ask, cards, device_of, handle_of, initialize, shut_down};
use write::{put, put_text, text_of};

/// What a function returns inside, before it becomes a code.
type Outcome = Result<(), nvmlReturn_t>;

/// The code of an outcome.
fn code(outcome: Outcome) -> nvmlReturn_t {
    outcome.err().unwrap_or(nvmlReturn_enum_NVML_SUCCESS)
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    code(initialize())
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit() -> nvmlReturn_t {
    code(initialize())
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> nvmlReturn_t {
    code(initialize())
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    code(shut_down())
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    driver::error_text(result).as_ptr()
}

fn driver_info() -> Result<Driver, nvmlReturn_t> {
    ask(&Request::Hello)
}

fn card(device: nvmlDevice_t) -> Result<Card, nvmlReturn_t> {
    ask(&Request::Card { device: device_of(device)? })
}

fn sensors(device: nvmlDevice_t) -> Result<Sensors, nvmlReturn_t> {
    ask(&Request::Sensors { device: device_of(device)? })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    code(driver_info().and_then(|d| unsafe { put_text(version, length, &d.driver_version) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    code(driver_info().and_then(|d| unsafe { put_text(version, length, &d.nvml_version) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> nvmlReturn_t {
    code(driver_info().and_then(|d| unsafe { put(version, d.cuda_version) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) -> nvmlReturn_t {
    unsafe { nvmlSystemGetCudaDriverVersion_v2(version) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetProcessName(
    pid: c_uint,
    name: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    let command = std::fs::read(format!("/proc/{pid}/cmdline"));
    let command = command.map_err(|_| nvmlReturn_enum_NVML_ERROR_NOT_FOUND);
    code(command.and_then(|bytes| {
        let first = bytes.split(|b| *b == 0).next().unwrap_or_default();
        unsafe { put_text(name, length, &String::from_utf8_lossy(first)) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    code(cards().and_then(|cards| unsafe { put(count, cards) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    let there = cards().and_then(|cards| {
        if index >= cards {
            return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
        }
        ask::<Card>(&Request::Card { device: index })
    });
    code(there.and_then(|card| unsafe { put(device, handle_of(card.index)) }))
}

/// The first card that fits, passing over lost ones; if none fits, what the last lost one answered.
fn find(wanted: impl Fn(&Card) -> bool) -> Result<nvmlDevice_t, nvmlReturn_t> {
    let mut error = nvmlReturn_enum_NVML_ERROR_NOT_FOUND;
    for device in 0..cards()? {
        match ask::<Card>(&Request::Card { device }) {
            Ok(card) if wanted(&card) => return Ok(handle_of(card.index)),
            Ok(_) => {}
            Err(code) => error = code,
        }
    }
    Err(error)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    let found = unsafe { text_of(uuid) }.and_then(|uuid| find(|card| card.uuid == uuid));
    code(found.and_then(|handle| unsafe { put(device, handle) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    bus_id: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    // With a domain of four digits or of eight.
    let found = unsafe { text_of(bus_id) }.and_then(|id| {
        let id = id.to_ascii_uppercase();
        find(|card| !id.is_empty() && card.bus_id().ends_with(&id))
    });
    code(found.and_then(|handle| unsafe { put(device, handle) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(
    device: nvmlDevice_t,
    name: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    code(card(device).and_then(|card| unsafe { put_text(name, length, &card.name) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(
    device: nvmlDevice_t,
    uuid: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    code(card(device).and_then(|card| unsafe { put_text(uuid, length, &card.uuid) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetIndex(device: nvmlDevice_t, index: *mut c_uint) -> nvmlReturn_t {
    code(card(device).and_then(|card| unsafe { put(index, card.index) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMinorNumber(device: nvmlDevice_t, minor: *mut c_uint) -> nvmlReturn_t {
    code(card(device).and_then(|card| unsafe { put(minor, card.index) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPersistenceMode(
    device: nvmlDevice_t,
    mode: *mut nvmlEnableState_t,
) -> nvmlReturn_t {
    code(card(device).and_then(|_| unsafe { put(mode, 1) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: nvmlDevice_t,
    major: *mut c_int,
    minor: *mut c_int,
) -> nvmlReturn_t {
    code(card(device).and_then(|_| unsafe { put(major, 12).and(put(minor, 0)) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetEnforcedPowerLimit(
    device: nvmlDevice_t,
    limit: *mut c_uint,
) -> nvmlReturn_t {
    code(card(device).and_then(|card| unsafe { put(limit, card.power_limit_mw) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerManagementLimit(
    device: nvmlDevice_t,
    limit: *mut c_uint,
) -> nvmlReturn_t {
    unsafe { nvmlDeviceGetEnforcedPowerLimit(device, limit) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPowerUsage(device: nvmlDevice_t, power: *mut c_uint) -> nvmlReturn_t {
    code(sensors(device).and_then(|s| unsafe { put(power, s.power_mw) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    sensor: c_uint,
    temperature: *mut c_uint,
) -> nvmlReturn_t {
    // There is one sensor, of the GPU.
    if sensor != 0 {
        return nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
    }
    code(sensors(device).and_then(|s| unsafe { put(temperature, s.temperature_c) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUtilizationRates(
    device: nvmlDevice_t,
    utilization: *mut nvmlUtilization_t,
) -> nvmlReturn_t {
    code(sensors(device).and_then(|s| {
        let rates = nvmlUtilization_t { gpu: s.utilization_percent, memory: s.memory_percent };
        unsafe { put(utilization, rates) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(
    device: nvmlDevice_t,
    pci: *mut nvmlPciInfo_t,
) -> nvmlReturn_t {
    code(card(device).and_then(|card| {
        let mut info = nvmlPciInfo_t {
            busIdLegacy: [0; 16],
            domain: 0,
            bus: card.bus,
            device: 0,
            pciDeviceId: 0x2d04_10de,
            pciSubSystemId: 0x0000_10de,
            busId: [0; 32],
        };
        let id = card.bus_id();
        write::fill(&mut info.busId, &id);
        write::fill(&mut info.busIdLegacy, &id[4..]);
        unsafe { put(pci, info) }
    }))
}

fn memory(device: nvmlDevice_t) -> Result<Memory, nvmlReturn_t> {
    ask(&Request::Memory { device: device_of(device)? })
}

/// The first version knows nothing of reserved memory and counts it as used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo(
    device: nvmlDevice_t,
    info: *mut nvmlMemory_t,
) -> nvmlReturn_t {
    code(memory(device).and_then(|m| {
        let reading = nvmlMemory_t { total: m.total, free: m.free, used: m.total - m.free };
        unsafe { put(info, reading) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: nvmlDevice_t,
    info: *mut nvmlMemory_v2_t,
) -> nvmlReturn_t {
    if info.is_null() {
        return nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
    }
    let version = unsafe { (*info).version };
    if version as usize != size_of::<nvmlMemory_v2_t>() | 2 << 24 {
        return nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    code(memory(device).and_then(|m| {
        let Memory { total, reserved, used, free } = m;
        unsafe { put(info, nvmlMemory_v2_t { version, total, reserved, free, used }) }
    }))
}

/// Fills a caller's array of processes: its length goes in by `count`, the number of processes comes out.
unsafe fn list<T>(
    device: nvmlDevice_t,
    kind: Kind,
    count: *mut c_uint,
    infos: *mut T,
    entry: impl Fn(&Listed) -> T,
) -> nvmlReturn_t {
    code(device_of(device).and_then(|device| {
        if count.is_null() {
            return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
        }
        let listed: Vec<Listed> = ask(&Request::Processes { device, kind })?;
        let room = unsafe { *count } as usize;
        unsafe { *count = c_uint::try_from(listed.len()).unwrap_or(c_uint::MAX) };
        if listed.len() > room {
            return Err(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
        }
        if infos.is_null() && !listed.is_empty() {
            return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
        }
        for (i, process) in listed.iter().enumerate() {
            unsafe { infos.add(i).write(entry(process)) };
        }
        Ok(())
    }))
}

fn bytes(process: &Listed) -> u64 {
    process.bytes.unwrap_or(i64::from(NVML_VALUE_NOT_AVAILABLE).cast_unsigned())
}

fn first_version(process: &Listed) -> nvmlProcessInfo_v1_t {
    nvmlProcessInfo_v1_t { pid: process.pid, usedGpuMemory: bytes(process) }
}

fn second_version(process: &Listed) -> nvmlProcessInfo_v2_t {
    let none = c_uint::MAX;
    nvmlProcessInfo_v2_t {
        pid: process.pid,
        usedGpuMemory: bytes(process),
        gpuInstanceId: none,
        computeInstanceId: none,
    }
}

/// One function of the driver's for each list and version.
macro_rules! process_lists {
    ($($name:ident, $kind:expr, $info:ty, $entry:expr;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            device: nvmlDevice_t,
            count: *mut c_uint,
            infos: *mut $info,
        ) -> nvmlReturn_t {
            unsafe { list(device, $kind, count, infos, $entry) }
        }
    )*};
}

process_lists! {
    nvmlDeviceGetComputeRunningProcesses, Kind::Compute, nvmlProcessInfo_v1_t, first_version;
    nvmlDeviceGetComputeRunningProcesses_v2, Kind::Compute, nvmlProcessInfo_v2_t, second_version;
    nvmlDeviceGetComputeRunningProcesses_v3, Kind::Compute, nvmlProcessInfo_v2_t, second_version;
    nvmlDeviceGetGraphicsRunningProcesses, Kind::Graphics, nvmlProcessInfo_v1_t, first_version;
    nvmlDeviceGetGraphicsRunningProcesses_v2, Kind::Graphics, nvmlProcessInfo_v2_t, second_version;
    nvmlDeviceGetGraphicsRunningProcesses_v3, Kind::Graphics, nvmlProcessInfo_v2_t, second_version;
}
