//! The way to the server: initializations, connections, handles, and what its refusals are called in C.

use std::ffi::CStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use gpusim::client::{Client, ClientError};
use gpusim::protocol::{Code, Driver, Request};
use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED, nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST,
    nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE, nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT,
    nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH, nvmlReturn_enum_NVML_ERROR_NOT_FOUND,
    nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED, nvmlReturn_enum_NVML_ERROR_TIMEOUT,
    nvmlReturn_enum_NVML_ERROR_UNINITIALIZED, nvmlReturn_enum_NVML_ERROR_UNKNOWN,
    nvmlReturn_enum_NVML_SUCCESS, nvmlReturn_t,
};
use serde::de::DeserializeOwned;

/// How often initialized and not shut down.
static INITIALIZED: AtomicU32 = AtomicU32::new(0);
/// How many cards there were at the first of these: one that is added later is not seen until all have shut down.
static CARDS: Mutex<u32> = Mutex::new(0);
/// Connections that no call uses just now.
static IDLE: Mutex<Vec<Client>> = Mutex::new(Vec::new());

fn idle() -> std::sync::MutexGuard<'static, Vec<Client>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As `nvmlInit`.
pub(crate) fn initialize() -> Result<(), nvmlReturn_t> {
    let mut cards = CARDS.lock().unwrap_or_else(PoisonError::into_inner);
    let driver = exchange::<Driver>(&Request::Hello).map_err(|error| match error {
        ClientError::Gone { .. } => nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED,
        ClientError::Refused(failure) => name_of(failure.code),
    })?;
    if INITIALIZED.fetch_add(1, Ordering::SeqCst) == 0 {
        *cards = driver.cards;
    }
    Ok(())
}

/// As `nvmlShutdown`; the last one closes the connections.
pub(crate) fn shut_down() -> Result<(), nvmlReturn_t> {
    let before = INITIALIZED.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
    if before.map_err(|_| nvmlReturn_enum_NVML_ERROR_UNINITIALIZED)? == 1 {
        idle().clear();
    }
    Ok(())
}

/// How many cards this initialization has found.
pub(crate) fn cards() -> Result<u32, nvmlReturn_t> {
    ask::<Driver>(&Request::Hello)?;
    Ok(*CARDS.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Asks the server, if initialized.
pub(crate) fn ask<T: DeserializeOwned>(request: &Request) -> Result<T, nvmlReturn_t> {
    if INITIALIZED.load(Ordering::SeqCst) == 0 {
        return Err(nvmlReturn_enum_NVML_ERROR_UNINITIALIZED);
    }
    exchange(request).map_err(|error| match error {
        ClientError::Gone { .. } => nvmlReturn_enum_NVML_ERROR_UNKNOWN,
        ClientError::Refused(failure) => name_of(failure.code),
    })
}

/// Over an idle connection, or over a new one where there is none or the server was restarted since.
fn exchange<T: DeserializeOwned>(request: &Request) -> Result<T, ClientError> {
    let pooled = idle().pop();
    if let Some(mut client) = pooled {
        match client.call(request) {
            Err(ClientError::Gone { .. }) => idle().clear(),
            answer => {
                idle().push(client);
                return answer;
            }
        }
    }
    let mut client = Client::connect(Duration::ZERO)?;
    let answer = client.call(request);
    if !matches!(answer, Err(ClientError::Gone { .. })) {
        idle().push(client);
    }
    answer
}

fn name_of(code: Code) -> nvmlReturn_t {
    match code {
        Code::NotFound | Code::Invalid => nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT,
        Code::NotSupported => nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED,
        Code::Lost => nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST,
        Code::VersionMismatch => nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        Code::OutOfMemory | Code::Internal => nvmlReturn_enum_NVML_ERROR_UNKNOWN,
    }
}

/// The handle of a card. Handles are never followed, so they are numbers in a pointer's clothes.
pub(crate) fn handle_of(device: u32) -> nvmlDevice_t {
    std::ptr::without_provenance_mut(device as usize + 1)
}

/// The card of a handle.
pub(crate) fn device_of(handle: nvmlDevice_t) -> Result<u32, nvmlReturn_t> {
    let index = handle.addr().checked_sub(1).and_then(|index| u32::try_from(index).ok());
    index.ok_or(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)
}

/// A code in words.
#[allow(non_upper_case_globals)]
pub(crate) fn error_text(code: nvmlReturn_t) -> &'static CStr {
    match code {
        nvmlReturn_enum_NVML_SUCCESS => c"Success",
        nvmlReturn_enum_NVML_ERROR_UNINITIALIZED => c"Uninitialized",
        nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT => c"Invalid Argument",
        nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED => c"Not Supported",
        nvmlReturn_enum_NVML_ERROR_NOT_FOUND => c"Not Found",
        nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE => c"Insufficient Size",
        nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED => c"Driver Not Loaded",
        nvmlReturn_enum_NVML_ERROR_TIMEOUT => c"Timeout",
        nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST => c"GPU is lost",
        nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH => c"Driver/library version mismatch",
        nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH => c"Argument version mismatch",
        _ => c"Unknown Error",
    }
}
