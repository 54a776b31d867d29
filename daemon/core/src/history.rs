//! What is kept of the past, and for how long.
//!
//! Readings of the devices go through three tiers: each reading for a day, means of a minute for as long as is declared,
//! means of a quarter of an hour for as long as all else. Each tier, and each list of what happened, has its share of the
//! declared size, so that none displaces another. Keeping it on disk is done elsewhere; here is only what to keep.

mod problems;
mod window;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::bytes::Bytes;
use crate::config;
use crate::facts::Known;
use crate::report::{DeviceSample, Status, StepReport, SwapSummary};

pub use problems::{Change, changes};
pub use window::{BadWindow, Thinned, Window};

/// A reading older than this says nothing of the moment: several readings have failed since.
const STALE_MS: u64 = 5_000;
/// Between two times at which what is too much is dropped: what comes meanwhile has to fit, too.
pub const DROP_MS: u64 = 600_000;
/// What a row of a sample takes of a file at most, pages that are not full included.
pub const ROW: u64 = 80;
/// What a list's entry takes besides its text.
pub const ENTRY: u64 = 96;

/// How finely samples are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Each reading.
    Each,
    /// Means of a minute.
    Minute,
    /// Means of a quarter of an hour.
    Quarter,
}

impl Tier {
    /// All of them, the finest first.
    pub const ALL: [Self; 3] = [Self::Each, Self::Minute, Self::Quarter];

    /// The while that a row stands for, in milliseconds; None where it is one reading.
    pub fn span_ms(self) -> Option<u64> {
        match self {
            Self::Each => None,
            Self::Minute => Some(60_000),
            Self::Quarter => Some(900_000),
        }
    }

    /// The next finer one.
    pub fn finer(self) -> Option<Self> {
        match self {
            Self::Each => None,
            Self::Minute => Some(Self::Each),
            Self::Quarter => Some(Self::Minute),
        }
    }

    /// The next coarser one.
    pub fn coarser(self) -> Option<Self> {
        match self {
            Self::Each => Some(Self::Minute),
            Self::Minute => Some(Self::Quarter),
            Self::Quarter => None,
        }
    }
}

/// How much of each kind is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Between two readings.
    pub every_ms: u64,
    /// What the pages of the file may take: the rest of the size is for the log beside it.
    pub pages: Bytes,
    /// For how long each tier is kept, in milliseconds, in the order of [`Tier::ALL`].
    pub tiers_ms: [u64; 3],
    /// How many rows each tier has at most.
    pub rows: u64,
    /// For how long events, swaps and problems are kept, in milliseconds.
    pub lists_ms: u64,
    /// What events take at most.
    pub events: Bytes,
    /// What swaps take at most.
    pub swaps: Bytes,
    /// What problems take at most.
    pub problems: Bytes,
}

impl Limits {
    /// What the declaration comes to. What is left of the size is for what is free within the file
    /// and for its log.
    pub fn new(declared: &config::History) -> Self {
        const DAY_MS: u64 = 24 * 3_600_000;
        let pages = declared.size.less(LOG);
        let share = |percent: u64| Bytes(pages.0 / 100 * percent);
        let (samples, keep) = (millis(declared.samples), millis(declared.keep));
        Self {
            every_ms: millis(declared.every),
            pages,
            tiers_ms: [samples.min(DAY_MS), samples, keep],
            rows: share(20).0 / ROW,
            lists_ms: keep,
            events: share(16),
            swaps: share(10),
            problems: share(4),
        }
    }

    /// For how long a tier is kept, in milliseconds.
    pub fn keep_ms(&self, tier: Tier) -> u64 {
        self.tiers_ms[tier as usize]
    }
}

/// What the log beside the file takes at most, in the long run.
pub const LOG: Bytes = Bytes::mib(1);

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A device as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// A GPU's UUID, or `host`.
    pub id: String,
    /// NVML's index; None for the host.
    pub index: Option<u32>,
    /// Its memory, where that is known.
    pub total: Option<Bytes>,
}

