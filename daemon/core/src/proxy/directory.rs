//! Who answers to which name now. The driver makes a new one whenever that changes; every request looks it up.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::Turns;
use super::turns::UNKNOWN_LOAD;
use crate::backend;
use crate::config::{Changes, DEFAULT_ALIAS, Deadlines, UnknownName};
use crate::name::ModelName;
use crate::plan;
use crate::report::ModelState;
use crate::state::Times;
use crate::status::{self, View};
use crate::swap::Swap;

/// How much of a name that nobody has is shown, in characters.
const SHOWN: usize = 100;

/// Who answers to which name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory {
    /// Every declared model that is not retired.
    pub models: BTreeMap<ModelName, Entry>,
    /// Other names.
    pub aliases: BTreeMap<String, ModelName>,
    /// Who answers to `default`; while a switch is on its way to its end, who will.
    pub default: Option<ModelName>,
    /// Whether a name that nobody has is `default`'s.
    pub unknown_to_default: bool,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whether it can be asked.
    pub way: Way,
    /// What it does, for people.
    pub state: ModelState,
    /// The name by which its server knows it, where that is another.
    pub known_as: Option<String>,
    /// What is changed about requests to it.
    pub request: Arc<Changes>,
    /// How long its answers may take.
    pub deadlines: Deadlines,
    /// Tokens of one request that it has room for, where that is known.
    pub context: Option<u64>,
    /// Other names of it.
    pub aliases: Vec<String>,
    /// Who answers in its place while it can't.
    pub fallback: Option<ModelName>,
    /// Why it failed last.
    pub error: Option<String>,
    /// Whether an operator stopped it.
    pub stopped: bool,
    /// Why it is not loaded for those who ask now.
    pub refused: Option<Refused>,
    /// How long it takes to load, in seconds, as far as that was measured.
    pub load: Option<u64>,
}

/// Whether a model can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It serves here.
    Open(SocketAddr),
    /// It does not now, and may soon: it loads, or a swap under way decides it.
    Coming,
    /// It does not, and is loaded for whoever asks.
    OnDemand,
    /// It does not.
    Away,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<'d> {
    /// It goes to this model.
    Send {
        /// Which.
        model: &'d ModelName,
        /// Where it listens.
        address: SocketAddr,
        /// What its server is to be told as the model's name, where that is not what was asked for.
        known_as: Option<&'d str>,
        /// What is changed about the request besides.
        changes: &'d Arc<Changes>,
        /// How long its answer may take.
        deadlines: &'d Deadlines,
        /// It answers in the place of this one.
        instead_of: Option<&'d ModelName>,
    },
    /// It waits for this model.
    Wait(&'d ModelName),
    /// The same, and the model is loaded because it waits.
    Load(&'d ModelName),
    /// It is refused.
    Refused(Refused),
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The status of HTTP.
    pub status: u16,
    /// Stable, for programs.
    pub code: &'static str,
    /// What is wrong, and what to do.
    pub text: String,
    /// After how many seconds it may be worth another try.
    pub retry_after: Option<u64>,
}

impl Directory {
    /// What becomes of a request for this name.
    pub fn verdict(&self, asked: &str) -> Verdict<'_> {
        let Some((model, entry)) = self.find(asked) else { return Verdict::Refused(self.unknown(asked)) };
        if let Some(verdict) = serves(model, entry, asked, None) {
            return verdict;
        }
        let stand_in = entry.fallback.as_ref().and_then(|name| self.models.get_key_value(name));
        if let Some(verdict) = stand_in.and_then(|(name, entry)| serves(name, entry, asked, Some(model))) {
            return verdict;
        }
        match &entry.refused {
            Some(refused) => Verdict::Refused(refused.clone()),
            None if entry.way == Way::OnDemand => Verdict::Load(model),
            None => Verdict::Refused(self.away(model, entry)),
        }
    }

    /// The model of this name.
    pub fn find(&self, asked: &str) -> Option<(&ModelName, &Entry)> {
        let default = self.default.as_ref().and_then(|name| self.models.get_key_value(name));
        if asked == DEFAULT_ALIAS {
            return default;
        }
        let own = asked.parse::<ModelName>().ok().and_then(|name| self.models.get_key_value(&name));
        let named = own.or_else(|| self.models.get_key_value(self.aliases.get(asked)?));
        named.or(default.filter(|_| self.unknown_to_default))
    }

    fn unknown(&self, asked: &str) -> Refused {
        if asked == DEFAULT_ALIAS || self.unknown_to_default {
            let text = "no model was switched to, so nothing answers. An operator can: berthctl switch MODEL";
            let text = text.to_owned();
            return Refused { status: 503, code: "nothing_serves", text, retry_after: Some(UNKNOWN_LOAD) };
        }
        let own = self.models.keys().map(ModelName::as_str);
        let names: Vec<&str> = own.chain(self.aliases.keys().map(String::as_str)).collect();
        let there = if names.is_empty() { "none is declared".to_owned() } else { names.join(", ") };
        let asked: String = asked.chars().take(SHOWN).collect();
        let text =
            format!("there is no model {asked:?}. There are: {there}, and `default` for the one that serves");
        Refused { status: 404, code: "model_not_found", text, retry_after: None }
    }

    fn away(&self, model: &ModelName, entry: &Entry) -> Refused {
        let open = |(_, entry): &(&ModelName, &Entry)| matches!(entry.way, Way::Open(_));
        let serving: Vec<&str> = self.models.iter().filter(open).map(|(name, _)| name.as_str()).collect();
        let serves = match serving.as_slice() {
            [] => "nothing serves now".to_owned(),
            [one] => format!("{one} serves"),
            several => format!("{} serve", several.join(", ")),
        };
        let error = entry.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        let (status, code, text) = match entry.state {
            ModelState::Quarantined => {
                let text =
                    format!("{model} failed so often that it is not started any more{error}; {serves}");
                (503, "model_quarantined", format!("{text}. An operator can: berthctl retry {model}"))
            }
            ModelState::TooBig => {
                let text = format!("{model} does not fit on this machine; {serves}");
                (503, "model_too_big", format!("{text}. An operator sees why: berthctl plan switch {model}"))
            }
            _ if entry.stopped => {
                let text = format!("{model} was stopped by an operator; {serves}");
                (409, "model_stopped", format!("{text}. An operator can: berthctl start {model}"))
            }
            _ => {
                let text = format!("{model} is not loaded; {serves}");
                (409, "model_not_loaded", format!("{text}. An operator can: berthctl switch {model}"))
            }
        };
        Refused { status, code, text, retry_after: None }
    }

    /// A request for this model can't wait, or no longer; `why` says so.
    pub fn give_up(&self, model: &ModelName, status: u16, code: &'static str, why: &str) -> Refused {
        let entry = self.models.get(model);
        let load = entry.and_then(|entry| entry.load).unwrap_or(UNKNOWN_LOAD).max(1);
        let error = entry.and_then(|entry| entry.error.as_ref());
        let error = error.map(|error| format!(" ({error})")).unwrap_or_default();
        let text = format!("{why}{error}; try again in {load} s");
        Refused { status, code, text, retry_after: Some(load) }
    }
}

