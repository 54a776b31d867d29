//! What was tried for a model and why it was not taken, rung by rung; and which settings would fit.

use serde::Serialize;

use super::place::Tried;
use super::{Context, Start};
use crate::backend;
use crate::bytes::Bytes;
use crate::config::Model;
use crate::layout::Layout;
use crate::name::ModelName;
use crate::placement::{self, Conceded};
use crate::report::{Attempt, AttemptOutcome, DeviceShare, Refusal};
use crate::tuning::{KvType, Tuning};

/// No context is proposed below this: few models answer anything of use in less.
const LEAST_CTX: u64 = 4096;

/// Settings that would fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WouldFit {
    /// As keys and values of `--set`.
    pub set: Vec<(&'static str, String)>,
    /// What would be left on the device with least.
    pub spare: Bytes,
}

impl WouldFit {
    /// "ctx 16384 with kv q8_0".
    pub(super) fn words(&self) -> String {
        self.set.iter().map(|(key, value)| format!("{key} {value}")).collect::<Vec<_>>().join(" with ")
    }

    /// "--set ctx=16384 --set kv=q8_0".
    pub(super) fn flags(&self) -> String {
        self.set.iter().map(|(key, value)| format!("--set {key}={value}")).collect::<Vec<_>>().join(" ")
    }
}

