//! Settings that have keys of their own, variants that replace them, and what is tried without a declaration.

use insta::assert_snapshot;

use super::policies::policies;
use super::*;

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
