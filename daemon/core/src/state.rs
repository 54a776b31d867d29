//! What Berth knows of itself: kept in the ledger, owned by the driver.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::backend::PlacedGpu;
use crate::bytes::Bytes;
use crate::facts::{Active, DeviceId, Docker, Facts, Gpu, GpuProcess, Known};
use crate::layout::Layout;
use crate::learned::{Learned, Run};
use crate::name::ModelName;
use crate::plan::{Plan, Start};
use crate::report::SwapSummary;

/// Everything that outlives berthd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct State {
    /// What an operator last committed: restored after a failure and a reboot.
    pub home: Home,
    /// What was home before: where `back` goes.
    pub previous: Option<Home>,
    /// Memory held for models, running ones and such whose memory is not proved free yet.
    pub claims: BTreeMap<ModelName, Claim>,
    /// What the swap under way is to come to; one that is found at start was cut off and is settled by looking.
    pub intent: Option<Plan>,
    /// The id of the newest swap.
    pub last_swap_id: u64,
    /// The newest swaps that ended, oldest first, at most [`State::KEPT_SWAPS`].
    pub swaps: VecDeque<SwapSummary>,
    /// Measured times of each model.
    pub times: BTreeMap<ModelName, Times>,
    /// What each model took when it ran, oldest first.
    pub learned: BTreeMap<ModelName, Vec<Learned>>,
    /// What failed lately, and what is quarantined for it.
    pub troubles: BTreeMap<ModelName, Trouble>,
    /// Who serves in whose place: the first in that of the second, which is of home and can't.
    pub stand_ins: BTreeMap<ModelName, ModelName>,
    /// Models that serve because clients asked for them; never home's.
    pub guests: BTreeMap<ModelName, Guest>,
    /// Models of home that gave way to guests.
    pub displaced: BTreeSet<ModelName>,
    /// When each model was ready last.
    pub served: BTreeMap<ModelName, Served>,
    /// Models that an operator stopped and nobody has started since.
    pub stopped: BTreeMap<ModelName, Stopped>,
    /// The GPUs that were there when an operator's swap was done last: a boot waits for them.
    pub gpus: Vec<(u32, DeviceId)>,
    /// The kernel's boot id when this was written.
    pub boot: String,
}

/// What went wrong with a model of late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Trouble {
    /// Its newest failures since it was last healthy for long, oldest first, at most [`Trouble::KEPT`].
    pub failures: VecDeque<Fault>,
    /// Set once it is not started again until an operator says so.
    pub quarantined: Option<Quarantine>,
}

impl Trouble {
    /// How many failures are kept as evidence.
    pub const KEPT: usize = 10;
}

/// One failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// In what.
    pub during: During,
    /// Why, as a clause about the model.
    pub text: String,
}

/// What a model was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum During {
    /// It served.
    Service,
    /// It was being started.
    Start,
    /// It was being started, and the machine went down.
    Boot,
    /// It could not be started, which says nothing of the model: no room, no ledger.
    Other,
}

/// Why a model is kept from starting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// What it did, as a clause about it.
    pub why: String,
}

/// When a model was ready last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// In milliseconds since 1970.
    pub at_ms: u64,
    /// The kernel's boot id then.
    pub boot: String,
}

/// Why a model that is not of home serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Who asked for it: a client's key or address.
    pub cause: String,
}

/// How a model was stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Whether by hand, past Berth: `systemctl stop`.
    pub by_hand: bool,
    /// Whether all were stopped together: until an operator starts one, none is loaded for clients.
    #[serde(default)]
    pub with_all: bool,
}

/// The set of models that an operator wants to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Home {
    /// In the order of their start.
    pub models: Vec<ModelName>,
    /// What `default` stands for.
    pub default: Option<ModelName>,
}

