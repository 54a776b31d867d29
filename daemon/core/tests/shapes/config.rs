//! `config.json` and the headers of safetensors say the same as the GGUF file of the same model.

use berth_core::bytes::Bytes;
use berth_core::safetensors::{self, File};
use berth_core::shape::Shape;
use shapes::models;
use shapes::safetensors::{Tensor, header};

use super::{drawn, read};

fn file(tensors: &[Tensor<'_>]) -> File {
    let (header, length) = header(tensors);
    safetensors::read(&mut header.as_slice(), length).unwrap()
}

fn shape(config: &str) -> Shape {
    safetensors::shape(config.as_bytes(), Vec::new()).unwrap()
}

/// A model's own `config.json`, as far as it is read, and the name of its GGUF file.
const CONFIGS: [(&str, &str); 5] = [
    (
        "qwen3-30b-a3b",
        r#"{"model_type":"qwen3_moe","hidden_size":2048,"num_hidden_layers":48,"num_attention_heads":32,
        "num_key_value_heads":4,"head_dim":128,"intermediate_size":6144,"moe_intermediate_size":768,"num_experts":128,
        "num_experts_per_tok":8,"vocab_size":151936,"max_position_embeddings":40960,"sliding_window":null,
        "use_sliding_window":false}"#,
    ),
    (
        "llama-3.3-70b",
        r#"{"model_type":"llama","hidden_size":8192,"num_hidden_layers":80,"num_attention_heads":64,
        "num_key_value_heads":8,"intermediate_size":28672,"vocab_size":128256,"max_position_embeddings":131072}"#,
    ),
    (
        "qwen3.5-9b",
        r#"{"model_type":"qwen3_5","vision_config":{"depth":27},"text_config":{"model_type":"qwen3_5_text",
        "hidden_size":4096,"num_hidden_layers":32,"num_attention_heads":16,"num_key_value_heads":4,"head_dim":256,
        "intermediate_size":12288,"vocab_size":248320,"max_position_embeddings":262144,"full_attention_interval":4,
        "linear_conv_kernel_dim":4,"linear_key_head_dim":128,"linear_value_head_dim":128,"linear_num_key_heads":16,
        "linear_num_value_heads":32}}"#,
    ),
    (
        "qwen3.6-27b",
        r#"{"model_type":"qwen3_5","text_config":{"hidden_size":5120,"num_hidden_layers":64,"num_attention_heads":24,
        "num_key_value_heads":4,"head_dim":256,"intermediate_size":17408,"vocab_size":248320,
        "max_position_embeddings":262144,"linear_conv_kernel_dim":4,"linear_key_head_dim":128,
        "linear_value_head_dim":128,"linear_num_key_heads":16,"linear_num_value_heads":48,
        "mtp_num_hidden_layers":1}}"#,
    ),
    (
        "gemma4-12b",
        r#"{"model_type":"gemma4","text_config":{"hidden_size":3840,"num_hidden_layers":48,"num_attention_heads":16,
        "num_key_value_heads":8,"head_dim":256,"global_head_dim":512,"num_global_key_value_heads":1,
        "intermediate_size":15360,"vocab_size":262144,"max_position_embeddings":262144,"sliding_window":1024,
        "sliding_window_pattern":6}}"#,
    ),
];

#[test]
fn config_and_gguf_agree() {
    let files = models::published();
    for (name, config) in CONFIGS {
        let gguf = read(&files.iter().find(|(found, _)| *found == name).unwrap().1);
        let config = shape(config);
        assert_eq!(drawn(&config), drawn(&gguf), "{name}");
        for (one, other) in config.layers.iter().zip(&gguf.layers) {
            assert_eq!((one.attention, one.recurrent), (other.attention, other.recurrent), "{name}");
        }
        let sizes = |shape: &Shape| {
            let Shape { embedding, vocabulary, trained_context, heads, window, .. } = *shape;
            (embedding, vocabulary, trained_context, heads, window, shape.experts, shape.experts_used)
        };
        assert_eq!(sizes(&config), sizes(&gguf), "{name}");
        assert_eq!(config.expert_feed_forward, gguf.expert_feed_forward, "{name}");
    }
}

