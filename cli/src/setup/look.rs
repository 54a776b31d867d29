//! What is on this machine: services and processes that serve models or would at boot, models' files, and who has Berth's
//! ports. All of it is read, none of it changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use berth_core::backend;
use berth_core::bytes::Bytes;
use berth_core::config::Settings;
use berth_core::facts::{Gpu, Known, Named};
use berth_core::rivals::{self, Rivals};
use berth_observe::sockets;
use berth_observe::systemd::enabled;
use nix::unistd::{Uid, User};
use serde::Serialize;

use crate::complaint::Complaint;
use crate::doctor::{Basis, apart};
use crate::exit::Exit;
use crate::fit;
use crate::systemd::{self, Loaded};

/// Where people keep models, besides their homes.
const COMMON: [&str; 4] = ["/models", "/srv/models", "/opt/models", "/var/lib/models"];

/// The same in a home: by hand, and where the hubs' clients and llama.cpp put what they fetch.
const IN_HOMES: [&str; 3] = ["models", ".cache/huggingface/hub", ".cache/llama.cpp"];

/// Servers that load several models by themselves: one of them is no model.
const LOADERS: [&str; 5] = ["llama-swap", "local-ai", "localai", "ollama", "xinference-local"];

/// Berth's own ports unless it is declared otherwise: for clients, for programs and the dashboard.
const PORTS: [(u16, &str); 2] = [(8010, "proxy"), (8009, "http")];

/// All that was seen.
pub(super) struct Machine {
    pub(super) services: Vec<Service>,
    /// What holds GPU memory and is no service of the machine.
    pub(super) processes: Vec<Process>,
    pub(super) folders: Vec<Models>,
    pub(super) ports: Vec<Taken>,
    /// What could not be looked at, with the reason.
    pub(super) unseen: Vec<String>,
}

/// A service that serves a model, or would after the next boot.
#[derive(Debug, Default, Serialize)]
pub(super) struct Service {
    pub(super) unit: String,
    /// The known model server that it runs.
    pub(super) server: Option<String>,
    pub(super) runs: bool,
    pub(super) pid: Option<u32>,
    pub(super) gpus: Vec<u32>,
    /// What it holds on all of them.
    pub(super) held_bytes: Bytes,
    /// What it would do after a boot, in one sentence.
    pub(super) at_boot: Option<String>,
    /// It is Berth's already, and this run of it has not ended.
    pub(super) masked: bool,
}

impl Service {
    /// Whether it loads several models by itself.
    pub(super) fn is_loader(&self) -> bool {
        self.server.as_ref().is_some_and(|server| LOADERS.contains(&server.as_str()))
    }
}

/// A process that holds GPU memory.
#[derive(Debug, Default, Serialize)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) program: String,
    pub(super) unit: Option<String>,
    pub(super) gpus: Vec<u32>,
    pub(super) held_bytes: Bytes,
    /// Whether it is a model's server, as far as can be told.
    pub(super) serves: bool,
}

/// The models in one folder.
#[derive(Debug, Serialize)]
pub(super) struct Models {
    pub(super) folder: PathBuf,
    /// How many could be judged, and how many of them fit, served ones too.
    pub(super) judged: usize,
    pub(super) fitting: usize,
    /// Those that fit and that nothing serves yet.
    pub(super) unserved: Vec<File>,
    /// Why they could not be judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
}

/// A model's file or folder.
#[derive(Debug, Serialize)]
pub(super) struct File {
    pub(super) path: PathBuf,
    /// The person that it belongs to.
    pub(super) owner: Option<String>,
}

/// A port of Berth's that another program has.
#[derive(Debug, Serialize)]
pub(super) struct Taken {
    pub(super) port: u16,
    /// Its table in berth.toml.
    pub(super) table: &'static str,
    pub(super) by: String,
    /// One that is free.
    pub(super) instead: Option<u16>,
}