/// Memory held for one model, from before its start until it is proved free again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Where, and how much.
    pub gpus: Vec<ClaimedGpu>,
    /// How it is laid out there, and what it takes of the host.
    #[serde(default)]
    pub layout: Layout,
    /// What it was started with; None where that is not known, and nothing is learned from it.
    #[serde(default)]
    pub run: Option<Run>,
    /// How far its life has come.
    pub phase: Phase,
    /// The unit's InvocationID; empty until systemd has started it.
    pub invocation: String,
    /// What it was before the start: facts that still show it tell nothing of this run.
    #[serde(default)]
    pub earlier: String,
    /// Where its server was told to listen; what is declared may change while it runs.
    #[serde(default)]
    pub address: Option<SocketAddr>,
    /// What was declared of how it runs when it was started, by key; nothing where that is not known.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub declared: BTreeMap<String, String>,
    /// Whether docker was told to run its container and none has been seen since: when the unit is down, one may still come.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unseen: bool,
    /// Every process that was ever seen in the unit's cgroups, with its start time in clock ticks.
    pub seen: BTreeMap<u32, u64>,
}

impl Claim {
    /// The start by which this model would run as it does.
    pub fn start(&self, model: &ModelName) -> Start {
        let gpus = self.gpus.iter().map(|part| part.placed.clone()).collect();
        Start { model: model.clone(), gpus, layout: self.layout.clone() }
    }
}

/// A claim's part on one GPU, with what was read before the unit's start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimedGpu {
    /// Device, index and bytes.
    #[serde(flatten)]
    pub placed: PlacedGpu,
    /// `used` less the sum of all listed processes then. None where the driver gave no lists.
    pub unlisted_before: Option<Bytes>,
    /// `free` then.
    pub free_before: Bytes,
}

/// How far a claim's life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Being started; not committed.
    Starting,
    /// Committed and ready.
    Serving,
    /// Stopped, died or being stopped: ends when its memory is proved free.
    Ending,
}

/// The newest measured times of one model in milliseconds, oldest first, at most four each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Times {
    /// From StopUnit to the last process's end.
    pub stop: VecDeque<u64>,
    /// From the last process's end to the proof that its memory is free.
    pub release: VecDeque<u64>,
    /// From the unit's start to ready.
    pub load: VecDeque<u64>,
}

impl Times {
    /// Adds a measured time.
    pub fn note(times: &mut VecDeque<u64>, ms: u64) {
        while times.len() >= 4 {
            times.pop_front();
        }
        times.push_back(ms);
    }

    /// The median of what was measured; None without any.
    pub fn expected(times: &VecDeque<u64>) -> Option<u64> {
        let mut sorted: Vec<u64> = times.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len().checked_sub(1)? / 2).copied()
    }
}

impl State {
    /// How many processes of a model are remembered before those that are gone are forgotten.
    const KEPT_PIDS: usize = 512;

    /// Of how many models that are named by their settings something is remembered.
    const KEPT_UNNAMED: usize = 20;

    /// How many ended swaps are kept.
    pub const KEPT_SWAPS: usize = 20;

    /// Whether this model is to serve: as one of home, or in the place of one.
    pub fn is_wanted(&self, model: &ModelName) -> bool {
        self.home.models.contains(model) || self.stand_ins.contains_key(model)
    }

    /// Every model that has a part in what serves, shall serve or served before.
    pub fn models(&self) -> impl Iterator<Item = &ModelName> {
        let homes = std::iter::once(&self.home).chain(&self.previous);
        let homes = homes.flat_map(|home| home.models.iter().chain(&home.default));
        let intent = self.intent.iter().flat_map(|plan| {
            let started = plan.starts.iter().map(|start| &start.model);
            started.chain(&plan.stops).chain(&plan.home.models)
        });
        let stand_ins = self.stand_ins.iter().flat_map(|(stand_in, of)| [stand_in, of]);
        self.claims.keys().chain(homes).chain(intent).chain(stand_ins)
    }

    /// Forgets what is known of models that are named by their settings and have no part in anything, but for those
    /// that served last: whoever tries many settings would fill the ledger.
    pub fn forget_unnamed(&mut self) {
        let parts: BTreeSet<&ModelName> = self.models().collect();
        let known = self.learned.keys().chain(self.times.keys()).chain(self.served.keys());
        let known = known.chain(self.troubles.keys()).chain(self.stopped.keys());
        let unnamed: BTreeSet<&ModelName> =
            known.filter(|name| name.settings().is_some() && !parts.contains(name)).collect();
        let mut unnamed: Vec<(u64, ModelName)> = unnamed
            .into_iter()
            .map(|name| (self.served.get(name).map_or(0, |served| served.at_ms), name.clone()))
            .collect();
        unnamed.sort_by(|a, b| b.cmp(a));
        for (_, name) in unnamed.into_iter().skip(Self::KEPT_UNNAMED) {
            self.learned.remove(&name);
            self.times.remove(&name);
            self.served.remove(&name);
            self.troubles.remove(&name);
            self.stopped.remove(&name);
        }
    }