#[test]
fn layers_of_many_kinds() {
    let base = r#""hidden_size":64,"num_attention_heads":4,"num_hidden_layers":4"#;
    let layers = |more: &str| drawn(&shape(&format!("{{{base},{more}}}")));
    assert_eq!(layers(r#""model_type":"mistral","sliding_window":4096"#), "ssss");
    assert_eq!(layers(r#""model_type":"mistral","sliding_window":null"#), "gggg");
    assert_eq!(layers(r#""model_type":"qwen2","sliding_window":4096,"use_sliding_window":false"#), "gggg");
    assert_eq!(layers(r#""model_type":"gemma2","sliding_window":4096"#), "sgsg");
    let types = r#""layer_types":["linear_attention","sliding_attention","full_attention","conv"],"sliding_window":8"#;
    assert_eq!(layers(types), "rsgr");
    assert_eq!(layers(r#""hybrid_override_pattern":"M-*E""#), "r-g-");
    assert_eq!(layers(r#""attn_layer_period":2,"attn_layer_offset":1"#), "rgrg");
    assert_eq!(layers(r#""model_type":"falcon_h1""#), "bbbb");
    assert_eq!(layers(r#""num_kv_shared_layers":2"#), "gg--");
    assert_eq!(layers(r#""num_nextn_predict_layers":1"#), "ggggG");
    let deepseek = shape(&format!("{{{base},\"kv_lora_rank\":512,\"qk_rope_head_dim\":64}}"));
    assert_eq!(deepseek.layers[0].attention.map(|a| (a.key, a.value)), Some((576, 0)));
    let other = shape(&format!("{{{base},\"layer_types\":[\"a\",\"a\",\"a\",\"a\"]}}"));
    assert!(other.unsure.unwrap().contains("of the type `a`"));
}

#[test]
fn tensors_fall_into_their_layers() {
    let config = r#"{"hidden_size":64,"num_attention_heads":4,"num_hidden_layers":2,"model_type":"x"}"#;
    let files = vec![
        file(&[
            ("model.embed_tokens.weight", "BF16", 16, &[10, 64]),
            ("model.layers.0.mlp.experts.0.up_proj.qweight", "I32", 32, &[8]),
            ("model.layers.0.mlp.experts.1.up_proj.scales", "F8_E4M3", 8, &[8]),
            ("model.layers.0.mlp.shared_experts.up_proj.weight", "U8", 8, &[3]),
            ("model.visual.layers.1.attn.weight", "F4", 4, &[6]),
        ]),
        file(&[
            ("model.layers.0.mlp.experts.2.up_proj.weight", "NOT_YET", 8, &[5]),
            ("model.layers.1.self_attn.q_proj.weight", "F16", 16, &[64]),
            ("model.layers.2.eh_proj.weight", "F16", 16, &[7]),
            ("mtp.layers.1.norm.weight", "F32", 32, &[1]),
            ("mtp.fc.weight", "F32", 32, &[2]),
        ]),
    ];
    let shape = safetensors::shape(config.as_bytes(), files).unwrap();
    let sizes: Vec<_> =
        shape.layers.iter().map(|layer| (layer.weights.0, layer.experts.0, layer.next_token)).collect();
    let expected = [(32 + 8 + 3 + 5, 32 + 8 + 5, false), (128, 0, false), (14 + 8, 0, true), (4, 0, true)];
    assert_eq!(sizes, expected);
    let experts = shape.tensors.iter().find(|tensor| tensor.name == "model.layers.0.mlp.experts").unwrap();
    assert_eq!((experts.bytes, experts.layer), (Bytes(45), Some(0)), "all files' experts of a layer are one");
    assert_eq!(shape.weights(), Bytes(1280 + 48 + 3 + 128 + 14 + 12));
    let twice = vec![file(&[("a", "U8", 8, &[1])]), file(&[("a", "U8", 8, &[1])])];
    let error = safetensors::shape(config.as_bytes(), twice).unwrap_err();
    assert_eq!(error.to_string(), "the tensor `a` is in two files");
}

#[test]
fn the_index_names_the_files() {
    let index = r#"{"metadata":{"total_size":1},"weight_map":{"a":"m-2.safetensors","b":"m-1.safetensors",
        "c":"m-2.safetensors"}}"#;
    assert_eq!(safetensors::files(index.as_bytes()).unwrap(), ["m-1.safetensors", "m-2.safetensors"]);
    for (bad, says) in [
        (r#"{"weight_map":{"a":"../../secret.safetensors"}}"#, "`../../secret.safetensors`"),
        (r#"{"weight_map":{"a":"m.bin"}}"#, "`m.bin`"),
        (r#"{"weight_map":{"a":1}}"#, "the index of its files can't be read"),
        ("{}", "missing field `weight_map`"),
    ] {
        let error = safetensors::files(bad.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_config_that_makes_no_sense_is_refused() {
    for (config, says) in [
        ("[]", "config.json has no `num_hidden_layers`"),
        (r#"{"num_hidden_layers":2}"#, "has no `hidden_size`"),
        (r#"{"num_hidden_layers":1e9,"hidden_size":1}"#, "`num_hidden_layers` of config.json has to be"),
        (r#"{"num_hidden_layers":99999,"hidden_size":1}"#, "at most 1024"),
        (r#"{"num_hidden_layers":2,"hidden_size":-1}"#, "`hidden_size` of config.json has to be"),
        (
            r#"{"num_hidden_layers":2,"hidden_size":4294967295,"num_attention_heads":1}"#,
            "`head_dim` of config.json",
        ),
        (r#"{"num_hidden_layers":2,"hidden_size":1,"layer_types":["conv"]}"#, "one for each layer"),
        ("{", "its config.json can't be read"),
    ] {
        let error = safetensors::shape(config.as_bytes(), Vec::new()).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}
