//! Puts the built dashboard into the binary: writes `dashboard.rs` with all that lies in `dashboard/dist`, or with
//! nothing where it was not built.

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::fs;
use std::hash::Hasher;
use std::io;
use std::path::{Path, PathBuf};

fn main() -> io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dashboard");
    let dist = root.join("dist");
    println!("cargo::rerun-if-changed=build.rs");
    // Relocations are read at each start, and what is read of the binary counts as berthd's memory: a list of their
    // places instead of a record each is a thirtieth of it. glibc and musl know these since 2022.
    if std::env::var_os("CARGO_CFG_TARGET_OS").is_some_and(|os| os == "linux") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
    // Of what does not exist cargo would build again each time.
    let watched = [&dist, &root].into_iter().find(|path| path.exists());
    if let Some(watched) = watched {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    let mut out = String::from("const FILES: &[File] = &[\n");
    if dist.join("index.html").exists() {
        let dist = dist.canonicalize()?;
        for path in files(&dist)? {
            let mut hasher = DefaultHasher::new();
            hasher.write(&fs::read(&path)?);
            let tag = format!("{:016x}", hasher.finish());
            let relative = path.strip_prefix(&dist).unwrap_or(&path).to_string_lossy().into_owned();
            let path = path.to_string_lossy();
            let packed = format!("{path}.gz");
            let gzip = Path::new(&packed).exists().then(|| format!("include_bytes!({packed:?})"));
            let gzip = gzip.map_or("None".to_owned(), |bytes| format!("Some({bytes})"));
            _ = writeln!(
                out,
                "File {{ path: {relative:?}, tag: {tag:?}, bytes: include_bytes!({path:?}), gzip: {gzip} }},"
            );
        }
    }
    out.push_str("];\n");
    let to = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("dashboard.rs");
    fs::write(to, out)
}

/// All files below a folder but the compressed ones, in an order that does not change.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_none_or(|extension| extension != "gz") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
