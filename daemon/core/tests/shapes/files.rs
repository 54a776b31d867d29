//! Sizes to the byte, split models, files that are no models, types of tensors.

use berth_core::bytes::Bytes;
use berth_core::gguf;
use berth_core::shape::{Kind, Place, Shape};
use shapes::gguf::{Gguf, Type};
use shapes::{hostile, models};

use super::{drawn, read, try_read};

/// MiB of what global layers, sliding ones and recurrent ones keep, with so many cells and bytes of 32 elements.
fn kept(shape: &Shape, cells: u64, sliding_cells: u64, bytes_of_32: u64, slots: u64) -> (f64, f64, f64) {
    let (mut global, mut sliding, mut recurrent) = (0, 0, 0);
    for layer in shape.layers.iter().filter(|layer| !layer.next_token) {
        if let Some(attention) = layer.attention {
            let token = (attention.key + attention.value) / 32 * bytes_of_32;
            if attention.sliding { sliding += token * sliding_cells } else { global += token * cells }
        }
        recurrent += layer.recurrent.map_or(0, |state| (state.convolution + state.state) * 4 * slots);
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    (mib(global), mib(sliding), mib(recurrent))
}

#[test]
fn published_measurements_follow_from_the_headers() {
    let (f16, q8_0, q4_0) = (64, 34, 18);
    let expected = [
        ("gemma4-26b-a4b", (32_768, 5120, q4_0, 4), (180.0, 281.25, 0.0)),
        ("gemma4-12b", (8192, 6144, f16, 4), (128.0, 1920.0, 0.0)),
        ("qwen3.6-27b", (200_192, 0, q8_0, 1), (6647.0, 0.0, 149.625)),
        ("qwen3.5-9b", (135_168, 0, f16, 4), (4224.0, 0.0, 201.0)),
        ("qwen3-30b-a3b", (32_768, 0, q8_0, 1), (1632.0, 0.0, 0.0)),
    ];
    let files = models::published();
    for (name, (cells, sliding_cells, bytes_of_32, slots), measured) in expected {
        let file = &files.iter().find(|(found, _)| *found == name).unwrap().1;
        let shape = read(file);
        assert_eq!(kept(&shape, cells, sliding_cells, bytes_of_32, slots), measured, "{name}");
        assert_eq!(shape.unsure, None, "{name}");
    }
    for (name, file) in files {
        let shape = read(&file);
        assert_eq!(shape.weights(), Bytes(file.weights()), "{name}");
        assert!(shape.vocabulary > 100_000 && shape.trained_context > 32_000, "{name}");
    }
}

#[test]
fn small_models_are_of_every_kind() {
    let kinds: Vec<_> = models::small().iter().map(|(name, file)| (*name, drawn(&read(file)))).collect();
    let expected = [
        ("dense", "gggg"),
        ("moe", "gggg"),
        ("sliding", "sssssgs"),
        ("every-second", "sgsg"),
        ("shared", "sgsg--"),
        ("shared-moe", "sgsg--"),
        ("hybrid", "rrrg"),
        ("hybrid-next", "rrrgG"),
        ("mla", "gggg"),
        ("quantized", "gggg"),
    ];
    assert_eq!(kinds, expected.map(|(name, layers)| (name, layers.to_owned())));
}

#[test]
fn experts_are_counted_in_their_layers() {
    let shape = read(&models::small().remove(1).1);
    // Three tensors of 8 experts: 256 × 128 elements of 16 bits each.
    assert!(shape.layers.iter().all(|layer| layer.experts == Bytes(3 * 8 * 256 * 128 * 2)));
    assert!(shape.layers[0].weights > shape.layers[0].experts);
    assert_eq!(
        (shape.experts, shape.experts_used, shape.expert_feed_forward, shape.feed_forward),
        (8, 2, 128, 0)
    );

    let mut file = hostile::sound();
    file.tensor("blk.0.ffn_gate_up_exps.weight", &[64], Type::F32)
        .tensor("blk.0.ffn_down_chexps.weight", &[64], Type::F32)
        .tensor("blk.0.ffn_up_shexp.weight", &[64], Type::F32)
        .tensor("blk.0.ffn_gate_inp.weight", &[64], Type::F32);
    assert_eq!(read(&file).layers[0].experts, Bytes(2 * 64 * 4));
}

#[test]
fn tensors_have_their_places() {
    let shape = read(&models::small().remove(5).1);
    let place = |name: &str| shape.tensors.iter().find(|tensor| tensor.name == name).unwrap().place();
    assert_eq!(place("token_embd.weight"), Place::Input);
    assert_eq!(place("output_norm.weight"), Place::Output);
    assert_eq!(place("rope_freqs.weight"), Place::EachDevice);
    assert_eq!(place("blk.3.attn_q.weight"), Place::Layer(3));
    let embedding = Bytes(256 * 320 * 2);
    assert_eq!(shape.tied_output(), Some(embedding), "it has no output of its own");
    assert_eq!(read(&models::small().remove(0).1).tied_output(), None);
}

#[test]
fn parts_are_joined_and_a_missing_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let whole = models::small().remove(0).1;
    let names = whole.write_parts(folder.path(), "dense", 3).unwrap();
    assert_eq!(gguf::parts(&names[1]).as_ref(), Some(&names));
    let part = |number: usize| {
        let path = folder.path().join(&names[number]);
        let length = path.metadata().unwrap().len();
        gguf::read(&mut std::fs::File::open(path).unwrap(), length).unwrap()
    };
    let joined = gguf::shape(vec![part(0), part(1), part(2)]).unwrap();
    assert_eq!(joined, read(&whole));
    assert_eq!(part(1).split(), Some(gguf::Split { number: 1, count: 3 }));

    let refused = |files| gguf::shape(files).unwrap_err().to_string();
    let all = "give all parts of the model in their order";
    assert_eq!(refused(vec![part(0), part(2)]), format!("file 1 of 2 says that it is part 1 of 3; {all}"));
    assert_eq!(
        refused(vec![part(0), part(2), part(1)]),
        format!("file 2 of 3 says that it is part 3 of 3; {all}")
    );
    assert_eq!(
        refused(vec![part(0), part(1), part(1)]),
        format!("file 3 of 3 says that it is part 2 of 3; {all}")
    );
    assert_eq!(refused(vec![part(1)]), format!("file 1 of 1 says that it is part 2 of 3; {all}"));
    assert_eq!(refused(Vec::new()), "no file was given");
}

