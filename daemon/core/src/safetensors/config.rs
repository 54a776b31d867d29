//! What `config.json` says of a model's layers.

use serde_json::Value;

use super::{Error, MOST_LAYERS};
use crate::shape::{Attention, Layer, Recurrent, Shape};

/// More elements than the keys or the state of any layer have.
const MOST_ELEMENTS: u64 = 1 << 30;

/// The part of a `config.json` that describes the language model.
struct Config<'a>(&'a Value);

impl Config<'_> {
    /// The first of these keys that is there and not null, bounded so that three of them can be multiplied.
    fn number(&self, keys: &[&'static str]) -> Result<Option<u64>, Error> {
        let Some((key, value)) =
            keys.iter().find_map(|key| Some((*key, self.0.get(key).filter(|v| !v.is_null())?)))
        else {
            return Ok(None);
        };
        // Some give a number for each layer: the largest is what buffers are made for.
        let number = match value {
            Value::Array(list) => list.iter().filter_map(Value::as_u64).max(),
            value => value.as_u64(),
        };
        let fits = number.filter(|number| u32::try_from(*number).is_ok());
        fits.map(Some).ok_or(Error::Unfit { key, wanted: "a whole number below 4294967296" })
    }

    fn number_or(&self, keys: &[&'static str], otherwise: u64) -> Result<u64, Error> {
        Ok(self.number(keys)?.unwrap_or(otherwise))
    }

    fn texts(&self, key: &str) -> Option<Vec<&str>> {
        self.0
            .get(key)?
            .as_array()
            .map(|list| list.iter().map(|text| text.as_str().unwrap_or_default()).collect())
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.as_str()
    }
}

/// What a layer does with what came before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Sees,
    Slides,
    Recurs,
    /// Both at once: Falcon-H1.
    SeesAndRecurs,
    /// Only a feed-forward network.
    Nothing,
}

/// A shape without tensors.
pub(super) fn describe(config: &Value) -> Result<Shape, Error> {
    let whole = Config(config);
    let inner = ["text_config", "llm_config", "language_config", "thinker_config"]
        .iter()
        .find_map(|key| config.get(key));
    let inner = inner.map(|inner| inner.get("text_config").unwrap_or(inner));
    let text = Config(inner.unwrap_or(config));
    let kind = text.text("model_type").or(whole.text("model_type")).unwrap_or_default();
    let count = text
        .number(&["num_hidden_layers", "n_layer", "num_layers", "n_layers"])?
        .ok_or(Error::Missing { key: "num_hidden_layers" })?;
    let next = text.number_or(&["num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_layers"], 0)?;
    if count > MOST_LAYERS || next > MOST_LAYERS {
        return Err(Error::Unfit { key: "num_hidden_layers", wanted: "at most 1024" });
    }
    let embedding =
        text.number(&["hidden_size", "n_embd", "d_model"])?.ok_or(Error::Missing { key: "hidden_size" })?;
    let heads = text.number_or(&["num_attention_heads", "n_head"], 0)?;
    let experts =
        text.number_or(&["num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"], 0)?;
    let width = text.number_or(&["intermediate_size", "n_inner", "ffn_dim"], 0)?;
    let mut shape = Shape {
        architecture: whole.text("model_type").unwrap_or(kind).to_owned(),
        embedding,
        vocabulary: text.number_or(&["vocab_size"], 0)?,
        trained_context: text.number_or(&["max_position_embeddings", "n_positions", "max_seq_len"], 0)?,
        feed_forward: width,
        expert_feed_forward: if experts > 0 { text.number_or(&["moe_intermediate_size"], width)? } else { 0 },
        heads,
        experts,
        experts_used: text
            .number_or(&["num_experts_per_tok", "top_k_experts", "moe_topk", "num_experts_per_token"], 0)?,
        ..Shape::default()
    };
    let does = layers(&text, kind, count, &mut shape)?;
    let any = does.iter().any(|does| matches!(does, Does::Recurs | Does::SeesAndRecurs));
    let state = if any { state(&text, kind, embedding)? } else { Recurrent::default() };
    let own = count.saturating_sub(text.number_or(&["num_kv_shared_layers"], 0)?);
    for number in 0..count + next {
        let next_token = number >= count;
        let does = if next_token { Does::Sees } else { does[usize::try_from(number).unwrap_or(0)] };
        let attends =
            matches!(does, Does::Sees | Does::Slides | Does::SeesAndRecurs) && (next_token || number < own);
        let recurs = matches!(does, Does::Recurs | Does::SeesAndRecurs);
        let attention =
            attends.then(|| attention(&text, heads, embedding, does == Does::Slides)).transpose()?;
        shape.layers.push(Layer {
            attention: attention.filter(|attention| attention.key + attention.value > 0),
            recurrent: recurs.then_some(state),
            next_token,
            ..Layer::default()
        });
    }
    if !shape.layers.iter().any(|layer| layer.attention.is_some_and(|attention| attention.sliding)) {
        shape.window = 0;
    }
    Ok(shape)
}

