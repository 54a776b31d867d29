//! Shapes of models that people run, and the same in small.

use crate::gguf::{Gguf, Type};

/// What all of them have. Sizes of heads are those of layers that see everything.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Layers, without those that only predict further tokens.
    pub layers: u32,
    /// Width of the embedding.
    pub embedding: u32,
    /// Heads of queries.
    pub heads: u32,
    /// Heads of keys.
    pub key_heads: u32,
    /// Width of a head.
    pub head: u32,
    /// Width of a dense feed-forward network.
    pub feed_forward: u32,
    /// Experts, those used for a token, and their width; none for a dense model.
    pub experts: Option<(u32, u32, u32)>,
    /// Tokens in the vocabulary.
    pub vocabulary: u32,
    /// Type of its matrices.
    pub weights: Type,
}

impl Sizes {
    /// A model so small that it loads at once.
    pub const SMALL: Self = Self {
        layers: 4,
        embedding: 256,
        heads: 4,
        key_heads: 2,
        head: 64,
        feed_forward: 512,
        experts: None,
        vocabulary: 320,
        weights: Type::F16,
    };
}

/// A model that is being put together.
struct Build {
    file: Gguf,
    sizes: Sizes,
}

impl Build {
    fn new(architecture: &str, sizes: Sizes, context: u32) -> Self {
        let mut file = Gguf::new(architecture);
        file.key("general.name", "made by tests/shapes");
        file.set("context_length", context)
            .set("embedding_length", sizes.embedding)
            .set("block_count", sizes.layers)
            .set("feed_forward_length", sizes.feed_forward)
            .set("attention.head_count", sizes.heads)
            .set("attention.key_length", sizes.head)
            .set("attention.value_length", sizes.head)
            .set("attention.layer_norm_rms_epsilon", 1e-6f32)
            .set("rope.freq_base", 10_000.0f32)
            .set("vocab_size", sizes.vocabulary);
        if let Some((experts, used, width)) = sizes.experts {
            file.set("expert_count", experts)
                .set("expert_used_count", used)
                .set("expert_feed_forward_length", width);
        }
        Self { file, sizes }
    }

    fn matrix(&mut self, name: &str, sizes: &[u32]) {
        let sizes: Vec<u64> = sizes.iter().map(|size| u64::from(*size)).collect();
        self.file.tensor(name, &sizes, self.sizes.weights);
    }

    fn vector(&mut self, name: &str, sizes: &[u32]) {
        let sizes: Vec<u64> = sizes.iter().map(|size| u64::from(*size)).collect();
        self.file.tensor(name, &sizes, Type::F32);
    }

    /// The embedding, and what comes after the last layer; tied ones have no output of their own.
    fn ends(&mut self, tied: bool) {
        let Sizes { embedding, vocabulary, .. } = self.sizes;
        self.matrix("token_embd.weight", &[embedding, vocabulary]);
        self.vector("output_norm.weight", &[embedding]);
        if !tied {
            self.matrix("output.weight", &[embedding, vocabulary]);
        }
    }

    /// Queries, keys, values and their output, with norms of queries and keys where asked for.
    fn attention(&mut self, layer: u32, queries: u32, keys: u32, head: u32, norms: bool) {
        let embedding = self.sizes.embedding;
        let name = |what: &str| format!("blk.{layer}.{what}.weight");
        self.vector(&name("attn_norm"), &[embedding]);
        self.matrix(&name("attn_q"), &[embedding, queries]);
        self.matrix(&name("attn_k"), &[embedding, keys]);
        self.matrix(&name("attn_v"), &[embedding, keys]);
        self.matrix(&name("attn_output"), &[self.sizes.heads * head, embedding]);
        if norms {
            self.vector(&name("attn_q_norm"), &[head]);
            self.vector(&name("attn_k_norm"), &[head]);
        }
    }

