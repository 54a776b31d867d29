//! Into and out of the memory of a C caller.

use std::ffi::{CStr, c_char, c_uint};

use nvml_wrapper_sys::bindings::{
    nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE, nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT, nvmlReturn_t,
};

/// Writes a value where the caller wants it.
///
/// # Safety
/// `to` is null or may be written.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) -> Result<(), nvmlReturn_t> {
    if to.is_null() {
        return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { to.write(value) };
    Ok(())
}

/// Writes a text and its closing NUL into a buffer of `length` bytes.
///
/// # Safety
/// `to` is null or may be written for `length` bytes.
pub(crate) unsafe fn put_text(to: *mut c_char, length: c_uint, text: &str) -> Result<(), nvmlReturn_t> {
    if to.is_null() {
        return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
    }
    if text.len() >= length as usize {
        return Err(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
    }
    // SAFETY: the caller vouches for `length` bytes, and text and NUL are no longer than that.
    fill(unsafe { std::slice::from_raw_parts_mut(to, text.len() + 1) }, text);
    Ok(())
}

/// Fills a buffer with a text, cut where it doesn't fit, and a closing NUL.
pub(crate) fn fill(buffer: &mut [c_char], text: &str) {
    let room = buffer.len().saturating_sub(1);
    buffer.fill(0);
    for (to, byte) in buffer.iter_mut().zip(text.bytes().take(room)) {
        #[allow(clippy::cast_possible_wrap)]
        (*to = byte as c_char);
    }
}

/// A text of the caller's.
///
/// # Safety
/// `from` is null or ends in a NUL.
pub(crate) unsafe fn text_of(from: *const c_char) -> Result<String, nvmlReturn_t> {
    if from.is_null() {
        return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller vouches for the NUL.
    let text = unsafe { CStr::from_ptr(from) };
    text.to_str().map(str::to_owned).map_err(|_| nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT)
}
