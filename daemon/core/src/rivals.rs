//! Rivals: services outside Berth that take GPU memory. Which are enabled for boot, whether they run or not, and the
//! command that ends whoever holds memory now. Berth itself ends none of them.

mod server;

use std::collections::{BTreeMap, BTreeSet};

use crate::bytes::Bytes;
use crate::facts::{Gpu, GpuProcess};
use crate::name::ModelName;

pub use server::server_of;

/// From this much on one GPU on, a service counts as one that takes GPU memory: desktops, players and monitors hold less.
pub const NOTABLE: Bytes = Bytes::mib(1024);

/// A service that systemd starts at boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its unit, for example `aeon.service`; below a user's own systemd `user@1000.service/aeon.service`.
    pub unit: String,
    /// systemd's `Restart`: `no`, `always`, `on-failure` …
    pub restart: String,
    /// The command lines of its `ExecStart`.
    pub commands: Vec<Vec<String>>,
}

/// A service that is enabled for boot and would take GPU memory then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rival {
    /// Its unit.
    pub unit: String,
    /// What it is and does, in one sentence.
    pub text: String,
    /// The command that keeps it from the next boot, and ends it now.
    pub next: String,
}

/// What is known of rivals.
#[derive(Debug, Clone, Default)]
pub struct Rivals {
    /// The user under whose own systemd Berth runs; None under PID 1.
    own: Option<u32>,
    /// The foreign services that are enabled for boot, by unit; None as long as systemd has not told.
    enabled: Option<BTreeMap<String, Enabled>>,
    /// Of those the ones that were seen to hold notable GPU memory, with the most that it was on one GPU.
    held: BTreeMap<String, Bytes>,
}

/// What is kept of a service.
#[derive(Debug, Clone)]
struct Enabled {
    restart: String,
    /// The model server that it runs, if it is a known one.
    server: Option<String>,
}

impl Rivals {
    /// Nothing is known of them yet. `own`: the user under whose own systemd Berth runs; None under PID 1.
    pub fn of(own: Option<u32>) -> Self {
        Self { own, ..Self::default() }
    }

    /// Takes over which services are enabled for boot now.
    pub fn take(&mut self, services: Vec<Service>) {
        let foreign = services.into_iter().filter(|service| !is_berths(&service.unit));
        let enabled: BTreeMap<_, _> = foreign
            .map(|service| {
                let server = service.commands.iter().find_map(|command| server_of(command));
                (service.unit, Enabled { restart: service.restart, server })
            })
            .collect();
        self.held.retain(|unit, _| enabled.contains_key(unit));
        self.enabled = Some(enabled);
    }

    /// Takes note of the services that hold GPU memory now. What one has held once, it will hold again.
    pub fn note(&mut self, gpus: &[Gpu]) {
        let Some(enabled) = &self.enabled else { return };
        for gpu in gpus {
            let mut on_this: BTreeMap<&str, Bytes> = BTreeMap::new();
            for process in gpu.processes.value().into_iter().flatten() {
                let unit = process.unit.as_deref().filter(|unit| enabled.contains_key(*unit));
                if let (Some(unit), Some(bytes)) = (unit, process.memory.value()) {
                    let held = on_this.entry(unit).or_default();
                    *held = held.plus(*bytes);
                }
            }
            for (unit, bytes) in on_this.into_iter().filter(|(_, bytes)| *bytes >= NOTABLE) {
                let most = self.held.entry(unit.to_owned()).or_default();
                *most = bytes.max(*most);
            }
        }
    }

    /// The services that would take GPU memory at the next boot, by unit.
    pub fn found(&self) -> impl Iterator<Item = Rival> {
        self.enabled.iter().flatten().filter_map(|(unit, service)| {
            let does = match (&service.server, self.held.get(unit)) {
                (Some(server), _) => format!("runs {server}"),
                (None, Some(held)) => format!("has held {held} of GPU memory"),
                (None, None) => return None,
            };
            let restart = match service.restart.as_str() {
                "" | "no" => String::new(),
                restart => format!(" (Restart={restart})"),
            };
            let text = format!(
                "{unit} is enabled for boot{restart} and {does}: after a reboot it would take GPU memory before Berth"
            );
            Some(Rival { unit: unit.clone(), text, next: self.systemctl("disable --now", unit) })
        })
    }

    /// The command that ends these processes: of a service by its unit, so that systemd does not start it again.
    pub fn end(&self, processes: &[GpuProcess]) -> String {
        let mut commands: Vec<String> = Vec::new();
        let mut pids = BTreeSet::new();
        for process in processes {
            match process.unit.as_deref().and_then(|unit| self.end_unit(unit)) {
                Some(command) if !commands.contains(&command) => commands.push(command),
                Some(_) => {}
                None => _ = pids.insert(process.pid),
            }
        }
        if !pids.is_empty() {
            let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
            commands.push(format!("sudo kill {}", pids.join(" ")));
        }
        commands.join("; ")
    }

    /// The command that ends a unit, if it is a service or a container. Of other scopes, such as a login's, no more
    /// than the one process is to end.
    fn end_unit(&self, unit: &str) -> Option<String> {
        if let Some(container) = unit.strip_suffix(".scope").filter(|_| below_user(unit).is_none()) {
            let (engine, id) = container.split_once('-')?;
            let engine = match engine {
                "docker" => "docker",
                "libpod" => "podman",
                _ => return None,
            };
            return Some(format!("sudo {engine} stop {}", id.get(..12)?));
        }
        if unit.starts_with("user@") && below_user(unit).is_none_or(|(_, inner)| !inner.ends_with(".service"))
        {
            return None;
        }
        // Until systemd has told, a service is taken to be enabled: where it isn't, the same command just stops it.
        let enabled = self.enabled.as_ref().is_none_or(|enabled| enabled.contains_key(unit));
        Some(self.systemctl(if enabled { "disable --now" } else { "stop" }, unit))
    }

    /// The command that does this to a unit.
    fn systemctl(&self, verb: &str, unit: &str) -> String {
        match below_user(unit) {
            None => format!("sudo systemctl {verb} {}", shell_words::quote(unit)),
            Some((uid, inner)) => {
                let inner = shell_words::quote(inner);
                if self.own.is_some_and(|own| uid == own.to_string()) {
                    format!("systemctl --user {verb} {inner}")
                } else {
                    format!("sudo systemctl --user -M {uid}@ {verb} {inner}")
                }
            }
        }
    }
}

/// Of `user@1000.service/aeon.service` the user and the unit there.
fn below_user(unit: &str) -> Option<(&str, &str)> {
    let (user, inner) = unit.split_once('/')?;
    Some((user.strip_prefix("user@")?.strip_suffix(".service")?, inner))
}

/// Whether a unit is one that comes with Berth.
pub fn is_berths(unit: &str) -> bool {
    let unit = below_user(unit).map_or(unit, |(_, inner)| inner);
    ["berthd.service", "berth-devices.service"].contains(&unit) || ModelName::from_unit(unit).is_some()
}

#[cfg(test)]
mod tests;
