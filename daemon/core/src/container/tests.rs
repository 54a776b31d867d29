#![allow(clippy::unwrap_used)]
use super::*;
use crate::backend::launch;
use crate::bytes::Bytes;
use crate::config::{SourceFile, Sources, load};
use crate::facts::DeviceId;
use crate::layout::Layout;

fn words(line: &str) -> Vec<String> {
    shell_words::split(line).unwrap()
}

fn read(line: &str) -> Result<(Container, usize), Unfit> {
    let words = words(line);
    Container::read(&words[0], &words[1..]).unwrap()
}

fn model(text: &str) -> Model {
    let file = SourceFile { path: "/etc/berth/models.d/genesis.toml".into(), text: text.to_owned() };
    let settings = load(&Sources { models: vec![file], ..Sources::default() }, "tower");
    let settings = settings.unwrap_or_else(|errors| panic!("{text}: {}", errors[0].render(false)));
    settings.models.into_values().next().unwrap()
}

fn gpus(indices: &[u32]) -> Vec<PlacedGpu> {
    let gpu =
        |index: &u32| PlacedGpu { id: DeviceId(format!("GPU-{index}")), index: *index, bytes: Bytes::mib(1) };
    indices.iter().map(gpu).collect()
}

fn line(text: &str, on: &[u32]) -> String {
    launch(&model(text), &gpus(on), &Layout::default()).argv.join(" ")
}

#[test]
fn options_are_told_from_the_image_and_the_server() {
    for (line, image, before) in [
        ("docker run a --port 1", "a", 2),
        ("docker run --rm -it=false -e A=1 -p8022:8000 -v /a:/b --gpus all x/y:z -e b", "x/y:z", 11),
        ("podman --storage-driver vfs --log-level=warn container run --init --name n -- img run", "img", 10),
        ("/usr/bin/podman run -iq -it=false -iv /a:/b img", "img", 6),
        ("docker -H unix:///run/docker.sock run img", "img", 4),
        ("docker -D -linfo -Hunix:///run/docker.sock run img", "img", 5),
    ] {
        let (container, at) = read(line).unwrap();
        assert_eq!((container.image.as_str(), at), (image, before), "{line}");
    }
    assert!(Container::read("/usr/bin/llama-server", &[]).is_none());
    let (container, _) = read(
        "docker run -p 127.0.0.1:8022:8000/TCP -p [::1]:9:9 -p 1:1/udp --env=A=b=c -e D --mount \
         type=bind,src=/m,dst=/models,ro -v cache:/c -v /m/one:/models/two:ro --gpus device=0 i",
    )
    .unwrap();
    assert_eq!(container.ports.len(), 2);
    assert_eq!(container.ports[0].host.to_string(), "127.0.0.1");
    assert_eq!(container.env, BTreeMap::from([("A".to_owned(), "b=c".to_owned())]));
    assert_eq!(container.passed, BTreeSet::from(["D".to_owned()]));
    assert_eq!(container.gpus, Gpus::Chosen);
    assert_eq!(container.outside(Path::new("/models/a.gguf")), Some("/m/a.gguf".into()));
    assert_eq!(container.outside(Path::new("/models/two/a")), Some("/m/one/a".into()), "the longest counts");
    assert_eq!(container.outside(Path::new("/modelsx/a")), None);
    assert_eq!(
        container.outside(Path::new("/c/a")),
        None,
        "a volume of docker's is no folder of the machine"
    );
    assert_eq!(container.inside(Path::new("/m/a.gguf")), Some("/models/a.gguf".into()));
    for over in
        ["-v cache:/m/b", "-v /m/b", "--tmpfs /m/b:size=1m", "--mount type=volume,dst=/m/b", "-v /c:/m/b"]
    {
        let (container, _) = read(&format!("docker run {over} -v /models:/m i")).unwrap();
        assert_ne!(container.outside(Path::new("/m/b/a")), Some("/models/b/a".into()), "{over}");
        assert_eq!(container.inside(Path::new("/models/b/a")), None, "{over} hides it");
        assert_eq!(container.inside(Path::new("/models/a")), Some("/m/a".into()), "{over}");
    }
}

