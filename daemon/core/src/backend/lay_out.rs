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
use crate::tuning::Tuning;

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

    /// Puts what was measured in the place of what is estimated, where it ran like this.
    pub(super) fn apply_learned(&self, layout: &Layout, rooms: &[Room<'_>], demand: &mut Demand) {
        learned::apply(self.learned, self.model, self.files, layout, rooms, demand);
    }

    /// What was declared, where something was: all of it is taken as it was written.
    pub(super) fn declared(&self) -> Option<LayOut<'a>> {
        let (model, memory, backend) = (self.model, &self.model.memory, self.model.backend);
        if *memory == Memory::Undeclared {
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
