//! Models judged on recorded devices: what is said of them.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use berth_core::bytes::Bytes;
use berth_core::facts::{DeviceId, Gpu, GpuMemory, GpuProcess, HostMemory};
use shapes::gguf::{Gguf, Type};
use shapes::models;
use tempfile::TempDir;

use super::*;
use crate::render::PLAIN;
use crate::render::text::{WIDTH, columns};

/// The machine of which so much host memory is available.
pub(super) fn machine(gpus: Vec<Gpu>, available: u64) -> Ground {
    let memory =
        HostMemory { read_at: Duration::ZERO, total: Bytes::mib(31_800), available: Bytes::mib(available) };
    let host = Host { memory: Known::Value(memory), ..Host::none_yet() };
    let facts = Facts { gpus: Known::Value(gpus), host, ..Facts::none_yet() };
    Ground { facts, state: State::default() }
}

/// A card on which these processes hold so many MiB; those of models are named.
pub(super) fn card(index: u32, held: &[(&str, Option<&str>, u64)]) -> Gpu {
    let used: u64 = held.iter().map(|(.., mib)| mib).sum();
    let processes = held.iter().zip(800..).map(|((program, model, mib), pid)| GpuProcess {
        pid,
        started: Some(1),
        program: (*program).to_owned(),
        memory: Known::Value(Bytes::mib(*mib)),
        model: model.map(|name| name.parse().unwrap()),
        unit: None,
    });
    Gpu {
        index,
        id: DeviceId(format!("GPU-{index}")),
        memory: Known::Value(GpuMemory {
            total: Bytes::mib(16_311),
            reserved: Bytes::mib(388),
            used: Bytes::mib(used),
            free: Bytes::mib(16_311 - 388 - used),
        }),
        processes: Known::Value(processes.collect()),
        ..given::gpus("16GiB").unwrap().remove(0)
    }
}

pub(super) fn written(folder: &TempDir, name: &str, file: &Gguf) -> PathBuf {
    let path = folder.path().join(name);
    file.write_hollow(&path).unwrap();
    path
}

fn set(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn judged(ground: &mut Ground, path: &Path, pairs: &[(&str, &str)], host_only: bool) -> Judged {
    let set = set(pairs);
    let undeclared =
        Undeclared { sources: Sources::default(), config: Path::new("/none"), set: &set, host_only };
    let (settings, model) = undeclared.model(path).unwrap();
    ground.facts.files.insert(path.to_owned(), files::look(path, None));
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    ground.judge(&settings, &model, name).unwrap()
}

fn shown(text: String) -> String {
    for line in text.lines() {
        assert!(columns(line) <= WIDTH, "{} columns: {line}", columns(line));
    }
    text
}

/// S6: what Xorg holds is taken from one card, what a model of Berth's holds from none.
#[test]
fn experts_stay_on_the_cpu_where_one_card_is_too_small_and_what_serves_counts_as_absent() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(&folder, "supergemma.gguf", &models::gemma4_26b(Type::Other(3, 32, 20)));
    let held = [("Xorg", None, 412), ("llama-server", Some("aeon"), 14_000)];
    let mut ground = machine(vec![card(0, &held)], 28_000);
    let unit = running(BTreeMap::new());
    ground.facts.units.insert("aeon".parse().unwrap(), unit);
    ground.find_models();
    let pairs = [("ctx", "32768"), ("kv", "q4_0"), ("ubatch", "1024")];
    let one = judged(&mut ground, &path, &pairs, false);
    insta::assert_snapshot!(shown(render::fit::one(&one, PLAIN)));
    // One whose memory can't be told from that of others counts as theirs.
    ground.state.claims.clear();
    let foreign = judged(&mut ground, &path, &pairs, false);
    assert_eq!(foreign.devices[0].others_bytes, Some(Bytes::mib(14_412)), "{foreign:?}");
    assert_eq!(foreign.devices[0].others, ["pid 800 (Xorg)", "pid 801 (llama-server)"]);
}

/// S7: the same on two cards.
#[test]
fn two_cards_hold_it_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(&folder, "supergemma.gguf", &models::gemma4_26b(Type::Other(3, 32, 20)));
    let mut ground = machine(vec![card(0, &[]), card(1, &[])], 28_000);
    let one = judged(&mut ground, &path, &[("ctx", "32768")], false);
    insta::assert_snapshot!(shown(render::fit::one(&one, PLAIN)));
}

