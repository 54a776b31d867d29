//! Specifiers: `%i`, `%h` and the like.

use super::{Around, Unit};

/// How much is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// All, for a text that systemd no longer reads.
    All,
    /// What depends on the unit's name or file, for a setting that goes into another unit: the rest means the same there.
    Name,
}

/// A value with what its specifiers stand for; or why that can't be written down.
pub(crate) fn expand(text: &str, unit: &Unit, around: &Around, depth: Depth) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let Some(kind) = chars.next() else {
            out.push('%');
            break;
        };
        match (of_name(kind, unit), depth) {
            (Some(value), Depth::All) => out.push_str(&value),
            (Some(value), Depth::Name) => out.push_str(&value.replace('%', "%%")),
            (None, Depth::Name) => out.extend(['%', kind]),
            (None, Depth::All) => match of_machine(kind, around)? {
                Some(value) => out.push_str(&value),
                None => out.extend(['%', kind]),
            },
        }
    }
    Ok(out)
}

fn of_name(kind: char, unit: &Unit) -> Option<String> {
    let last_part = || unit.prefix().rsplit('-').next().unwrap_or_default();
    Some(match kind {
        'n' => unit.name.clone(),
        'N' => unit.stem().to_owned(),
        'p' => unit.prefix().to_owned(),
        'P' => unescaped(unit.prefix()),
        'i' => unit.instance().to_owned(),
        'I' => unescaped(unit.instance()),
        'j' => last_part().to_owned(),
        'J' => unescaped(last_part()),
        'f' => {
            let name = if unit.instance().is_empty() { unit.prefix() } else { unit.instance() };
            format!("/{}", unescaped(name).trim_start_matches('/'))
        }
        'y' => unit.path.display().to_string(),
        'Y' => unit.path.parent()?.display().to_string(),
        _ => return None,
    })
}

/// What systemd of the machine itself says, not one of a user's. None for what is no specifier: it stays as it is.
fn of_machine(kind: char, around: &Around) -> Result<Option<String>, String> {
    let short = || around.hostname.split('.').next().unwrap_or_default().to_owned();
    let release = |key: &str| {
        let text = std::fs::read_to_string(around.path("/etc/os-release")).unwrap_or_default();
        super::file(&text).into_iter().find(|(name, _)| name == key).map_or(String::new(), |(_, value)| value)
    };
    Ok(Some(match kind {
        '%' => "%".to_owned(),
        't' => "/run".to_owned(),
        'S' => "/var/lib".to_owned(),
        'C' => "/var/cache".to_owned(),
        'L' => "/var/log".to_owned(),
        'E' => "/etc".to_owned(),
        'T' => "/tmp".to_owned(),
        'V' => "/var/tmp".to_owned(),
        'h' => "/root".to_owned(),
        'u' | 'g' => "root".to_owned(),
        'U' | 'G' => "0".to_owned(),
        'H' | 'q' => around.hostname.clone(),
        'l' => short(),
        'o' => release("ID"),
        'w' => release("VERSION_ID"),
        'W' => release("VARIANT_ID"),
        'B' => release("BUILD_ID"),
        'A' => release("IMAGE_VERSION"),
        'M' => release("IMAGE_ID"),
        'm' => {
            around.machine_id.clone().ok_or("`%m` is the machine's id, and /etc/machine-id can't be read")?
        }
        'a' | 'b' | 'd' | 's' | 'v' => {
            let what = match kind {
                'a' => "the architecture",
                'b' => "another one at each boot",
                'd' => "the folder of the unit's own credentials",
                's' => "root's shell",
                _ => "the kernel's version",
            };
            return Err(format!("`%{kind}` is {what}, which can't be written down"));
        }
        _ => return Ok(None),
    }))
}

/// Undoes systemd's escaping: `-` is a `/`, and `\xNN` a byte.
pub(crate) fn unescaped(name: &str) -> String {
    let mut out = Vec::new();
    let mut rest = name.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let byte = rest.strip_prefix(b"\\x").and_then(|hex| {
            let digits = std::str::from_utf8(hex.get(..2)?).ok()?;
            u8::from_str_radix(digits, 16).ok()
        });
        rest = match (byte, first) {
            (Some(byte), _) => {
                out.push(byte);
                &rest[4..]
            }
            (None, b'-') => {
                out.push(b'/');
                after
            }
            (None, other) => {
                out.push(*other);
                after
            }
        };
    }
    String::from_utf8_lossy(&out).into_owned()
}
