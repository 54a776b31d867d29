//! Headers that want to do harm, and sound ones that were damaged: each ends in a typed error or a shape, never in a
//! panic, and never takes more than 64 MiB. An allocator counts, so this is a program of its own.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_core::{gguf, safetensors};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use shapes::hostile::{self, Hostile};
use shapes::models;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What reading may take.
const MOST: f32 = 64.0;

/// One reading at a time, or the count would be of several.
static ONE: Mutex<()> = Mutex::new(());

/// Reads, and gives the time and the MiB that it took.
fn measured(read: impl FnOnce() -> Result<(), String>) -> (Result<(), String>, Duration, f32) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = ALLOCATOR.current_usage_as_mb();
    ALLOCATOR.reset_peak_usage();
    let start = Instant::now();
    let result = read();
    let (took, peak) = (start.elapsed(), ALLOCATOR.peak_usage_as_mb() - before);
    assert!(peak <= MOST, "{peak} MiB");
    (result, took, peak)
}

fn read_gguf(bytes: &[u8], length: u64) -> Result<(), String> {
    let shape = gguf::read(&mut &*bytes, length).and_then(|file| gguf::shape(vec![file]));
    shape.map(drop).map_err(|error| error.to_string())
}

/// A model of one file whose config has an answer for everything.
fn read_safetensors(bytes: &[u8], length: u64) -> Result<(), String> {
    let config = br#"{"num_hidden_layers":2,"hidden_size":64,"num_attention_heads":4}"#;
    let shape =
        safetensors::read(&mut &*bytes, length).and_then(|file| safetensors::shape(config, vec![file]));
    shape.map(drop).map_err(|error| error.to_string())
}

type Read = fn(&[u8], u64) -> Result<(), String>;

fn refuses(cases: Vec<Hostile>, read: Read) {
    for case in cases {
        let (result, took, peak) = measured(|| read(&case.bytes, case.length));
        println!("{:>28} {took:>10.1?} {peak:>6.2} MiB  {result:?}", case.name);
        let error = result.expect_err(case.name);
        assert!(error.contains(case.says), "{}: {error}", case.name);
    }
}

#[test]
fn hostile_headers_are_refused() {
    refuses(hostile::gguf(), read_gguf);
    refuses(hostile::safetensors(), read_safetensors);
}