fn attention(text: &Config<'_>, heads: u64, embedding: u64, sliding: bool) -> Result<Attention, Error> {
    let rank = text.number_or(&["kv_lora_rank"], 0)?;
    let rotated = text.number_or(&["qk_rope_head_dim"], 0)?;
    if rank > 0 && rank + rotated <= MOST_ELEMENTS {
        return Ok(Attention { key: rank + rotated, value: 0, sliding });
    }
    let queries = if text.0.get("multi_query").and_then(Value::as_bool) == Some(true) { 1 } else { heads };
    let mut keys = text.number_or(&["num_key_value_heads", "num_kv_heads", "n_head_kv"], queries)?;
    let mut head =
        text.number_or(&["head_dim", "attention_head_dim"], embedding.checked_div(heads).unwrap_or(0))?;
    if !sliding && text.0.get("global_head_dim").is_some() {
        head = text.number_or(&["global_head_dim"], head)?;
        keys = text.number_or(&["num_global_key_value_heads"], keys)?;
    }
    let (key, value) =
        (keys.saturating_mul(head), keys.saturating_mul(text.number_or(&["v_head_dim"], head)?));
    if key > MOST_ELEMENTS || value > MOST_ELEMENTS {
        return Err(Error::Unfit {
            key: "head_dim",
            wanted: "small enough for a cache that a machine can hold",
        });
    }
    Ok(Attention { key, value, sliding })
}

