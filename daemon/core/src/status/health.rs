//! What watchdogs are told: whether everything that should serve does, and whether clients of `default` are answered.

use super::{View, model_state, problems};
use crate::name::ModelName;
use crate::report::{
    Concern, Health, HealthStatus, ModelState, Problem, Readiness, SCHEMA, Severity, SwapSummary, Verb,
};

/// Whether everything that should serve does.
pub fn health(view: &View) -> Health {
    let mut found = problems(view);
    for name in view.state.home.models.iter().filter(|name| is_loading(view, name)) {
        let mut add = |code: &str, text: String, next: &str| {
            let subject = name.to_string();
            if found.iter().any(|known| known.subject == subject && known.severity() == Severity::Error) {
                return;
            }
            let since_ms = view.memory.since.get(name).map_or(view.now_ms, |(_, since)| *since);
            found.push(Problem { code: code.to_owned(), subject, since_ms, text, next: next.to_owned() });
        };
        add("starting", format!("{name} should serve and is being started"), "wait; berthctl status --watch");
    }
    let mut problems: Vec<Concern> =
        found.into_iter().map(|problem| Concern { severity: problem.severity(), problem }).collect();
    problems.sort_by_key(|concern| std::cmp::Reverse(concern.severity));
    let worst = problems.first().map(|concern| concern.severity);
    let status = if worst == Some(Severity::Error) { HealthStatus::Degraded } else { HealthStatus::Ok };
    Health { schema: SCHEMA, status, problems, swap: view.swap.map(|swap| swap.id) }
}

/// Whether clients of `default` are answered: by it, or by who stands in for it. Where there is none nothing is desired.
pub fn readiness(view: &View) -> Readiness {
    let serves = |name: &ModelName| view.state.is_serving(name);
    let stands_in = |name: &ModelName| view.state.stand_in(name).is_some_and(serves);
    let mut why = None;
    if let Some(name) = view.state.home.default.as_ref().filter(|name| !serves(name) && !stands_in(name)) {
        why = Some(format!("`default` is {name}, which does not serve"));
    }
    if let Some((address, unheard)) = view.memory.unheard.first_key_value() {
        why.get_or_insert(format!("clients can't reach models at {address}: {unheard}"));
    }
    if let Some(refusal) = view.memory.ledger_error.as_ref().filter(|error| error.code == "ledger_damaged") {
        why.get_or_insert(refusal.text.clone());
    }
    Readiness { schema: SCHEMA, ready: why.is_none(), why }
}

/// Whether a model of home does not serve and berthd is about to change that, as after a boot. Not what an operator's swap
/// is about, nor what has given way to clients' models and comes back.
fn is_loading(view: &View, name: &ModelName) -> bool {
    let concerned = |swap: &SwapSummary| swap.stops.contains(name) || swap.starts.contains(name);
    let asked = view.swap.is_some_and(|swap| swap.verb != Verb::Restore && concerned(swap));
    let state = view.settings.models.get(name).map(|model| model_state(view, model));
    let down = matches!(state, Some(ModelState::Loading | ModelState::Stopping | ModelState::Failed));
    down && !asked && !view.state.displaced.contains(name)
}
