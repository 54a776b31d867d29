//! Writes safetensors files: the header, and a hole as long as the tensors.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

/// A tensor: its name, type, bits of an element and sizes.
pub type Tensor<'a> = (&'a str, &'a str, u64, &'a [u64]);

/// The header with its length before it, and the length of the whole file.
pub fn header(tensors: &[Tensor<'_>]) -> (Vec<u8>, u64) {
    let mut at = 0;
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    for (name, kind, bits, sizes) in tensors {
        let end = at + sizes.iter().product::<u64>() * bits / 8;
        entries.insert((*name).to_owned(), json!({"dtype": kind, "shape": sizes, "data_offsets": [at, end]}));
        at = end;
    }
    let header = framed(&Value::Object(entries).to_string());
    let length = header.len() as u64 + at;
    (header, length)
}

/// A header of this text, padded as the format wants it.
pub fn framed(text: &str) -> Vec<u8> {
    let mut text = text.as_bytes().to_vec();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text);
    out
}

/// Writes such a file.
pub fn write_hollow(path: &Path, tensors: &[Tensor<'_>]) -> anyhow::Result<()> {
    let (header, length) = header(tensors);
    let mut file = File::create(path)?;
    file.write_all(&header)?;
    file.set_len(length)?;
    Ok(())
}
