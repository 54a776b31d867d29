//! Reads the headers of safetensors files, the format of vLLM's models, with `config.json`, into a [`Shape`].

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io::{ErrorKind, Read};

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::bytes::Bytes;
use crate::shape::{Layer, Shape, Tensor};

mod config;

/// A longer header is refused. The format allows 100 MB, but those of today are far below one, and it is parsed whole.
const LONGEST: u64 = 8 << 20;
/// More tensors than any one file has.
const MOST_TENSORS: usize = 1 << 16;
/// A longer `config.json` is refused.
const LONGEST_CONFIG: usize = 1 << 20;
/// More layers than any model has.
const MOST_LAYERS: u64 = 1024;

/// One file's header.
#[derive(Debug)]
pub struct File {
    /// Its tensors, the experts of a layer as one.
    tensors: Vec<Tensor>,
}

/// Reads the header of a file of `len` bytes.
pub fn read(source: &mut impl Read, len: u64) -> Result<File, Error> {
    let mut length = [0; 8];
    fill(source, &mut length, 0, len)?;
    let header = u64::from_le_bytes(length);
    if header > LONGEST {
        return Err(Error::TooLong { bytes: header, most: LONGEST });
    }
    if header > len - 8 {
        return Err(Error::Ended { at: 8, needs: header, left: len - 8 });
    }
    let mut text = vec![0; usize::try_from(header).unwrap_or(0)];
    fill(source, &mut text, 8, len)?;
    let entries: Entries =
        serde_json::from_slice(&text).map_err(|error| Error::Json { what: "the header", error })?;
    let mut ranges = entries.ranges;
    ranges.sort_unstable();
    let mut end = 0;
    for (begin, next) in ranges {
        if begin != end {
            return Err(Error::Hole { begin, expected: end });
        }
        end = next;
    }
    let data = len - 8 - header;
    if end != data {
        return Err(Error::Length { end, data });
    }
    Ok(File { tensors: entries.tensors })
}

fn fill(source: &mut impl Read, into: &mut [u8], at: u64, len: u64) -> Result<(), Error> {
    let needs = into.len() as u64;
    let ended = |left| Error::Ended { at, needs, left };
    if needs > len.saturating_sub(at) {
        return Err(ended(len.saturating_sub(at)));
    }
    source.read_exact(into).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => ended(0),
        _ => Error::Read { at, error },
    })
}

/// The names of a model's files, from its `model.safetensors.index.json`: each once, in order, none with a path.
pub fn files(index: &[u8]) -> Result<Vec<String>, Error> {
    #[derive(Deserialize)]
    struct Index<'a> {
        #[serde(borrow)]
        weight_map: Names<'a>,
    }
    struct Names<'a>(BTreeSet<Cow<'a, str>>);
    impl<'de: 'a, 'a> Deserialize<'de> for Names<'a> {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            struct All;
            impl<'de> Visitor<'de> for All {
                type Value = Names<'de>;
                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("an object of tensors and their files")
                }
                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names<'de>, A::Error> {
                    let mut names = BTreeSet::new();
                    while let Some((_, Text(file))) = map.next_entry::<IgnoredAny, Text<'de>>()? {
                        names.insert(file);
                        if names.len() > 4096 {
                            return Err(de::Error::custom("more than 4096 files"));
                        }
                    }
                    Ok(Names(names))
                }
            }
            from.deserialize_map(All)
        }
    }
    if index.len() as u64 > 8 * LONGEST {
        return Err(Error::TooLong { bytes: index.len() as u64, most: 8 * LONGEST });
    }
    let index: Index<'_> = serde_json::from_slice(index)
        .map_err(|error| Error::Json { what: "the index of its files", error })?;
    let plain = |name: &str| !name.contains('/') && name.ends_with(".safetensors");
    match index.weight_map.0.iter().find(|name| !plain(name)) {
        Some(name) => Err(Error::Name { name: name.to_string() }),
        None => Ok(index.weight_map.0.into_iter().map(Cow::into_owned).collect()),
    }
}

