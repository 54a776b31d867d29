//! What comes of judging one model, for programs and for the renderer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use berth_core::bytes::Bytes;
use berth_core::config::{Model, Settings};
use berth_core::demand::{Parts, What};
use berth_core::facts::{Facts, GpuProcess, Known};
use berth_core::plan::{self, Way, WouldFit};
use berth_core::report::{Attempt, AttemptOutcome, Refusal};
use berth_core::shape::Shape;
use berth_core::state::State;
use berth_core::tuning::Tuning;
use serde::Serialize;

/// One model, judged.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Judged {
    /// What it is called here: the path that was given or found, or a declared model's name.
    pub(crate) name: String,
    /// Its file or folder.
    pub(crate) file: Option<PathBuf>,
    pub(crate) backend: String,
    /// None where its header can't be read: what it takes is declared then.
    pub(crate) architecture: Option<String>,
    /// None where it can't be said.
    pub(crate) fits: Option<bool>,
    /// Where, and with what given up; where nothing fits, the way that comes nearest. The figures below are of it.
    pub(crate) way: String,
    /// What is left on the device where least is.
    pub(crate) spare_bytes: Option<Bytes>,
    /// What is missing on all devices together.
    pub(crate) short_bytes: Option<Bytes>,
    /// Why it does not fit, or why that can't be said.
    pub(crate) why: Option<String>,
    /// Under which it would run, as far as they are known.
    pub(crate) settings: Tuning,
    pub(crate) trained_context: Option<u64>,
    /// Without those that only predict further tokens.
    pub(crate) layers: Option<usize>,
    pub(crate) next_token_layers: Option<usize>,
    /// Of all its tensors, as its files have them.
    pub(crate) weights_bytes: Option<Bytes>,
    pub(crate) kv_bytes: Option<Bytes>,
    pub(crate) kv_global_bytes: Option<Bytes>,
    pub(crate) kv_sliding_bytes: Option<Bytes>,
    pub(crate) recurrent_bytes: Option<Bytes>,
    /// On its GPUs; on the host where it has none.
    pub(crate) compute_bytes: Option<Bytes>,
    /// On the host beside them.
    pub(crate) host_compute_bytes: Option<Bytes>,
    pub(crate) overhead_bytes: Option<Bytes>,
    pub(crate) projector_bytes: Option<Bytes>,
    pub(crate) draft_bytes: Option<Bytes>,
    /// What keeping a layer's experts on the CPU frees, for each of `layers`.
    pub(crate) expert_bytes_per_layer: Option<Vec<Bytes>>,
    pub(crate) devices: Vec<Device>,
    /// Every way that was tried, in order.
    pub(crate) tried: Vec<Attempt>,
    /// Settings that would fit where it does not, least loss first.
    pub(crate) instead: Vec<Instead>,
    /// Why what its layers keep is not known to the byte.
    pub(crate) unsure: Option<String>,
}

/// What it takes on one device, and what there is.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Device {
    /// None for the host's memory.
    pub(crate) gpu: Option<u32>,
    pub(crate) total_bytes: Option<Bytes>,
    /// The driver's, and what is left free on purpose.
    pub(crate) kept_back_bytes: Bytes,
    /// Held by others than Berth's models.
    pub(crate) others_bytes: Option<Bytes>,
    /// Who they are, where that is known.
    pub(crate) others: Vec<String>,
    pub(crate) available_bytes: Option<Bytes>,
    pub(crate) needs_bytes: Bytes,
    pub(crate) parts: Parts,
}

/// Settings that would fit.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Instead {
    pub(crate) set: BTreeMap<&'static str, String>,
    /// The same in words, in the order of what they cost.
    pub(crate) text: String,
    pub(crate) spare_bytes: Bytes,
}

impl From<WouldFit> for Instead {
    fn from(would: WouldFit) -> Self {
        let words: Vec<String> = would.set.iter().map(|(key, value)| format!("{key} {value}")).collect();
        Self { text: words.join(", "), set: would.set.into_iter().collect(), spare_bytes: would.spare }
    }
}

impl Device {
    /// How much is short here.
    pub(crate) fn short(&self) -> Bytes {
        self.available_bytes.map_or(Bytes::ZERO, |available| self.needs_bytes.less(available))
    }
}

