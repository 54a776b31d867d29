//! The cgroups of one sandbox: all of its processes are in them, so that none can be missed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::wait::wait_until;

/// The part of the cgroup tree that belongs to one sandbox. `root/launch.sh` draws it.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    base: PathBuf,
}

impl Cgroups {
    pub(crate) fn at(base: &Path) -> Cgroups {
        Cgroups { base: base.to_owned() }
    }

    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    /// Makes the top one, on a host where no systemd does it.
    pub(crate) fn create(&self) -> Result<()> {
        fs::create_dir(&self.base).with_context(|| {
            format!("can't make the cgroup {}: is the cgroup tree read-only here?", self.base.display())
        })
    }

    /// Where `exec` runs things, so that no service's cgroup holds them.
    pub(crate) fn exec(&self) -> PathBuf {
        self.base.join("guest/sandbox-exec")
    }

    /// Makes the cgroup for `exec`.
    pub(crate) fn create_exec(&self) -> Result<()> {
        let path = self.exec();
        fs::create_dir_all(&path).with_context(|| format!("can't make the cgroup {}", path.display()))
    }

    /// Moves the process that waits for the guest's PID 1 out of the guest's sight.
    pub(crate) fn hold(&self, pid: u32) -> Result<()> {
        let path = self.base.join("holder/cgroup.procs");
        fs::write(&path, pid.to_string())
            .with_context(|| format!("can't move process {pid} to {}", path.display()))
    }

    /// The host's number of the guest's PID 1, once there is one.
    pub(crate) fn pid1(&self) -> Option<u32> {
        // It starts in the guest's root and moves to its scope when it has become systemd.
        ["guest", "guest/init.scope"]
            .iter()
            .filter_map(|folder| fs::read_to_string(self.base.join(folder).join("cgroup.procs")).ok())
            .flat_map(|pids| pids.lines().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
            .find(|pid| is_first_of_its_namespace(*pid))
    }

    /// Whether any process of the sandbox lives.
    pub(crate) fn populated(&self) -> bool {
        fs::read_to_string(self.base.join("cgroup.events"))
            .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// Stops every process of the guest where it is. A process in an uninterruptible call may not follow
    /// within 500 ms; then the others stand still at least.
    pub(crate) fn freeze(&self) -> Result<()> {
        let guest = self.base.join("guest");
        fs::write(guest.join("cgroup.freeze"), "1")
            .with_context(|| format!("can't freeze {}", guest.display()))?;
        wait_until(Duration::from_millis(500), || {
            fs::read_to_string(guest.join("cgroup.events")).is_ok_and(|events| events.contains("frozen 1"))
        });
        Ok(())
    }

    /// Lets them go on.
    pub(crate) fn thaw(&self) -> Result<()> {
        let guest = self.base.join("guest");
        fs::write(guest.join("cgroup.freeze"), "0").with_context(|| format!("can't thaw {}", guest.display()))
    }

    /// Kills all that is in it, waits at most 10 s until it is gone, and removes the cgroups.
    ///
    /// # Errors
    /// A process that survives SIGKILL, by pid.
    pub(crate) fn kill_and_remove(&self) -> Result<()> {
        if !self.base.exists() {
            return Ok(());
        }
        // The guest first: its PID 1 is then collected by the process that waits for it, and not left to the
        // host's. It may not have come as far as a cgroup.
        fs::write(self.base.join("guest/cgroup.kill"), "1").ok();
        wait_until(Duration::from_secs(2), || !self.populated());
        let kill = self.base.join("cgroup.kill");
        match fs::write(&kill, "1") {
            // Of an empty scope the host's systemd is rid sooner than we are.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            killed => killed.with_context(|| format!("can't kill by {}", kill.display()))?,
        }
        if !wait_until(Duration::from_secs(10), || !self.populated()) {
            let mut pids = Vec::new();
            collect_pids(&self.base, &mut pids);
            bail!(
                "processes {} of the sandbox are still there 10 s after SIGKILL (in {}): a call to the kernel \
                 holds them; try again, or restart the machine",
                pids.join(", "),
                self.base.display()
            );
        }
        // The kernel may need a moment after the last process for a cgroup to be empty.
        let mut last = None;
        wait_until(Duration::from_secs(5), || match remove_tree(&self.base) {
            Ok(()) => true,
            Err(error) => {
                last = Some(error);
                false
            }
        });
        if self.base.exists() {
            let why = last.map_or_else(String::new, |error| format!(": {error}"));
            bail!("can't remove the cgroup {}{why}", self.base.display());
        }
        Ok(())
    }
}

/// Whether the process is PID 1 in a PID namespace below ours.
fn is_first_of_its_namespace(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))
        .is_some_and(|pids| pids.split_whitespace().count() > 1 && pids.ends_with("\t1"))
}

fn collect_pids(folder: &Path, pids: &mut Vec<String>) {
    let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    pids.extend(procs.lines().map(str::to_owned));
    for child in fs::read_dir(folder).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_pids(&child.path(), pids);
        }
    }
}

/// A cgroup's folders can be removed only one by one, children first.
fn remove_tree(folder: &Path) -> std::io::Result<()> {
    let children = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        children => children?,
    };
    for child in children {
        let child = child?;
        if child.file_type()?.is_dir() {
            remove_tree(&child.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
