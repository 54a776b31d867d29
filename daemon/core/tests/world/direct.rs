//! Each path of the design's machine once.

use berth_core::facts::Active;
use berth_core::name::ModelName;
use berth_core::report::{Outcome, Step, StepState, SwapSummary, Verb};
use berth_core::state::Phase;

use super::World;
use super::nature::{Manner, NEVER};
use crate::story::{Machine, name, unit};

const PATIENCE: u64 = 300_000;

impl World {
    /// Asks, waits until that swap has ended and gives it back.
    pub(super) fn carries_out(&mut self, verb: Verb, model: Option<&str>) -> SwapSummary {
        let before = self.ended.len();
        assert_eq!(self.ask(verb, model), None);
        assert!(self.wait_until(PATIENCE, |world| world.ended.len() > before), "stuck");
        self.ended[before].clone()
    }

    pub(super) fn with(gpus: usize, models: &[&str]) -> Self {
        let mut world = Self::new(gpus);
        for model in models {
            assert_eq!(world.carries_out(Verb::Start, Some(model)).outcome, Some(Outcome::Done));
        }
        world.touched.clear();
        world
    }

    pub(super) fn home(&self) -> Vec<&str> {
        self.state.home.models.iter().map(ModelName::as_str).collect()
    }

    pub(super) fn phase(&self, model: &str) -> Option<Phase> {
        self.state.claims.get(&name(model)).map(|claim| claim.phase)
    }
}

fn reason(swap: &SwapSummary) -> &str {
    swap.reason.as_deref().unwrap_or_default()
}

#[test]
fn a_switch_waits_for_each_gpu() {
    let mut world = World::with(2, &["aeon"]);
    world.nature.manner("aeon").linger = 1250;
    world.nature.manner("aeon").ramp = true;
    let swap = world.carries_out(Verb::Switch, Some("genesis"));
    assert_eq!(swap.outcome, Some(Outcome::Done), "{swap:?}");
    assert_eq!((world.home(), world.nature.failed_allocations), (vec!["genesis"], 0));
    assert!(swap.early_start_would_fail);
    assert!(swap.held_at_exit.unwrap().gib() > 20.0, "{:?}", swap.held_at_exit);
    let released = swap.steps.iter().find(|step| step.step == Step::Released).unwrap();
    assert!((2400..2700).contains(&released.elapsed_ms), "{released:?}");
    assert_eq!(swap.undo.as_deref(), Some("berthctl back"));
    assert_eq!(swap.gap_ms, Some(swap.elapsed_ms));
    let skipped = swap.steps.iter().filter(|step| step.state == StepState::Skipped).count();
    assert_eq!(skipped, 2, "prewarming and draining are said to be skipped");

    let swap = world.carries_out(Verb::Back, None);
    assert_eq!((swap.outcome, world.home()), (Some(Outcome::Done), vec!["aeon"]));
    let swap = world.carries_out(Verb::Restart, Some("default"));
    assert_eq!((swap.outcome, swap.stops.len(), world.home()), (Some(Outcome::Done), 1, vec!["aeon"]));
    let swap = world.carries_out(Verb::StopAll, None);
    assert_eq!((swap.outcome, world.home()), (Some(Outcome::Done), vec![]));
    assert!(world.state.claims.is_empty());
    world.wait(PATIENCE);
    assert!(world.state.claims.is_empty(), "what was stopped stays stopped");
    world.carries_out(Verb::Back, None);
    assert_eq!(world.home(), ["aeon"]);
}