/// The shape of the model that `config.json` describes and whose files are these.
pub fn shape(config: &[u8], files: Vec<File>) -> Result<Shape, Error> {
    if config.len() > LONGEST_CONFIG {
        return Err(Error::TooLong { bytes: config.len() as u64, most: LONGEST_CONFIG as u64 });
    }
    let config =
        serde_json::from_slice(config).map_err(|error| Error::Json { what: "its config.json", error })?;
    let mut shape = config::describe(&config)?;
    let trunk = shape.layers.iter().filter(|layer| !layer.next_token).count() as u64;
    let mut seen = HashSet::new();
    let mut experts = HashMap::new();
    for mut tensor in files.into_iter().flat_map(|file| file.tensors) {
        let merged = tensor.name.ends_with(EXPERTS);
        if !merged && !seen.insert(tensor.name.clone()) {
            return Err(Error::Twice { tensor: tensor.name });
        }
        let number = match (place(&tensor.name), tensor.layer) {
            (Place::Layer, Some(number)) => Some(u64::from(number)),
            (Place::Next, number) => Some(trunk + u64::from(number.unwrap_or(0))),
            _ => None,
        };
        tensor.layer = number.and_then(|number| u32::try_from(number).ok());
        if let Some(number) = number {
            if number >= MOST_LAYERS {
                return Err(Error::Layer { tensor: tensor.name, most: MOST_LAYERS });
            }
            while (shape.layers.len() as u64) <= number {
                shape.layers.push(Layer { next_token: true, ..Layer::default() });
            }
            let layer = &mut shape.layers[usize::try_from(number).unwrap_or(0)];
            layer.weights = layer.weights.plus(tensor.bytes);
            if merged {
                layer.experts = layer.experts.plus(tensor.bytes);
            }
        }
        if !merged {
            shape.tensors.push(tensor);
            continue;
        }
        match experts.entry(tensor.name.clone()) {
            Entry::Occupied(known) => {
                let known: &mut Tensor = &mut shape.tensors[*known.get()];
                known.bytes = known.bytes.plus(tensor.bytes);
            }
            Entry::Vacant(new) => {
                new.insert(shape.tensors.len());
                shape.tensors.push(tensor);
            }
        }
    }
    Ok(shape)
}

/// How the name of a layer's experts ends: they are counted together.
const EXPERTS: &str = ".experts";

/// What a tensor is part of.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// A layer of the model.
    Layer,
    /// Layers that only predict further tokens.
    Next,
    /// Embeddings, the output, what sees or hears.
    Elsewhere,
}

/// Told by its name: Qwen's MTP layers stand under `mtp.`, DeepSeek's and GLM's after the last layer.
fn place(name: &str) -> Place {
    let before = name.split_once("layers.").map_or(name, |(before, _)| before);
    if before == "mtp." || name.starts_with("mtp.") || before.contains(".mtp") || before.contains("mtp_") {
        return Place::Next;
    }
    let apart = ["vis", "audio", "image", "encoder", "tower", "talker", "code"];
    if apart.iter().any(|part| before.contains(part)) { Place::Elsewhere } else { Place::Layer }
}

/// The number of the layer in a name: `model.layers.7.mlp.up_proj.weight`, `transformer.h.7.mlp…`.
fn layer(name: &str) -> Option<u32> {
    let mut words = name.split('.');
    words.find(|word| matches!(*word, "layers" | "h" | "mtp_layers" | "blocks"))?;
    words.next()?.parse().ok()
}

