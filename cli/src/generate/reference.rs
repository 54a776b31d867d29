//! Every key of the configuration: the page docs/reference.md, and berth.toml(5).

use std::fmt::Write as _;

use berth_core::config::{FileKind, Key, Section, reference, without_links};
use clap_mangen::roff::{Inline, Roff, bold, roman};

/// What holds for all of them.
const VALUES: &str = r#"Sizes are written `"14.3 GiB"`, `"900 MiB"` or `"16 GB"`; times `"90 s"`, `"15 min"`, `"1h 30m"` or `"14days"`. A key
that nobody reads is an error. Ports 8009 and 8010 are kept for Berth. `berthctl check` shows every value that holds here,
and where it comes from."#;

/// The page for docs.
pub(super) fn page() -> String {
    let mut page = format!(
        "# Configuration reference\n\n\
         <!-- Made by `make reference`, of what berthctl reads and daemon/core/src/config/keys/said.rs says. -->\n\n\
         What each key may be, what holds where it is not given, and what it means. How they are used, with examples:\n\
         [configuration](configuration.md).\n\n{VALUES}\n"
    );
    for kind in FileKind::ALL {
        // Writing to a String cannot fail.
        _ = write!(page, "\n## {}\n\n`{}`: {}.\n", heading(kind), kind.path(), kind.title());
        for section in reference(kind) {
            if !section.table.is_empty() {
                _ = write!(page, "\n### `[{}]`\n", section.table);
            }
            if !section.meaning.is_empty() {
                _ = write!(page, "\n{}\n", section.meaning);
            }
            page.push_str(&table(&section));
        }
    }
    page
}

fn heading(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Main => "The node",
        FileKind::Model => "A model",
        FileKind::Policy => "A policy",
    }
}

fn table(section: &Section) -> String {
    if section.keys.is_empty() {
        return String::new();
    }
    let row = |key: &Key| {
        let name = format!("`{}`", key.name);
        let cells = [&name, &key.value, &key.otherwise, &key.meaning].map(|cell| cell.replace('|', "\\|"));
        format!("| {} |\n", cells.join(" | "))
    };
    let rows: String = section.keys.iter().map(row).collect();
    format!("\n| key | value | where it is not given | meaning |\n|---|---|---|---|\n{rows}")
}

/// The manual's page, of section 5.
pub(super) fn manual() -> String {
    let mut manual = Roff::default();
    manual.control("TH", ["berth.toml", "5"]);
    manual.control("SH", ["NAME"]);
    manual.text([roman("berth.toml, models.d, policies.d - configuration of Berth")]);
    manual.control("SH", ["DESCRIPTION"]);
    manual.text(inlines(VALUES));
    for kind in FileKind::ALL {
        manual.control("SH", [kind.path()]);
        manual.text([roman(format!("It says {}.", kind.title()))]);
        for section in reference(kind) {
            if !section.table.is_empty() {
                manual.control("SS", [format!("[{}]", section.table).as_str()]);
            }
            if !section.meaning.is_empty() {
                manual.text(inlines(&section.meaning));
            }
            for key in &section.keys {
                manual.control("TP", []);
                manual.text([bold(key.name.as_str())]);
                let otherwise = match key.otherwise.as_str() {
                    "" => String::new(),
                    otherwise => format!(" Where it is not given: {otherwise}."),
                };
                manual.text(inlines(&format!("{}. Value: {}.{otherwise}", key.meaning, key.value)));
            }
        }
    }
    manual.control("SH", ["SEE ALSO"]);
    manual.text([roman("berthctl-check(1), berthctl-reload(1), berthctl(1), berthd(8)")]);
    manual.render()
}

/// Markdown as a terminal can show it: code in bold, no links.
fn inlines(text: &str) -> Vec<Inline> {
    let text = without_links(text);
    let part = |(i, part): (usize, &str)| if i % 2 == 1 { bold(part) } else { roman(part) };
    text.split('`').enumerate().filter(|(_, part)| !part.is_empty()).map(part).collect()
}
