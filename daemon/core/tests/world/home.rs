//! Something always serves: failures that are counted, stand-ins, stops by hand, and a berthd that dies.

use berth_core::name::ModelName;
use berth_core::report::{Outcome, Verb};
use berth_core::state::Phase;

use super::World;
use super::nature::NEVER;
use crate::story::name;

const PATIENCE: u64 = 600_000;

/// aeon served, and now genesis is home.
fn genesis_after_aeon() -> World {
    let mut world = World::new(2);
    for model in ["aeon", "genesis"] {
        assert_eq!(world.ask(Verb::Switch, Some(model)), None);
        assert!(world.wait_until(PATIENCE, |world| !world.busy()));
    }
    assert_eq!(home(&world), ["genesis"]);
    world.touched.clear();
    world
}

fn home(world: &World) -> Vec<&str> {
    world.state.home.models.iter().map(ModelName::as_str).collect()
}

fn stands_in(world: &World, model: &str, of: &str) -> bool {
    world.state.is_serving(&name(model)) && world.state.stand_in(&name(of)) == Some(&name(model))
}

#[track_caller]
fn quarantined(world: &World, model: &str) -> String {
    world.state.quarantine(&name(model)).expect("it is quarantined").why.clone()
}

#[test]
fn what_keeps_failing_is_quarantined_and_the_last_good_one_stands_in() {
    let mut world = genesis_after_aeon();
    world.nature.manner("genesis").dies = 4000;
    world.nature.crash(&name("genesis"));
    assert!(world.wait_until(PATIENCE, |world| stands_in(world, "aeon", "genesis")));
    assert_eq!(quarantined(&world, "genesis"), "failed 5 times within 10m, at last: it exited with status 1");
    assert_eq!(home(&world), ["genesis"], "home is what the operator said");
    let starts = world.touched.len();
    world.wait(PATIENCE);
    assert_eq!(world.touched.len(), starts, "nothing is tried any more");

    assert_eq!(world.ask(Verb::Switch, Some("genesis")), Some("quarantined".to_owned()));
    // Over a restart of berthd and over a boot.
    world.berthd_dies();
    world.wait(5000);
    assert!(stands_in(&world, "aeon", "genesis") && world.touched.len() == starts);
    world.power_fails();
    assert!(world.wait_until(PATIENCE, |world| stands_in(world, "aeon", "genesis")));

    // A retry that fails changes nothing; one that succeeds ends all of it.
    world.nature.manner("genesis").dies = 10;
    assert_eq!(world.ask(Verb::Retry, Some("genesis")), None);
    assert!(world.wait_until(PATIENCE, |world| !world.busy()));
    assert_eq!(world.ended.last().unwrap().outcome, Some(Outcome::Restored));
    assert!(stands_in(&world, "aeon", "genesis"));
    world.nature.manner("genesis").dies = NEVER;
    assert_eq!(world.ask(Verb::Retry, Some("genesis")), None);
    assert!(world.wait_until(PATIENCE, |world| !world.busy() && world.nature.ready(&name("genesis"))));
    assert!(
        world.state.troubles.is_empty() && world.state.stand_ins.is_empty(),
        "{:?}",
        world.state.troubles
    );
    assert_eq!(world.nature.failed_allocations, 0);
}

#[test]
fn pauses_grow_and_a_long_health_forgives() {
    let mut world = genesis_after_aeon();
    let mut pauses = Vec::new();
    for _ in 0..3 {
        world.nature.crash(&name("genesis"));
        let fell = world.nature.now;
        assert!(
            world.wait_until(PATIENCE, |world| world
                .state
                .claims
                .values()
                .any(|c| c.phase == Phase::Starting))
        );
        pauses.push((world.nature.now - fell) / 1000);
        assert!(world.wait_until(PATIENCE, |world| !world.busy()));
    }
    assert!(pauses[0] < pauses[1] && pauses[1] < pauses[2], "{pauses:?}");
    world.wait(700_000);
    world.nature.crash(&name("genesis"));
    world.wait(2000);
    assert_eq!(world.state.troubles[&name("genesis")].failures.len(), 1);
}

