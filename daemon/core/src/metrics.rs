//! The page for Prometheus: everything measured, in base units. What is not known has no sample; nothing stands for it.
//!
//! Labels are bounded: GPUs that were seen, models that are declared (and the few that are named by their settings), and
//! words of Berth's own. Names of programs, clients and requests are none. `docs/metrics.md` lists every metric.

mod histogram;
mod swaps;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;

use crate::bytes::Bytes;
use crate::name::ModelName;
use crate::proxy::RequestTimes;
use crate::report::{
    CODES, GpuBalance, GpuStatus, Health, HealthStatus, ModelState, ModelStatus, Requests, Severity, Status,
};

pub use histogram::Histogram;
pub use swaps::Swaps;
use text::{Labels, Page};

/// What the page is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The picture of the node.
    pub status: Status,
    /// What is wrong.
    pub health: Health,
    /// GPU memory that is kept for each model.
    pub kept: BTreeMap<ModelName, Bytes>,
    /// The swaps since berthd's start.
    pub swaps: Swaps,
    /// How long requests took, by model, since then.
    pub times: BTreeMap<ModelName, RequestTimes>,
    /// Who listens to events.
    pub listeners: u64,
}

const STATES: [(ModelState, &str); 8] = [
    (ModelState::Serving, "serving"),
    (ModelState::Loading, "loading"),
    (ModelState::Stopping, "stopping"),
    (ModelState::Off, "off"),
    (ModelState::TooBig, "too_big"),
    (ModelState::Failed, "failed"),
    (ModelState::Quarantined, "quarantined"),
    (ModelState::Retired, "retired"),
];

/// A part of a GPU's memory: its name, what it is, and how much.
type Part = (&'static str, &'static str, fn(&GpuBalance) -> Bytes);

/// The page, in Prometheus' text format.
pub fn page(measured: &Measured) -> String {
    let mut page = Page::default();
    node(&mut page, measured);
    gpus(&mut page, &measured.status);
    models(&mut page, measured);
    requests(&mut page, measured);
    swaps(&mut page, measured);
    page.finish()
}

fn node(page: &mut Page, measured: &Measured) {
    let Measured { status, health, .. } = measured;
    let version = vec![("version", status.version.clone())];
    page.gauge("berth_build_info", "The version of berthd; always 1.", one((version, 1.0)));
    let uptime = status.uptime_ms.map(|ms| (Labels::new(), seconds(ms)));
    page.gauge("berth_uptime_seconds", "How long berthd has been up.", uptime.into_iter());
    let healthy = flag(health.status == HealthStatus::Ok);
    page.gauge(
        "berth_healthy",
        "Whether everything that should serve does, as /health says.",
        one((Labels::new(), healthy)),
    );
    let problems = CODES.iter().map(|(code, severity)| {
        let severity = if *severity == Severity::Error { "error" } else { "warning" };
        let stand = health.problems.iter().filter(|concern| concern.problem.code == *code).count();
        (vec![("code", (*code).to_owned()), ("severity", severity.to_owned())], stand as f64)
    });
    page.gauge("berth_problems", "How many problems stand, by code.", problems);
    page.gauge(
        "berth_event_listeners",
        "How many listen to events.",
        one((Labels::new(), measured.listeners as f64)),
    );
    let host = |value: fn(&crate::report::HostStatus) -> Bytes| {
        status.host.value().map(|host| (Labels::new(), bytes(value(host)))).into_iter()
    };
    page.gauge("berth_host_memory_total_bytes", "The host's memory.", host(|host| host.total));
    page.gauge(
        "berth_host_memory_available_bytes",
        "The host's memory that the kernel calls available.",
        host(|host| host.available),
    );
}

