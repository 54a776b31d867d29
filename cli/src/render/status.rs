//! `berthctl` and `berthctl status`: who holds the GPUs, what serves, what is wrong.

use std::fmt::Write as _;
use std::time::Duration;

use berth_core::bytes::Bytes;
use berth_core::facts::{Known, STALE};
use berth_core::name::ModelName;
use berth_core::report::{
    GpuBalance, GpuStatus, GuestStatus, Holder, ModelState, ModelStatus, Outcome, Problem, Requests, Status,
    SwapSummary,
};
use berth_observe::scope::Scope;

use super::reload::changed;
use super::text::{about, age, bar, clean, gib, gpus, join, names, paragraph, spread, took};
use super::{Column, Paint, Table, Tone, swap};

/// Use that no process accounts for is named from here on.
const NOTABLE: Bytes = Bytes::mib(100);
const BAR: usize = 20;

/// All of it.
pub(crate) fn status(status: &Status, paint: Paint) -> String {
    let mut out = head(status, paint) + "\n";
    out.push_str(&memory(status, paint));
    if status.uptime_ms.is_some() {
        out.push_str(&models(status, paint));
    }
    out.push_str(&foot(status, paint));
    out
}

fn head(status: &Status, paint: Paint) -> String {
    let up = status.uptime_ms.map_or_else(String::new, |ms| format!("up {}", age(ms)));
    let oldest = status.gpus.value().and_then(|gpus| gpus.iter().map(|gpu| gpu.age_ms).max());
    let measured = oldest.map_or_else(String::new, |ms| {
        let text = format!("measured {} ago", about(ms));
        let stale = Duration::from_millis(ms) > STALE;
        paint.tint(if stale { Tone::Warn } else { Tone::Dim }, &text)
    });
    let node = paint.tint(Tone::Bold, &status.node);
    spread(&[node, serving(status), up, measured])
}

fn serving(status: &Status) -> String {
    if status.uptime_ms.is_none() {
        return "berthd does not answer".to_owned();
    }
    let Some(name) = &status.default else {
        return match status.models.iter().filter(|model| model.state == ModelState::Serving).count() {
            0 => "nothing serves".to_owned(),
            1 => "1 model serves, none as `default`".to_owned(),
            n => format!("{n} models serve, none as `default`"),
        };
    };
    match status.models.iter().find(|model| model.name == *name) {
        Some(model) if model.state == ModelState::Serving => {
            format!("{name} serves `default` on {}", model.address)
        }
        Some(model) => match status.models.iter().find(|other| other.stands_in_for.as_ref() == Some(name)) {
            Some(other) if other.state == ModelState::Serving => {
                let word = state(model.state).1;
                format!("{} serves in place of {name} ({word}) on {}", other.name, other.address)
            }
            _ => format!("`default` is {name}: {}", state(model.state).1),
        },
        None => format!("`default` is {name}"),
    }
}

fn memory(status: &Status, paint: Paint) -> String {
    let (left, right) = (Column::Left, Column::Right);
    let mut table = Table::new(1, &[left, left, right, right, right, Column::Wrap]);
    match &status.gpus {
        Known::Value(list) if list.is_empty() => table.span(Tone::Plain, "GPUs", "none"),
        Known::Value(list) => {
            for gpu in list {
                match &gpu.memory {
                    Known::Value(balance) => table.row(gpu_row(gpu, balance)),
                    Known::Unknown(why) => unknown(&mut table, &format!("GPU {}", gpu.index), why),
                }
            }
        }
        Known::Unknown(why) => unknown(&mut table, "GPUs", why),
    }
    match &status.host {
        Known::Value(host) => {
            let used = host.total.less(host.available);
            table.plain(Tone::Plain, &["RAM".to_owned(), bar(used, host.total, BAR), of(used, host.total)]);
        }
        Known::Unknown(why) => unknown(&mut table, "RAM", why),
    }
    table.render(paint)
}

fn unknown(table: &mut Table, label: &str, why: &str) {
    table.span(Tone::Warn, label, &format!("unknown: {}", clean(why)));
}

fn gpu_row(gpu: &GpuStatus, balance: &GpuBalance) -> Vec<(Tone, String)> {
    let tone = if balance.free.0 < balance.total.0 / 50 { Tone::Warn } else { Tone::Plain };
    let celsius = gpu.temperature_c.map_or_else(String::new, |c| format!("{c} C"));
    let watts = gpu.power_w.map_or_else(String::new, |w| format!("{w} W"));
    vec![
        match gpu.suspect {
            Some(_) => (Tone::Warn, format!("GPU {} suspect", gpu.index)),
            None => (Tone::Plain, format!("GPU {}", gpu.index)),
        },
        (tone, bar(balance.used, balance.total, BAR)),
        (tone, of(balance.used, balance.total)),
        (Tone::Plain, celsius),
        (Tone::Plain, watts),
        (Tone::Plain, holders(gpu, balance)),
    ]
}

