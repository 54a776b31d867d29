//! Headers that want to do harm: each with the length of file that it claims, and words of the error it deserves.

use crate::gguf::{Gguf, Type, Value};
use crate::safetensors::framed;

/// A header that has to be refused.
#[derive(Debug)]
pub struct Hostile {
    /// What it does.
    pub name: &'static str,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// How long the file is said to be.
    pub length: u64,
    /// What the error says.
    pub says: &'static str,
}

fn hostile(name: &'static str, bytes: Vec<u8>, says: &'static str) -> Hostile {
    Hostile { name, length: bytes.len() as u64, bytes, says }
}

/// A small file that is in order.
pub fn sound() -> Gguf {
    let mut file = Gguf::new("llama");
    file.set("block_count", 2u32)
        .set("embedding_length", 64u32)
        .set("attention.head_count", 4u32)
        .set("attention.head_count_kv", vec![2, 1])
        .key("tokenizer.ggml.tokens", ["a", "b", "c"].map(str::to_owned).to_vec())
        .tensor("token_embd.weight", &[64, 3], Type::F16)
        .tensor("blk.0.attn_q.weight", &[64, 64], Type::Q8_0)
        .tensor("blk.1.ffn_up_exps.weight", &[64, 8, 2], Type::Mxfp4);
    file
}

/// The sound one, changed.
fn changed(name: &'static str, change: impl FnOnce(&mut Gguf), says: &'static str) -> Hostile {
    let mut file = sound();
    change(&mut file);
    let bytes = file.header();
    Hostile { name, length: 1 << 40, bytes, says }
}

/// The sound one's bytes with a number written over those at a place.
fn patched(name: &'static str, at: usize, number: u64, says: &'static str) -> Hostile {
    let mut bytes = sound().header();
    bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
    Hostile { name, length: 1 << 40, bytes, says }
}

/// A header with one key, whose value is these bytes.
fn key(name: &'static str, value: &[u8], says: &'static str) -> Hostile {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.push(b'k');
    bytes.extend(value);
    Hostile { name, length: 1 << 40, bytes, says }
}

fn words(numbers: &[u64]) -> Vec<u8> {
    let (kind, rest) = numbers.split_first().unwrap_or((&0, &[]));
    let mut bytes = u32::try_from(*kind).unwrap_or(0).to_le_bytes().to_vec();
    for (place, number) in rest.iter().enumerate() {
        // An array's own type has 32 bits, its length 64.
        if place == 0 && *kind == 9 {
            bytes.extend(u32::try_from(*number).unwrap_or(0).to_le_bytes());
        } else {
            bytes.extend(number.to_le_bytes());
        }
    }
    bytes
}

