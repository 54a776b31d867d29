//! An operator cancels a swap, at each of its steps.

use berth_core::report::{Outcome, Step, StepState, SwapSummary, Verb};
use berth_core::state::Phase;

use super::World;
use crate::story::name;

const PATIENCE: u64 = 300_000;

impl World {
    /// Waits until a step has begun.
    fn comes_to(&mut self, step: Step) {
        let begun = |world: &Self| {
            let steps =
                world.swap.as_ref().map(|swap| swap.summary(berth_core::facts::Moment::default()).steps);
            steps.is_some_and(|steps| steps.last().is_some_and(|last| last.step == step))
        };
        assert!(self.wait_until(PATIENCE, begun), "{step:?} never began");
    }

    /// How the swap under way ends.
    fn its_end(&mut self) -> SwapSummary {
        let before = self.ended.len();
        assert!(self.busy() && self.wait_until(PATIENCE, |world| world.ended.len() > before), "stuck");
        self.ended[before].clone()
    }
}

#[test]
fn a_switch_that_is_cancelled_goes_back_from_every_step() {
    for step in [Step::Stopped, Step::Released, Step::Ready] {
        let mut world = World::with(2, &["aeon"]);
        world.nature.manner("aeon").term = 500;
        world.nature.manner("aeon").linger = 1250;
        assert_eq!(world.ask(Verb::Switch, Some("genesis")), None);
        world.comes_to(step);
        assert_eq!(world.cancel(), None, "{step:?}");
        let swap = world.its_end();
        assert_eq!(swap.outcome, Some(Outcome::Restored), "{step:?}: {swap:?}");
        assert_eq!((swap.reason.as_deref(), swap.cancelled), (Some("op cancelled it"), true));
        assert_eq!((world.home(), world.phase("aeon")), (vec!["aeon"], Some(Phase::Serving)), "{step:?}");
        assert_eq!((world.phase("genesis"), world.nature.failed_allocations), (None, 0), "{step:?}");
        // What was on its way down is waited for, and nothing is said against a model that did nothing wrong.
        let began = swap.steps.iter().any(|s| s.step == Step::Ready && s.model != swap.model || s.rollback);
        assert!(began && world.upkeep.errors.is_empty(), "{step:?}: {:?}", world.upkeep.errors);
        let failed: Vec<Step> =
            swap.steps.iter().filter(|s| s.state == StepState::Failed).map(|s| s.step).collect();
        assert_eq!(failed, if step == Step::Ready { vec![Step::Ready] } else { vec![] }, "{step:?}");
    }
}

#[test]
fn what_waits_for_answers_is_cancelled_at_once() {
    for (verb, model) in [(Verb::Switch, Some("genesis")), (Verb::Stop, Some("aeon")), (Verb::StopAll, None)]
    {
        let mut world = World::with(2, &["aeon"]);
        world.answers(&name("aeon"), 6000);
        world.wait(50);
        assert_eq!(world.ask(verb, model), None);
        world.comes_to(Step::Drained);
        let run = world.state.claims.clone();
        assert_eq!(world.cancel(), None);
        assert_eq!(world.ended.last().unwrap().outcome, Some(Outcome::Restored), "{verb:?}");
        assert!(!world.busy() && world.touched.is_empty(), "{verb:?}: nothing was stopped");
        assert_eq!((world.home(), &world.state.claims), (vec!["aeon"], &run), "{verb:?}");
        world.wait(PATIENCE);
        assert_eq!((world.cut, world.answered), (0, 1), "{verb:?}");
    }
}

#[test]
fn what_can_not_be_cancelled_goes_on() {
    let mut world = World::with(2, &["aeon"]);
    world.nature.manner("aeon").linger = 1000;
    assert_eq!(world.ask(Verb::Stop, Some("aeon")), None);
    world.comes_to(Step::Released);
    assert_eq!(world.cancel().as_deref(), Some("stop_begun"));
    assert_eq!(world.its_end().outcome, Some(Outcome::Done));
    assert!(world.home().is_empty());

    // Twice is once.
    let mut world = World::with(2, &["aeon"]);
    world.nature.manner("aeon").linger = 1000;
    assert_eq!(world.ask(Verb::Switch, Some("genesis")), None);
    world.comes_to(Step::Released);
    assert_eq!((world.cancel(), world.cancel()), (None, None));
    world.comes_to(Step::Ready);
    assert_eq!(world.cancel().as_deref(), Some("swap_goes_back"));
    assert_eq!(world.its_end().outcome, Some(Outcome::Restored));

    // What berthd does by itself would be begun again.
    world.nature.crash(&name("aeon"));
    assert!(world.wait_until(PATIENCE, World::busy));
    assert_eq!(world.cancel().as_deref(), Some("own_swap"));
    assert_eq!(world.its_end().outcome, Some(Outcome::Done));
}