/// What each layer does; sets the window.
fn layers(text: &Config<'_>, kind: &str, count: u64, shape: &mut Shape) -> Result<Vec<Does>, Error> {
    let off = text.0.get("use_sliding_window").and_then(Value::as_bool) == Some(false);
    let window = if off { 0 } else { text.number_or(&["sliding_window", "attention_chunk_size"], 0)? };
    shape.window = window;
    let slides = if window > 0 { Does::Slides } else { Does::Sees };
    if let Some(types) = text.texts("layer_types").or_else(|| text.texts("layers_block_type")) {
        if types.len() as u64 != count {
            return Err(Error::Unfit { key: "layer_types", wanted: "one for each layer" });
        }
        let mut does = Vec::new();
        for said in types {
            does.push(match said {
                "full_attention" | "attention" | "global_attention" => Does::Sees,
                "sliding_attention" | "chunked_attention" | "local_attention" => slides,
                "linear_attention" | "mamba" | "mamba2" | "conv" | "recurrent" => Does::Recurs,
                "moe" | "mlp" => Does::Nothing,
                other => {
                    shape.unsure = Some(format!("what a layer of the type `{other}` keeps is not known"));
                    Does::Sees
                }
            });
        }
        return Ok(does);
    }
    if let Some(pattern) = text.text("hybrid_override_pattern") {
        let does: Vec<Does> = pattern
            .chars()
            .map(|letter| match letter {
                'M' => Does::Recurs,
                '*' => Does::Sees,
                _ => Does::Nothing,
            })
            .collect();
        if does.len() as u64 != count {
            return Err(Error::Unfit { key: "hybrid_override_pattern", wanted: "one letter for each layer" });
        }
        return Ok(does);
    }
    let every = |every: u64, rest: Does| {
        (1..=count).map(|layer| if layer.is_multiple_of(every) { Does::Sees } else { rest }).collect()
    };
    if text.0.get("linear_num_value_heads").is_some() {
        return Ok(every(text.number_or(&["full_attention_interval"], 4)?.max(1), Does::Recurs));
    }
    if let (Some(period), offset) =
        (text.number(&["attn_layer_period"])?, text.number_or(&["attn_layer_offset"], 0)?)
    {
        let sees = |layer: u64| layer.checked_rem(period) == Some(offset);
        return Ok((0..count).map(|layer| if sees(layer) { Does::Sees } else { Does::Recurs }).collect());
    }
    let pattern = text.number(&["sliding_window_pattern", "_sliding_window_pattern"])?;
    Ok(match (kind, pattern) {
        _ if kind.starts_with("falcon_h1") => vec![Does::SeesAndRecurs; usize::try_from(count).unwrap_or(0)],
        ("mamba" | "mamba2" | "falcon_mamba", _) => vec![Does::Recurs; usize::try_from(count).unwrap_or(0)],
        (_, Some(pattern)) => every(pattern.max(1), slides),
        ("gemma2", _) => every(2, slides),
        ("gemma3" | "gemma3_text", _) => every(6, slides),
        ("cohere2", _) => every(4, slides),
        _ => vec![slides; usize::try_from(count).unwrap_or(0)],
    })
}

/// What a recurrent layer keeps for each sequence.
fn state(text: &Config<'_>, kind: &str, embedding: u64) -> Result<Recurrent, Error> {
    let product = |numbers: &[u64]| numbers.iter().fold(1u64, |all, n| all.saturating_mul(*n));
    let state = if text.0.get("linear_num_value_heads").is_some() {
        let conv = text.number_or(&["linear_conv_kernel_dim"], 4)?.saturating_sub(1);
        let key = text.number_or(&["linear_key_head_dim"], 0)?;
        let keys = product(&[text.number_or(&["linear_num_key_heads"], 0)?, key]);
        let values = product(&[
            text.number_or(&["linear_num_value_heads"], 0)?,
            text.number_or(&["linear_value_head_dim"], 0)?,
        ]);
        let width = product(&[2, keys]).saturating_add(values);
        Recurrent { convolution: product(&[conv, width]), state: product(&[key, values]) }
    } else if kind.starts_with("lfm2") {
        let cached = text.number_or(&["conv_L_cache"], 3)?.saturating_sub(1);
        Recurrent { convolution: product(&[embedding, cached]), state: 0 }
    } else {
        let conv = text.number_or(&["mamba_d_conv", "conv_kernel", "d_conv"], 4)?.saturating_sub(1);
        let size = text.number_or(&["mamba_d_state", "ssm_state_size", "state_size", "d_state"], 0)?;
        let heads = text.number_or(&["mamba_n_heads", "mamba_num_heads"], 0)?;
        let head = text.number_or(&["mamba_d_head", "mamba_head_dim"], 0)?;
        let inner = match product(&[heads, head]) {
            0 => product(&[text.number_or(&["mamba_expand", "expand"], 2)?, embedding]),
            inner => inner,
        };
        let inner = text.number_or(&["mamba_d_ssm"], inner)?;
        let groups = text.number_or(&["mamba_n_groups", "n_groups"], 0)?;
        let width = inner.saturating_add(product(&[2, groups, size]));
        Recurrent { convolution: product(&[conv, width]), state: product(&[size, inner]) }
    };
    if state.convolution > MOST_ELEMENTS || state.state > MOST_ELEMENTS {
        return Err(Error::Unfit {
            key: "linear_value_head_dim",
            wanted: "small enough for a state that a machine can hold",
        });
    }
    Ok(state)
}
