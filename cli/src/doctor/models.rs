//! Whether each declared model could be started: its files for the user it runs as, the disks they are on, its memory, what
//! its unit allows it.

mod mounts;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_core::backend;
use berth_core::bytes::Bytes;
use berth_core::config::Model;
use berth_core::container::Engine;
use berth_core::facts::{Gpu, Known};
use berth_core::name::ModelName;
use berth_core::policy::Cores;
use berth_core::report::Refusal;
use berth_observe::files::found;
use berth_observe::proc;
use berth_observe::scope::Scope;
use berth_observe::systemd::{MANAGER, Reader, SERVICE, SystemdError};
use zbus::Connection;

use super::{Check, Finding, Ground, apart, check};
use crate::access::{self, Identity, Refused, Want, Way};
use crate::fit::{self, Judged};
use mounts::Mounts;

/// So many files of a folder are looked at.
const FILES: usize = 200;
/// What `ProtectHome=` hides.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];

/// What was seen of one model.
#[derive(Debug)]
struct Seen {
    model: ModelName,
    unit: Known<Unit>,
    files: Known<Vec<File>>,
    /// Whether it fits; None where that was not judged.
    judged: Option<Result<Judged, Box<Refusal>>>,
    /// Whether its server locks its memory.
    locks: bool,
    /// What its placement asks of its unit and systemd can't give.
    ineffective: Vec<Share>,
}

/// A share of a resource that a unit gets by a property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    property: &'static str,
    controller: &'static str,
    /// What comes of it without.
    without: &'static str,
}

const PROCESSORS: Share = Share {
    property: "AllowedCPUs=",
    controller: "cpuset",
    without: "its server binds itself to its processors, but may leave them",
};
const MEMORY: Share = Share {
    property: "MemoryMin=",
    controller: "memory",
    without: "what its server does not lock may be given up when memory is short",
};

/// What its unit allows it.
#[derive(Debug, Clone)]
struct Unit {
    /// Who it runs as; an error says who is not there.
    user: Result<Identity, String>,
    /// `LimitMEMLOCK`; u64::MAX is no limit.
    memlock: u64,
    /// `Nice`.
    nice: i32,
    /// Whether `CPUSchedulingPolicy` is one that runs before all others.
    realtime: bool,
    /// `ProtectHome`.
    protect_home: String,
}

/// A file that it opens.
#[derive(Debug, Clone)]
struct File {
    path: PathBuf,
    want: Want,
    way: Way,
    /// The folder above it on which something should be mounted and is not.
    unmounted: Option<PathBuf>,
}

/// All models, or why none could be looked at.
#[derive(Debug)]
pub(super) struct Models(Known<Vec<Seen>>);

pub(super) async fn look(ground: &Ground, gpus: &Known<Vec<Gpu>>) -> Models {
    let settings = match &ground.settings {
        Known::Value(settings) => settings.clone(),
        Known::Unknown(why) => return Models(Known::Unknown(why.clone())),
    };
    let shared = Arc::new(settings);
    let (settings, gpus) = (Arc::clone(&shared), gpus.clone());
    let fits = apart(move || fit::all(&settings, gpus)).await;
    let mounts = Arc::new(apart(Mounts::look).await);
    let controllers = proc::controllers();
    let mut all = Vec::new();
    for model in shared.models.values().filter(|model| !model.retired) {
        let (looked, mounts) = (model.clone(), Arc::clone(&mounts));
        let judged = fits.value().and_then(|fits| fits.get(&model.name).cloned());
        all.push(Seen {
            model: model.name.clone(),
            unit: match &ground.bus {
                Known::Value(bus) => unit(bus, &model.name.unit())
                    .await
                    .map_or_else(|error| Known::Unknown(error.to_string()), Known::Value),
                Known::Unknown(why) => Known::Unknown(why.clone()),
            },
            files: apart(move || files(&looked, mounts.value())).await,
            judged,
            locks: locks(model),
            ineffective: ineffective(model, &controllers),
        });
    }
    Models(Known::Value(all))
}

