//! What a server that runs holds of each GPU: for programs of which Berth can't read how much they take.

use berth_core::bytes::Bytes;
use berth_core::facts::GpuProcess;
use berth_observe::nvml::Nvml;
use toml::{Table, Value};

use super::{Addition, Draft};
use crate::standalone::NVML;

/// What it holds of each GPU that it uses, in NVML's order; empty where it holds nothing or that can't be measured.
async fn held(addition: &Addition) -> Vec<Bytes> {
    let unit = addition
        .service
        .as_ref()
        .filter(|service| service.loaded.runs())
        .map(|service| service.unit.as_str());
    if unit.is_none() && addition.process.is_none() {
        return Vec::new();
    }
    let ours = |process: &&GpuProcess| match unit {
        Some(unit) => process.unit.as_deref() == Some(unit),
        None => Some(process.pid) == addition.process,
    };
    let read = Nvml::spawn().read_all(NVML).await;
    let mut held = Vec::new();
    for gpu in read.value().into_iter().flatten() {
        let Some(processes) = gpu.processes.value() else { return Vec::new() };
        let mut on_this = Bytes::ZERO;
        for process in processes.iter().filter(ours) {
            // A sum with something unknown in it is none.
            let Some(memory) = process.memory.value() else { return Vec::new() };
            on_this = on_this.plus(*memory);
        }
        held.push(on_this);
    }
    held.retain(|bytes| *bytes > Bytes::ZERO);
    held
}

/// Declares what the server holds now. Says whether that could be measured.
pub(super) async fn declare(addition: &mut Addition) -> bool {
    let held = held(addition).await;
    let [draft] = addition.drafts.as_mut_slice() else { return false };
    if held.is_empty() {
        return false;
    }
    let sizes: Vec<String> = held.iter().map(|bytes| format!("{} MiB", bytes.0.div_ceil(1 << 20))).collect();
    note(draft, &sizes);
    let gpu = if let [one] = sizes.as_slice() { Value::from(one.clone()) } else { Value::from(sizes) };
    draft.keys.insert("memory".to_owned(), Value::from(Table::from_iter([("gpu".to_owned(), gpu)])));
    true
}

fn note(draft: &mut Draft, sizes: &[String]) {
    let why = "what it holds now; declare more where it grows with longer requests";
    draft.note(format!("memory, {}", sizes.join(" + ")), why);
}
