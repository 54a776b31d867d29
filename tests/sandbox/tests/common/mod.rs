//! What the tests of this package share.

use std::fs;
use std::path::{Path, PathBuf};

/// A folder of a test's own, removed at its end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("sandbox-test-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file in it, with the folders above.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// Everything on the host that belongs to the sandbox with this cgroup and folder.
pub(crate) fn left(cgroup: &Path, dir: &Path) -> Vec<String> {
    let mut left = Vec::new();
    let name = cgroup.file_name().unwrap().to_str().unwrap();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        if process.file_name().to_string_lossy().parse::<u32>().is_err() {
            continue;
        }
        // A dead one that only waits for its parent, which may be the host's init, is none of ours any more.
        if fs::read_to_string(process.path().join("stat")).is_ok_and(|stat| stat.contains(") Z ")) {
            continue;
        }
        let words = fs::read_to_string(process.path().join("cmdline")).unwrap_or_default().replace('\0', " ");
        let in_cgroup =
            fs::read_to_string(process.path().join("cgroup")).is_ok_and(|path| path.contains(name));
        if in_cgroup || words.contains(name) || words.contains(dir.to_str().unwrap()) {
            left.push(format!("process {}: {words}", process.path().display()));
        }
        // Mounts of any mount namespace, not only of this one's.
        let mounts = fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
        left.extend(mounts.lines().filter(|line| line.contains(dir.to_str().unwrap())).map(str::to_owned));
    }
    for device in fs::read_dir("/sys/block").unwrap().flatten() {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(&file).starts_with(dir) {
            left.push(format!("loop device {} on {file}", device.path().display()));
        }
    }
    for path in [cgroup, dir] {
        if path.exists() {
            left.push(path.display().to_string());
        }
    }
    left
}