    fn dense(&mut self, layer: u32) {
        let Sizes { embedding, feed_forward, .. } = self.sizes;
        let name = |what: &str| format!("blk.{layer}.{what}.weight");
        self.matrix(&name("ffn_gate"), &[embedding, feed_forward]);
        self.matrix(&name("ffn_up"), &[embedding, feed_forward]);
        self.matrix(&name("ffn_down"), &[feed_forward, embedding]);
    }

    fn experts(&mut self, layer: u32) {
        let embedding = self.sizes.embedding;
        let (experts, _, width) = self.sizes.experts.unwrap_or_default();
        let name = |what: &str| format!("blk.{layer}.{what}.weight");
        self.vector(&name("ffn_gate_inp"), &[embedding, experts]);
        self.matrix(&name("ffn_gate_exps"), &[embedding, width, experts]);
        self.matrix(&name("ffn_down_exps"), &[width, embedding, experts]);
        self.matrix(&name("ffn_up_exps"), &[embedding, width, experts]);
    }

    fn norm(&mut self, layer: u32, what: &str) {
        self.vector(&format!("blk.{layer}.{what}.weight"), &[self.sizes.embedding]);
    }
}

/// Layers that all see everything: Llama.
pub fn llama(sizes: Sizes) -> Gguf {
    let mut build = Build::new("llama", sizes, 131_072);
    build.file.set("attention.head_count_kv", sizes.key_heads).set("rope.dimension_count", sizes.head);
    build.ends(false);
    for layer in 0..sizes.layers {
        build.attention(layer, sizes.heads * sizes.head, sizes.key_heads * sizes.head, sizes.head, false);
        build.norm(layer, "ffn_norm");
        build.dense(layer);
    }
    build.file
}

/// Experts in every layer: Qwen3 MoE.
pub fn qwen3moe(sizes: Sizes) -> Gguf {
    let mut build = Build::new("qwen3moe", sizes, 40_960);
    build.file.set("attention.head_count_kv", sizes.key_heads);
    build.ends(false);
    for layer in 0..sizes.layers {
        build.attention(layer, sizes.heads * sizes.head, sizes.key_heads * sizes.head, sizes.head, true);
        build.norm(layer, "ffn_norm");
        build.experts(layer);
    }
    build.file
}

/// Layers that slide by the architecture's own pattern: Gemma 2 (every second) or 3 (five of six).
pub fn gemma(architecture: &str, sizes: Sizes, window: u32) -> Gguf {
    let mut build = Build::new(architecture, sizes, 32_768);
    build.file.set("attention.head_count_kv", sizes.key_heads).set("attention.sliding_window", window);
    build.ends(true);
    for layer in 0..sizes.layers {
        let norms = architecture == "gemma3";
        build.attention(layer, sizes.heads * sizes.head, sizes.key_heads * sizes.head, sizes.head, norms);
        build.norm(layer, "post_attention_norm");
        build.norm(layer, "ffn_norm");
        build.dense(layer);
        build.norm(layer, "post_ffw_norm");
    }
    build.file
}

/// What Gemma 4 has beside the sizes.
#[derive(Debug, Clone, Copy)]
pub struct Gemma4 {
    /// Every so many layers one sees everything.
    pub every: u32,
    /// Tokens that the others see.
    pub window: u32,
    /// Their heads of keys.
    pub sliding_heads: u32,
    /// The width of their heads.
    pub sliding_head: u32,
    /// The last so many layers use the keys of the last two before them, of which the second sees everything.
    pub shared: u32,
}

