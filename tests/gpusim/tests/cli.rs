//! The program with real processes: claims over an exec, deaths, lingering, foreign processes, restarts.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use gpusim::Client;
use gpusim::linger::Exit;
use gpusim::protocol::{Held, Kind, Stats};
use gpusim::units::MIB;

const GPUSIM: &str = env!("CARGO_BIN_EXE_gpusim");

/// A server in a folder of its own; killed at the end.
struct Sim {
    folder: tempfile::TempDir,
    server: Child,
}

impl Drop for Sim {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn start(folder: &Path) -> Child {
    let [socket, stats, config] = ["sock", "stats", "config"].map(|name| folder.join(name));
    Command::new(GPUSIM)
        .args(["serve", "--gpus", "2x1000"])
        .args([Path::new("--socket"), &socket, Path::new("--stats"), &stats, Path::new("--config"), &config])
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Sim {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = start(folder.path());
        Sim { folder, server }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("sock")
    }

    fn client(&self) -> Client {
        let patience = Duration::from_secs(5);
        Client::connect_to(&self.socket(), patience).unwrap().limit(patience).unwrap()
    }

    fn command(&self, line: &str) -> Command {
        self.client();
        let mut command = Command::new(GPUSIM);
        command.args(line.split_whitespace()).env("GPUSIM_SOCKET", self.socket());
        command.env_remove("CUDA_VISIBLE_DEVICES");
        command
    }

