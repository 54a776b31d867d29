//! What a request would do: settings + facts + state → a plan or a typed refusal. Nothing is touched here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backend::{self, PlacedGpu};
use crate::bytes::Bytes;
use crate::config::{Demand, Model, Policy, Settings};
use crate::facts::{DeviceId, Facts, Gpu, Known, Preflight};
use crate::name::ModelName;
use crate::report::{
    GpuChange, PlanReport, Refusal, Request, SCHEMA, Step, StepForecast, Verb, Verdict as ReportVerdict,
};
use crate::state::{Home, Phase, State, Times};

/// A change that can be carried out: complete, the swap machine chooses nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What was asked.
    pub verb: Verb,
    /// The model that was asked for.
    pub model: Option<ModelName>,
    /// Models to stop.
    pub stops: Vec<ModelName>,
    /// Models to start, in order.
    pub starts: Vec<Start>,
    /// Home once it is committed.
    pub home: Home,
    /// What `previous` becomes; None leaves it.
    pub previous: Option<Home>,
}

/// A model to start, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Which.
    pub model: ModelName,
    /// On which GPUs, with how much on each; empty for a model without GPU memory.
    pub gpus: Vec<PlacedGpu>,
}

/// What comes of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// This is to be done.
    Go(Plan),
    /// It is so already.
    Nothing(String),
    /// It can't be done.
    Refused {
        /// Why, and what would work.
        refusal: Refusal,
        /// The nearest that was considered, for the table of what is short where.
        nearest: Option<Plan>,
    },
}

/// How a model asked for by name or alias is found.
pub fn resolve<'a>(settings: &'a Settings, state: &State, asked: &str) -> Result<&'a Model, Box<Refusal>> {
    if asked == "default" {
        if let Some(model) = state.home.default.as_ref().and_then(|name| settings.models.get(name)) {
            return Ok(model);
        }
        return Err(Box::new(refusal(
            "unknown_model",
            "nothing is `default` yet".to_owned(),
            vec!["berthctl switch MODEL".to_owned()],
        )));
    }
    let found =
        settings.models.values().find(|model| model.name.as_str() == asked).or_else(|| {
            settings.models.values().find(|model| model.aliases.iter().any(|alias| alias == asked))
        });
    found.ok_or_else(|| {
        let names = settings.models.values().flat_map(|model| {
            std::iter::once(model.name.as_str()).chain(model.aliases.iter().map(String::as_str))
        });
        let nearest = names
            .map(|name| (strsim::damerau_levenshtein(name, asked), name))
            .min()
            .filter(|(distance, name)| *distance <= 1 + name.len() / 3);
        let mut hints = Vec::new();
        let text = match nearest {
            Some((_, name)) => {
                hints.push(format!("berthctl switch {name}"));
                format!("no model is called `{}`; did you mean `{name}`?", asked.escape_debug())
            }
            None if settings.models.is_empty() => {
                "no model is declared yet; put a file into /etc/berth/models.d".to_owned()
            }
            None => {
                let all: Vec<&str> = settings.models.keys().map(ModelName::as_str).collect();
                format!("no model is called `{}`; there are {}", asked.escape_debug(), all.join(", "))
            }
        };
        Box::new(refusal("unknown_model", text, hints))
    })
}

/// Decides a request. `preflight` is what was looked up about the models it may start.
pub fn plan(
    settings: &Settings,
    facts: &Facts,
    state: &State,
    request: &Request,
    preflight: &BTreeMap<ModelName, Preflight>,
) -> Verdict {
    let context = Context { settings, facts, state, preflight };
    let model = match &request.model {
        None => None,
        Some(asked) => match resolve(settings, state, asked) {
            Ok(model) => Some(model),
            Err(refusal) => return Verdict::Refused { refusal: *refusal, nearest: None },
        },
    };
    match (request.verb, model) {
        (Verb::Switch, Some(model)) => context.switch(model),
        (Verb::Start, Some(model)) => context.start(model),
        (Verb::Stop, Some(model)) => context.stop(std::slice::from_ref(&model.name), Verb::Stop),
        (Verb::StopAll, None) => {
            let mut all: Vec<ModelName> = state.residents().map(|(name, _)| name.clone()).collect();
            all.extend(state.home.models.iter().filter(|name| !state.is_resident(name)).cloned());
            context.stop(&all, Verb::StopAll)
        }
        (Verb::Restart, Some(model)) => context.restart(model),
        (Verb::Back, None) => context.back(),
        (verb, _) => Verdict::Refused {
            refusal: refusal(
                "bad_request",
                format!(
                    "`{}` {} a model's name",
                    verb.as_str(),
                    if model.is_some() { "takes no" } else { "needs" }
                ),
                Vec::new(),
            ),
            nearest: None,
        },
    }
}

