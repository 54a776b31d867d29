//! Servers in containers: a `docker run` or `podman run` taken apart, and put together again for a start.
//!
//! What stands behind the image is the server's own command line, which backends read and add to as if there were no
//! container. What stands before it says how the machine's ports, folders and GPUs reach it.

mod options;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::backend::{Clear, Launch, PlacedGpu};
use crate::config::{BackendKind, Model};
use crate::name::ModelName;

use options::Mount;
pub use options::{elsewhere, gpus, is_all, without};

/// No image is fetched at a start.
const NO_PULL: &str = "--pull=never";

/// Programs that run containers in the background, outside the unit that calls them.
pub const COMPOSERS: [&str; 3] = ["docker-compose", "nerdctl", "podman-compose"];

/// A program that runs containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// A daemon runs the container, in a cgroup of its own; the program in the unit only waits for it.
    Docker,
    /// The container runs below the program, in its unit's cgroup.
    Podman,
}

impl Engine {
    /// The engine that a program is.
    pub fn of(program: &str) -> Option<Self> {
        match program.rsplit('/').next()? {
            "docker" => Some(Self::Docker),
            "podman" => Some(Self::Podman),
            _ => None,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        })
    }
}

/// What a command line says of GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Gpus {
    /// Nothing: the container gets those on which the model is placed.
    Unsaid,
    /// All: of these the server is shown those on which it is placed.
    All,
    /// Which ones.
    Chosen,
}

/// A port of the machine that leads into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Published {
    /// The machine's address; all of them where none is given.
    pub host: IpAddr,
    /// The machine's port as it is written, `{port}` for the one that Berth gives.
    pub port: String,
    /// The port inside.
    pub inside: u16,
}

/// A container in which a server runs: what a command line says before its server's own arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Container {
    /// Who runs it.
    pub engine: Engine,
    /// The words up to `run`, that among them.
    verb: Vec<String>,
    /// The options of `run`, as they are written but for the values of secrets.
    options: Vec<String>,
    /// The image.
    pub image: String,
    /// What is run instead of the image's own program.
    pub entrypoint: Option<String>,
    /// Whether it has the machine's own network.
    pub host_network: bool,
    /// The ports that are published over TCP.
    ports: Vec<Published>,
    /// That of the server; None in the machine's network, where the server has the machine's ports.
    pub port: Option<Published>,
    /// What is mounted in it, and where.
    mounts: Vec<Mount>,
    /// The variables that it is given.
    pub env: BTreeMap<String, String>,
    /// The variables whose values the options do not have: the engine takes them from its own.
    passed: BTreeSet<String>,
    /// The GPUs that it is given.
    pub gpus: Gpus,
}

/// Why a server can't run so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// Which argument says so.
    pub at: usize,
    /// Why, as one clause.
    pub why: String,
    /// What to do.
    pub instead: String,
}

impl Container {
    /// Takes a command line apart, with the number of arguments before the server's own. None where no container engine
    /// is run.
    pub fn read(program: &str, args: &[String]) -> Option<Result<(Self, usize), Unfit>> {
        Some(options::read(Engine::of(program)?, args))
    }

    /// Settles which published port is the server's: that of the machine's port `wanted`, else the one that leads to the
    /// port `inside`. An error says why that can't be told.
    pub fn settle(&mut self, wanted: Option<u16>, inside: Option<u16>) -> Result<(), String> {
        if self.host_network {
            return Ok(());
        }
        let wanted = wanted.map(|port| port.to_string());
        let mut fit: Vec<&Published> = self.ports.iter().collect();
        for rule in [&|port: &Published| wanted.as_ref() == Some(&port.port), &|port: &Published| {
            inside == Some(port.inside)
        }] as [&dyn Fn(&Published) -> bool; 2]
        {
            if fit.len() > 1 && fit.iter().any(|port| rule(port)) {
                fit.retain(|port| rule(port));
            }
        }
        self.port = match fit[..] {
            [one] => Some(one.clone()),
            [] => return Err("no port of this machine leads to the server".to_owned()),
            _ => {
                return Err(
                    "several ports are published, and which one is the server's is not said".to_owned()
                );
            }
        };
        Ok(())
    }