/// Sliding layers with heads of their own sizes, shared keys, experts beside a dense network: Gemma 4.
pub fn gemma4(sizes: Sizes, more: Gemma4) -> Gguf {
    let global = |layer: u32| (layer + 1).is_multiple_of(more.every);
    let mut build = Build::new("gemma4", sizes, 262_144);
    let heads =
        |layer| i32::try_from(if global(layer) { sizes.key_heads } else { more.sliding_heads }).unwrap_or(0);
    build
        .file
        .set("attention.head_count_kv", (0..sizes.layers).map(heads).collect::<Vec<i32>>())
        .set("attention.sliding_window", more.window)
        .set(
            "attention.sliding_window_pattern",
            (0..sizes.layers).map(|layer| !global(layer)).collect::<Vec<bool>>(),
        )
        .set("attention.key_length_swa", more.sliding_head)
        .set("attention.value_length_swa", more.sliding_head)
        .set("attention.shared_kv_layers", more.shared)
        .set("embedding_length_per_layer_input", 0u32)
        .set("rope.dimension_count", sizes.head)
        .set("rope.dimension_count_swa", more.sliding_head);
    build.ends(true);
    build.vector("rope_freqs.weight", &[sizes.head / 2]);
    for layer in 0..sizes.layers {
        let (head, keys) = if global(layer) {
            (sizes.head, sizes.key_heads)
        } else {
            (more.sliding_head, more.sliding_heads)
        };
        build.attention(layer, sizes.heads * head, keys * head, head, true);
        build.norm(layer, "post_attention_norm");
        build.norm(layer, "ffn_norm");
        build.dense(layer);
        build.norm(layer, "post_ffw_norm");
        if sizes.experts.is_some() {
            build.experts(layer);
            build.vector(&format!("blk.{layer}.ffn_gate_inp.scale"), &[sizes.embedding]);
            build.norm(layer, "pre_ffw_norm_2");
            build.norm(layer, "post_ffw_norm_1");
            build.norm(layer, "post_ffw_norm_2");
        }
    }
    build.file
}

/// What a hybrid has beside the sizes.
#[derive(Debug, Clone, Copy)]
pub struct Hybrid {
    /// Width of the state.
    pub state: u32,
    /// Heads of keys in recurrent layers.
    pub groups: u32,
    /// Heads of values there.
    pub values: u32,
    /// Layers that only predict further tokens.
    pub next: u32,
}

/// Three recurrent layers of four: Qwen3.5, and the 27B of Qwen3.6.
pub fn qwen35(sizes: Sizes, more: Hybrid) -> Gguf {
    let mut build = Build::new("qwen35", sizes, 262_144);
    let inner = more.state * more.values;
    let count = sizes.layers + more.next;
    for (name, value) in &mut build.file.keys {
        if name == "qwen35.block_count" {
            *value = count.into();
        }
    }
    build
        .file
        .set("attention.head_count_kv", sizes.key_heads)
        .set("rope.dimension_count", sizes.head / 4)
        .set("rope.dimension_sections", vec![3, 3, 2, 0])
        .set("ssm.conv_kernel", 4u32)
        .set("ssm.inner_size", inner)
        .set("ssm.state_size", more.state)
        .set("ssm.time_step_rank", more.values)
        .set("ssm.group_count", more.groups)
        .set("full_attention_interval", 4u32);
    if more.next > 0 {
        build.file.set("nextn_predict_layers", more.next);
    }
    build.ends(false);
    let embedding = sizes.embedding;
    for layer in 0..count {
        let name = |what: &str| format!("blk.{layer}.{what}");
        if (layer + 1).is_multiple_of(4) || layer >= sizes.layers {
            build.attention(
                layer,
                sizes.heads * sizes.head * 2,
                sizes.key_heads * sizes.head,
                sizes.head,
                true,
            );
        } else {
            build.norm(layer, "attn_norm");
            let width = more.state * more.groups * 2 + inner;
            build.matrix(&name("attn_qkv.weight"), &[embedding, width]);
            build.matrix(&name("attn_gate.weight"), &[embedding, inner]);
            build.vector(&name("ssm_conv1d.weight"), &[4, width]);
            build.vector(&name("ssm_dt.bias"), &[more.values]);
            build.vector(&name("ssm_a"), &[more.values]);
            build.matrix(&name("ssm_beta.weight"), &[embedding, more.values]);
            build.matrix(&name("ssm_alpha.weight"), &[embedding, more.values]);
            build.vector(&name("ssm_norm.weight"), &[more.state]);
            build.matrix(&name("ssm_out.weight"), &[inner, embedding]);
        }
        build.norm(layer, "post_attention_norm");
        build.dense(layer);
        if layer >= sizes.layers {
            build.matrix(&name("nextn.eh_proj.weight"), &[2 * embedding, embedding]);
            build.norm(layer, "nextn.enorm");
            build.norm(layer, "nextn.hnorm");
        }
    }
    build.file
}

