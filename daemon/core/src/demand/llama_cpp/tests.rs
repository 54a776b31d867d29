//! Settings as they are read, and where each part lies. `tests/memory` has what was measured.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::*;
use crate::shape::{Layer as ShapeLayer, Tensor};
use crate::tuning::Tuning;

fn run(line: &str) -> Run {
    let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    Run::read(&args, &BTreeMap::new(), &Tuning::default()).unwrap()
}

fn keeps(key: u64, value: u64, sliding: bool) -> ShapeLayer {
    ShapeLayer { attention: Some(Attention { key, value, sliding }), ..ShapeLayer::default() }
}

#[test]
fn slots_of_their_own_and_a_full_window_are_what_they_are_called() {
    let shape = Shape { window: 1024, ..Shape::default() };
    let cells = |line: &str| {
        let cells = Cells::of(&shape, &run(line));
        (cells.global, cells.sliding, cells.streams)
    };
    assert_eq!(cells("-c 32768"), (32768, 4608, 1));
    assert_eq!(cells("-c 32768 -np 4"), (8192, 1536, 4));
    assert_eq!(cells("-c 32768 -np 4 -kvu"), (32768, 4608, 1));
    assert_eq!(cells("-c 32768 -np 3"), (11008, 1536, 3));
    assert_eq!(cells("-c 1000 --swa-full"), (1024, 1024, 1));
    assert_eq!(cells("-c 32768 -ub 4096 -np 1"), (32768, 3072, 1));
}

/// Two layers with experts, an output that shares the input's weights.
fn small() -> Shape {
    let tensor = |name: &str, bytes, layer| Tensor { name: name.to_owned(), bytes: Bytes(bytes), layer };
    let tensors = vec![
        tensor("token_embd.weight", 1000, None),
        tensor("blk.0.attn_q.weight", 10, Some(0)),
        tensor("blk.0.ffn_up_exps.weight", 100, Some(0)),
        tensor("blk.0.ffn_up_shexp.weight", 5, Some(0)),
        tensor("blk.1.attn_q.weight", 20, Some(1)),
        tensor("blk.1.ffn_gate_up_exps.weight", 200, Some(1)),
        tensor("output_norm.weight", 1, None),
    ];
    let layers = vec![keeps(32, 32, false); 2];
    Shape { architecture: "qwen3moe".into(), layers, tensors, trained_context: 256, ..Shape::default() }
}

/// Weights on each GPU, then on the host.
fn weights(line: &str, split: &[u32], cpu_experts: &[u32]) -> Vec<u64> {
    let demand = demand(&small(), &run(line), split.len(), split, cpu_experts);
    let weights = |parts: &Parts| parts.of(What::Weights).0;
    demand.gpus.iter().chain([&demand.host]).map(weights).collect()
}

#[test]
fn layers_lie_where_the_split_says_and_the_first_ones_on_the_host() {
    assert_eq!(weights("", &[3], &[]), [115 + 220 + 1001, 1000]);
    assert_eq!(weights("", &[1, 2], &[]), [115, 220 + 1001, 1000]);
    assert_eq!(weights("", &[1, 0, 1], &[]), [220, 0, 1001, 1115]);
    assert_eq!(weights("", &[0, 1], &[]), [0, 1001, 1335]);
    assert_eq!(weights("", &[], &[]), [1336]);
    assert_eq!(weights("", &[3], &[1]), [115 + 20 + 1001, 1200]);
    assert_eq!(weights("", &[2], &[0, 1]), [20 + 1001, 1315]);
}

#[test]
fn the_first_override_that_matches_counts() {
    assert_eq!(weights("--cpu-moe", &[3], &[]), [15 + 20 + 1001, 1300]);
    assert_eq!(weights("-ncmoe 1", &[3], &[]), [15 + 220 + 1001, 1100]);
    assert_eq!(weights(r"-ot blk\.1\..*=CPU -cmoe", &[3], &[]), [15 + 1001, 1320]);
    assert_eq!(weights("-ot attn_q=CUDA1,.*=CPU", &[3, 0], &[]), [0, 30, 1306]);
    assert_eq!(weights("-ot attn_q=CUDA_Host", &[3], &[1]), [105 + 1001, 1230]);
}