#[test]
fn what_berth_could_not_see_ask_or_end_is_refused_at_its_place() {
    for (line, at, why) in [
        ("docker run -d i", 1, "in the background"),
        ("docker run -dit i", 1, "in the background"),
        ("docker run --rm -it i", 2, "no terminal"),
        ("docker run --restart unless-stopped i", 1, "past Berth"),
        ("docker run --sig-proxy=false i", 1, "told to stop"),
        ("docker run -P i", 1, "another one at each start"),
        ("docker run -p 8000 i", 1, "another one of the machine's"),
        ("docker run -p 127.0.0.1::8000 i", 1, "another one of the machine's"),
        ("docker run -p 8000-8002:8000-8002 i", 1, "several ports"),
        ("docker run -p {port}:{port} i", 1, "inside it is its own"),
        ("docker run -v ~/models:/m i", 1, "another folder"),
        ("docker run -v ./models:/m i", 1, "another folder"),
        ("docker run --mount type=bind,src=models/a,dst=/m i", 1, "another folder"),
        ("docker run --cgroup-parent x.slice i", 1, "another cgroup"),
        ("podman run --cgroups=no-conmon i", 1, "unit's cgroup"),
        ("podman run --cidfile /run/a i", 1, "next start"),
        ("podman run --pod p i", 1, "unit's cgroup"),
        ("docker run --network none i", 1, "leads to the server"),
        ("docker start vllm", 0, "made elsewhere"),
        ("docker compose up", 0, "in the background"),
        ("podman kube play a.yaml", 0, "in the background"),
        ("docker ps", 0, "runs no server"),
        ("docker", 0, "nothing to do"),
        ("docker run --rm", 0, "no image"),
        ("docker -H tcp://other run i", 0, "another machine"),
        ("docker -H=tcp://other run i", 0, "another machine"),
        ("docker -Htcp://other run i", 0, "another machine"),
        ("docker -c=other run i", 0, "another machine"),
        ("docker -Dcother run i", 0, "another machine"),
        ("docker -l info -c other run i", 2, "another machine"),
        ("podman --remote run i", 0, "another machine"),
        ("podman --url unix:///run/podman/podman.sock run i", 0, "another machine"),
        ("podman --connection=unix://a run i", 0, "another machine"),
        ("podman -cunix://a run i", 0, "another machine"),
        ("docker --context=other run i", 0, "another machine"),
    ] {
        let unfit = read(line).unwrap_err();
        assert_eq!(unfit.at, at, "{line}: {unfit:?}");
        assert!(unfit.why.contains(why), "{line}: {}", unfit.why);
        assert!(!unfit.instead.is_empty(), "{line}");
    }
    assert!(read("docker run --restart=no -d=false --sig-proxy -t=false i").is_ok());
}

#[test]
fn gpus_are_seen_however_they_are_chosen() {
    for (options, gpus) in [
        ("", Gpus::Unsaid),
        ("--gpus all", Gpus::All),
        ("--gpus=all,capabilities=utility", Gpus::All),
        ("--gpus 2", Gpus::Chosen),
        ("--gpus '\"device=0,1\"'", Gpus::Chosen),
        ("--device nvidia.com/gpu=all", Gpus::All),
        ("--device nvidia.com/gpu=0", Gpus::Chosen),
        ("--device /dev/nvidia0", Gpus::Chosen),
        ("--device /dev/kvm", Gpus::Unsaid),
        ("--runtime=nvidia -e NVIDIA_VISIBLE_DEVICES=1", Gpus::Chosen),
        ("-e NVIDIA_VISIBLE_DEVICES=all --runtime nvidia", Gpus::All),
        ("-e NVIDIA_VISIBLE_DEVICES=1", Gpus::Unsaid),
    ] {
        let line = format!("docker run {options} -p 8022:8000 vllm/vllm-openai --model a/b");
        assert_eq!(read(&line).unwrap().0.gpus, gpus, "{options}");
    }
    let text = "cmd = \"docker run --runtime=nvidia -p 8022:8000 vllm/vllm-openai --model a/b\"\n";
    let declared = text.to_owned() + "env = { NVIDIA_VISIBLE_DEVICES = \"0\" }";
    assert_eq!(model(text).container.unwrap().gpus, Gpus::Unsaid);
    assert_eq!(model(&declared).container.unwrap().gpus, Gpus::Chosen);
}

