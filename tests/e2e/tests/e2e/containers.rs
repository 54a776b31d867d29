//! Models in containers, run by the real docker and podman: the server is fakellm in an image of its own, under the name of
//! llama.cpp's. What NVIDIA's container toolkit does is part of the simulated GPUs.

use std::time::Duration;

use berth_core::report::{ModelState, Outcome};
use berth_tests::{Berth, Run};

const EACH: &str = "14300MiB";
const SOON: Duration = Duration::from_secs(30);
const IMAGE: &str = "ghcr.io/ggml-org/llama.cpp:server";

/// The image's content: the server and the libraries that it is linked to.
const ROOT: &str = r#"set -eu
root=/var/lib/image && mkdir -p $root/usr/bin $root/tmp
objcopy --strip-debug /usr/bin/fakellm $root/usr/bin/fakellm
ldd /usr/bin/fakellm | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$root${library%/*}" && cp -L "$library" "$root$library"
done
tar -C $root -cf /var/lib/image.tar ."#;

/// Overlays don't go on overlays, and a kernel whose controllers are bound elsewhere counts no processes. The hook is by
/// what docker knows that the toolkit is there.
const DOCKER: &str = r#"set -eu
mkdir -p /etc/docker
echo '{"storage-driver": "vfs", "exec-opts": ["native.cgroupdriver=systemd"]}' >/etc/docker/daemon.json
printf '#!/bin/sh\n' >/usr/bin/nvidia-container-runtime-hook && chmod 755 /usr/bin/nvidia-container-runtime-hook
mkdir -p /etc/systemd/system/sandbox.target.wants
ln -s /lib/systemd/system/docker.service /etc/systemd/system/sandbox.target.wants/
systemctl daemon-reload && systemctl start docker.service
/usr/bin/docker import --change 'ENTRYPOINT ["/usr/bin/fakellm"]' /var/lib/image.tar "$0""#;

fn script(berth: &Berth, script: &str) {
    _ = berth.run_within(Duration::from_mins(2), None, &["bash", "-c", script, IMAGE]).with_code(0);
}

/// A declaration as one would write it, and the right to ask docker.
fn in_docker(berth: &Berth, name: &str, options: &str, server: &str) {
    let folder = format!("/etc/systemd/system/berth-model@{name}.service.d");
    let drop_in =
        "[Unit]\nWants=docker.service\nAfter=docker.service\n[Service]\nSupplementaryGroups=docker\n";
    berth.sandbox().write_file(&format!("{folder}/docker.conf"), drop_in).unwrap();
    let command = format!(
        "/usr/bin/docker run {options} -v /run/gpusim:/run/gpusim {IMAGE} --vram-each {EACH} {server}"
    );
    berth.declare(name, &format!("cmd = {command:?}\nmemory = {{ gpu = \"14300 MiB\" }}\n"));
}

fn declared(berth: &Berth, name: &str) -> String {
    berth.run(None, &["cat", &format!("/etc/berth/models.d/{name}.toml")]).with_code(0).stdout
}

fn containers(berth: &Berth) -> Vec<String> {
    let shown =
        berth.run(None, &["/usr/bin/docker", "ps", "-a", "--format", "{{.Names}} {{.Status}}"]).with_code(0);
    shown.stdout.lines().map(str::to_owned).collect()
}

/// Another run of a model that serves.
fn comes_back(berth: &Berth, model: &str, before: &Run) -> Run {
    berth.wait_for(&format!("{model} is back"), SOON, |berth| {
        let run = berth.run_of(model);
        let another = run.main_pid != 0 && run.invocation != before.invocation;
        (another && berth.state_of(model) == ModelState::Serving).then_some(run)
    })
}

/// The whole life of a model that docker runs: beside a bare one, through the end of its client and of berthd, with a server
/// that does not end when told to, over a container that is in the way, and over a power cut.
#[test]
fn a_model_in_docker() {
    let mut berth = Berth::builder().fake("bare", EACH, &[]).boot();
    script(&berth, ROOT);
    script(&berth, DOCKER);
    in_docker(&berth, "boxed", "--name boxed -p 127.0.0.1:8022:8080", "");
    in_docker(&berth, "stubborn", "--name stubborn -p 127.0.0.1:8023:8080 -p 9023:8080", "--ignore-sigterm");
    berth.declare("stubborn", &format!("port = 8023\n{}", declared(&berth, "stubborn")));
    _ = berth.systemctl(&["daemon-reload"]).with_code(0);
    _ = berth.ctl(&["reload"]).with_code(0);

    // Its memory is its own, its port answers, and nobody sees more than is declared.
    berth.switch("boxed");
    assert!(!berth.ask("boxed").is_empty());
    let status = berth.status();
    assert_eq!(status.problems, []);
    // Of the two cards it is given the one that it needs.
    let holders = |gpu: usize| {
        let holders = status.gpus.value().unwrap()[gpu].holders.value().unwrap();
        holders.iter().map(|holder| (holder.name.clone(), holder.ours)).collect::<Vec<_>>()
    };
    assert_eq!((holders(0), holders(1)), (vec![("boxed".to_owned(), true)], Vec::new()));
    let asked = ["/usr/bin/docker", "inspect", "--format", "{{json .HostConfig.DeviceRequests}}", "boxed"];
    let asked = berth.run(None, &asked).with_code(0).stdout;
    let cards: Vec<bool> = status.gpus.value().unwrap().iter().map(|gpu| asked.contains(&gpu.id)).collect();
    assert_eq!(cards, [true, false], "{asked}");
    let found = berth.ctl_json(&["doctor"])["findings"].to_string();
    assert!(!found.contains("boxed"), "{found}");

    // To and fro: memory is proved free each time.
    berth.gpu(&["linger", "300ms"]);
    assert_eq!(berth.switch("bare").outcome, Some(Outcome::Done));
    assert_eq!(containers(&berth), Vec::<String>::new(), "it is removed when its unit is down");
    assert_eq!(berth.switch("boxed").outcome, Some(Outcome::Done));

    // An image that is not there is not fetched while nothing serves: what served comes back at once.
    in_docker(&berth, "absent", "-p 127.0.0.1:8024:8080", "");
    let elsewhere = declared(&berth, "absent").replace(IMAGE, "nobody.invalid/nothing:1");
    berth.declare("absent", &elsewhere);
    _ = berth.systemctl(&["daemon-reload"]).with_code(0);
    _ = berth.ctl(&["reload"]).with_code(0);
    let failed = berth.ctl(&["switch", "absent"]).with_code(4).to_string();
    let said = failed.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(said.contains("No such image: nobody.invalid/nothing:1"), "{failed}");
    berth.unconfigure("models.d/absent.toml");
    _ = berth.ctl(&["reload"]).with_code(0);

    // A killed client says nothing to its container, which is ended before the model comes back.
    let before = berth.run_of("boxed");
    _ = berth.run(None, &["kill", "-KILL", &before.main_pid.to_string()]).with_code(0);
    let run = comes_back(&berth, "boxed", &before);
    assert_eq!(containers(&berth).len(), 1);

    // berthd dies alone: nothing of the model changes.
    _ = berth.systemctl(&["kill", "--signal=KILL", "berthd.service"]).with_code(0);
    berth.wait_serving("boxed", SOON);
    assert_eq!(berth.run_of("boxed"), run);
    // berthd dies, and the client while it is away, and systemd forgets its unit: the container is found.
    let _gone = berth.systemctl(&["stop", "berthd.service"]).with_code(0);
    _ = berth.run(None, &["kill", "-KILL", &run.main_pid.to_string()]).with_code(0);
    let unit = "berth-model@boxed.service";
    berth.wait_for("its client is gone", SOON, |berth| {
        (berth.property(unit, "ActiveState") == "failed").then_some(())
    });
    _ = berth.systemctl(&["reset-failed", unit]).with_code(0);
    assert_eq!(containers(&berth).len(), 1);
    _ = berth.systemctl(&["start", "berthd.service"]).with_code(0);
    _ = comes_back(&berth, "boxed", &run);

    // A server that ignores SIGTERM is killed at the deadline, and its name is free at once.
    berth.switch("stubborn");
    berth.wait_for("its other port is seen", SOON, |berth| {
        let problems = berth.status().problems;
        problems
            .iter()
            .any(|problem| problem.code == "exposed" && problem.text.contains("0.0.0.0:9023"))
            .then_some(())
    });
    let swap = berth.switch("bare");
    assert_eq!(swap.outcome, Some(Outcome::Done), "{swap:?}");
    assert_eq!(containers(&berth), Vec::<String>::new());
    berth.switch("stubborn");
    _ = berth.change(&["restart", "stubborn"]).with_code(0);
    // berthd dies while it waits for that: whatever it finds, one of the two serves in the end.
    _ = berth.change(&["switch", "bare", "--no-wait"]).with_code(0);
    berth.wait_for("stubborn is told to stop", SOON, |berth| {
        (berth.property("berth-model@stubborn.service", "ActiveState") == "deactivating").then_some(())
    });
    _ = berth.systemctl(&["kill", "--signal=KILL", "berthd.service"]).with_code(0);
    berth.wait_for("one of them serves", SOON, |berth| {
        let status = berth.run(None, &["berthctl", "status", "--json"]);
        (status.code == 0 && berth.status().swap.is_none() && berth.serving().len() == 1).then_some(())
    });
    berth.switch("bare");
    assert_eq!(containers(&berth), Vec::<String>::new());

    // One that nobody remembers runs in its place and takes its memory: it is ended, and the model has its room.
    _ = berth.change(&["stop", "bare"]).with_code(0);
    let free = &berth.status().gpus.value().unwrap()[0].id.clone();
    let astray = format!(
        "/usr/bin/docker run --detach --rm --cgroup-parent=berth-model-boxed.slice -v /run/gpusim:/run/gpusim \
         --gpus device={free} {IMAGE} --port=9999 --vram-each {EACH}"
    );
    _ = berth.run(None, &astray.split(' ').collect::<Vec<_>>()).with_code(0);
    assert_eq!(containers(&berth).len(), 1);
    berth.wait_for("it is ended", SOON, |berth| containers(berth).is_empty().then_some(()));
    berth.switch("boxed");
    assert_eq!(containers(&berth).len(), 1);
    berth.switch("bare");

    // docker is still at the start when its client is killed: nothing is taken for free until the container came and went.
    let containerd = |signal: &str| {
        _ = berth.systemctl(&["kill", &format!("--signal={signal}"), "containerd.service"]).with_code(0);
    };
    containerd("STOP");
    _ = berth.change(&["switch", "boxed", "--no-wait"]).with_code(0);
    berth.wait_for("docker is asked to start it", SOON, |berth| {
        containers(berth).contains(&"boxed Created".to_owned()).then_some(())
    });
    let client = berth.run_of("boxed").main_pid.to_string();
    _ = berth.run(None, &["kill", "-KILL", &client]).with_code(0);
    berth.wait_for("it is said", SOON, |berth| {
        let reason = berth.status().last_swap?.reason?;
        reason.contains("docker may still start its container").then_some(())
    });
    assert_eq!(berth.state_of("boxed"), ModelState::Stopping);
    containerd("CONT");
    berth.wait_for("it came and went", SOON, |berth| {
        (containers(berth).is_empty() && berth.state_of("boxed") == ModelState::Off).then_some(())
    });
    berth.wait_serving("bare", SOON);

    // One that an earlier run left has the name.
    let left = ["/usr/bin/docker", "create", "--name", "boxed", "--label", "berth.model=boxed", IMAGE];
    _ = berth.run(None, &left).with_code(0);
    berth.switch("boxed");

    berth.cut();
    berth.boot();
    berth.wait_serving("boxed", SOON);
    assert!(!berth.ask("boxed").is_empty());
    assert_eq!(containers(&berth).len(), 1);
    berth.assert_no_failed_allocation();
}

/// Where the toolkit says what each GPU brings into a container, as `nvidia-ctk cdi generate` writes it.
const PODMAN: &str = r#"set -eu
mkdir -p /etc/containers /etc/cdi
printf '[containers]\npids_limit = 0\n[engine]\nruntime = "runc"\n' >/etc/containers/containers.conf
printf '[storage]\ndriver = "vfs"\nrunroot = "/run/containers/storage"\ngraphroot = "/var/lib/containers/storage"\n' >/etc/containers/storage.conf
"#;

/// A rootless container's namespace may have no more of /proc than is seen in full somewhere, which in a guest it is not; and
/// podman keeps that namespace with a process of the user's session, which a guest without one has here.
const ROOTLESS: &str = r"set -eu
mkdir -p /run/proc /home/frank && mount -t proc -o nosuid,nodev,noexec proc /run/proc && chown frank: /home/frank
echo frank:100000:65536 | tee /etc/subuid >/etc/subgid
mkdir -p /dev/net && { [ -e /dev/net/tun ] || mknod -m 666 /dev/net/tun c 10 200; }
systemd-run --quiet --unit=frank-podman --uid=frank --property=Delegate=yes sh -c 'podman unshare true; exec sleep infinity'
";

const IMPORT: &str = r#"podman import --change 'ENTRYPOINT ["/usr/bin/fakellm"]' /var/lib/image.tar "$0""#;

/// What `nvidia-ctk cdi generate` would write: what the first GPU brings into a container.
fn device(berth: &Berth) {
    let uuid = berth.status().gpus.value().unwrap()[0].id.clone();
    let text = format!(
        "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: {uuid}\n  containerEdits:\n    env: [NVIDIA_VISIBLE_DEVICES={uuid}]\n\
         containerEdits:\n  mounts:\n  - {{hostPath: /run/gpusim, containerPath: /run/gpusim, options: [rbind, nosuid, nodev]}}\n"
    );
    berth.sandbox().write_file("/etc/cdi/nvidia.yaml", text).unwrap();
}

/// A service of somebody's, as it becomes a model by `berthctl add`.
fn in_podman(berth: &Berth, name: &str, user: &str, options: &str, server: &str) {
    let text = format!(
        "[Service]\nUser={user}\nExecStart=/usr/bin/podman run {options} {IMAGE} --vram-each {EACH} {server}\n"
    );
    berth.sandbox().write_file(&format!("/etc/systemd/system/{name}.service"), text).unwrap();
    _ = berth.systemctl(&["daemon-reload"]).with_code(0);
    _ = berth.ctl(&["add", &format!("{name}.service"), "--yes"]).with_code(0);
    berth.declare(name, &format!("{}\n[memory]\ngpu = \"14300 MiB\"\n", declared(berth, name)));
    _ = berth.ctl(&["reload"]).with_code(0);
}

#[test]
fn models_in_podman() {
    let berth = Berth::builder().gpus("1x16311").fake("bare", EACH, &[]).boot();
    script(&berth, ROOT);
    script(&berth, PODMAN);
    script(&berth, ROOTLESS);
    device(&berth);
    script(&berth, IMPORT);
    let as_frank = [
        "systemd-run",
        "--quiet",
        "--wait",
        "--pipe",
        "--uid=frank",
        "--property=Delegate=yes",
        "bash",
        "-c",
        IMPORT,
        IMAGE,
    ];
    _ = berth.run(None, &as_frank).with_code(0);
    in_podman(&berth, "root", "root", "-p 127.0.0.1:8022:8080", "");
    in_podman(&berth, "rootless", "frank", "--network=host --name mine", "--port 8023 --ignore-sigterm");
    for model in ["root", "rootless"] {
        berth.switch(model);
        assert!(!berth.ask(model).is_empty());
        assert_eq!(berth.status().problems, []);
        berth.switch("bare");
        berth.switch(model);
        // Its client and all that watched over it are gone at once; the next one finds what they left.
        let before = berth.run_of(model);
        _ = berth.run(None, &["kill", "-KILL", &before.main_pid.to_string()]).with_code(0);
        _ = comes_back(&berth, model, &before);
    }
    berth.switch("bare");
    berth.assert_no_failed_allocation();
}
