//! The driver and the GPUs: whether kernel and library agree, whether all that are plugged in are seen, and whether servers
//! find their device nodes.

use std::fs;
use std::path::{Path, PathBuf};

use berth_core::facts::{DeviceId, Gpu, Known};
use berth_observe::nvml::Driver;
use berth_observe::scope::Scope;

use super::{Check, Finding, Ground, apart, check};
use crate::standalone::NVML;

/// As the PCI bus has them: NVIDIA, and the classes of display controllers and of those without an outlet.
const NVIDIA: &str = "0x10de";
const DISPLAYS: [&str; 2] = ["0x0300", "0x0302"];

/// Where distributions put NVML's library.
const LIBRARIES: [&str; 4] =
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];

/// What was seen of them.
#[derive(Debug)]
pub(super) struct Devices {
    /// The version of the module that the kernel has loaded; None where there is none.
    kernel: Known<Option<String>>,
    /// The version of NVML's library by its file's name.
    library: Option<String>,
    driver: Known<Driver>,
    pub(super) gpus: Known<Vec<Gpu>>,
    /// How many GPUs are on the PCI bus.
    on_bus: Known<usize>,
    before: Known<Vec<(u32, DeviceId)>>,
    /// The device nodes that servers need and that are not there.
    missing: Vec<PathBuf>,
}

pub(super) async fn look(ground: &Ground) -> Devices {
    let (kernel, library, on_bus, missing) =
        match apart(|| (kernel(), library(), on_bus(), missing_nodes())).await {
            Known::Value(seen) => seen,
            Known::Unknown(why) => (Known::Unknown(why.clone()), None, Known::Unknown(why), Vec::new()),
        };
    Devices {
        kernel,
        library,
        gpus: ground.nvml.read_all(NVML).await,
        driver: ground.nvml.read_driver(NVML).await,
        on_bus,
        before: ground.gpus_before(),
        missing,
    }
}

impl Devices {
    /// The GPUs that a service could take, none where they can't be seen; None on a machine without any.
    pub(super) fn for_rivals(&self) -> Option<Vec<Gpu>> {
        (!has_none(self)).then(|| self.gpus.value().cloned().unwrap_or_default())
    }
}

