//! How memory of a dead process comes back: at once, after a delay, along a ramp, or after a random delay.

use serde::{Deserialize, Serialize};

use crate::cards::mix;

/// The way that memory comes back after a death. Times in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// All of it, this long after the death (0: at once).
    Step { ns: u64 },
    /// Evenly over this time.
    Ramp { ns: u64 },
    /// All of it, after a delay drawn anew for each process and card, from 0 to `max_ns`.
    Random { max_ns: u64, seed: u64 },
}

/// What lingers, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linger {
    /// How it comes back.
    pub shape: Shape,
    /// Only for processes that died by a signal; others give back at once.
    pub only_signal: bool,
    /// Only for processes that held more than this many bytes on the card.
    pub above: u64,
}

impl Default for Linger {
    fn default() -> Self {
        Linger { shape: Shape::Step { ns: 0 }, only_signal: false, above: 0 }
    }
}

/// How a process ended, as far as could be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Its parent had reaped it before we looked.
    Unknown,
}

impl Linger {
    /// The delay after this death, and whether memory comes back evenly over it (else all at its end). An
    /// unknown end counts as a signal. `draws` counts the random draws so far.
    pub fn delay(&self, exit: Exit, bytes: u64, draws: &mut u64) -> (u64, bool) {
        if bytes <= self.above || (self.only_signal && matches!(exit, Exit::Code(_))) {
            return (0, false);
        }
        match self.shape {
            Shape::Step { ns } => (ns, false),
            Shape::Ramp { ns } => (ns, true),
            Shape::Random { max_ns, seed } => {
                *draws += 1;
                (mix(seed.wrapping_add(mix(*draws))) % max_ns.saturating_add(1), false)
            }
        }
    }
}

impl std::fmt::Display for Linger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |ns: u64| ns as f64 / 1e6;
        match self.shape {
            Shape::Step { ns } => write!(f, "memory lingers {} ms", ms(ns))?,
            Shape::Ramp { ns } => write!(f, "memory comes back over {} ms", ms(ns))?,
            Shape::Random { max_ns, seed } => {
                write!(f, "memory lingers up to {} ms (seed {seed})", ms(max_ns))?;
            }
        }
        if self.only_signal {
            f.write_str(" after a death by signal")?;
        }
        if self.above > 0 {
            write!(f, " above {}", crate::units::mib(self.above))?;
        }
        Ok(())
    }
}

/// Bytes still held at `now` of `bytes` whose holder died at `died` and that are all free at `freed`.
pub fn held(bytes: u64, died: u64, freed: u64, ramp: bool, now: u64) -> u64 {
    if now >= freed {
        return 0;
    }
    if !ramp || now <= died {
        return bytes;
    }
    let left = u128::from(bytes) * u128::from(freed - now) / u128::from(freed - died);
    u64::try_from(left).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_holds_until_its_end_and_a_ramp_gives_evenly() {
        assert_eq!(held(100, 10, 20, false, 19), 100);
        assert_eq!(held(100, 10, 20, false, 20), 0);
        assert_eq!(held(100, 10, 20, true, 15), 50);
        assert_eq!(held(u64::MAX, 0, u64::MAX, true, 1), u64::MAX - 1);
        assert_eq!(held(100, 10, 10, true, 10), 0);
    }

    #[test]
    fn only_signals_and_only_above_a_size() {
        let linger = Linger { shape: Shape::Step { ns: 7 }, only_signal: true, above: 50 };
        assert_eq!(linger.delay(Exit::Signal(9), 51, &mut 0).0, 7);
        assert_eq!(linger.delay(Exit::Unknown, 51, &mut 0).0, 7);
        assert_eq!(linger.delay(Exit::Code(0), 51, &mut 0).0, 0);
        assert_eq!(linger.delay(Exit::Signal(9), 50, &mut 0).0, 0);
    }

    #[test]
    fn random_delays_vary_within_bounds_and_repeat_by_seed() {
        let draw = |seed| {
            let linger = Linger { shape: Shape::Random { max_ns: 1000, seed }, ..Linger::default() };
            let mut draws = 0;
            (0..50).map(|_| linger.delay(Exit::Signal(9), 1, &mut draws).0).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(1).iter().all(|d| *d <= 1000));
        assert!(draw(1).iter().any(|d| *d < 300) && draw(1).iter().any(|d| *d > 700));
    }
}
