//! The machines and models of the story, for the tests of rendering and of the whole program.
#![allow(clippy::unwrap_used)]

use berth_core::backend::{Failure, FailureClass};
use berth_core::bytes::Bytes;
use berth_core::facts::{Exit, Known};
use berth_core::name::ModelName;
use berth_core::report::{
    Actor, GpuBalance, GpuStatus, Holder, HostStatus, ModelState, ModelStatus, Outcome, Problem, Requests,
    Status, Step, StepReport, StepState, SwapSummary, Verb,
};

pub(crate) const NOW: u64 = 1_763_000_000_000;
pub(crate) const DAY: u64 = 86_400_000;

pub(crate) fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

pub(crate) fn gpu(index: u32, held: &[(&str, bool, u64)]) -> GpuStatus {
    let used = Bytes::mib(held.iter().map(|(_, _, mib)| mib).sum::<u64>());
    let (total, reserved) = (Bytes::mib(16311), Bytes::mib(456));
    GpuStatus {
        index,
        id: format!("GPU-5060-{index}"),
        name: "NVIDIA GeForce RTX 5060 Ti".into(),
        age_ms: 400,
        memory: Known::Value(GpuBalance {
            total,
            reserved,
            used,
            free: total.less(reserved).less(used),
            foreign: Bytes::mib(held.iter().filter(|h| !h.1).map(|h| h.2).sum::<u64>()),
            kept: Bytes::mib(held.iter().filter(|h| h.1).map(|h| h.2).sum::<u64>()),
            headroom: Bytes::mib(256),
        }),
        suspect: None,
        holders: Known::Value(
            held.iter()
                .zip(1001..)
                .map(|((name, ours, mib), pid)| Holder {
                    name: (*name).into(),
                    ours: *ours,
                    unit: None,
                    pids: vec![pid],
                    memory: Known::Value(Bytes::mib(*mib)),
                })
                .collect(),
        ),
        temperature_c: Some(52 - 3 * index.min(1)),
        power_w: Some(38 - 7 * index.min(1)),
        utilization_percent: Some(0),
    }
}

pub(crate) fn model(text: &str, state: ModelState) -> ModelStatus {
    ModelStatus {
        name: name(text),
        state,
        gpus: Vec::new(),
        memory: None,
        since_ms: Some(NOW - 2 * DAY),
        address: "127.0.0.1:8022".into(),
        aliases: Vec::new(),
        pid: None,
        to_switch_ms: None,
        short: None,
        last_error: None,
        drifted: Vec::new(),
        predecessor: None,
        stands_in_for: None,
        guest: None,
        requests: Requests::default(),
    }
}

fn used(speed: f64, ago_ms: u64) -> Requests {
    Requests { tokens_per_second: Some(speed), last_used_ms: Some(NOW - ago_ms), ..Requests::default() }
}

/// The tower with genesis on both GPUs and the other models at rest.
pub(crate) fn tower() -> Status {
    let genesis = ModelStatus {
        gpus: vec![0, 1],
        memory: Some(Bytes::mib(29286)),
        since_ms: Some(NOW - 3 * DAY),
        pid: Some(4711),
        to_switch_ms: Some(64_000),
        requests: Requests { under_way: 1, ..used(82.4, 4_000) },
        ..model("genesis", ModelState::Serving)
    };
    let aeon = ModelStatus {
        to_switch_ms: Some(64_000),
        requests: used(6.94, 50 * 3_600_000),
        ..model("aeon", ModelState::Off)
    };
    let gemma = ModelStatus { to_switch_ms: Some(19_200), ..model("supergemma", ModelState::Off) };
    let llama = ModelStatus { short: Some(Bytes::mib(1024)), ..model("llama70b", ModelState::TooBig) };
    Status {
        schema: 1,
        node: "tower".into(),
        version: "0.1.0".into(),
        at_ms: NOW,
        uptime_ms: Some(3 * DAY),
        default: Some(name("genesis")),
        home: vec![name("genesis")],
        gpus: Known::Value(vec![
            gpu(0, &[("genesis", true, 14643), ("Xorg", false, 412)]),
            gpu(1, &[("genesis", true, 14643)]),
        ]),
        host: Known::Value(HostStatus { total: Bytes::mib(31_846), available: Bytes::mib(21_810) }),
        models: vec![aeon, genesis, llama, gemma],
        swap: None,
        placements: Vec::new(),
        last_swap: Some(SwapSummary { began_ms: NOW - 3 * DAY, ..switched() }),
        problems: Vec::new(),
    }
}

pub(crate) fn problem(code: &str, text: &str, next: &str) -> Problem {
    let (code, text, next) = (code.into(), text.into(), next.into());
    Problem { code, subject: String::new(), since_ms: NOW - 300_000, text, next }
}