fn gpus(page: &mut Page, status: &Status) {
    let gpus = || status.gpus.value().into_iter().flatten();
    page.gauge(
        "berth_gpus_known",
        "Whether the GPUs can be seen at all.",
        one((Labels::new(), flag(status.gpus.value().is_some()))),
    );
    let info = gpus().map(|gpu| {
        let labels = of_gpu(gpu).into_iter().chain([("name", gpu.name.clone())]).collect();
        (labels, 1.0)
    });
    page.gauge("berth_gpu_info", "The product name of each GPU; always 1.", info);
    let memory: [Part; 7] = [
        ("total", "Physical memory.", |memory| memory.total),
        ("reserved", "Memory that the driver keeps.", |memory| memory.reserved),
        ("used", "Memory that is allocated now.", |memory| memory.used),
        ("free", "Memory that can be allocated now.", |memory| memory.free),
        ("foreign", "Memory that others than Berth's models hold.", |memory| memory.foreign),
        ("kept", "Memory that is kept for models, whether allocated yet or not.", |memory| memory.kept),
        ("headroom", "Memory that no model is given.", |memory| memory.headroom),
    ];
    for (name, help, value) in memory {
        let known = gpus().filter_map(|gpu| Some((of_gpu(gpu), bytes(value(gpu.memory.value()?)))));
        page.gauge(&format!("berth_gpu_memory_{name}_bytes"), help, known);
    }
    let known = gpus().map(|gpu| (of_gpu(gpu), flag(gpu.memory.value().is_some())));
    page.gauge("berth_gpu_known", "Whether its memory is known; nothing is placed where it is not.", known);
    let suspect = gpus().map(|gpu| (of_gpu(gpu), flag(gpu.suspect.is_some())));
    page.gauge("berth_gpu_suspect", "Whether it misbehaved lately; nothing is placed there then.", suspect);
    let age = gpus().map(|gpu| (of_gpu(gpu), seconds(gpu.age_ms)));
    page.gauge("berth_gpu_reading_age_seconds", "How old the newest reading is.", age);
    let celsius = gpus().filter_map(|gpu| Some((of_gpu(gpu), f64::from(gpu.temperature_c?))));
    page.gauge("berth_gpu_temperature_celsius", "Its temperature.", celsius);
    let watts = gpus().filter_map(|gpu| Some((of_gpu(gpu), f64::from(gpu.power_w?))));
    page.gauge("berth_gpu_power_watts", "What it draws.", watts);
    let busy = gpus().filter_map(|gpu| Some((of_gpu(gpu), f64::from(gpu.utilization_percent?) / 100.0)));
    page.gauge("berth_gpu_utilization_ratio", "Part of the last sample period in which it computed.", busy);
}

fn models(page: &mut Page, measured: &Measured) {
    let Measured { status, kept, .. } = measured;
    let models = || status.models.iter();
    let states = models().flat_map(|model| {
        STATES.iter().map(move |(state, word)| {
            let labels = vec![("model", model.name.to_string()), ("state", (*word).to_owned())];
            (labels, flag(model.state == *state))
        })
    });
    page.gauge("berth_model_state", "1 for the state that a model is in, 0 for the others.", states);
    let desired = models().map(|model| (of(model), flag(status.home.contains(&model.name))));
    page.gauge("berth_model_desired", "Whether it is of home: operators want it to serve.", desired);
    let default = models().map(|model| (of(model), flag(status.default.as_ref() == Some(&model.name))));
    page.gauge("berth_model_default", "Whether clients of `default` get it.", default);
    let used = models().filter_map(|model| Some((of(model), bytes(model.memory?))));
    page.gauge("berth_model_memory_used_bytes", "GPU memory that it holds.", used);
    let kept = models().filter_map(|model| Some((of(model), bytes(*kept.get(&model.name)?))));
    page.gauge("berth_model_memory_expected_bytes", "GPU memory that is kept for it.", kept);
    let last = models().filter_map(|model| Some((of(model), seconds(model.requests.last_used_ms?))));
    page.gauge("berth_model_last_used_timestamp_seconds", "When an answer of it ended last.", last);
}

