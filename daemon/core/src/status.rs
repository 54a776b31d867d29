//! The picture of a node: settings + facts + state → [`Status`].

mod health;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::bytes::Bytes;
use crate::config::{self, Model, Settings};
use crate::exposure;
use crate::facts::{Facts, Gpu, Known, Listening, Moment};
use crate::health::Verdict;
use crate::name::ModelName;
use crate::plan;
use crate::release::{Proofs, Reading, Unproved};
use crate::report::{
    GpuBalance, GpuStatus, GuestStatus, Holder, HostStatus, ModelState, ModelStatus, PlacedShare, Placement,
    Problem, Refusal, Requests, SCHEMA, Status, SwapSummary, ValueChange,
};
use crate::rivals::Rivals;
use crate::state::{Claim, ClaimedGpu, Phase, State, Times};
use crate::upkeep::Upkeep;

pub use health::{health, readiness};

/// What the driver knows besides the ledger's state.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Since when each model is in its state, wall clock in milliseconds.
    pub since: BTreeMap<ModelName, (ModelState, u64)>,
    /// Since when each problem stands, by its key.
    pub problems: BTreeMap<String, u64>,
    /// The models in service whose last checks were not passed.
    pub unwell: BTreeMap<ModelName, Verdict>,
    /// What a change is refused with while nothing can be recorded: the ledger can't be written, or not be believed.
    pub ledger_error: Option<Refusal>,
    /// Where the proxy can't listen, and why.
    pub unheard: BTreeMap<SocketAddr, String>,
    /// What is wrong with the history.
    pub history: Vec<Refusal>,
    /// Services outside Berth that take GPU memory.
    pub rivals: Rivals,
    /// Where models' processes listen.
    pub listening: BTreeMap<ModelName, Vec<Listening>>,
    /// The models that would not fit even alone, and by how much.
    pub too_big: BTreeMap<ModelName, Bytes>,
    /// When that was weighed last.
    pub weighed_at: Option<Moment>,
}

impl Memory {
    /// Weighs which models would not fit even alone. Each takes a search over layouts, so that not every reading does.
    pub fn weigh_alone(&mut self, settings: &Settings, facts: &Facts, state: &State, now: Moment) {
        let off = settings.models.values().filter(|model| !model.retired);
        let off = off.filter(|model| !state.claims.contains_key(&model.name));
        let short =
            off.filter_map(|model| Some((model.name.clone(), plan::too_big(settings, facts, state, model)?)));
        self.too_big = short.collect();
        self.weighed_at = Some(now);
    }
}

/// Everything a picture is made of.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// What was declared.
    pub settings: &'a Settings,
    /// What was observed last.
    pub facts: &'a Facts,
    /// The ledger's state.
    pub state: &'a State,
    /// The proofs of release under way.
    pub proofs: &'a Proofs,
    /// What is done without being asked, and why something is not.
    pub upkeep: &'a Upkeep,
    /// What the driver knows besides.
    pub memory: &'a Memory,
    /// The swap under way.
    pub swap: Option<&'a SwapSummary>,
    /// What clients asked of a model.
    pub requests: &'a dyn Fn(&ModelName) -> Requests,
    /// Now.
    pub now: Moment,
    /// Now by the wall clock, milliseconds since 1970.
    pub now_ms: u64,
    /// How long berthd has been up.
    pub uptime_ms: u64,
}

/// The picture.
pub fn status(view: &View) -> Status {
    let gpus = match &view.facts.gpus {
        Known::Value(gpus) => Known::Value(gpus.iter().map(|gpu| gpu_status(view, gpu)).collect()),
        Known::Unknown(why) => Known::Unknown(why.clone()),
    };
    Status {
        schema: SCHEMA,
        node: view.settings.node.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        at_ms: view.now_ms,
        uptime_ms: Some(view.uptime_ms),
        default: view.state.home.default.clone(),
        home: view.state.home.models.clone(),
        gpus,
        host: match &view.facts.host.memory {
            Known::Value(memory) => {
                Known::Value(HostStatus { total: memory.total, available: memory.available })
            }
            Known::Unknown(why) => Known::Unknown(why.clone()),
        },
        models: view.settings.models.values().map(|model| model_status(view, model)).collect(),
        placements: view.state.claims.iter().map(|(name, claim)| placement(name, claim)).collect(),
        swap: view.swap.cloned(),
        last_swap: view.state.swaps.back().cloned(),
        problems: problems(view),
    }
}

