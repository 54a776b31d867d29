//! What a request would do: settings + facts + state → a plan or a typed refusal. Nothing is touched here.
//!
//! `decide` knows the verbs, `load` what clients ask for, `restore` what berthd brings back by itself, `victims` who may have to go, `place` where a
//! model fits (`room` what there is, `attempts` what was tried and would fit), `missing` why one of home does not,
//! `unnamed` which model settings make, `report` how it is shown.

mod attempts;
mod decide;
mod load;
mod missing;
mod place;
mod report;
mod restore;
mod room;
mod unnamed;
mod victims;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backend::{self, PlacedGpu};
use crate::bytes::Bytes;
use crate::config::{Model, Settings};
use crate::facts::{DeviceId, Facts, Gpu, Known, Listener, Moment, Preflight, Suspicion};
use crate::layout::Layout;
use crate::name::ModelName;
use crate::report::{Attempt, AttemptOutcome, Refusal, Request, Verb};
use crate::state::{Home, Phase, State};
use crate::tuning::Tuning;

pub use attempts::WouldFit;
pub use load::{Load, is_loaded_on_demand, load};
pub use missing::{Missing, missing};
pub use report::{forecast, report};
pub use restore::{HeldBack, Restoration, restore};
use room::Rooms;
pub use unnamed::named;

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
    /// How it is laid out there.
    #[serde(default)]
    pub layout: Layout,
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

/// How a GPU asked for by index or UUID is found.
pub fn resolve_gpu<'a>(facts: &'a Facts, asked: &str) -> Result<&'a Gpu, Box<Refusal>> {
    if let Known::Unknown(why) = &facts.gpus {
        return Err(Box::new(refusal("gpu_unknown", format!("the GPUs can't be seen: {why}"), Vec::new())));
    }
    let gpus = facts.gpus();
    let found = gpus.iter().find(|gpu| gpu.id.0 == asked || gpu.index.to_string() == asked);
    found.ok_or_else(|| {
        let all: Vec<String> = gpus.iter().map(|gpu| format!("{} ({})", gpu.index, gpu.id)).collect();
        let there = if all.is_empty() {
            "there are none".to_owned()
        } else {
            format!("there are {}", all.join(", "))
        };
        let text = format!("no GPU is called `{}`; {there}", asked.escape_debug());
        Box::new(refusal("unknown_gpu", text, vec!["nvidia-smi -L".to_owned()]))
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
    let context = Context::new(settings, facts, state, preflight);
    // A model that runs can be stopped, also when its declaration is gone.
    if let (Verb::Stop, Some(Ok(name))) = (request.verb, request.model.as_deref().map(str::parse))
        && !settings.models.contains_key(&name)
        && state.claims.contains_key(&name)
    {
        return context.stop(&[name], Verb::Stop);
    }
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
        (Verb::Retry, Some(model)) => context.retry(model),
        (Verb::Back, None) => context.back(),
        (verb, _) => Verdict::Refused {
            refusal: refusal(
                "bad_request",
                format!(
                    "`{}` {} model's name",
                    verb.as_str(),
                    if model.is_some() { "takes no" } else { "needs a" }
                ),
                Vec::new(),
            ),
            nearest: None,
        },
    }
}

