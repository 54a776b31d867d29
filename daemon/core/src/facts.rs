//! What was observed. Unknown is a value, never zero.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::bytes::Bytes;
use crate::name::ModelName;
use crate::shape::Shape;

/// A moment: the time since `CLOCK_MONOTONIC`'s zero. systemd's and gpusim's stamps count from there too.
pub type Moment = Duration;

/// Between two readings of the GPUs when nothing goes on; while something does they come closer.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// How long one may take.
pub const READING: Duration = Duration::from_secs(2);
/// A reading older than this is stale: three are missing, and the last of them has had its time.
pub const STALE: Duration = Duration::from_secs(3 * INTERVAL.as_secs() + READING.as_secs());

/// A measured value, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Known<T> {
    /// The value as measured.
    Value(T),
    /// It could not be measured, and why, as one plain clause.
    Unknown(String),
}

impl<T> Known<T> {
    /// The value, if it is known.
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }

    /// Why the value is not known.
    pub fn why_unknown(&self) -> Option<&str> {
        match self {
            Self::Value(_) => None,
            Self::Unknown(why) => Some(why),
        }
    }
}

/// A device's lasting identity: a GPU's UUID as NVML gives it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceId(pub String);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Everything that was observed at about one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// When the newest part of it was read.
    pub at: Moment,
    /// The GPUs in NVML's order, or why they can't be seen (no library, driver and library disagree …).
    pub gpus: Known<Vec<Gpu>>,
    /// The units of models that systemd knows, whatever their state. A model without an entry is not loaded.
    pub units: BTreeMap<ModelName, Unit>,
    /// The host's memory and processors.
    pub host: Host,
    /// Programs and models' files that declarations name, as they were looked up last.
    pub files: BTreeMap<PathBuf, FileFacts>,
}

impl Facts {
    /// Nothing observed yet.
    pub fn none_yet() -> Self {
        Self {
            at: Moment::ZERO,
            gpus: Known::Unknown("not read yet".to_owned()),
            units: BTreeMap::new(),
            host: Host::none_yet(),
            files: BTreeMap::new(),
        }
    }

    /// The GPUs that can be seen, in NVML's order.
    pub fn gpus(&self) -> &[Gpu] {
        self.gpus.value().map_or(&[], Vec::as_slice)
    }

    /// Makes unknown what was read too long ago to be true now. Whether there was something.
    pub fn expire(&mut self, now: Moment) -> bool {
        let Known::Value(gpus) = &mut self.gpus else { return false };
        let why = format!("it was read last more than {} s ago", STALE.as_secs());
        let mut news = false;
        for gpu in gpus {
            let is_old = |at: Moment| now.saturating_sub(at) > STALE;
            if is_old(gpu.read_at) && gpu.memory.value().is_some() {
                gpu.memory = Known::Unknown(why.clone());
                (gpu.temperature_c, gpu.power_w, gpu.utilization_percent) = (None, None, None);
                news = true;
            }
            if is_old(gpu.listed_at) && gpu.processes.value().is_some() {
                gpu.processes = Known::Unknown(why.clone());
                news = true;
            }
        }
        news
    }

    /// The GPU of this identity, if it can be seen.
    pub fn gpu(&self, id: &DeviceId) -> Option<&Gpu> {
        self.gpus().iter().find(|gpu| gpu.id == *id)
    }
}

/// One GPU as read at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// NVML's index, for display; it may change over a reboot.
    pub index: u32,
    /// Its UUID.
    pub id: DeviceId,
    /// Its product name.
    pub name: String,
    /// When `memory` was read.
    pub read_at: Moment,
    /// When `processes` was read; the fast poll reads memory alone.
    pub listed_at: Moment,
    /// Its memory.
    pub memory: Known<GpuMemory>,
    /// The processes that hold memory on it, compute and graphics, each pid once.
    pub processes: Known<Vec<GpuProcess>>,
    /// The driver has lost it: it fell off the bus, needs a reset, or is listed no more.
    #[serde(default)]
    pub lost: bool,
    /// It misbehaved lately, and nothing is placed there. Not read, but judged from what was (`soundness`).
    #[serde(default)]
    pub suspect: Option<Suspicion>,
    /// Degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Watts drawn.
    pub power_w: Option<u32>,
    /// Percent of the last sample period in which a kernel ran.
    pub utilization_percent: Option<u32>,
}

impl Gpu {
    /// What all listed processes hold together; None where the driver does not say of each.
    pub fn listed(&self) -> Option<Bytes> {
        self.processes.value()?.iter().map(|process| process.memory.value().copied()).sum()
    }
}

