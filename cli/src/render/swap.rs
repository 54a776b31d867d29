//! A swap as it goes and what it cost: one line for each step, then how it ended.

use berth_core::name::ModelName;
use berth_core::report::{Outcome, Step, StepReport, StepState, SwapSummary, Verb};

use super::text::{about, clean, columns, gib, gpus, join, names, paragraph, spread, took, wrap};
use super::{Paint, Tone, WIDTH};

/// Where a step's text begins.
const DETAIL: usize = 13;
/// Room for a step's text; the rest of the line is for the time.
const ROOM: usize = 54;
/// What a spinner shows, one after the other.
pub(crate) const FRAMES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// What is being done, in a few words: `aeon -> genesis`.
pub(crate) fn title(swap: &SwapSummary) -> String {
    match &swap.model {
        // A model that serves already and is to come back after a boot, or to be `default`, from now on.
        Some(model) if swap.stops.is_empty() && swap.starts.is_empty() => {
            format!("{} {model}", swap.verb.as_str())
        }
        _ => moves(swap.verb, &swap.stops, &swap.starts),
    }
}

/// The same from its parts.
pub(crate) fn moves(verb: Verb, stops: &[ModelName], starts: &[ModelName]) -> String {
    let (stops, starts) = (join(stops.iter(), " + "), join(starts.iter(), " + "));
    match verb {
        // A switch to what is resident already moves only the name `default`.
        _ if stops.is_empty() && starts.is_empty() => verb.as_str().to_owned(),
        Verb::Restore if !starts.is_empty() => format!("restore {starts}"),
        _ if stops == starts => format!("restart {starts}"),
        _ if stops.is_empty() => format!("start {starts}"),
        _ if starts.is_empty() => format!("stop {stops}"),
        _ => format!("{stops} -> {starts}"),
    }
}

/// The first line: what, where, how much, about how long.
pub(crate) fn head(swap: &SwapSummary, paint: Paint) -> String {
    let place = match (swap.gpus.as_slice(), swap.gpu_bytes.as_slice()) {
        ([], _) => String::new(),
        (at, []) => gpus(at),
        (at, [only]) => format!("{}, {} GiB", gpus(at), gib(*only)),
        (at, [first, rest @ ..]) if rest.iter().all(|bytes| gib(*bytes) == gib(*first)) => {
            format!("{}, {} GiB each", gpus(at), gib(*first))
        }
        (at, all) => format!("{}, {} GiB", gpus(at), join(all.iter().map(|bytes| gib(*bytes)), " + ")),
    };
    let expected = swap.expected_ms.map_or_else(String::new, |ms| format!("about {}", about(ms)));
    spread(&[paint.tint(Tone::Bold, &title(swap)), place, expected])
}

/// What introduces the steps of the way back.
pub(crate) fn turn(paint: Paint) -> String {
    paint.tint(Tone::Warn, " going back to what served before:")
}

/// A step that ended, with its time; nothing for one that goes on or was skipped.
pub(crate) fn step(step: &StepReport, paint: Paint) -> Option<String> {
    let (mark, label) = match step.state {
        StepState::Done => (paint.tint(Tone::Good, "✓"), step.step.as_str()),
        StepState::Failed => (paint.tint(Tone::Bad, "✗"), noun(step.step)),
        StepState::Began | StepState::Skipped => return None,
    };
    Some(laid_out(&mark, label, &detail(step), &took(step.elapsed_ms)))
}

/// A step that goes on: one line of at most 80 columns that is drawn again and again.
pub(crate) fn under_way(step: &StepReport, frame: usize, elapsed_ms: u64, paint: Paint) -> String {
    let time = match step.expected_ms {
        Some(ms) => format!("{} of about {}", took(elapsed_ms), about(ms)),
        None => took(elapsed_ms),
    };
    let room = WIDTH.saturating_sub(DETAIL + 1 + columns(&time));
    let detail = detail(step);
    let mut text = wrap(&detail, room).swap_remove(0);
    if columns(&text) < columns(detail.trim()) && columns(&text) < room {
        text.push('…');
    }
    let spinner = paint.tint(Tone::Warn, FRAMES[frame % FRAMES.len()]);
    let blanks = " ".repeat(room.saturating_sub(columns(&text)) + 1);
    format!(" {spinner} {:<10}{text}{blanks}{}", doing(step.step), paint.tint(Tone::Dim, &time))
}

