//! A model to be declared, from wherever it comes: what goes into its file, into a drop-in of its unit and into a file
//! of secrets, and what could not be taken over.

use std::fmt::Write as _;

use berth_core::name::ModelName;
use toml::{Table, Value};

use crate::unit::{Variables, quoted};

/// Longer command lines are written with an option on each line.
const LINE: usize = 96;

/// The key that names the unit which a model was before.
const REPLACES: &str = "replaces";

/// A model to be declared.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Draft {
    pub(crate) name: ModelName,
    /// What it was: `genesis.service`, `process 4711`.
    pub(crate) origin: String,
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    pub(crate) env: Variables,
    pub(crate) cwd: Option<String>,
    /// Keys of the declaration besides the command line, and tables below them.
    pub(crate) keys: Table,
    /// Whether what runs now is in a cgroup apart from that of its unit, as docker's containers are.
    pub(crate) apart: bool,
    /// Lines of the drop-in's sections.
    pub(crate) unit: Vec<String>,
    pub(crate) service: Vec<String>,
    /// Variables that not everybody who reads the declaration may see.
    pub(crate) secrets: Variables,
    /// What was not taken over, what is not as it was, what to know.
    pub(crate) notes: Vec<Note>,
}

/// One thing to know.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Note {
    /// As it is written: `Restart=always`.
    pub(crate) what: String,
    pub(crate) why: String,
}

impl Draft {
    pub(crate) fn new(name: ModelName, origin: impl Into<String>, argv: Vec<String>) -> Self {
        Self {
            name,
            origin: origin.into(),
            argv,
            env: Variables::new(),
            cwd: None,
            keys: Table::new(),
            apart: false,
            unit: Vec::new(),
            service: Vec::new(),
            secrets: Variables::new(),
            notes: Vec::new(),
        }
    }

    /// The unit that is the model while it runs on.
    pub(crate) fn replaces(&self) -> Option<&str> {
        self.keys.get(REPLACES)?.as_str()
    }

    /// Lets what runs as this unit count as the model.
    pub(crate) fn replace(&mut self, unit: &str) {
        self.keys.insert(REPLACES.to_owned(), Value::from(unit));
    }

    pub(crate) fn replaces_nothing(&mut self) {
        self.keys.remove(REPLACES);
    }

    pub(crate) fn set_port(&mut self, port: u16) {
        self.keys.insert("port".to_owned(), Value::from(i64::from(port)));
    }

    pub(crate) fn note(&mut self, what: impl Into<String>, why: impl Into<String>) {
        let (what, why) = (what.into(), why.into());
        match self.notes.iter_mut().find(|note| note.why == why) {
            Some(note) => note.what = format!("{}, {what}", note.what),
            None => self.notes.push(Note { what, why }),
        }
    }

    /// Puts variables whose names say that they are secret where only root and the server read them.
    pub(crate) fn hide_secrets(&mut self) {
        let env = std::mem::take(&mut self.env);
        for (name, value) in env {
            if berth_core::config::is_secret(&name) {
                let why = format!("only root and the server can read it, in {}", secrets_path(&self.name));
                self.note(&name, why);
                self.secrets.insert(name, value);
            } else {
                self.env.insert(name, value);
            }
        }
        if !self.secrets.is_empty() {
            self.service.push(format!("EnvironmentFile={}", secrets_path(&self.name).replace('%', "%%")));
        }
    }

    /// The model's file in `models.d`.
    pub(crate) fn declaration(&self) -> String {
        let mut text = format!("# From {}.\n{}", self.origin, self.command());
        if let Some(cwd) = &self.cwd {
            // Writing to a String can't fail; nor below.
            _ = writeln!(text, "cwd = {}", string(cwd));
        }
        let (tables, values): (Vec<_>, Vec<_>) = self.keys.iter().partition(|(_, value)| value.is_table());
        for (key, value) in values {
            _ = writeln!(text, "{} = {value}", bare(key));
        }
        if !self.env.is_empty() {
            text.push_str("\n[env]\n");
            for (name, value) in &self.env {
                _ = writeln!(text, "{} = {}", bare(name), string(value));
            }
        }
        for (key, value) in tables {
            let body = toml::to_string(&Table::from_iter([(key.clone(), value.clone())])).unwrap_or_default();
            _ = write!(text, "\n{body}");
        }
        text
    }

    /// `cmd` as one would type it, or `program` and `args` where that would not be read as it is.
    fn command(&self) -> String {
        let [program, args @ ..] = self.argv.as_slice() else { return String::new() };
        let words: Vec<String> = self.argv.iter().map(|word| quote(word)).collect();
        // No shell reads `cmd`, so an assignment and a word of the shell's could be taken for what they are not.
        let plain = program.starts_with('/') && !self.argv.iter().any(|word| word.contains(['\n', '\r']));
        let line = words.join(" ");
        if plain && line.len() <= LINE {
            return format!("cmd = {}\n", string(&line));
        }
        let by_option = self.by_option(&words).join("\n  ");
        if plain && !by_option.contains("'''") && by_option.chars().all(|c| c == '\n' || !c.is_control()) {
            return format!("cmd = '''\n{by_option}\n'''\n");
        }
        let mut text = format!("program = {}\n", string(program));
        if !args.is_empty() {
            text.push_str("args = [\n");
            for arg in args {
                _ = writeln!(text, "  {},", string(arg));
            }
            text.push_str("]\n");
        }
        text
    }

    /// The words in lines: a new one for each option, its value behind it.
    fn by_option(&self, words: &[String]) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for (word, written) in self.argv.iter().zip(words) {
            let option = word.starts_with('-') && word.parse::<f64>().is_err();
            match lines.last_mut() {
                Some(line) if !option => {
                    line.push(' ');
                    line.push_str(written);
                }
                _ => lines.push(written.clone()),
            }
        }
        lines
    }

    /// The drop-in of the model's unit; None where it needs none.
    pub(crate) fn drop_in(&self) -> Option<String> {
        if self.unit.is_empty() && self.service.is_empty() {
            return None;
        }
        let mut text = format!("# From {}, for what a declaration has no key for.\n", self.origin);
        for (section, lines) in [("Unit", &self.unit), ("Service", &self.service)] {
            if !lines.is_empty() {
                _ = write!(text, "\n[{section}]\n{}\n", lines.join("\n"));
            }
        }
        Some(text)
    }

    /// The file of secrets; None where there are none.
    pub(crate) fn secrets(&self) -> Option<String> {
        if self.secrets.is_empty() {
            return None;
        }
        let lines = self.secrets.iter().map(|(name, value)| format!("{name}={}\n", quoted(value)));
        Some(lines.collect())
    }
}

/// Where secrets of a model lie.
pub(crate) fn secrets_path(name: &ModelName) -> String {
    format!("/etc/berth/secrets/{name}.env")
}

/// The folder of the drop-ins of a model's unit.
pub(crate) fn drop_in_folder(name: &ModelName) -> String {
    format!("/etc/systemd/system/{}.d", name.unit())
}

/// A word of `cmd`. What only a shell would take for its own needs no quotes, since no shell reads it.
pub(super) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+{}".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        shell_words::quote(word).into_owned()
    }
}

/// A text as TOML has it.
fn string(text: &str) -> String {
    Value::from(text).to_string()
}

/// A key as TOML has it.
fn bare(key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if plain { key.to_owned() } else { string(key) }
}
