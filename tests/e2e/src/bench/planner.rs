//! What a decision costs on a large machine: berth-core's own benchmark, read from where it leaves its figures.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::builder::workspace;

/// The median of the kind of plan that takes longest.
///
/// # Errors
/// It could not be run, or left no figures.
pub(crate) fn slowest() -> Result<Duration> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let run = Command::new(cargo)
        .args(["bench", "-q", "-p", "berth-core", "--bench", "plan"])
        .current_dir(workspace())
        .output()
        .context("cargo can't be run")?;
    ensure!(run.status.success(), "the planner's benchmark failed: {}", String::from_utf8_lossy(&run.stderr));
    let folder = workspace().join("target/criterion/gpus8_models100");
    let kinds = fs::read_dir(&folder).with_context(|| format!("{} is missing", folder.display()))?;
    let mut slowest = Duration::ZERO;
    for kind in kinds {
        let path = kind?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "report") {
            slowest = slowest.max(median(&path.join("new/estimates.json"))?);
        }
    }
    Ok(slowest)
}

fn median(path: &Path) -> Result<Duration> {
    let text = fs::read(path).with_context(|| format!("{} can't be read", path.display()))?;
    let figures: Value = serde_json::from_slice(&text)?;
    let nanoseconds = figures["median"]["point_estimate"].as_f64().context("it has no median")?;
    Ok(Duration::from_secs_f64(nanoseconds / 1e9))
}