#[test]
fn a_start_that_fails_is_rolled_back() {
    for (fault, says) in [
        ("never ready", "genesis did not start: it was not ready after 20.0 s: it is loading"),
        ("dies at once", "genesis did not start: it failed without a known reason; its log says \"no\""),
        ("dies later", "genesis did not start: it failed without a known reason; its log says \"no\""),
        ("unstartable", "genesis did not start: it failed without a known reason; its log says \"no\""),
        ("no memory", "genesis did not start: it failed without a known reason; its log says \"no\""),
    ] {
        let mut world = World::with(2, &["aeon"]);
        let manner = world.nature.manner("genesis");
        match fault {
            "never ready" => manner.load = NEVER,
            "dies at once" => manner.dies = 10,
            "dies later" => manner.dies = 2000,
            "unstartable" => manner.unstartable = true,
            // Two cards are asked for, one is given to somebody else between admission and allocation.
            _ => manner.linger = 700,
        }
        assert_eq!(world.ask(Verb::Switch, Some("genesis")), None);
        if fault == "no memory" {
            assert!(world.wait_until(PATIENCE, |world| world.phase("genesis").is_some()));
            while world.touched.last() != Some(&name("genesis")) {
                world.wait(1);
            }
            world.nature.foreign.insert(1, 3000);
            world.wait(60);
            assert_eq!(world.nature.failed_allocations, 1);
            world.nature.foreign.clear();
        }
        assert!(world.wait_until(PATIENCE, |world| world.ended.len() > 1), "stuck");
        let swap = &world.ended[1];
        assert_eq!(swap.outcome, Some(Outcome::Restored), "{fault}: {swap:?}");
        assert_eq!(reason(swap), says, "{fault}");
        assert_eq!((world.home(), world.phase("aeon")), (vec!["aeon"], Some(Phase::Serving)), "{fault}");
        assert_eq!(world.phase("genesis"), None, "{fault}");
        assert!(world.nature.ready(&name("aeon")), "{fault}");
    }
}

#[test]
fn a_cold_load_from_a_slow_disk_is_no_hang() {
    // Its memory on the GPUs is there at once, and the deadline of 20 s passes while it reads.
    let mut world = World::new(2);
    let manner = world.nature.manner("aeon");
    (manner.load, manner.reads) = (35_000, 34_500);
    let swap = world.carries_out(Verb::Start, Some("aeon"));
    assert_eq!((swap.outcome, world.home()), (Some(Outcome::Done), vec!["aeon"]), "{swap:?}");

    // What reads no more is not waited for, and nothing is waited for beyond twice the deadline.
    for (reads, fails_after) in [(24_000, 25_500..28_000), (NEVER, 40_000..40_500)] {
        let mut world = World::new(2);
        let manner = world.nature.manner("aeon");
        (manner.load, manner.reads) = (NEVER, reads);
        let swap = world.carries_out(Verb::Start, Some("aeon"));
        assert_eq!(swap.outcome, Some(Outcome::Restored), "{swap:?}");
        let ready = swap.steps.iter().find(|step| step.step == Step::Ready).unwrap();
        assert!(fails_after.contains(&ready.elapsed_ms), "{ready:?}");
    }
}

#[test]
fn a_victim_that_ignores_sigterm_is_killed() {
    let mut world = World::with(2, &["aeon"]);
    world.nature.manner("aeon").term = NEVER;
    let swap = world.carries_out(Verb::Switch, Some("genesis"));
    assert_eq!(swap.outcome, Some(Outcome::Done), "{swap:?}");
    let stopped = swap.steps.iter().find(|step| step.step == Step::Stopped).unwrap();
    assert!((5000..6000).contains(&stopped.elapsed_ms), "{stopped:?}");
}

/// No answer is cut off before its model's deadline, and none is waited for any longer.
#[test]
fn answers_that_are_under_way_end_first() {
    for (answers, waits, cut) in [(0, 0..1, false), (3000, 3000..3200, false), (60_000, 8000..8200, true)] {
        let mut world = World::with(2, &["aeon"]);
        if answers > 0 {
            world.answers(&name("aeon"), answers);
        }
        let swap = world.carries_out(Verb::Switch, Some("genesis"));
        assert_eq!(swap.outcome, Some(Outcome::Done), "{swap:?}");
        let drained = swap.steps.iter().find(|step| step.step == Step::Drained).unwrap();
        assert!(waits.contains(&drained.elapsed_ms), "{drained:?}");
        assert_eq!(
            (drained.state == StepState::Skipped, drained.detail.contains("cut off")),
            (answers == 0, cut)
        );
    }
}