#[test]
fn only_names_of_parts_name_their_siblings() {
    let parts = gguf::parts("a-of-b-00002-of-00002.gguf").unwrap();
    assert_eq!(parts, ["a-of-b-00001-of-00002.gguf", "a-of-b-00002-of-00002.gguf"]);
    for name in
        ["a.gguf", "a-00003-of-00002.gguf", "a-00000-of-00002.gguf", "a-1-of-2.gguf", "a-00001-of-99999.gguf"]
    {
        assert_eq!(gguf::parts(name), None, "{name}");
    }
}

#[test]
fn what_is_no_model_is_told_from_one() {
    let mut projector = Gguf::new("clip");
    projector.key("general.type", "mmproj").tensor("v.blk.0.attn_q.weight", &[64, 64], Type::F16);
    let shape = read(&projector);
    assert_eq!((shape.kind, shape.layers.len(), shape.weights()), (Kind::Projector, 0, Bytes(8192)));

    let mut adapter = hostile::sound();
    adapter.key("general.type", "adapter");
    assert_eq!(read(&adapter).kind, Kind::Other);

    let mut vocabulary = hostile::sound();
    vocabulary.tensors.clear();
    let shape = read(&vocabulary);
    assert_eq!((shape.kind, shape.layers.len(), shape.vocabulary), (Kind::Vocabulary, 0, 3));
}

/// Bits of an element, as llama.cpp's own tables of quantizations give them.
#[test]
fn every_type_has_its_size() {
    let bits = [
        (0, 32.0),
        (1, 16.0),
        (2, 4.5),
        (3, 5.0),
        (6, 5.5),
        (7, 6.0),
        (8, 8.5),
        (9, 9.0),
        (10, 2.625),
        (11, 3.4375),
        (12, 4.5),
        (13, 5.5),
        (14, 6.5625),
        (15, 9.125),
        (16, 2.0625),
        (17, 2.3125),
        (18, 3.0625),
        (19, 1.5625),
        (20, 4.5),
        (21, 3.4375),
        (22, 2.5625),
        (23, 4.25),
        (24, 8.0),
        (25, 16.0),
        (26, 32.0),
        (27, 64.0),
        (28, 64.0),
        (29, 1.75),
        (30, 16.0),
        (34, 1.6875),
        (35, 2.0625),
        (39, 4.25),
        (40, 4.5),
        (41, 1.125),
        (42, 2.25),
    ];
    for number in 0..=64 {
        let expected = bits.iter().find(|(known, _)| *known == number).map(|(_, bits)| bits);
        let bytes = expected.map_or(64.0, |bits: &f64| bits * 1024.0 / 8.0);
        let mut file = hostile::sound();
        file.tensors.truncate(1);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        file.tensor("output.weight", &[1024], Type::Other(number, 1024, bytes as u64));
        match (expected, try_read(&file)) {
            (Some(_), Ok(shape)) => {
                assert_eq!(shape.tensors[1].bytes, Bytes(file.tensors[1].bytes()), "{number}");
            }
            (None, Err(error)) => {
                assert!(error.to_string().contains(&format!("unknown type {number}")), "{error}");
            }
            (_, read) => panic!("{number}: {read:?}"),
        }
    }
}