fn of(used: Bytes, total: Bytes) -> String {
    format!("{}/{} GiB", gib(used), gib(total))
}

fn holders(gpu: &GpuStatus, balance: &GpuBalance) -> String {
    let list = match &gpu.holders {
        Known::Value(list) => list,
        Known::Unknown(why) => return format!("holders unknown: {}", clean(why)),
    };
    let mut parts: Vec<String> = list.iter().map(holder).collect();
    // Only where every process says what it holds is the rest known to be nobody's.
    let listed: Option<Vec<Bytes>> = list.iter().map(|holder| holder.memory.value().copied()).collect();
    if let Some(listed) = listed {
        let rest = balance.used.less(listed.into_iter().sum());
        if rest >= NOTABLE {
            parts.push(format!("unattributed {}", gib(rest)));
        }
    }
    join(parts.iter(), " ")
}

fn holder(holder: &Holder) -> String {
    let name = clean(&holder.name);
    // A process that is gone has no name left.
    let name = match holder.pids.first() {
        Some(pid) if name.is_empty() => format!("pid {pid}"),
        _ => name,
    };
    // Of a login or a user's own systemd the program says more than the unit.
    let service = holder.unit.as_deref().filter(|unit| unit.ends_with(".service") && !unit.contains('/'));
    let name = service.map_or(name.clone(), |service| format!("{name} ({})", clean(service)));
    match &holder.memory {
        Known::Value(bytes) => format!("{name} {}", gib(*bytes)),
        Known::Unknown(_) => format!("{name} (unknown)"),
    }
}

fn models(status: &Status, paint: Paint) -> String {
    if status.models.is_empty() {
        let folder = Scope::this().config().join("models.d");
        return format!("No models are declared: put one into {}, then: berthctl check\n", folder.display());
    }
    let mut models: Vec<&ModelStatus> = status.models.iter().collect();
    models.sort_by(|a, b| (rank(a.state), &a.name).cmp(&(rank(b.state), &b.name)));
    let (left, right, wrap) = (Column::Left, Column::Right, Column::Wrap);
    let mut table = Table::new(0, &[wrap, left, wrap, right, right, left, left]);
    table.plain(Tone::Dim, &["MODEL", "STATE", "WHERE", "FOR", "SPEED", "LAST USED", "TO SWITCH"]);
    for model in models {
        let (tone, word) = state(model.state);
        let since = model.since_ms.map_or_else(|| "-".to_owned(), |at| age(status.at_ms.saturating_sub(at)));
        table.row(vec![
            (Tone::Plain, model.name.to_string()),
            (tone, word.to_owned()),
            (Tone::Plain, gpus(&model.gpus)),
            (Tone::Plain, since),
            (Tone::Plain, speed(&model.requests)),
            (Tone::Plain, last_used(&model.requests, status.at_ms)),
            (Tone::Plain, to_switch(model)),
        ]);
    }
    table.render(paint)
}

fn speed(requests: &Requests) -> String {
    match requests.tokens_per_second {
        None => "-".to_owned(),
        Some(speed) if speed < 9.95 => format!("{speed:.1} tok/s"),
        Some(speed) => format!("{speed:.0} tok/s"),
    }
}

fn last_used(requests: &Requests, at_ms: u64) -> String {
    match requests.last_used_ms {
        _ if requests.under_way > 0 => "now".to_owned(),
        Some(last) => format!("{} ago", age(at_ms.saturating_sub(last))),
        None => "-".to_owned(),
    }
}

fn to_switch(model: &ModelStatus) -> String {
    match (model.short, model.to_switch_ms) {
        (Some(short), _) => format!("{} GiB short", gib(short)),
        (None, Some(ms)) if model.state != ModelState::Serving => about(ms),
        _ => "-".to_owned(),
    }
}

/// The order in which states are listed: what matters now comes first.
fn rank(state: ModelState) -> u8 {
    match state {
        ModelState::Serving => 0,
        ModelState::Loading | ModelState::Stopping => 1,
        ModelState::Failed | ModelState::Quarantined => 2,
        ModelState::Off => 3,
        ModelState::TooBig => 4,
        ModelState::Retired => 5,
    }
}

/// A state in the words of those who run models.
pub(crate) fn state(state: ModelState) -> (Tone, &'static str) {
    match state {
        ModelState::Serving => (Tone::Good, "serving"),
        ModelState::Loading => (Tone::Warn, "loading"),
        ModelState::Stopping => (Tone::Warn, "stopping"),
        ModelState::Off => (Tone::Plain, "off"),
        ModelState::TooBig => (Tone::Dim, "too big"),
        ModelState::Failed => (Tone::Bad, "failed"),
        ModelState::Quarantined => (Tone::Bad, "quarantined"),
        ModelState::Retired => (Tone::Dim, "retired"),
    }
}

