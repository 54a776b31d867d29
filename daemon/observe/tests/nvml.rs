//! The reading of GPUs, over the real NVML binding and the simulated library below it. Needs no root.
//!
//! Each test runs in a process of its own, with its own simulated machine: the loader looks for libnvidia-ml
//! where the environment said when the process began.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_core::bytes::Bytes;
use berth_core::facts::{DeviceId, Gpu, Known};
use berth_observe::nvml::{Nvml, Xid};
use berth_observe::proc::monotonic_now;
use tokio::sync::mpsc::UnboundedReceiver;

/// Long enough for anything that does not hang.
const LONG: Duration = Duration::from_secs(5);
const FOLDER: &str = "BERTH_TEST_FOLDER";

/// A machine with simulated GPUs, of which this process is a part.
struct Machine {
    folder: PathBuf,
    server: Option<Child>,
    children: Vec<Child>,
}

impl Machine {
    /// A part of the simulation, built beside the test: the newer one of those that `cargo build` and `cargo test`
    /// leave.
    fn part(name: &str) -> PathBuf {
        let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
        let places = [deps.with_file_name(name), deps.join(name)];
        let built =
            places.iter().max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok()).unwrap();
        assert!(built.exists(), "{} is missing; run `cargo build -p gpusim -p gpusim-nvml`", built.display());
        built.clone()
    }

    /// Runs a test in a new process that loads libraries from an otherwise empty folder.
    fn run(test: &str, body: impl FnOnce(Machine)) {
        if let Some(folder) = std::env::var_os(FOLDER) {
            return body(Machine { folder: folder.into(), server: None, children: Vec::new() });
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("lib")).unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(FOLDER, folder.path())
            .env("LD_LIBRARY_PATH", folder.path().join("lib"))
            .env("GPUSIM_SOCKET", folder.path().join("gpusim.sock"))
            .output()
            .unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        println!("{text}");
        assert!(output.status.success() && text.contains("1 passed"), "{test} failed in its own process");
    }

    fn install_library(&self) {
        let link = self.folder.join("lib/libnvidia-ml.so.1");
        std::os::unix::fs::symlink(Self::part("libnvidia_ml.so"), link).unwrap();
    }

    /// Loads the driver, as it were.
    fn start(&mut self, gpus: &str) {
        let server = Command::new(Self::part("gpusim")).args(["serve", "--gpus", gpus]).spawn().unwrap();
        self.server = Some(server);
        let end = Instant::now() + LONG;
        while !Self::try_ctl("show") {
            assert!(Instant::now() < end, "the simulation did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    /// A machine with two GPUs and all that belongs to it.
    fn ready(&mut self) {
        self.install_library();
        self.start("2x16311");
    }

    fn try_ctl(words: &str) -> bool {
        let mut command = Command::new(Self::part("gpusim"));
        command.arg("ctl").args(words.split(' ')).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    }

    fn ctl(&self, words: &str) {
        assert!(Self::try_ctl(words), "no answer from {}: gpusim ctl {words}", self.folder.display());
    }

    /// A process that holds memory of a GPU.
    fn hold(&mut self, claim: &str) -> u32 {
        let mut command = Command::new(Self::part("gpusim"));
        command.args(["run", "--claim", claim, "--", "sleep", "600"]);
        let child = command.spawn().unwrap();
        let pid = child.id();
        self.children.push(child);
        let end = Instant::now() + LONG;
        while berth_observe::proc::program_of(pid).as_deref() != Some("sleep") {
            assert!(Instant::now() < end, "no memory was claimed");
            std::thread::sleep(Duration::from_millis(10));
        }
        pid
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs a test's body in a process of its own, with a runtime.
macro_rules! in_a_machine {
    ($name:ident, $machine:ident, $body:block) => {
        #[test]
        fn $name() {
            #[allow(unused_mut)]
            Machine::run(stringify!($name), |mut $machine| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async { $body });
            });
        }
    };
}

async fn gpus(nvml: &Nvml) -> Vec<Gpu> {
    match nvml.read_all(LONG).await {
        Known::Value(gpus) => gpus,
        Known::Unknown(why) => panic!("no GPUs: {why}"),
    }
}

async fn why_none(nvml: &Nvml) -> String {
    nvml.read_all(LONG).await.why_unknown().map(str::to_owned).unwrap_or_default()
}

/// Reads until it is so, and says how long that took.
async fn until(nvml: &Nvml, limit: Duration, what: &str, is: impl Fn(&Known<Vec<Gpu>>) -> bool) -> Duration {
    let begun = Instant::now();
    loop {
        let found = nvml.read_all(LONG).await;
        if is(&found) {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < limit, "not {what} within {limit:?}: {found:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn all_well(found: &Known<Vec<Gpu>>) -> bool {
    found.value().is_some_and(|gpus| {
        gpus.len() == 2
            && gpus.iter().all(|gpu| gpu.memory.value().is_some() && gpu.processes.value().is_some())
    })
}

in_a_machine!(everything_is_read, machine, {
    machine.ready();
    let pid = machine.hold("1=1000MiB");
    machine.ctl("foreign Xorg --device 1 --bytes 400MiB --kind graphics");
    let nvml = Nvml::spawn();
    let before = monotonic_now();
    let found = gpus(&nvml).await;
    let after = monotonic_now();
    let [first, second] = found.as_slice() else { panic!("{found:?}") };
    assert_ne!(first.id, second.id);
    for (index, gpu) in (0..).zip(&found) {
        assert_eq!(gpu.index, index);
        assert!(gpu.id.0.starts_with("GPU-") && gpu.name.contains("5060"), "{gpu:?}");
        assert!(before <= gpu.read_at && gpu.read_at <= gpu.listed_at && gpu.listed_at <= after);
        assert!(gpu.temperature_c.is_some() && gpu.power_w.is_some() && gpu.utilization_percent.is_some());
        let memory = gpu.memory.value().unwrap();
        assert_eq!(memory.total, Bytes::mib(16311));
        assert!(memory.reserved > Bytes::ZERO);
        assert_eq!(memory.total, memory.reserved.plus(memory.used).plus(memory.free));
    }
    assert_eq!(first.processes, Known::Value(vec![]));
    let processes = second.processes.value().unwrap();
    let held = processes.iter().find(|process| process.pid == pid).unwrap();
    assert_eq!(held.program, "sleep");
    assert_eq!(held.started, berth_observe::proc::started(pid));
    assert_eq!((&held.memory, &held.model), (&Known::Value(Bytes::mib(1000)), &None));
    let foreign = processes.iter().find(|process| process.program == "Xorg").unwrap();
    assert_eq!(foreign.memory, Known::Value(Bytes::mib(400)));
    assert_eq!(processes.len(), 2);
    assert!(second.memory.value().unwrap().used >= Bytes::mib(1400));

    // Only what is asked for is read, and only of the devices asked for.
    let strange = DeviceId("GPU-none".to_owned());
    let some = nvml.read_memory(&[second.id.clone(), strange.clone()], LONG).await;
    assert_eq!(some.len(), 2);
    assert!(some[&second.id].0 > after && some[&second.id].1 == second.memory);
    assert_eq!(some[&strange].1, Known::Unknown("NVML lists no GPU GPU-none".to_owned()));
    let lists = nvml.read_processes(std::slice::from_ref(&second.id), LONG).await;
    assert_eq!(lists[&second.id].1, second.processes);

    // The way to NVML's thread and back alone, and with the question to the simulation, which takes longer than
    // one to a driver.
    for (what, id) in [("of no GPU", &strange), ("of one GPU", &second.id)] {
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..500 {
            let begun = Instant::now();
            let _ = nvml.read_memory(std::slice::from_ref(id), LONG).await;
            times.push(begun.elapsed());
        }
        times.sort();
        println!("read_memory {what}: p50 {:?} p99 {:?}", times[250], times[495]);
        assert!(times[250] < Duration::from_millis(5));
    }
});

in_a_machine!(a_lost_gpu_keeps_its_entry_and_comes_back, machine, {
    machine.ready();
    let nvml = Nvml::spawn();
    let before = gpus(&nvml).await;
    machine.ctl("lose 1");
    let lost = gpus(&nvml).await;
    assert_eq!(lost.len(), 2);
    assert!(lost[0].memory.value().is_some() && lost[0].processes.value().is_some());
    assert_eq!((lost[1].index, &lost[1].id, &lost[1].name), (1, &before[1].id, &before[1].name));
    for why in [lost[1].memory.why_unknown(), lost[1].processes.why_unknown()] {
        assert!(why.unwrap().starts_with("GPU is lost"), "{why:?}");
    }
    assert_eq!((lost[1].temperature_c, lost[1].power_w, lost[1].utilization_percent), (None, None, None));
    let ids = [lost[0].id.clone(), lost[1].id.clone()];
    let fast = nvml.read_memory(&ids, LONG).await;
    assert!(fast[&ids[0]].1.value().is_some());
    assert!(fast[&ids[1]].1.why_unknown().unwrap().starts_with("GPU is lost"));
    assert!(
        nvml.read_processes(&ids, LONG).await[&ids[1]].1.why_unknown().unwrap().starts_with("GPU is lost")
    );

    machine.ctl("restore 1");
    // By the fast poll alone.
    let begun = Instant::now();
    while nvml.read_memory(&ids, LONG).await[&ids[1]].1.value().is_none() {
        assert!(begun.elapsed() < 3 * Duration::from_secs(1), "it did not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("back after {:?}", begun.elapsed());
    let again = gpus(&nvml).await;
    assert!(all_well(&Known::Value(again.clone())));
    assert_eq!(again[1].id, before[1].id);
});

in_a_machine!(a_gpu_that_is_lost_from_the_start_is_counted, machine, {
    machine.ready();
    machine.ctl("lose 0");
    let nvml = Nvml::spawn();
    let found = gpus(&nvml).await;
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].index, found[0].id.0.as_str()), (0, "unknown GPU 0"));
    assert!(found[0].memory.why_unknown().unwrap().starts_with("GPU is lost"));
    assert!(found[1].memory.value().is_some());
    machine.ctl("restore 0");
    until(&nvml, LONG, "well", all_well).await;
    assert!(gpus(&nvml).await[0].id.0.starts_with("GPU-"));
});

in_a_machine!(a_hanging_call_is_not_waited_for, machine, {
    machine.ready();
    let nvml = Nvml::spawn();
    let ids: Vec<DeviceId> = gpus(&nvml).await.into_iter().map(|gpu| gpu.id).collect();
    machine.ctl("hang 3s --call memory --device 0");
    let hung = Instant::now();
    let half = Duration::from_millis(500);
    let values = nvml.read_memory(&ids, half).await;
    assert!((half..2 * half).contains(&hung.elapsed()), "{:?}", hung.elapsed());
    for id in &ids {
        let why = values[id].1.why_unknown().unwrap();
        assert_eq!(why, "NVML has not answered for 0.5 s (memory info of GPU 0)");
    }
    // Everyone else is told so at once, with the time as it grows.
    tokio::time::sleep(half).await;
    for _ in 0..200 {
        let asked = Instant::now();
        let why = why_none(&nvml).await;
        assert!(
            why.starts_with("NVML has not answered for 1.") && why.ends_with("(memory info of GPU 0)"),
            "{why}"
        );
        assert!(nvml.read_memory(&ids, LONG).await[&ids[1]].1.why_unknown().is_some());
        assert!(nvml.read_processes(&ids, LONG).await[&ids[1]].1.why_unknown().is_some());
        assert!(asked.elapsed() < Duration::from_millis(100), "{:?}", asked.elapsed());
    }
    let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
    assert!(threads <= 4, "{threads} threads");
    // And it goes on by itself.
    until(&nvml, LONG, "well", all_well).await;
    let late = hung.elapsed().checked_sub(Duration::from_secs(3)).unwrap_or_default();
    println!("readings resumed {late:?} after the call returned");
    assert!(late < Duration::from_secs(1), "{late:?}");
});

in_a_machine!(those_who_gave_up_are_not_worked_for, machine, {
    machine.ready();
    let nvml = Nvml::spawn();
    let ids: Vec<DeviceId> = gpus(&nvml).await.into_iter().map(|gpu| gpu.id).collect();
    machine.ctl("hang 400ms --call all --each");
    // Many ask before the first deadline passes; each would take several calls of 400 ms.
    let short = Duration::from_millis(200);
    let asked = (0..20).map(|_| nvml.read_memory(&ids, short));
    for values in futures_util::future::join_all(asked).await {
        assert!(values[&ids[1]].1.why_unknown().unwrap().starts_with("NVML has not answered for 0."));
    }
    // The call that was under way ends, and that is all.
    let begun = Instant::now();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let value = nvml.read_memory(&ids[1..], LONG).await;
    assert!(value[&ids[1]].1.value().is_some(), "{value:?}");
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    machine.ctl("hang 0");
});

in_a_machine!(what_nvml_does_not_give_is_unknown, machine, {
    machine.ready();
    let pid = machine.hold("0=1000MiB");
    let nvml = Nvml::spawn();
    machine.ctl("usage off --device 0");
    let found = gpus(&nvml).await;
    let process = found[0].processes.value().unwrap().iter().find(|process| process.pid == pid).unwrap();
    assert_eq!(process.memory, Known::Unknown("NVML does not say".to_owned()));
    machine.ctl("lists off --device 0");
    let found = gpus(&nvml).await;
    assert_eq!(found[0].processes, Known::Unknown("NVML gives no process list for this GPU".to_owned()));
    assert!(found[0].memory.value().is_some() && found[1].processes.value().is_some());
    machine.ctl("memory-na on --device 1");
    let found = gpus(&nvml).await;
    assert_eq!(found[1].memory, Known::Unknown("NVML gives no memory info for this GPU".to_owned()));
    assert!(found[1].processes.value().is_some() && found[1].temperature_c.is_some());
    for knob in ["usage on --device 0", "lists on --device 0", "memory-na off --device 1"] {
        machine.ctl(knob);
    }
    assert!(all_well(&nvml.read_all(LONG).await), "at once, since the handles stayed good");
});

in_a_machine!(library_and_driver_are_found_when_they_come, machine, {
    let nvml = Nvml::spawn();
    let why = why_none(&nvml).await;
    assert!(why.starts_with("NVML's library can't be loaded (libnvidia-ml.so.1: "), "{why}");
    assert!(why.contains("install the NVIDIA driver"), "{why}");
    let id = DeviceId("GPU-x".to_owned());
    let values = nvml.read_memory(std::slice::from_ref(&id), LONG).await;
    assert_eq!(values[&id].1.why_unknown(), Some(why.as_str()));

    machine.install_library();
    let not_loaded = |found: &Known<Vec<Gpu>>| {
        found
            .why_unknown()
            .is_some_and(|why| why.starts_with("the NVIDIA driver is not loaded; load it with"))
    };
    until(&nvml, 3 * Duration::from_secs(1), "loaded", not_loaded).await;

    machine.start("2x16311");
    machine.ctl("version-mismatch on");
    let mismatch = |found: &Known<Vec<Gpu>>| {
        found.why_unknown().is_some_and(|why| why.contains("of different versions"))
    };
    until(&nvml, 3 * Duration::from_secs(1), "mismatched", mismatch).await;
    machine.ctl("version-mismatch off");
    let time = until(&nvml, 3 * Duration::from_secs(1), "well", all_well).await;
    println!("found after {time:?}");
});

in_a_machine!(a_restart_of_the_driver_is_survived, machine, {
    machine.ready();
    let nvml = Nvml::spawn();
    let before: Vec<DeviceId> = gpus(&nvml).await.into_iter().map(|gpu| gpu.id).collect();
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let files = open_files();
    for _ in 0..3 {
        machine.stop();
        let unknown = |found: &Known<Vec<Gpu>>| {
            found.value().is_none_or(|gpus| gpus.iter().all(|gpu| gpu.memory.value().is_none()))
        };
        until(&nvml, LONG, "unknown", unknown).await;
        machine.start("2x16311");
        until(&nvml, LONG, "well", all_well).await;
    }
    let after: Vec<DeviceId> = gpus(&nvml).await.into_iter().map(|gpu| gpu.id).collect();
    assert_eq!(after, before);
    assert!(open_files() <= files + 1, "{} files open, {files} before", open_files());
});

in_a_machine!(no_gpu_is_an_answer, machine, {
    machine.install_library();
    machine.start("0");
    let nvml = Nvml::spawn();
    assert_eq!(nvml.read_all(LONG).await, Known::Value(vec![]));
    machine.ctl("gpus 2x16311");
    let time = until(&nvml, Duration::from_secs(12), "two", all_well).await;
    println!("added GPUs found after {time:?}");
    machine.ctl("gpus 1x16311");
    // One that was there and no longer is: unknown, and not forgotten.
    let gone = |found: &Known<Vec<Gpu>>| {
        found.value().is_some_and(|gpus| gpus.len() == 2 && gpus[1].memory.value().is_none())
    };
    until(&nvml, Duration::from_secs(12), "gone", gone).await;
});

/// Lets a GPU report an Xid until it arrives, and gives back which one did: one that is reported before it is watched
/// for is not news. What was reported earlier and arrives late is passed over.
async fn reported(machine: &Machine, xids: &mut UnboundedReceiver<Xid>, index: usize, number: u64) -> Xid {
    let end = Instant::now() + 4 * LONG;
    while xids.try_recv().is_ok() {}
    loop {
        assert!(Instant::now() < end, "Xid {number} of GPU {index} does not arrive");
        machine.ctl(&format!("xid {number} --device {index}"));
        match tokio::time::timeout(Duration::from_millis(300), xids.recv()).await {
            Ok(Some(xid)) if xid.number == number => return xid,
            Ok(None) => panic!("nobody waits for Xids any more"),
            _ => {}
        }
    }
}

in_a_machine!(xids_arrive_whatever_becomes_of_the_library, machine, {
    let nvml = Nvml::spawn();
    let mut xids = nvml.xids();
    // Nothing to watch yet.
    assert!(!why_none(&nvml).await.is_empty());
    machine.ready();
    machine.ctl("events off --device 1");
    until(&nvml, LONG, "well", all_well).await;
    let ids: Vec<DeviceId> = gpus(&nvml).await.into_iter().map(|gpu| gpu.id).collect();
    let expected = |index: usize, number| Xid { device: ids[index].clone(), number };
    assert_eq!(reported(&machine, &mut xids, 0, 79).await, expected(0, 79));
    // One that can't be watched is no harm to it or to the others, and is watched once it can be.
    machine.ctl("xid 48 --device 1");
    assert!(tokio::time::timeout(Duration::from_secs(1), xids.recv()).await.is_err());
    assert!(all_well(&nvml.read_all(LONG).await));
    machine.ctl("events on --device 1");
    assert_eq!(reported(&machine, &mut xids, 1, 48).await, expected(1, 48));

    // The other one falls off the bus and comes back.
    machine.ctl("lose 0");
    assert_eq!(reported(&machine, &mut xids, 1, 62).await, expected(1, 62));
    machine.ctl("restore 0");
    until(&nvml, LONG, "well", all_well).await;
    assert_eq!(reported(&machine, &mut xids, 0, 13).await, expected(0, 13));

    // The driver is restarted, with one more GPU, which only a new initialisation of the library sees.
    machine.stop();
    let unknown = |found: &Known<Vec<Gpu>>| {
        found.value().is_none_or(|gpus| gpus.iter().all(|gpu| gpu.memory.value().is_none()))
    };
    until(&nvml, LONG, "unknown", unknown).await;
    machine.start("3x16311");
    until(&nvml, LONG, "three", |found| all_well(found) || found.value().is_some_and(|gpus| gpus.len() == 3))
        .await;
    assert_eq!(reported(&machine, &mut xids, 0, 94).await, expected(0, 94));
    assert_eq!(reported(&machine, &mut xids, 2, 95).await.number, 95);
    // Its thread ends with the one that asks.
    drop(nvml);
    assert_eq!(tokio::time::timeout(LONG, xids.recv()).await, Ok(None));
});

in_a_machine!(a_gpu_that_is_added_is_seen_while_xids_are_watched, machine, {
    machine.install_library();
    machine.start("1x16311");
    let nvml = Nvml::spawn();
    let mut xids = nvml.xids();
    _ = gpus(&nvml).await;
    assert_eq!(reported(&machine, &mut xids, 0, 79).await.number, 79);
    // A session without all that were there is ended after a while.
    machine.ctl("gpus 2x16311");
    machine.ctl("lose 0");
    until(&nvml, Duration::from_secs(15), "two", |found| found.value().is_some_and(|gpus| gpus.len() == 2))
        .await;
    let lost: Vec<bool> = gpus(&nvml).await.iter().map(|gpu| gpu.lost).collect();
    assert_eq!(lost, [true, false]);
    assert_eq!(reported(&machine, &mut xids, 1, 79).await.number, 79);
    // One that was lost when its session began is watched as soon as it is back.
    machine.ctl("restore 0");
    until(&nvml, LONG, "well", all_well).await;
    assert_eq!(reported(&machine, &mut xids, 0, 79).await.number, 79);
});

in_a_machine!(the_driver_tells_its_version_and_whether_it_keeps_each_gpu, machine, {
    machine.ready();
    let nvml = Nvml::spawn();
    let Known::Value(driver) = nvml.read_driver(LONG).await else { panic!() };
    assert_eq!(driver.version, Known::Value("580.95.05".to_owned()));
    assert_eq!(driver.persistence, [(0, Known::Value(true)), (1, Known::Value(true))].into());
    machine.ctl("lose 1");
    let Known::Value(driver) = nvml.read_driver(LONG).await else { panic!() };
    assert!(driver.persistence[&1].why_unknown().is_some_and(|why| why.contains("lost")), "{driver:?}");
    assert_eq!(driver.persistence[&0], Known::Value(true));
});

in_a_machine!(without_the_library_nothing_is_known_of_the_driver, _machine, {
    let driver = Nvml::spawn().read_driver(LONG).await;
    assert!(driver.why_unknown().is_some_and(|why| why.contains("libnvidia-ml.so.1")), "{driver:?}");
});