fn kernel() -> Known<Option<String>> {
    match fs::read_to_string("/sys/module/nvidia/version") {
        Ok(version) => Known::Value(Some(version.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Known::Value(None),
        Err(error) => Known::Unknown(format!("/sys/module/nvidia/version: {error}")),
    }
}

fn library() -> Option<String> {
    LIBRARIES.iter().find_map(|folder| {
        let file = fs::canonicalize(Path::new(folder).join("libnvidia-ml.so.1")).ok()?;
        Some(file.file_name()?.to_str()?.strip_prefix("libnvidia-ml.so.")?.to_owned())
    })
}

fn on_bus() -> Known<usize> {
    let devices = match fs::read_dir("/sys/bus/pci/devices") {
        Ok(devices) => devices,
        // A machine without this bus has none on it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Known::Value(0),
        Err(error) => return Known::Unknown(format!("/sys/bus/pci/devices: {error}")),
    };
    let is_gpu = |folder: PathBuf| {
        let says = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
        says("vendor").trim() == NVIDIA && DISPLAYS.iter().any(|class| says("class").starts_with(class))
    };
    Known::Value(devices.flatten().filter(|device| is_gpu(device.path())).count())
}

/// Where the driver is loaded it says which GPUs have which node.
fn missing_nodes() -> Vec<PathBuf> {
    let Ok(gpus) = fs::read_dir("/proc/driver/nvidia/gpus") else { return Vec::new() };
    let minors = gpus.flatten().filter_map(|gpu| {
        let text = fs::read_to_string(gpu.path().join("information")).ok()?;
        let minor = text.lines().find_map(|line| line.strip_prefix("Device Minor:"))?.trim();
        Some(PathBuf::from(format!("/dev/nvidia{minor}")))
    });
    let mut nodes: Vec<PathBuf> = minors.collect();
    nodes.extend(["/dev/nvidiactl", "/dev/nvidia-uvm"].map(PathBuf::from));
    nodes.retain(|node| !node.exists());
    nodes.sort();
    nodes
}

pub(super) fn judge(devices: &Devices) -> Vec<Check> {
    if has_none(devices) {
        return vec![check("GPUs", gone(devices))];
    }
    vec![
        check("driver", driver(devices)),
        check("GPUs", gpus(devices).into_iter().chain(gone(devices))),
        check("persistence mode", persistence(devices)),
        check("device nodes", nodes(devices)),
    ]
}

/// A machine without a GPU and without a driver for one: models run on the CPU there.
fn has_none(devices: &Devices) -> bool {
    devices.on_bus == Known::Value(0)
        && devices.kernel == Known::Value(None)
        && devices.gpus.value().is_none_or(Vec::is_empty)
}

fn driver(devices: &Devices) -> Option<Finding> {
    let loaded = match &devices.kernel {
        Known::Value(Some(version)) => format!("the kernel has loaded driver {version}"),
        Known::Value(None) => "the kernel has loaded no NVIDIA driver".to_owned(),
        Known::Unknown(why) => why.clone(),
    };
    let library = devices.library.as_ref().map(|version| format!("libnvidia-ml.so.1 is of {version}"));
    let evidence = || [loaded.clone()].into_iter().chain(library.clone());
    let version = match &devices.driver {
        Known::Unknown(why) => {
            let differ =
                matches!((&devices.kernel, &devices.library), (Known::Value(Some(a)), Some(b)) if a != b);
            let next = if differ { "sudo reboot" } else { "nvidia-smi; sudo dmesg | grep -i nvrm" };
            let finding = Finding::error("gpus_unknown", "", format!("the GPUs can't be seen: {why}"));
            return Some(finding.shown_by(evidence()).next(next));
        }
        Known::Value(driver) => match &driver.version {
            Known::Value(version) => version,
            Known::Unknown(why) => {
                let text = format!("NVML does not tell the driver's version: {why}");
                return Some(Finding::unknown("driver_mismatch", "", text).next("nvidia-smi"));
            }
        },
    };
    let unseen = |why: &str| {
        let text = format!("whether driver and NVML agree can't be told: NVML has {version}, {why}");
        Some(Finding::unknown("driver_mismatch", "", text).next("modinfo -F version nvidia"))
    };
    match &devices.kernel {
        Known::Value(Some(kernel)) if kernel == version => None,
        Known::Value(Some(kernel)) => {
            let text = format!("NVML is of driver {version}, and the kernel has loaded {kernel}");
            Some(Finding::error("driver_mismatch", "", text).shown_by(library).next("sudo reboot"))
        }
        Known::Value(None) => unseen("and the kernel shows no module of it, as under WSL"),
        Known::Unknown(why) => unseen(why),
    }
}

fn gpus(devices: &Devices) -> Vec<Finding> {
    // Where none can be seen the driver's check says so.
    let Known::Value(gpus) = &devices.gpus else { return Vec::new() };
    let mut found = Vec::new();
    match &devices.on_bus {
        Known::Value(there) if *there > gpus.len() => {
            let text = format!("{there} NVIDIA GPUs are on the PCI bus, and NVML shows {}", gpus.len());
            found.push(
                Finding::error("gpu_missing", "", text)
                    .shown_by(["lspci -d 10de: lists those on the bus".to_owned()])
                    .next("sudo dmesg | grep -i nvrm"),
            );
        }
        Known::Value(_) => {}
        Known::Unknown(why) => {
            let text = format!("how many GPUs are plugged in can't be told: {why}");
            found.push(Finding::unknown("gpu_missing", "", text).next("lspci -d 10de:"));
        }
    }
    for gpu in gpus {
        if let Known::Unknown(why) = &gpu.memory {
            let (index, subject) = (gpu.index, format!("GPU {}", gpu.index));
            let text = format!("GPU {index} is unknown, nothing is placed there: {why}");
            found.push(Finding::error("gpu_unknown", &subject, text).next(format!("nvidia-smi -i {index}")));
        }
    }
    found
}

/// GPUs that were there when an operator's change was done last.
fn gone(devices: &Devices) -> Vec<Finding> {
    let here = |id: &DeviceId| devices.gpus.value().into_iter().flatten().any(|gpu| gpu.id == *id);
    if devices.gpus.value().is_none() && !has_none(devices) {
        return Vec::new();
    }
    let before = match &devices.before {
        Known::Value(before) => before,
        Known::Unknown(why) => {
            let text = format!("which GPUs were here before can't be told: {why}");
            let next = match Scope::this() {
                Scope::System => "sudo berthctl doctor".to_owned(),
                Scope::User => format!("ls -l {}", Scope::User.state().display()),
            };
            return vec![Finding::unknown("gpu_gone", "", text).next(next)];
        }
    };
    let gone = before.iter().filter(|(_, id)| !here(id));
    gone.map(|(index, id)| {
        let text = format!("GPU {index} was here when berthd's last change was done, and is gone");
        Finding::error("gpu_gone", &format!("GPU {index}"), text).shown_by([format!("its UUID is {id}")]).next(
            "sudo dmesg | grep -i nvrm; if it was taken out for good, the next berthctl switch forgets it",
        )
    })
    .collect()
}

fn persistence(devices: &Devices) -> Vec<Finding> {
    let Known::Value(driver) = &devices.driver else { return Vec::new() };
    let found = driver.persistence.iter().filter_map(|(index, kept)| {
        let subject = format!("GPU {index}");
        match kept {
            Known::Value(true) => None,
            Known::Value(false) => {
                let text = format!(
                    "persistence mode of GPU {index} is off: the driver lets go of it while nobody uses it, and a start \
                     then takes seconds longer"
                );
                let next = format!(
                    "sudo systemctl enable --now nvidia-persistenced; without that service, until the next boot: \
                     sudo nvidia-smi -i {index} -pm 1"
                );
                Some(Finding::warning("persistence_off", &subject, text).next(next))
            }
            Known::Unknown(why) => {
                let text = format!("persistence mode of GPU {index} is unknown: {why}");
                Some(Finding::unknown("persistence_off", &subject, text).next(format!("nvidia-smi -i {index}")))
            }
        }
    });
    found.collect()
}

fn nodes(devices: &Devices) -> Option<Finding> {
    if devices.missing.is_empty() {
        return None;
    }
    let missing: Vec<String> = devices.missing.iter().map(|node| node.display().to_string()).collect();
    let text =
        format!("device nodes are missing, without which no server can use a GPU: {}", missing.join(", "));
    let next = match Scope::this() {
        Scope::System => "sudo systemctl restart berth-devices",
        Scope::User => "nvidia-modprobe -c 0 -u",
    };
    Some(Finding::error("device_missing", "", text).next(next))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use berth_core::facts::Known::{Unknown, Value};

    use super::*;
    use crate::doctor::Severity;

    fn gpu(index: u32, memory: Option<&str>) -> Gpu {
        Gpu {
            index,
            id: DeviceId(format!("GPU-{index}")),
            name: "RTX 5060 Ti".into(),
            read_at: std::time::Duration::ZERO,
            listed_at: std::time::Duration::ZERO,
            memory: Unknown(memory.unwrap_or("not read in this test").into()),
            processes: Unknown("not read in this test".into()),
            lost: false,
            suspect: None,
            temperature_c: None,
            power_w: None,
            utilization_percent: None,
        }
    }

    /// Two GPUs whose memory alone is unknown.
    fn sound() -> Devices {
        Devices {
            kernel: Value(Some("580.95.05".into())),
            library: Some("580.95.05".into()),
            driver: Value(Driver {
                version: Value("580.95.05".into()),
                persistence: BTreeMap::from([(0, Value(true)), (1, Value(true))]),
            }),
            gpus: Value(Vec::new()),
            on_bus: Value(0),
            before: Value(Vec::new()),
            missing: Vec::new(),
        }
    }

    fn found(devices: &Devices) -> Vec<(Severity, String, String)> {
        let all = judge(devices).into_iter().flat_map(|check| check.findings);
        all.map(|finding| (finding.severity, finding.code, finding.text)).collect()
    }

    #[track_caller]
    fn finds(devices: &Devices, severity: Severity, code: &str, text: &str) {
        let found = found(devices);
        let [(is, has, says)] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((*is, has.as_str()), (severity, code));
        assert!(says.contains(text), "{says}");
    }

    #[test]
    fn a_sound_driver_and_a_machine_without_one_are_well() {
        assert_eq!(found(&sound()), []);
        let why = || Unknown("no library".to_owned());
        let none =
            Devices { kernel: Value(None), driver: why(), gpus: Unknown("no library".into()), ..sound() };
        assert_eq!(found(&none), []);
        assert_eq!(judge(&none).len(), 1);
    }

    #[test]
    fn versions_that_differ_ask_for_a_reboot() {
        let updated = Devices { kernel: Value(Some("580.82.07".into())), ..sound() };
        finds(&updated, Severity::Error, "driver_mismatch", "NVML is of driver 580.95.05, and the kernel");
        let why = "NVML's library and the loaded NVIDIA driver are of different versions";
        let shut = Devices { driver: Unknown(why.into()), gpus: Unknown(why.into()), ..updated };
        finds(&shut, Severity::Error, "gpus_unknown", why);
        assert_eq!(judge(&shut)[0].findings[0].next, "sudo reboot");
        let wsl = Devices { kernel: Value(None), on_bus: Value(1), gpus: Value(vec![]), ..sound() };
        assert!(
            found(&wsl)
                .iter()
                .any(|(is, code, _)| (*is, code.as_str()) == (Severity::Unknown, "driver_mismatch"))
        );
    }

    #[test]
    fn gpus_that_are_expected_and_not_there_are_named() {
        finds(
            &Devices { on_bus: Value(2), ..sound() },
            Severity::Error,
            "gpu_missing",
            "2 NVIDIA GPUs are on",
        );
        let before = Value(vec![(1, DeviceId("GPU-1".into()))]);
        finds(&Devices { before, ..sound() }, Severity::Error, "gpu_gone", "GPU 1 was here");
        let here = Devices {
            before: Value(vec![(1, DeviceId("GPU-1".into()))]),
            gpus: Value(vec![gpu(1, Some("GPU is lost"))]),
            ..sound()
        };
        finds(&here, Severity::Error, "gpu_unknown", "GPU is lost");
        let hidden = Devices { before: Unknown("Permission denied".into()), ..sound() };
        finds(&hidden, Severity::Unknown, "gpu_gone", "Permission denied");
        finds(&Devices { on_bus: Unknown("no".into()), ..sound() }, Severity::Unknown, "gpu_missing", "no");
    }

    #[test]
    fn persistence_and_device_nodes() {
        let with = |persistence| {
            let version = Value("580.95.05".into());
            Devices { driver: Value(Driver { version, persistence }), ..sound() }
        };
        finds(&with([(1, Value(false))].into()), Severity::Warning, "persistence_off", "of GPU 1 is off");
        finds(&with([(1, Unknown("none".into()))].into()), Severity::Unknown, "persistence_off", "unknown");
        let missing = vec!["/dev/nvidia-uvm".into(), "/dev/nvidia1".into()];
        let text = "/dev/nvidia-uvm, /dev/nvidia1";
        finds(&Devices { missing, ..sound() }, Severity::Error, "device_missing", text);
    }
}
