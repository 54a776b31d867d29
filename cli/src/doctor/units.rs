//! Units of systemd: what they wait for and require that does not exist (S14), and services outside Berth that would take a
//! GPU at boot (S2, S3).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use berth_core::facts::{Gpu, Known};
use berth_core::rivals::{Rivals, Service};
use berth_observe::scope::Scope;
use berth_observe::systemd::{MANAGER, Reader, SYSTEMD, SYSTEMD_PATH, SystemdError, UNIT, call, enabled};
use zbus::Connection;

use super::{Check, Finding, Ground, check};

/// What comes with Berth, beside the models' units.
fn berths() -> &'static [&'static str] {
    match Scope::this() {
        Scope::System => &["berthd.service", "berth-devices.service"],
        Scope::User => &["berthd.service"],
    }
}

/// What a unit says of others, by systemd's key; whether it does not start without them.
const KEYS: [(&str, bool); 8] = [
    ("Requires", true),
    ("Requisite", true),
    ("BindsTo", true),
    ("Wants", false),
    ("Upholds", false),
    ("PartOf", false),
    ("After", false),
    ("Before", false),
];

/// Units of these kinds have no file that could be missing.
const WITHOUT_FILES: [&str; 3] = [".device", ".scope", ".slice"];

/// Where packages put their units: what they order themselves after may be another package that is not installed.
const PACKAGED: [&str; 2] = ["/usr/lib/systemd/", "/lib/systemd/"];