/// Whether a start is admitted now (rule 1): on every device claims + foreign use + reserved + headroom ≤ total.
/// The model's own claim, if it has one already, is not counted against it.
pub fn admit(settings: &Settings, facts: &Facts, state: &State, start: &Start) -> Result<(), Box<Refusal>> {
    let preflight = BTreeMap::new();
    let context = Context::new(settings, facts, state, &preflight);
    runs_unknown(facts, state, &start.model)?;
    let without = [start.model.clone()];
    let Some(model) = settings.models.get(&start.model) else {
        let text = format!("{} is not declared any more", start.model);
        return Err(Box::new(refusal("unknown_model", text, Vec::new())));
    };
    let mut short = Vec::new();
    for part in &start.gpus {
        let position = facts.gpus().iter().position(|gpu| gpu.id == part.id);
        let position = position.ok_or_else(|| gpu_unknown(part.index, "it can't be seen"))?;
        let available = context.rooms.available(position, model, &without, &[])?;
        if available < part.bytes {
            short.push(context.rooms.short_on(
                &context,
                position,
                model,
                part.bytes,
                available,
                &without,
                &[],
            ));
        }
    }
    if start.layout.host > Bytes::ZERO {
        let available = context.host_available(model, &without, &[])?;
        short.extend(place::short_on_host(start.layout.host, available));
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
    let context = Context::new(settings, facts, state, &preflight);
    let all: Vec<ModelName> = state.claims.keys().cloned().collect();
    match context.place(model, &all) {
        Err(Unplaced { short: Some(short), certain: true, .. }) => Some(short.1),
        _ => None,
    }
}

/// Whether a model fits this machine with nothing else of Berth's on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// The ways that were tried, in order; the last one is taken, or none fits.
    pub tried: Vec<Way>,
    /// Settings that would fit where it does not, least loss first.
    pub instead: Vec<WouldFit>,
}

/// A way that was tried, with the settings under which the server would run then, as far as they are known.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    /// Where, with what given up, and whether there is room.
    pub attempt: Attempt,
    /// What the model's files, its command line and what is given up come to.
    pub settings: Tuning,
}

/// Whether a model fits this machine with nothing else of Berth's on it, how, and what would; a refusal where that
/// can't be said.
pub fn fit(settings: &Settings, facts: &Facts, state: &State, model: &Model) -> Result<Fit, Box<Refusal>> {
    let preflight = BTreeMap::new();
    let context = Context::new(settings, facts, state, &preflight);
    let all: Vec<ModelName> = state.claims.keys().cloned().collect();
    let tried = context.tried(model, &all, &[], None)?;
    let Some((last, _)) = tried.last() else {
        // No GPU of its policy's is here, which is said where a place is looked for.
        return match context.place(model, &all) {
            Err(unplaced) => Err(unplaced.refusal),
            Ok(_) => Ok(Fit { tried: Vec::new(), instead: Vec::new() }),
        };
    };
    let fits = matches!(last.outcome, AttemptOutcome::Fits { .. });
    let mut instead = if fits { Vec::new() } else { context.would_fit(model, &all) };
    if instead.is_empty() && !fits {
        instead.extend(context.would_fit_in_part(model, &all));
    }
    let effective = |tuning| {
        let laid = Model { tuning, ..model.clone() };
        backend::of(model.backend).effective(&laid, &facts.files)
    };
    let tried = tried
        .into_iter()
        .map(|(attempt, layout)| Way { attempt, settings: effective(layout.tuning.or(model.tuning)) });
    Ok(Fit { tried: tried.collect(), instead })
}

struct Context<'a> {
    settings: &'a Settings,
    facts: &'a Facts,
    state: &'a State,
    preflight: &'a BTreeMap<ModelName, Preflight>,
    rooms: Rooms<'a>,
}

/// Why a model found no place.
struct Unplaced {
    refusal: Box<Refusal>,
    /// The candidate that came nearest, and how much it is short of in all.
    short: Option<Box<(Start, Bytes)>>,
    /// Whether it is so whatever there is on GPUs that are unknown now.
    certain: bool,
}

impl From<Refusal> for Unplaced {
    fn from(refusal: Refusal) -> Self {
        let certain = refusal.code == "port_taken";
        Self { refusal: Box::new(refusal), short: None, certain }
    }
}

impl<'a> Context<'a> {
    fn new(
        settings: &'a Settings,
        facts: &'a Facts,
        state: &'a State,
        preflight: &'a BTreeMap<ModelName, Preflight>,
    ) -> Self {
        Self { settings, facts, state, preflight, rooms: Rooms::new(settings, facts, state) }
    }

