//! From hand-written units to Berth and back: what systemd runs of each is what Berth runs of its declaration, and what was
//! there before comes back byte for byte.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_core::backend;
use berth_core::bytes::Bytes;
use berth_core::config::{self, SourceFile, Sources};
use berth_core::layout::Layout;
use berth_core::name::ModelName;
use berth_core::report::{ModelState, ModelStatus};
use berth_tests::{Berth, STARTED, Started, post};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// Where the programs of the hand-written units are looked for; each is one that tells what it was started with.
const PROGRAMS: [&str; 9] = [
    "/opt/llama.cpp/llama-server",
    "/opt/vllm/bin/vllm",
    "/opt/venv/bin/python3",
    "/opt/conda/bin/conda",
    "/opt/tei/router",
    "/usr/local/bin/llama-server",
    "/usr/bin/numactl",
    "/usr/bin/docker",
    "/usr/bin/podman",
];

/// What systemd makes anew for each start, and shells of their own.
const OF_A_START: [&str; 10] = [
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "PWD",
    "OLDPWD",
    "SHLVL",
    "_",
];

/// What Berth is documented to add where it is not given.
const OF_BERTH: [&str; 4] = ["CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "HOST", "PORT"];

/// The folder of hand-written units with what `add` makes of each.
fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../cli/tests/units").canonicalize().unwrap()
}

/// Each unit, and the text that `add` comes to: a declaration first, or the reason why there is none.
fn expected() -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(corpus().join("snapshots")).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(".snap")?.replace("llama_", "llama@");
        let text = std::fs::read_to_string(&path).unwrap();
        Some((name, text.splitn(3, "---\n").nth(2)?.trim_end().to_owned()))
    };
    entries.filter_map(read).collect()
}

/// Every path below these folders, with its kind, owner, mode and contents.
fn files(berth: &Berth, folders: &str) -> String {
    let script = format!(
        "find {folders} -printf '%p %y %m %U %G %l\\n' | sort; find {folders} -type f -exec sha256sum {{}} + | sort"
    );
    berth.run(None, &["sh", "-c", &script]).with_code(0).stdout
}

fn started(berth: &Berth, unit: &str) -> Started {
    let path = format!("{STARTED}/{unit}");
    let text = berth.wait_for(&format!("{unit} tells what it was started with"), SOON, |berth| {
        let read = berth.run(None, &["cat", &path]);
        (read.code == 0).then_some(read.stdout)
    });
    serde_json::from_str(&text).unwrap()
}

