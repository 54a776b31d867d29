//! What runs goes on as the model: berthd may stop its unit, and a process gets a unit to be stopped by.

use std::collections::BTreeMap;
use std::path::PathBuf;

use berth_core::name::ModelName;

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
    let about = format!("Model {name}, taken over by Berth");
    systemd::into_scope(scope, &about, &family(pid)).await?;
    // Those that were born meanwhile.
    let late = family(pid);
    systemd::also_into(scope, &late).await
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
