//! `berthctl fit` on files that are there: the real program, its exit codes, what it prints and its JSON.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use shapes::gguf::Gguf;
use shapes::models;
use tempfile::TempDir;

/// Runs it in a folder; gives its exit code, standard output and standard error.
fn fit(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_berthctl"))
        .arg("fit")
        .args(args)
        .current_dir(folder)
        .env_remove("NO_COLOR")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    assert!(!stderr.contains("panicked"), "{stderr}");
    (output.status.code(), stdout, stderr)
}

fn document(folder: &Path, args: &[&str], exit: i32) -> Value {
    let (code, stdout, stderr) = fit(folder, &[args, &["--json"]].concat());
    assert_eq!((code, stderr.as_str()), (Some(exit), ""), "{stdout}");
    let document: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&document["schema"], &document["exit"]), (&json!(1), &json!(exit)));
    document
}

fn published(name: &str) -> Gguf {
    models::published().into_iter().find(|(known, _)| *known == name).unwrap().1
}

fn folder(files: &[(&str, &Gguf)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, file) in files {
        file.write_hollow(&folder.path().join(name)).unwrap();
    }
    folder
}

/// The story's log: 281.25 MiB in sliding layers of 5,120 cells and 180.00 in the others.
#[test]
fn the_cache_of_the_storys_model_is_computed_to_the_byte() {
    let gemma = published("gemma4-26b-a4b");
    let folder = folder(&[("g.gguf", &gemma)]);
    let args = ["g.gguf", "--ctx", "32768", "--kv", "q4_0", "--ubatch", "1024", "--gpus", "48GiB"];
    let one = document(folder.path(), &args, 0);
    let mib = |quarters: u64| json!(quarters << 18);
    assert_eq!(one["kv_sliding_bytes"], mib(1125));
    assert_eq!(one["kv_global_bytes"], mib(720));
    assert_eq!(one["kv_bytes"], mib(1845));
    assert_eq!((&one["recurrent_bytes"], &one["layers"]), (&json!(0), &json!(30)));
    assert_eq!(one["weights_bytes"], json!(gemma.weights()));
    assert_eq!((&one["architecture"], &one["fits"]), (&json!("gemma4"), &json!(true)));
    assert!(one["compute_bytes"].as_u64().unwrap() > 0);
    let experts = one["expert_bytes_per_layer"].as_array().unwrap();
    let of_experts = gemma.tensors.iter().filter(|tensor| tensor.name.contains("_exps."));
    let expected: u64 = of_experts.map(shapes::gguf::Tensor::bytes).sum();
    assert_eq!(experts.len(), 30);
    assert_eq!(experts.iter().map(|bytes| bytes.as_u64().unwrap()).sum::<u64>(), expected);
    assert_eq!(
        one["devices"][0]["parts"][0],
        json!({
        "what": "weights", "bytes": one["devices"][0]["parts"][0]["bytes"], "source": "exact" })
    );

    // Keys and values kept differently, divided among the slots.
    let divided = ["--slots", "4", "--unified", "false", "--kv-k", "f16", "--kv-v", "q8_0"];
    let other = document(
        folder.path(),
        &[&["g.gguf", "--ctx", "32768", "--gpus", "48GiB"], &divided[..]].concat(),
        0,
    );
    assert_eq!(other["settings"]["kv_v"], "q8_0");
    assert_eq!(other["kv_global_bytes"], json!(5u64 * 32_768 * 1024 * 98 / 32));
    // A hybrid keeps a state beside them: the 27B, one slot.
    published("qwen3.6-27b").write_hollow(&folder.path().join("q.gguf")).unwrap();
    let args = ["q.gguf", "--ctx", "200192", "--kv", "q8_0", "--slots", "1", "--gpus", "48GiB"];
    let hybrid = document(folder.path(), &args, 0);
    assert_eq!(hybrid["kv_bytes"], json!(6647u64 << 20));
    // 149.62 MiB in the log.
    assert_eq!(hybrid["recurrent_bytes"], json!(48u64 * 4 * (3 * (6144 + 2 * 16 * 128) + 128 * 6144)));
    assert_eq!((&hybrid["layers"], &hybrid["next_token_layers"]), (&json!(64), &json!(1)));
}

