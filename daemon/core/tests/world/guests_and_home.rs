//! What clients have loaded, beside what operators say and what of home fails.

use berth_core::report::{Outcome, Verb};
use berth_core::state::Phase;

use super::World;
use super::guests::IDLE;
use super::nature::NEVER;
use crate::story::name;

/// aeon is home and gave way to glm, which only fits in its place.
fn displaced() -> World {
    let mut world = World::with(2, &["aeon"]);
    world.evict();
    world.client(&name("glm"), 5000);
    world.comes_to_serve(&["glm"]);
    world.wait(5000);
    world
}

#[test]
fn an_operators_word_on_a_guest_counts_as_on_any_model() {
    // What can't serve beside it is replaced by a switch, as ever.
    let mut world = displaced();
    let swap = world.carries_out(Verb::Switch, Some("glm"));
    assert_eq!((swap.outcome, world.home()), (Some(Outcome::Done), vec!["glm"]));
    world.wait(2 * IDLE);
    assert_eq!((world.serving(), world.state.guests.len()), (vec!["glm"], 0));
    // A start never takes what is to come back from its place.
    let mut world = displaced();
    assert_eq!(world.ask(Verb::Start, Some("glm")).as_deref(), Some("place_kept"));
    // A restart changes nothing of who is home's.
    let swap = world.carries_out(Verb::Restart, Some("glm"));
    assert_eq!((swap.outcome, world.home()), (Some(Outcome::Done), vec!["aeon"]));
    assert!(world.state.guests.contains_key(&name("glm")) && world.state.is_displaced(&name("aeon")));
    world.wait(2 * IDLE);
    assert_eq!(world.serving(), ["aeon"]);
}

#[test]
fn what_is_stopped_while_it_is_loaded_stays_stopped() {
    for waits in [20, 300, 2000] {
        // Before anything of it runs, and while it loads.
        let mut world = World::with(2, &["aeon"]);
        world.evict();
        world.client(&name("glm"), 100_000);
        world.wait(waits);
        assert!(world.busy(), "after {waits} ms");
        _ = world.ask(Verb::Stop, Some("glm"));
        world.comes_to_serve(&["aeon"]);
        world.wait(50_000);
        assert_eq!((world.serving(), world.fate("glm")), (vec!["aeon"], "409 model_stopped".to_owned()));
    }
    // All of it: nobody's request brings anything back, until an operator starts something.
    let mut world = displaced();
    world.carries_out(Verb::StopAll, None);
    for model in ["aeon", "glm", "tiny"] {
        assert_eq!(world.fate(model), "409 model_stopped");
        world.client(&name(model), 1000);
    }
    world.wait(50_000);
    assert_eq!(world.serving(), [""; 0]);
    world.carries_out(Verb::Start, Some("small"));
    assert_eq!((world.fate("tiny"), world.fate("glm")), ("has tiny loaded".into(), "has glm loaded".into()));
    // One that is off, and that somebody waits for.
    let mut world = World::with(2, &["glm"]);
    assert_eq!(world.fate("tiny"), "has tiny loaded");
    world.carries_out(Verb::Stop, Some("tiny"));
    assert_eq!((world.fate("tiny"), world.home()), ("409 model_stopped".to_owned(), vec!["glm"]));
}