async fn unit(bus: &Connection, name: &str) -> Result<Unit, SystemdError> {
    let reader = Reader::of(bus, name);
    let user: String = reader.get(SERVICE, "User").await?;
    let group: String = reader.get(SERVICE, "Group").await?;
    let more: Vec<String> = reader.get(SERVICE, "SupplementaryGroups").await?;
    let scheduling: i32 = reader.get(SERVICE, "CPUSchedulingPolicy").await?;
    let memlock: u64 = reader.get(SERVICE, "LimitMEMLOCK").await?;
    // A user's systemd gives no more than it has itself.
    let most = match Scope::this() {
        Scope::System => u64::MAX,
        Scope::User => {
            Reader::of_manager(bus, "read what models may lock").get(MANAGER, "DefaultLimitMEMLOCK").await?
        }
    };
    Ok(Unit {
        user: Identity::of_unit(&user, &group, &more),
        memlock: memlock.min(most),
        nice: reader.get(SERVICE, "Nice").await?,
        // SCHED_FIFO and SCHED_RR.
        realtime: matches!(scheduling, 1 | 2),
        protect_home: reader.get(SERVICE, "ProtectHome").await?,
    })
}

fn files(model: &Model, mounts: Option<&Mounts>) -> Vec<File> {
    let mut wanted: Vec<(PathBuf, Want)> = Vec::new();
    // A whole path that is not there is to be told as any file's.
    let program =
        found(&model.program).or_else(|| Some(model.program.clone()).filter(|path| path.is_absolute()));
    wanted.extend(program.map(|program| (program, Want::Execute)));
    // What docker runs is opened by its daemon, as root.
    if model.container.as_ref().is_some_and(|container| container.engine == Engine::Docker) {
        return looked_at(wanted, mounts);
    }
    for path in backend::of(model.backend).files(model) {
        let inside = std::fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path());
        wanted.extend(inside.filter(|path| path.is_file()).take(FILES).map(|path| (path, Want::Read)));
        wanted.push((path, Want::Read));
    }
    if model.policy.uses_gpus() {
        wanted.extend(nodes().into_iter().map(|node| (node, Want::ReadWrite)));
    }
    looked_at(wanted, mounts)
}

fn looked_at(mut wanted: Vec<(PathBuf, Want)>, mounts: Option<&Mounts>) -> Vec<File> {
    wanted.sort_by(|a, b| a.0.cmp(&b.0));
    let file = |(path, want): (PathBuf, Want)| File {
        way: access::look(&path),
        unmounted: mounts.and_then(|mounts| mounts.missing_above(&path)),
        path,
        want,
    };
    wanted.into_iter().map(file).collect()
}

/// The device nodes of GPUs that are there.
fn nodes() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let is_node = |name: &str| {
        let rest = name.strip_prefix("nvidia");
        rest.is_some_and(|rest| ["ctl", "-uvm"].contains(&rest) || rest.parse::<u32>().is_ok())
    };
    let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_node));
    named.map(|entry| entry.path()).collect()
}

fn locks(model: &Model) -> bool {
    let by_flag = model.args.iter().any(|arg| arg == "--mlock");
    by_flag || model.env.contains_key("LLAMA_ARG_MLOCK") || model.policy.host.lock
}

fn ineffective(model: &Model, controllers: &Known<BTreeSet<String>>) -> Vec<Share> {
    let rules = &model.policy.host;
    let asked = [(rules.cores != Cores::All, PROCESSORS), (rules.lock, MEMORY)];
    let lacks = |share: &Share| controllers.value().is_some_and(|there| !there.contains(share.controller));
    asked.into_iter().filter_map(|(asks, share)| asks.then_some(share)).filter(lacks).collect()
}

pub(super) fn judge(models: &Models) -> Vec<Check> {
    let all = match &models.0 {
        Known::Value(all) => all,
        // The configuration's check says why.
        Known::Unknown(_) => return Vec::new(),
    };
    let each = |judge: fn(&Seen) -> Vec<Finding>| all.iter().flat_map(judge).collect::<Vec<_>>();
    vec![
        check("files of models", of_bases(each(readable))),
        check("memory of models", each(fits)),
        check("limits of models", each(limits)),
    ]
}

