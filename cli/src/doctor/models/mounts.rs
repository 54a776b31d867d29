//! What should be mounted and what is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where administrators put mount units of their own.
const UNITS: &str = "/etc/systemd/system";

/// Mount points.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Mounts {
    declared: BTreeSet<PathBuf>,
    mounted: BTreeSet<PathBuf>,
}

impl Mounts {
    /// As they are on this machine.
    pub(super) fn look() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mut mounts = Self::of(&text("/etc/fstab"), &text("/proc/self/mountinfo"));
        for entry in fs::read_dir(UNITS).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|end| end == "mount") {
                let unit = fs::read_to_string(entry.path()).unwrap_or_default();
                let place = unit.lines().find_map(|line| line.trim().strip_prefix("Where="));
                mounts.declared.extend(place.map(PathBuf::from));
            }
        }
        mounts
    }

    fn of(fstab: &str, mountinfo: &str) -> Self {
        let lines = fstab.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        let declared = lines.filter_map(|line| line.split_whitespace().nth(1));
        let mounted = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
        let absolute = |text: &str| Some(PathBuf::from(unescaped(text))).filter(|path| path.is_absolute());
        Self {
            declared: declared.filter_map(absolute).collect(),
            mounted: mounted.filter_map(absolute).collect(),
        }
    }

    /// The folder nearest above a path on which something should be mounted and is not.
    pub(super) fn missing_above(&self, path: &Path) -> Option<PathBuf> {
        let nearest = path.ancestors().find(|above| self.declared.contains(*above))?;
        (!self.mounted.contains(nearest)).then(|| nearest.to_owned())
    }
}

/// Blanks and the like are written as `\040` in both files.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\');
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[3..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_should_be_mounted_and_is_not_is_found_above_a_path() {
        let fstab = "# disks\nUUID=1 / ext4 defaults 0 1\n/dev/sdb1 /models ext4 nofail 0 2\n\
                     /dev/sdc1 /mnt/my\\040disk xfs noauto 0 0\nUUID=2 none swap sw 0 0\n";
        let mounted =
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:5 / /mnt/my\\040disk rw - xfs /dev/sdc1 rw\n";
        let mounts = Mounts::of(fstab, mounted);
        let missing = |path: &str| mounts.missing_above(Path::new(path));
        assert_eq!(missing("/models/q.gguf"), Some("/models".into()));
        assert_eq!(missing("/mnt/my disk/q.gguf"), None);
        assert_eq!(missing("/modelsx/q.gguf"), None);
        assert_eq!(missing("/home/frank/q.gguf"), None);
    }
}
