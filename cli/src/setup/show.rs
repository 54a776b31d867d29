//! What setup says: what there is, what could be changed and why, what came of it.

use std::fmt::Write as _;
use std::path::Path;

use berth_core::bytes::Bytes;
use berth_core::facts::{Gpu, Known};
use berth_core::name::ModelName;
use berth_core::report::SCHEMA;
use serde::Serialize;

use super::look::{File, Machine, Models, Process, Service, Taken};
use super::{Addition, Came, Change, NEEDED, Passed, Plan};
use crate::add::{Note, declaration};
use crate::doctor::{Basis, Finding};
use crate::exit::Exit;
use crate::render::text::{clean, gib, gpus, join, names, paragraph};
use crate::render::{Paint, Tone};

/// So many files are told of each folder; `berthctl fit` tells all.
const FILES: usize = 5;

/// Where text begins.
const INDENT: usize = 9;

/// All that is to be said.
pub(super) struct Shown<'a> {
    pub(super) basis: &'a Basis,
    pub(super) machine: &'a Machine,
    pub(super) plan: &'a Plan,
    /// Whether services that become models are stopped too.
    pub(super) stop: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
pub(super) struct Document<'a> {
    schema: u32,
    exit: u8,
    changed: bool,
    /// Null where they can't be seen.
    gpus: Option<Vec<OneGpu<'a>>>,
    services: &'a [Service],
    processes: &'a [Process],
    folders: &'a [Models],
    ports: &'a [Taken],
    lacks: &'a [Finding],
    not_seen: &'a [String],
    not_offered: &'a [Passed],
    changes: Vec<OneChange<'a>>,
    left_to_do: &'a [String],
}

#[derive(Serialize)]
struct OneGpu<'a> {
    index: u32,
    name: &'a str,
    total_bytes: Option<Bytes>,
}

#[derive(Serialize)]
struct OneChange<'a> {
    /// `start`, `add` or `disable`.
    kind: &'static str,
    unit: &'a str,
    models: Vec<&'a ModelName>,
    notes: Vec<&'a Note>,
    came: &'a Came,
}

impl<'a> Shown<'a> {
    /// What there is.
    pub(super) fn machine(&self, paint: Paint) -> String {
        let machine = self.machine;
        let mut out = labelled("GPUs", &devices(&self.basis.gpus));
        for service in machine.services.iter().filter(|service| service.runs) {
            out.push_str(&labelled("Serving", &serving(service, self.port(&service.unit))));
        }
        for service in machine.services.iter().filter(|service| !service.runs) {
            out.push_str(&labelled("Rival", service.at_boot.as_deref().unwrap_or_default()));
        }
        for process in &machine.processes {
            out.push_str(&labelled("Holds", &holding(process)));
        }
        for folder in &machine.folders {
            out.push_str(&labelled("Files", &files(folder)));
            for File { path, owner } in folder.unserved.iter().take(FILES) {
                out.push_str(&command(&add_command(path, owner.as_deref())));
            }
            if folder.unserved.len() > FILES {
                let more = folder.unserved.len() - FILES;
                let text = format!("{more} more fit: berthctl fit {}", quoted(&folder.folder));
                out.push_str(&labelled("", &text));
            }
        }
        for port in &machine.ports {
            out.push_str(&labelled("Port", &taken(port)));
        }
        for passed in &self.plan.passed {
            let text = format!("{} stays as it is: {}; {}", passed.unit, passed.why, passed.next);
            out.push_str(&labelled("Left", &text));
        }
        for what in &machine.unseen {
            out.push_str(&labelled("Not seen", what));
        }
        for finding in &self.basis.lacks {
            let text = labelled("Lacks", &finding.text);
            out.push_str(&text.replacen("Lacks", &paint.tint(Tone::Bad, "Lacks"), 1));
            out.push_str(&command(&finding.next));
        }
        out
    }

    /// What could be changed, where nothing is.
    pub(super) fn proposed(&self) -> String {
        if self.plan.changes.is_empty() {
            let cannot_work = self.basis.lacks.iter().any(|one| NEEDED.contains(&one.code.as_str()));
            let said = if cannot_work {
                "Berth can't work here before that is mended."
            } else {
                "There is nothing to change."
            };
            return self.next(said, &[], &[]);
        }
        self.plan.changes.iter().map(|one| change(one, self.stop)).collect::<String>()
            + "\nNothing was changed: sudo berthctl setup asks for each.\n"
    }