#[test]
fn what_does_not_fit_exits_3_and_says_what_would() {
    let folder = folder(&[("llama70b.gguf", &published("llama-3.3-70b"))]);
    let args = ["llama70b.gguf", "--ctx", "8192", "--gpus", "2x15.9GiB"];
    let (code, stdout, stderr) = fit(folder.path(), &args);
    assert_eq!((code, stderr.as_str()), (Some(3), ""));
    assert!(stdout.starts_with("Does not fit: "), "{stdout}");
    assert!(stdout.contains(" GiB short on GPU 0, ") && stdout.contains(" GiB on GPU 1\n"), "{stdout}");
    assert!(stdout.contains("\nWould fit:\n gpu_layers "), "{stdout}");
    let one = document(folder.path(), &args, 3);
    assert_eq!((&one["fits"], &one["spare_bytes"]), (&json!(false), &Value::Null));
    let short = one["devices"].as_array().unwrap().iter().map(|device| {
        let bytes = |key: &str| device[key].as_u64().unwrap();
        bytes("needs_bytes").saturating_sub(bytes("available_bytes"))
    });
    assert_eq!(one["short_bytes"], json!(short.sum::<u64>()));
    let layers = one["instead"][0]["set"]["gpu_layers"].as_str().unwrap();
    assert!(layers.parse::<u32>().unwrap() < 80, "{layers}");
    // A smaller model does: the GPUs are what was given.
    let (code, stdout, _) = fit(folder.path(), &["llama70b.gguf", "--ctx", "8192", "--gpus", "24GiB,24GiB"]);
    assert_eq!(code, Some(0));
    assert!(stdout.starts_with("Fits on GPU 0+1 with "), "{stdout}");
}

#[test]
fn a_declared_model_is_judged_with_its_own_flags() {
    let folder = folder(&[("g.gguf", &published("gemma4-26b-a4b"))]);
    let declared = folder.path().join("etc/models.d");
    std::fs::create_dir_all(&declared).unwrap();
    let file = folder.path().join("g.gguf");
    let text = format!(
        "cmd = \"llama-server -m {} -c 32768 -ctk q4_0 -ctv q4_0 -ub 1024\"\naliases = [\"production\"]\n",
        file.display()
    );
    std::fs::write(declared.join("supergemma.toml"), text).unwrap();
    std::fs::write(folder.path().join("etc/berth.toml"), "[gpu]\nheadroom = \"1 GiB\"\n").unwrap();
    let at = ["--config", "etc", "--gpus", "48GiB"];
    for name in ["supergemma", "production"] {
        let one = document(folder.path(), &[&[name], &at[..]].concat(), 0);
        assert_eq!((&one["name"], &one["kv_bytes"]), (&json!("supergemma"), &json!(1845u64 << 18)));
        assert_eq!(one["devices"][0]["kept_back_bytes"], json!(1u64 << 30));
    }
    let args = [&["supergemma", "--ctx", "8192", "--kv", "f16"], &at[..]].concat();
    let one = document(folder.path(), &args, 0);
    assert_eq!(one["kv_global_bytes"], json!(5u64 * 8192 * 4096), "its own flags give way to what is asked");
    // The same headroom holds for a file.
    let one = document(folder.path(), &[&["g.gguf", "--ctx", "8192"], &at[..]].concat(), 0);
    assert_eq!(one["devices"][0]["kept_back_bytes"], json!(1u64 << 30));

    let (code, _, stderr) = fit(folder.path(), &[&["supergema"], &at[..]].concat());
    assert_eq!(code, Some(2));
    let told = stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(told.contains("there is no file or folder `supergema`"), "{told}");
    assert!(told.contains("did you mean `supergemma`?"), "{told}");
    std::fs::write(folder.path().join("etc/berth.toml"), "[gpu]\nheadrom = \"1 GiB\"\n").unwrap();
    for what in ["supergemma", "g.gguf"] {
        let problem = document(folder.path(), &[&[what], &at[..]].concat(), 2);
        assert_eq!(problem["problem"]["code"], "invalid_configuration");
        assert_eq!(problem["problem"]["hints"], json!(["berthctl check --config etc"]));
    }
}

