//! What each layer keeps, architecture by architecture, as llama.cpp allocates it (llama-hparams.cpp, models/*.cpp).

use super::Error;
use super::keys::Keys;
use crate::shape::{Attention, Layer, Recurrent, Shape};

/// llama.cpp refuses models with more layers.
const MOST_LAYERS: u64 = 512;
/// More elements than the keys or the state of any layer have.
const MOST_ELEMENTS: u64 = 1 << 30;

/// Where a sliding architecture's window comes from.
enum Window {
    /// It slides only where the file gives a window.
    Optional,
    /// The file has to give it, or this stands in.
    Or(u64),
    /// It has to be in the file.
    Required,
}

/// Which layers slide.
enum Slides {
    /// The key, else: all but the last of each so many.
    Last(u64),
    /// The key, else: all but the first of each so many.
    First(u64),
    /// The file has to have an array.
    Marked,
}

/// How llama.cpp slides an architecture; None where it does not, whatever the file says (mistral, qwen2, phi3).
fn sliding(architecture: &str, layers: u64) -> Option<(Window, Slides)> {
    Some(match architecture {
        "gemma3" => (Window::Optional, Slides::Last(6)),
        "gemma2" => (Window::Or(4096), Slides::Last(2)),
        "gemma3n" => (Window::Required, Slides::Last(5)),
        "gpt-oss" => (Window::Required, Slides::Last(2)),
        "cohere2" | "muse-glimmer" => (Window::Required, Slides::Last(4)),
        "cohere2moe" => (Window::Required, Slides::First(4)),
        "exaone-moe" => (Window::Or(128), Slides::Last(4)),
        "exaone4" if layers == 64 => (Window::Or(4096), Slides::Last(4)),
        "olmo2" | "afmoe" | "mellum" => (Window::Optional, Slides::Last(4)),
        "plamo3" => (Window::Optional, Slides::Last(8)),
        "laguna" | "smallthinker" => (Window::Optional, Slides::First(4)),
        "llama4" => (Window::Or(8192), Slides::Last(4)),
        "gemma4" | "gemma4-assistant" | "granite_swa" | "maple" | "mimo2" | "spark2_5" | "step35"
        | "dots3note" => (Window::Required, Slides::Marked),
        _ => return None,
    })
}

/// Which layers of a hybrid keep a state instead of keys and values.
enum Mixed {
    /// None: it has no such layers.
    No,
    /// All layers keep a state and nothing else.
    All,
    /// All layers keep both.
    Both,
    /// Those without heads for keys.
    Headless,
    /// Those without heads for keys and without a feed-forward network; those with one keep nothing.
    HeadlessAlone,
    /// Those marked, else all but the last of each so many.
    Interval(&'static str, u64),
}

fn mixed(architecture: &str) -> Mixed {
    match architecture {
        "mamba" | "mamba2" | "rwkv6" | "rwkv6qwen2" | "rwkv7" | "arwkv7" => Mixed::All,
        "falcon-h1" => Mixed::Both,
        "jamba" | "granitehybrid" | "lfm2" | "lfm2moe" | "plamo2" | "kimi-linear" | "kimi-k3"
        | "bailingmoe3" | "glm5-next" => Mixed::Headless,
        "nemotron_h" | "nemotron_h_moe" => Mixed::HeadlessAlone,
        "qwen3next" | "qwen35" | "qwen35moe" | "qwen4exp" => Mixed::Interval("full_attention_interval", 4),
        "minimax-01" => Mixed::Interval("", 8),
        _ => Mixed::No,
    }
}

/// These keep nothing between calls: they read or fill in a whole text at once.
const WITHOUT_CACHE: [&str; 13] = [
    "bert",
    "modern-bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "nomic-bert",
    "nomic-bert-moe",
    "neo-bert",
    "eurobert",
    "gemma-embedding",
    "dream",
    "llada",
    "llada-moe",
    "rnd1",
];

/// Architectures that keep what their heads say and nothing else, beside those named above.
const PLAIN: [&str; 79] = [
    "llama",
    "deci",
    "falcon",
    "grok",
    "gpt2",
    "gptj",
    "gptneox",
    "mpt",
    "baichuan",
    "starcoder",
    "refact",
    "bloom",
    "stablelm",
    "qwen",
    "qwen2",
    "qwen2moe",
    "qwen2vl",
    "qwen3",
    "qwen3moe",
    "qwen3vl",
    "qwen3vlmoe",
    "phi2",
    "phi3",
    "phimoe",
    "plamo",
    "codeshell",
    "orion",
    "internlm2",
    "minicpm",
    "minicpm3",
    "gemma",
    "starcoder2",
    "xverse",
    "command-r",
    "dbrx",
    "olmo",
    "olmoe",
    "openelm",
    "arctic",
    "deepseek",
    "deepseek2",
    "deepseek2-ocr",
    "chatglm",
    "glm4",
    "glm4moe",
    "bitnet",
    "jais",
    "jais2",
    "nemotron",
    "exaone",
    "exaone4",
    "granite",
    "granitemoe",
    "chameleon",
    "plm",
    "bailingmoe",
    "bailingmoe2",
    "dots1",
    "arcee",
    "ernie4_5",
    "ernie4_5-moe",
    "hunyuan-moe",
    "hunyuan-dense",
    "hunyuan_vl",
    "hy_v3",
    "smollm3",
    "seed_oss",
    "grovemoe",
    "apertus",
    "minimax-m2",
    "cogvlm",
    "pangu-embedded",
    "mistral3",
    "mistral4",
    "paddleocr",
    "llama-embed",
    "maincoder",
    "talkie",
    "qwen3tts",
];

/// Why the cache of an architecture is not known to the byte.
fn unsure(architecture: &str) -> Option<&'static str> {
    match architecture {
        "qwen4exp" | "minimax-m3" | "glm5-next" | "deepseek4" | "hy_v4" => {
            Some("it keeps an index of its keys beside them, whose size is not counted")
        }
        "graniteswitch" | "hrm_text" | "nanbeige" => Some("it runs its layers in a way of its own"),
        "t5" | "t5encoder" => Some("its encoder and decoder keep their own"),
        "gemma4-assistant" | "eagle3" | "dflash" => Some("it is a draft model that uses another one's cache"),
        _ if WITHOUT_CACHE.contains(&architecture)
            || PLAIN.contains(&architecture)
            || sliding(architecture, 0).is_some()
            || !matches!(mixed(architecture), Mixed::No)
            || matches!(architecture, "deepseek32" | "glm-dsa") =>
        {
            None
        }
        _ => Some("this Berth does not know its architecture"),
    }
}

