//! Events and log lines, one line each.

use berth_core::report::{Event, LogLine, Outcome, What};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::text::{clean, took};
use super::{Paint, Tone, status, swap};

/// An event as a line; nothing for a step that only began or had nothing to do.
pub(crate) fn event(event: &Event, zone: &TimeZone, paint: Paint) -> Option<String> {
    let (tone, text) = match &event.what {
        What::SwapBegan { swap } => {
            let by = swap.by.as_ref().map_or_else(|| "berthd".to_owned(), |actor| clean(&actor.user));
            (Tone::Bold, format!("#{} {} began, by {by}", swap.id, swap::title(swap)))
        }
        What::SwapStep { swap, step } => {
            let line = swap::step(step, paint)?;
            let words: Vec<&str> = line.split_whitespace().collect();
            (Tone::Plain, format!("#{swap} {}", words.join(" ")))
        }
        What::SwapEnded { swap } => {
            let (tone, how) = match swap.outcome {
                Some(Outcome::Done) | None => (Tone::Good, "done"),
                Some(Outcome::Restored) => (Tone::Bad, "failed and restored"),
                Some(Outcome::Degraded) => (Tone::Bad, "failed and degraded"),
            };
            let why = swap.reason.as_deref().map_or_else(String::new, |why| format!(": {}", clean(why)));
            (tone, format!("#{} {} {how} after {}{why}", swap.id, swap::title(swap), took(swap.elapsed_ms)))
        }
        What::Model { model, state, text } => {
            let (tone, word) = status::state(*state);
            (tone, format!("{model} {word}: {}", clean(text)))
        }
        What::ProblemBegan { problem } => {
            (Tone::Bad, format!("problem: {} Next: {}", clean(&problem.text), clean(&problem.next)))
        }
        What::ProblemEnded { text, .. } => (Tone::Good, format!("over: {}", clean(text))),
    };
    Some(format!("{} {}", paint.tint(Tone::Dim, &moment(event.at_ms, zone)), paint.tint(tone, &text)))
}

/// A log line with its time.
pub(crate) fn log(line: &LogLine, zone: &TimeZone, paint: Paint) -> String {
    format!("{} {}", paint.tint(Tone::Dim, &moment(line.at_ms, zone)), clean(&line.text))
}

fn moment(at_ms: u64, zone: &TimeZone) -> String {
    i64::try_from(at_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| "-".to_owned(), |at| at.to_zoned(zone.clone()).strftime("%m-%d %H:%M:%S").to_string())
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
