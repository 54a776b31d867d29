//! Where a model fits: the ways to lay it out, rung by rung of its policy's ladder, and what is short where (what always
//! holds, rule 1).

use std::cell::OnceCell;

use super::{Context, Start, Unplaced, refusal};
use crate::backend::{self, Ask, Laid, LayOut, PlacedGpu};
use crate::bytes::Bytes;
use crate::config::{Memory, Model};
use crate::demand::{Parts, Source, What};
use crate::facts::Known;
use crate::name::ModelName;
use crate::placement::{self, Conceded, Room};
use crate::policy::Cores;
use crate::report::Refusal;
use crate::tuning::Tuning;

/// For how many models places are looked for, again and again, until all of some have one. A try without a detour takes
/// as many as there are models; a search through all places of many would never end.
const SEARCHES: u32 = 200;

/// What is tried for one model: the GPUs that it may use, and how it is laid out on each rung of its policy's ladder.
pub(super) struct Ladder<'c> {
    pub(super) model: &'c Model,
    /// Positions of those GPUs among all.
    pub(super) gpus: Vec<usize>,
    /// Over how many of them it can be laid.
    numbers: Vec<usize>,
    rungs: Vec<Rung<'c>>,
    instead: Tuning,
}

struct Rung<'c> {
    conceded: Conceded,
    lay_out: OnceCell<Result<LayOut<'c>, String>>,
}

/// One way that was tried.
pub(super) struct Tried {
    /// Positions of its GPUs among all; none on the host alone.
    pub(super) gpus: Vec<usize>,
    pub(super) laid: Laid,
    /// What each of them has for it, in the same order; None where that is unknown.
    pub(super) available: Vec<Option<Bytes>>,
    /// What the host has for it; None where that is unknown.
    pub(super) host: Option<Bytes>,
    /// What is short where, each as a clause.
    pub(super) short: Vec<String>,
    /// How much is short in all.
    pub(super) missing: Bytes,
    /// Why a device of it can't be counted on.
    pub(super) unseen: Option<Refusal>,
}

impl Tried {
    pub(super) fn fits(&self) -> bool {
        self.short.is_empty() && self.unseen.is_none()
    }

    /// What is left where least is, of what is known: on its GPUs, or without any on the host.
    pub(super) fn spare(&self) -> Option<Bytes> {
        if self.gpus.is_empty() {
            return Some(self.host?.less(self.laid.demand.host.total()));
        }
        let gpus = self.laid.demand.gpus.iter().zip(&self.available);
        gpus.filter_map(|(parts, available)| Some((*available)?.less(parts.total()))).min()
    }
}

