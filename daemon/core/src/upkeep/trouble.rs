//! Failures of models that should serve: counted, answered with pauses that grow, and in the end with quarantine.

use std::time::Duration;

use super::{Deed, Upkeep};
use crate::name::ModelName;
use crate::report::{ModelState, What};
use crate::state::{During, Fault, Quarantine, State, Trouble};
use crate::swap::World;

/// A model that did not become ready since the boot is quarantined at this many failed starts in a row: the last good
/// one is to serve soon after a boot, and a machine that goes down over a start shall not do so again and again.
const STARTS_AFTER_BOOT: usize = 2;

impl Upkeep {
    /// A model that should serve failed.
    pub(super) fn failed(
        &mut self,
        world: &mut World,
        model: &ModelName,
        during: During,
        why: String,
    ) -> Vec<Deed> {
        match during {
            During::Service => _ = self.errors.insert(model.clone(), format!("{model} failed: {why}")),
            During::Start => _ = self.errors.insert(model.clone(), format!("{model} did not start: {why}")),
            During::Boot | During::Other => {}
        }
        let quarantined = note(world.state, world.settings.restart, model, during, why, world.now_ms);
        let mut deeds = vec![Deed::Record];
        if let Some(why) = quarantined {
            let text = format!("{model} is quarantined: it {why}; `berthctl retry {model}` lifts that");
            let what = What::Model { model: model.clone(), state: ModelState::Quarantined, text };
            deeds.push(Deed::Say(what));
        }
        deeds
    }
}

/// How long a model that failed is left alone from now on; None where it isn't.
pub(crate) fn pause(world: &World, model: &ModelName) -> Option<Duration> {
    let failures = &world.state.troubles.get(model)?.failures;
    let last = failures.back()?.at_ms;
    let restart = &world.settings.restart;
    let doublings = u32::try_from(failures.len()).unwrap_or(u32::MAX).saturating_sub(1).min(16);
    let pause = restart.first.saturating_mul(1 << doublings).min(restart.longest);
    // A clock that was set back prolongs no pause.
    let passed = Duration::from_millis(world.now_ms.saturating_sub(last.min(world.now_ms)));
    pause.checked_sub(passed).filter(|left| !left.is_zero())
}

/// Adds a failure. Why the model is quarantined, where it is by that.
pub(super) fn note(
    state: &mut State,
    restart: crate::config::Restart,
    model: &ModelName,
    during: During,
    text: String,
    now_ms: u64,
) -> Option<String> {
    let served = state.served.get(model);
    let healthy = served.is_some_and(|served| {
        during == During::Service && now_ms.saturating_sub(served.at_ms) >= millis(restart.healthy)
    });
    let after_boot = served.is_none_or(|served| served.boot != state.boot);
    let served_at = served.map_or(0, |served| served.at_ms);
    let trouble = state.troubles.entry(model.clone()).or_default();
    if healthy {
        trouble.failures.clear();
    }
    while trouble.failures.len() >= Trouble::KEPT.max(restart.failures as usize) {
        trouble.failures.pop_front();
    }
    trouble.failures.push_back(Fault { at_ms: now_ms, during, text });
    let why = verdict(trouble, restart, after_boot.then_some(served_at), now_ms)
        .filter(|_| trouble.quarantined.is_none())?;
    trouble.quarantined = Some(Quarantine { since_ms: now_ms, why: why.clone() });
    Some(why)
}

/// Whether these failures are too many. `not_since`: when it served last, where that was before this boot.
fn verdict(
    trouble: &Trouble,
    restart: crate::config::Restart,
    not_since: Option<u64>,
    now_ms: u64,
) -> Option<String> {
    let newest = trouble.failures.back()?;
    if newest.during == During::Other {
        return None;
    }
    let counted = || trouble.failures.iter().filter(|fault| fault.during != During::Other);
    if let Some(not_since) = not_since {
        // A start that was followed by service is the beginning of no row.
        let starts = |fault: &&Fault| fault.during != During::Service && fault.at_ms > not_since;
        let row = counted().rev().take_while(starts).count();
        if row >= STARTS_AFTER_BOOT {
            return Some(format!(
                "failed to start {row} times in a row after a boot, at last: {}",
                newest.text
            ));
        }
    }
    let from = now_ms.saturating_sub(millis(restart.window));
    let recent = counted().filter(|fault| fault.at_ms >= from).count();
    let window = humantime::format_duration(restart.window);
    (recent >= restart.failures as usize)
        .then(|| format!("failed {recent} times within {window}, at last: {}", newest.text))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Restart;

    #[test]
    fn a_row_of_boots_ends_where_the_model_served() {
        let restart = Restart {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(300),
            healthy: Duration::from_secs(600),
            failures: 5,
            window: Duration::from_secs(600),
        };
        let model = "aeon".parse::<ModelName>().unwrap();
        let mut state = State::default();
        let mut goes_down = |serves: bool, at_ms: u64| {
            state.boot = at_ms.to_string();
            let quarantined = note(&mut state, restart, &model, During::Boot, "down".to_owned(), at_ms);
            if serves {
                state.note_ready(&model, at_ms + 1);
            }
            quarantined.is_some()
        };
        for at_ms in [1000, 2000, 3000] {
            assert!(!goes_down(true, at_ms), "it served after the boot before");
        }
        assert!(!goes_down(false, 4000));
        assert!(goes_down(false, 5000), "twice in a row");
    }
}
