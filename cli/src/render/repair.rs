//! What a repair of the ledger came to.

use berth_core::report::Repaired;

use super::text::{clean, names, paragraph};

/// What `berthctl repair` prints.
pub(crate) fn repaired(repaired: &Repaired) -> String {
    let Some(damage) = &repaired.damage else {
        return paragraph("", "Nothing to repair: the ledger is sound.");
    };
    let mut out = "Repaired: berthd starts and stops models again.\n".to_owned();
    out.push_str(&paragraph("  damage   ", &clean(damage)));
    let counts = match repaired.line {
        Some(line) => format!("line {line}, the last one with a right checksum"),
        None => "none of it; Berth begins anew from what runs".to_owned(),
    };
    out.push_str(&paragraph("  counts   ", &counts));
    let home = match (repaired.home.as_slice(), &repaired.default) {
        ([], _) => "nothing, until you say so: berthctl switch MODEL".to_owned(),
        (home, Some(default)) => format!("{}; `default` is {default}", names(home)),
        (home, None) => names(home),
    };
    out.push_str(&paragraph("  home     ", &home));
    out.push_str(&paragraph("  serving  ", &names(&repaired.serving)));
    if let Some(kept) = &repaired.kept {
        out.push_str(&paragraph("  kept     ", &clean(kept)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::examples::name;

    #[test]
    fn it_says_what_was_wrong_and_what_counts_now() {
        let mended = Repaired {
            schema: 1,
            damage: Some("ledger /var/lib/berth/ledger: line 2 is damaged (its checksum is wrong)".into()),
            kept: Some("/var/lib/berth/ledger.damaged-1795492609".into()),
            line: Some(5),
            home: vec![name("genesis")],
            default: Some(name("genesis")),
            serving: vec![name("embedder"), name("genesis")],
        };
        let anew = Repaired { line: None, home: Vec::new(), default: None, ..mended.clone() };
        let sound = Repaired { damage: None, kept: None, ..anew.clone() };
        let all = [mended, anew, sound].map(|report| repaired(&report));
        for line in all.iter().flat_map(|text| text.lines()) {
            assert!(line.chars().count() <= crate::render::WIDTH, "{line}");
        }
        insta::assert_snapshot!(all.join("\n"));
    }
}
