//! Placement policies: what ships, what is written, what is wrong with it.

use insta::assert_snapshot;

use super::*;

pub(super) fn policies(
    files: &[(&str, &str)],
    models: &[(&str, &str)],
) -> Result<Settings, Vec<ConfigError>> {
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
    let text = explain(&settings).to_string();
    let mine = text.find("  policy mine").unwrap();
    assert_snapshot!("a_policy_in_a_few_words", &text[mine..text[mine..].find("\n\n").unwrap() + mine]);
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