    /// What has changed.
    pub(super) fn after(&self, came: &[Came], left: &[String]) -> String {
        let done = self.plan.changes.iter().zip(came).filter(|(_, came)| **came == Came::Done);
        let added: Vec<&Addition> = done.filter_map(|(change, _)| change.addition()).collect();
        let models: Vec<ModelName> = added
            .iter()
            .flat_map(|one| &one.prepared.addition.drafts)
            .map(|draft| draft.name.clone())
            .collect();
        let said = match models.as_slice() {
            [] => String::new(),
            [one] => format!("{one} is Berth's."),
            all => format!("{} are Berth's.", names(all)),
        };
        let undo = came.contains(&Came::Done).then(|| paragraph("", "Undo: sudo berthctl setup --undo"));
        self.next(&said, left, &added) + &undo.unwrap_or_default()
    }

    /// The step that comes next, after these became models.
    fn next(&self, said: &str, left: &[String], added: &[&Addition]) -> String {
        let mut out = String::from("\n");
        if !said.is_empty() {
            out.push_str(&paragraph("", said));
        }
        for what in left {
            out.push_str(&paragraph("still to do: ", &clean(what)));
        }
        let model = |addition: &Addition| {
            addition.prepared.addition.drafts.first().map(|draft| draft.name.to_string())
        };
        let goes_on = added.iter().filter(|addition| addition.runs && !self.stop);
        if let Some(addition) = goes_on.clone().find(|addition| !addition.prepared.stays())
            && let Some(model) = model(addition)
        {
            out.push_str(&paragraph(
                "",
                &format!("Next: berthctl switch {model}, and it comes back after a boot"),
            ));
        } else if goes_on.count() > 0 {
            out.push_str(&paragraph("", "Next: berthctl status"));
        } else if let Some(first) =
            added.iter().max_by_key(|addition| addition.runs).and_then(|one| model(one))
        {
            let plan = if self.stop { "" } else { "plan " };
            out.push_str(&paragraph("", &format!("Next: berthctl {plan}switch {first}")));
        }
        out
    }

    /// The document of all of it.
    pub(super) fn document(&'a self, came: &'a [Came], left: &'a [String], exit: Exit) -> Document<'a> {
        let machine = self.machine;
        let gpu = |gpu: &'a Gpu| OneGpu {
            index: gpu.index,
            name: &gpu.name,
            total_bytes: gpu.memory.value().map(|memory| memory.total),
        };
        let one = |(change, came): (&'a Change, &'a Came)| match change {
            Change::Start(_) => {
                OneChange { kind: "start", unit: super::BERTHD, models: Vec::new(), notes: Vec::new(), came }
            }
            Change::Disable(rival) => {
                OneChange { kind: "disable", unit: &rival.unit, models: Vec::new(), notes: Vec::new(), came }
            }
            Change::Add(addition) => OneChange {
                kind: "add",
                unit: &addition.unit,
                models: addition.prepared.addition.drafts.iter().map(|draft| &draft.name).collect(),
                notes: addition.prepared.addition.drafts.iter().flat_map(|draft| &draft.notes).collect(),
                came,
            },
        };
        Document {
            schema: SCHEMA,
            exit: exit.code(),
            changed: came.contains(&Came::Done),
            gpus: self.basis.gpus.value().map(|all| all.iter().map(gpu).collect()),
            services: &machine.services,
            processes: &machine.processes,
            folders: &machine.folders,
            ports: &machine.ports,
            lacks: &self.basis.lacks,
            not_seen: &machine.unseen,
            not_offered: &self.plan.passed,
            changes: self.plan.changes.iter().zip(came).map(one).collect(),
            left_to_do: left,
        }
    }

    fn addition(&self, unit: &str) -> Option<&Addition> {
        self.plan.changes.iter().filter_map(Change::addition).find(|addition| addition.unit == unit)
    }

    /// The port that the service would have as a model.
    fn port(&self, unit: &str) -> Option<u16> {
        let prepared = &self.addition(unit)?.prepared;
        Some(prepared.settings.models.get(&prepared.addition.drafts.first()?.name)?.port)
    }
}