/// Fills in all of a shape but its tensors.
pub(super) fn describe(keys: &Keys<'_>, shape: &mut Shape) -> Result<(), Error> {
    let architecture = shape.architecture.clone();
    let vocabulary = keys.entries("tokenizer.ggml.tokens");
    shape.vocabulary = vocabulary.map_or_else(|| keys.number_or("vocab_size", 0), Ok)?;
    if !keys.has("block_count") && shape.kind == crate::shape::Kind::Vocabulary {
        return Ok(());
    }
    let all = keys.required("block_count")?;
    let next = keys.number_or("nextn_predict_layers", 0)?;
    if all == 0 || all > MOST_LAYERS || next > all {
        return Err(
            keys.unfit("block_count", "between 1 and 512, with its layers that predict further tokens")
        );
    }
    let count = usize::try_from(all).unwrap_or(0);
    let trunk = usize::try_from(all - next).unwrap_or(0);
    shape.embedding = keys.required("embedding_length")?;
    shape.trained_context = keys.number_or("context_length", 0)?;
    shape.experts = keys.number_or("expert_count", 0)?;
    shape.experts_used = largest(keys.each("expert_used_count", count)?);
    let feed_forward = keys.each("feed_forward_length", count)?;
    shape.feed_forward = largest(feed_forward.clone());
    shape.expert_feed_forward = match keys.each("expert_feed_forward_length", count)? {
        None if shape.experts > 0 => shape.feed_forward,
        widths => largest(widths),
    };
    shape.unsure = unsure(&architecture).map(str::to_owned);

    let heads = Heads::read(keys, &architecture, count)?;
    shape.heads = heads.queries.iter().copied().max().unwrap_or(0);
    shape.head = heads.key.max(heads.key_sliding);
    let slides = slides(keys, &architecture, count, trunk, &heads, shape)?;
    let states = state(keys, &architecture, shape.embedding, heads.queries.first().copied().unwrap_or(0))?;
    let index = index(keys, &architecture, trunk, shape)?;
    let shared = match architecture.as_str() {
        "gemma4" => keys.number_or("attention.shared_kv_layers", 0)?,
        "gemma3n" => all.saturating_sub(20),
        _ => 0,
    };
    let own = all.saturating_sub(shared);
    let mixed = mixed(&architecture);
    let marked = match mixed {
        Mixed::Interval(..) => keys.marks("attention.recurrent_layers", count),
        _ => None,
    };
    let interval = match mixed {
        Mixed::Interval("", every) => every,
        Mixed::Interval(key, every) => keys.number_or(key, every)?.max(1),
        _ => 1,
    };

    for number in 0..count {
        let headless = heads.keys[number] == 0;
        let alone = feed_forward.as_ref().is_none_or(|widths| widths[number] == 0);
        let next_token = number >= trunk;
        let (recurrent, attends) = match mixed {
            Mixed::No => (false, true),
            Mixed::All => (!next_token, false),
            Mixed::Both => (!next_token, true),
            Mixed::Headless => (!next_token && headless, !headless),
            Mixed::HeadlessAlone => (!next_token && headless && alone, !headless && alone),
            Mixed::Interval(..) => {
                let state = match &marked {
                    Some(marks) => marks[number],
                    None => !(number as u64 + 1).is_multiple_of(interval),
                };
                (state && !next_token, !state || next_token)
            }
        };
        let attends = attends && (number as u64) < own && !WITHOUT_CACHE.contains(&architecture.as_str());
        let sliding = slides[number];
        let (key, value) = heads.elements(number, sliding);
        let key = if attends && key > 0 { key.saturating_add(index[number]) } else { key };
        if key > MOST_ELEMENTS || value > MOST_ELEMENTS {
            return Err(
                keys.unfit("attention.key_length", "small enough for a cache that a machine can hold")
            );
        }
        shape.layers.push(Layer {
            attention: (attends && key + value > 0).then_some(Attention { key, value, sliding }),
            recurrent: recurrent.then_some(states),
            next_token,
            ..Layer::default()
        });
    }
    if !shape.layers.iter().any(|layer| layer.attention.is_some_and(|attention| attention.sliding)) {
        shape.window = 0;
    }
    Ok(())
}