/// Compressed keys and no values, experts but in the first layer: DeepSeek V2.
pub fn deepseek2(sizes: Sizes, rank: u32, rotated: u32) -> Gguf {
    let mut build = Build::new("deepseek2", sizes, 163_840);
    for (name, value) in &mut build.file.keys {
        match name.as_str() {
            "deepseek2.attention.key_length" => *value = (rank + rotated).into(),
            "deepseek2.attention.value_length" => *value = rank.into(),
            _ => {}
        }
    }
    let key = sizes.head + rotated;
    let (_, _, width) = sizes.experts.unwrap_or_default();
    build
        .file
        .set("attention.head_count_kv", 1u32)
        .set("attention.key_length_mla", key)
        .set("attention.value_length_mla", sizes.head)
        .set("attention.kv_lora_rank", rank)
        .set("attention.q_lora_rank", rank)
        .set("rope.dimension_count", rotated)
        .set("leading_dense_block_count", 1u32)
        .set("expert_shared_count", 1u32)
        .set("expert_weights_scale", 1.0f32);
    build.ends(false);
    let Sizes { embedding, heads, .. } = sizes;
    for layer in 0..sizes.layers {
        let name = |what: &str| format!("blk.{layer}.{what}.weight");
        build.norm(layer, "attn_norm");
        build.vector(&name("attn_q_a_norm"), &[rank]);
        build.vector(&name("attn_kv_a_norm"), &[rank]);
        build.matrix(&name("attn_q_a"), &[embedding, rank]);
        build.matrix(&name("attn_q_b"), &[rank, heads * key]);
        build.matrix(&name("attn_kv_a_mqa"), &[embedding, rank + rotated]);
        build.matrix(&name("attn_k_b"), &[sizes.head, rank, heads]);
        build.matrix(&name("attn_v_b"), &[rank, sizes.head, heads]);
        build.matrix(&name("attn_output"), &[heads * sizes.head, embedding]);
        build.norm(layer, "ffn_norm");
        if layer == 0 {
            build.dense(layer);
        } else {
            build.experts(layer);
            build.matrix(&name("ffn_gate_shexp"), &[embedding, width]);
            build.matrix(&name("ffn_down_shexp"), &[width, embedding]);
            build.matrix(&name("ffn_up_shexp"), &[embedding, width]);
        }
    }
    build.file
}

/// A vocabulary that llama-server takes: three marks, the bytes of ASCII, and pieces of nothing in particular. Without
/// the other bytes whatever is generated is text; prompts have to be ASCII.
fn with_vocabulary(mut file: Gguf, vocabulary: u32) -> Gguf {
    let marks = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter();
    let bytes = (0..128).map(|byte| format!("<0x{byte:02X}>"));
    let space = std::iter::once("\u{2581}".to_owned());
    let pieces = (132..vocabulary).map(|number| format!("\u{2581}p{number}"));
    let tokens: Vec<String> = marks.chain(bytes).chain(space).chain(pieces).collect();
    let kinds = (0..tokens.len()).map(|number| match number {
        0 => 2,
        1 | 2 => 3,
        3..=130 => 6,
        _ => 1,
    });
    file.key("tokenizer.ggml.model", "llama")
        .key("tokenizer.ggml.scores", vec![0.0f32; tokens.len()])
        .key("tokenizer.ggml.token_type", kinds.collect::<Vec<i32>>())
        .key("tokenizer.ggml.tokens", tokens)
        .key("tokenizer.ggml.bos_token_id", 1u32)
        .key("tokenizer.ggml.eos_token_id", 2u32);
    file
}

