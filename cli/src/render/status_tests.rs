#![allow(clippy::unwrap_used)]
use super::super::PLAIN;
use super::super::examples::{DAY, NOW, degraded, gpu, model, name, problem, tower, under_way};
use super::super::text::{WIDTH, clean, columns};
use super::*;

fn shown(value: &Status) -> String {
    let text = status(value, PLAIN);
    for line in text.lines() {
        assert!(columns(line) <= WIDTH, "{} columns: {line}", columns(line));
        assert_eq!(line, line.trim_end(), "blanks at the end");
    }
    let painted: Vec<String> = status(value, Paint { color: true }).lines().map(clean).collect();
    assert_eq!(painted, text.lines().collect::<Vec<_>>());
    text
}

#[test]
fn two_gpus_and_a_model_that_serves() {
    insta::assert_snapshot!(shown(&tower()));
}

#[test]
fn a_swap_that_waits_for_memory() {
    let mut tower = tower();
    tower.swap = Some(under_way());
    tower.default = None;
    tower.models[0].state = ModelState::Stopping;
    tower.models[1].state = ModelState::Loading;
    tower.gpus = Known::Value(vec![gpu(0, &[]), gpu(1, &[("aeon", true, 3174)])]);
    insta::assert_snapshot!(shown(&tower));
}

#[test]
fn a_guest_says_who_asked_and_what_comes_after_it() {
    let mut tower = tower();
    tower.default = Some(name("genesis"));
    tower.home = vec![name("genesis")];
    tower.models[0].state = ModelState::Off;
    tower.models[1].state = ModelState::Serving;
    tower.models[1].guest = Some(GuestStatus { cause: "10.10.10.2".to_owned(), idle_ms: 600_000 });
    insta::assert_snapshot!(shown(&tower));
}

#[test]
fn a_gpu_that_is_lost_is_unknown_and_never_nought() {
    let mut tower = tower();
    let mut gpus = tower.gpus.value().unwrap().clone();
    gpus[1].memory =
        Known::Unknown("GPU is lost: it does not answer on its bus (Xid 79 in the kernel log)".into());
    gpus[1].holders = Known::Unknown("GPU is lost".into());
    gpus[0].holders = Known::Unknown("this driver gives no process lists".into());
    tower.gpus = Known::Value(gpus);
    tower.problems = vec![problem(
        "gpu_unknown",
        "GPU 1 can't be read: GPU is lost. Nothing is placed on it, and genesis needs it.",
        "reboot this machine; see: journalctl -k --grep Xid",
    )];
    insta::assert_snapshot!(shown(&tower));
}