#[test]
fn options_are_dropped_however_they_are_written() {
    let drop = |name: &str, value: Option<&str>| {
        ["--detach", "--tty", "--restart", "--name"].contains(&name) && value != Some("kept")
    };
    for (line, kept, dropped) in [
        ("run -dit --rm i -d", "run -i --rm i -d", "-d -t"),
        ("run -d --restart always -t i", "run i", "-d --restart always -t"),
        ("run --restart=no --name kept -ti=1 i --name", "run --name kept -i=1 i --name", "--restart=no -t"),
        ("--debug run -e d=1 -d=true i", "--debug run -e d=1 i", "-d=true"),
        ("ps -d", "ps -d", ""),
    ] {
        let (left, gone) = without(&words(line), drop);
        assert_eq!((left.join(" ").as_str(), gone.join(" ").as_str()), (kept, dropped), "{line}");
    }
}

#[test]
fn the_server_is_known_by_what_is_run() {
    let kind = |line: &str| {
        let (container, at) = read(line).unwrap();
        container.kind(&words(line)[at + 1..])
    };
    assert_eq!(kind("docker run vllm/vllm-openai:v0.11.0 --model a"), BackendKind::Vllm);
    assert_eq!(kind("docker run docker.io/vllm/vllm-openai@sha256:01 --model a"), BackendKind::Vllm);
    assert_eq!(kind("docker run ghcr.io/ggml-org/llama.cpp:server-cuda -m a"), BackendKind::LlamaCpp);
    assert_eq!(kind("docker run ghcr.io/ggml-org/llama.cpp:full-cuda -m a"), BackendKind::Command);
    assert_eq!(kind("docker run --entrypoint /app/llama-server i -m a"), BackendKind::LlamaCpp);
    assert_eq!(kind("docker run i vllm serve a"), BackendKind::Vllm);
    assert_eq!(kind("docker run --entrypoint bash vllm/vllm-openai -c x"), BackendKind::Command);
    assert_eq!(kind("docker run i"), BackendKind::Command);
}

#[test]
fn docker_gets_the_model_s_slice_its_gpus_and_the_server_s_own_address() {
    let text = r#"
        cmd = "/usr/bin/docker run --gpus all --name vllm -e HF_HOME=/cache -v /models:/m -p 8022:8000 vllm/vllm-openai:v0.11.0 --model /m/genesis"
        secrets = ["HF_TOKEN"]
        env = { A = "b" }
    "#;
    let all = model(text);
    assert_eq!((all.backend, all.host.to_string().as_str(), all.port), (BackendKind::Vllm, "0.0.0.0", 8022));
    assert_eq!(all.file, Some("/models/genesis".into()));
    assert_eq!(all.args, ["--model", "/m/genesis"]);
    let started = launch(&all, &gpus(&[1]), &Layout::default());
    assert_eq!(
        started.argv.join(" "),
        "/usr/bin/docker run --rm --pull=never --label=berth.model=genesis --cgroup-parent=berth-model-genesis.slice --gpus all --name vllm -e HF_HOME=/cache \
         -v /models:/m -p 8022:8000 --env=A --env=CUDA_DEVICE_ORDER --env=CUDA_VISIBLE_DEVICES --env=HF_TOKEN \
         vllm/vllm-openai:v0.11.0 --model /m/genesis --host 0.0.0.0 --port 8000"
    );
    // Of all GPUs it is shown the one that it has.
    assert_eq!(started.env["CUDA_VISIBLE_DEVICES"], "1");
    assert!(!started.env.contains_key("HF_HOME"), "docker gets it as it is written");

    // Given two of them alone, it counts these.
    let text = "cmd = \"docker run -p 127.0.0.1:{port}:8000 vllm/vllm-openai\"\nmodel = \"Qwen/Qwen3-32B\"\nport = 8022\npolicy = \"split\"";
    let started = launch(&model(text), &gpus(&[1, 3]), &Layout::default());
    assert_eq!(
        started.argv.join(" "),
        "docker run --rm --pull=never --label=berth.model=genesis --cgroup-parent=berth-model-genesis.slice --gpus=\"device=GPU-1,GPU-3\" -p 127.0.0.1:8022:8000 \
         --env=CUDA_DEVICE_ORDER --env=CUDA_VISIBLE_DEVICES vllm/vllm-openai --model Qwen/Qwen3-32B --host 0.0.0.0 \
         --port 8000 --tensor-parallel-size 2"
    );
    assert_eq!(started.env["CUDA_VISIBLE_DEVICES"], "0,1");

    // Those that the command chooses are nobody else's to number.
    let text = "cmd = \"docker run --gpus device=1 -p 8022:8000 vllm/vllm-openai --model a/b\"";
    assert!(!line(text, &[0]).contains("CUDA"));
}