fn placement(model: &ModelName, claim: &Claim) -> Placement {
    let share = |part: &ClaimedGpu| PlacedShare {
        index: part.placed.index,
        id: part.placed.id.0.clone(),
        bytes: part.placed.bytes,
    };
    Placement { model: model.clone(), gpus: claim.gpus.iter().map(share).collect(), host: claim.layout.host }
}

/// What a model does now.
pub fn model_state(view: &View, model: &Model) -> ModelState {
    let name = &model.name;
    match view.state.claims.get(name).map(|claim| claim.phase) {
        Some(Phase::Serving) => ModelState::Serving,
        Some(Phase::Starting) => ModelState::Loading,
        Some(Phase::Ending) => ModelState::Stopping,
        None if model.retired => ModelState::Retired,
        None if view.state.quarantine(name).is_some() => ModelState::Quarantined,
        // What a swap stopped is of home until it ends.
        None if view.swap.is_some_and(|swap| swap.stops.contains(name)) => ModelState::Off,
        None if view.state.home.models.contains(name) && !view.state.is_displaced(name) => ModelState::Failed,
        None if view.memory.too_big.contains_key(name) => ModelState::TooBig,
        None => ModelState::Off,
    }
}

fn model_status(view: &View, model: &Model) -> ModelStatus {
    let name = &model.name;
    let state = model_state(view, model);
    let claim = view.state.claims.get(name);
    let expected = |pick: fn(&Times) -> &std::collections::VecDeque<u64>, of: &ModelName| {
        view.state.times.get(of).and_then(|times| Times::expected(pick(times)))
    };
    // What it takes to replace what is `default` now: its stop and release, and the load of this one.
    let to_switch_ms =
        (state == ModelState::Off).then(|| expected(|t| &t.load, name)).flatten().map(|load| {
            let current = view.state.home.default.as_ref();
            let stop = current.and_then(|m| expected(|t| &t.stop, m)).unwrap_or(0);
            let release = current.and_then(|m| expected(|t| &t.release, m)).unwrap_or(0);
            load + stop + release
        });
    ModelStatus {
        name: name.clone(),
        state,
        gpus: claim
            .map(|claim| claim.gpus.iter().map(|part| part.placed.index).collect())
            .unwrap_or_default(),
        memory: claim.and_then(|claim| held(view, name, claim)),
        since_ms: view.memory.since.get(name).filter(|(was, _)| *was == state).map(|(_, since)| *since),
        address: claim
            .and_then(|claim| claim.address)
            .unwrap_or_else(|| SocketAddr::new(model.host, model.port))
            .to_string(),
        aliases: model.aliases.clone(),
        pid: claim.and_then(|_| view.facts.units.get(name)).and_then(|unit| unit.main_pid),
        to_switch_ms,
        short: view.memory.too_big.get(name).copied().filter(|_| claim.is_none()),
        last_error: unwell(view, name).or_else(|| last_error(view, name)),
        drifted: claim.map(|claim| drifted(model, view.settings, claim)).unwrap_or_default(),
        predecessor: claim.and_then(|_| view.facts.units.get(name)).and_then(|unit| unit.predecessor.clone()),
        stands_in_for: claim.and_then(|_| view.state.stand_ins.get(name)).cloned(),
        guest: view.state.guests.get(name).map(|guest| GuestStatus {
            cause: guest.cause.clone(),
            idle_ms: u64::try_from(model.guests.idle.as_millis()).unwrap_or(u64::MAX),
        }),
        requests: (view.requests)(name),
    }
}