fn requests(page: &mut Page, measured: &Measured) {
    let Measured { status, times, .. } = measured;
    let models = || status.models.iter();
    let outcomes = models().flat_map(|model| {
        model.requests.outcomes.iter().map(|(outcome, count)| {
            (vec![("model", model.name.to_string()), ("outcome", outcome.clone())], *count as f64)
        })
    });
    page.counter("berth_requests_total", "Requests that ended, by what came of them.", outcomes);
    let count =
        |value: fn(&Requests) -> u64| models().map(move |model| (of(model), value(&model.requests) as f64));
    page.gauge("berth_requests_under_way", "Requests that it answers now.", count(|all| all.under_way));
    page.gauge("berth_requests_waiting", "Requests that wait for it.", count(|all| all.waiting));
    page.counter(
        "berth_prompt_tokens_total",
        "Tokens of what was asked, as far as servers said.",
        count(|all| all.prompt_tokens),
    );
    page.counter(
        "berth_completion_tokens_total",
        "Tokens of answers, as far as servers said.",
        count(|all| all.completion_tokens),
    );
    let seen = |pick: fn(&RequestTimes) -> &Histogram| {
        models().filter_map(move |model| Some((of(model), pick(times.get(&model.name)?))))
    };
    page.histogram(
        "berth_request_queue_seconds",
        "How long requests waited for their model.",
        seen(|times| &times.queued),
    );
    page.histogram(
        "berth_request_first_byte_seconds",
        "From then until the answer began.",
        seen(|times| &times.first_byte),
    );
    page.histogram(
        "berth_request_first_token_seconds",
        "From then until the first token of a stream.",
        seen(|times| &times.first_token),
    );
}

fn swaps(page: &mut Page, measured: &Measured) {
    let Measured { status, swaps, .. } = measured;
    let ended = swaps::VERBS.iter().flat_map(|verb| swaps::OUTCOMES.iter().map(move |end| (verb, end)));
    let ended = ended.map(|(verb, end)| {
        let (verb, end) = (swaps::verb(*verb), swaps::outcome(*end));
        let count = swaps.ended.get(&(verb, end)).copied().unwrap_or(0);
        (vec![("verb", verb.to_owned()), ("outcome", end.to_owned())], count as f64)
    });
    page.counter("berth_swaps_total", "Swaps that ended.", ended);
    page.gauge(
        "berth_swap_under_way",
        "Whether a swap is under way.",
        one((Labels::new(), flag(status.swap.is_some()))),
    );
    let steps = swaps.steps.iter().map(|(step, times)| (vec![("step", step.as_str().to_owned())], times));
    page.histogram(
        "berth_swap_step_seconds",
        "How long steps of swaps took that were done, without those of a way back.",
        steps,
    );
    page.histogram(
        "berth_swap_gap_seconds",
        "From the first stop of a swap until something served again.",
        one((Labels::new(), &swaps.gaps)),
    );
    let declared =
        |(name, _): &(&ModelName, &Histogram)| status.models.iter().any(|model| model.name == **name);
    let releases = swaps.releases.iter().filter(declared);
    page.histogram(
        "berth_release_seconds",
        "From the end of a model's last process until its GPU memory was proved free.",
        releases.map(|(model, times)| (vec![("model", model.to_string())], times)),
    );
}

fn of(model: &ModelStatus) -> Labels {
    vec![("model", model.name.to_string())]
}

/// Its index, by which people know it, and its UUID: two that were lost may have had one index.
fn of_gpu(gpu: &GpuStatus) -> Labels {
    vec![("gpu", gpu.index.to_string()), ("uuid", gpu.id.clone())]
}

fn one<T>(sample: T) -> std::iter::Once<T> {
    std::iter::once(sample)
}

fn flag(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

fn bytes(bytes: Bytes) -> f64 {
    bytes.0 as f64
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}
