//! What a policy allows: which GPUs, how many of them, and what is given up for a place, in which order.

use serde::{Deserialize, Serialize};

use crate::bytes::Bytes;
use crate::facts::Gpu;
use crate::policy::{Concession, Devices, Policy, Spread};
use crate::tuning::Tuning;

/// A GPU that a model could be laid on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room<'a> {
    /// Its product name.
    pub name: &'a str,
    /// Allocatable when it is empty: NVML's total less reserved.
    pub usable: Bytes,
    /// What a new model could take now, once its victims are gone.
    pub available: Bytes,
}

/// What a model gives up on one rung of its policy's ladder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Conceded {
    /// Settings that take less.
    pub tuning: Tuning,
    /// Experts of the last layers may stay on the CPU.
    pub experts: bool,
    /// Whole layers may stay on the CPU.
    pub layers: bool,
}

impl Conceded {
    /// This and one more.
    #[must_use]
    pub fn and(mut self, concession: Concession) -> Self {
        match concession {
            Concession::Experts => self.experts = true,
            Concession::Layers => self.layers = true,
            Concession::Ctx(ctx) => self.tuning.ctx = Some(ctx),
            Concession::Kv(kind) => (self.tuning.kv_k, self.tuning.kv_v) = (Some(kind), Some(kind)),
        }
        self
    }
}

/// The rungs of a ladder: nothing given up, then one concession more each time.
pub fn rungs(policy: &Policy) -> Vec<Conceded> {
    let mut rungs = vec![Conceded::default()];
    for concession in &policy.ladder {
        rungs.push(rungs[rungs.len() - 1].and(*concession));
    }
    rungs
}

/// Whether the policy allows this GPU.
pub fn allows(policy: &Policy, gpu: &Gpu) -> bool {
    policy.devices.iter().any(|devices| match devices {
        Devices::All => true,
        Devices::Host => false,
        Devices::Index(index) => gpu.index == *index,
        Devices::Uuid(uuid) => gpu.id.0 == *uuid,
        Devices::Name(pattern) => matches(pattern, &gpu.name),
    })
}

/// Whether it is for the host alone.
pub fn host_only(policy: &Policy) -> bool {
    policy.devices.iter().all(|devices| *devices == Devices::Host)
}

/// Whether `name` is as `pattern` says, `*` standing for anything. Case doesn't matter.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_lowercase(), name.to_lowercase());
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// The sets of GPUs to try, as positions among those that are allowed: fewest first, each GPU and each run of
/// neighbours in order, then those with most room. Where a part of the model may stay on the CPU, most first: no GPU is
/// left empty beside that. `available` is what each has, `numbers` over how many the server can lay it, ascending.
pub fn sets(policy: &Policy, conceded: &Conceded, available: &[Bytes], numbers: &[usize]) -> Vec<Vec<usize>> {
    let n = available.len();
    let sizes: Vec<usize> = match policy.spread {
        Spread::Exactly(wanted) => numbers.iter().copied().filter(|size| *size == wanted as usize).collect(),
        Spread::All => numbers.last().copied().into_iter().collect(),
        Spread::Fewest if conceded.experts || conceded.layers => numbers.iter().rev().copied().collect(),
        Spread::Fewest => numbers.to_vec(),
    };
    let mut roomiest: Vec<usize> = (0..n).collect();
    roomiest.sort_by_key(|position| (std::cmp::Reverse(available[*position]), *position));
    let mut sets: Vec<Vec<usize>> = Vec::new();
    for size in sizes.into_iter().filter(|size| (1..=n).contains(size)) {
        sets.extend((0..=n - size).map(|from| (from..from + size).collect()));
        let mut most = roomiest[..size].to_vec();
        most.sort_unstable();
        if !sets.contains(&most) {
            sets.push(most);
        }
        // What is declared for each GPU may fit in no other order. Beyond so many there would be too many sets.
        if numbers.len() == 1 && n <= 10 {
            let all = (0u32..1 << n).filter(|bits| bits.count_ones() as usize == size);
            let all = all.map(|bits| (0..n).filter(|gpu| bits >> gpu & 1 == 1).collect::<Vec<usize>>());
            let more: Vec<Vec<usize>> = all.filter(|set| !sets.contains(set)).collect();
            sets.extend(more);
        }
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_by_pattern() {
        let card = "NVIDIA GeForce RTX 5060 Ti";
        for pattern in ["*", "*5060*", "nvidia*", "*rtx*ti", card] {
            assert!(matches(pattern, card), "{pattern}");
        }
        for pattern in ["", "RTX 5060", "*5070*", "NVIDIA", "*Ti*5060"] {
            assert!(!matches(pattern, card), "{pattern}");
        }
    }
}
