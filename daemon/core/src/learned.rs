//! What models took when they ran: measured use takes the place of estimates as long as nothing changed that it
//! depends on.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::config::{Model, Settings};
use crate::demand::{Demand, Parts, Source, What};
use crate::facts::{DeviceId, Facts, FileFacts, Gpu, Stamp};
use crate::layout::Layout;
use crate::name::ModelName;
use crate::placement::Room;
use crate::state::{Claim, Phase, State, Times};

/// What a model took when it ran in one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    /// In which way.
    #[serde(flatten)]
    pub run: Run,
    /// The most that it held on each GPU.
    pub peak: Vec<Bytes>,
    /// What it held on each GPU when it was seen last.
    pub resting: Vec<Bytes>,
    /// The most that it pinned of the host's memory.
    pub host: Bytes,
    /// How long it took to load, as [`Times`] has it.
    #[serde(default)]
    pub load: VecDeque<u64>,
    /// How long its memory took to come back.
    #[serde(default)]
    pub release: VecDeque<u64>,
}

/// All that its use of memory depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its declared arguments.
    pub args: Vec<String>,
    /// Its declared environment.
    pub env: BTreeMap<String, String>,
    /// How it was laid out.
    pub layout: Layout,
    /// The GPUs by their product names, in the layout's order.
    pub gpus: Vec<String>,
    /// The build of its program, where that is known.
    pub program: Option<Stamp>,
    /// The version of its file, where that is known.
    pub file: Option<Stamp>,
}

impl Run {
    /// The way in which a model runs, laid out so on these GPUs.
    pub fn of(
        model: &Model,
        files: &BTreeMap<PathBuf, FileFacts>,
        layout: &Layout,
        gpus: Vec<String>,
    ) -> Self {
        Self {
            args: model.args.clone(),
            env: model.env.clone(),
            layout: essential(layout),
            gpus,
            program: stamp(files, &model.program),
            file: model.file.as_deref().and_then(|file| stamp(files, file)),
        }
    }

    fn is(
        &self,
        model: &Model,
        files: &BTreeMap<PathBuf, FileFacts>,
        layout: &Layout,
        rooms: &[Room<'_>],
    ) -> bool {
        self.layout.split == layout.split
            && self.layout.cpu_experts == layout.cpu_experts
            && self.layout.tuning == essential(layout).tuning
            && self.args == model.args
            && self.env == model.env
            && self.gpus.iter().map(String::as_str).eq(rooms.iter().map(|room| room.name))
            && self.program == stamp(files, &model.program)
            && self.file == model.file.as_deref().and_then(|file| stamp(files, file))
    }
}

/// What of a layout its use of memory depends on.
fn essential(layout: &Layout) -> Layout {
    let tuning = crate::tuning::Tuning { threads: None, ..layout.tuning };
    Layout {
        tuning,
        split: layout.split.clone(),
        cpu_experts: layout.cpu_experts.clone(),
        ..Layout::default()
    }
}

fn stamp(files: &BTreeMap<PathBuf, FileFacts>, path: &Path) -> Option<Stamp> {
    files.get(path)?.stamp.value().copied()
}

impl Learned {
    /// How many ways are remembered of each model; the oldest is forgotten first.
    pub const KEPT: usize = 8;

