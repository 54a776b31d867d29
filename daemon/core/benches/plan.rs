//! How long a plan takes on a large machine: 8 GPUs, 100 declared models whose files are known, 8 of them in service.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;

use berth_core::bytes::Bytes;
use berth_core::facts::{FileFacts, Known, Stamp};
use berth_core::gguf;
use berth_core::plan::Verdict;
use berth_core::report::Verb;
use criterion::{Criterion, criterion_group, criterion_main};

#[allow(dead_code)]
#[path = "../tests/story/mod.rs"]
mod story;

use story::{Machine, memory, settings};

/// Every card has one model; the one that is asked for has room on none unless somebody goes.
fn machine() -> Machine {
    let mut machine = Machine::bare(8);
    let published = shapes::models::published();
    let mut files = Vec::new();
    for number in 0..100 {
        let (_, file) = &published[number % published.len()];
        let header = file.header();
        let read = gguf::read(&mut header.as_slice(), file.length()).unwrap();
        let shape = Known::Value(Arc::new(gguf::shape(vec![read]).unwrap()));
        let path = PathBuf::from(format!("/models/{number}.gguf"));
        let stamp = Known::Value(Stamp { size: file.length(), modified: 1 });
        machine.facts.files.insert(path, FileFacts { stamp, shape });
        let mut text = String::new();
        write!(text, "cmd = \"llama-server -m /models/{number}.gguf\"\nctx = 16384\n").unwrap();
        files.push((format!("m{number}"), text));
    }
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    machine.settings = settings(&files);
    for gpu in 0..8 {
        machine.gpu(gpu).memory = Known::Value(memory(24_564, 400, 10));
    }
    for gpu in 0..8 {
        machine = machine.serves(&format!("m{gpu}"), &[(gpu, 21_000)]);
    }
    machine
}

fn plans(criterion: &mut Criterion) {
    let machine = machine();
    let plan = |model: &str| machine.plan(Verb::Switch, Some(model));
    let mut group = criterion.benchmark_group("gpus8_models100");
    // One that fits a card, the largest, which takes several, and one with experts.
    for model in ["m64", "m65", "m66"] {
        let Verdict::Go(go) = plan(model) else { panic!("{:?}", plan(model)) };
        assert!(!go.stops.is_empty() && go.starts[0].gpus.iter().all(|part| part.bytes > Bytes::ZERO));
        group.bench_function(model, |bencher| bencher.iter(|| black_box(plan(black_box(model)))));
    }
    group.finish();
}

criterion_group!(benches, plans);
criterion_main!(benches);
