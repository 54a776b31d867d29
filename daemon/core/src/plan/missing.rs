//! Why a model of home that is missing is not started now, and whose end would make room for it.

use std::collections::BTreeMap;

use super::{Context, Start, Unplaced};
use crate::bytes::Bytes;
use crate::config::{Model, Settings};
use crate::facts::{Facts, GpuProcess};
use crate::state::State;

/// A model that finds no place now.
#[derive(Debug, Clone, PartialEq)]
pub struct Missing {
    /// What is short where, and who holds it.
    pub why: String,
    /// The foreign processes whose end would make room for it, largest first; none where theirs alone would not.
    pub holders: Vec<GpuProcess>,
}

/// Why a model is not started now; None where it finds a place.
pub fn missing(settings: &Settings, facts: &Facts, state: &State, model: &Model) -> Option<Missing> {
    let preflight = BTreeMap::new();
    let context = Context::new(settings, facts, state, &preflight);
    let Unplaced { refusal, short, .. } = context.place(model, &[]).err()?;
    let holders = short.and_then(|short| context.in_the_way(model, &short.0)).unwrap_or_default();
    Some(Missing { why: refusal.text, holders })
}

impl Context<'_> {
    /// On each GPU that is short for this start, the largest foreign processes that hold what it is short of. None
    /// where they hold less. One whose memory is not known may hold it all.
    fn in_the_way(&self, model: &Model, start: &Start) -> Option<Vec<GpuProcess>> {
        let mut found = Vec::new();
        for part in &start.gpus {
            let position = self.facts.gpus().iter().position(|gpu| gpu.id == part.id)?;
            let gpu = &self.facts.gpus()[position];
            let mut short = part.bytes.less(self.rooms.available(position, model, &[], &[]).ok()?);
            let foreign = gpu.processes.value()?.iter().filter(|process| self.state.owner(process).is_none());
            let mut foreign: Vec<&GpuProcess> = foreign.collect();
            foreign.sort_by_key(|process| std::cmp::Reverse(process.memory.value().copied()));
            for process in foreign {
                if short == Bytes::ZERO {
                    break;
                }
                short = process.memory.value().map_or(Bytes::ZERO, |held| short.less(*held));
                found.push(process.clone());
            }
            if short > Bytes::ZERO {
                return None;
            }
        }
        Some(found)
    }
}
