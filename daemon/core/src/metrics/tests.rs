#![allow(clippy::unwrap_used)]
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::*;
use crate::facts::Known;
use crate::report::{Concern, Outcome, Problem, Step, StepReport, StepState, SwapSummary, Verb};

fn gpu(index: u32) -> GpuStatus {
    GpuStatus {
        index,
        id: format!("GPU-00000000-0000-0000-0000-00000000000{index}"),
        name: "NVIDIA GeForce RTX 5060 Ti".to_owned(),
        age_ms: 400,
        memory: Known::Value(GpuBalance {
            total: Bytes::mib(16_311),
            reserved: Bytes::mib(300),
            used: Bytes::mib(14_800),
            free: Bytes::mib(1211),
            foreign: Bytes::mib(400),
            kept: Bytes::mib(14_336),
            headroom: Bytes::mib(256),
        }),
        suspect: None,
        holders: Known::Value(Vec::new()),
        temperature_c: Some(52),
        power_w: Some(38),
        utilization_percent: Some(75),
    }
}

fn model(name: &str) -> ModelStatus {
    let outcomes = ["2xx", "4xx", "5xx", "client_gone", "queue_full", "no_room"];
    ModelStatus {
        name: name.parse().unwrap(),
        state: ModelState::Serving,
        gpus: vec![0],
        memory: Some(Bytes::mib(14_000)),
        since_ms: Some(1),
        address: "127.0.0.1:8100".to_owned(),
        aliases: Vec::new(),
        pid: Some(1),
        to_switch_ms: None,
        short: None,
        last_error: None,
        drifted: Vec::new(),
        predecessor: None,
        stands_in_for: None,
        guest: None,
        requests: Requests {
            outcomes: outcomes.iter().map(|outcome| ((*outcome).to_owned(), 7)).collect(),
            prompt_tokens: 1000,
            last_used_ms: Some(1_700_000_000_500),
            ..Requests::default()
        },
    }
}

fn swap(model: &str, outcome: Outcome, steps: &[(Step, StepState, bool, u64)]) -> SwapSummary {
    let steps = steps.iter().map(|(step, state, rollback, ms)| StepReport {
        step: *step,
        state: *state,
        rollback: *rollback,
        model: None,
        elapsed_ms: *ms,
        expected_ms: None,
        detail: String::new(),
    });
    SwapSummary {
        id: 1,
        verb: Verb::StopAll,
        model: None,
        by: None,
        stops: vec![model.parse().unwrap()],
        starts: Vec::new(),
        gpus: Vec::new(),
        gpu_bytes: Vec::new(),
        began_ms: 0,
        elapsed_ms: 5000,
        expected_ms: None,
        steps: steps.collect(),
        outcome: Some(outcome),
        reason: None,
        failure: None,
        held_at_exit: None,
        cancelled: false,
        early_start_would_fail: false,
        gap_ms: Some(61_000),
        serving: Vec::new(),
        default: None,
        undo: None,
    }
}

/// A node of so many GPUs and models, each of which was asked.
fn measured(gpus: u32, models: usize) -> Measured {
    let models: Vec<ModelStatus> = (0..models).map(|n| model(&format!("model-number-{n}"))).collect();
    let mut times = RequestTimes::default();
    times.queued.add(Duration::from_millis(3));
    let mut swaps = Swaps::default();
    for model in &models {
        let steps = [
            (Step::Stopped, StepState::Done, false, 2000),
            (Step::Released, StepState::Done, false, 3000),
            (Step::Ready, StepState::Failed, false, 60_000),
            (Step::Restored, StepState::Done, true, 60_000),
        ];
        swaps.add(&swap(model.name.as_str(), Outcome::Restored, &steps), |_| Some(2480));
    }
    let problem = Problem {
        code: "rival".to_owned(),
        subject: "aeon.service".to_owned(),
        since_ms: 0,
        text: String::new(),
        next: String::new(),
    };
    Measured {
        kept: models.iter().map(|model| (model.name.clone(), Bytes::mib(14_336))).collect(),
        times: models.iter().map(|model| (model.name.clone(), times.clone())).collect(),
        status: Status {
            schema: 1,
            node: "tower".to_owned(),
            version: "0.1.0".to_owned(),
            at_ms: 0,
            uptime_ms: Some(2500),
            default: Some("model-number-0".parse().unwrap()),
            home: vec!["model-number-0".parse().unwrap()],
            gpus: Known::Value((0..gpus).map(gpu).collect()),
            host: Known::Unknown("not read".to_owned()),
            models,
            swap: None,
            placements: Vec::new(),
            last_swap: None,
            problems: Vec::new(),
        },
        health: Health {
            schema: 1,
            status: HealthStatus::Ok,
            problems: vec![Concern { severity: Severity::Warning, problem }],
            swap: None,
        },
        swaps,
        listeners: 3,
    }
}

