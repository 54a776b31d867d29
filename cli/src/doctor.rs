//! `berthctl doctor`: what of this machine keeps Berth, or a server that it runs, from working, and the command that mends
//! it. With and without berthd.
//!
//! Each file below gathers what one part of the machine looks like, and judges that apart: judging is pure, and whatever
//! could not be looked at is a finding too.

mod containers;
mod devices;
mod installation;
mod models;
mod sockets;
mod units;

use std::path::Path;
use std::time::Duration;

use berth_core::config::{self, Settings};
use berth_core::facts::{DeviceId, Gpu, Known};
use berth_core::report::{self, Problem, SCHEMA, Status};
use berth_core::state::State;
use berth_observe::nvml::Nvml;
use berth_observe::scope::Scope;
use berth_observe::{ledger, systemd};
use serde::Serialize;
use zbus::Connection;

use crate::check;
use crate::client::Client;
use crate::complaint::Complaint;
use crate::exit::Exit;
use crate::out::Out;
use crate::render;

/// How long a look at files may take: one that is on a network file system may not answer for ever.
const LOOK: Duration = Duration::from_secs(10);

/// How bad it is, worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    /// It could not be looked at.
    Unknown,
    /// It works, and will not always, or not as well as it could.
    Warning,
    /// It does not work.
    Error,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    /// Stable, for programs.
    pub(crate) code: String,
    /// What it is about: a model, a unit, a GPU; may be empty.
    pub(crate) subject: String,
    /// What is wrong.
    pub(crate) text: String,
    /// What shows it.
    pub(crate) evidence: Vec<String>,
    /// What to do, a command where one mends it.
    pub(crate) next: String,
}

impl Finding {
    fn new(severity: Severity, code: &str, subject: &(impl ToString + ?Sized), text: String) -> Self {
        let subject = subject.to_string();
        Self { severity, code: code.to_owned(), subject, text, evidence: Vec::new(), next: String::new() }
    }

    fn error(code: &str, subject: &(impl ToString + ?Sized), text: String) -> Self {
        Self::new(Severity::Error, code, subject, text)
    }

    fn warning(code: &str, subject: &(impl ToString + ?Sized), text: String) -> Self {
        Self::new(Severity::Warning, code, subject, text)
    }

    fn unknown(code: &str, subject: &(impl ToString + ?Sized), text: String) -> Self {
        Self::new(Severity::Unknown, code, subject, text)
    }

    fn shown_by(mut self, evidence: impl IntoIterator<Item = String>) -> Self {
        self.evidence.extend(evidence);
        self
    }

    fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }
}

/// One thing that was looked at, and what was found.
#[derive(Debug)]
struct Check {
    name: &'static str,
    findings: Vec<Finding>,
}

fn check(name: &'static str, findings: impl IntoIterator<Item = Finding>) -> Check {
    Check { name, findings: findings.into_iter().collect() }
}

/// All that came of it.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// What was found, worst first.
    pub(crate) findings: Vec<Finding>,
    /// What was looked at and is well.
    pub(crate) well: Vec<&'static str>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    exit: u8,
    #[serde(flatten)]
    report: &'a Report,
}

/// What all parts are looked at with.
struct Ground {
    nvml: Nvml,
    /// The bus that Berth's systemd is on.
    bus: Known<Connection>,
    /// The machine's.
    machine: Known<Connection>,
    settings: Known<Settings>,
    /// What berthd says, or why it can't be asked.
    berthd: Result<Status, Complaint>,
    /// What berthd has written down.
    state: Known<State>,
}

