//! berthd's fault points, armed from outside: a file in its run folder, which goes away when the fault happens.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::case::{At, Case, Kind};
use crate::Berth;

/// berthd counts anew for each file that differs from the one before.
static NUMBER: AtomicU64 = AtomicU64::new(0);

fn file(berth: &Berth, name: &str) -> PathBuf {
    berth.sandbox().root().join("run/berth").join(name)
}

fn write(berth: &Berth, fault: &Value) -> Result<()> {
    let (new, path) = (file(berth, "fault.new"), file(berth, "fault.json"));
    fs::write(&new, fault.to_string())
        .and_then(|()| fs::rename(&new, &path))
        .context("a fault can't be armed")
}

fn number() -> u64 {
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// Lets it happen.
pub(super) fn arm(berth: &Berth, case: &Case) -> Result<()> {
    let happens = match case.kind {
        Kind::Kill => "kill",
        Kind::Cut => "halt",
        Kind::Fail => "fail",
    };
    let (at, since): (&At, Option<&At>) = (&case.point.at, case.point.since.as_ref());
    write(berth, &json!({ "happens": happens, "at": at, "since": since, "number": number() }))
}

/// Whether what was armed has happened.
pub(super) fn has_happened(berth: &Berth) -> bool {
    fs::symlink_metadata(file(berth, "fault.json")).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Nothing happens any more.
pub(super) fn disarm(berth: &Berth) -> Result<()> {
    match fs::remove_file(file(berth, "fault.json")) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("a fault can't be disarmed"),
        _ => Ok(()),
    }
}

/// The ledger is not synced from now on.
pub(super) fn leave_ledger_unsynced(berth: &Berth) -> Result<()> {
    write(berth, &json!({ "happens": "unsynced", "number": number() }))
}

/// All points that berthd passes while `act` acts, in their order.
pub(super) fn passed(berth: &Berth, act: impl FnOnce(&Berth) -> Result<()>) -> Result<Vec<String>> {
    let points = file(berth, "fault.points");
    if let Err(error) = fs::remove_file(&points)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error).context("the points of the last time can't be removed");
    }
    write(berth, &json!({ "happens": "record", "number": number() }))?;
    let acted = act(berth);
    disarm(berth)?;
    acted?;
    let text = fs::read_to_string(&points).context("berthd passed no point: has it fault points?")?;
    Ok(text.lines().map(str::to_owned).collect())
}
