//! Units as objects on the bus: `/org/freedesktop/systemd1/unit/berth_2dmodel_40genesis_2eservice`.
//!
//! A call on the object loads the unit by itself, in one step; `LoadUnit` followed by a call by name can find the
//! unit already forgotten in between.

use std::fmt::Write as _;

use berth_core::name::ModelName;

const UNITS: &str = "/org/freedesktop/systemd1/unit/";

/// The object of a model's unit.
pub fn of(model: &ModelName) -> String {
    of_unit(&model.unit())
}

/// The object of any unit.
pub fn of_unit(unit: &str) -> String {
    let mut path = UNITS.to_owned();
    for byte in unit.bytes() {
        if byte.is_ascii_alphanumeric() {
            path.push(byte as char);
        } else {
            // Writing to a String cannot fail.
            _ = write!(path, "_{byte:02x}");
        }
    }
    path
}

/// The model whose unit an object is, if it is one of ours.
pub fn model(path: &str) -> Option<ModelName> {
    let mut rest = path.strip_prefix(UNITS)?.as_bytes();
    let mut unit = Vec::with_capacity(rest.len());
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'_' {
            let hex = std::str::from_utf8(rest.get(..2)?).ok()?;
            unit.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &rest[2..];
        } else {
            unit.push(*first);
        }
    }
    ModelName::from_unit(std::str::from_utf8(&unit).ok()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn paths_are_escaped_as_systemd_does() {
        let name: ModelName = "qwen3-32b_x".parse().unwrap();
        let path = "/org/freedesktop/systemd1/unit/berth_2dmodel_40qwen3_5cx2d32b_5fx_2eservice";
        assert_eq!(of(&name), path);
        assert_eq!(model(path), Some(name));
    }

    #[test]
    fn other_objects_are_no_models() {
        for path in [
            "/org/freedesktop/systemd1",
            "/org/freedesktop/systemd1/unit/ssh_2eservice",
            "/org/freedesktop/systemd1/unit/berth_2dmodel_40a_2",
            "/org/freedesktop/systemd1/unit/berth_2dmodel_40a_zzservice",
            "/org/freedesktop/systemd1/job/berth_2dmodel_40a_2eservice",
        ] {
            assert_eq!(model(path), None, "{path}");
        }
    }
}
