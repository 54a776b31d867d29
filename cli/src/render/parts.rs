//! What a model takes on each device, by part, and the ways to place it that were tried.

use berth_core::bytes::Bytes;
use berth_core::demand::{Source, What};
use berth_core::report::{Attempt, AttemptOutcome, DeviceShare};

use super::text::{clean, gib, join, paragraph};
use super::{Column, Paint, Table, Tone};

/// The ways that were tried, where there was more than one.
pub(crate) fn tried(attempts: &[Attempt], paint: Paint) -> String {
    if attempts.len() < 2 {
        return String::new();
    }
    let mut table = Table::new(1, &[Column::Wrap, Column::Left]);
    table.plain(Tone::Dim, &["TRIED", ""]);
    for attempt in attempts {
        let (tone, outcome) = match &attempt.outcome {
            AttemptOutcome::Fits { spare } => (Tone::Plain, format!("fits, {spare} to spare")),
            AttemptOutcome::Short { by: Bytes::ZERO, .. } => (Tone::Bad, "can't serve".to_owned()),
            AttemptOutcome::Short { by, .. } => (Tone::Bad, format!("{by} short")),
            AttemptOutcome::Unknown { .. } => (Tone::Bad, "unknown".to_owned()),
        };
        table.row(vec![(Tone::Plain, clean(&attempt.way)), (tone, outcome)]);
    }
    table.render(paint)
}

/// Columns of the table of parts: what is shown together under one heading.
const COLUMNS: [(&str, &[What]); 7] = [
    ("in all", &[What::Whole]),
    ("weights", &[What::Weights]),
    ("KV", &[What::KvGlobal, What::KvSliding]),
    ("state", &[What::Recurrent]),
    ("compute", &[What::Compute]),
    ("driver", &[What::Overhead]),
    ("beside", &[What::Projector, What::Draft]),
];

/// What is needed on each device, by part; nothing where no parts are known.
pub(crate) fn parts(devices: &[DeviceShare], paint: Paint) -> String {
    let all = || devices.iter().flat_map(|device| &device.parts.0);
    if all().all(|part| part.what == What::Whole) {
        return String::new();
    }
    let shown: Vec<_> =
        COLUMNS.iter().filter(|(_, whats)| all().any(|part| whats.contains(&part.what))).collect();
    let mut columns = vec![Column::Left, Column::Right];
    columns.extend(shown.iter().map(|_| Column::Right));
    let mut table = Table::new(1, &columns);
    let mut head = vec!["GIB", "needs"];
    head.extend(shown.iter().map(|(name, _)| *name));
    table.plain(Tone::Dim, &head);
    for device in devices {
        let mut row = vec![place(device), gib(device.needs)];
        row.extend(shown.iter().map(|(_, whats)| {
            let bytes: Bytes = whats.iter().map(|what| device.parts.of(*what)).sum();
            if bytes == Bytes::ZERO { "-".to_owned() } else { gib(bytes) }
        }));
        table.plain(Tone::Plain, &row);
    }
    table.render(paint) + &sources(devices)
}

fn place(device: &DeviceShare) -> String {
    device.gpu.map_or("host".to_owned(), |index| format!("GPU {index}"))
}

/// How the parts are known that are not computed from the file.
fn sources(devices: &[DeviceShare]) -> String {
    let all = || devices.iter().flat_map(|device| &device.parts.0);
    let of = |source: Source| {
        let parts = |whats: &[What]| all().any(|part| part.source == source && whats.contains(&part.what));
        let names = COLUMNS.iter().filter(|(_, whats)| parts(whats)).map(|(name, _)| *name);
        join(names, ", ")
    };
    let said = [("estimated", of(Source::Estimated)), ("measured when it ran here", of(Source::Learned))];
    let said: Vec<String> = said
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(how, names)| format!("{names} {how}"))
        .collect();
    if said.is_empty() {
        String::new()
    } else {
        paragraph(" ", &format!("{}; the rest from its file.", join(said.iter(), ", ")))
    }
}