/// Looks at this machine, and at the units that are named.
pub(crate) async fn doctor(
    units: &[String],
    folder: &Path,
    client: &Client,
    out: Out,
) -> Result<Exit, Complaint> {
    let (ground, configured) = ground(folder, client).await;
    let mut checks = vec![configured];
    let devices = devices::look(&ground).await;
    checks.extend(devices::judge(&devices));
    checks.extend(units::judge(&units::look(&ground, units, devices.for_rivals()).await));
    checks.extend(models::judge(&models::look(&ground, &devices.gpus).await));
    checks.extend(containers::judge(&containers::look(&ground).await));
    checks.extend(sockets::judge(sockets::look(&ground).await.as_ref()));
    checks.extend(installation::judge(&installation::look(&ground, folder).await));
    let report = report(berthd(&ground), once(checks, ground.bus.why_unknown()));
    let exit = if report.findings.is_empty() { Exit::Done } else { Exit::Found };
    if out.json {
        Out::document(&Document { schema: SCHEMA, exit: exit.code(), report: &report });
    } else {
        Out::say(&render::doctor::report(&report, out.paint));
    }
    Ok(exit)
}

async fn connected(scope: Scope) -> Known<Connection> {
    let connection = systemd::connect_to(scope, None).await;
    connection.map_or_else(|error| Known::Unknown(error.to_string()), Known::Value)
}

async fn ground(folder: &Path, client: &Client) -> (Ground, Check) {
    let (settings, configured) = configuration(folder);
    let scope = Scope::this();
    let bus = connected(scope).await;
    let ground = Ground {
        nvml: Nvml::spawn(),
        machine: if scope == Scope::System { bus.clone() } else { connected(Scope::System).await },
        bus,
        settings,
        berthd: client.get::<Status>("/api/v1/status").await.map_err(Complaint::from),
        state: read_ledger(&scope.state().join("ledger")),
    };
    (ground, configured)
}

/// What an installation would work with.
pub(crate) struct Basis {
    pub(crate) gpus: Known<Vec<Gpu>>,
    pub(crate) bus: Known<Connection>,
    pub(crate) settings: Known<Settings>,
    /// Why berthd does not answer.
    pub(crate) silent: Option<Complaint>,
    /// What keeps it from working, errors alone.
    pub(crate) lacks: Vec<Finding>,
}

/// Looks at what there is to work with: the GPUs, systemd, and what Berth itself needs.
pub(crate) async fn basis(client: &Client) -> Basis {
    let folder = &Scope::this().config();
    let (ground, configured) = ground(folder, client).await;
    let devices = devices::look(&ground).await;
    let mut checks = vec![configured];
    checks.extend(devices::judge(&devices));
    checks.extend(installation::judge(&installation::look(&ground, folder).await));
    let lacks = once(checks, ground.bus.why_unknown()).into_iter().flat_map(|check| check.findings);
    // Without systemd nothing can be done here.
    let lacks = lacks.filter(|one| one.severity == Severity::Error || one.code == "no_systemd").collect();
    let Ground { bus, settings, berthd, .. } = ground;
    Basis { gpus: devices.gpus, bus, settings, silent: berthd.err(), lacks }
}

/// What could not be looked at since systemd can't be asked has one cause, and is told once.
fn once(mut checks: Vec<Check>, why: Option<&str>) -> Vec<Check> {
    let Some(why) = why else { return checks };
    let for_that = |finding: &Finding| finding.severity == Severity::Unknown && finding.text.contains(why);
    let mut names = Vec::new();
    for check in checks.iter_mut().filter(|check| check.findings.iter().any(for_that)) {
        check.findings.retain(|finding| !for_that(finding));
        names.push(check.name);
    }
    // What is left of a check says nothing of the rest of it.
    checks.retain(|check| !check.findings.is_empty() || !names.contains(&check.name));
    let finding = Finding::unknown("no_systemd", "", why.to_owned())
        .shown_by([format!("not looked at for that: {}", names.join(", "))])
        .next(format!("{} status dbus", Scope::this().systemctl()));
    checks.push(check("systemd's answers", [finding]));
    checks
}

