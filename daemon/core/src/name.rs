//! Names of models, and the systemd unit that belongs to each.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The template of which every model's unit is an instance.
const TEMPLATE: &str = "berth-model@";

/// What the slices of models' containers begin with; they nest in `berth.slice` and `berth-model.slice`.
const SLICES: &str = "berth-model-";

/// The longest name of a unit whose ticket systemd 252 can fetch: before it connects it binds the address
/// `@<16 hex digits>/unit/<unit>/ticket`, and that takes 107 bytes. Beyond, a start fails with nothing but a number.
const LONGEST_UNIT: usize = 107 - "@0123456789abcdef/unit//ticket".len();

/// The name of a model: letters, digits, `.`, `_` and `-`, not starting with `.` or `-`, and short enough for its
/// unit (`-` counts as four there). A variant's name follows it after a `:` (`genesis:long`), and so do the settings
/// of an unnamed one, in the order of their keys (`genesis:ctx=16384,kv=q8_0`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

/// A name that no model can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{}` is not a name for a model: {why}", .name.escape_debug())]
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

    /// The name of this model's variant `variant`.
    pub fn variant(&self, variant: &str) -> Result<Self, BadName> {
        plain(variant).map_err(|why| BadName { name: variant.to_owned(), why })?;
        format!("{self}:{variant}").parse()
    }

    /// The name of this model with these settings changed; its own where there are none.
    pub fn with_settings(&self, set: &BTreeMap<String, String>) -> Result<Self, BadName> {
        if set.is_empty() {
            return Ok(self.clone());
        }
        let set: Vec<String> = set.iter().map(|(key, value)| format!("{key}={value}")).collect();
        format!("{self}:{}", set.join(",")).parse()
    }

    /// The model of which an unnamed variant is one, and its settings. None for any other name.
    pub fn settings(&self) -> Option<(Self, BTreeMap<String, String>)> {
        let (base, set) = self.0.rsplit_once(':').filter(|(_, set)| set.contains('='))?;
        let pairs = set.split(',').filter_map(|pair| pair.split_once('='));
        let set = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Some((Self(base.to_owned()), set))
    }

    /// The unit of this model, for example `berth-model@qwen3\x2d32b.service`.
    pub fn unit(&self) -> String {
        format!("{TEMPLATE}{}.service", escape(&self.0))
    }

    /// The slice of this model's own, in which docker puts its container: `berth-model-genesis.slice`. Of its name only
    /// letters, digits, `.` and `_` stay as they are: systemd nests slices at each `-`, and docker ends a name at `:`.
    pub fn slice(&self) -> String {
        format!("{SLICES}{}.slice", escape(&self.0).replace(':', "\\x3a"))
    }

    /// The model to which a slice belongs, if it is a model's own.
    pub fn from_slice(slice: &str) -> Option<Self> {
        let name: Self = unescape(slice.strip_prefix(SLICES)?.strip_suffix(".slice")?)?.parse().ok()?;
        // Each model has one slice, however else its name could be written.
        (name.slice() == slice).then_some(name)
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
        let (named, set) = match name.rsplit_once(':') {
            Some((named, set)) if set.contains('=') => (named, Some(set)),
            _ => (name, None),
        };
        let (base, variant) = named.split_once(':').map_or((named, None), |(base, it)| (base, Some(it)));
        plain(base)
            .and_then(|()| variant.map_or(Ok(()), plain))
            .and_then(|()| set.map_or(Ok(()), settings))
            .map_err(|why| BadName { name: name.to_owned(), why })?;
        let name = Self(name.to_owned());
        match name.unit().len().saturating_sub(LONGEST_UNIT) {
            0 => Ok(name),
            over => {
                let why = format!(
                    "it is {over} characters too long for systemd, where `-`, `=` and `,` count as four"
                );
                Err(BadName { name: name.0, why })
            }
        }
    }
}

const ALLOWED: &str = "use letters, digits, `.`, `_` and `-`";