/// GGUF headers.
pub fn gguf() -> Vec<Hostile> {
    let whole = sound();
    let header = whole.header();
    let mut all = vec![
        hostile("empty", Vec::new(), "ends too early: at byte 0"),
        hostile("not-gguf", b"GGML\x03\0\0\0".to_vec(), "begins with `GGML`"),
        hostile("big-endian", b"GGUF\0\0\0\x03".to_vec(), "version 50331648"),
        patched("2^60-tensors", 8, 1 << 60, "there are 1152921504606846976 tensors"),
        patched("negative-tensors", 8, u64::MAX, "there are -1 tensors"),
        patched("2^60-keys", 16, 1 << 60, "there are 1152921504606846976 keys"),
        patched("key-longer-than-the-file", 24, 1 << 50, "a key needs 1125899906842624 bytes"),
        key(
            "text-longer-than-the-file",
            &words(&[8, 1 << 41]),
            "the value of a key needs 2199023255552 bytes",
        ),
        key("text-longer-than-a-header", &words(&[8, 1 << 35]), "the header is too long"),
        key("array-overflows", &words(&[9, 4, 1 << 62]), "an array needs 18446744073709551615 bytes"),
        key("array-longer-than-a-header", &words(&[9, 4, 1 << 30]), "the header is too long"),
        key("2^22-strings", &words(&[9, 8, (1 << 22) + 1]), "4194305 strings in arrays"),
        key("nested-array", &words(&[9, 9, 1]), "an array of arrays"),
        key("unknown-type-of-key", &words(&[13]), "unknown type 13"),
        key("unknown-type-of-array", &words(&[9, 77, 1]), "unknown type 77"),
        changed(
            "twice-the-same-key",
            |file| {
                file.set("block_count", 3u32);
            },
            "stands a second time",
        ),
        changed(
            "alignment-0",
            |file| {
                file.key("general.alignment", 0u32);
            },
            "general.alignment",
        ),
        changed(
            "alignment-33",
            |file| {
                file.key("general.alignment", 33u32);
            },
            "general.alignment",
        ),
        changed("long-name", |file| file.tensors[1].name = "x".repeat(64), "has more than 63 bytes"),
        changed("five-dimensions", |file| file.tensors[1].sizes = vec![32, 1, 1, 1, 1], "has 5 dimensions"),
        changed(
            "half-a-block",
            |file| file.tensors[1].sizes = vec![33, 1],
            "not a multiple of the 32 of Q8_0",
        ),
        changed("unknown-type", |file| file.tensors[1].kind = Type::Other(99, 1, 1), "unknown type 99"),
        changed("removed-type", |file| file.tensors[1].kind = Type::Other(4, 1, 1), "unknown type 4"),
        changed(
            "twice-the-same-tensor",
            |file| file.tensors[1].name = file.tensors[0].name.clone(),
            "a second time",
        ),
        changed(
            "layer-beyond",
            |file| file.tensors[1].name = "blk.4000000000.x".into(),
            "belongs to no layer",
        ),
        changed("no-layers", |file| file.keys[1].1 = Value::U32(0), "llama.block_count` has to be"),
        changed("2^32-layers", |file| file.keys[1].1 = Value::U32(u32::MAX), "llama.block_count` has to be"),
        changed("wrong-type-of-key", |file| file.keys[1].1 = Value::F32(2.0), "has to be a whole number"),
        changed(
            "negative-heads",
            |file| file.keys[4].1 = Value::Numbers(vec![2, -1]),
            "has to be between 0 and",
        ),
        changed("heads-for-3-layers", |file| file.keys[4].1 = Value::Numbers(vec![1; 3]), "has 3 entries"),
        changed(
            "endless-heads",
            |file| {
                file.keys[4].1 = Value::U32(u32::MAX);
                file.set("attention.key_length", u32::MAX);
            },
            "key_length` has to be",
        ),
        changed(
            "no-architecture",
            |file| {
                file.keys.remove(0);
            },
            "`general.architecture` is missing",
        ),
        hostile("tensors-beyond-the-end", header.clone(), "`token_embd.weight` is not within the file"),
        Hostile {
            name: "last-tensor-cut",
            bytes: header.clone(),
            length: whole.length() - 20,
            says: "`blk.1.ffn_up_exps.weight` is not within the file",
        },
        Hostile {
            name: "shorter-than-it-says",
            bytes: header[..200].to_vec(),
            length: whole.length(),
            says: "ends too early",
        },
    ];
    let at =
        |what: &[u8]| header.windows(what.len()).position(|found| found == what).unwrap_or(0) + what.len();
    let sizes = at(b"blk.0.attn_q.weight") + 4;
    all.push(patched("negative-size", sizes, u64::MAX, "negative size -1"));
    all.push(patched("size-overflows", sizes, 1 << 62, "more than can be counted"));
    all.push(patched("no-size-is-whole", sizes + 8, 1 << 61, "more than can be counted"));
    all.push(patched("overlapping", sizes + 20, 0, "is said to be at 0"));
    all
}