/// What berthd dies over while it still waits for an answer has not begun: all is as it was.
#[test]
fn nothing_has_begun_while_answers_end() {
    for (verb, model) in [(Verb::Stop, "aeon"), (Verb::Switch, "genesis")] {
        let mut world = World::with(2, &["aeon"]);
        world.answers(&name("aeon"), 5000);
        assert_eq!(world.ask(verb, Some(model)), None);
        world.wait(1000);
        assert!(world.busy(), "the answer is waited for");
        // Whatever else is written down meanwhile.
        world.record();
        assert_eq!(world.home(), ["aeon"], "{verb:?}");
        world.berthd_dies();
        world.wait(20_000);
        assert!(!world.busy() && world.nature.ready(&name("aeon")), "{verb:?}");
        assert_eq!((world.home(), world.nature.ready(&name("genesis"))), (vec!["aeon"], false), "{verb:?}");
    }
}

/// The time that a server has to end by itself begins when it is told to.
#[test]
fn a_slow_polkit_does_not_get_a_victim_killed() {
    let mut world = World::with(2, &["aeon"]);
    *world.nature.manner("aeon") = Manner { heeds: 15_000, term: 3000, kill: NEVER, ..Manner::default() };
    let swap = world.carries_out(Verb::Switch, Some("genesis"));
    assert_eq!(swap.outcome, Some(Outcome::Done), "{swap:?}");
    let stopped = swap.steps.iter().find(|step| step.step == Step::Stopped).unwrap();
    assert!((18_000..19_000).contains(&stopped.elapsed_ms), "{stopped:?}");
}

#[test]
fn a_victim_that_survives_sigkill_is_not_started_over() {
    let mut world = World::with(2, &["aeon"]);
    (world.nature.manner("aeon").term, world.nature.manner("aeon").kill) = (NEVER, 40_000);
    let swap = world.carries_out(Verb::Switch, Some("genesis"));
    assert_eq!(swap.outcome, Some(Outcome::Degraded));
    assert!(
        reason(&swap).contains("aeon survives SIGKILL since 10 s: pid 1001 (server) holds 14.0 GiB on GPU 0")
    );
    assert_eq!((world.home(), world.phase("aeon")), (vec!["aeon"], Some(Phase::Ending)));
    assert!(!world.touched.contains(&name("genesis")));
    // It ends after all: the late proof is taken, and home is restored.
    assert!(world.wait_until(PATIENCE, |world| world.nature.ready(&name("aeon")) && !world.busy()));
    assert_eq!(world.phase("aeon"), Some(Phase::Serving));
    assert_eq!(world.ended.last().unwrap().verb, Verb::Restore);
}

#[test]
fn memory_that_does_not_come_back_is_evidence() {
    let mut world = World::with(2, &["aeon"]);
    world.nature.manner("aeon").linger = 15_000;
    let swap = world.carries_out(Verb::Switch, Some("genesis"));
    assert_eq!(swap.outcome, Some(Outcome::Degraded));
    let text = "memory was not back after 10.0 s: GPU 0: 14.0 GiB of aeon's memory are still held though its \
                processes are gone; GPU 1: 14.0 GiB of aeon's memory are still held";
    assert!(reason(&swap).starts_with(text), "{}", reason(&swap));
    assert_eq!(world.home(), ["aeon"]);
    assert!(world.wait_until(PATIENCE, |world| world.nature.ready(&name("aeon")) && !world.busy()));
    assert_eq!(world.nature.failed_allocations, 0);
}

#[test]
fn a_child_that_escaped_is_named() {
    let mut world = World::with(2, &["aeon"]);
    world.nature.manner("aeon").escapee = 12_000;
    let swap = world.carries_out(Verb::Switch, Some("genesis"));
    assert_eq!(swap.outcome, Some(Outcome::Degraded));
    assert!(
        reason(&swap).contains("GPU 1: 14.0 GiB of aeon's memory are still held: pid 1001 (server) holds")
    );
    world.heal_and_settle();
}

