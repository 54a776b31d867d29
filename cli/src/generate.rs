//! `berthctl generate`, hidden: what an installation has beside the programs, made of the same definitions as those.

mod reference;

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use berth_core::config::{FileKind, schema};
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

use crate::args::Cli;
use crate::complaint::Complaint;
use crate::exit::Exit;

/// Writes into a folder: `man`, with a page for berthctl and for each verb, and one for the configuration; `completions` of
/// the three shells; `schema`, of the kinds of configuration files; and `reference.md`, of all their keys.
pub(crate) fn generate(folder: &Path) -> Result<Exit, Complaint> {
    write(folder).map_err(|error| {
        Complaint::new(Exit::Usage, "unwritable", format!("nothing was generated: {error:#}"), &[])
    })?;
    Ok(Exit::Done)
}

fn write(folder: &Path) -> anyhow::Result<()> {
    let inside = |name: &str| {
        let path = folder.join(name);
        fs::create_dir_all(&path).with_context(|| format!("can't make {}", path.display())).map(|()| path)
    };
    let man = inside("man")?;
    clap_mangen::generate_to(Cli::command(), &man)?;
    for page in fs::read_dir(&man)? {
        let path = page?.path();
        // What follows the options has columns and lines of its own.
        let text = fs::read_to_string(&path)?.replace(".SH EXTRA\n", ".SH NOTES\n.nf\n");
        fs::write(&path, text)?;
    }
    fs::write(man.join("berth.toml.5"), reference::manual())?;
    fs::write(folder.join("reference.md"), reference::page())?;
    let completions = inside("completions")?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut typed(), "berthctl", &completions)?;
    }
    let schemas = inside("schema")?;
    for kind in FileKind::ALL {
        let text = format!("{:#}\n", schema(kind));
        fs::write(schemas.join(format!("{}.json", kind.name())), text)?;
    }
    Ok(())
}

/// What people type: clap_complete proposes what is hidden, too.
fn typed() -> Command {
    let all = Cli::command();
    let shown = all.get_subcommands().filter(|verb| !verb.is_hide_set());
    Command::new("berthctl").version("").args(all.get_arguments().cloned()).subcommands(shown.cloned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn all_is_made_and_every_verb_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let completions = ["berthctl.bash", "_berthctl", "berthctl.fish"];
        let completions = completions.map(|name| read(&format!("completions/{name}")));
        for verb in Cli::command().get_subcommands() {
            let (name, hidden) = (verb.get_name(), verb.is_hide_set());
            let page = folder.path().join(format!("man/berthctl-{name}.1"));
            assert_eq!(page.exists(), !hidden, "{name}");
            for text in &completions {
                assert_eq!(text.contains(name), !hidden, "{name}: {text}");
            }
        }
        assert!(read("man/berthctl.1").contains(".SH NOTES\n.nf\nExamples:\n"), "columns are kept");
        assert!(read("man/berthctl-plan-switch.1").contains("KEY=VALUE"));
        assert!(read("man/berth.toml.5").contains("\n.SS [proxy.keys.NAME]\n"));
        let kept = include_str!("../../docs/reference.md");
        assert!(
            kept == read("reference.md"),
            "docs/reference.md is not of this code: `make reference` makes it"
        );
        for kind in FileKind::ALL {
            let text = read(&format!("schema/{}.json", kind.name()));
            assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), schema(kind));
        }
    }
}
