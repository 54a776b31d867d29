//! Everything at once: operators, faults and time at random.
//!
//! The reference is deliberately small. It says what home is after each of an operator's verbs, and how a swap must
//! end when nothing, or only the start of the new model, goes wrong; `berth` and `nature` assert the rest at every
//! step: nothing is started over held memory, no card is promised twice, no swap outlasts its deadlines, only an
//! operator's swap that is done changes home, a refusal changes nothing.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use berth_core::name::ModelName;
use berth_core::report::{Outcome, SwapSummary, Verb};
use berth_core::state::Home;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};

use super::World;
use super::nature::{Manner, NEVER};

/// What an operator or the world does next.
#[derive(Debug, Clone)]
enum Happening {
    Ask(Verb, usize),
    Cancel,
    Wait(u64),
    Manner(usize, Manner),
    Foreign(usize, u64),
    Blind(usize, u64),
    Suspect(usize, u64),
    Ledger(bool),
    BerthdDies,
    PowerFails,
    Crash(usize),
    Client(usize, u64),
    StopByHand(usize),
    Unmounted(usize, u64),
}

const VERBS: [Verb; 7] =
    [Verb::Switch, Verb::Start, Verb::Stop, Verb::StopAll, Verb::Restart, Verb::Back, Verb::Retry];

fn manner() -> impl Strategy<Value = Manner> {
    let start = (
        prop_oneof![4 => 100u64..6000, 1 => Just(NEVER)],
        prop_oneof![4 => Just(NEVER), 1 => 1u64..9000],
        prop::bool::weighted(0.1),
        prop_oneof![2 => Just(0u64), 1 => 1u64..30_000, 1 => Just(NEVER)],
    );
    let stop = (
        prop::bool::weighted(0.1),
        prop_oneof![8 => Just(0u64), 1 => 1u64..25_000],
        prop_oneof![4 => 1u64..3000, 1 => Just(NEVER)],
        prop_oneof![4 => 1u64..100, 1 => 1000u64..60_000],
    );
    let release = (
        prop_oneof![1 => Just(0u64), 4 => 1u64..4000, 1 => 4000u64..40_000],
        any::<bool>(),
        prop_oneof![6 => Just(0u64), 1 => 1u64..30_000],
    );
    (start, stop, release).prop_map(
        |((load, dies, unstartable, reads), (unstoppable, heeds, term, kill), (linger, ramp, escapee))| {
            Manner { load, dies, unstartable, unstoppable, heeds, term, kill, linger, ramp, reads, escapee }
        },
    )
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => (0usize..7, 0usize..6).prop_map(|(verb, model)| Happening::Ask(VERBS[verb], model)),
        1 => Just(Happening::Cancel),
        6 => prop_oneof![0u64..3000, 3000u64..40_000].prop_map(Happening::Wait),
        4 => (0usize..6, manner()).prop_map(|(model, manner)| Happening::Manner(model, manner)),
        1 => (0usize..2, prop_oneof![Just(0), 100u64..15_000]).prop_map(|(gpu, mib)| Happening::Foreign(gpu, mib)),
        1 => (0usize..2, 0u64..30_000).prop_map(|(gpu, ms)| Happening::Blind(gpu, ms)),
        1 => (0usize..2, 0u64..30_000).prop_map(|(gpu, ms)| Happening::Suspect(gpu, ms)),
        1 => prop::bool::weighted(0.3).prop_map(Happening::Ledger),
        2 => (0usize..6, 1u64..20_000).prop_map(|(model, ms)| Happening::Client(model, ms)),
        1 => Just(Happening::BerthdDies),
        1 => Just(Happening::PowerFails),
        2 => (0usize..6).prop_map(Happening::Crash),
        1 => (0usize..6).prop_map(Happening::StopByHand),
        1 => (0usize..6, 0u64..60_000).prop_map(|(model, ms)| Happening::Unmounted(model, ms)),
    ]
}

/// What home is once this swap is done.
fn expected(swap: &SwapSummary, was: &Home, back_to: &Home) -> BTreeSet<ModelName> {
    let mut home: BTreeSet<ModelName> = was.models.iter().cloned().collect();
    match (swap.verb, &swap.model) {
        (Verb::Back, _) => return back_to.models.iter().cloned().collect(),
        (Verb::StopAll, _) => home.clear(),
        (Verb::Stop, Some(model)) => _ = home.remove(model),
        (Verb::Switch, Some(model)) => {
            home.retain(|other| !swap.stops.contains(other));
            home.insert(model.clone());
        }
        (Verb::Retry, _) | (_, None) => {}
        (_, Some(model)) => _ = home.insert(model.clone()),
    }
    home
}

