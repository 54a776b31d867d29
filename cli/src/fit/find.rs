//! Models in a folder: GGUF files, a split model once, and folders of safetensors files.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use berth_core::gguf;

/// Hubs nest them: `hub/models--ORG--NAME/snapshots/HASH`.
const DEEPEST: u32 = 5;

/// More folders than anyone keeps models in: it is the root of a system or the like.
const MOST_FOLDERS: usize = 10_000;

/// What there is in a folder.
#[derive(Default)]
pub(super) struct Found {
    /// The models' files and folders, in order.
    pub(super) models: Vec<PathBuf>,
    /// What could not be looked into, with the reason.
    pub(super) unreadable: Vec<(PathBuf, String)>,
    /// Folders that were looked into: links may lead to one twice, or back.
    seen: BTreeSet<PathBuf>,
}

/// Looks for models below a folder. Only this folder itself must be readable.
pub(super) fn find(folder: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    found.look(folder, 0)?;
    if found.seen.len() >= MOST_FOLDERS {
        let why = format!("there are more than {MOST_FOLDERS} folders in it; name one nearer to the models");
        return Err(io::Error::other(why));
    }
    found.models.sort();
    Ok(found)
}

impl Found {
    fn look(&mut self, folder: &Path, depth: u32) -> io::Result<()> {
        if self.seen.len() >= MOST_FOLDERS || !self.seen.insert(fs::canonicalize(folder)?) {
            return Ok(());
        }
        let mut names: BTreeSet<String> = BTreeSet::new();
        let mut folders = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            // A file that is named in no way people can type is none that they ask for.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = entry.path();
            match fs::metadata(&path) {
                Ok(_) if name.starts_with('.') => {}
                Ok(meta) if meta.is_dir() => folders.push(path),
                Ok(meta) if meta.is_file() => _ = names.insert(name),
                // A link to what is gone.
                Err(error) if is_gguf(&name) => self.unreadable.push((path, error.to_string())),
                Ok(_) | Err(_) => {}
            }
        }
        let is_weights = |name: &String| has_ending(name, "safetensors");
        if names.contains("config.json") && names.iter().any(is_weights) {
            self.models.push(folder.to_owned());
        }
        let first = |name: &String| match gguf::parts(name) {
            // Of a split model the first part that is there stands for all.
            Some(parts) => parts.iter().find(|part| names.contains(*part)) == Some(name),
            None => true,
        };
        let files = names.iter().filter(|name| is_gguf(name) && first(name));
        self.models.extend(files.map(|name| folder.join(name)));
        for inner in folders.into_iter().filter(|_| depth < DEEPEST) {
            if let Err(error) = self.look(&inner, depth + 1) {
                self.unreadable.push((inner, error.to_string()));
            }
        }
        Ok(())
    }
}

fn is_gguf(name: &str) -> bool {
    has_ending(name, "gguf")
}

fn has_ending(name: &str, ending: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found.eq_ignore_ascii_case(ending))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn split_models_are_found_once_and_links_do_not_lead_astray() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for inner in ["hub/a", "org/b", ".cache"] {
            fs::create_dir_all(at(inner)).unwrap();
        }
        let files = [
            "b.GGUF",
            "m-00001-of-00002.gguf",
            "m-00002-of-00002.gguf",
            "n-00002-of-00003.gguf",
            "n-00003-of-00003.gguf",
            "notes.txt",
            "config.json",
            ".hidden.gguf",
            ".cache/x.gguf",
            "hub/a/config.json",
            "hub/a/model.safetensors",
            "org/b/inner.gguf",
        ];
        for file in files {
            fs::write(at(file), "").unwrap();
        }
        std::os::unix::fs::symlink(folder.path(), at("org/b/up")).unwrap();
        std::os::unix::fs::symlink(at("gone"), at("link.gguf")).unwrap();
        let Found { models, unreadable, .. } = find(folder.path()).unwrap();
        let expected =
            ["b.GGUF", "hub/a", "m-00001-of-00002.gguf", "n-00002-of-00003.gguf", "org/b/inner.gguf"].map(at);
        assert_eq!(models, expected);
        assert_eq!(unreadable.iter().map(|(path, _)| path).collect::<Vec<_>>(), [&at("link.gguf")]);
        assert!(find(&at("gone")).is_err());
    }
}