/// Small models with random weights that llama-server loads, one of each kind of cache.
pub fn small() -> Vec<(&'static str, Gguf)> {
    let sizes = Sizes::SMALL;
    let experts = Sizes { experts: Some((8, 2, 128)), ..sizes };
    let gemma = Gemma4 { every: 2, window: 512, sliding_heads: 2, sliding_head: 64, shared: 2 };
    let global = Sizes { layers: 6, head: 128, key_heads: 1, ..sizes };
    let hybrid = Hybrid { state: 64, groups: 2, values: 4, next: 0 };
    [
        ("dense", llama(sizes)),
        ("moe", qwen3moe(experts)),
        ("sliding", self::gemma("gemma3", Sizes { layers: 7, ..sizes }, 512)),
        ("every-second", self::gemma("gemma2", sizes, 1024)),
        ("shared", gemma4(global, gemma)),
        ("shared-moe", gemma4(Sizes { experts: experts.experts, ..global }, gemma)),
        ("hybrid", qwen35(sizes, hybrid)),
        ("hybrid-next", qwen35(sizes, Hybrid { next: 1, ..hybrid })),
        ("mla", deepseek2(experts, 128, 32)),
        ("quantized", llama(Sizes { weights: Type::Q8_0, ..sizes })),
    ]
    .map(|(name, file)| (name, with_vocabulary(file, sizes.vocabulary)))
    .into_iter()
    .collect()
}

/// The sizes of Gemma-4 26B-A4B: 30 layers, of which every sixth sees all of the context.
const GEMMA4_26B: Sizes = Sizes {
    layers: 30,
    embedding: 2816,
    heads: 16,
    key_heads: 2,
    head: 512,
    feed_forward: 2112,
    experts: Some((128, 8, 704)),
    vocabulary: 262_144,
    weights: Type::Q8_0,
};
const GEMMA4_SLIDES: Gemma4 =
    Gemma4 { every: 6, window: 1024, sliding_heads: 8, sliding_head: 256, shared: 0 };

/// Gemma-4 26B-A4B with weights of this type.
pub fn gemma4_26b(weights: Type) -> Gguf {
    gemma4(Sizes { weights, ..GEMMA4_26B }, GEMMA4_SLIDES)
}

/// Shapes of models of which measurements were published, as headers alone.
pub fn published() -> Vec<(&'static str, Gguf)> {
    let (gemma, slides) = (GEMMA4_26B, GEMMA4_SLIDES);
    let qwen = Sizes {
        layers: 64,
        embedding: 5120,
        heads: 24,
        key_heads: 4,
        head: 256,
        feed_forward: 17_408,
        experts: None,
        vocabulary: 248_320,
        weights: Type::Q4K,
    };
    let states = Hybrid { state: 128, groups: 16, values: 48, next: 1 };
    vec![
        ("gemma4-26b-a4b", gemma4(gemma, slides)),
        (
            "gemma4-12b",
            gemma4(
                Sizes {
                    layers: 48,
                    embedding: 3840,
                    key_heads: 1,
                    feed_forward: 15_360,
                    experts: None,
                    weights: Type::Q4K,
                    ..gemma
                },
                slides,
            ),
        ),
        ("qwen3.6-27b", qwen35(qwen, states)),
        (
            "qwen3.5-9b",
            qwen35(
                Sizes { layers: 32, embedding: 4096, heads: 16, feed_forward: 12_288, ..qwen },
                Hybrid { values: 32, next: 0, ..states },
            ),
        ),
        (
            "qwen3-30b-a3b",
            qwen3moe(Sizes {
                layers: 48,
                embedding: 2048,
                heads: 32,
                key_heads: 4,
                head: 128,
                feed_forward: 6144,
                experts: Some((128, 8, 768)),
                vocabulary: 151_936,
                weights: Type::Q4K,
            }),
        ),
        (
            "llama-3.3-70b",
            llama(Sizes {
                layers: 80,
                embedding: 8192,
                heads: 64,
                key_heads: 8,
                head: 128,
                feed_forward: 28_672,
                experts: None,
                vocabulary: 128_256,
                weights: Type::Q4K,
            }),
        ),
    ]
}
