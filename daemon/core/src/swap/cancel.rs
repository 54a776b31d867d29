//! A swap that is called off before it is through.

use super::{Action, Stage, Swap, World};
use crate::report::{Refusal, Verb};

impl Swap {
    /// Whether an operator may cancel it now; the reason where not.
    ///
    /// # Errors
    ///
    /// It is over or on its way back, it is berthd's own, or it stops what is to stay stopped.
    pub fn may_be_cancelled(&self) -> Result<(), Refusal> {
        let id = self.id();
        let refused = |code: &str, text: String, hint: &str| {
            Err(Refusal { code: code.to_owned(), text, hints: vec![hint.to_owned()] })
        };
        match (&self.stage, self.verb()) {
            (Stage::Over, _) => Err(Self::over(id)),
            _ if self.going_back => {
                let text = format!("swap {id} is on its way back already");
                refused("swap_goes_back", text, "berthctl status --watch")
            }
            (_, verb) if verb.is_own() => {
                let text = format!(
                    "swap {id} is berthd's own, and would be begun again: it gives way to whatever you ask for"
                );
                refused("own_swap", text, "berthctl stop MODEL, or berthctl switch MODEL")
            }
            (Stage::Draining { .. }, _) => Ok(()),
            (_, Verb::Stop | Verb::StopAll) => {
                let text = format!("swap {id} has stopped what it was to stop, and that stays stopped");
                refused("stop_begun", text, "berthctl back, once it has ended")
            }
            _ => Ok(()),
        }
    }

    /// Why a swap that has ended can't be cancelled.
    pub fn over(id: u64) -> Refusal {
        let hints = vec!["berthctl back (whatever served before)".to_owned()];
        Refusal { code: "swap_over".to_owned(), text: format!("swap {id} is over"), hints }
    }

    /// Ends it before it is through. What a load for a client has stopped is not started again: it is an operator's to
    /// say what serves, and where nobody did, home comes back.
    pub(super) fn call_off(&mut self, world: &mut World, why: String, actions: &mut Vec<Action>) {
        self.called_off = Some(why.clone());
        if self.plan.verb == Verb::Load {
            self.restores.clear();
        }
        // Memory that is on its way back is waited for, but by what restores: that is begun again by what comes after it.
        let ends = matches!(self.stage, Stage::Stopping { .. } | Stage::Releasing { .. });
        if ends && self.plan.verb != Verb::Restore {
            return;
        }
        self.fail(world, why, None, actions);
    }
}