/// Why a GPU is not relied on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspicion {
    /// What it did, as one plain clause.
    pub why: String,
    /// Since when.
    pub since: Moment,
    /// When it is relied on again if all goes well; None as long as it is not read soundly.
    pub until: Option<Moment>,
}

impl Suspicion {
    /// Why, and when it is used again, seen from `now`.
    pub fn sentence(&self, now: Moment) -> String {
        let why = &self.why;
        match self.until {
            Some(until) => {
                let left = until.saturating_sub(now).as_secs_f64().ceil();
                format!("{why}; it is used again in {left:.0} s if all goes well")
            }
            None => format!("{why}; it is used again once it has been read soundly for a while"),
        }
    }
}

/// Memory of one GPU. `total = reserved + used + free` (NVML's memory info, version 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuMemory {
    /// Physical memory.
    pub total: Bytes,
    /// Kept by driver and firmware.
    pub reserved: Bytes,
    /// Allocated.
    pub used: Bytes,
    /// Allocatable now.
    pub free: Bytes,
}

/// A process in a GPU's list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProcess {
    /// Its process id.
    pub pid: u32,
    /// What identifies it beside a pid that is used again: its start time in clock ticks since boot. None when
    /// the process is gone already.
    pub started: Option<u64>,
    /// Its program's name (`comm`); empty when the process is gone already.
    pub program: String,
    /// What it holds on this GPU.
    pub memory: Known<Bytes>,
    /// The model in whose unit's cgroup it runs; None for a foreign process.
    pub model: Option<ModelName>,
    /// The systemd unit of a foreign process, where there is one: `aeon.service`, `session-3.scope`; of a user's own
    /// systemd with both units, `user@1000.service/aeon.service`.
    #[serde(default)]
    pub unit: Option<String>,
}

impl GpuProcess {
    /// "pid 812 (llama-server) of aeon.service".
    pub fn named(&self) -> String {
        let unit = self.unit.as_ref().map(|unit| format!(" of {unit}")).unwrap_or_default();
        format!("pid {} ({}){unit}", self.pid, self.program)
    }
}

/// A model's unit as systemd tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// systemd's `ActiveState`.
    pub active: Active,
    /// systemd's `SubState`.
    pub sub: String,
    /// systemd's `Result` of the last run: `success`, `exit-code`, `signal`, `timeout` …
    pub result: String,
    /// How the main process ended, where it has.
    pub exit: Option<Exit>,
    /// systemd's `InvocationID` in lower-case hex, empty when the unit never ran.
    pub invocation: String,
    /// `ExecMainStartTimestampMonotonic`.
    pub started_at: Option<Moment>,
    /// The main process; None when there is none.
    pub main_pid: Option<u32>,
    /// Processes in the unit's cgroup and below, with their start time in clock ticks since boot. Unknown when
    /// the cgroup can't be read; empty when it is gone.
    pub processes: Known<BTreeMap<u32, u64>>,
    /// What these processes have brought into memory.
    pub brought: Known<Brought>,
    /// Whether docker runs a container for the model.
    #[serde(default = "Unit::docker_not_asked")]
    pub docker: Known<Docker>,
    /// The unit that this is, where it is not the model's own but the one that it replaces.
    #[serde(default)]
    pub predecessor: Option<String>,
}

impl Unit {
    /// What is known of docker where nobody has looked.
    pub fn docker_not_asked() -> Known<Docker> {
        Known::Unknown("it was not looked at".to_owned())
    }
}

/// What docker does for a model. Its program in the unit only waits: where that is gone, docker may still be at what it was
/// asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Docker {
    /// Processes are in the model's slice.
    Runs,
    /// There is none, and nobody who is gone has asked docker for anything.
    Idle,
    /// There is none yet, and docker is at a request whose sender is gone.
    Busy,
    /// There is none yet, and docker has not read a request whose sender is gone.
    Silent,
}

/// What processes have brought into the host's memory, by the kernel's three ways to count it. Only that it grows
/// says something: a server that loads from a slow disk is still at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Brought {
    /// What is resident now.
    pub resident: Bytes,
    /// Pages for which a process had to wait for a disk, since its start.
    pub faulted: Bytes,
    /// What their cgroup is charged, page cache included; zero where the memory controller is off.
    pub charged: Bytes,
    /// What is resident now and can't be given back while they run: anonymous, shared and locked memory.
    pub pinned: Bytes,
}

impl Brought {
    /// Less than this is noise: buffers of connections, a log.
    const GROWTH: Bytes = Bytes(256 << 10);

    /// Whether `now` is visibly more than this, in any way; then this becomes it.
    pub fn grows(&mut self, now: &Self) -> bool {
        let mut grew = false;
        let counts = [
            (&mut self.resident, now.resident),
            (&mut self.faulted, now.faulted),
            (&mut self.charged, now.charged),
        ];
        for (most, now) in counts {
            if now >= most.plus(Self::GROWTH) {
                *most = now;
                grew = true;
            }
        }
        grew
    }
}

