//! Settings that are tried without a declaration: which model a request with some asks for.

use std::collections::BTreeMap;

use super::{refusal, resolve};
use crate::config::{self, BadSet, Settings};
use crate::name::ModelName;
use crate::report::{Refusal, Request, Verb};
use crate::state::State;

/// The request with what it sets as a part of the model's name: `genesis` with `ctx=16384` is `genesis:ctx=16384`, and
/// `genesis` itself where that changes nothing.
pub fn named(settings: &Settings, state: &State, request: &Request) -> Result<Request, Box<Refusal>> {
    let Some(asked) = &request.model else {
        return if request.set.is_empty() {
            Ok(request.clone())
        } else {
            Err(Box::new(takes_none(request.verb)))
        };
    };
    // One that is known by its whole name, or by what it was when it was started, needs nothing.
    let known = asked.parse::<ModelName>().ok();
    let known =
        known.as_ref().filter(|name| settings.models.contains_key(name) || state.claims.contains_key(name));
    let spelled = asked.rsplit_once(':').filter(|(_, set)| known.is_none() && set.contains('='));
    let (base, mut set) = match spelled {
        Some((base, set)) => (base, pairs(set)),
        None => (asked.as_str(), BTreeMap::new()),
    };
    if spelled.is_none() && request.set.is_empty() {
        return Ok(request.clone());
    }
    if !request.set.is_empty() && !matches!(request.verb, Verb::Switch | Verb::Start) {
        return Err(Box::new(takes_none(request.verb)));
    }
    let mut base = resolve(settings, state, base)?;
    // Settings of an unnamed variant are changed or added to.
    if let Some((of, earlier)) = base.name.settings()
        && let Some(declared) = settings.models.get(&of)
    {
        base = declared;
        set.extend(earlier);
    }
    set.extend(request.set.clone());
    let model = config::with_settings(settings, base, &set).map_err(|error| {
        let hints = match error {
            BadSet::Name(_) => vec![format!("declare it: `[variants.NAME]` in {}", base.source.display())],
            _ => vec!["berthctl check".to_owned()],
        };
        Box::new(refusal("bad_setting", error.to_string(), hints))
    })?;
    Ok(Request { verb: request.verb, model: Some(model.name.to_string()), set: BTreeMap::new() })
}

fn pairs(set: &str) -> BTreeMap<String, String> {
    let pairs = set.split(',').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn takes_none(verb: Verb) -> Refusal {
    let text = format!("`{}` takes no settings", verb.as_str());
    let hints = vec!["berthctl switch MODEL --set KEY=VALUE".to_owned()];
    refusal("bad_request", text, hints)
}
