//! How much memory llama.cpp's server takes: weights, keys and values and states to the byte from the file's header,
//! the buffers that it computes in by a formula.
//!
//! [`Costs`] holds what does not depend on the layout, layer by layer, so that a search over layouts asks
//! [`Costs::demand`] often and cheaply.

mod compute;
mod run;

use regex_lite::Regex;

use super::{Demand, Parts, Source, What};
use crate::bytes::Bytes;
use crate::gguf::is_expert;
use crate::shape::{Attention, Place, Shape, Tensor};
use crate::tuning::KvType;

pub use run::{BadSetting, Draft, Flash, Override, Run, SplitMode};

use compute::{Compute, Work};

/// What a driver and its libraries keep for a process on each GPU that it uses: from 107 to 555 MiB were reported for
/// CUDA, by its version and the card (`docs/architecture.md`). Measured use takes its place.
pub const DRIVER: Bytes = Bytes::mib(384);

/// What the server takes of the host's memory besides its buffers: code, tokens' texts, threads. 96 MiB were seen in
/// August 2026 with a vocabulary of 262,144, on the CPU; the libraries of a GPU's driver come on top.
pub const SERVER: Bytes = Bytes::mib(150);

/// The files of one server.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    /// The model.
    pub model: &'a Shape,
    /// Its projector, where [`Run::projector`] names one.
    pub projector: Option<&'a Shape>,
    /// The draft model, where [`Run::draft`] names a file.
    pub draft: Option<&'a Shape>,
}

impl<'a> From<&'a Shape> for Files<'a> {
    fn from(model: &'a Shape) -> Self {
        Self { model, projector: None, draft: None }
    }
}

/// What a model takes, laid out so. See [`Costs::demand`]; for more than one layout, keep the [`Costs`].
pub fn demand(shape: &Shape, run: &Run, gpus: usize, split: &[u32], cpu_experts: &[u32]) -> Demand {
    Costs::new(Files::from(shape), run).demand(gpus, split, cpu_experts)
}

/// What each layer of a model costs under certain settings, wherever it lies.
#[derive(Debug, Clone)]
pub struct Costs {
    layers: Vec<Layer>,
    /// Tensors before the first layer: always on the host.
    input: u64,
    /// Tensors after the last layer.
    output: u64,
    /// What the output shares with the input, and a GPU needs a copy of.
    tied: u64,
    /// The host needs a copy as well.
    tied_twice: bool,
    /// Tensors that each device with a layer has a copy of.
    copied: u64,
    /// Bytes that the user's own overrides put on certain GPUs.
    pinned: Vec<(usize, u64)>,
    /// How well it is known what layers keep.
    kept: Source,
    overridden: bool,
    kv_offload: bool,
    split_mode: SplitMode,
    main_gpu: usize,
    compute: Compute,
    projector: Option<Projector>,
    draft: Option<Box<DraftCosts>>,
}

/// More bytes than any machine has. Sizes from files are held below it, so that no sum of them overflows.
const MOST: u64 = 1 << 50;

fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |all: u64, factor| all.saturating_mul(*factor)).min(MOST)
}

/// Where the bytes of some tensors lie.
#[derive(Debug, Clone, Copy, Default)]
struct Placed {
    /// Where their layer lies.
    here: u64,
    /// On the host wherever their layer lies.
    host: u64,
    /// The largest one of each.
    largest_here: u64,
    largest_host: u64,
}

impl Placed {
    fn add_here(&mut self, bytes: u64) {
        self.here = product(&[self.here + bytes]);
        self.largest_here = self.largest_here.max(bytes);
    }

