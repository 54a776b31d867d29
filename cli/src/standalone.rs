//! The status that can be told without berthd: the GPUs and who holds them, the host's memory, and why
//! there is no more.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use berth_core::bytes::Bytes;
use berth_core::facts::{Gpu, GpuProcess, Known};
use berth_core::report::{GpuBalance, GpuStatus, Holder, HostStatus, Problem, SCHEMA, Status};
use berth_observe::nvml::Nvml;
use berth_observe::proc::host_memory;

use crate::complaint::Complaint;

/// How long NVML may take: a GPU that fell off its bus can keep its calls for ever, one that slept some seconds.
pub(crate) const NVML: Duration = Duration::from_secs(10);

/// What can be seen from here, with the reason why berthd was not asked.
pub(crate) async fn status(why: &Complaint) -> Status {
    let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let at_ms = u64::try_from(at_ms).unwrap_or(u64::MAX);
    Status {
        schema: SCHEMA,
        node: nix::unistd::gethostname()
            .map_or_else(|_| "this machine".into(), |name| name.to_string_lossy().into_owned()),
        version: String::new(),
        at_ms,
        uptime_ms: None,
        default: None,
        home: Vec::new(),
        gpus: match Nvml::spawn().read_all(NVML).await {
            Known::Value(gpus) => Known::Value(gpus.into_iter().map(gpu).collect()),
            Known::Unknown(why) => Known::Unknown(why),
        },
        host: match host_memory() {
            Known::Value(memory) => {
                Known::Value(HostStatus { total: memory.total, available: memory.available })
            }
            Known::Unknown(why) => Known::Unknown(why),
        },
        models: Vec::new(),
        swap: None,
        placements: Vec::new(),
        last_swap: None,
        problems: vec![Problem {
            code: why.code.clone(),
            subject: String::new(),
            since_ms: at_ms,
            text: why.title.clone(),
            next: why.hints.join("; "),
        }],
    }
}

fn gpu(gpu: Gpu) -> GpuStatus {
    let holders = match gpu.processes {
        Known::Value(processes) => Known::Value(holders(processes)),
        Known::Unknown(why) => Known::Unknown(why),
    };
    let ours = holders
        .value()
        .map(|list| list.iter().filter(|h| h.ours).filter_map(|h| h.memory.value().copied()).sum());
    let memory = match gpu.memory {
        Known::Unknown(why) => Known::Unknown(why),
        Known::Value(memory) => Known::Value(GpuBalance {
            total: memory.total,
            reserved: memory.reserved,
            used: memory.used,
            free: memory.free,
            foreign: memory.used.less(ours.unwrap_or(Bytes::ZERO)),
            // Claims and headroom are berthd's; without it none are known.
            kept: Bytes::ZERO,
            headroom: Bytes::ZERO,
        }),
    };
    GpuStatus {
        index: gpu.index,
        id: gpu.id.0,
        name: gpu.name,
        age_ms: 0,
        memory,
        suspect: None,
        holders,
        temperature_c: gpu.temperature_c,
        power_w: gpu.power_w,
        utilization_percent: gpu.utilization_percent,
    }
}

/// The processes by whose they are, largest first.
fn holders(processes: Vec<GpuProcess>) -> Vec<Holder> {
    let mut found: BTreeMap<(bool, String, Option<String>), Holder> = BTreeMap::new();
    for process in processes {
        let ours = process.model.is_some();
        let name = process.model.map_or(process.program, String::from);
        let unit = process.unit;
        let holder = found.entry((ours, name.clone(), unit.clone())).or_insert_with(|| Holder {
            name,
            ours,
            unit,
            pids: Vec::new(),
            memory: Known::Value(Bytes::ZERO),
        });
        holder.pids.push(process.pid);
        holder.memory = match (&holder.memory, process.memory) {
            (Known::Value(sum), Known::Value(more)) => Known::Value(sum.plus(more)),
            (Known::Unknown(why), _) => Known::Unknown(why.clone()),
            (_, Known::Unknown(why)) => Known::Unknown(why),
        };
    }
    let mut list: Vec<Holder> = found.into_values().collect();
    list.sort_by_key(|holder| std::cmp::Reverse(holder.memory.value().copied()));
    list
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn process(pid: u32, program: &str, model: Option<&str>, memory: Known<Bytes>) -> GpuProcess {
        GpuProcess {
            pid,
            started: None,
            program: program.into(),
            memory,
            model: model.map(|name| name.parse().unwrap()),
            unit: None,
        }
    }

    #[test]
    fn processes_are_gathered_by_whose_they_are() {
        let known = |mib| Known::Value(Bytes::mib(mib));
        let list = holders(vec![
            process(7, "Xorg", None, known(300)),
            process(9, "python3", Some("aeon"), known(10)),
            process(8, "VLLM::Worker", Some("aeon"), known(14000)),
            process(5, "gnome-shell", None, Known::Unknown("not said".into())),
        ]);
        let names: Vec<&str> = list.iter().map(|holder| holder.name.as_str()).collect();
        assert_eq!(names, ["aeon", "Xorg", "gnome-shell"]);
        assert_eq!((list[0].ours, &list[0].pids, &list[0].memory), (true, &vec![9, 8], &known(14010)));
        assert_eq!(list[2].memory.value(), None);
    }
}