    /// Whether this model of home gave way to guests that are still there: it comes back after them.
    pub fn is_displaced(&self, model: &ModelName) -> bool {
        self.displaced.contains(model) && !self.guests.is_empty() && !self.is_resident(model)
    }

    /// Forgets guests that are gone or have become home's, and that those that serve again or are no longer of home
    /// gave way. True where there were such.
    pub fn note_guests(&mut self) -> bool {
        let (guests, displaced) = (self.guests.len(), self.displaced.len());
        let mut all = std::mem::take(&mut self.guests);
        all.retain(|model, _| self.is_resident(model) && !self.home.models.contains(model));
        self.guests = all;
        let mut all = std::mem::take(&mut self.displaced);
        all.retain(|model| self.home.models.contains(model) && !self.is_serving(model));
        self.displaced = all;
        (guests, displaced) != (self.guests.len(), self.displaced.len())
    }

    /// Why this model is quarantined, if it is.
    pub fn quarantine(&self, model: &ModelName) -> Option<&Quarantine> {
        self.troubles.get(model)?.quarantined.as_ref()
    }

    /// Who serves in this model's place.
    pub fn stand_in(&self, model: &ModelName) -> Option<&ModelName> {
        self.stand_ins.iter().find(|(_, of)| *of == model).map(|(stand_in, _)| stand_in)
    }

    /// Whether this model serves, or while it is quarantined another in its place.
    pub fn is_provided(&self, model: &ModelName) -> bool {
        let stands_in = self.quarantine(model).and_then(|_| self.stand_in(model));
        self.is_serving(stands_in.unwrap_or(model))
    }

    /// Notes that a model is ready: what was said of it before is over.
    pub fn note_ready(&mut self, model: &ModelName, now_ms: u64) {
        self.served.insert(model.clone(), Served { at_ms: now_ms, boot: self.boot.clone() });
        self.stopped.remove(model);
    }

    /// Models that hold memory and are not on their way down.
    pub fn residents(&self) -> impl Iterator<Item = (&ModelName, &Claim)> {
        self.claims.iter().filter(|(_, claim)| claim.phase != Phase::Ending)
    }

    /// Whether this model serves or is being started.
    pub fn is_resident(&self, model: &ModelName) -> bool {
        self.claims.get(model).is_some_and(|claim| claim.phase != Phase::Ending)
    }

    /// Whether this model serves.
    pub fn is_serving(&self, model: &ModelName) -> bool {
        self.claims.get(model).is_some_and(|claim| claim.phase == Phase::Serving)
    }

    /// The bytes that claims hold on a device, those of `except` left out.
    pub fn claimed(&self, gpu: &DeviceId, except: &[ModelName]) -> Bytes {
        self.claims
            .iter()
            .filter(|(model, _)| !except.contains(model))
            .flat_map(|(_, claim)| &claim.gpus)
            .filter(|part| part.placed.id == *gpu)
            .map(|part| part.placed.bytes)
            .sum()
    }

    /// Takes over what was seen in the units' cgroups: their processes, and the InvocationID of a unit that
    /// was just started. True when the latter was new: it is worth a write to the ledger.
    pub fn note_units(&mut self, facts: &Facts) -> bool {
        let mut news = false;
        for (model, claim) in &mut self.claims {
            let Some(unit) = facts.units.get(model) else { continue };
            if claim.phase == Phase::Starting
                && claim.invocation.is_empty()
                && unit.invocation != claim.earlier
            {
                claim.invocation.clone_from(&unit.invocation);
                news |= !unit.invocation.is_empty();
            }
            if unit.invocation != claim.invocation {
                continue;
            }
            claim.unseen &= unit.docker.value() != Some(&Docker::Runs);
            let Known::Value(now) = &unit.processes else { continue };
            claim.seen.extend(now.iter().map(|(pid, started)| (*pid, *started)));
            // A server that makes processes all the time: those that are gone and hold nothing are forgotten.
            if claim.seen.len() > Self::KEPT_PIDS {
                let listed = facts.gpus().iter().flat_map(|gpu| gpu.processes.value().into_iter().flatten());
                let listed: BTreeSet<u32> = listed.map(|process| process.pid).collect();
                claim.seen.retain(|pid, _| now.contains_key(pid) || listed.contains(pid));
            }
        }
        news
    }