/// Looks at all of it; `named` are folders besides the common ones.
pub(super) async fn look(basis: &Basis, named: &[PathBuf]) -> Result<Machine, Complaint> {
    for folder in named {
        fs::read_dir(folder).map_err(|error| {
            let title = format!("{} can't be read as a folder: {error}", folder.display());
            Complaint::new(Exit::Usage, "unreadable", title, &[format!("ls -ld {}", folder.display())])
        })?;
    }
    let (mut unseen, mut services) = (Vec::new(), BTreeMap::new());
    let gpus = basis.gpus.value().map_or(&[][..], Vec::as_slice);
    let mut processes = holders(gpus, &mut services);
    // Those are models already.
    let replaced = basis.settings.value().map(Settings::predecessors).unwrap_or_default();
    processes.retain(|process| !replaced.values().any(|unit| process.unit.as_ref() == Some(unit)));
    if let Known::Value(bus) = &basis.bus {
        match enabled::all(bus).await {
            Ok(all) => at_boot(all, gpus, &mut services),
            Err(error) => unseen.push(format!("which services are enabled for boot: {error}")),
        }
        if let Err(error) = running(&mut services).await {
            unseen.push(format!("which services run: {error}"));
        }
    }
    services.retain(|unit, service: &mut Service| {
        service.unit.clone_from(unit);
        let takes = service.held_bytes >= rivals::NOTABLE || service.server.is_some();
        takes && (service.runs || service.at_boot.is_some()) && !rivals::is_berths(unit)
    });
    processes.sort_by_key(|process| std::cmp::Reverse(process.held_bytes));
    let served = basis.settings.value().map(declared_files).unwrap_or_default();
    let (named, all) = (named.to_vec(), basis.gpus.clone());
    let folders = match apart(move || folders(&named, &all, &served)).await {
        Known::Value(folders) => folders,
        Known::Unknown(why) => {
            unseen.push(format!("models' files: {why}"));
            Vec::new()
        }
    };
    let ports = taken(basis.settings.value()).unwrap_or_else(|error| {
        unseen.push(format!("who has which port: {error}"));
        Vec::new()
    });
    Ok(Machine { services: services.into_values().collect(), processes, folders, ports, unseen })
}

/// Who holds GPU memory: services by their unit, everybody else by process.
fn holders(gpus: &[Gpu], services: &mut BTreeMap<String, Service>) -> Vec<Process> {
    let mut processes: BTreeMap<u32, Process> = BTreeMap::new();
    for gpu in gpus {
        let held = gpu.processes.value().into_iter().flatten().filter(|process| process.model.is_none());
        for process in held {
            let bytes = process.memory.value().copied().unwrap_or(Bytes::ZERO);
            let of_machine = |unit: &&String| unit.ends_with(".service") && !unit.contains('/');
            let (on, sum) = if let Some(unit) = process.unit.as_ref().filter(of_machine) {
                let service = services.entry(unit.clone()).or_default();
                (&mut service.gpus, &mut service.held_bytes)
            } else {
                let one = processes.entry(process.pid).or_default();
                one.pid = process.pid;
                one.program.clone_from(&process.program);
                one.unit.clone_from(&process.unit);
                (&mut one.gpus, &mut one.held_bytes)
            };
            *sum = sum.plus(bytes);
            if !on.contains(&gpu.index) {
                on.push(gpu.index);
            }
        }
    }
    for process in processes.values_mut() {
        let command = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
        let command: Vec<String> = command
            .split(|byte| *byte == 0)
            .map(|text| String::from_utf8_lossy(text).into_owned())
            .filter(|text| !text.is_empty())
            .collect();
        process.serves = process.held_bytes >= rivals::NOTABLE || rivals::server_of(&command).is_some();
    }
    processes.into_values().collect()
}

/// What is enabled for boot and would take GPU memory then.
fn at_boot(enabled: Vec<rivals::Service>, gpus: &[Gpu], services: &mut BTreeMap<String, Service>) {
    for service in &enabled {
        if let Some(server) = service.commands.iter().find_map(|command| rivals::server_of(command)) {
            services.entry(service.unit.clone()).or_default().server = Some(server);
        }
    }
    let mut rivals = Rivals::default();
    rivals.take(enabled);
    rivals.note(gpus);
    for rival in rivals.found() {
        services.entry(rival.unit).or_default().at_boot = Some(rival.text);
    }
}

/// Which of them run, and what else runs a known server.
async fn running(
    services: &mut BTreeMap<String, Service>,
) -> Result<(), berth_observe::systemd::SystemdError> {
    for unit in systemd::active("*.service").await? {
        let Loaded { start, main_pid, load, .. } = systemd::loaded(&unit).await?;
        let server = start.iter().find_map(|command| rivals::server_of(command));
        if server.is_some() || services.contains_key(&unit) {
            let service = services.entry(unit).or_default();
            service.server = service.server.take().or(server);
            service.runs = true;
            service.pid = Some(main_pid).filter(|pid| *pid != 0);
            service.masked = load == "masked";
        }
    }
    Ok(())
}

