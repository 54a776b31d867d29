//! Shapes read from files that `tests/shapes` makes, held against published measurements and llama.cpp's own rules.

mod architectures;
mod config;
mod files;

use berth_core::gguf;
use berth_core::shape::{Layer, Shape};
use shapes::gguf::Gguf;

/// The shape of one file, read from its header alone.
fn read(file: &Gguf) -> Shape {
    try_read(file).unwrap()
}

fn try_read(file: &Gguf) -> Result<Shape, gguf::Error> {
    let header = gguf::read(&mut file.header().as_slice(), file.length())?;
    gguf::shape(vec![header])
}

/// What each layer keeps, a letter each: global, sliding, recurrent, both, nothing; capital where it only predicts.
fn drawn(shape: &Shape) -> String {
    let letter = |layer: &Layer| {
        let letter = match (layer.attention, layer.recurrent) {
            (Some(_), Some(_)) => 'b',
            (None, Some(_)) => 'r',
            (Some(attention), None) if attention.sliding => 's',
            (Some(_), None) => 'g',
            (None, None) => '-',
        };
        if layer.next_token { letter.to_ascii_uppercase() } else { letter }
    };
    shape.layers.iter().map(letter).collect()
}