pub(crate) fn step(step: Step, state: StepState, model: Option<&str>, ms: u64, detail: &str) -> StepReport {
    StepReport {
        step,
        state,
        rollback: false,
        model: model.map(name),
        elapsed_ms: ms,
        expected_ms: Some(2_500),
        detail: detail.into(),
    }
}

/// aeon to genesis, as asked.
pub(crate) fn switched() -> SwapSummary {
    let done = StepState::Done;
    SwapSummary {
        id: 12,
        verb: Verb::Switch,
        model: Some(name("genesis")),
        by: Some(Actor { user: "frank".into(), uid: Some(1000), pid: Some(4242) }),
        stops: vec![name("aeon")],
        starts: vec![name("genesis")],
        gpus: vec![0, 1],
        gpu_bytes: vec![Bytes::mib(14643), Bytes::mib(14643)],
        began_ms: NOW - 60_000,
        elapsed_ms: 59_900,
        expected_ms: Some(70_000),
        steps: vec![
            step(Step::Checked, done, None, 21, "fits, 1.0 GiB to spare on GPU 0; files, port, program"),
            step(Step::Prewarmed, StepState::Skipped, None, 0, "not built yet"),
            step(Step::Drained, StepState::Skipped, None, 0, "not built yet"),
            step(Step::Stopped, done, Some("aeon"), 2_200, ""),
            step(Step::Released, done, None, 2_480, "GPU 0 after 1.31 s, GPU 1 after 2.48 s"),
            step(Step::Started, done, Some("genesis"), 30, ""),
            step(Step::Ready, done, Some("genesis"), 55_200, "weights 31 s, graphs 24 s"),
        ],
        outcome: Some(Outcome::Done),
        reason: None,
        failure: None,
        held_at_exit: Some(Bytes::mib(11_878)),
        cancelled: false,
        early_start_would_fail: true,
        gap_ms: Some(59_900),
        serving: vec![name("genesis")],
        default: Some(name("genesis")),
        undo: Some("berthctl back".into()),
    }
}

const WHY: &str = "qwen32b did not start: it ran out of GPU memory on GPU 1";

/// genesis to qwen32b, which ran out of memory: genesis came back.
pub(crate) fn restored() -> SwapSummary {
    let done = StepState::Done;
    let back = |report: StepReport| StepReport { rollback: true, ..report };
    SwapSummary {
        id: 13,
        model: Some(name("qwen32b")),
        stops: vec![name("genesis")],
        starts: vec![name("qwen32b")],
        elapsed_ms: 73_000,
        steps: vec![
            step(Step::Checked, done, None, 18, "fits, 0.9 GiB to spare on GPU 1"),
            step(Step::Stopped, done, Some("genesis"), 1_900, ""),
            step(Step::Released, done, None, 2_100, "GPU 0 after 1.02 s, GPU 1 after 2.10 s"),
            step(Step::Started, done, Some("qwen32b"), 31, ""),
            step(Step::Ready, StepState::Failed, Some("qwen32b"), 12_000, WHY),
            back(step(Step::Stopped, done, Some("qwen32b"), 0, "had ended already")),
            back(step(Step::Released, done, None, 900, "GPU 0 after 0.41 s, GPU 1 after 0.90 s")),
            back(step(Step::Restored, done, Some("genesis"), 58_000, "")),
        ],
        outcome: Some(Outcome::Restored),
        reason: Some(WHY.into()),
        failure: Some(Failure {
            class: FailureClass::OutOfMemory,
            exit: Some(Exit::Status(1)),
            line:
                "\x1b[31mERROR\x1b[0m torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.2 GiB"
                    .into(),
        }),
        undo: None,
        ..switched()
    }
}

/// The same, and genesis did not come back.
pub(crate) fn degraded() -> SwapSummary {
    let mut swap = restored();
    if let Some(last) = swap.steps.last_mut() {
        last.state = StepState::Failed;
        last.detail = "GPU 0 still holds 3.1 GiB of pid 5120 (VLLM::Worker) after 60 s".into();
    }
    let reason = "qwen32b did not start: it ran out of GPU memory on GPU 1; the way back failed too: GPU 0 still \
                  holds 3.1 GiB of pid 5120 (VLLM::Worker) after 60 s";
    swap.reason = Some(reason.into());
    SwapSummary { outcome: Some(Outcome::Degraded), serving: Vec::new(), default: None, gap_ms: None, ..swap }
}

/// aeon to genesis while it waits for memory.
pub(crate) fn under_way() -> SwapSummary {
    let mut swap = switched();
    swap.steps.truncate(5);
    let last = swap.steps.last_mut().unwrap();
    last.state = StepState::Began;
    last.elapsed_ms = 1_400;
    last.detail = "GPU 0 after 1.31 s; GPU 1 still holds 3.1 GiB".into();
    SwapSummary {
        began_ms: NOW - 3_700,
        elapsed_ms: 3_700,
        outcome: None,
        gap_ms: None,
        serving: Vec::new(),
        undo: None,
        held_at_exit: None,
        ..swap
    }
}
