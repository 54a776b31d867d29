//! What can only be seen from all models together: names, aliases and ports that clash; ports still to give out.

use std::collections::{BTreeMap, BTreeSet};

use super::error::{ConfigError, Place};
use super::model_file::Draft;
use super::reader::nearest;
use super::{API_PORT, Derived, Model, PROXY_PORT, PortRange, Settings, SourceFile};
use crate::name::ModelName;

/// Notes every clash between two models' files.
pub(super) fn check(drafts: &[Draft], errors: &mut Vec<ConfigError>) {
    let mut names: BTreeMap<String, &Place> = BTreeMap::new();
    for (name, place) in drafts.iter().filter_map(|draft| draft.name.as_ref()) {
        // Compared as systemd sees them, since two models in one unit would be worse than two of one name.
        if let Some(first) = names.get(&name.unit()) {
            errors.push(clash(&format!("two models are called `{name}`"), place, first));
        } else {
            names.insert(name.unit(), place);
        }
    }
    check_aliases(drafts, errors);
    check_ports(drafts, errors);
    check_fallbacks(drafts, errors);
    check_replaced(drafts, errors);
}

fn check_aliases(drafts: &[Draft], errors: &mut Vec<ConfigError>) {
    let mut taken: BTreeMap<&str, &Place> = BTreeMap::new();
    for (name, place) in drafts.iter().filter_map(|draft| draft.name.as_ref()) {
        taken.entry(name.as_str()).or_insert(place);
    }
    let names: BTreeSet<&str> = taken.keys().copied().collect();
    for (alias, place) in drafts.iter().filter(|draft| !draft.retired).flat_map(|draft| &draft.aliases) {
        match taken.get(alias.as_str()) {
            Some(first) if names.contains(alias.as_str()) => {
                let places =
                    vec![place.labelled("asked for by this name"), first.labelled("called so itself")];
                let message = format!("the alias `{alias}` is a model's name");
                errors.push(ConfigError { message, places, help: None });
            }
            Some(first) => errors.push(clash(&format!("the alias `{alias}` is given twice"), place, first)),
            None => _ = taken.insert(alias, place),
        }
    }
}

fn check_fallbacks(drafts: &[Draft], errors: &mut Vec<ConfigError>) {
    for draft in drafts {
        let (Some((name, _)), Some((fallback, place))) = (&draft.name, &draft.fallback) else { continue };
        let of = |other: &&Draft| other.name.as_ref().is_some_and(|(name, _)| name.as_str() == fallback);
        let wrong = match drafts.iter().find(of) {
            Some(_) if name.as_str() == fallback => "a model can't stand in for itself".to_owned(),
            Some(other) if other.retired => format!("{fallback} is retired, so it never serves"),
            Some(_) => continue,
            None => {
                let names =
                    drafts.iter().filter_map(|draft| draft.name.as_ref()).map(|(name, _)| name.as_str());
                nearest(fallback, names.filter(|other| *other != name.as_str()))
                    .map_or("no model is called so".to_owned(), |near| format!("did you mean \"{near}\"?"))
            }
        };
        let message = format!("`fallback` of {name} must be another model that can serve");
        errors.push(ConfigError { message, places: vec![place.labelled(&wrong)], help: None });
    }
}

/// A unit can have been one model only.
fn check_replaced(drafts: &[Draft], errors: &mut Vec<ConfigError>) {
    let mut taken: BTreeMap<&str, &Place> = BTreeMap::new();
    for (unit, place) in drafts.iter().filter_map(|draft| draft.replaces.as_ref()) {
        match taken.get(unit.as_str()) {
            Some(first) => errors.push(clash(&format!("two models replace {unit}"), place, first)),
            None => _ = taken.insert(unit, place),
        }
    }
}

/// A retired model never serves, so its port is free.
fn check_ports(drafts: &[Draft], errors: &mut Vec<ConfigError>) {
    let mut taken: BTreeMap<u16, (&Place, bool)> = BTreeMap::new();
    for draft in drafts.iter().filter(|draft| !draft.retired) {
        let Some((port, place)) = &draft.port else { continue };
        match taken.get(port) {
            Some((first, shares)) if !(*shares && draft.shares_port) => {
                errors.push(clash(&format!("two models have port {port}"), place, first).help(
                    "give one of them another port; if they never serve at once, set `shares_port = true` in both",
                ));
            }
            Some(_) => {}
            None => _ = taken.insert(*port, (place, draft.shares_port)),
        }
    }
}