/// What berthd does by itself to bring home back: starts the first missing model of home that is not held off
/// (`held_off`: backing off, or refused before), and stops what an uncommitted swap left behind. None when there
/// is nothing that can be done now.
pub fn restore(settings: &Settings, facts: &Facts, state: &State, held_off: &[ModelName]) -> Option<Plan> {
    let preflight = BTreeMap::new();
    let context = Context { settings, facts, state, preflight: &preflight };
    let stops: Vec<ModelName> = state
        .claims
        .iter()
        .filter(|(name, claim)| claim.phase == Phase::Starting && !state.home.models.contains(name))
        .map(|(name, _)| name.clone())
        .collect();
    let starts: Vec<Start> = state
        .home
        .models
        .iter()
        .filter(|name| !state.claims.contains_key(*name) && !held_off.contains(name))
        .filter_map(|name| settings.models.get(name))
        .filter(|model| !model.retired)
        .find_map(|model| context.place(model, &stops).ok())
        .into_iter()
        .collect();
    if starts.is_empty() && stops.is_empty() {
        return None;
    }
    Some(Plan {
        verb: Verb::Restore,
        model: starts.first().map(|start| start.model.clone()),
        stops,
        starts,
        home: state.home.clone(),
        previous: None,
    })
}

/// Whether a start is admitted now (rule 1): on every device claims + foreign use + reserved + headroom ≤ total.
/// The model's own claim, if it has one already, is not counted against it.
pub fn admit(settings: &Settings, facts: &Facts, state: &State, start: &Start) -> Result<(), Box<Refusal>> {
    let preflight = BTreeMap::new();
    let context = Context { settings, facts, state, preflight: &preflight };
    let without = [start.model.clone()];
    let mut short = Vec::new();
    for part in &start.gpus {
        let gpu = facts.gpu(&part.id).ok_or_else(|| gpu_unknown(part.index, "it can't be seen"))?;
        let available = context.available(gpu, &without)?;
        if available < part.bytes {
            short.push(context.short_on(gpu, part.bytes, available, &without));
        }
    }
    if short.is_empty() {
        return Ok(());
    }
    Err(Box::new(refusal("does_not_fit", short.join("; "), Vec::new())))
}

/// By how much a model is too big for this machine with nothing else of Berth's on it; None when it fits, or when
/// that can't be said.
pub fn too_big(settings: &Settings, facts: &Facts, state: &State, model: &Model) -> Option<Bytes> {
    let preflight = BTreeMap::new();
    let context = Context { settings, facts, state, preflight: &preflight };
    let all: Vec<ModelName> = state.claims.keys().cloned().collect();
    match context.place(model, &all) {
        Err(Unplaced { short: Some((_, short)), .. }) => Some(short),
        _ => None,
    }
}

struct Context<'a> {
    settings: &'a Settings,
    facts: &'a Facts,
    state: &'a State,
    preflight: &'a BTreeMap<ModelName, Preflight>,
}

/// Why a model found no place.
struct Unplaced {
    refusal: Refusal,
    /// The candidate that came nearest, and how much it is short of in all.
    short: Option<(Start, Bytes)>,
}

impl From<Box<Refusal>> for Unplaced {
    fn from(refusal: Box<Refusal>) -> Self {
        Self { refusal: *refusal, short: None }
    }
}

