//! What core's upkeep asks for without an operator is performed here.

use berth_core::facts::Moment;
use berth_core::learned;
use berth_core::name::ModelName;
use berth_core::state::{ClaimedGpu, Phase};
use berth_core::swap::Event;
use berth_core::upkeep::{Deed, End, Upkeep};

use super::{BEYOND, Driver, RECORD_AGAIN};
use crate::observe::Order;
use crate::proc::{host_memory, monotonic_now};

impl Driver {
    /// Takes new facts in; home is brought back by `restore`.
    pub(super) fn observed(&mut self) {
        let now = monotonic_now();
        self.facts.at = now;
        self.facts.expire(now);
        // After the units: what these have taken since counts as foreign, never as free.
        self.facts.host.memory = host_memory();
        self.soundness.judge(&mut self.facts.gpus, now, self.settings.sound);
        let swapping = self.swap.is_some();
        let deeds = self.with_world(|upkeep, world| upkeep.observe(world, swapping));
        self.fulfil(deeds);
        let learned = learned::note(&self.facts, &mut self.state);
        if swapping {
            self.step(Event::Facts);
        } else {
            if learned {
                self.record();
            }
            self.record_again(now);
            self.watch_ended(now);
        }
        self.watch_health();
        self.notice();
    }

    /// Memory of models that ended without a swap is awaited as closely as in one, for as long as it usually takes.
    fn watch_ended(&mut self, now: Moment) {
        let soon = |gone: Moment| now.saturating_sub(gone) < self.settings.deadlines.release;
        let ending = self.state.claims.iter().filter(|(_, claim)| claim.phase == Phase::Ending);
        let awaited = ending.filter(|(model, _)| self.proofs.gone_at(model).is_some_and(soon));
        let parts: Vec<ClaimedGpu> = awaited.flat_map(|(_, claim)| claim.gpus.iter().cloned()).collect();
        let order = if parts.is_empty() { Order::Idle } else { Order::Release(parts) };
        self.order.send_if_modified(|was| {
            let news = *was != order;
            *was = order;
            news
        });
    }

    /// A ledger that could not be written to is tried again now and then.
    fn record_again(&mut self, now: Moment) {
        if self.memory.ledger_error.is_some() && now.saturating_sub(self.recorded_at) >= RECORD_AGAIN {
            self.record();
        }
    }

    /// Begins to bring home back, where something of it is missing and can be started now.
    pub(super) fn restore(&mut self) {
        if self.swap.is_some()
            || self.waiting.is_some()
            || self.units_awaited
            || self.memory.ledger_error.is_some()
        {
            return;
        }
        let (begun, deeds) = self.with_world(Upkeep::next);
        self.fulfil(deeds);
        if let Some((plan, first)) = begun {
            self.begin(plan, None, 0, first);
        } else {
            self.look_for_load();
        }
    }

    /// How a model that fell has ended.
    pub(super) fn diagnosed(&mut self, model: &ModelName, end: End) {
        match &end {
            End::Failed(why) => tracing::warn!(%model, "{model} failed: {why}"),
            End::ByHand => tracing::info!(%model, "{model} was stopped by hand"),
            End::Shutdown => tracing::info!(%model, "the machine goes down"),
            End::WithSystemd => tracing::info!(%model, "{model} was stopped with all that its systemd ran"),
        }
        let deeds = self.with_world(|upkeep, world| upkeep.diagnosed(world, model, end));
        self.fulfil(deeds);
        self.notice();
    }

    pub(super) fn fulfil(&mut self, deeds: Vec<Deed>) {
        // One write holds all that led to these.
        if deeds.contains(&Deed::Record) {
            self.record();
        }
        let acting = self.ledger.damage().is_none();
        for deed in deeds {
            match deed {
                Deed::Record => {}
                Deed::Stop(_) | Deed::Kill(_) if !acting => {}
                Deed::Stop(model) => {
                    tracing::info!(%model, "stopping it: it runs and should not");
                    self.hands.stop(0, &model, BEYOND);
                }
                Deed::Kill(model) => {
                    tracing::warn!(%model, "killing it: it does not stop");
                    self.hands.kill(&model);
                }
                Deed::Diagnose { model, run, earlier } => {
                    self.hands.diagnose(None, &model, run, earlier);
                }
                Deed::Look(model) => self.hands.look(&model),
                Deed::Say(what) => self.events.say(super::now_ms(), what),
            }
        }
    }
}
