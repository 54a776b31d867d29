//! `berthctl status --markdown`: the page that people keep by hand, written from what is measured.

use std::fmt::Write as _;

use berth_core::bytes::Bytes;
use berth_core::facts::Known;
use berth_core::report::{GpuStatus, ModelStatus, Status};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::status::state;
use super::text::{clean, gib, gpus};

/// All of it, by the clock of this time zone.
pub(crate) fn page(status: &Status, zone: &TimeZone) -> String {
    let at = i64::try_from(status.at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let at = at.map(|at| at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string());
    let mut out = format!("# {}\n\nMeasured {}.", cell(&status.node), at.unwrap_or_default());
    match (&status.default, status.uptime_ms) {
        (_, None) => out.push_str(" berthd does not answer."),
        (Some(model), _) => _ = write!(out, " Clients of `default` get {model}."),
        (None, _) => {}
    }
    out.push_str("\n\n## Problems\n\n");
    if status.problems.is_empty() {
        out.push_str("None.\n");
    }
    for problem in &status.problems {
        let next =
            if problem.next.is_empty() { String::new() } else { format!(" Next: {}", text(&problem.next)) };
        // Writing to a String cannot fail.
        _ = writeln!(out, "- {}{next}", text(&problem.text));
    }
    out.push_str("\n## Memory\n\n| device | in use | of | who |\n|---|---|---|---|\n");
    match &status.gpus {
        Known::Value(gpus) => gpus.iter().for_each(|gpu| out.push_str(&gpu_row(gpu))),
        Known::Unknown(why) => out.push_str(&row(&["GPUs", "unknown", "", &cell(why)])),
    }
    match &status.host {
        Known::Value(host) => {
            let used = host.total.less(host.available);
            out.push_str(&row(&["RAM", &size(used), &size(host.total), ""]));
        }
        Known::Unknown(why) => out.push_str(&row(&["RAM", "unknown", "", &cell(why)])),
    }
    if status.uptime_ms.is_some() {
        out.push_str("\n## Models\n\n| model | state | where | memory | speed |\n|---|---|---|---|---|\n");
        status.models.iter().for_each(|model| out.push_str(&model_row(model)));
    }
    out
}

fn gpu_row(gpu: &GpuStatus) -> String {
    let name = format!("GPU {} ({})", gpu.index, cell(&gpu.name));
    match (&gpu.memory, &gpu.holders) {
        (Known::Value(memory), holders) => {
            let held = holders.value().into_iter().flatten().map(|holder| match &holder.memory {
                Known::Value(bytes) => format!("{} {}", cell(&holder.name), size(*bytes)),
                Known::Unknown(_) => format!("{} (unknown)", cell(&holder.name)),
            });
            let held: Vec<String> = held.collect();
            let held = if holders.value().is_some() { held.join(", ") } else { "unknown".to_owned() };
            row(&[&name, &size(memory.used), &size(memory.total), &held])
        }
        (Known::Unknown(why), _) => row(&[&name, "unknown", "", &cell(why)]),
    }
}

fn model_row(model: &ModelStatus) -> String {
    let memory = model.memory.map_or_else(|| "-".to_owned(), size);
    let speed = model.requests.tokens_per_second;
    let speed = speed.map_or_else(|| "-".to_owned(), |speed| format!("{speed:.0} tok/s"));
    row(&[model.name.as_str(), state(model.state).1, &gpus(&model.gpus), &memory, &speed])
}

fn size(bytes: Bytes) -> String {
    format!("{} GiB", gib(bytes))
}

fn row(cells: &[&str]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// Text that Markdown leaves as it is, also in a table.
fn cell(said: &str) -> String {
    text(said).replace('|', "\\|")
}

fn text(said: &str) -> String {
    let special = |c: char| matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#');
    clean(said).chars().fold(String::new(), |mut out, c| {
        if special(c) {
            out.push('\\');
        }
        out.push(c);
        out
    })
}

#[cfg(test)]
mod tests {
    use berth_core::report::{Holder, ModelState};

    use super::*;
    use crate::render::examples;

    #[test]
    fn the_page_tells_what_is_measured() {
        let mut status = examples::tower();
        let mut lost = examples::gpu(1, &[]);
        lost.memory = Known::Unknown("GPU is lost | <b>".to_owned());
        let foreign = Holder {
            name: "a|b <img src=x>".to_owned(),
            ours: false,
            unit: None,
            pids: vec![7],
            memory: Known::Unknown("N/A".to_owned()),
        };
        let mut gpu = examples::gpu(0, &[("genesis", true, 14_643)]);
        if let Known::Value(holders) = &mut gpu.holders {
            holders.push(foreign);
        }
        status.gpus = Known::Value(vec![gpu, lost]);
        status.models.push(examples::model("retired", ModelState::Retired));
        insta::assert_snapshot!(page(&status, &TimeZone::UTC));
    }
}