#[track_caller]
fn has(page: &str, line: &str) {
    assert!(page.lines().any(|one| one == line), "no {line} in {page}");
}

#[test]
fn what_is_measured_is_shown_in_base_units() {
    let page = page(&measured(2, 2));
    let gpu = "{gpu=\"1\",uuid=\"GPU-00000000-0000-0000-0000-000000000001\"}";
    has(&page, &format!("berth_gpu_memory_total_bytes{gpu} 17103323136"));
    has(&page, &format!("berth_gpu_memory_foreign_bytes{gpu} 419430400"));
    has(&page, &format!("berth_gpu_utilization_ratio{gpu} 0.75"));
    has(&page, &format!("berth_gpu_reading_age_seconds{gpu} 0.4"));
    has(&page, "berth_uptime_seconds 2.5");
    has(&page, "berth_problems{code=\"rival\",severity=\"warning\"} 1");
    has(&page, "berth_problems{code=\"degraded\",severity=\"error\"} 0");
    has(&page, "berth_model_state{model=\"model-number-1\",state=\"serving\"} 1");
    has(&page, "berth_model_state{model=\"model-number-1\",state=\"off\"} 0");
    has(&page, "berth_model_desired{model=\"model-number-1\"} 0");
    has(&page, "berth_model_memory_expected_bytes{model=\"model-number-1\"} 15032385536");
    has(&page, "berth_model_last_used_timestamp_seconds{model=\"model-number-1\"} 1700000000.5");
    has(&page, "berth_requests_total{model=\"model-number-1\",outcome=\"queue_full\"} 7");
    has(&page, "berth_request_queue_seconds_count{model=\"model-number-1\"} 1");
    has(&page, "berth_swaps_total{verb=\"stop_all\",outcome=\"restored\"} 2");
    has(&page, "berth_swaps_total{verb=\"switch\",outcome=\"done\"} 0");
    has(&page, "berth_swap_step_seconds_sum{step=\"released\"} 6");
    has(&page, "berth_swap_gap_seconds_bucket{le=\"60\"} 0");
    has(&page, "berth_release_seconds_sum{model=\"model-number-0\"} 2.48");
    has(&page, "berth_event_listeners 3");
    for step in ["ready", "restored"] {
        assert!(!page.contains(&format!("step=\"{step}\"")), "a failed one, and one of a way back");
    }
}

#[test]
fn what_is_not_known_is_absent() {
    let mut measured = measured(2, 1);
    let Known::Value(gpus) = &mut measured.status.gpus else { panic!("two GPUs") };
    gpus[1].memory = Known::Unknown("GPU is lost".to_owned());
    (gpus[1].temperature_c, gpus[1].power_w, gpus[1].utilization_percent) = (None, None, None);
    measured.status.models[0].memory = None;
    measured.status.models[0].requests.last_used_ms = None;
    measured.times.clear();
    let text = page(&measured);
    let of = |gpu: &str| text.lines().filter(|line| line.contains(&format!("{{gpu=\"{gpu}\""))).count();
    has(&text, "berth_gpu_known{gpu=\"1\",uuid=\"GPU-00000000-0000-0000-0000-000000000001\"} 0");
    assert_eq!((of("0"), of("1")), (14, 4), "info, known, suspect and age are left: {text}");
    for absent in [
        "berth_host_memory",
        "berth_model_memory_used_bytes",
        "berth_model_last_used",
        "berth_request_queue_seconds",
    ] {
        assert!(!text.contains(absent), "{absent}");
    }
    measured.status.gpus = Known::Unknown("no library".to_owned());
    let text = page(&measured);
    has(&text, "berth_gpus_known 0");
    assert!(!text.contains("berth_gpu_"), "{text}");
}

/// What a large node's page takes is printed: `--nocapture`.
#[test]
fn the_docs_list_every_metric_and_no_series_twice() {
    let mut measured = measured(8, 100);
    let host = crate::report::HostStatus { total: Bytes(2), available: Bytes(1) };
    measured.status.host = Known::Value(host);
    for times in measured.times.values_mut() {
        times.first_byte.add(Duration::from_millis(30));
        times.first_token.add(Duration::from_millis(40));
    }
    let began = Instant::now();
    let page = page(&measured);
    let took = began.elapsed();
    let series: Vec<&str> = page
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' ').map(|(series, _)| series))
        .collect();
    let distinct: BTreeSet<&&str> = series.iter().collect();
    assert_eq!(series.len(), distinct.len());
    println!("metrics: {} series, {} bytes, {took:?}", series.len(), page.len());
    let names = |text: &str, prefix: &str| -> BTreeSet<String> {
        let named = text.lines().filter_map(|line| line.strip_prefix(prefix)?.split([' ', '`']).next());
        named.map(str::to_owned).collect()
    };
    let shown = names(&page, "# TYPE ");
    let documented = names(include_str!("../../../../docs/metrics.md"), "| `");
    assert_eq!(shown, documented);
}