#[test]
fn a_foreign_process_that_takes_the_memory_in_between() {
    let mut world = World::with(2, &["aeon"]);
    world.nature.manner("aeon").linger = 2000;
    assert_eq!(world.ask(Verb::Switch, Some("genesis")), None);
    world.wait(1000);
    world.nature.foreign.insert(1, 5000);
    assert!(world.wait_until(PATIENCE, |world| world.ended.len() > 1));
    // Neither of the two fits now.
    let swap = world.ended[1].clone();
    assert_eq!(swap.outcome, Some(Outcome::Degraded));
    assert!(reason(&swap).starts_with("genesis was not started: "), "{}", reason(&swap));
    assert!(reason(&swap).contains("; the way back failed too: aeon was not started: "), "{}", reason(&swap));
    assert!(reason(&swap).contains("pid 9 (server) 4.9 GiB"), "{}", reason(&swap));
    assert!(world.state.claims.is_empty() && world.nature.failed_allocations == 0);
    world.wait(60_000);
    assert_eq!(world.ended.len(), 2, "nothing is tried that can't be");
    world.nature.foreign.insert(1, 900);
    assert!(world.wait_until(PATIENCE, |world| world.nature.ready(&name("aeon")) && !world.busy()));
}

#[test]
fn a_stop_that_is_denied_leaves_everything_as_it_was() {
    let mut world = World::with(2, &["aeon"]);
    world.nature.manner("aeon").unstoppable = true;
    let swap = world.carries_out(Verb::Switch, Some("genesis"));
    assert_eq!(swap.outcome, Some(Outcome::Restored));
    assert_eq!(reason(&swap), "aeon could not be stopped: Access denied");
    assert_eq!((world.touched.len(), world.phase("aeon")), (0, Some(Phase::Serving)));
}

#[test]
fn what_failed_and_cannot_be_stopped_does_not_serve() {
    let mut world = World::with(2, &["aeon"]);
    let manner = world.nature.manner("genesis");
    (manner.load, manner.unstoppable) = (NEVER, true);
    let swap = world.carries_out(Verb::Switch, Some("genesis"));
    assert_eq!(swap.outcome, Some(Outcome::Degraded));
    assert!(swap.serving.is_empty(), "{swap:?}");
    assert_eq!(world.phase("genesis"), Some(Phase::Ending));
    // As soon as systemd lets it go, home is back.
    world.nature.manner("genesis").unstoppable = false;
    assert!(world.wait_until(PATIENCE, |world| world.nature.ready(&name("aeon")) && !world.busy()));
    assert_eq!(world.home(), ["aeon"]);
}

#[test]
fn a_ledger_that_fails_first_touches_nothing() {
    let mut world = World::with(2, &["aeon"]);
    world.ledger_fails = true;
    let swap = world.carries_out(Verb::Switch, Some("genesis"));
    assert_eq!(swap.outcome, Some(Outcome::Restored));
    assert_eq!(reason(&swap), "the ledger can't be written: no space left on device");
    assert_eq!((world.touched.len(), world.phase("aeon")), (0, Some(Phase::Serving)));
    // And in the middle: what was stopped comes back.
    world.ledger_fails = false;
    world.nature.manner("aeon").linger = 500;
    assert_eq!(world.ask(Verb::Switch, Some("genesis")), None);
    world.wait(300);
    world.ledger_fails = true;
    assert!(world.wait_until(PATIENCE, |world| world.ended.len() > 2));
    assert_eq!(world.ended[2].outcome, Some(Outcome::Restored), "{:?}", world.ended[2]);
    assert!(world.nature.ready(&name("aeon")) && !world.touched.contains(&name("genesis")));
}