/// Whether this can be a name by itself; if not, why.
fn plain(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("it is empty".to_owned());
    }
    if name.starts_with(['.', '-']) {
        return Err(format!("it starts with `.` or `-`; {ALLOWED}"));
    }
    match name.chars().find(|c| !in_names(*c)) {
        Some(c) => Err(format!("`{}` is not allowed in it; {ALLOWED}", c.escape_debug())),
        None => Ok(()),
    }
}

/// Whether these are settings as a name shows them: each key once and in order, or one model would have two names.
fn settings(set: &str) -> Result<(), String> {
    let mut before = "";
    for pair in set.split(',') {
        let (key, value) = pair.split_once('=').unwrap_or_default();
        if key.is_empty()
            || value.is_empty()
            || !pair.chars().all(|c| c == '=' || in_names(c))
            || value.contains('=')
        {
            return Err(format!("`{}` is no setting such as ctx=16384", pair.escape_debug()));
        }
        if key <= before {
            return Err("its settings are not in the order of their keys".to_owned());
        }
        before = key;
    }
    Ok(())
}

fn in_names(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-".contains(c)
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
    fn each_model_has_a_slice_that_nests_nowhere_else() {
        for (name, slice) in [
            ("genesis", "berth-model-genesis.slice"),
            ("qwen3.6-27b_int4", r"berth-model-qwen3.6\x2d27b_int4.slice"),
            ("genesis:ctx=1", r"berth-model-genesis\x3actx\x3d1.slice"),
        ] {
            let name: ModelName = name.parse().unwrap();
            assert_eq!(name.slice(), slice);
            assert_eq!(ModelName::from_slice(slice), Some(name));
        }
        for none in [
            "berth-model.slice",
            "berth-model-.slice",
            "berth-model-a-b.slice",
            r"berth-model-\x61.slice",
            "a.slice",
        ] {
            assert_eq!(ModelName::from_slice(none), None, "{none}");
        }
    }

    #[test]
    fn variants_and_settings_are_part_of_the_name() {
        let base: ModelName = "genesis".parse().unwrap();
        let long = base.variant("long").unwrap();
        assert_eq!(
            (long.as_str(), long.unit().as_str()),
            ("genesis:long", "berth-model@genesis:long.service")
        );
        assert_eq!(long.settings(), None);
        let set =
            BTreeMap::from([("kv".to_owned(), "q8_0".to_owned()), ("ctx".to_owned(), "16384".to_owned())]);
        let unnamed = long.with_settings(&set).unwrap();
        assert_eq!(unnamed.as_str(), "genesis:long:ctx=16384,kv=q8_0");
        assert_eq!(unnamed.unit(), r"berth-model@genesis:long:ctx\x3d16384\x2ckv\x3dq8_0.service");
        assert_eq!(ModelName::from_unit(&unnamed.unit()), Some(unnamed.clone()));
        assert_eq!(unnamed.settings(), Some((long, set)));
        assert_eq!(base.with_settings(&BTreeMap::new()), Ok(base.clone()));
        assert!(base.variant("x=1").is_err() && base.variant("a:b").is_err() && base.variant("").is_err());
        let many = BTreeMap::from_iter(
            ["a", "b", "c", "d", "e", "f"].map(|key| (key.to_owned(), "12345".to_owned())),
        );
        assert!(base.with_settings(&many).unwrap_err().to_string().contains("too long for systemd"));
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in [
            "",
            "a/b",
            "a:",
            ":a",
            "a:b:c",
            "a:.b",
            "a:x=",
            "a:=1",
            "a:x=1=2",
            "a:x=1,",
            "a:x=1,x=2",
            "a:y=1,x=2",
            "a:x=1:b",
            "a:x=a b",
            "a b",
            ".a",
            "-a",
            "a\0b",
            "ä",
            &"x".repeat(58),
            &"-".repeat(15),
        ] {
            let error = bad.parse::<ModelName>().unwrap_err().to_string();
            assert!(error.contains("is not a name for a model"), "{error}");
        }
    }
}
