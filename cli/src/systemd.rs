//! What systemd says of services, and the few things that are asked of it as root.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use berth_observe::proc::{self, Groups};
use berth_observe::systemd::{
    self, Listed, MANAGER, Reader, SCOPE, SERVICE, SYSTEMD, SYSTEMD_PATH, SystemdError, UNIT, call,
};
use tokio::process::Command;
use tokio::time::{Instant, timeout};
use zbus::{OwnedObjectPath, Variant};

/// Loading all units anew, and stopping one: that takes as long as the unit's own deadline.
const RELOAD: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(180);

/// One command of `ExecStart`: program, argv, whether its failure is ignored, and how it went last.
type Run = (String, Vec<String>, bool, u64, u64, u64, u64, u32, i32, i32);

/// systemd did not do what it was told.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failed(String);

impl From<SystemdError> for Failed {
    fn from(error: SystemdError) -> Self {
        Self(error.to_string())
    }
}

/// What systemd knows of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Loaded {
    /// `loaded`, `not-found`, `masked`, `bad-setting` …
    pub(crate) load: String,
    /// Its own name, where it was asked for by another one.
    pub(crate) id: String,
    /// Its own file, and its drop-ins in the order in which they count.
    pub(crate) files: Vec<PathBuf>,
    /// `active`, `inactive`, `failed` …
    pub(crate) active: String,
    /// Its files were changed and not loaded since.
    pub(crate) stale: bool,
    /// What starts it besides itself: sockets, timers, paths.
    pub(crate) triggers: Vec<String>,
    /// The command lines of `ExecStart=`, before variables are replaced; the name that `@` gives stands first.
    pub(crate) start: Vec<Vec<String>>,
    /// The assignments of `Environment=`.
    pub(crate) environment: Vec<String>,
    pub(crate) main_pid: u32,
    /// Its cgroup as systemd names it; empty where it does not run.
    pub(crate) control_group: String,
}

impl Loaded {
    /// Whether its server runs, or is on its way there or from there.
    pub(crate) fn runs(&self) -> bool {
        !["inactive", "failed"].contains(&self.active.as_str())
    }
}

/// What systemd knows of this unit; it loads it for that.
pub(crate) async fn loaded(unit: &str) -> Result<Loaded, SystemdError> {
    let bus = systemd::connect(None).await?;
    let reader = Reader::of(&bus, unit);
    let load: String = match reader.get(UNIT, "LoadState").await {
        // It has no such name, and so no such unit.
        Err(SystemdError::NoSuchUnit { .. } | SystemdError::Refused { .. }) => {
            return Ok(Loaded { load: "not-found".to_owned(), ..Loaded::default() });
        }
        other => other?,
    };
    let own: String = reader.get(UNIT, "FragmentPath").await?;
    let drop_ins: Vec<String> = reader.get(UNIT, "DropInPaths").await?;
    let files = std::iter::once(own).chain(drop_ins).filter(|path| !path.is_empty());
    let mut loaded = Loaded {
        load,
        id: reader.get(UNIT, "Id").await?,
        files: files.map(PathBuf::from).collect(),
        active: reader.get(UNIT, "ActiveState").await?,
        stale: reader.get(UNIT, "NeedDaemonReload").await?,
        triggers: reader.get(UNIT, "TriggeredBy").await?,
        ..Loaded::default()
    };
    if unit.ends_with(".service") {
        let start: Vec<Run> = reader.get(SERVICE, "ExecStart").await?;
        loaded.start = start.into_iter().map(|(_, argv, ..)| argv).collect();
        loaded.environment = reader.get(SERVICE, "Environment").await?;
        loaded.main_pid = reader.get(SERVICE, "MainPID").await?;
        loaded.control_group = reader.get(SERVICE, "ControlGroup").await?;
    }
    Ok(loaded)
}

/// Whether a unit is there, runs, and starts at boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) exists: bool,
    pub(crate) runs: bool,
    pub(crate) enabled: bool,
}

/// How a unit stands.
pub(crate) async fn state(unit: &str) -> Result<State, SystemdError> {
    let bus = systemd::connect(None).await?;
    let reader = Reader::of(&bus, unit);
    let load: String = reader.get(UNIT, "LoadState").await?;
    let active: String = reader.get(UNIT, "ActiveState").await?;
    let file: String = reader.get(UNIT, "UnitFileState").await?;
    Ok(State {
        exists: load == "loaded",
        runs: !["inactive", "failed"].contains(&active.as_str()),
        enabled: file == "enabled",
    })
}

/// The variables that systemd gives every service.
pub(crate) async fn environment() -> Result<BTreeMap<String, String>, SystemdError> {
    let bus = systemd::connect(None).await?;
    let reader = Reader::of_manager(&bus, "read the variables of every service");
    let all: Vec<String> = reader.get(MANAGER, "Environment").await?;
    let pairs = all.into_iter().filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    Ok(pairs.collect())
}

