//! Programs and models' files: which version of each is there, and what the header of a model's file describes.
//!
//! Everything here blocks on the file system, which can hang: callers give it a thread and a deadline.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_core::facts::{FileFacts, Known, Stamp};
use berth_core::gguf;
use berth_core::safetensors;
use berth_core::shape::Shape;

/// Where programs are looked for that are declared by their name alone.
pub const PROGRAMS: [&str; 2] = ["/usr/local/bin", "/usr/bin"];

/// Where a program is that is declared by its name alone, or by its whole path.
pub fn found(program: &Path) -> Option<PathBuf> {
    let folders = if program.is_absolute() { &["/"][..] } else { &PROGRAMS };
    folders.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

/// What is read of a header at once: tokens' texts, which are passed over, are megabytes.
const PIECE: usize = 1 << 18;

/// A `config.json` or an index is a few kilobytes, of the largest models some megabytes.
const LONGEST_JSON: u64 = 64 << 20;

/// What is known of a program's or a model's file now. `before` is what was known of it: a header is read again only
/// where its file has changed.
pub fn look(path: &Path, before: Option<&FileFacts>) -> FileFacts {
    let stamp = match stamp(path) {
        Ok(stamp) => Known::Value(stamp),
        Err(error) => Known::Unknown(error.to_string()),
    };
    if let Some(before) = before.filter(|before| before.stamp == stamp && stamp.value().is_some()) {
        return before.clone();
    }
    let shape = match shape(path) {
        Ok(shape) => Known::Value(Arc::new(shape)),
        Err(why) => Known::Unknown(why),
    };
    FileFacts { stamp, shape }
}

/// What is known of a program now: its version.
pub fn look_at_program(path: &Path) -> FileFacts {
    let stamp = stamp(path).map_or_else(|error| Known::Unknown(error.to_string()), Known::Value);
    FileFacts { stamp, shape: Known::Unknown("it is a program".to_owned()) }
}

/// Size and time of the newest change of a file, with all parts of a split model; of a folder, of the files in it.
fn stamp(path: &Path) -> io::Result<Stamp> {
    let meta = fs::metadata(path)?;
    let mut files = Vec::new();
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            // Hubs keep links to what they downloaded.
            files.push(fs::metadata(entry?.path())?);
        }
        files.retain(fs::Metadata::is_file);
    } else {
        for part in parts(path).into_iter().filter(|part| part != path) {
            files.push(fs::metadata(part)?);
        }
        files.push(meta);
    }
    let modified = |meta: &fs::Metadata| {
        let seconds = u64::try_from(meta.mtime()).unwrap_or_default();
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(u64::try_from(meta.mtime_nsec()).unwrap_or_default())
    };
    Ok(Stamp {
        size: files.iter().map(fs::Metadata::len).fold(0, u64::saturating_add),
        modified: files.iter().map(modified).max().unwrap_or_default(),
    })
}

/// All parts of a split GGUF model of which this is one; else the file itself.
fn parts(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str());
    let parts = name.and_then(gguf::parts);
    parts.map_or_else(
        || vec![path.to_owned()],
        |names| names.into_iter().map(|name| path.with_file_name(name)).collect(),
    )
}

/// What a model's file, or the files in its folder, describe; an error says which file is wrong and how.
pub fn shape(path: &Path) -> Result<Shape, String> {
    let meta = fs::metadata(path).map_err(|error| error.to_string())?;
    if meta.is_dir() {
        return folder(path);
    }
    let mut files = Vec::new();
    for part in parts(path) {
        let of = |why: String| {
            if part == path { why } else { format!("its part {}: {why}", part.display()) }
        };
        let (mut source, len) = open(&part).map_err(|error| of(error.to_string()))?;
        files.push(gguf::read(&mut source, len).map_err(|error| of(error.to_string()))?);
    }
    gguf::shape(files).map_err(|error| error.to_string())
}

fn open(path: &Path) -> io::Result<(BufReader<File>, u64)> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    Ok((BufReader::with_capacity(PIECE, file), meta.len()))
}

/// A model as Hugging Face keeps them: `config.json` with one or more safetensors files.
fn folder(path: &Path) -> Result<Shape, String> {
    let of = |name: &str, why: &dyn std::fmt::Display| format!("{}: {why}", path.join(name).display());
    let config = text(&path.join("config.json")).map_err(|error| of("config.json", &error))?;
    let index = "model.safetensors.index.json";
    let names = match text(&path.join(index)) {
        Ok(index_text) => safetensors::files(&index_text).map_err(|error| of(index, &error))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => vec!["model.safetensors".to_owned()],
        Err(error) => return Err(of(index, &error)),
    };
    let mut files = Vec::new();
    for name in &names {
        let (mut source, len) = open(&path.join(name)).map_err(|error| of(name, &error))?;
        files.push(safetensors::read(&mut source, len).map_err(|error| of(name, &error))?);
    }
    safetensors::shape(&config, files).map_err(|error| of("config.json", &error))
}

fn text(path: &Path) -> io::Result<Vec<u8>> {
    let size = fs::metadata(path)?.len();
    if size > LONGEST_JSON {
        return Err(io::Error::other(format!("it has {size} bytes, and at most {LONGEST_JSON} are read")));
    }
    fs::read(path)
}
