//! The proof that memory is back (what always holds, rule 2), and nothing else ends a claim.
//!
//! A claim is proved free on a device by two readings, both begun after the unit's cgroups were seen empty,
//! in which no process ever seen in them is listed and `used` less the sum of all listed is back at its value
//! from before the unit's start. Growth of foreign processes cancels out of that difference, so it holds no
//! claim back. Where the driver gives no lists, `free` must be back at its value instead.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bytes::Bytes;
use crate::facts::{DeviceId, Docker, Exit, Facts, Gpu, GpuProcess, Moment, Unit};
use crate::name::ModelName;
use crate::state::{Claim, ClaimedGpu, Phase, State};

/// How far a reading may lie above the one from before the start: drivers keep a little for themselves.
pub const TOLERANCE: Bytes = Bytes::mib(64);

/// How long docker may take over what a client that is gone asked it for and it has read.
const DOCKER: Duration = Duration::from_mins(1);

/// What one reading says of one claim on one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// Everything is back.
    Back,
    /// So much is still held.
    Held {
        /// How much more than before the start.
        bytes: Bytes,
        /// The model's own processes that are still listed.
        by: Vec<GpuProcess>,
    },
    /// It can't be said, and why.
    Unknown(String),
}

/// Judges one claim on one device by one reading.
pub fn judge(state: &State, model: &ModelName, part: &ClaimedGpu, gpu: Option<&Gpu>) -> Reading {
    let Some(gpu) = gpu else {
        return Reading::Unknown(format!("GPU {} can't be seen", part.placed.index));
    };
    let memory = match &gpu.memory {
        crate::facts::Known::Value(memory) => memory,
        crate::facts::Known::Unknown(why) => return Reading::Unknown(why.clone()),
    };
    let processes = gpu.processes.value();
    let by: Vec<GpuProcess> = processes
        .into_iter()
        .flatten()
        .filter(|process| state.owner(process) == Some(model))
        .cloned()
        .collect();
    let listed = gpu.listed();
    let over = match (listed, part.unlisted_before) {
        (Some(listed), Some(before)) => memory.used.less(listed).less(before),
        _ => part.free_before.less(memory.free),
    };
    if by.is_empty() && over <= TOLERANCE {
        return Reading::Back;
    }
    let still_listed = by.iter().filter_map(|p| p.memory.value().copied()).sum::<Bytes>();
    // With lists, a listed process is not in `over`; without, it is.
    let bytes = if listed.is_some() && part.unlisted_before.is_some() {
        over.plus(still_listed)
    } else {
        over.max(still_listed)
    };
    Reading::Held { bytes, by }
}

/// The `used` at or below which it is worth reading the process lists: the fast poll reads memory alone.
pub fn worth_listing(part: &ClaimedGpu, gpu: &Gpu) -> Option<Bytes> {
    let memory = gpu.memory.value()?;
    let usable = memory.total.less(memory.reserved);
    let by_free = usable.less(part.free_before).plus(TOLERANCE);
    let listed = gpu.listed();
    match (listed, part.unlisted_before) {
        (Some(listed), Some(before)) => Some(before.plus(listed).plus(TOLERANCE).max(by_free)),
        _ => Some(by_free),
    }
}

/// Whether no process is left in the unit's cgroups. Unknown counts as not.
pub fn processes_gone(unit: Option<&Unit>) -> bool {
    unit.is_none_or(|unit| {
        unit.active.is_down() && unit.processes.value().is_some_and(std::collections::BTreeMap::is_empty)
    })
}

/// Whether docker may still start a container that its client, gone for so long, asked for. What it has not read it may
/// read at any time. A client that ended by itself had its answer: one that was told to end says 128 and more.
fn may_come(unit: Option<&Unit>, gone: Duration) -> bool {
    if unit.is_some_and(|unit| matches!(unit.exit, Some(Exit::Status(status)) if status < 128)) {
        return false;
    }
    match unit.and_then(|unit| unit.docker.value()) {
        Some(Docker::Idle) => false,
        Some(Docker::Silent) => true,
        Some(Docker::Busy | Docker::Runs) | None => gone < DOCKER,
    }
}

/// The proofs under way: one for each device of each claim that is ending.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Proofs {
    /// Since when each unit is down and its cgroups are empty; that it is `gone` is known once nothing can come any more.
    empty: BTreeMap<ModelName, Moment>,
    gone: BTreeMap<ModelName, Moment>,
    parts: BTreeMap<(ModelName, DeviceId), Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    /// The first of the two readings that say that all is back.
    first: Option<Moment>,
    /// When the second said so too.
    proved: Option<Moment>,
    /// What the newest reading said.
    newest: Reading,
}

/// A device that is not proved free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unproved {
    /// Whose memory.
    pub model: ModelName,
    /// NVML's index.
    pub index: u32,
    /// Why not.
    pub reading: Reading,
}

impl Unproved {
    /// In plain words, with every number: for errors and problems.
    pub fn sentence(&self) -> String {
        let Self { model, index, reading } = self;
        match reading {
            Reading::Back => format!("GPU {index}: {model}'s memory is back in one reading, not yet in two"),
            Reading::Unknown(why) => {
                format!("GPU {index}: whether {model}'s memory is back is unknown: {why}")
            }
            Reading::Held { bytes, by } if by.is_empty() => {
                format!(
                    "GPU {index}: {bytes} of {model}'s memory are still held though its processes are gone"
                )
            }
            Reading::Held { bytes, by } => {
                let who: Vec<String> = by
                    .iter()
                    .map(|p| {
                        let name = if p.program.is_empty() { "a process that ended" } else { &p.program };
                        let holds = p.memory.value().map_or("an unknown amount".to_owned(), Bytes::to_string);
                        format!("pid {} ({name}) holds {holds}", p.pid)
                    })
                    .collect();
                format!("GPU {index}: {bytes} of {model}'s memory are still held: {}", who.join(", "))
            }
        }
    }
}