/// The unit that a process belongs to, where it is a service of the machine.
pub(crate) fn service_of(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    // Of a user's own manager it is none of the machine's.
    if path.contains("/user@") {
        return None;
    }
    path.split('/').find(|part| part.ends_with(".service")).map(str::to_owned)
}

/// The units with such names that are active, or on their way there or from there.
pub(crate) async fn active(pattern: &str) -> Result<Vec<String>, SystemdError> {
    let bus = systemd::connect(None).await?;
    let which: (&[&str], &[&str]) = (&[], &[pattern]);
    let listed: Vec<Listed> =
        call(&bus, "list the units", SYSTEMD, SYSTEMD_PATH, MANAGER, "ListUnitsByPatterns", &which).await?;
    let active = listed.into_iter().filter(|unit| !["inactive", "failed"].contains(&unit.3.as_str()));
    Ok(active.map(|unit| unit.0).collect())
}

/// Has systemd load all units anew.
pub(crate) async fn daemon_reload() -> Result<(), Failed> {
    systemctl(&["daemon-reload"], RELOAD).await
}

/// One property of a transient unit.
type Property<'a> = (&'a str, Variant<'a>);

/// Moves a process into a scope of its own, which is made for it where it is not in it already.
pub(crate) async fn into_scope(scope: &str, about: &str, pid: u32) -> Result<(), Failed> {
    let doing = format!("make {scope}");
    let bus = systemd::connect(None).await?;
    let reader = Reader::of(&bus, scope);
    if reader.get::<String>(UNIT, "ActiveState").await.is_ok_and(|state| state == "active") {
        let group: String = reader.get(SCOPE, "ControlGroup").await?;
        if proc::cgroup_processes(&Groups::of(group)).value().is_some_and(|all| all.contains_key(&pid)) {
            return Ok(());
        }
    }
    let properties: Vec<Property<'_>> = vec![
        ("Description", Variant::from(about)),
        ("PIDs", Variant::from(vec![pid])),
        ("CollectMode", Variant::from("inactive-or-failed")),
        // Without it none can be added later.
        ("Delegate", Variant::from(true)),
    ];
    let none: Vec<(&str, Vec<Property<'_>>)> = Vec::new();
    let body = (scope, "fail", properties, none);
    let _: OwnedObjectPath =
        call(&bus, &doing, SYSTEMD, SYSTEMD_PATH, MANAGER, "StartTransientUnit", &body).await?;
    // systemd answers before it does it, and until then it is inactive.
    let until = Instant::now() + RELOAD;
    loop {
        // First: what the state is after the job's end came of the job.
        let (job, _): (u32, OwnedObjectPath) = reader.get(UNIT, "Job").await?;
        let state: String = reader.get(UNIT, "ActiveState").await?;
        match state.as_str() {
            "active" => return Ok(()),
            _ if job == 0 || Instant::now() >= until => {
                return Err(Failed(format!("systemd can't {doing}: it is {state}")));
            }
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Moves another process into a scope that there is; one that has ended is no failure.
pub(crate) async fn also_into(scope: &str, pid: u32) -> Result<(), Failed> {
    let bus = systemd::connect(None).await?;
    let doing = format!("move process {pid} into {scope}");
    let body = (scope, "", vec![pid]);
    match call(&bus, &doing, SYSTEMD, SYSTEMD_PATH, MANAGER, "AttachProcessesToUnit", &body).await {
        Err(error) if PathBuf::from(format!("/proc/{pid}")).exists() => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Stops a unit, and waits until it has ended.
pub(crate) async fn stop(unit: &str) -> Result<(), Failed> {
    systemctl(&["stop", "--", unit], STOP).await
}

/// Lets a unit start at boot, and starts it now.
pub(crate) async fn enable_now(unit: &str) -> Result<(), Failed> {
    systemctl(&["enable", "--quiet", "--now", "--", unit], STOP).await
}

/// Lets a unit start at boot no more; one that runs goes on.
pub(crate) async fn disable(unit: &str) -> Result<(), Failed> {
    systemctl(&["disable", "--quiet", "--", unit], RELOAD).await
}

async fn systemctl(arguments: &[&str], deadline: Duration) -> Result<(), Failed> {
    let said = format!("systemctl {}", arguments.join(" "));
    let run = Command::new("systemctl").args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    match timeout(deadline, run).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let why = String::from_utf8_lossy(&output.stderr);
            Err(Failed(format!("`{said}` failed: {}", why.trim())))
        }
        Ok(Err(error)) => Err(Failed(format!("systemctl can't be run: {error}"))),
        Err(_) => Err(Failed(format!("`{said}` did not end within {} s", deadline.as_secs()))),
    }
}
