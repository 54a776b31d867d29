//! From a disk to a guest that answers: starts the guest's PID 1 and waits for its systemd.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::cgroup::Cgroups;
use crate::folder::{Folder, Record};
use crate::guest::{Guest, run};
use crate::host::{self, Host};
use crate::wait::{Interrupt, wait_until};

/// From the start to systemd's `running` or `degraded`.
pub(crate) const BOOT_DEADLINE: Duration = Duration::from_secs(30);

/// A guest that has booted, and the process that waits for its PID 1.
#[derive(Debug)]
pub(crate) struct Booted {
    pub(crate) guest: Guest,
    pub(crate) holder: Child,
}

/// Boots the disk in `folder`.
///
/// # Errors
/// What went wrong, with the last words of the guest; nothing of it runs then.
pub(crate) fn boot(host: &Host, folder: &Folder, record: &Record, interrupt: &Interrupt) -> Result<Booted> {
    let cgroups = Cgroups::at(&record.cgroup);
    let mut holder = None;
    let booted = launch(host, folder, record, &mut holder)
        .and_then(|()| wait_for_guest(&cgroups, &mut holder, interrupt))
        .and_then(|guest| check_wants(&guest, record).map(|()| guest))
        .and_then(|guest| if interrupt.is_set() { Err(anyhow!("interrupted")) } else { Ok(guest) });
    match (booted, holder) {
        (Ok(guest), Some(holder)) => Ok(Booted { guest, holder }),
        (outcome, holder) => {
            let mut error = outcome.err().unwrap_or_else(|| anyhow!("the guest did not start"));
            if !interrupt.is_set() {
                error = error.context(format!("the sandbox did not boot{}", last_words(folder)));
            }
            halt(folder, &cgroups, holder)?;
            Err(error)
        }
    }
}

fn launch(host: &Host, folder: &Folder, record: &Record, holder: &mut Option<Child>) -> Result<()> {
    let cgroups = Cgroups::at(&record.cgroup);
    let log = folder.file("console.log");
    let console = File::create(&log).with_context(|| format!("can't write {}", log.display()))?;
    // A session of its own: Ctrl-C and a closed terminal are not for the guest.
    let mut command = Command::new("setsid");
    if host.systemd {
        command.args(["systemd-run", "--quiet", "--scope", "--collect", "--slice=system.slice"]);
        command.arg(format!("--unit={}", host::scope(&record.id))).args(["--property=Delegate=yes", "--"]);
    } else {
        cgroups.create()?;
    }
    command
        .arg("sh")
        .arg(script(folder, "launch.sh", include_str!("../root/launch.sh"))?)
        .arg(cgroups.base());
    command.arg("sh").arg(script(folder, "boot.sh", include_str!("../root/boot.sh"))?);
    command.arg(folder.path()).arg(&record.name);
    command.arg(if record.boots == 0 { "first" } else { "again" });
    command.arg(record.tree.as_deref().unwrap_or("".as_ref()));
    for bind in &record.binds {
        let mut words = bind.from.clone().into_os_string();
        words.push(":");
        words.push(&bind.to);
        words.push(if bind.read_only { ":ro" } else { "" });
        command.arg(words);
    }
    let child = command
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(console.try_clone()?)
        .stderr(console)
        .spawn()
        .context("can't run setsid")?;
    let child = holder.insert(child);
    let started = wait_until(Duration::from_secs(10), || {
        cgroups.pid1().is_some() || child.try_wait().is_ok_and(|ended| ended.is_some())
    });
    if !started || cgroups.pid1().is_none() {
        bail!("no PID 1 was started{}", if started { "" } else { " within 10 s" });
    }
    cgroups.hold(child.id())?;
    let mut stdin = child.stdin.take().context("no pipe to the guest's PID 1")?;
    stdin.write_all(b"go\n").context("the guest's PID 1 is gone already")
}

/// Writes a script into the sandbox's folder, so that a list of processes shows its name and not its text.
fn script(folder: &Folder, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.file(name);
    fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
    Ok(path)
}

fn wait_for_guest(cgroups: &Cgroups, holder: &mut Option<Child>, interrupt: &Interrupt) -> Result<Guest> {
    let start = Instant::now();
    let mut said = String::from("nothing");
    while start.elapsed() < BOOT_DEADLINE {
        if interrupt.is_set() {
            bail!("interrupted");
        }
        if let Some(status) = holder.as_mut().map(Child::try_wait).transpose()?.flatten() {
            bail!("its PID 1 ended with {status} after {:.1} s", start.elapsed().as_secs_f64());
        }
        if let Some(pid1) = cgroups.pid1().filter(|pid1| answers(*pid1)) {
            cgroups.create_exec()?;
            let guest = Guest::new(pid1, &cgroups.exec());
            let left = BOOT_DEADLINE.saturating_sub(start.elapsed());
            let answer = run(guest.command(None, &["systemctl", "is-system-running"])?, &[], left)?;
            answer.stdout.trim().clone_into(&mut said);
            if ["running", "degraded"].contains(&said.as_str()) {
                return Ok(guest);
            }
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    bail!(
        "systemd was not up within {} s; `systemctl is-system-running` said {said:?}",
        BOOT_DEADLINE.as_secs()
    );
}

/// Whether PID 1 is systemd by now, with its control socket. Before that, its root is the host's.
fn answers(pid1: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid1}/comm")).is_ok_and(|comm| comm == "systemd\n")
        && fs::exists(format!("/proc/{pid1}/root/run/systemd/private")).unwrap_or(false)
}

/// systemd passes over a wanted unit that doesn't exist; one who asked for it wants to know.
fn check_wants(guest: &Guest, record: &Record) -> Result<()> {
    for want in &record.wants {
        let show =
            guest.command(None, &["systemctl", "show", "--property=LoadState", "--value", "--", want])?;
        let state = run(show, &[], Duration::from_secs(10))?.stdout;
        if state.trim() != "loaded" {
            bail!(
                "the wanted unit {want} can't be loaded in the guest ({}): check --want and the tree",
                state.trim()
            );
        }
    }
    Ok(())
}

/// Kills all of the guest and waits until the kernel has taken back its mounts and loop device.
pub(crate) fn halt(folder: &Folder, cgroups: &Cgroups, holder: Option<Child>) -> Result<()> {
    cgroups.kill_and_remove()?;
    if let Some(mut holder) = holder {
        // Where its cgroup was never made, it is not dead yet.
        holder.kill().ok();
        holder.wait().context("can't wait for the process that held the guest's PID 1")?;
    }
    let mut device = None;
    let freed = wait_until(Duration::from_secs(10), || {
        device = folder.loop_device();
        device.is_none()
    });
    match device {
        Some(device) if !freed => bail!(
            "{} still holds {} 10 s after the guest's end: something on the host has it open",
            device.display(),
            folder.file("berth.ext4").display()
        ),
        _ => Ok(()),
    }
}

/// The end of what the guest said, for an error.
pub(crate) fn last_words(folder: &Folder) -> String {
    let console = fs::read_to_string(folder.file("console.log")).unwrap_or_default();
    let journal = Command::new("journalctl")
        .args(["--no-pager", "--quiet", "--lines=30", "--directory"])
        .arg(folder.file("upper/var/log/journal"))
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    let console: Vec<&str> = console.lines().collect();
    let lines = console[console.len().saturating_sub(10)..].iter().copied().chain(journal.lines());
    let words = lines.fold(String::new(), |words, line| words + "\n  " + line);
    if words.is_empty() { String::new() } else { format!("; it said{words}") }
}