#[test]
fn of_two_victims_the_one_that_came_back_serves_on() {
    let mut world = World::with(2, &["glm", "small"]);
    world.nature.manner("genesis").dies = 1000;
    assert_eq!(world.ask(Verb::Switch, Some("genesis")), None);
    assert!(world.wait_until(PATIENCE, |world| world.phase("genesis").is_some()));
    // On the way back the first victim is restored; then somebody takes the second one's place.
    assert!(world.wait_until(PATIENCE, |world| world.phase("glm").is_some()));
    world.nature.foreign = [(0, 5000), (1, 13_000)].into();
    assert!(world.wait_until(PATIENCE, |world| world.ended.len() > 2));
    let swap = &world.ended[2];
    assert_eq!(swap.outcome, Some(Outcome::Degraded), "{swap:?}");
    assert_eq!(swap.serving, [name("glm")], "{swap:?}");
    assert!(world.nature.ready(&name("glm")));
    world.heal_and_settle();
}

#[test]
fn a_server_that_answers_before_systemds_word_came_is_not_taken_for_one_that_is_down() {
    let mut world = World::new(2);
    world.unheard = true;
    assert_eq!(world.ask(Verb::Start, Some("aeon")), None);
    assert!(world.wait_until(PATIENCE, |world| world.nature.ready(&name("aeon"))));
    world.wait(1000);
    assert!(world.busy(), "committed on facts from before its start");
    world.unheard = false;
    assert!(world.wait_until(1000, |world| !world.busy()));
    world.wait(5000);
    assert_eq!(world.ended[0].outcome, Some(Outcome::Done));
    assert_eq!((world.phase("aeon"), &world.touched[..]), (Some(Phase::Serving), &[name("aeon")][..]));
}

#[test]
fn a_model_that_crashes_comes_back_with_pauses() {
    let mut world = World::with(1, &["small"]);
    world.nature.manner("small").dies = 5000;
    assert_eq!(world.carries_out(Verb::Restart, Some("small")).outcome, Some(Outcome::Done));
    world.wait(120_000);
    let restored = world.ended.iter().filter(|swap| swap.verb == Verb::Restore).count();
    assert!((4..9).contains(&restored), "{restored} times in two minutes");
    world.heal_and_settle();
}

#[test]
fn an_operator_comes_before_what_berthd_does_by_itself() {
    let mut world = World::with(2, &["aeon"]);
    world.nature.manner("aeon").dies = 10;
    world.nature.manner("aeon").load = 15_000;
    assert_eq!(world.carries_out(Verb::Restart, Some("aeon")).outcome, Some(Outcome::Degraded));
    world.nature.manner("aeon").dies = NEVER;
    assert!(world.wait_until(PATIENCE, World::busy));
    assert_eq!(world.ask(Verb::Switch, Some("glm")), Some("waiting".to_owned()));
    assert_eq!(world.ask(Verb::Switch, Some("small")), Some("busy".to_owned()));
    assert!(world.wait_until(PATIENCE, |world| world.nature.ready(&name("glm")) && !world.busy()));
    assert_eq!(world.home(), ["glm"], "aeon has no place beside it");
}

#[test]
fn unknown_is_waited_for() {
    let mut world = World::with(2, &["aeon"]);
    let until = world.nature.now + 6000;
    world.nature.blind_until.insert(1, until);
    assert_eq!(world.ask(Verb::Switch, Some("genesis")), Some("gpu_unknown".to_owned()));
    world.nature.blind_until.clear();
    assert_eq!(world.ask(Verb::Switch, Some("genesis")), None);
    world.nature.blind_until.insert(1, until);
    assert!(world.wait_until(PATIENCE, |world| world.ended.len() > 1));
    assert_eq!(world.ended[1].outcome, Some(Outcome::Done));
    assert!(world.ended[1].steps.iter().any(|step| step.step == Step::Released && step.elapsed_ms >= 5500));
}

