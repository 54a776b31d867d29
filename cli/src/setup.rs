//! `berthctl setup`: what of this machine could be Berth's, each change with its reason and asked for by itself, and what
//! the machine lacks. `setup/undo.rs` is the way back.
//!
//! Services become models by the code of `add`; what was done, and in which order, is in the journal.

mod journal;
mod look;
mod show;
mod undo;

use std::path::PathBuf;
use std::time::Duration;

use berth_core::report::Status;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::add::{self, Consent, Prepared, YES, answer, askable, not_taken_up, reload, root};
use crate::args::{AddOptions, SetupOptions};
use crate::changes;
use crate::complaint::Complaint;
use crate::doctor::{self, Basis};
use crate::exit::Exit;
use crate::out::Out;
use crate::systemd;
use crate::verbs::Context;

use journal::{Journal, Step};
use look::{Machine, Service};

const BERTHD: &str = "berthd.service";

/// What records of changes say that they are for.
const ABOUT: &str = "berthctl setup";

/// How long berthd may take until it answers.
const UP: Duration = Duration::from_secs(20);

/// What doctor finds with which Berth can't work at all.
const NEEDED: [&str; 8] = [
    "cgroup_v1",
    "gpus_unknown",
    "invalid_configuration",
    "no_systemd",
    "no_user",
    "polkit_old",
    "polkit_rule",
    "systemd_old",
];

/// One change that could be made.
enum Change {
    Start(systemd::State),
    Add(Box<Addition>),
    Disable(Rival),
}

impl Change {
    fn addition(&self) -> Option<&Addition> {
        match self {
            Self::Start(_) | Self::Disable(_) => None,
            Self::Add(addition) => Some(addition),
        }
    }
}

/// A model server that would start at boot and can't become a model.
struct Rival {
    unit: String,
    /// What would start it.
    links: Vec<PathBuf>,
}

/// A service that would become a model.
struct Addition {
    unit: String,
    /// Whether it serves now.
    runs: bool,
    prepared: Prepared,
}

/// What could not be offered: a service, and why.
#[derive(Debug, Serialize)]
struct Passed {
    unit: String,
    why: String,
    next: String,
    /// Whether nothing that can be mended is in the way.
    #[serde(skip)]
    for_good: bool,
}

/// All that could be changed, and what could not.
#[derive(Default)]
struct Plan {
    changes: Vec<Change>,
    passed: Vec<Passed>,
}

/// What came of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Came {
    NotAsked,
    Declined,
    Done,
    Failed(String),
}

