#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;

use berth_core::bytes::Bytes;
use berth_core::demand::{Parts, Source, What};
use berth_core::name::ModelName;
use berth_core::report::{Attempt, AttemptOutcome, DeviceShare, Request, Step, Verb};

use super::super::PLAIN;
use super::super::examples::name;
use super::super::text::{WIDTH, columns};
use super::*;

fn change(index: u32, needs: u64, after: &[(ModelName, Bytes)]) -> GpuChange {
    GpuChange {
        index,
        total: Bytes::mib(16311),
        unusable: Bytes::mib(456 + 256),
        foreign: if index == 0 { Bytes::mib(412) } else { Bytes::ZERO },
        foreign_by: if index == 0 { vec!["Xorg".into()] } else { Vec::new() },
        before: vec![(name("genesis"), Bytes::mib(14643))],
        after: after.to_vec(),
        needs: Bytes::mib(needs),
        available: Bytes::mib(16311 - 712 - if index == 0 { 412 } else { 0 }),
    }
}

fn refused_plan() -> PlanReport {
    PlanReport {
        schema: 1,
        request: Request { verb: Verb::Switch, model: Some("llama70b".into()), set: BTreeMap::new() },
        verdict: Verdict::Refused(Refusal {
            code: "does_not_fit".into(),
            text: "0.8 GiB short on GPU 0, 1.2 GiB on GPU 1. genesis keeps serving.".into(),
            hints: vec![
                "less memory in llama70b.toml: a smaller context, or fewer layers on the GPU".into(),
                "berthctl plan switch supergemma".into(),
            ],
        }),
        stops: vec![name("genesis")],
        starts: vec![name("llama70b")],
        gpus: vec![change(0, 15_974, &[]), change(1, 16_794, &[])],
        tried: Vec::new(),
        steps: Vec::new(),
    }
}

fn going() -> PlanReport {
    let after = [(name("aeon"), Bytes::mib(14_500))];
    let step = |step, model: Option<&str>, ms| StepForecast { step, model: model.map(name), expected_ms: ms };
    PlanReport {
        request: Request { verb: Verb::Switch, model: Some("aeon".into()), set: BTreeMap::new() },
        verdict: Verdict::Go,
        starts: vec![name("aeon")],
        gpus: vec![change(0, 14_500, &after), change(1, 14_500, &after)],
        steps: vec![
            step(Step::Checked, None, Some(20)),
            step(Step::Stopped, Some("genesis"), Some(2_200)),
            step(Step::Released, None, Some(2_500)),
            step(Step::Ready, Some("aeon"), Some(58_000)),
        ],
        ..refused_plan()
    }
}

fn shown(text: String) -> String {
    for line in text.lines() {
        assert!(columns(line) <= WIDTH, "{} columns: {line}", columns(line));
    }
    text
}

#[test]
fn a_refusal_says_what_is_short_where_and_what_to_try() {
    insta::assert_snapshot!(shown(plan(&refused_plan(), PLAIN)));
}

#[test]
fn a_plan_says_what_would_be_stopped_and_how_long_it_takes() {
    insta::assert_snapshot!(shown(plan(&going(), PLAIN)));
}

#[test]
fn without_history_no_time_is_made_up() {
    let mut plan_without = going();
    plan_without.steps[3].expected_ms = None;
    let text = plan(&plan_without, PLAIN);
    assert!(!text.lines().next().unwrap().contains("about"), "{text}");
}

#[test]
fn nothing_to_do_is_said() {
    let plan_of_nothing = PlanReport {
        verdict: Verdict::Nothing { text: "genesis serves as `default` already.".into() },
        ..going()
    };
    assert_eq!(plan(&plan_of_nothing, PLAIN), "Nothing to do: genesis serves as `default` already.\n");
}

#[test]
fn a_refusal_without_a_shortage_has_no_table() {
    let mut busy = ApiProblem {
        status: 409,
        code: "busy".into(),
        title: "aeon -> genesis (number 12, by frank) is under way.".into(),
        hints: vec!["berthctl status --watch".into()],
        plan: None,
    };
    let without = shown(problem(&busy, PLAIN));
    insta::assert_snapshot!(without);
    let mut fits = refused_plan();
    fits.gpus.iter_mut().for_each(|gpu| gpu.needs = Bytes::mib(100));
    busy.plan = Some(fits);
    assert!(!problem(&busy, PLAIN).contains("short by"));
}

#[test]
fn a_plan_shows_what_was_tried_and_what_each_device_needs_by_part() {
    let share = |gpu, needs, available| {
        let mut parts = Parts::default();
        parts.add(What::Weights, Bytes::mib(needs - 1700), Source::Exact);
        parts.add(What::KvGlobal, Bytes::mib(900), Source::Exact);
        parts.add(What::Compute, Bytes::mib(800), Source::Learned);
        DeviceShare { gpu, needs: Bytes::mib(needs), available: Some(Bytes::mib(available)), parts }
    };
    let attempt = |way: &str, needs, outcome| Attempt {
        way: way.to_owned(),
        devices: vec![share(Some(0), needs, 14_967), share(None, 3412, 27_752)],
        outcome,
    };
    let short = |mib| AttemptOutcome::Short { by: Bytes::mib(mib), text: "short".into() };
    let tried = vec![
        attempt("whole on GPU 0", 17_403, short(2436)),
        attempt("the experts of 5 layers (25-29) on the CPU, the rest on GPU 0", 15_198, short(231)),
        attempt(
            "the experts of 6 layers (24-29) on the CPU, the rest on GPU 0",
            14_744,
            AttemptOutcome::Fits { spare: Bytes::mib(222) },
        ),
    ];
    insta::assert_snapshot!(shown(plan(&PlanReport { tried, ..going() }, PLAIN)));
}
