#![allow(clippy::unwrap_used)]
use std::time::Duration;

use super::*;
use crate::facts::{DeviceId, Known};

fn words(line: &str) -> Vec<String> {
    shell_words::split(line).unwrap()
}

#[test]
fn command_lines_of_model_servers_are_known() {
    for (line, server) in [
        ("/opt/llama.cpp/build/bin/llama-server -m /models/aeon.gguf -ngl 99", "llama-server"),
        ("/opt/vllm/bin/vllm serve /models/genesis --tensor-parallel-size 2", "vllm"),
        ("/opt/vllm/bin/python -m vllm.entrypoints.openai.api_server --model /models/genesis", "vllm"),
        ("/usr/bin/python3 -u /opt/venv/bin/vllm serve /models/genesis", "vllm"),
        ("/usr/local/bin/ollama serve", "ollama"),
        ("/usr/local/bin/llama-swap --config /etc/llama-swap.yaml", "llama-swap"),
        ("/opt/sgl/bin/python3 -m sglang.launch_server --model-path /models/q", "sglang"),
        ("/opt/lmdeploy/bin/lmdeploy serve api_server /models/q", "lmdeploy"),
        ("text-generation-launcher --model-id q", "text-generation-launcher"),
        ("/opt/tabbyAPI/start.sh", "tabbyapi"),
        ("/usr/bin/python3 /opt/tabbyAPI/main.py --port 5000", "tabbyapi"),
        ("/usr/bin/bash /opt/text-generation-webui/start_linux.sh --api", "text-generation-webui"),
        ("/opt/koboldcpp-linux-x64-cuda1150 --model /models/q.gguf", "koboldcpp"),
        ("/usr/bin/python3 /opt/kobold/koboldcpp.py", "koboldcpp"),
        ("/opt/gemma-3-1b.Q6_K.llamafile --server", "llamafile"),
        ("/usr/bin/local-ai run", "local-ai"),
        ("/usr/bin/python3 -m llama_cpp.server --model /models/q.gguf", "llama_cpp"),
        ("/usr/bin/env -i CUDA_VISIBLE_DEVICES=0 /usr/bin/llama-server -m q", "llama-server"),
        ("/usr/bin/numactl --cpunodebind=0 --membind 0 llama-server -m q", "llama-server"),
        ("/usr/bin/taskset -c 0-7 /opt/vllm/bin/vllm serve q", "vllm"),
        ("/usr/bin/sudo -u frank -- /usr/local/bin/ollama serve", "ollama"),
        ("/root/.local/bin/uv run --with vllm vllm serve q", "vllm"),
        ("/opt/conda/bin/conda run -n llm --no-capture-output vllm serve q", "vllm"),
        ("/bin/bash -lc 'source /opt/venv/bin/activate && exec vllm serve q'", "vllm"),
        (
            "/bin/sh -c 'CUDA_VISIBLE_DEVICES=0 exec /usr/bin/llama-server -m q >>/var/log/q.log 2>&1'",
            "llama-server",
        ),
        ("/usr/bin/docker run --rm --gpus all -p 8000:8000 vllm/vllm-openai:v0.11.0 --model q", "vllm"),
        (
            "/usr/bin/podman run --device nvidia.com/gpu=all ghcr.io/ggml-org/llama.cpp:server-cuda -m q",
            "llama.cpp",
        ),
        (
            "/usr/bin/docker run --gpus=all -v ollama:/root/.ollama docker.io/ollama/ollama@sha256:0123",
            "ollama",
        ),
    ] {
        assert_eq!(server_of(&words(line)).as_deref(), Some(server), "{line}");
    }
}

#[test]
fn other_command_lines_are_none() {
    for line in [
        "",
        "/usr/bin/berthd",
        "/usr/sbin/sshd -D",
        "/usr/bin/nvidia-persistenced --user nvidia-persistenced --verbose",
        "/usr/bin/dcgm-exporter",
        "/usr/bin/ollama-exporter --ollama http://127.0.0.1:11434",
        "/usr/bin/journalctl -f -u ollama",
        "/usr/local/bin/backup /var/lib/ollama",
        "/opt/ollama/backup.sh",
        "/usr/bin/sudo -u vllm /usr/bin/rsync /models /backup",
        "/opt/conda/bin/conda run -n vllm /opt/report/bin/report",
        "/usr/bin/python3 -m http.server 8000",
        "/usr/bin/python3 /opt/homeassistant/main.py",
        "/usr/bin/python3",
        "/bin/sh -c 'curl -fsS http://127.0.0.1:8000/health || systemctl restart vllm'",
        "/bin/sh -c",
        "/usr/bin/docker run -v /var/lib/ollama:/data --name=ollama alpine tar c /data",
        "/usr/bin/dockerd -H fd://",
    ] {
        assert_eq!(server_of(&words(line)), None, "{line}");
    }
}

fn service(unit: &str, restart: &str, line: &str) -> Service {
    Service { unit: unit.to_owned(), restart: restart.to_owned(), commands: vec![words(line)] }
}

fn process(pid: u32, unit: Option<&str>, mib: u64) -> GpuProcess {
    GpuProcess {
        pid,
        started: Some(1),
        program: "server".to_owned(),
        memory: Known::Value(Bytes::mib(mib)),
        model: None,
        unit: unit.map(str::to_owned),
    }
}