#[test]
fn a_swap_waits_for_a_gpu_that_became_suspect() {
    // The memory is back at once on both, and one of them misbehaves meanwhile.
    let mut world = World::with(2, &["aeon"]);
    assert_eq!(world.ask(Verb::Switch, Some("genesis")), None);
    let until = world.nature.now + 6000;
    world.nature.suspect_until.insert(0, until);
    assert_eq!(world.ask(Verb::Switch, Some("genesis")), Some("busy".to_owned()));
    assert!(world.wait_until(PATIENCE, |world| world.ended.len() > 1));
    assert_eq!(world.ended[1].outcome, Some(Outcome::Done), "{:?}", world.ended[1]);
    let released = world.ended[1].steps.iter().find(|step| step.step == Step::Released).unwrap();
    assert!((5500..6500).contains(&released.elapsed_ms), "{released:?}");

    // It is waited for as long as memory would be, and no longer; then home comes back as soon as it can.
    assert_eq!(world.carries_out(Verb::Switch, Some("aeon")).outcome, Some(Outcome::Done));
    let until = world.nature.now + 30_000;
    assert_eq!(world.ask(Verb::Switch, Some("genesis")), None);
    world.nature.suspect_until.insert(1, until);
    assert!(world.wait_until(PATIENCE, |world| world.ended.len() > 3));
    let swap = world.ended[3].clone();
    assert_eq!(swap.outcome, Some(Outcome::Degraded), "{swap:?}");
    assert!(reason(&swap).starts_with("genesis was not started: GPU 1 is suspect"), "{}", reason(&swap));
    assert!((10_000..11_000).contains(&swap.elapsed_ms), "{swap:?}");
    assert_eq!(world.ask(Verb::Switch, Some("genesis")), Some("gpu_suspect".to_owned()));
    assert!(world.wait_until(PATIENCE, |world| world.nature.ready(&name("aeon")) && !world.busy()));
    assert!(world.nature.now >= until);

    // So is one that is unknown, and on which no memory is awaited.
    let mut world = World::with(2, &["glm"]);
    assert_eq!(world.ask(Verb::Switch, Some("genesis")), None);
    let until = world.nature.now + 4000;
    world.nature.blind_until.insert(1, until);
    assert!(world.wait_until(PATIENCE, |world| world.ended.len() > 1));
    assert_eq!(world.ended[1].outcome, Some(Outcome::Done), "{:?}", world.ended[1]);
    assert!(world.nature.now >= until);
}

#[test]
fn facts_from_before_a_start_say_nothing_of_it() {
    let mut machine = Machine::bare(1);
    machine.claims("small", Phase::Starting, &[(0, 5120)], None);
    let claim = machine.state.claims.get_mut(&name("small")).unwrap();
    (claim.invocation, claim.earlier) = (String::new(), "crashed".to_owned());
    machine.facts.units.insert(name("small"), unit("crashed", Active::Failed, &[]));
    assert!(!machine.state.note_units(&machine.facts));
    assert_eq!(machine.state.claims[&name("small")].invocation, "");
    machine.facts.units.insert(name("small"), unit("this", Active::Failed, &[]));
    assert!(machine.state.note_units(&machine.facts), "it may have ended again already");
    assert_eq!(machine.state.claims[&name("small")].invocation, "this");
}

#[test]
fn the_hosts_memory_is_waited_for_like_a_cards() {
    let mut world = World::with(1, &["host"]);
    let restart = |world: &mut World, taken: u64| {
        let before = world.ended.len();
        assert_eq!(world.ask(Verb::Restart, Some("host")), None);
        // What it had is not given back at once.
        world.nature.host_taken = (world.nature.now + taken, 28_000);
        assert!(world.wait_until(PATIENCE, |world| world.ended.len() > before), "stuck");
        world.ended[before].clone()
    };
    let swap = restart(&mut world, 3000);
    assert_eq!(swap.outcome, Some(Outcome::Done), "{swap:?}");
    assert!(swap.elapsed_ms >= 2900, "{swap:?}");
    let swap = restart(&mut world, 100_000);
    assert_ne!(swap.outcome, Some(Outcome::Done));
    assert!(reason(&swap).contains("short in the host's memory"), "{swap:?}");
    assert!(world.wait_until(PATIENCE, |world| world.state.is_serving(&name("host"))), "it comes back");
}
