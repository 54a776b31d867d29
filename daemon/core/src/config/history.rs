//! `[history]` of berth.toml.

use std::time::Duration;

use super::History;
use super::reader::{Reader, Table, shown};
use crate::bytes::Bytes;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// As people write it back: a year has 365.25 days.
const YEAR: Duration = Duration::from_secs(31_557_600);

/// Readings of every five seconds show each step of a swap and cost next to nothing. Two weeks are what is looked back
/// at by the minute, two years show the seasons. With two GPUs all of it takes a tenth of the size.
pub(super) const DEFAULT: History = History {
    every: Duration::from_secs(5),
    samples: Duration::from_secs(14 * DAY.as_secs()),
    keep: Duration::from_secs(2 * YEAR.as_secs()),
    size: Bytes::mib(256),
};

/// Less holds nothing that is worth a look.
const SMALLEST: Bytes = Bytes::mib(8);
const LARGEST: Bytes = Bytes::mib(64 << 10);
const SIZE: &str = "a size from \"8 MiB\" to \"64 GiB\"";

/// What is declared, where it is; else what holds already.
pub(super) fn read(root: &mut Table<'_, '_>, reader: &Reader<'_>, otherwise: History) -> History {
    let Some(mut table) = root.table("history") else { return otherwise };
    let minute = Duration::from_secs(60);
    let second = Duration::from_secs(1);
    let every =
        table.duration_within("every", second..=minute, "a time from \"1 s\" to \"1 min\"", otherwise.every);
    let keep = "a time from \"1 day\" to \"10 years\"";
    let keep = table.duration_within("keep", DAY..=10 * YEAR, keep, otherwise.keep);
    let samples = "a time from \"1 h\" to \"10 years\"";
    let samples =
        table.duration_within("samples", minute * 60..=10 * YEAR, samples, otherwise.samples.min(keep));
    let mut history = History { every, samples, keep, ..otherwise };
    let size = table.parsed::<Bytes>("size", SIZE);
    table.by_default("size", otherwise.size.to_string());
    if let Some(size) = size {
        if (SMALLEST..=LARGEST).contains(size.get_ref()) {
            history.size = size.into_inner();
        } else {
            table.complain("size", SIZE, &size.span(), "");
        }
    }
    if history.samples > history.keep {
        let span = table.span("samples").unwrap_or_default();
        let message = "`history.samples` can't be longer than `history.keep`";
        let label = format!("samples are kept {}, all else {}", shown(history.samples), shown(history.keep));
        reader.error(message, &span, label);
    }
    table.finish();
    history
}