fn largest(numbers: Option<Vec<u64>>) -> u64 {
    numbers.into_iter().flatten().max().unwrap_or(0)
}

/// The heads of each layer and their sizes.
struct Heads {
    queries: Vec<u64>,
    keys: Vec<u64>,
    key: u64,
    value: u64,
    key_sliding: u64,
    value_sliding: u64,
    /// Keys are compressed (MLA), and values are made of them.
    compressed: bool,
}

impl Heads {
    fn read(keys: &Keys<'_>, architecture: &str, count: usize) -> Result<Self, Error> {
        let queries = keys.each("attention.head_count", count)?.unwrap_or_else(|| vec![0; count]);
        let key_heads = keys.each("attention.head_count_kv", count)?.unwrap_or_else(|| queries.clone());
        // llama.cpp takes the first layer's heads, and no length from the file where that one has none.
        let first = queries.first().copied().unwrap_or(0);
        let (mut key, mut value) = (0, 0);
        if first > 0 || architecture == "plamo2" {
            let otherwise = keys.number_or("embedding_length", 0)?.checked_div(first).unwrap_or(0);
            key = keys.number_or("attention.key_length", otherwise)?;
            value = keys.number_or("attention.value_length", otherwise)?;
        }
        let compressed = keys.number_or("attention.key_length_mla", 0)? > 0
            && keys.number_or("attention.value_length_mla", 0)? > 0;
        Ok(Self {
            queries,
            keys: key_heads,
            key,
            value,
            key_sliding: keys.number_or("attention.key_length_swa", key)?,
            value_sliding: keys.number_or("attention.value_length_swa", value)?,
            compressed,
        })
    }

    /// Elements of all heads of a layer for keys and for values.
    fn elements(&self, layer: usize, sliding: bool) -> (u64, u64) {
        let (key, value) =
            if sliding { (self.key_sliding, self.value_sliding) } else { (self.key, self.value) };
        let heads = self.keys[layer];
        (heads.saturating_mul(key), if self.compressed { 0 } else { heads.saturating_mul(value) })
    }
}

