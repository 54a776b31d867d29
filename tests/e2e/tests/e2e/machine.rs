//! The machine below misbehaves: NVML is missing or hangs, a GPU is lost, a process does not die, berthd does.
//! Clear states, no panic, and it goes on by itself once the machine is well again.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_core::facts::Known;
use berth_core::report::{ModelState, Outcome, Status};
use berth_tests::{Berth, declaration, fake};
use nix::sys::signal::Signal;
use sandbox::signal;
use tempfile::NamedTempFile;

const EACH: &str = "14300MiB";
const SOON: Duration = Duration::from_secs(20);

/// Why no GPU can be seen, where that is so.
fn blind(status: &Status) -> Option<String> {
    match &status.gpus {
        Known::Unknown(why) => Some(why.clone()),
        Known::Value(_) => None,
    }
}

/// Which GPUs are known, by their index.
fn known(status: &Status) -> Vec<u32> {
    let gpus = status.gpus.value().into_iter().flatten();
    gpus.filter(|gpu| gpu.memory.value().is_some()).map(|gpu| gpu.index).collect()
}

fn codes(status: &Status) -> Vec<&str> {
    status.problems.iter().map(|problem| problem.code.as_str()).collect()
}

/// berthd is the same process, and nothing in it panicked.
fn unharmed(berth: &Berth, berthd: &str) {
    assert_eq!(berth.property("berthd.service", "MainPID"), berthd);
    let journal = berth.journal("berthd.service");
    assert!(!journal.contains("panicked"), "{journal}");
}

/// Without NVML, with one of another version, and with no GPU at all: what serves goes on, nothing is started, the
/// reason says what to do, and it comes back by itself.
#[test]
fn no_gpus_to_be_seen() {
    let berth = Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    let aeon = berth.run_of("aeon");
    let found = berth.run(None, &["find", "/usr/lib", "-name", "libnvidia-ml.so.1"]).with_code(0).stdout;
    let library = found.trim();
    let refused = |code: &str, why: &str| {
        let change = berth.change(&["switch", "genesis"]).with_code(3);
        let problem = &change.last["problem"];
        assert_eq!(problem["code"], code, "{problem:#}");
        assert!(problem["title"].as_str().unwrap().contains(why), "{problem:#}");
        assert_eq!(berth.run_of("aeon"), aeon);
        assert!(!berth.ask("aeon").is_empty());
        let text = berth.ctl(&["status"]).with_code(0).stdout;
        assert!(text.contains("aeon serves `default`"), "{text}");
    };
    let comes_back = || {
        berth.wait_for("the GPUs are seen again", SOON, |berth| {
            let status = berth.status();
            (known(&status) == [0, 1] && status.problems.is_empty()).then_some(())
        });
        assert_eq!((berth.run_of("aeon"), berth.serving()), (aeon.clone(), vec!["aeon".to_owned()]));
    };

    // The library is missing; berthd is started anew, since one that runs has it open.
    let aside = format!("{library}.aside");
    _ = berth.run(None, &["mv", library, &aside]).with_code(0);
    berth.restart_berthd();
    let why = blind(&berth.status()).unwrap();
    assert!(why.contains("can't be loaded") && why.contains("install the NVIDIA driver"), "{why}");
    assert_eq!(codes(&berth.status()), ["gpus_unknown"]);
    refused("gpu_unknown", "install the NVIDIA driver");
    let berthd = berth.property("berthd.service", "MainPID");
    _ = berth.run(None, &["mv", &aside, library]).with_code(0);
    comes_back();

    // The driver was updated below a berthd that is started anew.
    berth.gpu(&["version-mismatch", "on"]);
    unharmed(&berth, &berthd);
    berth.restart_berthd();
    let why = blind(&berth.status()).unwrap();
    assert!(why.contains("of different versions") && why.contains("reboot"), "{why}");
    refused("gpu_unknown", "of different versions");
    berth.gpu(&["version-mismatch", "off"]);
    comes_back();
    berth.switch("genesis");
    assert!(!berth.ask("genesis").is_empty());

    // No GPU at all.
    _ = berth.ctl(&["stop", "--all"]).with_code(0);
    berth.gpu(&["gpus", "0"]);
    berth.restart_berthd();
    assert_eq!(berth.status().gpus, Known::Value(vec![]));
    let refused = berth.change(&["switch", "aeon"]).with_code(3);
    assert_eq!(refused.last["problem"]["code"], "no_gpu", "{:#}", refused.last);
    assert!(refused.last["problem"]["hints"][0].is_string(), "{:#}", refused.last);
    let text = berth.ctl(&["status"]).with_code(0).stdout;
    assert!(text.contains("GPUs  none"), "{text}");
    let berthd = berth.property("berthd.service", "MainPID");
    berth.gpu(&["gpus", "2x16311"]);
    berth.wait_for("the GPUs are seen", SOON, |berth| (known(&berth.status()) == [0, 1]).then_some(()));
    berth.switch("aeon");
    unharmed(&berth, &berthd);
    assert_eq!(berth.stats().failed, 0);
}

