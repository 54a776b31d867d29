//! How a backend is asked to lay a model out, and what it answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::config::{Memory, Model};
use crate::demand::{Demand, Parts, Source, What};
use crate::facts::{FileFacts, Known};
use crate::layout::Layout;
use crate::learned::{self, Learned};
use crate::placement::{Conceded, Room};
use crate::shape::Shape;
use crate::tuning::{KvType, Tuning};

/// What is asked of a backend.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// The model.
    pub model: &'a Model,
    /// What is known of the files that it names.
    pub files: &'a BTreeMap<PathBuf, FileFacts>,
    /// What it may give up.
    pub conceded: Conceded,
    /// Settings that are to be other than what is declared, even by the user's own flags: to see what would fit.
    pub instead: Tuning,
    /// What it took when it ran.
    pub learned: &'a [Learned],
}

/// A model, laid out on certain GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Laid {
    /// How.
    pub layout: Layout,
    /// What it takes there.
    pub demand: Demand,
    /// Why it can't serve like this however much memory there is.
    pub wrong: Option<String>,
    /// It takes what is there: with less room it would take less.
    pub elastic: bool,
}

/// Lays a model out on GPUs: the best way that fits them, or where none does, the one that takes least.
pub type LayOut<'a> = Box<dyn Fn(&[Room<'_>]) -> Laid + 'a>;

impl<'a> Ask<'a> {
    /// What a file's header describes, or why that is not known.
    pub(super) fn shape(&self, file: &Path) -> Result<&'a Shape, String> {
        match self.files.get(file).map(|facts| &facts.shape) {
            Some(Known::Value(shape)) => Ok(shape),
            Some(Known::Unknown(why)) => Err(format!("{}: {why}", file.display())),
            None => Err(format!("{} has not been read", file.display())),
        }
    }

    /// The settings under which it runs with what it gives up, but for those that the user's own flags say. A concession
    /// that would not take less, or that this server does not know, is none.
    pub(super) fn tuning(&self) -> Tuning {
        let (model, backend) = (self.model, super::of(self.model.backend));
        let given = backend.given_tuning(&model.args, &model.env);
        let now = backend.effective(model, self.files);
        let mut conceded = self.conceded.tuning;
        conceded.ctx = conceded.ctx.filter(|ctx| now.ctx.is_none_or(|now| *ctx < now));
        // Where nothing is said keys and values are kept in 16 bits.
        let narrower = |kind: &KvType, now: Option<KvType>| {
            kind.bytes_of_32() < now.unwrap_or(KvType::F16).bytes_of_32() && backend.keeps(*kind)
        };
        conceded.kv_k = conceded.kv_k.filter(|kind| narrower(kind, now.kv_k));
        conceded.kv_v = conceded.kv_v.filter(|kind| narrower(kind, now.kv_v));
        conceded.or(model.tuning).without(&given)
    }

    /// Puts what was measured in the place of what is estimated, where it ran like this.
    pub(super) fn apply_learned(&self, layout: &Layout, rooms: &[Room<'_>], demand: &mut Demand) {
        learned::apply(self.learned, self.model, self.files, layout, rooms, demand);
    }

    /// What was declared, where something was: all of it is taken as it was written. What is declared for the host is
    /// taken by the planner.
    pub(super) fn declared(&self) -> Option<LayOut<'a>> {
        let (model, memory, backend) = (self.model, &self.model.memory, self.model.backend);
        let on_host = !model.policy.uses_gpus() && model.host_memory.is_some();
        if *memory == Memory::Undeclared && !on_host {
            return None;
        }
        Some(Box::new(move |rooms| {
            let n = rooms.len();
            let each = match memory {
                Memory::Total(total) => super::evenly(*total, n).unwrap_or_default(),
                Memory::PerDevice(each) => each.clone(),
                Memory::Undeclared => Vec::new(),
            };
            let mut demand = Demand { gpus: vec![Parts::default(); n], host: Parts::default() };
            for (parts, bytes) in demand.gpus.iter_mut().zip(each) {
                parts.add(What::Whole, bytes, Source::Declared);
            }
            // What the server wants free when it starts, whatever was declared.
            for (parts, room) in demand.gpus.iter_mut().zip(rooms) {
                let wanted = super::of(backend).needs_free(model, room.usable).unwrap_or_default();
                parts.add(What::Whole, wanted.less(parts.total()), Source::Exact);
            }
            Laid { demand, ..Laid::default() }
        }))
    }
}

/// Whether a demand fits these GPUs.
pub(super) fn fits(demand: &Demand, rooms: &[Room<'_>]) -> bool {
    demand.gpus.iter().zip(rooms).all(|(parts, room)| parts.total() <= room.available)
}
