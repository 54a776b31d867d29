//! What the bytes of a ledger say: pure, so that every prefix and every flipped bit of one can be tried.

use berth_core::state::State;
use crc32fast::Hasher;

/// The version that is written. Version 1 had the same lines, with fewer fields and one that is read no more.
pub const VERSION: u32 = 2;
const OLDEST: u32 = 1;
/// What the first line begins with.
pub const NAME: &str = "berth-ledger ";

/// What a ledger says that can be believed.
#[derive(Debug, PartialEq)]
pub struct Read {
    /// Of the last whole line.
    pub state: State,
    /// Which version wrote it.
    pub version: u32,
    /// How many bytes at its end are of a write that was interrupted, so never reported as done.
    pub torn: usize,
}

/// Why a ledger can't be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A line that no power cut can have left so.
    #[error("line {line} is damaged ({why})")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
    /// Its lines may mean what this version does not know.
    #[error("it begins with `{header}`: a newer Berth wrote it, and this one reads up to `{NAME}{VERSION}`")]
    Newer {
        /// The first line.
        header: String,
    },
}

impl Damage {
    fn line(line: usize, why: impl Into<String>) -> Self {
        Self::Line { line, why: why.into() }
    }
}

/// The state of the last whole line. Only a last line without its end can be torn: what has its end, or was whole
/// once, is believed or the ledger is damaged. Nor can the first state be torn: it is synced before the file has
/// its name.
///
/// # Errors
/// Where and why it can't be believed.
pub fn read(bytes: &[u8]) -> Result<Read, Damage> {
    let (version, body) = header(bytes)?;
    let (mut last, mut torn) = (None, 0);
    for (number, line) in (2..).zip(body.split_inclusive(|byte| *byte == b'\n')) {
        match line.strip_suffix(b"\n") {
            Some(text) => last = Some((number, checked(text).map_err(|why| Damage::line(number, why))?)),
            None if number > 2 && whole(line).is_none() => torn = line.len(),
            None => return Err(Damage::line(number, "it has no end")),
        }
    }
    let (number, json) = last.ok_or_else(|| Damage::line(2, "it is missing"))?;
    let state = serde_json::from_slice(json)
        .map_err(|error| Damage::line(number, format!("another version wrote it: {error}")))?;
    Ok(Read { state, version, torn })
}

/// The newest state in a damaged ledger whose checksum is right, and its line. None where there is none, or where a
/// newer version wrote it.
pub fn salvage(bytes: &[u8]) -> Option<(usize, State)> {
    if matches!(header(bytes), Err(Damage::Newer { .. })) {
        return None;
    }
    let mut newest = None;
    for (number, mut line) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
        // Two lines, where the end of the first one is damaged.
        while let Some((json, rest)) = whole(line) {
            newest = serde_json::from_slice(json).ok().map(|state| (number, state)).or(newest);
            line = rest;
        }
    }
    newest
}

/// The version, and what follows the first line.
fn header(bytes: &[u8]) -> Result<(u32, &[u8]), Damage> {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let Some(end) = end else { return Err(Damage::line(1, "it has no end")) };
    let first = &bytes[..end];
    let version: Option<u32> = str::from_utf8(first)
        .ok()
        .and_then(|text| text.strip_prefix(NAME))
        .and_then(|version| version.parse().ok());
    match version {
        Some(version @ OLDEST..=VERSION) if first.len() == NAME.len() + 1 => Ok((version, &bytes[end + 1..])),
        Some(version) if version > VERSION => Err(Damage::Newer { header: format!("{NAME}{version}") }),
        _ => Err(Damage::line(1, format!("it is not `{NAME}{VERSION}`"))),
    }
}

/// The JSON of a line whose checksum is right.
fn checked(line: &[u8]) -> Result<&[u8], &'static str> {
    let (sum, json) = split(line).ok_or("it has no checksum")?;
    if crc32fast::hash(json) == sum { Ok(json) } else { Err("its checksum is wrong") }
}

/// The JSON of a whole line at the beginning of `line`, and what comes after the byte that stands for its end. A NUL
/// there stands for none: it is what a file system leaves of bytes that were never written.
fn whole(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let (sum, json) = split(line)?;
    let (mut hasher, mut hashed) = (Hasher::new(), 0);
    for end in (1..json.len()).filter(|end| json[end - 1] == b'}') {
        hasher.update(&json[hashed..end]);
        hashed = end;
        if hasher.clone().finalize() == sum {
            return (json[end] != 0).then(|| (&json[..end], &json[end + 1..]));
        }
    }
    None
}

/// A line's checksum, and its JSON. The checksum only as it is written: capitals would be bits that flipped.
fn split(line: &[u8]) -> Option<(u32, &[u8])> {
    let (sum, rest) = line.split_at_checked(8)?;
    let sum =
        str::from_utf8(sum).ok().filter(|sum| sum.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))?;
    Some((u32::from_str_radix(sum, 16).ok()?, rest.strip_prefix(b" ")?))
}
