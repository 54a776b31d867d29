//! Reads the header of GGUF files, the format of llama.cpp, into a [`Shape`].
//!
//! Only headers are read, in one pass and with a bound on every length, so that a hostile file costs neither time
//! nor memory. What a layer keeps is what llama.cpp of August 2026 allocates for it (`cache`).

use std::io::Read;

use crate::bytes::Bytes;
use crate::shape::{Kind, Shape, Tensor};

mod cache;
mod header;
mod keys;
mod types;

use header::Header;
use keys::Keys;

/// One file's header.
#[derive(Debug)]
pub struct File {
    header: Header,
    split: Option<Split>,
}

/// Which part of a split model a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// From 0.
    pub number: u32,
    /// How many parts there are.
    pub count: u32,
}

/// Reads the header of a file of `len` bytes. Reads in small pieces: wrap a file in a `BufReader`.
pub fn read(source: &mut impl Read, len: u64) -> Result<File, Error> {
    let header = header::read(source, len)?;
    let keys = Keys::new(&header.keys);
    let part = |key| keys.number(key).map(|n| n.map(|n| u32::try_from(n).unwrap_or(u32::MAX)));
    let split = match (part("split.no")?, part("split.count")?) {
        (Some(number), Some(count)) if count > 1 => Some(Split { number, count }),
        _ => None,
    };
    Ok(File { header, split })
}

impl File {
    /// Which part of a split model this is; None for a whole one.
    pub const fn split(&self) -> Option<Split> {
        self.split
    }
}

/// The shape of the model in these files: one, or all parts of a split one in their order.
pub fn shape(files: Vec<File>) -> Result<Shape, Error> {
    let count = files.len();
    for (number, file) in files.iter().enumerate() {
        let (said, of) = file.split.map_or((0, 1), |split| (split.number as usize, split.count as usize));
        if said != number || of != count {
            return Err(Error::Part { place: number + 1, count, said: said.saturating_add(1), of });
        }
    }
    let mut files = files.into_iter();
    let mut header = files.next().ok_or(Error::NoFiles)?.header;
    for file in files {
        header.tensors.extend(file.header.tensors);
    }
    if count > 1 {
        let mut seen = std::collections::HashSet::with_capacity(header.tensors.len());
        if let Some(twice) = header.tensors.iter().find(|entry| !seen.insert(entry.name.as_str())) {
            return Err(Error::TensorTwice { tensor: twice.name.clone() });
        }
    }
    let keys = Keys::new(&header.keys);
    let architecture =
        keys.text("general.architecture").ok_or(Error::Missing { key: "general.architecture".to_owned() })?;
    let kind = kind(&keys, architecture, &header);
    let mut shape = Shape { architecture: architecture.to_owned(), kind, ..Shape::default() };
    if matches!(kind, Kind::Model | Kind::Vocabulary) {
        cache::describe(&keys.of(architecture), &mut shape)?;
    }
    if kind != Kind::Model {
        shape.layers.clear();
    }
    for entry in header.tensors {
        let tensor = Tensor { layer: layer(&entry.name), name: entry.name, bytes: Bytes(entry.bytes) };
        if kind == Kind::Model
            && let Some(number) = tensor.layer
        {
            let layers = shape.layers.len();
            let layer = shape.layers.get_mut(number as usize);
            let layer = layer.ok_or_else(|| Error::NoLayer { tensor: tensor.name.clone(), layers })?;
            layer.weights = layer.weights.plus(tensor.bytes);
            if is_expert(&tensor.name) {
                layer.experts = layer.experts.plus(tensor.bytes);
            }
        }
        shape.tensors.push(tensor);
    }
    if !shape.tensors.iter().any(|tensor| tensor.layer.is_some() && tensor.name.ends_with(".ffn_down.weight"))
    {
        shape.feed_forward = 0;
    }
    Ok(shape)
}

