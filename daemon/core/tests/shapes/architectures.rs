//! What layers keep, architecture by architecture, from keys alone.

use berth_core::shape::{Attention, Recurrent, Shape};
use shapes::gguf::{Gguf, Type, Value};

use super::{drawn, try_read};

/// A model of so many layers: 4 heads of 16 for queries, 2 for keys, unless the keys say otherwise.
fn model(architecture: &str, layers: u32, keys: &[(&str, Value)]) -> Result<Shape, String> {
    let mut file = Gguf::new(architecture);
    let common = [
        ("block_count", layers.into()),
        ("embedding_length", 64u32.into()),
        ("attention.head_count", 4u32.into()),
        ("attention.head_count_kv", 2u32.into()),
    ];
    let own = |name: &str| keys.iter().any(|(key, _)| *key == name);
    for (key, value) in common.iter().filter(|(key, _)| !own(key)).chain(keys) {
        file.set(key, value.clone());
    }
    file.tensor("token_embd.weight", &[64], Type::F32);
    try_read(&file).map_err(|error| error.to_string())
}

fn layers(architecture: &str, count: u32, keys: &[(&str, Value)]) -> String {
    drawn(&model(architecture, count, keys).unwrap())
}

#[test]
fn sliding_layers_follow_the_architecture() {
    let window = ("attention.sliding_window", Value::U32(512));
    let with = std::slice::from_ref(&window);
    assert_eq!(layers("gemma3", 8, with), "sssssgss");
    assert_eq!(layers("gemma3", 4, &[]), "gggg", "without a window it does not slide");
    assert_eq!(layers("gemma2", 4, &[]), "sgsg", "its window is 4096 where the file is silent");
    assert_eq!(layers("gpt-oss", 4, with), "sgsg");
    assert_eq!(layers("cohere2", 5, with), "sssgs");
    assert_eq!(layers("cohere2moe", 5, with), "gsssg");
    assert_eq!(layers("olmo2", 4, with), "sssg");
    assert_eq!(layers("llama4", 4, &[]), "sssg");
    assert_eq!(layers("llama4", 4, &[("attention.sliding_window", Value::U32(0))]), "gggg");
    assert_eq!(layers("exaone4", 4, with), "gggg", "only the one of 64 layers slides");
    assert!(layers("exaone4", 64, &[]).starts_with("sssgsssg"));
    for plain in ["llama", "qwen2", "qwen3", "phi3", "mistral3"] {
        assert_eq!(layers(plain, 3, with), "ggg", "{plain} does not slide in llama.cpp");
        assert_eq!(model(plain, 3, with).unwrap().window, 0);
    }
    let every = |n: u32| [window.clone(), ("attention.sliding_window_pattern", Value::U32(n))];
    assert_eq!(layers("gemma3", 4, &every(2)), "sgsg");
    assert_eq!(layers("gemma3", 4, &every(1)), "gggg");
    assert_eq!(layers("gemma3", 4, &every(0)), "ssss");
    let marks = [window.clone(), ("attention.sliding_window_pattern", Value::Marks(vec![false, true, true]))];
    assert_eq!(layers("gemma3", 4, &marks), "gssg", "an array that is too short says no for the rest");
    assert_eq!(model("gemma2", 4, &[]).unwrap().window, 4096);
    assert_eq!(model("llama4", 4, with).unwrap().window, 8192, "it takes no other");
    assert!(model("gpt-oss", 4, &[]).unwrap_err().contains("`gpt-oss.attention.sliding_window` is missing"));
    assert!(model("gemma4", 4, with).unwrap_err().contains("has to be an array"));
}

#[test]
fn heads_have_their_sizes() {
    let attention =
        |keys: &[(&str, Value)]| model("llama", 2, keys).unwrap().layers.into_iter().map(|l| l.attention);
    let plain = |key, value| Some(Attention { key, value, sliding: false });
    assert!(attention(&[]).eq([plain(32, 32); 2]), "64 elements over 4 heads");
    let given = [("attention.key_length", Value::U32(8)), ("attention.value_length", Value::U32(24))];
    assert!(attention(&given).eq([plain(16, 48); 2]));
    let each = [("attention.head_count_kv", Value::Numbers(vec![0, 4]))];
    assert!(attention(&each).eq([None, plain(64, 64)]), "without heads it keeps nothing");

    let sliding = [
        ("attention.sliding_window", Value::U32(512)),
        ("attention.sliding_window_pattern", Value::Marks(vec![true, false])),
        ("attention.key_length_swa", Value::U32(8)),
        ("attention.value_length_swa", Value::U32(4)),
    ];
    let shape = model("gemma4", 2, &sliding).unwrap();
    assert_eq!(shape.layers[0].attention, Some(Attention { key: 16, value: 8, sliding: true }));
    assert_eq!(shape.layers[1].attention, plain(32, 32));
}

#[test]
fn compressed_keys_have_no_values() {
    let old = [
        ("attention.head_count_kv", Value::U32(1)),
        ("attention.key_length", Value::U32(576)),
        ("attention.value_length", Value::U32(512)),
    ];
    let mut new = old.to_vec();
    new.push(("attention.key_length_mla", Value::U32(192)));
    new.push(("attention.value_length_mla", Value::U32(128)));
    let kept = |shape: &Shape| shape.layers[0].attention.map(|attention| (attention.key, attention.value));
    assert_eq!(
        kept(&model("deepseek2", 1, &old).unwrap()),
        Some((576, 512)),
        "without _mla it is not compressed"
    );
    assert_eq!(kept(&model("deepseek2", 1, &new).unwrap()), Some((576, 0)));
    new.push(("attention.indexer.key_length", Value::U32(128)));
    assert_eq!(
        kept(&model("deepseek32", 1, &new).unwrap()),
        Some((704, 0)),
        "its index is kept beside the keys"
    );
    assert_eq!(kept(&model("deepseek2", 1, &new).unwrap()), Some((576, 0)), "it keeps no index");
}

