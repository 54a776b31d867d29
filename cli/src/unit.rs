//! A unit's files as systemd 252 and newer read them: settings in the order in which they count, words, specifiers,
//! variables. The end-to-end tests hold it against a real systemd.
//!
//! Which files a unit has is told from outside: systemd knows that best. What is read here decides nothing.

mod command;
mod environment;
mod specifier;
mod text;
mod word;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(crate) use command::{Command, commands};
pub(crate) use environment::{Variables, assignments, expanded, file, quoted};
pub(crate) use specifier::{Depth, expand, unescaped};
pub(crate) use word::words;

/// A unit's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A setting, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// The section's name, without brackets.
    pub(crate) section: String,
    pub(crate) key: String,
    pub(crate) value: String,
    /// Which of the unit's files.
    pub(crate) file: PathBuf,
    /// Counted from 1.
    pub(crate) line: usize,
}

/// What of a unit can't be read, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Unreadable {
    pub(crate) what: String,
    /// As `FILE:LINE`.
    pub(crate) place: Option<String>,
}

impl Unreadable {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), place: None }
    }
}

impl Setting {
    /// As `FILE:LINE`.
    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.file.display(), self.line)
    }
}

/// What systemd puts in where a unit names it: of this machine, not of the unit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Around {
    /// Where files are read; `/` on a machine itself.
    pub(crate) root: PathBuf,
    /// The variables that systemd gives every service.
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) hostname: String,
    pub(crate) machine_id: Option<String>,
}

impl Around {
    /// A path of the machine as a path here.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// A unit: its name and all that its files say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    /// With its type: `llama@gemma.service`.
    pub(crate) name: String,
    /// Its main file; drop-ins are not this.
    pub(crate) path: PathBuf,
    settings: Vec<Setting>,
}

impl Unit {
    /// Reads the unit's own file and then its drop-ins, in the order in which systemd takes them.
    pub(crate) fn read(name: &str, files: &[File]) -> Result<Self, Unreadable> {
        let Some(first) = files.first() else {
            return Err(Unreadable::new(format!("{name} has no file")));
        };
        let mut settings = Vec::new();
        for file in files {
            settings.extend(text::settings(file)?);
        }
        Ok(Self { name: name.to_owned(), path: first.path.clone(), settings })
    }

    /// Each section and key that is set, in the order of their first use.
    pub(crate) fn keys(&self) -> Vec<(&str, &str)> {
        let mut keys: Vec<(&str, &str)> = Vec::new();
        for setting in &self.settings {
            let key = (setting.section.as_str(), setting.key.as_str());
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        keys
    }

    /// All of a setting that can be given several times: an empty one takes those before it back.
    pub(crate) fn all(&self, section: &str, key: &str) -> Vec<&Setting> {
        let of_key = self.settings.iter().filter(|one| one.section == section && one.key == key);
        let mut all: Vec<&Setting> = Vec::new();
        for setting in of_key {
            if setting.value.is_empty() {
                all.clear();
            } else {
                all.push(setting);
            }
        }
        all
    }

    /// A setting of which the last one counts; None where that is empty.
    pub(crate) fn last(&self, section: &str, key: &str) -> Option<&Setting> {
        self.all(section, key).pop()
    }

    /// The part of the name before its type: `llama@gemma`.
    pub(crate) fn stem(&self) -> &str {
        self.name.rsplit_once('.').map_or(self.name.as_str(), |(stem, _)| stem)
    }

    /// What stands before an `@`: `llama`.
    pub(crate) fn prefix(&self) -> &str {
        self.stem().split_once('@').map_or(self.stem(), |(prefix, _)| prefix)
    }

    /// What stands behind an `@`: `gemma`; empty where there is none.
    pub(crate) fn instance(&self) -> &str {
        self.stem().split_once('@').map_or("", |(_, instance)| instance)
    }

    /// Whether this is a template, of which no instance is named.
    pub(crate) fn is_template(&self) -> bool {
        self.stem().ends_with('@')
    }
}

/// The files that a unit's file has beside it when systemd is not asked: those of its drop-in folder.
pub(crate) fn beside(path: &Path) -> std::io::Result<Vec<File>> {
    let read = |path: PathBuf| std::fs::read_to_string(&path).map(|text| File { path, text });
    let mut files = vec![read(path.to_owned())?];
    let mut folder = path.as_os_str().to_owned();
    folder.push(".d");
    let entries = match std::fs::read_dir(PathBuf::from(folder)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(files),
        Err(error) => return Err(error),
    };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|kind| kind == "conf"));
    paths.sort();
    for path in paths {
        files.push(read(path)?);
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
