//! What setup has done, in its order, so that it can be undone in the reverse one. Each step is on the disk before it is
//! begun; what of it was done indeed, the records of `changes.rs` and systemd tell.

use std::fs;
use std::io::ErrorKind;

use berth_core::name::ModelName;
use serde::{Deserialize, Serialize};

use super::journal_path;
use crate::changes::{self, Change};
use crate::complaint::Complaint;
use crate::exit::Exit;

/// The version of its form.
const VERSION: u32 = 1;

/// What was done.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Journal {
    version: u32,
    pub(super) done: Vec<Step>,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Step {
    /// berthd was enabled for boot, started, or both.
    Berthd { enabled: bool, started: bool },
    /// A service became these models.
    Added { models: Vec<ModelName> },
    /// A service no longer starts at boot.
    Disabled { unit: String },
}

impl Journal {
    /// What is on the disk; empty where setup has done nothing.
    pub(super) fn read() -> Result<Self, Complaint> {
        let path = journal_path();
        let unreadable = |why: String| {
            let title = format!("what setup did can't be read: {}: {why}", path.display());
            Complaint::new(Exit::Usage, "unreadable", title, &[format!("ls -l {}", path.display())])
        };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok(Self { version: VERSION, done: Vec::new() });
            }
            Err(error) => return Err(unreadable(error.to_string())),
        };
        let journal: Self = serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
        if journal.version == VERSION {
            Ok(journal)
        } else {
            Err(unreadable(format!("it has version {}, this berthctl knows {VERSION}", journal.version)))
        }
    }

    pub(super) fn push(&mut self, step: Step) -> Result<(), Complaint> {
        self.done.push(step);
        self.write()
    }

    /// Takes the last step off.
    pub(super) fn pop(&mut self) -> Result<(), Complaint> {
        self.done.pop();
        self.write()
    }

    /// Where nothing is left that setup did, there is no journal.
    fn write(&self) -> Result<(), Complaint> {
        let failed = |why: String| Complaint::new(Exit::Usage, "not_written", why, &[]);
        let change = if self.done.is_empty() {
            Change::remove(journal_path())
        } else {
            let text = serde_json::to_string_pretty(self).map_err(|error| failed(error.to_string()))?;
            Change::write(journal_path(), text + "\n", 0o644)
        };
        changes::carry_out(&change).map_err(|error| failed(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_journal_is_read_as_it_was_written_and_a_model_needs_a_name() {
        let text = r#"{"version":1,"done":[{"berthd":{"enabled":true,"started":true}},{"added":{"models":["genesis"]}}]}"#;
        let journal: Journal = serde_json::from_str(text).unwrap();
        assert_eq!(journal.done[1], Step::Added { models: vec!["genesis".parse().unwrap()] });
        assert_eq!(serde_json::to_string(&journal).unwrap(), text);
        assert!(serde_json::from_str::<Journal>(&text.replace("genesis", "../x")).is_err());
    }
}
