//! The real `llama-server` and real weights, as `tests/assets/fetch` leaves them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::builder::workspace;

/// `tests/assets/fetch` ends with this when pip could not get something.
const UNREACHABLE: i32 = 69;

/// A folder with `llama.cpp/llama-server` and `gemma-3-270m.gguf`.
#[derive(Debug, Clone)]
pub struct Assets {
    folder: PathBuf,
}

/// Why the real parts are not there.
#[derive(Debug, Clone)]
pub struct NoAssets {
    /// pip could not get them: no network, or nothing for this kind of machine.
    pub unreachable: bool,
    /// What the fetcher said.
    pub said: String,
}

impl fmt::Display for NoAssets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the real llama-server and its weights are missing, and tests/assets/fetch said:\n{}",
            self.said
        )
    }
}

impl Assets {
    /// The assets, fetched if they are missing. At once when they are there; asked for once in a process.
    ///
    /// # Errors
    /// What the fetcher said.
    pub fn get() -> Result<Assets, NoAssets> {
        static ASSETS: OnceLock<Result<Assets, NoAssets>> = OnceLock::new();
        ASSETS.get_or_init(fetch).clone()
    }

    /// Where they lie on the host.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

fn fetch() -> Result<Assets, NoAssets> {
    let failed = |unreachable, said| NoAssets { unreachable, said };
    let script = workspace().join("tests/assets/fetch");
    let output = Command::new(&script)
        .output()
        .map_err(|error| failed(false, format!("can't run {}: {error}", script.display())))?;
    if output.status.success() {
        return Ok(Assets { folder: workspace().join(".cache/assets") });
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(failed(output.status.code() == Some(UNREACHABLE), said))
}