impl Proofs {
    /// Weighs new facts. Claims that are proved free on every device leave `state`; their names are returned.
    pub fn weigh(&mut self, state: &mut State, facts: &Facts) -> Vec<ModelName> {
        let ending: Vec<ModelName> = state
            .claims
            .iter()
            .filter(|(_, claim)| claim.phase == Phase::Ending)
            .map(|(model, _)| model.clone())
            .collect();
        self.empty.retain(|model, _| ending.contains(model));
        self.gone.retain(|model, _| ending.contains(model));
        self.parts.retain(|(model, _), _| ending.contains(model));
        let mut proved = Vec::new();
        for model in ending {
            let (unit, claim) = (facts.units.get(&model), &state.claims[&model]);
            if !processes_gone(unit) {
                self.forget(&model);
                continue;
            }
            let empty = facts.at.saturating_sub(*self.empty.entry(model.clone()).or_insert(facts.at));
            if claim.unseen && !self.gone.contains_key(&model) && may_come(unit, empty) {
                continue;
            }
            let gone = *self.gone.entry(model.clone()).or_insert(facts.at);
            for part in &claim.gpus {
                let gpu = facts.gpu(&part.placed.id);
                self.weigh_part(state, &model, part, gpu, gone);
            }
            if claim.gpus.iter().all(|part| self.proved_at(&model, &part.placed.id).is_some()) {
                proved.push(model);
            }
        }
        for model in &proved {
            state.claims.remove(model);
        }
        proved
    }

    fn weigh_part(
        &mut self,
        state: &State,
        model: &ModelName,
        part: &ClaimedGpu,
        gpu: Option<&Gpu>,
        gone: Moment,
    ) {
        let newest = judge(state, model, part, gpu);
        let entry = self.parts.entry((model.clone(), part.placed.id.clone())).or_insert(Part {
            first: None,
            proved: None,
            newest: newest.clone(),
        });
        if entry.proved.is_some() {
            return;
        }
        entry.newest = newest;
        // A reading that was begun before the processes were gone proves nothing.
        let Some(at) = gpu.map(|gpu| gpu.read_at.min(gpu.listed_at)).filter(|at| *at >= gone) else { return };
        match (&entry.newest, entry.first) {
            (Reading::Back, None) => entry.first = Some(at),
            (Reading::Back, Some(first)) if at > first => entry.proved = Some(at),
            (Reading::Back, Some(_)) => {}
            _ => entry.first = None,
        }
    }

    /// Forgets what was proved of this model: what it does from now on is to be proved afresh.
    pub fn forget(&mut self, model: &ModelName) {
        self.empty.remove(model);
        self.gone.remove(model);
        self.parts.retain(|(whose, _), _| whose != model);
    }

    /// When this device was proved free of this model.
    pub fn proved_at(&self, model: &ModelName, gpu: &DeviceId) -> Option<Moment> {
        self.parts.get(&(model.clone(), gpu.clone()))?.proved
    }

    /// When this model's processes were first seen gone.
    pub fn gone_at(&self, model: &ModelName) -> Option<Moment> {
        self.gone.get(model).copied()
    }

    /// An operator takes memory for lost that nobody can be named for: what claims that are ending hold on this device
    /// counts as proved where all their processes are gone and none of them is listed. Gives what was given up, whose
    /// and how much, and what is kept since it does not meet that.
    pub fn give_up(
        &mut self,
        state: &State,
        facts: &Facts,
        device: &DeviceId,
    ) -> (Vec<(ModelName, Bytes)>, Vec<Unproved>) {
        let (mut given_up, mut kept) = (Vec::new(), Vec::new());
        let ending = state.claims.iter().filter(|(_, claim)| claim.phase == Phase::Ending);
        let here = ending.flat_map(|(model, claim)| claim.gpus.iter().map(move |part| (model, part)));
        for (model, claimed) in here.filter(|(_, part)| part.placed.id == *device) {
            let Some(missing) = self.missing(model, claimed) else { continue };
            let gone = processes_gone(facts.units.get(model));
            match (missing.reading, self.parts.get_mut(&(model.clone(), device.clone()))) {
                (Reading::Held { bytes, by }, Some(part)) if gone && by.is_empty() => {
                    part.proved = Some(facts.at);
                    given_up.push((model.clone(), bytes));
                }
                (reading, _) => {
                    kept.push(Unproved { model: missing.model, index: missing.index, reading });
                }
            }
        }
        (given_up, kept)
    }

    /// What is missing for this claim's end.
    pub fn unproved(&self, model: &ModelName, claim: &Claim) -> Vec<Unproved> {
        claim.gpus.iter().filter_map(|part| self.missing(model, part)).collect()
    }

    fn missing(&self, model: &ModelName, claimed: &ClaimedGpu) -> Option<Unproved> {
        let part = self.parts.get(&(model.clone(), claimed.placed.id.clone()));
        if part.is_some_and(|part| part.proved.is_some()) {
            return None;
        }
        let why = if self.empty.contains_key(model) {
            "docker may still start its container, which it was asked for: `systemctl status docker`"
        } else {
            "its processes have not ended"
        };
        let not_ended = || Reading::Unknown(why.to_owned());
        let reading = part.map_or_else(not_ended, |part| part.newest.clone());
        Some(Unproved { model: model.clone(), index: claimed.placed.index, reading })
    }
}
