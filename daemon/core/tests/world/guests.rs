//! What clients ask for is loaded as a guest, in turn, and home returns.

use berth_core::config::OnDemand;
use berth_core::proxy::Verdict;
use berth_core::report::{Outcome, Verb};
use berth_core::state::Phase;

use super::World;
use crate::story::name;

const PATIENCE: u64 = 300_000;
/// As by default, in milliseconds.
const TURN: u64 = 60_000;
pub(super) const IDLE: u64 = 600_000;

impl World {
    fn on_demand(&mut self, model: &str, on_demand: OnDemand) {
        self.settings.models.get_mut(&name(model)).unwrap().guests.on_demand = on_demand;
    }

    pub(super) fn evict(&mut self) {
        for model in self.names() {
            self.on_demand(model.as_str(), OnDemand::Evict);
        }
    }

    pub(super) fn serving(&self) -> Vec<&str> {
        let serving = self.state.claims.iter().filter(|(_, claim)| claim.phase == Phase::Serving);
        serving.map(|(model, _)| model.as_str()).collect()
    }

    /// What becomes of a request, in short.
    pub(super) fn fate(&self, asked: &str) -> String {
        match self.directory().verdict(asked) {
            Verdict::Send { model, .. } => format!("{model}"),
            Verdict::Wait(model) => format!("waits for {model}"),
            Verdict::Load(model) => format!("has {model} loaded"),
            Verdict::Refused(refused) => format!("{} {}", refused.status, refused.code),
        }
    }

    #[track_caller]
    pub(super) fn comes_to_serve(&mut self, models: &[&str]) {
        let done = self.wait_until(PATIENCE, |world| world.serving() == models && !world.busy());
        assert!(done, "{:?} serve, not {models:?}; last: {:#?}", self.serving(), self.ended.last());
    }
}

#[test]
fn a_guest_comes_beside_home_and_leaves_when_nobody_asks() {
    let mut world = World::with(2, &["glm"]);
    assert_eq!(world.fate("small"), "has small loaded");
    world.client(&name("small"), 20_000);
    assert_eq!(world.fate("small"), "has small loaded");
    world.wait(100);
    assert_eq!(world.fate("small"), "waits for small");
    world.comes_to_serve(&["glm", "small"]);
    assert_eq!((world.home(), world.fate("small")), (vec!["glm"], "small".to_owned()));
    assert_eq!(world.state.guests[&name("small")].cause, "client");
    let ready = world.nature.now;
    // Counted from the last answer's end, never while one is under way.
    world.answers(&name("small"), 400_000);
    world.wait(400_000 + IDLE - 2000);
    assert_eq!(world.serving(), ["glm", "small"]);
    world.comes_to_serve(&["glm"]);
    assert!(world.nature.now >= ready + 400_000 + IDLE);
    assert!(world.state.guests.is_empty());
    assert!(world.ended.iter().all(|swap| swap.outcome == Some(Outcome::Done)), "{:#?}", world.ended);
    // One that is never asked counts from when it was ready.
    world.client(&name("small"), 10_000);
    world.comes_to_serve(&["glm", "small"]);
    world.wait(IDLE - 5000);
    assert_eq!(world.serving(), ["glm", "small"]);
    world.comes_to_serve(&["glm"]);
}

#[test]
fn home_gives_way_only_where_that_is_declared_and_returns() {
    let mut world = World::with(2, &["aeon"]);
    // That is said of guests: what is home's is loaded again for whoever asks.
    world.on_demand("aeon", OnDemand::Never);
    world.on_demand("glm", OnDemand::Never);
    assert_eq!(world.fate("glm"), "409 model_not_loaded");
    world.on_demand("glm", OnDemand::Beside);
    world.client(&name("glm"), 500);
    world.wait(1000);
    assert_eq!((world.fate("glm"), world.serving()), ("503 no_room".to_owned(), vec!["aeon"]));
    // What was refused may be tried again soon: anything can change.
    world.wait(2000);
    assert_eq!(world.fate("glm"), "has glm loaded");
    world.on_demand("glm", OnDemand::Evict);
    // Not while it answers, but for no longer than a turn.
    world.answers(&name("aeon"), 5000);
    let asked = world.nature.now;
    world.client(&name("glm"), 200_000);
    world.wait(4500);
    assert_eq!(world.serving(), ["aeon"]);
    world.comes_to_serve(&["glm"]);
    assert!(world.nature.now < asked + 5000 + 6000, "an idle model gives way at once");
    assert_eq!((world.home(), world.cut), (vec!["aeon"], 0));
    // What gave way is loaded again for who asks, once the guest is idle; here it is asked on and on.
    assert_eq!(world.fate("default"), "has aeon loaded");
    let mut asked = None;
    while world.nature.now < 400_000 && world.serving() != ["aeon"] {
        if world.fate("glm") == "glm" {
            world.answers(&name("glm"), 700);
        }
        if asked.is_none() {
            asked = Some(world.nature.now);
            world.client(&name("aeon"), 300_000);
        }
        world.wait(500);
    }
    let waited = world.nature.now - asked.unwrap();
    assert!((TURN..TURN + 8000).contains(&waited), "it got its turn after {waited} ms");
    assert!(world.state.guests.is_empty() && world.state.displaced.is_empty());
    // Nobody asks: home returns by itself.
    world.wait(10_000);
    world.client(&name("glm"), 200_000);
    world.comes_to_serve(&["glm"]);
    assert!(world.state.is_displaced(&name("aeon")));
    world.comes_to_serve(&["glm"]);
    assert!(world.wait_until(IDLE + 400_000, |world| world.serving() == ["aeon"]));
    assert_eq!(world.nature.failed_allocations, 0);
}

