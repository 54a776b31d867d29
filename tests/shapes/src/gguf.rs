//! Writes GGUF files.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// How a tensor's elements are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// 32 bits.
    F32,
    /// 16 bits.
    F16,
    /// Blocks of 32 in 34 bytes.
    Q8_0,
    /// Blocks of 256 in 144 bytes.
    Q4K,
    /// Blocks of 256 in 210 bytes.
    Q6K,
    /// Blocks of 32 in 17 bytes.
    Mxfp4,
    /// Any other: its number, elements of a block, bytes of one.
    Other(u32, u64, u64),
}

impl Type {
    /// Its number in the file, elements of a block, bytes of one.
    pub const fn layout(self) -> (u32, u64, u64) {
        match self {
            Self::F32 => (0, 1, 4),
            Self::F16 => (1, 1, 2),
            Self::Q8_0 => (8, 32, 34),
            Self::Q4K => (12, 256, 144),
            Self::Q6K => (14, 256, 210),
            Self::Mxfp4 => (39, 32, 17),
            Self::Other(number, elements, bytes) => (number, elements, bytes),
        }
    }
}

/// The value of a key.
#[derive(Debug, Clone)]
pub enum Value {
    /// A whole number of 32 bits.
    U32(u32),
    /// A fraction.
    F32(f32),
    /// Yes or no.
    Bool(bool),
    /// A string.
    Text(String),
    /// An array of whole numbers.
    Numbers(Vec<i32>),
    /// An array of fractions.
    Fractions(Vec<f32>),
    /// An array of yes and no.
    Marks(Vec<bool>),
    /// An array of strings.
    Texts(Vec<String>),
}

macro_rules! from {
    ($($from:ty => $to:ident),*) => {
        $(impl From<$from> for Value {
            fn from(value: $from) -> Self {
                Self::$to(value.into())
            }
        })*
    };
}
from!(u32 => U32, f32 => F32, bool => Bool, &str => Text, String => Text, Vec<i32> => Numbers, Vec<f32> => Fractions,
    Vec<bool> => Marks, Vec<String> => Texts);

