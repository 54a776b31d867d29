//! What systemd itself says, through `busctl` and `systemctl`: both come with it, and may be asked by anybody.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

/// Loading a unit's files takes systemd milliseconds; a stop takes as long as the unit's own deadline.
const ANSWER: Duration = Duration::from_secs(15);
const STOP: Duration = Duration::from_secs(180);

const SERVICE: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";

/// systemd can't be asked, or says no.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Failed(String);

/// What systemd knows of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Loaded {
    /// `loaded`, `not-found`, `masked`, `bad-setting` …
    pub(crate) load: String,
    /// Its own file, and its drop-ins in the order in which they count.
    pub(crate) files: Vec<PathBuf>,
    /// `enabled`, `disabled`, `static` …
    pub(crate) enabled: String,
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
}

impl Loaded {
    /// Whether its server runs, or is on its way there or from there.
    pub(crate) fn runs(&self) -> bool {
        !["inactive", "failed"].contains(&self.active.as_str())
    }
}

/// What systemd knows of this unit; it loads it for that.
pub(crate) async fn loaded(unit: &str) -> Result<Loaded, Failed> {
    let call = ["call", SERVICE, "/org/freedesktop/systemd1", MANAGER, "LoadUnit", "s", unit];
    let answer = busctl(&call).await?;
    let path = text(answer.first().and_then(|data| data.get(0)));
    let names = [
        "LoadState",
        "FragmentPath",
        "DropInPaths",
        "UnitFileState",
        "ActiveState",
        "NeedDaemonReload",
        "TriggeredBy",
    ];
    let [load, own, drop_ins, enabled, active, stale, triggers] = properties(&path, UNIT, names).await?;
    let mut loaded = Loaded {
        load: text(Some(&load)),
        files: Some(text(Some(&own)))
            .filter(|own| !own.is_empty())
            .into_iter()
            .chain(texts(&drop_ins))
            .map(PathBuf::from)
            .collect(),
        enabled: text(Some(&enabled)),
        active: text(Some(&active)),
        stale: stale.as_bool().unwrap_or_default(),
        triggers: texts(&triggers),
        ..Loaded::default()
    };
    if unit.ends_with(".service") {
        let names = ["ExecStart", "Environment", "MainPID"];
        let [start, environment, pid] = properties(&path, "org.freedesktop.systemd1.Service", names).await?;
        let argv = |command: &Value| command.get(1).map(texts);
        loaded.start = start.as_array().into_iter().flatten().filter_map(argv).collect();
        loaded.environment = texts(&environment);
        loaded.main_pid = pid.as_u64().and_then(|pid| pid.try_into().ok()).unwrap_or_default();
    }
    Ok(loaded)
}

/// The variables that systemd gives every service.
pub(crate) async fn environment() -> Result<BTreeMap<String, String>, Failed> {
    let [all] = properties("/org/freedesktop/systemd1", MANAGER, ["Environment"]).await?;
    let pairs = texts(&all).into_iter().filter_map(|pair| {
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

/// A unit as systemctl lists it.
#[derive(Deserialize)]
struct Listed {
    unit: String,
    active: String,
}

/// The units with such names that are active, or on their way there or from there.
pub(crate) async fn active(pattern: &str) -> Result<Vec<String>, Failed> {
    let answer =
        output("systemctl", &["list-units", "--all", "--output=json", "--", pattern], ANSWER).await?;
    let listed: Vec<Listed> = serde_json::from_str(&answer)
        .map_err(|error| Failed(format!("what systemctl list-units says can't be understood: {error}")))?;
    let active = listed.into_iter().filter(|one| !["inactive", "failed"].contains(&one.active.as_str()));
    Ok(active.map(|one| one.unit).collect())
}

/// Has systemd load all units anew.
pub(crate) async fn daemon_reload() -> Result<(), Failed> {
    output("systemctl", &["daemon-reload"], Duration::from_secs(60)).await.map(drop)
}

/// Stops a unit, and waits until it has ended.
pub(crate) async fn stop(unit: &str) -> Result<(), Failed> {
    output("systemctl", &["stop", "--", unit], STOP).await.map(drop)
}

async fn properties<const N: usize>(
    path: &str,
    interface: &str,
    names: [&str; N],
) -> Result<[Value; N], Failed> {
    let mut arguments = vec!["get-property", SERVICE, path, interface];
    arguments.extend(names);
    let values = busctl(&arguments).await?;
    values
        .try_into()
        .map_err(|_| Failed(format!("systemd does not tell all of {} of {path}", names.join(", "))))
}

/// The `data` of each line that busctl answers.
async fn busctl(arguments: &[&str]) -> Result<Vec<Value>, Failed> {
    let arguments: Vec<&str> = ["--system", "--json=short"].iter().chain(arguments).copied().collect();
    let answer = output("busctl", &arguments, ANSWER).await?;
    answer
        .lines()
        .map(|line| {
            let mut value: Value = serde_json::from_str(line)
                .map_err(|error| Failed(format!("what busctl says can't be understood: {error}")))?;
            Ok(value.get_mut("data").map(Value::take).unwrap_or_default())
        })
        .collect()
}

async fn output(program: &str, arguments: &[&str], deadline: Duration) -> Result<String, Failed> {
    let said = format!("{program} {}", arguments.join(" "));
    let run = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match timeout(deadline, run).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(Failed(format!("{program} can't be run: {error}"))),
        Err(_) => return Err(Failed(format!("`{said}` did not end within {} s", deadline.as_secs()))),
    };
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(Failed(format!("`{said}` failed: {}", why.trim())));
    }
    String::from_utf8(output.stdout).map_err(|_| Failed(format!("`{said}` says what is not UTF-8 text")))
}

fn text(value: Option<&Value>) -> String {
    value.and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
