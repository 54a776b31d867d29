//! The configuration as a whole: every error at its place, every value with its origin.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;

mod access;
mod policies;
mod variants;

fn file(path: &str, text: &str) -> SourceFile {
    SourceFile { path: PathBuf::from(path), text: text.to_owned() }
}

fn models(files: &[(&str, &str)]) -> Sources {
    let models = files.iter().map(|(name, text)| file(&format!("models.d/{name}"), text)).collect();
    Sources { models, ..Sources::default() }
}

fn one(text: &str) -> Result<Model, String> {
    let settings = load(&models(&[("m.toml", text)]), "tower").map_err(|errors| shown(&errors))?;
    Ok(settings.models.into_values().next().unwrap())
}

fn shown(errors: &[ConfigError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n")
}

/// What `load` says to these files.
fn errors(files: &[(&str, &str)]) -> String {
    shown(&load(&models(files), "tower").unwrap_err())
}

/// The first line of each error in each of these texts.
fn titles(cases: &[&str]) -> String {
    let mut out = String::new();
    for text in cases {
        writeln!(out, "{}", text.replace('\n', "\n  ")).unwrap();
        let sources = models(&[("m.toml", text)]);
        for error in load(&sources, "tower").expect_err(text) {
            let place = &error.places[0];
            writeln!(out, "    {}:{} {}: {}", place.line, place.column, error.message, place.label).unwrap();
            if let Some(help) = error.help {
                writeln!(out, "         {help}").unwrap();
            }
        }
    }
    out
}

const GENESIS: &str = r#"# The production model.
name = "genesis"
backend = "vllm"
program = "/opt/vllm/bin/vllm"
model = "/models/qwen3.6-27b-int4"
args = ["--speculative-config", '{"method":"mtp","num_speculative_tokens":3}']
env = { VLLM_MARLIN_USE_ATOMIC_ADD = "1" }
port = 8022
policy = "split"
aliases = ["production"]
"#;

const ONE_LINE: &str = r#"cmd = "LLAMA_CACHE=/var/cache/llama /opt/llama.cpp/build/bin/llama-server -m /models/gemma-4-26b-a4b-q4_k_m.gguf -c 32768 --port 8081""#;

#[test]
fn changes_to_requests() {
    let declared = |toml: &str| {
        let text = format!("cmd = \"/opt/a\"\n[request]\n{toml}\n");
        load(&models(&[("a.toml", &text)]), "tower")
            .map(|settings| settings.models.into_values().next().unwrap().request)
    };
    let changes = declared(
        "default = { temperature = 0.7, stop = [\"a\", 1], deep = { on = true } }\nset.seed = 0x10\nstrip = [\"user\"]",
    );
    let changes = changes.unwrap();
    let default = serde_json::to_value(&changes.default).unwrap();
    assert_eq!(default, serde_json::json!({ "temperature": 0.7, "stop": ["a", 1], "deep": { "on": true } }));
    assert_eq!((changes.set["seed"].as_i64(), changes.strip), (Some(16), vec!["user".to_owned()]));
    for (toml, says) in [
        ("set = { model = \"b\" }", "`request.set` can't change `model`"),
        ("strip = [\"model\"]", "`request.strip` can't change `model`"),
        ("set = { at = 2026-11-24 }", "`request.set.at` is nothing that JSON has"),
        ("set = { at = inf }", "`request.set.at` is nothing that JSON has"),
        ("default = 1", "`request.default` must be a table"),
        ("drop = []", "unknown key `request.drop`"),
    ] {
        let errors = declared(toml).unwrap_err();
        let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(text.contains(says), "{toml}: {text}");
    }
}

#[test]
fn what_clients_have_loaded() {
    let hash = KeyHash::of(b"x");
    let main = format!(
        "on_demand = \"evict\"\nguest_idle = \"30s\"\n[proxy]\nturn = \"2m\"\n\
         [proxy.keys.a]\nsha256 = \"{hash}\"\nloads = false\n[proxy.keys.b]\nsha256 = \"{hash}\"\n"
    );
    let models = models(&[("a.toml", "cmd = \"x\""), ("b.toml", "cmd = \"x\"\non_demand = \"never\"")]);
    let settings = load(&Sources { main: Some(file("berth.toml", &main)), ..models }, "tower").unwrap();
    let of = |model: &str| settings.models[&model.parse().unwrap()].guests;
    let guests = Guests { on_demand: OnDemand::Evict, idle: Duration::from_secs(30) };
    assert_eq!((settings.guests, of("a"), settings.proxy.turn), (guests, guests, Duration::from_mins(2)));
    assert_eq!(of("b"), Guests { on_demand: OnDemand::Never, ..guests });
    assert_eq!(settings.proxy.keys.iter().map(|key| key.loads).collect::<Vec<_>>(), [false, true]);
    let error = one("cmd = \"x\"\non_demand = \"beside it\"").unwrap_err();
    assert!(error.contains("`on_demand` must be one of \"beside\", \"evict\", \"never\""), "{error}");
}

#[test]
fn the_clients_address() {
    let load =
        |toml: &str| load(&Sources { main: Some(file("berth.toml", toml)), ..Sources::default() }, "tower");
    let proxy = load(
        "[proxy]\nlisten = [\"192.168.1.5:8010\", \"[::1]:8010\"]\nunknown = \"default\"\nbody = \"1 GiB\"\n",
    );
    let proxy = proxy.unwrap().proxy;
    assert_eq!(proxy.listen, ["192.168.1.5:8010".parse().unwrap(), "[::1]:8010".parse().unwrap()]);
    assert_eq!((proxy.unknown, proxy.body), (UnknownName::Default, Bytes::mib(1024)));
    let open = "[proxy]\nlisten = [\"0.0.0.0:8010\"]\n";
    let warnings = load(open).unwrap().warnings;
    assert_eq!(warnings[0].message(), "whoever reaches 0.0.0.0:8010 may ask every model");
    let hash = "a".repeat(64);
    let keyed = load(&format!("{open}[proxy.keys.frank]\nsha256 = \"{hash}\"\nmodels = [\"a\"]\n")).unwrap();
    assert!(keyed.warnings.is_empty());
    let key = &keyed.proxy.keys[0];
    assert_eq!(
        (key.name.as_str(), key.hash.to_string(), key.models.as_deref()),
        ("frank", hash, Some(&["a".to_owned()][..]))
    );
    assert!(load("[proxy]\nlisten = []\n").unwrap().proxy.listen.is_empty());
    for declared in
        [&["*"] as &[&str], &["https://chat.example", "http://[::1]:3000", "app://obsidian.md"], &[]]
    {
        assert_eq!(load(&format!("[proxy]\ncors = {declared:?}\n")).unwrap().proxy.cors, declared);
    }
    for (toml, says) in [
        ("listen = \"127.0.0.1:8010\"", "`proxy.listen` must be addresses with ports"),
        ("listen = [\"8010\"]", "`proxy.listen` must be addresses with ports"),
        ("listen = [\"localhost:8010\"]", "`proxy.listen` must be addresses with ports"),
        ("listen = [\"127.0.0.1:0\"]", "`proxy.listen` must be addresses with ports"),
        ("listen = [\"[::1]:1\", \"[::1]:1\"]", "`proxy.listen` names [::1]:1 twice"),
        ("unknown = \"any\"", "`proxy.unknown` must be one of \"refuse\", \"default\""),
        ("turn = 5", "`proxy.turn` must be"),
        ("on_demand = \"evict\"", "unknown key `proxy.on_demand`"),
        ("queue = 0", "`proxy.queue` must be a whole number from 1 to 100000"),
        ("port = 8010", "unknown key `proxy.port`"),
        ("keys.a = {}", "the key `a` has no `sha256`"),
        ("keys.a = { sha256 = \"secret\" }", "`proxy.keys.a.sha256` must be the SHA-256 of a key"),
        ("keys.a = { sha256 = 1, model = [] }", "unknown key `proxy.keys.a.model`"),
        ("cors = \"*\"", "`proxy.cors` must be origins of web pages"),
        ("cors = [\"*\", \"https://chat.example\"]", "with this the others have no effect"),
        ("cors = [\"chat.example\"]", "it begins with `https://` or the like"),
        ("cors = [\"null\"]", "it begins with `https://` or the like"),
        ("cors = [\"https://\"]", "a scheme and a host are both needed"),
        ("cors = [\"https://chat.example/\"]", "it ends with the host or its port"),
        ("cors = [\"https://*.example\"]", "it ends with the host or its port"),
        ("cors = [\"https://Chat.example\"]", "browsers write it in small letters"),
        ("cors = [\"https://chat.example:443\"]", "browsers leave this port out"),
    ] {
        let errors = load(&format!("[proxy]\n{toml}\n")).unwrap_err();
        let text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(text.contains(says), "{toml}: {text}");
    }
}

#[test]
fn the_designs_example_and_one_line() {
    let sources = Sources {
        main: Some(file(
            "/etc/berth/berth.toml",
            "[gpu]\nheadroom = \"512 MiB\"\n[deadlines]\nstart = \"1h30m\"\nconnect = \"2 s\"\n[health]\nfailures = 2\n[proxy]\nfirst_byte = \"20 min\"\nidle = \"5 min\"\n[ports]\nrange = \"8200-8210\"\n",
        )),
        models: vec![
            file("/etc/berth/models.d/genesis.toml", GENESIS),
            file("/etc/berth/models.d/supergemma.toml", ONE_LINE),
            file(
                "/etc/berth/models.d/aeon.toml",
                "cmd = \"vllm serve nvidia/aeon -tp 2 --gpu-memory-utilization=0.90\"\n\n[deadlines]\nstop = \"90 s\"\nidle = \"2 min\"\n[health]\ntoken = \"off\"\nbusy = \"30 min\"\n",
            ),
            file(
                "/etc/berth/models.d/whisper.toml",
                "retired = true\nprogram = \"/srv/whisper/run\"\nargs = [\"--listen\", \"{host}:{port}\"]\nmemory.gpu = \"2 GiB\"\n",
            ),
        ],
        ..Sources::default()
    };
    let settings = load(&sources, "tower").map_err(|errors| shown(&errors)).unwrap();
    let explanation = explain(&settings);
    let text = explanation.to_string();
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert_snapshot!(text);
    insta::assert_json_snapshot!(explanation.models[0]);
}

#[test]
fn one_line_is_enough() {
    let model = one(ONE_LINE).unwrap();
    assert_eq!(model.name.as_str(), "m");
    assert_eq!(model.backend, BackendKind::LlamaCpp);
    assert_eq!(model.program, Path::new("/opt/llama.cpp/build/bin/llama-server"));
    assert_eq!(model.env["LLAMA_CACHE"], "/var/cache/llama");
    assert_eq!(model.file.as_deref(), Some(Path::new("/models/gemma-4-26b-a4b-q4_k_m.gguf")));
    assert_eq!((model.host.to_string().as_str(), model.port), ("127.0.0.1", 8081));
    assert_eq!(model.policy.name, "auto");
    assert_eq!(model.memory, Memory::Undeclared);
    assert_eq!(model.ready, Ready { health: "/health".into(), generate: true });
    assert_eq!(model.deadlines.start, Duration::from_secs(900));
    assert!(model.declared.contains_key("cmd") && !model.declared.contains_key("port"));
}

#[test]
fn ports_are_given_out_in_the_order_of_names_around_declared_ones() {
    let sources = models(&[
        ("c.toml", "cmd = \"a\""),
        ("z.toml", "cmd = \"a\"\nname = \"b\""),
        ("d.toml", "cmd = \"a\"\nport = 8100"),
        ("e.toml", "cmd = \"a --port {port}\"\nretired = true"),
    ]);
    let settings = load(&sources, "tower").unwrap();
    let ports: Vec<_> = settings.models.values().map(|model| (model.name.as_str(), model.port)).collect();
    assert_eq!(ports, [("b", 8101), ("c", 8102), ("d", 8100), ("e", 8103)]);
}

#[test]
fn a_secret_is_a_variable_without_its_value() {
    let model = one("cmd = \"serve\"\nsecrets = [\"HF_TOKEN\"]\n").unwrap();
    assert_eq!(model.secrets, ["HF_TOKEN"]);
    // The value of one that the file has itself is nobody's business.
    let text =
        "cmd = \"docker run -e API_KEY=confidential -p 1:2 i\"\nenv = { HF_TOKEN = \"confidential\" }\n";
    let settings =
        load(&Sources { models: vec![file("/m/a.toml", text)], ..Sources::default() }, "tower").unwrap();
    let shown = format!("{:?}", explain(&settings));
    assert!(shown.contains("env.HF_TOKEN") && shown.contains("env.API_KEY"), "{shown}");
    assert!(!shown.contains("confidential"), "{shown}");
    let wrong = errors(&[
        ("a.toml", "cmd = \"serve\"\nsecrets = [\"HF TOKEN\", \"1\", \"\", \"A\", \"A\"]\n"),
        ("b.toml", "cmd = \"A=1 serve\"\nsecrets = [\"A\"]\n"),
        (
            "c.toml",
            "cmd = \"llama-server -m /m.gguf\"\nsecrets = [\"A\"]\n[variants.x]\nenv = { A = \"1\" }\n",
        ),
    ]);
    assert_eq!(wrong.matches("a secret has the name of a variable").count(), 3, "{wrong}");
    assert_eq!(wrong.matches("this secret is named twice").count(), 1, "{wrong}");
    assert_eq!(wrong.matches("`A` is among `secrets` too").count(), 2, "{wrong}");
}

#[test]
fn who_names_no_port_keeps_the_one_it_had() {
    let plain = |name: &str| file(&format!("{name}.toml"), "cmd = \"serve\"\n");
    let load = |models: Vec<SourceFile>| load(&Sources { models, ..Sources::default() }, "node").unwrap();
    let ports = |settings: &Settings| -> BTreeMap<ModelName, u16> {
        settings.models.values().map(|model| (model.name.clone(), model.port)).collect()
    };
    let had = ports(&load(vec![plain("b"), plain("c"), plain("d")]));
    // Alone, `a` would move all others by one.
    let mut settings = load(vec![plain("a"), plain("b"), plain("c"), plain("d")]);
    settings.keep_ports(&had);
    let now = ports(&settings);
    assert!(had.iter().all(|(name, port)| now[name] == *port), "{now:?}");
    assert_eq!(now[&"a".parse().unwrap()], 8103);
    let a = &settings.models[&"a".parse().unwrap()];
    assert!(
        a.derived.iter().any(|derived| derived.key == "port" && derived.value == "8103"),
        "{:?}",
        a.derived
    );

    // Nor does one that goes, and variants go with their base.
    let varied = file("d.toml", "cmd = \"llama-server -m /m.gguf\"\n[variants.long]\nctx = 65536\n");
    let mut settings = load(vec![plain("c"), varied]);
    settings.keep_ports(&had);
    assert_eq!(ports(&settings).into_values().collect::<Vec<_>>(), [8101, 8102, 8102]);

    // What is declared comes first, and no two have one port.
    let mut settings =
        load(vec![file("a.toml", "cmd = \"serve\"\nport = 8101\n"), plain("b"), plain("c"), plain("d")]);
    settings.keep_ports(&had);
    let now: BTreeSet<u16> = ports(&settings).into_values().collect();
    assert_eq!((now.len(), settings.models[&"a".parse().unwrap()].port), (4, 8101));
    assert_eq!(settings.models[&"d".parse().unwrap()].port, 8102);
}

#[test]
fn ports_can_run_out() {
    let mut sources = models(&[("a.toml", "cmd = \"a\""), ("b.toml", "cmd = \"b\"")]);
    sources.main = Some(file("berth.toml", "ports.range = \"8100-8100\""));
    assert_snapshot!(shown(&load(&sources, "tower").unwrap_err()));
}

#[test]
fn policy_follows_what_is_said_about_gpus() {
    let policy = |text: &str| one(text).unwrap().policy.name;
    assert_eq!(policy("cmd = \"vllm serve a/b\""), "auto");
    assert_eq!(policy("cmd = \"vllm serve a/b --tensor_parallel_size 2\""), "split");
    assert_eq!(policy("cmd = \"x\"\nmemory.gpu = [\"1 GiB\", \"2 GiB\"]"), "split");
    assert_eq!(policy("cmd = \"x\"\nmemory.gpu = [\"1 GiB\"]"), "auto");
    assert_eq!(policy("cmd = \"vllm serve a/b -tp 2\"\npolicy = \"auto\""), "auto");
}

#[test]
fn a_model_is_a_path_or_a_name_at_hugging_face() {
    let found = |text: &str| one(text).map(|model| (model.file.map(|f| f.display().to_string()), model.hub));
    let file = |path: &str| Ok((Some(path.to_owned()), None));
    let hub = |name: &str| Ok((None, Some(name.to_owned())));
    assert_eq!(found("cmd = \"vllm serve Qwen/Qwen3-32B\""), hub("Qwen/Qwen3-32B"));
    assert_eq!(found("cmd = \"vllm serve --port 8022 --model /m/q\""), file("/m/q"));
    assert_eq!(
        found("cmd = \"/v/bin/python3 -m vllm.entrypoints.openai.api_server --model=/m/q\""),
        file("/m/q")
    );
    assert_eq!(found("cmd = \"llama-server -m x.gguf\"\ncwd = \"/m\""), file("/m/x.gguf"));
    assert_eq!(found("cmd = \"llama-server -hf a/b:Q4_K_M\""), hub("a/b:Q4_K_M"));
    assert_eq!(found("cmd = \"LLAMA_ARG_MODEL=/m/x.gguf llama-server\""), file("/m/x.gguf"));
    assert_eq!(found("cmd = \"x\"\nmodel = \"/m/x\""), file("/m/x"));
    assert!(found("cmd = \"llama-server -m dir/x.gguf\"").unwrap_err().contains("path must be whole"));
    assert!(found("cmd = \"llama-server\"\nmodel = \"x.gguf\"").unwrap_err().contains("path must be whole"));
}

#[test]
fn an_error_shows_file_line_column_and_what_was_meant() {
    assert_snapshot!(errors(&[("genesis.toml", "cmd = \"/opt/llama-server\"\n\nprot = 8022\n")]));
}

#[test]
fn all_errors_are_shown_at_once_in_order() {
    let mut sources = models(&[
        (
            "b.toml",
            "cmd = \"/opt/a | tee log\"\nport = \"8022\"\npolicy = \"splt\"\n[ready]\nhelth = \"/\"\n",
        ),
        ("a.toml", "program = \"bin/a\"\ncwd = \"/opt\"\nmemory.gpu = 28\n"),
    ]);
    sources.main =
        Some(file("berth.toml", "nod = \"x\"\n[gpu]\nheadroom = \"much\"\n[deadlines]\nstop = \"0 s\"\n"));
    assert_snapshot!(shown(&load(&sources, "tower").unwrap_err()));
}

#[test]
fn clashes_name_both_files() {
    assert_snapshot!(errors(&[
        ("a.toml", "cmd = \"/opt/a\"\nport = 8022\naliases = [\"production\", \"b\"]\n"),
        ("b.toml", "cmd = \"/opt/b --port 8022\"\naliases = [\"production\"]\n"),
        ("c.toml", "name = \"a\"\ncmd = \"/opt/c\"\nport = 8022\nshares_port = true\n"),
    ]));
}

#[test]
fn ports_may_be_shared_by_those_who_say_so_and_by_the_retired() {
    let shares = "cmd = \"/opt/b --port 8022\"\nshares_port = true\n";
    let retired = "cmd = \"/opt/b --port 8022\"\nretired = true\n";
    assert!(load(&models(&[("a.toml", shares), ("b.toml", shares), ("c.toml", retired)]), "tower").is_ok());
}

#[test]
fn contradictions_show_both_places() {
    assert_snapshot!(errors(&[(
        "a.toml",
        "program = \"llama-server\"\nport = 8022\nhost = \"127.0.0.1\"\nmodel = \"/m/a.gguf\"\nargs = [\n  \"--port\", \"8023\",\n  \"--host=0.0.0.0\",\n  \"-m\", \"/m/b.gguf\",\n]\n",
    )]));
}

#[test]
fn every_kind_of_bad_value() {
    let cmd = |rest: &str| format!("cmd = \"/opt/a\"\n{rest}");
    let cases = [
        String::new(),
        "# only a comment\n".into(),
        "cmd = ".into(),
        "cmd = 1".into(),
        "cmd = \"\"".into(),
        "cmd = \"a\\u0000b\"".into(),
        "cmd = \"/opt/a 'b\"".into(),
        "cmd = \"./a\"".into(),
        "cmd = \"~/a\"".into(),
        "cmd = \"docker run a\"".into(),
        "cmd = \"\"\"\n/opt/a \\\n  > log\"\"\"".into(),
        "cmd = \"/opt/a\"\nprogram = \"/opt/b\"".into(),
        "port = 8022".into(),
        "args = [\"a\"]".into(),
        "program = \"\"".into(),
        "program = \"~/a\"\nargs = [\"-m\", \"~/m\", 3]".into(),
        cmd("name = \"a/b\""),
        cmd("name = \"a:b c\""),
        cmd("name = \"a:b\""),
        cmd("name = \"default\""),
        cmd("name = [\"a\"]"),
        cmd("backend = \"lama.cpp\""),
        cmd("host = \"tower\""),
        cmd("port = 0"),
        cmd("port = 8009"),
        cmd("port = 8010"),
        cmd("port = 99999"),
        cmd("port = -1"),
        cmd("aliases = [\"default\", \"\", \"a b\"]"),
        cmd("aliases = \"a\""),
        cmd("retired = \"yes\""),
        cmd("cwd = \"opt\""),
        cmd("env = { \"A=B\" = \"1\", C = 1, \"\" = \"x\", D = \"a\\u0000\" }"),
        cmd("memory = \"3 GiB\""),
        cmd("memory.gpu = \"0 GiB\""),
        cmd("memory.gpu = \"3 gigs\""),
        cmd("memory.gpu = []"),
        cmd("memory.gpu = [\"1 GiB\", \"x\"]"),
        cmd("memory.gpu = \"1 GiB\"\npolicy = \"cpu\""),
        cmd("ready.health = \"health\""),
        cmd("ready.generate = 1"),
        cmd("deadlines.stop = \"soon\""),
        cmd("deadlines.start = \"3 days\""),
        cmd("health.every = \"on\""),
        cmd("health.busy = \"off\""),
        cmd("health.failures = 0"),
        cmd("health.failures = \"3\""),
        cmd("port = 1\nport = 2"),
        "cmd = \"A=1 /opt/a\"\nenv.A = \"2\"".into(),
        "cmd = \"/opt/a --port many --host localhost\"".into(),
        "cmd = \"/opt/a --port 8010\"".into(),
        "cmd = \"vllm serve\"".into(),
        "cmd = \"vllm serve a/b --gpu-memory-utilization 90\"".into(),
    ];
    let cases: Vec<&str> = cases.iter().map(String::as_str).collect();
    assert_snapshot!(titles(&cases));
}

#[test]
fn a_files_name_must_be_a_models_name() {
    assert_snapshot!(errors(&[
        ("my model.toml", "cmd = \"a\""),
        ("nul\0.toml", "cmd = \"a\""),
        ("empty.toml", "")
    ]));
}

#[test]
fn berth_toml_may_be_absent_but_not_empty() {
    let settings = load(&Sources::default(), "tower").unwrap();
    assert_eq!((settings.node.as_str(), settings.headroom), ("tower", Bytes::mib(256)));
    let sources = Sources { main: Some(file("berth.toml", "")), ..Sources::default() };
    assert_snapshot!(shown(&load(&sources, "tower").unwrap_err()));
    let comment = Sources { main: Some(file("berth.toml", "# all by default\n")), ..Sources::default() };
    assert!(load(&comment, "tower").is_ok());
}

#[test]
fn control_characters_reach_no_terminal() {
    let text =
        "cmd = \"\\u001b[2J/a\"\nhost = \"\\u001b[2J\"\n\"\\u001b[2J\" = 1\n[memory]\ngpu = \"\\u001b[2J\"\n";
    let errors = load(&models(&[("a\u{1b}[2J.toml", text)]), "tower").unwrap_err();
    assert!(errors.len() >= 4);
    for error in errors {
        assert!(!error.render(false).contains('\u{1b}'), "{error:?}");
        assert!(!serde_json::to_string(&error.places[0].label).unwrap().contains("u001b"));
    }
}

#[test]
fn colours_carry_nothing() {
    let error = &load(&models(&[("a.toml", "cmd = 1")]), "tower").unwrap_err()[0];
    assert!(error.render(true).contains("\u{1b}["));
    assert!(!error.render(false).contains('\u{1b}'));
}

/// A file of lines that are each right or nearly so, of which one character may be changed.
fn almost_a_model() -> impl Strategy<Value = String> {
    // The right ones more often, or hardly a file would come through.
    const LINES: &[&[&str]] = &[
        &["cmd = \"llama-server -m /x --port 81{}\"", "cmd = 'vllm serve a/b -tp 2'", "program = \"/x\""],
        &["", "", "", "", "env = { A = \"1\", B = \"ä\" }", "args = [\"--port\", \"{port}\", '{\"a\":1}']"],
        &["", "", "", "", "port = 85{}", "port = 8010"],
        &["", "", "", "policy = \"auto\"", "policy = \"split\"", "policy = \"cpu\"", "policy = \"spilt\""],
        &["", "", "aliases = [\"a{}\", \"b{}\"]", "aliases = []", "name = \"n{}\"", "retired = true"],
        &["", "", "deadlines.stop = \"{} s\"", "deadlines = { start = \"1h30m\" }"],
        &[
            "",
            "",
            "[memory]\ngpu = \"{} GiB\"",
            "[memory]\ngpu = [\"1 GiB\", \"{} GiB\"]",
            "[ready]\nhealth = \"/up\"",
        ],
    ];
    let line = |choices: &'static [&'static str]| {
        (prop::sample::select(choices), 10..40_u32)
            .prop_map(|(line, n)| line.replace("{}", &n.to_string()) + "\n")
    };
    let text = LINES.iter().map(|choices| line(choices)).collect::<Vec<_>>().prop_map(|lines| lines.concat());
    let change = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<char>()));
    (text, change).prop_map(|(text, change)| {
        let mut chars: Vec<char> = text.chars().collect();
        if let Some((at, c)) = change {
            *at.get_mut(&mut chars) = c;
        }
        chars.into_iter().collect()
    })
}