#[test]
fn who_asks_for_what_is_being_loaded_takes_over() {
    let mut world = World::with(2, &["aeon"]);
    world.evict();
    world.nature.manner("glm").load = 15_000;
    world.client(&name("glm"), 50_000);
    assert!(world.wait_until(5000, |world| world.phase("glm") == Some(Phase::Starting)));
    world.wait(5000);
    let asked = world.nature.now;
    assert_eq!(world.ask(Verb::Start, Some("glm")).as_deref(), Some("place_kept"), "aeon is to come back");
    assert_eq!(world.ask(Verb::Switch, Some("glm")).as_deref(), Some("taken over"));
    world.comes_to_serve(&["glm"]);
    assert!(world.nature.now < asked + 12_000, "it was not started anew");
    let swap = world.ended.last().unwrap();
    assert_eq!((swap.verb, swap.by.is_some()), (Verb::Switch, true), "{swap:?}");
    assert_eq!((world.home(), world.state.guests.len(), world.state.displaced.len()), (vec!["glm"], 0, 0));
    // What the load displaces may be asked for again, at any moment.
    for waits in [20, 100, 1000] {
        let mut world = World::with(2, &["aeon"]);
        world.evict();
        world.nature.manner("aeon").linger = 500;
        world.client(&name("genesis"), 4000);
        world.wait(waits);
        assert_eq!(world.ask(Verb::Switch, Some("aeon")).as_deref(), Some("waiting"), "after {waits} ms");
        world.comes_to_serve(&["aeon"]);
    }
    // What has room beside it, too; it waits for its turn as any other.
    let mut world = World::with(2, &["aeon"]);
    world.evict();
    world.client(&name("genesis"), 2000);
    world.wait(1000);
    assert_eq!(world.ask(Verb::Start, Some("host")).as_deref(), Some("waiting"));
    world.comes_to_serve(&["aeon", "host"]);
}

#[test]
fn what_of_home_failed_comes_before_guests() {
    // A guest is asked on and on; another one waits, and would fit into the place of what has failed.
    let mut world = World::with(2, &["glm"]);
    for model in ["small", "tiny", "host"] {
        world.settings.models.get_mut(&name(model)).unwrap().policy =
            world.settings.models[&name("glm")].policy.clone();
    }
    world.client(&name("small"), 2000);
    world.comes_to_serve(&["glm", "small"]);
    world.nature.crash(&name("glm"));
    assert!(world.wait_until(5000, |world| world.phase("glm") != Some(Phase::Serving)));
    world.client(&name("tiny"), 60_000);
    world.comes_to_serve(&["glm", "small", "tiny"]);
    let order: Vec<_> = world.ended.iter().filter_map(|swap| swap.model.as_ref()).collect();
    let at = |model: &str| order.iter().rposition(|other| other.as_str() == model);
    assert!(at("glm") < at("tiny"), "{order:?}");

    // Guests that were there first make room for what of home is missed.
    let mut world = World::with(1, &["glm"]);
    world.nature.foreign.insert(0, 12_000);
    world.nature.crash(&name("glm"));
    world.wait(3000);
    world.nature.foreign.insert(0, 9000);
    world.client(&name("tiny"), 500);
    world.wait(3000);
    // glm is to come back: nothing is placed where it would be.
    assert_eq!((world.serving(), world.nature.failed_allocations), (vec![], 0));
    world.nature.foreign.clear();
    world.comes_to_serve(&["glm"]);
}

#[test]
fn home_that_can_not_serve_keeps_nobody_out() {
    let mut world = World::with(2, &["aeon"]);
    world.evict();
    world.nature.manner("aeon").dies = 100;
    world.nature.crash(&name("aeon"));
    assert!(world.wait_until(IDLE, |world| world.state.quarantine(&name("aeon")).is_some()));
    world.client(&name("glm"), 5000);
    world.comes_to_serve(&["glm"]);
    assert_eq!(world.home(), ["aeon"]);
}

#[test]
fn who_can_not_go_stands_in_nobodys_way() {
    let mut world = World::with(2, &[]);
    world.evict();
    // These two never serve at once.
    let port = world.settings.models[&name("host")].port;
    world.settings.models.get_mut(&name("tiny")).unwrap().port = port;
    world.nature.manner("glm").linger = NEVER / 4;
    for model in ["glm", "host"] {
        world.client(&name(model), 5000);
    }
    world.comes_to_serve(&["glm", "host"]);
    world.nature.crash(&name("glm"));
    world.wait(10_000);
    // There is room for this one once memory is back that may never be; that says nothing about the next.
    world.client(&name("genesis"), 200_000);
    world.wait(1000);
    world.client(&name("tiny"), 50_000);
    world.comes_to_serve(&["tiny"]);
    assert_eq!(world.fate("genesis"), "has genesis loaded");
}