impl Context<'_> {
    /// The ways that were tried with `victims` gone and `others` started, and how each is laid out: for each rung and
    /// number of GPUs the one that comes nearest, up to the one that is `taken`, or without one the first that fits. A
    /// refusal where nothing can be tried.
    pub(super) fn tried(
        &self,
        model: &Model,
        victims: &[ModelName],
        others: &[Start],
        taken: Option<&Start>,
    ) -> Result<Vec<(Attempt, Layout)>, Refusal> {
        let ladder = self.ladder(model)?;
        let mut attempts: Vec<(Attempt, Layout)> = Vec::new();
        let mut note = |(attempt, layout): (Attempt, Layout)| {
            // A concession that changes nothing for this model is not worth a line.
            if attempts.iter().all(|(known, _)| known.way != attempt.way) {
                attempts.push((attempt, layout));
            }
        };
        for (rung, conceded) in placement::rungs(&model.policy).into_iter().enumerate() {
            let mut nearest: Vec<Tried> = Vec::new();
            for tried in self.on_rung(&ladder, rung, victims, others)? {
                let fits = tried.fits();
                // One that fits is passed over for the sake of somebody who is to come back.
                if fits && taken.is_some_and(|start| !self.is(start, &tried)) {
                    continue;
                }
                let same = nearest.iter().position(|other| other.gpus.len() == tried.gpus.len());
                match same {
                    Some(at) if fits || tried.missing < nearest[at].missing => nearest[at] = tried,
                    Some(_) => {}
                    None => nearest.push(tried),
                }
                if fits {
                    break;
                }
            }
            for tried in nearest {
                let fits = tried.fits();
                if let Some(fewer) = self.one_fewer(model, &tried, conceded, victims).filter(|_| fits) {
                    note(fewer);
                }
                note(self.attempt(model, &tried));
                if fits {
                    return Ok(attempts);
                }
            }
        }
        Ok(attempts)
    }

    /// Whether this way is the start's.
    fn is(&self, start: &Start, tried: &Tried) -> bool {
        let gpus = tried.gpus.iter().map(|position| &self.facts.gpus()[*position].id);
        gpus.eq(start.gpus.iter().map(|part| &part.id))
            && (&tried.laid.layout.split, &tried.laid.layout.cpu_experts)
                == (&start.layout.split, &start.layout.cpu_experts)
    }

    /// The same with the experts of one layer less on the CPU.
    fn one_fewer(
        &self,
        model: &Model,
        taken: &Tried,
        conceded: Conceded,
        victims: &[ModelName],
    ) -> Option<(Attempt, Layout)> {
        let fewer = u32::try_from(taken.laid.layout.cpu_experts.len()).ok()?.checked_sub(1)?;
        let conceded = Conceded { experts: false, layers: false, ..conceded };
        let instead = Tuning { cpu_experts: Some(fewer), ..Tuning::default() };
        let ladder = self.ladder_of(model, vec![conceded], instead).ok()?;
        let mut ways = self.on_rung(&ladder, 0, victims, &[]).ok()?;
        let tried = ways.find(|tried| tried.gpus == taken.gpus)?;
        Some(self.attempt(model, &tried)).filter(|_| !tried.fits())
    }

    fn attempt(&self, model: &Model, tried: &Tried) -> (Attempt, Layout) {
        let gpus = tried.gpus.iter().zip(&tried.laid.demand.gpus).zip(&tried.available);
        let mut devices: Vec<DeviceShare> = gpus
            .map(|((position, parts), available)| DeviceShare {
                gpu: Some(self.facts.gpus()[*position].index),
                needs: parts.total(),
                available: *available,
                parts: parts.clone(),
            })
            .collect();
        let host = &tried.laid.demand.host;
        if host.total() > Bytes::ZERO {
            let (needs, parts) = (host.total(), host.clone());
            devices.push(DeviceShare { gpu: None, needs, available: tried.host, parts });
        }
        let outcome = if let Some(why) = &tried.unseen {
            AttemptOutcome::Unknown { text: why.text.clone() }
        } else if tried.fits() {
            AttemptOutcome::Fits { spare: tried.spare().unwrap_or_default() }
        } else {
            AttemptOutcome::Short { by: tried.missing, text: tried.short.join("; ") }
        };
        (Attempt { way: self.way(model, tried), devices, outcome }, tried.laid.layout.clone())
    }

    /// Where and with what given up, in words.
    fn way(&self, model: &Model, tried: &Tried) -> String {
        let indices: Vec<String> =
            tried.gpus.iter().map(|at| self.facts.gpus()[*at].index.to_string()).collect();
        let place =
            if indices.is_empty() { "the CPU".to_owned() } else { format!("GPU {}", indices.join("+")) };
        let layout = &tried.laid.layout;
        let mut on_cpu = Vec::new();
        if !layout.cpu_experts.is_empty() {
            let layers = crate::cpus::Numbers(&layout.cpu_experts);
            let n = layout.cpu_experts.len();
            on_cpu.push(format!("the experts of {n} layer{} ({layers})", if n == 1 { "" } else { "s" }));
        }
        on_cpu.extend(self.layers_on_cpu(model, tried).map(|n| format!("the first {n} layers")));
        let whole = if on_cpu.is_empty() {
            format!("whole on {place}")
        } else {
            format!("{} on the CPU, the rest on {place}", on_cpu.join(" and "))
        };
        let tuning = &layout.tuning;
        let kv = tuning.kv_k.filter(|_| tuning.kv_k != model.tuning.kv_k).map(|kind| format!("KV {kind}"));
        let ctx = tuning.ctx.filter(|_| tuning.ctx != model.tuning.ctx).map(|ctx| format!("ctx {ctx}"));
        let with: Vec<String> = kv.into_iter().chain(ctx).collect();
        if with.is_empty() { whole } else { format!("{whole}, with {}", with.join(" and ")) }
    }

    /// How many layers stay on the CPU although there are GPUs.
    fn layers_on_cpu(&self, model: &Model, tried: &Tried) -> Option<u32> {
        let split = &tried.laid.layout.split;
        let shape = self.facts.files.get(model.file.as_ref()?)?.shape.value()?;
        let all = u32::try_from(shape.layers.len()).ok()? + 1;
        let kept = all.checked_sub(split.iter().sum())?;
        (!split.is_empty() && kept > 0).then_some(kept)
    }

    /// The nearest settings that would fit with `victims` gone: at most two, least loss first.
    pub(super) fn would_fit(&self, model: &Model, victims: &[ModelName]) -> Vec<WouldFit> {
        let now = backend::of(model.backend).effective(model, &self.facts.files);
        let mut found: Vec<WouldFit> = Vec::new();
        for (ctx, kv) in smaller(&now) {
            let instead = Tuning { ctx, kv_k: kv, kv_v: kv, ..Tuning::default() };
            // A smaller one of what fits already says nothing new.
            let more = |known: &WouldFit| {
                let gives = |key| known.set.iter().any(|(known, _)| *known == key);
                (ctx.is_some() || !gives("ctx")) && (kv.is_some() || !gives("kv"))
            };
            if found.iter().any(more) {
                continue;
            }
            let all = placement::rungs(&model.policy).pop().unwrap_or_default();
            if let Some(tried) = self.first_that_fits(model, all, instead, victims) {
                found.push(WouldFit { set: settings(ctx, kv), spare: tried.spare().unwrap_or_default() });
            }
        }
        found.truncate(2);
        found.extend(self.fewer_layers(model, &now, (None, None), victims));
        found
    }

    /// Where nothing of this kind is enough by itself: the least loss of context and KV with which a part of the layers
    /// has room.
    pub(super) fn would_fit_in_part(&self, model: &Model, victims: &[ModelName]) -> Option<WouldFit> {
        let now = backend::of(model.backend).effective(model, &self.facts.files);
        smaller(&now).into_iter().find_map(|less| self.fewer_layers(model, &now, less, victims))
    }

    /// These settings with as few layers on the CPU as make it fit.
    fn fewer_layers(
        &self,
        model: &Model,
        now: &Tuning,
        (ctx, kv): (Option<u64>, Option<KvType>),
        victims: &[ModelName],
    ) -> Option<WouldFit> {
        if now.gpu_layers.is_some() || placement::host_only(&model.policy) {
            return None;
        }
        let all = placement::rungs(&model.policy).pop().unwrap_or_default();
        let conceded = Conceded { layers: true, ..all };
        let instead = Tuning { ctx, kv_k: kv, kv_v: kv, ..Tuning::default() };
        let tried = self.first_that_fits(model, conceded, instead, victims)?;
        let layers: u32 = tried.laid.layout.split.iter().sum();
        let mut set = settings(ctx, kv);
        set.push(("gpu_layers", layers.to_string()));
        (layers > 0).then(|| WouldFit { set, spare: tried.spare().unwrap_or_default() })
    }

    fn first_that_fits(
        &self,
        model: &Model,
        conceded: Conceded,
        instead: Tuning,
        victims: &[ModelName],
    ) -> Option<Tried> {
        let ladder = self.ladder_of(model, vec![conceded], instead).ok()?;
        self.on_rung(&ladder, 0, victims, &[]).ok()?.find(Tried::fits)
    }

    /// Adds to a refusal what would fit.
    pub(super) fn advise(&self, refusal: &mut Refusal, verb: &str, model: &Model, victims: &[ModelName]) {
        let fitting = self.would_fit(model, victims);
        if let Some(nearest) = fitting.first() {
            refusal.text =
                format!("{}. {} would fit, {} to spare", refusal.text, nearest.words(), nearest.spare);
        }
        let name = model.name.as_str();
        refusal.hints.extend(fitting.iter().map(|fit| format!("berthctl {verb} {name} {}", fit.flags())));
    }
}