/// A GPU that is lost is unknown, not free: what serves on another goes on, nothing is placed there, and it is
/// used again once it is back. Lost while its memory is awaited, nothing is started: the swap fails with the
/// reason within its deadline, and home comes back once the GPU has.
#[test]
fn a_gpu_is_lost() {
    let main = "node = \"tower\"\n[gpu]\nsound = \"1s\"\n[deadlines]\nstop = \"3s\"\nrelease = \"3s\"\nstart = \"10s\"\n";
    let one = |port: u16| {
        let fakellm = format!("/usr/bin/fakellm --vram 0={EACH} --port {port}");
        declaration(&fakellm, 1, EACH)
    };
    let berth = Berth::builder()
        .main(main)
        .model("small", &one(8110))
        .model("other", &one(8111))
        .fake("aeon", EACH, &[])
        .fake("genesis", EACH, &[])
        .boot();
    let berthd = berth.property("berthd.service", "MainPID");
    berth.switch("small");
    let small = berth.run_of("small");
    berth.gpu(&["lose", "1"]);
    let status = berth.wait_for("GPU 1 is unknown", SOON, |berth| {
        Some(berth.status()).filter(|status| known(status) == [0])
    });
    assert_eq!(codes(&status), ["gpu_unknown"]);
    assert!(status.problems[0].text.contains("GPU 1") && status.problems[0].text.contains("lost"));
    let text = berth.ctl(&[]).with_code(0).stdout;
    assert!(text.contains("GPU 1") && text.contains("lost"), "{text}");
    for verb in [["start", "other"], ["switch", "aeon"]] {
        let refused = berth.change(&verb).with_code(3);
        let title = refused.last["problem"]["title"].as_str().unwrap();
        assert!(title.contains("GPU 1 is unknown"), "{verb:?}: {title}");
    }
    assert_eq!(berth.run_of("small"), small);
    assert!(!berth.ask("small").is_empty());
    // Where it is not needed, it is not missed.
    berth.switch("other");
    berth.gpu(&["restore", "1"]);
    berth.wait_for("GPU 1 is back", SOON, |berth| {
        let status = berth.status();
        (known(&status) == [0, 1] && status.problems.is_empty()).then_some(())
    });
    _ = berth.ctl(&["start", "small"]).with_code(0);
    assert_eq!(berth.serving(), ["other", "small"]);

    berth.switch("aeon");
    berth.gpu(&["linger", "1500ms"]);
    let swap = berth.ctl_spawn(None, &["switch", "genesis", "--json"]);
    berth.wait_for("memory is awaited", SOON, |berth| (berth.run_of("aeon").main_pid == 0).then_some(()));
    berth.gpu(&["lose", "1"]);
    let output = swap.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(5), "{text}");
    let last = berth.status().last_swap.unwrap();
    assert_eq!(last.outcome, Some(Outcome::Degraded));
    let reason = last.reason.unwrap();
    assert!(reason.contains("GPU 1") && reason.contains("lost"), "{reason}");
    assert!(!reason.contains("GPU 0"), "GPU 0 was proved free: {reason}");
    let status = berth.status();
    assert!(codes(&status).contains(&"degraded"), "{status:?}");
    assert_eq!((berth.run_of("aeon").main_pid, berth.run_of("genesis").main_pid), (0, 0));
    berth.gpu(&["restore", "1"]);
    berth.wait_serving("aeon", SOON);
    assert!(!berth.ask("aeon").is_empty());
    berth.wait_for("all is well", SOON, |berth| berth.status().problems.is_empty().then_some(()));
    assert_eq!(berth.status().default.unwrap().as_str(), "aeon");
    unharmed(&berth, &berthd);
    assert_eq!(berth.stats().failed, 0);
}