    /// What kind of server it runs, as far as image and program tell.
    pub fn kind(&self, args: &[String]) -> BackendKind {
        if let Some(program) = &self.entrypoint {
            return crate::backend::kind_of(program, args);
        }
        let by_program = args.split_first().map(|(program, args)| crate::backend::kind_of(program, args));
        let tagged = self.image.split('@').next().unwrap_or_default();
        let name = tagged.rsplit('/').next().unwrap_or_default();
        let (name, tag) = name.split_once(':').unwrap_or((name, ""));
        match (by_program, name) {
            (Some(kind @ (BackendKind::LlamaCpp | BackendKind::Vllm)), _) => kind,
            (_, "vllm-openai") => BackendKind::Vllm,
            (_, "llama.cpp") if tag.starts_with("server") => BackendKind::LlamaCpp,
            _ => BackendKind::Command,
        }
    }

    /// Where a path inside is on the machine; None where it is part of the image or of a volume.
    pub fn outside(&self, path: &Path) -> Option<PathBuf> {
        let below = self.mounts.iter().filter(|(_, inside)| path.starts_with(inside));
        let (outside, inside) = below.max_by_key(|(_, inside)| inside.components().count())?;
        moved(path, inside, outside.as_ref()?)
    }

    /// Where a path of the machine is inside; None where it is not mounted, or something else is mounted over it.
    pub fn inside(&self, path: &Path) -> Option<PathBuf> {
        let mut places =
            self.mounts.iter().filter_map(|(outside, inside)| moved(path, outside.as_ref()?, inside));
        places.find(|inside| self.outside(inside).as_deref() == Some(path))
    }

    /// The server as it is inside: its address, its files and its GPUs as it finds them there.
    pub(crate) fn server(&self, model: &Model, gpus: &[PlacedGpu]) -> (Model, Vec<PlacedGpu>) {
        let mut server = model.clone();
        if let Some(port) = &self.port {
            server.host = Ipv4Addr::UNSPECIFIED.into();
            server.port = port.inside;
        }
        server.file = model.file.as_ref().map(|file| self.inside(file).unwrap_or_else(|| file.clone()));
        let mut gpus = gpus.to_vec();
        if self.gpus == Gpus::Unsaid {
            // It is given these and no others, so they are counted anew.
            let mut order: Vec<u32> = gpus.iter().map(|gpu| gpu.index).collect();
            order.sort_unstable();
            for gpu in &mut gpus {
                let place = order.iter().position(|index| *index == gpu.index).unwrap_or_default();
                gpu.index = u32::try_from(place).unwrap_or(gpu.index);
            }
        }
        (server, gpus)
    }

    /// Puts the container around what is launched: the engine's command line, and what goes in by it.
    pub(crate) fn around(&self, model: &Model, gpus: &[PlacedGpu], server: Launch) -> Launch {
        let mut launch = server;
        launch.env.retain(|name, _| {
            let own = self.gpus == Gpus::Chosen
                && ["CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"].contains(&name.as_str());
            let given = self.env.get(name).is_some_and(|given| model.env.get(name) == Some(given));
            (!given || self.passed.contains(name)) && (!own || model.env.contains_key(name))
        });
        let bounds = self.bounds(model, gpus, &mut launch);
        // By name alone, so that no value shows in a list of processes. After the options: what a variant sets wins.
        let passed = launch.env.keys().chain(&launch.secrets).filter(|name| !self.passed.contains(*name));
        let passed: Vec<String> = passed.map(|name| format!("--env={name}")).collect();
        let mut argv = self.words(model);
        let image = argv.len() - 1;
        argv.splice(image..image, passed);
        argv.splice(self.verb.len()..self.verb.len(), bounds);
        launch.argv.splice(1..1, argv);
        launch.clear = Some(self.clear(model));
        launch
    }

