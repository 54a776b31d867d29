//! The machines and models of the story, as settings, facts and state.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use berth_core::backend::PlacedGpu;
use berth_core::bytes::Bytes;
use berth_core::config::{Settings, SourceFile, Sources, load};
use berth_core::facts::{
    Active, Brought, CoreKind, Cpu, DeviceId, Facts, Gpu, GpuMemory, GpuProcess, Host, HostMemory, Known,
    Preflight, Unit,
};
use berth_core::name::ModelName;
use berth_core::plan::{self, Verdict};
use berth_core::report::{Request, Verb};
use berth_core::state::{Claim, ClaimedGpu, Home, Phase, State};

/// The models of story.md: `old` is retired, `twin` has genesis's port, `pair` says what it takes on each GPU.
const MODELS: &[(&str, &str)] = &[
    (
        "genesis",
        "cmd = \"vllm serve /models/genesis -tp 2 --gpu-memory-utilization 0.90\"\nport = 8022\npolicy = \"split\"\naliases = [\"production\"]\nshares_port = true\n",
    ),
    (
        "aeon",
        "cmd = \"vllm serve /models/aeon -tp 2 --gpu-memory-utilization 0.90\"\nport = 8023\npolicy = \"split\"\n",
    ),
    ("twin", "cmd = \"serve\"\nport = 8022\nshares_port = true\n[memory]\ngpu = \"1 GiB\"\n"),
    ("supergemma", "cmd = \"llama-server -m /models/s.gguf\"\nport = 8024\n[memory]\ngpu = \"16003 MiB\"\n"),
    ("glm-flash", "cmd = \"llama-server -m /models/g.gguf\"\nport = 8025\n[memory]\ngpu = \"9 GiB\"\n"),
    ("small", "cmd = \"llama-server -m /models/small.gguf\"\nport = 8026\n[memory]\ngpu = \"5 GiB\"\n"),
    ("gemma-nvfp4", "cmd = \"serve\"\nport = 8027\npolicy = \"split\"\n[memory]\ngpu = \"32 GiB\"\n"),
    ("pair", "cmd = \"serve\"\nport = 8028\n[memory]\ngpu = [\"12 GiB\", \"3 GiB\"]\n"),
    ("old", "cmd = \"serve\"\nport = 8029\nretired = true\n[memory]\ngpu = \"1 GiB\"\n"),
    ("unsaid", "cmd = \"serve\"\nport = 8030\n"),
    ("cpu-only", "cmd = \"serve\"\nport = 8031\npolicy = \"cpu\"\n[memory]\nhost = \"1 GiB\"\n"),
];

/// What a GPU holds that belongs to no process.
pub(crate) const DRIVER: u64 = 3;

pub(crate) fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

/// A declaration in a file of its own for each model.
pub(crate) fn settings(models: &[(&str, &str)]) -> Settings {
    settings_with(models, &[])
}

/// The same beside policies.
pub(crate) fn settings_with(models: &[(&str, &str)], policies: &[(&str, &str)]) -> Settings {
    let files = |folder: &str, files: &[(&str, &str)]| -> Vec<SourceFile> {
        let path = |name: &str| PathBuf::from(format!("/etc/berth/{folder}/{name}.toml"));
        files.iter().map(|(name, text)| SourceFile { path: path(name), text: (*text).to_owned() }).collect()
    };
    let (models, policies) = (files("models.d", models), files("policies.d", policies));
    load(&Sources { main: None, models, policies }, "tower").unwrap()
}

pub(crate) fn device(index: usize) -> DeviceId {
    DeviceId(format!("GPU-{index}"))
}

/// The tower's host: 31 GiB, 8 fast cores and 12 economical ones, nothing but the system on it.
pub(crate) fn host() -> Host {
    let kind = |id| if id < 8 { CoreKind::Performance } else { CoreKind::Efficiency };
    let memory = HostMemory {
        read_at: Duration::from_secs(100),
        total: Bytes::mib(31_800),
        available: Bytes::mib(29_800),
    };
    Host {
        memory: Known::Value(memory),
        cpus: Known::Value((0..20).map(|id| Cpu { id, core: id, kind: kind(id) }).collect()),
    }
}

/// A machine as it was recorded, with what Berth holds on it.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) settings: Settings,
    pub(crate) facts: Facts,
    pub(crate) state: State,
    pub(crate) preflight: BTreeMap<ModelName, Preflight>,
    next_pid: u32,
}

impl Machine {
    /// The tower with so many RTX 5060 Ti, nothing on them.
    pub(crate) fn bare(gpus: usize) -> Self {
        let gpu = |index: usize| Gpu {
            index: u32::try_from(index).unwrap(),
            id: device(index),
            name: "NVIDIA GeForce RTX 5060 Ti".to_owned(),
            read_at: Duration::from_secs(100),
            listed_at: Duration::from_secs(100),
            memory: Known::Value(memory(16_311, 388, DRIVER)),
            processes: Known::Value(Vec::new()),
            lost: false,
            suspect: None,
            temperature_c: None,
            power_w: None,
            utilization_percent: None,
        };
        Self {
            settings: settings(MODELS),
            facts: Facts {
                at: Duration::from_secs(100),
                gpus: Known::Value((0..gpus).map(gpu).collect()),
                units: BTreeMap::new(),
                host: host(),
                files: BTreeMap::new(),
            },
            state: State::default(),
            preflight: BTreeMap::new(),
            next_pid: 4000,
        }
    }