/// Home, as the operators' swaps that were done left it.
struct Reference {
    home: Home,
    seen: usize,
    by_hand: usize,
    /// Whether something was committed that the ledger does not have, or a stop was under way.
    unsure: bool,
}

impl Reference {
    /// After berthd died, what is committed is what the ledger has: all of it, but for what could not be written.
    fn read_again(&mut self, world: &World) {
        if self.unsure {
            self.home.clone_from(&world.state.home);
        }
        self.seen = world.ended.len();
    }

    /// Holds what the world says of home against what the swaps since then make of it.
    fn check(&mut self, world: &World) -> Result<(), TestCaseError> {
        let ended = &world.ended[self.seen..];
        self.seen = world.ended.len();
        let done: Vec<&SwapSummary> =
            ended.iter().filter(|swap| !swap.verb.is_own() && swap.outcome == Some(Outcome::Done)).collect();
        // What was stopped by hand is stopped as by an operator's word.
        let by_hand = &world.stopped_by_hand[self.by_hand..];
        for model in by_hand {
            self.home.models.retain(|other| other != model);
            self.home.default = self.home.default.take().filter(|default| default != model);
        }
        self.by_hand = world.stopped_by_hand.len();
        // A stop counts from its first moment, whatever comes of it.
        let stops = |verb| matches!(verb, Verb::Stop | Verb::StopAll);
        let stopping = world.swap.as_ref().is_some_and(|swap| stops(swap.verb()))
            || ended.iter().any(|swap| stops(swap.verb) && swap.outcome != Some(Outcome::Done));
        match done.as_slice() {
            _ if stopping => {}
            [] => prop_assert_eq!(&world.state.home, &self.home),
            // A later one may build on an earlier; only the last can be told exactly.
            [swap] => {
                let expected = expected(swap, &self.home, &world.back_to);
                let home: BTreeSet<ModelName> = world.state.home.models.iter().cloned().collect();
                // What was stopped by hand meanwhile is gone, too, and a switch lets go of what failed and has no
                // place beside the new model.
                let stopped = |model: &ModelName| {
                    by_hand.contains(model) || world.state.stopped.get(model).is_some_and(|s| s.by_hand)
                };
                // A guest that is restarted stays one.
                let absent = |model: &ModelName| {
                    let guest = swap.verb == Verb::Restart && swap.model.as_ref() == Some(model);
                    let replaced = swap.verb == Verb::Switch && !world.state.is_resident(model);
                    guest || replaced || stopped(model)
                };
                prop_assert!(home.is_subset(&expected), "{home:?} after {swap:?}");
                prop_assert!(expected.difference(&home).all(absent), "{home:?}, not {expected:?}: {swap:?}");
                if swap.verb == Verb::Switch && !swap.model.as_ref().is_some_and(stopped) {
                    prop_assert_eq!(&world.state.home.default, &swap.model);
                }
            }
            _ => {}
        }
        let default = world.state.home.default.as_ref();
        prop_assert!(default.is_none_or(|model| world.state.home.models.contains(model)));
        self.home.clone_from(&world.state.home);
        self.unsure = world.ledger.home != world.state.home
            || world.ledger.previous != world.state.previous
            || world.swap.as_ref().is_some_and(|swap| stops(swap.verb()));
        Ok(())
    }
}

fn runner(cases: u32) -> TestRunner {
    let kept = FileFailurePersistence::Direct("proptest-regressions/world.txt");
    // More by hand: BERTH_CASES=20000.
    let more = std::env::var("BERTH_CASES").ok().and_then(|cases| cases.parse().ok());
    TestRunner::new(Config {
        cases: more.unwrap_or(cases),
        failure_persistence: Some(Box::new(kept)),
        ..Config::default()
    })
}

static EVENTS: AtomicU64 = AtomicU64::new(0);

