//! The way back: each change that setup made, the last one first, by the code of `remove`.

use berth_core::name::ModelName;
use berth_core::report::SCHEMA;
use serde::Serialize;

use super::journal::{Journal, Step};
use super::{ABOUT, BERTHD, disabled};
use crate::add::{Consent, agreed, cannot_write, record};
use crate::changes;
use crate::complaint::Complaint;
use crate::exit::Exit;
use crate::out::Out;
use crate::remove;
use crate::render::text::{clean, paragraph};
use crate::systemd;
use crate::verbs::Context;

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    exit: u8,
    changed: bool,
    changes: &'a [String],
    left_to_do: &'a [String],
}

/// Undoes what setup did. Refused while one of its models serves; nothing was changed then.
pub(super) async fn undo(consent: Consent, berth: &Context) -> Result<Exit, Complaint> {
    let mut journal = Journal::read()?;
    let mut told = Vec::new();
    for step in journal.done.iter().rev() {
        match step {
            Step::Added { models } => {
                for model in models.iter().rev() {
                    if is_ours(model)? {
                        remove::stopped(model).await?;
                        told.push(back(model)?);
                    }
                }
            }
            Step::Disabled { unit } => told.push(format!("{unit} starts at boot again")),
            Step::Berthd { enabled, started } => {
                // Nobody would be left to stop what runs.
                if *started {
                    nothing_runs().await?;
                }
                let boot = if *enabled { "no longer starts at boot" } else { "still starts at boot" };
                let now = if *started { "is stopped" } else { "goes on" };
                told.push(format!("berthd {now}, and {boot}"));
            }
        }
    }
    let say = |changed: bool, left: &[String]| {
        let exit = if left.is_empty() { Exit::Done } else { Exit::Degraded };
        if berth.out.json {
            Out::document(&Document {
                schema: SCHEMA,
                exit: exit.code(),
                changed,
                changes: &told,
                left_to_do: left,
            });
        } else if changed {
            let lines = left.iter().map(|what| paragraph("still to do: ", &clean(what)));
            Out::say(&(lines.collect::<String>() + "All that setup changed is as it was before.\n"));
        }
        Ok(exit)
    };
    if !berth.out.json {
        let lines = told.iter().map(|line| paragraph("Undo     ", line)).collect::<String>();
        Out::say(if lines.is_empty() { "setup has changed nothing that is still there.\n" } else { &lines });
    }
    if consent.dry_run || journal.done.is_empty() {
        return say(false, &[]);
    }
    agreed(consent, "Put all of it back?")?;
    let mut left = Vec::new();
    while let Some(step) = journal.done.last() {
        match step {
            Step::Added { models } => {
                for model in models.iter().rev() {
                    if is_ours(model)? {
                        left.extend(remove::prepare(model.clone(), false).await?.carry_out(berth).await?);
                    }
                }
            }
            Step::Disabled { unit } => left.extend(enabled_again(unit).await?),
            Step::Berthd { enabled, started } => left.extend(berthd_back(*enabled, *started).await),
        }
        journal.pop()?;
    }
    say(true, &left)
}

/// Whether it still is as setup added it: somebody may have removed it meanwhile, and added it anew.
fn is_ours(model: &ModelName) -> Result<bool, Complaint> {
    Ok(record_of(model)?.is_some_and(|written| written.about == ABOUT))
}

fn record_of(model: &ModelName) -> Result<Option<changes::Record>, Complaint> {
    changes::read(&record(model))
        .map_err(|failed| Complaint::new(Exit::Usage, "unreadable", failed.to_string(), &[]))
}

fn back(model: &ModelName) -> Result<String, Complaint> {
    let unit = record_of(model)?.and_then(|written| written.unit).unwrap_or_default();
    Ok(format!(
        "{model} leaves Berth; {unit} is back as it was: its file, and what it was enabled for. It is not started"
    ))
}

async fn nothing_runs() -> Result<(), Complaint> {
    let unknown = |failed: berth_observe::systemd::SystemdError| {
        Complaint::new(Exit::Usage, "no_systemd", format!("what runs can't be seen: {failed}"), &[])
    };
    let active = systemd::active("berth-model@*").await.map_err(unknown)?;
    match active.iter().find_map(|unit| ModelName::from_unit(unit)) {
        None => Ok(()),
        Some(model) => {
            let title = format!("{model} runs, and berthd would be stopped. Nothing was changed.");
            Err(Complaint::new(Exit::Refused, "in_use", title, &["berthctl stop --all".to_owned()]))
        }
    }
}

async fn enabled_again(unit: &str) -> Result<Vec<String>, Complaint> {
    let record = disabled(unit);
    let mut left = Vec::new();
    if changes::read(&record).map_err(|failed| cannot_write(&failed))?.is_some() {
        let others = changes::undo(&record).map_err(|failed| cannot_write(&failed))?;
        left.extend(others.iter().map(|path| remove::left_alone(path)));
        left.extend(systemd::daemon_reload().await.err().map(|failed| failed.to_string()));
    }
    Ok(left)
}

async fn berthd_back(enabled: bool, started: bool) -> Vec<String> {
    let mut left = Vec::new();
    if started {
        left.extend(systemd::stop(BERTHD).await.err().map(|failed| failed.to_string()));
    }
    if enabled {
        left.extend(systemd::disable(BERTHD).await.err().map(|failed| failed.to_string()));
    }
    left
}