fn foot(status: &Status, paint: Paint) -> String {
    let mut out = String::new();
    for model in status.models.iter().filter(|model| model.state != ModelState::Serving) {
        if let Some(error) = &model.last_error {
            let error = clean(error);
            let said = error.starts_with(model.name.as_str());
            let text = if said { error } else { format!("{} last failed: {error}", model.name) };
            out.push_str(&paragraph("", &text));
        }
    }
    for model in status.models.iter().filter(|model| !model.drifted.is_empty()) {
        out.push_str(&paragraph("", &drifted(model)));
    }
    for model in &status.models {
        if let Some(unit) = &model.predecessor {
            out.push_str(&paragraph("", &predecessor(&model.name, &clean(unit))));
        }
        if let Some(guest) = &model.guest {
            out.push_str(&paragraph("", &self::guest(model, guest, status)));
        }
    }
    if let Some(swap) = &status.swap {
        out.push_str(&now(swap, paint));
    }
    let last = status.last_swap.as_ref().map(|swap| last(swap, status.at_ms)).unwrap_or_default();
    if status.problems.is_empty() {
        out.push_str(&paragraph("", format!("No problems. {last}").trim_end()));
        return out;
    }
    let n = status.problems.len();
    let title = if n == 1 { "1 problem:".to_owned() } else { format!("{n} problems:") };
    // Writing to a String cannot fail.
    _ = writeln!(out, "{}", paint.tint(Tone::Bad, &title));
    for problem in &status.problems {
        out.push_str(&problem_lines(problem, status));
    }
    if !last.is_empty() {
        out.push_str(&paragraph("", &last));
    }
    out
}

/// What was declared anew since a model was started.
fn drifted(model: &ModelStatus) -> String {
    let changes: Vec<String> = model.drifted.iter().map(changed).collect();
    let name = &model.name;
    format!(
        "{name} runs as it was declared before. It takes up: {} by: berthctl restart {name}",
        changes.join("; ")
    )
}

/// That a model serves as the unit that it replaces.
fn predecessor(name: &ModelName, unit: &str) -> String {
    format!(
        "{name} still runs as {unit}; from its next start on it runs as it is declared: berthctl restart {name}"
    )
}

/// Why a model serves that no operator asked for, and until when.
fn guest(model: &ModelStatus, guest: &GuestStatus, status: &Status) -> String {
    let away = |name: &&ModelName| {
        status.models.iter().any(|model| model.name == **name && model.state == ModelState::Off)
    };
    let away: Vec<ModelName> = status.home.iter().filter(away).cloned().collect();
    let then = match away.len() {
        0 => "it leaves".to_owned(),
        1 => format!("{} comes back", names(&away)),
        _ => format!("{} come back", names(&away)),
    };
    let (name, cause, idle) = (&model.name, clean(&guest.cause), about(guest.idle_ms));
    format!("{name} serves because {cause} asked for it. When nobody has for {idle}, {then}.")
}

fn problem_lines(problem: &Problem, status: &Status) -> String {
    // Without a daemon nobody knows since when.
    let since = match status.uptime_ms {
        Some(_) => format!(" (for {})", age(status.at_ms.saturating_sub(problem.since_ms))),
        None => String::new(),
    };
    let mut out = paragraph(" ! ", &format!("{}{since}", clean(&problem.text)));
    if !problem.next.is_empty() {
        out.push_str(&paragraph("   Next: ", &clean(&problem.next)));
    }
    out
}

fn now(swap: &SwapSummary, paint: Paint) -> String {
    let of = swap.expected_ms.map_or_else(String::new, |ms| format!(" of about {}", about(ms)));
    let step = swap.steps.last().map_or_else(String::new, |step| format!(", {}", swap::now(step)));
    let text = format!(
        "{}{step}, {}{of}{}. Follow: berthctl status --watch",
        swap::title(swap),
        took(swap.elapsed_ms),
        by(swap)
    );
    let shown = paragraph("Now: ", &text);
    format!("{}\n", paint.tint(Tone::Warn, shown.trim_end()))
}

fn last(swap: &SwapSummary, at_ms: u64) -> String {
    let ended = swap.began_ms + swap.elapsed_ms;
    let ago = age(at_ms.saturating_sub(ended));
    let title = swap::title(swap);
    let why = swap.reason.as_deref().map_or_else(String::new, |why| format!(": {}", clean(why)));
    let why = why.trim_end_matches('.');
    match swap.outcome {
        Some(Outcome::Restored) => {
            format!(
                "Last: {title}, {ago} ago{}, failed{why}. {} serves again.",
                by(swap),
                names(&swap.serving)
            )
        }
        Some(Outcome::Degraded) => format!("Last: {title}, {ago} ago{}, failed{why}.", by(swap)),
        Some(Outcome::Done) | None => format!("Last: {title}, {ago} ago{}.", by(swap)),
    }
}

fn by(swap: &SwapSummary) -> String {
    swap.by.as_ref().map_or_else(|| ", by berthd".to_owned(), |actor| format!(", by {}", clean(&actor.user)))
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
