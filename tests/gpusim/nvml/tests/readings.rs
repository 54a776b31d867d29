//! The library as the product sees it: loaded by nvml-wrapper, over a server in this process.
#![allow(clippy::unwrap_used, unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gpusim::protocol::{Calls, Hang, Kind, Knob, Request};
use gpusim::units::MIB;
use gpusim::{Client, server};
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;

const SECOND: Duration = Duration::from_secs(1);

/// The library that cargo built beside this test.
fn library() -> PathBuf {
    let path = std::env::current_exe().unwrap().with_file_name("libnvidia_ml.so");
    assert!(path.exists(), "{} was not built", path.display());
    path
}

fn serve(folder: &Path) -> Client {
    let options = server::Options {
        cards: vec![16311 * MIB; 2],
        socket: folder.join("gpusim.sock"),
        ..server::Options::default()
    };
    // SAFETY: this file is one test, and no other thread runs yet.
    unsafe { std::env::set_var("GPUSIM_SOCKET", &options.socket) };
    std::thread::spawn(|| server::serve(options, || ()).unwrap());
    Client::connect(5 * SECOND).unwrap().limit(5 * SECOND).unwrap()
}

// One test, since the library finds its server by an environment variable of the whole process.
#[test]
fn everything_that_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let library = library();
    let init = || Nvml::builder().lib_path(library.as_os_str()).init();

    // SAFETY: as above.
    unsafe { std::env::set_var("GPUSIM_SOCKET", folder.path().join("nobody")) };
    let absent = init();
    assert!(matches!(absent, Err(NvmlError::DriverNotLoaded)), "{absent:?}");

    let mut server = serve(folder.path());
    server.set(None, Knob::VersionMismatch(true)).unwrap();
    assert!(matches!(init(), Err(NvmlError::LibRmVersionMismatch)));
    server.set(None, Knob::VersionMismatch(false)).unwrap();

    let nvml = init().unwrap();
    identity(&nvml, &mut server);
    memory_and_processes(&nvml, &mut server);
    misbehaviour(&nvml, &mut server);
    hanging(&nvml, &mut server);
    xids(&nvml, &mut server);

    // Only a new initialization sees other cards.
    server.set(None, Knob::Cards(vec![])).unwrap();
    let second = init().unwrap();
    assert_eq!((nvml.device_count().unwrap(), second.device_count().unwrap()), (2, 2));
    second.shutdown().unwrap();
    nvml.shutdown().unwrap();
    let nvml = init().unwrap();
    assert_eq!(nvml.device_count().unwrap(), 0);
    assert!(matches!(nvml.device_by_index(0), Err(NvmlError::InvalidArg)));
    nvml.shutdown().unwrap();
}

fn identity(nvml: &Nvml, server: &mut Client) {
    assert_eq!(nvml.device_count().unwrap(), 2);
    assert_eq!(nvml.sys_driver_version().unwrap(), "580.95.05");
    assert_eq!(nvml.sys_nvml_version().unwrap(), "13.580.95.05");
    assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 13_000);
    let cards = server.cards().unwrap();
    for (index, card) in (0..).zip(&cards) {
        let device = nvml.device_by_index(index).unwrap();
        assert_eq!(device.uuid().unwrap(), card.uuid);
        assert_eq!(device.index().unwrap(), index);
        assert_eq!(device.minor_number().unwrap(), index);
        assert_eq!(device.name().unwrap(), "Simulated RTX 5060 Ti");
        assert_eq!(device.enforced_power_limit().unwrap(), 180_000);
        assert!(device.is_in_persistent_mode().unwrap());
        let pci = device.pci_info().unwrap();
        assert_eq!((pci.bus_id.as_str(), pci.bus), (card.bus_id().as_str(), index + 1));
        assert_eq!(nvml.device_by_uuid(card.uuid.as_str()).unwrap().index().unwrap(), index);
        assert_eq!(nvml.device_by_pci_bus_id(pci.bus_id.as_str()).unwrap().index().unwrap(), index);
        let sensors = device.temperature(TemperatureSensor::Gpu).unwrap();
        assert_eq!((sensors, device.power_usage().unwrap()), (36, 7_000));
        assert_eq!(device.utilization_rates().unwrap().gpu, 0);
    }
    assert!(matches!(nvml.device_by_uuid("GPU-nobody"), Err(NvmlError::NotFound)));
    assert!(matches!(nvml.device_by_index(2), Err(NvmlError::InvalidArg)));
}