/// Looks at the machine, asks for each change, and makes it.
pub(crate) async fn setup(options: &SetupOptions, berth: &Context) -> Result<Exit, Complaint> {
    let consent = Consent { yes: options.yes, dry_run: options.dry_run };
    if !consent.dry_run {
        root("setup")?;
    }
    if options.undo {
        return undo::undo(consent, berth).await;
    }
    let basis = doctor::basis(&berth.client).await;
    let mut machine = look::look(&basis, &options.folders).await?;
    let plan = propose(&basis, &mut machine, options.stop, berth).await;
    let shown = show::Shown { basis: &basis, machine: &machine, plan: &plan, stop: options.stop };
    if !berth.out.json {
        Out::say(&shown.machine(berth.out.paint));
    }
    let missing = basis.lacks.iter().find(|finding| NEEDED.contains(&finding.code.as_str()));
    if let Some(missing) = missing.filter(|_| !plan.changes.is_empty()) {
        let title = format!("Berth can't work here yet, so nothing was changed: {}", missing.text);
        let hints = [missing.next.clone(), "sudo berthctl doctor".to_owned()];
        return Err(Complaint::new(Exit::Refused, "cannot_work", title, &hints));
    }
    let mut came = vec![Came::NotAsked; plan.changes.len()];
    if consent.dry_run || plan.changes.is_empty() {
        if berth.out.json {
            Out::document(&shown.document(&came, &[], Exit::Done));
        } else {
            Out::say(&shown.proposed());
        }
        return Ok(Exit::Done);
    }
    if !consent.yes {
        askable()?;
    }
    let mut left = Vec::new();
    let mut journal = Journal::read()?;
    for (change, came) in plan.changes.iter().zip(&mut came) {
        if !berth.out.json {
            Out::say(&show::change(change, options.stop));
        }
        *came = if consent.yes || wanted() {
            match make(change, options.stop, &mut journal, berth).await {
                Ok(also) => {
                    left.extend(also);
                    Came::Done
                }
                Err(why) => {
                    left.push(format!("{}; {}", why.title, why.hints.join("; ")));
                    Came::Failed(why.title)
                }
            }
        } else {
            Came::Declined
        };
    }
    let done = plan.changes.iter().zip(&came).filter(|(_, came)| **came == Came::Done);
    let added: Vec<&Addition> = done.filter_map(|(change, _)| change.addition()).collect();
    for addition in added.iter().filter(|addition| options.stop && addition.runs) {
        left.extend(systemd::stop(&addition.unit).await.err().map(|failed| failed.to_string()));
    }
    if !added.is_empty() {
        match reload(berth).await {
            Ok(()) => {
                for addition in &added {
                    left.extend(addition.prepared.keep(berth).await);
                }
            }
            Err(why) => {
                left.push(not_taken_up(&why));
                left.extend(added.iter().filter_map(|addition| addition.prepared.not_kept()));
            }
        }
    }
    if came.iter().all(|came| *came == Came::Declined) {
        return Err(Complaint::new(Exit::Refused, "declined", "Nothing was changed.".to_owned(), &[]));
    }
    let exit = if left.is_empty() { Exit::Done } else { Exit::Degraded };
    if berth.out.json {
        Out::document(&shown.document(&came, &left, exit));
    } else {
        Out::say(&shown.after(&came, &left));
    }
    Ok(exit)
}

/// Whether somebody says yes, or just presses Enter.
fn wanted() -> bool {
    answer("Do it? [Y/n] ").is_some_and(|answer| answer.is_empty() || YES.contains(&answer.as_str()))
}

/// What could be changed. Files that a service would bring with it are no longer told as unserved.
async fn propose(basis: &Basis, machine: &mut Machine, stop: bool, berth: &Context) -> Plan {
    let mut plan = Plan::default();
    if basis.silent.as_ref().is_some_and(|why| why.code == "berthd_not_running") {
        // Where systemd can't be asked, that is among what the machine lacks.
        if let Ok(state) = systemd::state(BERTHD).await
            && state.exists
        {
            plan.changes.push(Change::Start(state));
        }
    }
    for service in &machine.services {
        match offered(service, stop, berth).await {
            Ok(Some(prepared)) => {
                let files = look::declared_files(&prepared.settings);
                for folder in &mut machine.folders {
                    folder.unserved.retain(|file| !look::is_among(&file.path, &files));
                }
                let (unit, runs) = (service.unit.clone(), service.runs);
                plan.changes.push(Change::Add(Box::new(Addition { unit, runs, prepared })));
            }
            Ok(None) => {}
            Err(passed) => {
                // What holds much memory and is no model server may be a desktop: that is only told.
                let links = add::links(&service.unit);
                if passed.for_good
                    && service.at_boot.is_some()
                    && service.server.is_some()
                    && !links.is_empty()
                {
                    plan.changes.push(Change::Disable(Rival { unit: service.unit.clone(), links }));
                }
                plan.passed.push(passed);
            }
        }
    }
    plan
}