/// The names of all parts of a split model, where a file's name is that of one: `NAME-00002-of-00003.gguf`.
/// At most 999 parts are named, more than anyone has.
pub fn parts(name: &str) -> Option<Vec<String>> {
    let stem = name.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (base, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| {
        (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse::<u32>().ok())
    };
    let (number, count) = (digits(number)??, digits(count)??);
    if number == 0 || number > count || count > 999 {
        return None;
    }
    Some((1..=count).map(|part| format!("{base}-{part:05}-of-{count:05}.gguf")).collect())
}

/// What the file is for.
fn kind(keys: &Keys<'_>, architecture: &str, header: &Header) -> Kind {
    match (keys.text("general.type"), architecture) {
        (Some("mmproj"), _) | (_, "clip") => Kind::Projector,
        (Some("adapter" | "imatrix"), _) => Kind::Other,
        _ if header.tensors.is_empty() => Kind::Vocabulary,
        _ => Kind::Model,
    }
}

/// The layer that a tensor belongs to, by its name: `blk.7.attn_q.weight`.
fn layer(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// Whether it is what `--cpu-moe` keeps on the CPU: llama.cpp's own pattern, `\.ffn_(up|down|gate|gate_up)_(ch|)exps`.
pub(crate) fn is_expert(name: &str) -> bool {
    name.match_indices(".ffn_").any(|(at, found)| {
        let rest = &name[at + found.len()..];
        ["up_", "down_", "gate_up_", "gate_"].iter().any(|part| {
            rest.strip_prefix(part).is_some_and(|rest| rest.starts_with("exps") || rest.starts_with("chexps"))
        })
    })
}

/// What is wrong with a file. `at` is the byte at which it stands.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Error {
    #[error("this is no GGUF file: it begins with `{found}` instead of `GGUF`")]
    Magic { found: String },
    #[error("version {version} of GGUF can't be read; versions 2 and 3 can")]
    Version { version: u32 },
    #[error(
        "the file ends too early: at byte {at}, {what} needs {needs} bytes and {left} are left; copy it again"
    )]
    Ended { what: &'static str, at: u64, needs: u64, left: u64 },
    #[error(
        "the header is too long: at byte {at}, {what} needs {needs} bytes, and a header has at most {most}"
    )]
    TooLong { what: &'static str, at: u64, needs: u64, most: u64 },
    #[error("at byte {at} the header says that there are {count} {what}; between 0 and {most} can be")]
    TooMany { what: &'static str, at: u64, count: i64, most: u64 },
    #[error("reading failed at byte {at}: {error}")]
    Read { at: u64, error: std::io::Error },
    #[error("the key `{key}` stands a second time at byte {at}")]
    KeyTwice { key: String, at: u64 },
    #[error("the key `{key}` has the unknown type {kind} at byte {at}")]
    KeyType { key: String, at: u64, kind: u32 },
    #[error("the key `{key}` has an array of arrays at byte {at}, which GGUF does not allow")]
    Nested { key: String, at: u64 },
    #[error("`general.alignment` has to be a power of two, at most 1048576")]
    Alignment,
    #[error("the name of tensor {number}, at byte {at}, has more than {most} bytes")]
    Name { number: u64, at: u64, most: u64 },
    #[error("the tensor `{tensor}` has {dimensions} dimensions at byte {at}; 4 are the most")]
    Dimensions { tensor: String, at: u64, dimensions: u32 },
    #[error("the tensor `{tensor}` has the negative size {size} at byte {at}")]
    Negative { tensor: String, at: u64, size: i64 },
    #[error("the sizes of the tensor `{tensor}`, at byte {at}, are more than can be counted")]
    Overflow { tensor: String, at: u64 },
    #[error("the tensor `{tensor}` has the unknown type {kind} at byte {at}: a newer Berth may know it")]
    TensorType { tensor: String, at: u64, kind: u32 },
    #[error(
        "the tensor `{tensor}`, at byte {at}, has rows of {row} elements, not a multiple of the {block} of {called}"
    )]
    Block { tensor: String, at: u64, row: u64, called: &'static str, block: u64 },
    #[error(
        "the tensor `{tensor}` is said to be at {offset} at byte {at}, and the one before it ends at {expected}"
    )]
    Offset { tensor: String, at: u64, offset: u64, expected: u64 },
    #[error(
        "the tensor `{tensor}` is not within the file: all need {end} bytes, and it has {len}; copy it again"
    )]
    Beyond { tensor: String, end: u64, len: u64 },
    #[error("the tensor `{tensor}` stands a second time")]
    TensorTwice { tensor: String },
    #[error("the tensor `{tensor}` belongs to no layer: there are {layers}")]
    NoLayer { tensor: String, layers: usize },
    #[error("the key `{key}` is missing")]
    Missing { key: String },
    #[error("the key `{key}` has to be {wanted}")]
    Unfit { key: String, wanted: &'static str },
    #[error("the key `{key}` has {count} entries, and there are {layers} layers")]
    Entries { key: String, count: usize, layers: usize },
    #[error(
        "file {place} of {count} says that it is part {said} of {of}; give all parts of the model in their order"
    )]
    Part { place: usize, count: usize, said: usize, of: usize },
    #[error("no file was given")]
    NoFiles,
}