impl Context<'_> {
    fn switch(&self, model: &Model) -> Verdict {
        let name = &model.name;
        let home_of = |kept: &dyn Fn(&ModelName) -> bool| {
            let mut models: Vec<ModelName> =
                self.state.home.models.iter().filter(|m| *m != name && kept(m)).cloned().collect();
            models.push(name.clone());
            Home { models, default: Some(name.clone()) }
        };
        if self.state.is_serving(name) {
            if self.state.home.default.as_ref() == Some(name) && self.state.home.models.contains(name) {
                return Verdict::Nothing(format!("{name} serves as `default` already."));
            }
            return self.go(Verb::Switch, Some(name), Vec::new(), Vec::new(), home_of(&|_| true));
        }
        if let Err(refusal) = self.check(model) {
            return Verdict::Refused { refusal: *refusal, nearest: None };
        }
        let residents: Vec<ModelName> = self.state.residents().map(|(m, _)| m.clone()).collect();
        let mut last = None;
        for victims in self.victim_sets(&residents) {
            if self.port_clash(model, &victims).is_some() {
                continue;
            }
            match self.place(model, &victims) {
                Ok(start) => {
                    let home = home_of(&|m| !victims.contains(m));
                    return self.go(Verb::Switch, Some(name), victims, vec![start], home);
                }
                Err(unplaced) => last = Some((victims, unplaced)),
            }
        }
        let (victims, unplaced) = last.unwrap_or_else(|| (residents.clone(), self.clash(model, &residents)));
        self.refuse(Verb::Switch, name, victims, unplaced)
    }

    fn start(&self, model: &Model) -> Verdict {
        let name = &model.name;
        let mut home = self.state.home.clone();
        if !home.models.contains(name) {
            home.models.push(name.clone());
        }
        if self.state.is_serving(name) {
            if home == self.state.home {
                return Verdict::Nothing(format!("{name} serves already."));
            }
            return self.go(Verb::Start, Some(name), Vec::new(), Vec::new(), home);
        }
        if let Err(refusal) = self.check(model) {
            return Verdict::Refused { refusal: *refusal, nearest: None };
        }
        if self.port_clash(model, &[]).is_some() {
            return self.refuse(Verb::Start, name, Vec::new(), self.clash(model, &[]));
        }
        if home.default.is_none() {
            home.default = Some(name.clone());
        }
        match self.place(model, &[]) {
            Ok(start) => self.go(Verb::Start, Some(name), Vec::new(), vec![start], home),
            Err(mut unplaced) => {
                let residents: Vec<ModelName> = self.state.residents().map(|(m, _)| m.clone()).collect();
                if !residents.is_empty() && self.place(model, &residents).is_ok() {
                    unplaced.refusal.hints.insert(0, format!("berthctl switch {name}"));
                }
                self.refuse(Verb::Start, name, Vec::new(), unplaced)
            }
        }
    }

    fn stop(&self, names: &[ModelName], verb: Verb) -> Verdict {
        let mut home = self.state.home.clone();
        home.models.retain(|m| !names.contains(m));
        if home.default.as_ref().is_some_and(|m| names.contains(m)) {
            home.default = None;
        }
        let stops: Vec<ModelName> = names.iter().filter(|m| self.state.is_resident(m)).cloned().collect();
        if stops.is_empty() && home == self.state.home {
            return Verdict::Nothing(match names {
                [] => "Nothing runs.".to_owned(),
                [one] => format!("{one} is off already."),
                _ => "They are off already.".to_owned(),
            });
        }
        let model = if verb == Verb::Stop { names.first() } else { None };
        self.go(verb, model, stops, Vec::new(), home)
    }

    fn restart(&self, model: &Model) -> Verdict {
        let name = &model.name;
        if let Err(refusal) = self.check(model) {
            return Verdict::Refused { refusal: *refusal, nearest: None };
        }
        let stops: Vec<ModelName> =
            if self.state.is_resident(name) { vec![name.clone()] } else { Vec::new() };
        let mut home = self.state.home.clone();
        if !home.models.contains(name) {
            if stops.is_empty() {
                return self.start(model);
            }
            home.models.push(name.clone());
        }
        match self.place(model, &stops) {
            Ok(start) => self.go(Verb::Restart, Some(name), stops, vec![start], home),
            Err(unplaced) => self.refuse(Verb::Restart, name, stops, unplaced),
        }
    }

    fn back(&self) -> Verdict {
        let Some(target) = self.state.previous.clone().filter(|home| *home != self.state.home) else {
            return Verdict::Refused {
                refusal: refusal("nothing_before", "there is nothing to go back to".to_owned(), Vec::new()),
                nearest: None,
            };
        };
        let stops: Vec<ModelName> =
            self.state.residents().map(|(m, _)| m.clone()).filter(|m| !target.models.contains(m)).collect();
        let mut starts: Vec<Start> = Vec::new();
        for name in target.models.iter().filter(|name| !self.state.is_resident(name)) {
            let Some(model) = self.settings.models.get(name) else {
                let text = format!("{name} served before and is not declared any more");
                return Verdict::Refused {
                    refusal: refusal("unknown_model", text, Vec::new()),
                    nearest: None,
                };
            };
            if let Err(refusal) = self.check(model) {
                return Verdict::Refused { refusal: *refusal, nearest: None };
            }
            match self.place_beside(model, &stops, &starts) {
                Ok(start) => starts.push(start),
                Err(unplaced) => return self.refuse(Verb::Back, name, stops, unplaced),
            }
        }
        let model = target.default.clone();
        self.go(Verb::Back, model.as_ref(), stops, starts, target)
    }

    fn go(
        &self,
        verb: Verb,
        model: Option<&ModelName>,
        stops: Vec<ModelName>,
        starts: Vec<Start>,
        home: Home,
    ) -> Verdict {
        let previous =
            (home != self.state.home && !self.state.home.models.is_empty()).then(|| self.state.home.clone());
        Verdict::Go(Plan { verb, model: model.cloned(), stops, starts, home, previous })
    }

    fn refuse(&self, verb: Verb, name: &ModelName, stops: Vec<ModelName>, unplaced: Unplaced) -> Verdict {
        let nearest = unplaced.short.map(|(start, _)| Plan {
            verb,
            model: Some(name.clone()),
            stops,
            starts: vec![start],
            home: self.state.home.clone(),
            previous: None,
        });
        Verdict::Refused { refusal: unplaced.refusal, nearest }
    }

    /// What can be known beforehand besides room: retired, files, program, port.
    fn check(&self, model: &Model) -> Result<(), Box<Refusal>> {
        let name = &model.name;
        let fail = |code: &str, text: String, hints: Vec<String>| Err(Box::new(refusal(code, text, hints)));
        if model.retired {
            let file = model.source.display();
            return fail(
                "retired",
                format!("{name} is retired ({file})"),
                vec![format!("remove `retired` from {file}")],
            );
        }
        if self.state.claims.get(name).is_some_and(|claim| claim.phase == Phase::Ending) {
            let text = format!("{name} was stopped and its memory is not proved free yet");
            return fail("memory_held", text, vec!["berthctl status".to_owned()]);
        }
        let Some(preflight) = self.preflight.get(name) else { return Ok(()) };
        if let Some((file, why)) = preflight.files.first() {
            let text = format!("{name} can't start: {}: {why}", file.display());
            return fail("file_missing", text, vec![format!("correct {}", model.source.display())]);
        }
        if let Some(listener) = preflight.port.as_ref().filter(|listener| listener.model.is_none()) {
            let text = format!(
                "port {} is taken by a foreign process ({}, user id {})",
                model.port, listener.address, listener.uid
            );
            return fail("port_taken", text, vec![format!("sudo ss -ltnp sport = :{}", model.port)]);
        }
        Ok(())
    }

    /// A resident that stays and has the same port.
    fn port_clash(&self, model: &Model, victims: &[ModelName]) -> Option<&ModelName> {
        self.state.claims.keys().find(|other| {
            **other != model.name
                && !victims.contains(other)
                && self
                    .settings
                    .models
                    .get(*other)
                    .is_some_and(|m| m.port == model.port && m.host == model.host)
        })
    }

    fn clash(&self, model: &Model, victims: &[ModelName]) -> Unplaced {
        let holder = self.port_clash(model, victims).map_or("another model".to_owned(), ToString::to_string);
        let text = format!("{} and {holder} have the same port {}", model.name, model.port);
        Unplaced {
            refusal: refusal("port_taken", text, vec![format!("berthctl switch {}", model.name)]),
            short: None,
        }
    }

    /// Sets of residents that could be stopped, fewest first. Up to ten residents all sets are tried.
    fn victim_sets(&self, residents: &[ModelName]) -> Vec<Vec<ModelName>> {
        if residents.len() > 10 {
            return vec![Vec::new(), residents.to_vec()];
        }
        let mut sets: Vec<Vec<ModelName>> = (0u32..1 << residents.len())
            .map(|bits| {
                residents
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| bits >> i & 1 == 1)
                    .map(|(_, m)| m.clone())
                    .collect()
            })
            .collect();
        // Among equally many, what is `default` now goes first: it is what the operator replaces.
        let default = self.state.home.default.as_ref();
        sets.sort_by_key(|set| (set.len(), !set.iter().any(|m| Some(m) == default)));
        sets
    }

    fn place(&self, model: &Model, victims: &[ModelName]) -> Result<Start, Unplaced> {
        self.place_beside(model, victims, &[])
    }

    /// The first place where the model fits with `victims` gone and `others` started.
    fn place_beside(
        &self,
        model: &Model,
        victims: &[ModelName],
        others: &[Start],
    ) -> Result<Start, Unplaced> {
        if model.policy == Policy::Cpu {
            return Ok(Start { model: model.name.clone(), gpus: Vec::new() });
        }
        let gpus = match &self.facts.gpus {
            Known::Value(gpus) if gpus.is_empty() => {
                return Err(Unplaced {
                    refusal: refusal(
                        "no_gpu",
                        "this machine has no GPU that the driver knows".to_owned(),
                        vec!["nvidia-smi -L".to_owned()],
                    ),
                    short: None,
                });
            }
            Known::Value(gpus) => gpus,
            Known::Unknown(why) => {
                let text = format!("the GPUs can't be seen: {why}");
                return Err(Unplaced { refusal: refusal("gpu_unknown", text, Vec::new()), short: None });
            }
        };
        let mut nearest: Option<(Start, Bytes, Vec<String>)> = None;
        let mut unknown = None;
        'candidates: for candidate in candidates(model, gpus)? {
            let mut short = Vec::new();
            let mut missing = Bytes::ZERO;
            for part in &candidate {
                let gpu = &gpus[part.position];
                let available = match self.available(gpu, victims) {
                    Ok(available) => available,
                    Err(why) => {
                        unknown = Some(why);
                        continue 'candidates;
                    }
                };
                let beside: Bytes = others
                    .iter()
                    .flat_map(|start| &start.gpus)
                    .filter(|placed| placed.id == gpu.id)
                    .map(|placed| placed.bytes)
                    .sum();
                let available = available.less(beside);
                if available < part.bytes {
                    missing = missing.plus(part.bytes.less(available));
                    short.push(self.short_on(gpu, part.bytes, available, victims));
                }
            }
            let start = Start {
                model: model.name.clone(),
                gpus: candidate
                    .iter()
                    .map(|part| PlacedGpu {
                        id: gpus[part.position].id.clone(),
                        index: gpus[part.position].index,
                        bytes: part.bytes,
                    })
                    .collect(),
            };
            if short.is_empty() {
                return Ok(start);
            }
            if nearest.as_ref().is_none_or(|(_, least, _)| missing < *least) {
                nearest = Some((start, missing, short));
            }
        }
        match (nearest, unknown) {
            (Some((start, missing, short)), _) => Err(Unplaced {
                refusal: refusal("does_not_fit", short.join("; "), Vec::new()),
                short: Some((start, missing)),
            }),
            (None, Some(why)) => Err(why.into()),
            (None, None) => Err(Unplaced {
                refusal: refusal(
                    "too_few_gpus",
                    format!("{} declares memory on more GPUs than the {} here", model.name, gpus.len()),
                    vec![format!("correct [memory] in {}", model.source.display())],
                ),
                short: None,
            }),
        }
    }

    /// What a new model could take on this device with `victims` gone.
    fn available(&self, gpu: &Gpu, victims: &[ModelName]) -> Result<Bytes, Box<Refusal>> {
        let memory = match &gpu.memory {
            Known::Value(memory) => memory,
            Known::Unknown(why) => return Err(gpu_unknown(gpu.index, why)),
        };
        let foreign =
            self.state.foreign(gpu).ok_or_else(|| gpu_unknown(gpu.index, "its memory is unknown"))?;
        let claimed = self.state.claimed(&gpu.id, victims);
        Ok(memory.total.less(memory.reserved).less(self.settings.headroom).less(foreign).less(claimed))
    }

    fn short_on(&self, gpu: &Gpu, needs: Bytes, available: Bytes, victims: &[ModelName]) -> String {
        let mut holders: Vec<String> = self
            .state
            .claims
            .iter()
            .filter(|(model, _)| !victims.contains(model))
            .flat_map(|(model, claim)| claim.gpus.iter().map(move |part| (model, part)))
            .filter(|(_, part)| part.placed.id == gpu.id)
            .map(|(model, part)| format!("{model} {}", part.placed.bytes))
            .collect();
        for process in gpu.processes.value().into_iter().flatten() {
            if self.state.owner(process).is_none() {
                let held = process.memory.value().map_or("an unknown amount".to_owned(), Bytes::to_string);
                holders.push(format!("pid {} ({}) {held}", process.pid, process.program));
            }
        }
        let held =
            if holders.is_empty() { String::new() } else { format!(" (held: {})", holders.join(", ")) };
        format!(
            "{} short on GPU {}: it needs {needs}, {available} are available{held}",
            needs.less(available),
            gpu.index
        )
    }

    /// Per GPU that a plan concerns, before and after.
    fn changes(&self, plan: &Plan) -> Vec<GpuChange> {
        self.facts.gpus().iter().filter_map(|gpu| self.change(gpu, plan)).collect()
    }

    fn change(&self, gpu: &Gpu, plan: &Plan) -> Option<GpuChange> {
        let memory = gpu.memory.value()?;
        let foreign = self.state.foreign(gpu)?;
        let before: Vec<(ModelName, Bytes)> = self
            .state
            .claims
            .iter()
            .flat_map(|(model, claim)| claim.gpus.iter().map(move |part| (model, part)))
            .filter(|(_, part)| part.placed.id == gpu.id)
            .map(|(model, part)| (model.clone(), part.placed.bytes))
            .collect();
        let started: Vec<(ModelName, Bytes)> = plan
            .starts
            .iter()
            .flat_map(|start| start.gpus.iter().map(move |part| (&start.model, part)))
            .filter(|(_, part)| part.id == gpu.id)
            .map(|(model, part)| (model.clone(), part.bytes))
            .collect();
        if before.is_empty() && started.is_empty() {
            return None;
        }
        let mut after: Vec<(ModelName, Bytes)> =
            before.iter().filter(|(model, _)| !plan.stops.contains(model)).cloned().collect();
        after.extend(started.iter().cloned());
        let mut foreign_by: Vec<(Bytes, String)> = gpu
            .processes
            .value()
            .into_iter()
            .flatten()
            .filter(|process| self.state.owner(process).is_none())
            .map(|p| (p.memory.value().copied().unwrap_or_default(), p.program.clone()))
            .collect();
        foreign_by.sort_by(|a, b| b.cmp(a));
        Some(GpuChange {
            index: gpu.index,
            total: memory.total,
            unusable: memory.reserved.plus(self.settings.headroom),
            foreign,
            foreign_by: foreign_by.into_iter().map(|(_, name)| name).collect(),
            needs: started.iter().map(|(_, bytes)| *bytes).sum(),
            available: self.available(gpu, &plan.stops).unwrap_or_default(),
            before,
            after,
        })
    }
}

