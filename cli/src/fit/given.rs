//! What is given on the command line: settings other than the declared ones, and GPUs other than those here.

use std::collections::BTreeMap;

use berth_core::bytes::Bytes;
use berth_core::facts::{DeviceId, Gpu, GpuMemory, Known, Moment};
use berth_core::tuning::Tuning;

use crate::args::FitOptions;
use crate::complaint::Complaint;
use crate::exit::Exit;

/// As many GPUs as any machine has.
const MOST_GPUS: usize = 64;

/// No GPU is smaller; a bare number is meant as something else than bytes.
const SMALLEST: Bytes = Bytes::mib(64);

/// The settings that are given, by their keys. Each is valid for some server.
pub(super) fn settings(options: &FitOptions) -> Result<BTreeMap<String, String>, Complaint> {
    let given = [
        ("ctx", &options.ctx),
        ("kv", &options.kv),
        ("kv_k", &options.kv_k),
        ("kv_v", &options.kv_v),
        ("slots", &options.slots),
        ("ubatch", &options.ubatch),
        ("unified", &options.unified),
    ];
    let given = given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
    let given: BTreeMap<String, String> = given.collect();
    for (key, value) in &given {
        if let Err(error) = Tuning::default().set(key, value) {
            let option = key.replace('_', "-");
            let title = format!("--{option} {}: {error}", value.escape_debug());
            return Err(Complaint::new(Exit::Usage, "bad_setting", title, &["berthctl help fit".to_owned()]));
        }
    }
    Ok(given)
}

/// GPUs as `2x15.9GiB` and `24GiB,16GiB` describe them, empty; none for `none`.
pub(super) fn gpus(text: &str) -> Result<Vec<Gpu>, Complaint> {
    let bad = |why: String| {
        let title = format!("--gpus {}: {why}", text.escape_debug());
        let hints = ["--gpus 2x15.9GiB", "--gpus 24GiB,16GiB", "--gpus none"].map(str::to_owned);
        Complaint::new(Exit::Usage, "bad_gpus", title, &hints)
    };
    let mut sizes = Vec::new();
    for part in text.split(',').filter(|_| text != "none") {
        let (count, size) = match part.split_once(['x', 'X']) {
            Some((count, size)) => {
                let number = count.trim().parse::<usize>().ok().filter(|number| *number > 0);
                let why = || bad(format!("`{}` is no number of GPUs", count.escape_debug()));
                (number.ok_or_else(why)?, size)
            }
            None => (1, part),
        };
        let size: Bytes = size.parse().map_err(|error: berth_core::bytes::BadSize| bad(error.to_string()))?;
        if size < SMALLEST {
            return Err(bad(format!("a GPU has at least {SMALLEST}; write a unit, for example 16GiB")));
        }
        if sizes.len().saturating_add(count) > MOST_GPUS {
            return Err(bad(format!("at most {MOST_GPUS} can be given")));
        }
        sizes.resize(sizes.len() + count, size);
    }
    Ok((0..).zip(sizes).map(|(index, size)| gpu(index, size)).collect())
}

fn gpu(index: u32, total: Bytes) -> Gpu {
    Gpu {
        index,
        id: DeviceId(format!("given-{index}")),
        name: "given".to_owned(),
        read_at: Moment::ZERO,
        listed_at: Moment::ZERO,
        memory: Known::Value(GpuMemory { total, reserved: Bytes::ZERO, used: Bytes::ZERO, free: total }),
        processes: Known::Value(Vec::new()),
        lost: false,
        suspect: None,
        temperature_c: None,
        power_w: None,
        utilization_percent: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn gpus_are_given_by_number_and_size() {
        let sizes = |text: &str| -> Vec<Bytes> {
            gpus(text).unwrap().iter().map(|gpu| gpu.memory.value().unwrap().total).collect()
        };
        assert_eq!(sizes("2x16GiB"), [Bytes::mib(16384); 2]);
        assert_eq!(sizes("24 GiB, 2X512MiB"), [Bytes::mib(24576), Bytes::mib(512), Bytes::mib(512)]);
        assert_eq!(sizes("none"), []);
        for bad in
            ["", "16", "0x16GiB", "x16GiB", "2x", "16GiB,", "-1x16GiB", "65x16GiB", "none,16GiB", "a lot"]
        {
            let complaint = gpus(bad).unwrap_err();
            assert_eq!((complaint.exit, complaint.code.as_str()), (Exit::Usage, "bad_gpus"), "{bad}");
        }
    }
}