/// Judges one model; a refusal where it can't be.
pub(crate) fn judge(
    settings: &Settings,
    facts: &Facts,
    state: &State,
    model: &Model,
    name: String,
) -> Result<Judged, Box<Refusal>> {
    let fit = plan::fit(settings, facts, state, model)?;
    let nearest = nearest(&fit.tried).cloned().unwrap_or_else(|| Way {
        attempt: Attempt {
            way: String::new(),
            devices: Vec::new(),
            outcome: AttemptOutcome::Unknown { text: "no way to place it was found".to_owned() },
        },
        settings: Tuning::default(),
    });
    let attempt = &nearest.attempt;
    let (fits, spare_bytes, short_bytes, why) = match &attempt.outcome {
        AttemptOutcome::Fits { spare } => (Some(true), Some(*spare), None, None),
        AttemptOutcome::Short { by, text } => (Some(false), None, Some(*by), Some(text.clone())),
        AttemptOutcome::Unknown { text } => (None, None, None, Some(text.clone())),
    };
    let shape = model.file.as_deref().and_then(|file| shape(facts, file));
    // Of a model whose memory is declared as a whole no part is known.
    let parts = || attempt.devices.iter().flat_map(|device| &device.parts.0);
    let known = parts().any(|part| part.what != What::Whole);
    let of = |what| known.then(|| attempt.devices.iter().map(|device| device.parts.of(what)).sum::<Bytes>());
    let has_gpu = attempt.devices.iter().any(|device| device.gpu.is_some());
    let compute = |host: bool| {
        let devices = attempt.devices.iter().filter(|device| device.gpu.is_none() == host);
        known.then(|| devices.map(|device| device.parts.of(What::Compute)).sum::<Bytes>())
    };
    let layers = shape.map(|shape| shape.layers.iter().filter(|layer| !layer.next_token));
    let kv_global_bytes = of(What::KvGlobal);
    let kv_sliding_bytes = of(What::KvSliding);
    Ok(Judged {
        name,
        file: model.file.clone(),
        backend: model.backend.to_string(),
        architecture: shape.map(|shape| shape.architecture.clone()),
        fits,
        way: attempt.way.clone(),
        spare_bytes,
        short_bytes,
        why,
        settings: nearest.settings,
        trained_context: shape.map(|shape| shape.trained_context).filter(|context| *context > 0),
        layers: layers.clone().map(Iterator::count),
        next_token_layers: shape.map(|shape| shape.layers.iter().filter(|layer| layer.next_token).count()),
        weights_bytes: shape.map(Shape::weights),
        kv_bytes: kv_global_bytes.zip(kv_sliding_bytes).map(|(global, sliding)| global.plus(sliding)),
        kv_global_bytes,
        kv_sliding_bytes,
        recurrent_bytes: of(What::Recurrent),
        compute_bytes: compute(!has_gpu),
        host_compute_bytes: has_gpu.then(|| compute(true)).flatten(),
        overhead_bytes: of(What::Overhead),
        projector_bytes: of(What::Projector),
        draft_bytes: of(What::Draft),
        expert_bytes_per_layer: layers.map(|layers| layers.map(|layer| layer.experts).collect()),
        devices: devices(settings, facts, state, model, attempt),
        tried: fit.tried.into_iter().map(|way| way.attempt).collect(),
        instead: fit.instead.into_iter().map(Instead::from).collect(),
        unsure: shape.and_then(|shape| shape.unsure.clone()),
    })
}

/// The way that is taken; where none fits the one that comes nearest, else one of which it can't be said.
fn nearest(tried: &[Way]) -> Option<&Way> {
    let last = tried.last()?;
    if matches!(last.attempt.outcome, AttemptOutcome::Fits { .. }) {
        return Some(last);
    }
    let short = tried.iter().filter_map(|way| match &way.attempt.outcome {
        AttemptOutcome::Short { by, .. } => Some((*by, way)),
        _ => None,
    });
    // Where one can't be judged it may fit there, whatever is short elsewhere.
    let unknown = tried.iter().find(|way| matches!(way.attempt.outcome, AttemptOutcome::Unknown { .. }));
    unknown.or(short.min_by_key(|(by, _)| *by).map(|(_, way)| way))
}

/// What a file's header describes, if it was read.
pub(crate) fn shape<'a>(facts: &'a Facts, file: &Path) -> Option<&'a Shape> {
    facts.files.get(file)?.shape.value().map(AsRef::as_ref)
}

fn devices(
    settings: &Settings,
    facts: &Facts,
    state: &State,
    model: &Model,
    attempt: &Attempt,
) -> Vec<Device> {
    let shares = attempt.devices.iter().map(|share| {
        let gpu = share.gpu.and_then(|index| facts.gpus().iter().find(|gpu| gpu.index == index));
        let (total_bytes, kept_back_bytes) = match (share.gpu, gpu.map(|gpu| &gpu.memory)) {
            (None, _) => (facts.host.memory.value().map(|memory| memory.total), model.policy.host.headroom),
            (Some(_), Some(Known::Value(memory))) => {
                let headroom = model.policy.headroom.unwrap_or(settings.headroom);
                (Some(memory.total), memory.reserved.plus(headroom))
            }
            (Some(_), _) => (None, Bytes::ZERO),
        };
        let rest = |(total, available): (Bytes, Bytes)| total.less(kept_back_bytes).less(available);
        let processes = gpu.and_then(|gpu| gpu.processes.value()).into_iter().flatten();
        Device {
            gpu: share.gpu,
            total_bytes,
            kept_back_bytes,
            others_bytes: total_bytes.zip(share.available).map(rest),
            others: processes
                .filter(|process| state.owner(process).is_none())
                .map(GpuProcess::named)
                .collect(),
            available_bytes: share.available,
            needs_bytes: share.needs,
            parts: share.parts.clone(),
        }
    });
    shares.collect()
}