#[test]
fn layers_that_use_the_keys_of_earlier_ones_keep_none() {
    let gemma4 = [
        ("attention.sliding_window", Value::U32(512)),
        ("attention.sliding_window_pattern", Value::Marks(vec![true, false, true, false, true, false])),
        ("attention.shared_kv_layers", Value::U32(2)),
    ];
    assert_eq!(layers("gemma4", 6, &gemma4), "sgsg--");
    let gemma3n = [("attention.sliding_window", Value::U32(512))];
    assert_eq!(layers("gemma3n", 22, &gemma3n), "ssssgssssgssssgssssg--", "always the first 20");
}

#[test]
fn states_have_their_sizes() {
    let ssm = |groups: u32| {
        vec![
            ("ssm.conv_kernel", Value::U32(4)),
            ("ssm.inner_size", Value::U32(128)),
            ("ssm.state_size", Value::U32(16)),
            ("ssm.group_count", Value::U32(groups)),
        ]
    };
    let state = |architecture: &str, keys: &[(&str, Value)]| {
        let shape = model(architecture, 4, keys).unwrap();
        let state = shape.layers.iter().find_map(|layer| layer.recurrent).unwrap();
        (drawn(&shape), state.convolution, state.state)
    };
    let some = ("attention.head_count_kv", Value::Numbers(vec![0, 0, 2, 0]));
    let and =
        |keys: Vec<(&'static str, Value)>, more: &[(&'static str, Value)]| [keys, more.to_vec()].concat();
    let hybrid = 3 * (128 + 2 * 2 * 16);
    assert_eq!(state("qwen35", &ssm(2)), ("rrrg".into(), hybrid, 16 * 128));
    assert_eq!(state("qwen3next", &ssm(2)).0, "rrrg");
    let every = and(ssm(2), &[("full_attention_interval", Value::U32(2))]);
    assert_eq!(state("qwen35moe", &every).0, "rgrg");
    let marked = and(ssm(2), &[("attention.recurrent_layers", Value::Marks(vec![false, true, true, true]))]);
    assert_eq!(state("qwen35", &marked).0, "grrr");
    assert_eq!(state("mamba", &ssm(0)), ("rrrr".into(), 3 * 128, 16 * 128));
    assert_eq!(state("falcon-h1", &ssm(2)).0, "bbbb");
    for architecture in ["jamba", "granitehybrid", "plamo2"] {
        assert_eq!(
            state(architecture, &and(ssm(2), std::slice::from_ref(&some))).0,
            "rrgr",
            "{architecture}"
        );
    }
    let widths = ("feed_forward_length", Value::Numbers(vec![0, 256, 0, 0]));
    assert_eq!(state("nemotron_h", &and(ssm(2), &[some.clone(), widths])).0, "r-gr");
    let lfm2 = [some.clone(), ("shortconv.l_cache", Value::U32(3))];
    assert_eq!(state("lfm2", &lfm2), ("rrgr".into(), 2 * 64, 0));
    let sliding = [lfm2.to_vec(), vec![("attention.sliding_window", Value::U32(512))]].concat();
    assert_eq!(state("lfm2", &sliding).0, "rrsr");
    let kda = [some, ("kda.head_dim", Value::U32(16)), ("ssm.conv_kernel", Value::U32(4))];
    assert_eq!(state("kimi-linear", &kda), ("rrgr".into(), 3 * 3 * 4 * 16, 16 * 16 * 4));
    let wkv = [("wkv.head_size", Value::U32(16))];
    assert_eq!(state("rwkv7", &wkv), ("rrrr".into(), 2 * 64, 64 * 16));
    let shift = [wkv[0].clone(), ("token_shift_count", Value::U32(1))];
    assert_eq!(state("rwkv6qwen2", &shift).1, 64);
}

#[test]
fn layers_that_predict_further_tokens_come_last() {
    let next = ("nextn_predict_layers", Value::U32(1));
    assert_eq!(layers("glm4moe", 4, std::slice::from_ref(&next)), "gggG");
    let ssm = [next, ("ssm.state_size", Value::U32(16)), ("ssm.inner_size", Value::U32(16))];
    assert_eq!(layers("qwen35", 5, &ssm), "rrrgG");
    assert!(model("glm4moe", 4, &[("nextn_predict_layers", Value::U32(5))]).is_err());
}

#[test]
fn what_is_not_known_is_said() {
    let unsure = |architecture| model(architecture, 2, &[]).unwrap().unsure;
    assert_eq!(unsure("llama"), None);
    assert_eq!(unsure("made-up"), Some("this Berth does not know its architecture".to_owned()));
    assert!(unsure("minimax-m3").unwrap().contains("index"));
    assert_eq!((layers("bert", 2, &[]), unsure("bert")), ("--".to_owned(), None));
    assert_eq!(
        model("mamba", 1, &[]).unwrap().layers[0].recurrent,
        Some(Recurrent { convolution: 0, state: 0 })
    );
}