#[test]
fn podman_runs_within_the_unit_and_what_it_left_is_known_by_its_label() {
    let text = "cmd = \"podman run --network=host -v /models:/models:ro ghcr.io/ggml-org/llama.cpp:server-cuda -m /models/a.gguf\"\nport = 8022";
    let started = launch(&model(text), &gpus(&[1]), &Layout::default());
    assert_eq!(
        started.argv.join(" "),
        "podman run --rm --pull=never --label=berth.model=genesis --cgroups=split --log-driver=none --device=nvidia.com/gpu=GPU-1 --network=host -v \
         /models:/models:ro --env=CUDA_DEVICE_ORDER --env=CUDA_VISIBLE_DEVICES ghcr.io/ggml-org/llama.cpp:server-cuda -m \
         /models/a.gguf --host 127.0.0.1 --port 8022"
    );
    assert_eq!(started.env["CUDA_VISIBLE_DEVICES"], "GPU-1");
    let clear = started.clear.unwrap();
    assert_eq!(clear.find, words("podman ps --all --quiet --filter=label=berth.model=genesis"));
    assert_eq!(clear.remove, words("podman rm --force"));
    // podman 4 reads a comma as the end of what is looked for.
    let unnamed = Model { name: "genesis:ctx=1,kv=q8_0".parse().unwrap(), ..model(text) };
    let found = launch(&unnamed, &[], &Layout::default());
    let label = "berth.model=genesis:ctx=1+kv=q8_0";
    assert!(found.argv.contains(&format!("--label={label}")), "{:?}", found.argv);
    assert_eq!(found.clear.unwrap().find.last(), Some(&format!("--filter=label={label}")));
    // What bounds the server, the engine has to be told.
    let layout = Layout { cores: vec![0, 2], lock: true, host: Bytes::mib(64), ..Layout::default() };
    let started = launch(&model(text), &[], &layout);
    assert!(started.argv.contains(&"--ulimit=memlock=134217728".to_owned()), "{:?}", started.argv);
    assert_eq!((started.memlock, started.cpus), (None, vec![0, 2]));
    let docker = text.replace("podman", "docker").replace("--network=host", "-p 8022:8080");
    let started = launch(&model(&docker), &[], &layout);
    assert!(started.argv.contains(&"--cpuset-cpus=0,2".to_owned()), "{:?}", started.argv);
}