/// Which layers slide; sets the window.
fn slides(
    keys: &Keys<'_>,
    architecture: &str,
    count: usize,
    trunk: usize,
    heads: &Heads,
    shape: &mut Shape,
) -> Result<Vec<bool>, Error> {
    let none = vec![false; count];
    let given = keys.number("attention.sliding_window")?;
    if matches!(architecture, "lfm2" | "lfm2moe") {
        let window = given.filter(|window| *window > 0 && architecture == "lfm2");
        shape.window = window.unwrap_or(0);
        return Ok((0..count)
            .map(|layer| window.is_some() && layer < trunk && heads.keys[layer] > 0)
            .collect());
    }
    let Some((window, slides)) = sliding(architecture, trunk as u64) else {
        return Ok(none);
    };
    shape.window = match (window, given) {
        (Window::Optional, None | Some(0)) => return Ok(none),
        (_, Some(0)) if architecture == "llama4" => return Ok(none),
        // Both take no other window, whatever the file says.
        (_, _) if architecture == "llama4" => 8192,
        (_, _) if architecture == "smallthinker" => 4096,
        (_, Some(window)) | (Window::Or(window), None) => window,
        (Window::Required, None) => keys.required("attention.sliding_window")?,
    };
    let pattern = "attention.sliding_window_pattern";
    if let Some(marks) = keys.marks(pattern, count) {
        return Ok(marks);
    }
    let (every, first) = match slides {
        Slides::Last(every) => (every, false),
        Slides::First(every) => (every, true),
        Slides::Marked => return Err(keys.unfit(pattern, "an array with one entry for each layer")),
    };
    let every = keys.number_or(pattern, every)?;
    let slide = |layer: usize| {
        let place = (layer as u64).checked_rem(every);
        layer < trunk && place.is_none_or(|place| if first { place != 0 } else { place + 1 < every })
    };
    Ok((0..count).map(slide).collect())
}

/// What a recurrent layer keeps for each sequence.
fn state(keys: &Keys<'_>, architecture: &str, embedding: u64, heads: u64) -> Result<Recurrent, Error> {
    let conv = keys.number_or("ssm.conv_kernel", 0)?.saturating_sub(1);
    let product = |numbers: &[u64]| numbers.iter().fold(1u64, |all, n| all.saturating_mul(*n));
    let head = keys.number_or("wkv.head_size", 0)?;
    let state = match architecture {
        "rwkv6" | "rwkv6qwen2" | "rwkv7" | "arwkv7" => Recurrent {
            convolution: product(&[keys.number_or("token_shift_count", 2)?, embedding]),
            state: product(&[embedding, head]),
        },
        "lfm2" | "lfm2moe" => {
            let cached = keys.number_or("shortconv.l_cache", 0)?.saturating_sub(1);
            Recurrent { convolution: product(&[embedding, cached]), state: 0 }
        }
        "kimi-linear" | "kimi-k3" | "bailingmoe3" | "glm5-next" => {
            let head = keys.number_or("kda.head_dim", 0)?;
            let conv = if keys.has("ssm.conv_kernel") { conv } else { 3 };
            Recurrent { convolution: product(&[3, conv, heads, head]), state: product(&[head, head, heads]) }
        }
        "minimax-01" => {
            let head = keys.number_or("attention.key_length", embedding.checked_div(heads).unwrap_or(0))?;
            Recurrent { convolution: 0, state: product(&[head, head, heads]) }
        }
        _ => {
            let (inner, size) = (keys.number_or("ssm.inner_size", 0)?, keys.number_or("ssm.state_size", 0)?);
            let groups = keys.number_or("ssm.group_count", 0)?;
            let width = inner.saturating_add(product(&[2, groups, size]));
            Recurrent { convolution: product(&[conv, width]), state: product(&[size, inner]) }
        }
    };
    if state.convolution > MOST_ELEMENTS || state.state > MOST_ELEMENTS {
        return Err(keys.unfit("ssm.state_size", "small enough for a state that a machine can hold"));
    }
    Ok(state)
}

/// Elements of the index that a layer keeps beside its keys, in their type (DSA).
fn index(keys: &Keys<'_>, architecture: &str, trunk: usize, shape: &mut Shape) -> Result<Vec<u64>, Error> {
    let mut index = vec![0; usize::try_from(MOST_LAYERS).unwrap_or(0)];
    if !matches!(architecture, "deepseek32" | "glm-dsa" | "dots3note") {
        return Ok(index);
    }
    let size = keys.number_or("attention.indexer.key_length", 0)?;
    let full = keys.marks("attention.indexer.types", trunk);
    if full.is_none() && architecture == "glm-dsa" {
        shape.unsure = Some("the file does not say which of its layers index their keys".to_owned());
    }
    for (number, elements) in index.iter_mut().enumerate().take(trunk) {
        let own = architecture == "deepseek32" || full.as_ref().is_none_or(|full| full[number]);
        *elements = if own { size } else { 0 };
    }
    Ok(index)
}