/// NVML's calls hang for 45 s while memory is awaited (an Xid does that): longer than systemd's watchdog of berthd,
/// shorter than what the victim's release may take. Status answers meanwhile and calls the GPUs unknown; then the
/// switch goes on.
#[test]
fn nvml_hangs() {
    let patient = "[deadlines]\nrelease = \"60s\"\n";
    let aeon = format!("{}{patient}", fake(2, EACH, &[]));
    let main = "node = \"tower\"\n[gpu]\nsound = \"3s\"\n[deadlines]\nstart = \"10s\"\n";
    let berth = Berth::builder().main(main).model("aeon", &aeon).fake("genesis", EACH, &[]).boot();
    let berthd = berth.property("berthd.service", "MainPID");
    berth.switch("aeon");
    berth.gpu(&["linger", "1500ms"]);
    let accepted = berth.change(&["switch", "genesis", "--no-wait"]).with_code(0);
    assert!(accepted.last["accepted"]["swap"].is_u64(), "{:#}", accepted.last);
    berth.wait_for("memory is awaited", SOON, |berth| (berth.run_of("aeon").main_pid == 0).then_some(()));
    let began = Instant::now();
    berth.gpu(&["hang", "45s"]);
    berth.wait_for("the GPUs are unknown", SOON, |berth| {
        let status = berth.status();
        (known(&status).is_empty()).then_some(())
    });
    while began.elapsed() < Duration::from_secs(43) {
        let asked = Instant::now();
        let status = berth.ctl(&["status"]).with_code(0);
        assert!(asked.elapsed() < Duration::from_secs(3), "{status}");
        assert!(status.stdout.contains("unknown") && status.stdout.contains("NVML"), "{status}");
        let swap = berth.status().swap.unwrap_or_else(|| panic!("the swap ended: {status}"));
        assert_eq!(swap.outcome, None);
        assert_eq!(berth.run_of("genesis").main_pid, 0, "started while nothing is known");
        std::thread::sleep(Duration::from_secs(2));
    }
    berth.wait_serving("genesis", SOON);
    let last = berth.wait_for("the swap ends", SOON, |berth| {
        let status = berth.status();
        status.swap.is_none().then_some(status.last_swap.unwrap())
    });
    assert_eq!(last.outcome, Some(Outcome::Done), "{last:?}");
    // Nothing is started on a GPU that was silent for so long until it has been read soundly for a while.
    assert!(last.elapsed_ms >= 46_000, "{last:?}");
    assert!(!berth.ask("genesis").is_empty());
    unharmed(&berth, &berthd);
    assert_eq!(berth.stats().failed, 0);
}

/// An ext4 file system in the guest that can be frozen. It is thawed when this is dropped, also after a panic, and
/// after a while in any case: a frozen one would keep its writers, and with them the sandbox, for ever.
struct Disk {
    /// Its folder, whatever becomes of the guest.
    folder: File,
    device: String,
    thaws: Option<Child>,
    _image: NamedTempFile,
}

/// A program that is told the folder by its standard input.
const THERE: &str = "/proc/self/fd/0";

impl Disk {
    /// One that is mounted on /mnt.
    fn on_mnt(berth: &Berth) -> Disk {
        let image = NamedTempFile::new().unwrap();
        image.as_file().set_len(16 << 20).unwrap();
        let path = image.path().to_str().unwrap();
        host("mkfs.ext4", &["-q", "-F", path], Stdio::null());
        let device = host("losetup", &["--find", "--show", path], Stdio::null()).trim().to_owned();
        let number = device.trim_start_matches("/dev/loop");
        _ = berth.run(None, &["mknod", &device, "b", "7", number]).with_code(0);
        _ = berth.run(None, &["mount", &device, "/mnt"]).with_code(0);
        let folder = File::open(berth.sandbox().root().join("mnt")).unwrap();
        Disk { folder, device, thaws: None, _image: image }
    }

    fn stdin(&self) -> Stdio {
        self.folder.try_clone().unwrap().into()
    }

    fn freeze(&mut self) {
        let later = format!("sleep 90; exec fsfreeze -u {THERE}");
        let mut thaws = Command::new("sh");
        thaws.args(["-c", &later]).stdin(self.stdin()).process_group(0);
        self.thaws = Some(thaws.spawn().unwrap());
        host("fsfreeze", &["-f", THERE], self.stdin());
    }

    fn thaw(&self) {
        host("fsfreeze", &["-u", THERE], self.stdin());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // What is done already fails, and that is well. The guest's mount goes with the guest.
        _ = Command::new("fsfreeze").args(["-u", THERE]).stdin(self.stdin()).output();
        _ = Command::new("losetup").args(["--detach", &self.device]).output();
        if let Some(thaws) = &mut self.thaws {
            _ = signal(thaws, Signal::SIGKILL);
            _ = thaws.wait();
        }
    }
}

