//! Quadlet's files of containers: refused, with the command that can be added instead.

use std::path::Path;

use super::command_line;
use super::from_unit::Refusal;
use crate::unit::{File, Unit, words};

/// Why a Quadlet file can't become a model, with the command that can.
pub(super) fn refusal(path: &Path) -> Refusal {
    let what = "a container's file makes podman run it in the background, and its processes are not in the unit's cgroup";
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let file = File { path: path.to_owned(), text };
    let command = Unit::read("container.service", &[file]).ok().and_then(|unit| by_podman(&unit));
    let instead =
        command.unwrap_or_else(|| "podman run --cgroups=split … in a service of its own".to_owned());
    Refusal::new(what, format!("add a service with ExecStart={instead}"))
}

/// The command that runs what a Quadlet file describes within its unit.
fn by_podman(unit: &Unit) -> Option<String> {
    const OPTIONS: [(&str, &str); 7] = [
        ("AddDevice", "--device"),
        ("Environment", "--env"),
        ("EnvironmentFile", "--env-file"),
        ("Network", "--network"),
        ("PublishPort", "--publish"),
        ("ShmSize", "--shm-size"),
        ("Volume", "--volume"),
    ];
    let image = unit.last("Container", "Image")?;
    let mut command = ["/usr/bin/podman", "run", "--rm"].map(str::to_owned).to_vec();
    for (key, option) in OPTIONS {
        for setting in unit.all("Container", key) {
            command.extend([option.to_owned(), setting.value.clone()]);
        }
    }
    for setting in unit.all("Container", "PodmanArgs") {
        command.extend(words(&setting.value).ok()?);
    }
    command.push(image.value.clone());
    if let Some(run) = unit.last("Container", "Exec") {
        command.extend(words(&run.value).ok()?);
    }
    Some(command_line::by_podman(&command))
}