/// A step that goes on, as one clause: `releasing: GPU 1 still holds 3.1 GiB`.
pub(crate) fn now(step: &StepReport) -> String {
    match detail(step).as_str() {
        "" => doing(step.step).to_owned(),
        text => format!("{}: {text}", doing(step.step)),
    }
}

/// What a step says, with the model's name where it is one model's and not said yet.
pub(crate) fn detail(step: &StepReport) -> String {
    let text = clean(&step.detail);
    // These two speak of GPUs; whose they are stands in the lines around them.
    let of_gpus = matches!(step.step, Step::Checked | Step::Released);
    match &step.model {
        Some(model) if text.is_empty() => model.to_string(),
        Some(model) if !of_gpus && !text.contains(model.as_str()) => format!("{model}: {text}"),
        _ => text,
    }
}

fn laid_out(mark: &str, label: &str, detail: &str, time: &str) -> String {
    let lines = wrap(detail, ROOM);
    let (first, rest) = lines.split_first().map_or(("", &lines[..]), |(first, rest)| (first.as_str(), rest));
    let blanks = " ".repeat(ROOM.saturating_sub(columns(first)));
    let mut out = format!(" {mark} {label:<10}{first}{blanks}{time:>10}");
    for line in rest {
        out.push('\n');
        out.push_str(&" ".repeat(DETAIL));
        out.push_str(line);
    }
    out
}

/// How it ended: what it cost and how to undo it, or why it failed and what serves now.
pub(crate) fn end(swap: &SwapSummary, paint: Paint) -> String {
    let mut out = held(swap);
    match swap.outcome {
        None => {
            out.push_str(&paragraph("", &format!("{} still goes on: berthctl status --watch", title(swap))));
        }
        Some(Outcome::Done) => out.push_str(&done_lines(swap)),
        Some(Outcome::Restored) => {
            let word = if swap.cancelled { "CANCELLED: " } else { "FAILED: " };
            out.push_str(&failed_lines(swap, word, paint));
            let serving = match swap.serving.len() {
                0 => "Nothing served before, and nothing serves now.".to_owned(),
                1 => format!("{} serves again.", names(&swap.serving)),
                _ => format!("{} serve again.", names(&swap.serving)),
            };
            out.push_str(&paragraph("", &(serving + &gap(swap))));
            out.push_str(&full_log(swap));
        }
        Some(Outcome::Degraded) => {
            out.push_str(&failed_lines(swap, "FAILED and DEGRADED: ", paint));
            let serving = match swap.serving.len() {
                0 => "Nothing serves now.".to_owned(),
                1 => format!("Only {} serves now.", names(&swap.serving)),
                _ => format!("Only {} serve now.", names(&swap.serving)),
            };
            let text = format!("{serving} berthd goes on trying: berthctl status --watch");
            out.push_str(&paragraph("", &text));
            out.push_str(&full_log(swap));
        }
    }
    out
}

/// What a start without waiting for the memory would have run into.
fn held(swap: &SwapSummary) -> String {
    let Some(bytes) = swap.held_at_exit.filter(|bytes| bytes.0 > 0) else { return String::new() };
    let whose = if swap.stops.is_empty() { "the last process".to_owned() } else { names(&swap.stops) };
    let then = if swap.early_start_would_fail { ": a start then would have run out of memory" } else { "" };
    paragraph("", &format!("{} GiB were still held when {whose} exited{then}.", gib(bytes)))
}

fn done_lines(swap: &SwapSummary) -> String {
    let mut text = match (&swap.default, swap.serving.as_slice()) {
        (Some(default), serving)
            if serving.contains(default) && (swap.starts.is_empty() || swap.starts.contains(default)) =>
        {
            format!("{default} serves as `default`.")
        }
        (_, []) => "Nothing serves now.".to_owned(),
        (_, [only]) => format!("{only} serves."),
        (_, all) => format!("{} serve.", names(all)),
    };
    text.push_str(&gap(swap));
    let mut out = paragraph("", &text);
    if let Some(undo) = &swap.undo {
        out.push_str(&paragraph("Undo: ", undo));
    }
    out
}

/// For how long nobody answered; a mere stop is not meant to end that.
fn gap(swap: &SwapSummary) -> String {
    if swap.starts.is_empty() && swap.outcome == Some(Outcome::Done) {
        return String::new();
    }
    swap.gap_ms.filter(|ms| *ms > 0).map_or_else(String::new, |ms| format!(" No answers for {}.", took(ms)))
}

