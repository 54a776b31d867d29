//! Writes model files into a folder: `shapes FOLDER`, or the fuzzers' corpus: `shapes --corpus FOLDER`.

use std::path::PathBuf;

use anyhow::{Context, bail};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let corpus = arguments.next_if(|argument| argument == "--corpus").is_some();
    let folder = PathBuf::from(arguments.next().context("say into which folder: shapes [--corpus] FOLDER")?);
    if let Some(more) = arguments.next() {
        bail!("`{}` is one argument too many", more.display());
    }
    if corpus { write_corpus(&folder) } else { write_models(&folder) }
}

fn write_models(folder: &std::path::Path) -> anyhow::Result<()> {
    for (kind, files) in [("small", shapes::models::small()), ("hollow", shapes::models::published())] {
        let folder = folder.join(kind);
        std::fs::create_dir_all(&folder)?;
        for (name, file) in files {
            let path = folder.join(format!("{name}.gguf"));
            if kind == "small" {
                file.write_random(&path)?;
            } else {
                file.write_hollow(&path)?;
            }
            println!("{} {}", path.display(), file.length());
        }
    }
    Ok(())
}

fn write_corpus(folder: &std::path::Path) -> anyhow::Result<()> {
    for kind in ["gguf", "safetensors"] {
        let folder = folder.join(kind);
        std::fs::create_dir_all(&folder)?;
        for (name, bytes) in shapes::hostile::corpus(kind) {
            std::fs::write(folder.join(name), bytes)?;
        }
    }
    Ok(())
}