fn memory_and_processes(nvml: &Nvml, server: &mut Client) {
    let device = nvml.device_by_index(1).unwrap();
    assert!(device.running_compute_processes().unwrap().is_empty());
    server.alloc(1, 14300 * MIB).unwrap();
    let graphics = Request::Alloc { device: 1, bytes: 100 * MIB, kind: Kind::Graphics };
    server.call::<()>(&graphics).unwrap();

    let memory = device.memory_info().unwrap();
    assert_eq!((memory.total, memory.used), (16311 * MIB, 14400 * MIB));
    assert!(memory.reserved > 0);
    assert_eq!(memory.total, memory.reserved + memory.free + memory.used);
    assert_eq!(nvml.device_by_index(0).unwrap().memory_info().unwrap().used, 0);

    let computing = device.running_compute_processes().unwrap();
    assert_eq!((computing.len(), computing[0].pid), (1, std::process::id()));
    assert_eq!(computing[0].used_gpu_memory, UsedGpuMemory::Used(14300 * MIB));
    assert_eq!(computing[0].gpu_instance_id, None);
    let drawing = device.running_graphics_processes().unwrap();
    assert_eq!(drawing[0].used_gpu_memory, UsedGpuMemory::Used(100 * MIB));
    assert_eq!(device.temperature(TemperatureSensor::Gpu).unwrap(), 52);
}

fn misbehaviour(nvml: &Nvml, server: &mut Client) {
    let device = nvml.device_by_index(1).unwrap();
    let mut set = |knob| server.set(Some(1), knob).unwrap();
    set(Knob::Usage(false));
    assert_eq!(device.running_compute_processes().unwrap()[0].used_gpu_memory, UsedGpuMemory::Unavailable);
    set(Knob::Lists(false));
    assert!(matches!(device.running_compute_processes(), Err(NvmlError::NotSupported)));
    set(Knob::MemoryNa(true));
    assert!(matches!(device.memory_info(), Err(NvmlError::NotSupported)));
    set(Knob::Lost(true));
    assert!(matches!(device.memory_info(), Err(NvmlError::GpuLost)));
    assert!(matches!(device.uuid(), Err(NvmlError::GpuLost)));
    assert!(matches!(nvml.device_by_index(1), Err(NvmlError::GpuLost)));
    assert_eq!(nvml.device_count().unwrap(), 2);
    set(Knob::Lost(false));
    set(Knob::MemoryNa(false));
    assert_eq!(device.memory_info().unwrap().used, 14400 * MIB);
}

fn hanging(nvml: &Nvml, server: &mut Client) {
    let (stuck, free) = (nvml.device_by_index(1).unwrap(), nvml.device_by_index(0).unwrap());
    let hang = Hang { ns: 10_000_000_000, each: false, calls: Calls::Memory };
    server.set(Some(1), Knob::Hang(hang)).unwrap();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let began = Instant::now();
            stuck.memory_info().unwrap();
            began.elapsed()
        });
        std::thread::sleep(SECOND / 5);
        assert!(!reading.is_finished());
        // Other cards, and other threads, go on meanwhile.
        let began = Instant::now();
        free.memory_info().unwrap();
        assert!(began.elapsed() < SECOND);
        server.set(Some(1), Knob::Hang(Hang { ns: 0, ..hang })).unwrap();
        let took = reading.join().unwrap();
        assert!(took > SECOND / 10 && took < 5 * SECOND, "{took:?}");
    });
}

fn xids(nvml: &Nvml, server: &mut Client) {
    let device = nvml.device_by_index(0).unwrap();
    let set = nvml.create_event_set().unwrap();
    let set = device.register_events(EventTypes::CRITICAL_XID_ERROR, set).unwrap();
    assert!(matches!(set.wait(30), Err(NvmlError::Timeout)));
    server.set(Some(1), Knob::Xid(31)).unwrap();
    server.set(Some(0), Knob::Xid(79)).unwrap();
    let event = set.wait(1000).unwrap();
    assert_eq!(event.device.index().unwrap(), 0);
    assert!(format!("{event:?}").contains("79"), "{event:?}");
    server.set(Some(1), Knob::Events(false)).unwrap();
    let refused = nvml.device_by_index(1).unwrap().register_events(EventTypes::CRITICAL_XID_ERROR, set);
    assert!(matches!(refused.unwrap_err().error, NvmlError::NotSupported));
    server.set(Some(1), Knob::Events(true)).unwrap();
}
