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
        for (key, value) in earlier {
            set.entry(key).or_insert(value);
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::{SourceFile, Sources, load};
    use crate::state::Home;

    #[test]
    fn what_is_set_becomes_a_part_of_the_name() {
        let text = "cmd = \"llama-server -c 4096\"\naliases = [\"gem\"]\n[variants.long]\nctx = 8192\n";
        let file = SourceFile { path: "models.d/gemma.toml".into(), text: text.to_owned() };
        let settings = load(&Sources { models: vec![file], ..Sources::default() }, "tower").unwrap();
        let tried: ModelName = "gemma:ctx=1024".parse().unwrap();
        let settings = settings.with_unnamed([&tried]);
        let home = Home { models: vec![tried.clone()], default: Some(tried) };
        let state = State { home, ..State::default() };
        let asked = |verb, model: &str, set: &[(&str, &str)]| {
            let set = set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            let request = Request { verb, model: (!model.is_empty()).then(|| model.to_owned()), set };
            match named(&settings, &state, &request) {
                Ok(request) => {
                    assert!(request.set.is_empty());
                    request.model.unwrap_or_default()
                }
                Err(refusal) => format!("{}: {}", refusal.code, refusal.text),
            }
        };
        let switch = |model, set| asked(Verb::Switch, model, set);
        assert_eq!(switch("gem", &[("slots", "2"), ("ctx", "1024")]), "gemma:ctx=1024,slots=2");
        assert_eq!(switch("gemma:long", &[("slots", "2")]), "gemma:long:slots=2");
        assert_eq!(switch("gemma", &[("ctx", "4096")]), "gemma");
        // As typed, in any order and by an alias.
        assert_eq!(switch("gem:slots=2,ctx=1024", &[]), "gemma:ctx=1024,slots=2");
        // What is set already stays, unless it is set anew.
        assert_eq!(switch("default", &[("slots", "2")]), "gemma:ctx=1024,slots=2");
        assert_eq!(switch("gemma:ctx=1024", &[("ctx", "2048")]), "gemma:ctx=2048");
        assert_eq!(switch("gemma:ctx=1024", &[]), "gemma:ctx=1024");
        assert_eq!(switch("default:ctx=2048", &[]), "gemma:ctx=2048");
        // Nothing is set, so nothing is looked at.
        assert_eq!((switch("gone", &[]), asked(Verb::Back, "", &[])), ("gone".into(), String::new()));
        for refused in
            [switch("gone", &[("ctx", "1")]), switch("gone:ctx=1", &[]), switch("gemma:ctx", &[("ctx", "1")])]
        {
            assert!(refused.starts_with("unknown_model: "), "{refused}");
        }
        assert!(switch("gemma:ctx=", &[]).starts_with("bad_setting: `ctx` must be"));
        assert!(switch("gemma", &[("port", "1")]).starts_with("bad_setting: there is no setting `port`"));
        for verb in [Verb::Stop, Verb::Restart, Verb::Retry, Verb::Back] {
            let model = if verb == Verb::Back { "" } else { "gemma" };
            assert!(asked(verb, model, &[("ctx", "1")]).ends_with("takes no settings"));
        }
    }
}