#[test]
fn who_hangs_up_has_nothing_loaded() {
    let mut world = World::with(2, &["aeon"]);
    world.evict();
    world.answers(&name("aeon"), 300_000);
    // While it is looked up whether there is room, in line, and while answers of the one that gives way are waited for.
    world.client(&name("host"), 3);
    world.wait(5000);
    assert_eq!((world.serving(), world.ended.len()), (vec!["aeon"], 1));
    world.client(&name("glm"), 30_000);
    world.wait(40_000);
    assert!(world.clients.usage(&name("glm")).first.is_none() && world.ended.len() == 1);
    world.client(&name("glm"), TURN + 3000);
    world.wait(TURN + 2000);
    assert!(world.swap.as_ref().is_some_and(|swap| swap.holds_back(&name("aeon"))));
    assert!(world.wait_until(2000, |world| !world.busy()));
    assert!(world.serving() == ["aeon"] && world.cut == 0, "{:#?}", world.ended);
    assert_eq!(world.fate("glm"), "has glm loaded", "nothing failed");
    // Once something was stopped for it, it goes on: its client may come again.
    world.client(&name("glm"), TURN + 9000);
    world.wait(TURN + 9500);
    world.comes_to_serve(&["glm"]);
    assert_eq!((world.cut, world.fate("glm").as_str()), (1, "glm"), "cut off at the drain deadline");
}

#[test]
fn a_load_that_fails_is_told_and_not_tried_on_and_on() {
    let mut world = World::with(2, &["aeon"]);
    world.evict();
    world.nature.manner("genesis").dies = 500;
    world.client(&name("genesis"), 200_000);
    assert!(world.wait_until(PATIENCE, |world| world.ended.len() > 1));
    let swap = &world.ended[1];
    assert_eq!((swap.verb, swap.outcome), (Verb::Load, Some(Outcome::Restored)), "{swap:?}");
    assert_eq!((world.fate("genesis"), world.serving()), ("503 load_failed".to_owned(), vec!["aeon"]));
    let refused = |world: &World| match world.directory().verdict("genesis") {
        Verdict::Refused(refused) => refused,
        other => panic!("{other:?}"),
    };
    assert!(refused(&world).text.contains("genesis did not start: "), "{:?}", refused(&world));
    // Each failure takes production away for a while: the second one is the last.
    world.wait(IDLE);
    let loads = world.ended.iter().filter(|swap| swap.verb == Verb::Load).count();
    assert_eq!((loads, world.fate("genesis").as_str()), (2, "503 model_quarantined"));
    assert_eq!((world.serving(), world.home()), (vec!["aeon"], vec!["aeon"]));
    // One that served since the boot may fail more often, after pauses that grow.
    world.nature.manner("glm").load = 500;
    world.client(&name("glm"), 2000);
    world.comes_to_serve(&["glm"]);
    assert!(world.wait_until(2 * IDLE, |world| world.serving() == ["aeon"]));
    world.nature.manner("glm").dies = 100;
    let before = world.ended.len();
    let mut failed = Vec::new();
    while world.fate("glm") != "503 model_quarantined" {
        world.client(&name("glm"), 100);
        world.wait(100);
        let loads = world.ended[before..].iter().filter(|swap| swap.verb == Verb::Load).count();
        if loads > failed.len() {
            failed.push(world.nature.now);
        }
        assert!(failed.len() <= 5, "{failed:?}");
    }
    let pauses: Vec<u64> = failed.windows(2).map(|two| (two[1] - two[0]) / 1000).collect();
    assert!(pauses.iter().zip([1, 2, 4, 8]).all(|(paused, least)| *paused >= least), "{pauses:?}");
}