impl<'a> Context<'a> {
    pub(super) fn ladder<'c>(&self, model: &'c Model) -> Result<Ladder<'c>, Refusal> {
        self.ladder_of(model, placement::rungs(&model.policy), Tuning::default())
    }

    /// A ladder of these rungs, with settings other than what is declared.
    pub(super) fn ladder_of<'c>(
        &self,
        model: &'c Model,
        rungs: Vec<Conceded>,
        instead: Tuning,
    ) -> Result<Ladder<'c>, Refusal> {
        let rungs = rungs.into_iter().map(|conceded| Rung { conceded, lay_out: OnceCell::new() });
        let mut ladder =
            Ladder { model, gpus: Vec::new(), numbers: Vec::new(), rungs: rungs.collect(), instead };
        if placement::host_only(&model.policy) {
            return Ok(ladder);
        }
        let gpus = match &self.facts.gpus {
            Known::Value(gpus) if gpus.is_empty() => {
                let text = "this machine has no GPU that the driver knows".to_owned();
                return Err(refusal("no_gpu", text, vec!["nvidia-smi -L".to_owned()]));
            }
            Known::Value(gpus) => gpus,
            Known::Unknown(why) => {
                return Err(refusal("gpu_unknown", format!("the GPUs can't be seen: {why}"), Vec::new()));
            }
        };
        let allowed = gpus.iter().enumerate().filter(|(_, gpu)| placement::allows(&model.policy, gpu));
        ladder.gpus = allowed.map(|(position, _)| position).collect();
        let most = ladder.gpus.len();
        ladder.numbers = match &model.memory {
            Memory::PerDevice(each) => vec![each.len()],
            Memory::Total(_) => (1..=most).collect(),
            Memory::Undeclared => backend::of(model.backend).numbers(model, &self.facts.files, most),
        };
        Ok(ladder)
    }

    pub(super) fn place(&self, model: &Model, victims: &[ModelName]) -> Result<Start, Unplaced> {
        self.place_beside(model, victims, &[])
    }

    /// The first place where the model fits with `victims` gone and `others` started.
    pub(super) fn place_beside(
        &self,
        model: &Model,
        victims: &[ModelName],
        others: &[Start],
    ) -> Result<Start, Unplaced> {
        self.on_ladder(model, victims, others, true).map(|mut places| places.swap_remove(0))
    }

    /// Places for all of these models at once beside `placed`, in their order: what the first could take may be the
    /// only place of another. None where there are none, or none was found after [`SEARCHES`].
    pub(super) fn place_all(
        &self,
        models: &[&Model],
        victims: &[ModelName],
        placed: Vec<Start>,
    ) -> Option<Vec<Start>> {
        self.place_rest(models, victims, placed, &mut SEARCHES.clone())
    }

    fn place_rest(
        &self,
        models: &[&Model],
        victims: &[ModelName],
        placed: Vec<Start>,
        left: &mut u32,
    ) -> Option<Vec<Start>> {
        let Some((first, rest)) = models.split_first() else { return Some(placed) };
        *left = left.checked_sub(1)?;
        self.places(first, victims, &placed).ok()?.into_iter().find_map(|start| {
            let placed = placed.iter().cloned().chain([start]).collect();
            self.place_rest(rest, victims, placed, left)
        })
    }

    /// Every place where the model fits, its port included, with `victims` gone and `others` started; at least one.
    /// Those of earlier rungs come first.
    pub(super) fn places(
        &self,
        model: &Model,
        victims: &[ModelName],
        others: &[Start],
    ) -> Result<Vec<Start>, Unplaced> {
        self.on_ladder(model, victims, others, false)
    }

    fn on_ladder(
        &self,
        model: &Model,
        victims: &[ModelName],
        others: &[Start],
        first: bool,
    ) -> Result<Vec<Start>, Unplaced> {
        if let Some(holder) = self.port_holder(model, victims, others) {
            return Err(self.port_taken(model, holder).into());
        }
        let ladder = self.ladder(model)?;
        let mut fitting: Vec<Start> = Vec::new();
        let mut failed = Vec::new();
        for rung in 0..ladder.rungs.len() {
            for tried in self.on_rung(&ladder, rung, victims, others)? {
                if !tried.fits() {
                    failed.push(tried);
                    continue;
                }
                let start = self.start_of(&ladder, &tried)?;
                if first {
                    return Ok(vec![start]);
                }
                if !fitting.contains(&start) {
                    fitting.push(start);
                }
            }
        }
        if fitting.is_empty() { Err(self.unplaced(&ladder, failed)?) } else { Ok(fitting) }
    }

    /// The first rung on which the model fits with these gone, and the fewest and cheapest of them that have to go
    /// for it.
    pub(super) fn place_for_fewest(
        &self,
        model: &Model,
        sets: &[Vec<ModelName>],
    ) -> Result<(Vec<ModelName>, Start), Unplaced> {
        let all = sets.last().map(Vec::as_slice).unwrap_or_default();
        if let Some(holder) = self.port_holder(model, all, &[]) {
            return Err(self.port_taken(model, holder).into());
        }
        let ladder = self.ladder(model)?;
        let mut failed = Vec::new();
        for rung in 0..ladder.rungs.len() {
            let Some(roomiest) = self.first_fitting(&ladder, rung, all, Bytes::ZERO, &mut failed)? else {
                continue;
            };
            // More GPUs take more in all, never less: where nothing gives way to less room, GPUs that have less than that
            // together are not worth a look. A hundredth is left for layers that divide otherwise.
            let conceded = ladder.rungs[rung].conceded;
            let learned = self.state.learned.contains_key(&model.name);
            let gives = conceded.experts || conceded.layers || roomiest.laid.elastic || learned;
            let bytes: Bytes = roomiest.laid.demand.gpus.iter().map(Parts::total).sum();
            let least = if gives { Bytes::ZERO } else { Bytes(bytes.0 / 100 * 99) };
            for victims in sets {
                if self.port_holder(model, victims, &[]).is_some() {
                    continue;
                }
                if let Some(tried) = self.first_fitting(&ladder, rung, victims, least, &mut Vec::new())? {
                    return Ok((victims.clone(), self.start_of(&ladder, &tried)?));
                }
            }
        }
        Err(self.unplaced(&ladder, failed)?)
    }

    /// The first way of a rung that fits, on GPUs that have at least so much together.
    fn first_fitting<'c>(
        &self,
        ladder: &Ladder<'c>,
        rung: usize,
        victims: &[ModelName],
        least: Bytes,
        failed: &mut Vec<Tried>,
    ) -> Result<Option<Tried>, Refusal>
    where
        'a: 'c,
    {
        for tried in self.on_rung_with(ladder, rung, victims, &[], least)? {
            if tried.fits() {
                return Ok(Some(tried));
            }
            failed.push(tried);
        }
        Ok(None)
    }

    /// The ways of one rung, in order.
    pub(super) fn on_rung<'r, 'c>(
        &'r self,
        ladder: &'r Ladder<'c>,
        rung: usize,
        victims: &'r [ModelName],
        others: &'r [Start],
    ) -> Result<impl Iterator<Item = Tried> + use<'r, 'a, 'c>, Refusal>
    where
        'a: 'c,
    {
        self.on_rung_with(ladder, rung, victims, others, Bytes::ZERO)
    }

    /// The same, on GPUs that have at least so much together.
    fn on_rung_with<'r, 'c>(
        &'r self,
        ladder: &'r Ladder<'c>,
        rung: usize,
        victims: &'r [ModelName],
        others: &'r [Start],
        least: Bytes,
    ) -> Result<impl Iterator<Item = Tried> + use<'r, 'a, 'c>, Refusal>
    where
        'a: 'c,
    {
        let lay_out = self.lay_out(ladder, rung)?;
        let available: Vec<Result<Bytes, Refusal>> = ladder
            .gpus
            .iter()
            .map(|position| self.rooms.available(*position, ladder.model, victims, others))
            .collect();
        let known: Vec<Bytes> =
            available.iter().map(|available| available.clone().unwrap_or_default()).collect();
        let sets = if placement::host_only(&ladder.model.policy) {
            vec![Vec::new()]
        } else {
            placement::sets(&ladder.model.policy, &ladder.rungs[rung].conceded, &known, &ladder.numbers)
        };
        let enough = move |set: &Vec<usize>, known: &[Bytes]| {
            least == Bytes::ZERO || set.iter().map(|at| known[*at]).sum::<Bytes>() >= least
        };
        let sets: Vec<Vec<usize>> = sets.into_iter().filter(|set| enough(set, &known)).collect();
        Ok(sets.into_iter().map(move |set| {
            let rooms: Vec<Room> = set
                .iter()
                .map(|at| Room {
                    name: &self.facts.gpus()[ladder.gpus[*at]].name,
                    usable: self.rooms.usable(ladder.gpus[*at]),
                    available: known[*at],
                })
                .collect();
            let mut laid = lay_out(&rooms);
            if let Some(host) = ladder.model.host_memory {
                laid.demand.host = Parts::default();
                laid.demand.host.add(What::Whole, host, Source::Declared);
            }
            let unseen = set.iter().find_map(|at| available[*at].as_ref().err().cloned());
            let mut tried = Tried {
                gpus: set.iter().map(|at| ladder.gpus[*at]).collect(),
                available: set.iter().map(|at| available[*at].as_ref().ok().copied()).collect(),
                host: None,
                short: laid.wrong.clone().into_iter().collect(),
                missing: Bytes::ZERO,
                unseen,
                laid,
            };
            self.weigh(ladder.model, &mut tried, victims, others);
            tried
        }))
    }

    fn lay_out<'l, 'c>(&self, ladder: &'l Ladder<'c>, rung: usize) -> Result<&'l LayOut<'c>, Refusal>
    where
        'a: 'c,
    {
        let Rung { conceded, lay_out } = &ladder.rungs[rung];
        let made = lay_out.get_or_init(|| {
            let ask = Ask {
                model: ladder.model,
                files: &self.facts.files,
                conceded: *conceded,
                instead: ladder.instead,
                learned: self.state.learned.get(&ladder.model.name).map(Vec::as_slice).unwrap_or_default(),
            };
            backend::of(ladder.model.backend).lay_out(&ask)
        });
        made.as_ref().map_err(|why| undeclared(ladder.model, why))
    }

    /// Notes what is short where.
    fn weigh(&self, model: &Model, tried: &mut Tried, victims: &[ModelName], others: &[Start]) {
        for ((position, parts), available) in
            tried.gpus.iter().zip(&tried.laid.demand.gpus).zip(&tried.available)
        {
            let needs = parts.total();
            if let Some(available) = available.filter(|available| *available < needs) {
                tried.missing = tried.missing.plus(needs.less(available));
                tried
                    .short
                    .push(self.rooms.short_on(self, *position, model, needs, available, victims, others));
            }
        }
        let needs = tried.laid.demand.host.total();
        if needs == Bytes::ZERO {
            return;
        }
        match self.host_available(model, victims, others) {
            Ok(available) => {
                tried.host = Some(available);
                tried.missing = tried.missing.plus(needs.less(available));
                tried.short.extend(short_on_host(needs, available));
            }
            Err(why) => tried.unseen = tried.unseen.take().or(Some(why)),
        }
    }

    /// What a new model could take of the host's memory with `victims` gone and `others` started.
    pub(super) fn host_available(
        &self,
        model: &Model,
        victims: &[ModelName],
        others: &[Start],
    ) -> Result<Bytes, Refusal> {
        let rules = &model.policy.host;
        let beside: Bytes = others.iter().map(|start| start.layout.host).sum();
        match self.state.host_available(self.facts, rules.headroom, victims) {
            Known::Value(available) => {
                Ok(available.less(beside).min(rules.memory.unwrap_or(Bytes(u64::MAX))))
            }
            Known::Unknown(why) => {
                let text = format!("the host's memory is unknown, so nothing is placed there: {why}");
                Err(refusal("host_unknown", text, vec!["berthctl status".to_owned()]))
            }
        }
    }

    /// The start that comes of a way that fits.
    fn start_of(&self, ladder: &Ladder<'_>, tried: &Tried) -> Result<Start, Refusal> {
        let model = ladder.model;
        let rules = &model.policy.host;
        let cores = match rules.cores {
            Cores::All => Vec::new(),
            _ => rules.cores.choose(&self.facts.host.cpus).map_err(|why| {
                let text = format!("{} can't have its processors: {why}", model.name);
                let hint = format!("correct `host.cores` of policy {}", model.policy.name);
                refusal("no_cores", text, vec![hint])
            })?,
        };
        let mut layout = tried.laid.layout.clone();
        layout.host = tried.laid.demand.host.total();
        layout.lock = rules.lock;
        layout.nice = rules.nice;
        let threads = rules.threads.or(u32::try_from(cores.len()).ok().filter(|n| *n > 0));
        layout.tuning.threads = layout.tuning.threads.or(model.tuning.threads).or(threads);
        layout.cores = cores;
        let gpus = tried.gpus.iter().zip(&tried.laid.demand.gpus).map(|(position, parts)| {
            let gpu = &self.facts.gpus()[*position];
            PlacedGpu { id: gpu.id.clone(), index: gpu.index, bytes: parts.total() }
        });
        Ok(Start { model: model.name.clone(), gpus: gpus.collect(), layout })
    }

    /// Why none of these ways will do: what comes nearest, and what is unknown.
    fn unplaced(&self, ladder: &Ladder<'_>, failed: Vec<Tried>) -> Result<Unplaced, Refusal> {
        let model = ladder.model;
        let mut nearest: Option<Tried> = None;
        let mut unknown = None;
        for mut tried in failed {
            if tried.short.is_empty() {
                unknown = unknown.or(tried.unseen.take());
            } else if nearest.as_ref().is_none_or(|nearest| tried.missing < nearest.missing) {
                nearest = Some(tried);
            }
        }
        Ok(match (nearest, unknown) {
            (Some(mut tried), unknown) => {
                tried.short.extend(tried.unseen.as_ref().map(|why| why.text.clone()));
                let certain = unknown.is_none();
                // On a suspect device it may fit as soon as an operator says so.
                let suspect = unknown.as_ref().filter(|why| why.code == "gpu_suspect");
                let hints = suspect.map(|why| why.hints.clone()).unwrap_or_default();
                let mut short = tried.short.clone();
                short.extend(unknown.map(|why| why.text).filter(|text| !short.contains(text)));
                let start = self.start_of(ladder, &tried)?;
                Unplaced {
                    refusal: Box::new(refusal("does_not_fit", short.join("; "), hints)),
                    short: Some(Box::new((start, tried.missing))),
                    certain,
                }
            }
            (None, Some(why)) => why.into(),
            (None, None) => {
                let here = match ladder.gpus.len() {
                    0 => "none of the GPUs here".to_owned(),
                    n => format!("{n} here"),
                };
                let (name, policy) = (&model.name, &model.policy.name);
                let text = match ladder.numbers.as_slice() {
                    [only] => format!("{name} wants {only} GPUs, and its policy `{policy}` allows {here}"),
                    _ => format!("the policy `{policy}` of {name} allows {here}"),
                };
                let hint = format!("correct `policy` or [memory] in {}", model.source.display());
                refusal("too_few_gpus", text, vec![hint]).into()
            }
        })
    }
}

/// What is short in the host's memory, if it is.
pub(super) fn short_on_host(needs: Bytes, available: Bytes) -> Option<String> {
    let short = needs.less(available);
    (short > Bytes::ZERO)
        .then(|| format!("{short} short in the host's memory: it needs {needs}, {available} are available"))
}

fn undeclared(model: &Model, why: &str) -> Refusal {
    let (whose, key) = if model.policy.uses_gpus() { ("GPU", "gpu") } else { ("the host's", "host") };
    let text = format!("how much {whose} memory {} needs is not known: {why}", model.name);
    let hint = format!("add `[memory] {key} = \"… GiB\"` to {}", model.source.display());
    refusal("memory_undeclared", text, vec![hint])
}
