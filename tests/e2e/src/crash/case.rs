//! What is tried: a switch, a point of it, and what happens there.

use std::fmt;

use serde::Serialize;

/// A switch away from `aeon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// To `genesis`: it is done.
    Done,
    /// To `broken`, which never gets ready: aeon is restored.
    GoesBack,
}

impl Switch {
    /// Where it goes.
    pub fn target(self) -> &'static str {
        match self {
            Self::Done => "genesis",
            Self::GoesBack => "broken",
        }
    }

    /// How berthctl ends after it.
    pub fn code(self) -> i32 {
        match self {
            Self::Done => 0,
            Self::GoesBack => 4,
        }
    }
}

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// berthd is killed.
    Kill,
    /// The machine's power is cut.
    Cut,
    /// The call that the point stands before or after fails.
    Fail,
}

/// The `nth` passing of a point, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct At {
    /// Its name.
    pub point: String,
    /// Which of them.
    pub nth: u32,
}

/// A point of a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Which passing of it.
    pub at: At,
    /// Only passings after this one count: for readings, whose number differs from run to run.
    pub since: Option<At>,
    /// What may be home after a kill here.
    pub killed: Homes,
    /// What may be home after a cut here.
    pub cut: Homes,
}

/// Which home is allowed, as long as nobody was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Homes {
    /// The one before.
    Old,
    /// Either.
    Both,
    /// The new one: it is on the disk.
    New,
}

/// One trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// Of which switch.
    pub switch: Switch,
    /// Where.
    pub point: Point,
    /// What.
    pub kind: Kind,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.point, self.nth)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Kill => "kill",
            Kind::Cut => "cut",
            Kind::Fail => "fail",
        };
        write!(f, "switch to {}, {what} {}", self.switch.target(), self.point.at)?;
        self.point.since.iter().try_for_each(|since| write!(f, " since {since}"))
    }
}