    /// The same with an Xorg of 400 MiB on the first.
    pub(crate) fn tower(gpus: usize) -> Self {
        Self::bare(gpus).foreign(0, "Xorg", 400)
    }

    pub(crate) fn gpu(&mut self, index: usize) -> &mut Gpu {
        let Known::Value(gpus) = &mut self.facts.gpus else { panic!("no GPUs") };
        &mut gpus[index]
    }

    /// Lets a process take memory.
    pub(crate) fn holds(&mut self, gpu: usize, pid: u32, program: &str, mib: u64, model: Option<&str>) {
        let gpu = self.gpu(gpu);
        if let Known::Value(memory) = &mut gpu.memory {
            memory.used = memory.used.plus(Bytes::mib(mib));
            memory.free = memory.free.less(Bytes::mib(mib));
        }
        if let Known::Value(processes) = &mut gpu.processes {
            processes.push(GpuProcess {
                pid,
                started: Some(u64::from(pid)),
                program: program.to_owned(),
                memory: Known::Value(Bytes::mib(mib)),
                model: model.map(name),
                unit: None,
            });
        }
    }

    pub(crate) fn foreign(mut self, gpu: usize, program: &str, mib: u64) -> Self {
        self.next_pid += 1;
        let pid = self.next_pid;
        self.holds(gpu, pid, program, mib, None);
        self
    }

    /// Claims memory for a model in this phase and lets its process hold all of it, or `held` where that is given.
    pub(crate) fn claims(&mut self, model: &str, phase: Phase, parts: &[(usize, u64)], held: Option<u64>) {
        self.next_pid += 1;
        let pid = self.next_pid;
        let gpus = parts.iter().map(|(gpu, mib)| ClaimedGpu {
            placed: PlacedGpu {
                id: device(*gpu),
                index: u32::try_from(*gpu).unwrap(),
                bytes: Bytes::mib(*mib),
            },
            unlisted_before: Some(Bytes::mib(DRIVER)),
            free_before: self.facts.gpus()[*gpu].memory.value().map(|m| m.free).unwrap_or_default(),
        });
        let claim = Claim {
            gpus: gpus.collect(),
            layout: berth_core::layout::Layout::default(),
            run: None,
            phase,
            invocation: format!("run-of-{model}"),
            declared: BTreeMap::new(),
            earlier: String::new(),
            address: None,
            unseen: false,
            seen: BTreeMap::from([(pid, u64::from(pid))]),
        };
        self.state.claims.insert(name(model), claim);
        for (gpu, mib) in parts {
            self.holds(*gpu, pid, "server", held.unwrap_or(*mib), Some(model));
        }
        self.facts.units.insert(name(model), unit(&format!("run-of-{model}"), Active::Active, &[pid]));
    }

    /// A model of home that serves.
    pub(crate) fn serves(mut self, model: &str, parts: &[(usize, u64)]) -> Self {
        self.claims(model, Phase::Serving, parts, None);
        self.state.home.models.push(name(model));
        self.state.home.default = Some(name(model));
        self
    }

    /// What was home before.
    pub(crate) fn before(mut self, models: &[&str]) -> Self {
        let models: Vec<ModelName> = models.iter().map(|model| name(model)).collect();
        self.state.previous = Some(Home { default: models.last().cloned(), models });
        self
    }

    pub(crate) fn request(verb: Verb, model: Option<&str>) -> Request {
        Request { verb, model: model.map(str::to_owned), set: BTreeMap::new() }
    }

    pub(crate) fn plan(&self, verb: Verb, model: Option<&str>) -> Verdict {
        let request = Self::request(verb, model);
        plan::plan(&self.settings, &self.facts, &self.state, &request, &self.preflight)
    }
}

/// Memory in MiB: total, reserved and used.
pub(crate) fn memory(total: u64, reserved: u64, used: u64) -> GpuMemory {
    GpuMemory {
        total: Bytes::mib(total),
        reserved: Bytes::mib(reserved),
        used: Bytes::mib(used),
        free: Bytes::mib(total.saturating_sub(reserved).saturating_sub(used)),
    }
}

/// A unit with these processes in its cgroup.
pub(crate) fn unit(invocation: &str, active: Active, pids: &[u32]) -> Unit {
    Unit {
        active,
        sub: String::new(),
        result: "success".to_owned(),
        exit: None,
        invocation: invocation.to_owned(),
        started_at: None,
        main_pid: pids.first().copied(),
        processes: Known::Value(pids.iter().map(|pid| (*pid, u64::from(*pid))).collect()),
        brought: Known::Value(Brought::default()),
        docker: Unit::docker_not_asked(),
        predecessor: None,
    }
}
