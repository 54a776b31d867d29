//! What was: past swaps, one of them, and what was wrong.

use berth_core::report::{Outcome, PastProblem, StepState, SwapSummary};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::text::{age, clean, paragraph, took};
use super::{Column, Paint, Table, Tone, swap};

/// Past swaps, newest first.
pub(crate) fn swaps(swaps: &[SwapSummary], now: Timestamp, zone: &TimeZone, paint: Paint) -> String {
    if swaps.is_empty() {
        return "No swap is in the history yet.\n".to_owned();
    }
    let (left, right) = (Column::Left, Column::Right);
    let mut table = Table::new(0, &[right, left, Column::Wrap, Column::Wrap, left, right, left]);
    table.plain(Tone::Dim, &["", "WHEN", "WHAT", "BY", "OUTCOME", "TOOK", "LONGEST STEP"]);
    for past in swaps {
        let (tone, outcome) = outcome(past);
        table.row(vec![
            (Tone::Dim, past.id.to_string()),
            (Tone::Plain, moment(past.began_ms, Some(now), zone)),
            (Tone::Plain, swap::title(past)),
            (Tone::Plain, by(past)),
            (tone, outcome.to_owned()),
            (Tone::Plain, took(past.elapsed_ms)),
            (Tone::Plain, longest(past)),
        ]);
    }
    table.render(paint) + "More of one: berthctl history NUMBER\n"
}

/// One swap as it was shown when it ended, with when it was and who asked.
pub(crate) fn swap(past: &SwapSummary, zone: &TimeZone, paint: Paint) -> String {
    let when = moment(past.began_ms, None, zone);
    let (_, outcome) = outcome(past);
    let lead = format!("#{}  {when}, by {}: {outcome} after {}", past.id, by(past), took(past.elapsed_ms));
    let lead = paint.tint(Tone::Dim, &lead) + "\n";
    match (past.outcome, &past.reason) {
        (None, Some(reason)) => {
            lead + &swap::steps(past, paint) + &paragraph("", &format!("CUT OFF: {}", clean(reason)))
        }
        // What would undo it then would undo another by now.
        _ => lead + &swap::whole(&SwapSummary { undo: None, ..past.clone() }, paint),
    }
}

/// What was wrong, newest first.
pub(crate) fn problems(problems: &[PastProblem], zone: &TimeZone, paint: Paint) -> String {
    if problems.is_empty() {
        return "No problem is in the history.\n".to_owned();
    }
    let mut out = String::new();
    for past in problems {
        let since_ms = past.problem.since_ms;
        let (tone, until) = match past.ended_ms {
            Some(ended_ms) => (Tone::Plain, format!("for {}", age(ended_ms.saturating_sub(since_ms)))),
            None => (Tone::Bad, "still".to_owned()),
        };
        let lead = format!("{}  {until}  {}", moment(since_ms, None, zone), clean(&past.problem.code));
        out.push_str(&(paint.tint(tone, &lead) + "\n"));
        out.push_str(&paragraph("  ", &clean(&past.problem.text)));
        if past.ended_ms.is_none() {
            out.push_str(&paragraph("  Next: ", &clean(&past.problem.next)));
        }
    }
    out
}

fn by(past: &SwapSummary) -> String {
    past.by.as_ref().map_or_else(|| "berthd".to_owned(), |actor| clean(&actor.user))
}

fn outcome(past: &SwapSummary) -> (Tone, &'static str) {
    match past.outcome {
        Some(Outcome::Done) => (Tone::Good, "done"),
        Some(Outcome::Restored) => (Tone::Bad, "restored"),
        Some(Outcome::Degraded) => (Tone::Bad, "degraded"),
        None if past.reason.is_some() => (Tone::Warn, "cut off"),
        None => (Tone::Warn, "under way"),
    }
}

/// The step that took longest: `ready 55.2 s`.
fn longest(past: &SwapSummary) -> String {
    let steps = past.steps.iter().filter(|step| step.state != StepState::Skipped);
    steps.max_by_key(|step| step.elapsed_ms).map_or_else(
        || "-".to_owned(),
        |step| {
            let label =
                if step.state == StepState::Done { step.step.as_str() } else { swap::noun(step.step) };
            format!("{label} {}", took(step.elapsed_ms))
        },
    )
}

/// A moment to the minute; in a table, which has little room, without the year, or as a day where it is longer ago.
fn moment(at_ms: u64, now: Option<Timestamp>, zone: &TimeZone) -> String {
    let at = i64::try_from(at_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let Some(at) = at else { return "-".to_owned() };
    let form = match now {
        None => "%Y-%m-%d %H:%M",
        Some(now) if now.duration_since(at).as_hours() < 300 * 24 => "%m-%d %H:%M",
        Some(_) => "%Y-%m-%d",
    };
    at.to_zoned(zone.clone()).strftime(form).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::examples::{DAY, NOW, degraded, problem, restored, switched, under_way};
    use super::super::{PLAIN, WIDTH};
    use super::*;

    fn shown(text: String) -> String {
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        text
    }

    fn now() -> Timestamp {
        Timestamp::from_millisecond(NOW.try_into().unwrap()).unwrap()
    }

    fn cut_off() -> SwapSummary {
        let reason = "it was cut off by the end of berthd; the next one went on from there by looking";
        SwapSummary { id: 15, reason: Some(reason.into()), ..under_way() }
    }

    #[test]
    fn past_swaps_are_a_table() {
        let long = "frank.of.the.long.name";
        let mut odd = switched();
        odd.by.as_mut().unwrap().user = long.into();
        odd.stops = ["aeon", "embedder"].map(|name| name.parse().unwrap()).into();
        odd.starts = vec!["genesis:ctx=16384,kv=q8_0".parse().unwrap()];
        let all = [
            SwapSummary { id: 16, ..under_way() },
            cut_off(),
            SwapSummary { id: 14, by: None, ..degraded() },
            restored(),
            odd,
            SwapSummary {
                id: 3,
                began_ms: NOW - 400 * DAY,
                elapsed_ms: 3_700_000,
                steps: Vec::new(),
                ..switched()
            },
        ];
        insta::assert_snapshot!(shown(swaps(&all, now(), &TimeZone::UTC, PLAIN)));
        insta::assert_snapshot!(swaps(&[], now(), &TimeZone::UTC, PLAIN));
    }

    #[test]
    fn one_swap_is_shown_with_its_steps() {
        let all = [switched(), restored(), cut_off()].map(|past| swap(&past, &TimeZone::UTC, PLAIN));
        insta::assert_snapshot!(shown(all.join("\n")));
    }

    #[test]
    fn problems_say_until_when_and_what_to_do() {
        let gone = problem(
            "gpu_unknown",
            "GPU 1 is unknown, nothing is placed there: it is lost",
            "nvidia-smi -i 1",
        );
        let stands = problem("degraded", "genesis should serve and does not", "berthctl logs genesis");
        let all = [
            PastProblem { problem: stands, ended_ms: None },
            PastProblem { problem: gone, ended_ms: Some(NOW) },
        ];
        insta::assert_snapshot!(shown(problems(&all, &TimeZone::UTC, PLAIN)));
    }
}