/// What a plan looks like to people, refused or not.
pub fn report(
    settings: &Settings,
    facts: &Facts,
    state: &State,
    request: &Request,
    verdict: &Verdict,
) -> PlanReport {
    let preflight = BTreeMap::new();
    let context = Context { settings, facts, state, preflight: &preflight };
    let (plan, said) = match verdict {
        Verdict::Go(plan) => (Some(plan), ReportVerdict::Go),
        Verdict::Nothing(text) => (None, ReportVerdict::Nothing { text: text.clone() }),
        Verdict::Refused { refusal, nearest } => (nearest.as_ref(), ReportVerdict::Refused(refusal.clone())),
    };
    PlanReport {
        schema: SCHEMA,
        request: request.clone(),
        verdict: said,
        stops: plan.map(|plan| plan.stops.clone()).unwrap_or_default(),
        starts: plan.map(|plan| plan.starts.iter().map(|s| s.model.clone()).collect()).unwrap_or_default(),
        gpus: plan.map(|plan| context.changes(plan)).unwrap_or_default(),
        steps: plan.map(|plan| forecast(state, plan)).unwrap_or_default(),
    }
}

/// How long each step of a plan is expected to take, from measured times.
pub fn forecast(state: &State, plan: &Plan) -> Vec<StepForecast> {
    let slowest = |pick: &dyn Fn(&Times) -> Option<u64>| {
        plan.stops
            .iter()
            .map(|m| state.times.get(m).and_then(pick))
            .collect::<Option<Vec<u64>>>()
            .and_then(|all| all.into_iter().max())
    };
    let one = if let [one] = plan.stops.as_slice() { Some(one.clone()) } else { None };
    let mut steps = Vec::new();
    if !plan.stops.is_empty() {
        let stop = slowest(&|times| Times::expected(&times.stop));
        let release = slowest(&|times| Times::expected(&times.release));
        steps.push(StepForecast { step: Step::Stopped, model: one.clone(), expected_ms: stop });
        steps.push(StepForecast { step: Step::Released, model: one, expected_ms: release });
    }
    for start in &plan.starts {
        let load = state.times.get(&start.model).and_then(|times| Times::expected(&times.load));
        steps.push(StepForecast { step: Step::Ready, model: Some(start.model.clone()), expected_ms: load });
    }
    steps
}