fn gpu(processes: Vec<GpuProcess>) -> Gpu {
    Gpu {
        lost: false,
        suspect: None,
        index: 0,
        id: DeviceId("GPU-0".to_owned()),
        name: "RTX".to_owned(),
        read_at: Duration::ZERO,
        listed_at: Duration::ZERO,
        memory: Known::Unknown("not read".to_owned()),
        processes: Known::Value(processes),
        temperature_c: None,
        power_w: None,
        utilization_percent: None,
    }
}

fn units(rivals: &Rivals) -> Vec<String> {
    rivals.found().map(|rival| rival.unit).collect()
}

#[test]
fn a_rival_is_enabled_and_is_a_server_or_has_held_memory() {
    let ssh = || service("ssh.service", "on-failure", "/usr/sbin/sshd -D");
    let aeon = || service("aeon.service", "always", "/usr/bin/llama-server -m /models/aeon.gguf");
    let trainer = || service("trainer.service", "no", "/opt/trainer/bin/train");
    let ours = ["berthd.service", "berth-devices.service", "berth-model@aeon.service"]
        .map(|unit| service(unit, "always", "/usr/bin/llama-server"));
    let mut rivals = Rivals::default();
    assert_eq!(units(&rivals), [""; 0]);
    rivals.take(ours.into_iter().chain([ssh(), aeon(), trainer()]).collect());
    let found: Vec<Rival> = rivals.found().collect();
    assert_eq!(
        found,
        [Rival {
            unit: "aeon.service".to_owned(),
            text: "aeon.service is enabled for boot (Restart=always) and runs llama-server: after a reboot it would \
                   take GPU memory before Berth"
                .to_owned(),
            next: "sudo systemctl disable --now aeon.service".to_owned(),
        }]
    );

    // Too little, not enabled, of nobody.
    let little = gpu(vec![
        process(1, Some("trainer.service"), 500),
        process(2, Some("comfy.service"), 9000),
        process(3, None, 9000),
    ]);
    rivals.note(&[little.clone(), little]);
    assert_eq!(units(&rivals), ["aeon.service"]);
    // Two processes on one GPU count together, and what was held once counts after its end.
    let of_trainer = |pid| process(pid, Some("trainer.service"), 700);
    rivals.note(&[gpu(vec![of_trainer(1), of_trainer(2)])]);
    rivals.note(&[gpu(Vec::new())]);
    assert_eq!(units(&rivals), ["aeon.service", "trainer.service"]);
    let trainers = rivals.found().last().unwrap().text;
    assert!(
        trainers.starts_with("trainer.service is enabled for boot and has held 1.4 GiB of GPU memory"),
        "{trainers}"
    );

    rivals.take(vec![ssh(), trainer()]);
    assert_eq!(units(&rivals), ["trainer.service"]);
    rivals.take(vec![ssh()]);
    rivals.take(vec![ssh(), trainer()]);
    assert_eq!(units(&rivals), [""; 0], "what was disabled once begins anew");
}

#[test]
fn each_holder_has_the_command_that_ends_it() {
    let mut rivals = Rivals::default();
    let end = |rivals: &Rivals, unit| rivals.end(&[process(812, unit, 100)]);
    assert_eq!(
        end(&rivals, Some("aeon.service")),
        "sudo systemctl disable --now aeon.service",
        "not known yet"
    );
    rivals.take(vec![service("aeon.service", "always", "/usr/bin/llama-server")]);
    let container = |engine: &str| format!("{engine}-{}.scope", "0123456789abcdef".repeat(4));
    let (docker, podman) = (container("docker"), container("libpod"));
    for (unit, command) in [
        ("aeon.service", "sudo systemctl disable --now aeon.service"),
        ("trainer.service", "sudo systemctl stop trainer.service"),
        (r"a\x2db.service", r"sudo systemctl stop 'a\x2db.service'"),
        ("session-3.scope", "sudo kill 812"),
        ("user@1000.service", "sudo kill 812"),
        ("user@1000.service/init.scope", "sudo kill 812"),
        ("user@1000.service/aeon.service", "sudo systemctl --user -M 1000@ stop aeon.service"),
        (&docker, "sudo docker stop 0123456789ab"),
        (&podman, "sudo podman stop 0123456789ab"),
    ] {
        assert_eq!(end(&rivals, Some(unit)), command, "{unit}");
    }
    assert_eq!(end(&rivals, None), "sudo kill 812");
    let several = [
        process(7, None, 1),
        process(8, Some("aeon.service"), 1),
        process(9, Some("aeon.service"), 1),
        process(11, Some("session-3.scope"), 1),
        process(7, None, 1),
    ];
    assert_eq!(rivals.end(&several), "sudo systemctl disable --now aeon.service; sudo kill 7 11");
    assert_eq!(rivals.end(&[]), "");

    // Below a user's own systemd it knows what is enabled there, and no sudo is needed for it.
    let mut own = Rivals::of(Some(1000));
    own.take(vec![service("user@1000.service/aeon.service", "always", "/usr/bin/llama-server")]);
    let disable = "systemctl --user disable --now aeon.service";
    assert_eq!(own.found().next().unwrap().next, disable);
    assert_eq!(end(&own, Some("user@1000.service/aeon.service")), disable);
    assert_eq!(end(&own, Some("user@1000.service/q.service")), "systemctl --user stop q.service");
    assert_eq!(
        end(&own, Some("user@1001.service/q.service")),
        "sudo systemctl --user -M 1001@ stop q.service"
    );
    own.take(vec![service("user@1000.service/berth-model@q.service", "no", "/usr/bin/llama-server")]);
    assert_eq!(units(&own), [""; 0]);
}
