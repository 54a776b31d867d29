//! What llama.cpp takes, of the headers of models of which measurements were published.

use std::collections::BTreeMap;

use berth_core::demand::llama_cpp::{Costs, Files, Run};
use berth_core::demand::{Parts, What};
use berth_core::gguf;
use berth_core::shape::Shape;
use berth_core::tuning::Tuning;

fn shape(name: &str) -> Shape {
    let (_, file) = shapes::models::published().into_iter().find(|(known, _)| *known == name).unwrap();
    gguf::shape(vec![gguf::read(&mut file.header().as_slice(), file.length()).unwrap()]).unwrap()
}

fn run(line: &str) -> Run {
    let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    Run::read(&args, &BTreeMap::new(), &Tuning::default()).unwrap()
}

/// All of it on one GPU.
fn on_one_gpu(name: &str, line: &str) -> Parts {
    let shape = shape(name);
    let costs = Costs::new(Files::from(&shape), &run(line));
    costs.demand(1, &[costs.slots()], &[]).gpus.remove(0)
}

/// MiB as logs have them.
fn mib(parts: &Parts, what: What) -> String {
    format!("{:.2}", parts.of(what).0 as f64 / f64::from(1 << 20))
}

#[test]
fn keys_values_and_states_are_what_was_measured() {
    let kept = |name: &str, line: &str| {
        let parts = on_one_gpu(name, line);
        [What::KvGlobal, What::KvSliding, What::Recurrent].map(|what| mib(&parts, what)).join(" ")
    };
    assert_eq!(kept("gemma4-26b-a4b", "-c 32768 -ctk q4_0 -ctv q4_0 -ub 1024"), "180.00 281.25 0.00");
    let smaller = kept("gemma4-26b-a4b", "-c 32768 -ctk q4_0 -ctv q4_0");
    assert_eq!(smaller, "180.00 253.12 0.00", "together 433.1");
    assert_eq!(kept("gemma4-12b", "-c 8192 -ub 2048"), "128.00 1920.00 0.00");
    assert_eq!(kept("qwen3.6-27b", "-c 200192 -ctk q8_0 -ctv q8_0 -np 1"), "6647.00 0.00 149.62");
    assert_eq!(kept("qwen3.5-9b", "-c 135168"), "4224.00 0.00 201.00");
    assert_eq!(kept("qwen3-30b-a3b", "-c 32768 -ctk q8_0 -ctv q8_0"), "1632.00 0.00 0.00");
}

#[test]
fn buffers_to_compute_in_are_close_to_what_was_measured() {
    // 541.07 MiB were published; the others are of a server of August 2026 on the CPU, which keeps one embedding of each
    // token there too.
    let computed =
        |name: &str, line: &str| on_one_gpu(name, line).of(What::Compute).0 as f64 / f64::from(1 << 20);
    for (name, line, measured) in [
        ("gemma4-12b", "-c 8192 -ub 2048", 541.07),
        ("gemma4-12b", "-c 4096", 136.52 - 7.5),
        ("gemma4-26b-a4b", "-c 4096", 104.02 - 5.5),
        ("qwen3-30b-a3b", "-c 4096", 92.01 - 4.0),
        ("qwen3.6-27b", "-c 4096", 136.02 - 10.0),
        ("qwen3.5-9b", "-c 4096", 100.02 - 8.0),
        ("llama-3.3-70b", "-c 4096", 236.01 - 16.0),
    ] {
        let off = computed(name, line) / measured - 1.0;
        assert!((-0.10..0.20).contains(&off), "{name} {line}: {:.1} % off", off * 100.0);
    }
}

#[test]
fn over_two_gpus_some_split_is_close_to_even() {
    let shape = shape("llama-3.3-70b");
    let costs = Costs::new(Files::from(&shape), &run("-c 32768"));
    let whole = costs.slots();
    let mut least = u64::MAX;
    for first in 1..whole {
        let demand = costs.demand(2, &[first, whole - first], &[]);
        least = least.min(demand.gpus.iter().map(|parts| parts.total().0).max().unwrap());
    }
    let total = costs.demand(1, &[whole], &[]).gpus[0].total().0;
    assert!(least > total / 2, "two halves are no smaller than the whole");
    assert!(least < total / 2 + total / 20, "and some split is close to even");
}