#[test]
fn keys_and_values_lie_with_their_layer_unless_told_otherwise() {
    let kept = |line: &str| {
        let demand = demand(&small(), &run(line), 2, &[1, 1], &[]);
        [&demand.gpus[0], &demand.gpus[1], &demand.host].map(|parts| parts.of(What::KvGlobal).0)
    };
    assert_eq!(kept("-c 256"), [256 * 128, 0, 256 * 128]);
    assert_eq!(kept("-c 256 -nkvo"), [0, 0, 2 * 256 * 128]);
}

#[test]
fn what_the_user_wrote_wins_over_tuning_and_tuning_over_defaults() {
    let args = ["--ctx_size", "4096", "-ctk", "q8_0", "--no-mmap"].map(str::to_owned);
    let env =
        [("LLAMA_ARG_CACHE_TYPE_V", "q4_0"), ("LLAMA_ARG_NO_KV_OFFLOAD", "1"), ("LLAMA_ARG_CTX_SIZE", "1")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let tuning = Tuning {
        ctx: Some(1),
        kv_k: Some(KvType::F32),
        kv_v: Some(KvType::F32),
        slots: Some(2),
        ubatch: Some(1024),
        ..Tuning::default()
    };
    let read = Run::read(&args, &env, &tuning).unwrap();
    let expected = Run {
        ctx: 4096,
        kv_k: KvType::Q8_0,
        kv_v: KvType::Q4_0,
        slots: 2,
        unified: false,
        ubatch: 1024,
        mmap: false,
        kv_offload: false,
        ..Run::default()
    };
    assert_eq!(read, expected);
}

#[test]
fn a_setting_that_the_server_refuses_is_an_error_that_names_it() {
    let error = |line: &str| {
        let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Run::read(&args, &BTreeMap::new(), &Tuning::default()).unwrap_err().to_string()
    };
    assert_eq!(error("-c much"), "`-c` is `much`; llama-server wants a whole number");
    assert!(error("-ctk fp8").contains("f32, f16"));
    assert!(error("-ot blk").contains("PATTERN=BUFFER"));
    assert!(error("-ot (=CPU").contains("regular expression"));
}

#[test]
fn a_division_by_shares_is_the_servers() {
    assert_eq!(divided(19, &[1.0, 1.0]), [10, 9]);
    assert_eq!(divided(25, &[3.0, 1.0]), [19, 6]);
    for split in [[7u32, 13, 5], [1, 0, 24], [0, 25, 0]] {
        let shares = split.map(|layers| layers as f32);
        assert_eq!(divided(25, &shares), split, "a split given as shares is itself");
    }
}

#[test]
fn sizes_that_no_machine_holds_are_no_overflow() {
    let (most, state) = (u64::MAX, crate::shape::Recurrent { convolution: u64::MAX, state: u64::MAX });
    let tensors =
        ["blk.0.ffn_up_exps.weight", "blk.0.attn_q.weight", "token_embd.weight", "output_norm.weight"];
    let tensor = |name: &str| Tensor {
        name: name.to_owned(),
        bytes: Bytes(most),
        layer: name.starts_with("blk.").then_some(0),
    };
    let layers = vec![ShapeLayer { recurrent: Some(state), ..keeps(most, most, true) }; 512];
    let shape = Shape {
        layers,
        tensors: tensors.iter().cycle().take(4000).map(|name| tensor(name)).collect(),
        embedding: most,
        vocabulary: most,
        trained_context: most,
        feed_forward: most,
        expert_feed_forward: most,
        heads: most,
        head: most,
        experts: most,
        experts_used: most,
        window: most,
        ..Shape::default()
    };
    for line in
        ["-np 4000000000 -b 2000000000 -ub 2000000000", "-fa off -ncmoe 4000000000", "-ctk q8_0 -sm tensor"]
    {
        let demand = demand(&shape, &run(line), 2, &[256, 100], &[0]);
        assert!(demand.gpus[0].total() > Bytes(1 << 50) && demand.host.total() > Bytes(1 << 50), "{line}");
    }
}