    fn add_host(&mut self, bytes: u64) {
        self.host = product(&[self.host + bytes]);
        self.largest_host = self.largest_host.max(bytes);
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Layer {
    weights: Placed,
    /// Those of `weights.here` that are of experts.
    experts: u64,
    largest_expert: u64,
    /// Its feed-forward network, or a part of it, lies where the layer lies.
    network: bool,
    /// It sees everything, or it slides; one that keeps nothing of its own may do either.
    global: bool,
    sliding: bool,
    kv_global: u64,
    kv_sliding: u64,
    recurrent: u64,
}

#[derive(Debug, Clone, Copy)]
struct Projector {
    weights: u64,
    compute: u64,
    offload: bool,
}

#[derive(Debug, Clone)]
struct DraftCosts {
    costs: Costs,
    gpu_layers: Option<u32>,
    /// It is made of layers of the model, and shares its weights.
    within: bool,
}

/// Where an override puts a tensor.
enum Target {
    Host,
    Gpu(usize),
}

impl Target {
    /// Device buffers are called as their devices, with a number: `CUDA1`. All others are on the host.
    fn of(buffer: &str) -> Self {
        let digits = buffer.len() - buffer.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        match buffer[buffer.len() - digits..].parse() {
            Ok(index) if !buffer.starts_with("CPU") => Self::Gpu(index),
            _ => Self::Host,
        }
    }
}

/// Cells of context are allocated in multiples of this.
const CELLS: u64 = 256;

/// What settings mean for a certain model.
#[derive(Debug, Clone, Copy)]
struct Cells {
    /// Tokens of context of all slots together.
    ctx: u64,
    /// Cells of a layer that sees all of the context, in each stream.
    global: u64,
    /// Cells of a layer that slides, in each stream.
    sliding: u64,
    streams: u64,
    slots: u64,
    ubatch: u64,
}

impl Cells {
    fn of(shape: &Shape, run: &Run) -> Self {
        let slots = u64::from(run.slots.max(1));
        let wanted = if run.ctx == 0 { shape.trained_context } else { run.ctx };
        // llama.cpp counts tokens in 32 bits.
        let ctx = wanted.clamp(1, 1 << 31).next_multiple_of(CELLS);
        let (global, streams) =
            if run.unified { (ctx, 1) } else { ((ctx / slots).max(1).next_multiple_of(CELLS), slots) };
        let ctx = global * streams;
        let batch = run.batch.min(ctx);
        let ubatch = if run.ubatch == 0 { batch } else { run.ubatch.min(batch) };
        let seen = product(&[shape.window, if run.unified { slots } else { 1 }]) + ubatch;
        let sliding = if run.swa_full { global } else { global.min(seen).next_multiple_of(CELLS) };
        Self { ctx, global, sliding, streams, slots, ubatch }
    }
}

/// Bytes of so many elements of a cache.
fn kept(elements: u64, kind: KvType) -> u64 {
    product(&[elements, kind.bytes_of_32()]).div_ceil(32)
}

impl Costs {
    /// What the model's layers cost under these settings.
    pub fn new(files: Files<'_>, run: &Run) -> Self {
        let shape = files.model;
        let cells = Cells::of(shape, run);
        let mut costs = Self {
            layers: layers(shape, run, &cells),
            input: 0,
            output: 0,
            tied: 0,
            // Its output is made before its input (seen with a server of August 2026); mapped, both are the same.
            tied_twice: shape.architecture == "gemma4" && !run.mmap,
            copied: 0,
            pinned: Vec::new(),
            kept: if shape.unsure.is_none() { Source::Exact } else { Source::Estimated },
            overridden: !run.overrides.is_empty(),
            kv_offload: run.kv_offload,
            split_mode: run.split_mode,
            main_gpu: run.main_gpu as usize,
            compute: Compute::new(shape, run, &cells),
            projector: files.projector.map(|shape| Projector {
                weights: shape.weights().0.min(MOST),
                compute: compute::projector(shape),
                offload: run.projector_offload,
            }),
            draft: DraftCosts::new(files, run),
        };
        costs.place_weights(shape, run);
        costs
    }

    /// Sorts the tensors by what decides where they lie.
    fn place_weights(&mut self, shape: &Shape, run: &Run) {
        let rules: Vec<(Regex, Target)> = run
            .overrides
            .iter()
            .filter_map(|rule| Some((Regex::new(&rule.pattern).ok()?, Target::of(&rule.buffer))))
            .collect();
        let target = |tensor: &Tensor| {
            rules.iter().find(|(pattern, _)| pattern.is_match(&tensor.name)).map(|(_, target)| target)
        };
        for tensor in &shape.tensors {
            let bytes = tensor.bytes.0.min(MOST);
            let layer = match tensor.place() {
                Place::Layer(layer) => self.layers.get_mut(layer as usize),
                _ => None,
            };
            match (target(tensor), layer, tensor.place()) {
                (Some(Target::Gpu(index)), ..) => self.pinned.push((*index, bytes)),
                (Some(Target::Host), Some(layer), _) => layer.weights.add_host(bytes),
                (None, Some(layer), _) => {
                    layer.weights.add_here(bytes);
                    layer.network |= tensor.name.contains(".ffn_") && !tensor.name.contains("norm");
                    if is_expert(&tensor.name) {
                        layer.experts = product(&[layer.experts + bytes]);
                        layer.largest_expert = layer.largest_expert.max(bytes);
                    }
                }
                (Some(Target::Host), ..) | (_, _, Place::Input) => {
                    self.input = product(&[self.input + bytes]);
                }
                (_, _, Place::EachDevice) => self.copied = product(&[self.copied + bytes]),
                _ => self.output = product(&[self.output + bytes]),
            }
        }
        let embedding = shape.tensors.iter().find(|tensor| tensor.name == "token_embd.weight");
        if embedding.is_some_and(|tensor| target(tensor).is_none()) && generates(shape) {
            self.tied = shape.tied_output().map_or(0, |bytes| bytes.0.min(MOST));
        }
    }

    /// Its layers with the output as one more: as many as a split can give to GPUs.
    pub fn slots(&self) -> u32 {
        u32::try_from(self.layers.len() + 1).unwrap_or(u32::MAX)
    }

    /// What a layer, or after the last one the output, puts on the GPU where it lies.
    pub fn weigh(&self, layer: u32, experts_on_cpu: bool) -> Bytes {
        let Some(layer) = self.layers.get(layer as usize) else { return Bytes(self.output + self.tied) };
        let kept = if self.kv_offload { layer.kv_global + layer.kv_sliding + layer.recurrent } else { 0 };
        Bytes(layer.weights.here - if experts_on_cpu { layer.experts } else { 0 } + kept)
    }

    /// What moving a layer's experts to the host frees where the layer lies.
    pub fn experts(&self, layer: u32) -> Bytes {
        self.layers.get(layer as usize).map_or(Bytes::ZERO, |layer| Bytes(layer.experts))
    }

    /// What the model takes on each of `gpus` GPUs and on the host. `split` has the layers of each GPU in order, the
    /// output as one more on the last that has any; the layers that are left, the first ones, are on the host.
    /// `cpu_experts` are the layers whose experts stay on the host.
    pub fn demand(&self, gpus: usize, split: &[u32], cpu_experts: &[u32]) -> Demand {
        let mut demand = Demand { gpus: vec![Parts::default(); gpus], host: Parts::default() };
        self.add(&mut demand, split, cpu_experts);
        // The server opens every GPU that it sees.
        for parts in &mut demand.gpus {
            parts.add(What::Overhead, DRIVER, Source::Estimated);
        }
        demand.host.add(What::Overhead, SERVER, Source::Estimated);
        demand
    }

    fn add(&self, demand: &mut Demand, split: &[u32], cpu_experts: &[u32]) {
        let gpus = demand.gpus.len();
        let split = &split[..split.len().min(gpus)];
        let mut alone = vec![0; gpus];
        let split = if self.split_mode == SplitMode::None && gpus > 0 {
            alone[self.main_gpu.min(gpus - 1)] = split.iter().sum();
            &alone
        } else {
            split
        };
        let first = if self.split_mode == SplitMode::None { self.main_gpu } else { 0 };
        let places = Places::new(self.layers.len(), split);
        let mut sums = vec![Sums::default(); gpus + 1];
        let host = gpus;
        // What the first GPU has to fetch from the host to compute with it.
        let mut fetched = Work::default();
        for (i, layer) in self.layers.iter().enumerate() {
            let at = places.of(i).unwrap_or(host);
            let experts = u32::try_from(i).is_ok_and(|i| cpu_experts.binary_search(&i).is_ok());
            let moved = if experts { layer.experts } else { 0 };
            let visitor = if at == host { layer.weights.largest_here } else { 0 };
            let visitor = visitor.max(layer.weights.largest_host);
            let visitor = visitor.max(if experts { layer.largest_expert } else { 0 });
            fetched.visitor = fetched.visitor.max(visitor);
            if at == host {
                fetched.kept = fetched.kept.max(layer.kv_global + layer.kv_sliding);
                fetched.global |= layer.global;
                fetched.sliding |= layer.sliding;
            }
            sums[at].sees_all |= layer.global;
            sums[at].slides |= layer.sliding;
            sums[at].networks |= layer.network && !(experts && layer.experts > 0);
            sums[at].weights += layer.weights.here - moved;
            sums[at].layers += 1;
            sums[host].weights += layer.weights.host + moved;
            let kept = &mut sums[if self.kv_offload { at } else { host }];
            kept.global += layer.kv_global;
            kept.sliding += layer.kv_sliding;
            kept.recurrent += layer.recurrent;
        }
        let output = places.of(self.layers.len()).unwrap_or(host);
        sums[output].weights += self.output;
        sums[host].weights += self.input;
        if output != host || self.tied_twice {
            sums[output].weights += self.tied;
        }
        for &(index, bytes) in &self.pinned {
            sums[index.min(host)].weights += bytes;
        }
        for sums in &mut sums {
            sums.weights += if sums.layers > 0 { self.copied } else { 0 };
        }
        let exact = self.divide(&mut sums, split);
        for (at, sums) in sums.iter().enumerate() {
            let parts = if at == host { &mut demand.host } else { &mut demand.gpus[at] };
            parts.add(What::Weights, Bytes(sums.weights), exact);
            let kept = exact.max(self.kept);
            parts.add(What::KvGlobal, Bytes(sums.global), kept);
            parts.add(What::KvSliding, Bytes(sums.sliding), kept);
            parts.add(What::Recurrent, Bytes(sums.recurrent), kept);
        }

        let on_gpus = split.iter().map(|&layers| u64::from(layers)).sum::<u64>();
        let all = on_gpus >= u64::from(self.slots());
        let pipelined = gpus > 1
            && all
            && self.split_mode == SplitMode::Layer
            && self.kv_offload
            && !self.overridden
            && cpu_experts.is_empty();
        for (at, parts) in demand.gpus.iter_mut().enumerate() {
            let work = if at == first { fetched } else { Work::default() };
            if sums[at].used() || work.visitor > 0 {
                let work = Work {
                    networks: sums[at].networks,
                    global: sums[at].sees_all || work.global,
                    sliding: sums[at].slides || work.sliding,
                    output: at == output,
                    pipelined,
                    ..work
                };
                parts.add(What::Compute, Bytes(self.compute.gpu(work)), Source::Estimated);
            }
        }
        let bytes = match on_gpus {
            0 => self.compute.alone(),
            _ => self.compute.host(fetched.visitor > 0, pipelined),
        };
        demand.host.add(What::Compute, Bytes(bytes), Source::Estimated);

        if let Some(projector) = self.projector {
            let parts =
                if projector.offload { demand.gpus.first_mut() } else { None }.unwrap_or(&mut demand.host);
            parts.add(What::Projector, Bytes(projector.weights), Source::Exact);
            parts.add(What::Projector, Bytes(projector.compute), Source::Estimated);
        }
        if let Some(draft) = &self.draft {
            // Layers that predict are the model's last ones.
            draft.add(demand, split, places.of(self.layers.len().saturating_sub(1)));
        }
    }

    /// Divides what lies on GPUs otherwise than by layers, where the user wants it so, and says how well that is known.
    fn divide(&self, sums: &mut [Sums], split: &[u32]) -> Source {
        let Some((_, gpus)) = sums.split_last_mut() else { return Source::Exact };
        if !matches!(self.split_mode, SplitMode::Row | SplitMode::Tensor) || gpus.is_empty() {
            return Source::Exact;
        }
        let all = gpus.iter().fold(Sums::default(), |all, one| Sums {
            weights: all.weights + one.weights,
            layers: all.layers + one.layers,
            networks: all.networks || one.networks,
            sees_all: all.sees_all || one.sees_all,
            slides: all.slides || one.slides,
            global: all.global + one.global,
            sliding: all.sliding + one.sliding,
            recurrent: all.recurrent + one.recurrent,
        });
        let main = self.main_gpu.min(gpus.len() - 1);
        let whole = split.iter().map(|&share| u64::from(share)).sum::<u64>().max(1);
        for (at, sums) in gpus.iter_mut().enumerate() {
            let share = u64::from(split.get(at).copied().unwrap_or(0));
            let part = |bytes: u64| bytes.saturating_mul(share).div_ceil(whole);
            let kept = |bytes: u64| match self.split_mode {
                SplitMode::Tensor => part(bytes),
                _ if at == main => bytes,
                _ => 0,
            };
            *sums = Sums {
                weights: part(all.weights),
                global: kept(all.global),
                sliding: kept(all.sliding),
                recurrent: kept(all.recurrent),
                ..all
            };
        }
        Source::Estimated
    }
}

/// What lies on one device.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    weights: u64,
    layers: u64,
    /// Some layer's feed-forward network is among the weights.
    networks: bool,
    sees_all: bool,
    slides: bool,
    global: u64,
    sliding: u64,
    recurrent: u64,
}

impl Sums {
    fn used(&self) -> bool {
        self.weights + self.layers > 0
    }
}

/// On which GPU each layer lies.
struct Places {
    /// The first that lies on a GPU.
    first: usize,
    /// For each GPU the first layer after its own.
    ends: Vec<usize>,
}

impl Places {
    fn new(layers: usize, split: &[u32]) -> Self {
        let whole: usize = split.iter().map(|&layers| layers as usize).sum();
        let first = (layers + 1).saturating_sub(whole);
        let ends = split.iter().scan(first, |end, &layers| {
            *end += layers as usize;
            Some(*end)
        });
        Self { first, ends: ends.collect() }
    }