fn almost_settings() -> impl Strategy<Value = Option<String>> {
    let good = "[gpu]\nheadroom = '1 GiB'\n[deadlines]\nstop = '5 s'\n".to_owned();
    prop_oneof![6 => Just(None), 3 => Just(Some(good)), 1 => "\\PC{0,40}".prop_map(Some)]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]

    /// Whatever a file holds, there is an answer: settings that can be explained, or errors that can be shown.
    #[test]
    fn load_never_panics(main in almost_settings(), texts in prop::collection::vec(prop_oneof![9 => almost_a_model(), 1 => ".{0,60}"], 0..4)) {
        let models = texts.iter().enumerate().map(|(i, text)| file(&format!("{i}.toml"), text)).collect();
        let sources = Sources { main: main.map(|text| file("berth.toml", &text)), models, ..Sources::default() };
        match load(&sources, "tower") {
            Ok(settings) => {
                prop_assert_eq!(settings.models.len(), texts.len());
                prop_assert!(!explain(&settings).to_string().is_empty());
                for model in settings.models.values() {
                    prop_assert!(model.port != 0);
                    prop_assert!(!crate::backend::of(model.backend).launch(model, &[], &crate::layout::Layout::default()).argv.is_empty());
                }
            }
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                for error in &errors {
                    let shown = error.render(false) + &error.render(true);
                    prop_assert!(shown.contains("error"));
                }
            }
        }
    }
}

