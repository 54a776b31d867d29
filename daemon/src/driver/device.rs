//! A GPU that misbehaves: its Xids, and the operator who takes it as it is.

use berth_core::facts::Gpu;
use berth_core::plan;
use berth_core::report::{Cleared, GivenUp, Refusal, SCHEMA};
use berth_core::soundness;

use super::Driver;
use crate::nvml::Xid;
use crate::proc::monotonic_now;

impl Driver {
    /// The driver reported an Xid. Those that programs cause are in the log, and nothing more.
    pub(super) fn xid(&mut self, xid: &Xid) {
        let Xid { device, number } = xid;
        if soundness::is_of_application(*number) {
            tracing::warn!(%device, xid = number, "the driver reported an Xid that programs cause");
            return;
        }
        tracing::error!(%device, xid = number, "the driver reported a critical Xid");
        self.soundness.xid(device, *number, monotonic_now());
        self.observed();
    }

    /// An operator takes a GPU as it is, by its index or its UUID.
    pub(super) fn clear(&mut self, asked: &str) -> Result<Cleared, Box<Refusal>> {
        let gpu = plan::resolve_gpu(&self.facts, asked)?;
        let (index, id) = (gpu.index, gpu.id.clone());
        let suspect = self.soundness.clear(&id, monotonic_now());
        let (given_up, kept) = self.proofs.give_up(&self.state, &self.facts, &id);
        for (model, bytes) in &given_up {
            tracing::warn!(%model, gpu = index, %bytes, "its memory is given up as an operator says");
        }
        self.observed();
        Ok(Cleared {
            schema: SCHEMA,
            index,
            id: id.0.clone(),
            suspect,
            unusable: self.facts.gpu(&id).and_then(unusable),
            given_up: given_up.into_iter().map(|(model, bytes)| GivenUp { model, bytes }).collect(),
            kept: kept.iter().map(berth_core::release::Unproved::sentence).collect(),
        })
    }
}

/// Why nothing can be placed there all the same.
fn unusable(gpu: &Gpu) -> Option<String> {
    let suspect = || gpu.suspect.as_ref().map(|suspicion| suspicion.why.clone());
    gpu.memory.why_unknown().map(str::to_owned).or_else(suspect)
}