impl Value {
    const fn number(&self) -> u32 {
        match self {
            Self::U32(_) => 4,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::Numbers(_) | Self::Fractions(_) | Self::Marks(_) | Self::Texts(_) => 9,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let array = |out: &mut Vec<u8>, kind: u32, len: usize| {
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Self::U32(n) => out.extend(n.to_le_bytes()),
            Self::F32(n) => out.extend(n.to_le_bytes()),
            Self::Bool(yes) => out.push(u8::from(*yes)),
            Self::Text(text) => string(out, text),
            Self::Numbers(list) => {
                array(out, 5, list.len());
                out.extend(list.iter().flat_map(|n| n.to_le_bytes()));
            }
            Self::Fractions(list) => {
                array(out, 6, list.len());
                out.extend(list.iter().flat_map(|n| n.to_le_bytes()));
            }
            Self::Marks(list) => {
                array(out, 7, list.len());
                out.extend(list.iter().map(|yes| u8::from(*yes)));
            }
            Self::Texts(list) => {
                array(out, 8, list.len());
                for text in list {
                    string(out, text);
                }
            }
        }
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A tensor.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its sizes, the row's first.
    pub sizes: Vec<u64>,
    /// How its elements are kept.
    pub kind: Type,
}

impl Tensor {
    /// Its bytes in the file.
    pub fn bytes(&self) -> u64 {
        let (_, elements, bytes) = self.kind.layout();
        self.sizes.iter().product::<u64>() / elements * bytes
    }
}

/// A GGUF file to be written.
#[derive(Debug, Clone, Default)]
pub struct Gguf {
    /// `general.architecture`.
    pub architecture: String,
    /// Its keys in order.
    pub keys: Vec<(String, Value)>,
    /// Its tensors in order.
    pub tensors: Vec<Tensor>,
}

impl Gguf {
    /// One without anything but its architecture.
    pub fn new(architecture: &str) -> Self {
        let keys = vec![("general.architecture".to_owned(), architecture.into())];
        Self { architecture: architecture.to_owned(), keys, tensors: Vec::new() }
    }

    /// Adds a key by its full name.
    pub fn key(&mut self, name: &str, value: impl Into<Value>) -> &mut Self {
        self.keys.push((name.to_owned(), value.into()));
        self
    }

    /// Adds a key under the architecture's name.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) -> &mut Self {
        let name = format!("{}.{name}", self.architecture);
        self.key(&name, value)
    }

    /// Adds a tensor.
    pub fn tensor(&mut self, name: &str, sizes: &[u64], kind: Type) -> &mut Self {
        self.tensors.push(Tensor { name: name.to_owned(), sizes: sizes.to_vec(), kind });
        self
    }

    /// The header's bytes, up to where the first tensor begins.
    pub fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (name, value) in &self.keys {
            string(&mut out, name);
            out.extend(value.number().to_le_bytes());
            value.write(&mut out);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            string(&mut out, &tensor.name);
            out.extend(u32::try_from(tensor.sizes.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend(tensor.sizes.iter().flat_map(|size| size.to_le_bytes()));
            out.extend(tensor.kind.layout().0.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + tensor.bytes()).next_multiple_of(32);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out
    }

    /// Bytes of all tensors.
    pub fn weights(&self) -> u64 {
        self.tensors.iter().map(Tensor::bytes).sum()
    }

    /// Length of the whole file.
    pub fn length(&self) -> u64 {
        let tensors = self.tensors.iter().map(|tensor| tensor.bytes().next_multiple_of(32)).sum::<u64>();
        self.header().len() as u64 + tensors
    }

    /// Writes the header, and behind it a hole as long as the tensors: the file takes no room on the disk.
    pub fn write_hollow(&self, path: &Path) -> anyhow::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(&self.header())?;
        file.set_len(self.length())?;
        Ok(())
    }

    /// Writes the whole file with random weights, always the same.
    pub fn write_random(&self, path: &Path) -> anyhow::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(&self.header())?;
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for tensor in &self.tensors {
            let mut bytes = random.elements(tensor);
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            file.write_all(&bytes)?;
        }
        file.flush()?;
        Ok(())
    }

    /// Writes it in so many parts, the tensors spread evenly; returns the names of the parts.
    pub fn write_parts(&self, folder: &Path, name: &str, parts: usize) -> anyhow::Result<Vec<String>> {
        let each = self.tensors.len().div_ceil(parts);
        let mut names = Vec::new();
        for number in 0..parts {
            let mut part = if number == 0 { self.clone() } else { Self::default() };
            part.tensors = self.tensors.iter().skip(number * each).take(each).cloned().collect();
            part.key("split.no", u32::try_from(number)?);
            part.key("split.count", u32::try_from(parts)?);
            part.key("split.tensors.count", vec![i32::try_from(self.tensors.len())?]);
            let file = format!("{name}-{:05}-of-{parts:05}.gguf", number + 1);
            part.write_hollow(&folder.join(&file))?;
            names.push(file);
        }
        Ok(names)
    }
}

/// Overwrites a part of a file, to break it.
pub fn patch(path: &Path, at: u64, bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(bytes)?;
    Ok(())
}

/// xorshift64: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Small numbers around zero, and ones for what norms multiply with.
    fn elements(&mut self, tensor: &Tensor) -> Vec<u8> {
        let count = tensor.sizes.iter().product::<u64>();
        let norm = tensor.name.contains("norm");
        match tensor.kind {
            Type::F32 => (0..count)
                .flat_map(|_| {
                    let small = (self.next() % 2001) as f32 / 20_000.0 - 0.05;
                    (if norm { 1.0 } else { small }).to_le_bytes()
                })
                .collect(),
            // A random sign and mantissa, and the exponent of numbers between 1/32 and 1/16.
            Type::F16 => (0..count)
                .flat_map(|_| {
                    let bits = self.next().to_le_bytes();
                    [bits[0], (bits[1] & 0x83) | 0x28]
                })
                .collect(),
            _ => {
                let (_, elements, size) = tensor.kind.layout();
                let scale = 0x0c00u16.to_le_bytes();
                let mut bytes = Vec::new();
                for _ in 0..count / elements {
                    let begin = bytes.len();
                    bytes.extend((0..size).map(|_| self.next().to_le_bytes()[0] & 0x1f));
                    bytes[begin..begin + 2].copy_from_slice(&scale);
                }
                bytes
            }
        }
    }
}