/// As much as the bounds let through, of each sort.
#[test]
fn the_largest_headers_stay_small() {
    let gguf = |tensors: u64, keys: u64| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend([tensors, keys].map(u64::to_le_bytes).concat());
        bytes
    };
    let mut tensors = gguf(1 << 16, 0);
    for number in 0..1 << 16 {
        let name = format!("{number:063}");
        tensors.extend(63u64.to_le_bytes());
        tensors.extend(name.as_bytes());
        tensors.extend(1u32.to_le_bytes());
        tensors.extend([0; 20]);
    }
    tensors.resize(tensors.len().next_multiple_of(32), 0);
    let mut keys = gguf(0, 1 << 14);
    for number in 0..1 << 14 {
        keys.extend(250u64.to_le_bytes());
        keys.extend(format!("{number:0250}").as_bytes());
        keys.extend(8u32.to_le_bytes());
        keys.extend(250u64.to_le_bytes());
        keys.extend([b'x'; 250]);
    }
    let mut numbers = gguf(0, 256);
    for number in 0..256 {
        numbers.extend(3u64.to_le_bytes());
        numbers.extend(format!("{number:03}").as_bytes());
        numbers.extend([9u32, 0].map(u32::to_le_bytes).concat());
        numbers.extend(1024u64.to_le_bytes());
        numbers.extend([1; 1024]);
    }
    let mut strings = gguf(0, 1);
    strings.extend(0u64.to_le_bytes());
    strings.extend([9u32, 8].map(u32::to_le_bytes).concat());
    strings.extend((1u64 << 22).to_le_bytes());
    strings.resize(strings.len() + (8 << 22), 0);
    let mut text = gguf(0, 1);
    text.extend(0u64.to_le_bytes());
    text.extend(8u32.to_le_bytes());
    text.extend((60u64 << 20).to_le_bytes());
    text.resize(text.len() + (60 << 20), b'x');
    let entry = |name: &str| format!(r#""{name}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
    let many: Vec<_> = (0..1 << 16).map(|number| entry(&format!("model.layers.0.{number:040}"))).collect();
    let many = shapes::safetensors::framed(&format!("{{{}}}", many.join(",")));
    let sizes =
        format!(r#"{{"a":{{"dtype":"U8","data_offsets":[0,0],"shape":[0{}]}}}}"#, ",1".repeat(3 << 20));
    let sizes = shapes::safetensors::framed(&sizes);
    let cases: [(&str, &[u8], Read); 7] = [
        ("tensors", &tensors, read_gguf),
        ("keys", &keys, read_gguf),
        ("numbers", &numbers, read_gguf),
        ("strings", &strings, read_gguf),
        ("text", &text, read_gguf),
        ("tensors of safetensors", &many, read_safetensors),
        ("sizes of safetensors", &sizes, read_safetensors),
    ];
    for (name, bytes, read) in cases {
        let (result, took, peak) = measured(|| read(bytes, bytes.len() as u64));
        println!("{name:>28} {took:>10.1?} {peak:>6.2} MiB  {result:?}");
    }
}

/// The models of the tests, with the length of their files.
static SOUND: LazyLock<Vec<(Vec<u8>, u64, Read)>> = LazyLock::new(|| {
    let mut all: Vec<(Vec<u8>, u64, Read)> =
        vec![(hostile::sound().header(), hostile::sound().length(), read_gguf)];
    for (_, file) in models::published() {
        all.push((file.header(), file.length(), read_gguf));
    }
    let tensors: &[shapes::safetensors::Tensor<'_>] = &[
        ("model.embed_tokens.weight", "BF16", 16, &[10, 64]),
        ("model.layers.0.mlp.experts.0.up_proj.weight", "I32", 32, &[8]),
        ("mtp.layers.1.norm.weight", "F32", 32, &[1]),
    ];
    let (header, length) = shapes::safetensors::header(tensors);
    all.push((header, length, read_safetensors));
    all
});

#[test]
fn a_header_cut_anywhere_is_refused() {
    for (header, length, read) in &*SOUND {
        let length = *length;
        assert_eq!(read(header, length), Ok(()));
        // Of the longer ones not every byte, so that it takes a few seconds.
        for cut in (0..header.len() - 40).step_by(1 + header.len() / 500) {
            let (result, ..) = measured(|| read(&header[..cut], length));
            let error = result.expect_err("in a file that is said to be whole");
            assert!(error.contains("the file ends too early"), "cut at {cut}: {error}");
            let (result, ..) = measured(|| read(&header[..cut], cut as u64));
            assert!(result.is_err(), "cut at {cut}");
        }
    }
}

fn config() -> ProptestConfig {
    let kept = FileFailurePersistence::Direct(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/proptest-regressions/hostile.txt"
    ));
    ProptestConfig { cases: 1000, failure_persistence: Some(Box::new(kept)), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn damaged_headers_do_no_harm(
        which in 0usize..8,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        counts in prop::collection::vec((any::<prop::sample::Index>(), huge()), 0..3),
        length in prop::option::of(any::<u64>()),
    ) {
        let (mut header, real, read) = SOUND[which].clone();
        for (at, byte) in damage {
            let at = at.index(header.len());
            header[at] = byte;
        }
        for (at, count) in counts {
            let at = at.index(header.len() - 8);
            header[at..at + 8].copy_from_slice(&count.to_le_bytes());
        }
        let _ = measured(|| read(&header, length.unwrap_or(real)));
    }
}

fn huge() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(u64::MAX),
        Just(1 << 60),
        Just(i64::MAX.unsigned_abs()),
        Just(u64::from(u32::MAX)),
        Just(0)
    ]
}

/// The corpus of the fuzzer: eight bytes of a file's length, then its header.
fn corpus(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(kind)
}

#[test]
fn the_corpus_does_no_harm() {
    for (kind, read) in [("gguf", read_gguf as Read), ("safetensors", read_safetensors)] {
        let expected = hostile::corpus(kind);
        let mut found: Vec<_> = corpus(kind).read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        found.sort();
        for path in &found {
            let input = std::fs::read(path).unwrap();
            assert!(input.len() <= 4096, "{} is too large to commit", path.display());
            let (length, header) = input.split_first_chunk::<8>().unwrap();
            let _ = measured(|| read(header, u64::from_le_bytes(*length)));
        }
        for (name, bytes) in expected {
            let path = corpus(kind).join(&name);
            let made = std::fs::read(&path).unwrap_or_default();
            assert!(made == bytes, "{} is not what `cargo run -p shapes -- --corpus` makes", path.display());
        }
    }
}