fn clash(message: &str, here: &Place, first: &Place) -> ConfigError {
    let places = vec![here.labelled("and again here"), first.labelled("first here")];
    ConfigError { message: message.to_owned(), places, help: None }
}

/// Gives each model without a port the next free one of `range`, in the order of names, so that the same files
/// always come to the same ports. Retired models keep theirs: retiring one moves no other.
pub(super) fn assign_ports(
    drafts: &mut [Draft],
    range: PortRange,
    main: Option<&SourceFile>,
    errors: &mut Vec<ConfigError>,
) {
    let taken: BTreeSet<u16> =
        drafts.iter().filter_map(|draft| draft.port.as_ref()).map(|(port, _)| *port).collect();
    let mut free = (range.first..=range.last)
        .filter(|port| ![API_PORT, PROXY_PORT].contains(port) && !taken.contains(port));
    let own = drafts.iter_mut().filter(|draft| draft.variant_of.is_none());
    let mut models: Vec<_> =
        own.filter_map(|draft| draft.model.as_mut()).filter(|model| model.port == 0).collect();
    models.sort_by(|a, b| a.name.cmp(&b.name));
    for model in models {
        let Some(port) = free.next() else {
            let whole_file = SourceFile { path: model.source.clone(), text: String::new() };
            let file = main.unwrap_or(&whole_file);
            let message = format!("no port is left for {} in {}-{}", model.name, range.first, range.last);
            errors.push(
                ConfigError::new(message, Place::new(file, &(0..0), ""))
                    .help("widen `ports.range` in berth.toml"),
            );
            continue;
        };
        model.port = port;
        let from = format!("next free one in {}-{}", range.first, range.last);
        model.derived.push(Derived { key: "port".to_owned(), value: port.to_string(), from });
    }
    let given: BTreeMap<_, _> = drafts
        .iter()
        .filter_map(|draft| draft.model.as_ref())
        .map(|model| (model.name.clone(), model.port))
        .collect();
    for draft in drafts {
        let base = draft.variant_of.as_ref().and_then(|base| Some((base, given.get(base)?)));
        if let (Some((base, port)), Some(model)) = (base, draft.model.as_mut()) {
            model.port = *port;
            if !model.derived.iter().any(|derived| derived.key == "port") {
                let from = format!("that of {base}");
                model.derived.push(Derived { key: "port".to_owned(), value: port.to_string(), from });
            }
        }
    }
}

impl Settings {
    /// Lets each model that names no port keep the one that it `had`, also where files of other models came or went: what
    /// runs is found where it is, and no other model is given its port. A port that is declared now comes first.
    pub fn keep_ports(&mut self, had: &BTreeMap<ModelName, u16>) {
        let mut kept = BTreeSet::new();
        for (name, &port) in had {
            let Some(was) = self.models.get(name).filter(|model| is_given(model)).map(|model| model.port)
            else {
                continue;
            };
            let declared = |model: &Model| model.port == port && !is_given(model);
            let free = (self.ports.first..=self.ports.last).contains(&port)
                && ![API_PORT, PROXY_PORT].contains(&port)
                && !self.models.values().any(declared);
            // A base and its variants share theirs.
            if free && kept.insert(port) && was != port {
                for model in self.models.values_mut().filter(|model| is_given(model)) {
                    match model.port {
                        now if now == was => give(model, port),
                        now if now == port => give(model, was),
                        _ => {}
                    }
                }
            }
        }
    }
}

/// Whether it names no port itself.
fn is_given(model: &Model) -> bool {
    model.derived.iter().any(|derived| derived.key == "port")
}

fn give(model: &mut Model, port: u16) {
    model.port = port;
    for derived in model.derived.iter_mut().filter(|derived| derived.key == "port") {
        derived.value = port.to_string();
    }
}