#[test]
fn a_folder_is_judged_model_by_model() {
    let folder = folder(&[("g.gguf", &published("gemma4-26b-a4b")), ("l.gguf", &published("llama-3.3-70b"))]);
    published("qwen3-30b-a3b").write_parts(folder.path(), "q", 2).unwrap();
    std::fs::write(folder.path().join("broken.gguf"), "GGUF\x03").unwrap();
    let args = [".", "--ctx", "8192", "--gpus", "20GiB"];
    let all = document(folder.path(), &args, 0);
    let models = all["models"].as_array().unwrap();
    let told: Vec<_> = models.iter().map(|one| (one["name"].as_str().unwrap(), &one["fits"])).collect();
    let [yes, no] = [json!(true), json!(false)];
    assert_eq!(told, [("g.gguf", &yes), ("l.gguf", &no), ("q-00001-of-00002.gguf", &yes)]);
    assert_eq!(
        (&all["others"][0]["name"], &all["others"][0]["kind"]),
        (&json!("broken.gguf"), &json!("unreadable"))
    );
    let (_, stdout, _) = fit(folder.path(), &args);
    assert!(stdout.starts_with("2 of 3 models fit in .\n"), "{stdout}");
    assert_eq!(stdout.lines().filter(|line| line.contains(".gguf")).count(), 4, "{stdout}");
    std::fs::remove_file(folder.path().join("g.gguf")).unwrap();
    std::fs::remove_file(folder.path().join("q-00001-of-00002.gguf")).unwrap();
    let all = document(folder.path(), &args, 3);
    assert_eq!(
        all["others"][1]["name"], "q-00002-of-00002.gguf",
        "a part is missing, and no other stands for it"
    );
}

#[test]
fn bad_input_is_told_with_what_to_do_and_exits_2() {
    let mut projector = Gguf::new("clip");
    projector.key("general.type", "mmproj").tensor("v.patch_embd.weight", &[64, 64], shapes::gguf::Type::F32);
    let small = &models::small()[0].1;
    let folder = folder(&[("m.gguf", small), ("mmproj.gguf", &projector)]);
    for (name, text) in [("text.txt", "hello world"), ("cut.gguf", "GGUF\x03\0\0\0")] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    nix::unistd::mkfifo(&folder.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::create_dir(folder.path().join("hf")).unwrap();
    for (name, text) in [("config.json", "{}"), ("model.safetensors", "")] {
        std::fs::write(folder.path().join("hf").join(name), text).unwrap();
    }
    let cases: &[(&[&str], &str, &str)] = &[
        (&["./gone.gguf"], "missing", "there is no file or folder ./gone.gguf Try: ls ."),
        (&["gone"], "unknown_model", "there is no file or folder `gone`"),
        (&["empty"], "no_model", "empty holds no model: neither a GGUF file nor a config.json"),
        (&["text.txt"], "unreadable", "text.txt: this is no GGUF file: it begins with `hell`"),
        (&["cut.gguf"], "unreadable", "cut.gguf: "),
        (&["pipe"], "unreadable", "pipe: it is neither a file nor a folder"),
        (&["hf/model.safetensors"], "unreadable", "Try: berthctl fit hf"),
        (&["hf"], "unreadable", "hf: "),
        (&["mmproj.gguf"], "not_a_model", "mmproj.gguf is the projector of a model"),
        (&["m.gguf", "--kv", "q9"], "bad_setting", "--kv q9: `q9` is no type of KV cache; there are f32,"),
        (&["m.gguf", "--kv", "fp8"], "bad_setting", "llama.cpp knows no `fp8`"),
        (&["m.gguf", "--ctx", "0"], "bad_setting", "--ctx 0: `ctx` must be a number of tokens"),
        (&["m.gguf", "--unified", "maybe"], "bad_setting", "`unified` must be true or false"),
        (&["m.gguf", "--gpus", "16"], "bad_gpus", "write a unit, for example 16GiB"),
        (&["m.gguf", "--gpus", "2x16 gigs"], "bad_gpus", "`16 gigs` is not a size"),
        (&["m.gguf", "--config", "gone"], "no_configuration", "gone is not a folder"),
    ];
    for (args, code, says) in cases {
        // Without a GPU that can be seen, what is wrong with the rest is still what is said.
        let (exit, stdout, stderr) = fit(folder.path(), args);
        let told = stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!((exit, stdout.as_str()), (Some(2), ""), "{args:?}: {told}");
        assert!(
            told.starts_with("error: ") && told.contains(says) && told.contains(" Try: "),
            "{args:?}: {told}"
        );
        let problem = document(folder.path(), args, 2);
        assert_eq!(problem["problem"]["code"], *code, "{args:?}");
    }
    let (code, _, stderr) = fit(folder.path(), &["m.gguf", "--kv", "f16", "--kv-k", "f16"]);
    assert!(code == Some(2) && stderr.contains("cannot be used with"), "{stderr}");
}