/// Headers of safetensors files.
pub fn safetensors() -> Vec<Hostile> {
    let entry = |kind: &str, sizes: &str, begin: u64, end: u64| {
        format!(r#"{{"dtype":"{kind}","shape":{sizes},"data_offsets":[{begin},{end}]}}"#)
    };
    let one = |name, text: String, says| Hostile { name, bytes: framed(&text), length: 1 << 40, says };
    let sized = |name, text: String, data: u64, says| {
        let bytes = framed(&text);
        Hostile { name, length: bytes.len() as u64 + data, bytes, says }
    };
    vec![
        hostile("empty", Vec::new(), "ends too early"),
        hostile(
            "2^60-bytes",
            (1u64 << 60).to_le_bytes().to_vec(),
            "header is too long: 1152921504606846976 bytes",
        ),
        hostile("negative", u64::MAX.to_le_bytes().to_vec(), "header is too long"),
        hostile("longer-than-the-file", 1024u64.to_le_bytes().to_vec(), "needs 1024 bytes and 0 are left"),
        one("not-json", "tensors".to_owned(), "the header can't be read"),
        one("deep", "[".repeat(3000), "the header can't be read"),
        one("deep-metadata", format!(r#"{{"__metadata__":{}"#, "[".repeat(3000)), "the header can't be read"),
        one("backwards", format!(r#"{{"a":{}}}"#, entry("F16", "[2]", 4, 0)), "from byte 4 to 0"),
        one("overflows", format!(r#"{{"a":{}}}"#, entry("X", "[2]", 0, u64::MAX)), "from byte 0 to"),
        one(
            "sizes-overflow",
            format!(r#"{{"a":{}}}"#, entry("F16", "[4294967296,4294967296]", 0, 4)),
            "say otherwise",
        ),
        one(
            "negative-size",
            format!(r#"{{"a":{}}}"#, entry("F16", "[-2]", 0, 4)),
            "the header can't be read",
        ),
        one("other-size", format!(r#"{{"a":{}}}"#, entry("F16", "[3]", 0, 4)), "say otherwise"),
        one(
            "overlapping",
            format!(r#"{{"a":{},"b":{}}}"#, entry("F16", "[2]", 0, 4), entry("F16", "[2]", 2, 6)),
            "begin at byte 2 of the data, and the one before it ends at 4",
        ),
        one(
            "hole",
            format!(r#"{{"a":{},"b":{}}}"#, entry("F16", "[2]", 0, 4), entry("F16", "[2]", 6, 10)),
            "begin at byte 6 of the data, and the one before it ends at 4",
        ),
        one(
            "twice",
            format!(r#"{{"a":{},"a":{}}}"#, entry("F16", "[2]", 0, 4), entry("F16", "[2]", 4, 8)),
            "stands a second time",
        ),
        sized(
            "beyond-the-end",
            format!(r#"{{"a":{}}}"#, entry("F16", "[8]", 0, 16)),
            8,
            "need 16 bytes behind",
        ),
        sized("more-behind", format!(r#"{{"a":{}}}"#, entry("F16", "[8]", 0, 16)), 24, "the file has 24"),
    ]
}

/// Inputs for the fuzzer of `gguf` or `safetensors`: the length of the file in eight bytes, then its header.
pub fn corpus(kind: &str) -> Vec<(String, Vec<u8>)> {
    let (mut inputs, sound) = if kind == "gguf" {
        (gguf(), sound().header())
    } else {
        let tensors: &[crate::safetensors::Tensor<'_>] = &[
            ("model.layers.0.mlp.experts.0.up_proj.weight", "I32", 32, &[8]),
            ("mtp.norm.weight", "F32", 32, &[1]),
        ];
        (safetensors(), crate::safetensors::header(tensors).0)
    };
    inputs.push(Hostile { name: "sound", length: 1 << 20, bytes: sound, says: "" });
    if kind == "gguf" {
        let small = crate::models::gemma(
            "gemma3",
            crate::models::Sizes { layers: 2, ..crate::models::Sizes::SMALL },
            512,
        );
        inputs.push(Hostile { name: "sliding", length: small.length(), bytes: small.header(), says: "" });
    }
    let input =
        |case: Hostile| (case.name.to_owned(), [&case.length.to_le_bytes()[..], &case.bytes].concat());
    inputs.into_iter().map(input).filter(|(_, bytes)| bytes.len() <= 4096).collect()
}