    fn output(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    /// Runs `gpusim ctl …`, which must succeed.
    fn ctl(&self, line: &str) -> String {
        let output = self.output(&format!("ctl {line}"));
        assert!(output.status.success(), "ctl {line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A process that claims and then sleeps, once it holds `mib` on device 0.
    fn sleeper(&self, claims: &str, mib: u64) -> Child {
        let child = self.command(&format!("run {claims} -- sleep 60")).spawn().unwrap();
        self.until(|stats| {
            let mine = |held: &Held| held.pid == child.id() && held.comm == "sleep";
            stats.devices[0].held.iter().any(|held| mine(held) && held.bytes == mib * MIB)
        });
        child
    }

    /// Kills it, and reaps it once its death is noted: older kernels tell how a process died only until then.
    fn kill(&self, mut child: Child) {
        child.kill().unwrap();
        self.ended(&mut child);
    }

    fn ended(&self, child: &mut Child) {
        self.until(|stats| stats.releases.iter().any(|release| release.pid == child.id()));
        child.wait().unwrap();
    }

    /// Waits for the counters to be so.
    fn until(&self, so: impl Fn(&Stats) -> bool) -> Stats {
        let (mut client, deadline) = (self.client(), Instant::now() + Duration::from_secs(5));
        loop {
            let stats = client.stats().unwrap();
            if so(&stats) {
                return stats;
            }
            assert!(Instant::now() < deadline, "{stats:#?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn a_claim_survives_the_exec_and_ends_with_the_process() {
    let sim = Sim::new();
    sim.ctl("linger 80ms --device 1");
    let child = sim.sleeper("--claim 1=300MiB --claim 0=700MiB", 700);
    let pid = child.id();
    let listed = sim.client().processes(1, Kind::Compute).unwrap();
    assert_eq!((listed[0].pid, listed[0].bytes), (pid, Some(300 * MIB)));
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "sleep\n");
    let before = gpusim::sys::now_ns();
    sim.kill(child);
    let after = gpusim::sys::now_ns();

    assert_eq!(sim.client().processes(1, Kind::Compute).unwrap(), []);
    assert_eq!(sim.client().memory(0).unwrap().used, 0);
    assert_eq!(sim.client().memory(1).unwrap().used, 300 * MIB);
    let stats = sim.until(|stats| stats.devices[1].memory.used == 0);
    let [first, second] = &stats.releases[..] else { panic!("{stats:#?}") };
    assert_eq!((first.device, first.bytes, first.freed_ns), (0, 700 * MIB, first.died_ns));
    assert_eq!((second.device, second.freed_ns), (1, second.died_ns + 80_000_000));
    assert!(before < first.died_ns && first.died_ns < after, "{before} {first:?} {after}");
    assert_eq!((first.comm.as_str(), first.exit), ("sleep", Exit::Signal(9)));
    assert!(stats.now_ns >= second.freed_ns);
    assert_eq!((stats.allocations, stats.failed), (2, 0));
}

#[test]
fn too_little_memory_fails_as_the_real_one_does_and_is_counted() {
    let sim = Sim::new();
    let child = sim.sleeper("--claim-each 600MiB", 600);
    let output = sim.output("run --claim 1=300MiB -- echo started");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("allocating 300.00 MiB on device 1: cudaMalloc failed: out of memory"), "{text}");
    let stats = sim.client().stats().unwrap();
    let failure = &stats.failures[0];
    assert_eq!((stats.failed, failure.device, failure.wanted), (1, 1, 300 * MIB));
    assert_eq!(failure.free, stats.devices[1].memory.free);
    sim.kill(child);
    let output = sim.output("run --claim 1=300MiB --after 20ms -- echo started");
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"started\n"[..]));
    assert!(!sim.output("run --claim 2=1MiB -- echo started").status.success());
    assert_eq!(sim.client().stats().unwrap().failed, 1);
}

#[test]
fn cuda_visible_devices_are_honoured_by_uuid() {
    let sim = Sim::new();
    let uuid = sim.client().cards().unwrap()[1].uuid.clone();
    let child =
        sim.command("run --claim 0=100MiB -- sleep 60").env("CUDA_VISIBLE_DEVICES", uuid).spawn().unwrap();
    sim.until(|stats| stats.devices[1].memory.used == 100 * MIB && stats.devices[0].memory.used == 0);
    sim.kill(child);
}

#[test]
fn only_deaths_by_signal_linger_if_so_wanted() {
    let sim = Sim::new();
    sim.ctl("linger 60s --on-signal --above 50MiB");
    sim.ended(&mut sim.command("run --claim 0=300MiB -- true").spawn().unwrap());
    assert_eq!(sim.client().stats().unwrap().releases[0].exit, Exit::Code(0));
    assert_eq!(sim.client().memory(0).unwrap().used, 0);
    sim.kill(sim.sleeper("--claim 0=50MiB", 50));
    assert_eq!(sim.until(|s| s.releases.len() == 2).devices[0].memory.used, 0);
    sim.kill(sim.sleeper("--claim 0=51MiB", 51));
    let stats = sim.until(|s| s.releases.len() == 3);
    assert_eq!(stats.devices[0].memory.used, 51 * MIB);
    assert_eq!(stats.devices[0].lingering[0].comm, "sleep");
    assert!(sim.ctl("show").contains("dead, free in"));
}

#[test]
fn foreign_processes_are_real_and_grow() {
    let sim = Sim::new();
    let pid: u32 =
        sim.ctl("foreign Xorg --bytes 100MiB --grow-by 50MiB --after 50ms").trim().parse().unwrap();
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(), "Xorg\n");
    assert!(std::fs::read(format!("/proc/{pid}/cmdline")).unwrap().starts_with(b"Xorg\0"));
    assert_eq!(sim.client().processes(0, Kind::Graphics).unwrap()[0].bytes, Some(100 * MIB));
    sim.until(|stats| stats.devices[0].memory.used == 150 * MIB);
    sim.ctl("foreign Xorg --bytes 10MiB");
    assert_eq!(sim.client().memory(0).unwrap().used, 160 * MIB);
    sim.ctl("foreign-stop Xorg");
    assert_eq!(sim.client().memory(0).unwrap().used, 0);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    let refused = sim.output("ctl foreign Xorg --bytes 1GiB");
    assert!(!refused.status.success());
    assert_eq!(sim.client().stats().unwrap().failed, 0);
    assert!(!sim.output("ctl foreign-stop Xorg").status.success());
}

#[test]
fn a_foreign_process_can_snatch_what_is_released() {
    let sim = Sim::new();
    sim.ctl("linger 50ms");
    let child = sim.sleeper("--claim 0=700MiB", 700);
    sim.ctl("foreign thief --kind compute --bytes 500MiB --at-release --release-delay 5ms");
    assert_eq!(sim.client().memory(0).unwrap().used, 700 * MIB);
    sim.kill(child);
    sim.until(|stats| stats.devices[0].memory.used == 500 * MIB);
    assert!(!sim.output("run --claim 0=700MiB -- true").status.success());
}

#[test]
fn counters_cards_and_knobs_survive_a_kill_of_the_server() {
    let mut sim = Sim::new();
    let uuid = sim.client().cards().unwrap()[0].uuid.clone();
    sim.ctl("gpus 1x2000");
    sim.ctl("residue 64MiB");
    let foreign: u32 = sim.ctl("foreign Xorg --bytes 100MiB").trim().parse().unwrap();
    assert!(!sim.output("run --claim 0=9GiB -- true").status.success());
    sim.server.kill().unwrap();
    sim.server.wait().unwrap();
    sim.server = start(sim.folder.path());
    let stats = sim.client().stats().unwrap();
    assert_eq!((stats.failed, stats.devices.len()), (1, 1));
    assert_eq!(stats.devices[0].uuid, uuid);
    assert_eq!((stats.devices[0].memory.total, stats.devices[0].memory.used), (2000 * MIB, 64 * MIB));
    // Foreign processes end with their server.
    let deadline = Instant::now() + Duration::from_secs(5);
    while std::fs::read_to_string(format!("/proc/{foreign}/comm")).is_ok_and(|name| name == "Xorg\n") {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    sim.ctl("reset-stats");
    assert_eq!(sim.client().stats().unwrap().failed, 0);
}

#[test]
fn a_reset_leaves_healthy_cards() {
    let sim = Sim::new();
    for line in ["lose 0", "linger 60s", "memory-na --device 1", "foreign Xorg --device 1 --bytes 1MiB"] {
        sim.ctl(line);
    }
    assert!(sim.client().memory(0).is_err() && sim.client().memory(1).is_err());
    sim.ctl("reset");
    let stats = sim.client().stats().unwrap();
    assert!(stats.devices.iter().all(|d| d.knobs.is_empty() && d.held.is_empty()), "{stats:#?}");
    assert_eq!((stats.allocations, sim.client().memory(0).unwrap().used), (0, 0));
}

#[test]
fn a_second_server_is_refused_and_so_is_nonsense() {
    let sim = Sim::new();
    sim.client();
    let second = sim.command("serve").output().unwrap();
    assert!(String::from_utf8(second.stderr).unwrap().contains("already serves"));
    assert!(!sim.output("ctl lose 7").status.success());
    assert!(!sim.output("ctl linger soon").status.success());
    assert!(!sim.output("run -- /no/such/program").status.success());
}