/// S9: refused with f16 by hand, and what would fit is said; placed with q8_0 where KV is left to the policy.
#[test]
fn on_the_cpu_a_long_context_needs_quantized_kv() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(&folder, "supergemma.gguf", &models::gemma4_26b(Type::Other(7, 32, 24)));
    let mut ground = machine(Vec::new(), 21_500);
    let f16 = judged(&mut ground, &path, &[("ctx", "32768"), ("kv", "f16")], true);
    let left = judged(&mut ground, &path, &[("ctx", "32768")], true);
    let texts = [f16, left].map(|one| shown(render::fit::one(&one, PLAIN)));
    insta::assert_snapshot!(texts.join("\n"));
}

/// S5: a model that leaves no room for its cache.
#[test]
fn a_model_of_vllm_that_leaves_no_room_is_short_and_nothing_would_help() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gemma-nvfp4");
    safetensors(&path, 30_600_000_000);
    let mut ground = machine(vec![card(0, &[]), card(1, &[])], 28_000);
    let one = judged(&mut ground, &path, &[], false);
    insta::assert_snapshot!(shown(render::fit::one(&one, PLAIN)));
}

#[test]
fn a_gpu_of_which_nothing_is_known_is_never_said_to_fit() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(&folder, "m.gguf", &models::small()[0].1);
    let lost = Gpu { memory: Known::Unknown("GPU is lost".to_owned()), ..card(0, &[]) };
    let one = judged(&mut machine(vec![lost], 28_000), &path, &[], false);
    assert_eq!((one.fits, one.spare_bytes), (None, None));
    insta::assert_snapshot!(shown(render::fit::one(&one, PLAIN)));
}

#[test]
fn a_folder_has_a_line_for_each_model() {
    let folder = tempfile::tempdir().unwrap();
    written(&folder, "supergemma-Q4_K_M.gguf", &models::gemma4_26b(Type::Other(3, 32, 20)));
    written(&folder, "llama-3.3-70b.gguf", &models::published().pop().unwrap().1);
    models::gemma4_26b(Type::Q8_0).write_parts(folder.path(), "split", 3).unwrap();
    let mut projector = Gguf::new("clip");
    projector.key("general.type", "mmproj").tensor("v.patch_embd.weight", &[64, 64], Type::F32);
    written(&folder, "mmproj-F16.gguf", &projector);
    std::fs::write(folder.path().join("broken.gguf"), "GGUF").unwrap();
    safetensors(&folder.path().join("hub/qwen"), 16_000_000_000);
    let mut ground = machine(vec![card(0, &[]), card(1, &[("Xorg", None, 412)])], 28_000);
    let set = set(&[("ctx", "65536")]);
    let undeclared =
        Undeclared { sources: Sources::default(), config: Path::new("/none"), set: &set, host_only: false };
    let found = find::find(folder.path()).unwrap();
    let all = ground.judge_all(folder.path(), found, &undeclared).unwrap();
    let all = Folder { path: "models".into(), ..all };
    insta::assert_snapshot!(shown(render::fit::folder(&all, PLAIN)));
}

/// A model as Hugging Face keeps them, of about so many bytes.
fn safetensors(path: &Path, bytes: u64) {
    let config = r#"{"model_type":"gemma4","num_hidden_layers":30,"hidden_size":2816,"num_attention_heads":16,
        "num_key_value_heads":8,"head_dim":256,"vocab_size":262144,"max_position_embeddings":131072,
        "intermediate_size":2112,"sliding_window":1024}"#;
    std::fs::create_dir_all(path).unwrap();
    std::fs::write(path.join("config.json"), config).unwrap();
    let names: Vec<String> = (0..30).map(|layer| format!("model.layers.{layer}.mlp.weight")).collect();
    let size = [bytes / 30];
    let tensors: Vec<shapes::safetensors::Tensor<'_>> =
        names.iter().map(|name| (name.as_str(), "U8", 8, &size[..])).collect();
    shapes::safetensors::write_hollow(&path.join("model.safetensors"), &tensors).unwrap();
}
