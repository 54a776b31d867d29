//! NVML's errors in plain words: what it is, and what to do about it.

use nvml_wrapper::error::NvmlError;

/// Why NVML can't be used at all.
pub(super) fn of_library(error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(error) => format!(
            "NVML's library can't be loaded ({error}); install the NVIDIA driver, whose package brings libnvidia-ml.so.1"
        ),
        NvmlError::LibraryNotFound => {
            "NVML misses a library of the NVIDIA driver; install the driver again".to_owned()
        }
        NvmlError::DriverNotLoaded => {
            "the NVIDIA driver is not loaded; load it with `modprobe nvidia`, and where that fails see `dmesg`"
                .to_owned()
        }
        NvmlError::LibRmVersionMismatch => {
            "NVML's library and the loaded NVIDIA driver are of different versions, as after an update; reboot, or \
             unload and load the driver"
                .to_owned()
        }
        NvmlError::NoPermission => {
            "this user may not use the NVIDIA driver; give it access to /dev/nvidiactl and /dev/nvidia0 and the like"
                .to_owned()
        }
        other => format!("NVML can't be used: {}", plain(other)),
    }
}

/// Why a value of one GPU is not known.
pub(super) fn of_device(what: &str, error: &NvmlError) -> String {
    match error {
        NvmlError::GpuLost => {
            "GPU is lost: it no longer answers on the bus; see `dmesg` for its Xid, then reset it or reboot"
                .to_owned()
        }
        NvmlError::ResetRequired => {
            "GPU needs a reset before it can be used; see `nvidia-smi --gpu-reset`".to_owned()
        }
        NvmlError::NotSupported => format!("NVML gives no {what} for this GPU"),
        NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => {
            format!("this NVML gives no {what}; Berth needs an NVIDIA driver of version 510 or newer")
        }
        NvmlError::NoPermission => format!("this user may not read the {what} of this GPU"),
        other => format!("the {what} can't be read: {}", plain(other)),
    }
}

/// Whether the whole library must be initialised again, not just the one device be found again.
pub(super) fn is_of_library(error: &NvmlError) -> bool {
    matches!(error, NvmlError::Uninitialized | NvmlError::DriverNotLoaded | NvmlError::LibRmVersionMismatch)
}

/// Whether only the value is missing, and the handle is as good as before.
pub(super) fn is_absence(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::NotSupported
            | NvmlError::NoPermission
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::FunctionNotFound
            | NvmlError::Timeout
    )
}

fn plain(error: &NvmlError) -> String {
    match error {
        NvmlError::Unknown => "the driver reports an unknown error; see `dmesg`".to_owned(),
        NvmlError::DriverNotLoaded => "the NVIDIA driver is not loaded".to_owned(),
        NvmlError::Timeout => "the driver did not answer in time".to_owned(),
        NvmlError::UnexpectedVariant(code) => format!("NVML reports error {code}, which is not known here"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_is_too_old_is_told_apart_from_a_gpu_that_fails() {
        let old = NvmlError::FailedToLoadSymbol("nvmlDeviceGetMemoryInfo_v2".to_owned());
        assert_eq!(
            of_device("memory info", &old),
            "this NVML gives no memory info; Berth needs an NVIDIA driver of version 510 or newer"
        );
        assert!(is_absence(&old) && !is_absence(&NvmlError::GpuLost));
        assert!(is_of_library(&NvmlError::Uninitialized) && !is_of_library(&NvmlError::GpuLost));
        assert!(of_library(&NvmlError::NoPermission).contains("/dev/nvidiactl"));
        assert!(
            of_library(&NvmlError::LibRmVersionMismatch).ends_with("reboot, or unload and load the driver")
        );
    }
}
