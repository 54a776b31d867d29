#![allow(clippy::unwrap_used)]
use berth_core::bytes::Bytes;

use super::super::PLAIN;
use super::super::examples::{degraded, name, restored, switched, under_way};
use super::super::text::WIDTH;
use super::*;

fn shown(swap: &SwapSummary) -> String {
    let text = whole(swap, PLAIN);
    for line in text.lines() {
        assert!(columns(line) <= WIDTH, "{} columns: {line}", columns(line));
    }
    text
}

#[test]
fn a_switch_ends_with_what_it_cost() {
    insta::assert_snapshot!(shown(&switched()));
}

#[test]
fn a_failure_says_why_and_what_serves() {
    insta::assert_snapshot!(shown(&restored()));
}

#[test]
fn a_degraded_end_says_that_it_goes_on() {
    insta::assert_snapshot!(shown(&degraded()));
}

#[test]
fn a_stop_and_a_start_and_a_restart() {
    let stop = SwapSummary {
        verb: Verb::Stop,
        starts: Vec::new(),
        steps: switched().steps[3..5].to_vec(),
        cancelled: false,
        early_start_would_fail: false,
        gap_ms: None,
        serving: Vec::new(),
        default: None,
        undo: Some("berthctl start aeon".into()),
        ..switched()
    };
    let start = SwapSummary {
        verb: Verb::Start,
        stops: Vec::new(),
        starts: vec![name("embedder")],
        gpus: vec![1],
        gpu_bytes: vec![Bytes::mib(900)],
        steps: Vec::new(),
        held_at_exit: None,
        gap_ms: None,
        serving: vec![name("embedder"), name("genesis")],
        expected_ms: None,
        ..switched()
    };
    let restart =
        SwapSummary { verb: Verb::Restart, stops: vec![name("genesis")], steps: Vec::new(), ..switched() };
    insta::assert_snapshot!([stop, start, restart].map(|swap| shown(&swap)).join("\n"));
}

#[test]
fn the_step_under_way_is_one_line_with_its_time() {
    let mut swap = under_way();
    let mut step = swap.steps.pop().unwrap();
    let lines: Vec<String> =
        (0..3).map(|n| super::under_way(&step, n, 1_400 + 100 * n as u64, PLAIN)).collect();
    insta::assert_snapshot!(lines.join("\n"));
    step.detail = "word ".repeat(40);
    step.expected_ms = None;
    assert!(columns(&super::under_way(&step, 0, 7_300_000, PLAIN)) <= WIDTH);
    step.detail = "x".repeat(200);
    assert!(columns(&super::under_way(&step, 0, 7_300_000, PLAIN)) <= WIDTH);
}

#[test]
fn a_reason_is_never_lost_and_never_told_twice() {
    let without = shown(&SwapSummary { reason: None, failure: None, ..restored() });
    assert!(without.contains("FAILED: qwen32b did not start."), "{without}");
    let elsewhere = shown(&SwapSummary { reason: Some("the ledger can't be written".into()), ..restored() });
    assert!(elsewhere.contains("FAILED: the ledger can't be written"), "{elsewhere}");
    let mut stepless = restored();
    stepless.steps.clear();
    assert!(shown(&stepless).contains("FAILED: qwen32b did not start: it ran out"), "{}", shown(&stepless));
    let usual = shown(&restored());
    assert_eq!(usual.matches("ran out of GPU").count(), 1, "{usual}");
}

#[test]
fn colours_change_nothing_but_the_colour() {
    for swap in [switched(), restored(), degraded()] {
        let painted: Vec<String> = whole(&swap, Paint { color: true }).lines().map(clean).collect();
        let plain = whole(&swap, PLAIN);
        assert_eq!(painted, plain.lines().collect::<Vec<_>>());
    }
}

#[test]
fn evidence_cannot_steer_the_terminal() {
    assert!(!shown(&restored()).contains('\x1b'));
}

#[test]
fn a_default_that_does_not_serve_is_not_said_to() {
    let stop = SwapSummary {
        verb: Verb::Stop,
        stops: vec![name("aeon")],
        starts: Vec::new(),
        serving: Vec::new(),
        default: Some(name("genesis")),
        ..switched()
    };
    assert!(shown(&stop).contains("Nothing serves now."), "{}", shown(&stop));
}