    /// What can be known beforehand besides room: quarantined, retired, files, program, port.
    fn check(&self, model: &Model) -> Result<(), Box<Refusal>> {
        let name = &model.name;
        if let Some(quarantine) = self.state.quarantine(name) {
            let text = format!("{name} is quarantined: it {}", quarantine.why);
            let hints = vec![format!("berthctl logs {name}"), format!("berthctl retry {name}")];
            return Err(Box::new(refusal("quarantined", text, hints)));
        }
        self.check_itself(model)
    }

    fn check_itself(&self, model: &Model) -> Result<(), Box<Refusal>> {
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
        runs_unknown(self.facts, self.state, name)?;
        let Some(preflight) = self.preflight.get(name) else { return Ok(()) };
        if let Some((file, why)) = preflight.files.first() {
            let text = format!("{name} can't start: {}: {why}", file.display());
            return fail("file_missing", text, vec![format!("correct {}", model.source.display())]);
        }
        let known = |other: &ModelName| self.state.claims.contains_key(other);
        let foreign = |listener: &&Listener| !listener.model.as_ref().is_some_and(known);
        if let Some(listener) = preflight.port.as_ref().filter(foreign) {
            let of_model = listener.model.as_ref().map(ModelName::as_str);
            let who = of_model.or(listener.unit.as_deref()).unwrap_or("a foreign process");
            let (port, address, uid) = (model.port, listener.address, listener.uid);
            let text = format!("port {port} is taken by {who} ({address}, user id {uid})");
            return fail("port_taken", text, vec![format!("sudo ss -ltnp sport = :{}", model.port)]);
        }
        Ok(())
    }
}

/// Refuses a model whose unit is not down and that has no claim: what it holds is not known yet.
fn runs_unknown(facts: &Facts, state: &State, name: &ModelName) -> Result<(), Box<Refusal>> {
    let unit = facts.units.get(name).filter(|unit| !unit.active.is_down());
    let Some(unit) = unit.filter(|_| !state.claims.contains_key(name)) else { return Ok(()) };
    let by = unit.predecessor.as_ref().map(|unit| format!(" as {unit}")).unwrap_or_default();
    let text = format!("{name} runs already{by}, and what it holds is not known yet");
    Err(Box::new(refusal("not_taken_over", text, vec!["berthctl status, and again in a moment".to_owned()])))
}

fn refusal(code: &str, text: String, hints: Vec<String>) -> Refusal {
    Refusal { code: code.to_owned(), text, hints }
}

fn gpu_unknown(index: u32, why: &str) -> Refusal {
    let text = format!("GPU {index} is unknown, so nothing is placed there: {why}");
    refusal("gpu_unknown", text, vec!["berthctl status".to_owned()])
}

fn gpu_suspect(index: u32, suspicion: &Suspicion, now: Moment) -> Refusal {
    let why = suspicion.sentence(now);
    let text = format!("GPU {index} is suspect, so nothing is placed there: {why}");
    refusal("gpu_suspect", text, vec![format!("berthctl device clear {index}")])
}

/// Whether a device of this start can't be relied on now: it can't be seen, is unknown or suspect.
pub fn is_unsound(facts: &Facts, start: &Start) -> bool {
    let mut gpus = start.gpus.iter().map(|part| facts.gpu(&part.id));
    gpus.any(|gpu| gpu.is_none_or(|gpu| gpu.memory.value().is_none() || gpu.suspect.is_some()))
}

/// Whether the host has too little memory for this start just now: it may be on its way back.
pub fn is_short_on_host(settings: &Settings, facts: &Facts, state: &State, start: &Start) -> bool {
    let preflight = BTreeMap::new();
    let context = Context::new(settings, facts, state, &preflight);
    let Some(model) = settings.models.get(&start.model) else { return false };
    let available = context.host_available(model, std::slice::from_ref(&start.model), &[]);
    available.is_ok_and(|available| available < start.layout.host)
}

/// The devices that a start will use.
pub fn devices(start: &Start) -> Vec<DeviceId> {
    start.gpus.iter().map(|part| part.id.clone()).collect()
}