fn host(program: &str, arguments: &[&str], stdin: Stdio) -> String {
    let output = Command::new(program).args(arguments).stdin(stdin).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A process of the victim that survives SIGKILL, since it waits for a disk in D state: the swap fails with its
/// name, nothing is started over it, and home comes back once it is gone.
#[test]
fn a_victim_survives_sigkill() {
    let main = "node = \"tower\"\n[deadlines]\nstop = \"1s\"\nrelease = \"5s\"\nstart = \"10s\"\n";
    let berth = Berth::builder().main(main).fake("aeon", "9000MiB", &[]).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    let mut disk = Disk::on_mnt(&berth);
    disk.freeze();
    // One more process of aeon's server, with GPU memory of its own.
    let group = berth.property("berth-model@aeon.service", "ControlGroup");
    let join = "echo $$ >\"/sys/fs/cgroup$0/cgroup.procs\" && exec gpusim run --claim 0=500MiB -- \
                dd if=/dev/zero of=/mnt/file bs=4096 count=1";
    let mut writer = berth.sandbox().command(None, &["sh", "-c", join, &group]).unwrap();
    let mut writer = writer.stderr(Stdio::null()).spawn().unwrap();
    let pid = berth.wait_for("a process in D state", SOON, |berth| {
        let all = berth.run(None, &["ps", "-eo", "pid=,stat=,comm="]).with_code(0).stdout;
        let stuck = all.lines().find(|line| line.ends_with(" dd") && line.contains(" D"))?;
        stuck.split_whitespace().next().map(str::to_owned)
    });

    let change = berth.change(&["switch", "genesis"]).with_code(5);
    let reason = change.swap().reason.clone().unwrap();
    for part in ["aeon survives SIGKILL", &format!("pid {pid} (dd)"), "500 MiB", "not started over it"] {
        assert!(reason.contains(part), "`{part}` is not in: {reason}");
    }
    for _ in 0..10 {
        assert_eq!(berth.run_of("genesis").main_pid, 0);
        assert_ne!(berth.state_of("aeon"), ModelState::Serving);
        std::thread::sleep(Duration::from_millis(200));
    }
    let status = berth.status();
    assert!(codes(&status).contains(&"degraded"), "{status:?}");
    let text = berth.ctl(&[]).with_code(0).stdout;
    assert!(text.contains(&pid), "who is in the way is not said: {text}");
    disk.thaw();
    berth.wait_serving("aeon", SOON);
    assert!(!berth.ask("aeon").is_empty());
    berth.wait_for("all is well", SOON, |berth| berth.status().problems.is_empty().then_some(()));
    writer.wait().unwrap();
    assert_eq!(berth.stats().failed, 0);
}

/// Without berthd the GPUs are still shown; killed, it is missed by no model, and the next one takes over and
/// switches.
#[test]
fn berthd_is_gone() {
    let berth = Berth::builder().fake("aeon", EACH, &[]).fake("genesis", EACH, &[]).boot();
    berth.switch("aeon");
    let aeon = berth.run_of("aeon");
    for _ in 0..3 {
        let berthd = berth.property("berthd.service", "MainPID");
        _ = berth.systemctl(&["kill", "--signal=KILL", "berthd.service"]).with_code(0);
        berth.wait_for("the next berthd", SOON, |berth| {
            (berth.property("berthd.service", "MainPID") != berthd).then_some(())
        });
        berth.wait_for_berthd(SOON).unwrap();
        assert_eq!((berth.run_of("aeon"), berth.serving()), (aeon.clone(), vec!["aeon".to_owned()]));
        assert!(!berth.ask("aeon").is_empty());
    }
    _ = berth.systemctl(&["stop", "berthd.service"]).with_code(0);
    let text = berth.ctl(&["status"]).with_code(6);
    for part in ["GPU 0", "GPU 1", "aeon", "berthd is not running", "systemctl status berthd"] {
        assert!(text.stdout.contains(part), "`{part}` is not in: {text}");
    }
    let status = berth.status();
    assert_eq!((status.schema, status.uptime_ms, known(&status)), (1, None, vec![0, 1]));
    assert_eq!(codes(&status), ["berthd_not_running"]);
    _ = berth.ctl(&["switch", "genesis"]).with_code(6);
    assert_eq!(berth.run_of("aeon"), aeon);
    assert!(!berth.try_ask(8100, "x").unwrap().is_empty());

    _ = berth.systemctl(&["start", "berthd.service"]).with_code(0);
    berth.wait_for_berthd(SOON).unwrap();
    assert_eq!((berth.run_of("aeon"), berth.serving()), (aeon, vec!["aeon".to_owned()]));
    berth.switch("genesis");
    assert_eq!(berth.serving(), ["genesis"]);
    assert!(!berth.ask("genesis").is_empty());
    assert_eq!(berth.stats().failed, 0);
}