    /// What keeps it in its model's bounds, before the options that are declared.
    fn bounds(&self, model: &Model, gpus: &[PlacedGpu], launch: &mut Launch) -> Vec<String> {
        let has = |name: &str| options::has(&self.options, name, "");
        let mut words = Vec::new();
        if !has("--rm") {
            words.push("--rm".to_owned());
        }
        // An image that is missing would be fetched while nothing serves.
        if !has("--pull") {
            words.push(NO_PULL.to_owned());
        }
        words.push(format!("--label={}", label(&model.name)));
        match self.engine {
            Engine::Docker => words.push(format!("--cgroup-parent={}", model.name.slice())),
            Engine::Podman => {
                if !has("--cgroups") {
                    words.push("--cgroups=split".to_owned());
                }
                // Its output goes to the unit's; kept apart it would stand in the journal twice.
                if !has("--log-driver") {
                    words.push("--log-driver=none".to_owned());
                }
            }
        }
        if self.gpus == Gpus::Unsaid {
            let ids: Vec<&str> = gpus.iter().map(|gpu| gpu.id.0.as_str()).collect();
            match self.engine {
                _ if ids.is_empty() => {}
                // docker reads a list with commas; the quotes keep it one device's value.
                Engine::Docker => words.push(format!("--gpus=\"device={}\"", ids.join(","))),
                Engine::Podman => words.extend(ids.iter().map(|id| format!("--device=nvidia.com/gpu={id}"))),
            }
        }
        // The engine starts the server with limits and processors of its own.
        let limited = options::has(&self.options, "--ulimit", "memlock");
        if let Some(limit) = launch.memlock.take().filter(|_| !limited) {
            words.push(format!("--ulimit=memlock={}", limit.0));
        }
        if self.engine == Engine::Docker && !launch.cpus.is_empty() && !has("--cpuset-cpus") {
            let cpus: Vec<String> = launch.cpus.iter().map(u32::to_string).collect();
            words.push(format!("--cpuset-cpus={}", cpus.join(",")));
        }
        words
    }

    /// The words between program and server, up to the image, with the address where `{host}` and `{port}` stand.
    pub(crate) fn words(&self, model: &Model) -> Vec<String> {
        let (host, port) = (model.host.to_string(), model.port.to_string());
        let words = self.declared().into_iter();
        words.map(|word| word.replace("{host}", &host).replace("{port}", &port)).collect()
    }

    /// The words before the server's own arguments, as they are declared.
    pub(crate) fn declared(&self) -> Vec<String> {
        self.verb.iter().chain(&self.options).chain([&self.image]).cloned().collect()
    }

    /// The engine's command line without Berth: its marks left out, and all GPUs given where it says nothing of them.
    pub fn without_berth(&self, model: &Model, argv: &mut Vec<String>) {
        let all = match self.engine {
            Engine::Docker => "--gpus=all",
            Engine::Podman => "--device=nvidia.com/gpu=all",
        };
        let needs = self.gpus == Gpus::Unsaid && model.policy.uses_gpus();
        let mut marks = vec![
            format!("--cgroup-parent={}", model.name.slice()),
            format!("--label={}", label(&model.name)),
        ];
        if !options::has(&self.options, "--pull", "") {
            marks.push(NO_PULL.to_owned());
        }
        argv.retain(|arg| !marks.contains(arg));
        let options = 1 + self.verb.len();
        argv.splice(options..options, needs.then(|| all.to_owned()));
    }

    /// Whether its image is the same at each start: it is named by what is in it.
    pub(crate) fn is_fixed(&self) -> bool {
        self.image.contains("@sha256:")
    }

    /// How what an earlier run of the model left is found and removed. Its label tells it from anybody else's of that name.
    fn clear(&self, model: &Model) -> Clear {
        let before = self.verb.iter().take_while(|word| !["container", "run"].contains(&word.as_str()));
        let engine: Vec<String> =
            std::iter::once(model.program.to_string_lossy().into_owned()).chain(before.cloned()).collect();
        let with = |words: &[&str]| {
            engine.iter().cloned().chain(words.iter().map(|word| (*word).to_owned())).collect()
        };
        let mut find: Vec<String> = with(&["ps", "--all", "--quiet"]);
        find.push(format!("--filter=label={}", label(&model.name)));
        Clear { find, remove: with(&["rm", "--force"]) }
    }
}

/// A path below one folder as it is below another.
fn moved(path: &Path, from: &Path, to: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(from).ok()?;
    Some(if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) })
}

/// What Berth marks a model's container with. podman 4 takes a comma for the end of what is looked for; no name has a `+`.
fn label(model: &ModelName) -> String {
    format!("berth.model={}", model.as_str().replace(',', "+"))
}

#[cfg(test)]
mod tests;
