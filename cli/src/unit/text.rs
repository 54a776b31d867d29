//! The lines of a unit's file: sections, settings, comments, continuations.

use super::{File, Setting, Unreadable};

/// The settings of one file, in its order. What systemd passes over with no more than a warning is passed over too.
pub(super) fn settings(file: &File) -> Result<Vec<Setting>, Unreadable> {
    let text = file.text.strip_prefix('\u{feff}').unwrap_or(&file.text);
    let mut settings = Vec::new();
    let mut section = String::new();
    let mut held: Option<(usize, String)> = None;
    let mut lines = text.lines().enumerate().peekable();
    while let Some((at, line)) = lines.next() {
        // A comment between continued lines belongs to none of them.
        if line.trim_start().starts_with(['#', ';']) {
            if lines.peek().is_some() || held.is_none() {
                continue;
            }
        } else {
            let (_, so_far) = held.get_or_insert((at + 1, String::new()));
            so_far.push_str(line);
            if continues(so_far) {
                so_far.pop();
                so_far.push(' ');
                if lines.peek().is_some() {
                    continue;
                }
            }
        }
        let Some((first, whole)) = held.take() else { continue };
        let whole = whole.trim();
        if let Some(name) = whole.strip_prefix('[') {
            let Some(name) = name.strip_suffix(']') else {
                let what = format!("`{whole}` opens a section and does not close it");
                return Err(Unreadable { what, place: Some(format!("{}:{first}", file.path.display())) });
            };
            name.clone_into(&mut section);
        } else if let Some((key, value)) = whole.split_once('=') {
            settings.push(Setting {
                section: section.clone(),
                key: key.trim_end().to_owned(),
                value: value.trim_start().to_owned(),
                file: file.path.clone(),
                line: first,
            });
        }
    }
    Ok(settings)
}

/// Whether the line ends with a backslash that no other one escapes.
fn continues(line: &str) -> bool {
    line.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}