fn settings(ctx: Option<u64>, kv: Option<KvType>) -> Vec<(&'static str, String)> {
    let ctx = ctx.map(|ctx| ("ctx", ctx.to_string()));
    ctx.into_iter().chain(kv.map(|kv| ("kv", kv.to_string()))).collect()
}

/// Smaller settings than these, least loss first: half the context counts as two steps, q8_0 as one, q4_0 as three.
fn smaller(now: &Tuning) -> Vec<(Option<u64>, Option<KvType>)> {
    let mut all: Vec<(u32, Option<u64>, Option<KvType>)> = Vec::new();
    let kinds = [(0, None), (1, Some(KvType::Q8_0)), (3, Some(KvType::Q4_0))];
    let width = now.kv_k.filter(|_| now.kv_k == now.kv_v).map_or(0, KvType::bytes_of_32);
    for (loss, kind) in kinds.into_iter().filter(|(_, kind)| kind.is_none_or(|k| k.bytes_of_32() < width)) {
        all.push((loss, None, kind));
        let mut ctx = now.ctx.unwrap_or_default() / 2;
        let mut halved = 2;
        while ctx >= LEAST_CTX {
            all.push((loss + halved, Some(ctx), kind));
            (ctx, halved) = (ctx / 2, halved + 2);
        }
    }
    all.sort_by_key(|(loss, ctx, _)| (*loss, std::cmp::Reverse(*ctx)));
    all.into_iter().map(|(_, ctx, kind)| (ctx, kind)).filter(|way| *way != (None, None)).collect()
}
