//! The configuration as a whole: every error at its place, every value with its origin.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::Path;

use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;

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
fn the_designs_example_and_one_line() {
    let sources = Sources {
        main: Some(file(
            "/etc/berth/berth.toml",
            "[gpu]\nheadroom = \"512 MiB\"\n[deadlines]\nstart = \"1h30m\"\n[health]\nfailures = 2\n[ports]\nrange = \"8200-8210\"\n",
        )),
        models: vec![
            file("/etc/berth/models.d/genesis.toml", GENESIS),
            file("/etc/berth/models.d/supergemma.toml", ONE_LINE),
            file(
                "/etc/berth/models.d/aeon.toml",
                "cmd = \"vllm serve nvidia/aeon -tp 2 --gpu-memory-utilization=0.90\"\n\n[deadlines]\nstop = \"90 s\"\n[health]\ntoken = \"off\"\nbusy = \"30 min\"\n",
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

fn policies(files: &[(&str, &str)], models: &[(&str, &str)]) -> Result<Settings, Vec<ConfigError>> {
    let named = |folder: &str, (name, text): &(&str, &str)| file(&format!("{folder}/{name}"), text);
    let models = models.iter().map(|model| named("models.d", model)).collect();
    let policies = files.iter().map(|policy| named("policies.d", policy)).collect();
    load(&Sources { models, policies, ..Sources::default() }, "tower")
}

#[test]
fn the_policies_that_ship_are_read_as_any_other() {
    let settings = load(&Sources::default(), "tower").unwrap();
    assert_eq!(
        settings.policies.keys().map(String::as_str).collect::<Vec<_>>(),
        ["auto", "cpu", "exclusive", "split"]
    );
    assert_eq!(settings.warnings, []);
    insta::assert_json_snapshot!(settings.policies);
}

#[test]
fn a_policy_says_all_that_can_be_said() {
    let whole = r#"
devices = [0, "GPU-8fe1c2d4", "RTX 5060*"]
gpus = 2
fill = "in order"
headroom = "1 GiB"
share = false
priority = 10
evict = "lower"
ladder = ["experts", "kv q8_0", "kv q4_0", "ctx 16384", "ctx 8192", "layers"]
[host]
cores = "0x3F5"
threads = 8
lock = true
nice = 5
memory = "24 GiB"
headroom = "3 GiB"
"#;
    let model = "cmd = \"llama-server -m /m\"\npolicy = \"mine\"\n";
    let settings = policies(&[("mine.toml", whole)], &[("m.toml", model)]).unwrap();
    let model = settings.models.values().next().unwrap();
    assert_eq!(model.policy, settings.policies["mine"]);
    assert_eq!(model.priority, 10, "the policy's, where the model has none");
    insta::assert_json_snapshot!(model.policy);
    // One in policies.d replaces all of the one that ships under its name.
    let replaced = policies(&[("cpu.toml", "devices = \"host\"\n")], &[]).unwrap();
    assert!(replaced.policies["cpu"].ladder.is_empty() && !replaced.policies["cpu"].host.lock);
}

#[test]
fn every_kind_of_bad_policy() {
    let mut out = String::new();
    for text in [
        "devices = 0x1",
        "devices = []",
        "devices = [\"host\", 0]",
        "devices = [\"all\", \"RTX*\"]",
        "devices = \"\"",
        "devices = true",
        "gpus = \"few\"",
        "gpus = 0",
        "gpus = -1",
        "fill = \"even \"",
        "headroom = 256",
        "share = \"no\"",
        "priority = 5000",
        "evict = \"lowest\"",
        "ladder = \"experts\"",
        "ladder = [\"expert\", \"kv q9_0\", \"ctx many\", \"layers 3\"]",
        "ladder = [\"experts\", \"ctx 8192\", \"ctx 16384\", \"kv q4_0\", \"kv q8_0\", \"experts\"]",
        "devices = \"host\"\ngpus = 2\nfill = \"even\"\nladder = [\"layers\"]",
        "[host]\ncores = \"fast\"\nthreads = 0\nnice = 20\nlock = 1\nmemory = \"0\"\nheadrom = \"1 GiB\"",
        "device = \"all\"",
    ] {
        writeln!(out, "{}", text.replace('\n', "\n  ")).unwrap();
        for error in policies(&[("p.toml", text)], &[]).expect_err(text) {
            let place = &error.places[0];
            writeln!(out, "    {}:{} {}: {}", place.line, place.column, error.message, place.label).unwrap();
        }
    }
    assert_snapshot!(out);
    let unknown =
        policies(&[("mine.toml", "gpus = 1\n")], &[("m.toml", "cmd = \"x\"\npolicy = \"spilt\"\n")]);
    assert_snapshot!("no_such_policy", shown(&unknown.unwrap_err()));
    let name = policies(&[("my policy.toml", "gpus = 1\n")], &[]);
    assert!(shown(&name.unwrap_err()).contains("`my policy` is not a name for a policy"));
}

#[test]
fn what_hurts_is_said_with_its_reason() {
    let hurts = "[host]\ncores = \"0-3\"\nthreads = 8\nnice = -5\n";
    let settings = policies(&[("fast.toml", hurts)], &[]).unwrap();
    let warnings: Vec<String> = settings.warnings.iter().map(|warning| warning.render(false)).collect();
    assert_snapshot!(warnings.join("\n\n"));
}

#[test]
fn settings_have_keys_of_their_own() {
    let sources = models(&[
        (
            "gemma.toml",
            "cmd = \"llama-server -m /m/gemma.gguf -c 32768 -kvu\"\nctx = 32768\nkv_v = \"f16\"\nkv_k = \"q8_0\"\nslots = 4\n",
        ),
        (
            "genesis.toml",
            "cmd = \"vllm serve a/b --max-model-len 32k\"\nkv = \"fp8\"\nutilization = 0.9\nport = 8022\n",
        ),
    ]);
    let settings = load(&sources, "tower").map_err(|errors| shown(&errors)).unwrap();
    let text = explain(&settings).to_string();
    let models = text.split_once("\ngemma").unwrap().1;
    assert_snapshot!(format!("gemma{models}"));
}

#[test]
fn settings_that_contradict_flags_show_both_places() {
    assert_snapshot!(errors(&[
        (
            "a.toml",
            "cmd = \"LLAMA_ARG_UBATCH=256 llama-server -c 32768 -no-kvu -ctk f16 -ncmoe 4\"\nctx = 16384\nkv = \"q8_0\"\nunified = true\nubatch = 512\ncpu_experts = 4\n"
        ),
        (
            "b.toml",
            "program = \"vllm\"\nargs = [\"serve\", \"a/b\", \"--max-model-len\", \"auto\"]\nctx = 8192\n"
        ),
    ]));
}

#[test]
fn every_kind_of_bad_setting() {
    let llama = |rest: &str| format!("cmd = \"llama-server\"\n{rest}");
    let cases = [
        llama("ctx = 0"),
        llama("ctx = \"32K\""),
        llama("ctx = 1.5"),
        llama("kv = 8"),
        llama("kv = \"q8\""),
        llama("kv = \"fp8\""),
        llama("kv = \"q8_0\"\nkv_v = \"f16\""),
        llama("slots = -1"),
        llama("unified = 1"),
        llama("utilization = 0.9"),
        "cmd = \"vllm serve a/b\"\nkv = \"q8_0\"\nubatch = 512\nutilization = 90".into(),
        "cmd = \"vllm serve a/b\"\nkv_k = \"fp8\"".into(),
        "cmd = \"serve\"\nctx = 8192".into(),
    ];
    let cases: Vec<&str> = cases.iter().map(String::as_str).collect();
    assert_snapshot!(titles(&cases));
}

#[test]
fn settings_that_hurt_are_said_with_their_reason() {
    let models = [
        ("a.toml", "cmd = \"/opt/llama-server -fa off -ctv q8_0 --prio 2\"\n"),
        ("b.toml", "cmd = \"LLAMA_ARG_FLASH_ATTN=0 llama-server -t 8\"\npolicy = \"two\"\nkv = \"q4_0\"\n"),
        ("c.toml", "cmd = \"chrt -f 50 /opt/llama-server\"\nbackend = \"llama.cpp\"\n"),
        ("d.toml", "cmd = \"llama-server -fa on -ctv q8_0 -t 2\"\npolicy = \"two\"\n"),
    ];
    let settings = policies(&[("two.toml", "devices = \"host\"\nhost.cores = \"0,2\"\n")], &models).unwrap();
    let warnings: Vec<String> = settings.warnings.iter().map(|warning| warning.render(false)).collect();
    assert_snapshot!(warnings.join("\n\n"));
}

const GEMMA: &str = r#"cmd = "LLAMA_ARG_UBATCH=1024 llama-server -m /m/gemma.gguf -c 32768 -ctk q8_0 -ctv q8_0"
env = { A = "1", B = "2" }
priority = 5
threads = 8

[memory]
gpu = "14 GiB"

[variants.long]
ctx = 131072
kv = "q4_0"
ubatch = 512
policy = "split"
env = { B = "3" }
args = ["--jinja"]
aliases = ["gemma-long"]
memory.gpu = ["8 GiB", "9 GiB"]
ready.generate = false
deadlines.start = "20 min"

[variants.same]
ctx = 32768
kv_k = "q8_0"
threads = 8
env = { A = "1" }
aliases = ["production"]
priority = 9

[variants.slow]
policy = "cpu"
args = ["-t", "4", "-c", "8192"]
"#;

#[test]
fn a_variant_is_its_base_with_a_few_keys_replaced() {
    let settings = load(&models(&[("gemma.toml", GEMMA)]), "tower").map_err(|errors| shown(&errors)).unwrap();
    let model = |name: &str| &settings.models[&name.parse::<ModelName>().unwrap()];
    assert_eq!(
        settings.models.keys().map(ModelName::as_str).collect::<Vec<_>>(),
        ["gemma", "gemma:long", "gemma:slow"]
    );
    let run = |name: &str| {
        let launch = crate::backend::of(model(name).backend).launch(
            model(name),
            &[],
            &crate::layout::Layout::default(),
        );
        launch.argv[1..].join(" ")
    };
    assert_eq!(
        run("gemma"),
        "-m /m/gemma.gguf -c 32768 -ctk q8_0 -ctv q8_0 --host 127.0.0.1 --port 8100 -t 8"
    );
    // What it says replaces the base's flags and variables; nothing else is different.
    assert_eq!(
        run("gemma:long"),
        "-m /m/gemma.gguf --jinja --host 127.0.0.1 --port 8100 -c 131072 -ctk q4_0 -ctv q4_0 -ub 512 -t 8"
    );
    assert_eq!(model("gemma:long").env, BTreeMap::from([("A".into(), "1".into()), ("B".into(), "3".into())]));
    // The last of a flag counts, and it wins over the base's key.
    assert_eq!(
        run("gemma:slow"),
        "-m /m/gemma.gguf -c 32768 -ctk q8_0 -ctv q8_0 -t 4 -c 8192 --host 127.0.0.1 --port 8100"
    );
    assert_eq!(model("gemma:slow").memory, Memory::Undeclared);
    assert_eq!((model("gemma:slow").priority, model("gemma:long").priority), (5, 5));
    // What changes nothing that needs a restart is only another name.
    assert_eq!(model("gemma").aliases, ["gemma:same", "production"]);
    assert_eq!(model("gemma:long").aliases, ["gemma-long"]);
    let warnings: Vec<String> = settings.warnings.iter().map(|warning| warning.render(false)).collect();
    assert_snapshot!("a_variant_that_is_only_a_name", warnings.join("\n\n"));
    let text = explain(&settings).to_string();
    assert_snapshot!(&text[text.find("\ngemma:long").unwrap() + 1..]);
}

#[test]
fn whats_wrong_with_a_variant_is_shown_at_its_lines() {
    let base = "cmd = \"llama-server -c 4096\"\naliases = [\"a\"]\n";
    assert_snapshot!(errors(&[(
        "m.toml",
        &format!(
            "{base}[variants.\"a b\"]\nctx = 8192\n\n[variants.one]\nctx = \"8K\"\nutilization = 0.9\npolicy = \"spilt\"\nprot = 8022\n\n[variants.two]\nctx = 8192\nargs = [\"-c\", \"16384\"]\naliases = [\"a\", \"m:one\"]\nfallback = \"m:two\"\n\n[variants.three]\npolicy = \"cpu\"\nmemory.gpu = \"1 GiB\"\nready.health = \"up\"\n"
        )
    )]));
    assert!(
        errors(&[("m.toml", &format!("{base}[variants]\nlong = 3\n"))])
            .contains("`variants.long` must be a table")
    );
}

#[test]
fn settings_can_be_tried_without_a_declaration() {
    let settings =
        load(&models(&[("gemma.toml", GEMMA), ("whisper.toml", "cmd = \"serve\"\n")]), "tower").unwrap();
    let name = |text: &str| text.parse::<ModelName>().unwrap();
    let of = |base: &str, set: &[(&str, &str)]| {
        let set = set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        with_settings(&settings, &settings.models[&name(base)], &set)
    };
    let tried = of("gemma", &[("kv", "f16"), ("ctx", "16384"), ("policy", "split")]).unwrap();
    assert_eq!(tried.name.as_str(), "gemma:ctx=16384,kv=f16,policy=split");
    assert_eq!((tried.tuning.ctx, tried.args.join(" ").as_str()), (Some(16384), "-m /m/gemma.gguf"));
    assert_eq!((tried.policy.name.as_str(), tried.port, tried.aliases.len()), ("split", 8100, 0));
    // It is found again by its name alone, and only while it is asked for.
    assert_eq!(settings.model(&tried.name).as_deref(), Some(&tried));
    let with = settings.with_unnamed([&tried.name]);
    assert_eq!(with.models.len(), settings.models.len() + 1);
    assert_eq!(with.with_unnamed([]), settings);
    assert_eq!(settings.with_unnamed([&name("gone:ctx=1"), &name("gemma")]), settings);
    // What changes nothing is the model itself, of a variant too.
    assert_eq!(of("gemma", &[("ctx", "32768"), ("kv_v", "q8_0")]).unwrap().name.as_str(), "gemma");
    assert_eq!(of("gemma:long", &[("ctx", "65536")]).unwrap().name.as_str(), "gemma:long:ctx=65536");

    let refused = |base: &str, key: &str, value: &str| of(base, &[(key, value)]).unwrap_err().to_string();
    assert_snapshot!(
        [
            refused("gemma", "context", "1"),
            refused("gemma", "ctx", "16K"),
            refused("gemma", "kv", "q9_0"),
            refused("gemma", "kv", "fp8"),
            refused("gemma", "utilization", "0.9"),
            refused("gemma", "policy", "slit"),
            refused("gemma", "port", "8022"),
            refused("whisper", "ctx", "8192"),
            of("gemma", &[("ctx", "163840"), ("slots", "12"), ("threads", "16"), ("ubatch", "1024")])
                .unwrap_err()
                .to_string(),
        ]
        .join("\n")
    );
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