/// The service as a model; None where it is one already.
async fn offered(service: &Service, stop: bool, berth: &Context) -> Result<Option<Prepared>, Passed> {
    if service.masked {
        return Ok(None);
    }
    let unit = &service.unit;
    let disable = || format!("sudo systemctl disable --now {unit}, where it is not to take GPU memory");
    if service.is_loader() {
        let server = service.server.as_deref().unwrap_or_default();
        let why = format!("{server} loads several models by itself, which `add` takes one by one");
        let next = match server {
            "llama-swap" => "sudo berthctl add ITS-CONFIGURATION.yaml, then".to_owned(),
            _ => "sudo berthctl add A-MODEL'S-FILE, then".to_owned(),
        };
        let next = format!("{next} {}", disable());
        return Err(Passed { unit: unit.clone(), why, next, for_good: true });
    }
    // What is wrong with it becomes one line among others.
    let quiet = Out { json: true, ..berth.out };
    match add::prepare(unit, &AddOptions { stop, ..AddOptions::default() }, quiet).await {
        Ok(prepared) => Ok(Some(prepared)),
        Err(why) => {
            let for_good = why.code == "not_addable";
            let next = why.hints.into_iter().chain([disable()]).collect::<Vec<_>>().join("; or ");
            Err(Passed { unit: unit.clone(), why: why.title, next, for_good })
        }
    }
}

/// Makes one change, which the journal names before it is begun. Gives what is left to do.
async fn make(
    change: &Change,
    stop: bool,
    journal: &mut Journal,
    berth: &Context,
) -> Result<Vec<String>, Complaint> {
    match change {
        Change::Start(state) => {
            journal.push(Step::Berthd { enabled: !state.enabled, started: !state.runs })?;
            systemd::enable_now(BERTHD).await.map_err(|failed| not_started(&failed))?;
            Ok(answers(berth).await.err().into_iter().collect())
        }
        Change::Disable(Rival { unit, links }) => {
            journal.push(Step::Disabled { unit: unit.clone() })?;
            let removed: Vec<_> = links.iter().map(changes::Change::remove).collect();
            let again = changes::read(&disabled(unit)).is_ok_and(|record| record.is_some());
            let done = if again {
                // It was enabled anew since: what it was before the first time is known.
                removed.iter().try_for_each(changes::carry_out)
            } else {
                changes::make(&removed, &disabled(unit), ABOUT, Some(unit))
            };
            if let Err(failed) = done {
                journal.pop()?;
                return Err(add::cannot_write(&failed));
            }
            Ok(systemd::daemon_reload().await.err().map(|failed| failed.to_string()).into_iter().collect())
        }
        Change::Add(addition) => {
            // What was added before it counts by now: names and ports of both may be the same.
            let quiet = Out { json: true, ..berth.out };
            let options = AddOptions { stop, ..AddOptions::default() };
            let prepared = add::prepare(&addition.unit, &options, quiet).await?;
            let names = prepared.addition.drafts.iter().map(|draft| draft.name.clone()).collect();
            journal.push(Step::Added { models: names })?;
            match prepared.carry_out(ABOUT).await {
                Ok(left) => Ok(left),
                Err(why) => {
                    journal.pop()?;
                    Err(why)
                }
            }
        }
    }
}

fn not_started(failed: &systemd::Failed) -> Complaint {
    let hints = [format!("journalctl -u {BERTHD} -n 50")];
    Complaint::new(Exit::Unreachable, "not_started", format!("berthd was not started: {failed}"), &hints)
}

/// Waits until berthd answers.
async fn answers(berth: &Context) -> Result<(), String> {
    let until = Instant::now() + UP;
    loop {
        let asked = berth.client.get::<Status>("/api/v1/status").await;
        match asked {
            Ok(_) => return Ok(()),
            Err(_) if Instant::now() < until => sleep(Duration::from_millis(100)).await,
            Err(_) => {
                let seconds = UP.as_secs();
                return Err(format!(
                    "berthd was started and has not answered for {seconds} s: journalctl -u berthd"
                ));
            }
        }
    }
}

/// Where the record of a service lies that no longer starts at boot.
fn disabled(unit: &str) -> PathBuf {
    PathBuf::from("/etc/berth/disabled").join(unit)
}

/// Where the journal lies.
fn journal_path() -> PathBuf {
    PathBuf::from("/etc/berth/setup.json")
}