/// A model's files are its variants' too: what keeps both from them is told of the model alone.
fn of_bases(findings: Vec<Finding>) -> Vec<Finding> {
    let base = |finding: &Finding| finding.subject.split(':').next().map(str::to_owned);
    let mut kept: Vec<Finding> = Vec::new();
    for finding in findings {
        let same = |known: &Finding| {
            let (a, b) = (known, &finding);
            base(a) == base(b) && (&a.code, &a.evidence, &a.next) == (&b.code, &b.evidence, &b.next)
        };
        if !kept.iter().any(same) {
            kept.push(finding);
        }
    }
    kept
}

/// Whether it can open its files, and they are on what is mounted.
fn readable(seen: &Seen) -> Vec<Finding> {
    let name = &seen.model;
    let unknown = |why: &str| {
        let text = format!("whether {name} can open its files can't be told: {why}");
        let next = match Scope::this() {
            Scope::System => "sudo berthctl doctor".to_owned(),
            Scope::User => format!("systemctl --user cat {}", name.unit()),
        };
        vec![Finding::unknown("unreadable", name, text).next(next)]
    };
    let files = match &seen.files {
        Known::Value(files) => files,
        Known::Unknown(why) => return unknown(why),
    };
    let mut found: Vec<Finding> = Vec::new();
    let mut say = |finding: Finding| {
        // All files of a folder that is closed would say the same.
        if !found.iter().any(|known| known.code == finding.code && known.evidence == finding.evidence) {
            found.push(finding);
        }
    };
    for file in files {
        if let Some(point) = &file.unmounted {
            let (path, at) = (file.path.display(), point.display());
            let text =
                format!("{path} of {name} lies below {at}, where something should be mounted and is not");
            say(Finding::error("not_mounted", name, text)
                .shown_by([format!(
                    "{at} is in /etc/fstab or has a mount unit, and not in /proc/self/mountinfo"
                )])
                .next(format!("sudo mount {at}")));
        }
    }
    if !found.is_empty() {
        return found;
    }
    let unit = match &seen.unit {
        Known::Value(unit) => unit,
        Known::Unknown(why) => return unknown(why),
    };
    let who = match &unit.user {
        Ok(who) => who,
        Err(why) => {
            let text = format!("{name} can't start: {why}, whom its unit names");
            let unit = name.unit();
            return vec![Finding::error("no_user", name, text).next(edit(&unit))];
        }
    };
    for file in files {
        if let Some(home) = hidden_home(&unit.protect_home, &file.path) {
            let text = format!(
                "{} can't {} {}: ProtectHome={} of its unit hides {home}",
                name,
                file.want.as_str(),
                file.path.display(),
                unit.protect_home
            );
            found.push(
                Finding::error("unreadable", name, text)
                    .next(format!("{} and set ProtectHome=no", edit(&name.unit()))),
            );
            break;
        }
        let mut say = |finding: Finding| {
            if !found.iter().any(|known| known.code == finding.code && known.evidence == finding.evidence) {
                found.push(finding);
            }
        };
        let (path, want) = (file.path.display(), file.want);
        match access::judge(&file.way, who, want) {
            Known::Value(Ok(())) => {}
            Known::Value(Err(Refused::Missing(missing))) => {
                let text = format!("{path} of {name} is not there");
                let folder = missing.parent().unwrap_or(Path::new("/"));
                say(Finding::error("file_missing", name, text)
                    .shown_by([format!("{} does not exist", missing.display())])
                    .next(format!("ls -l {}", folder.display())));
            }
            Known::Value(Err(Refused::By(step))) => {
                let user = &who.user;
                let text = format!("{name} can't {} {path}: it runs as {user}", want.as_str());
                say(Finding::error("unreadable", name, text)
                    .shown_by([step.shown()])
                    .next(step.let_in(who, want)));
            }
            Known::Unknown(why) => {
                let text = format!("whether {name} can {} {path} can't be told: {why}", want.as_str());
                say(Finding::unknown("unreadable", name, text)
                    .shown_by([why])
                    .next(format!("sudo -u {} test -r {path} && echo yes", who.user)));
            }
        }
    }
    found
}

/// The folder of homes that a unit with this `ProtectHome=` does not see and that a path lies in.
fn hidden_home(protect: &str, path: &Path) -> Option<&'static str> {
    let hides = ["yes", "tmpfs"].contains(&protect);
    HOMES.into_iter().find(|home| hides && path.starts_with(home))
}