#[test]
fn a_variant_s_variables_win_over_the_container_s() {
    let text = "cmd = \"docker run -e A=old -e B=old -p 8022:8000 vllm/vllm-openai --model a/b\"\nenv = { A = \"new\" }";
    let started = launch(&model(text), &[], &Layout::default());
    assert_eq!(started.env.get("A").map(String::as_str), Some("new"));
    let line = started.argv.join(" ");
    assert!(line.contains("-e A=old -e B=old -p 8022:8000 --env=A --env=CUDA"), "{line}");
    assert!(!started.env.contains_key("B"));
}

#[test]
fn a_secret_s_value_is_on_no_command_line() {
    let text = "cmd = \"docker run -e HF_TOKEN=abc --env=API_KEY=d=e -iqeMY_SECRET=f -e A=b -p 8022:8000 vllm/vllm-openai --model a/b\"";
    let declared = model(text);
    let line = "docker run --env=HF_TOKEN --env=API_KEY -iq --env=MY_SECRET -e A=b -p 8022:8000 vllm/vllm-openai --model a/b";
    assert_eq!(crate::backend::declared_line(&declared).join(" "), line);
    let started = launch(&declared, &[], &Layout::default());
    let argv = started.argv.join(" ");
    let options = "--env=HF_TOKEN --env=API_KEY -iq --env=MY_SECRET -e A=b -p 8022:8000 --env=CUDA";
    assert!(argv.contains(options), "{argv}");
    let given = |name: &str| started.env.get(name).map(String::as_str);
    assert_eq!(
        (given("HF_TOKEN"), given("API_KEY"), given("MY_SECRET"), given("A")),
        (Some("abc"), Some("d=e"), Some("f"), None)
    );
    // One that a variant sets wins over it.
    let variant = launch(&model(&format!("{text}\nenv = {{ HF_TOKEN = \"new\" }}")), &[], &Layout::default());
    assert_eq!(variant.env["HF_TOKEN"], "new");
}

#[test]
fn which_port_is_the_server_s_has_to_be_clear() {
    let errors = |text: &str| {
        let file = SourceFile { path: "/etc/berth/models.d/genesis.toml".into(), text: text.to_owned() };
        let errors = load(&Sources { models: vec![file], ..Sources::default() }, "tower").unwrap_err();
        errors.iter().map(|error| error.render(false)).collect::<Vec<_>>().join("\n")
    };
    let vllm = |options: &str, more: &str| {
        format!("cmd = \"docker run {options} vllm/vllm-openai --model a/b {more}\"\n")
    };
    assert_eq!(model(&vllm("-p 1234:9000 -p 8022:8000", "")).port, 8022);
    assert_eq!(model(&(vllm("-p 8022:8000 -p 8023:8000", "") + "port = 8023")).port, 8023);
    // The daemon of this machine, and what the server inside asks.
    let here = vllm("-e CONTAINER_HOST=tcp://a -p 8022:8000", "")
        .replace("\"docker", "\"DOCKER_HOST=unix:///d docker");
    assert_eq!(model(&here).port, 8022);
    for (text, said) in [
        (vllm("", ""), "no port of this machine"),
        (vllm("-p 8022:8000 -p 8023:8000", ""), "several ports"),
        (vllm("-p 8022:8000", "--port 9000"), "it listens on 9000, and the published port leads to 8000"),
        (vllm("-p 8022:8000", "--host 127.0.0.1"), "is the container's own"),
        (vllm("-p 8022:8000", "") + "port = 8023", "contradict each other"),
        (vllm("-d -p 8022:8000", ""), "leave `-d` out"),
        (
            vllm("-p 8022:8000", "").replace("docker", "DOCKER_HOST=tcp://a docker"),
            "`DOCKER_HOST` may have docker",
        ),
        (vllm("-p 8022:8000", "") + "env = { DOCKER_CONTEXT = \"a\" }", "`DOCKER_CONTEXT` may have docker"),
        (
            "cmd = \"docker run -p 1:8000 vllm/vllm-openai\"\nmodel = \"/models/a\"".to_owned(),
            "mount it: `-v /models:/models:ro`",
        ),
    ] {
        let errors = errors(&text);
        assert!(errors.contains(said), "{text}: {errors}");
    }
}