/// What a picture of the node says of each device. A GPU that can't be read is there with nothing known of it; GPUs that
/// can't even be listed are not.
pub fn samples(status: &Status) -> Vec<(Device, DeviceSample)> {
    let at_ms = status.at_ms;
    let gpus = status.gpus.value().into_iter().flatten().map(|gpu| {
        let fresh = gpu.age_ms <= STALE_MS;
        let memory = gpu.memory.value().filter(|_| fresh);
        let device = Device {
            id: gpu.id.clone(),
            index: Some(gpu.index),
            total: gpu.memory.value().map(|memory| memory.total),
        };
        let sample = DeviceSample {
            at_ms,
            used: memory.map(|memory| memory.used),
            used_max: memory.map(|memory| memory.used),
            kept: memory.map(|memory| memory.kept),
            foreign: memory.map(|memory| memory.foreign),
            free: memory.map(|memory| memory.free),
            temperature_c: gpu.temperature_c.filter(|_| fresh),
            power_w: gpu.power_w.filter(|_| fresh),
            utilization_percent: gpu.utilization_percent.filter(|_| fresh),
        };
        (device, sample)
    });
    let host = match &status.host {
        Known::Value(host) => {
            let used = Some(host.total.less(host.available));
            let sample = DeviceSample {
                at_ms,
                used,
                used_max: used,
                free: Some(host.available),
                ..DeviceSample::default()
            };
            (Some(host.total), sample)
        }
        Known::Unknown(_) => (None, DeviceSample { at_ms, ..DeviceSample::default() }),
    };
    let host = (Device { id: "host".to_owned(), index: None, total: host.0 }, host.1);
    gpus.chain([host]).collect()
}

/// Samples of one device over a while: what is unknown in one of them is left out of the mean.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gathered {
    at_ms: u64,
    used: Mean,
    used_max: Option<Bytes>,
    kept: Mean,
    foreign: Mean,
    free: Mean,
    temperature_c: Mean,
    power_w: Mean,
    utilization_percent: Mean,
}

#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    sum: u64,
    count: u64,
}

impl Mean {
    fn take(&mut self, value: Option<u64>) {
        if let Some(value) = value {
            self.sum = self.sum.saturating_add(value);
            self.count += 1;
        }
    }

    /// Rounded.
    fn value(self) -> Option<u64> {
        (self.count > 0).then(|| (self.sum + self.count / 2) / self.count)
    }

    fn small(self) -> Option<u32> {
        self.value().and_then(|value| u32::try_from(value).ok())
    }
}

impl Gathered {
    /// None yet, of a while that begins at `at_ms`.
    pub fn from(at_ms: u64) -> Self {
        Self { at_ms, ..Self::default() }
    }

    /// Adds one.
    pub fn take(&mut self, sample: &DeviceSample) {
        let bytes = |value: Option<Bytes>| value.map(|bytes| bytes.0);
        self.used.take(bytes(sample.used));
        self.used_max = self.used_max.max(sample.used_max);
        self.kept.take(bytes(sample.kept));
        self.foreign.take(bytes(sample.foreign));
        self.free.take(bytes(sample.free));
        self.temperature_c.take(sample.temperature_c.map(u64::from));
        self.power_w.take(sample.power_w.map(u64::from));
        self.utilization_percent.take(sample.utilization_percent.map(u64::from));
    }

    /// What they come to.
    pub fn sample(&self) -> DeviceSample {
        DeviceSample {
            at_ms: self.at_ms,
            used: self.used.value().map(Bytes),
            used_max: self.used_max,
            kept: self.kept.value().map(Bytes),
            foreign: self.foreign.value().map(Bytes),
            free: self.free.value().map(Bytes),
            temperature_c: self.temperature_c.small(),
            power_w: self.power_w.small(),
            utilization_percent: self.utilization_percent.small(),
        }
    }
}

/// Readings on their way into the coarser tiers, for each device by its number.
#[derive(Debug, Clone, Default)]
pub struct Rollup {
    open: Vec<[Option<Gathered>; 2]>,
}

impl Rollup {
    /// Takes a reading of device `device`; gives the means whose while it ends.
    pub fn take(&mut self, device: usize, sample: &DeviceSample) -> Vec<(Tier, DeviceSample)> {
        if self.open.len() <= device {
            self.open.resize(device + 1, [None; 2]);
        }
        let mut ended = Vec::new();
        for (tier, open) in [Tier::Minute, Tier::Quarter].into_iter().zip(&mut self.open[device]) {
            let Some(span_ms) = tier.span_ms() else { continue };
            let began_ms = sample.at_ms - sample.at_ms % span_ms;
            if let Some(gathered) = open.take_if(|gathered| gathered.at_ms != began_ms) {
                ended.push((tier, gathered.sample()));
            }
            open.get_or_insert_with(|| Gathered::from(began_ms)).take(sample);
        }
        ended
    }
}

/// Adds what is said of a step to the swap: instead of what was said of it last, where it went on.
pub fn add_step(swap: &mut SwapSummary, step: &StepReport) {
    let same = |other: &&mut StepReport| {
        (other.step, other.rollback, &other.model) == (step.step, step.rollback, &step.model)
    };
    match swap.steps.iter_mut().rfind(same) {
        Some(known) => known.clone_from(step),
        None => swap.steps.push(step.clone()),
    }
}
