//! Changes fields of a body, and leaves every other byte as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde_json::Value;

use super::json::{Part, Scanner, string};
use super::{Form, Wrong, spelled};

/// A JSON object with fields changed at its top level: first those of `strip` are taken out, then those of `default`
/// that are missing are added, then those of `set` are replaced or added. A field that is there as null is not missing.
/// A field that stands in the body twice is taken out, or replaced, both times.
pub fn edited(
    body: &[u8],
    set: &BTreeMap<String, Value>,
    default: &BTreeMap<String, Value>,
    strip: &[String],
) -> Result<Vec<u8>, Wrong> {
    let fields = fields(body)?;
    let start = fields.first().map_or_else(
        || body.iter().position(|b| *b == b'{').map_or(body.len(), |n| n + 1),
        |field| field.key.start,
    );
    let mut out = Vec::with_capacity(body.len());
    out.extend_from_slice(body.get(..start).unwrap_or_default());
    let mut before = start;
    let mut there = BTreeSet::new();
    let mut first = true;
    for field in &fields {
        // What stands between two fields goes with the later one.
        let between = body.get(before..field.key.start).unwrap_or_default();
        before = field.value.end;
        let set = set.get(&field.name);
        if set.is_none() && strip.contains(&field.name) {
            continue;
        }
        if !first {
            out.extend_from_slice(between);
        }
        first = false;
        let kept = if set.is_some() { field.value.start } else { field.value.end };
        out.extend_from_slice(body.get(field.key.start..kept).unwrap_or_default());
        if let Some(value) = set {
            out.extend_from_slice(value.to_string().as_bytes());
        }
        there.insert(&field.name);
    }
    let added = default.iter().filter(|(name, _)| !set.contains_key(*name)).chain(set);
    for (name, value) in added.filter(|(name, _)| !there.contains(name)) {
        if !first {
            out.push(b',');
        }
        first = false;
        out.extend_from_slice(&spelled(Form::Json, name));
        out.push(b':');
        out.extend_from_slice(value.to_string().as_bytes());
    }
    out.extend_from_slice(body.get(before..).unwrap_or_default());
    Ok(out)
}

/// A field of the object, and where it stands.
struct Field {
    name: String,
    key: Range<usize>,
    value: Range<usize>,
}

fn fields(body: &[u8]) -> Result<Vec<Field>, Wrong> {
    let mut fields: Vec<Field> = Vec::new();
    let mut scanner = Scanner::default();
    let mut rest = body;
    let mut begins = None;
    loop {
        let at = body.len() - rest.len();
        let Some(piece) = scanner.next(&mut rest)? else { break };
        if piece.part == Part::Between {
            continue;
        }
        let start = *begins.get_or_insert(at);
        if !piece.ends {
            continue;
        }
        begins = None;
        let whole = start..at + piece.bytes.len();
        match piece.part {
            Part::Key => {
                let name = string(body.get(whole.clone()).unwrap_or_default(), start as u64)?;
                fields.push(Field { name, key: whole, value: 0..0 });
            }
            _ => {
                if let Some(field) = fields.last_mut() {
                    field.value = whole;
                }
            }
        }
    }
    scanner.end()?;
    Ok(fields)
}