/// A header's entries: tensors with experts counted together, and the range of each in the file.
struct Entries {
    tensors: Vec<Tensor>,
    ranges: Vec<(u64, u64)>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Entries { tensors: Vec::new(), ranges: Vec::new() };
                let mut experts: BTreeMap<String, u64> = BTreeMap::new();
                let mut seen = HashSet::new();
                while let Some(Text(name)) = map.next_key()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if name.len() > 512 {
                        return Err(de::Error::custom(format_args!(
                            "the name of a tensor has {} bytes",
                            name.len()
                        )));
                    }
                    let info: Info<'de> = map.next_value()?;
                    let bytes = info.bytes(&name).map_err(de::Error::custom)?;
                    entries.ranges.push(info.data_offsets);
                    if entries.ranges.len() > MOST_TENSORS {
                        return Err(de::Error::custom(format_args!(
                            "there are more than {MOST_TENSORS} tensors"
                        )));
                    }
                    match name.find(".experts.") {
                        Some(at) => {
                            let sum = experts.entry(name[..at + EXPERTS.len()].to_owned()).or_default();
                            *sum = sum.saturating_add(bytes);
                        }
                        None => entries.tensors.push(Tensor {
                            layer: layer(&name),
                            name: name.to_string(),
                            bytes: Bytes(bytes),
                        }),
                    }
                    if !seen.insert(name.clone()) {
                        return Err(de::Error::custom(format_args!(
                            "the tensor `{name}` stands a second time"
                        )));
                    }
                }
                entries.tensors.extend(experts.into_iter().map(|(name, bytes)| Tensor {
                    layer: layer(&name),
                    name,
                    bytes: Bytes(bytes),
                }));
                Ok(entries)
            }
        }
        from.deserialize_map(All)
    }
}

/// A string that is not copied where it need not be.
#[derive(Deserialize, PartialEq)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// What the header says of a tensor.
#[derive(Deserialize)]
struct Info<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Elements,
    data_offsets: (u64, u64),
}

impl Info<'_> {
    /// Its bytes, if its range and its sizes say the same. Of types unknown here only the range counts.
    fn bytes(&self, name: &str) -> Result<u64, String> {
        let (begin, end) = self.data_offsets;
        if end < begin || i64::try_from(end).is_err() {
            return Err(format!("the tensor `{name}` is said to be from byte {begin} to {end}"));
        }
        let bits = match &*self.dtype {
            "F64" | "I64" | "U64" | "C64" => 64,
            "F32" | "I32" | "U32" => 32,
            "F16" | "BF16" | "I16" | "U16" => 16,
            "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" | "I8" | "U8" | "BOOL" => 8,
            "F6_E2M3" | "F6_E3M2" => 6,
            "F4" => 4,
            _ => return Ok(end - begin),
        };
        let said = self.shape.0.and_then(|elements| elements.checked_mul(bits)).filter(|bits| bits % 8 == 0);
        if said.map(|bits| bits / 8) == Some(end - begin) {
            return Ok(end - begin);
        }
        Err(format!("the tensor `{name}` has {} bytes, and its sizes say otherwise", end - begin))
    }
}

/// The product of a tensor's sizes; None where it is more than can be counted.
struct Elements(Option<u64>);

impl<'de> Deserialize<'de> for Elements {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Elements;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("sizes that are not negative")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Elements, A::Error> {
                let mut product = Some(1u64);
                while let Some(size) = list.next_element::<u64>()? {
                    product = product.and_then(|all| all.checked_mul(size));
                }
                Ok(Elements(product))
            }
        }
        from.deserialize_seq(All)
    }
}

/// What is wrong with a model's files.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error(
        "the file ends too early: at byte {at}, the header needs {needs} bytes and {left} are left; copy it again"
    )]
    Ended { at: u64, needs: u64, left: u64 },
    #[error("this is no safetensors file, or its header is too long: {bytes} bytes, and {most} are the most")]
    TooLong { bytes: u64, most: u64 },
    #[error("reading failed at byte {at}: {error}")]
    Read { at: u64, error: std::io::Error },
    #[error("{what} can't be read: {error}")]
    Json { what: &'static str, error: serde_json::Error },
    #[error(
        "a tensor is said to begin at byte {begin} of the data, and the one before it ends at {expected}"
    )]
    Hole { begin: u64, expected: u64 },
    #[error("the tensors need {end} bytes behind the header, and the file has {data}; copy it again")]
    Length { end: u64, data: u64 },
    #[error("the index names the file `{name}`, which is not one beside it that ends in .safetensors")]
    Name { name: String },
    #[error("the tensor `{tensor}` is in two files")]
    Twice { tensor: String },
    #[error("the tensor `{tensor}` belongs to a layer beyond the {most} that a model may have")]
    Layer { tensor: String, most: u64 },
    #[error("config.json has no `{key}`")]
    Missing { key: &'static str },
    #[error("`{key}` of config.json has to be {wanted}")]
    Unfit { key: &'static str, wanted: &'static str },
}