    /// The claim of a model that runs and has none, since the ledger was lost or it runs as the unit that it replaces:
    /// made from what its processes hold now. None as long as that is not known.
    pub fn found(model: &ModelName, facts: &Facts) -> Option<Claim> {
        let unit = facts.units.get(model).filter(|unit| unit.active == Active::Active)?;
        let own = unit.processes.value()?;
        let is_own = |process: &GpuProcess| {
            process.model.as_ref() == Some(model)
                || own
                    .get(&process.pid)
                    .is_some_and(|started| process.started.is_none_or(|now| now == *started))
        };
        let mut gpus = Vec::new();
        for gpu in facts.gpus.value()? {
            let own = gpu.processes.value()?.iter().filter(|process| is_own(process));
            let held = own.map(|process| process.memory.value().copied()).sum::<Option<Bytes>>()?;
            let part = seen_on(gpu, held)?;
            if held > Bytes::ZERO {
                gpus.push(part);
            }
        }
        Some(Claim {
            gpus,
            layout: Layout::default(),
            run: None,
            phase: Phase::Serving,
            invocation: unit.invocation.clone(),
            declared: BTreeMap::new(),
            earlier: String::new(),
            address: None,
            unseen: false,
            seen: own.clone(),
        })
    }

    /// Parts of a claim on all GPUs that can be seen, of no bytes.
    pub fn nothing_on(facts: &Facts) -> Vec<ClaimedGpu> {
        facts.gpus().iter().filter_map(|gpu| seen_on(gpu, Bytes::ZERO)).collect()
    }

    /// Lets the claims of models that were found running grow with what they hold: some was still loading then. True where
    /// that is worth a write to the ledger.
    pub fn note_found(&mut self, facts: &Facts) -> bool {
        /// Less is not worth a write; admission counts what is held beyond a claim by itself.
        const GROWTH: Bytes = Bytes::mib(16);
        let mut news = false;
        // Of one that was started what was declared is known.
        let found = self.claims.iter_mut().filter(|(_, claim)| claim.declared.is_empty());
        for (model, claim) in found {
            let now = Self::found(model, facts).filter(|now| now.invocation == claim.invocation);
            for part in now.into_iter().flat_map(|now| now.gpus) {
                match claim.gpus.iter_mut().find(|known| known.placed.id == part.placed.id) {
                    None => {
                        claim.gpus.push(part);
                        news = true;
                    }
                    Some(known) if part.placed.bytes > known.placed.bytes.plus(GROWTH) => {
                        known.placed.bytes = part.placed.bytes;
                        news = true;
                    }
                    Some(_) => {}
                }
            }
        }
        news
    }

    /// Forgets what there is of a model that goes on without Berth: what it holds is somebody else's from now on.
    pub fn let_go(&mut self, model: &ModelName) {
        self.claims.remove(model);
        self.home.models.retain(|other| other != model);
        self.home.default = self.home.default.take().filter(|default| default != model);
        self.stand_ins.remove(model);
        self.guests.remove(model);
        self.displaced.remove(model);
    }

    /// Memory of a GPU that is neither Berth's models' nor free, for the arithmetic of admission: `used` less
    /// what processes of claimed models hold. Where the driver does not say who holds what, less what is claimed.
    /// None when the GPU's memory is unknown.
    pub fn foreign(&self, gpu: &Gpu) -> Option<Bytes> {
        let memory = gpu.memory.value()?;
        let ours = gpu.processes.value().and_then(|processes| {
            processes
                .iter()
                .filter(|p| self.owner(p).is_some())
                .map(|p| p.memory.value().copied())
                .sum::<Option<Bytes>>()
        });
        Some(memory.used.less(match ours {
            Some(ours) => ours.plus(self.lingering(gpu)),
            None => self.claimed(&gpu.id, &[]),
        }))
    }

