//! Sandboxes that belong to one process and must not outlive it, even when it is killed.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::folder::OURS;

/// Waits outside for our end, and cleans up after us. `root/owner-gone.sh` tells how.
#[derive(Debug)]
pub(crate) struct Caretaker(Child);

impl Caretaker {
    pub(crate) fn post(cgroup: &Path, folder: &Path) -> Result<Caretaker> {
        // A session of its own: what kills a test's whole process group leaves it alive.
        let child = Command::new("setsid")
            .args(["sh", "-c", include_str!("../root/owner-gone.sh"), "owner-gone"])
            .args([cgroup, folder])
            .args(OURS)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("can't run setsid")?;
        Ok(Caretaker(child))
    }

    /// Sends it home: we have cleaned up ourselves.
    pub(crate) fn dismiss(mut self) {
        if let Some(mut stdin) = self.0.stdin.take() {
            stdin.write_all(b"done\n").ok();
        }
        self.0.wait().ok();
    }
}
