//! A part of the past as it is asked for: from when until when, in how many points.

use std::collections::BTreeMap;

use super::{Gathered, Limits, Tier};
use crate::report::DeviceSample;

/// Where nothing is said.
const DAY_MS: u64 = 24 * 3_600_000;
const POINTS: u64 = 300;
/// More than any screen is wide.
const MOST_POINTS: u64 = 2_000;

/// From when until when, in at most how many points for each device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// From then on.
    pub since_ms: u64,
    /// Before then.
    pub until_ms: u64,
    /// At least one.
    points: u64,
}

/// What can't be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadWindow {
    /// Nothing lies between.
    #[error("since_ms ({since_ms}) has to be before until_ms ({until_ms})")]
    Empty {
        /// From when.
        since_ms: u64,
        /// Until when.
        until_ms: u64,
    },
    /// None, or too many.
    #[error("points has to be 1 to {MOST_POINTS}")]
    Points,
}

impl Window {
    /// What is asked for; the last 24 hours in 300 points where nothing is said.
    pub fn new(
        since_ms: Option<u64>,
        until_ms: Option<u64>,
        points: Option<u64>,
        now_ms: u64,
    ) -> Result<Self, BadWindow> {
        // What is seen at this moment belongs to it.
        let until_ms = until_ms.unwrap_or(now_ms + 1);
        let since_ms = since_ms.unwrap_or(until_ms.saturating_sub(DAY_MS));
        let points = points.unwrap_or(POINTS);
        if since_ms >= until_ms {
            return Err(BadWindow::Empty { since_ms, until_ms });
        }
        if !(1..=MOST_POINTS).contains(&points) {
            return Err(BadWindow::Points);
        }
        Ok(Self { since_ms, until_ms, points })
    }

    /// How long one point is.
    fn step_ms(&self) -> u64 {
        (self.until_ms - self.since_ms).div_ceil(self.points)
    }

    /// The tier to read: the coarsest that is fine enough, of those that reach back so far; else the coarsest.
    pub fn tier(&self, limits: &Limits, now_ms: u64) -> Tier {
        let reaches = |tier: &Tier| now_ms.saturating_sub(limits.keep_ms(*tier)) <= self.since_ms;
        let fine = |tier: &Tier| tier.span_ms().unwrap_or(limits.every_ms) <= self.step_ms();
        let mut reaching = Tier::ALL.into_iter().filter(reaches);
        let finest = reaching.clone().next().unwrap_or(Tier::Quarter);
        reaching.rfind(fine).unwrap_or(finest)
    }
}

/// Samples of devices, by their numbers, brought down to a window's points.
#[derive(Debug)]
pub struct Thinned {
    window: Window,
    points: BTreeMap<i64, BTreeMap<u64, Gathered>>,
}

impl Thinned {
    /// None yet.
    pub fn new(window: Window) -> Self {
        Self { window, points: BTreeMap::new() }
    }

    /// Adds one; one outside the window is left out.
    pub fn take(&mut self, device: i64, sample: &DeviceSample) {
        let Window { since_ms, until_ms, .. } = self.window;
        if (since_ms..until_ms).contains(&sample.at_ms) {
            let point = (sample.at_ms - since_ms) / self.window.step_ms();
            let points = self.points.entry(device).or_default();
            points.entry(point).or_insert_with(|| Gathered::from(sample.at_ms)).take(sample);
        }
    }

    /// The samples of each device, oldest first.
    pub fn finish(self) -> BTreeMap<i64, Vec<DeviceSample>> {
        let samples = |points: BTreeMap<u64, Gathered>| points.values().map(Gathered::sample).collect();
        self.points.into_iter().map(|(device, points)| (device, samples(points))).collect()
    }
}