    /// The GPU of a layer, of the output for one more than there are; None for the host.
    fn of(&self, layer: usize) -> Option<usize> {
        (layer >= self.first)
            .then(|| self.ends.partition_point(|&end| end <= layer))
            .filter(|&at| at < self.ends.len())
    }
}

impl DraftCosts {
    fn new(files: Files<'_>, run: &Run) -> Option<Box<Self>> {
        let draft = run.draft.as_ref()?;
        let own = Run {
            kv_k: draft.kv_k,
            kv_v: draft.kv_v,
            overrides: Vec::new(),
            projector: None,
            draft: None,
            ..run.clone()
        };
        let within = draft.file.is_none();
        let shape = if within { next_token(files.model) } else { files.draft?.clone() };
        let costs = Costs::new(Files::from(&shape), &own);
        Some(Box::new(Self { costs, gpu_layers: draft.gpu_layers, within }))
    }

    /// A draft model is divided as the model is, with its own number of layers on GPUs.
    fn add(&self, demand: &mut Demand, split: &[u32], last: Option<usize>) {
        let gpus = demand.gpus.len();
        let mut own = Demand { gpus: vec![Parts::default(); gpus], host: Parts::default() };
        let split = if self.within {
            let on = |at| if Some(at) == last { self.costs.slots() } else { 0 };
            (0..gpus).map(on).collect()
        } else {
            let shares: Vec<f32> = split.iter().map(|&share| share as f32).collect();
            divided(self.gpu_layers.unwrap_or(u32::MAX).min(self.costs.slots()), &shares)
        };
        self.costs.add(&mut own, &split, &[]);
        for (parts, own) in demand.gpus.iter_mut().zip(&own.gpus).chain([(&mut demand.host, &own.host)]) {
            for part in &own.0 {
                parts.add(What::Draft, part.bytes, part.source);
            }
        }
    }
}

/// The layers of a model that only predict further tokens, as a model of their own.
fn next_token(shape: &Shape) -> Shape {
    let layers = shape.layers.iter().filter(|layer| layer.next_token);
    let layers = layers.map(|layer| crate::shape::Layer { next_token: false, ..layer.clone() });
    Shape { layers: layers.collect(), tensors: Vec::new(), ..shape.clone() }
}

/// How llama.cpp divides `layers` (the output as one of them) by shares: what `--tensor-split` does.
pub fn divided(layers: u32, shares: &[f32]) -> Vec<u32> {
    let whole: f32 = shares.iter().sum();
    let mut split = vec![0; shares.len()];
    if whole <= 0.0 {
        return split;
    }
    let ends: Vec<f32> = shares
        .iter()
        .scan(0.0, |sum, share| {
            *sum += share;
            Some(*sum / whole)
        })
        .collect();
    for layer in 0..layers {
        let at = layer as f32 / layers as f32;
        let gpu = ends.partition_point(|&end| end <= at).min(shares.len() - 1);
        split[gpu] += 1;
    }
    split
}

fn layers(shape: &Shape, run: &Run, cells: &Cells) -> Vec<Layer> {
    // With MTP, states are kept for each predicted token too, to go back to one.
    let mtp = run.draft.as_ref().filter(|draft| draft.mtp);
    let states = 1 + mtp.map_or(0, |draft| draft.tokens);
    // Without flash attention values lie transposed, each layer's as wide as the widest.
    let widest = (run.flash == Flash::Off)
        .then(|| shape.layers.iter().filter_map(|layer| layer.attention).map(|kept| kept.value).max())
        .flatten();
    shape
        .layers
        .iter()
        .map(|layer| {
            let mut costs = Layer::default();
            if layer.next_token {
                return costs;
            }
            let slides = layer.attention.map(|kept| kept.sliding);
            costs.global = slides != Some(true) && layer.recurrent.is_none() || slides == Some(false);
            costs.sliding = slides != Some(false) && layer.recurrent.is_none();
            if let Some(Attention { key, value, sliding }) = layer.attention {
                let value = if value == 0 { 0 } else { widest.unwrap_or(value) };
                let cell = kept(key, run.kv_k) + kept(value, run.kv_v);
                if sliding {
                    costs.kv_sliding = product(&[cells.sliding, cells.streams, cell]);
                } else {
                    costs.kv_global = product(&[cells.global, cells.streams, cell]);
                }
            }
            if let Some(state) = layer.recurrent {
                let elements = product(&[state.convolution]) + product(&[state.state]);
                costs.recurrent = product(&[states, cells.slots, 4, elements]);
            }
            costs
        })
        .collect()
}

/// Whether it has an output over its vocabulary at all.
fn generates(shape: &Shape) -> bool {
    !(shape.architecture.contains("bert") || shape.architecture.ends_with("encoder"))
}

#[cfg(test)]
mod tests;
