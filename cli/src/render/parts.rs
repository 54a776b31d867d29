//! What a model takes on each device, by part, and the ways to place it that were tried.

use berth_core::bytes::Bytes;
use berth_core::demand::{Source, What};
use berth_core::report::{Attempt, AttemptOutcome, DeviceShare};

use super::text::{clean, gib};
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

const ROWS: [(What, &str); 9] = [
    (What::Weights, "weights"),
    (What::KvGlobal, "KV, whole context"),
    (What::KvSliding, "KV, sliding window"),
    (What::Recurrent, "recurrent state"),
    (What::Compute, "compute"),
    (What::Overhead, "overhead"),
    (What::Projector, "projector"),
    (What::Draft, "draft"),
    (What::Whole, "all of it"),
];

/// As many devices stand beside each other.
const ABREAST: usize = 4;

/// A row that says where what is available comes from.
pub(crate) struct Balance {
    pub(crate) name: &'static str,
    /// For each device; None where it is unknown.
    pub(crate) cells: Vec<Option<Bytes>>,
    pub(crate) note: String,
}

/// What is needed on each device, by part and how each is known, and what there is; nothing where no parts are known.
pub(crate) fn parts(devices: &[DeviceShare], balance: &[Balance], paint: Paint) -> String {
    if devices.iter().flat_map(|device| &device.parts.0).all(|part| part.source == Source::Declared) {
        return String::new();
    }
    let most = devices.iter().map(|device| device.needs).max().unwrap_or_default();
    // Where gibibytes would show nothing but noughts.
    let small = most < Bytes::mib(2048);
    let shown = |bytes: Bytes| {
        if small { format!("{:.1}", bytes.0 as f64 / (1u64 << 20) as f64) } else { gib(bytes) }
    };
    let some = |bytes: Bytes| if bytes == Bytes::ZERO { "-".to_owned() } else { shown(bytes) };
    let known = |bytes: Option<Bytes>| bytes.map_or("unknown".to_owned(), some);
    let mut out = String::new();
    for (chunk, devices) in devices.chunks(ABREAST).enumerate() {
        let columns = std::iter::repeat_n(Column::Right, devices.len());
        let columns: Vec<Column> = [Column::Left].into_iter().chain(columns).chain([Column::Wrap]).collect();
        let mut table = Table::new(1, &columns);
        let mut row = |tone, name: &str, cells: Vec<(Tone, String)>, note: String| {
            table
                .row([(tone, name.to_owned())].into_iter().chain(cells).chain([(Tone::Dim, note)]).collect());
        };
        let plain = |cell: &dyn Fn(&DeviceShare) -> String| -> Vec<(Tone, String)> {
            devices.iter().map(|device| (Tone::Plain, cell(device))).collect()
        };
        let heads = devices.iter().map(|device| (Tone::Dim, label(device.gpu)));
        row(Tone::Dim, if small { "MIB" } else { "GIB" }, heads.collect(), "KNOWN".to_owned());
        for (what, name) in ROWS {
            let mut sources: Vec<&str> = Vec::new();
            for part in devices.iter().flat_map(|device| &device.parts.0).filter(|part| part.what == what) {
                if !sources.contains(&source(part.source)) {
                    sources.push(source(part.source));
                }
            }
            if !sources.is_empty() {
                row(Tone::Plain, name, plain(&|device| some(device.parts.of(what))), sources.join(", "));
            }
        }
        row(Tone::Bold, "needs", plain(&|device| shown(device.needs)), String::new());
        for Balance { name, cells, note } in balance {
            let cells = cells.iter().skip(chunk * ABREAST).take(ABREAST);
            let cells = cells.map(|bytes| (Tone::Plain, known(*bytes))).collect();
            row(Tone::Dim, name, cells, note.clone());
        }
        row(Tone::Plain, "available", plain(&|device| known(device.available)), String::new());
        let rests = devices.iter().map(|device| match device.available {
            None => (Tone::Warn, "unknown".to_owned()),
            Some(available) if available < device.needs => {
                (Tone::Bad, format!("-{}", shown(device.needs.less(available))))
            }
            Some(available) => (Tone::Good, shown(available.less(device.needs))),
        });
        row(Tone::Plain, "to spare", rests.collect(), String::new());
        out.push_str(&table.render(paint));
    }
    out
}

/// A device by its short name.
pub(crate) fn label(gpu: Option<u32>) -> String {
    gpu.map_or("RAM".to_owned(), |index| format!("GPU {index}"))
}

fn source(source: Source) -> &'static str {
    match source {
        Source::Exact => "exact",
        Source::Estimated => "estimated",
        Source::Declared => "declared",
        Source::Learned => "learned",
    }
}
