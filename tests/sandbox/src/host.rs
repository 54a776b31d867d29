//! What the host must have for a sandbox to run in it, and a clear refusal where it hasn't.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// What of the host a sandbox builds on.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// Where cgroup2 is mounted.
    pub(crate) cgroup2: PathBuf,
    /// The host runs systemd itself: cgroups are asked from it, in a delegated scope.
    pub(crate) systemd: bool,
}

/// Programs that a sandbox calls or boots, any one path of each row, and the Debian package with them.
const PROGRAMS: &[(&[&str], &str)] = &[
    (&["/lib/systemd/systemd"], "systemd"),
    (&["dbus-daemon", "dbus-broker"], "dbus"),
    (&["/usr/lib/polkit-1/polkitd", "/usr/libexec/polkitd"], "polkitd"),
    (&["unshare"], "util-linux"),
    (&["nsenter"], "util-linux"),
    (&["setpriv"], "util-linux"),
    (&["setsid"], "util-linux"),
    (&["pivot_root"], "util-linux"),
    (&["script"], "bsdutils"),
    (&["mount"], "mount"),
    (&["mkfs.ext4"], "e2fsprogs"),
    (&["perl"], "perl-base"),
];

/// What was seen of the host; apart from [`Host`] so that every refusal can be tried on any machine.
#[derive(Debug)]
struct Seen {
    root: bool,
    cgroup2: Option<PathBuf>,
    can_kill_cgroups: bool,
    overlay: bool,
    loop_devices: bool,
    missing: Vec<(&'static str, &'static str)>,
}

impl Host {
    /// Looks at the host.
    ///
    /// # Errors
    /// All that is missing, each with its remedy.
    pub(crate) fn check() -> Result<Host> {
        let seen = Seen::look();
        let lacks = seen.lacks();
        if let (true, Some(cgroup2)) = (lacks.is_empty(), seen.cgroup2) {
            return Ok(Host { cgroup2, systemd: Path::new("/run/systemd/system").is_dir() });
        }
        bail!("a sandbox can't run here:\n  {}", lacks.join("\n  "));
    }

    /// The cgroup that belongs to the sandbox of this id and to nothing else.
    pub(crate) fn cgroup(&self, id: &str) -> PathBuf {
        if self.systemd {
            self.cgroup2.join("system.slice").join(format!("{}.scope", scope(id)))
        } else {
            self.cgroup2.join(scope(id))
        }
    }
}

/// The name that a sandbox's cgroup has, without systemd's suffix.
pub(crate) fn scope(id: &str) -> String {
    format!("berth-sandbox-{id}")
}

impl Seen {
    fn look() -> Seen {
        let root = nix::unistd::geteuid().is_root();
        let cgroup2 = cgroup2_mount(&fs::read_to_string("/proc/self/mounts").unwrap_or_default());
        let mut missing = Vec::new();
        for (names, package) in PROGRAMS {
            if !names.iter().any(|name| installed(name)) {
                missing.push((names[0], *package));
            }
        }
        Seen {
            root,
            // The root of the hierarchy has no cgroup.kill; the kernel that brought it had cgroup.freeze
            // and more below it for long, so its version is what tells.
            can_kill_cgroups: kernel_at_least(5, 14),
            cgroup2,
            overlay: has_overlay() || (root && modprobe("overlay") && has_overlay()),
            loop_devices: has_loop() || (root && modprobe("loop") && has_loop()),
            missing,
        }
    }

    fn lacks(&self) -> Vec<String> {
        let mut lacks = Vec::new();
        if !self.root {
            lacks.push("not root: run it with sudo, mounts and namespaces need it".to_owned());
        }
        if self.cgroup2.is_none() {
            lacks.push(
                "no cgroup2 is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup, \
                 or boot with systemd.unified_cgroup_hierarchy=1"
                    .to_owned(),
            );
        }
        if !self.can_kill_cgroups {
            lacks.push("the kernel is older than 5.14 and can't kill a cgroup: use a newer one".to_owned());
        }
        if !self.overlay {
            lacks.push("the kernel has no overlayfs: modprobe overlay, or use a kernel with it".to_owned());
        }
        if !self.loop_devices {
            lacks.push(
                "no loop device (/dev/loop-control): modprobe loop, or use a kernel with it".to_owned(),
            );
        }
        if !self.missing.is_empty() {
            let programs: Vec<&str> = self.missing.iter().map(|(program, _)| *program).collect();
            let mut packages: Vec<&str> = self.missing.iter().map(|(_, package)| *package).collect();
            packages.dedup();
            lacks.push(format!(
                "not installed: {}: apt-get install {}",
                programs.join(", "),
                packages.join(" ")
            ));
        }
        lacks
    }
}

fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (target, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(target))
    })
}

fn installed(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).any(|folder| folder.join(program).exists())
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.trim().parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

fn has_overlay() -> bool {
    fs::read_to_string("/proc/filesystems")
        .is_ok_and(|kinds| kinds.lines().any(|line| line.trim_end().ends_with("\toverlay")))
}

fn has_loop() -> bool {
    Path::new("/dev/loop-control").exists()
}

fn modprobe(module: &str) -> bool {
    Command::new("modprobe").args(["--quiet", module]).status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_refusal_names_the_remedy() {
        let seen = Seen {
            root: false,
            cgroup2: None,
            can_kill_cgroups: false,
            overlay: false,
            loop_devices: false,
            missing: vec![
                ("/lib/systemd/systemd", "systemd"),
                ("unshare", "util-linux"),
                ("nsenter", "util-linux"),
            ],
        };
        let lacks = seen.lacks().join("\n");
        for (what, remedy) in [
            ("not root", "sudo"),
            ("no cgroup2", "mount -t cgroup2"),
            ("5.14", "newer"),
            ("overlayfs", "modprobe overlay"),
            ("loop", "modprobe loop"),
            ("/lib/systemd/systemd, unshare, nsenter", "apt-get install systemd util-linux"),
        ] {
            let line = lacks.lines().find(|line| line.contains(what)).unwrap();
            assert!(line.contains(remedy), "{line}");
        }
        assert_eq!(lacks.lines().count(), 6);
    }

    #[test]
    fn finds_cgroup2_beside_version_1() {
        let mounts =
            "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_mount(mounts).unwrap(), Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(cgroup2_mount("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"), None);
    }
}