/// Worst first. What `berthd` found too is told once, as it was seen here: with its evidence.
fn report(berthd: Check, others: Vec<Check>) -> Report {
    let mut all: Vec<Finding> = Vec::new();
    let well = others.iter().chain([&berthd]).filter(|check| check.findings.is_empty());
    let well = well.map(|check| check.name).collect();
    for finding in others.into_iter().flat_map(|check| check.findings) {
        if !all.contains(&finding) {
            all.push(finding);
        }
    }
    let seen = |finding: &Finding| {
        all.iter().any(|known| known.code == finding.code && known.subject == finding.subject)
    };
    let mut findings: Vec<Finding> = berthd.findings.into_iter().filter(|finding| !seen(finding)).collect();
    findings.append(&mut all);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Report { findings, well }
}

/// What is declared, and what is known to hurt of it (S17).
fn configuration(folder: &Path) -> (Known<Settings>, Check) {
    let invalid = |text: String, evidence: Vec<String>| {
        let finding = Finding::error("invalid_configuration", "", text.clone())
            .shown_by(evidence)
            .next(format!("berthctl check --config {}", folder.display()));
        (Known::Unknown(text), check("configuration", [finding]))
    };
    let sources = match check::read(folder) {
        Ok(sources) => sources,
        Err(complaint) => return invalid(complaint.title, Vec::new()),
    };
    match config::load(&sources, &check::host()) {
        Ok(settings) => {
            let warnings: Vec<Finding> = settings.warnings.iter().map(hurts).collect();
            (Known::Value(settings), check("configuration", warnings))
        }
        Err(errors) => {
            let at = |error: &config::ConfigError| {
                let place = error.places.first();
                place.map_or_else(String::new, |place| format!("{}:{}: ", place.path.display(), place.line))
            };
            let evidence = errors.iter().map(|error| format!("{}{}", at(error), error.message)).collect();
            invalid(format!("the configuration in {} is not valid", folder.display()), evidence)
        }
    }
}

fn hurts(warning: &config::Warning) -> Finding {
    let place = warning.place().map(|place| format!("{}:{}", place.path.display(), place.line));
    let subject = place.clone().unwrap_or_default();
    Finding::warning("setting", &subject, warning.message().to_owned())
        .shown_by(place)
        .next("berthctl check says why and what to write instead")
}

/// Whether berthd answers, and what it finds wrong itself.
fn berthd(ground: &Ground) -> Check {
    let findings = match &ground.berthd {
        Ok(status) => status.problems.iter().map(of_problem).collect(),
        Err(complaint) => {
            let (severity, next) = match complaint.code.as_str() {
                "berthd_not_running" => {
                    let scope = Scope::this();
                    let (sudo, systemctl, journalctl) = (scope.sudo(), scope.systemctl(), scope.journalctl());
                    let next = format!("{sudo}{systemctl} start berthd; {journalctl} -u berthd -n 50");
                    (Severity::Error, next)
                }
                _ => (Severity::Unknown, complaint.hints.join("; ")),
            };
            vec![Finding::new(severity, &complaint.code, "", complaint.title.clone()).next(next)]
        }
    };
    check("berthd", findings)
}

fn of_problem(problem: &Problem) -> Finding {
    let severity = match problem.severity() {
        report::Severity::Warning => Severity::Warning,
        report::Severity::Error => Severity::Error,
    };
    Finding::new(severity, &problem.code, &problem.subject, problem.text.clone()).next(&problem.next)
}