/// systemd's `ActiveState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Active {
    /// Running.
    Active,
    /// Reloading its configuration; running.
    Reloading,
    /// Stopped without an error.
    Inactive,
    /// Stopped with an error.
    Failed,
    /// On its way up.
    Activating,
    /// On its way down.
    Deactivating,
}

impl Active {
    /// Whether the unit runs or is about to.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Active | Self::Reloading | Self::Activating)
    }

    /// Whether the unit has come to rest without a process.
    pub fn is_down(self) -> bool {
        matches!(self, Self::Inactive | Self::Failed)
    }
}

/// The host as a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its memory.
    pub memory: Known<HostMemory>,
    /// Its processors that are online, by their number.
    pub cpus: Known<Vec<Cpu>>,
}

impl Host {
    /// Nothing observed yet.
    pub fn none_yet() -> Self {
        let unknown = || "not read yet".to_owned();
        Self { memory: Known::Unknown(unknown()), cpus: Known::Unknown(unknown()) }
    }
}

/// The host's memory at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMemory {
    /// When it was read.
    pub read_at: Moment,
    /// `MemTotal`.
    pub total: Bytes,
    /// `MemAvailable`.
    pub available: Bytes,
}

/// One processor: a thread of a physical core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// Its number.
    pub id: u32,
    /// The physical core that it belongs to, by the lowest number of that core's processors.
    pub core: u32,
    /// What kind of core that is.
    pub kind: CoreKind,
}

/// Kinds of cores on a machine that has two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CoreKind {
    /// A fast one; every core of a machine that has one kind.
    Performance,
    /// An economical one.
    Efficiency,
}

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// What tells this version of it from another, or why it can't be looked at.
    pub stamp: Known<Stamp>,
    /// What its header describes, where it is a model's; unknown with the reason where that can't be read.
    pub shape: Known<Arc<Shape>>,
}

/// A version of a file, or of a folder of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Bytes, of all its files together.
    pub size: u64,
    /// When it was changed last, in nanoseconds since 1970.
    pub modified: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// With this exit status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A TCP socket that listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The address it is bound to.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// The user that made it.
    pub uid: u32,
    /// The model in whose unit's cgroup it was made; None for a foreign one.
    pub model: Option<ModelName>,
    /// The systemd unit of a foreign one, as [`GpuProcess`] has it.
    #[serde(default)]
    pub unit: Option<String>,
}

/// A TCP socket on which a model's processes listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listening {
    /// Where.
    pub address: SocketAddr,
    /// Who may have made it: those that have it open, or where that may not be seen all that run in its cgroup.
    pub processes: Vec<Named>,
}

/// A process by its id and its program's name, which is empty when it is gone already.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// Its process id.
    pub pid: u32,
    /// Its program's name.
    pub program: String,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.program, self.pid)
    }
}

/// What was looked up about one model before a swap touches anything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Preflight {
    /// Files that are declared and missing or not readable, each with the reason.
    pub files: Vec<(PathBuf, String)>,
    /// The socket that listens on the model's port, if there is one.
    pub port: Option<Listener>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_long_ago_is_unknown() {
        let at = Duration::from_secs(100);
        let memory = GpuMemory {
            total: Bytes::mib(16_311),
            reserved: Bytes::ZERO,
            used: Bytes::ZERO,
            free: Bytes::mib(16_311),
        };
        let gpu = |index: u32, read_at| Gpu {
            index,
            id: DeviceId(format!("GPU-{index}")),
            name: String::new(),
            read_at,
            listed_at: read_at,
            memory: Known::Value(memory),
            processes: Known::Value(Vec::new()),
            lost: false,
            suspect: None,
            temperature_c: Some(52),
            power_w: Some(38),
            utilization_percent: Some(0),
        };
        let later = at + Duration::from_secs(1);
        let gpus = Known::Value(vec![gpu(0, at), gpu(1, later)]);
        let mut facts = Facts { gpus, ..Facts::none_yet() };
        assert!(!facts.expire(at + STALE), "it may be about to be read");
        assert!(facts.expire(later + STALE));
        let [old, new] = facts.gpus() else { panic!("two GPUs") };
        let why = Some("it was read last more than 5 s ago");
        assert_eq!((old.memory.why_unknown(), old.processes.why_unknown()), (why, why));
        assert_eq!((old.temperature_c, old.power_w, old.utilization_percent), (None, None, None));
        assert_eq!(*new, gpu(1, later));
        assert!(!facts.expire(later + STALE), "that is no news");
    }
}
