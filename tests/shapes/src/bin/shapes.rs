//! Writes the files into a folder: `shapes FOLDER`.

use std::path::PathBuf;

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).context("say into which folder: shapes FOLDER")?);
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