/// The variables that are the server's, and of Berth's only those that the unit has too.
fn of_server(started: &Started, unit: &Started) -> BTreeMap<String, String> {
    let theirs = started.env.iter().filter(|(name, _)| {
        let added = OF_BERTH.contains(&name.as_str()) && !unit.env.contains_key(*name);
        !added && !OF_A_START.contains(&name.as_str())
    });
    theirs.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Each hand-written unit is started by systemd, added, started as the model that it came to, and removed again. Only
/// the ticket comes from here instead of from berthd, which would look for files and GPUs that are not there.
#[test]
fn hand_written_units_run_as_they_did_and_come_back() {
    let berth = Berth::builder()
        .program(env!("CARGO_BIN_EXE_tell"), "/usr/bin/tell")
        .program(corpus(), "/corpus")
        .boot();
    _ = berth.systemctl(&["stop", "berthd.service"]).with_code(0);
    let programs = PROGRAMS.join(" ");
    let prepare = format!(
        "set -e; cp -a /corpus/etc/systemd/system/. /etc/systemd/system/; cp -a /corpus/etc/default/. /etc/default/\n\
         mkdir -p /srv/vllm /models/gemma; : > /models/gemma/4.gguf; mkdir -m 1777 {STARTED} /run/tickets;\n\
         for program in {programs}; do mkdir -p $(dirname $program); ln -sf /usr/bin/tell $program; done\n\
         : > /opt/venv/env.sh; systemctl daemon-reload; systemctl enable plain.service continued.service"
    );
    _ = berth.run(None, &["sh", "-c", &prepare]).with_code(0);
    let needed = "[Service]\nExecStart=/bin/sleep infinity\n";
    for unit in ["nvidia-persistenced", "docker"] {
        berth.sandbox().write_file(&format!("/run/systemd/system/{unit}.service"), needed).unwrap();
    }
    let ticket = "[Service]\nLoadCredential=\nLoadCredential=ticket:/run/tickets/%i\n";
    berth.sandbox().write_file("/run/systemd/system/berth-model@.service.d/ticket.conf", ticket).unwrap();
    _ = berth.systemctl(&["daemon-reload"]).with_code(0);

    let expected = expected();
    assert!(expected.len() >= 25, "{}", expected.len());
    let mut translated = Vec::new();
    for (unit, text) in &expected {
        let read = berth.ctl(&["add", unit, "--dry-run", "--json"]);
        let document: Value =
            serde_json::from_str(read.stdout.trim()).unwrap_or_else(|_| panic!("{unit}: {read}"));
        if let Some(refused) = text.strip_prefix("refused: ") {
            assert_eq!(read.code, 3, "{unit}: {read}");
            let reason = refused.lines().next().unwrap();
            let reason =
                reason.split_once(".service:").map_or(reason, |(_, rest)| rest.split_once(": ").unwrap().1);
            let title = document["problem"]["title"].as_str().unwrap();
            assert!(title.contains(reason), "{unit}: {title}\n{reason}");
        } else if text.contains("\n-- not valid\n") {
            assert_eq!((read.code, &document["problem"]["code"]), (2, &json!("not_valid")), "{unit}: {read}");
        } else {
            assert_eq!(read.code, 0, "{unit}: {read}");
            let declaration = document["models"][0]["declaration"].as_str().unwrap();
            assert!(text.starts_with(declaration.trim_end()), "{unit}:\n{declaration}\n{text}");
            translated.push((unit.as_str(), document["models"][0]["name"].as_str().unwrap().to_owned()));
        }
    }

    let all: Vec<&str> = translated.iter().map(|(unit, _)| *unit).collect();
    _ = berth.systemctl(&[&["start", "--no-block"], all.as_slice()].concat()).with_code(0);
    let folders = "/etc/systemd/system /etc/berth /etc/default";
    for (unit, name) in &translated {
        let by_systemd = started(&berth, unit);
        let before = files(&berth, folders);
        // Without berthd nobody would start it, which is said.
        let added = berth.ctl(&["add", unit, "--yes"]).with_code(5);
        assert!(added.stdout.contains("enable --now berthd"), "{added}");
        let by_berth = start_as_model(&berth, &name.parse().unwrap());
        same(unit, &by_systemd, &by_berth);
        _ = berth.ctl(&["remove", name, "--yes"]).with_code(0);
        assert_eq!(files(&berth, folders), before, "{unit} did not come back as it was");
    }
}

/// Starts the model as berthd would, with the ticket that its declaration comes to.
fn start_as_model(berth: &Berth, name: &ModelName) -> Started {
    let path = format!("/etc/berth/models.d/{name}.toml");
    let text = berth.run(None, &["cat", &path]).with_code(0).stdout;
    let file = SourceFile { path: path.into(), text };
    let settings = config::load(&Sources { models: vec![file], ..Sources::default() }, "tower").unwrap();
    let model = &settings.models[name];
    let launch = backend::launch(model, &[], &Layout::default());
    let ticket =
        json!({ "ticket": 1, "launch": { "argv": launch.argv, "env": launch.env, "cwd": launch.cwd } });
    let unit = name.unit();
    let instance = unit.strip_prefix("berth-model@").and_then(|unit| unit.strip_suffix(".service")).unwrap();
    berth.sandbox().write_file(&format!("/run/tickets/{instance}"), ticket.to_string()).unwrap();
    let run = berth.systemctl(&["start", &unit]);
    assert_eq!(run.code, 0, "{run}\n{}", berth.journal(&unit));
    let started = started(berth, &unit);
    berth.wait_for(&format!("{unit} has ended"), SOON, |berth| {
        (berth.property(&unit, "ActiveState") == "inactive").then_some(())
    });
    started
}

fn same(unit: &str, by_systemd: &Started, by_berth: &Started) {
    if unit.starts_with("docker") || unit.starts_with("podman") {
        return in_a_container(unit, by_systemd, by_berth);
    }
    let tail = by_berth.argv.strip_prefix(by_systemd.argv.as_slice());
    let tail = tail.unwrap_or_else(|| panic!("{unit}: {:?}\n{:?}", by_systemd.argv, by_berth.argv));
    assert!(tail.is_empty() || tail == ["--host", "127.0.0.1"], "{unit}: {tail:?} was added");
    assert_eq!(of_server(by_berth, by_systemd), of_server(by_systemd, by_systemd), "{unit}");
    let who = |started: &Started| (started.uid, started.gid, started.groups.clone(), started.cwd.clone());
    assert_eq!(who(by_berth), who(by_systemd), "{unit}");
}

/// A container engine is asked for the same: what is left out is told, and what is added is documented.
fn in_a_container(unit: &str, by_systemd: &Started, by_berth: &Started) {
    const OUT: [&str; 6] = ["--cidfile", "--cgroups", "--sdnotify", "-d", "--restart", "unless-stopped"];
    const ADDED: [&str; 7] = [
        "--rm",
        "--pull=never",
        "--label=",
        "--cgroup-parent=",
        "--cgroups=split",
        "--log-driver=none",
        "--env=",
    ];
    // A secret is passed on by its name, and is in no command line.
    let line = by_systemd.argv.join("\n").replace("\n-e\nHF_TOKEN=abc", "").replace("\n-dit\n", "\n-i\n");
    let theirs = line.lines().filter(|word| !OUT.contains(&word.split('=').next().unwrap()));
    let mut theirs = theirs.peekable();
    let ours = by_berth.argv.iter().map(String::as_str);
    let added: Vec<&str> = ours.filter(|word| theirs.next_if(|next| next == word).is_none()).collect();
    let left: Vec<&str> = theirs.collect();
    assert!(left.is_empty(), "{unit}: {left:?} is missing of {:?}", by_berth.argv);
    let documented = |word: &&str| ADDED.iter().any(|known| word.starts_with(known));
    let address = |word: &&str| ["--host", "--port", "0.0.0.0", "127.0.0.1", "8000", "8080"].contains(word);
    let other: Vec<&&str> = added.iter().filter(|word| !documented(word) && !address(word)).collect();
    assert!(other.is_empty(), "{unit}: {other:?} was added");
    assert_eq!(
        (by_berth.uid, by_berth.gid, &by_berth.cwd),
        (by_systemd.uid, by_systemd.gid, &by_systemd.cwd),
        "{unit}"
    );
}

/// A hand-written service of frank's that serves one model.
fn service(port: u16, each: &str) -> String {
    format!(
        "[Unit]\nDescription=By hand\n\n[Service]\nUser=frank\nEnvironment=HF_TOKEN=abc NVIDIA_TF32_OVERRIDE=1\n\
         ExecStart=/usr/bin/fakellm --vram-each {each} \\\n    --port {port}\nRestart=always\n\n\
         [Install]\nWantedBy=multi-user.target\n"
    )
}

/// A declaration that `add` wrote.
fn declared(berth: &Berth, name: &str) -> String {
    berth.run(None, &["cat", &format!("/etc/berth/models.d/{name}.toml")]).with_code(0).stdout
}

/// S2's two services, one of them serving: nothing of it is stopped unasked, both become models, switch, and are services
/// again in the end, byte for byte. Then a process that nobody's service is, with a service of its own in the end.
#[test]
fn two_services_and_a_process_become_models_and_go_back() {
    let berth = Berth::builder().boot();
    let units = "/etc/systemd/system";
    for (name, port) in [("genesis", 8022), ("aeon", 8023)] {
        let path = format!("{units}/{name}.service");
        berth.sandbox().write_file(&path, service(port, "14300MiB")).unwrap();
    }
    _ = berth.systemctl(&["daemon-reload"]).with_code(0);
    _ = berth.systemctl(&["enable", "genesis.service", "aeon.service"]).with_code(0);
    _ = berth.systemctl(&["start", "genesis.service"]).with_code(0);
    let folders = "/etc/systemd /etc/berth /etc/polkit-1";
    let before = files(&berth, folders);

    // Who may not, whom nobody can ask, and what is nowhere, changes nothing.
    for (user, arguments, code, said) in [
        (Some("frank"), vec!["add", "genesis.service", "--yes"], 2, "only root"),
        (None, vec!["add", "genesis"], 2, "--yes"),
        (None, vec!["add", "nothing.service", "--yes"], 2, "no service that systemd knows"),
        (None, vec!["add", "/nowhere/a.gguf", "--yes"], 2, "no service, process or file"),
        (None, vec!["add", "berthd.service", "--name", "a b", "--yes"], 2, "not a name for a model"),
        (None, vec!["add", "genesis", "--run-as", "nobody-knows", "--yes"], 2, "no user nobody-knows"),
        (None, vec!["add", "4194304", "--yes"], 3, "no process"),
        (None, vec!["remove", "genesis", "--yes"], 2, "declares genesis"),
        (Some("frank"), vec!["add", "genesis.service", "--dry-run"], 0, "To know"),
    ] {
        let output = berth.run(user, &[&["berthctl"], arguments.as_slice()].concat()).with_code(code);
        assert!(output.to_string().contains(said), "{arguments:?}: {output}");
        assert_eq!(files(&berth, folders), before, "{arguments:?} changed something");
    }

    // It goes on, as the model.
    let pid = berth.property("genesis.service", "MainPID");
    let added = berth.ctl(&["add", "genesis.service", "--yes"]).with_code(0);
    for said in
        ["genesis.service serves", "goes on, as the model genesis", "HF_TOKEN", "14300 MiB + 14300 MiB"]
    {
        assert!(added.stdout.contains(said), "{said}: {added}");
    }
    assert!(!added.stdout.contains("abc"), "a secret is shown: {added}");
    assert_eq!(berth.property("genesis.service", "MainPID"), pid);
    assert_eq!(berth.systemctl(&["is-enabled", "genesis.service"]).stdout.trim(), "masked");
    _ = berth.ctl(&["add", "genesis.service", "--yes"]).with_code(2);
    // What it held was measured, since nobody can read it anywhere.
    assert!(declared(&berth, "genesis").contains("[memory]\ngpu = [\"14300 MiB\", \"14300 MiB\"]\n"));
    let genesis = berth.wait_for("it is the model", SOON, |berth| {
        let status = berth.status();
        let genesis = status.models.into_iter().find(|model| model.state == ModelState::Serving)?;
        let whole = genesis.memory == Some(Bytes::mib(28_600)) && genesis.gpus == [0, 1];
        (whole && status.home == [genesis.name.clone()]).then_some(genesis)
    });
    assert_eq!(genesis.pid.map(|pid| pid.to_string()), Some(pid.clone()));
    assert_eq!(genesis.predecessor.as_deref(), Some("genesis.service"));
    let shown = berth.ctl(&["status"]).stdout;
    for said in ["genesis still runs as genesis.service", "Last: start genesis, "] {
        assert!(shown.contains(said), "{said}: {shown}");
    }
    assert!(berth.ctl(&["logs", "genesis"]).with_code(0).stdout.contains("Started genesis.service"));

    let added = berth.ctl(&["add", "aeon.service", "--yes"]).with_code(0);
    assert!(added.stdout.contains("[memory] gpu"), "{added}");
    let memory = "\n[memory]\ngpu = [\"14300 MiB\", \"14300 MiB\"]\n";
    berth.configure("models.d/aeon.toml", (declared(&berth, "aeon") + memory).as_bytes());
    _ = berth.ctl(&["reload"]).with_code(0);
    taken_over(&berth, &pid);
    berth.switch("genesis");
    let run = berth.run_of("genesis").main_pid.to_string();
    let environ = berth.run(None, &["cat", &format!("/proc/{run}/environ")]).with_code(0).stdout;
    assert!(environ.contains("HF_TOKEN=abc\0") && environ.contains("USER=frank\0"), "{environ}");
    let kept = berth.run(None, &["stat", "-c", "%a %U", "/etc/berth/secrets/genesis.env"]).with_code(0);
    assert_eq!(kept.stdout.trim(), "600 root");
    berth.switch("aeon");

    // What runs stays.
    let refused = berth.ctl(&["remove", "aeon", "--yes"]).with_code(3);
    assert!(refused.to_string().contains("berthctl stop aeon"), "{refused}");
    _ = berth.ctl(&["stop", "--all"]).with_code(0);
    _ = berth.ctl(&["remove", "aeon", "--yes"]).with_code(0);
    _ = berth.ctl(&["remove", "genesis", "--yes"]).with_code(0);
    assert_eq!(files(&berth, folders), before);
    for unit in ["genesis.service", "aeon.service"] {
        assert_eq!(berth.systemctl(&["is-enabled", unit]).stdout.trim(), "enabled");
    }
    assert!(berth.status().models.is_empty());

    // One that goes on as the model goes on by itself when it leaves.
    _ = berth.systemctl(&["start", "genesis.service"]).with_code(0);
    let pid = berth.property("genesis.service", "MainPID");
    _ = berth.ctl(&["add", "genesis.service", "--yes"]).with_code(0);
    berth.wait_serving("genesis", SOON);
    // The next berthd would miss what nobody has let go of.
    _ = berth.systemctl(&["stop", "berthd.service"]).with_code(0);
    let added = files(&berth, folders);
    let refused = berth.ctl(&["remove", "genesis", "--yes"]).with_code(3);
    assert!(refused.to_string().contains("Nothing was changed"), "{refused}");
    assert_eq!(files(&berth, folders), added);
    _ = berth.systemctl(&["start", "berthd.service"]).with_code(0);
    berth.wait_serving("genesis", SOON);
    let removed = berth.ctl(&["remove", "genesis", "--yes"]).with_code(0);
    assert!(removed.stdout.contains("genesis.service serves on"), "{removed}");
    assert_eq!(berth.property("genesis.service", "MainPID"), pid);
    assert!(berth.status().models.is_empty() && berth.status().home.is_empty());
    assert_eq!(files(&berth, folders), before);

    // What ends without being asked to comes back, and from then on as Berth starts it.
    _ = berth.ctl(&["add", "genesis.service", "--yes"]).with_code(0);
    berth.wait_serving("genesis", SOON);
    _ = berth.run(None, &["kill", "-KILL", &pid]).with_code(0);
    berth.wait_for("it serves again", SOON, |berth| {
        let genesis = berth.status().models.into_iter().find(|model| model.state == ModelState::Serving)?;
        (genesis.predecessor.is_none() && berth.run_of("genesis").main_pid > 0).then_some(())
    });
    berth.assert_no_failed_allocation();
    _ = berth.ctl(&["stop", "genesis"]).with_code(0);
    _ = berth.ctl(&["remove", "genesis", "--yes"]).with_code(0);
    assert_eq!(files(&berth, folders), before);
    _ = berth.systemctl(&["start", "genesis.service"]).with_code(0);

    // A service that serves, stopped because its operator says so.
    _ = berth.ctl(&["add", "genesis.service", "--yes", "--stop"]).with_code(0);
    assert_eq!(berth.property("genesis.service", "ActiveState"), "inactive");
    _ = berth.ctl(&["remove", "genesis", "--yes"]).with_code(0);
    assert_eq!(files(&berth, folders), before);

    a_process(&berth);
}

/// Clients reach the model at Berth's address.
fn answers(berth: &Berth, model: &str) {
    let body = json!({ "model": model, "prompt": "count", "max_tokens": 4 });
    let answer = post(berth.pid1().unwrap(), 8010, "/v1/completions", &body, SOON).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// Clients reach it at Berth's address. berthd dies and its successor finds the service again; then it is stopped for another model as any model is, and
/// nothing is started in its memory before that is back.
fn taken_over(berth: &Berth, pid: &str) {
    answers(berth, "default");
    _ = berth.systemctl(&["kill", "--signal", "KILL", "berthd.service"]).with_code(0);
    berth.wait_for_berthd(SOON).unwrap();
    berth.wait_for("the next berthd has it", SOON, |berth| {
        let found = berth.status().models.into_iter().find(|model| model.state == ModelState::Serving)?;
        (found.pid.map(|pid| pid.to_string()).as_deref() == Some(pid)).then_some(())
    });
    _ = berth.systemctl(&["daemon-reexec"]).with_code(0);
    _ = berth.gpu(&["linger", "700ms"]);
    let swap = berth.switch("aeon");
    _ = berth.gpu(&["linger", "0"]);
    assert_eq!(swap.stops.iter().map(ToString::to_string).collect::<Vec<_>>(), ["genesis"]);
    assert!(swap.early_start_would_fail, "{swap:?}");
    assert_eq!(berth.property("genesis.service", "ActiveState"), "inactive");
    berth.assert_no_failed_allocation();
}

/// A process of no service's, and back as a service of its own.
fn a_process(berth: &Berth) {
    let script = "cd /tmp && A='b c' HF_TOKEN=abc setsid /usr/bin/fakellm --vram-each 6000MiB --port 8055 >/dev/null 2>&1 & echo $!";
    _ = berth.run(Some("frank"), &["sh", "-c", script]).with_code(0);
    let pid = berth.wait_for("it runs", SOON, |berth| {
        let found = berth.run(None, &["pgrep", "-x", "fakellm"]);
        found.stdout.lines().next().map(str::to_owned)
    });
    berth.wait_for("it holds memory", SOON, |berth| {
        berth.gpu(&["show"]).contains("used 6000.00 MiB").then_some(())
    });
    _ = berth.ctl(&["add", &pid, "--name", "mine", "--yes"]).with_code(0);
    let text = declared(berth, "mine");
    for said in [
        "cmd = \"/usr/bin/fakellm --vram-each 6000MiB --port 8055\"",
        "cwd = \"/tmp\"",
        "A = \"b c\"",
        "gpu = [\"6000 MiB\", \"6000 MiB\"]",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    // It is the model, until Berth starts that.
    let mine =
        |berth: &Berth| berth.status().models.into_iter().find(|model| model.state == ModelState::Serving);
    let whole = |mine: &ModelStatus| mine.memory == Some(Bytes::mib(12_000));
    let as_it_was = berth.wait_for("it is the model", SOON, |berth| mine(berth).filter(whole));
    assert_eq!(as_it_was.predecessor.as_deref(), Some("berth-taken-mine.scope"));
    // Declared as nobody's it is nobody's, and not missed; and the model's again.
    let whole = declared(berth, "mine");
    let kept: Vec<&str> = whole.lines().filter(|line| !line.starts_with("replaces")).collect();
    let apart = kept.join("\n");
    for (text, state) in [(apart, ModelState::Off), (whole, ModelState::Serving)] {
        berth.configure("models.d/mine.toml", text.as_bytes());
        _ = berth.ctl(&["reload"]).with_code(0);
        berth.wait_for(&format!("it is {state:?}"), SOON, |berth| {
            let status = berth.status();
            (status.models[0].state == state && status.problems.is_empty()).then_some(())
        });
    }
    _ = berth.ctl(&["restart", "mine"]).with_code(0);
    let started = mine(berth).unwrap();
    assert_eq!(started.predecessor, None);
    assert!(started.pid.is_some_and(|now| now.to_string() != pid), "{started:?}");
    berth.assert_no_failed_allocation();
    _ = berth.ctl(&["stop", "mine"]).with_code(0);
    _ = berth.ctl(&["remove", "mine", "--unit", "--yes"]).with_code(0);
    _ = berth.systemctl(&["start", "mine.service"]).with_code(0);
    let pid = berth.property("mine.service", "MainPID");
    let shown = berth.run(
        None,
        &[
            "sh",
            "-c",
            &format!("tr '\\0' ' ' < /proc/{pid}/cmdline; readlink /proc/{pid}/cwd; ps -o user= {pid}"),
        ],
    );
    let shown = shown.with_code(0).stdout;
    assert_eq!(shown.trim(), "/usr/bin/fakellm --vram-each 6000MiB --port 8055 /tmp\nfrank", "{shown}");
    let environ = berth.run(None, &["cat", &format!("/proc/{pid}/environ")]).with_code(0).stdout;
    assert!(environ.contains("A=b c\0") && environ.contains("HF_TOKEN=abc\0"), "{environ}");
    _ = berth.systemctl(&["stop", "mine.service"]).with_code(0);

    // One that takes no notice of SIGTERM is killed when its time is over, and nothing else may be.
    let script = "setsid /usr/bin/fakellm --vram-each 6000MiB --ignore-sigterm >/dev/null 2>&1 & echo $!";
    _ = berth.run(Some("frank"), &["sh", "-c", script]).with_code(0);
    let pid = berth.wait_for("it holds memory", SOON, |berth| {
        let holds = berth.gpu(&["show"]).contains("used 6000.00 MiB");
        let found = berth.run(None, &["pgrep", "-x", "fakellm"]).stdout;
        found.lines().next().filter(|_| holds).map(str::to_owned)
    });
    // Once more after it was given back, and at the port that its command line does not name.
    for _ in 0..2 {
        _ = berth.ctl(&["add", &pid, "--name", "stubborn", "--yes"]).with_code(0);
        berth.wait_serving("stubborn", SOON);
        answers(berth, "stubborn");
        let removed = berth.ctl(&["remove", "stubborn", "--yes"]).with_code(0);
        assert!(removed.stdout.contains("berth-taken-stubborn.scope serves on"), "{removed}");
    }
    _ = berth.ctl(&["add", &pid, "--name", "stubborn", "--yes"]).with_code(0);
    berth.wait_serving("stubborn", SOON);
    let patience = "\n[deadlines]\nstop = \"1 s\"\n";
    berth.configure("models.d/stubborn.toml", (declared(berth, "stubborn") + patience).as_bytes());
    _ = berth.ctl(&["reload"]).with_code(0);
    let as_berthd = |verb: &str, unit: &str| {
        let argv = ["systemctl", "--no-ask-password", verb, unit];
        berth.run(Some("berth"), &argv)
    };
    for (verb, unit) in [("stop", "gpusim.service"), ("start", "berth-taken-stubborn.scope")] {
        assert_ne!(as_berthd(verb, unit).code, 0, "berthd may {verb} {unit}");
    }
    _ = berth.ctl(&["stop", "stubborn"]).with_code(0);
    assert_ne!(berth.run(None, &["kill", "-0", &pid]).code, 0, "it runs on");
    _ = berth.ctl(&["remove", "stubborn", "--yes"]).with_code(0);
}