/// One change with its reason, and what to know of it.
pub(super) fn change(change: &Change, stop: bool) -> String {
    let addition = match change {
        Change::Start(state) => {
            let boot = if state.enabled { "" } else { " and at each boot" };
            return labelled("Change", &format!("Start berthd now{boot}: nothing else starts a model."));
        }
        Change::Disable(rival) => {
            let text = format!(
                "{} no longer starts at boot, when it would take GPU memory before Berth. What of it runs now goes on.",
                rival.unit
            );
            return labelled("Change", &text);
        }
        Change::Add(addition) => addition,
    };
    let mut out = String::new();
    for draft in &addition.prepared.addition.drafts {
        let user = draft.service.iter().find_map(|line| line.strip_prefix("User="));
        let user = user.filter(|user| !user.is_empty()).unwrap_or("root");
        let goes_on = match (addition.runs, stop) {
            (false, _) => "",
            (true, false) => " It serves on, and Berth stops it when its memory is wanted.",
            (true, true) => " It is stopped, and its answers are cut off.",
        };
        let text = format!(
            "{unit} becomes the model {model}, as it is and run by {user}; the unit is disabled and masked, so that \
             after a boot only Berth starts it.{goes_on}",
            unit = addition.unit,
            model = draft.name,
        );
        out.push_str(&labelled("Change", &text));
        let path = declaration(&draft.name).display().to_string();
        let more = if draft.notes.is_empty() { "." } else { "; to know:" };
        out.push_str(&labelled("", &format!("{path} declares it{more}")));
        for note in &draft.notes {
            out.push_str(&labelled("", &format!("- {}: {}", note.what, note.why)));
        }
    }
    out
}

fn labelled(label: &str, text: &str) -> String {
    paragraph(&format!("{label:<INDENT$}"), &clean(text))
}

/// A command stays on its line, to be copied.
fn command(text: &str) -> String {
    format!("{:INDENT$}{}\n", "", clean(text))
}

/// `2 x RTX 5060 Ti, 15.9 GiB each`.
fn devices(all: &Known<Vec<Gpu>>) -> String {
    let all = match all {
        Known::Value(all) => all,
        Known::Unknown(why) => return format!("none can be seen: {why}"),
    };
    if all.is_empty() {
        return "none".to_owned();
    }
    let kind = |gpu: &Gpu| {
        let total = gpu
            .memory
            .value()
            .map_or("memory unknown".to_owned(), |memory| format!("{} GiB", gib(memory.total)));
        (gpu.name.trim_start_matches("NVIDIA ").trim_start_matches("GeForce ").to_owned(), total)
    };
    let mut kinds: Vec<((String, String), usize)> = Vec::new();
    for gpu in all {
        let this = kind(gpu);
        match kinds.iter_mut().find(|(kind, _)| *kind == this) {
            Some((_, count)) => *count += 1,
            None => kinds.push((this, 1)),
        }
    }
    let said = kinds.into_iter().map(|((name, total), count)| {
        format!("{count} x {name}, {total}{}", if count > 1 { " each" } else { "" })
    });
    join(said, "; ")
}

fn serving(service: &Service, port: Option<u16>) -> String {
    let mut parts = vec![service.unit.clone()];
    parts.extend(service.server.clone());
    if !service.gpus.is_empty() {
        parts.push(gpus(&service.gpus));
        parts.push(format!("{} GiB", gib(service.held_bytes)));
    }
    parts.extend(port.map(|port| format!(":{port}")));
    if service.masked {
        parts.push("(Berth's by now; this run goes on)".to_owned());
    }
    parts.join("  ")
}

fn holding(process: &Process) -> String {
    let of = process.unit.as_ref().map(|unit| format!(" of {unit}")).unwrap_or_default();
    let Process { program, pid, held_bytes, .. } = process;
    let mut text = format!("{program} (pid {pid}){of}  {}  {} GiB", gpus(&process.gpus), gib(*held_bytes));
    if process.serves {
        _ = write!(text, "; where it serves a model: sudo berthctl add {pid}");
    }
    text
}

fn files(folder: &Models) -> String {
    let path = folder.folder.display();
    match (&folder.why, folder.judged) {
        (Some(why), _) => format!("{path}: {why}"),
        (None, 0) => format!("{path}: no models"),
        (None, 1) => format!("{path}: 1 model ({} fits)", folder.fitting),
        (None, count) => format!("{path}: {count} models ({} fit)", folder.fitting),
    }
}

fn add_command(path: &Path, owner: Option<&str>) -> String {
    let user = owner.map(|owner| format!(" --run-as {owner}")).unwrap_or_default();
    format!("sudo berthctl add {}{user}", quoted(path))
}

fn quoted(path: &Path) -> String {
    shell_words::quote(&path.to_string_lossy()).into_owned()
}

fn taken(taken: &Taken) -> String {
    let Taken { port, table, by, instead } = taken;
    let whose = if *table == "proxy" { "clients" } else { "programs and the dashboard" };
    let instead = instead.map_or_else(String::new, |free| {
        format!(", or give Berth another: [{table}] listen = [\"127.0.0.1:{free}\"] in /etc/berth/berth.toml")
    });
    format!("{port}, Berth's for {whose}, is held by {by}: end that{instead}")
}
