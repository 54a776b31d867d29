//! Event sets: Xids, which the driver reports between calls.

use std::ffi::{c_uint, c_ulonglong};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use gpusim::protocol::{Request, Xid};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT,
    nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED, nvmlReturn_enum_NVML_ERROR_TIMEOUT, nvmlReturn_t,
};

use crate::driver::{ask, device_of, handle_of};
use crate::write::put;
use crate::{Outcome, code};

/// The one type of event there is.
const XID_CRITICAL: c_ulonglong = 8;

/// What a set waits for. The pointer that C holds is to this.
struct Set {
    inner: Mutex<Waiting>,
}

struct Waiting {
    devices: Vec<u32>,
    seen: u64,
}

/// The set behind a handle.
///
/// # Safety
/// `set` is null or came from `nvmlEventSetCreate` and was not freed.
unsafe fn set_of<'a>(set: nvmlEventSet_t) -> Result<&'a Set, nvmlReturn_t> {
    // SAFETY: as above.
    unsafe { set.cast::<Set>().as_ref() }.ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    code(ask::<Vec<Xid>>(&Request::Xids { after: 0, within_ms: 0 }).and_then(|xids| {
        // What happened before is not news.
        let seen = xids.last().map_or(0, |xid| xid.number);
        let new = Box::new(Set { inner: Mutex::new(Waiting { devices: Vec::new(), seen }) });
        unsafe { put(set, Box::into_raw(new).cast()) }
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    if set.is_null() {
        return nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
    }
    // SAFETY: made by Box::into_raw in nvmlEventSetCreate, and freed once.
    drop(unsafe { Box::from_raw(set.cast::<Set>()) });
    code(Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: nvmlDevice_t,
    types: *mut c_ulonglong,
) -> nvmlReturn_t {
    code(device_of(device).and_then(|_| unsafe { put(types, XID_CRITICAL) }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    types: c_ulonglong,
    set: nvmlEventSet_t,
) -> nvmlReturn_t {
    let register = || -> Outcome {
        if types & !XID_CRITICAL != 0 {
            return Err(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED);
        }
        let device = device_of(device)?;
        ask::<()>(&Request::Watch { device })?;
        let set = unsafe { set_of(set) }?;
        set.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner).devices.push(device);
        Ok(())
    };
    code(register())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    let deadline = Instant::now() + Duration::from_millis(timeout_ms.into());
    let wait = || -> Outcome {
        let set = unsafe { set_of(set) }?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(Xid { device, xid, .. }) = set.next(left)? {
                let event = nvmlEventData_t {
                    device: handle_of(device),
                    eventType: XID_CRITICAL,
                    eventData: xid,
                    gpuInstanceId: c_uint::MAX,
                    computeInstanceId: c_uint::MAX,
                };
                return unsafe { put(data, event) };
            }
            if left.is_zero() {
                return Err(nvmlReturn_enum_NVML_ERROR_TIMEOUT);
            }
        }
    };
    code(wait())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait(
    set: nvmlEventSet_t,
    data: *mut nvmlEventData_t,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    unsafe { nvmlEventSetWait_v2(set, data, timeout_ms) }
}

impl Set {
    /// The next Xid of a registered card, if one has happened or happens within this time.
    fn next(&self, within: Duration) -> Result<Option<Xid>, nvmlReturn_t> {
        // To the next millisecond, or the last part of one would be waited for in a loop.
        let within_ms = u64::try_from(within.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
        let mut waiting = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for xid in ask::<Vec<Xid>>(&Request::Xids { after: waiting.seen, within_ms })? {
            waiting.seen = xid.number;
            if waiting.devices.contains(&xid.device) {
                return Ok(Some(xid));
            }
        }
        Ok(None)
    }
}