/// Who is not first in line takes nobody's place, not even one that nobody uses: or the first would wait for it next.
#[test]
fn only_the_first_in_line_displaces() {
    let mut world = World::with(2, &[]);
    world.evict();
    // These two never serve at once.
    let port = world.settings.models[&name("small")].port;
    world.settings.models.get_mut(&name("tiny")).unwrap().port = port;
    for model in ["glm", "small"] {
        world.client(&name(model), 5000);
    }
    world.comes_to_serve(&["glm", "small"]);
    world.wait(5000);
    world.answers(&name("glm"), 300_000);
    world.client(&name("aeon"), 300_000);
    world.wait(1000);
    world.client(&name("tiny"), 300_000);
    // Nobody has to give way for this one.
    world.client(&name("host"), 300_000);
    world.wait(20_000);
    assert_eq!(world.serving(), ["glm", "host", "small"]);
    assert!(world.wait_until(TURN, |world| world.serving() == ["aeon", "host"]), "{:?}", world.serving());
}

#[test]
fn an_operator_comes_before_guests() {
    let mut world = World::with(2, &["aeon"]);
    world.evict();
    // What an operator stopped is loaded for nobody.
    world.carries_out(Verb::Start, Some("host"));
    world.carries_out(Verb::Stop, Some("host"));
    assert_eq!(world.fate("host"), "409 model_stopped");
    world.carries_out(Verb::Start, Some("host"));
    world.carries_out(Verb::StopAll, None);
    world.carries_out(Verb::Start, Some("aeon"));
    // A load that has stopped production gives way to a switch, which then says what serves.
    world.nature.manner("genesis").load = 15_000;
    world.client(&name("genesis"), 5000);
    assert!(world.wait_until(PATIENCE, |world| world.phase("genesis").is_some()));
    world.wait(3000);
    let asked = world.nature.now;
    assert_eq!(world.ask(Verb::Switch, Some("glm")).as_deref(), Some("waiting"));
    world.wait(500);
    assert_ne!(world.fate("genesis"), "503 load_failed", "its load did not fail");
    world.comes_to_serve(&["glm"]);
    assert!(world.nature.now < asked + 8000, "nothing was started again in between");
    assert_eq!((world.home(), world.state.guests.len()), (vec!["glm"], 0));
    // While memory is on its way back, too.
    let mut world = World::with(2, &["aeon"]);
    world.evict();
    world.nature.manner("aeon").linger = 3000;
    world.client(&name("genesis"), 3000);
    assert!(world.wait_until(PATIENCE, |world| world.phase("aeon") == Some(Phase::Ending)));
    world.wait(500);
    assert_eq!(world.ask(Verb::Switch, Some("glm")).as_deref(), Some("waiting"));
    world.comes_to_serve(&["glm"]);
    assert_eq!((world.home(), world.nature.failed_allocations), (vec!["glm"], 0));
    // A guest that an operator wants is home's.
    world.client(&name("small"), 20_000);
    world.comes_to_serve(&["glm", "small"]);
    world.carries_out(Verb::Start, Some("small"));
    assert_eq!((world.home(), world.state.guests.len()), (vec!["glm", "small"], 0));
    world.wait(2 * IDLE);
    assert_eq!(world.serving(), ["glm", "small"]);
}

#[test]
fn guests_outlive_berthd_and_not_the_machine() {
    let mut world = World::with(2, &["aeon"]);
    world.evict();
    world.client(&name("glm"), 20_000);
    world.comes_to_serve(&["glm"]);
    world.berthd_dies();
    world.wait(20_000);
    assert_eq!((world.serving(), world.state.guests.len()), (vec!["glm"], 1));
    assert!(world.state.is_displaced(&name("aeon")));
    world.wait(IDLE - 30_000);
    assert_eq!(world.serving(), ["glm"], "its idle time begins anew");
    world.comes_to_serve(&["aeon"]);
    world.client(&name("glm"), 20_000);
    world.comes_to_serve(&["glm"]);
    world.power_fails();
    world.comes_to_serve(&["aeon"]);
    assert!(world.state.guests.is_empty() && world.state.displaced.is_empty());
    // A guest that dies is not brought back.
    world.client(&name("glm"), 8000);
    world.comes_to_serve(&["glm"]);
    world.wait(10_000);
    world.nature.crash(&name("glm"));
    world.comes_to_serve(&["aeon"]);
    assert_eq!(world.state.guests.len(), 0);
}
