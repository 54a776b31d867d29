//! What models took when they ran: measured use takes the place of estimates as long as nothing changed that it
//! depends on.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::backend;
use crate::bytes::Bytes;
use crate::config::Model;
use crate::container::Container;
use crate::demand::{Demand, Parts, Source, What};
use crate::facts::{Facts, FileFacts, Gpu, Stamp};
use crate::layout::Layout;
use crate::name::ModelName;
use crate::placement::Room;
use crate::plan::Start;
use crate::state::{Phase, State, Times};

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
    /// Its declared arguments, with those of its container before them.
    pub args: Vec<String>,
    /// Its declared environment.
    pub env: BTreeMap<String, String>,
    /// How it was laid out.
    pub layout: Layout,
    /// The GPUs by their product names, in the layout's order.
    pub gpus: Vec<String>,
    /// The build of its program, and the version of each of its files.
    pub files: BTreeMap<PathBuf, Stamp>,
}

impl Run {
    /// The way in which a model runs that is started so. None where a GPU of it can't be seen, or where which version of
    /// a file it is can't be told.
    pub fn of(model: &Model, facts: &Facts, start: &Start) -> Option<Self> {
        let gpus = start.gpus.iter().map(|part| Some(facts.gpu(&part.id)?.name.clone()));
        Self::on(model, &facts.files, &start.layout, gpus.collect::<Option<_>>()?)
    }

    fn on(
        model: &Model,
        files: &BTreeMap<PathBuf, FileFacts>,
        layout: &Layout,
        gpus: Vec<String>,
    ) -> Option<Self> {
        let all = backend::of(model.backend).files(model).into_iter().chain([model.program.clone()]);
        let container = model.container.iter().flat_map(Container::declared);
        let stamped = all.map(|path| {
            let stamp = *files.get(&path)?.stamp.value()?;
            Some((path, stamp))
        });
        Some(Self {
            args: container.chain(model.args.clone()).collect(),
            env: model.env.clone(),
            layout: essential(layout),
            gpus,
            files: stamped.collect::<Option<_>>()?,
        })
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
pub fn note(facts: &Facts, state: &mut State) -> bool {
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
            Some((name.clone(), claim.run.clone()?, held, host))
        })
        .collect();
    for (name, run, held, host) in held {
        news |= way(state, &name, run).note(&held, host);
    }
    news
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

/// Notes how long a model took to load that was started like this, in milliseconds.
pub fn note_load(state: &mut State, name: &ModelName, run: Run, ms: u64) {
    Times::note(&mut way(state, name, run).load, ms);
}

/// Notes how long its memory took to come back, in milliseconds.
pub fn note_release(state: &mut State, name: &ModelName, run: Run, ms: u64) {
    Times::note(&mut way(state, name, run).release, ms);
}

/// What a model took when it ran like this.
pub fn remembered<'s>(state: &'s State, name: &ModelName, run: &Run) -> Option<&'s Learned> {
    state.learned.get(name)?.iter().find(|way| way.run == *run)
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
    if learned.is_empty() {
        return;
    }
    let gpus = rooms.iter().map(|room| room.name.to_owned()).collect();
    let Some(run) = Run::on(model, files, layout, gpus) else { return };
    // One that was never ready may have died long before it had all that it needs.
    let ready = |way: &&Learned| !way.load.is_empty() && way.run == run;
    let Some(learned) = learned.iter().find(ready) else { return };
    // Under the same name there may be another image by now, which takes what this one would at least.
    let is_same = model.container.as_ref().is_none_or(Container::is_fixed);
    for (parts, peak) in demand.gpus.iter_mut().zip(&learned.peak) {
        if *peak > Bytes::ZERO && (is_same || *peak > parts.total()) {
            *parts = measured(parts, *peak);
        }
    }
    demand.host.add(What::Whole, learned.host.less(demand.host.total()), Source::Learned);
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