#[test]
fn whatever_happens_home_serves_in_the_end() {
    let scenario = (1usize..3, prop::collection::vec(happening(), 1..40));
    runner(700)
        .run(&scenario, |(gpus, happenings)| {
            let mut world = World::new(gpus);
            let names = world.names();
            let mut reference = Reference { home: Home::default(), seen: 0, by_hand: 0, unsure: false };
            for happening in happenings {
                match happening {
                    Happening::Ask(verb, model) => {
                        let named = !matches!(verb, Verb::StopAll | Verb::Back);
                        world.ask(verb, named.then(|| names[model].as_str()));
                    }
                    Happening::Cancel => _ = world.cancel(),
                    Happening::Client(model, ms) => world.client(&names[model], ms),
                    Happening::Wait(ms) => world.wait(ms),
                    Happening::Manner(model, manner) => *world.nature.manner(names[model].as_str()) = manner,
                    Happening::Foreign(gpu, mib) => _ = world.nature.foreign.insert(gpu % gpus, mib),
                    Happening::Blind(gpu, ms) => {
                        let until = world.nature.now + ms;
                        world.nature.blind_until.insert(gpu % gpus, until);
                    }
                    Happening::Suspect(gpu, ms) => {
                        let until = world.nature.now + ms;
                        world.nature.suspect_until.insert(gpu % gpus, until);
                    }
                    Happening::Ledger(fails) => world.ledger_fails = fails,
                    Happening::BerthdDies => {
                        world.berthd_dies();
                        reference.read_again(&world);
                    }
                    Happening::PowerFails => {
                        world.power_fails();
                        reference.read_again(&world);
                    }
                    Happening::Crash(model) => world.nature.crash(&names[model]),
                    Happening::StopByHand(model) => world.nature.stop_by_hand(&names[model]),
                    Happening::Unmounted(model, ms) => {
                        let until = world.nature.now + ms;
                        world.nature.unmounted_until.insert(names[model].clone(), until);
                    }
                }
                reference.check(&world)?;
            }
            world.heal_and_settle();
            reference.check(&world)?;
            EVENTS.fetch_add(world.events, Ordering::Relaxed);
            Ok(())
        })
        .unwrap();
    let events = EVENTS.load(Ordering::Relaxed);
    assert!(events >= 100_000, "only {events} events");
}

#[test]
fn without_faults_every_swap_is_done() {
    let asks = prop::collection::vec((0usize..6, 0usize..6, 0u64..3000, any::<bool>()), 1..20);
    runner(60)
        .run(&(1usize..3, asks), |(gpus, asks)| {
            let mut world = World::new(gpus);
            let names = world.names();
            for (verb, model, linger, ramp) in asks {
                // Memory that lingers is no fault.
                let manner = world.nature.manner(names[model].as_str());
                (manner.linger, manner.ramp) = (linger, ramp);
                let named = !matches!(VERBS[verb], Verb::StopAll | Verb::Back);
                let refused = world.ask(VERBS[verb], named.then(|| names[model].as_str()));
                let fair = ["does_not_fit", "too_few_gpus", "nothing_before"];
                prop_assert!(
                    refused.is_none_or(|code| fair.contains(&code.as_str())),
                    "refused without a fault"
                );
                prop_assert!(world.wait_until(200_000, |world| !world.busy()));
            }
            prop_assert_eq!(world.nature.failed_allocations, 0);
            for swap in &world.ended {
                prop_assert_eq!(swap.outcome, Some(Outcome::Done), "{:?}", swap);
                prop_assert!(swap.by.is_some(), "berthd had nothing to do by itself: {swap:?}");
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_start_that_fails_alone_always_restores() {
    let fault = prop_oneof![
        Just(Manner { load: NEVER, ..Manner::default() }),
        (1u64..2900).prop_map(|dies| Manner { dies, ..Manner::default() }),
        Just(Manner { unstartable: true, ..Manner::default() }),
    ];
    let before = prop::sample::subsequence(vec!["glm", "small", "tiny", "host"], 1..4);
    runner(60)
        .run(&(before, fault, 0u64..4000, any::<bool>()), |(before, fault, linger, restarts)| {
            let mut world = World::new(2);
            for model in &before {
                prop_assert_eq!(world.ask(Verb::Start, Some(*model)), None);
                prop_assert!(world.wait_until(60_000, |world| !world.busy()));
            }
            let home = world.state.home.clone();
            let asked = if restarts { before[0] } else { "genesis" };
            *world.nature.manner(asked) = Manner { linger, ..fault };
            let verb = if restarts { Verb::Restart } else { Verb::Switch };
            prop_assert_eq!(world.ask(verb, Some(asked)), None);
            let began = world.ended.len();
            prop_assert!(world.wait_until(200_000, |world| world.ended.len() > began));
            let swap = &world.ended[began];
            // A restart's way back is the same start again.
            let expected = if restarts { Outcome::Degraded } else { Outcome::Restored };
            prop_assert_eq!(swap.outcome, Some(expected), "{:?}", swap);
            prop_assert_eq!(&world.state.home, &home);
            prop_assert_eq!(world.nature.failed_allocations, 0);
            world.heal_and_settle();
            prop_assert_eq!(&world.state.home, &home);
            Ok(())
        })
        .unwrap();
}
