//! What runs goes on as the model: berthd may stop its unit, and a process gets a unit to be stopped by.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use berth_core::backend;
use berth_core::config::Settings;
use berth_core::name::ModelName;
use berth_observe::proc::{self, Groups};
use berth_observe::sockets::{self, Socket};

use super::Addition;
use crate::changes::Change;
use crate::systemd;

/// Where an administrator's rules for polkit lie.
const RULES: &str = "/etc/polkit-1/rules.d";

/// The unit that a process of nobody's service gets.
pub(super) fn scope(name: &ModelName) -> String {
    name.unit().replacen("berth-model@", "berth-taken-", 1).replace(".service", ".scope")
}

/// Lets berthd stop `unit`, which `name` replaces. It is allowed nothing but its own units otherwise.
pub(super) fn rule(name: &ModelName, unit: &str) -> Change {
    // As a text of JavaScript, which a name with an escape in it would not be by itself.
    let quoted = serde_json::Value::from(unit);
    let text = format!(
        "// {unit} is the model {name} until Berth starts it: berthd may stop it. `berthctl remove {name}` takes this away.\n\
         polkit.addRule(function (action, subject) {{\n    \
             var verbs = [\"stop\", \"kill\", \"ref\", \"reset-failed\"];\n    \
             if (action.id === \"org.freedesktop.systemd1.manage-units\" && subject.user === \"berth\" &&\n        \
                 String(action.lookup(\"unit\")) === {quoted} && verbs.indexOf(String(action.lookup(\"verb\"))) >= 0) {{\n        \
                 return polkit.Result.YES;\n    \
             }}\n    \
             return polkit.Result.NOT_HANDLED;\n\
         }});\n"
    );
    Change::write(PathBuf::from(format!("{RULES}/60-berth-{name}.rules")), text, 0o644)
}

/// Gives a process and all that it started the unit `scope`.
pub(super) async fn take(pid: u32, scope: &str, name: &ModelName) -> Result<(), systemd::Failed> {
    systemd::into_scope(scope, &format!("Model {name}, taken over by Berth"), pid).await?;
    let mut taken = BTreeSet::from([pid]);
    // Until none was born meanwhile.
    loop {
        let late: Vec<u32> = family(pid).into_iter().filter(|pid| taken.insert(*pid)).collect();
        if late.is_empty() {
            return Ok(());
        }
        for pid in late {
            systemd::also_into(scope, pid).await?;
        }
    }
}

/// Where what runs names no port, clients are led to the one at which it listens; where there is none, or more than one, it
/// can't be the model. Whether its declaration is another one now.
pub(super) fn finds_port(addition: &mut Addition, settings: &Settings) -> bool {
    let pids: BTreeSet<u32> = match (&addition.service, addition.process) {
        (Some(service), _) => {
            let group = Groups::of(service.loaded.control_group.clone());
            proc::cgroup_processes(&group).value().into_iter().flat_map(BTreeMap::keys).copied().collect()
        }
        (None, Some(pid)) => family(pid).into_iter().collect(),
        (None, None) => return false,
    };
    let [draft] = addition.drafts.as_mut_slice() else { return false };
    let Some(model) = settings.models.get(&draft.name).filter(|_| draft.replaces().is_some()) else {
        return false;
    };
    if !model.derived.iter().any(|derived| derived.key == "port") {
        return false;
    }
    let why = match port(&pids, backend::usual_port(model.backend)) {
        Ok(Port::At(port)) => {
            draft.set_port(port);
            return true;
        }
        Ok(Port::Nowhere) => "it listens nowhere yet".to_owned(),
        Ok(Port::Several) => "it listens at several ports, and none is the usual one".to_owned(),
        Err(error) => format!("where it listens can't be seen ({error})"),
    };
    draft.replaces_nothing();
    draft.note(
        "port",
        format!(
            "{why}, so clients can't be led to it: until it ends its memory and port count as somebody else's. End it \
             before `berthctl switch`"
        ),
    );
    true
}

/// Where a service or a process listens, and at which of its ports clients are to be led to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    At(u16),
    /// At none yet.
    Nowhere,
    /// At several, of which none is the usual one.
    Several,
}

/// The port of what runs: of several the one that such a server takes where nothing is said.
fn port(pids: &BTreeSet<u32>, usual: Option<u16>) -> io::Result<Port> {
    let own = |socket: &Socket| socket.holders().iter().any(|process| pids.contains(&process.pid));
    let ports: BTreeSet<u16> =
        sockets::listeners(None)?.into_iter().filter(own).map(|socket| socket.port).collect();
    let usual = usual.filter(|usual| ports.contains(usual));
    Ok(match (usual, ports.first(), ports.len()) {
        (Some(usual), ..) => Port::At(usual),
        (None, Some(only), 1) => Port::At(*only),
        (None, None, _) => Port::Nowhere,
        _ => Port::Several,
    })
}

/// A process and all those that it started, and those that they started.
fn family(pid: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for process in procfs::process::all_processes().into_iter().flatten().flatten() {
        if let Ok(stat) = process.stat()
            && let (Ok(parent), Ok(pid)) = (stat.ppid.try_into(), stat.pid.try_into())
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut all, mut next) = (Vec::new(), vec![pid]);
    while let Some(pid) = next.pop() {
        all.push(pid);
        next.extend(children.remove(&pid).unwrap_or_default());
    }
    all
}