fn failed_lines(swap: &SwapSummary, word: &str, paint: Paint) -> String {
    let failed = swap.steps.iter().find(|step| step.state == StepState::Failed && !step.rollback);
    let reason = swap.reason.as_deref().map(clean);
    let told = failed.map(detail).unwrap_or_default();
    let text = match (&reason, failed) {
        // Its line above says why, and the same twice would only hide what follows.
        (Some(reason), Some(step)) if told.starts_with(reason.as_str()) => outcome_of(step, swap),
        (Some(reason), _) => reason.clone(),
        (None, Some(step)) => outcome_of(step, swap),
        (None, None) => "berthd gave no reason.".to_owned(),
    };
    let lines = paragraph("", &format!("{word}{text}"));
    let mut out = lines
        .strip_prefix(word)
        .map_or_else(|| lines.clone(), |rest| format!("{}{rest}", paint.tint(Tone::Bad, word)));
    if let Some(line) = evidence(swap, &format!("{told} {}", reason.unwrap_or_default())) {
        out.push_str(&paragraph("  ", &format!("\"{line}\"")));
    }
    out
}

/// What it means that this step failed.
fn outcome_of(step: &StepReport, swap: &SwapSummary) -> String {
    let whose = match (&step.model, swap.stops.as_slice()) {
        (Some(model), _) => model.to_string(),
        (None, stops) => names(stops),
    };
    match step.step {
        _ if swap.cancelled => swap.reason.as_deref().map(clean).unwrap_or_default() + ".",
        Step::Stopped => format!("{whose} did not stop."),
        Step::Released => format!("the memory of {whose} did not come back."),
        Step::Started | Step::Ready => format!("{whose} did not start."),
        other => format!("the {} failed.", noun(other)),
    }
}

/// The log line that shows the failure, unless it was quoted already.
fn evidence(swap: &SwapSummary, told: &str) -> Option<String> {
    let line = clean(swap.failure.as_ref()?.line.trim());
    (!line.is_empty() && !told.contains(&line)).then_some(line)
}

/// Where to read on: only where a model's server is what failed.
fn full_log(swap: &SwapSummary) -> String {
    if swap.cancelled {
        return String::new();
    }
    let failed = swap.steps.iter().rev().find(|step| step.state == StepState::Failed && !step.rollback);
    let started = failed.filter(|step| matches!(step.step, Step::Started | Step::Ready));
    let model = started.and_then(|step| step.model.as_ref().or(swap.model.as_ref()).or(swap.starts.first()));
    model.map_or_else(String::new, |model| format!("Full log: berthctl logs {model}\n"))
}

/// A step that goes on.
fn doing(step: Step) -> &'static str {
    match step {
        Step::Checked => "checking",
        Step::Prewarmed => "warming",
        Step::Drained => "draining",
        Step::Stopped => "stopping",
        Step::Released => "releasing",
        Step::Started => "starting",
        Step::Ready => "loading",
        Step::Restored => "restoring",
    }
}

/// A step that failed.
pub(crate) fn noun(step: Step) -> &'static str {
    match step {
        Step::Checked => "check",
        Step::Prewarmed => "prewarm",
        Step::Drained => "drain",
        Step::Stopped => "stop",
        Step::Released => "release",
        Step::Started => "start",
        Step::Ready => "load",
        Step::Restored => "restore",
    }
}

/// The whole of it: what `berthctl` has printed once a swap has ended.
pub(crate) fn whole(swap: &SwapSummary, paint: Paint) -> String {
    steps(swap, paint) + &end(swap, paint)
}

/// The first line and those of the steps that ended.
pub(crate) fn steps(swap: &SwapSummary, paint: Paint) -> String {
    let mut out = head(swap, paint) + "\n";
    let mut turned = false;
    for report in &swap.steps {
        if report.rollback && !turned {
            turned = true;
            out.push_str(&(turn(paint) + "\n"));
        }
        if let Some(line) = step(report, paint) {
            out.push_str(&(line + "\n"));
        }
    }
    out
}

/// One under way, as it stands: the steps that ended, and below them the one that goes on.
pub(crate) fn live(swap: &SwapSummary, frame: usize, paint: Paint) -> String {
    let mut out = steps(swap, paint);
    let before: u64 = swap.steps.iter().map(|step| step.elapsed_ms).sum();
    for step in swap.steps.iter().filter(|step| step.state == StepState::Began) {
        out.push_str(&(under_way(step, frame, swap.elapsed_ms.saturating_sub(before), paint) + "\n"));
    }
    out
}

#[cfg(test)]
#[path = "swap_tests.rs"]
mod tests;
