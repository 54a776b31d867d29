#![allow(clippy::unwrap_used)]
use berth_core::report::{ModelState, Step, StepState};

use super::super::PLAIN;
use super::super::examples::{NOW, name, problem, restored, step, switched, under_way};
use super::*;

#[test]
fn each_event_is_a_line() {
    let step = |state| What::SwapStep { swap: 12, step: step(Step::Stopped, state, Some("aeon"), 2_200, "") };
    let whats = vec![
        What::SwapBegan { swap: under_way() },
        step(StepState::Began),
        step(StepState::Done),
        step(StepState::Skipped),
        What::SwapEnded { swap: switched() },
        What::SwapEnded { swap: restored() },
        What::Model {
            model: name("genesis"),
            state: ModelState::Failed,
            text: "it ended with signal 9.".into(),
        },
        What::ProblemBegan { problem: problem("x", "genesis does not serve.", "berthctl logs genesis") },
        What::ProblemEnded { code: "x".into(), text: "genesis does not serve.".into() },
    ];
    let lines: Vec<String> = whats
        .into_iter()
        .filter_map(|what| event(&Event { schema: 1, id: 1, at_ms: NOW, what }, &TimeZone::UTC, PLAIN))
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_log_line_cannot_steer_the_terminal() {
    let line = LogLine { at_ms: NOW, text: "\x1b[2Jready".into() };
    assert_eq!(log(&line, &TimeZone::UTC, PLAIN), "11-13 02:13:20 ready");
    let line = LogLine { at_ms: u64::MAX, text: "x".into() };
    assert_eq!(log(&line, &TimeZone::UTC, PLAIN), "- x");
}
