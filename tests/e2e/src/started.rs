//! What a program was started with, as it tells itself: the program `tell` stands in for any server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::{env, fs, io};

use nix::unistd::{Gid, getgid, getgroups, getuid};
use serde::{Deserialize, Serialize};

/// Where each unit's program tells it, in a file of the unit's name.
pub const STARTED: &str = "/var/tmp/started";

/// All that the one who starts a program decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// The working directory.
    pub cwd: PathBuf,
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// More groups, ascending.
    pub groups: Vec<u32>,
}

impl Started {
    /// Writes down what this process was started with.
    ///
    /// # Errors
    /// It can't be found out, or the file can't be written.
    pub fn tell() -> io::Result<()> {
        let cgroup = fs::read_to_string("/proc/self/cgroup")?;
        let unit = cgroup.trim().rsplit('/').next().unwrap_or_default();
        let mut groups: Vec<u32> = getgroups()?.into_iter().map(Gid::as_raw).collect();
        groups.sort_unstable();
        let started = Self {
            argv: env::args().collect(),
            env: env::vars().collect(),
            cwd: env::current_dir()?,
            uid: getuid().as_raw(),
            gid: getgid().as_raw(),
            groups,
        };
        let path = format!("{STARTED}/{unit}");
        let unfinished = format!("{path}.new");
        fs::write(&unfinished, serde_json::to_vec(&started)?)?;
        fs::rename(unfinished, path)
    }
}