/// The state on disk. None that was ever written is a state too.
fn read_ledger(path: &Path) -> Known<State> {
    match std::fs::read(path) {
        Ok(bytes) => match ledger::read(&bytes) {
            Ok(read) => Known::Value(read.state),
            Err(damage) => Known::Unknown(format!("{}: {damage}", path.display())),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Known::Value(State::default()),
        Err(error) => Known::Unknown(format!("{}: {error}", path.display())),
    }
}

impl Ground {
    /// The GPUs that were there when an operator's change was done last.
    fn gpus_before(&self) -> Known<Vec<(u32, DeviceId)>> {
        match &self.state {
            Known::Value(state) => Known::Value(state.gpus.clone()),
            Known::Unknown(why) => Known::Unknown(why.clone()),
        }
    }
}

/// Looks at what may not answer, on a thread of its own: it is left behind where it does not.
pub(crate) async fn apart<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Known<T> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    // A name is all that it needs; whether the asker still waits changes nothing.
    let spawned =
        std::thread::Builder::new().name("look".to_owned()).spawn(move || answer.send(look()).is_ok());
    if let Err(error) = spawned {
        return Known::Unknown(format!("no thread can be started to look: {error}"));
    }
    match tokio::time::timeout(LOOK, answered).await {
        Ok(Ok(value)) => Known::Value(value),
        Ok(Err(_)) => Known::Unknown("the look at it broke off".to_owned()),
        Err(_) => Known::Unknown(format!("it has not answered for {} s", LOOK.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_berthd_found_too_is_told_once_and_the_worst_comes_first() {
        let text = || "aeon.service is enabled".to_owned();
        let rival = Finding::warning("rival", "aeon.service", text());
        let degraded = Finding::error("degraded", "genesis", "it does not serve".into());
        let seen = rival.clone().shown_by(["Restart=always".to_owned()]);
        let others = vec![
            check("clock", [Finding::unknown("clock", "", "no answer".into())]),
            check("rivals", [seen.clone(), seen.clone()]),
            check("disk space", []),
        ];
        let report = report(check("berthd", [rival, degraded.clone()]), others);
        assert_eq!(report.findings[..2], [degraded, seen]);
        assert_eq!((report.findings.len(), report.findings[2].severity), (3, Severity::Unknown));
        assert_eq!(report.well, ["disk space"]);
    }

    #[test]
    fn every_code_is_in_the_docs() {
        let source = [
            include_str!("doctor.rs"),
            include_str!("doctor/containers.rs"),
            include_str!("doctor/devices.rs"),
            include_str!("doctor/installation.rs"),
            include_str!("doctor/models.rs"),
            include_str!("doctor/sockets.rs"),
            include_str!("doctor/units.rs"),
        ];
        let source = source.map(|file| file.split("#[cfg(test)]").next().unwrap_or_default()).concat();
        let said = source.split("Finding::").skip(1).filter_map(|rest| {
            let (kind, rest) = rest.split_once('(')?;
            ["error", "warning", "unknown"].contains(&kind).then(|| rest.split('"').nth(1))?
        });
        let said: BTreeSet<&str> = said.collect();
        assert!(said.len() > 25, "{said:?}");
        let docs = include_str!("../../docs/operations.md");
        let section = docs.split("## What is wrong with a machine").nth(1).unwrap_or_default();
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next());
        let documented: BTreeSet<&str> = rows.flat_map(|cell| cell.split('`').step_by(2)).collect();
        assert_eq!(documented.into_iter().filter(|code| !code.is_empty()).collect::<BTreeSet<_>>(), said);
    }

    #[test]
    fn what_systemd_does_not_answer_is_told_once() {
        let why = "can't connect to systemd: no bus";
        let unknown = |code| Finding::unknown(code, "", format!("it can't be told: {why}"));
        let error = Finding::error("polkit_rule", "", "there is no rule".into());
        let checks = || {
            vec![
                check("units", [unknown("unit_missing")]),
                check("polkit", [unknown("polkit_old"), error.clone()]),
                check("cgroups", []),
            ]
        };
        let report = report(check("berthd", []), once(checks(), Some(why)));
        let [first, last] = report.findings.as_slice() else { panic!("{report:?}") };
        assert_eq!((first, last.code.as_str()), (&error, "no_systemd"));
        assert_eq!(last.evidence, ["not looked at for that: units, polkit"]);
        assert_eq!(report.well, ["cgroups", "berthd"]);
        assert_eq!(once(checks(), None).len(), 3);
    }

    #[test]
    fn a_ledger_that_was_never_written_is_a_state_and_a_damaged_one_is_unknown() {
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        let path = folder.path().join("ledger");
        assert_eq!(read_ledger(&path), Known::Value(State::default()));
        assert!(std::fs::write(&path, "berth-ledger 2\nno\n").is_ok());
        assert!(read_ledger(&path).why_unknown().is_some_and(|why| why.contains("line 2")));
    }
}