#[test]
fn the_machine_that_goes_down_over_a_start_does_so_twice_at_most() {
    let mut world = genesis_after_aeon();
    for boot in 0..3 {
        world.power_fails();
        let loads = world.wait_until(20_000, |world| {
            world.state.claims.get(&name("genesis")).is_some_and(|claim| claim.phase == Phase::Starting)
        });
        assert_eq!(loads, boot < 2, "boot {boot}");
        world.wait(500);
    }
    let why = "failed to start 2 times in a row after a boot, at last: the machine went down while it was being started";
    assert_eq!(quarantined(&world, "genesis"), why);
    assert!(world.wait_until(PATIENCE, |world| stands_in(world, "aeon", "genesis")));
}

#[test]
fn who_gives_way_to_an_operator_has_not_failed() {
    let mut world = genesis_after_aeon();
    world.power_fails();
    for _ in 0..3 {
        let loads =
            world.wait_until(60_000, |world| world.state.is_resident(&name("genesis")) && world.busy());
        assert!(loads, "{:?}", world.state.troubles);
        assert_eq!(world.ask(Verb::Start, Some("host")), Some("waiting".to_owned()));
        assert!(world.wait_until(60_000, |world| world.state.is_serving(&name("host"))));
        world.ask(Verb::Stop, Some("host"));
        assert!(world.wait_until(60_000, |world| world.nature.is_down(&name("host"))));
    }
    assert!(world.state.quarantine(&name("genesis")).is_none());
    assert!(world.wait_until(60_000, |world| world.nature.ready(&name("genesis")) && !world.busy()));
}

#[test]
fn files_that_are_late_are_waited_for_and_then_another_serves_meanwhile() {
    let mut world = genesis_after_aeon();
    let until = world.nature.now + 500_000;
    world.nature.unmounted_until.insert(name("genesis"), until);
    world.power_fails();
    world.wait(250_000);
    assert!(world.touched.is_empty(), "it is waited for");
    let why = &world.upkeep.waits[&name("genesis")].why;
    assert!(why.starts_with("/models/x: it does not exist; it is waited for, "), "{why}");
    assert!(world.wait_until(100_000, |world| stands_in(world, "aeon", "genesis")));
    assert!(world.wait_until(PATIENCE, |world| world.nature.ready(&name("genesis")) && !world.busy()));
    assert!(world.state.stand_ins.is_empty() && world.state.quarantine(&name("genesis")).is_none());
}

#[test]
fn a_stop_by_hand_is_an_operators_word() {
    let mut world = genesis_after_aeon();
    world.nature.stop_by_hand(&name("genesis"));
    world.wait(60_000);
    assert!(home(&world).is_empty() && world.state.claims.is_empty());
    assert!(world.state.troubles.is_empty(), "it did not fail");
    assert!(world.state.stopped[&name("genesis")].by_hand);
    assert_eq!(world.ask(Verb::Back, None), None);
    assert!(world.wait_until(PATIENCE, |world| !world.busy()));
    assert_eq!(home(&world), ["genesis"]);
    assert!(world.state.stopped.is_empty());
}

#[test]
fn a_swap_that_was_cut_off_goes_forward_when_it_is_ready_and_else_back() {
    for ready in [true, false] {
        let mut world = World::new(2);
        assert_eq!(world.ask(Verb::Switch, Some("aeon")), None);
        assert!(world.wait_until(PATIENCE, |world| !world.busy()));
        assert_eq!(world.ask(Verb::Switch, Some("genesis")), None);
        assert!(world.wait_until(PATIENCE, |world| !world.nature.is_down(&name("genesis"))));
        // What systemd says of it is not heard, so that it isn't committed.
        world.unheard = true;
        if ready {
            assert!(world.wait_until(PATIENCE, |world| world.nature.ready(&name("genesis"))));
        }
        assert!(world.busy());
        world.berthd_dies();
        world.unheard = false;
        let expected = if ready { "genesis" } else { "aeon" };
        assert!(world.wait_until(PATIENCE, |world| {
            !world.busy() && home(world) == [expected] && world.nature.ready(&name(expected))
        }));
        let started = world.touched.iter().filter(|model| **model == name("genesis")).count();
        assert_eq!(started, if ready { 1 } else { 2 }, "started, and stopped where it was not ready");
        assert_eq!(world.nature.failed_allocations, 0);
    }
}