#[test]
fn the_history_is_kept_as_long_as_declared() {
    let main = |text: &str| Sources { main: Some(file("berth.toml", text)), ..Sources::default() };
    let given = "[history]\nevery = \"1 s\"\nsamples = \"30 days\"\nkeep = \"5 years\"\nsize = \"1 GiB\"\n";
    let history = load(&main(given), "tower").unwrap().history;
    assert_eq!((history.every, history.samples), (Duration::from_secs(1), Duration::from_secs(30 * 86_400)));
    assert_eq!((history.keep.as_secs(), history.size), (157_788_000, Bytes::mib(1024)));
    let short = load(&main("[history]\nkeep = \"7 days\"\n"), "tower").unwrap().history;
    assert_eq!(short.samples, short.keep, "the default gives way");
    let wrong = [
        "[history]\nevery = \"100 ms\"\nkeep = \"3 hours\"\nsize = \"1 MiB\"\n",
        "[history]\nevery = 5\nsize = \"lots\"\nsample = \"14 days\"\n",
        "[history]\nsamples = \"3 years\"\n",
        "[history]\nsamples = \"7 days\"\nkeep = \"1 day\"\n",
    ];
    let wrong: Vec<String> = wrong.map(|text| shown(&load(&main(text), "tower").unwrap_err())).into();
    assert_snapshot!(wrong.join("\n\n"));
}