/// A unit as systemd has loaded it.
#[derive(Debug, Clone, Default)]
struct Unit {
    name: String,
    /// systemd's `LoadState`.
    load: String,
    /// Its file and drop-ins.
    files: Vec<(PathBuf, String)>,
    /// The units that it names, by key.
    names: Vec<(&'static str, String)>,
}

#[derive(Debug)]
pub(super) struct Units {
    /// The units looked at, or why they can't be.
    read: Known<Vec<Unit>>,
    /// systemd's `LoadState` of each that they name.
    loads: BTreeMap<String, String>,
    /// All names that there are, for what may have been meant.
    all: Vec<String>,
    /// The services that are enabled for boot.
    enabled: Known<Vec<Service>>,
    /// None on a machine without GPUs.
    gpus: Option<Vec<Gpu>>,
}

pub(super) async fn look(ground: &Ground, named: &[String], gpus: Option<Vec<Gpu>>) -> Units {
    let unknown = |why: String| Units {
        read: Known::Unknown(why.clone()),
        loads: BTreeMap::new(),
        all: Vec::new(),
        enabled: Known::Unknown(why),
        gpus: gpus.clone(),
    };
    let bus = match &ground.bus {
        Known::Value(bus) => bus,
        Known::Unknown(why) => return unknown(why.clone()),
    };
    let mut wanted: Vec<String> = berths().iter().map(ToString::to_string).collect();
    let models = ground.settings.value().into_iter().flat_map(|settings| settings.models.values());
    wanted.extend(models.filter(|model| !model.retired).map(|model| model.name.unit()));
    wanted.extend(named.iter().map(|name| with_type(name)));
    let mut seen = BTreeSet::new();
    wanted.retain(|name| seen.insert(name.clone()));
    let (mut units, mut loads) = (Vec::new(), BTreeMap::new());
    for name in wanted {
        match read(bus, name).await {
            Ok(unit) => units.push(unit),
            Err(error) => return unknown(error.to_string()),
        }
    }
    for name in units.iter().flat_map(|unit| &unit.names).map(|(_, name)| name) {
        if !loads.contains_key(name) {
            match load_state(bus, name).await {
                Ok(load) => loads.insert(name.clone(), load),
                Err(error) => return unknown(error.to_string()),
            };
        }
    }
    // Only for what may have been meant.
    let all = names(bus).await.unwrap_or_default();
    let enabled =
        enabled::all(bus).await.map_or_else(|error| Known::Unknown(error.to_string()), Known::Value);
    Units { read: Known::Value(units), loads, all, enabled, gpus }
}

/// `ssh` as systemctl takes it.
fn with_type(name: &str) -> String {
    let typed = Path::new(name).extension().is_some_and(|end| {
        let known = [
            "automount",
            "device",
            "mount",
            "path",
            "scope",
            "service",
            "slice",
            "socket",
            "swap",
            "target",
            "timer",
        ];
        known.iter().any(|known| end == *known)
    });
    if typed { name.to_owned() } else { format!("{name}.service") }
}

async fn load_state(bus: &Connection, unit: &str) -> Result<String, SystemdError> {
    match Reader::of(bus, unit).get::<String>(UNIT, "LoadState").await {
        // It has no such name, and so no such unit.
        Err(SystemdError::NoSuchUnit { .. } | SystemdError::Refused { .. }) => Ok("not-found".to_owned()),
        other => other,
    }
}

async fn read(bus: &Connection, name: String) -> Result<Unit, SystemdError> {
    let load = load_state(bus, &name).await?;
    if load == "not-found" {
        return Ok(Unit { name, load, ..Unit::default() });
    }
    let reader = Reader::of(bus, &name);
    let mut paths: Vec<String> = vec![reader.get(UNIT, "FragmentPath").await?];
    paths.extend(reader.get::<Vec<String>>(UNIT, "DropInPaths").await?);
    let mut names = Vec::new();
    for (key, _) in KEYS {
        match reader.get::<Vec<String>>(UNIT, key).await {
            Ok(listed) => names.extend(listed.into_iter().map(|name| (key, name))),
            // One that this systemd does not know yet.
            Err(SystemdError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let files = paths.into_iter().filter(|path| !path.is_empty()).map(PathBuf::from);
    // What can't be read is not there to be quoted.
    let files = files.filter_map(|path| Some((path.clone(), fs::read_to_string(path).ok()?))).collect();
    Ok(Unit { name, load, files, names })
}

async fn names(bus: &Connection) -> Result<Vec<String>, SystemdError> {
    let doing = "list the units";
    let files: Vec<(String, String)> =
        call(bus, doing, SYSTEMD, SYSTEMD_PATH, MANAGER, "ListUnitFiles", &()).await?;
    Ok(files.into_iter().filter_map(|(path, _)| Some(path.rsplit_once('/')?.1.to_owned())).collect())
}

pub(super) fn judge(units: &Units) -> Vec<Check> {
    vec![check("units", orderings(units)), check("rivals", rivals(units))]
}

fn orderings(units: &Units) -> Vec<Finding> {
    let known = match &units.read {
        Known::Value(known) => known,
        Known::Unknown(why) => {
            let text = format!("what units wait for and require can't be looked at: {why}");
            return vec![
                Finding::unknown("unit_missing", "", text)
                    .next(format!("{} status dbus", Scope::this().systemctl())),
            ];
        }
    };
    let mut found = Vec::new();
    for unit in known {
        if unit.load == "not-found" {
            let text = format!("there is no unit {}{}", unit.name, meant(&unit.name, &units.all));
            let next = if unit.name.starts_with("berth") {
                "install Berth's units: see the Makefile's `install`, or the package".to_owned()
            } else {
                let start = unit.name.split('.').next().unwrap_or_default();
                format!("{} list-unit-files '{start}*'", Scope::this().systemctl())
            };
            found.push(Finding::error("no_unit", &unit.name, text).next(next));
            continue;
        }
        let mut missing: BTreeMap<&str, Vec<&'static str>> = BTreeMap::new();
        for (key, name) in &unit.names {
            let has_file = !WITHOUT_FILES.iter().any(|end| name.ends_with(end));
            if has_file && units.loads.get(name).is_some_and(|load| load == "not-found") {
                missing.entry(name).or_default().push(key);
            }
        }
        found.extend(missing.into_iter().filter_map(|(name, keys)| dangling(unit, name, &keys, &units.all)));
    }
    found
}

/// A unit that names one that does not exist.
fn dangling(unit: &Unit, name: &str, keys: &[&'static str], all: &[String]) -> Option<Finding> {
    let required = KEYS.iter().any(|(key, required)| *required && keys.contains(key));
    let places: Vec<(PathBuf, usize, String)> = unit
        .files
        .iter()
        .flat_map(|(path, text)| {
            let lines = text.lines().enumerate().filter(|(_, line)| says(line, name, keys));
            lines.map(|(at, line)| (path.clone(), at + 1, line.trim().to_owned()))
        })
        .collect();
    let packaged = |path: &PathBuf| PACKAGED.iter().any(|folder| path.starts_with(folder));
    if !required && !places.is_empty() && places.iter().all(|(path, ..)| packaged(path)) {
        return None;
    }
    let (this, meant) = (&unit.name, meant(name, all));
    let keys = keys.join(" and ");
    let finding = if required {
        let text = format!("{this} can't start: it needs {name} ({keys}), which does not exist{meant}");
        Finding::error("unit_missing", this, text)
    } else {
        let text = format!("{this} names {name} ({keys}), which does not exist: that has no effect{meant}");
        Finding::warning("unit_missing", this, text)
    };
    let (sudo, systemctl) = (Scope::this().sudo(), Scope::this().systemctl());
    let next = match places.first() {
        Some((path, line, _)) => {
            format!("correct {}:{line}, then {sudo}{systemctl} daemon-reload", path.display())
        }
        None => format!("{sudo}{systemctl} edit {this}"),
    };
    let evidence = places.into_iter().map(|(path, line, text)| format!("{}:{line}: {text}", path.display()));
    // Each name is a finding of its own.
    Some(Finding { subject: format!("{this} {name}"), ..finding.shown_by(evidence).next(next) })
}

/// Whether a line of a unit's file names this unit under one of these keys.
fn says(line: &str, name: &str, keys: &[&str]) -> bool {
    let Some((key, value)) = line.split_once('=') else { return false };
    keys.contains(&key.trim()) && value.split_whitespace().any(|word| word.trim_matches('"') == name)
}

/// "; is tailscaled.service meant?", or nothing.
fn meant(name: &str, all: &[String]) -> String {
    let scored = all.iter().map(|other| (strsim::damerau_levenshtein(name, other), other));
    let near = scored.filter(|(distance, other)| *distance > 0 && *distance <= 2 && other.len() > 4).min();
    near.map_or_else(String::new, |(_, other)| format!("; is {other} meant?"))
}

fn rivals(units: &Units) -> Vec<Finding> {
    let services = match &units.enabled {
        Known::Value(services) => services.clone(),
        Known::Unknown(why) => {
            let text = format!("which services would take GPU memory at boot can't be told: {why}");
            return vec![
                Finding::unknown("rival", "", text)
                    .next(format!("{} list-unit-files --state=enabled", Scope::this().systemctl())),
            ];
        }
    };
    // On a machine without GPUs there is nothing to be taken.
    let Some(gpus) = &units.gpus else { return Vec::new() };
    let mut rivals = Rivals::of(Scope::this().user());
    rivals.take(services);
    rivals.note(gpus);
    let found =
        rivals.found().map(|rival| Finding::warning("rival", &rival.unit, rival.text).next(rival.next));
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

    const SSH: &str = "/etc/systemd/system/ssh.service.d/wire.conf";

    fn units(units: Vec<Unit>, missing: &[&str]) -> Units {
        let named = units.iter().flat_map(|unit| &unit.names).map(|(_, name)| name.clone());
        let load = |name: &String| if missing.contains(&name.as_str()) { "not-found" } else { "loaded" };
        let loads = named.map(|name| (name.clone(), load(&name).to_owned())).collect();
        let all = vec!["tailscaled.service".to_owned(), "ssh.service".to_owned()];
        Units {
            read: Known::Value(units),
            loads,
            all,
            enabled: Known::Value(Vec::new()),
            gpus: Some(Vec::new()),
        }
    }

    fn ssh(path: &str, key: &'static str, text: &str) -> Unit {
        Unit {
            name: "ssh.service".into(),
            load: "loaded".into(),
            files: vec![(path.into(), text.into())],
            names: vec![(key, "tailscale.service".into()), ("After", "network.target".into())],
        }
    }

    #[test]
    fn an_ordering_on_a_name_that_does_not_exist_is_found_with_its_line() {
        let text = "[Unit]\n# the wire\nAfter=network.target tailscale.service\n";
        let found = orderings(&units(vec![ssh(SSH, "After", text)], &["tailscale.service"]));
        let [finding] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(finding.severity, Severity::Warning);
        assert!(finding.text.ends_with("is tailscaled.service meant?"), "{}", finding.text);
        assert_eq!(finding.evidence, [format!("{SSH}:3: After=network.target tailscale.service")]);
        assert_eq!(finding.next, format!("correct {SSH}:3, then sudo systemctl daemon-reload"));
        assert_eq!(orderings(&units(vec![ssh(SSH, "After", text)], &[])), []);
    }

    #[test]
    fn what_is_required_is_an_error_and_what_a_package_is_ordered_after_is_none() {
        let text = "[Unit]\nRequires=tailscale.service\n";
        let required = ssh("/usr/lib/systemd/system/ssh.service", "Requires", text);
        let found = orderings(&units(vec![required], &["tailscale.service"]));
        assert_eq!(found[0].severity, Severity::Error);
        let text = "[Unit]\nAfter=network.target tailscale.service\n";
        let packaged = ssh("/lib/systemd/system/ssh.service", "After", text);
        assert_eq!(orderings(&units(vec![packaged], &["tailscale.service"])), []);
        // Nobody's file says it: a link in ssh.service.wants does.
        let linked = Unit { files: Vec::new(), ..ssh(SSH, "Wants", "") };
        let found = orderings(&units(vec![linked], &["tailscale.service"]));
        assert_eq!((found[0].severity, found[0].evidence.len()), (Severity::Warning, 0));
    }

    #[test]
    fn devices_have_no_file_and_a_unit_that_is_not_there_is_said_to_be() {
        let names = vec![("Requires", "dev-sdb1.device".to_owned()), ("After", "my.slice".to_owned())];
        let waits = Unit { name: "a.service".into(), load: "loaded".into(), names, ..Unit::default() };
        assert_eq!(orderings(&units(vec![waits], &["dev-sdb1.device", "my.slice"])), []);
        let gone = Unit { name: "shh.service".into(), load: "not-found".into(), ..Unit::default() };
        let found = orderings(&units(vec![gone], &[]));
        assert_eq!(found[0].code, "no_unit");
        assert!(found[0].text.ends_with("is ssh.service meant?"), "{}", found[0].text);
    }

    #[test]
    fn without_the_bus_it_is_unknown() {
        let why = || "no bus".to_owned();
        let all =
            Units { read: Known::Unknown(why()), enabled: Known::Unknown(why()), ..units(Vec::new(), &[]) };
        let found: Vec<Finding> = judge(&all).into_iter().flat_map(|check| check.findings).collect();
        assert!(found.iter().all(|finding| finding.severity == Severity::Unknown));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_rival_is_told_with_its_restart_unless_there_is_nothing_to_take() {
        let aeon = Service {
            unit: "aeon.service".into(),
            restart: "always".into(),
            commands: vec![vec!["/opt/llama-server".into(), "-m".into(), "/m.gguf".into()]],
        };
        let mut all = Units { enabled: Known::Value(vec![aeon]), ..units(Vec::new(), &[]) };
        let found = rivals(&all);
        assert_eq!((found.len(), found[0].subject.as_str()), (1, "aeon.service"));
        assert!(found[0].text.contains("(Restart=always)"), "{}", found[0].text);
        assert_eq!(found[0].next, "sudo systemctl disable --now aeon.service");
        all.gpus = None;
        assert_eq!(rivals(&all), []);
    }

    #[test]
    fn names_are_taken_as_systemctl_takes_them() {
        assert_eq!(with_type("ssh"), "ssh.service");
        assert_eq!(with_type("a.b"), "a.b.service");
        assert_eq!(with_type("models.mount"), "models.mount");
    }
}