/// Whether there is memory for it.
fn fits(seen: &Seen) -> Vec<Finding> {
    let name = &seen.model;
    let next = format!("berthctl fit {name}");
    let unknown = |why: &str| {
        let text = format!("whether {name} fits can't be told: {why}");
        vec![Finding::unknown("does_not_fit", name, text).next(next.clone())]
    };
    match &seen.judged {
        None => unknown("it was not judged: its files did not answer"),
        Some(Ok(judged)) => match judged.fits {
            Some(true) => Vec::new(),
            Some(false) => {
                let why = judged.why.clone().unwrap_or_else(|| "there is too little memory".to_owned());
                let text = format!("{name} does not fit: {why}");
                vec![Finding::warning("does_not_fit", name, text).next(next)]
            }
            None => unknown(judged.why.as_deref().unwrap_or("no way to place it was found")),
        },
        // One cause for all models, and one finding.
        Some(Err(refusal)) if ["gpu_unknown", "no_gpu"].contains(&refusal.code.as_str()) => {
            let text = format!("whether models fit can't be told: {}", refusal.text);
            vec![Finding::unknown("does_not_fit", "", text).next("berthctl fit MODEL --gpus 2x16GiB")]
        }
        Some(Err(refusal)) => unknown(&refusal.text),
    }
}

/// Whether its unit lets it do what it is to do, and asks for nothing that is known to hurt (S17).
fn limits(seen: &Seen) -> Vec<Finding> {
    let name = &seen.model;
    let unit = match &seen.unit {
        Known::Value(unit) => unit,
        Known::Unknown(why) => {
            let text = format!("what the unit of {name} allows can't be looked at: {why}");
            let next = format!("{} status dbus", Scope::this().systemctl());
            return vec![Finding::unknown("limits", name, text).next(next)];
        }
    };
    let edit = |what: &str| format!("{} and {what}", edit(&name.unit()));
    let mut found = Vec::new();
    let host = seen.judged.as_ref().and_then(|judged| judged.as_ref().ok()).and_then(|judged| {
        let host = judged.devices.iter().find(|device| device.gpu.is_none())?;
        Some(host.needs_bytes)
    });
    if seen.locks && unit.memlock != u64::MAX && host.is_none_or(|host| Bytes(unit.memlock) < host) {
        let limit = Bytes(unit.memlock);
        let needs = host.map_or_else(|| "all of it".to_owned(), |host| host.to_string());
        let text = format!("{name} locks its memory, {needs}, and its unit lets it lock {limit}");
        let next = match Scope::this() {
            Scope::System => edit("set LimitMEMLOCK=infinity"),
            Scope::User => {
                "sudo systemctl edit user@.service and set LimitMEMLOCK=infinity; then reboot".to_owned()
            }
        };
        found.push(
            Finding::error("memlock", name, text)
                .shown_by([format!("LimitMEMLOCK={} of {}", unit.memlock, name.unit())])
                .next(next),
        );
    }
    if unit.nice < 0 || unit.realtime {
        let what = if unit.realtime {
            "CPUSchedulingPolicy= is a real-time one".to_owned()
        } else {
            format!("Nice={}", unit.nice)
        };
        let text = format!(
            "the unit of {name} runs before others: the threads of the GPU's driver starve behind it, and it serves \
             slower"
        );
        found.push(Finding::warning("priority", name, text).shown_by([what]).next(edit("take that out")));
    }
    found.extend(seen.ineffective.iter().map(|share| {
        let Share { property, controller, without } = share;
        let text = format!("{property} of the unit of {name} has no effect: {without}");
        let next = match Scope::this() {
            Scope::System => "take cgroup_disable= off the kernel's command line",
            Scope::User => {
                "sudo systemctl edit user@.service and set Delegate=cpu cpuset io memory pids; then reboot"
            }
        };
        Finding::warning("no_controller", name, text)
            .shown_by([format!("systemd has no controller {controller} for models' units")])
            .next(next)
    }));
    found
}

/// The command that changes a unit.
pub(super) fn edit(unit: &str) -> String {
    format!("{}{} edit '{unit}'", Scope::this().sudo(), Scope::this().systemctl())
}

#[cfg(test)]
#[path = "models/tests.rs"]
mod tests;
