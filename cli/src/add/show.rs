//! What `add` says: the files it would write, what it comes to, what to know, what to do next.

use std::fmt::Write as _;
use std::path::Path;

use berth_core::report::SCHEMA;
use serde::Serialize;

use super::draft::Note;
use super::{Addition, declaration, drop_in_folder, secrets_path, taken};
use crate::args::AddOptions;
use crate::changes::Change;
use crate::exit::Exit;
use crate::out::Out;
use crate::render::text::{clean, paragraph};

/// All that is to be said.
pub(super) struct Shown<'a> {
    pub(super) addition: &'a Addition,
    /// What command lines say of placement, by model.
    pub(super) placed: &'a [Vec<String>],
    pub(super) options: &'a AddOptions,
    pub(super) changes: &'a [Vec<Change>],
    /// Whether what runs goes on as the model, and comes back after a boot.
    pub(super) stays: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    exit: u8,
    changed: bool,
    models: Vec<Model<'a>>,
    /// The service that is disabled and masked.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'a str>,
    notes: &'a [Note],
    left_to_do: &'a [String],
}

#[derive(Serialize)]
struct Model<'a> {
    name: &'a str,
    declaration: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    drop_in: Option<String>,
    placed: &'a [String],
    notes: &'a [Note],
    paths: Vec<&'a Path>,
}

impl Shown<'_> {
    /// What would change, or with `after` that it has, and what of it did not go as it should.
    pub(super) fn tell(&self, out: Out, after: Option<&[String]>) {
        if out.json {
            Out::document(&self.document(after));
        } else {
            Out::say(&after.map_or_else(|| self.before(), |after| self.after(after)));
        }
    }

    fn document<'a>(&'a self, after: Option<&'a [String]>) -> Document<'a> {
        let exit = if after.is_none_or(<[String]>::is_empty) { Exit::Done } else { Exit::Degraded };
        let drafts = self.addition.drafts.iter().zip(self.placed).zip(self.changes);
        Document {
            schema: SCHEMA,
            exit: exit.code(),
            changed: after.is_some(),
            models: drafts
                .map(|((draft, placed), changes)| Model {
                    name: draft.name.as_str(),
                    declaration: draft.declaration(),
                    drop_in: draft.drop_in(),
                    placed,
                    notes: &draft.notes,
                    paths: changes.iter().map(|change| change.path.as_path()).collect(),
                })
                .collect(),
            service: self.addition.service.as_ref().map(|service| service.unit.as_str()),
            notes: &self.addition.notes,
            left_to_do: after.unwrap_or_default(),
        }
    }

    /// What would change.
    pub(super) fn before(&self) -> String {
        let mut out = String::new();
        for (draft, placed) in self.addition.drafts.iter().zip(self.placed) {
            file(&mut out, &declaration(&draft.name).display().to_string(), &draft.declaration());
            if let Some(text) = draft.drop_in() {
                file(&mut out, &format!("{}/added.conf", drop_in_folder(&draft.name)), &text);
            }
            if !draft.secrets.is_empty() {
                let names: Vec<&str> = draft.secrets.keys().map(String::as_str).collect();
                _ = writeln!(out, "{}\n  {}\n", secrets_path(&draft.name), names.join(", "));
            }
            if !placed.is_empty() {
                let all = if self.options.let_berth_place {
                    "Left to placement:"
                } else {
                    "Kept, so placement does not decide it (--let-berth-place leaves it out):"
                };
                out.push_str(&paragraph("", all));
                for one in placed {
                    _ = writeln!(out, "  {}", clean(one));
                }
                out.push('\n');
            }
            if let Some(unit) = draft.replaces() {
                let rule = taken::rule(&draft.name, unit);
                _ = writeln!(out, "{}\n  berthd may stop {unit}\n", rule.path.display());
            }
            notes(&mut out, &draft.notes);
        }
        notes(&mut out, &self.addition.notes);
        if let Some(service) = &self.addition.service {
            let what = format!("{} is disabled and masked: nothing but Berth starts it then.", service.unit);
            out.push_str(&paragraph("", &what));
        }
        out.push_str(&self.running());
        out
    }

    /// Whether what runs goes on beside the model.
    fn runs_beside(&self) -> bool {
        let runs = self.addition.service.as_ref().is_some_and(|service| service.loaded.runs());
        (runs && !self.options.stop) || self.addition.process.is_some()
    }

    /// What becomes of a service that runs.
    fn running(&self) -> String {
        let Some(service) = self.addition.service.as_ref().filter(|service| service.loaded.runs()) else {
            return String::new();
        };
        let pid = match service.loaded.main_pid {
            0 => String::new(),
            pid => format!(" (pid {pid})"),
        };
        let unit = &service.unit;
        let taken = self.addition.drafts.iter().any(|draft| draft.replaces().is_some());
        let name = self.addition.drafts.first().map(|draft| draft.name.as_str()).unwrap_or_default();
        let boot = if self.stays { ", which comes back after a boot" } else { "" };
        let text = if self.options.stop {
            format!("{unit} serves{pid} and is stopped now.")
        } else if !taken {
            format!("{unit} serves{pid} and goes on, and not as the model: see above.")
        } else {
            format!(
                "{unit} serves{pid} and goes on, as the model {name}{boot}. Berth stops it when its memory is wanted, and \
                 starts the model by its declaration from then on."
            )
        };
        paragraph("", &text)
    }

    /// What has changed.
    fn after(&self, trouble: &[String]) -> String {
        let mut out = String::new();
        let names: Vec<&str> = self.addition.drafts.iter().map(|draft| draft.name.as_str()).collect();
        let (are, first) =
            (if names.len() == 1 { "is" } else { "are" }, names.first().copied().unwrap_or_default());
        out.push_str(&paragraph("", &format!("{} {are} declared.", names.join(", "))));
        for what in trouble {
            out.push_str(&paragraph("still to do: ", &clean(what)));
        }
        let goes_on = self.addition.drafts.iter().any(|draft| draft.replaces().is_some());
        let next = match (goes_on, self.stays) {
            (true, true) => "Next: berthctl status".to_owned(),
            (true, false) => format!("Next: berthctl switch {first}, and it comes back after a boot"),
            _ if self.runs_beside() => {
                let unit = self.addition.service.as_ref().map(|service| service.unit.as_str());
                let end =
                    unit.map_or("end the process".to_owned(), |unit| format!("sudo systemctl stop {unit}"));
                format!("Next: {end}, then berthctl switch {first}")
            }
            _ => format!("Next: berthctl plan switch {first}"),
        };
        out.push_str(&paragraph("", &next));
        out.push_str(&paragraph("", &format!("Undo: sudo berthctl remove {first}")));
        out
    }
}

fn file(out: &mut String, path: &str, text: &str) {
    _ = writeln!(out, "{path}");
    for line in text.lines() {
        _ = writeln!(out, "{}", if line.is_empty() { String::new() } else { format!("  {}", clean(line)) });
    }
    out.push('\n');
}

fn notes(out: &mut String, notes: &[Note]) {
    if notes.is_empty() {
        return;
    }
    out.push_str("To know:\n");
    for note in notes {
        out.push_str(&paragraph("  ", &clean(&format!("{}: {}", note.what, note.why))));
    }
    out.push('\n');
}
