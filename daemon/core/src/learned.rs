//! What models took when they ran: measured use takes the place of estimates as long as nothing changed that it
//! depends on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::config::{Model, Settings};
use crate::demand::{Demand, Parts, Source, What};
use crate::facts::{Facts, FileFacts, Gpu, Stamp};
use crate::layout::Layout;
use crate::name::ModelName;
use crate::placement::Room;
use crate::state::{Phase, State};

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
    pub fn note(&mut self, held: &[Bytes], host: Bytes) -> bool {
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
            let model = settings.models.get(name)?;
            let unit = facts.units.get(name).filter(|unit| unit.invocation == claim.invocation)?;
            let host = unit.brought.value()?.pinned;
            let gpus: Option<Vec<&Gpu>> = claim.gpus.iter().map(|part| facts.gpu(&part.placed.id)).collect();
            let gpus = gpus?;
            // Where the driver does not say who holds what, nothing is learned.
            let held: Option<Vec<Bytes>> = gpus.iter().map(|gpu| held_by(gpu, name)).collect();
            let held =
                held.filter(|held| host > Bytes::ZERO || held.iter().any(|held| *held > Bytes::ZERO))?;
            let names = gpus.iter().map(|gpu| gpu.name.clone()).collect();
            Some((name.clone(), Run::of(model, &facts.files, &claim.layout, names), held, host))
        })
        .collect();
    for (name, run, held, host) in held {
        let ways = state.learned.entry(name).or_default();
        let at = ways.iter().position(|way| way.run == run).unwrap_or_else(|| {
            if ways.len() >= Learned::KEPT {
                ways.remove(0);
            }
            let nothing = vec![Bytes::ZERO; held.len()];
            ways.push(Learned { run, peak: nothing.clone(), resting: nothing, host: Bytes::ZERO });
            ways.len() - 1
        });
        news |= ways[at].note(&held, host);
    }
    news
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
    let Some(learned) = learned.iter().rev().find(|learned| learned.run.is(model, files, layout, rooms))
    else {
        return;
    };
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
