//! What is said over the socket: one JSON request a line, one JSON answer a line, in order.
//!
//! An answer is `{"ok": …}` or `{"error": {"code": …, "message": …}}`. Bytes are bytes, times are nanoseconds
//! of `CLOCK_MONOTONIC` unless a name says otherwise.

use serde::{Deserialize, Serialize};

use crate::linger::{Exit, Linger};

/// Where the server listens unless `GPUSIM_SOCKET` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/gpusim/gpusim.sock";
/// The environment variable that names another socket.
pub const SOCKET_VARIABLE: &str = "GPUSIM_SOCKET";

/// Which of NVML's two process lists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// CUDA programs.
    #[default]
    Compute,
    /// Xorg and the like.
    Graphics,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Is a driver there, and how many cards? Answer: [`Driver`].
    Hello,
    /// What never changes of a card. Answer: [`crate::cards::Card`].
    Card { device: u32 },
    /// Answer: [`Memory`].
    Memory { device: u32 },
    /// Answer: `Vec<Listed>`.
    Processes { device: u32, kind: Kind },
    /// Answer: [`Sensors`].
    Sensors { device: u32 },
    /// Xids after the one numbered `after` (0: all); where there are none, those that come within so many
    /// milliseconds. Answer: `Vec<Xid>`.
    Xids {
        after: u64,
        #[serde(default)]
        within_ms: u64,
    },
    /// May the Xids of this card be watched? Answer: `null`.
    Watch { device: u32 },
    /// Take memory for the process at the other end of the socket, until it dies. Answer: `null`.
    Alloc { device: u32, bytes: u64, kind: Kind },
    /// Change how cards behave. Answer: `null`.
    Set { device: Option<u32>, knob: Knob },
    /// Start a foreign process, or let one of that name take more. Answer: its pid.
    Foreign(Foreign),
    /// End a foreign process; answers when it is dead. Answer: `null`.
    ForeignStop { name: String },
    /// Answer: [`Stats`].
    Stats,
    /// Forget counters and lists. Answer: `null`.
    ResetStats,
    /// Healthy cards, no foreign processes, no counters. Answer: `null`.
    Reset,
}

/// One behaviour of one card, or of all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Knob {
    /// No misbehaviour of any kind, lingering included.
    Healthy,
    /// Other cards, by their totals in bytes (all cards, whatever device is named).
    Cards(Vec<u64>),
    /// How memory of the dead comes back, from the next death on.
    Linger(Linger),
    /// Are the dead listed while their memory lingers?
    LingerListed(bool),
    /// Does the card give process lists?
    Lists(bool),
    /// Do the lists give bytes?
    Usage(bool),
    /// Has the card fallen off the bus?
    Lost(bool),
    /// Do memory readings stay what they are now?
    Stale(bool),
    /// The next memory reading says that so many bytes less are used; the one after it is right again.
    Jump(u64),
    /// Does the card report events?
    Events(bool),
    /// Does the card give no memory readings?
    MemoryNa(bool),
    /// Bytes that are used and belong to no process.
    Residue(u64),
    /// Calls that do not return for a while.
    Hang(Hang),
    /// Sensor values, where they are to be other than what follows from the load.
    Sensors(SensorKnobs),
    /// The driver reports this Xid now.
    Xid(u64),
    /// Does the library's version differ from the kernel module's? (All cards.)
    VersionMismatch(bool),
}

/// Calls that block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hang {
    /// How long; 0 lets go of everything that hangs.
    pub ns: u64,
    /// Each call this long, until hanging is switched off; else calls block until this long after now.
    pub each: bool,
    /// Which calls.
    pub calls: Calls,
}

/// Which calls hang.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Calls {
    /// Memory info.
    Memory,
    /// Both process lists.
    Processes,
    /// Everything on that card; without a card also initialization and the count.
    #[default]
    All,
}

/// Fixed sensor values; `None` follows the load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SensorKnobs {
    pub temperature_c: Option<u32>,
    pub power_mw: Option<u32>,
    pub utilization_percent: Option<u32>,
}

/// A process that is not the product's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// Its argv[0] and its command name.
    pub name: String,
    pub device: u32,
    pub bytes: u64,
    pub kind: Kind,
    /// Once, `grow_after_ns` from now, it takes this much more (or what is free, if less).
    pub grow_by: u64,
    pub grow_after_ns: u64,
    /// Take `bytes` at the very instant that a release on the card makes room for them, not now.
    pub at_release: bool,
    /// With `at_release`: take it (or what is free then) this long after that instant instead.
    pub release_delay_ns: u64,
}

/// The driver as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Driver {
    pub driver_version: String,
    pub nvml_version: String,
    /// As CUDA counts: 1000 · major + 10 · minor.
    pub cuda_version: i32,
    pub cards: u32,
}

/// A memory reading: total = reserved + used + free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub total: u64,
    pub reserved: u64,
    pub used: u64,
    pub free: u64,
}

/// An entry of a process list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub pid: u32,
    /// `None`: not available.
    pub bytes: Option<u64>,
}

/// Sensor readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sensors {
    pub temperature_c: u32,
    pub power_mw: u32,
    pub utilization_percent: u32,
    pub memory_percent: u32,
}

/// A driver error event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xid {
    /// Counts from 1.
    pub number: u64,
    pub device: u32,
    pub xid: u64,
}

/// Counters and what is held now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// When this was computed.
    pub now_ns: u64,
    pub devices: Vec<DeviceStats>,
    /// Allocations that were granted.
    pub allocations: u64,
    /// Allocations that failed for lack of memory; foreign processes not counted.
    pub failed: u64,
    /// The last of the failed ones.
    pub failures: Vec<FailedAllocation>,
    /// Releases by death, also those whose end is still ahead; the last of them.
    pub releases: Vec<Release>,
    /// Readings asked for since the server started.
    pub readings: Readings,
}

/// How many readings were asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readings {
    pub memory: u64,
    pub processes: u64,
    pub other: u64,
}

/// A card and who holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceStats {
    pub index: u32,
    pub uuid: String,
    pub name: String,
    /// What is true, also while readings are stale, lost or N/A.
    pub memory: Memory,
    pub residue: u64,
    pub held: Vec<Held>,
    /// Dead processes whose memory is not back yet; bytes are those of now.
    pub lingering: Vec<Lingering>,
    /// The behaviours that differ from a healthy card's, in words.
    pub knobs: Vec<String>,
}

/// Memory of a living process on one card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub pid: u32,
    pub comm: String,
    pub bytes: u64,
    pub kind: Kind,
    pub foreign: bool,
}

/// Memory of a dead process on one card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lingering {
    pub pid: u32,
    pub comm: String,
    pub bytes: u64,
    pub freed_ns: u64,
}

/// An allocation that failed for lack of memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedAllocation {
    pub time_ns: u64,
    pub pid: u32,
    pub comm: String,
    pub device: u32,
    pub wanted: u64,
    pub free: u64,
}

/// What a death gave back on one card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub device: u32,
    pub pid: u32,
    pub comm: String,
    pub bytes: u64,
    pub died_ns: u64,
    /// The exact instant at which the last byte is free.
    pub freed_ns: u64,
    pub exit: Exit,
    pub foreign: bool,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    NotFound,
    NotSupported,
    Lost,
    OutOfMemory,
    VersionMismatch,
    Invalid,
    Internal,
}

/// A refusal in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub code: Code,
    pub message: String,
}

impl Failure {
    /// A failure with its reason.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

/// An answer on the wire.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Ok(serde_json::Value),
    Error(Failure),
}