    /// Memory of models that ended which nobody holds any more and the driver has not given back yet: their claims
    /// stand for it. None of it is known where the driver gives no lists.
    fn lingering(&self, gpu: &Gpu) -> Bytes {
        let ending: Vec<(&ModelName, &ClaimedGpu)> = self
            .claims
            .iter()
            .filter(|(_, claim)| claim.phase == Phase::Ending)
            .flat_map(|(model, claim)| claim.gpus.iter().map(move |part| (model, part)))
            .filter(|(_, part)| part.placed.id == gpu.id)
            .collect();
        let before = ending.iter().map(|(_, part)| part.unlisted_before).min().flatten();
        let (Some(memory), Some(before), Some(listed)) = (gpu.memory.value(), before, gpu.listed()) else {
            return Bytes::ZERO;
        };
        let claimed_for_it =
            |(model, part): &(&ModelName, &ClaimedGpu)| part.placed.bytes.less(self.held(gpu, model));
        memory.used.less(listed).less(before).min(ending.iter().map(claimed_for_it).sum())
    }

    /// What models hold beyond their claims, as far as it is known, those of `except` left out.
    pub fn outgrown(&self, gpu: &Gpu, except: &[ModelName]) -> Bytes {
        self.claims
            .iter()
            .filter(|(model, _)| !except.contains(model))
            .map(|(model, claim)| {
                let parts = claim.gpus.iter().filter(|part| part.placed.id == gpu.id);
                self.held(gpu, model).less(parts.map(|part| part.placed.bytes).sum())
            })
            .sum()
    }

    /// What a GPU keeps for a model: its claim there, or what it holds where that is more.
    pub fn kept(&self, gpu: &Gpu, model: &ModelName) -> Bytes {
        let claimed = self.claims.get(model).into_iter().flat_map(|claim| &claim.gpus);
        let claimed = claimed.filter(|part| part.placed.id == gpu.id).map(|part| part.placed.bytes);
        claimed.sum::<Bytes>().max(self.held(gpu, model))
    }

    /// What a model's processes hold on a GPU, as far as it is known.
    fn held(&self, gpu: &Gpu, model: &ModelName) -> Bytes {
        let listed = gpu.processes.value().into_iter().flatten();
        listed
            .filter(|process| self.owner(process) == Some(model))
            .filter_map(|process| process.memory.value().copied())
            .sum()
    }

    /// The claimed model to which a process in a GPU's list belongs: by its cgroup, or because it was once seen
    /// in the unit's cgroup.
    pub fn owner<'a>(&'a self, process: &GpuProcess) -> Option<&'a ModelName> {
        if let Some((model, _)) = process.model.as_ref().and_then(|m| self.claims.get_key_value(m)) {
            return Some(model);
        }
        self.claims
            .iter()
            .find(|(_, claim)| {
                claim
                    .seen
                    .get(&process.pid)
                    .is_some_and(|started| process.started.is_none_or(|now| now == *started))
            })
            .map(|(model, _)| model)
    }
}

/// What a model that is found running holds of a GPU, and what there would be without it; None where that is not known.
fn seen_on(gpu: &Gpu, held: Bytes) -> Option<ClaimedGpu> {
    let memory = gpu.memory.value()?;
    Some(ClaimedGpu {
        placed: PlacedGpu { id: gpu.id.clone(), index: gpu.index, bytes: held },
        unlisted_before: gpu.listed().map(|listed| memory.used.less(listed)),
        free_before: memory.free.plus(held),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn of_models_named_by_settings_only_the_last_are_remembered() {
        let name = |text: &str| text.parse::<ModelName>().unwrap();
        let mut state = State::default();
        for number in 0..30 {
            let model = name(&format!("m:ctx={}", 1000 + number));
            state.served.insert(model.clone(), Served { at_ms: number, boot: String::new() });
            state.times.insert(model, Times::default());
        }
        state.times.insert(name("m"), Times::default());
        state.home.models = vec![name("m:ctx=1000")];
        state.forget_unnamed();
        assert_eq!(state.served.len(), 21);
        // Home's, and a declared one's, whenever they served.
        assert!(state.times.contains_key(&name("m:ctx=1000")) && state.times.contains_key(&name("m")));
        assert!(!state.times.contains_key(&name("m:ctx=1009")));
        assert!(state.times.contains_key(&name("m:ctx=1010")));
    }
}