/// A part of a candidate: which GPU by its position in the list, and how much on it.
struct Part {
    position: usize,
    bytes: Bytes,
}

/// The places to try, in order: for `auto` each GPU alone, then all of them; for `split` all; where memory is
/// declared for each device, every run of neighbouring GPUs of that length.
fn candidates(model: &Model, gpus: &[Gpu]) -> Result<Vec<Vec<Part>>, Unplaced> {
    let per_device = match &model.memory {
        Demand::PerDevice(bytes) => Some(bytes.clone()),
        Demand::Total(_) => None,
        Demand::Undeclared => {
            let totals: Vec<Bytes> =
                gpus.iter().filter_map(|gpu| gpu.memory.value()).map(|memory| memory.total).collect();
            let derived = backend::of(model.backend).demand(model, &totals);
            Some(derived.ok_or_else(|| Unplaced {
                refusal: refusal(
                    "memory_undeclared",
                    format!("how much GPU memory {} needs is not declared", model.name),
                    vec![format!("add `[memory] gpu = \"… GiB\"` to {}", model.source.display())],
                ),
                short: None,
            })?)
        }
    };
    let run = |from: usize, bytes: &[Bytes]| -> Vec<Part> {
        bytes.iter().enumerate().map(|(i, bytes)| Part { position: from + i, bytes: *bytes }).collect()
    };
    let n = gpus.len();
    Ok(match (per_device, &model.memory) {
        (Some(bytes), _) => (0..=n)
            .filter(|from| !bytes.is_empty() && from + bytes.len() <= n)
            .map(|from| run(from, &bytes))
            .collect(),
        (None, Demand::Total(total)) => {
            let each = Bytes(total.0.div_ceil(n.max(1) as u64));
            let all = run(0, &vec![each; n]);
            let mut places: Vec<Vec<Part>> = Vec::new();
            if model.policy == Policy::Auto {
                places.extend((0..n).map(|i| run(i, &[*total])));
            }
            if n > 1 || places.is_empty() {
                places.push(all);
            }
            places
        }
        (None, _) => Vec::new(),
    })
}

fn refusal(code: &str, text: String, hints: Vec<String>) -> Refusal {
    Refusal { code: code.to_owned(), text, hints }
}

fn gpu_unknown(index: u32, why: &str) -> Box<Refusal> {
    let text = format!("GPU {index} is unknown, so nothing is placed there: {why}");
    Box::new(refusal("gpu_unknown", text, vec!["berthctl status".to_owned()]))
}

/// The devices that a start will use.
pub fn devices(start: &Start) -> Vec<DeviceId> {
    start.gpus.iter().map(|part| part.id.clone()).collect()
}
