//! Names of models, and the systemd unit that belongs to each.

use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The template of which every model's unit is an instance.
const TEMPLATE: &str = "berth-model@";

/// The longest name of a unit whose ticket systemd 252 can fetch: before it connects it binds the address
/// `@<16 hex digits>/unit/<unit>/ticket`, and that takes 107 bytes. Beyond, a start fails with nothing but a number.
const LONGEST_UNIT: usize = 107 - "@0123456789abcdef/unit//ticket".len();

/// The name of a model: letters, digits, `.`, `_` and `-`, not starting with `.` or `-`, and short enough for its
/// unit (`-` counts as four there).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

/// A name that no model can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{}` is not a name for a model: {why}; use letters, digits, `.`, `_` and `-`", .name.escape_debug())]
pub struct BadName {
    /// The name as it was given.
    pub name: String,
    /// What is wrong with it.
    pub why: String,
}

impl ModelName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The unit of this model, for example `berth-model@qwen3\x2d32b.service`.
    pub fn unit(&self) -> String {
        format!("{TEMPLATE}{}.service", escape(&self.0))
    }

    /// The model to which a unit belongs, if it is an instance of Berth's template.
    pub fn from_unit(unit: &str) -> Option<Self> {
        let instance = unit.strip_prefix(TEMPLATE)?.strip_suffix(".service")?;
        unescape(instance)?.parse().ok()
    }
}

impl FromStr for ModelName {
    type Err = BadName;

    fn from_str(name: &str) -> Result<Self, BadName> {
        let bad = |why: String| Err(BadName { name: name.to_owned(), why });
        if name.is_empty() {
            return bad("it is empty".to_owned());
        }
        if name.starts_with(['.', '-']) {
            return bad("it starts with `.` or `-`".to_owned());
        }
        if let Some(c) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c))) {
            return bad(format!("`{}` is not allowed in it", c.escape_debug()));
        }
        let name = Self(name.to_owned());
        match name.unit().len().saturating_sub(LONGEST_UNIT) {
            0 => Ok(name),
            over => {
                let why = format!("it is {over} characters too long for systemd, where `-` counts as four");
                Err(BadName { name: name.0, why })
            }
        }
    }
}

impl TryFrom<String> for ModelName {
    type Error = BadName;

    fn try_from(name: String) -> Result<Self, BadName> {
        name.parse()
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Escapes as `systemd-escape` does: all but letters, digits, `:`, `_` and inner `.` become `\xNN`.
fn escape(name: &str) -> String {
    let mut out = String::new();
    for (i, b) in name.bytes().enumerate() {
        match b {
            b'/' => out.push('-'),
            b'.' if i == 0 => out.push_str("\\x2e"),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'_' | b'.' => out.push(b as char),
            // Writing to a String cannot fail.
            _ => _ = write!(out, "\\x{b:02x}"),
        }
    }
    out
}

fn unescape(instance: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut rest = instance.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'-' => out.push(b'/'),
            b'\\' => {
                let hex = std::str::from_utf8(rest.get(1..3)?).ok()?;
                if rest.first() != Some(&b'x') {
                    return None;
                }
                out.push(u8::from_str_radix(hex, 16).ok()?);
                rest = &rest[3..];
            }
            b => out.push(*b),
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn units_are_escaped_as_systemd_does() {
        let name: ModelName = "qwen3.6-27b_int4".parse().unwrap();
        assert_eq!(name.unit(), r"berth-model@qwen3.6\x2d27b_int4.service");
        assert_eq!(ModelName::from_unit(&name.unit()), Some(name));
        assert_eq!(ModelName::from_unit("ssh.service"), None);
        assert_eq!(ModelName::from_unit(r"berth-model@a\x2.service"), None);
        assert_eq!(escape(".a/b c"), r"\x2ea-b\x20c");
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in ["", "a/b", "a:b", "a b", ".a", "-a", "a\0b", "ä", &"x".repeat(58), &"-".repeat(15)] {
            let error = bad.parse::<ModelName>().unwrap_err().to_string();
            assert!(error.contains("is not a name for a model"), "{error}");
        }
    }
}