/// That it answers or will, if it does.
fn serves<'d>(
    model: &'d ModelName,
    entry: &'d Entry,
    asked: &str,
    instead_of: Option<&'d ModelName>,
) -> Option<Verdict<'d>> {
    match entry.way {
        Way::Open(address) => {
            let known_as = entry.known_as.as_deref().filter(|known_as| *known_as != asked);
            Some(Verdict::Send {
                model,
                address,
                known_as,
                changes: &entry.request,
                deadlines: &entry.deadlines,
                instead_of,
            })
        }
        Way::Coming => Some(Verdict::Wait(model)),
        Way::OnDemand | Way::Away => None,
    }
}

/// Who answers to which name, as things are.
pub fn directory(view: &View, swap: Option<&Swap>, turns: &Turns) -> Directory {
    let models = view.settings.models.values().filter(|model| !model.retired);
    let entries = models.clone().map(|model| {
        let name = &model.name;
        let state = status::model_state(view, model);
        let claim = view.state.claims.get(name);
        let held = swap.is_some_and(|swap| swap.holds_back(name));
        let concerned = swap.is_some_and(|swap| swap.concerns(name));
        // Nothing is loaded that can't be written down.
        let unrecorded = view.memory.ledger_error.as_ref().map(|error| Refused {
            status: 503,
            code: "ledger_error",
            text: format!("{name} does not serve and can't be loaded: {}", error.text),
            retry_after: Some(UNKNOWN_LOAD),
        });
        let refused = turns.refusal(name, view.now).cloned().or(unrecorded);
        let way = match (state, claim.and_then(|claim| claim.address)) {
            (ModelState::Serving, Some(address)) if !held => Way::Open(address),
            (ModelState::Failed, _) if refused.is_some() && !concerned => Way::OnDemand,
            (ModelState::Serving | ModelState::Loading | ModelState::Failed, _) => Way::Coming,
            (ModelState::Retired, _) => Way::Away,
            _ if concerned => Way::Coming,
            (ModelState::Off | ModelState::Stopping, _) if plan::is_loaded_on_demand(view.state, model) => {
                Way::OnDemand
            }
            _ => Way::Away,
        };
        let kind = backend::of(model.backend);
        let now = claim.and_then(|claim| claim.layout.tuning.ctx);
        let load = view.state.times.get(name).and_then(|times| Times::expected(&times.load));
        let entry = Entry {
            way,
            state,
            known_as: model.known_as.clone().or_else(|| kind.known_as(model)),
            request: Arc::new(model.request.clone()),
            deadlines: model.deadlines,
            context: now.or_else(|| kind.effective(model, &view.facts.files).ctx),
            aliases: model.aliases.clone(),
            fallback: model.fallback.clone(),
            error: view.upkeep.errors.get(name).cloned(),
            stopped: view.state.stopped.contains_key(name),
            refused,
            load: load.map(|ms| ms.div_ceil(1000)),
        };
        (name.clone(), entry)
    });
    let aliases = models.clone().flat_map(|model| model.aliases.iter().map(move |alias| (alias, model)));
    let coming = swap.and_then(Swap::next_default);
    Directory {
        models: entries.collect(),
        aliases: aliases.map(|(alias, model)| (alias.clone(), model.name.clone())).collect(),
        default: coming.or(view.state.home.default.as_ref()).cloned(),
        unknown_to_default: view.settings.proxy.unknown == UnknownName::Default,
    }
}

#[cfg(test)]
#[path = "directory/tests.rs"]
mod tests;