#[test]
fn a_foreign_program_is_shown_with_its_service() {
    let shown_of = |unit: Option<&str>| {
        let mut one = gpu(0, &[("llama-server", false, 3174)]);
        let Known::Value(holders) = &mut one.holders else { panic!("no holders") };
        holders[0].unit = unit.map(str::to_owned);
        let mut tower = tower();
        tower.gpus = Known::Value(vec![one]);
        // A name that is too long for its column goes on below.
        shown(&tower).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let text = shown_of(Some("aeon.service"));
    assert!(text.contains("llama-server (aeon.service) 3.1"), "{text}");
    for plain in [None, Some("session-3.scope"), Some("user@1000.service/aeon.service")] {
        let text = shown_of(plain);
        assert!(text.contains("llama-server 3.1"), "{text}");
    }
}

#[test]
fn a_suspect_gpu_is_marked() {
    let mut tower = tower();
    let mut gpus = tower.gpus.value().unwrap().clone();
    let why = "the driver reported Xid 79; see `dmesg`; it is used again in 7 s if all goes well";
    gpus[1].suspect = Some(why.into());
    tower.gpus = Known::Value(gpus);
    tower.problems = vec![problem(
        "gpu_suspect",
        &format!("GPU 1 is suspect, nothing is placed there: {why}"),
        "wait, or use it at once: berthctl device clear 1",
    )];
    insta::assert_snapshot!(shown(&tower));
}

#[test]
fn a_degraded_node_says_what_is_wrong_and_what_to_do() {
    let mut tower = tower();
    tower.default = None;
    tower.gpus = Known::Value(vec![gpu(0, &[("VLLM::Worker", false, 3174)]), gpu(1, &[])]);
    tower.models = vec![
        ModelStatus {
            last_error: Some("the memory of qwen32b was not free after 60 s on GPU 0".into()),
            ..model("genesis", ModelState::Failed)
        },
        ModelStatus {
            last_error: Some("it ran out of memory on GPU 1 while it loaded".into()),
            ..model("qwen32b", ModelState::Off)
        },
        model("aeon", ModelState::Retired),
    ];
    tower.last_swap = Some(degraded());
    tower.problems = vec![
        problem(
            "degraded",
            "genesis should serve and does not: 3.1 GiB on GPU 0 are still held by pid 5120 (VLLM::Worker).",
            "berthd goes on trying; end pid 5120 if it hangs",
        ),
        problem("memory_held", "GPU 0 holds 3.1 GiB after qwen32b ended.", "see: nvidia-smi"),
    ];
    insta::assert_snapshot!(shown(&tower));
}

#[test]
fn a_machine_without_gpus() {
    let mut beelink = tower();
    beelink.node = "beelink".into();
    beelink.gpus = Known::Value(Vec::new());
    beelink.default = Some(name("supergemma"));
    beelink.models =
        vec![ModelStatus { address: "10.10.10.2:8081".into(), ..model("supergemma", ModelState::Serving) }];
    beelink.last_swap = None;
    insta::assert_snapshot!(shown(&beelink));
}

#[test]
fn nothing_declared_and_no_nvml() {
    let mut fresh = tower();
    fresh.gpus =
        Known::Unknown("NVML: libnvidia-ml.so.1 was not found; is the NVIDIA driver installed?".into());
    fresh.host = Known::Unknown("/proc/meminfo can't be read".into());
    fresh.models = Vec::new();
    fresh.default = None;
    fresh.last_swap = None;
    fresh.uptime_ms = Some(4_000);
    insta::assert_snapshot!(shown(&fresh));
}

#[test]
fn without_a_daemon_the_gpus_are_still_shown() {
    let mut alone = tower();
    alone.uptime_ms = None;
    alone.default = None;
    alone.models = Vec::new();
    alone.last_swap = None;
    alone.problems = vec![problem(
        "berthd_not_running",
        "berthd is not running: there is no socket /run/berth/berth.sock",
        "systemctl status berthd",
    )];
    insta::assert_snapshot!(shown(&alone));
}

#[test]
fn whatever_the_names_and_sizes_it_fits_eighty_columns() {
    let mut wide = tower();
    wide.node = "n".repeat(70);
    // As long as a name may be.
    let long = format!("aa{}", "_long_name_".repeat(5));
    let held: Vec<(String, u64)> = (0..12).map(|i| (format!("program-{i}-名前"), 12_345)).collect();
    let held: Vec<(&str, bool, u64)> = held.iter().map(|(name, mib)| (name.as_str(), false, *mib)).collect();
    let mut gpus: Vec<GpuStatus> = (0..8).map(|index| gpu(index, &held)).collect();
    gpus[0].temperature_c = None;
    gpus[1].suspect = Some("why".into());
    gpus[7].power_w = Some(1200);
    wide.gpus = Known::Value(gpus);
    wide.models = vec![ModelStatus {
        gpus: (0..8).collect(),
        memory: Some(Bytes::mib(1_500_000)),
        address: "[2001:db8:1234:5678:9abc:def0:1234:5678]:18022".into(),
        short: Some(Bytes::mib(1_000_000)),
        since_ms: Some(NOW - 400 * DAY),
        requests: Requests {
            tokens_per_second: Some(123_456.7),
            last_used_ms: Some(NOW - 400 * DAY),
            ..Requests::default()
        },
        last_error: Some("e".repeat(300)),
        ..model(&long, ModelState::TooBig)
    }];
    wide.default = Some(name(&long));
    shown(&wide);
}
