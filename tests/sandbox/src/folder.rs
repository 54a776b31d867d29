//! The folder that one sandbox lives in: its disk, and what is remembered between two commands.
//!
//! ```text
//! upper, work    what the guest changed over the host's root file system: its disk
//! root           where the guest's root is mounted, in the guest's own mount namespace
//! berth.ext4     the guest's /var/lib/berth: a disk of its own, which a power cut really cuts
//! gpusim         the guest's /var/lib/gpusim: the simulated hardware's state, which no power cut touches
//! guest          files of the sandbox's own that are copied over the guest's root once
//! sandbox.json   how it was asked for, and what runs
//! launch.sh …    the scripts that boot it
//! console.log    what was said before the guest's journal ran
//! lock           held by the one command that changes something
//! ```

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};
use serde::{Deserialize, Serialize};

use crate::wait::wait_until;

/// Bytes of the disk behind the guest's /var/lib/berth.
const BERTH_DISK: u64 = 64 << 20;

/// All names that [`Folder::wipe`] removes; nothing else in the folder is ours.
pub(crate) const OURS: &[&str] = &[
    "upper",
    "work",
    "root",
    "gpusim",
    "guest",
    "berth.ext4",
    "launch.sh",
    "boot.sh",
    "sandbox.json",
    "sandbox.json.new",
    "console.log",
    "lock",
];

/// Files of `root/guest`, by their path in the guest.
const GUEST_FILES: &[(&str, &str)] = &[
    ("etc/systemd/system/sandbox.target", include_str!("../root/guest/etc/systemd/system/sandbox.target")),
    ("etc/systemd/system/gpusim.service", include_str!("../root/guest/etc/systemd/system/gpusim.service")),
    (
        "etc/systemd/system/berthd.service.d/50-sandbox.conf",
        include_str!("../root/guest/etc/systemd/system/berthd.service.d/50-sandbox.conf"),
    ),
    (
        "etc/systemd/system/sysinit.target.d/50-sandbox.conf",
        include_str!("../root/guest/etc/systemd/system/sysinit.target.d/50-sandbox.conf"),
    ),
    (
        "etc/systemd/journald.conf.d/50-sandbox.conf",
        include_str!("../root/guest/etc/systemd/journald.conf.d/50-sandbox.conf"),
    ),
    ("etc/sysusers.d/50-sandbox.conf", include_str!("../root/guest/etc/sysusers.d/50-sandbox.conf")),
    ("etc/tmpfiles.d/50-sandbox.conf", include_str!("../root/guest/etc/tmpfiles.d/50-sandbox.conf")),
];

/// A file or folder of the host that the guest sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the host.
    pub from: PathBuf,
    /// In the guest; made where it is missing.
    pub to: PathBuf,
    /// The guest can't write to it.
    pub read_only: bool,
}

/// What is remembered of a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) gpus: String,
    pub(crate) seed: u64,
    pub(crate) tree: Option<PathBuf>,
    pub(crate) binds: Vec<Bind>,
    pub(crate) wants: Vec<String>,
    pub(crate) cgroup: PathBuf,
    /// Boots of this disk so far.
    pub(crate) boots: u32,
    /// The last boot was seen to its end; a guest that runs without this is a leftover.
    pub(crate) ready: bool,
}