/// What was declared anew since a model was started. Of one that was found running nothing is known.
fn drifted(model: &Model, settings: &Settings, claim: &Claim) -> Vec<ValueChange> {
    if claim.declared.is_empty() {
        return Vec::new();
    }
    config::changes(&claim.declared, &config::run_values(model, settings))
}

/// What is wrong with a model that serves, by its checks.
fn unwell(view: &View, name: &ModelName) -> Option<String> {
    let settings = view.settings.models.get(name)?.health;
    let verdict = view.memory.unwell.get(name)?;
    let before = view.facts.units.get(name).and_then(|unit| unit.predecessor.as_ref());
    match (verdict, before) {
        (Verdict::Hung(what), Some(unit)) => Some(format!(
            "{name} runs as {unit} and {what}; that is left alone until berthctl restart {name}"
        )),
        _ => verdict.warning(name, &settings, view.now),
    }
}

fn last_error(view: &View, name: &ModelName) -> Option<String> {
    let by_hand = view.state.stopped.get(name).is_some_and(|stopped| stopped.by_hand);
    let stopped = by_hand.then(|| format!("{name} was stopped by hand (systemctl stop)"));
    let quarantined = || view.state.quarantine(name).map(|quarantine| format!("{name} {}", quarantine.why));
    stopped.or_else(|| view.upkeep.errors.get(name).cloned()).or_else(quarantined)
}

/// What a model's processes hold on all its GPUs; None where that is not known.
fn held(view: &View, name: &ModelName, claim: &Claim) -> Option<Bytes> {
    claim
        .gpus
        .iter()
        .map(|part| {
            let processes = view.facts.gpu(&part.placed.id)?.processes.value()?;
            processes
                .iter()
                .filter(|process| view.state.owner(process) == Some(name))
                .map(|process| process.memory.value().copied())
                .sum::<Option<Bytes>>()
        })
        .sum()
}

fn gpu_status(view: &View, gpu: &Gpu) -> GpuStatus {
    let memory = match (&gpu.memory, view.state.foreign(gpu)) {
        (Known::Value(memory), Some(foreign)) => Known::Value(GpuBalance {
            total: memory.total,
            reserved: memory.reserved,
            used: memory.used,
            free: memory.free,
            foreign,
            kept: view.state.claimed(&gpu.id, &[]),
            headroom: view.settings.headroom,
        }),
        (Known::Unknown(why), _) => Known::Unknown(why.clone()),
        (Known::Value(_), None) => Known::Unknown("its use can't be attributed".to_owned()),
    };
    let age = view.now.saturating_sub(gpu.read_at);
    GpuStatus {
        index: gpu.index,
        id: gpu.id.0.clone(),
        name: gpu.name.clone(),
        age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        memory,
        suspect: gpu.suspect.as_ref().map(|suspicion| suspicion.sentence(view.now)),
        holders: match &gpu.processes {
            Known::Value(_) => Known::Value(holders(view, gpu)),
            Known::Unknown(why) => Known::Unknown(why.clone()),
        },
        temperature_c: gpu.temperature_c,
        power_w: gpu.power_w,
        utilization_percent: gpu.utilization_percent,
    }
}

fn holders(view: &View, gpu: &Gpu) -> Vec<Holder> {
    let mut holders: Vec<Holder> = Vec::new();
    for process in gpu.processes.value().into_iter().flatten() {
        let owner = view.state.owner(process);
        let name = owner.map_or_else(|| process.program.clone(), ToString::to_string);
        let unit = if owner.is_none() { process.unit.clone() } else { None };
        let same = |holder: &&mut Holder| {
            holder.name == name && holder.ours == owner.is_some() && holder.unit == unit
        };
        match holders.iter_mut().find(same) {
            Some(holder) => {
                holder.pids.push(process.pid);
                holder.memory = match (&holder.memory, &process.memory) {
                    (Known::Value(a), Known::Value(b)) => Known::Value(a.plus(*b)),
                    (Known::Unknown(why), _) | (_, Known::Unknown(why)) => Known::Unknown(why.clone()),
                };
            }
            None => holders.push(Holder {
                name,
                ours: owner.is_some(),
                unit,
                pids: vec![process.pid],
                memory: process.memory.clone(),
            }),
        }
    }
    holders.sort_by_key(|holder| std::cmp::Reverse(holder.memory.value().copied()));
    holders
}

