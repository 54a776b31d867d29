//! How often something took how long.

use std::time::Duration;

/// Upper bounds in milliseconds: from an answer that was ready to a load from a slow disk.
const BOUNDS: [u64; 12] = [10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000];

/// Counts of times by how long they were.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Histogram {
    /// Of each bucket alone; the last one has no bound.
    counts: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl Histogram {
    /// Counts a time.
    pub fn add(&mut self, time: Duration) {
        let bucket = BOUNDS.iter().position(|bound| time <= Duration::from_millis(*bound));
        self.counts[bucket.unwrap_or(BOUNDS.len())] += 1;
        self.sum = self.sum.saturating_add(time);
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All together.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Upper bounds in seconds, the last one none, and how many were not longer.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        let bounds = BOUNDS.iter().map(|bound| Some(*bound as f64 / 1e3)).chain([None]);
        let mut so_far = 0;
        bounds.zip(self.counts).map(move |(bound, count)| {
            so_far += count;
            (bound, so_far)
        })
    }
}