/// The files of all that is declared.
pub(super) fn declared_files(settings: &Settings) -> BTreeSet<PathBuf> {
    let files = settings.models.values().flat_map(|model| backend::of(model.backend).files(model));
    files.map(|path| fs::canonicalize(&path).unwrap_or(path)).collect()
}

fn folders(named: &[PathBuf], gpus: &Known<Vec<Gpu>>, served: &BTreeSet<PathBuf>) -> Vec<Models> {
    let homes = homes(&fs::read_to_string("/etc/passwd").unwrap_or_default());
    let in_homes = homes.iter().flat_map(|home| IN_HOMES.map(|folder| home.join(folder)));
    let common = COMMON.iter().map(PathBuf::from).chain(in_homes).filter(|folder| folder.is_dir());
    let mut seen = BTreeSet::new();
    let all = named.iter().cloned().chain(common);
    let all = all.filter(|folder| seen.insert(fs::canonicalize(folder).unwrap_or_else(|_| folder.clone())));
    all.map(|folder| models(folder, gpus.clone(), served)).collect()
}

/// The homes of people, and of root.
fn homes(passwd: &str) -> Vec<PathBuf> {
    let home = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let uid: u32 = fields.get(2)?.parse().ok()?;
        (uid == 0 || (1000..60_000).contains(&uid)).then(|| fields.get(5).map(PathBuf::from))?
    };
    let homes: BTreeSet<PathBuf> = passwd.lines().filter_map(home).collect();
    homes.into_iter().filter(|home| home.is_absolute() && home != Path::new("/")).collect()
}

fn models(folder: PathBuf, gpus: Known<Vec<Gpu>>, served: &BTreeSet<PathBuf>) -> Models {
    let judged = match fit::folder(&folder, gpus) {
        Ok(judged) => judged,
        Err(why) => {
            return Models { folder, judged: 0, fitting: 0, unserved: Vec::new(), why: Some(why.title) };
        }
    };
    let fits: Vec<PathBuf> = judged
        .models
        .iter()
        .filter(|one| one.fits == Some(true))
        .filter_map(|one| one.file.clone())
        .collect();
    let fitting = fits.len();
    let unserved = fits.into_iter().filter(|path| !is_among(path, served));
    let unserved = unserved.map(|path| File { owner: owner(&path), path }).collect();
    Models { folder, judged: judged.models.len(), fitting, unserved, why: None }
}

/// Whether one of these files is at this path, or in the folder that it is.
pub(super) fn is_among(path: &Path, files: &BTreeSet<PathBuf>) -> bool {
    fs::canonicalize(path).is_ok_and(|path| files.iter().any(|one| one.starts_with(&path)))
}

/// The person that a file belongs to; None where it is root's or another service's.
fn owner(path: &Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let uid = fs::metadata(path).ok()?.uid();
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten()?;
    (uid >= 1000).then_some(user.name)
}

/// Berth's ports that another program has.
fn taken(settings: Option<&Settings>) -> std::io::Result<Vec<Taken>> {
    let listening = sockets::listeners(None)?;
    let mut found = Vec::new();
    for (usual, table) in PORTS {
        let declared = settings.map(|settings| match table {
            "proxy" => &settings.proxy.listen,
            _ => &settings.http.listen,
        });
        let ports = declared.map_or_else(|| vec![usual], |all| all.iter().map(SocketAddr::port).collect());
        for port in ports {
            let by = listening.iter().find(|socket| socket.port == port).map(sockets::Socket::holders);
            let Some(by) = by.filter(|by| !by.iter().any(is_berths)) else { continue };
            let names: Vec<String> = by.iter().map(Named::to_string).collect();
            let by = if names.is_empty() { "another program".to_owned() } else { names.join(", ") };
            let free = |port: &u16| {
                !listening.iter().any(|socket| socket.port == *port)
                    && !PORTS.iter().any(|(own, _)| own == port)
            };
            found.push(Taken { port, table, by, instead: (8011..8100).find(free) });
        }
    }
    Ok(found)
}

/// berthd itself, or PID 1, which keeps its sockets while it restarts.
fn is_berths(holder: &Named) -> bool {
    holder.program == "berthd" || holder.pid == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_those_of_people() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/usr/sbin:/bin/sh\n\
            frank:x:1000:1000::/home/frank:/bin/bash\nnobody:x:65534:65534::/nonexistent:/bin/sh\n\
            odd:x:1001:1001::/:/bin/sh\nbroken:x\n";
        assert_eq!(homes(passwd), [PathBuf::from("/home/frank"), PathBuf::from("/root")]);
    }
}