    /// Takes over what is held now; true when the peak grew by more than what is worth a write to the disk.
    fn note(&mut self, held: &[Bytes], host: Bytes) -> bool {
        /// A write for less would wear out disks while a server grows page by page.
        const GROWTH: Bytes = Bytes::mib(16);
        let mut grew = host > self.host.plus(GROWTH);
        self.host = self.host.max(host);
        for ((peak, resting), held) in self.peak.iter_mut().zip(&mut self.resting).zip(held) {
            grew |= *held > peak.plus(GROWTH);
            *peak = (*peak).max(*held);
            *resting = *held;
        }
        grew
    }
}

/// Notes what models hold that run under a claim; true when it is worth a write to the disk.
pub fn note(settings: &Settings, facts: &Facts, state: &mut State) -> bool {
    let mut news = false;
    let running = state.claims.iter().filter(|(_, claim)| claim.phase != Phase::Ending);
    let held: Vec<(ModelName, Run, Vec<Bytes>, Bytes)> = running
        .filter_map(|(name, claim)| {
            let unit = facts.units.get(name).filter(|unit| unit.invocation == claim.invocation)?;
            let host = unit.brought.value()?.pinned;
            let gpus: Option<Vec<&Gpu>> = claim.gpus.iter().map(|part| facts.gpu(&part.placed.id)).collect();
            let gpus = gpus?;
            // Where the driver does not say who holds what, nothing is learned.
            let held: Option<Vec<Bytes>> = gpus.iter().map(|gpu| held_by(gpu, name)).collect();
            let held =
                held.filter(|held| host > Bytes::ZERO || held.iter().any(|held| *held > Bytes::ZERO))?;
            Some((name.clone(), run_of(settings, facts, name, claim)?, held, host))
        })
        .collect();
    for (name, run, held, host) in held {
        news |= way(state, &name, run).note(&held, host);
    }
    news
}

/// How a model with this claim runs; None where a GPU of it can't be seen, or it is declared no more.
fn run_of(settings: &Settings, facts: &Facts, name: &ModelName, claim: &Claim) -> Option<Run> {
    let model = settings.models.get(name)?;
    let gpus: Option<Vec<String>> =
        claim.gpus.iter().map(|part| Some(facts.gpu(&part.placed.id)?.name.clone())).collect();
    Some(Run::of(model, &facts.files, &claim.layout, gpus?))
}

/// What is remembered of a model that runs like this; made where there is nothing yet.
fn way<'s>(state: &'s mut State, name: &ModelName, run: Run) -> &'s mut Learned {
    let ways = state.learned.entry(name.clone()).or_default();
    let at = ways.iter().position(|way| way.run == run).unwrap_or_else(|| {
        if ways.len() >= Learned::KEPT {
            ways.remove(0);
        }
        let nothing = vec![Bytes::ZERO; run.gpus.len()];
        let (load, release) = (VecDeque::new(), VecDeque::new());
        ways.push(Learned { run, peak: nothing.clone(), resting: nothing, host: Bytes::ZERO, load, release });
        ways.len() - 1
    });
    &mut ways[at]
}

/// Notes how long a model with this claim took to load, in milliseconds.
pub fn note_load(settings: &Settings, facts: &Facts, state: &mut State, name: &ModelName, ms: u64) {
    let run = state.claims.get(name).and_then(|claim| run_of(settings, facts, name, claim));
    if let Some(run) = run {
        Times::note(&mut way(state, name, run).load, ms);
    }
}

/// Notes how long the memory of a model that had this claim took to come back, in milliseconds.
pub fn note_release(
    settings: &Settings,
    facts: &Facts,
    state: &mut State,
    (name, claim): (&ModelName, &Claim),
    ms: u64,
) {
    if let Some(run) = run_of(settings, facts, name, claim) {
        Times::note(&mut way(state, name, run).release, ms);
    }
}

/// What a model took when it ran laid out like this on these GPUs.
pub fn remembered<'s>(
    settings: &Settings,
    facts: &Facts,
    state: &'s State,
    name: &ModelName,
    layout: &Layout,
    gpus: &[&DeviceId],
) -> Option<&'s Learned> {
    let model = settings.models.get(name)?;
    let names: Option<Vec<String>> = gpus.iter().map(|id| Some(facts.gpu(id)?.name.clone())).collect();
    let run = Run::of(model, &facts.files, layout, names?);
    state.learned.get(name)?.iter().find(|way| way.run == run)
}

/// What a model's processes hold on a GPU; None where that is not known of each.
fn held_by(gpu: &Gpu, model: &ModelName) -> Option<Bytes> {
    let processes = gpu.processes.value()?.iter().filter(|process| process.model.as_ref() == Some(model));
    processes.map(|process| process.memory.value().copied()).sum()
}

/// Puts what was measured in the place of what is estimated, where the model ran laid out like this.
pub fn apply(
    learned: &[Learned],
    model: &Model,
    files: &BTreeMap<PathBuf, FileFacts>,
    layout: &Layout,
    rooms: &[Room<'_>],
    demand: &mut Demand,
) {
    // One that was never ready may have died long before it had all that it needs.
    let mut ready = learned.iter().rev().filter(|learned| !learned.load.is_empty());
    let Some(learned) = ready.find(|learned| learned.run.is(model, files, layout, rooms)) else { return };
    for (parts, peak) in demand.gpus.iter_mut().zip(&learned.peak) {
        if *peak > Bytes::ZERO {
            *parts = measured(parts, *peak);
        }
    }
    if demand.host.total() == Bytes::ZERO {
        demand.host.add(What::Whole, learned.host, Source::Learned);
    }
}

/// What is exact stays, and the rest of what was measured is the buffers'. Where it took less than that, its parts are
/// not what they were thought to be.
fn measured(parts: &Parts, peak: Bytes) -> Parts {
    let exact: Vec<_> = parts.0.iter().filter(|part| part.source == Source::Exact).copied().collect();
    let mut measured = Parts(exact);
    if measured.total() > peak {
        measured = Parts::default();
        measured.add(What::Whole, peak, Source::Learned);
    } else {
        let rest = peak.less(measured.total());
        measured.add(What::Compute, rest, Source::Learned);
    }
    measured
}