/// A sandbox's folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder at this path, made if it is missing.
    pub(crate) fn create(path: &Path) -> Result<Folder> {
        fs::create_dir_all(path).with_context(|| format!("can't make the folder {}", path.display()))?;
        let folder = Folder::open(path)?;
        let what = folder.path.display();
        if folder.path.as_os_str().as_bytes().iter().any(|byte| b",:\\\"\n".contains(byte)) {
            bail!(
                "the path {what} has a comma, colon, quote or backslash, which overlayfs can't take: choose another --dir"
            );
        }
        if statfs(&folder.path).is_ok_and(|stat| stat.filesystem_type() == OVERLAYFS_SUPER_MAGIC) {
            bail!(
                "{what} lies on an overlay file system (a container's?), which can't carry another one: \
                 choose a --dir on ext4, xfs or tmpfs"
            );
        }
        if !folder.file("sandbox.json").exists() {
            for entry in fs::read_dir(&folder.path).with_context(|| format!("can't read {what}"))? {
                let name = entry?.file_name();
                if !OURS.iter().any(|ours| OsStr::new(ours) == name) {
                    bail!("{what} holds {} and no sandbox: choose an empty --dir", name.display());
                }
            }
        }
        Ok(folder)
    }

    /// The folder at this path, which must exist.
    pub(crate) fn open(path: &Path) -> Result<Folder> {
        match path.canonicalize() {
            Ok(path) => Ok(Folder { path }),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(no_sandbox(path)),
            Err(error) => Err(error).with_context(|| format!("can't look at {}", path.display())),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A file or folder in it, as the module's head lists them.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Keeps other commands from changing the same sandbox while the result lives; waits at most 5 s for one
    /// that does.
    pub(crate) fn lock(&self) -> Result<Flock<File>> {
        let path = self.file("lock");
        let what = || format!("can't lock {}", path.display());
        let mut file = Some(File::options().create(true).append(true).open(&path).with_context(what)?);
        let mut lock = None;
        wait_until(Duration::from_secs(5), || {
            let Some(unlocked) = file.take() else { return true };
            match Flock::lock(unlocked, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => lock = Some(locked),
                Err((unlocked, _)) => file = Some(unlocked),
            }
            lock.is_some()
        });
        lock.ok_or_else(|| {
            anyhow!("another command still works on {} after 5 s: let it end first", self.path.display())
        })
    }

    /// What is remembered, if there is a sandbox.
    pub(crate) fn record(&self) -> Result<Option<Record>> {
        let path = self.file("sandbox.json");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("can't read {}", path.display()))?,
        };
        let record = serde_json::from_str(&text)
            .with_context(|| format!("{} is not what a sandbox wrote: remove it", path.display()))?;
        Ok(Some(record))
    }

    /// Remembers; a reader sees the old or the new, never a half.
    pub(crate) fn remember(&self, record: &Record) -> Result<()> {
        let path = self.file("sandbox.json");
        let half = self.file("sandbox.json.new");
        fs::write(&half, serde_json::to_vec_pretty(record)?)
            .and_then(|()| fs::rename(&half, &path))
            .with_context(|| format!("can't write {}", path.display()))
    }

    /// Makes a new disk.
    pub(crate) fn make_disk(&self, record: &Record) -> Result<()> {
        for name in ["upper", "work", "root", "gpusim"] {
            let path = self.file(name);
            fs::create_dir(&path).with_context(|| format!("can't make {}", path.display()))?;
        }
        for (name, text) in GUEST_FILES {
            self.write_guest(name, text)?;
        }
        let Record { gpus, seed, wants, .. } = record;
        self.write_guest("etc/sandbox/gpusim.env", &format!("GPUSIM_GPUS={gpus}\nGPUSIM_SEED={seed}\n"))?;
        self.write_guest("etc/fstab", "# A sandbox mounts nothing by itself.\n")?;
        if !wants.is_empty() {
            let wants = wants.join(" ");
            let text = format!("[Unit]\nWants={wants}\nAfter={wants}\n");
            self.write_guest("etc/systemd/system/sandbox.target.d/50-wants.conf", &text)?;
        }
        let disk = self.file("berth.ext4");
        File::create_new(&disk)
            .and_then(|file| file.set_len(BERTH_DISK))
            .with_context(|| format!("can't make the disk {}", disk.display()))?;
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
            .arg(&disk)
            .output()
            .context("can't run mkfs.ext4")?;
        if !made.status.success() {
            bail!("mkfs.ext4 {}: {}", disk.display(), String::from_utf8_lossy(&made.stderr).trim());
        }
        Ok(())
    }

    fn write_guest(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path.join("guest").join(name);
        let folder = path.parent().unwrap_or(&self.path);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("can't write {}", path.display()))
    }

    /// Removes all that is a sandbox's; the folder itself too, unless something else lies in it.
    pub(crate) fn wipe(&self) -> Result<()> {
        self.clear()?;
        for path in [self.file("lock"), self.path.clone()] {
            let removed = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(error)
                    if ![ErrorKind::NotFound, ErrorKind::DirectoryNotEmpty].contains(&error.kind()) =>
                {
                    return Err(error).with_context(|| format!("can't remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes all that is a sandbox's but the lock, which the caller holds.
    pub(crate) fn clear(&self) -> Result<()> {
        for name in OURS.iter().filter(|name| **name != "lock") {
            let path = self.file(name);
            let removed = match fs::symlink_metadata(&path) {
                Ok(data) if data.is_dir() => fs::remove_dir_all(&path),
                Ok(_) => fs::remove_file(&path),
                Err(_) => continue,
            };
            removed.with_context(|| format!("can't remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Whether a loop device still holds the guest's disk, as for a moment after its last process died.
    pub(crate) fn loop_device(&self) -> Option<PathBuf> {
        let disk = self.file("berth.ext4");
        fs::read_dir("/sys/block").into_iter().flatten().flatten().map(|entry| entry.path()).find(|device| {
            fs::read(device.join("loop/backing_file"))
                .is_ok_and(|file| file.trim_ascii_end() == disk.as_os_str().as_bytes())
        })
    }
}

/// The error for a folder without a sandbox.
pub(crate) fn no_sandbox(path: &Path) -> anyhow::Error {
    anyhow!("there is no sandbox in {}: make one with `sandbox up`, or say where with --dir", path.display())
}
