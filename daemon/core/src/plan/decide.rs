//! What each verb would do to what runs and to home.

use super::{Context, Plan, Start, Unplaced, Verdict, is_loaded_on_demand, refusal};
use crate::config::{Memory, Model};
use crate::name::ModelName;
use crate::report::{Refusal, Verb};
use crate::state::{Home, Phase};

impl Context<'_> {
    pub(super) fn switch(&self, model: &Model) -> Verdict {
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
            // What is missing of home and has no place beside it is replaced, as by any switch.
            let gone = self.running(name).map(|start| self.displaced(&[], &start)).unwrap_or_default();
            let home = home_of(&|m| !gone.contains(m));
            return self.go(Verb::Switch, Some(name), Vec::new(), Vec::new(), home);
        }
        if let Err(refusal) = self.check(model) {
            return Verdict::Refused { refusal: *refusal, nearest: None };
        }
        let evictable = self.evictable(model);
        match self.place_for_fewest(model, &self.victim_sets(&evictable)) {
            Ok((victims, start)) => {
                let gone = self.displaced(&victims, &start);
                let home = home_of(&|m| !victims.contains(m) && !gone.contains(m));
                self.go(Verb::Switch, Some(name), victims, vec![start], home)
            }
            Err(unplaced) => self.refuse(Verb::Switch, name, evictable, unplaced),
        }
    }

    /// A model that runs, as it was started.
    fn running(&self, name: &ModelName) -> Option<Start> {
        Some(self.state.claims.get(name)?.start(name))
    }

    /// Models of home that don't run now and could not come back beside `start`: home as it is gets replaced, or
    /// they would be missed for ever.
    fn displaced(&self, victims: &[ModelName], start: &Start) -> Vec<ModelName> {
        let mut beside = vec![start.clone()];
        let mut displaced = Vec::new();
        for model in self.absent(&start.model) {
            // What it left behind doesn't stand in its own way, and no guest does for long.
            let gone = victims.iter().chain([&model.name, &start.model]).chain(self.state.guests.keys());
            let gone: Vec<ModelName> = gone.cloned().collect();
            match self.place_beside(model, &gone, &beside) {
                Ok(place) => beside.push(place),
                Err(why) if why.certain => displaced.push(model.name.clone()),
                // What is merely unknown now may come back.
                Err(_) => {}
            }
        }
        displaced
    }

    /// Models of home other than `name` that don't run now and are to come back.
    pub(super) fn absent(&self, name: &ModelName) -> Vec<&Model> {
        let away = self.state.home.models.iter().filter(|m| *m != name && !self.state.is_resident(m));
        away.filter_map(|m| self.settings.models.get(m)).filter(|model| !model.retired).collect()
    }

    /// Whether all of `absent` can still come back, as far as can be known now, once `start` has its place and these
    /// victims and all guests are gone.
    pub(super) fn leaves_room(&self, start: &Start, absent: &[&Model], victims: &[ModelName]) -> bool {
        // What they left behind doesn't stand in their own way.
        let gone = absent.iter().map(|model| &model.name).chain(self.state.guests.keys());
        let gone: Vec<ModelName> = gone.chain(victims).chain([&start.model]).cloned().collect();
        let beside = [start.clone()];
        let mut sure = Vec::new();
        for model in absent {
            match self.place_beside(model, &gone, &beside) {
                Ok(_) => sure.push(*model),
                Err(why) if why.certain => return false,
                Err(_) => {}
            }
        }
        self.place_all(&sure, &gone, beside.to_vec()).is_some()
    }

    pub(super) fn start(&self, model: &Model) -> Verdict {
        let name = &model.name;
        let mut home = self.state.home.clone();
        if !home.models.contains(name) {
            home.models.push(name.clone());
        }
        if home.default.is_none() {
            home.default = Some(name.clone());
        }
        if self.state.is_serving(name) {
            if home == self.state.home {
                return Verdict::Nothing(format!("{name} serves already."));
            }
            let absent = self.absent(name);
            if let (Some(start), Some(first)) = (self.running(name), absent.first())
                && !self.leaves_room(&start, &absent, &[])
            {
                return self.refuse(Verb::Start, name, Vec::new(), place_kept(name, &first.name).into());
            }
            return self.go(Verb::Start, Some(name), Vec::new(), Vec::new(), home);
        }
        if let Err(refusal) = self.check(model) {
            return Verdict::Refused { refusal: *refusal, nearest: None };
        }
        if let Some(other) = self.state.home.models.iter().find(|other| self.same_port(model, other)) {
            return self.refuse(Verb::Start, name, Vec::new(), self.port_taken(model, other).into());
        }
        match self.places(model, &[], &[]) {
            Ok(places) => {
                // Not the first place, if another one leaves room for those that are to come back.
                let absent = self.absent(name);
                let found = places.into_iter().find(|start| self.leaves_room(start, &absent, &[]));
                match (found, absent.first()) {
                    (None, Some(absent)) => {
                        self.refuse(Verb::Start, name, Vec::new(), place_kept(name, &absent.name).into())
                    }
                    (start, _) => {
                        self.go(Verb::Start, Some(name), Vec::new(), start.into_iter().collect(), home)
                    }
                }
            }
            Err(mut unplaced) => {
                let residents: Vec<ModelName> = self.state.residents().map(|(m, _)| m.clone()).collect();
                if !residents.is_empty() && self.place(model, &residents).is_ok() {
                    unplaced.refusal.hints.insert(0, format!("berthctl switch {name}"));
                }
                self.refuse(Verb::Start, name, Vec::new(), unplaced)
            }
        }
    }

    pub(super) fn stop(&self, names: &[ModelName], verb: Verb) -> Verdict {
        let mut home = self.state.home.clone();
        home.models.retain(|m| !names.contains(m));
        if home.default.as_ref().is_some_and(|m| names.contains(m)) {
            home.default = None;
        }
        let stops: Vec<ModelName> = names.iter().filter(|m| self.state.is_resident(m)).cloned().collect();
        // A model that is off would be loaded for whoever asks for it.
        let loadable = |name: &ModelName| {
            self.settings.models.get(name).is_some_and(|model| {
                !model.retired && !self.state.is_resident(name) && is_loaded_on_demand(self.state, model)
            })
        };
        let word = match verb {
            Verb::Stop => names.iter().any(loadable),
            _ => self.settings.models.keys().any(loadable),
        };
        if stops.is_empty() && home == self.state.home && !word {
            return Verdict::Nothing(match names {
                [] => "Nothing runs.".to_owned(),
                [one] => format!("{one} is off already."),
                _ => "They are off already.".to_owned(),
            });
        }
        let model = if verb == Verb::Stop { names.first() } else { None };
        self.go(verb, model, stops, Vec::new(), home)
    }

    pub(super) fn restart(&self, model: &Model) -> Verdict {
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
            // What clients asked for stays a guest.
            if !self.state.guests.contains_key(name) {
                home.models.push(name.clone());
            }
        }
        match self.place(model, &stops) {
            Ok(start) => self.go(Verb::Restart, Some(name), stops, vec![start], home),
            Err(unplaced) => self.refuse(Verb::Restart, name, stops, unplaced),
        }
    }

    /// Lifts a quarantine: the model is started in its place, which its stand-in leaves for it.
    pub(super) fn retry(&self, model: &Model) -> Verdict {
        let name = &model.name;
        let wanted = self.state.home.models.contains(name) && !self.state.is_serving(name);
        if !wanted && !self.state.troubles.contains_key(name) {
            return Verdict::Nothing(format!("{name} is not quarantined."));
        }
        let home = self.state.home.clone();
        if !wanted {
            return self.go(Verb::Retry, Some(name), Vec::new(), Vec::new(), home);
        }
        if let Err(refusal) = self.check_itself(model) {
            return Verdict::Refused { refusal: *refusal, nearest: None };
        }
        let stands_in = self.state.stand_in(name).filter(|name| self.state.is_resident(name)).cloned();
        let stops: Vec<ModelName> = stands_in.into_iter().collect();
        match self.place(model, &stops) {
            Ok(start) => self.go(Verb::Retry, Some(name), stops, vec![start], home),
            Err(unplaced) => self.refuse(Verb::Retry, name, stops, unplaced),
        }
    }

    pub(super) fn back(&self) -> Verdict {
        let Some(target) = self.state.previous.clone().filter(|home| *home != self.state.home) else {
            return Verdict::Refused {
                refusal: refusal("nothing_before", "there is nothing to go back to".to_owned(), Vec::new()),
                nearest: None,
            };
        };
        let stops: Vec<ModelName> =
            self.state.residents().map(|(m, _)| m.clone()).filter(|m| !target.models.contains(m)).collect();
        let mut missing = Vec::new();
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
            missing.push(model);
        }
        let mut starts = self.place_all(&missing, &stops, Vec::new()).unwrap_or_default();
        // One after the other shows who is short of what.
        while let Some(model) = missing.get(starts.len()) {
            match self.place_beside(model, &stops, &starts) {
                Ok(start) => starts.push(start),
                Err(unplaced) => return self.refuse(Verb::Back, &model.name, stops, unplaced),
            }
        }
        let model = target.default.clone();
        self.go(Verb::Back, model.as_ref(), stops, starts, target)
    }

    pub(super) fn go(
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

    /// Why a model that is short of room has none only now: memory of models that ended is not back.
    pub(super) fn fits_later(&self, model: &Model, stops: &[ModelName]) -> Option<Refusal> {
        let ending = self.state.claims.iter().filter(|(_, claim)| claim.phase == Phase::Ending);
        let ending: Vec<ModelName> = ending.map(|(name, _)| name.clone()).collect();
        let gone = [stops, &ending].concat();
        (!ending.is_empty() && self.place(model, &gone).is_ok()).then(|| not_back(&model.name, &ending))
    }

    pub(super) fn refuse(
        &self,
        verb: Verb,
        name: &ModelName,
        stops: Vec<ModelName>,
        unplaced: Unplaced,
    ) -> Verdict {
        let mut refusal = *unplaced.refusal;
        if let Some(model) = self.settings.models.get(name)
            && refusal.code == "does_not_fit"
            && refusal.hints.is_empty()
        {
            if let Some(held) = self.fits_later(model, &stops) {
                refusal = held;
            } else {
                self.advise(&mut refusal, verb.as_str(), model, &stops);
                if refusal.hints.is_empty() {
                    let file = model.source.display();
                    refusal.hints.push(if model.memory == Memory::Undeclared {
                        "a smaller quantization: no context and no type of KV cache makes this one fit"
                            .to_owned()
                    } else {
                        format!("less memory in {file}: a smaller context, or fewer layers on the GPU")
                    });
                }
            }
        }
        let nearest = unplaced.short.map(|short| Plan {
            verb,
            model: Some(name.clone()),
            stops,
            starts: vec![short.0],
            home: self.state.home.clone(),
            previous: None,
        });
        Verdict::Refused { refusal, nearest }
    }
}

/// What is short is memory on its way back.
fn not_back(name: &ModelName, ending: &[ModelName]) -> Refusal {
    let whose = ending.iter().map(ModelName::as_str).collect::<Vec<_>>().join(" and ");
    let text = format!("{name} fits as soon as the memory of {whose} is back, which is not proved yet");
    refusal("memory_held", text, vec!["berthctl status --watch".to_owned()])
}

/// A start never evicts, nor does it take the place of what is to come back.
fn place_kept(name: &ModelName, absent: &ModelName) -> Refusal {
    let text = format!("{absent} does not run now and is to come back; beside {name} it would have no place");
    refusal("place_kept", text, vec![format!("berthctl switch {name}"), format!("berthctl stop {absent}")])
}
