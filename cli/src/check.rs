//! `berthctl check`: reads the configuration as berthd would, and says what is wrong or what it comes to.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use berth_core::config::{self, ConfigError, Explanation, SourceFile, Sources, Warning};
use berth_core::report::SCHEMA;
use serde::Serialize;

use crate::complaint::Complaint;
use crate::exit::Exit;
use crate::out::Out;
use crate::render::Tone;

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    exit: u8,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<&'a Explanation>,
    errors: &'a [ConfigError],
    warnings: &'a [Warning],
}

/// Checks the configuration in `folder`.
pub(crate) fn check(folder: &Path, out: Out) -> Result<Exit, Complaint> {
    let sources = read(folder)?;
    let checked = config::load(&sources, &host());
    let exit = if checked.is_ok() { Exit::Done } else { Exit::Usage };
    match checked {
        Ok(settings) => {
            let explanation = config::explain(&settings);
            if out.json {
                Out::document(&document(exit, Some(&explanation), &[], &settings.warnings));
            } else {
                let models = match settings.models.len() {
                    0 => "no models declared".to_owned(),
                    1 => "1 model".to_owned(),
                    n => format!("{n} models"),
                };
                let warnings = settings.warnings.iter();
                let advice: Vec<String> =
                    warnings.map(|warning| format!("\n{}\n", warning.render(out.paint.color))).collect();
                let count = match settings.warnings.len() {
                    0 => String::new(),
                    1 => ", 1 warning".to_owned(),
                    n => format!(", {n} warnings"),
                };
                let valid = out.paint.tint(Tone::Good, "valid");
                let folder = folder.display();
                Out::say(&format!(
                    "{explanation}{}\n{valid}: {models}{count} in {folder}\n",
                    advice.concat()
                ));
            }
        }
        Err(errors) if out.json => Out::document(&document(exit, None, &errors, &[])),
        Err(errors) => {
            let rendered: Vec<String> = errors.iter().map(|error| error.render(out.errors.color)).collect();
            let count =
                if errors.len() == 1 { "1 error".to_owned() } else { format!("{} errors", errors.len()) };
            let word = out.errors.tint(Tone::Bad, "not valid");
            Out::complain(&format!("{}\n\n{word}: {count} in {}\n", rendered.join("\n\n"), folder.display()));
        }
    }
    Ok(exit)
}

/// The host's name: only a default for the node's, so where there is none to give any will do.
pub(crate) fn host() -> String {
    nix::unistd::gethostname().map_or_else(|_| "localhost".into(), |name| name.to_string_lossy().into_owned())
}

fn document<'a>(
    exit: Exit,
    explanation: Option<&'a Explanation>,
    errors: &'a [ConfigError],
    warnings: &'a [Warning],
) -> Document<'a> {
    Document { schema: SCHEMA, exit: exit.code(), valid: errors.is_empty(), explanation, errors, warnings }
}

/// The files as berthd reads them: `berth.toml`, and each `*.toml` in `models.d` and `policies.d`; any may be missing.
pub(crate) fn read(dir: &Path) -> Result<Sources, Complaint> {
    if !dir.is_dir() {
        let title = format!("{} is not a folder", dir.display());
        return Err(Complaint::new(
            Exit::Usage,
            "no_configuration",
            title,
            &["berthctl check --config DIR".to_owned()],
        ));
    }
    let main = dir.join("berth.toml");
    let main = if main.exists() { Some(file(main)?) } else { None };
    let all = |folder: &str| -> Result<Vec<SourceFile>, Complaint> {
        declarations(&dir.join(folder))?.into_iter().map(file).collect()
    };
    Ok(Sources { main, models: all("models.d")?, policies: all("policies.d")? })
}

fn declarations(folder: &Path) -> Result<Vec<PathBuf>, Complaint> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(unreadable(folder, &e.to_string())),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| unreadable(folder, &e.to_string()))?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn file(path: PathBuf) -> Result<SourceFile, Complaint> {
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(SourceFile { path, text }),
        Err(e) if e.kind() == ErrorKind::InvalidData => Err(unreadable(&path, "it is not UTF-8 text")),
        Err(e) => Err(unreadable(&path, &e.to_string())),
    }
}

fn unreadable(path: &Path, why: &str) -> Complaint {
    let title = format!("can't read {}: {why}", path.display());
    Complaint::new(Exit::Usage, "unreadable", title, &[format!("ls -l {}", path.display())])
}