/// Whether a model has failed since it served last.
fn has_failed(view: &View, name: &ModelName) -> bool {
    let failed = view.state.troubles.get(name).and_then(|trouble| trouble.failures.back());
    let served = view.state.served.get(name).map_or(0, |served| served.at_ms);
    failed.is_some_and(|fault| fault.at_ms > served)
}

/// Why it is not known who holds what of the GPUs; None where it is.
fn unlisted(facts: &Facts) -> Option<String> {
    if let Known::Unknown(why) = &facts.gpus {
        return Some(format!("the GPUs can't be seen: {why}"));
    }
    let unknown = |gpu: &Gpu| {
        let why = gpu.processes.why_unknown().or(gpu.memory.why_unknown())?;
        Some(format!("GPU {} does not say: {why}", gpu.index))
    };
    facts.gpus().iter().find_map(unknown)
}

/// What is wrong, worst first.
pub fn problems(view: &View) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut add = |code: &str, subject: String, text: String, next: String| {
        let mut problem = Problem { code: code.to_owned(), subject, since_ms: view.now_ms, text, next };
        problem.since_ms = view.memory.problems.get(&problem.key()).copied().unwrap_or(view.now_ms);
        found.push(problem);
    };
    if let Some(why) = &view.memory.ledger_error {
        add(&why.code, String::new(), why.text.clone(), why.hints.join("; or "));
    }
    for name in &view.state.home.models {
        let serves = view.state.claims.get(name).is_some_and(|claim| claim.phase == Phase::Serving);
        let model = view.settings.models.get(name);
        if serves || model.is_some_and(|model| model.retired) {
            continue;
        }
        if let Some(quarantine) = view.state.quarantine(name) {
            let instead = match view.state.stand_in(name).filter(|stand_in| view.state.is_serving(stand_in)) {
                Some(stand_in) => format!("; {stand_in} serves in its place"),
                None => "; nothing serves in its place".to_owned(),
            };
            let text = format!("{name} is quarantined: it {}{instead}", quarantine.why);
            add(
                "quarantined",
                name.to_string(),
                text,
                format!("berthctl logs {name}; then berthctl retry {name}"),
            );
            continue;
        }
        // What an operator has stopped, and what comes back without having failed, is on its way. What failed stays a
        // problem until it serves: each attempt would else end it and begin it anew.
        let on_its_way = |swap: &SwapSummary| swap.stops.contains(name) || !has_failed(view, name);
        if view.state.is_displaced(name) || view.swap.is_some_and(on_its_way) {
            continue;
        }
        let wait = view.upkeep.waits.get(name);
        let absent = model.filter(|_| view.swap.is_none() && !view.state.claims.contains_key(name));
        let missing = absent.and_then(|model| plan::missing(view.settings, view.facts, view.state, model));
        let again = "it is being started again".to_owned();
        let again = Some(&again).filter(|_| view.state.is_resident(name));
        let now = wait.map(|wait| &wait.why).or(missing.as_ref().map(|missing| &missing.why)).or(again);
        let why: Vec<&str> =
            view.upkeep.errors.get(name).into_iter().chain(now).map(String::as_str).collect();
        let why = if why.is_empty() { String::new() } else { format!(": {}", why.join("; ")) };
        let text = format!("{name} should serve and does not{why}");
        let next = match missing {
            Some(missing) if !missing.holders.is_empty() => view.memory.rivals.end(&missing.holders),
            _ => wait
                .and_then(|wait| wait.next.clone())
                .unwrap_or_else(|| format!("berthctl logs {name}; berthctl switch MODEL to serve another")),
        };
        add("degraded", name.to_string(), text, next);
    }
    for name in view.memory.unwell.keys() {
        if let Some(text) = unwell(view, name) {
            add("unhealthy", name.to_string(), text, format!("berthctl logs {name}"));
        }
    }
    let ending = view.state.claims.iter().filter(|(_, claim)| claim.phase == Phase::Ending);
    for (name, claim) in ending.filter(|_| view.swap.is_none()) {
        // One more reading is no problem.
        let held = |unproved: &Unproved| unproved.reading != Reading::Back;
        for unproved in view.proofs.unproved(name, claim).into_iter().filter(held) {
            let next = match &unproved.reading {
                Reading::Held { by, .. } if !by.is_empty() => {
                    let pids: Vec<String> = by.iter().map(|process| process.pid.to_string()).collect();
                    format!("sudo kill -9 {}", pids.join(" "))
                }
                Reading::Held { .. } => {
                    let index = unproved.index;
                    format!(
                        "wait; berthd goes on observing. If it is lost for good: berthctl device clear {index}"
                    )
                }
                _ => "wait; berthd goes on observing".to_owned(),
            };
            add("memory_held", format!("{name} on GPU {}", unproved.index), unproved.sentence(), next);
        }
    }
    if let Known::Unknown(why) = &view.facts.gpus {
        let text = format!("the GPUs can't be seen: {why}");
        add("gpus_unknown", String::new(), text, "nvidia-smi".to_owned());
    }
    for gpu in view.facts.gpus() {
        if let Known::Unknown(why) = &gpu.memory {
            let text = format!("GPU {} is unknown, nothing is placed there: {why}", gpu.index);
            add("gpu_unknown", format!("GPU {}", gpu.index), text, format!("nvidia-smi -i {}", gpu.index));
        } else if let Some(suspicion) = &gpu.suspect {
            let why = suspicion.sentence(view.now);
            let text = format!("GPU {} is suspect, nothing is placed there: {why}", gpu.index);
            let next = format!("wait, or use it at once: berthctl device clear {}", gpu.index);
            add("gpu_suspect", format!("GPU {}", gpu.index), text, next);
        }
    }
    // On a machine without GPUs there is nothing to be taken.
    for (address, why) in &view.memory.unheard {
        let (code, what, table) = if view.settings.http.listen.contains(address) {
            ("http_unheard", "the dashboard and the control API can't be reached", "http")
        } else {
            ("proxy_unheard", "clients can't reach models", "proxy")
        };
        let text = format!("{what} at {address}: {why}");
        let next = format!(
            "free the port, or name another in `listen` of [{table}] in berth.toml; berthd goes on trying"
        );
        add(code, address.to_string(), text, next);
    }
    for rival in view.memory.rivals.found().filter(|_| !view.facts.gpus().is_empty()) {
        add("rival", rival.unit, rival.text, rival.next);
    }
    for (name, sockets) in &view.memory.listening {
        let Some(model) = view.settings.models.get(name) else { continue };
        let told = view.state.claims.get(name).and_then(|claim| claim.address);
        if let Some(exposure) = exposure::of(model, told, sockets) {
            add("exposed", name.to_string(), exposure.text, exposure.next);
        }
    }
    for (name, unit) in view.facts.units.iter().filter(|(name, _)| !view.state.claims.contains_key(*name)) {
        let Some(before) = unit.predecessor.as_ref().filter(|_| !unit.active.is_down()) else { continue };
        let Some(why) = unlisted(view.facts) else { continue };
        let text = format!(
            "{before} runs, and is not taken over as {name}: what it holds is not known, since {why}"
        );
        add(
            "not_taken_over",
            name.to_string(),
            text,
            format!("sudo systemctl stop {before}; then berthctl start {name}"),
        );
    }
    for why in &view.memory.history {
        add(&why.code, String::new(), why.text.clone(), why.hints.join("; or "));
    }
    found
}
